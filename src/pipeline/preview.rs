//! What a stage would do, without the model: its records counted, its steps, and one record decoded with its mask.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::stage::{FileCounts, StageData, load_data};
use super::{Error, require_folder};
use crate::config::{EvalStrategy, StageConfig};
use crate::text::{self, Tokenizer};
use crate::train::{Length, Task};

/// A stage before it is paid for.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    pub stage: String,
    /// `SFT` or `ORPO`.
    pub objective: &'static str,
    pub train: FileCounts,
    pub validation: Option<FileCounts>,
    /// Tokens of an epoch, prompts included.
    pub n_tokens: usize,
    /// Those of them whose prediction counts.
    pub n_targets: usize,
    /// Tokens of the longest record.
    pub longest: usize,
    /// Tokens of the largest micro-batch that a shuffle can draw, those that all records share counted once.
    pub largest_batch: usize,
    /// Tokens of the validation records.
    pub n_validation_tokens: usize,
    /// Records in an optimizer step.
    pub records_per_step: usize,
    pub steps_per_epoch: u64,
    pub steps: u64,
    /// Optimizer steps in which the learning rate rises.
    pub warmup_steps: u64,
    /// The first record, decoded.
    pub example: Vec<Span>,
    /// The lines of the records in the training file, the longest record first.
    #[serde(skip)]
    pub by_length: Vec<usize>,
}

/// How the tokens that the loss counts are told from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// Between `[[` and `]]`.
    Brackets,
    /// In colour, for a terminal.
    Colour,
}

/// A run of tokens of the example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Span {
    /// `prompt` and `target` in SFT; `prompt`, `chosen` and `rejected` in ORPO.
    pub role: &'static str,
    pub text: String,
}

/// Reads the tokenizer in `base` and a stage's records, and counts.
///
/// # Errors
/// When the model's folder or a file cannot be read, or nothing is left to train on.
pub fn preview_stage(config: &StageConfig, base: &Path) -> Result<Preview, Error> {
    require_folder("model", base)?;
    let tokenizer = Tokenizer::load(base)?;
    let StageData { task, train, validation, lines } = load_data(config, &tokenizer)?;
    if task.is_empty() {
        return Err(crate::train::Error::NoRecords { stage: config.name.clone() }.into());
    }
    let (n_tokens, n_targets) = count(&task);
    let (lengths, validation_lengths) = task.lengths();
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&idx| std::cmp::Reverse(lengths[idx]));
    let longest_first = order.iter().map(|&idx| lengths[idx]);
    let n_shared = if config.data.packing { task.len_common_beginning() } else { 0 };
    let length = Length::new(task.len(), &config.training);
    Ok(Preview {
        stage: config.name.clone(),
        objective: if config.orpo.is_some() { "ORPO" } else { "SFT" },
        train,
        validation,
        n_tokens,
        n_targets,
        longest: task.longest(),
        largest_batch: largest_batch(longest_first.take(config.training.per_device_train_batch_size), n_shared),
        n_validation_tokens: validation_lengths.iter().sum(),
        records_per_step: config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps,
        steps_per_epoch: length.steps_per_epoch,
        steps: length.steps,
        warmup_steps: config.training.n_warmup(length.steps),
        example: example(&task, &tokenizer)?,
        by_length: order.iter().filter_map(|&idx| lines.get(idx).copied()).collect(),
    })
}

/// The tokens of a micro-batch of records of these lengths, which share the first `n_shared`.
fn largest_batch(lengths: impl Iterator<Item = usize>, n_shared: usize) -> usize {
    n_shared + lengths.map(|len| len - n_shared).sum::<usize>()
}

fn count(task: &Task) -> (usize, usize) {
    let sum = |counts: &mut dyn Iterator<Item = (usize, usize)>| {
        counts.fold((0, 0), |(tokens, targets), (more, counted)| (tokens + more, targets + counted))
    };
    match task {
        Task::Sft { train, .. } => sum(&mut train.iter().map(|record| (record.len(), record.n_targets()))),
        Task::Orpo { train, .. } => sum(&mut train.iter().map(|record| {
            let n_answers = record.chosen.len() + record.rejected.len();
            (record.prompt.len() + n_answers, n_answers)
        })),
    }
}

fn example(task: &Task, tokenizer: &Tokenizer) -> Result<Vec<Span>, text::Error> {
    let span = |role, ids: &[u32]| Ok(Span { role, text: tokenizer.decode_with_special(ids)? });
    match task {
        Task::Sft { train, .. } => {
            let Some(record) = train.first() else { return Ok(Vec::new()) };
            let mut spans = Vec::new();
            let mut start = 0;
            for run in record.is_target.chunk_by(|a, b| a == b) {
                let role = if run[0] { "target" } else { "prompt" };
                spans.push(span(role, &record.ids[start..start + run.len()])?);
                start += run.len();
            }
            Ok(spans)
        }
        Task::Orpo { train, .. } => {
            let Some(record) = train.first() else { return Ok(Vec::new()) };
            let parts = [("prompt", &record.prompt), ("chosen", &record.chosen), ("rejected", &record.rejected)];
            parts.into_iter().map(|(role, ids)| span(role, ids)).collect()
        }
    }
}

impl Preview {
    /// The preview as text, with the settings that matter for its reader.
    pub fn text(&self, config: &StageConfig, marks: Marks) -> String {
        let mut text = format!("{self}");
        let training = &config.training;
        if training.eval_strategy == EvalStrategy::Steps {
            text += &format!("  evaluated every {} steps\n", training.eval_steps);
        }
        if let Some(every) = training.save_steps {
            text += &format!("  checkpoint every {every} steps\n");
        }
        text + &self.example_text(marks)
    }

    /// The example, with what the loss counts marked.
    pub fn example_text(&self, marks: Marks) -> String {
        let mark = |role: &str, text: &str| match (marks, role) {
            (Marks::Brackets, _) => format!("[[{text}]]"),
            (Marks::Colour, "rejected") => format!("\x1b[1;31m{text}\x1b[0m"),
            (Marks::Colour, _) => format!("\x1b[1;32m{text}\x1b[0m"),
        };
        let mut text = String::from(match marks {
            Marks::Brackets => "  example, what the loss counts between [[ and ]]:\n",
            Marks::Colour => "  example, what the loss counts in colour:\n",
        });
        let shown: String = self
            .example
            .iter()
            .map(|span| match span.role {
                "prompt" => span.text.clone(),
                "target" => mark("target", &span.text),
                role => format!("\n{role}: {}", mark(role, &span.text)),
            })
            .collect();
        for line in shown.lines() {
            text += &format!("    {line}\n");
        }
        text
    }
}

impl fmt::Display for Preview {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}: {}", self.stage, self.objective)?;
        for (name, counts) in [("train", Some(&self.train)), ("validation", self.validation.as_ref())] {
            let Some(FileCounts { path, n_records, n_cut, n_dropped }) = counts else { continue };
            let path = path.display();
            writeln!(out, "  {name}: {n_records} records of {path}, {n_cut} cut, {n_dropped} dropped")?;
        }
        let Self { n_tokens, n_targets, longest, records_per_step, steps_per_epoch, steps, warmup_steps, .. } = self;
        writeln!(out, "  {n_tokens} tokens an epoch, {n_targets} of them targets; the longest record has {longest}")?;
        writeln!(
            out,
            "  {steps} steps of {records_per_step} records, {steps_per_epoch} an epoch, {warmup_steps} to warm up"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_records_share_is_in_a_batch_once() {
        assert_eq!(largest_batch([50, 40, 30].into_iter(), 0), 120);
        assert_eq!(largest_batch([50, 40, 30].into_iter(), 25), 25 + 25 + 15 + 5);
    }
}
