//! What leaves the machine: the adapter merged into its base as a plain Hugging Face folder, and GGUF files.

mod card;
mod certificate;
mod divergence;
mod gguf;
mod merged;

pub use card::{Card, Contents, MARK as CARD_MARK, card, contents_of, licence_of};
pub use certificate::{Answers, Certificate, CompareRequest, Comparison, compare, discard, file_hashes};
pub use divergence::{Divergence, divergence};
pub use gguf::{Exported, GgufRequest, GgufType, Storage, export_gguf, modelfile};
pub use merged::{MergeRequest, Merged, Onto, copy_beside_weights, merge};

use std::path::PathBuf;

use crate::adapter;
use crate::decode;
use crate::diag::Diagnostic;
use crate::fsio;
use crate::model;
use crate::quant;
use crate::stop::Stopped;
use crate::tensor;

/// An export that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    #[error(transparent)]
    Quant(#[from] quant::Error),
    #[error(transparent)]
    Adapter(#[from] adapter::Error),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    Decode(#[from] decode::Error),
    #[error("the weights of `{}` are quantized, and the original ones are asked for", path.display())]
    QuantizedBase { path: PathBuf },
    #[error("the output folder `{}` is the base model's own", path.display())]
    SameFolder { path: PathBuf },
    #[error(
        "{heads} heads of size {head_dim} do not make the hidden size {hidden_size}, which llama.cpp's Qwen2 takes for granted"
    )]
    GgufShape { heads: i64, head_dim: i64, hidden_size: i64 },
    #[error("tensor `{name}` holds {value}, which the asked type cannot store")]
    GgufValue { name: String, value: f32 },
    #[error("the tokenizer has no place in a GGUF file: {message}")]
    Tokenizer { message: String },
    #[error("the type {0:?} cannot be stored, expected bfloat16, float16 or float32")]
    Dtype(tch::Kind),
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
            Self::Adapter(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Stopped(stopped) => stopped.hint(),
            Self::Decode(error) => error.hint(),
            Self::QuantizedBase { .. } => {
                Some("name the original model with --model, or merge with --onto quantized".into())
            }
            Self::SameFolder { .. } => Some("give another --out".into()),
            Self::GgufShape { .. } => None,
            Self::GgufValue { value, .. } if value.is_finite() => {
                Some("use --type bf16, which has a wider range".into())
            }
            Self::GgufValue { .. } => Some("the weights are damaged: merge or download them again".into()),
            Self::Tokenizer { .. } => Some("use the tokenizer of a Qwen2.5 model".into()),
            Self::Dtype(_) => Some("set --dtype".into()),
        }
    }

    fn is_usage(&self) -> bool {
        matches!(self, Self::SameFolder { .. } | Self::QuantizedBase { .. } | Self::Dtype(_))
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, Error>;
