//! Double quantization: the f32 scale of each 64-value block, stored in 8 bits (2305.14314, section 3).

use tch::{Kind, Tensor};

use super::codebook::dynamic_code;
use super::{Error, Result};
use crate::tensor::{as_slice, as_slice_mut};

/// Scales that share one second-level scale.
pub(super) const NESTED_BLOCK: usize = 256;

/// Steps from -1 to 1 at which a normalised scale is looked up.
const N_STEPS: usize = 65_535;

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
                for (idx, (out, &c)) in out.iter_mut().zip(&codes[first..]).enumerate() {
                    *out = code[c as usize] * nested_absmax[(first + idx) / NESTED_BLOCK] + offset;
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
        let nearest = nearest_codes();
        let mut codes = Tensor::f_zeros([values.len() as i64], (Kind::Uint8, absmax.device()))?;
        let mut nested = Vec::with_capacity(values.len().div_ceil(NESTED_BLOCK));
        let out = as_slice_mut::<u8>(&mut codes)?;
        for (block, out) in values.chunks(NESTED_BLOCK).zip(out.chunks_mut(NESTED_BLOCK)) {
            let scale = block.iter().fold(0f32, |max, value| max.max(value.abs()));
            // In a block of zeros this is infinite, its products are NaN, and their step is 0: any code times 0 is 0.
            let reciprocal = 1.0 / scale;
            for (value, out) in block.iter().zip(out) {
                *out = nearest[step_of(value * reciprocal)];
            }
            nested.push(scale);
        }
        Ok(Self {
            codes,
            nested_absmax: Tensor::f_from_slice(&nested)?,
            offset: mean.f_double_value(&[])? as f32,
            code: Box::new(dynamic_code()),
        })
    }
}

/// The step of a value in [-1, 1], NaN's is 0.
fn step_of(value: f32) -> usize {
    ((value.clamp(-1.0, 1.0) + 1.0) * 0.5 * N_STEPS as f32 + 0.5) as usize
}

/// The index of the code value nearest to each step. bitsandbytes on the CPU looks codes up in this way; on CUDA it compares
/// with the midpoints, which gives the neighbouring code where a scale is within a step of a midpoint, once in 500 scales.
fn nearest_codes() -> Vec<u8> {
    let code = dynamic_code();
    let nearest = |value: f64| {
        let upper = code.partition_point(|&c| f64::from(c) < value).clamp(1, 255);
        let (below, above) = (value - f64::from(code[upper - 1]), f64::from(code[upper]) - value);
        if below <= above { (upper - 1) as u8 } else { upper as u8 }
    };
    (0..=N_STEPS).map(|step| nearest(step as f64 * 2.0 / N_STEPS as f64 - 1.0)).collect()
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

    #[test]
    fn nearest_is_nearest_within_a_step() {
        let (code, nearest) = (dynamic_code(), nearest_codes());
        let mut rng = Rng::named(6, "nearest");
        for _ in 0..2000 {
            let value = rng.next_f32() * 2.0 - 1.0;
            let best = code.iter().map(|c| (c - value).abs()).fold(f32::MAX, f32::min);
            let found = (code[nearest[step_of(value)] as usize] - value).abs();
            assert!(found <= best + 2.1 / N_STEPS as f32, "{value}: {found}, {best} is possible");
        }
        // No step is at 0: its value falls on one 1.5e-5 above, as in bitsandbytes 0.50.2 on the CPU.
        assert_eq!([-1.0, 0.0, 1.0, 7.0, f32::NAN].map(|value| nearest[step_of(value)]), [0, 131, 255, 255, 0]);
    }
}
