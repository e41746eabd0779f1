//! What the demo found: the table of stages, the merge, a few answers, time and memory.

use std::fmt::Write as _;

use serde::Serialize;

use super::ledger::Ledger;
use super::settings::DemoSettings;
use super::steps::MergeCheck;
use crate::codes::Release;
use crate::eval::{self, Answer, Evaluation, Report, Stage, TARGETS, stage_table};
use crate::pipeline::peak_memory;

/// Answers shown.
const N_SAMPLES: usize = 6;

/// The result of a demo.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// The figures of each stage, in order.
    pub stages: Vec<(String, Report)>,
    pub merge: MergeCheck,
    pub samples: Vec<Sample>,
    /// Seconds of each step, in order; of a step done in an earlier run, its seconds then.
    pub seconds: Vec<(String, f64)>,
    /// The most memory that this process held, where the system tells.
    pub peak_memory_bytes: Option<u64>,
}

/// A test answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sample {
    pub expected: String,
    pub output: String,
}

/// The stages side by side; the last, the merged model, is the result.
pub(super) fn evaluation(
    answers: &[(&str, Vec<Answer>)],
    release: &Release,
    settings: &DemoSettings,
) -> Result<Evaluation, eval::Error> {
    let mut stages: Vec<Stage> =
        answers.iter().map(|(name, answers)| Stage::of_answers(*name, answers, release, settings.seed)).collect();
    let result = stages.pop().unwrap_or_else(|| Stage::of_answers("merged", &[], release, settings.seed));
    let last = answers.last().map_or(&[][..], |(_, answers)| answers);
    Evaluation::new(result, last, stages, release, settings.seed)
}

pub(super) fn make(
    evaluation: &Evaluation,
    answers: &[(&str, Vec<Answer>)],
    merge: MergeCheck,
    ledger: &Ledger,
) -> DemoReport {
    let stages = evaluation.stages().map(|stage| (stage.name.clone(), stage.report.clone())).collect();
    let last = answers.last().map_or(&[][..], |(_, answers)| answers);
    let every = (last.len() / N_SAMPLES).max(1);
    DemoReport {
        stages,
        merge,
        samples: last
            .iter()
            .step_by(every)
            .take(N_SAMPLES)
            .map(|answer| Sample { expected: answer.expected.clone(), output: answer.output.clone() })
            .collect(),
        seconds: ledger.order.clone(),
        peak_memory_bytes: peak_memory(),
    }
}

impl DemoReport {
    /// Whether the merged model reaches every target.
    pub fn meets_targets(&self) -> bool {
        self.stages.last().is_some_and(|(_, report)| {
            TARGETS
                .iter()
                .all(|target| report.overall.figures.get(target.figure).is_some_and(|value| target.bound.is_met(value)))
        })
    }

    /// The report for a reader.
    pub fn to_text(&self) -> String {
        let stages: Vec<(&str, &Report)> = self.stages.iter().map(|(name, report)| (name.as_str(), report)).collect();
        let mut text = stage_table(&stages, &TARGETS);
        let merge = &self.merge;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\nThe merged model, reloaded, answers {} of {} test prompts as the adapter model does.\n\
             Logits against the adapter model: merged into the original weights differ by {:.3} on average (at most {:.3}),\n\
             into the quantized ones by {:.6} (at most {:.6}).\n\nAnswers of the merged model:\n",
            merge.n_same,
            merge.n,
            merge.original.mean_abs,
            merge.original.max_abs,
            merge.quantized.mean_abs,
            merge.quantized.max_abs
        );
        for sample in &self.samples {
            let mark = if sample.output == sample.expected { "right" } else { "wrong" };
            let _ = writeln!(text, "  {mark}  {}  (expected {})", one_line(&sample.output), sample.expected);
        }
        let total: f64 = self.seconds.iter().map(|(_, seconds)| seconds).sum();
        let steps: Vec<String> = self.seconds.iter().map(|(name, seconds)| format!("{name} {seconds:.0} s")).collect();
        let _ = writeln!(text, "\nTime: {:.0} s ({})", total, steps.join(", "));
        if let Some(bytes) = self.peak_memory_bytes {
            let _ = writeln!(text, "Peak memory: {:.2} GB", bytes as f64 / 1e9);
        }
        text
    }
}

/// An answer on one line, cut where it would not fit; an untrained model may say anything.
fn one_line(answer: &str) -> String {
    let line = answer.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
