//! The products of a decoding step with AVX-512's bf16 instructions: 32 weights are looked up at a time, and pairs of bf16 are
//! multiplied and added in f32. For activations in bf16 only; they lose nothing.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;

use super::Rounding;
use crate::quant::codebook::NF4_CODE;
use crate::quant::nf4::BLOCK;

/// How far ahead of their use weights are asked for: some 4 KiB hide the memory's latency.
const AHEAD: usize = 4096;

/// Reorders every block of 64 values into the 32 of the high nibbles, then the 32 of the low ones.
pub fn by_nibble(x: &[bf16]) -> Vec<bf16> {
    let mut out = Vec::with_capacity(x.len());
    for block in x.chunks(BLOCK) {
        out.extend(block.iter().step_by(2));
        out.extend(block.iter().skip(1).step_by(2));
    }
    out
}

/// One row of an NF4 weight times up to four rows of `x`, each reordered by [`by_nibble`]. `rounding` ends in bf16.
pub fn multiply_row(packed: &[u8], scales: &[f32], rounding: Rounding, x: &[bf16], out: &mut [f32]) {
    // SAFETY: the caller chose these instructions because the processor has them (`has_bf16_products`).
    unsafe {
        match out {
            [a] => [*a] = dot::<1>(packed, scales, rounding, x),
            [a, b] => [*a, *b] = dot::<2>(packed, scales, rounding, x),
            [a, b, c] => [*a, *b, *c] = dot::<3>(packed, scales, rounding, x),
            [a, b, c, d] => [*a, *b, *c, *d] = dot::<4>(packed, scales, rounding, x),
            _ => {}
        }
    }
}

/// One row of a bf16 matrix times one row of `x`.
pub fn dot_dense(row: &[bf16], x: &[bf16]) -> f32 {
    // SAFETY: the caller chose these instructions because the processor has them (`has_bf16_products`).
    unsafe { dense(row, x) }
}

/// The values of a block's 16 codes in bf16, twice: five bits of an index count, and the fifth belongs to the other nibble.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn values(scale: f32, rounding: Rounding) -> __m512i {
    // SAFETY: 16 values are there; the load needs no alignment.
    let code = unsafe { _mm512_loadu_ps(NF4_CODE.as_ptr()) };
    let exact = _mm512_mul_ps(code, _mm512_set1_ps(scale));
    let exact = match rounding {
        Rounding::F16 | Rounding::F16ThenBf16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(exact)),
        Rounding::None | Rounding::Bf16 => exact,
    };
    // SAFETY: both types are 32 bytes without a rule on their bits.
    let halves: __m256i = unsafe { std::mem::transmute(_mm512_cvtneps_pbh(exact)) };
    _mm512_broadcast_i64x4(halves)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes without a rule on their bits.
    unsafe { std::mem::transmute(bits) }
}

/// `N` rows of `x` at a time. Even and odd blocks have sums of their own, so that one addition need not wait for the last.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn dot<const N: usize>(packed: &[u8], scales: &[f32], rounding: Rounding, x: &[bf16]) -> [f32; N] {
    let (columns, blocks) = (2 * packed.len(), packed.len() / (BLOCK / 2));
    let (scales, x) = (&scales[..blocks], &x[..N * columns]);
    let add_block = |block: usize, scale: f32, sums: &mut [[__m512; 2]; N]| {
        let values = values(scale, rounding);
        // SAFETY: `block` is below `blocks`, so that 32 bytes of `packed` and, in each of the `N` rows of `x`, 64 values are
        // there (the slices above); the loads need no alignment, and a prefetch may name any address.
        unsafe {
            let bytes = packed.as_ptr().add(block * (BLOCK / 2));
            _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(AHEAD).cast());
            let bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(bytes.cast()));
            let high = pairs(_mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(bytes), values));
            let low = pairs(_mm512_permutexvar_epi16(bytes, values));
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = x.as_ptr().add(row * columns + block * BLOCK);
                sums[0] = _mm512_dpbf16_ps(sums[0], high, pairs(_mm512_loadu_si512(x.cast())));
                sums[1] = _mm512_dpbf16_ps(sums[1], low, pairs(_mm512_loadu_si512(x.add(32).cast())));
            }
        }
    };
    let mut even = [[_mm512_setzero_ps(); 2]; N];
    let mut odd = even;
    let mut two_scales = scales.chunks_exact(2);
    for (idx, scales) in two_scales.by_ref().enumerate() {
        add_block(2 * idx, scales[0], &mut even);
        add_block(2 * idx + 1, scales[1], &mut odd);
    }
    if let [scale] = two_scales.remainder() {
        add_block(blocks - 1, *scale, &mut even);
    }
    let mut out = [0f32; N];
    for ((out, even), odd) in out.iter_mut().zip(even).zip(odd) {
        *out = total([even[0], even[1], odd[0], odd[1]]);
    }
    out
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn dense(row: &[bf16], x: &[bf16]) -> f32 {
    let n_whole = row.len() / 128 * 128;
    let x = &x[..row.len()];
    let mut sums = [_mm512_setzero_ps(); 4];
    for start in (0..n_whole).step_by(128) {
        for (part, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 128 elements from `start` on are in both slices; the loads need no alignment, and a prefetch may name
            // any address.
            unsafe {
                let at = start + 32 * part;
                let weights = row.as_ptr().add(at);
                _mm_prefetch::<_MM_HINT_T0>(weights.cast::<i8>().wrapping_add(AHEAD));
                let weights = pairs(_mm512_loadu_si512(weights.cast()));
                *sum = _mm512_dpbf16_ps(*sum, weights, pairs(_mm512_loadu_si512(x.as_ptr().add(at).cast())));
            }
        }
    }
    let rest = row[n_whole..].iter().zip(&x[n_whole..]).map(|(weight, x)| weight.to_f32() * x.to_f32()).sum::<f32>();
    total(sums) + rest
}

#[inline]
#[target_feature(enable = "avx512f")]
fn total([a, b, c, d]: [__m512; 4]) -> f32 {
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
}
