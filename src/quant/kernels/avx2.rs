//! The loops with AVX2 and FMA: a block's 16 values fill two registers, between which the top bit of a code chooses.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;

use super::{Quantizable as _, Rounding, portable, table, table_bf16};
use crate::quant::codebook::NF4_CODE;
use crate::quant::nf4::BLOCK;

/// As [`portable::quantize_block`].
pub fn quantize_block(block: &[f32], packed: &mut [u8]) -> f32 {
    #[target_feature(enable = "avx2,fma,f16c")]
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
    /// One row of the weight times up to four rows of `x`, each reordered by nibble in lanes of 8.
    f32
}

/// One row of a bf16 matrix times one row of `x`.
pub fn dot_dense(row: &[bf16], x: &[f32]) -> f32 {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner(row: &[bf16], x: &[f32]) -> f32 {
        // Enough sums that none waits for the last.
        let mut lanes = [[0f32; 8]; 4];
        let (parts, rest) = row.as_chunks::<32>();
        let (x_parts, x_rest) = x.as_chunks::<32>();
        for (row, x) in parts.iter().zip(x_parts) {
            for ((sum, weight), x) in lanes.as_flattened_mut().iter_mut().zip(row).zip(x) {
                *sum = weight.widen().mul_add(*x, *sum);
            }
        }
        let rest = rest.iter().zip(x_rest).map(|(weight, x)| weight.widen() * x).sum::<f32>();
        lanes.as_flattened().iter().sum::<f32>() + rest
    }
    // SAFETY: the caller chose these instructions because the processor has them (`Isa::is_available`).
    unsafe { inner(row, x) }
}

/// The values of a block's 16 codes, codes 0 to 7 and 8 to 15.
struct Values(__m256, __m256);

impl Values {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn new(scale: f32, rounding: Rounding) -> Self {
        let half = |codes: &[f32]| {
            let exact = _mm256_mul_ps(load_f32(codes), _mm256_set1_ps(scale));
            match rounding {
                Rounding::None => exact,
                Rounding::Bf16 => round_bf16(exact),
                Rounding::F16 => round_f16(exact),
                Rounding::F16ThenBf16 => round_bf16(round_f16(exact)),
            }
        };
        Self(half(&NF4_CODE[..8]), half(&NF4_CODE[8..]))
    }

    /// The values of eight codes: `index` has a code in the low four bits of each lane, `top` its fourth bit as the sign.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn look_up(&self, index: __m256i, top: __m256i) -> __m256 {
        let lower = _mm256_permutevar8x32_ps(self.0, index);
        let upper = _mm256_permutevar8x32_ps(self.1, index);
        _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(top))
    }

    /// The values of eight bytes' high and low nibbles.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn nibbles(&self, bytes: &[u8]) -> (__m256, __m256) {
        let bytes = &bytes[..8];
        // SAFETY: 8 bytes are there; the load needs no alignment.
        let bytes = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) });
        let high = self.look_up(_mm256_srli_epi32::<4>(bytes), _mm256_slli_epi32::<24>(bytes));
        (high, self.look_up(bytes, _mm256_slli_epi32::<28>(bytes)))
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_f32(values: &[f32]) -> __m256 {
    let values = &values[..8];
    // SAFETY: 8 values are there; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// The even and the odd ones of neighbours in bf16, in f32.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub fn widen(pairs: __m256i) -> [__m256; 2] {
    let high = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(_mm256_and_si256(pairs, high))]
}

/// Stores the first eight values and the others.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub fn store16([first, second]: [__m256; 2], out: &mut [f32; 16]) {
    // SAFETY: there is room for 16 floats; the stores need no alignment.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), first);
        _mm256_storeu_ps(out.as_mut_ptr().add(8), second);
    }
}

/// Values rounded to f16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn round_f16(values: __m256) -> __m256 {
    _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values))
}

/// Finite values rounded to bf16, ties to even.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn round_bf16(values: __m256) -> __m256 {
    let bits = _mm256_castps_si256(values);
    let is_odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let bits = _mm256_add_epi32(bits, _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff)));
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_srli_epi32::<16>(bits)))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn expand_f32(packed: &[u8], scales: &[f32], rounding: Rounding, out: &mut [f32]) {
    for ((out, packed), &scale) in out.chunks_exact_mut(BLOCK).zip(packed.chunks_exact(BLOCK / 2)).zip(scales) {
        let values = Values::new(scale, rounding);
        for (out, bytes) in out.chunks_exact_mut(16).zip(packed.chunks_exact(8)) {
            let (high, low) = values.nibbles(bytes);
            // Pairs 0, 1, 4, 5 and 2, 3, 6, 7: unpacking works within halves of a register.
            let (a, b) = (_mm256_unpacklo_ps(high, low), _mm256_unpackhi_ps(high, low));
            // SAFETY: `out` has 16 elements; the stores need no alignment.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(out.as_mut_ptr().add(8), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
}

/// The lower and the upper bytes of the values of a block's 16 codes in bf16, as [`table_bf16`] gives them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn bytes_of(scale: f32, rounding: Rounding) -> [__m128i; 2] {
    let Values(first, second) = Values::new(scale, rounding);
    // Packing works within halves of a register, hence the order of the quarters.
    let upper_half = |values| _mm256_srli_epi32::<16>(_mm256_castps_si256(round_bf16(values)));
    let bits = _mm256_packus_epi32(upper_half(first), upper_half(second));
    let bits = _mm256_permute4x64_epi64::<0b11_01_10_00>(bits);
    let (first, second) = (_mm256_castsi256_si128(bits), _mm256_extracti128_si256::<1>(bits));
    let low_byte = _mm_set1_epi16(0xff);
    let lower = _mm_packus_epi16(_mm_and_si128(first, low_byte), _mm_and_si128(second, low_byte));
    [lower, _mm_packus_epi16(_mm_srli_epi16::<8>(first), _mm_srli_epi16::<8>(second))]
}

/// The values in bf16 of 16 codes, one in each byte, by what [`bytes_of`] gives.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn look_up_bf16(codes: __m128i, [lower, upper]: [__m128i; 2]) -> [__m128i; 2] {
    let (lower, upper) = (_mm_shuffle_epi8(lower, codes), _mm_shuffle_epi8(upper, codes));
    [_mm_unpacklo_epi8(lower, upper), _mm_unpackhi_epi8(lower, upper)]
}

/// The values in bf16 of 32 codes, two in each of 16 bytes, the high nibble first.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn look_up_bytes(bytes: &[u8; 16], table: [__m128i; 2]) -> [__m128i; 4] {
    let [high, low] = nibbles(bytes);
    // Codes in the order of the values, 16 and 16.
    let [a, b] = look_up_bf16(_mm_unpacklo_epi8(high, low), table);
    let [c, d] = look_up_bf16(_mm_unpackhi_epi8(high, low), table);
    [a, b, c, d]
}

/// The high and the low nibbles of 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn nibbles(bytes: &[u8; 16]) -> [__m128i; 2] {
    // SAFETY: 16 bytes are there; the load needs no alignment.
    let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let nibble = _mm_set1_epi8(15);
    [_mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble), _mm_and_si128(bytes, nibble)]
}

#[target_feature(enable = "avx2,fma,f16c")]
fn expand_bf16(packed: &[u8], scales: &[f32], rounding: Rounding, out: &mut [bf16]) {
    for ((out, packed), &scale) in out.chunks_exact_mut(BLOCK).zip(packed.chunks_exact(BLOCK / 2)).zip(scales) {
        let table = bytes_of(scale, rounding);
        for (out, bytes) in out.as_chunks_mut::<32>().0.iter_mut().zip(packed.as_chunks().0) {
            for (out, values) in out.as_chunks_mut::<8>().0.iter_mut().zip(look_up_bytes(bytes, table)) {
                // SAFETY: `out` has 8 elements of two bytes; the store needs no alignment.
                unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), values) }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot<const N: usize>(packed: &[u8], scales: &[f32], rounding: Rounding, x: &[f32]) -> [f32; N] {
    let columns = 2 * packed.len();
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    for (block, (packed, &scale)) in packed.chunks_exact(BLOCK / 2).zip(scales).enumerate() {
        let values = Values::new(scale, rounding);
        for (part, bytes) in packed.chunks_exact(8).enumerate() {
            let (high, low) = values.nibbles(bytes);
            for (row, [a, b]) in sums.iter_mut().enumerate() {
                let x = &x[row * columns + block * BLOCK + 16 * part..][..16];
                *a = _mm256_fmadd_ps(high, load_f32(&x[..8]), *a);
                *b = _mm256_fmadd_ps(low, load_f32(&x[8..]), *b);
            }
        }
    }
    let mut out = [0f32; N];
    for (out, [a, b]) in out.iter_mut().zip(sums) {
        let sum = _mm256_add_ps(a, b);
        let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
        let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
        *out = _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)));
    }
    out
}
