//! A linear layer's forward pass that keeps what its backward pass needs, and that backward pass.
//!
//! With `y` the layer's output, `z = A d(x)` for the dropped input `d(x)`, and `dy` the gradient of `y`:
//!
//! - no adapter: `dx = dy W`.
//! - LoRA: `dB = s dy^T z`, `dz = s dy B`, `dA = dz^T d(x)`, `dx = dy W + mask (dz A)`.
//! - DoRA, `y = g p + b` with `p = W x + s B A x`: `dm = sum(dy p) / norm`, the rest as LoRA with `g dy` for `dy`.
//! - DoRA with dropout, `y = W x + b + (g - 1) p + s B z` with `p = W d(x) + s B z`: `dm` as before,
//!   `dB = s g dy^T z`, `dz = s dy (g B)`, `dx = dy W + mask ((g - 1) dy W + dz A)`.
//!
//! The frozen weight and the bias get no gradient.

use tch::{Kind, Tensor};

use super::Result;
use super::projection::{Adapter, Projection, Workspace};
use crate::quant::cuda;
use crate::tensor::Rng;

/// What is kept of a layer's forward pass. Anything that is missing is computed again.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// `y`, `[tokens, out]`. DoRA without dropout has it from `scaled`.
    output: Option<Tensor>,
    /// DoRA's `p`, `[tokens, out]`.
    scaled: Option<Tensor>,
    /// `z`, `[tokens, r]`.
    inner: Option<Tensor>,
}

impl Part {
    /// Forgets what only the layers after this one need.
    pub(super) fn forget_output(&mut self) {
        self.output = None;
    }

    /// The memory that it takes.
    pub(super) fn size_bytes(&self) -> usize {
        let size = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        [&self.output, &self.scaled, &self.inner].into_iter().flatten().map(size).sum()
    }
}

/// The adapter's matrices in the type of the activations, `B` with its factor.
struct Matrices {
    /// `[r, in]`.
    a: Tensor,
    /// `s B`, `[out, r]`.
    scaled_b: Tensor,
    /// DoRA's `g`, `[out]` f32.
    gain: Option<Tensor>,
}

impl Matrices {
    fn new(adapter: &Adapter, kind: Kind) -> Result<Self> {
        let lora = &adapter.lora;
        let gain = match (&lora.magnitude, &adapter.norm) {
            (Some(magnitude), Some(norm)) => Some(magnitude.f_div(norm)?),
            _ => None,
        };
        Ok(Self {
            a: lora.lora_a.f_to_kind(kind)?,
            scaled_b: lora.lora_b.f_mul_scalar(lora.scaling)?.f_to_kind(kind)?,
            gain,
        })
    }
}

impl Projection {
    /// As [`Projection::forward`] without gradient, keeping what the backward pass needs.
    pub(super) fn forward_keeping(&mut self, x: &Tensor, seed: Option<u64>, workspace: &mut Workspace) -> Result<Part> {
        let kind = x.f_kind()?;
        let weight = self.weight(kind, workspace)?;
        self.refresh_norm(&weight)?;
        let bias = self.bias.as_ref();
        let Some(adapter) = &self.adapter else {
            return Ok(Part { output: Some(x.f_linear(&weight, bias)?), ..Part::default() });
        };
        let Matrices { a, scaled_b, gain } = Matrices::new(adapter, kind)?;
        let mask = self.mask(x, seed)?;
        let dropped = dropped(x, mask.as_ref())?;
        let inner = dropped.f_linear(&a, None::<&Tensor>)?;
        let low_rank = scaled_b.f_transpose(0, 1)?;
        let Some(gain) = gain else {
            let output = x.f_linear(&weight, bias)?.f_addmm_(&inner, &low_rank)?;
            return Ok(Part { output: Some(output), scaled: None, inner: Some(inner) });
        };
        let scaled = dropped.f_linear(&weight, None::<&Tensor>)?.f_addmm_(&inner, &low_rank)?;
        let output = if mask.is_some() {
            let mut output = x.f_linear(&weight, bias)?;
            let mut output = output.f_addcmul_(&scaled, &gain.f_sub_scalar(1.0)?.f_to_kind(kind)?)?;
            Some(output.f_addmm_(&inner, &low_rank)?)
        } else {
            None
        };
        Ok(Part { output, scaled: Some(scaled), inner: Some(inner) })
    }

    /// The layer's output from what was kept; undefined after [`Part::forget_output`].
    pub(super) fn output_of(&self, part: &Part) -> Result<Tensor> {
        match (&part.output, &part.scaled, &self.adapter) {
            (None, Some(scaled), Some(adapter)) => {
                let kind = scaled.f_kind()?;
                let gain = Matrices::new(adapter, kind)?.gain.map(|gain| gain.f_to_kind(kind)).transpose()?;
                Ok(match (gain, &self.bias) {
                    (Some(gain), Some(bias)) => bias.f_addcmul(scaled, &gain)?,
                    (Some(gain), None) => scaled.f_mul(&gain)?,
                    (None, _) => scaled.shallow_clone(),
                })
            }
            (Some(output), _, _) => Ok(output.shallow_clone()),
            _ => Ok(Tensor::new()),
        }
    }

    /// The gradient of the input, added to `dx` when there is one, and those of the adapter's parameters in their order,
    /// from that of the output `dy` `[tokens, out]`.
    pub(super) fn backward(
        &mut self,
        x: &Tensor,
        dy: &Tensor,
        part: Option<Part>,
        dx: Option<Tensor>,
        seed: Option<u64>,
        workspace: &mut Workspace,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let kind = x.f_kind()?;
        let weight = self.weight(kind, workspace)?;
        self.refresh_norm(&weight)?;
        let Some(adapter) = &self.adapter else {
            return Ok((add_product(dx, dy, &weight)?, Vec::new()));
        };
        let Matrices { a, scaled_b, gain } = Matrices::new(adapter, kind)?;
        let mask = self.mask(x, seed)?;
        let dropped = dropped(x, mask.as_ref())?;
        let Part { scaled, inner, .. } = part.unwrap_or_default();
        let inner = match inner {
            Some(inner) => inner,
            None => dropped.f_linear(&a, None::<&Tensor>)?,
        };
        let mut gradients = Vec::with_capacity(3);
        let rows = gain.as_ref().map(|gain| gain.f_unsqueeze(1)).transpose()?;
        let (mut grad_b, grad_inner) = {
            let product = dy.f_transpose(0, 1)?.f_matmul(&inner)?.f_to_kind(Kind::Float)?;
            match &rows {
                Some(rows) => (product.f_mul(rows)?, dy.f_matmul(&scaled_b.f_mul(&rows.f_to_kind(kind)?)?)?),
                None => (product, dy.f_matmul(&scaled_b)?),
            }
        };
        let mut dx = match (&gain, &mask) {
            (Some(gain), None) => add_product(dx, &dy.f_mul(&gain.f_to_kind(kind)?)?, &weight)?,
            _ => add_product(dx, dy, &weight)?,
        };
        let _ = grad_b.f_mul_scalar_(adapter.lora.scaling)?;
        gradients.push(grad_inner.f_transpose(0, 1)?.f_matmul(&dropped)?);
        gradients.push(grad_b);
        if let (Some(gain), Some(norm)) = (&gain, &adapter.norm) {
            let scaled = match scaled {
                Some(scaled) => scaled,
                None => dropped.f_linear(&weight, None::<&Tensor>)?.f_addmm_(&inner, &scaled_b.f_transpose(0, 1)?)?,
            };
            gradients.push(dy.f_mul(&scaled)?.f_sum_dim_intlist(0i64, false, Kind::Float)?.f_div(norm)?);
            if let Some(mask) = &mask {
                drop((scaled, dropped));
                let change = dy.f_mul(&gain.f_sub_scalar(1.0)?.f_to_kind(kind)?)?;
                let through = change.f_matmul(&weight)?.f_addmm_(&grad_inner, &a)?;
                return Ok((dx.f_addcmul_(&through, mask)?, gradients));
            }
        }
        let dx = match &mask {
            Some(mask) => dx.f_addcmul_(&grad_inner.f_matmul(&a)?, mask)?,
            None => dx.f_addmm_(&grad_inner, &a)?,
        };
        Ok((dx, gradients))
    }

    /// What the input's elements are multiplied with on their way into the adapter, `[tokens, in]`; none without dropout.
    fn mask(&self, x: &Tensor, seed: Option<u64>) -> Result<Option<Tensor>> {
        match (&self.adapter, seed) {
            (Some(adapter), Some(seed)) if adapter.lora.dropout > 0.0 => {
                let (mut rng, p, kind) = (Rng::named(seed, self.name), adapter.lora.dropout, x.f_kind()?);
                Ok(Some(match cuda::of(x.device())? {
                    Some(kernels) => kernels.dropout_mask(&x.size(), kind, rng.dropout_draws(p))?,
                    None => rng.dropout_mask(&x.size(), p, kind)?,
                }))
            }
            _ => Ok(None),
        }
    }
}

fn dropped(x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    Ok(match mask {
        Some(mask) => x.f_mul(mask)?,
        None => x.shallow_clone(),
    })
}

/// `dx + dy W`.
fn add_product(dx: Option<Tensor>, dy: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(match dx {
        Some(mut dx) => dx.f_addmm_(dy, weight)?,
        None => dy.f_matmul(weight)?,
    })
}
