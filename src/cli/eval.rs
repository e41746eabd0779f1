//! `axismapper eval`: a model's answers, or stored ones, against the right codes.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::model::{ModelArgs, load_model};
use super::release::ReleaseArgs;
use super::{write_indented_json, write_line};
use crate::diag::Failure;
use crate::eval::{Answer, TARGETS, answers, evaluate, stage_table};
use crate::fsio;
use crate::pipeline::load_questions;
use crate::stop::Stop;
use crate::track::Console;

/// Evaluate a model, or stored predictions, against the right codes
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Chat records: the last assistant turn is the right answer
    #[arg(long, value_name = "FILE", required_unless_present = "predictions", requires = "model")]
    data: Option<PathBuf>,
    /// Stored answers instead of a model: {"expected": "A, B", "output": "raw text"}
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "model", "adapter"])]
    predictions: Option<PathBuf>,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Folder for report.json and predictions.jsonl
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Prompts answered together
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When a file or the model cannot be read, or a stop is requested.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let release = args.release.load()?;
    let answered: Vec<Answer> = match (&args.predictions, &args.data) {
        (Some(path), _) => fsio::read_jsonl(path)?,
        (None, data) => from_model(args, data.as_deref().unwrap_or(Path::new("-")), console, stop)?,
    };
    let report = evaluate(&answered, &release, 0);
    if let Some(dir) = &args.out {
        fsio::write_json(&dir.join("report.json"), &report)?;
        fsio::write_jsonl(&dir.join("predictions.jsonl"), &answered)?;
    }
    if args.json {
        return write_indented_json(out, &report);
    }
    write_line(out, stage_table(&[("result", &report)], &TARGETS).trim_end())?;
    write_line(out, &format!("{} records, codes of {}", answered.len(), release.name()))
}

fn from_model(args: &Args, data: &Path, console: &Console, stop: &Stop) -> Result<Vec<Answer>, Failure> {
    let questions = load_questions(data)?;
    let (mut model, tokenizer) = load_model(&args.model, console, stop)?;
    let prompts: Vec<_> = questions.iter().map(|question| question.prompt.clone()).collect();
    let progress = console.bar("answering", prompts.len() as u64);
    let outputs = answers(&mut model, &tokenizer, &prompts, args.batch_size, stop, |n| progress.advance(n))?;
    progress.finish();
    Ok(questions
        .into_iter()
        .zip(outputs)
        .map(|(question, output)| Answer { expected: question.expected, output })
        .collect())
}
