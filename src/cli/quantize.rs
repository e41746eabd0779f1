//! `axismapper quantize`: a model folder in bitsandbytes' 4-bit layout.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::json;

use super::hub;
use super::merge::parse_size;
use super::model::Dtype;
use super::{say_next, write_json, write_line};
use crate::diag::Failure;
use crate::export::copy_beside_weights;
use crate::fsio;
use crate::model::{Config, WriteRequest, count_weights, estimate_bytes, quantize_folder};
use crate::stop::Stop;
use crate::track::Console;

/// Quantize a model to NF4 with double quantization: a folder that transformers loads
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The model: a folder, or a model on the Hub
    #[arg(long, value_name = "DIR|ORG/NAME")]
    model: PathBuf,
    /// Folder of the quantized model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The type of embeddings, norms and biases; that of the model when left out
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// The largest file of weights, as in 5GB or 500MB; one file is in memory at a time
    #[arg(long, default_value = "2GB", value_parser = parse_size)]
    max_shard_size: u64,
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Take what is on the Hub from the cache and ask nobody
    #[arg(long)]
    offline: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be read or is quantized already, or writing fails.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let base = hub::folder("model", &args.model, args.offline, console, stop)?;
    let config = Config::load(&base)?;
    let total = count_weights(&config);
    if args.dry_run {
        let size_mb = estimate_bytes(&config, true, 2) as f64 / 1e6;
        return write_line(out, &format!("{total} weights, about {size_mb:.0} MB -> {}", args.out.display()));
    }
    let request = WriteRequest {
        out: &args.out,
        dtype: args.dtype.map(Dtype::kind),
        nf4: true,
        max_shard_bytes: args.max_shard_size,
    };
    let progress = console.bar("quantizing", total);
    let written = quantize_folder(&base, &request, stop, |n| progress.advance(n))?;
    progress.finish();
    copy_beside_weights(&base, &args.out)?;
    let generation = base.join("generation_config.json");
    if generation.exists() {
        let copied = std::fs::copy(&generation, args.out.join("generation_config.json"));
        copied.map_err(fsio::Error::io("copy", &generation))?;
    }
    let shown = args.out.display();
    say_next(console, &format!("axismapper predict --model {shown} TEXT, or model.name: {shown} in a stage file"));
    if args.json {
        let figures = json!({"n_weights": total, "size_bytes": written.size_bytes, "files": written.files});
        return write_json(out, &figures);
    }
    let size_mb = written.size_bytes as f64 / 1e6;
    write_line(out, &format!("{total} weights, {size_mb:.1} MB -> {}", args.out.display()))
}
