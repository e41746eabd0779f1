//! Double quantization: the f32 scale of each 64-value block, stored in 8 bits (2305.14314, section 3).

use tch::{Kind, Tensor};

use super::Result;
use super::codebook::dynamic_code;
use crate::tensor::{as_slice, as_slice_mut};

/// Scales that share one second-level scale.
const NESTED_BLOCK: usize = 256;

/// Block scales in 8 bits: `absmax[i] = code[codes[i]] * nested_absmax[i / 256] + offset`.
#[derive(Debug)]
pub struct DoubleQuantized {
    /// `[n_blocks]` u8, indices into the dynamic code.
    pub codes: Tensor,
    /// `[ceil(n_blocks / 256)]` f32.
    pub nested_absmax: Tensor,
    /// The mean of the scales, subtracted before quantization.
    pub offset: f32,
}

impl DoubleQuantized {
    /// Quantizes f32 scales, `[n_blocks]` on the CPU.
    ///
    /// # Errors
    /// When memory is short.
    pub fn quantize(absmax: &Tensor) -> Result<Self> {
        // libtorch's own mean: its order of summation decides the last bit of the offset.
        let mean = absmax.f_mean(Kind::Float)?;
        let centred = absmax.f_sub(&mean)?;
        let values = as_slice::<f32>(&centred)?;
        let code = dynamic_code();
        let mut codes = Tensor::f_zeros([values.len() as i64], (Kind::Uint8, absmax.device()))?;
        let mut nested = Vec::with_capacity(values.len().div_ceil(NESTED_BLOCK));
        let out = as_slice_mut::<u8>(&mut codes)?;
        for (block, out) in values.chunks(NESTED_BLOCK).zip(out.chunks_mut(NESTED_BLOCK)) {
            let scale = block.iter().fold(0f32, |max, value| max.max(value.abs()));
            // A block of zeros has no direction; any divisor gives the code of zero.
            let divisor = if scale > 0.0 { scale } else { 1.0 };
            for (value, out) in block.iter().zip(out) {
                *out = nearest(&code, value / divisor);
            }
            nested.push(scale);
        }
        Ok(Self { codes, nested_absmax: Tensor::f_from_slice(&nested)?, offset: mean.f_double_value(&[])? as f32 })
    }

    /// The scales in f32, `[n_blocks]`.
    ///
    /// # Errors
    /// When the parts are not on the CPU.
    pub fn dequantize(&self) -> Result<Vec<f32>> {
        let (codes, nested) = (as_slice::<u8>(&self.codes)?, as_slice::<f32>(&self.nested_absmax)?);
        let code = dynamic_code();
        Ok(codes
            .iter()
            .enumerate()
            .map(|(idx, &c)| code[c as usize] * nested[idx / NESTED_BLOCK] + self.offset)
            .collect())
    }
}

/// The index of the nearest code value; of two equally near ones the lower.
fn nearest(code: &[f32; 256], value: f32) -> u8 {
    let upper = code.partition_point(|&c| c < value);
    match upper {
        0 => 0,
        256 => 255,
        _ if (value - code[upper - 1]).abs() <= (code[upper] - value).abs() => (upper - 1) as u8,
        _ => upper as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    #[test]
    fn scales_come_back_within_the_code_spacing() {
        let absmax = Rng::named(5, "absmax").uniform(&[1000], 0.01).unwrap().abs() + 0.02;
        let back = DoubleQuantized::quantize(&absmax).unwrap().dequantize().unwrap();
        for (back, was) in back.iter().zip(as_slice::<f32>(&absmax).unwrap()) {
            // The widest gap of the code is 0.9 / 64; the scales spread over 0.01.
            assert!((back - was).abs() < 0.01 * 0.9 / 64.0, "{back} for {was}");
        }
    }

    #[test]
    fn nearest_is_nearest() {
        let code = dynamic_code();
        let mut rng = Rng::named(6, "nearest");
        for _ in 0..2000 {
            let value = rng.next_f32() * 2.2 - 1.1;
            let best = code.iter().map(|c| (c - value).abs()).fold(f32::MAX, f32::min);
            assert_eq!((code[nearest(&code, value) as usize] - value).abs(), best);
        }
    }
}
