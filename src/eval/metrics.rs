//! Metrics of answers: pure functions from texts to figures.
//!
//! A predicted code is a part of the output between commas that, trimmed, is a code in canonical form; anything else
//! in the output is no prediction. Expected and predicted codes are sets, so that duplicates count once. Precision,
//! recall and F1 are means over records; a record without predictions has precision 0, and one where nothing is
//! expected and nothing predicted is right. Everything that is counted of a record is in its [`Outcome`], from which
//! all figures follow.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Answer;
use crate::codes::Code;

/// What is counted of one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Distinct expected codes.
    pub n_expected: usize,
    /// Distinct predicted codes.
    pub n_predicted: usize,
    /// Those of them that are expected.
    pub n_right: usize,
    /// Those of them that are not billable.
    pub n_not_billable: usize,
    /// Distinct three-character categories expected.
    pub n_categories_expected: usize,
    /// Distinct categories predicted.
    pub n_categories_predicted: usize,
    /// Those of them that are expected.
    pub n_categories_right: usize,
    /// Whether the first code predicted is the first one expected, the principal diagnosis.
    pub is_principal_right: bool,
    /// Whether the whole output is codes joined by a comma and a space.
    pub is_compliant: bool,
}

impl Outcome {
    /// Whether both sets of codes are equal.
    pub fn is_exact(&self) -> bool {
        self.n_right == self.n_expected && self.n_right == self.n_predicted
    }

    /// Right predictions of all predictions.
    pub fn precision(&self) -> f64 {
        if self.is_empty() { 1.0 } else { ratio(self.n_right, self.n_predicted) }
    }

    /// Right predictions of all expected codes.
    pub fn recall(&self) -> f64 {
        if self.is_empty() { 1.0 } else { ratio(self.n_right, self.n_expected) }
    }

    /// Harmonic mean of precision and recall.
    pub fn f1(&self) -> f64 {
        if self.is_empty() { 1.0 } else { ratio(2 * self.n_right, self.n_expected + self.n_predicted) }
    }

    /// F1 of the sets of categories.
    pub fn category_f1(&self) -> f64 {
        let n_both = self.n_categories_expected + self.n_categories_predicted;
        if n_both == 0 { 1.0 } else { ratio(2 * self.n_categories_right, n_both) }
    }

    /// Whether the counts can be those of a record.
    pub fn is_sound(&self) -> bool {
        self.n_right <= self.n_expected.min(self.n_predicted)
            && self.n_not_billable <= self.n_predicted
            && self.n_categories_right <= self.n_categories_expected.min(self.n_categories_predicted)
            && self.n_categories_expected <= self.n_expected
            && self.n_categories_predicted <= self.n_predicted
    }

    fn is_empty(&self) -> bool {
        self.n_expected == 0 && self.n_predicted == 0
    }
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
    /// Records whose first code, the principal diagnosis, is right.
    pub principal_accuracy: f64,
    /// Records whose output is codes and nothing else.
    pub format_compliance: f64,
    /// Predicted codes that are not billable, of all predicted codes; 0 when there are none.
    pub hallucination_rate: f64,
    /// Records with more than two codes too many.
    pub over_coding_rate: f64,
    /// Records with more than one code too few.
    pub under_coding_rate: f64,
}

/// Number of figures.
pub const N_FIGURES: usize = 11;

impl Figures {
    /// The names, in the order of [`Figures::values`].
    pub const NAMES: [&'static str; N_FIGURES] = [
        "exact_match",
        "precision",
        "recall",
        "f1",
        "micro_f1",
        "category_f1",
        "principal_accuracy",
        "format_compliance",
        "hallucination_rate",
        "over_coding_rate",
        "under_coding_rate",
    ];

    /// The figures in the order of [`Figures::NAMES`].
    pub fn values(&self) -> [f64; N_FIGURES] {
        [
            self.exact_match,
            self.precision,
            self.recall,
            self.f1,
            self.micro_f1,
            self.category_f1,
            self.principal_accuracy,
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

    /// Whether a lower value of the figure of that name is the better one.
    pub fn is_fault(name: &str) -> bool {
        name.ends_with("_rate")
    }

    /// The figures of some records; all 0 when there are none.
    pub fn of<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Self {
        Self::from_summands(outcomes.into_iter().map(Summands::of))
    }

    /// The figures of records of which the summands are known.
    pub(super) fn from_summands(records: impl IntoIterator<Item = Summands>) -> Self {
        let mut sum = [0.0; Summands::N];
        let mut n_records = 0.0;
        for record in records {
            n_records += 1.0;
            sum.iter_mut().zip(record.0).for_each(|(sum, value)| *sum += value);
        }
        let [exact, precision, recall, f1, category_f1, principal, compliant, over, under, counts @ ..] = sum;
        let [n_expected, n_predicted, n_right, n_not_billable] = counts;
        let share = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole };
        let mean = |sum: f64| share(sum, n_records);
        Self {
            exact_match: mean(exact),
            precision: mean(precision),
            recall: mean(recall),
            f1: mean(f1),
            micro_f1: share(2.0 * n_right, n_expected + n_predicted),
            category_f1: mean(category_f1),
            principal_accuracy: mean(principal),
            format_compliance: mean(compliant),
            hallucination_rate: share(n_not_billable, n_predicted),
            over_coding_rate: mean(over),
            under_coding_rate: mean(under),
        }
    }
}

/// What of one record goes into the sums behind the figures; made once, added up in every resample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Summands([f64; Summands::N]);

impl Summands {
    const N: usize = 13;

    pub(super) fn of(outcome: &Outcome) -> Self {
        let one_if = |holds: bool| if holds { 1.0 } else { 0.0 };
        Self([
            one_if(outcome.is_exact()),
            outcome.precision(),
            outcome.recall(),
            outcome.f1(),
            outcome.category_f1(),
            one_if(outcome.is_principal_right),
            one_if(outcome.is_compliant),
            one_if(outcome.n_predicted > outcome.n_expected + 2),
            one_if(outcome.n_predicted + 1 < outcome.n_expected),
            outcome.n_expected as f64,
            outcome.n_predicted as f64,
            outcome.n_right as f64,
            outcome.n_not_billable as f64,
        ])
    }
}

/// Scores one record against a release.
pub fn score(answer: &Answer, is_billable: &dyn Fn(Code) -> bool) -> Outcome {
    let (expected, predicted) = (codes_in(&answer.expected), codes_in(&answer.output));
    let categories = |codes: &BTreeSet<Code>| codes.iter().map(Code::category).collect::<BTreeSet<_>>();
    let (expected_categories, predicted_categories) = (categories(&expected), categories(&predicted));
    Outcome {
        n_expected: expected.len(),
        n_predicted: predicted.len(),
        n_right: expected.intersection(&predicted).count(),
        n_not_billable: predicted.iter().filter(|code| !is_billable(**code)).count(),
        n_categories_expected: expected_categories.len(),
        n_categories_predicted: predicted_categories.len(),
        n_categories_right: expected_categories.intersection(&predicted_categories).count(),
        is_principal_right: principal_in(&answer.expected) == principal_in(&answer.output),
        is_compliant: is_compliant(&answer.output),
    }
}

/// The codes in canonical form between the commas of a text, in their order.
fn listed(text: &str) -> impl Iterator<Item = Code> {
    text.split(',').filter_map(|part| Code::parse(part.trim()).ok())
}

/// The distinct codes in canonical form between the commas of a text.
pub fn codes_in(text: &str) -> BTreeSet<Code> {
    listed(text).collect()
}

/// The first of those codes: the principal diagnosis.
pub fn principal_in(text: &str) -> Option<Code> {
    listed(text).next()
}

/// Whether a text is one or more codes in canonical form joined by `, `, and nothing else.
pub fn is_compliant(text: &str) -> bool {
    text.split(", ").all(|part| Code::parse(part).is_ok())
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
