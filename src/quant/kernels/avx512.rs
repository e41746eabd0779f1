//! The loops with AVX-512: a block's 16 values fill one register, and a permutation looks up 16 (f32) or 32 (bf16) at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;

use super::{Rounding, portable, table, table_bf16};
use crate::quant::codebook::NF4_CODE;
use crate::quant::nf4::BLOCK;

/// As [`portable::quantize_block`].
pub fn quantize_block(block: &[f32], packed: &mut [u8]) -> f32 {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn inner(block: &[f32], packed: &mut [u8]) -> f32 {
        portable::quantize_block(block, packed)
    }
    // SAFETY: the caller chose these instructions because the processor has them (`Isa::is_available`).
    unsafe { inner(block, packed) }
}

/// Expands the blocks of a task into f32.
pub fn dequantize_f32(packed: &[u8], scales: &[f32], rounding: Rounding, out: &mut [f32]) {
    let n_whole = out.len() / BLOCK;
    let (whole, rest) = out.split_at_mut(n_whole * BLOCK);
    // SAFETY: the caller chose these instructions because the processor has them (`Isa::is_available`).
    unsafe { expand_f32(packed, scales, rounding, whole) }
    portable::dequantize(&packed[n_whole * BLOCK / 2..], &scales[n_whole..], rest, |scale| table(scale, rounding));
}

/// Expands the blocks of a task into bf16.
pub fn dequantize_bf16(packed: &[u8], scales: &[f32], rounding: Rounding, out: &mut [bf16]) {
    let n_whole = out.len() / BLOCK;
    let (whole, rest) = out.split_at_mut(n_whole * BLOCK);
    // SAFETY: the caller chose these instructions because the processor has them (`Isa::is_available`).
    unsafe { expand_bf16(packed, scales, rounding, whole) }
    portable::dequantize(&packed[n_whole * BLOCK / 2..], &scales[n_whole..], rest, |scale| {
        table_bf16(scale, rounding).map(bf16::from_bits)
    });
}

multiply_row_by_dot! {
    /// One row of the weight times up to four rows of `x`, each reordered by nibble in lanes of 16.
    f32
}

/// One row of a bf16 matrix times one row of `x`.
pub fn dot_dense(row: &[bf16], x: &[f32]) -> f32 {
    // SAFETY: the caller chose these instructions because the processor has them (`Isa::is_available`).
    unsafe { dense(row, x) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn load16(bytes: &[u8]) -> __m512i {
    let bytes = &bytes[..16];
    // SAFETY: 16 bytes are there; the load needs no alignment.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn load_f32(values: &[f32]) -> __m512 {
    let values = &values[..16];
    // SAFETY: 16 values are there; the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// The products of a block's scale and the 16 codes, rounded to f16 where that is asked for, not yet to bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn scaled(scale: f32, rounding: Rounding) -> __m512 {
    let exact = _mm512_mul_ps(load_f32(&NF4_CODE), _mm512_set1_ps(scale));
    match rounding {
        Rounding::None | Rounding::Bf16 => exact,
        Rounding::F16 | Rounding::F16ThenBf16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(exact)),
    }
}

/// The values of a block's 16 codes, as [`table`] gives them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn values(scale: f32, rounding: Rounding) -> __m512 {
    let scaled = scaled(scale, rounding);
    match rounding {
        Rounding::None | Rounding::F16 => scaled,
        Rounding::Bf16 | Rounding::F16ThenBf16 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(round_bf16(scaled))),
    }
}

/// The values of a block's 16 codes in bf16, as [`table_bf16`] gives them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn values_bf16(scale: f32, rounding: Rounding) -> __m256i {
    _mm512_cvtepi32_epi16(round_bf16(scaled(scale, rounding)))
}

/// The values of 32 codes, two in each of 16 bytes, the high nibble first. `twice` has the 16 values twice, as five bits of an
/// index count and the fifth belongs to the other nibble.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn look_up_bf16(bytes: &[u8], twice: __m512i) -> __m512i {
    let bytes = load16(bytes);
    let nibbles = _mm512_or_si512(_mm512_srli_epi32::<4>(bytes), _mm512_slli_epi32::<16>(bytes));
    _mm512_permutexvar_epi16(nibbles, twice)
}

/// The bits of finite values rounded to bf16, ties to even, in the low half of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn round_bf16(values: __m512) -> __m512i {
    let bits = _mm512_castps_si512(values);
    let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let bits = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
    _mm512_srli_epi32::<16>(bits)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn expand_f32(packed: &[u8], scales: &[f32], rounding: Rounding, out: &mut [f32]) {
    // Lanes of the high and the low nibbles in turn; 16 and more name the second operand.
    let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for ((out, packed), &scale) in out.chunks_exact_mut(BLOCK).zip(packed.chunks_exact(BLOCK / 2)).zip(scales) {
        let values = values(scale, rounding);
        for (out, bytes) in out.chunks_exact_mut(32).zip(packed.chunks_exact(16)) {
            let bytes = load16(bytes);
            // Only the low four bits of an index count.
            let high = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), values);
            let low = _mm512_permutexvar_ps(bytes, values);
            // SAFETY: `out` has 32 elements; the stores need no alignment.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutex2var_ps(high, first, low));
                _mm512_storeu_ps(out.as_mut_ptr().add(16), _mm512_permutex2var_ps(high, second, low));
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn expand_bf16(packed: &[u8], scales: &[f32], rounding: Rounding, out: &mut [bf16]) {
    for ((out, packed), &scale) in out.chunks_exact_mut(BLOCK).zip(packed.chunks_exact(BLOCK / 2)).zip(scales) {
        let values = _mm512_broadcast_i64x4(values_bf16(scale, rounding));
        for (out, bytes) in out.chunks_exact_mut(32).zip(packed.chunks_exact(16)) {
            // SAFETY: `out` has 32 elements of two bytes; the store needs no alignment.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), look_up_bf16(bytes, values)) }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn dot<const N: usize>(packed: &[u8], scales: &[f32], rounding: Rounding, x: &[f32]) -> [f32; N] {
    let (columns, blocks) = (2 * packed.len(), packed.len() / (BLOCK / 2));
    let (scales, x) = (&scales[..blocks], &x[..N * columns]);
    let mut sums = [[_mm512_setzero_ps(); 4]; N];
    for (block, &scale) in scales.iter().enumerate() {
        let values = values(scale, rounding);
        // SAFETY: `block` is below `blocks`, so that 32 bytes of `packed` and, in each of the `N` rows of `x`, 64 values are
        // there (the slices above); the loads need no alignment. Checks in this loop would cost half its time.
        unsafe {
            let bytes = packed.as_ptr().add(block * (BLOCK / 2));
            let first = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.cast()));
            let second = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.add(16).cast()));
            let weights = [
                _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(first), values),
                _mm512_permutexvar_ps(first, values),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(second), values),
                _mm512_permutexvar_ps(second, values),
            ];
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = x.as_ptr().add(row * columns + block * BLOCK);
                sums[0] = _mm512_fmadd_ps(weights[0], _mm512_loadu_ps(x), sums[0]);
                sums[1] = _mm512_fmadd_ps(weights[1], _mm512_loadu_ps(x.add(16)), sums[1]);
                sums[2] = _mm512_fmadd_ps(weights[2], _mm512_loadu_ps(x.add(32)), sums[2]);
                sums[3] = _mm512_fmadd_ps(weights[3], _mm512_loadu_ps(x.add(48)), sums[3]);
            }
        }
    }
    let mut out = [0f32; N];
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = total(sums);
    }
    out
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn dense(row: &[bf16], x: &[f32]) -> f32 {
    let n_whole = row.len() / 64 * 64;
    let x = &x[..row.len()];
    let mut sums = [_mm512_setzero_ps(); 4];
    for start in (0..n_whole).step_by(64) {
        for (part, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 64 elements from `start` on are in both slices; the loads need no alignment.
            unsafe {
                let at = start + 16 * part;
                let weight = _mm512_cvtepu16_epi32(_mm256_loadu_si256(row.as_ptr().add(at).cast()));
                let weight = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(weight));
                *sum = _mm512_fmadd_ps(weight, _mm512_loadu_ps(x.as_ptr().add(at)), *sum);
            }
        }
    }
    let rest = row[n_whole..].iter().zip(&x[n_whole..]).map(|(weight, x)| weight.to_f32() * x).sum::<f32>();
    total(sums) + rest
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn total([a, b, c, d]: [__m512; 4]) -> f32 {
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
}
