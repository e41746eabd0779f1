//! `axismapper merge`: an adapter merged into its base.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use super::model::Dtype;
use super::write_line;
use crate::diag::Failure;
use crate::export::{MergeRequest, Onto, merge};
use crate::fsio;
use crate::pipeline::require_folder;
use crate::stop::Stop;
use crate::text::Tokenizer;
use crate::track::Console;

/// Merge an adapter into its base: a plain Hugging Face model folder
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The base model's folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The adapter's folder, PEFT layout
    #[arg(long, value_name = "DIR")]
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
    require_folder("model", &args.model)?;
    require_folder("adapter", &args.adapter)?;
    let tokenizer = Tokenizer::load(&args.model)?;
    let request = MergeRequest {
        base: &args.model,
        adapter: &args.adapter,
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
    let progress = console.bar("merging", 0);
    let merged = merge(&request, stop, |n| progress.advance(n))?;
    progress.finish();
    fsio::write_json(&args.out.join("merge.json"), &merged)?;
    let size_mb = merged.size_bytes as f64 / 1e6;
    let summary = format!("{} layers merged, {size_mb:.1} MB -> {}", merged.n_merged, args.out.display());
    write_line(out, &summary)
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
