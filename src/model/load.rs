//! A model from a folder or from random numbers, with or without NF4 and an adapter.

use std::path::Path;

use tch::Tensor;

use super::block::Block;
use super::projection::{Projection, Weight, Workspace};
use super::qwen2::{Head, Qwen2};
use super::rope::Rope;
use super::slots::{DEFAULT, Slots};
use super::weights::Weights;
use super::{Config, Result};
use crate::adapter::{self, AdapterFile, Lora, Settings, TargetModules};
use crate::quant::Nf4;
use crate::tensor::{LargeApart, Placement, check_finite};

/// How the linear layers of the blocks are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    None,
    Nf4,
}

/// Loads a model folder. Each weight is quantized as it is read, so that at most one of them is in memory in the type that it
/// is stored in; weights in bitsandbytes' 4-bit layout are taken as they are, whatever `quantization` says.
///
/// # Errors
/// When a file is missing or damaged, a tensor has another shape than the config says or is not finite, or memory is short.
pub fn load(dir: &Path, placement: Placement, quantization: Quantization) -> Result<Qwen2> {
    build(Config::load(dir)?, &Weights::open(dir)?, placement, quantization)
}

/// A model with random weights. The draws depend on the seed and each tensor's name only.
///
/// # Errors
/// When memory is short.
pub fn init(config: Config, seed: u64, placement: Placement) -> Result<Qwen2> {
    build(config, &Weights::Random(seed), placement, Quantization::None)
}

/// A model in NF4 with values that only look like weights, made at memory speed: for measurements of large shapes.
///
/// # Errors
/// When memory is short.
pub fn noise(config: Config, seed: u64, placement: Placement) -> Result<Qwen2> {
    build(config, &Weights::Noise(seed), placement, Quantization::Nf4)
}

fn build(config: Config, weights: &Weights, placement: Placement, quantization: Quantization) -> Result<Qwen2> {
    let _heap = LargeApart::new();
    let dense = |name: &str, shape: &[i64]| weights.placed(name, shape, placement);
    let quantize = quantization == Quantization::Nf4;
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let embed_tokens = dense("model.embed_tokens.weight", &[vocab, hidden])?;
    let mut blocks = Vec::new();
    for idx in 0..config.num_hidden_layers {
        let path = |name: &str| format!("model.layers.{idx}.{name}");
        let mut projections = Vec::with_capacity(7);
        for (name, shape, has_bias) in config.projections() {
            let weight = weights.linear(&path(&format!("{name}.weight")), shape, placement, quantize)?;
            let bias = if has_bias { Some(dense(&path(&format!("{name}.bias")), &shape[..1])?) } else { None };
            projections.push(Projection { name, weight, bias, adapter: None });
        }
        // `Config::projections` gives seven.
        if let Ok(projections) = projections.try_into() {
            blocks.push(Block {
                input_layernorm: dense(&path("input_layernorm.weight"), &[hidden])?,
                post_attention_layernorm: dense(&path("post_attention_layernorm.weight"), &[hidden])?,
                projections,
            });
        }
    }
    let lm_head = if config.tie_word_embeddings { None } else { Some(dense("lm_head.weight", &[vocab, hidden])?) };
    let head = Head { norm: dense("model.norm.weight", &[hidden])?, lm_head };
    let rope = Rope::new(config.head_dim, config.rope_theta, config.max_position_embeddings, placement.device)?;
    let (workspace, slots) = (Workspace::default(), Slots::default());
    Ok(Qwen2 { config, placement, embed_tokens, blocks, head, rope, workspace, slots })
}

/// Turns a dense model's linear layers into NF4, in place.
///
/// # Errors
/// When a weight is not finite or memory is short.
pub fn quantize(model: &mut Qwen2) -> Result<()> {
    for projection in model.blocks.iter_mut().flat_map(|block| &mut block.projections) {
        if let Weight::Dense(weight) = &projection.weight {
            projection.weight = Weight::Nf4(Nf4::quantize(weight)?.to_device(weight.device())?);
        }
    }
    Ok(())
}

/// Merges the selected adapter into the weights that it was trained on, expanded from NF4 where it is quantized; the layers
/// are dense afterwards. Other adapters are dropped: they were made for weights that are no more.
///
/// # Errors
/// When memory is short.
pub fn merge_in_place(model: &mut Qwen2) -> Result<()> {
    let kind = model.placement.dtype;
    for projection in model.blocks.iter_mut().flat_map(|block| &mut block.projections) {
        if let Some(adapter) = projection.adapter.take() {
            let weight = projection.weight(kind, &mut model.workspace)?;
            projection.weight = Weight::Dense(adapter.lora.merged(&weight)?.f_to_kind(kind)?);
        }
    }
    model.forget_adapters();
    Ok(())
}

/// Puts a fresh adapter on every target module and selects it.
///
/// # Errors
/// When no module matches, a pattern is wrong or memory is short.
pub fn new_adapter(model: &mut Qwen2, settings: &Settings, seed: u64) -> Result<()> {
    attach(model, DEFAULT, settings, |path, weight| Ok(Lora::init(settings, path, weight, seed)?))
}

/// Puts a stored adapter on the model and selects it.
///
/// # Errors
/// When a tensor is missing, left over or of another shape; the model is then as it was.
pub fn attach_adapter(model: &mut Qwen2, file: AdapterFile) -> Result<()> {
    add_adapter(model, DEFAULT, file)?;
    model.select_adapter(Some(DEFAULT))
}

/// Puts a stored adapter beside those that the model has; [`Qwen2::select_adapter`] makes the model compute with it.
///
/// # Errors
/// When the name is taken, or a tensor is missing, left over or of another shape; the model is then as it was.
pub fn add_adapter(model: &mut Qwen2, name: &str, file: AdapterFile) -> Result<()> {
    let selected = model.selected_adapter().map(str::to_owned);
    let added = attach_file(model, name, file);
    model.select_adapter(selected.as_deref())?;
    added
}

fn attach_file(model: &mut Qwen2, slot: &str, mut file: AdapterFile) -> Result<()> {
    let device = model.placement.device;
    let AdapterFile { settings, tensors, .. } = &mut file;
    attach(model, slot, settings, |path, weight| {
        let (n_out, n_in) = weight.size2()?;
        let rank = settings.rank_of(path)?;
        let mut take = |suffix: &str, shape: &[i64]| -> Result<Tensor> {
            let name = format!("{path}.{suffix}");
            let tensor = tensors.remove(&name).ok_or_else(|| adapter::Error::Lacks { name: name.clone() })?;
            if tensor.size() != shape {
                let (found, expected) = (tensor.size(), shape.to_vec());
                return Err(adapter::Error::OtherShape { name, found, expected }.into());
            }
            check_finite(&name, &tensor)?;
            Ok(tensor)
        };
        let lora_a = take("lora_A.weight", &[rank, n_in])?;
        let lora_b = take("lora_B.weight", &[n_out, rank])?;
        let magnitude = if settings.use_dora { Some(take("lora_magnitude_vector", &[n_out])?) } else { None };
        Ok(Lora::from_parts(settings, path, lora_a, lora_b, magnitude, device)?)
    })?;
    match tensors.keys().next() {
        Some(name) => {
            model.detach_adapter(slot)?;
            Err(adapter::Error::Stray { name: name.clone() }.into())
        }
        None => Ok(()),
    }
}

/// Makes and selects an adapter; when that fails, nothing of it is left.
fn attach(
    model: &mut Qwen2,
    slot: &str,
    settings: &Settings,
    make: impl FnMut(&str, &Tensor) -> Result<Lora>,
) -> Result<()> {
    model.open_slot(slot)?;
    let outcome = attach_layers(model, settings, make);
    if outcome.is_err() {
        model.detach_adapter(slot)?;
    }
    outcome
}

fn attach_layers(
    model: &mut Qwen2,
    settings: &Settings,
    mut make: impl FnMut(&str, &Tensor) -> Result<Lora>,
) -> Result<()> {
    let kind = model.placement.dtype;
    let mut n_attached = 0;
    for (idx, block) in model.blocks.iter_mut().enumerate() {
        for projection in &mut block.projections {
            let path = format!("model.layers.{idx}.{}", projection.name);
            if !settings.target_modules.matches(&path)? {
                continue;
            }
            let weight = projection.weight(kind, &mut model.workspace)?;
            let lora = make(&path, &weight)?;
            projection.attach(lora, kind, &mut model.workspace)?;
            n_attached += 1;
        }
    }
    // Products may take the weights as they are from here on.
    model.forget_workspace();
    if n_attached == 0 {
        let targets = match &settings.target_modules {
            TargetModules::Names(names) => names.join(", "),
            TargetModules::Pattern(pattern) => pattern.clone(),
        };
        return Err(adapter::Error::NoTargets { targets }.into());
    }
    Ok(())
}
