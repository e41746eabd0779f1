//! A small Qwen2 model with random weights, in memory or as a folder with the fixture's tokenizer, and adapters for it.

use std::path::Path;

use axismapper::adapter::{self, Settings};
use axismapper::model::{self, Config, Qwen2};
use axismapper::tensor::{Placement, Rng};
use axismapper::text::Tokenizer;
use tch::{Device, Kind};

use super::golden::fixture;

/// Sharp enough that its answers differ.
pub fn small_model(vocab_size: i64, max_position_embeddings: i64, seed: u64) -> Qwen2 {
    let config = Config {
        vocab_size,
        hidden_size: 24,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        max_position_embeddings,
    };
    let mut rng = Rng::named(seed, "sharpen");
    let model = model::init(config, 1, Placement { device: Device::Cpu, dtype: Kind::Float }).unwrap();
    for (_, tensor) in model.dense_weights() {
        let noise = rng.normal(&tensor.size(), 0.4).unwrap();
        let _ = tch::no_grad(|| tensor.shallow_clone().f_add_(&noise).unwrap());
    }
    model
}

/// Writes a model folder.
pub fn write_folder(dir: &Path, seed: u64) {
    let tokenizer = Tokenizer::load(&fixture("tokenizer")).unwrap();
    let model = small_model(tokenizer.vocab_size() as i64, 512, seed);
    model::save(&model, dir, tokenizer.eos_id(), tokenizer.pad_id()).unwrap();
    tokenizer.save(dir).unwrap();
}

/// Writes a LoRA adapter for such a model that changes its answers.
pub fn write_adapter(dir: &Path, seed: u64) {
    let mut model = small_model(Tokenizer::load(&fixture("tokenizer")).unwrap().vocab_size() as i64, 512, 1);
    let settings = serde_json::json!({"r": 4, "lora_alpha": 8.0, "target_modules": ["q_proj", "v_proj", "down_proj"]});
    let settings: Settings = serde_json::from_value(settings).unwrap();
    model::new_adapter(&mut model, &settings, seed).unwrap();
    let mut rng = Rng::named(seed, "adapter");
    let parameters = model.parameters();
    for parameter in &parameters {
        let noise = rng.normal(&parameter.tensor.size(), 0.3).unwrap();
        let _ = tch::no_grad(|| parameter.tensor.shallow_clone().f_add_(&noise).unwrap());
    }
    let tensors = parameters.iter().map(|parameter| (parameter.name.clone(), &parameter.tensor));
    adapter::save(dir, &settings, "m", tensors).unwrap();
}
