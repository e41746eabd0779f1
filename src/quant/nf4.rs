//! A weight matrix in NF4: quantize once, expand into a reused buffer when needed, or multiply as it is.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::absmax::{Absmax, DoubleQuantized};
use super::kernels::cuda::{self, Kernels, Nf4Parts};
use super::kernels::{self, Isa, Rounding, Source};
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
    pub absmax: Absmax,
    shape: [i64; 2],
    dtype: Kind,
    pub(super) isa: Isa,
    /// Kernels that work on the weight instead of the CPU's loops.
    pub(super) gpu: Option<OnGpu>,
}

/// What a weight on a GPU has besides.
#[derive(Debug)]
pub(super) struct OnGpu {
    pub(super) kernels: Arc<Kernels>,
    /// The dynamic code of double-quantized scales.
    code: Option<Tensor>,
}

impl Nf4 {
    /// Quantizes a weight of any float type and any device; the result is on the CPU and expands without rounding.
    ///
    /// # Errors
    /// [`Error::NotAMatrix`] or [`Error::NotFinite`].
    pub fn quantize(weight: &Tensor) -> Result<Self> {
        Self::quantize_with(Isa::best(), weight)
    }

    fn quantize_with(isa: Isa, weight: &Tensor) -> Result<Self> {
        let shape: [i64; 2] = weight.size().try_into().map_err(|shape: Vec<i64>| Error::NotAMatrix(shape))?;
        let weight = weight.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let n = weight.numel();
        let cpu = |n: usize, kind| Tensor::f_empty([n as i64], (kind, Device::Cpu));
        let mut packed = cpu(n.div_ceil(2), Kind::Uint8)?;
        let mut absmax = cpu(n.div_ceil(BLOCK), Kind::Float)?;
        let (out, scales) = (as_slice_mut::<u8>(&mut packed)?, as_slice_mut::<f32>(&mut absmax)?);
        // 16-bit weights are widened a few blocks at a time: there is no second copy of the weight.
        match weight.f_kind().map_err(crate::tensor::Error::from)? {
            Kind::Float => kernels::quantize(isa, as_slice::<f32>(&weight)?, out, scales),
            Kind::BFloat16 => kernels::quantize(isa, as_slice::<half::bf16>(&weight)?, out, scales),
            Kind::Half => kernels::quantize(isa, as_slice::<half::f16>(&weight)?, out, scales),
            _ => kernels::quantize(isa, as_slice::<f32>(&weight.f_to_kind(Kind::Float)?)?, out, scales),
        }
        if !scales.iter().all(|scale| scale.is_finite()) {
            return Err(Error::NotFinite);
        }
        let absmax = Absmax::Double(DoubleQuantized::quantize(&absmax)?);
        Ok(Self { packed, absmax, shape, dtype: Kind::Float, isa, gpu: None })
    }

    /// A weight from its stored parts; `name` serves messages.
    ///
    /// # Errors
    /// [`Error::Stored`] when the parts do not fit together, [`Error::NotFinite`].
    pub(super) fn from_parts(name: &str, packed: Tensor, absmax: Absmax, shape: [i64; 2], dtype: Kind) -> Result<Self> {
        let n = shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).product::<usize>();
        if packed.numel() != n.div_ceil(2) {
            let message = format!("{} bytes, expected {}", packed.numel(), n.div_ceil(2));
            return Err(Error::Stored { name: name.to_owned(), message });
        }
        absmax.check(name, n.div_ceil(BLOCK))?;
        Ok(Self { packed, absmax, shape, dtype, isa: Isa::best(), gpu: None })
    }

    /// The same weight, whose values are rounded to this type when they are expanded: what bitsandbytes does with the type
    /// that a weight had before it was quantized.
    pub fn with_dtype(self, dtype: Kind) -> Self {
        Self { dtype, ..self }
    }

    /// The same weight, worked on with other instructions than the best of this processor. For tests and benches.
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// The weight on a device: there it is expanded and multiplied. It is quantized on the CPU, to the same bytes.
    ///
    /// # Errors
    /// When the GPU was not prepared ([`cuda::prepare`]) or its memory is short.
    pub fn to_device(self, device: Device) -> Result<Self> {
        match cuda::of(device)? {
            Some(kernels) => self.with_kernels(kernels),
            None => Ok(self),
        }
    }

    /// The weight where these kernels run, worked on by them.
    ///
    /// # Errors
    /// When memory is short.
    pub fn with_kernels(self, kernels: Arc<Kernels>) -> Result<Self> {
        let device = kernels.device();
        let (absmax, code) = match self.absmax {
            Absmax::Single(absmax) => (Absmax::Single(absmax.f_to_device(device)?), None),
            Absmax::Double(double) => {
                let code = Tensor::f_from_slice(&double.code[..])?.f_to_device(device)?;
                let codes = double.codes.f_to_device(device)?;
                let nested_absmax = double.nested_absmax.f_to_device(device)?;
                (Absmax::Double(DoubleQuantized { codes, nested_absmax, ..double }), Some(code))
            }
        };
        let packed = self.packed.f_to_device(device)?;
        Ok(Self { packed, absmax, gpu: Some(OnGpu { kernels, code }), ..self })
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.packed.device()
    }

    pub(super) fn parts<'a>(&'a self, gpu: &'a OnGpu) -> Nf4Parts<'a> {
        Nf4Parts { packed: &self.packed, absmax: &self.absmax, code: gpu.code.as_ref(), shape: self.shape }
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> [i64; 2] {
        self.shape
    }

    /// The type to which values are rounded when they are expanded.
    pub fn dtype(&self) -> Kind {
        self.dtype
    }

    /// The memory that the weight takes.
    pub fn size_bytes(&self) -> usize {
        self.packed.numel() + self.absmax.size_bytes()
    }

    pub(super) fn source(&self) -> Result<Source<'_>> {
        Ok(Source { packed: as_slice(&self.packed)?, scales: self.absmax.view()? })
    }

    /// How the values of a weight are rounded on their way into `out`.
    pub(super) fn rounding(&self, out: Kind) -> Rounding {
        match (self.dtype, out) {
            (Kind::Half, _) => Rounding::F16,
            (Kind::BFloat16, Kind::Float) => Rounding::Bf16,
            _ => Rounding::None,
        }
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
        let kind = out.f_kind().map_err(crate::tensor::Error::from)?;
        let rounding = self.rounding(kind);
        if let Some(gpu) = &self.gpu {
            return gpu.kernels.dequantize(&self.parts(gpu), rounding, out);
        }
        let source = self.source()?;
        match kind {
            Kind::Float => kernels::dequantize_f32(self.isa, &source, rounding, as_slice_mut(out)?),
            Kind::BFloat16 => kernels::dequantize_bf16(self.isa, &source, rounding, as_slice_mut(out)?),
            other => return Err(Error::OutputType(other)),
        }
        Ok(())
    }

    /// Expands the weight into a new tensor, `[rows, columns]`.
    ///
    /// # Errors
    /// [`Error::OutputType`], or when memory is short.
    pub fn dequantize(&self, kind: Kind) -> Result<Tensor> {
        let mut out = Tensor::f_empty(self.shape, (kind, self.device()))?;
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

    /// Instruction sets that this processor has.
    fn isas() -> Vec<Isa> {
        Isa::available().collect()
    }

    #[test]
    fn every_instruction_set_gives_the_bytes_of_the_portable_loops() {
        let mut rng = Rng::named(13, "isa");
        // Whole and short last blocks, odd counts, more than one task of 16,384 values.
        for shape in [[1, 1], [7, 33], [3, 64], [5, 130], [130, 257], [64, 896]] {
            for source in [Kind::Float, Kind::BFloat16, Kind::Half] {
                let weight = rng.normal(&shape, 0.05).unwrap().to_kind(source);
                let base = Nf4::quantize(&weight).unwrap();
                for dtype in [Kind::Float, Kind::BFloat16, Kind::Half] {
                    let base = Nf4::quantize(&weight).unwrap().with_dtype(dtype).with_isa(Isa::Portable);
                    let expected = [Kind::Float, Kind::BFloat16].map(|kind| base.dequantize(kind).unwrap());
                    assert_eq!(expected[0], expected[0].to_kind(dtype).to_kind(Kind::Float), "rounded to {dtype:?}");
                    for isa in isas() {
                        let weight = Nf4::quantize(&weight).unwrap().with_dtype(dtype).with_isa(isa);
                        for expected in &expected {
                            let found = weight.dequantize(expected.kind()).unwrap();
                            assert!(found == *expected, "{isa:?}, {shape:?}, {dtype:?}, {:?}", expected.kind());
                        }
                    }
                }
                for isa in isas() {
                    let again = Nf4::quantize_with(isa, &weight).unwrap();
                    assert_eq!(again.packed, base.packed, "{isa:?}, {shape:?}");
                }
            }
        }
    }
}
