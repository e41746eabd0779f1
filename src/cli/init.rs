//! `axismapper init`: a new model folder with random weights, and a tokenizer.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::merge::parse_size;
use super::model::{Dtype, Quant};
use super::{say_next, write_json, write_line};
use crate::diag::{Diagnostic, Failure};
use crate::fsio;
use crate::model::{Config, EndTokens, WriteRequest, count_parameters, count_weights, estimate_bytes, init_folder};
use crate::pipeline::require_folder;
use crate::stop::Stop;
use crate::text::{Tokenizer, train_bpe};
use crate::track::Console;

/// Tokens of a tokenizer whose size nobody named.
const DEFAULT_VOCAB_SIZE: u64 = 4096;

/// Make a new Qwen2 folder: random weights, and a tokenizer trained on a corpus or taken from a folder
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The shape, in the form of a model folder's config.json
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Texts to train a tokenizer on: plain text, or JSON Lines whose texts are taken
    #[arg(long, value_name = "FILE", required_unless_present = "tokenizer", conflicts_with = "tokenizer")]
    corpus: Option<PathBuf>,
    /// A folder whose tokenizer is taken instead
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// The new folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How the linear layers are written; nf4 is bitsandbytes' 4-bit layout
    #[arg(long, value_enum, default_value_t = Quant::None)]
    quant: Quant,
    /// The type of everything else
    #[arg(long, value_enum, default_value_t = Dtype::Float32)]
    dtype: Dtype,
    /// Decides the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The largest file of weights, as in 5GB or 500MB; one file is in memory at a time
    #[arg(long, default_value = "2GB", value_parser = parse_size)]
    max_shard_size: u64,
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the config is no Qwen2 shape, a file cannot be read, or writing fails.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let mut shape: Value = fsio::read_json(&args.config)?;
    if shape.get("architectures").is_none() && shape.get("model_type").is_none() {
        shape["model_type"] = json!("qwen2");
    }
    let tokenizer = match (&args.tokenizer, &args.corpus) {
        (Some(dir), _) => {
            require_folder("tokenizer", dir)?;
            Tokenizer::load(dir)?
        }
        (None, corpus) => {
            let texts = read_corpus(corpus.as_deref().unwrap_or(Path::new("-")))?;
            let vocab_size = shape["vocab_size"].as_u64().unwrap_or(DEFAULT_VOCAB_SIZE);
            train_bpe(texts.iter(), usize::try_from(vocab_size).unwrap_or(usize::MAX))?
        }
    };
    if shape.get("vocab_size").is_none() {
        shape["vocab_size"] = json!(tokenizer.vocab_size());
    }
    let config = Config::from_json(shape, &args.config)?;
    if (tokenizer.vocab_size() as i64) > config.vocab_size {
        let (config, n_tokens) = (config.vocab_size, tokenizer.vocab_size());
        return Err(SmallVocabulary { path: args.config.clone(), config, n_tokens }.into());
    }
    let total = count_weights(&config);
    let nf4 = args.quant == Quant::Nf4;
    let n_parameters = count_parameters(&config);
    if args.dry_run {
        let size_mb = estimate_bytes(&config, nf4, args.dtype.kind().elt_size_in_bytes() as u64) as f64 / 1e6;
        let millions = n_parameters as f64 / 1e6;
        let line = format!("{millions:.1} M parameters, about {size_mb:.0} MB -> {}", args.out.display());
        return write_line(out, &line);
    }
    let request =
        WriteRequest { out: &args.out, dtype: Some(args.dtype.kind()), nf4, max_shard_bytes: args.max_shard_size };
    let tokens = EndTokens { end: tokenizer.eos_id(), pad: tokenizer.pad_id() };
    let progress = console.bar("drawing weights", total);
    let written = init_folder(&config, args.seed, &request, tokens, stop, |n| progress.advance(n))?;
    progress.finish();
    tokenizer.save(&args.out)?;
    say_next(console, &format!("axismapper train --set model.name={}", args.out.display()));
    if args.json {
        let figures = json!({"n_parameters": n_parameters, "size_bytes": written.size_bytes, "files": written.files});
        return write_json(out, &figures);
    }
    let (millions, size_mb) = (n_parameters as f64 / 1e6, written.size_bytes as f64 / 1e6);
    write_line(out, &format!("{millions:.1} M parameters, {size_mb:.1} MB -> {}", args.out.display()))
}

/// The texts of a corpus: every line of plain text, every text of a JSON object (keys and other values do not count).
fn read_corpus(path: &Path) -> Result<Vec<String>, Failure> {
    let mut texts = Vec::new();
    fsio::for_each_line(path, |_, line| {
        if line.trim_start().starts_with('{') {
            let value = serde_json::from_str(line).map_err(|error| fsio::json_fault(&error))?;
            collect_texts(&value, &mut texts);
        } else {
            texts.push(line.to_owned());
        }
        Ok(())
    })?;
    if texts.is_empty() {
        return Err(fsio::Error::Empty { path: path.to_owned() }.into());
    }
    Ok(texts)
}

fn collect_texts(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect_texts(item, texts)),
        Value::Object(fields) => fields.values().for_each(|field| collect_texts(field, texts)),
        _ => {}
    }
}

/// The tokenizer has more tokens than the shape.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: `vocab_size` is {config}, the tokenizer has {n_tokens} tokens", path.display())]
struct SmallVocabulary {
    path: PathBuf,
    config: i64,
    n_tokens: usize,
}

impl Diagnostic for SmallVocabulary {
    fn hint(&self) -> Option<String> {
        Some(format!("set `vocab_size` to {} or more, or leave it out", self.n_tokens))
    }

    fn is_usage(&self) -> bool {
        true
    }
}
