//! A weight matrix in NF4: quantize once, expand into a reused buffer when needed.

use tch::{Device, Kind, Tensor};

use super::absmax::DoubleQuantized;
use super::kernels::cpu;
use super::{Error, Result};
use crate::tensor::{as_slice, as_slice_mut};

/// Values that share one scale, counted over the flattened weight.
pub const BLOCK: usize = 64;

/// An NF4 weight of shape `[rows, columns]`.
#[derive(Debug)]
pub struct Nf4 {
    /// `[ceil(n / 2)]` u8, two codes a byte, the first in the high nibble.
    pub packed: Tensor,
    /// One scale for each 64 values; the last block may be short.
    pub absmax: DoubleQuantized,
    shape: [i64; 2],
}

impl Nf4 {
    /// Quantizes a weight of any float type and any device; the result is on the CPU.
    ///
    /// # Errors
    /// [`Error::NotAMatrix`] or [`Error::NotFinite`].
    pub fn quantize(weight: &Tensor) -> Result<Self> {
        let shape: [i64; 2] = weight.size().try_into().map_err(|shape: Vec<i64>| Error::NotAMatrix(shape))?;
        let values = weight.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let values = as_slice::<f32>(&values)?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite);
        }
        let cpu = |n: usize, kind| Tensor::f_zeros([n as i64], (kind, Device::Cpu));
        let mut packed = cpu(values.len().div_ceil(2), Kind::Uint8)?;
        let mut absmax = cpu(values.len().div_ceil(BLOCK), Kind::Float)?;
        cpu::quantize(values, as_slice_mut(&mut packed)?, as_slice_mut(&mut absmax)?);
        Ok(Self { packed, absmax: DoubleQuantized::quantize(&absmax)?, shape })
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> [i64; 2] {
        self.shape
    }

    /// The memory that the weight takes.
    pub fn size_bytes(&self) -> usize {
        self.packed.numel() + self.absmax.codes.numel() + 4 * self.absmax.nested_absmax.numel() + 4
    }

    /// Expands the weight into a contiguous buffer of `rows * columns` elements, f32 or bf16.
    ///
    /// # Errors
    /// [`Error::BufferSize`] or [`Error::OutputType`].
    pub fn dequantize_into(&self, out: &mut Tensor) -> Result<()> {
        let expected = (self.shape[0] * self.shape[1]) as usize;
        if out.numel() != expected {
            return Err(Error::BufferSize { found: out.numel(), expected });
        }
        let source = cpu::Source {
            packed: as_slice(&self.packed)?,
            absmax_codes: as_slice(&self.absmax.codes)?,
            nested_absmax: as_slice(&self.absmax.nested_absmax)?,
            offset: self.absmax.offset,
        };
        match out.f_kind().map_err(crate::tensor::Error::from)? {
            Kind::Float => cpu::dequantize(&source, as_slice_mut::<f32>(out)?, |value| value),
            Kind::BFloat16 => cpu::dequantize(&source, as_slice_mut(out)?, half::bf16::from_f32),
            other => return Err(Error::OutputType(other)),
        }
        Ok(())
    }

    /// Expands the weight into a new tensor, `[rows, columns]`.
    ///
    /// # Errors
    /// [`Error::OutputType`], or when memory is short.
    pub fn dequantize(&self, kind: Kind) -> Result<Tensor> {
        let mut out = Tensor::f_empty(self.shape, (kind, Device::Cpu))?;
        self.dequantize_into(&mut out)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    #[test]
    fn every_value_comes_back_as_a_near_code_of_its_block() {
        // 7 x 33 values: the last block has 39.
        let weight = Rng::named(11, "nf4").normal(&[7, 33], 0.05).unwrap();
        let back = Nf4::quantize(&weight).unwrap().dequantize(Kind::Float).unwrap();
        let (weight, back) = (as_slice::<f32>(&weight).unwrap(), as_slice::<f32>(&back).unwrap());
        for (block, back) in weight.chunks(BLOCK).zip(back.chunks(BLOCK)) {
            let absmax = block.iter().fold(0f32, |max, v| max.max(v.abs()));
            for (was, back) in block.iter().zip(back) {
                // The widest gap between NF4 codes is 0.304; double quantization adds under 2 % of the scale.
                assert!((was - back).abs() <= absmax * (0.152 + 0.02), "{back} for {was}, absmax {absmax}");
            }
        }
    }

    #[test]
    fn weights_that_cannot_be_quantized_are_refused() {
        assert!(matches!(Nf4::quantize(&Tensor::from_slice(&[1f32])), Err(Error::NotAMatrix(_))));
        let bad = Tensor::from_slice(&[1f32, f32::NAN]).view([1, 2]);
        assert!(matches!(Nf4::quantize(&bad), Err(Error::NotFinite)));
    }
}
