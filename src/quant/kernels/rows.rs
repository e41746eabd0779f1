//! Passes over rows of bf16 activations between the products: norms, the gated unit, dropout, sums of columns.
//!
//! The loops are portable and made a second time for AVX-512; each element is read once and written once, where a chain of
//! tensor operations goes through memory at every step. Sums and functions are in f32, rounded at the end. Results do not
//! depend on the number of threads.
#![allow(unsafe_code)]

use half::bf16;
use rayon::prelude::*;

use super::{Quantizable, bf16_bits};
use crate::tensor::DropoutDraws;

/// Elements that one task takes.
const TASK: usize = 1 << 14;

/// Rows whose columns are summed together before the sums are added up.
const SUM_ROWS: usize = 64;

/// Words of random bits that are drawn together, each for four elements.
const WORDS: usize = 8;

/// Partial sums along a row.
const LANES: usize = 16;

/// `w x / sqrt(mean(x^2) + eps)` for each row of `x` `[n, width]`, the quotient rounded before the product.
pub fn rms_norm(x: &[bf16], weight: &[bf16], eps: f32, out: &mut [bf16]) {
    let width = weight.len().max(1);
    let rows = (TASK / width).max(1) * width;
    x.par_chunks(rows).zip(out.par_chunks_mut(rows)).for_each(|(x, out)| norm_rows(x, weight, eps, out));
}

/// The gradient of the input of [`rms_norm`] from that of its output, added to `before`.
pub fn rms_norm_backward(x: &[bf16], weight: &[bf16], eps: f32, grad: &[bf16], before: &[bf16], out: &mut [bf16]) {
    let width = weight.len().max(1);
    let rows = (TASK / width).max(1) * width;
    x.par_chunks(rows)
        .zip(grad.par_chunks(rows))
        .zip(before.par_chunks(rows))
        .zip(out.par_chunks_mut(rows))
        .for_each(|(((x, grad), before), out)| norm_rows_backward(x, weight, eps, grad, before, out));
}

/// `silu(gate) up`.
pub fn gate(gate: &[bf16], up: &[bf16], out: &mut [bf16]) {
    gate.par_chunks(TASK).zip(up.par_chunks(TASK)).zip(out.par_chunks_mut(TASK)).for_each(|((gate, up), out)| {
        gate_forward(gate, up, out);
    });
}

/// The gradients of `gate` and `up` in [`gate`] from that of its result.
pub fn gate_backward(gate: &[bf16], up: &[bf16], grad: &[bf16], grad_gate: &mut [bf16], grad_up: &mut [bf16]) {
    gate.par_chunks(TASK)
        .zip(up.par_chunks(TASK))
        .zip(grad.par_chunks(TASK))
        .zip(grad_gate.par_chunks_mut(TASK).zip(grad_up.par_chunks_mut(TASK)))
        .for_each(|(((gate, up), grad), (grad_gate, grad_up))| gate_gradients(gate, up, grad, grad_gate, grad_up));
}

/// The mask of these draws, and `x mask`.
pub fn dropout(x: &[bf16], draws: DropoutDraws, mask: &mut [bf16], out: &mut [bf16]) {
    let chunks = x.par_chunks(TASK).zip(mask.par_chunks_mut(TASK)).zip(out.par_chunks_mut(TASK));
    chunks.enumerate().for_each(|(task, ((x, mask), out))| drop_elements(x, draws, task * TASK / 4, mask, out));
}

/// `factor x`, rounded.
pub fn narrow_all(x: &[f32], factor: f32, out: &mut [bf16]) {
    x.par_chunks(TASK).zip(out.par_chunks_mut(TASK)).for_each(|(x, out)| narrow_elements(x, factor, out));
}

/// `factors x + bias`, `x` `[n, width]`, the others `[width]`, rounded once.
pub fn scale_columns(x: &[bf16], factors: &[f32], bias: Option<&[f32]>, out: &mut [bf16]) {
    let rows = (SUM_ROWS * factors.len()).max(1);
    x.par_chunks(rows).zip(out.par_chunks_mut(rows)).for_each(|(x, out)| scale_rows(x, factors, bias, out));
}

/// The sums over the rows of `a b`, both `[n, width]`, for each column: `[width]`.
pub fn column_sums(a: &[bf16], b: &[bf16], out: &mut [f32]) {
    let width = out.len().max(1);
    let rows = SUM_ROWS * width;
    let parts: Vec<Vec<f32>> = a
        .par_chunks(rows)
        .zip(b.par_chunks(rows))
        .map(|(a, b)| {
            let mut sums = vec![0f32; width];
            add_columns(a, b, &mut sums);
            sums
        })
        .collect();
    out.fill(0.0);
    for part in parts {
        out.iter_mut().zip(part).for_each(|(out, part)| *out += part);
    }
}

/// For each row of logits `[n, vocab]` the log-probability (nats) of its target, below `vocab`; the logits become the gradient of
/// `-weight logp`, the weight 1 where there is none.
pub fn cross_entropy(logits: &mut [bf16], targets: &[i64], weights: Option<&[f32]>, logps: &mut [f32]) {
    let vocab = logits.len() / targets.len().max(1);
    logits.par_chunks_mut(vocab.max(1)).zip(targets).zip(logps).enumerate().for_each(
        |(row, ((logits, target), logp))| {
            let weight = weights.map_or(1.0, |weights| weights[row]);
            entropy_row(logits, *target as usize, weight, logp);
        },
    );
}

/// `out[i][row] = sums[row][i] + bias[row] + before[i][row]`, rounded once: `sums` is `[width, n]`, `before` and `out` `[n, width]`.
pub fn add_and_round(sums: &[f32], n: usize, bias: Option<&[bf16]>, before: Option<&[bf16]>, out: &mut [bf16]) {
    let width = sums.len() / n.max(1);
    if width == 0 {
        return;
    }
    let mut row = vec![0f32; width];
    for (idx, out) in out.chunks_exact_mut(width).enumerate() {
        row.iter_mut().zip(sums.iter().skip(idx).step_by(n)).for_each(|(to, sum)| *to = *sum);
        if let Some(bias) = bias {
            add_row(bias, &mut row);
        }
        if let Some(before) = before {
            add_row(&before[idx * width..][..width], &mut row);
        }
        round_row(&row, out);
    }
}

/// Rounds as [`bf16_bits`]; a value that is not finite stays so.
#[inline(always)]
pub(super) fn narrow(value: f32) -> bf16 {
    bf16::from_bits(bf16_bits(value))
}

/// The sum of a term for each pair of elements.
#[inline(always)]
pub(super) fn sum_of<A: Quantizable, B: Quantizable>(a: &[A], b: &[B], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for ((sum, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *sum += term(a.widen(), b.widen());
        }
    }
    rest_a.iter().zip(rest_b).map(|(a, b)| term(a.widen(), b.widen())).sum::<f32>() + lanes.iter().sum::<f32>()
}

/// `e^x` to a few units in the last place, for every `x`; beyond the range of f32 its ends.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Cody and Waite's reduction: x = n ln 2 + r, |r| <= ln 2 / 2; then the Taylor polynomial of e^r, whose next term is
    // below 2e-8.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const MAGIC: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut y = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        y = y * r + coefficient;
    }
    // The lowest bits of `MAGIC + n` are those of `n`.
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

for_each_processor! {
    fn norm_rows(x: &[bf16], weight: &[bf16], eps: f32, out: &mut [bf16]) {
        let width = weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let reciprocal = 1.0 / (sum_of(x, x, |a, b| a * b) / width as f32 + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = narrow(narrow(x.widen() * reciprocal).widen() * weight.widen());
            }
        }
    }
}

for_each_processor! {
    fn norm_rows_backward(
        x: &[bf16], weight: &[bf16], eps: f32, grad: &[bf16], before: &[bf16], out: &mut [bf16],
    ) {
        let width = weight.len();
        let mut scratch = vec![0f32; width];
        let rows = x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(before.chunks_exact(width));
        for (((x, grad), before), out) in rows.zip(out.chunks_exact_mut(width)) {
            let reciprocal = 1.0 / (sum_of(x, x, |a, b| a * b) / width as f32 + eps).sqrt();
            // The gradient by the quotient, held in `scratch`: the sum along the row needs it before any is written.
            for ((scratch, grad), weight) in scratch.iter_mut().zip(grad).zip(weight) {
                *scratch = grad.widen() * weight.widen();
            }
            let mut lanes = [0f32; LANES];
            for (scratch, x) in scratch.chunks(LANES).zip(x.chunks(LANES)) {
                for ((sum, scratch), x) in lanes.iter_mut().zip(scratch).zip(x) {
                    *sum += scratch * x.widen();
                }
            }
            let along = lanes.iter().sum::<f32>() * reciprocal / width as f32;
            for (((out, scratch), x), before) in out.iter_mut().zip(&scratch).zip(x).zip(before) {
                *out = narrow(before.widen() + (scratch - x.widen() * reciprocal * along) * reciprocal);
            }
        }
    }
}

for_each_processor! {
    fn gate_forward(gate: &[bf16], up: &[bf16], out: &mut [bf16]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let gate = gate.widen();
            *out = narrow(narrow(gate * sigmoid(gate)).widen() * up.widen());
        }
    }
}

for_each_processor! {
    fn gate_gradients(gate: &[bf16], up: &[bf16], grad: &[bf16], grad_gate: &mut [bf16], grad_up: &mut [bf16]) {
        let outs = grad_gate.iter_mut().zip(grad_up);
        for (((gate, up), grad), (grad_gate, grad_up)) in gate.iter().zip(up).zip(grad).zip(outs) {
            let (gate, up, grad) = (gate.widen(), up.widen(), grad.widen());
            let open = sigmoid(gate);
            *grad_up = narrow(gate * open * grad);
            *grad_gate = narrow(grad * up * open * (1.0 + gate * (1.0 - open)));
        }
    }
}

for_each_processor! {
    fn entropy_row(logits: &mut [bf16], target: usize, weight: f32, logp: &mut f32) {
        let mut largest = [f32::NEG_INFINITY; LANES];
        for logits in logits.chunks(LANES) {
            largest.iter_mut().zip(logits).for_each(|(largest, logit)| *largest = largest.max(logit.widen()));
        }
        let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let mut sums = [0f32; LANES];
        for logits in logits.chunks(LANES) {
            sums.iter_mut().zip(logits).for_each(|(sum, logit)| *sum += exp(logit.widen() - largest));
        }
        let normalizer = largest + sums.iter().sum::<f32>().ln();
        *logp = logits[target].widen() - normalizer;
        for logit in &mut *logits {
            *logit = narrow(exp(logit.widen() - normalizer) * weight);
        }
        logits[target] = narrow(logp.exp() * weight - weight);
    }
}

for_each_processor! {
    fn drop_elements(x: &[bf16], draws: DropoutDraws, word: usize, mask: &mut [bf16], out: &mut [bf16]) {
        let (x_parts, x_rest) = x.as_chunks();
        let (mask_parts, mask_rest) = mask.as_chunks_mut();
        let (out_parts, out_rest) = out.as_chunks_mut();
        let last = word + x_parts.len() * WORDS;
        for (idx, ((x, mask), out)) in x_parts.iter().zip(mask_parts).zip(out_parts).enumerate() {
            drop_some(x, draws, word + idx * WORDS, mask, out);
        }
        let [mut x, mut mask, mut out] = [[bf16::ZERO; 4 * WORDS]; 3];
        x[..x_rest.len()].copy_from_slice(x_rest);
        drop_some(&x, draws, last, &mut mask, &mut out);
        mask_rest.copy_from_slice(&mask[..mask_rest.len()]);
        out_rest.copy_from_slice(&out[..out_rest.len()]);
    }
}

/// The mask and the product for the elements of some words of random bits, from number `word` on.
#[inline(always)]
fn drop_some(
    x: &[bf16; 4 * WORDS],
    draws: DropoutDraws,
    word: usize,
    mask: &mut [bf16; 4 * WORDS],
    out: &mut [bf16; 4 * WORDS],
) {
    let kept = narrow(draws.kept).widen();
    let mut bits = [[0u16; 4]; WORDS];
    for (idx, bits) in bits.iter_mut().enumerate() {
        let word = draws.bits((word + idx) as u64);
        *bits = [0, 16, 32, 48].map(|place| (word >> place) as u16);
    }
    for (((out, mask), x), bits) in out.iter_mut().zip(mask).zip(x).zip(bits.as_flattened()) {
        let factor = if u32::from(*bits) >= draws.dropped_below { kept } else { 0.0 };
        *mask = narrow(factor);
        *out = narrow(x.widen() * factor);
    }
}

for_each_processor! {
    fn narrow_elements(x: &[f32], factor: f32, out: &mut [bf16]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = narrow(x * factor));
    }
}

for_each_processor! {
    fn scale_rows(x: &[bf16], factors: &[f32], bias: Option<&[f32]>, out: &mut [bf16]) {
        for (x, out) in x.chunks_exact(factors.len()).zip(out.chunks_exact_mut(factors.len())) {
            let pairs = out.iter_mut().zip(x.iter().zip(factors));
            match bias {
                Some(bias) => pairs.zip(bias).for_each(|((out, (x, factor)), bias)| *out = narrow(x.widen() * factor + bias)),
                None => pairs.for_each(|(out, (x, factor))| *out = narrow(x.widen() * factor)),
            }
        }
    }
}

for_each_processor! {
    fn add_columns(a: &[bf16], b: &[bf16], sums: &mut [f32]) {
        for (a, b) in a.chunks_exact(sums.len()).zip(b.chunks_exact(sums.len())) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum += a.widen() * b.widen();
            }
        }
    }
}

for_each_processor! {
    fn add_row(x: &[bf16], sums: &mut [f32]) {
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x.widen());
    }
}

for_each_processor! {
    pub(super) fn round_row(x: &[f32], out: &mut [bf16]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = narrow(*x));
    }
}
