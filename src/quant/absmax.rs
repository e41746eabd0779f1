//! Double quantization: the f32 scale of each 64-value block, stored in 8 bits (2305.14314, section 3).

use tch::{Kind, Tensor};

use super::blockwise::DynamicCode;
use super::codebook::dynamic_code;
use super::{Error, Result};
use crate::tensor::{as_slice, as_slice_mut};

/// Scales that share one second-level scale.
pub(super) const NESTED_BLOCK: usize = 256;

/// One scale for each 64 values of a weight.
#[derive(Debug)]
pub enum Absmax {
    /// In f32, `[n_blocks]`, as bitsandbytes stores them without double quantization.
    Single(Tensor),
    /// In 8 bits.
    Double(DoubleQuantized),
}

impl Absmax {
    /// The memory that the scales take.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Single(absmax) => 4 * absmax.numel(),
            Self::Double(double) => double.codes.numel() + 4 * (double.nested_absmax.numel() + double.code.len() + 1),
        }
    }

    /// The scales as the kernels read them.
    pub(super) fn view(&self) -> Result<Scales<'_>> {
        Ok(match self {
            Self::Single(absmax) => Scales::Single(as_slice(absmax)?),
            Self::Double(double) => Scales::Double {
                codes: as_slice(&double.codes)?,
                code: &double.code,
                nested_absmax: as_slice(&double.nested_absmax)?,
                offset: double.offset,
            },
        })
    }

    /// Fails unless there are `n_blocks` scales, all finite.
    pub(super) fn check(&self, name: &str, n_blocks: usize) -> Result<()> {
        let wrong = |part: &str, found: usize, expected: usize| {
            Err(Error::Stored {
                name: format!("{name}.{part}"),
                message: format!("{found} values, expected {expected}"),
            })
        };
        let (values, n_found) = match self.view()? {
            Scales::Single(absmax) => (absmax, absmax.len()),
            Scales::Double { codes, nested_absmax, .. } => {
                if nested_absmax.len() != n_blocks.div_ceil(NESTED_BLOCK) {
                    return wrong("nested_absmax", nested_absmax.len(), n_blocks.div_ceil(NESTED_BLOCK));
                }
                (nested_absmax, codes.len())
            }
        };
        if n_found != n_blocks {
            return wrong("absmax", n_found, n_blocks);
        }
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(()),
            false => Err(Error::NotFinite),
        }
    }
}

/// Borrowed scales.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scales<'a> {
    Single(&'a [f32]),
    Double { codes: &'a [u8], code: &'a [f32; 256], nested_absmax: &'a [f32], offset: f32 },
}

impl Scales<'_> {
    /// Writes the scales of the blocks from `first` on.
    #[inline]
    pub(super) fn fill(&self, first: usize, out: &mut [f32]) {
        match *self {
            Self::Single(absmax) => out.copy_from_slice(&absmax[first..][..out.len()]),
            Self::Double { codes, code, nested_absmax, offset } => {
                let (mut out, mut first) = (out, first);
                while !out.is_empty() {
                    // As far as one second-level scale reaches.
                    let n = out.len().min(NESTED_BLOCK - first % NESTED_BLOCK);
                    let scale = nested_absmax[first / NESTED_BLOCK];
                    let (part, rest) = out.split_at_mut(n);
                    for (out, &c) in part.iter_mut().zip(&codes[first..][..n]) {
                        *out = code[c as usize] * scale + offset;
                    }
                    (out, first) = (rest, first + n);
                }
            }
        }
    }
}

/// Block scales in 8 bits: `absmax[i] = code[codes[i]] * nested_absmax[i / 256] + offset`.
#[derive(Debug)]
pub struct DoubleQuantized {
    /// `[n_blocks]` u8, indices into the dynamic code.
    pub codes: Tensor,
    /// `[ceil(n_blocks / 256)]` f32.
    pub nested_absmax: Tensor,
    /// The mean of the scales, subtracted before quantization.
    pub offset: f32,
    /// What the indices mean. The last bits of a stored code depend on the processor that made it, so it comes along.
    pub code: Box<[f32; 256]>,
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
        let dynamic = DynamicCode::signed();
        let mut codes = Tensor::f_zeros([values.len() as i64], (Kind::Uint8, absmax.device()))?;
        let blocks = values.chunks(NESTED_BLOCK).zip(as_slice_mut::<u8>(&mut codes)?.chunks_mut(NESTED_BLOCK));
        let nested: Vec<f32> = blocks.map(|(block, out)| dynamic.quantize_block(block, out)).collect();
        Ok(Self {
            codes,
            nested_absmax: Tensor::f_from_slice(&nested)?,
            offset: mean.f_double_value(&[])? as f32,
            code: Box::new(dynamic_code()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    #[test]
    fn scales_come_back_within_the_code_spacing() {
        let absmax = Rng::named(5, "absmax").uniform(&[1000], 0.01).unwrap().abs() + 0.02;
        let double = Absmax::Double(DoubleQuantized::quantize(&absmax).unwrap());
        double.check("w", 1000).unwrap();
        assert!(double.check("w", 999).is_err());
        let mut back = [0.0; 1000];
        double.view().unwrap().fill(0, &mut back);
        // Any run of blocks, wherever it starts.
        let mut part = [0.0; 300];
        double.view().unwrap().fill(200, &mut part);
        assert_eq!(part, back[200..500]);
        for (back, was) in back.iter().zip(as_slice::<f32>(&absmax).unwrap()) {
            // The widest gap of the code is 0.9 / 64; the scales spread over 0.01.
            assert!((back - was).abs() < 0.01 * 0.9 / 64.0, "{back} for {was}");
        }
    }
}
