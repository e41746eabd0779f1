//! `--model`, `--adapter`, `--quant`, `--dtype`: the model that a command runs.

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, ValueEnum};
use tch::Kind;

use super::{device, hub};
use crate::adapter;
use crate::diag::{Diagnostic, Failure};
use crate::model::{self, Quantization, Qwen2};
use crate::stop::Stop;
use crate::tensor::Placement;
use crate::text::Tokenizer;
use crate::track::Console;

/// The model that a command runs.
#[derive(Debug, ClapArgs)]
pub struct ModelArgs {
    /// A folder in Hugging Face layout, or a model on the Hub
    #[arg(long, value_name = "DIR|ORG/NAME")]
    pub model: Option<PathBuf>,
    /// An adapter folder in PEFT layout, or an adapter on the Hub
    #[arg(long, value_name = "DIR|ORG/NAME")]
    pub adapter: Option<PathBuf>,
    /// How the linear layers are held in memory
    #[arg(long, value_enum, default_value_t = Quant::None)]
    pub quant: Quant,
    /// The type that the model computes in
    #[arg(long, value_enum, default_value_t = Dtype::Float32)]
    pub dtype: Dtype,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Take what is on the Hub from the cache and ask nobody
    #[arg(long)]
    pub offline: bool,
}

/// `--quant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quant {
    Nf4,
    None,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    Float32,
    Bfloat16,
}

impl Quant {
    /// What a model is loaded with.
    pub fn quantization(self) -> Quantization {
        match self {
            Self::Nf4 => Quantization::Nf4,
            Self::None => Quantization::None,
        }
    }
}

impl Dtype {
    /// The libtorch type.
    pub fn kind(self) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::Bfloat16 => Kind::BFloat16,
        }
    }
}

/// Loads model, adapter and tokenizer, fetched from the Hub where they are not folders.
///
/// # Errors
/// When no model is named, it is not there, or its files do not fit together.
pub fn load_model(args: &ModelArgs, console: &Console, stop: &Stop) -> Result<(Qwen2, Tokenizer), Failure> {
    let Some(name) = &args.model else { return Err(NoModel.into()) };
    let local = |what, name: &Path| hub::folder(what, name, args.offline, console, stop);
    let path = &local("model", name)?;
    let adapter = args.adapter.as_deref().map(|name| local("adapter", name)).transpose()?;
    tell_size(path, console);
    let placement = Placement { device: device::choose(&args.device, console)?, dtype: args.dtype.kind() };
    let tokenizer = Tokenizer::load(path)?;
    let mut model = model::load(path, placement, args.quant.quantization())?;
    if let Some(dir) = &adapter {
        model::attach_adapter(&mut model, adapter::load(dir)?)?;
    }
    Ok((model, tokenizer))
}

/// A large model takes a while to load: says so.
fn tell_size(dir: &Path, console: &Console) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let weights = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
    let bytes: u64 = weights.filter_map(|path| Some(path.metadata().ok()?.len())).sum();
    if bytes > 1_000_000_000 {
        console.note(&format!("loading {}, {:.1} GB", dir.display(), bytes as f64 / 1e9));
    }
}

/// A command that needs a model was given none.
#[derive(Debug, thiserror::Error)]
#[error("no model is given")]
struct NoModel;

impl Diagnostic for NoModel {
    fn hint(&self) -> Option<String> {
        Some("name its folder, or a model on the Hub, with --model".into())
    }

    fn is_usage(&self) -> bool {
        true
    }
}
