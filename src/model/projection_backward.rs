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

use tch::{Device, Kind, Tensor};

use super::Result;
use super::projection::{Adapter, Matrix, Projection, Workspace};
use crate::quant::{Backward, Change, Forward, Nf4, NormOf, Outputs, cuda, linear, matmul, rows, thin};
use crate::tensor::{Rng, Shelf};

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

/// What of a [`Part`] stays until the backward pass, and therefore lies on the shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeping {
    Nothing,
    /// What is left after [`Part::forget_output`].
    AllButOutput,
    All,
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
        let (lora, gain) = (&adapter.lora, gain_of(adapter)?);
        if kind == Kind::BFloat16 && lora.lora_a.device() == Device::Cpu {
            let (a, scaled_b) = (rows::narrow(&lora.lora_a, 1.0)?, rows::narrow(&lora.lora_b, lora.scaling)?);
            return Ok(Self { a, scaled_b, gain });
        }
        Ok(Self {
            a: lora.lora_a.f_to_kind(kind)?,
            scaled_b: lora.lora_b.f_mul_scalar(lora.scaling)?.f_to_kind(kind)?,
            gain,
        })
    }
}

/// DoRA's `g`, `[out]` f32.
fn gain_of(adapter: &Adapter) -> Result<Option<Tensor>> {
    Ok(match (&adapter.lora.magnitude, &adapter.norm) {
        (Some(magnitude), Some(norm)) => Some(magnitude.f_div(norm)?),
        _ => None,
    })
}

impl Projection {
    /// As [`Projection::forward`] without gradient, keeping what the backward pass needs.
    pub(super) fn forward_keeping(
        &mut self,
        x: &Tensor,
        seed: Option<u64>,
        keeping: Keeping,
        workspace: &mut Workspace,
    ) -> Result<Part> {
        let kind = x.f_kind()?;
        let expanded = self.prepare(x, workspace)?;
        let bias = self.bias.as_ref();
        let (weight, adapter) = match (self.matrix(expanded), &self.adapter) {
            (Matrix::Packed(weight), _) => {
                let shelf_if = |keeps: bool| keeps.then_some(&workspace.shelf);
                let shelves = [shelf_if(keeping == Keeping::All), shelf_if(keeping != Keeping::Nothing)];
                let (part, norm) = self.forward_packed(weight, x, seed, shelves)?;
                if let (Some(adapter), Some(norm)) = (&mut self.adapter, norm) {
                    adapter.keep_norm(&norm)?;
                }
                return Ok(part);
            }
            (Matrix::Expanded(weight), None) => {
                return Ok(Part { output: Some(linear(x, &weight, bias)?), ..Part::default() });
            }
            (Matrix::Expanded(weight), Some(adapter)) => (weight, adapter),
        };
        let Matrices { a, scaled_b, gain } = Matrices::new(adapter, kind)?;
        let (mask, dropped) = self.drop(x, seed)?;
        let inner = inner_of(&dropped, &a)?;
        let low_rank = scaled_b.f_transpose(0, 1)?.f_contiguous()?;
        let Some(gain) = gain else {
            let output = matmul(&inner, &low_rank, Some(linear(x, &weight, bias)?))?;
            return Ok(Part { output: Some(output), scaled: None, inner: Some(inner) });
        };
        let scaled = matmul(&inner, &low_rank, Some(linear(&dropped, &weight, None)?))?;
        let output = if mask.is_some() {
            let mut output = linear(x, &weight, bias)?;
            let output = output.f_addcmul_(&scaled, &gain.f_sub_scalar(1.0)?.f_to_kind(kind)?)?;
            Some(matmul(&inner, &low_rank, Some(output))?)
        } else {
            None
        };
        Ok(Part { output, scaled: Some(scaled), inner: Some(inner) })
    }

    /// The same, the weight being multiplied as it is; and DoRA's norm, where it was missing. The shelves are for the output, and for
    /// what else is kept.
    fn forward_packed(
        &self,
        weight: &Nf4,
        x: &Tensor,
        seed: Option<u64>,
        shelves: [Option<&Shelf>; 2],
    ) -> Result<(Part, Option<Tensor>)> {
        let kind = x.f_kind()?;
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(Kind::Float)).transpose()?;
        let plain = Forward { bias: bias.as_ref(), shelves, ..Forward::plain(x) };
        let Some(adapter) = &self.adapter else {
            return Ok((Part { output: Some(weight.outputs(&plain)?.out), ..Part::default() }, None));
        };
        let Matrices { a, scaled_b, gain } = Matrices::new(adapter, kind)?;
        let (mask, dropped) = self.drop(x, seed)?;
        let inner = inner_of(&dropped, &a)?;
        let inner = match shelves[1] {
            Some(shelf) => shelf.copy(&inner)?,
            None => inner,
        };
        let missing = adapter.missing_norm()?;
        let norm = missing.as_ref().map(|[twice_b, squares]| NormOf { lora_a: &a, twice_b, squares });
        let adapted = Forward { low_rank: Some((&inner, &scaled_b)), norm, ..plain };
        let (output, scaled, norm) = match (&adapter.lora.magnitude, &mask) {
            (None, _) => (Some(weight.outputs(&adapted)?.out), None, None),
            (Some(_), None) => {
                let shelves = [shelves[1]; 2];
                let Outputs { out, norm, .. } = weight.outputs(&Forward { bias: None, shelves, ..adapted })?;
                (None, Some(out), norm)
            }
            (Some(magnitude), Some(mask)) => {
                let factors = match gain {
                    Some(gain) => gain.f_sub_scalar(1.0)?,
                    None => magnitude.f_detach()?,
                };
                let change = Change { factors: &factors, mask, dropped: &dropped };
                let Outputs { out, scaled, norm } = weight.outputs(&Forward { change: Some(change), ..adapted })?;
                (Some(out), scaled, norm)
            }
        };
        Ok((Part { output, scaled, inner: Some(inner) }, norm))
    }

    /// The layer's output from what was kept; undefined after [`Part::forget_output`].
    pub(super) fn output_of(&self, part: &Part) -> Result<Tensor> {
        match (&part.output, &part.scaled, &self.adapter) {
            (None, Some(scaled), Some(adapter)) => {
                let (kind, gain) = (scaled.f_kind()?, gain_of(adapter)?);
                if let (Some(gain), true) = (&gain, rows::can_pass(&[scaled])) {
                    let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(Kind::Float)).transpose()?;
                    return Ok(rows::scale_columns(scaled, gain, bias.as_ref())?);
                }
                let gain = gain.map(|gain| gain.f_to_kind(kind)).transpose()?;
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
        let expanded = self.prepare(x, workspace)?;
        self.require_norm(kind, workspace)?;
        let matrix = self.matrix(expanded);
        let Some(adapter) = &self.adapter else {
            let dx = match &matrix {
                Matrix::Packed(weight) => weight.gradients(&plain_backward(dy, dx.as_ref()))?,
                Matrix::Expanded(weight) => matmul(dy, weight, dx)?,
            };
            return Ok((dx, Vec::new()));
        };
        let Matrices { a, scaled_b, gain } = Matrices::new(adapter, kind)?;
        let (mask, dropped) = self.drop(x, seed)?;
        let Part { scaled, inner, .. } = part.unwrap_or_default();
        let inner = match inner {
            Some(inner) => inner,
            None => inner_of(&dropped, &a)?,
        };
        let mut gradients = Vec::with_capacity(3);
        let scaling = adapter.lora.scaling;
        let (grad_b, grad_inner) = back_to_inner(dy, &inner, &scaled_b, scaling, gain.as_ref())?;
        gradients.push(match thin::can_multiply(&[&grad_inner, &dropped]) {
            true => thin::gradient_a(&grad_inner, &dropped)?,
            false => grad_inner.f_transpose(0, 1)?.f_matmul(&dropped)?,
        });
        gradients.push(grad_b);
        if let (Some(_), Some(norm)) = (&gain, &adapter.norm) {
            let scaled = match (scaled, &matrix) {
                (Some(scaled), _) => scaled,
                (None, Matrix::Packed(weight)) => {
                    let low_rank = Some((&inner, &scaled_b));
                    weight.outputs(&Forward { low_rank, ..Forward::plain(&dropped) })?.out
                }
                (None, Matrix::Expanded(weight)) => {
                    let low_rank = scaled_b.f_transpose(0, 1)?.f_contiguous()?;
                    matmul(&inner, &low_rank, Some(linear(&dropped, weight, None)?))?
                }
            };
            let sums = match rows::can_pass(&[dy, &scaled]) {
                true => rows::column_sums(dy, &scaled)?,
                false => dy.f_mul(&scaled)?.f_sum_dim_intlist(0i64, false, Kind::Float)?,
            };
            gradients.push(sums.f_div(norm)?);
        }
        drop(dropped);
        let dx = match &matrix {
            Matrix::Packed(weight) => {
                let scale = match (&gain, &mask) {
                    (Some(gain), Some(_)) => Some(gain.f_sub_scalar(1.0)?),
                    (gain, _) => gain.as_ref().map(Tensor::shallow_clone),
                };
                weight.gradients(&Backward {
                    scale: scale.as_ref(),
                    low_rank: Some((&grad_inner, &a)),
                    mask: mask.as_ref(),
                    ..plain_backward(dy, dx.as_ref())
                })?
            }
            Matrix::Expanded(weight) => match (&gain, &mask) {
                (Some(gain), Some(mask)) => {
                    let mut dx = matmul(dy, weight, dx)?;
                    let change = dy.f_mul(&gain.f_sub_scalar(1.0)?.f_to_kind(kind)?)?;
                    dx.f_addcmul_(&matmul(&grad_inner, &a, Some(matmul(&change, weight, None)?))?, mask)?
                }
                (Some(gain), None) => {
                    matmul(&grad_inner, &a, Some(matmul(&dy.f_mul(&gain.f_to_kind(kind)?)?, weight, dx)?))?
                }
                (None, Some(mask)) => matmul(dy, weight, dx)?.f_addcmul_(&matmul(&grad_inner, &a, None)?, mask)?,
                (None, None) => matmul(&grad_inner, &a, Some(matmul(dy, weight, dx)?))?,
            },
        };
        Ok((dx, gradients))
    }

    /// What the input's elements are multiplied with on their way into the adapter, `[tokens, in]`, none without dropout; and
    /// the product.
    fn drop(&self, x: &Tensor, seed: Option<u64>) -> Result<(Option<Tensor>, Tensor)> {
        let (p, seed) = match (&self.adapter, seed) {
            (Some(adapter), Some(seed)) if adapter.lora.dropout > 0.0 => (adapter.lora.dropout, seed),
            _ => return Ok((None, x.shallow_clone())),
        };
        let mut rng = Rng::named(seed, self.name);
        if rows::can_pass(&[x]) {
            let (mask, dropped) = rows::dropout(x, rng.dropout_draws(p))?;
            return Ok((Some(mask), dropped));
        }
        let mask = match cuda::of(x.device())? {
            Some(kernels) => kernels.dropout_mask(&x.size(), x.f_kind()?, rng.dropout_draws(p))?,
            None => rng.dropout_mask(&x.size(), p, x.f_kind()?)?,
        };
        let dropped = x.f_mul(&mask)?;
        Ok((Some(mask), dropped))
    }
}

/// `z = A d(x)` for the dropped input, `[tokens, r]`.
fn inner_of(dropped: &Tensor, a: &Tensor) -> Result<Tensor> {
    Ok(match thin::can_multiply(&[dropped, a]) {
        true => thin::inner(dropped, a)?,
        false => dropped.f_linear(a, None::<&Tensor>)?,
    })
}

/// `dB` `[out, r]` f32 and `dz` `[tokens, r]`, with `g dy` for `dy` where there is a gain.
fn back_to_inner(
    dy: &Tensor,
    inner: &Tensor,
    scaled_b: &Tensor,
    scaling: f64,
    gain: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    if thin::can_multiply(&[dy, inner, scaled_b]) {
        return Ok((thin::gradient_b(dy, inner, scaling, gain)?, thin::inner_gradient(dy, scaled_b, gain)?));
    }
    let kind = dy.f_kind()?;
    let mut grad_b = dy.f_transpose(0, 1)?.f_matmul(inner)?.f_to_kind(Kind::Float)?;
    let _ = grad_b.f_mul_scalar_(scaling)?;
    let Some(gain) = gain else { return Ok((grad_b, dy.f_matmul(scaled_b)?)) };
    let gain = gain.f_unsqueeze(1)?;
    Ok((grad_b.f_mul(&gain)?, dy.f_matmul(&scaled_b.f_mul(&gain.f_to_kind(kind)?)?)?))
}

/// `dx + dy W` as a request.
fn plain_backward<'a>(dy: &'a Tensor, dx: Option<&'a Tensor>) -> Backward<'a> {
    Backward { dy, scale: None, low_rank: None, before: dx, mask: None }
}

#[cfg(test)]
mod tests {
    use super::super::projection::Weight;
    use super::*;
    use crate::adapter::{Lora, Settings, TargetModules};
    use crate::quant::Isa;

    const ROWS: i64 = 96;
    const COLUMNS: i64 = 128;

    /// A layer whose weight is multiplied as it is, or expanded and multiplied by libtorch.
    fn projection(rng: &mut Rng, isa: Option<Isa>, use_dora: bool, lora_dropout: f64) -> Projection {
        let settings = Settings {
            r: 5,
            lora_alpha: 10.0,
            lora_dropout,
            use_dora,
            use_rslora: false,
            target_modules: TargetModules::Names(vec!["q".into()]),
            rank_pattern: Default::default(),
            alpha_pattern: Default::default(),
        };
        let mut draw = |shape: &[i64], std| rng.normal(shape, std).unwrap();
        let source = draw(&[ROWS, COLUMNS], 0.1);
        let bias = draw(&[ROWS], 1.0).to_kind(Kind::BFloat16);
        let (lora_a, lora_b) = (draw(&[5, COLUMNS], 0.1), draw(&[ROWS, 5], 0.3));
        let magnitude = use_dora.then(|| draw(&[ROWS], 0.3) + 1.5);
        let lora = Lora::from_parts(&settings, "q", lora_a, lora_b, magnitude, tch::Device::Cpu).unwrap();
        let weight = Nf4::quantize(&source).unwrap().with_dtype(Kind::BFloat16);
        let weight = Weight::Nf4(isa.into_iter().fold(weight, Nf4::with_isa));
        let mut projection = Projection { name: "q", weight, bias: Some(bias), adapter: None };
        projection.attach(lora, Kind::BFloat16, &mut Workspace::default()).unwrap();
        projection
    }

    #[test]
    fn a_weight_multiplied_as_it_is_gives_the_results_of_the_expanded_one() {
        for (use_dora, dropout) in [(false, 0.0), (false, 0.3), (true, 0.0), (true, 0.05), (true, 0.3)] {
            for (keeps, keeping) in [(true, Keeping::All), (true, Keeping::Nothing), (false, Keeping::AllButOutput)] {
                let run = |isa: Option<Isa>| {
                    let mut rng = Rng::named(41, "projection");
                    let mut projection = projection(&mut rng, isa, use_dora, dropout);
                    let mut draw = |width| rng.normal(&[50, width], 1.0).unwrap().to_kind(Kind::BFloat16);
                    let (x, dy, dx) = (draw(COLUMNS), draw(ROWS), draw(COLUMNS));
                    let workspace = &mut Workspace::default();
                    tch::no_grad(|| {
                        let part = projection.forward_keeping(&x, Some(3), keeping, workspace).unwrap();
                        let y = projection.output_of(&part).unwrap();
                        let part = keeps.then_some(part);
                        if !keeps {
                            // Nor is DoRA's norm kept.
                            projection.parameters_changed();
                        }
                        let (dx, own) = projection.backward(&x, &dy, part, Some(dx), Some(3), workspace).unwrap();
                        [y, dx].into_iter().chain(own).collect::<Vec<_>>()
                    })
                };
                let (found, expected) = (run(None), run(Some(Isa::Portable)));
                assert_eq!(found.len(), 2 + 2 + usize::from(use_dora));
                for (idx, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert_eq!(found.kind(), expected.kind());
                    let [found, expected] = [found, expected].map(|x| x.to_kind(Kind::Double));
                    // The expanded path rounds to bf16 up to five times on the way, each by 2^-9 of a value of that size.
                    let error = (&found - &expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
                    assert!(error < 0.01, "result {idx}, DoRA {use_dora}, dropout {dropout}, kept {keeps}: {error}");
                }
            }
        }
    }
}
