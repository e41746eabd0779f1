//! 8-bit block-wise quantization with a dynamic code (2110.02861), byte for byte as bitsandbytes does on the CPU: a
//! block is divided by its largest magnitude, and each quotient takes the index of a near code value.

use super::codebook::{dynamic_code, unsigned_dynamic_code};

/// Steps from -1 to 1 at which a normalised value is looked up.
const N_STEPS: usize = 65_535;

/// A dynamic code with the table by which values find their index.
#[derive(Clone, Debug)]
pub struct DynamicCode {
    values: [f32; 256],
    /// The index of the code value nearest to each step. bitsandbytes on the CPU looks codes up in this way; on CUDA it
    /// compares with the midpoints, which gives the neighbouring code where a value is within a step of a midpoint.
    nearest: Vec<u8>,
}

impl DynamicCode {
    /// The code of values from -1 to 1.
    pub fn signed() -> Self {
        Self::new(dynamic_code())
    }

    /// The code of values from 0 to 1, with a bit more for each.
    pub fn unsigned() -> Self {
        Self::new(unsigned_dynamic_code())
    }

    fn new(values: [f32; 256]) -> Self {
        // In f32, as in the reference: a step may lie on a midpoint but for rounding.
        let nearest = |value: f32| {
            let upper = values.partition_point(|&c| c < value).clamp(1, 255);
            let (below, above) = (value - values[upper - 1], values[upper] - value);
            if below <= above { (upper - 1) as u8 } else { upper as u8 }
        };
        let nearest = (0..=N_STEPS).map(|step| nearest(step as f32 * 2.0 / N_STEPS as f32 - 1.0)).collect();
        Self { values, nearest }
    }

    /// All values, by index.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The index of the value nearest to each of 65,536 steps from -1 to 1.
    pub fn nearest(&self) -> &[u8] {
        &self.nearest
    }

    /// The value of an index.
    pub fn value(&self, code: u8) -> f32 {
        self.values[usize::from(code)]
    }

    /// Quantizes one block and gives its scale: `value(code) * scale` is near each value. The shorter of the two slices
    /// decides the length.
    pub fn quantize_block(&self, block: &[f32], codes: &mut [u8]) -> f32 {
        let scale = block.iter().fold(0f32, |max, value| max.max(value.abs()));
        // In a block of zeros this is infinite, its products are NaN, and their step is 0: any code times 0 is 0.
        let reciprocal = 1.0 / scale;
        for (value, code) in block.iter().zip(codes) {
            *code = self.nearest[step_of(value * reciprocal)];
        }
        scale
    }
}

/// The step of a value in [-1, 1], NaN's is 0.
fn step_of(value: f32) -> usize {
    ((value.clamp(-1.0, 1.0) + 1.0) * 0.5 * N_STEPS as f32 + 0.5) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    #[test]
    fn nearest_is_nearest_within_a_step() {
        let mut rng = Rng::named(6, "nearest");
        for (dynamic, least) in [(DynamicCode::signed(), -1.0), (DynamicCode::unsigned(), 0.0)] {
            for _ in 0..2000 {
                let value = rng.next_f32() * (1.0 - least) + least;
                let best = dynamic.values.iter().map(|c| (c - value).abs()).fold(f32::MAX, f32::min);
                let found = (dynamic.value(dynamic.nearest[step_of(value)]) - value).abs();
                assert!(found <= best + 2.1 / N_STEPS as f32, "{value}: {found}, {best} is possible");
            }
        }
        // No step is at 0: its value falls on one 1.5e-5 above, as in bitsandbytes 0.50.2 on the CPU.
        let signed = DynamicCode::signed();
        assert_eq!([-1.0, 0.0, 1.0, 7.0, f32::NAN].map(|value| signed.nearest[step_of(value)]), [0, 131, 255, 255, 0]);
    }

    #[test]
    fn a_block_of_zeros_comes_back_as_zeros() {
        let mut codes = [9u8; 5];
        for dynamic in [DynamicCode::signed(), DynamicCode::unsigned()] {
            let scale = dynamic.quantize_block(&[0.0; 5], &mut codes);
            assert!(codes.iter().all(|&code| dynamic.value(code) * scale == 0.0));
        }
    }
}
