//! A model folder written weight by weight, never whole in memory: what `quantize` and `init` leave.

use std::path::Path;

use serde_json::{Value, json};
use tch::Kind;

use super::save::greedy;
use super::weights::Weights;
use super::{Config, Error, Result};
use crate::fsio;
use crate::quant::{self, Nf4};
use crate::stop::Stop;
use crate::tensor::{Shards, Written, dtype_name};

/// How a folder is written.
#[derive(Debug)]
pub struct WriteRequest<'a> {
    pub out: &'a Path,
    /// The type of what is not quantized; `None` keeps the stored one.
    pub dtype: Option<Kind>,
    /// Whether the linear layers of the blocks are written in NF4, in bitsandbytes' layout.
    pub nf4: bool,
    pub max_shard_bytes: u64,
}

/// Quantizes a model folder into one in bitsandbytes' 4-bit layout, which transformers loads. `done` is called with the number
/// of weights finished.
///
/// # Errors
/// When the folder is quantized already or its own target, a file is damaged, a stop is requested, or writing fails.
pub fn quantize_folder(base: &Path, request: &WriteRequest<'_>, stop: &Stop, done: impl FnMut(u64)) -> Result<Written> {
    if matches!((base.canonicalize(), request.out.canonicalize()), (Ok(a), Ok(b)) if a == b) {
        return Err(Error::SameFolder { path: base.to_owned() });
    }
    let config = Config::load(base)?;
    let weights = Weights::open(base)?;
    if weights.is_nf4() {
        return Err(Error::QuantizedAlready { path: base.to_owned() });
    }
    let dtype = request.dtype.map_or_else(|| weights.kind(), Ok)?;
    let written = write_weights(&weights, &config, request, dtype, stop, done)?;
    // The base's own file, with all that it says and that has no use here.
    let mut stored: Value = fsio::read_json(&base.join("config.json"))?;
    let key = if stored.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    stored[key] = json!(dtype_name(dtype));
    stored["quantization_config"] = quant::quantization_config(dtype);
    fsio::write_json(&request.out.join("config.json"), &stored)?;
    Ok(written)
}

/// Writes a folder with random weights. The draws depend on the seed and each tensor's name only. `done` is called with the
/// number of weights finished.
///
/// # Errors
/// When a stop is requested or writing fails.
pub fn init_folder(
    config: &Config,
    seed: u64,
    request: &WriteRequest<'_>,
    tokens: EndTokens,
    stop: &Stop,
    done: impl FnMut(u64),
) -> Result<Written> {
    let dtype = request.dtype.unwrap_or(Kind::Float);
    let written = write_weights(&Weights::Random(seed), config, request, dtype, stop, done)?;
    let mut stored = config.to_json(dtype_name(dtype));
    stored["eos_token_id"] = json!(tokens.end);
    stored["pad_token_id"] = json!(tokens.pad);
    if request.nf4 {
        stored["quantization_config"] = quant::quantization_config(dtype);
    }
    fsio::write_json(&request.out.join("config.json"), &stored)?;
    fsio::write_json(&request.out.join("generation_config.json"), &greedy(tokens.end, tokens.pad))?;
    Ok(written)
}

/// The tokens that end an answer and that pad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndTokens {
    pub end: u32,
    pub pad: u32,
}

/// The number of weights that [`quantize_folder`] and [`init_folder`] write, for progress.
pub fn count_weights(config: &Config) -> u64 {
    weights_of(config).len() as u64
}

/// The number of parameters, tied ones counted once.
pub fn count_parameters(config: &Config) -> u64 {
    weights_of(config).iter().map(|(_, shape, _)| shape.iter().product::<i64>() as u64).sum()
}

/// About how many bytes the weights take in a file, `dense_bytes` a value where they are not in NF4.
pub fn estimate_bytes(config: &Config, nf4: bool, dense_bytes: u64) -> u64 {
    let size = |(_, shape, is_linear): &(String, Vec<i64>, bool)| {
        let n = shape.iter().product::<i64>() as u64;
        // Half a byte a value, one a block of 64 for its scale.
        if nf4 && *is_linear { n / 2 + n / 64 } else { n * dense_bytes }
    };
    weights_of(config).iter().map(size).sum()
}

/// Every weight of a model: its name, its shape, whether it is a linear layer of a block.
fn weights_of(config: &Config) -> Vec<(String, Vec<i64>, bool)> {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let mut weights = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden], false)];
    for idx in 0..config.num_hidden_layers {
        let path = |name: &str| format!("model.layers.{idx}.{name}");
        for (name, shape, has_bias) in config.projections() {
            weights.push((path(&format!("{name}.weight")), shape.to_vec(), true));
            if has_bias {
                weights.push((path(&format!("{name}.bias")), shape[..1].to_vec(), false));
            }
        }
        weights.push((path("input_layernorm.weight"), vec![hidden], false));
        weights.push((path("post_attention_layernorm.weight"), vec![hidden], false));
    }
    weights.push(("model.norm.weight".to_owned(), vec![hidden], false));
    if !config.tie_word_embeddings {
        weights.push(("lm_head.weight".to_owned(), vec![vocab, hidden], false));
    }
    weights
}

fn write_weights(
    weights: &Weights,
    config: &Config,
    request: &WriteRequest<'_>,
    dtype: Kind,
    stop: &Stop,
    mut done: impl FnMut(u64),
) -> Result<Written> {
    let mut shards = Shards::new(request.out, request.max_shard_bytes)?;
    for (name, shape, is_linear) in weights_of(config) {
        stop.check("writing the model")?;
        let tensor = weights.tensor(&name, &shape)?.f_to_kind(dtype)?;
        let parts = match is_linear && request.nf4 {
            true => quant::stored_tensors(&name, &Nf4::quantize(&tensor)?.with_dtype(dtype))?,
            false => vec![(name, tensor)],
        };
        shards.push(parts)?;
        done(1);
    }
    Ok(shards.finish()?)
}
