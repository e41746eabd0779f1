//! LoRA (2106.09685) and DoRA (2402.09353) adapters on a frozen linear layer, and PEFT's file layout for them.

mod lora;
mod peft;
mod settings;

pub use lora::{Lora, dora_norm, dora_squares, row_norms_squared};
pub use peft::{AdapterFile, PREFIX, load, save};
pub use settings::{Patterns, Settings, TargetModules};

use std::path::PathBuf;

use crate::diag::Diagnostic;
use crate::fsio;
use crate::tensor;

/// An adapter that could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error("the adapter `{}` sets `{key}` to `{found}`, supported is {supported}", path.display())]
    Unsupported { path: PathBuf, key: &'static str, found: String, supported: &'static str },
    #[error("the adapter has a tensor `{name}` that belongs to no target module of the model")]
    Stray { name: String },
    #[error("the adapter has no tensor `{name}`, which its config and the model ask for")]
    Lacks { name: String },
    #[error("the adapter's tensor `{name}` has shape {found:?}, the model asks for {expected:?}")]
    OtherShape { name: String, found: Vec<i64>, expected: Vec<i64> },
    #[error("`target_modules`: `{targets}` matches no linear layer of the model")]
    NoTargets { targets: String },
    #[error("`{key}` holds `{pattern}`, which is not a regular expression")]
    BadPattern { key: &'static str, pattern: String, source: regex::Error },
    #[error("the rank of `{module}` is {rank}, expected at least 1")]
    BadRank { module: String, rank: i64 },
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
            Self::File(error) => error.hint(),
            Self::Stray { .. } | Self::Lacks { .. } | Self::OtherShape { .. } => {
                Some("the adapter was trained on another base model; give that one as `--model`".into())
            }
            Self::NoTargets { .. } => Some(
                "Qwen2's linear layers are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj".into(),
            ),
            _ => None,
        }
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, Error>;
