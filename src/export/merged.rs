//! Merging: base weights and adapter in, a plain model folder out, one file's weights in memory at a time.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::{Error, Result};
use crate::adapter::{self, AdapterFile, Lora};
use crate::fsio;
use crate::model::{Config, save_configs};
use crate::quant::{self, Nf4};
use crate::stop::Stop;
use crate::tensor::{Checkpoint, Shards, check_finite, dtype_name};

/// Which base weights the adapter is merged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Onto {
    /// Those of the checkpoint, never quantized.
    Original,
    /// What the adapter saw in training: quantized to NF4 and expanded again.
    Quantized,
}

/// A merge to be made.
#[derive(Debug)]
pub struct MergeRequest<'a> {
    pub base: &'a Path,
    pub adapter: &'a Path,
    pub out: &'a Path,
    pub onto: Onto,
    pub dtype: Kind,
    pub max_shard_bytes: u64,
    /// Ends an answer, and pads: for the generation config.
    pub end_token: u32,
    pub pad_token: u32,
}

/// A finished merge.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Merged {
    /// Files of weights, in order.
    pub shards: Vec<PathBuf>,
    pub size_bytes: u64,
    /// Linear layers that carried an adapter.
    pub n_merged: usize,
}

/// Files beside the weights that a merged folder takes over from its base.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Writes the merged model. Weights keep the base's names; layers without an adapter are converted to `dtype` only.
///
/// # Errors
/// When a file is missing or damaged, the adapter does not fit the base, a stop is requested, or writing fails.
pub fn merge(request: &MergeRequest<'_>, stop: &Stop, mut merged_tensor: impl FnMut(u64)) -> Result<Merged> {
    let MergeRequest { base, out, dtype, .. } = *request;
    if same_folder(base, out) {
        return Err(Error::SameFolder { path: out.to_owned() });
    }
    if ![Kind::BFloat16, Kind::Half, Kind::Float].contains(&dtype) {
        return Err(Error::Dtype(dtype));
    }
    let config = Config::load(base)?;
    let weights = Checkpoint::open_dir(base)?;
    let mut adapter = adapter::load(request.adapter)?;
    fsio::make_dir(out)?;

    let mut shards = Shards::new(out, request.max_shard_bytes)?;
    let mut n_merged = 0;
    // A quantized weight's parts are read with it.
    for name in weights.names().filter(|name| !name.contains(".weight.")) {
        stop.check("merging")?;
        let weight = match quant::is_stored(&weights, name) {
            true if request.onto == Onto::Original => return Err(Error::QuantizedBase { path: base.to_owned() }),
            true => quant::load(&weights, name, shape_of(&config, name)?)?.dequantize(Kind::Float)?,
            false => weights.tensor(name)?,
        };
        let is_expanded = quant::is_stored(&weights, name);
        let tensor = merged_weight(name, weight, &mut adapter, request.onto, is_expanded, &mut n_merged)?;
        let tensor = tensor.f_to_kind(dtype)?.f_contiguous()?;
        check_finite(name, &tensor)?;
        shards.push(vec![(name.to_owned(), tensor)])?;
        merged_tensor(1);
    }
    if let Some(name) = adapter.tensors.keys().next() {
        return Err(adapter::Error::Stray { name: name.clone() }.into());
    }
    let written = shards.finish()?;
    copy_beside_weights(base, out)?;
    save_configs(&config, dtype_name(dtype), out, request.end_token, request.pad_token)?;
    Ok(Merged { shards: written.files, size_bytes: written.size_bytes, n_merged })
}

/// Copies the tokenizer's files, those that are there.
///
/// # Errors
/// When a file cannot be copied.
pub fn copy_beside_weights(base: &Path, out: &Path) -> Result<()> {
    for file in TOKENIZER_FILES {
        let source = base.join(file);
        if source.exists() {
            std::fs::copy(&source, out.join(file)).map_err(fsio::Error::io("copy", &source))?;
        }
    }
    Ok(())
}

fn same_folder(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The shape of a linear layer's weight, by its name.
fn shape_of(config: &Config, name: &str) -> Result<[i64; 2]> {
    let found = config.projections().into_iter().find(|(path, ..)| name.ends_with(&format!("{path}.weight")));
    found.map(|(_, shape, _)| shape).ok_or_else(|| {
        crate::tensor::Error::Missing { name: format!("a linear layer for {name}"), path: "config.json".into() }.into()
    })
}

/// A weight with its adapter's tensors, if it has any, taken out of `adapter` and merged in f32.
fn merged_weight(
    name: &str,
    weight: Tensor,
    adapter: &mut AdapterFile,
    onto: Onto,
    is_expanded: bool,
    n_merged: &mut usize,
) -> Result<Tensor> {
    let is_linear = name.ends_with("_proj.weight");
    let weight = match onto {
        Onto::Quantized if is_linear && !is_expanded => Nf4::quantize(&weight)?.dequantize(Kind::Float)?,
        _ => weight,
    };
    let Some(path) = name.strip_suffix(".weight").filter(|_| is_linear) else { return Ok(weight) };
    let mut take = |suffix: &str| adapter.tensors.remove(&format!("{path}.{suffix}"));
    let (Some(lora_a), Some(lora_b)) = (take("lora_A.weight"), take("lora_B.weight")) else { return Ok(weight) };
    let magnitude = take("lora_magnitude_vector");
    let (n_out, n_in) = weight.size2()?;
    let rank = adapter.settings.rank_of(path)?;
    for (tensor, expected) in [(&lora_a, [rank, n_in]), (&lora_b, [n_out, rank])] {
        if tensor.size() != expected {
            let (name, found) = (format!("{path}.lora"), tensor.size());
            return Err(crate::tensor::Error::Shape { name, found, expected: expected.to_vec() }.into());
        }
    }
    let lora = Lora::from_parts(&adapter.settings, path, lora_a, lora_b, magnitude, Device::Cpu)?;
    *n_merged += 1;
    Ok(lora.merged(&weight)?)
}
