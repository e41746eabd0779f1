//! `axismapper export gguf`: a model folder as one file for llama.cpp and Ollama.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::merge::count_tensors;
use super::{hub, say_next, write_json, write_line};
use crate::data::SYSTEM_PROMPT;
use crate::diag::{Diagnostic, Failure};
use crate::export::{GgufRequest, GgufType, export_gguf, modelfile};
use crate::fsio;
use crate::stop::Stop;
use crate::text::Tokenizer;
use crate::track::Console;

/// Export a model to another program's format
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Format {
    Gguf(GgufArgs),
}

/// One GGUF file for llama.cpp and Ollama, tokenizer and chat template inside, and an Ollama Modelfile beside it
#[derive(Debug, ClapArgs)]
struct GgufArgs {
    /// A model in Hugging Face layout, merged and not quantized: a folder, or a model on the Hub
    #[arg(long, value_name = "DIR|ORG/NAME")]
    model: PathBuf,
    /// The file, as in model.gguf
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What the weights are stored as
    #[arg(long = "type", value_enum, default_value_t = TypeArg::Q4KM)]
    kind: TypeArg,
    /// The model's name inside the file; the folder's name by default
    #[arg(long)]
    name: Option<String>,
    /// Take what is on the Hub from the cache and ask nobody
    #[arg(long)]
    offline: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// `--type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TypeArg {
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_k_m")]
    Q4KM,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be read or has no place in the format, or writing fails.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let Format::Gguf(args) = &args.format;
    let model = hub::folder("model", &args.model, args.offline, console, stop)?;
    if model.join("adapter_config.json").exists() && !model.join("config.json").exists() {
        return Err(AnAdapter { path: args.model.clone() }.into());
    }
    let tokenizer = Tokenizer::load(&model)?;
    // `.` has a name too; a model of the Hub has its own, not that of a commit.
    let named = if args.model.is_dir() { args.model.canonicalize().ok() } else { None };
    let name = args.name.clone().unwrap_or_else(|| file_name(named.as_deref().unwrap_or(&args.model)));
    let kind = match args.kind {
        TypeArg::F16 => GgufType::F16,
        TypeArg::Bf16 => GgufType::Bf16,
        TypeArg::Q8_0 => GgufType::Q8_0,
        TypeArg::Q4KM => GgufType::Q4KM,
    };
    let request = GgufRequest { model: &model, out: &args.out, kind, name: &name };
    let progress = console.bar("tensors", count_tensors(&model));
    let exported = export_gguf(&request, &tokenizer, stop, |n| progress.advance(n))?;
    progress.finish();
    if exported.n_fallbacks > 0 {
        console.note(&format!(
            "{} matrices have rows that 256 does not divide; they are stored in q5_0 and q8_0, as llama.cpp does",
            exported.n_fallbacks
        ));
    }
    let text = modelfile(&file_name(&args.out), SYSTEM_PROMPT);
    fsio::write_atomic(&args.out.with_file_name("Modelfile"), |out| out.write_all(text.as_bytes()))?;
    let dir = args.out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    say_next(console, &format!("ollama create NAME -f {}", dir.join("Modelfile").display()));
    if args.json {
        return write_json(out, &exported);
    }
    let size_mb = exported.size_bytes as f64 / 1e6;
    write_line(out, &format!("{} tensors, {size_mb:.1} MB -> {}", exported.n_tensors, args.out.display()))
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// The folder holds an adapter where a whole model is needed.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is an adapter, expected a whole model", path.display())]
struct AnAdapter {
    path: PathBuf,
}

impl Diagnostic for AnAdapter {
    fn hint(&self) -> Option<String> {
        Some("merge it into its base first: axismapper merge --model BASE --adapter DIR --out MERGED".into())
    }

    fn is_usage(&self) -> bool {
        true
    }
}
