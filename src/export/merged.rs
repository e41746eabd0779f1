//! Merging: base weights and adapter in, a plain model folder out, one shard in memory at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::{Error, Result};
use crate::adapter::{self, AdapterFile, Lora};
use crate::fsio;
use crate::model::{Config, save_configs};
use crate::quant::Nf4;
use crate::stop::Stop;
use crate::tensor::{Checkpoint, pytorch_metadata, save};

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

    let plan = plan_shards(&weights, dtype, request.max_shard_bytes)?;
    let file_name = |idx: usize| match plan.len() {
        1 => "model.safetensors".to_owned(),
        n => format!("model-{:05}-of-{n:05}.safetensors", idx + 1),
    };
    let mut result = Merged { shards: Vec::new(), size_bytes: 0, n_merged: 0 };
    let mut weight_map = BTreeMap::new();
    for (idx, names) in plan.iter().enumerate() {
        let mut tensors = Vec::with_capacity(names.len());
        for name in names {
            stop.check("merging")?;
            let tensor = merged_weight(name, weights.tensor(name)?, &mut adapter, request.onto, &mut result.n_merged)?;
            tensors.push((name.as_str(), tensor.f_to_kind(dtype)?));
            merged_tensor(1);
        }
        let path = out.join(file_name(idx));
        save(&path, tensors.iter().map(|(name, tensor)| (*name, tensor)), Some(pytorch_metadata()))?;
        weight_map.extend(names.iter().map(|name| (name.clone(), file_name(idx))));
        result.size_bytes += tensors.iter().map(|(_, t)| (t.numel() * dtype.elt_size_in_bytes()) as u64).sum::<u64>();
        result.shards.push(path);
    }
    if let Some(name) = adapter.tensors.keys().next() {
        return Err(adapter::Error::Stray { name: name.clone() }.into());
    }
    let index_path = out.join("model.safetensors.index.json");
    if plan.len() > 1 {
        let index: Value = json!({"metadata": {"total_size": result.size_bytes}, "weight_map": weight_map});
        fsio::write_json(&index_path, &index)?;
    } else if index_path.exists() {
        // An index left by an earlier, sharded merge would be read instead of the new weights.
        std::fs::remove_file(&index_path).map_err(fsio::Error::io("remove", &index_path))?;
    }
    copy_beside_weights(base, out)?;
    let dtype_name = match dtype {
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        _ => "float32",
    };
    save_configs(&config, dtype_name, out, request.end_token, request.pad_token)?;
    Ok(result)
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

/// Distributes the tensors over files of at most `max_bytes` (or one tensor).
fn plan_shards(weights: &Checkpoint, dtype: Kind, max_bytes: u64) -> Result<Vec<Vec<String>>> {
    let mut plan: Vec<Vec<String>> = Vec::new();
    let mut filled = u64::MAX;
    for name in weights.names() {
        let size = weights.numel(name)? * dtype.elt_size_in_bytes() as u64;
        if filled.saturating_add(size) > max_bytes {
            plan.push(Vec::new());
            filled = 0;
        }
        filled += size;
        if let Some(shard) = plan.last_mut() {
            shard.push(name.to_owned());
        }
    }
    Ok(plan)
}

/// A weight with its adapter's tensors, if it has any, taken out of `adapter` and merged in f32.
fn merged_weight(
    name: &str,
    weight: Tensor,
    adapter: &mut AdapterFile,
    onto: Onto,
    n_merged: &mut usize,
) -> Result<Tensor> {
    let is_linear = name.ends_with("_proj.weight");
    let weight = match onto {
        Onto::Quantized if is_linear => Nf4::quantize(&weight)?.dequantize(Kind::Float)?,
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
