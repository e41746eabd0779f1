//! Qwen2: a frozen (NF4 or dense) decoder with adapters, run block by block.

mod attention;
mod block;
mod config;
mod kv_cache;
mod load;
mod norm;
mod packing;
mod projection;
mod qwen2;
mod rope;
mod save;

pub use block::Block;
pub use config::Config;
pub use kv_cache::KvCache;
pub use load::{Quantization, attach_adapter, init, load, merge_in_place, new_adapter, quantize};
pub use packing::{Packed, Segment};
pub use projection::{Projection, Weight};
pub use qwen2::{Head, Parameter, Qwen2};
pub use rope::Rotation;
pub use save::{save, save_configs};

use std::path::PathBuf;

use crate::adapter;
use crate::diag::Diagnostic;
use crate::fsio;
use crate::quant;
use crate::tensor;

/// A model that could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    #[error(transparent)]
    Quant(#[from] quant::Error),
    #[error(transparent)]
    Adapter(#[from] adapter::Error),
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error("`{}` describes the architecture {found}, expected Qwen2ForCausalLM", path.display())]
    Architecture { path: PathBuf, found: String },
    #[error("`{}`: `{key}` is {found}, expected {expected}", path.display())]
    BadConfig { path: PathBuf, key: &'static str, found: String, expected: String },
    #[error("`{module}` has already an adapter")]
    AdapterTwice { module: String },
    #[error("token {id} is outside the vocabulary of {vocab_size}")]
    TokenRange { id: i64, vocab_size: i64 },
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
            Self::File(error) => error.hint(),
            Self::Architecture { .. } => Some("use a Qwen2.5 model, such as Qwen/Qwen2.5-7B-Instruct".into()),
            Self::TokenRange { .. } => Some("the tokenizer and the model do not belong together".into()),
            Self::BadConfig { .. } | Self::AdapterTwice { .. } => None,
        }
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, Error>;
