//! GGUF for llama.cpp and Ollama: a Hugging Face folder in, one file out, with nothing but this program.
//!
//! Tensors stream through one at a time; quantized types have the reference's search for scales (`blocks`) and mix of
//! types (`mix`). The tokenizer and the chat template travel inside.

mod blocks;
mod file;
mod mix;
mod modelfile;
mod vocab;

pub use blocks::Storage;
pub use modelfile::modelfile;

use std::path::Path;

use serde::Serialize;
use tch::Kind;

use super::{Error, Result};
use crate::fsio;
use crate::model::Config;
use crate::stop::{Stop, Stopped};
use crate::tensor::{Checkpoint, as_slice};
use crate::text::Tokenizer;

use file::{TensorInfo, Value};
use mix::Mix;

/// What the weights are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum GgufType {
    #[serde(rename = "f16")]
    F16,
    #[serde(rename = "bf16")]
    Bf16,
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q4_k_m")]
    Q4KM,
}

impl GgufType {
    /// `general.file_type`, as llama.cpp numbers it.
    fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Bf16 => 32,
        }
    }
}

/// An export to be made.
#[derive(Debug)]
pub struct GgufRequest<'a> {
    /// A model folder in Hugging Face layout, not quantized.
    pub model: &'a Path,
    pub out: &'a Path,
    pub kind: GgufType,
    /// `general.name`.
    pub name: &'a str,
}

/// A finished export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    pub size_bytes: u64,
    pub n_tensors: usize,
    /// Matrices whose rows 256 does not divide and that are stored in a larger format than the mix asks for.
    pub n_fallbacks: usize,
}

/// A tensor on its way: its names there and here, its shape and type.
struct Planned {
    source: String,
    info: TensorInfo,
    storage: Storage,
}

/// Writes a GGUF file. `done` is called with the number of tensors written.
///
/// # Errors
/// When a file is missing or damaged, a shape is one that llama.cpp's Qwen2 does not know, a value does not fit into
/// f16, a stop is requested, or writing fails.
pub fn export_gguf(
    request: &GgufRequest<'_>,
    tokenizer: &Tokenizer,
    stop: &Stop,
    mut done: impl FnMut(u64),
) -> Result<Exported> {
    let config = Config::load(request.model)?;
    if config.num_attention_heads * config.head_dim != config.hidden_size {
        return Err(Error::GgufShape {
            heads: config.num_attention_heads,
            head_dim: config.head_dim,
            hidden_size: config.hidden_size,
        });
    }
    let weights = Checkpoint::open_dir(request.model)?;
    let plan = plan(&config, &weights, request.kind)?;
    let mut metadata = model_metadata(&config, request);
    metadata.extend(vocab::metadata(tokenizer, config.vocab_size as usize)?);
    let infos: Vec<TensorInfo> = plan.iter().map(|planned| planned.info.clone()).collect();
    // The closure may only fail with an I/O error; any other is kept here.
    let mut fault = None;
    let written = fsio::write_atomic(request.out, |out| {
        file::write_header(out, &metadata, &infos)?;
        for planned in &plan {
            match packed(planned, &weights, stop) {
                Ok(bytes) => file::write_tensor(out, &bytes)?,
                Err(error) => {
                    fault = Some(error);
                    return Err(std::io::Error::other("no more tensors"));
                }
            }
            done(1);
        }
        Ok(())
    });
    if let Some(error) = fault {
        return Err(error);
    }
    written?;
    let size_bytes = std::fs::metadata(request.out).map_err(fsio::Error::io("read", request.out))?.len();
    let n_fallbacks = plan
        .iter()
        .filter(|planned| request.kind == GgufType::Q4KM && planned.storage.block().0 < 256)
        .filter(|planned| planned.storage != Storage::F32)
        .count();
    Ok(Exported { size_bytes, n_tensors: plan.len(), n_fallbacks })
}

/// Every tensor in the order of the model, under llama.cpp's names.
fn plan(config: &Config, weights: &Checkpoint, kind: GgufType) -> Result<Vec<Planned>> {
    const BLOCK: [(&str, &str); 12] = [
        ("input_layernorm.weight", "attn_norm.weight"),
        ("self_attn.q_proj.weight", "attn_q.weight"),
        ("self_attn.q_proj.bias", "attn_q.bias"),
        ("self_attn.k_proj.weight", "attn_k.weight"),
        ("self_attn.k_proj.bias", "attn_k.bias"),
        ("self_attn.v_proj.weight", "attn_v.weight"),
        ("self_attn.v_proj.bias", "attn_v.bias"),
        ("self_attn.o_proj.weight", "attn_output.weight"),
        ("post_attention_layernorm.weight", "ffn_norm.weight"),
        ("mlp.gate_proj.weight", "ffn_gate.weight"),
        ("mlp.up_proj.weight", "ffn_up.weight"),
        ("mlp.down_proj.weight", "ffn_down.weight"),
    ];
    let n_layers = config.num_hidden_layers as usize;
    let mix = Mix { kind, n_layers, is_tied: config.tie_word_embeddings };
    let mut names = vec![("model.embed_tokens.weight".to_owned(), "token_embd.weight".to_owned(), None)];
    for layer in 0..n_layers {
        names.extend(BLOCK.map(|(source, target)| {
            (format!("model.layers.{layer}.{source}"), format!("blk.{layer}.{target}"), Some(layer))
        }));
    }
    names.push(("model.norm.weight".into(), "output_norm.weight".into(), None));
    if !config.tie_word_embeddings {
        names.push(("lm_head.weight".into(), "output.weight".into(), None));
    }
    let shape_of = |source: &str| -> Vec<i64> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        if source == "model.embed_tokens.weight" || source == "lm_head.weight" {
            return vec![vocab, hidden];
        }
        let projection = config.projections().into_iter().find(|(path, ..)| source.contains(path));
        match projection {
            Some((_, shape, _)) if source.ends_with(".bias") => vec![shape[0]],
            Some((_, shape, _)) => shape.to_vec(),
            None => vec![hidden],
        }
    };
    names
        .into_iter()
        .map(|(source, name, layer)| {
            let expected = shape_of(&source);
            let found = weights.shape(&source)?;
            if found != expected {
                return Err(crate::tensor::Error::Shape { name: source, found, expected }.into());
            }
            let shape: Vec<u64> = expected.iter().map(|&size| size as u64).collect();
            let storage = mix.storage_of(&name, &shape, layer);
            let size_bytes = storage.size_bytes(shape.iter().product());
            Ok(Planned { source, info: TensorInfo { name, shape, type_id: storage.type_id(), size_bytes }, storage })
        })
        .collect()
}

/// The bytes of one tensor.
fn packed(planned: &Planned, weights: &Checkpoint, stop: &Stop) -> Result<Vec<u8>> {
    stop.check("writing the GGUF file").map_err(|stopped| Stopped {
        resume: Some("run the same command again; the old file, if there was one, is untouched".into()),
        ..stopped
    })?;
    let tensor = weights.tensor(&planned.source)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let values = as_slice::<f32>(&tensor)?;
    // Every type but bf16 and f32 holds its scales, or the values themselves, in f16.
    let limit = if matches!(planned.storage, Storage::F32 | Storage::Bf16) { f32::MAX } else { 65_504.0 };
    match values.iter().find(|value| value.is_nan() || value.abs() > limit) {
        Some(&value) => Err(Error::GgufValue { name: planned.source.clone(), value }),
        None => Ok(planned.storage.pack(values)),
    }
}

fn model_metadata(config: &Config, request: &GgufRequest<'_>) -> Vec<(String, Value)> {
    let number = |value: i64| Value::U32(value as u32);
    [
        ("general.architecture", Value::Text("qwen2".into())),
        ("general.type", Value::Text("model".into())),
        ("general.name", Value::Text(request.name.to_owned())),
        ("general.file_type", Value::U32(request.kind.file_type())),
        ("general.quantization_version", Value::U32(2)),
        ("qwen2.block_count", number(config.num_hidden_layers)),
        ("qwen2.context_length", number(config.max_position_embeddings)),
        ("qwen2.embedding_length", number(config.hidden_size)),
        ("qwen2.feed_forward_length", number(config.intermediate_size)),
        ("qwen2.attention.head_count", number(config.num_attention_heads)),
        ("qwen2.attention.head_count_kv", number(config.num_key_value_heads)),
        ("qwen2.rope.freq_base", Value::F32(config.rope_theta as f32)),
        ("qwen2.attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32)),
        ("qwen2.vocab_size", number(config.vocab_size)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}
