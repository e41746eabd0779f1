//! Where a model's weights come from: a folder, dense or in bitsandbytes' layout, or random numbers.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::projection::Weight;
use super::{Error, Result};
use crate::quant::{self, Nf4};
use crate::tensor::{Checkpoint, Placement, Rng, check_finite};

/// A source of weights. Every tensor it gives was checked: shape, and no NaN.
#[derive(Debug)]
pub(super) enum Weights {
    Stored {
        checkpoint: Checkpoint,
        /// Whether linear layers are stored in NF4.
        is_nf4: bool,
    },
    /// Normal with deviation 0.02, biases 0, norms 1 (transformers' `_init_weights`), drawn from this seed and each
    /// tensor's name.
    Random(u64),
    /// As `Random`, but draws repeat themselves, and NF4 codes are drawn as they are.
    Noise(u64),
}

/// Elements after which [`Weights::Noise`] repeats itself.
const PERIOD: i64 = 1 << 16;

impl Weights {
    /// The weights of a folder.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open_dir(dir)?;
        let is_nf4 = checkpoint.names().any(|name| name.ends_with(quant::QUANT_STATE));
        Ok(Self::Stored { checkpoint, is_nf4 })
    }

    /// Whether the linear layers come in NF4 already.
    pub fn is_nf4(&self) -> bool {
        matches!(self, Self::Stored { is_nf4: true, .. })
    }

    /// The type that most of the weights are stored in; f32 for random ones.
    pub fn kind(&self) -> Result<Kind> {
        match self {
            Self::Stored { checkpoint, .. } => Ok(checkpoint.kind("model.embed_tokens.weight")?.unwrap_or(Kind::Float)),
            Self::Random(_) | Self::Noise(_) => Ok(Kind::Float),
        }
    }

    /// A tensor as it is stored, on the CPU.
    ///
    /// # Errors
    /// When it is missing, of another shape, or not finite.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        Ok(match self {
            Self::Stored { checkpoint, .. } => {
                let tensor = checkpoint.tensor_of_shape(name, shape)?;
                check_finite(name, &tensor)?;
                tensor
            }
            Self::Random(seed) if shape.len() == 2 => Rng::named(*seed, name).normal(shape, 0.02)?,
            Self::Noise(seed) if shape.len() == 2 => {
                let n: i64 = shape.iter().product();
                let period = Rng::named(*seed, name).normal(&[PERIOD], 0.02)?.f_to_kind(Kind::BFloat16)?;
                period.f_repeat([(n + PERIOD - 1) / PERIOD])?.f_narrow(0, 0, n)?.f_reshape(shape)?
            }
            Self::Random(_) | Self::Noise(_) if name.ends_with("bias") => {
                Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?
            }
            Self::Random(_) | Self::Noise(_) => Tensor::f_ones(shape, (Kind::Float, Device::Cpu))?,
        })
    }

    /// A tensor placed for computation.
    ///
    /// # Errors
    /// As [`Weights::tensor`], or when memory is short.
    pub fn placed(&self, name: &str, shape: &[i64], placement: Placement) -> Result<Tensor> {
        Ok(self.tensor(name, shape)?.f_to_device(placement.device)?.f_to_kind(placement.dtype)?)
    }

    /// A linear layer's weight: in NF4 where it is stored so or where `quantize` asks for it, else dense. Of a folder that is
    /// quantized already, what is dense stays dense.
    ///
    /// # Errors
    /// As [`Weights::placed`].
    pub fn linear(&self, name: &str, shape: [i64; 2], placement: Placement, quantize: bool) -> Result<Weight> {
        match self {
            Self::Stored { checkpoint, .. } if quant::is_stored(checkpoint, name) => {
                let weight = quant::load(checkpoint, name, shape).map_err(|error| named(name, error))?;
                Ok(Weight::Nf4(weight.to_device(placement.device)?))
            }
            Self::Noise(seed) if quantize => Ok(Weight::Nf4(Nf4::noise(shape, *seed)?.to_device(placement.device)?)),
            _ if quantize && !self.is_nf4() => {
                let weight = self.tensor(name, &shape)?;
                let weight = Nf4::quantize(&weight).map_err(|error| named(name, error))?;
                Ok(Weight::Nf4(weight.to_device(placement.device)?))
            }
            _ => Ok(Weight::Dense(self.placed(name, &shape, placement)?)),
        }
    }
}

/// The error of a weight, with its name.
fn named(name: &str, error: quant::Error) -> Error {
    match error {
        quant::Error::NotFinite => crate::tensor::Error::NotFinite { name: name.to_owned() }.into(),
        other => other.into(),
    }
}
