//! One token out of many: greedy, or drawn by temperature and nucleus.
//!
//! In: logits. Out: an index and log-probabilities, which are always those at temperature 1 over everything that was
//! offered, so that they mean the same whatever was drawn from.

use crate::tensor::Rng;

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; below 1 likely tokens gain, above 1 they lose.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability are drawn from (2019, 1904.09751).
    pub top_p: f32,
    /// Equal seeds and logits give equal tokens, whatever else is decoded beside.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// The generator that a sequence draws from.
    pub fn rng(&self) -> Rng {
        Rng::named(self.seed, "sampling")
    }

    /// The index of the chosen token. The first of equals where the choice is greedy; 0 when there are none.
    ///
    /// Drawn by the Gumbel-max trick, one draw for each token: rounding moves a token only where two nearly tie, while
    /// on a cumulative scale it would move whatever lies near any of its marks.
    pub fn choose(&self, log_probs: &[f32], rng: &mut Rng) -> usize {
        if self.temperature <= 0.0 {
            return argmax(log_probs.iter().copied());
        }
        let mut scaled: Vec<f32> = log_probs.iter().map(|value| value / self.temperature).collect();
        log_softmax(&mut scaled);
        let least = self.least_in_nucleus(&scaled);
        argmax(scaled.iter().map(|&log_prob| {
            let gumbel = -(-rng.next_f32().ln()).ln();
            if log_prob >= least { log_prob + gumbel } else { f32::NEG_INFINITY }
        }))
    }

    /// The log-probability of the least likely token that is still drawn from.
    fn least_in_nucleus(&self, log_probs: &[f32]) -> f32 {
        if self.top_p >= 1.0 {
            return f32::NEG_INFINITY;
        }
        let mut sorted = log_probs.to_vec();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        let mut total = 0.0;
        let is_enough = |&&log_prob: &&f32| {
            total += f64::from(log_prob).exp();
            total >= f64::from(self.top_p)
        };
        sorted.iter().find(is_enough).copied().unwrap_or(f32::NEG_INFINITY)
    }
}

/// The index of the first of the largest values; 0 when there are none.
fn argmax(values: impl Iterator<Item = f32>) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (idx, value) in values.enumerate() {
        if value > best.1 {
            best = (idx, value);
        }
    }
    best.0
}

/// Turns logits into log-probabilities, in place.
pub fn log_softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let log_sum = max + sum.ln() as f32;
    logits.iter_mut().for_each(|logit| *logit -= log_sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let mut logits = [1.0f32, 3.0, 2.0, -200.0];
        log_softmax(&mut logits);
        let total: f64 = logits.iter().map(|&value| f64::from(value).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
        assert!((logits[1] - logits[0] - 2.0).abs() < 1e-6);
    }

    #[test]
    fn draws_follow_the_probabilities_inside_the_nucleus() {
        let log_probs: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let greedy = Sampling::default();
        assert_eq!(greedy.choose(&log_probs, &mut greedy.rng()), 0);
        let counts = |sampling: Sampling| {
            let mut rng = sampling.rng();
            let mut counts = [0u32; 4];
            (0..20_000).for_each(|_| counts[sampling.choose(&log_probs, &mut rng)] += 1);
            counts.map(|count| f64::from(count) / 20_000.0)
        };
        let all = counts(Sampling { temperature: 1.0, top_p: 1.0, seed: 7 });
        // Four standard deviations of a share of 20,000 draws are below 0.0142.
        for (found, expected) in all.iter().zip([0.5, 0.3, 0.15, 0.05]) {
            assert!((found - expected).abs() < 0.0142, "{all:?}");
        }
        let nucleus = counts(Sampling { temperature: 1.0, top_p: 0.75, seed: 7 });
        assert!((nucleus[0] - 0.625).abs() < 0.0142 && nucleus[2] == 0.0 && nucleus[3] == 0.0, "{nucleus:?}");
        // Probabilities to the power of 2, made to sum to one.
        let cold = counts(Sampling { temperature: 0.5, top_p: 1.0, seed: 7 });
        assert!((cold[0] - 0.25 / 0.365).abs() < 0.0142, "{cold:?}");
        let again = Sampling { temperature: 1.0, top_p: 1.0, seed: 9 };
        assert_eq!(counts(again), counts(again));
    }
}
