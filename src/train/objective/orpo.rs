//! ORPO (2403.07691, equations 6 to 9), with the definitions of TRL's trainer.

use crate::config::NllOn;
use crate::train::batch::PreferenceSpans;

/// Below this distance from probability 1 the odds are taken as those at it: `1 - exp(logp)` keeps its digits and
/// `log(1 - p)` stays finite. One f32 step below 1 is 6e-8.
const MIN_NEG_LOGP: f64 = 1e-7;

/// The figures of one micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    pub loss: f64,
    pub nll_loss: f64,
    pub log_odds_ratio: f64,
    pub log_odds_chosen: f64,
    pub rewards_chosen: f64,
    pub rewards_rejected: f64,
    pub rewards_accuracies: f64,
    pub rewards_margins: f64,
    pub logps_chosen: f64,
    pub logps_rejected: f64,
}

impl Figures {
    /// Everything but the loss, under the names that TRL logs.
    pub fn named(&self) -> [(&'static str, f64); 9] {
        [
            ("nll_loss", self.nll_loss),
            ("log_odds_ratio", self.log_odds_ratio),
            ("log_odds_chosen", self.log_odds_chosen),
            ("rewards/chosen", self.rewards_chosen),
            ("rewards/rejected", self.rewards_rejected),
            ("rewards/accuracies", self.rewards_accuracies),
            ("rewards/margins", self.rewards_margins),
            ("logps/chosen", self.logps_chosen),
            ("logps/rejected", self.logps_rejected),
        ]
    }
}

/// `log(1 - exp(logp))` for `logp <= 0`, and its derivative (Maechler, "Accurately computing log(1 - exp(-|a|))").
fn log1mexp(logp: f64) -> (f64, f64) {
    let clamped = logp.min(-MIN_NEG_LOGP);
    let value = if clamped > -std::f64::consts::LN_2 { (-clamped.exp_m1()).ln() } else { (-clamped.exp()).ln_1p() };
    let slope = if logp > -MIN_NEG_LOGP { 0.0 } else { 1.0 / (1.0 - (-clamped).exp()) };
    (value, slope)
}

/// `log(sigmoid(x))` and its derivative.
fn log_sigmoid(x: f64) -> (f64, f64) {
    let value = x.min(0.0) - (-x.abs()).exp().ln_1p();
    (value, 1.0 / (1.0 + x.exp()))
}

/// The loss of a micro-batch and its derivative, from the targets' log-probabilities.
///
/// `loss = nll - mean(beta * log sigmoid(log_odds))`, with `log_odds = (lc - lr) - (log1mexp(lc) - log1mexp(lr))` and
/// `lc`, `lr` the mean log-probabilities of the answers. The second result is `-dloss/dlogp` for every target, the
/// weight that the backward pass wants.
pub fn loss(logps: &[f32], spans: &[PreferenceSpans], beta: f64, nll_on: NllOn) -> (Figures, Vec<f32>) {
    let mut weights = vec![0f64; logps.len()];
    let sum = |range: &std::ops::Range<usize>| logps[range.clone()].iter().map(|&logp| f64::from(logp)).sum::<f64>();
    let n_pairs = spans.len().max(1) as f64;

    let n_nll: usize =
        spans.iter().map(|span| span.chosen.len() + if nll_on == NllOn::All { span.prompt.len() } else { 0 }).sum();
    let per_nll = 1.0 / n_nll.max(1) as f64;
    let mut figures = Figures::default();
    for span in spans {
        let with_prompt = if nll_on == NllOn::All { Some(&span.prompt) } else { None };
        for range in with_prompt.into_iter().chain([&span.chosen]) {
            figures.nll_loss -= sum(range) * per_nll;
            weights[range.clone()].iter_mut().for_each(|weight| *weight += per_nll);
        }
        let (n_chosen, n_rejected) = (span.chosen.len().max(1) as f64, span.rejected.len().max(1) as f64);
        let (chosen, rejected) = (sum(&span.chosen) / n_chosen, sum(&span.rejected) / n_rejected);
        let (log1m_chosen, slope_chosen) = log1mexp(chosen);
        let (log1m_rejected, slope_rejected) = log1mexp(rejected);
        let log_odds = (chosen - rejected) - (log1m_chosen - log1m_rejected);
        let (ratio, ratio_slope) = log_sigmoid(log_odds);

        // -d(loss)/d(log_odds) = beta / n_pairs * dlogsigmoid
        let pull = beta * ratio_slope / n_pairs;
        let weigh_chosen = pull * (1.0 - slope_chosen) / n_chosen;
        let weigh_rejected = -pull * (1.0 - slope_rejected) / n_rejected;
        weights[span.chosen.clone()].iter_mut().for_each(|weight| *weight += weigh_chosen);
        weights[span.rejected.clone()].iter_mut().for_each(|weight| *weight += weigh_rejected);

        figures.log_odds_ratio += ratio / n_pairs;
        figures.log_odds_chosen += log_odds / n_pairs;
        figures.rewards_chosen += beta * chosen / n_pairs;
        figures.rewards_rejected += beta * rejected / n_pairs;
        figures.rewards_accuracies += f64::from(u8::from(chosen > rejected)) / n_pairs;
        figures.logps_chosen += chosen / n_pairs;
        figures.logps_rejected += rejected / n_pairs;
    }
    figures.rewards_margins = figures.rewards_chosen - figures.rewards_rejected;
    figures.loss = figures.nll_loss - beta * figures.log_odds_ratio;
    (figures, weights.into_iter().map(|weight| weight as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans() -> Vec<PreferenceSpans> {
        vec![
            PreferenceSpans { prompt: 0..2, chosen: 2..5, rejected: 5..6 },
            PreferenceSpans { prompt: 6..7, chosen: 7..8, rejected: 8..11 },
        ]
    }

    #[test]
    fn weights_are_the_derivative_of_the_loss() {
        let logps: Vec<f32> = vec![-1.5, -0.2, -0.7, -0.1, -2.0, -0.4, -3.0, -0.05, -0.6, -0.3, -1.1];
        for nll_on in [NllOn::All, NllOn::Completion] {
            let (_, weights) = loss(&logps, &spans(), 0.3, nll_on);
            for idx in 0..logps.len() {
                let shifted = |by: f32| {
                    let mut logps = logps.clone();
                    logps[idx] += by;
                    loss(&logps, &spans(), 0.3, nll_on).0.loss
                };
                let slope = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
                assert!((slope + f64::from(weights[idx])).abs() < 2e-4, "{idx}: {slope} against {}", weights[idx]);
            }
        }
    }

    #[test]
    fn certain_answers_give_finite_losses_and_weights() {
        for logp in [0.0, -1e-30, -1e-9, -1e-7, -1e-6, -1e-3] {
            for (chosen, rejected) in [(logp, -2.0), (-2.0, logp), (logp, logp)] {
                let mut logps = vec![chosen as f32; 11];
                logps[5] = rejected as f32;
                logps[8..].fill(rejected as f32);
                let (figures, weights) = loss(&logps, &spans(), 0.1, NllOn::All);
                assert!(figures.loss.is_finite() && weights.iter().all(|w| w.is_finite()), "{chosen} {rejected}");
            }
        }
    }

    #[test]
    fn equal_answers_have_even_odds() {
        let logps = [-0.5f32; 11];
        let (figures, _) = loss(&logps, &spans(), 0.1, NllOn::Completion);
        assert!((figures.log_odds_ratio + std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!((figures.log_odds_chosen, figures.rewards_accuracies, figures.nll_loss), (0.0, 0.0, 0.5));
    }
}
