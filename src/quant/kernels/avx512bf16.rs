//! The products of a decoding step with AVX-512's bf16 instructions: 32 weights are looked up at a time, and pairs of bf16 are
//! multiplied and added in f32. For activations in bf16 only; they lose nothing.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;

use super::Rounding;
use super::avx512::{scaled, total};
use crate::quant::nf4::BLOCK;

/// Values of each nibble that are looked up at a time.
pub const LANES: usize = 32;

/// How far ahead of their use weights are asked for: some 4 KiB hide the memory's latency.
const AHEAD: usize = 4096;

multiply_row_by_dot! {
    /// One row of the weight times up to four rows of `x`, each reordered by nibble in [`LANES`]. `rounding` ends in bf16.
    bf16
}

/// One row of a bf16 matrix times one row of `x`.
pub fn dot_dense(row: &[bf16], x: &[bf16]) -> f32 {
    // SAFETY: the caller chose these instructions because the processor has them (`Isa::is_available`).
    unsafe { dense(row, x) }
}

/// The values of a block's 16 codes in bf16, twice: five bits of an index count, and the fifth belongs to the other nibble.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn values(scale: f32, rounding: Rounding) -> __m512i {
    // SAFETY: both types are 32 bytes without a rule on their bits.
    let halves: __m256i = unsafe { std::mem::transmute(_mm512_cvtneps_pbh(scaled(scale, rounding))) };
    _mm512_broadcast_i64x4(halves)
}

/// 32 values of bf16, as the products take them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn as_bf16(bits: __m512i) -> __m512bh {
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
            let high = as_bf16(_mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(bytes), values));
            let low = as_bf16(_mm512_permutexvar_epi16(bytes, values));
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = x.as_ptr().add(row * columns + block * BLOCK);
                sums[0] = _mm512_dpbf16_ps(sums[0], high, as_bf16(_mm512_loadu_si512(x.cast())));
                sums[1] = _mm512_dpbf16_ps(sums[1], low, as_bf16(_mm512_loadu_si512(x.add(32).cast())));
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
                let weights = as_bf16(_mm512_loadu_si512(weights.cast()));
                *sum = _mm512_dpbf16_ps(*sum, weights, as_bf16(_mm512_loadu_si512(x.as_ptr().add(at).cast())));
            }
        }
    }
    let rest = row[n_whole..].iter().zip(&x[n_whole..]).map(|(weight, x)| weight.to_f32() * x.to_f32()).sum::<f32>();
    total(sums) + rest
}
