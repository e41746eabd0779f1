//! Metrics of answers: pure functions from texts to figures.
//!
//! A predicted code is a part of the output between commas that, trimmed, is a code in canonical form; anything else
//! in the output is no prediction. Expected and predicted codes are sets, so that duplicates count once. Precision,
//! recall and F1 are means over records; a record without predictions has precision 0, and one where nothing is
//! expected and nothing predicted is right.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::codes::Code;

/// What a record expects and what was answered: a line of a predictions file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The right codes, separated by commas.
    pub expected: String,
    /// The answer as it was given.
    pub output: String,
}

/// The score of one record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Whether both sets are equal.
    pub is_exact: bool,
    /// Right predictions of all predictions.
    pub precision: f64,
    /// Right predictions of all expected codes.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1: f64,
    /// The same on the sets of three-character categories.
    pub category_f1: f64,
    /// Whether the whole output is codes joined by a comma and a space.
    pub is_compliant: bool,
    /// Distinct expected codes.
    pub n_expected: usize,
    /// Distinct predicted codes.
    pub n_predicted: usize,
    /// Those of them that are expected.
    pub n_right: usize,
    /// Those of them that are not billable.
    pub n_not_billable: usize,
}

/// The figures of a set of records, each a share from 0 to 1. The names are those of reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Records whose set of codes is right.
    pub exact_match: f64,
    /// Mean over records.
    pub precision: f64,
    /// Mean over records.
    pub recall: f64,
    /// Mean over records.
    pub f1: f64,
    /// Over all codes of all records together.
    pub micro_f1: f64,
    /// Mean over records, on categories.
    pub category_f1: f64,
    /// Records whose output is codes and nothing else.
    pub format_compliance: f64,
    /// Predicted codes that are not billable, of all predicted codes; 0 when there are none.
    pub hallucination_rate: f64,
    /// Records with more than two codes too many.
    pub over_coding_rate: f64,
    /// Records with more than one code too few.
    pub under_coding_rate: f64,
}

impl Figures {
    /// The names, in the order of [`Figures::values`].
    pub const NAMES: [&'static str; 10] = [
        "exact_match",
        "precision",
        "recall",
        "f1",
        "micro_f1",
        "category_f1",
        "format_compliance",
        "hallucination_rate",
        "over_coding_rate",
        "under_coding_rate",
    ];

    /// The figures in the order of [`Figures::NAMES`].
    pub fn values(&self) -> [f64; 10] {
        [
            self.exact_match,
            self.precision,
            self.recall,
            self.f1,
            self.micro_f1,
            self.category_f1,
            self.format_compliance,
            self.hallucination_rate,
            self.over_coding_rate,
            self.under_coding_rate,
        ]
    }

    /// The figure of that name.
    pub fn get(&self, name: &str) -> Option<f64> {
        Self::NAMES.iter().position(|known| *known == name).map(|idx| self.values()[idx])
    }

    /// The figures of some records; all 0 when there are none.
    pub fn of<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Self {
        let mut sum = Self::default();
        let (mut n_records, mut n_expected, mut n_predicted, mut n_right, mut n_not_billable) = (0, 0, 0, 0, 0);
        for outcome in outcomes {
            n_records += 1;
            n_expected += outcome.n_expected;
            n_predicted += outcome.n_predicted;
            n_right += outcome.n_right;
            n_not_billable += outcome.n_not_billable;
            sum.exact_match += one_if(outcome.is_exact);
            sum.precision += outcome.precision;
            sum.recall += outcome.recall;
            sum.f1 += outcome.f1;
            sum.category_f1 += outcome.category_f1;
            sum.format_compliance += one_if(outcome.is_compliant);
            sum.over_coding_rate += one_if(outcome.n_predicted > outcome.n_expected + 2);
            sum.under_coding_rate += one_if(outcome.n_predicted + 1 < outcome.n_expected);
        }
        let mean = |sum: f64| if n_records == 0 { 0.0 } else { sum / f64::from(n_records) };
        Self {
            exact_match: mean(sum.exact_match),
            precision: mean(sum.precision),
            recall: mean(sum.recall),
            f1: mean(sum.f1),
            micro_f1: ratio(2 * n_right, n_expected + n_predicted),
            category_f1: mean(sum.category_f1),
            format_compliance: mean(sum.format_compliance),
            hallucination_rate: ratio(n_not_billable, n_predicted),
            over_coding_rate: mean(sum.over_coding_rate),
            under_coding_rate: mean(sum.under_coding_rate),
        }
    }
}

/// Scores one record against a release.
pub fn score(answer: &Answer, is_billable: &dyn Fn(Code) -> bool) -> Outcome {
    let (expected, predicted) = (codes_in(&answer.expected), codes_in(&answer.output));
    let [precision, recall, f1] = agreement(&expected, &predicted);
    let categories = |codes: &BTreeSet<Code>| codes.iter().map(Code::category).collect::<BTreeSet<_>>();
    let [.., category_f1] = agreement(&categories(&expected), &categories(&predicted));
    Outcome {
        is_exact: expected == predicted,
        precision,
        recall,
        f1,
        category_f1,
        is_compliant: is_compliant(&answer.output),
        n_expected: expected.len(),
        n_predicted: predicted.len(),
        n_right: expected.intersection(&predicted).count(),
        n_not_billable: predicted.iter().filter(|code| !is_billable(**code)).count(),
    }
}

/// The distinct codes in canonical form between the commas of a text.
pub fn codes_in(text: &str) -> BTreeSet<Code> {
    text.split(',').filter_map(|part| Code::parse(part.trim()).ok()).collect()
}

/// Whether a text is one or more codes in canonical form joined by `, `, and nothing else.
pub fn is_compliant(text: &str) -> bool {
    text.split(", ").all(|part| Code::parse(part).is_ok())
}

/// Precision, recall and F1 of a predicted set.
fn agreement(expected: &BTreeSet<Code>, predicted: &BTreeSet<Code>) -> [f64; 3] {
    if expected.is_empty() && predicted.is_empty() {
        return [1.0; 3];
    }
    let n_right = expected.intersection(predicted).count();
    [
        ratio(n_right, predicted.len()),
        ratio(n_right, expected.len()),
        ratio(2 * n_right, expected.len() + predicted.len()),
    ]
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn one_if(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}
