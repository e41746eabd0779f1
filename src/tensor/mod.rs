//! Tensors between files and devices: memory views, safetensors, named random generators, GPUs, transfers, the pool of threads.

pub mod cuda;
mod finite;
mod memory;
mod pick;
mod rng;
mod safetensors;
mod shards;
mod shelf;
pub mod threads;
pub(crate) mod transfer;

pub use finite::check_finite;
pub use memory::{Element, LargeApart, Mapped, as_bytes, as_slice, as_slice_mut};
pub use pick::{pick_rows, upload_index};
pub use rng::{DropoutDraws, Rng};
pub use safetensors::{Checkpoint, Metadata, pytorch_metadata, save};
pub use shards::{Shards, Written};
pub use shelf::{Place, Shelf};
pub use transfer::{move_to, read, upload};

use std::path::PathBuf;

use tch::{Device, Kind};

use crate::diag::{Diagnostic, io_hint};
use crate::fsio;

/// Where tensors live and in which type they compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    pub device: Device,
    pub dtype: Kind,
}

/// The name of a float type in Hugging Face's files.
pub fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        _ => "float32",
    }
}

/// A tensor that could not be read, written or computed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Torch(#[from] tch::TchError),
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error("`{}` is not a complete safetensors file: {message}", path.display())]
    BadCheckpoint { path: PathBuf, message: String },
    #[error("tensor `{name}` is not in `{}`", path.display())]
    Missing { name: String, path: PathBuf },
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape { name: String, found: Vec<i64>, expected: Vec<i64> },
    #[error("tensor `{name}` has the type {dtype}, which is not supported")]
    Dtype { name: String, dtype: String },
    #[error("tensor `{name}` holds NaN or infinite values")]
    NotFinite { name: String },
    #[error("a tensor on {device:?} of type {kind:?} cannot be viewed as {wanted} in memory")]
    View { device: Device, kind: Kind, wanted: &'static str },
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Cuda(#[from] cuda::Error),
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Cuda(error) => error.hint(),
            Self::NotFinite { .. } => {
                Some("the checkpoint is damaged or diverged in training; download it again or use another one".into())
            }
            Self::Missing { .. } | Self::Shape { .. } => Some(
                "the files do not belong together: config.json and weights, or adapter and base, are of two models"
                    .into(),
            ),
            Self::BadCheckpoint { .. } => Some("the file is damaged or cut short: download or write it again".into()),
            Self::Write { source, .. } => io_hint(source),
            Self::Torch(error) if is_out_of_memory(&error.to_string()) => Some(
                "use a smaller batch (`training.per_device_train_batch_size`) or a shorter `model.max_seq_length`"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// Whether libtorch says that memory, the host's or a GPU's, is short.
fn is_out_of_memory(message: &str) -> bool {
    message.contains("not enough memory") || message.contains("CUDA out of memory")
}

/// Shorthand of this module and of those that only add tensor work.
pub type Result<T> = std::result::Result<T, Error>;
