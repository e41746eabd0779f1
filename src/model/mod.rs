//! Qwen2: a frozen (NF4 or dense) decoder with adapters, run block by block.

mod attention;
mod block;
mod block_backward;
mod config;
mod kv_cache;
mod load;
mod norm;
mod packing;
mod projection;
mod projection_backward;
mod qwen2;
mod rope;
mod save;
mod sequences;
mod slots;
mod weights;
mod write;

pub use block::{Block, Pass};
pub use block_backward::{Keep, Kept};
pub use config::Config;
pub use kv_cache::KvCache;
pub use load::{Quantization, add_adapter, attach_adapter, init, load, merge_in_place, new_adapter, noise, quantize};
pub use packing::{Packed, Positions};
pub use projection::{Projection, Weight};
pub use qwen2::{Head, Parameter, Qwen2};
pub use rope::Rotation;
pub use save::{save, save_configs};
pub use sequences::MAX_GROUP_SCORES;
pub use write::{
    EndTokens, WriteRequest, count_parameters, count_weights, estimate_bytes, init_folder, quantize_folder,
};

use std::path::PathBuf;

use crate::adapter;
use crate::diag::Diagnostic;
use crate::fsio;
use crate::quant;
pub use crate::quant::Segment;
use crate::stop::Stopped;
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
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("`{}` is both the model and the folder to write", path.display())]
    SameFolder { path: PathBuf },
    #[error("the weights in `{}` are quantized already", path.display())]
    QuantizedAlready { path: PathBuf },
    #[error("`{}` describes the architecture {found}, expected Qwen2ForCausalLM", path.display())]
    Architecture { path: PathBuf, found: String },
    #[error("`{}`: `{key}` is {found}, expected {expected}", path.display())]
    BadConfig { path: PathBuf, key: &'static str, found: String, expected: String },
    #[error("the model has already an adapter named `{name}`")]
    AdapterTwice { name: String },
    #[error("the model has no adapter named `{name}`")]
    NoAdapter { name: String, known: Vec<String> },
    #[error("position {position} is beyond the {max_positions} positions of the model")]
    Position { position: i64, max_positions: i64 },
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
            Self::Stopped(error) => error.hint(),
            Self::SameFolder { .. } => Some("give another --out".into()),
            Self::QuantizedAlready { .. } => Some("the folder can be used as it is".into()),
            Self::Architecture { .. } => Some("use a Qwen2.5 model, such as Qwen/Qwen2.5-7B-Instruct".into()),
            Self::TokenRange { .. } => Some("the tokenizer and the model do not belong together".into()),
            Self::NoAdapter { known, .. } => Some(match known.as_slice() {
                [] => "it has none".into(),
                known => format!("it has `{}`", known.join("`, `")),
            }),
            Self::AdapterTwice { .. } => Some("give every adapter a name of its own".into()),
            Self::Position { .. } => {
                Some("shorten the text; `max_position_embeddings` in config.json is the limit".into())
            }
            Self::BadConfig { .. } => None,
        }
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, Error>;
