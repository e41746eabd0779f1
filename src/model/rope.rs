//! Rotary position embedding (2104.09864), in the half-rotated layout of Qwen2, angles in f32.

use tch::{Device, Kind, Tensor};

use super::Result;
use crate::tensor::Placement;

/// Cosines and sines of every position's angles, each `[max_positions, head_dim / 2]` f32.
#[derive(Debug)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// The table for positions `0..max_positions`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(head_dim: i64, theta: f64, max_positions: i64, device: Device) -> Result<Self> {
        let options = (Kind::Float, device);
        let exponents = Tensor::f_arange_start_step(0, head_dim, 2, options)?.f_div_scalar(head_dim as f64)?;
        let inverse_frequencies = Tensor::f_pow_scalar(theta, &exponents)?.f_reciprocal()?;
        let angles = Tensor::f_arange(max_positions, options)?.f_outer(&inverse_frequencies)?;
        Ok(Self { cos: angles.f_cos()?, sin: angles.f_sin()? })
    }

    /// Cosines and sines of the given positions `[n]`, each `[n, 1, head_dim / 2]` in the model's type.
    ///
    /// # Errors
    /// When a position is outside the table.
    pub fn at(&self, positions: &Tensor, placement: Placement) -> Result<Rotation> {
        let pick = |table: &Tensor| -> Result<Tensor> {
            Ok(table.f_index_select(0, positions)?.f_to_kind(placement.dtype)?.f_unsqueeze(1)?)
        };
        Ok(Rotation { cos: pick(&self.cos)?, sin: pick(&self.sin)? })
    }
}

/// The rotation of a batch's positions.
#[derive(Debug)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
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
