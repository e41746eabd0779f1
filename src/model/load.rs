//! A model from a folder or from random numbers, with or without NF4 and an adapter.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::block::Block;
use super::projection::{Projection, Weight, Workspace};
use super::qwen2::{Head, Qwen2};
use super::rope::Rope;
use super::{Config, Error, Result};
use crate::adapter::{self, AdapterFile, Lora, Settings};
use crate::quant::Nf4;
use crate::tensor::{Checkpoint, Placement, Rng};

/// How the linear layers of the blocks are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    None,
    Nf4,
}

/// Where a model's weights come from.
#[derive(Debug)]
enum Base<'a> {
    Folder(&'a Path),
    /// Random weights: normal with deviation 0.02, biases 0, norms 1 (transformers' `_init_weights`).
    Random(u64),
}

/// Loads a model folder; each weight is quantized as it is read, so that one 16-bit tensor at a time is in memory.
///
/// # Errors
/// When a file is missing or damaged, a tensor has another shape than the config says, or memory is short.
pub fn load(dir: &Path, placement: Placement, quantization: Quantization) -> Result<Qwen2> {
    build(Config::load(dir)?, &Base::Folder(dir), placement, quantization)
}

/// A model with random weights. The draws depend on the seed and each tensor's name only.
///
/// # Errors
/// When memory is short.
pub fn init(config: Config, seed: u64, placement: Placement) -> Result<Qwen2> {
    build(config, &Base::Random(seed), placement, Quantization::None)
}

fn build(config: Config, base: &Base<'_>, placement: Placement, quantization: Quantization) -> Result<Qwen2> {
    let checkpoint = match base {
        Base::Folder(dir) => Some(Checkpoint::open_dir(dir)?),
        Base::Random(_) => None,
    };
    let raw = |name: &str, shape: &[i64]| -> Result<Tensor> {
        Ok(match (&checkpoint, base) {
            (Some(checkpoint), _) => checkpoint.tensor_of_shape(name, shape)?,
            (None, Base::Random(seed)) if name.ends_with("proj.weight") || shape.len() == 2 => {
                Rng::named(*seed, name).normal(shape, 0.02)?
            }
            _ if name.ends_with("bias") => Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?,
            _ => Tensor::f_ones(shape, (Kind::Float, Device::Cpu))?,
        })
    };
    let dense = |name: &str, shape: &[i64]| -> Result<Tensor> {
        Ok(raw(name, shape)?.f_to_device(placement.device)?.f_to_kind(placement.dtype)?)
    };
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let embed_tokens = dense("model.embed_tokens.weight", &[vocab, hidden])?;
    let mut blocks = Vec::with_capacity(config.num_hidden_layers as usize);
    for idx in 0..config.num_hidden_layers {
        let path = |name: &str| format!("model.layers.{idx}.{name}");
        let mut projections = Vec::with_capacity(7);
        for (name, shape, has_bias) in config.projections() {
            let weight = match quantization {
                Quantization::None => Weight::Dense(dense(&path(&format!("{name}.weight")), &shape)?),
                Quantization::Nf4 => Weight::Nf4(Nf4::quantize(&raw(&path(&format!("{name}.weight")), &shape)?)?),
            };
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
    Ok(Qwen2 { config, placement, embed_tokens, blocks, head, rope, workspace: Workspace::default() })
}

/// Turns a dense model's linear layers into NF4, in place.
///
/// # Errors
/// When a weight is not finite or memory is short.
pub fn quantize(model: &mut Qwen2) -> Result<()> {
    for projection in model.blocks.iter_mut().flat_map(|block| &mut block.projections) {
        if let Weight::Dense(weight) = &projection.weight {
            projection.weight = Weight::Nf4(Nf4::quantize(weight)?);
        }
    }
    Ok(())
}

/// Merges every adapter into the weight that it was trained on, expanded from NF4 where it is quantized; the layers
/// are dense afterwards.
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
    Ok(())
}

/// Puts a fresh adapter on every target module.
///
/// # Errors
/// When no module matches, a pattern is wrong or memory is short.
pub fn new_adapter(model: &mut Qwen2, settings: &Settings, seed: u64) -> Result<()> {
    attach(model, settings, |path, weight| Ok(Lora::init(settings, path, weight, seed)?))
}

/// Puts a stored adapter on the model.
///
/// # Errors
/// When a tensor is missing, left over or of another shape.
pub fn attach_adapter(model: &mut Qwen2, mut file: AdapterFile) -> Result<()> {
    let device = model.placement.device;
    let AdapterFile { settings, tensors, .. } = &mut file;
    attach(model, settings, |path, weight| {
        let (n_out, n_in) = weight.size2()?;
        let rank = settings.rank_of(path)?;
        let mut take = |suffix: &str, shape: &[i64]| -> Result<Tensor> {
            let name = format!("{path}.{suffix}");
            let tensor = tensors.remove(&name).ok_or_else(|| crate::tensor::Error::Missing {
                name: name.clone(),
                path: "adapter_model.safetensors".into(),
            })?;
            let found = tensor.size();
            if found == shape {
                return Ok(tensor);
            }
            Err(crate::tensor::Error::Shape { name, found, expected: shape.to_vec() }.into())
        };
        let lora_a = take("lora_A.weight", &[rank, n_in])?;
        let lora_b = take("lora_B.weight", &[n_out, rank])?;
        let magnitude = if settings.use_dora { Some(take("lora_magnitude_vector", &[n_out])?) } else { None };
        Ok(Lora::from_parts(settings, path, lora_a, lora_b, magnitude, device)?)
    })?;
    match tensors.keys().next() {
        Some(name) => Err(adapter::Error::Stray { name: name.clone() }.into()),
        None => Ok(()),
    }
}

fn attach(model: &mut Qwen2, settings: &Settings, mut make: impl FnMut(&str, &Tensor) -> Result<Lora>) -> Result<()> {
    let kind = model.placement.dtype;
    let mut n_attached = 0;
    for (idx, block) in model.blocks.iter_mut().enumerate() {
        for projection in &mut block.projections {
            let path = format!("model.layers.{idx}.{}", projection.name);
            if !settings.target_modules.matches(&path)? {
                continue;
            }
            if projection.adapter.is_some() {
                return Err(Error::AdapterTwice { module: path });
            }
            let weight = projection.weight(kind, &mut model.workspace)?;
            let lora = make(&path, &weight)?;
            projection.attach(lora, kind, &mut model.workspace)?;
            n_attached += 1;
        }
    }
    if n_attached == 0 {
        let targets = format!("{:?}", settings.target_modules);
        return Err(adapter::Error::NoTargets { targets }.into());
    }
    Ok(())
}
