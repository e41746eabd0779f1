//! Attention of one new token a sequence to the tokens before it, in one pass over a bf16 cache.
//!
//! The new key is rotated on its way into the cache, with the roundings that tensor operations give it; scores, softmax and sums
//! are in f32. A head's keys lie one after another, so that each is read once.
#![allow(unsafe_code)]

use half::bf16;
use rayon::prelude::*;

use super::Quantizable as _;
use super::rows::{exp, narrow, sum_of};

/// Products of a step that is done before another core is awake.
const SMALL: usize = 1 << 19;

/// A step of `n` sequences.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    pub head_dim: usize,
    pub kv_heads: usize,
    /// Query heads that share a key head.
    pub per_kv: usize,
    /// `[n, kv_heads * per_kv, head_dim]`, not yet rotated.
    pub queries: &'a [bf16],
    /// `[n, kv_heads, head_dim]`, not yet rotated.
    pub keys: &'a [bf16],
    /// `[n, kv_heads, head_dim]`.
    pub values: &'a [bf16],
    /// `[n, head_dim / 2]`.
    pub cos: &'a [bf16],
    /// `[n, head_dim / 2]`.
    pub sin: &'a [bf16],
    /// Tokens in the cache of each sequence, `[n]`.
    pub lens: &'a [i64],
}

/// Puts the new keys and values into a cache `[n or more, kv_heads, room, head_dim]`, and attends to them and all before them. `out`
/// has the shape of the queries.
pub fn attend(step: &Step<'_>, room: usize, keys: &mut [bf16], values: &mut [bf16], out: &mut [bf16]) {
    let Step { head_dim, kv_heads, per_kv, .. } = *step;
    let (held, width) = (room * head_dim, per_kv * head_dim);
    if held == 0 || width == 0 {
        return;
    }
    let one = |idx: usize, keys: &mut [bf16], values: &mut [bf16], out: &mut [bf16]| {
        let (row, half) = (idx / kv_heads, head_dim / 2);
        let (cos, sin) = (&step.cos[row * half..][..half], &step.sin[row * half..][..half]);
        let len = step.lens[row] as usize;
        rotate(&step.keys[idx * head_dim..][..head_dim], cos, sin, &mut keys[len * head_dim..][..head_dim]);
        values[len * head_dim..][..head_dim].copy_from_slice(&step.values[idx * head_dim..][..head_dim]);
        let (keys, values) = (&keys[..(len + 1) * head_dim], &values[..(len + 1) * head_dim]);
        attend_head(&step.queries[idx * width..][..width], cos, sin, keys, values, out);
    };
    let products = step.lens.iter().map(|&len| len as usize + 1).sum::<usize>() * 2 * kv_heads * width;
    let caches = keys.par_chunks_mut(held).zip(values.par_chunks_mut(held));
    let heads = caches.zip(out.par_chunks_mut(width)).enumerate();
    let at_least = if products <= SMALL { heads.len() } else { 1 };
    heads.with_min_len(at_least).for_each(|(idx, ((keys, values), out))| one(idx, keys, values, out));
}

/// Rotates a pair by an angle, every product and sum rounded.
#[inline(always)]
pub(super) fn rotated([a, b]: [bf16; 2], [cos, sin]: [bf16; 2]) -> [bf16; 2] {
    let [a, b, cos, sin] = [a, b, cos, sin].map(|x| x.widen());
    let first = narrow(narrow(a * cos).widen() - narrow(b * sin).widen());
    [first, narrow(narrow(b * cos).widen() + narrow(a * sin).widen())]
}

for_each_processor! {
    /// Rotates one head, the first half with the second, every product and sum rounded.
    fn rotate(x: &[bf16], cos: &[bf16], sin: &[bf16], out: &mut [bf16]) {
        let (a, b) = x.split_at(cos.len());
        let (first, second) = out.split_at_mut(cos.len());
        let pairs = a.iter().zip(b).zip(cos.iter().zip(sin));
        for (((a, b), (cos, sin)), (first, second)) in pairs.zip(first.iter_mut().zip(second)) {
            [*first, *second] = rotated([*a, *b], [*cos, *sin]);
        }
    }
}

for_each_processor! {
    /// The query heads of one key head, one after another.
    fn attend_head(
        queries: &[bf16], cos: &[bf16], sin: &[bf16], keys: &[bf16], values: &[bf16], out: &mut [bf16],
    ) {
        let head_dim = 2 * cos.len();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (mut rotated, mut query) = (vec![bf16::ZERO; head_dim], vec![0f32; head_dim]);
        let (mut weights, mut sums) = (vec![0f32; keys.len() / head_dim], vec![0f32; head_dim]);
        for (x, out) in queries.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
            rotate(x, cos, sin, &mut rotated);
            query.iter_mut().zip(&rotated).for_each(|(query, x)| *query = x.widen() * scale);
            let mut largest = f32::NEG_INFINITY;
            for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(head_dim)) {
                *weight = sum_of(&query, key, |a, b| a * b);
                largest = largest.max(*weight);
            }
            let mut total = 0.0;
            for weight in &mut weights {
                *weight = exp(*weight - largest);
                total += *weight;
            }
            sums.fill(0.0);
            for (weight, value) in weights.iter().zip(values.chunks_exact(head_dim)) {
                sums.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * value.widen());
            }
            out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = narrow(sum / total));
        }
    }
}
