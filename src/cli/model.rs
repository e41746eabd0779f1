//! `--model`, `--adapter`, `--quant`, `--dtype`: the model that a command runs.

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, ValueEnum};
use tch::Kind;

use super::device;
use crate::adapter;
use crate::diag::{Diagnostic, Failure};
use crate::model::{self, Quantization, Qwen2};
use crate::pipeline::require_folder;
use crate::tensor::Placement;
use crate::text::Tokenizer;

/// The model that a command runs.
#[derive(Debug, ClapArgs)]
pub struct ModelArgs {
    /// A local folder in Hugging Face layout
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// An adapter folder in PEFT layout
    #[arg(long, value_name = "DIR")]
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

impl Dtype {
    /// The libtorch type.
    pub fn kind(self) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::Bfloat16 => Kind::BFloat16,
        }
    }
}

/// The folder of a `--model` or `--adapter`, whatever form it was given in; `what` names it in messages.
///
/// # Errors
/// When there is none.
pub fn folder_of(what: &'static str, path: &Path) -> Result<PathBuf, Failure> {
    require_folder(what, path)?;
    Ok(path.to_owned())
}

/// Loads model, adapter and tokenizer.
///
/// # Errors
/// When no model is named, a folder is missing, or its files do not fit together.
pub fn load_model(args: &ModelArgs) -> Result<(Qwen2, Tokenizer), Failure> {
    let Some(path) = &args.model else { return Err(NoModel.into()) };
    let path = &folder_of("model", path)?;
    let adapter_dir = args.adapter.as_ref().map(|path| folder_of("adapter", path)).transpose()?;
    let placement = Placement { device: device::parse(&args.device)?, dtype: args.dtype.kind() };
    let quantization = match args.quant {
        Quant::Nf4 => Quantization::Nf4,
        Quant::None => Quantization::None,
    };
    let tokenizer = Tokenizer::load(path)?;
    let mut model = model::load(path, placement, quantization)?;
    if let Some(dir) = &adapter_dir {
        model::attach_adapter(&mut model, adapter::load(dir)?)?;
    }
    Ok((model, tokenizer))
}

/// A command that needs a model was given none.
#[derive(Debug, thiserror::Error)]
#[error("no model is given")]
struct NoModel;

impl Diagnostic for NoModel {
    fn hint(&self) -> Option<String> {
        Some("name its folder with --model DIR".into())
    }

    fn is_usage(&self) -> bool {
        true
    }
}
