//! Intervals: how far a figure would move with another draw of as many records.

use rand::SeedableRng;
use rand::rand_core::Rng as _;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Resamples behind an interval.
pub const N_RESAMPLES: usize = 1000;

/// The middle 95 % of a figure over resamples; written as `[low, high]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(into = "[f64; 2]")]
pub struct Interval {
    /// The 2.5th percentile.
    pub low: f64,
    /// The 97.5th percentile.
    pub high: f64,
}

impl From<Interval> for [f64; 2] {
    fn from(interval: Interval) -> Self {
        [interval.low, interval.high]
    }
}

/// Percentile intervals of figures over `n_records` records (Efron 1979): `figures` gets the indices of a resample,
/// drawn with replacement. The same seed gives the same intervals.
pub fn bootstrap<const N: usize>(
    n_records: usize,
    seed: u64,
    mut figures: impl FnMut(&[usize]) -> [f64; N],
) -> [Interval; N] {
    if n_records == 0 {
        return [Interval::default(); N];
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut resample = vec![0; n_records];
    let mut draws: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(N_RESAMPLES));
    for _ in 0..N_RESAMPLES {
        resample.fill_with(|| below(&mut rng, n_records));
        for (values, figure) in draws.iter_mut().zip(figures(&resample)) {
            values.push(figure);
        }
    }
    draws.map(|mut values| {
        values.sort_by(f64::total_cmp);
        Interval { low: percentile(&values, 0.025), high: percentile(&values, 0.975) }
    })
}

/// The 95 % score interval of a share (Wilson 1927), which stays within 0 and 1 and is sound for few records.
pub fn wilson(n_hits: usize, n: usize) -> Interval {
    /// The 97.5th percentile of the normal distribution.
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, share) = (n as f64, n_hits as f64 / n as f64);
    let scale = 1.0 / (1.0 + Z * Z / n);
    let middle = scale * (share + Z * Z / (2.0 * n));
    let half = scale * Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    Interval { low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
}

/// A draw from 0..n by multiplication. Its bias is below n / 2^64.
fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// Linear interpolation between the sorted values, as numpy does by default.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    low + (high - low) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_numpy() {
        // numpy.percentile([1, 2, 4, 8], [2.5, 50, 97.5])
        let values = [1.0, 2.0, 4.0, 8.0];
        assert!((percentile(&values, 0.025) - 1.075).abs() < 1e-12);
        assert!((percentile(&values, 0.5) - 3.0).abs() < 1e-12);
        assert!((percentile(&values, 0.975) - 7.7).abs() < 1e-12);
        assert_eq!(percentile(&[5.0], 0.975), 5.0);
    }

    #[test]
    fn score_intervals_are_those_of_statsmodels() {
        // statsmodels.stats.proportion.proportion_confint(hits, n, method="wilson")
        let known = [
            (8, 10, 0.49016247153664183, 0.9433178485456247),
            (0, 5, 0.0, 0.43448246478317487),
            (5, 5, 0.5655175352168252, 1.0),
            (137, 1179, 0.09914142473160793, 0.1357518120151875),
        ];
        for (hits, n, low, high) in known {
            let interval = wilson(hits, n);
            assert!(
                (interval.low - low).abs() < 1e-9 && (interval.high - high).abs() < 1e-9,
                "{hits}/{n}: {interval:?}"
            );
        }
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }

    /// The share of ones among 400 records has a standard error of sqrt(p (1 - p) / n).
    #[test]
    fn the_interval_of_a_share_is_that_of_theory() {
        let n = 400;
        let share = |indices: &[usize]| [indices.iter().filter(|&&idx| idx % 4 == 0).count() as f64 / n as f64, 1.0];
        let [interval, constant] = bootstrap(n, 3, share);
        let half_width = 1.96 * (0.25 * 0.75 / n as f64).sqrt();
        assert!((interval.low - (0.25 - half_width)).abs() < 0.008, "{interval:?}");
        assert!((interval.high - (0.25 + half_width)).abs() < 0.008, "{interval:?}");
        assert_eq!(constant, Interval { low: 1.0, high: 1.0 });
        assert_eq!(bootstrap(n, 3, share)[0], interval);
        assert_ne!(bootstrap(n, 4, share)[0], interval);
        assert_eq!(bootstrap(0, 3, |_| [1.0]), [Interval::default()]);
    }
}
