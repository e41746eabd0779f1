//! An AdamW step on moments in 8 bits (2110.02861), as bitsandbytes 0.50.2 takes it on the CPU: each block of 256 is
//! expanded, updated in f32 and quantized again, the first moment with the signed dynamic code, the second, which is
//! never negative, with the unsigned one.

use rayon::prelude::*;

use crate::quant::DynamicCode;

/// Values that share a scale.
pub const BLOCK: usize = 256;

/// Smaller parameters keep moments in 32 bits.
pub const MIN_SIZE: usize = 4096;

/// Blocks handled by one task, so that a task is worth its start.
const TASK: usize = 64;

/// The codes of both moments.
#[derive(Debug)]
pub struct Codes {
    m: DynamicCode,
    v: DynamicCode,
}

impl Codes {
    /// Builds the tables.
    pub fn new() -> Self {
        Self { m: DynamicCode::signed(), v: DynamicCode::unsigned() }
    }
}

/// One parameter's step. `values`, `gradient`, `m` and `v` have one element for each of its own; the scales one for each
/// block of [`BLOCK`].
pub struct Update<'a> {
    pub values: &'a mut [f32],
    pub gradient: &'a [f32],
    pub m: &'a mut [u8],
    pub v: &'a mut [u8],
    pub m_absmax: &'a mut [f32],
    pub v_absmax: &'a mut [f32],
    pub betas: [f64; 2],
    pub eps: f32,
    /// What decoupled weight decay leaves of a value.
    pub keep: f32,
    /// Learning rate over the first moment's bias correction.
    pub step_size: f32,
    /// Square root of the second moment's bias correction.
    pub correction2: f32,
    pub codes: &'a Codes,
}

/// Takes the step in place.
pub fn update(step: Update<'_>) {
    let Update { values, gradient, m, v, m_absmax, v_absmax, betas, eps, keep, step_size, correction2, codes } = step;
    let [beta1, beta2] = betas.map(|beta| beta as f32);
    let [rest1, rest2] = betas.map(|beta| (1.0 - beta) as f32);
    values
        .par_chunks_mut(BLOCK)
        .zip(gradient.par_chunks(BLOCK))
        .zip(m.par_chunks_mut(BLOCK))
        .zip(v.par_chunks_mut(BLOCK))
        .zip(m_absmax)
        .zip(v_absmax)
        .with_min_len(TASK)
        .for_each(|(((((values, gradient), m), v), m_absmax), v_absmax)| {
            let (mut first, mut second) = ([0f32; BLOCK], [0f32; BLOCK]);
            for (idx, (value, &g)) in values.iter_mut().zip(gradient).enumerate() {
                // One rounding for product and sum, as in libtorch's kernels.
                first[idx] = rest1.mul_add(g, codes.m.value(m[idx]) * *m_absmax * beta1);
                second[idx] = (rest2 * g).mul_add(g, codes.v.value(v[idx]) * *v_absmax * beta2);
                let denominator = second[idx].sqrt() / correction2 + eps;
                *value = *value * keep - step_size * first[idx] / denominator;
            }
            *m_absmax = codes.m.quantize_block(&first[..gradient.len()], m);
            *v_absmax = codes.v.quantize_block(&second[..gradient.len()], v);
        });
}
