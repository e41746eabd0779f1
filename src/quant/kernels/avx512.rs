//! The loops with AVX-512: a block's 16 values fill one register, and a permutation looks up 16 (f32) or 32 (bf16) at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;

use super::{Rounding, portable, table, table_bf16};
use crate::quant::nf4::BLOCK;

/// Vectors of `x` rows that a block takes: 64 values in lanes of 16.
const VECTORS: usize = BLOCK / 16;

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

/// One row of the weight times up to four rows of `x`, each reordered by nibble in lanes of 16.
pub fn multiply_row(packed: &[u8], scales: &[f32], rounding: Rounding, x: &[f32], out: &mut [f32]) {
    // SAFETY: the caller chose these instructions because the processor has them (`Isa::is_available`).
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

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load16(bytes: &[u8]) -> __m512i {
    let bytes = &bytes[..16];
    // SAFETY: 16 bytes are there; the load needs no alignment.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_f32(values: &[f32]) -> __m512 {
    let values = &values[..16];
    // SAFETY: 16 values are there; the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn expand_f32(packed: &[u8], scales: &[f32], rounding: Rounding, out: &mut [f32]) {
    // Lanes of the high and the low nibbles in turn; 16 and more name the second operand.
    let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for ((out, packed), &scale) in out.chunks_exact_mut(BLOCK).zip(packed.chunks_exact(BLOCK / 2)).zip(scales) {
        let values = load_f32(&table(scale, rounding));
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
        let values = table_bf16(scale, rounding);
        // SAFETY: 16 elements are there; the load needs no alignment.
        let values = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
        // Twice, as five bits of an index count and the fifth belongs to the other nibble.
        let values = _mm512_broadcast_i64x4(values);
        for (out, bytes) in out.chunks_exact_mut(32).zip(packed.chunks_exact(16)) {
            let bytes = load16(bytes);
            let nibbles = _mm512_or_si512(_mm512_srli_epi32::<4>(bytes), _mm512_slli_epi32::<16>(bytes));
            // SAFETY: `out` has 32 elements of two bytes; the store needs no alignment.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi16(nibbles, values)) }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn dot<const N: usize>(packed: &[u8], scales: &[f32], rounding: Rounding, x: &[f32]) -> [f32; N] {
    let columns = 2 * packed.len();
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; N];
    for (block, (packed, &scale)) in packed.chunks_exact(BLOCK / 2).zip(scales).enumerate() {
        let values = load_f32(&table(scale, rounding));
        for half in 0..2 {
            let bytes = load16(&packed[16 * half..]);
            let high = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), values);
            let low = _mm512_permutexvar_ps(bytes, values);
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = &x[row * columns + block * BLOCK + 32 * half..][..32];
                sums[2 * half] = _mm512_fmadd_ps(high, load_f32(&x[..16]), sums[2 * half]);
                sums[2 * half + 1] = _mm512_fmadd_ps(low, load_f32(&x[16..]), sums[2 * half + 1]);
            }
        }
    }
    let mut out = [0f32; N];
    for (out, [a, b, c, d]) in out.iter_mut().zip(sums) {
        *out = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
    }
    out
}
