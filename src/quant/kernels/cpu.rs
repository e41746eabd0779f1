//! NF4 on the CPU in portable Rust: blocks are independent and shared out over the cores.

use rayon::prelude::*;

use crate::quant::codebook::{NF4_CODE, dynamic_code, nf4_thresholds};
use crate::quant::nf4::BLOCK;

/// Values handled by one task.
const TASK: usize = 256 * BLOCK;

/// Quantizes `values` into nibbles (first value high) and one scale a block.
///
/// The reference multiplies whole blocks by the reciprocal of the scale but divides the short last block by it; the
/// scale of an all-zero block is stored as 0 and of an all-zero short block as 1e-38.
pub fn quantize(values: &[f32], packed: &mut [u8], absmax: &mut [f32]) {
    let thresholds = nf4_thresholds();
    let code_of = |scaled: f32| thresholds.partition_point(|&bound| bound < scaled) as u8;
    values.par_chunks(TASK).zip(packed.par_chunks_mut(TASK / 2)).zip(absmax.par_chunks_mut(TASK / BLOCK)).for_each(
        |((values, packed), absmax)| {
            for ((block, packed), absmax) in values.chunks(BLOCK).zip(packed.chunks_mut(BLOCK / 2)).zip(absmax) {
                let max = block.iter().fold(0f32, |max, value| max.max(value.abs()));
                let floor = max.max(1e-38);
                let is_whole = block.len() == BLOCK;
                *absmax = if is_whole { max } else { floor };
                let reciprocal = 1.0 / floor;
                let scale = |value: f32| (if is_whole { value * reciprocal } else { value / floor }).clamp(-1.0, 1.0);
                for (pair, out) in block.chunks(2).zip(packed) {
                    // An odd count is padded with a zero.
                    *out = code_of(scale(pair[0])) << 4 | pair.get(1).map_or(code_of(0.0), |&low| code_of(scale(low)));
                }
            }
        },
    );
}

/// The parts of a double-quantized NF4 weight that the loops read.
pub struct Source<'a> {
    pub packed: &'a [u8],
    pub absmax_codes: &'a [u8],
    pub nested_absmax: &'a [f32],
    pub offset: f32,
}

/// Expands NF4 into `out`, each value `code * absmax` in f32, then converted by `to`.
pub fn dequantize<T: Copy + Send + Sync>(source: &Source<'_>, out: &mut [T], to: impl Fn(f32) -> T + Sync) {
    let dynamic = dynamic_code();
    out.par_chunks_mut(TASK).enumerate().for_each(|(task, out)| {
        for (idx, out) in out.chunks_mut(BLOCK).enumerate() {
            let block = task * (TASK / BLOCK) + idx;
            let absmax =
                dynamic[source.absmax_codes[block] as usize] * source.nested_absmax[block / 256] + source.offset;
            let table = NF4_CODE.map(|code| to(code * absmax));
            let bytes = &source.packed[block * (BLOCK / 2)..][..out.len().div_ceil(2)];
            for (pair, byte) in out.chunks_mut(2).zip(bytes) {
                pair[0] = table[(byte >> 4) as usize];
                if let Some(low) = pair.get_mut(1) {
                    *low = table[(byte & 15) as usize];
                }
            }
        }
    });
}
