//! The loops in portable Rust: what the vector loops have to give.

use half::bf16;

use super::{Quantizable, Rounding, table};
use crate::quant::codebook::nf4_thresholds;
use crate::quant::nf4::BLOCK;

/// Quantizes a block of f32 values and gives its scale.
///
/// The reference multiplies whole blocks by the reciprocal of the scale but divides the short last block by it; the
/// scale of an all-zero block is stored as 0 and of an all-zero short block as 1e-38.
#[inline(always)]
pub fn quantize_block(block: &[f32], packed: &mut [u8]) -> f32 {
    let thresholds = nf4_thresholds();
    // Counting all thresholds below a value takes no branch and becomes vector code.
    let code_of = |scaled: f32| thresholds.iter().map(|&bound| u8::from(bound < scaled)).sum::<u8>();
    // As whole numbers the bits of absolute values have their order, infinity and NaN above all others.
    let max = f32::from_bits(block.iter().fold(0, |max, value| max.max(value.abs().to_bits())));
    let floor = if max < 1e-38 { 1e-38 } else { max };
    let is_whole = block.len() == BLOCK;
    let reciprocal = 1.0 / floor;
    let mut codes = [0u8; BLOCK];
    if is_whole {
        codes.iter_mut().zip(block).for_each(|(code, value)| *code = code_of((value * reciprocal).clamp(-1.0, 1.0)));
    } else {
        codes.iter_mut().zip(block).for_each(|(code, value)| *code = code_of((value / floor).clamp(-1.0, 1.0)));
        // An odd count is padded with a zero.
        codes[block.len()] = code_of(0.0);
    }
    for (pair, out) in codes.chunks(2).zip(packed) {
        *out = pair[0] << 4 | pair[1];
    }
    if is_whole { max } else { floor }
}

/// Expands the blocks of a task: `table_of` gives the values of a block's codes from its scale.
pub fn dequantize<T: Copy>(packed: &[u8], scales: &[f32], out: &mut [T], table_of: impl Fn(f32) -> [T; 16]) {
    for ((out, packed), &scale) in out.chunks_mut(BLOCK).zip(packed.chunks(BLOCK / 2)).zip(scales) {
        let table = table_of(scale);
        for (pair, byte) in out.chunks_mut(2).zip(packed) {
            pair[0] = table[(byte >> 4) as usize];
            if let Some(low) = pair.get_mut(1) {
                *low = table[(byte & 15) as usize];
            }
        }
    }
}

/// One row of the weight times up to four rows of `x`, `[n, columns]`.
pub fn multiply_row(packed: &[u8], scales: &[f32], rounding: Rounding, x: &[f32], out: &mut [f32]) {
    let columns = 2 * packed.len();
    for (x, out) in x.chunks(columns).zip(out) {
        // Four sums, as one would be lost in the wait for the one before.
        let mut sums = [0f32; 4];
        for ((x, packed), &scale) in x.chunks(BLOCK).zip(packed.chunks(BLOCK / 2)).zip(scales) {
            let table = table(scale, rounding);
            for (x, bytes) in x.chunks_exact(4).zip(packed.chunks_exact(2)) {
                sums[0] += table[(bytes[0] >> 4) as usize] * x[0];
                sums[1] += table[(bytes[0] & 15) as usize] * x[1];
                sums[2] += table[(bytes[1] >> 4) as usize] * x[2];
                sums[3] += table[(bytes[1] & 15) as usize] * x[3];
            }
        }
        *out = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}

/// One row of a bf16 matrix times one row of `x`.
pub fn dot_dense(row: &[bf16], x: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (whole, rest) = row.as_chunks::<8>();
    let (x_whole, x_rest) = x[..row.len()].as_chunks::<8>();
    for (weights, x) in whole.iter().zip(x_whole) {
        for ((sum, weight), x) in sums.iter_mut().zip(weights).zip(x) {
            *sum += weight.widen() * x;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().zip(x_rest).map(|(weight, x)| weight.widen() * x).sum::<f32>()
}
