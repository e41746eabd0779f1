//! `axismapper merge`: an adapter merged into its base.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, ValueEnum};

use super::model::{Dtype, Quant};
use super::{device, hub, say_next, write_json, write_line};
use crate::adapter;
use crate::data::record::prompt;
use crate::decode::Limits;
use crate::diag::{Diagnostic, Failure};
use crate::eval::MAX_NEW_TOKENS;
use crate::export::{
    Certificate, CompareRequest, Comparison, MergeRequest, Onto, compare, discard, file_hashes, merge,
};
use crate::fsio;
use crate::pipeline::load_questions;
use crate::stop::Stop;
use crate::tensor::{Checkpoint, Placement, dtype_name};
use crate::text::{Message, Tokenizer};
use crate::track::Console;

/// Asked when no records are given: injuries, chronic and acute complaints, in a patient's and in a clinician's words.
const SCENARIOS: [&str; 16] = [
    "Fell off my bike, the right shin is broken, bone not through the skin.",
    "Patient with essential hypertension, here for a routine check of blood pressure.",
    "I have had type 2 diabetes for years and now my feet are numb.",
    "Twisted my left ankle on the stairs yesterday, it is swollen but not broken.",
    "Acute bronchitis, productive cough for a week, no fever.",
    "Burning when I pass water, and I have to go all the time.",
    "Laceration of the right knee without foreign body, initial encounter.",
    "My lower back has hurt for three months.",
    "Closed fracture of the left fibula, subsequent encounter, routine healing.",
    "Migraine without aura, not intractable.",
    "The child has an earache on both sides and a runny nose.",
    "Sprain of the right foot after a fall from a ladder.",
    "Stage 3 chronic kidney disease, no complaints.",
    "Contusion of the left knee, struck by a ball.",
    "Major depression, recurrent, moderate.",
    "Screening for malignant neoplasm of the colon.",
];

/// Merge an adapter into its base: a plain Hugging Face model folder
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The base model: a folder, or a model on the Hub
    #[arg(long, value_name = "DIR|ORG/NAME")]
    model: PathBuf,
    /// The adapter: a folder in PEFT layout, or an adapter on the Hub
    #[arg(long, value_name = "DIR|ORG/NAME")]
    adapter: PathBuf,
    /// Folder of the merged model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The type that the weights are stored in
    #[arg(long, value_enum, default_value_t = Dtype::Bfloat16)]
    dtype: Dtype,
    /// The weights merged into: those of the checkpoint, or what NF4 makes of them
    #[arg(long, value_enum, default_value_t = OntoArg::Original)]
    onto: OntoArg,
    /// The largest file of weights, as in 5GB or 500MB
    #[arg(long, default_value = "5GB", value_parser = parse_size)]
    max_shard_size: u64,
    /// How the adapter was trained, and is compared with: on the base in NF4, or on the base as it is
    #[arg(long, value_enum, default_value_t = Quant::Nf4)]
    quant: Quant,
    /// Chat records whose questions are asked for the comparison, instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Questions compared; 0 compares nothing
    #[arg(long, default_value_t = 16, value_name = "N")]
    sample: usize,
    /// Refuse a merge whose mean Kullback-Leibler divergence from the adapter model is above this, in nats
    #[arg(long, value_name = "NATS")]
    max_divergence: Option<f64>,
    /// The type that the comparison computes in; float32 needs four bytes a weight
    #[arg(long, value_enum, default_value_t = Dtype::Float32)]
    check_dtype: Dtype,
    /// auto, cpu, cuda or cuda:N, for the comparison
    #[arg(long, default_value = "auto")]
    device: String,
    /// Take what is on the Hub from the cache and ask nobody
    #[arg(long)]
    offline: bool,
    /// Print the certificate as JSON
    #[arg(long)]
    json: bool,
}

/// `--onto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OntoArg {
    Original,
    Quantized,
}

/// A size with the decimal units that Hugging Face uses.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let factor = match text[split..].to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        unit => return Err(format!("the unit `{unit}` is not one of B, KB, MB, GB")),
    };
    match text[..split].trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok((number * factor) as u64),
        _ => Err("expected a size above 0, as in 5GB".into()),
    }
}

/// Runs the command.
///
/// # Errors
/// When a folder is missing, the adapter does not fit the base, or writing fails.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let device = device::choose(&args.device, console)?;
    let base = hub::folder("model", &args.model, args.offline, console, stop)?;
    let adapter = hub::folder("adapter", &args.adapter, args.offline, console, stop)?;
    let tokenizer = Tokenizer::load(&base)?;
    let request = MergeRequest {
        base: &base,
        adapter: &adapter,
        out: &args.out,
        onto: match args.onto {
            OntoArg::Original => Onto::Original,
            OntoArg::Quantized => Onto::Quantized,
        },
        dtype: args.dtype.kind(),
        max_shard_bytes: args.max_shard_size,
        end_token: tokenizer.eos_id(),
        pad_token: tokenizer.pad_id(),
    };
    let progress = console.bar("merging, tensors", count_tensors(&base));
    let merged = merge(&request, stop, |n| progress.advance(n))?;
    progress.finish();

    let prompts = sample(args, &tokenizer)?;
    let comparison = if prompts.is_empty() {
        None
    } else {
        let compared = CompareRequest {
            base: &base,
            adapter: &adapter,
            merged: &args.out,
            quantization: args.quant.quantization(),
            placement: Placement { device, dtype: args.check_dtype.kind() },
            prompts: &prompts,
            limits: Limits { max_new_tokens: MAX_NEW_TOKENS, batch_size: 8, end_tokens: tokenizer.stop_ids() },
        };
        let progress = console.bar("comparing", 2 * prompts.len() as u64);
        let comparison = compare(&compared, stop, |n| progress.advance(n))?;
        progress.finish();
        Some(comparison)
    };
    let found = comparison.as_ref().map(|comparison| comparison.logits.mean_kl);
    // A divergence that is no number is above every limit.
    let refusal = args.max_divergence.zip(found).filter(|(limit, found)| found.is_nan() || found > limit);
    let mut inputs = file_hashes(&base, "base/", stop)?;
    inputs.extend(file_hashes(&adapter, "adapter/", stop)?);
    let named = adapter::load(&adapter)?.base_model;
    let certificate = Certificate {
        base_model: if args.model.is_dir() { named } else { Some(args.model.display().to_string()) },
        onto: request.onto,
        dtype: dtype_name(request.dtype),
        n_merged: merged.n_merged,
        size_bytes: merged.size_bytes,
        is_refused: refusal.is_some(),
        inputs,
        outputs: file_hashes(&args.out, "", stop)?,
        comparison,
    };
    fsio::write_json(&args.out.join("merge.json"), &certificate)?;
    if let Some((limit, found)) = refusal {
        discard(&merged, &args.out)?;
        return Err(TooFar { found, limit }.into());
    }
    let shown = args.out.display();
    say_next(
        console,
        &format!("axismapper predict --model {shown} TEXT, or axismapper export gguf --model {shown} --out model.gguf"),
    );
    if args.json {
        return write_json(out, &certificate);
    }
    let size_mb = merged.size_bytes as f64 / 1e6;
    write_line(out, &format!("{} layers merged, {size_mb:.1} MB -> {}", merged.n_merged, args.out.display()))?;
    match &certificate.comparison {
        None => Ok(()),
        Some(Comparison { answers, logits, .. }) => write_line(
            out,
            &format!(
                "{} of {} sample answers are the adapter model's; logits differ by {:.2e} on average, {:.2e} at most, \
                 divergence {:.2e} nats",
                answers.n_same, answers.n, logits.mean_abs, logits.max_abs, logits.mean_kl
            ),
        ),
    }
}

/// The tensors of a folder of weights, for progress; 0 when that is not known.
pub(super) fn count_tensors(dir: &Path) -> u64 {
    let names = |weights: Checkpoint| weights.names().filter(|name| !name.contains(".weight.")).count() as u64;
    Checkpoint::open_dir(dir).map_or(0, names)
}

/// The token ids of the questions that are compared.
fn sample(args: &Args, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, Failure> {
    let prompts: Vec<Vec<Message>> = match (&args.data, args.sample) {
        (_, 0) => Vec::new(),
        (Some(path), n) => load_questions(path)?.into_iter().take(n).map(|question| question.prompt).collect(),
        (None, n) => SCENARIOS.iter().take(n).map(|text| prompt(text)).collect(),
    };
    prompts.iter().map(|prompt| Ok(tokenizer.encode_prompt(prompt)?.ids)).collect()
}

/// The merged model answers unlike the adapter model.
#[derive(Debug, thiserror::Error)]
#[error(
    "the merged model diverges from the adapter model by {found:.3e} nats, above the limit of {limit:.3e}; its weights were removed"
)]
struct TooFar {
    found: f64,
    limit: f64,
}

impl Diagnostic for TooFar {
    fn hint(&self) -> Option<String> {
        Some(
            "merge with --onto quantized, into the weights that the adapter was trained on, or raise --max-divergence"
                .into(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_decimal_units() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1.5 mb"), Ok(1_500_000));
        assert_eq!(parse_size("700"), Ok(700));
        assert!(parse_size("5GiB").is_err() && parse_size("-1MB").is_err() && parse_size("MB").is_err());
    }
}
