//! NF4: 4-bit weights with double-quantized block scales, byte-equal to bitsandbytes (QLoRA, 2305.14314).

mod absmax;
mod attention;
mod blockwise;
mod bnb;
mod codebook;
mod dense;
mod few_rows;
mod kernels;
mod nf4;
mod noise;
mod products;
pub mod rows;
pub mod thin;

pub use absmax::{Absmax, DoubleQuantized};
pub use attention::{PackedHeads, Segment, attend_packed, attend_packed_backward};
pub use blockwise::DynamicCode;
pub use bnb::{QUANT_STATE, is_stored, load, quantization_config, refuse_other_schemes, stored_tensors};
pub use codebook::{NF4_CODE, dynamic_code};
pub use dense::{can_multiply_dense, linear, matmul, multiply_dense};
pub use few_rows::{FewRows, multiply_each};
pub use kernels::{Isa, Rounding, cuda};
pub use nf4::{BLOCK, Nf4};
pub use products::{Backward, Change, Forward, NormOf, Outputs};

use crate::diag::Diagnostic;
use crate::tensor;

/// A weight that could not be quantized or read back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    #[error("a weight of shape {0:?} cannot be quantized, expected [rows, columns]")]
    NotAMatrix(Vec<i64>),
    #[error("the weight holds NaN or infinite values")]
    NotFinite,
    #[error("NF4 weights cannot be expanded into the type {0:?}, expected float32 or bfloat16")]
    OutputType(tch::Kind),
    #[error("`{name}`: {message}")]
    Stored { name: String, message: String },
    #[error("the weights are quantized with {found}, supported is bitsandbytes NF4")]
    Scheme { found: String },
    #[error("the tensors of a pass over rows of shape {0:?} do not fit together")]
    Rows(Vec<i64>),
    #[error("the factors of a product do not fit a weight of shape {0:?}")]
    Factors([i64; 2]),
    #[error("a buffer of {found} elements cannot take a weight of {expected}")]
    BufferSize { found: usize, expected: usize },
    #[error("GPU {0} was not prepared: its kernels are not loaded")]
    NotPrepared(usize),
    #[error("the memory of a tensor does not start at a multiple of 16 bytes")]
    Unaligned,
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
            Self::NotFinite => Some("the checkpoint is damaged or diverged in training; use another one".into()),
            Self::Stored { .. } => {
                Some("the checkpoint is damaged, or no bitsandbytes one: download or write it again".into())
            }
            Self::Scheme { .. } => {
                Some("take the model that was not quantized, and quantize it here (`axismapper quantize`)".into())
            }
            _ => None,
        }
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, Error>;
