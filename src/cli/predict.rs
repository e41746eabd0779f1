//! `axismapper predict`: codes for a text, and nothing else.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::model::{ModelArgs, load_model};
use super::write_line;
use crate::data::record::prompt;
use crate::diag::Failure;
use crate::eval::answers;
use crate::fsio;
use crate::stop::Stop;
use crate::track::Console;

/// Predict the codes of a text, or of every scenario in a file
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the patient or the doctor says
    #[arg(required_unless_present = "input", conflicts_with = "input")]
    text: Option<String>,
    /// Scenario records, {"scenario": "..."}, or - for stdin
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where the records go with their `output`; stdout when left out
    #[arg(long, value_name = "FILE", requires = "input")]
    out: Option<PathBuf>,
    /// Prompts answered together
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
}

/// Runs the command.
///
/// # Errors
/// When a file or the model cannot be read, or a stop is requested.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let mut records: Vec<Value> = match (&args.text, &args.input) {
        (Some(text), _) => vec![json!({"scenario": text})],
        (None, Some(path)) => {
            let mut records = Vec::new();
            fsio::for_each_line(path, |_, line| {
                let record: Value = serde_json::from_str(line).map_err(|error| fsio::json_fault(&error))?;
                if !record["scenario"].is_string() {
                    return Err("expected an object with a text `scenario`".into());
                }
                records.push(record);
                Ok(())
            })?;
            records
        }
        (None, None) => Vec::new(),
    };
    let (mut model, tokenizer) = load_model(&args.model, console, stop)?;
    let prompts: Vec<_> =
        records.iter().map(|record| prompt(record["scenario"].as_str().unwrap_or_default())).collect();
    let progress = console.bar("answering", prompts.len() as u64);
    let outputs = answers(&mut model, &tokenizer, &prompts, args.batch_size, stop, |n| progress.advance(n))?;
    progress.finish();
    if args.text.is_some() {
        return outputs.iter().try_for_each(|output| write_line(out, output));
    }
    records.iter_mut().zip(outputs).for_each(|(record, output)| record["output"] = output.into());
    match &args.out {
        Some(path) => Ok(fsio::write_jsonl(path, &records)?),
        None => records.iter().try_for_each(|record| write_line(out, &record.to_string())),
    }
}
