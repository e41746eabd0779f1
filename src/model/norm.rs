//! RMSNorm with its statistics in f32.

use tch::{Kind, Tensor};

use super::Result;
use crate::quant::rows;

/// `w * x / sqrt(mean(x^2) + eps)` over the last dimension, the quotient cast to the type of `x` before the product,
/// as transformers does.
///
/// # Errors
/// When memory is short.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if rows::can_pass(&[x, weight]) {
        return Ok(rows::rms_norm(x, weight, eps)?);
    }
    let kind = x.f_kind()?;
    let wide = x.f_to_kind(Kind::Float)?;
    let mean = wide.f_square()?.f_mean_dim(-1i64, true, Kind::Float)?;
    let normed = wide.f_mul(&mean.f_add_scalar(eps)?.f_rsqrt()?)?;
    Ok(normed.f_to_kind(kind)?.f_mul(weight)?)
}

/// The gradient of the input of [`rms_norm`] from that of its output, added to `before`, in the type of `x`, statistics in f32.
///
/// # Errors
/// When memory is short.
pub(super) fn rms_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    grad: &Tensor,
    before: &Tensor,
) -> Result<Tensor> {
    if rows::can_pass(&[x, weight, grad, before]) {
        return Ok(rows::rms_norm_backward(x, weight, eps, grad, before)?);
    }
    let wide = x.f_to_kind(Kind::Float)?;
    let reciprocal = wide.f_square()?.f_mean_dim(-1i64, true, Kind::Float)?.f_add_scalar(eps)?.f_rsqrt()?;
    let normed = wide.f_mul(&reciprocal)?;
    let grad_normed = grad.f_mul(weight)?.f_to_kind(Kind::Float)?;
    let along = grad_normed.f_mul(&normed)?.f_mean_dim(-1i64, true, Kind::Float)?;
    let through = grad_normed.f_sub(&normed.f_mul(&along)?)?.f_mul(&reciprocal)?.f_to_kind(x.f_kind()?)?;
    Ok(before.f_add(&through)?)
}
