//! What confidence is worth: whether it can be believed, and how many answers could go out unread.
//!
//! In: records with a confidence. An answer counts as right when its set of codes is (exact match). Out: the
//! reliability curve (confidence against accuracy, in ten bins of equal width), its mean gap (expected calibration
//! error; Naeini et al. 2015), the Brier score, the area under the ROC curve of confidence as a test for right answers,
//! and accuracy against coverage: of the answers the model is surest of, how many are right (Geifman and El-Yaniv
//! 2017).

use serde::Serialize;

use super::Record;
use super::interval::{Interval, wilson};

/// Bins of the reliability curve.
const N_BINS: usize = 10;

/// Points of the coverage curve.
const N_POINTS: usize = 100;

/// Accuracies for which a threshold is looked for.
const WANTED: [f64; 3] = [0.90, 0.95, 0.99];

/// What the confidence of an evaluation is worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Records with a confidence.
    pub n: usize,
    /// Mean over records of the gap between the confidence and the accuracy of their bins.
    pub expected_calibration_error: f64,
    /// Mean of the squared difference between confidence and 1 (right) or 0 (wrong).
    pub brier_score: f64,
    /// The chance that a right answer has a higher confidence than a wrong one; none when all are right or wrong.
    pub auroc: Option<f64>,
    /// The reliability curve; bins without records are left out.
    pub bins: Vec<Bin>,
    /// Accuracy of the surest answers, from few to all.
    pub coverage: Vec<Coverage>,
    /// For each wanted accuracy the lowest confidence that reaches it; left out where none does with so many answers
    /// that one wrong among them would be allowed (100 for 99 %), because fewer say nothing about it.
    pub thresholds: Vec<Threshold>,
}

/// Records of like confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Where the bin begins; it ends a tenth above.
    pub from: f64,
    /// Number of records.
    pub n: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// The share of right answers among them.
    pub accuracy: f64,
    /// The 95 % interval of that share.
    pub interval: Interval,
}

/// The answers with at least some confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Coverage {
    /// The least confidence among them.
    pub confidence: f64,
    /// Their number.
    pub n: usize,
    /// Their share of all answers.
    pub coverage: f64,
    /// The share of right answers among them.
    pub accuracy: f64,
    /// The 95 % interval of that share.
    pub interval: Interval,
}

/// The confidence from which on answers are as accurate as wanted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Threshold {
    /// The wanted accuracy.
    pub wanted: f64,
    /// The answers that reach it, as many as possible.
    #[serde(flatten)]
    pub reached: Coverage,
}

impl Calibration {
    /// Measures the records that have a confidence; none when no record has.
    pub fn of(records: &[Record]) -> Option<Self> {
        let mut answers: Vec<(f64, bool)> = records
            .iter()
            .filter_map(|record| record.confidence.map(|confidence| (confidence, record.outcome.is_exact())))
            .collect();
        if answers.is_empty() {
            return None;
        }
        answers.sort_by(|a, b| b.0.total_cmp(&a.0));
        let n = answers.len() as f64;
        let bins = bins(&answers);
        let steps = steps(&answers);
        let gaps = bins.iter().map(|bin| bin.n as f64 * (bin.confidence - bin.accuracy).abs());
        let squares =
            answers.iter().map(|&(confidence, is_right)| (confidence - f64::from(u8::from(is_right))).powi(2));
        Some(Self {
            n: answers.len(),
            expected_calibration_error: gaps.sum::<f64>() / n,
            brier_score: squares.sum::<f64>() / n,
            auroc: auroc(&answers),
            coverage: curve(&steps),
            thresholds: WANTED.iter().filter_map(|&wanted| threshold(&steps, wanted)).collect(),
            bins,
        })
    }
}

impl Calibration {
    /// What a terminal shows.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "Confidence of {} answers: calibration error {:.1} %",
            self.n,
            100.0 * self.expected_calibration_error
        );
        if let Some(auroc) = self.auroc {
            text += &format!(", right answers are surer than wrong ones in {:.1} % of pairs", 100.0 * auroc);
        }
        text.push('.');
        for Threshold { wanted, reached } in &self.thresholds {
            text += &format!(
                "\nFrom confidence {:.3} on ({} answers, {:.1} %), at least {:.0} % are right.",
                reached.confidence,
                reached.n,
                100.0 * reached.coverage,
                100.0 * wanted
            );
        }
        text
    }
}

fn bins(answers: &[(f64, bool)]) -> Vec<Bin> {
    // (records, sum of confidence, right)
    let mut sums = [(0usize, 0.0, 0usize); N_BINS];
    for &(confidence, is_right) in answers {
        let sum = &mut sums[((confidence * N_BINS as f64) as usize).min(N_BINS - 1)];
        *sum = (sum.0 + 1, sum.1 + confidence, sum.2 + usize::from(is_right));
    }
    let filled = sums.iter().enumerate().filter(|(_, (n, ..))| *n > 0);
    filled
        .map(|(idx, &(n, confidence, n_right))| Bin {
            from: idx as f64 / N_BINS as f64,
            n,
            confidence: confidence / n as f64,
            accuracy: n_right as f64 / n as f64,
            interval: wilson(n_right, n),
        })
        .collect()
}

/// The answers with at least each confidence that occurs, the surest first; equal ones come together.
fn steps(answers: &[(f64, bool)]) -> Vec<Coverage> {
    let (mut n, mut n_right) = (0, 0);
    let mut step = |equals: &[(f64, bool)]| {
        n += equals.len();
        n_right += equals.iter().filter(|(_, is_right)| *is_right).count();
        Coverage {
            confidence: equals[0].0,
            n,
            coverage: n as f64 / answers.len() as f64,
            accuracy: n_right as f64 / n as f64,
            interval: wilson(n_right, n),
        }
    };
    answers.chunk_by(|a, b| a.0 == b.0).map(&mut step).collect()
}

/// The first step at or after each hundredth of the answers.
fn curve(steps: &[Coverage]) -> Vec<Coverage> {
    let mut points: Vec<Coverage> = Vec::new();
    for step in steps {
        let last = points.last().map_or(0.0, |last| last.coverage);
        // A hundredth lies between the last point and this step.
        if (last * N_POINTS as f64 + 1e-9).floor() < (step.coverage * N_POINTS as f64 + 1e-9).floor() {
            points.push(*step);
        }
    }
    points
}

fn threshold(steps: &[Coverage], wanted: f64) -> Option<Threshold> {
    let is_enough = |step: &&Coverage| step.n as f64 * (1.0 - wanted) >= 1.0 - 1e-9;
    let reached = steps.iter().rev().filter(is_enough).find(|step| step.accuracy >= wanted)?;
    Some(Threshold { wanted, reached: *reached })
}

/// Pairs of a right and a wrong answer in which the right one is surer, equal ones counting half, of all such pairs
/// (Mann and Whitney 1947).
fn auroc(answers: &[(f64, bool)]) -> Option<f64> {
    let n_right = answers.iter().filter(|(_, is_right)| *is_right).count();
    let n_wrong = answers.len() - n_right;
    let (mut n_right_above, mut n_won) = (0.0, 0.0);
    for equals in answers.chunk_by(|a, b| a.0 == b.0) {
        let n_right_here = equals.iter().filter(|(_, is_right)| *is_right).count() as f64;
        let n_wrong_here = equals.len() as f64 - n_right_here;
        n_won += n_wrong_here * (n_right_above + 0.5 * n_right_here);
        n_right_above += n_right_here;
    }
    (n_right > 0 && n_wrong > 0).then(|| n_won / (n_right as f64 * n_wrong as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Key, Outcome};

    fn records(of: &[(f64, bool)]) -> Vec<Record> {
        let record = |&(confidence, is_right): &(f64, bool)| Record {
            key: Key::new("", "I10"),
            outcome: Outcome { n_expected: 1, n_predicted: 1, n_right: usize::from(is_right), ..Outcome::default() },
            confidence: Some(confidence),
            family: String::new(),
        };
        of.iter().map(record).collect()
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
    }

    #[test]
    fn a_small_case_is_as_worked_out_by_hand() {
        let found = Calibration::of(&records(&[(0.3, false), (0.9, true), (0.84, false), (0.84, true), (1.0, true)]));
        let found = found.unwrap();
        assert_eq!(found.n, 5);
        // Bins: 0.3 (wrong); 0.84, 0.84 (one right); 0.9, 1.0 (both right).
        let bins: Vec<_> = found.bins.iter().map(|bin| (bin.from, bin.n)).collect();
        assert_eq!(bins, [(0.3, 1), (0.8, 2), (0.9, 2)]);
        close(found.bins[2].confidence, 0.95);
        close(found.expected_calibration_error, (0.3 + 2.0 * 0.34 + 2.0 * 0.05) / 5.0);
        close(found.brier_score, (0.09 + 0.01 + 0.84 * 0.84 + 0.16 * 0.16) / 5.0);
        // Six pairs of right and wrong; the two of 0.84 are equal.
        close(found.auroc.unwrap(), 5.5 / 6.0);
        let curve: Vec<_> = found.coverage.iter().map(|point| (point.coverage, point.accuracy)).collect();
        assert_eq!(curve, [(0.2, 1.0), (0.4, 1.0), (0.8, 0.75), (1.0, 0.6)]);
        // Of five answers none can be said to be right in 90 % of cases.
        assert_eq!(found.thresholds, []);
    }

    #[test]
    fn a_threshold_is_the_lowest_that_enough_answers_stand_on() {
        // Confidence 0.9: 10 right. 0.8: 9 right, 1 wrong. 0.7: 5 wrong.
        let mut answers = vec![(0.9, true); 10];
        answers.extend([(0.8, true); 9]);
        answers.extend([(0.8, false); 1]);
        answers.extend([(0.7, false); 5]);
        let found = Calibration::of(&records(&answers)).unwrap().thresholds;
        // 19 of 20 are 95 %, and one wrong of 20 is allowed; 99 % cannot be told from 25 answers.
        let found: Vec<_> = found.iter().map(|one| (one.wanted, one.reached.confidence, one.reached.n)).collect();
        assert_eq!(found, [(0.90, 0.8, 20), (0.95, 0.8, 20)]);
    }

    #[test]
    fn records_without_confidence_count_for_nothing() {
        let mut mixed = records(&[(0.5, true), (0.5, false)]);
        mixed[1].confidence = None;
        let found = Calibration::of(&mixed).unwrap();
        assert_eq!((found.n, found.auroc), (1, None));
        mixed[0].confidence = None;
        assert_eq!(Calibration::of(&mixed), None);
        assert!(Calibration::of(&records(&[(0.5, false)])).unwrap().thresholds.is_empty());
    }

    #[test]
    fn the_curve_has_a_hundred_points_at_most_and_ends_with_all() {
        let many: Vec<(f64, bool)> = (0..1000).map(|idx| (f64::from(idx) / 1000.0, idx % 3 != 0)).collect();
        let curve = Calibration::of(&records(&many)).unwrap().coverage;
        assert_eq!(curve.len(), 100);
        close(curve[0].coverage, 0.01);
        close(curve[99].coverage, 1.0);
    }
}
