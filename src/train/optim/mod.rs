//! Optimizers over a list of parameters.

mod adamw;
mod blockwise;

pub use adamw::AdamW;
