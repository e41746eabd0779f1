//! Random draws from named, seeded generators: the same seed and name give the same bytes on every machine.

use rand::SeedableRng;
use rand::rand_core::Rng as _;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Result, as_slice_mut};

/// What decides a dropout mask's elements.
#[derive(Clone, Copy, Debug)]
pub struct DropoutDraws {
    /// Of the stream of random bits.
    pub seed: u64,
    /// An element is 0 when its 16 bits are below.
    pub dropped_below: u32,
    /// What another element is.
    pub kept: f32,
}

impl DropoutDraws {
    /// 16 random bits for each of four elements, those of number `4 word` and after, the first ones lowest. They come from
    /// SplitMix64 (Steele, Lea and Flood, 2014) at a place that follows from the elements', so that the work can be shared out.
    #[inline(always)]
    pub fn bits(&self, word: u64) -> u64 {
        let state = self.seed.wrapping_add(word.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let bits = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }
}

/// A ChaCha8 generator seeded by a run's seed and the name of what is drawn.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The generator of `name` in a run with `seed`. Different names give independent streams.
    pub fn named(seed: u64, name: &str) -> Self {
        Self(ChaCha8Rng::seed_from_u64(xxh3_64_with_seed(name.as_bytes(), seed)))
    }

    /// A draw from all 64-bit integers.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A draw from [0, 1) with 24 bits.
    pub fn next_f32(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// A draw from 0..n, for n > 0, without bias (Lemire's multiplication with rejection).
    pub fn below(&mut self, n: u64) -> u64 {
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(n);
            if (product as u64) >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for idx in (1..items.len()).rev() {
            items.swap(idx, self.below(idx as u64 + 1) as usize);
        }
    }

    /// An f32 CPU tensor drawn from [-bound, bound).
    ///
    /// # Errors
    /// When the tensor cannot be allocated.
    pub fn uniform(&mut self, shape: &[i64], bound: f32) -> Result<Tensor> {
        let draws: Vec<f32> = (0..numel(shape)).map(|_| (2.0 * self.next_f32() - 1.0) * bound).collect();
        Ok(Tensor::f_from_slice(&draws)?.f_reshape(shape)?)
    }

    /// The draws of the next [`Rng::dropout_mask`], for kernels that make the mask elsewhere.
    pub fn dropout_draws(&mut self, p: f64) -> DropoutDraws {
        DropoutDraws {
            seed: self.next_u64(),
            dropped_below: (p * f64::from(1u32 << 16)).round() as u32,
            kept: (1.0 / (1.0 - p)) as f32,
        }
    }

    /// A dropout mask: a CPU tensor of type `kind` whose elements are 0 with probability `p`, to 1/65536, else
    /// `1 / (1 - p)`.
    ///
    /// # Errors
    /// When the tensor cannot be allocated.
    pub fn dropout_mask(&mut self, shape: &[i64], p: f64, kind: Kind) -> Result<Tensor> {
        const TASK_WORDS: usize = 1 << 12;
        let draws = self.dropout_draws(p);
        let mut mask = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
        as_slice_mut::<f32>(&mut mask)?.par_chunks_mut(4 * TASK_WORDS).enumerate().for_each(|(task, mask)| {
            for (word, four) in mask.chunks_mut(4).enumerate() {
                let bits = draws.bits((task * TASK_WORDS + word) as u64);
                for (place, out) in four.iter_mut().enumerate() {
                    let is_kept = (bits >> (16 * place)) & 0xFFFF >= u64::from(draws.dropped_below);
                    *out = if is_kept { draws.kept } else { 0.0 };
                }
            }
        });
        Ok(mask.f_to_kind(kind)?)
    }

    /// An f32 CPU tensor drawn from a normal distribution with mean 0 (Box-Muller).
    ///
    /// # Errors
    /// When the tensor cannot be allocated.
    pub fn normal(&mut self, shape: &[i64], std: f32) -> Result<Tensor> {
        let mut tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
        for pair in as_slice_mut::<f32>(&mut tensor)?.chunks_mut(2) {
            let radius = (-2.0 * (1.0 - self.next_f32()).ln()).sqrt();
            let (sin, cos) = (std::f32::consts::TAU * self.next_f32()).sin_cos();
            pair[0] = radius * cos * std;
            if let Some(second) = pair.get_mut(1) {
                *second = radius * sin * std;
            }
        }
        Ok(tensor)
    }
}

fn numel(shape: &[i64]) -> usize {
    shape.iter().product::<i64>().max(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_seeds_give_their_own_streams() {
        let draw = |seed, name: &str| Rng::named(seed, name).next_u64();
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }

    #[test]
    fn normal_draws_have_the_asked_spread() {
        let t = Rng::named(7, "spread").normal(&[101, 99], 0.5).unwrap();
        assert_eq!(t.size(), [101, 99]);
        let (mean, std) = (t.mean(tch::Kind::Float).double_value(&[]), t.std(true).double_value(&[]));
        assert!(mean.abs() < 0.02 && (std - 0.5).abs() < 0.02, "mean {mean}, std {std}");
    }

    #[test]
    fn a_dropout_mask_drops_its_share_and_keeps_the_mean() {
        let mask = Rng::named(8, "mask").dropout_mask(&[200, 301], 0.1, Kind::Float).unwrap();
        let share = 1.0 - mask.count_nonzero(None).double_value(&[]) / 60_200.0;
        let mean = mask.mean(tch::Kind::Float).double_value(&[]);
        // Five standard deviations of a share of 60,000 draws.
        assert!((share - 0.1).abs() < 0.0062 && (mean - 1.0).abs() < 0.007, "share {share}, mean {mean}");
        assert_eq!(mask.max().double_value(&[]), f64::from((1.0 / 0.9) as f32));
        let narrow = Rng::named(8, "mask").dropout_mask(&[200, 301], 0.1, Kind::BFloat16).unwrap();
        assert_eq!(narrow, mask.to_kind(Kind::BFloat16));
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Rng::named(3, "shuffle").shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
