//! Whether a GPU computes what the CPU computes, and how fast: the measurements of `axismapper check-gpu`.
//!
//! Nothing is read or fetched: models have random weights.

mod parity;
mod speed;

pub use parity::{Finding, compare};
pub use speed::{Case, Limits, Shape, Speed, bandwidth, measure, peak_flops};

use crate::decode;
use crate::diag::Diagnostic;
use crate::model;
use crate::quant;
use crate::tensor;
use crate::train;

/// A check that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    #[error(transparent)]
    Quant(#[from] quant::Error),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error(transparent)]
    Train(#[from] train::Error),
    #[error(transparent)]
    Decode(#[from] decode::Error),
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Tensor(error.into())
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Tensor(error) => error.hint(),
            Self::Quant(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Train(error) => error.hint(),
            Self::Decode(error) => error.hint(),
        }
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, Error>;
