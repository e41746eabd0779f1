//! Training: SFT and ORPO by block-wise recompute, exact and deterministic on the CPU.

mod batch;
mod head;
pub mod objective;
mod optim;
mod schedule;
mod step;

pub use batch::{Batch, PreferenceTokens, pack_preferences, pack_records};
pub use head::{Scored, score};
pub use optim::AdamW;
pub use schedule::learning_rate_factor;
pub use step::{Gradients, backward, log_probabilities};

pub mod stub {
    #[derive(Clone, Debug, Default, PartialEq)]
    pub struct Tokens {
        pub ids: Vec<u32>,
        pub is_target: Vec<bool>,
    }
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Scheduler {
        Constant,
        Linear,
        Cosine,
        InverseSqrt,
    }
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum NllOn {
        All,
        Completion,
    }
}

use crate::diag::Diagnostic;
use crate::stop::Stopped;
use crate::{fsio, model, tensor};

/// Training that could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("a {what} became {value}")]
    NotFinite { what: &'static str, value: f64 },
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
            Self::Model(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Stopped(stopped) => stopped.hint(),
            Self::NotFinite { .. } => Some(
                "training diverged: lower `training.learning_rate`, raise `training.warmup_ratio` or set `training.max_grad_norm`".into(),
            ),
        }
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, Error>;
