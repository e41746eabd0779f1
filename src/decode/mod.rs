//! From prompts to answers: batched greedy decoding with a KV cache.

mod generate;

pub use generate::{Limits, generate};

use crate::diag::Diagnostic;
use crate::model;
use crate::stop::Stopped;

/// Decoding that could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("prompt {index} is empty")]
    EmptyPrompt { index: usize },
    #[error(
        "prompt {index} has {len_tokens} tokens; with {max_new_tokens} new ones the model's limit of {limit} is passed"
    )]
    TooLong { index: usize, len_tokens: usize, max_new_tokens: usize, limit: i64 },
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Model(error.into())
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Model(error) => error.hint(),
            Self::Stopped(stopped) => stopped.hint(),
            Self::EmptyPrompt { .. } => None,
            Self::TooLong { .. } => Some("shorten the text".into()),
        }
    }
}
