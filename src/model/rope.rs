//! Rotary position embedding (2104.09864), in the half-rotated layout of Qwen2, angles in f32.

use tch::{Device, Kind, Tensor};

use super::packing::Positions;
use super::{Error, Result};
use crate::tensor::{Placement, move_to};

/// The angles' speeds, from which the angles of any position are made when they are needed.
#[derive(Debug)]
pub struct Rope {
    /// `[1, head_dim / 2]` f32.
    inverse_frequencies: Tensor,
    max_positions: i64,
}

impl Rope {
    /// The angles of positions `0..max_positions`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(head_dim: i64, theta: f64, max_positions: i64, device: Device) -> Result<Self> {
        // On the CPU, so that every device rotates by the same angles.
        let options = (Kind::Float, Device::Cpu);
        let exponents = Tensor::f_arange_start_step(0, head_dim, 2, options)?.f_div_scalar(head_dim as f64)?;
        let inverse_frequencies = Tensor::f_pow_scalar(theta, &exponents)?.f_reciprocal()?.f_unsqueeze(0)?;
        Ok(Self { inverse_frequencies: move_to(&inverse_frequencies, device)?, max_positions })
    }

    /// Cosines and sines of the given positions `[n]`, each `[n, 1, head_dim / 2]` in the model's type.
    ///
    /// # Errors
    /// [`Error::Position`] when a position is beyond the model's.
    pub fn at(&self, positions: &Positions, placement: Placement) -> Result<Rotation> {
        let Positions { tensor, last } = positions;
        if *last >= self.max_positions {
            return Err(Error::Position { position: *last, max_positions: self.max_positions });
        }
        let angles = tensor.f_unsqueeze(1)?.f_to_kind(Kind::Float)?.f_mul(&self.inverse_frequencies)?;
        let place = |table: Tensor| table.f_to_kind(placement.dtype)?.f_unsqueeze(1);
        Ok(Rotation { cos: place(angles.f_cos()?)?, sin: place(angles.f_sin()?)? })
    }
}

/// The rotation of a batch's positions.
#[derive(Debug)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Cosines and sines, each `[n, 1, head_dim / 2]`.
    pub(super) fn tables(&self) -> [&Tensor; 2] {
        [&self.cos, &self.sin]
    }

    /// Rotates `x` `[n, heads, head_dim]`: the first half of each head pairs with the second.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let halves = x.f_chunk(2, -1)?;
        let (a, b) = (&halves[0], &halves[1]);
        let first = a.f_mul(&self.cos)?.f_sub(&b.f_mul(&self.sin)?)?;
        let second = b.f_mul(&self.cos)?.f_add(&a.f_mul(&self.sin)?)?;
        Ok(Tensor::f_cat(&[first, second], -1)?)
    }
}
