//! Passes over bf16 activations on the CPU, each in one go: see the loops in `kernels`.
//!
//! Autograd does not see them. [`can_pass`] says whether tensors are such; where they are not, callers use libtorch's
//! operations.

use tch::{Device, Kind, Tensor};

use super::kernels::{attention, rows};
use super::{Error, Result};
use crate::tensor::{DropoutDraws, as_slice, as_slice_mut};

/// Whether the passes here take these tensors: dense bf16 on the CPU that no graph is made for.
pub fn can_pass(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| {
        tensor.defined()
            && tensor.device() == Device::Cpu
            && tensor.kind() == Kind::BFloat16
            && tensor.is_contiguous()
            && !tensor.requires_grad()
    })
}

/// `w x / sqrt(mean(x^2) + eps)` over the last dimension.
///
/// # Errors
/// When the tensors are not as [`can_pass`] asks, or do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    fits(x.size().last() == weight.size().last() && weight.dim() == 1, x)?;
    let mut out = x.f_empty_like()?;
    rows::rms_norm(as_slice(x)?, as_slice(weight)?, eps as f32, as_slice_mut(&mut out)?);
    Ok(out)
}

/// The gradient of the input of [`rms_norm`] from that of its output, added to `before`.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_backward(x: &Tensor, weight: &Tensor, eps: f64, grad: &Tensor, before: &Tensor) -> Result<Tensor> {
    fits(x.size().last() == weight.size().last() && weight.dim() == 1, x)?;
    fits(x.size() == grad.size() && x.size() == before.size(), x)?;
    let mut out = x.f_empty_like()?;
    let (x, weight, grad, before) = (as_slice(x)?, as_slice(weight)?, as_slice(grad)?, as_slice(before)?);
    rows::rms_norm_backward(x, weight, eps as f32, grad, before, as_slice_mut(&mut out)?);
    Ok(out)
}

/// `silu(gate) up`.
///
/// # Errors
/// As [`rms_norm`].
pub fn gate(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    fits(gate.size() == up.size(), gate)?;
    let mut out = gate.f_empty_like()?;
    rows::gate(as_slice(gate)?, as_slice(up)?, as_slice_mut(&mut out)?);
    Ok(out)
}

/// The log-probabilities (nats) of `targets` `[n]` i64, `[n]` f32, by logits `[n, vocab]`, which become their own gradient: that of
/// `-sum(weights logp)`, every row counting 1 without `weights` `[n]` f32.
///
/// # Errors
/// As [`rms_norm`], and when a target is outside the vocabulary.
pub fn cross_entropy(logits: &mut Tensor, targets: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let (n, vocab) = logits.size2()?;
    let (targets, weights) = (as_slice::<i64>(targets)?, weights.map(as_slice::<f32>).transpose()?);
    let is_fit = targets.len() as i64 == n && weights.is_none_or(|weights| weights.len() as i64 == n);
    fits(is_fit && targets.iter().all(|target| (0..vocab).contains(target)), logits)?;
    let mut logps = Tensor::f_empty([n], (Kind::Float, Device::Cpu))?;
    rows::cross_entropy(as_slice_mut(logits)?, targets, weights, as_slice_mut(&mut logps)?);
    Ok(logps)
}

/// One new token a sequence for [`attend`], which attends to all before it.
#[derive(Clone, Copy, Debug)]
pub struct NewTokens<'a> {
    /// `[n, heads, head_dim]`, not yet rotated.
    pub queries: &'a Tensor,
    /// `[n, kv_heads, head_dim]`, not yet rotated.
    pub keys: &'a Tensor,
    /// `[n, kv_heads, head_dim]`.
    pub values: &'a Tensor,
    /// The cosines and sines of the new positions, `[n, 1, head_dim / 2]`.
    pub rotation: [&'a Tensor; 2],
    /// Tokens before it in each sequence, `[n]`.
    pub lens: &'a [i64],
}

/// Rotates queries and keys, puts keys and values into the cache, each `[n or more, kv_heads, room, head_dim]`, and attends. Gives
/// `[n, heads * head_dim]`.
///
/// # Errors
/// As [`rms_norm`].
pub fn attend(new: &NewTokens<'_>, keys: &mut Tensor, values: &mut Tensor) -> Result<Tensor> {
    let NewTokens { queries, rotation: [cos, sin], lens, .. } = *new;
    let (n, heads, head_dim) = queries.size3()?;
    let (held, kv_heads, room, _) = keys.size4()?;
    let is_cache = keys.size() == values.size() && keys.size()[3] == head_dim && held >= n && kv_heads > 0;
    let is_new = [new.keys, new.values].iter().all(|x| x.size() == [n, kv_heads, head_dim]);
    let is_rotation = [cos, sin].iter().all(|x| x.numel() as i64 * 2 == n * head_dim) && head_dim % 2 == 0;
    let is_room = lens.len() as i64 == n && lens.iter().all(|len| (0..room).contains(len));
    fits(is_cache && is_new && is_rotation && is_room && heads % kv_heads == 0, queries)?;
    let mut out = Tensor::f_empty([n, heads * head_dim], (Kind::BFloat16, Device::Cpu))?;
    let step = attention::Step {
        head_dim: head_dim as usize,
        kv_heads: kv_heads as usize,
        per_kv: (heads / kv_heads) as usize,
        queries: as_slice(queries)?,
        keys: as_slice(new.keys)?,
        values: as_slice(new.values)?,
        cos: as_slice(cos)?,
        sin: as_slice(sin)?,
        lens,
    };
    attention::attend(&step, room as usize, as_slice_mut(keys)?, as_slice_mut(values)?, as_slice_mut(&mut out)?);
    Ok(out)
}

/// The gradients of `gate` and `up` in [`gate`] from that of its result.
///
/// # Errors
/// As [`rms_norm`].
pub fn gate_backward(gate: &Tensor, up: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
    fits(gate.size() == up.size() && gate.size() == grad.size(), gate)?;
    let (mut grad_gate, mut grad_up) = (gate.f_empty_like()?, gate.f_empty_like()?);
    let (gate, up, grad) = (as_slice(gate)?, as_slice(up)?, as_slice(grad)?);
    rows::gate_backward(gate, up, grad, as_slice_mut(&mut grad_gate)?, as_slice_mut(&mut grad_up)?);
    Ok((grad_gate, grad_up))
}

/// The dropout mask of [`crate::tensor::Rng::dropout_mask`] with these draws, of the size of `x`, and `x mask`.
///
/// # Errors
/// As [`rms_norm`].
pub fn dropout(x: &Tensor, draws: DropoutDraws) -> Result<(Tensor, Tensor)> {
    let (mut mask, mut out) = (x.f_empty_like()?, x.f_empty_like()?);
    rows::dropout(as_slice(x)?, draws, as_slice_mut(&mut mask)?, as_slice_mut(&mut out)?);
    Ok((mask, out))
}

/// `factor x` in bf16, rounded once more: `x` is f32 on the CPU.
///
/// # Errors
/// When the tensor is of another type.
pub fn narrow(x: &Tensor, factor: f64) -> Result<Tensor> {
    let mut out = Tensor::f_empty(x.size(), (Kind::BFloat16, Device::Cpu))?;
    rows::narrow_all(as_slice(x)?, factor as f32, as_slice_mut(&mut out)?);
    Ok(out)
}

/// `factors x + bias`: `x` is `[n, width]`, the others `[width]` f32.
///
/// # Errors
/// As [`rms_norm`].
pub fn scale_columns(x: &Tensor, factors: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, width) = x.size2()?;
    fits(factors.size() == [width] && bias.is_none_or(|bias| bias.size() == [width]), x)?;
    let mut out = x.f_empty_like()?;
    rows::scale_columns(as_slice(x)?, as_slice(factors)?, bias.map(as_slice).transpose()?, as_slice_mut(&mut out)?);
    Ok(out)
}

/// The sums over the rows of `a b` `[n, width]`, `[width]` f32.
///
/// # Errors
/// As [`rms_norm`].
pub fn column_sums(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (_, width) = a.size2()?;
    fits(a.size() == b.size(), a)?;
    let mut out = Tensor::f_empty([width], (Kind::Float, Device::Cpu))?;
    rows::column_sums(as_slice(a)?, as_slice(b)?, as_slice_mut(&mut out)?);
    Ok(out)
}

fn fits(fits: bool, x: &Tensor) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::Rows(x.size())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    fn draw(rng: &mut Rng, shape: &[i64]) -> Tensor {
        rng.normal(shape, 1.5).unwrap().to_kind(Kind::BFloat16)
    }

    fn double(x: &Tensor) -> Tensor {
        x.to_kind(Kind::Double)
    }

    /// Within roundings to bf16, of which there are `n`, and the f32 error of what was added up, `size`.
    fn check(found: &Tensor, exact: &Tensor, size: &Tensor, n: f64) {
        assert_eq!((found.size(), found.kind()), (exact.size(), Kind::BFloat16));
        let bound = exact.abs() * (n * 1.01 * 2f64.powi(-8)) + size * 1e-6;
        let excess = ((double(found) - exact).abs() - bound).max().double_value(&[]);
        assert!(excess <= 0.0, "{excess} over");
    }

    #[test]
    fn columns_are_scaled_and_rounded_once() {
        let mut rng = Rng::named(63, "columns");
        for shape in [[1, 1], [3, 33], [70, 130], [0, 5]] {
            let x = draw(&mut rng, &shape);
            let [factors, bias] = [(); 2].map(|()| rng.normal(&shape[1..], 1.0).unwrap());
            for bias in [None, Some(&bias)] {
                let exact = double(&x) * double(&factors) + bias.map_or(factors.to_kind(Kind::Double) * 0.0, double);
                let found = scale_columns(&x, &factors, bias).unwrap();
                // A product, a sum and the last rounding.
                let size = (double(&x) * double(&factors)).abs() + exact.abs();
                let excess = (double(&found) - &exact).abs() - exact.abs() / 256.0 - size * 2e-7;
                assert!(found.size() == shape && bool::try_from(excess.le(0.0).all()).unwrap());
            }
        }
        assert!(scale_columns(&draw(&mut rng, &[2, 3]), &Tensor::ones([4], (Kind::Float, Device::Cpu)), None).is_err());
    }

    #[test]
    fn norms_and_their_gradients_are_those_of_the_formula() {
        let mut rng = Rng::named(31, "norm");
        for (n, width) in [(1, 1), (3, 16), (130, 37), (70, 896)] {
            let [x, grad, before] = [(); 3].map(|()| draw(&mut rng, &[n, width]));
            let weight = draw(&mut rng, &[width]);
            let wide = double(&x).set_requires_grad(true);
            let exact = double(&weight) * &wide / (wide.square().mean_dim(-1i64, true, Kind::Double) + 1e-6).sqrt();
            check(&rms_norm(&x, &weight, 1e-6).unwrap(), &exact.detach(), &exact.detach().abs(), 2.0);
            (exact * double(&grad)).sum(Kind::Double).backward();
            let through = wide.grad();
            let rows = double(&x).square().mean_dim(-1i64, true, Kind::Double).sqrt();
            // The terms of the difference that a gradient is.
            let size = (double(&grad) * double(&weight)).abs() / rows * (width as f64).sqrt();
            let found = rms_norm_backward(&x, &weight, 1e-6, &grad, &before).unwrap();
            check(&found, &(through + double(&before)), &(size * 4.0 + 1.0), 1.0);
        }
        assert!(rms_norm(&draw(&mut rng, &[2, 4]), &draw(&mut rng, &[3]), 1e-6).is_err());
    }

    #[test]
    fn the_gated_unit_and_its_gradients_are_those_of_the_formula() {
        let mut rng = Rng::named(32, "gate");
        let open = draw(&mut rng, &[67, 301]) * 3.0;
        // Where e^x leaves the range of f32, and where it is exact.
        for (idx, value) in [-300.0, -88.5, -87.0, 0.0, 88.5, 300.0].into_iter().enumerate() {
            let _ = open.get(0).get(idx as i64).fill_(value);
        }
        let [up, grad] = [(); 2].map(|()| draw(&mut rng, &[67, 301]));
        let (wide_gate, wide_up) = (double(&open).set_requires_grad(true), double(&up).set_requires_grad(true));
        let exact = wide_gate.silu() * &wide_up;
        // Below 1e-34 the exponential is held at its end.
        let tiny = exact.detach().zeros_like() + 1e-28;
        check(&gate(&open, &up).unwrap(), &exact.detach(), &tiny, 2.0);
        (exact * double(&grad)).sum(Kind::Double).backward();
        let (grad_gate, grad_up) = gate_backward(&open, &up, &grad).unwrap();
        let size = (double(&grad) * double(&up)).abs() * (double(&open).abs() + 1.0);
        check(&grad_gate, &wide_gate.grad(), &(size + 1e-28), 1.0);
        check(&grad_up, &wide_up.grad(), &tiny, 1.0);
    }

    #[test]
    fn columns_are_multiplied_and_summed() {
        let mut rng = Rng::named(33, "columns");
        for (n, width) in [(1, 5), (64, 33), (201, 128)] {
            let [a, b] = [(); 2].map(|()| draw(&mut rng, &[n, width]));
            let (wide_a, wide_b) = (double(&a), double(&b));
            let exact = (&wide_a * &wide_b).sum_dim_intlist(0i64, false, Kind::Double);
            let size = (wide_a * wide_b).abs().sum_dim_intlist(0i64, false, Kind::Double);
            let found = column_sums(&a, &b).unwrap();
            let excess = ((double(&found) - exact).abs() - size * 1e-5).max().double_value(&[]);
            assert!(excess <= 0.0, "{excess} over");
        }
        let (a, b) = (draw(&mut rng, &[2, 3]), draw(&mut rng, &[3, 2]));
        assert!(column_sums(&a, &b).is_err() && !can_pass(&[&a.transpose(0, 1)]) && can_pass(&[&a, &b]));
    }

    #[test]
    fn elements_are_dropped_as_the_generator_says() {
        for (n, width) in [(1, 5), (3, 67), (40, 1024)] {
            let x = draw(&mut Rng::named(36, "x"), &[n, width]);
            let expected = Rng::named(36, "mask").dropout_mask(&[n, width], 0.3, Kind::BFloat16).unwrap();
            let (mask, dropped) = dropout(&x, Rng::named(36, "mask").dropout_draws(0.3)).unwrap();
            assert_eq!((mask, dropped), (expected.copy(), &x * expected));
        }
    }

    #[test]
    fn numbers_are_scaled_and_rounded() {
        let x = Rng::named(37, "narrow").normal(&[7, 131], 1.0).unwrap();
        assert_eq!(narrow(&x, 1.5).unwrap(), (&x * 1.5).to_kind(Kind::BFloat16));
        assert!(narrow(&x.to_kind(Kind::BFloat16), 1.0).is_err());
    }

    #[test]
    fn logits_become_the_gradient_of_their_cross_entropy() {
        let mut rng = Rng::named(35, "entropy");
        for (n, vocab) in [(1, 1), (3, 37), (5, 20_011)] {
            let logits = draw(&mut rng, &[n, vocab]) * 6.0;
            let targets = Tensor::from_slice(&(0..n).map(|row| (row * 7919) % vocab).collect::<Vec<_>>());
            let weights = rng.normal(&[n], 1.0).unwrap();
            for weights in [None, Some(&weights)] {
                let wide = double(&logits).set_requires_grad(true);
                let exact = wide.log_softmax(1, Kind::Double).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
                let ones = exact.detach().ones_like();
                (&exact * weights.map_or(ones, double)).sum(Kind::Double).neg().backward();
                let mut found = logits.copy();
                let logps = cross_entropy(&mut found, &targets, weights).unwrap();
                // Sums in f32 of `vocab / 16` terms each, and one rounding to bf16.
                assert!((double(&logps) - exact.detach()).abs().max().double_value(&[]) < 1e-5);
                let bound = wide.grad().abs() * (2f64.powi(-8) * 1.001) + 1e-6;
                let excess = ((double(&found) - wide.grad()).abs() - bound).max().double_value(&[]);
                assert!(excess <= 0.0, "[{n}, {vocab}]: {excess} over");
            }
            assert!(cross_entropy(&mut logits.copy(), &(&targets + vocab), None).is_err());
            let mut broken = logits.copy();
            let _ = broken.get(0).get(0).fill_(f64::NAN);
            assert!(cross_entropy(&mut broken, &targets, None).unwrap().double_value(&[0]).is_nan());
        }
    }

    #[test]
    fn new_tokens_attend_to_the_cache_and_join_it() {
        let mut rng = Rng::named(34, "attend");
        // The last case is shared out over the cores.
        for (heads, kv_heads, dim, lens) in
            [(2, 1, 8, vec![0i64]), (6, 2, 10, vec![3, 0, 7]), (4, 4, 64, vec![20]), (14, 2, 64, vec![300, 120])]
        {
            let (n, room) = (lens.len() as i64, lens.iter().max().unwrap() + 2);
            let [q, k, v] = [heads, kv_heads, kv_heads].map(|heads| draw(&mut rng, &[n, heads, dim]));
            let angles = rng.normal(&[n, 1, dim / 2], 2.0).unwrap();
            let (cos, sin) = (angles.cos().to_kind(Kind::BFloat16), angles.sin().to_kind(Kind::BFloat16));
            // A row more than there are sequences.
            let before = [(); 2].map(|()| draw(&mut rng, &[n + 1, kv_heads, room, dim]));
            let (mut keys, mut values) = (before[0].copy(), before[1].copy());
            let new = NewTokens { queries: &q, keys: &k, values: &v, rotation: [&cos, &sin], lens: &lens };
            let found = attend(&new, &mut keys, &mut values).unwrap();
            assert_eq!((found.size(), found.kind()), (vec![n, heads * dim], Kind::BFloat16));

            let rotate = |x: &Tensor| {
                let halves = x.chunk(2, -1);
                let (a, b) = (&halves[0], &halves[1]);
                Tensor::cat(&[a * &cos - b * &sin, b * &cos + a * &sin], -1)
            };
            let (q, k) = (rotate(&q), rotate(&k));
            let (expected_keys, expected_values) = (before[0].copy(), before[1].copy());
            for (row, &len) in (0..).zip(&lens) {
                expected_keys.get(row).select(1, len).copy_(&k.get(row));
                expected_values.get(row).select(1, len).copy_(&v.get(row));
                let seen = |held: &Tensor| {
                    let held = double(&held.get(row).narrow(1, 0, len + 1));
                    held.repeat_interleave_self_int(heads / kv_heads, 0, None)
                };
                let scores = double(&q.get(row)).unsqueeze(1).matmul(&seen(&expected_keys).transpose(1, 2));
                let weights = (scores / (dim as f64).sqrt()).softmax(-1, Kind::Double);
                let exact = weights.matmul(&seen(&expected_values)).reshape([1, heads * dim]);
                let size = weights.matmul(&seen(&expected_values).abs()).reshape([1, heads * dim]);
                // Scores up to some ten, in f32: their error is a relative one of the weights.
                check(&found.narrow(0, row, 1), &exact, &(size * 20.0), 1.0);
            }
            assert_eq!((keys, values), (expected_keys, expected_values));
            let short = NewTokens { lens: &lens[1..], ..new };
            assert!(attend(&short, &mut before[0].copy(), &mut before[1].copy()).is_err());
        }
    }
}
