//! What is minimised.

pub mod orpo;
