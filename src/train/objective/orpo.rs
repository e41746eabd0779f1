//! ORPO (2403.07691, equations 6 to 9), with the definitions of TRL's trainer.

use tch::{Device, Kind, Tensor};

use crate::config::NllOn;
use crate::tensor::{as_slice, upload};
use crate::train::Result;
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

/// The weights that [`loss`] gives, from log-probabilities `[targets]` f32 on any device, and there. They are computed by
/// [`loss`] itself on the CPU; elsewhere nothing is read from the device for them.
///
/// # Errors
/// When a tensor operation fails.
pub fn weigh(logps: &Tensor, spans: &[PreferenceSpans], beta: f64, nll_on: NllOn) -> Result<Tensor> {
    match logps.device() {
        Device::Cpu => {
            let (_, weights) = loss(as_slice(&logps.f_contiguous()?)?, spans, beta, nll_on);
            Ok(Tensor::f_from_slice(&weights)?)
        }
        _ => weigh_by_tensors(logps, spans, beta, nll_on),
    }
}

/// The same by tensor operations in f64, in the notation of [`loss`]; its sums are in another order.
fn weigh_by_tensors(logps: &Tensor, spans: &[PreferenceSpans], beta: f64, nll_on: NllOn) -> Result<Tensor> {
    let (device, n_targets, n_pairs) = (logps.device(), logps.numel(), spans.len());
    // The chosen answers, then the rejected ones.
    let answers = || spans.iter().map(|span| &span.chosen).chain(spans.iter().map(|span| &span.rejected));
    // Prompts belong to an answer of their own, which weighs nothing.
    let mut answer_of = vec![2 * n_pairs as i64; n_targets];
    let mut is_nll = vec![false; n_targets];
    for (range, idx) in answers().zip(0i64..) {
        answer_of[range.clone()].fill(idx);
    }
    for span in spans {
        is_nll[span.chosen.clone()].fill(true);
        is_nll[span.prompt.clone()].fill(nll_on == NllOn::All);
    }
    let per_nll = 1.0 / is_nll.iter().filter(|&&is_nll| is_nll).count().max(1) as f64;
    let nll: Vec<f64> = is_nll.into_iter().map(|is_nll| if is_nll { per_nll } else { 0.0 }).collect();
    let nll = upload(&nll, device)?;
    if n_pairs == 0 {
        return Ok(nll.f_to_kind(Kind::Float)?);
    }
    let lengths: Vec<f64> = answers().map(|range| range.len().max(1) as f64).collect();
    let lengths = upload(&lengths, device)?.f_view([2, n_pairs as i64])?;

    // One sum for each answer: added by index, the order of a sum, and so its last digit, would be the GPU's choice.
    let logps = logps.f_to_kind(Kind::Double)?;
    let sum = |range: &std::ops::Range<usize>| -> Result<Tensor> {
        Ok(logps.f_narrow(0, range.start as i64, range.len() as i64)?.f_sum(Kind::Double)?)
    };
    let sums = Tensor::f_stack(&answers().map(sum).collect::<Result<Vec<_>>>()?, 0)?;
    let means = sums.f_view([2, n_pairs as i64])?.f_div(&lengths)?;
    let clamped = means.f_clamp_max(-MIN_NEG_LOGP)?;
    let near = clamped.f_expm1()?.f_neg()?.f_log()?;
    let log1m = near.f_where_self(&clamped.f_gt(-std::f64::consts::LN_2)?, &clamped.f_exp()?.f_neg()?.f_log1p()?)?;
    let slopes = clamped.f_neg()?.f_exp()?.f_neg()?.f_add_scalar(1.0)?.f_reciprocal()?;
    let slopes = slopes.f_where_self(&means.f_gt(-MIN_NEG_LOGP)?.f_logical_not()?, &slopes.f_zeros_like()?)?;
    let difference = |rows: &Tensor| -> Result<Tensor> { Ok(rows.f_select(0, 0)?.f_sub(&rows.f_select(0, 1)?)?) };
    let log_odds = difference(&means)?.f_sub(&difference(&log1m)?)?;
    let pull = log_odds.f_exp()?.f_add_scalar(1.0)?.f_reciprocal()?.f_mul_scalar(beta / n_pairs as f64)?;
    let pulls = Tensor::f_stack(&[pull.f_neg()?, pull], 0)?;
    let weights = slopes.f_sub_scalar(1.0)?.f_mul(&pulls)?.f_div(&lengths)?.f_flatten(0, -1)?;
    let weights = Tensor::f_cat(&[weights, Tensor::f_zeros([1], (Kind::Double, device))?], 0)?;
    Ok(weights.f_index_select(0, &upload(&answer_of, device)?)?.f_add_(&nll)?.f_to_kind(Kind::Float)?)
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
    fn weights_by_tensors_are_those_of_the_loops() {
        let mut cases = vec![vec![-1.5f32, -0.2, -0.7, -0.1, -2.0, -0.4, -3.0, -0.05, -0.6, -0.3, -1.1]];
        for logp in [0.0f32, -1e-30, -1e-9, -1e-7, -1e-6, -1e-3, -40.0] {
            let answers =
                |range: std::ops::Range<usize>| (0..11).map(move |idx| if range.contains(&idx) { logp } else { -2.0 });
            cases.extend([answers(2..8).collect(), answers(5..6).collect(), answers(0..11).collect::<Vec<_>>()]);
        }
        for (logps, nll_on) in cases.iter().flat_map(|case| [(case, NllOn::All), (case, NllOn::Completion)]) {
            let (_, expected) = loss(logps, &spans(), 0.3, nll_on);
            let tensor = Tensor::from_slice(logps);
            let found = weigh_by_tensors(&tensor, &spans(), 0.3, nll_on).unwrap();
            for (found, expected) in as_slice::<f32>(&found).unwrap().iter().zip(&expected) {
                // Sums in f64 in another order, then one rounding to f32: two neighbours at most.
                assert!((found - expected).abs() <= 1.3e-7 * expected.abs(), "{found}, {expected} for {logps:?}");
            }
            assert_eq!(as_slice::<f32>(&weigh(&tensor, &spans(), 0.3, nll_on).unwrap()).unwrap(), expected);
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
