//! A dense model as a Hugging Face folder: config, weights and a greedy generation config.

use std::path::Path;

use serde_json::{Value, json};

use super::{Config, Qwen2, Result};
use crate::fsio;
use crate::tensor::{dtype_name, pytorch_metadata, save as save_tensors};

/// Writes `config.json`, `generation_config.json` and `model.safetensors` of a dense model.
///
/// # Errors
/// When a file cannot be written.
pub fn save(model: &Qwen2, dir: &Path, end_token: u32, pad_token: u32) -> Result<()> {
    let weights = model.dense_weights();
    save_tensors(
        &dir.join("model.safetensors"),
        weights.iter().map(|(name, tensor)| (name.as_str(), *tensor)),
        Some(pytorch_metadata()),
    )?;
    save_configs(&model.config, dtype_name(model.placement.dtype), dir, end_token, pad_token)
}

/// Writes `config.json` and a `generation_config.json` that decodes greedily, without the repetition penalty of Qwen's
/// own default, which punishes repeated digits.
///
/// # Errors
/// When a file cannot be written.
pub fn save_configs(config: &Config, dtype: &str, dir: &Path, end_token: u32, pad_token: u32) -> Result<()> {
    let mut stored = config.to_json(dtype);
    stored["eos_token_id"] = json!(end_token);
    stored["pad_token_id"] = json!(pad_token);
    fsio::write_json(&dir.join("config.json"), &stored)?;
    fsio::write_json(&dir.join("generation_config.json"), &greedy(end_token, pad_token))?;
    Ok(())
}

pub(super) fn greedy(end_token: u32, pad_token: u32) -> Value {
    json!({"do_sample": false, "repetition_penalty": 1.0, "eos_token_id": [end_token, pad_token], "pad_token_id": pad_token})
}
