//! ORPO against TRL's trainer: logged figures, gradients of every adapter tensor, the odds ratio near its edges.

use std::collections::BTreeMap;

use axismapper::adapter;
use axismapper::config::NllOn;
use axismapper::train::objective::orpo;
use axismapper::train::{Gradients, PreferenceTokens, Sharing, Weigh, backward, pack_preferences};
use serde::Deserialize;
use tch::Tensor;

use super::golden::{self, assert_gradients, assert_near, tensors};

/// Log-probabilities of about -8 and their means in f32 in the reference; 4e-7 was seen.
const FIGURE_TOLERANCE: f64 = 2e-6;
/// f32 sums in another order, back through three blocks; 2.6e-6 was seen.
const GRADIENT_TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Expected {
    beta: f64,
    batches: Vec<MicroBatch>,
}

#[derive(Deserialize)]
struct MicroBatch {
    triples: Vec<Triple>,
    all: BTreeMap<String, f64>,
    completion: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Triple {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

/// Every figure of both micro-batches, and the gradient of the mean loss of the first `n_batches`.
fn check(nll_on: NllOn, name: &str, n_batches: usize) {
    let mut model = golden::adapted("adapters/dora");
    let expected: Expected = golden::figures("orpo/expected.json");
    let parameters = model.parameters();
    let mut gradients = Gradients::new(&parameters).unwrap();
    for (idx, micro_batch) in expected.batches.iter().enumerate() {
        let records: Vec<PreferenceTokens> = micro_batch
            .triples
            .iter()
            .map(|Triple { prompt, chosen, rejected }| PreferenceTokens {
                prompt: prompt.clone(),
                chosen: chosen.clone(),
                rejected: rejected.clone(),
            })
            .collect();
        let (batch, spans) = pack_preferences(&records, nll_on, Sharing::All);
        let weigh = |logps: &Tensor| {
            let share = if idx < n_batches { 1.0 / n_batches as f64 } else { 0.0 };
            Ok(orpo::weigh(logps, &spans, expected.beta, nll_on)? * share)
        };
        let logps = backward(&mut model, &parameters, &mut gradients, &batch, &Weigh::ByLogps(&weigh), 0).unwrap();
        let (figures, _) = orpo::loss(&logps, &spans, expected.beta, nll_on);
        let mut found = BTreeMap::from(figures.named());
        found.insert("loss", figures.loss);
        let wanted = if nll_on == NllOn::All { &micro_batch.all } else { &micro_batch.completion };
        for (figure, &value) in wanted {
            assert_near(&format!("{name} {idx}: {figure}"), found[figure.as_str()], value, FIGURE_TOLERANCE);
        }
    }
    let key = |parameter: &str| match parameter {
        "" => format!("{name}."),
        _ => format!("{name}.{}{parameter}", adapter::PREFIX),
    };
    assert_gradients(name, &parameters, &gradients, key, &tensors("orpo/gradients.safetensors"), GRADIENT_TOLERANCE);
}

#[test]
fn figures_and_gradients_are_those_of_trl() {
    check(NllOn::All, "all", 2);
}

#[test]
fn the_likelihood_of_the_completion_alone_is_a_choice() {
    check(NllOn::Completion, "completion", 1);
}

#[test]
fn the_odds_ratio_keeps_its_digits_near_certainty() {
    #[derive(Deserialize)]
    struct Columns {
        chosen: Vec<f32>,
        rejected: Vec<f32>,
        log_odds: Vec<f64>,
        ratio: Vec<f64>,
        d_chosen: Vec<f64>,
        d_rejected: Vec<f64>,
    }
    let table: Columns = golden::figures("orpo/odds_ratio.json");
    let record = PreferenceTokens { prompt: vec![0], chosen: vec![0], rejected: vec![0] };
    let (_, spans) = pack_preferences([&record], NllOn::Completion, Sharing::All);
    for (row, &log_odds) in table.log_odds.iter().enumerate() {
        let (chosen, rejected) = (table.chosen[row], table.rejected[row]);
        let name = format!("log-probabilities {chosen:e} and {rejected:e}");
        let (figures, weights) = orpo::loss(&[chosen, rejected], &spans, 1.0, NllOn::Completion);
        // f64 throughout; where the odds cancel, their error is that of values of the same size as log(1 - exp).
        assert_near(&name, figures.log_odds_chosen, log_odds, 1e-12);
        assert_near(&name, figures.log_odds_ratio, table.ratio[row], 1e-12);
        // The weight is -dloss/dlogp, in f32; the likelihood adds 1 to the chosen one.
        assert_near(&name, f64::from(weights[0]), 1.0 + table.d_chosen[row], 1e-6);
        assert_near(&name, f64::from(weights[1]), table.d_rejected[row], 1e-6);
    }
    assert_eq!(table.log_odds.len(), 49);
}
