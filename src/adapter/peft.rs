//! PEFT's folder layout: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tch::Tensor;

use super::{Error, Result, Settings};
use crate::fsio;
use crate::tensor::{Checkpoint, pytorch_metadata, save as save_tensors};

/// Every tensor name in a PEFT file starts with this.
pub const PREFIX: &str = "base_model.model.";

/// An adapter folder read into memory.
#[derive(Debug)]
pub struct AdapterFile {
    pub settings: Settings,
    /// The model that the adapter was trained on, as its config names it.
    pub base_model: Option<String>,
    /// Module path and suffix (`model.layers.0.self_attn.q_proj.lora_A.weight`) to tensor.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Reads an adapter folder.
///
/// # Errors
/// When a file is missing or damaged, or the config asks for something that changes the computation and is not
/// supported here (another `peft_type`, `bias`, `modules_to_save`, ...).
pub fn load(dir: &Path) -> Result<AdapterFile> {
    let path = dir.join("adapter_config.json");
    let config: Value = fsio::read_json(&path)?;
    refuse_unsupported(&config, &path)?;
    let settings: Settings = serde_json::from_value(config.clone())
        .map_err(|error| fsio::Error::BadFile { path: path.clone(), message: error.to_string() })?;
    let checkpoint = Checkpoint::open_file(&dir.join("adapter_model.safetensors"))?;
    let mut tensors = BTreeMap::new();
    for name in checkpoint.names() {
        let module = name.strip_prefix(PREFIX).ok_or_else(|| Error::Stray { name: name.to_owned() })?;
        tensors.insert(module.to_owned(), checkpoint.tensor(name)?);
    }
    let base_model = config.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
    Ok(AdapterFile { settings, base_model, tensors })
}

fn refuse_unsupported(config: &Value, path: &Path) -> Result<()> {
    let is_plain = |key: &str, plain: &[Value]| config.get(key).is_none_or(|value| plain.contains(value));
    let rules: [(&'static str, &[Value], &'static str); 8] = [
        ("peft_type", &[json!("LORA")], "`LORA`"),
        ("bias", &[json!("none")], "`none`"),
        ("fan_in_fan_out", &[json!(false)], "`false`"),
        ("modules_to_save", &[Value::Null, json!([])], "none"),
        ("layers_to_transform", &[Value::Null, json!([])], "all layers"),
        ("exclude_modules", &[Value::Null, json!([])], "none"),
        ("target_parameters", &[Value::Null, json!([])], "none"),
        ("lora_bias", &[json!(false), Value::Null], "`false`"),
    ];
    for (key, plain, supported) in rules {
        if !is_plain(key, plain) {
            return Err(Error::Unsupported { path: path.to_owned(), key, found: config[key].to_string(), supported });
        }
    }
    Ok(())
}

/// Writes an adapter folder that PEFT loads. Tensors are named as in [`AdapterFile::tensors`].
///
/// # Errors
/// When a file cannot be written.
pub fn save<'a>(
    dir: &Path,
    settings: &Settings,
    base_model: &str,
    tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
) -> Result<()> {
    let named: Vec<(String, &Tensor)> =
        tensors.into_iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)).collect();
    save_tensors(
        &dir.join("adapter_model.safetensors"),
        named.iter().map(|(name, tensor)| (name.as_str(), *tensor)),
        Some(pytorch_metadata()),
    )?;
    let mut config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
    });
    if let (Some(config), Ok(Value::Object(own))) = (config.as_object_mut(), serde_json::to_value(settings)) {
        config.extend(own);
    }
    fsio::write_json(&dir.join("adapter_config.json"), &config)?;
    Ok(())
}
