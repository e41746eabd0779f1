//! ggml's block formats: f32 rows in, packed blocks out, with the reference's own search for scales.
//!
//! The search and the order of its f32 sums are those of `quantize_row_*_ref` in llama.cpp's `ggml-quants.c`, so that a
//! file has the bytes that `llama-quantize` without an importance matrix writes. Rounding is to the nearest, ties to even, where
//! the reference's `nearest_int` does so.

use half::{bf16, f16};
use rayon::prelude::*;

/// Values in a super-block of the K formats.
const SUPER: usize = 256;
/// Scales below this are nothing (`GROUP_MAX_EPS`).
const TINY: f32 = 1e-15;

/// A storage type of ggml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    F32,
    F16,
    Bf16,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Storage {
    /// ggml's number of the type.
    pub fn type_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// Values in a block, and the bytes that it takes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (SUPER, 144),
            Self::Q5K => (SUPER, 176),
            Self::Q6K => (SUPER, 210),
        }
    }

    /// The bytes of `n` values; `n` is a multiple of the block's values.
    pub fn size_bytes(self, n: u64) -> u64 {
        let (values, bytes) = self.block();
        n / values as u64 * bytes as u64
    }

    /// Packs whole rows. `values` is a multiple of the block's values long; what is left over is not packed.
    pub fn pack(self, values: &[f32]) -> Vec<u8> {
        let (n_values, n_bytes) = self.block();
        let mut out = vec![0; values.len() / n_values * n_bytes];
        // Blocks in runs of about 16 KiB of values, shared out over the cores.
        let run = (4096 / n_values).max(1);
        out.par_chunks_mut(run * n_bytes).zip(values.par_chunks(run * n_values)).for_each(|(out, values)| {
            for (out, block) in out.chunks_exact_mut(n_bytes).zip(values.chunks_exact(n_values)) {
                self.pack_block(block, out);
            }
        });
        out
    }

    fn pack_block(self, x: &[f32], out: &mut [u8]) {
        match self {
            Self::F32 => out.copy_from_slice(&x[0].to_le_bytes()),
            Self::F16 => out.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
            Self::Bf16 => out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
            Self::Q5_0 => pack_q5_0(x, out),
            Self::Q5_1 => pack_q5_1(x, out),
            Self::Q8_0 => pack_q8_0(x, out),
            Self::Q4K => pack_q4_k(x, out),
            Self::Q5K => pack_q5_k(x, out),
            Self::Q6K => pack_q6_k(x, out),
        }
    }
}

fn nearest(value: f32) -> i32 {
    value.round_ties_even() as i32
}

/// Writes a half-precision number and gives back what it holds.
fn put_half(out: &mut [u8], value: f32) -> f32 {
    let half = f16::from_f32(value);
    out.copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

/// `d` f16, 32 x i8.
fn pack_q8_0(x: &[f32], out: &mut [u8]) {
    let amax = x.iter().fold(0f32, |max, v| max.max(v.abs()));
    let d = amax / 127.0;
    put_half(&mut out[..2], d);
    let id = inverse(d);
    for (byte, value) in out[2..].iter_mut().zip(x) {
        // `roundf` rounds halves away from zero, as `f32::round` does.
        *byte = (value * id).round() as i8 as u8;
    }
}

/// The value of the largest magnitude, with its sign.
fn signed_max(x: &[f32]) -> f32 {
    let (mut max, mut amax) = (0f32, 0f32);
    for &value in x {
        if value.abs() > amax {
            (amax, max) = (value.abs(), value);
        }
    }
    max
}

/// `d` f16, 32 high bits, 16 x two low nibbles.
fn pack_q5_0(x: &[f32], out: &mut [u8]) {
    let d = signed_max(x) / -16.0;
    put_half(&mut out[..2], d);
    let id = inverse(d);
    let level = |value: f32| ((value * id + 16.5) as i8).min(31) as u8;
    pack_fives(x, level, &mut out[2..]);
}

/// `d` f16, `min` f16, 32 high bits, 16 x two low nibbles.
fn pack_q5_1(x: &[f32], out: &mut [u8]) {
    let (min, max) = x.iter().fold((f32::MAX, f32::MIN), |(min, max), &v| (min.min(v), max.max(v)));
    let d = (max - min) / 31.0;
    put_half(&mut out[..2], d);
    put_half(&mut out[2..4], min);
    let id = inverse(d);
    pack_fives(x, |value| ((value - min) * id + 0.5) as u8, &mut out[4..]);
}

fn pack_fives(x: &[f32], level: impl Fn(f32) -> u8, out: &mut [u8]) {
    let mut high = 0u32;
    for i in 0..16 {
        let (a, b) = (level(x[i]), level(x[i + 16]));
        out[4 + i] = a & 0xf | (b & 0xf) << 4;
        high |= u32::from(a >> 4 & 1) << i | u32::from(b >> 4 & 1) << (i + 16);
    }
    out[..4].copy_from_slice(&high.to_le_bytes());
}

/// Scale and minimum of a group, levels in `levels`: `x ~ scale * level - min`.
struct Affine {
    scale: f32,
    min: f32,
}

/// What the search of [`fit_affine`] tries.
struct Search {
    levels: i32,
    first: f32,
    steps: usize,
}

/// Weighted least squares over a row of candidate scales (`make_qkx2_quants`, squared error, steps of 0.1).
fn fit_affine(x: &[f32], weights: &[f32], search: &Search, levels: &mut [u8]) -> Affine {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&value, &w) in x.iter().zip(weights).skip(1) {
        min = min.min(value);
        max = max.max(value);
        sum_w += w;
        sum_x += w * value;
    }
    min = min.min(0.0);
    if max == min {
        levels.fill(0);
        return Affine { scale: 0.0, min: -min };
    }
    let n_max = search.levels as f32;
    let iscale = n_max / (max - min);
    let mut scale = 1.0 / iscale;
    let level = |value: f32, iscale: f32, min: f32| nearest(iscale * (value - min)).clamp(0, search.levels) as u8;
    let error = |levels: &[u8], scale: f32, min: f32| {
        let mut sum = 0f32;
        for ((&value, &w), &l) in x.iter().zip(weights).zip(levels) {
            let difference = scale * f32::from(l) + min - value;
            sum += w * (difference * difference);
        }
        sum
    };
    for (l, &value) in levels.iter_mut().zip(x) {
        *l = level(value, iscale, min);
    }
    let mut best = error(levels, scale, min);
    let mut tried = [0u8; 32];
    for step in 0..=search.steps {
        // The minimum is that of the best fit so far, as in the reference.
        let iscale = (search.first + 0.1 * step as f32 + n_max) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for ((l, &value), &w) in tried.iter_mut().zip(x).zip(weights) {
            *l = level(value, iscale, min);
            let number = f32::from(*l);
            sum_l += w * number;
            sum_l2 += w * number * number;
            sum_xl += w * number * value;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if this_min > 0.0 {
            this_min = 0.0;
            this_scale = sum_xl / sum_l2;
        }
        let this_error = error(&tried[..x.len()], this_scale, this_min);
        if this_error < best {
            levels.copy_from_slice(&tried[..x.len()]);
            (best, scale, min) = (this_error, this_scale, this_min);
        }
    }
    Affine { scale, min: -min }
}

/// The levels of a super-block of eight affine groups; `d`, `dmin` and the twelve bytes of 6-bit scales go into `out`.
fn quantize_affine(x: &[f32], search: &Search, out: &mut [u8]) -> [u8; SUPER] {
    let mut levels = [0u8; SUPER];
    let (mut scales, mut mins) = ([0f32; 8], [0f32; 8]);
    let (mut max_scale, mut max_min) = (0f32, 0f32);
    for (j, group) in x.chunks_exact(32).enumerate() {
        let mut sum = 0f32;
        group.iter().for_each(|v| sum += v * v);
        let rms = (sum / 32.0).sqrt();
        let mut weights = [0f32; 32];
        weights.iter_mut().zip(group).for_each(|(w, v)| *w = rms + v.abs());
        let fit = fit_affine(group, &weights, search, &mut levels[32 * j..32 * j + 32]);
        (scales[j], mins[j]) = (fit.scale, fit.min);
        max_scale = max_scale.max(fit.scale);
        max_min = max_min.max(fit.min);
    }
    let inverse_of = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (inv_scale, inv_min) = (inverse_of(max_scale), inverse_of(max_min));
    let six_bits = |value: f32| nearest(value).min(63) as u8;
    let codes: [(u8, u8); 8] = std::array::from_fn(|j| (six_bits(inv_scale * scales[j]), six_bits(inv_min * mins[j])));
    let d = put_half(&mut out[..2], max_scale / 63.0);
    let d_min = put_half(&mut out[2..4], max_min / 63.0);
    for (j, &(scale, min)) in codes.iter().enumerate() {
        if j < 4 {
            out[4 + j] = scale;
            out[8 + j] = min;
        } else {
            out[8 + j] = scale & 0xf | (min & 0xf) << 4;
            out[j] |= scale >> 4 << 6;
            out[4 + j] |= min >> 4 << 6;
        }
    }
    for (j, &(scale, min)) in codes.iter().enumerate() {
        let step = d * f32::from(scale);
        if step == 0.0 {
            continue;
        }
        let low = d_min * f32::from(min);
        for i in 32 * j..32 * j + 32 {
            levels[i] = nearest((x[i] + low) / step).clamp(0, search.levels) as u8;
        }
    }
    levels
}

/// `d` f16, `dmin` f16, 12 bytes of scales, 256 nibbles.
fn pack_q4_k(x: &[f32], out: &mut [u8]) {
    let levels = quantize_affine(x, &Search { levels: 15, first: -1.0, steps: 20 }, out);
    for (chunk, levels) in out[16..].chunks_exact_mut(32).zip(levels.chunks_exact(64)) {
        for (i, byte) in chunk.iter_mut().enumerate() {
            *byte = levels[i] | levels[i + 32] << 4;
        }
    }
}

/// `d` f16, `dmin` f16, 12 bytes of scales, 256 high bits, 256 nibbles.
fn pack_q5_k(x: &[f32], out: &mut [u8]) {
    let levels = quantize_affine(x, &Search { levels: 31, first: -0.5, steps: 15 }, out);
    let (high, low) = out[16..].split_at_mut(32);
    for (n, (chunk, levels)) in low.chunks_exact_mut(32).zip(levels.chunks_exact(64)).enumerate() {
        for (i, byte) in chunk.iter_mut().enumerate() {
            let (a, b) = (levels[i], levels[i + 32]);
            *byte = a & 0xf | (b & 0xf) << 4;
            high[i] |= (a >> 4) << (2 * n) | (b >> 4) << (2 * n + 1);
        }
    }
}

/// A scale for 16 values, levels 0 to 63 for -32 to 31 in `levels`, errors weighted by the square of the value
/// (`make_qx_quants`, type 1). Values that are all nothing get level 0, as in the reference.
fn fit_symmetric(x: &[f32], levels: &mut [u8]) -> f32 {
    let max = signed_max(x);
    if max.abs() < TINY {
        levels.fill(0);
        return 0.0;
    }
    let level = |iscale: f32, value: f32| nearest(iscale * value).clamp(-32, 31);
    let sums = |iscale: f32| {
        let (mut sum_lx, mut sum_l2) = (0f32, 0f32);
        for &value in x {
            let l = level(iscale, value) as f32;
            let w = value * value;
            sum_lx += w * value * l;
            sum_l2 += w * l * l;
        }
        (sum_lx, sum_l2)
    };
    let mut chosen = -32.0 / max;
    let (sum_lx, sum_l2) = sums(chosen);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_lx / sum_l2 };
    let mut best = scale * sum_lx;
    for step in (-9..=9).filter(|&step| step != 0) {
        let iscale = -(32.0 + 0.1 * step as f32) / max;
        let (sum_lx, sum_l2) = sums(iscale);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
            chosen = iscale;
        }
    }
    levels.iter_mut().zip(x).for_each(|(l, &value)| *l = (level(chosen, value) + 32) as u8);
    scale
}

/// 256 low nibbles, 256 pairs of high bits, 16 x i8 scales, `d` f16.
fn pack_q6_k(x: &[f32], out: &mut [u8]) {
    let mut levels = [0u8; SUPER];
    let scales: [f32; 16] =
        std::array::from_fn(|j| fit_symmetric(&x[16 * j..16 * j + 16], &mut levels[16 * j..16 * j + 16]));
    let max_scale = signed_max(&scales);
    if max_scale.abs() < TINY {
        out.fill(0);
        return;
    }
    let iscale = -128.0 / max_scale;
    let (nibbles, rest) = out.split_at_mut(128);
    let (high, rest) = rest.split_at_mut(64);
    let (codes, d) = rest.split_at_mut(16);
    let d = put_half(d, 1.0 / iscale);
    for (j, &scale) in scales.iter().enumerate() {
        let code = nearest(iscale * scale).min(127) as i8;
        codes[j] = code as u8;
        let step = d * f32::from(code);
        // A group without a scale keeps the levels of its search, as in the reference.
        if step != 0.0 {
            for i in 16 * j..16 * j + 16 {
                levels[i] = (nearest(x[i] / step).clamp(-32, 31) + 32) as u8;
            }
        }
    }
    for (half, levels) in levels.chunks_exact(128).enumerate() {
        for i in 0..32 {
            let [a, b, c, d] = [levels[i], levels[i + 32], levels[i + 64], levels[i + 96]];
            nibbles[64 * half + i] = a & 0xf | (c & 0xf) << 4;
            nibbles[64 * half + i + 32] = b & 0xf | (d & 0xf) << 4;
            high[32 * half + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_blocks_hold_what_their_layout_says() {
        let x: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
        let q8 = Storage::Q8_0.pack(&x);
        assert_eq!(f16::from_le_bytes([q8[0], q8[1]]).to_f32(), f16::from_f32(16.0 / 127.0).to_f32());
        assert_eq!((q8[2] as i8, q8[2 + 16] as i8, q8[2 + 24] as i8), (-127, 0, 64));
        // -16 / -16 = 1 a level, level 16 is zero: the values fit exactly.
        let q5 = Storage::Q5_0.pack(&x);
        assert_eq!(f16::from_le_bytes([q5[0], q5[1]]).to_f32(), 1.0);
        assert_eq!(u32::from_le_bytes([q5[2], q5[3], q5[4], q5[5]]), 0xffff_0000);
        assert_eq!((q5[6], q5[7]), (0x00, 0x11));
        for storage in [Storage::Q5_0, Storage::Q5_1, Storage::Q8_0] {
            assert!(storage.pack(&[0.0; 32]).iter().all(|&byte| byte == 0 || storage == Storage::Q5_0));
        }
    }

    #[test]
    fn nothing_at_all_packs_to_nothing() {
        for storage in [Storage::Q4K, Storage::Q5K, Storage::Q6K] {
            let packed = storage.pack(&[0.0; 256]);
            assert_eq!(packed.len() as u64, storage.size_bytes(256));
            assert!(packed.iter().all(|&byte| byte == 0), "{storage:?}");
        }
    }
}
