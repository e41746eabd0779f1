//! RMSNorm with its statistics in f32.

use tch::{Kind, Tensor};

use super::Result;

/// `w * x / sqrt(mean(x^2) + eps)` over the last dimension, the quotient cast to the type of `x` before the product,
/// as transformers does.
///
/// # Errors
/// When memory is short.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let kind = x.f_kind()?;
    let wide = x.f_to_kind(Kind::Float)?;
    let mean = wide.f_square()?.f_mean_dim(-1i64, true, Kind::Float)?;
    let normed = wide.f_mul(&mean.f_add_scalar(eps)?.f_rsqrt()?)?;
    Ok(normed.f_to_kind(kind)?.f_mul(weight)?)
}
