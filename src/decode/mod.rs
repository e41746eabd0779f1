//! From prompts to answers: batched decoding with a KV cache, free or held to the codes of a release.

pub mod automaton;
mod batch;
mod beam;
mod constraint;
mod generate;
pub mod grammar;
mod sampler;

pub use batch::{Answer, Batch, Event, Form, Reason, Request, ScoredCode, Settings, Token};
pub use beam::{Alternative, alternatives};
pub use constraint::{Advance, Choice, Constraint, Rules, Walk};
pub use generate::{Limits, generate, generate_codes};
pub use sampler::Sampling;

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
    #[error("{max_new_tokens} new tokens cannot hold every code: at least {least} are needed")]
    TooFewTokens { max_new_tokens: usize, least: usize },
    #[error("the release has no codes to answer with")]
    NoCodes,
    #[error("the tokenizer has no token for `{character}`, which codes are written with")]
    Unspellable { character: char },
    #[error("codes were asked for where no code set is loaded")]
    NoConstraint,
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
            Self::TooFewTokens { least, .. } => Some(format!("allow {least} or more, or answer unconstrained")),
            Self::NoCodes => Some("check the file given with --codes".into()),
            Self::Unspellable { .. } => Some("use --no-constrain, or the tokenizer that belongs to the model".into()),
            Self::NoConstraint => None,
        }
    }
}
