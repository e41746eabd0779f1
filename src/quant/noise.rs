//! Weights that only look like weights, made at memory speed: for measurements of shapes too large to draw.

use tch::{Kind, Tensor};

use super::absmax::NESTED_BLOCK;
use super::codebook::dynamic_code;
use super::{Absmax, BLOCK, DoubleQuantized, Nf4, Result};
use crate::tensor::Rng;

/// Draws that are repeated until a tensor is full.
const PERIOD: usize = 1 << 16;

impl Nf4 {
    /// A weight of this shape with values of a deviation near 0.02, random but repeating.
    ///
    /// # Errors
    /// When memory is short.
    pub fn noise(shape: [i64; 2], seed: u64) -> Result<Self> {
        let mut rng = Rng::named(seed, "noise");
        let n = (shape[0] * shape[1]) as usize;
        let n_blocks = n.div_ceil(BLOCK);
        let mut bytes = |n: usize| -> Result<Tensor> {
            let period: Vec<u8> = (0..PERIOD / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
            let whole = Tensor::f_from_slice(&period)?.f_repeat([n.div_ceil(PERIOD) as i64])?;
            Ok(whole.f_narrow(0, 0, n as i64)?.f_contiguous()?)
        };
        let packed = bytes(n.div_ceil(2))?;
        let nested_absmax =
            Tensor::f_full([n_blocks.div_ceil(NESTED_BLOCK) as i64], 0.01, (Kind::Float, tch::Device::Cpu))?;
        let scales =
            DoubleQuantized { codes: bytes(n_blocks)?, nested_absmax, offset: 0.03, code: Box::new(dynamic_code()) };
        Self::from_parts("noise", packed, Absmax::Double(scales), shape, Kind::BFloat16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_as_large_as_weights_are() {
        let weight = Nf4::noise([300, 500], 3).unwrap().dequantize(Kind::Float).unwrap();
        let std = weight.std(true).double_value(&[]);
        assert!((0.01..0.03).contains(&std), "{std}");
    }
}
