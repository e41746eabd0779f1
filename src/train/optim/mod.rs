//! Optimizers over a list of parameters.

mod adamw;

pub use adamw::AdamW;
