//! The shape of a Qwen2 model, as `config.json` gives it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Error, Result};
use crate::fsio;
use crate::quant;

/// The largest size that a config may name: a hundred times that of any Qwen2.5 model.
const MAX_SIZE: i64 = 1 << 24;

/// The most layers; Qwen2.5-72B has 80.
const MAX_LAYERS: i64 = 4096;

/// The shape and constants of a Qwen2 model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub num_key_value_heads: i64,
    pub head_dim: i64,
    pub rope_theta: f64,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub max_position_embeddings: i64,
}

/// `config.json` as written by transformers 4 (`rope_theta` at the top) and 5 (`rope_parameters`).
#[derive(Deserialize)]
struct Stored {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    rope_theta: Option<f64>,
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "default_positions")]
    max_position_embeddings: i64,
    #[serde(default)]
    use_sliding_window: bool,
    hidden_act: Option<String>,
}

/// Defaults of transformers' `Qwen2Config`.
fn default_eps() -> f64 {
    1e-6
}

fn default_positions() -> i64 {
    32_768
}

impl Config {
    /// Reads a model folder's `config.json`.
    ///
    /// # Errors
    /// When the file is missing, describes another architecture, or its sizes do not fit together.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_file(&dir.join("config.json"))
    }

    /// Reads a file in the form of a model folder's `config.json`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_file(path: &Path) -> Result<Self> {
        Self::from_json(fsio::read_json(path)?, path)
    }

    /// The shape in a JSON value; `path` serves messages.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_json(value: Value, path: &Path) -> Result<Self> {
        let architecture = |stored: &Value| {
            stored["architectures"][0].as_str().or(stored["model_type"].as_str()).unwrap_or("none").to_owned()
        };
        let found = architecture(&value);
        if !["Qwen2ForCausalLM", "qwen2"].contains(&found.as_str()) {
            return Err(Error::Architecture { path: path.to_owned(), found });
        }
        quant::refuse_other_schemes(&value)?;
        let stored: Stored = serde_json::from_value(value)
            .map_err(|error| fsio::Error::BadFile { path: path.to_owned(), message: error.to_string() })?;
        let bad = |key, found: String, expected: &str| {
            Err(Error::BadConfig { path: path.to_owned(), key, found, expected: expected.to_owned() })
        };
        let rope = |key: &str| stored.rope_parameters.as_ref().and_then(|rope| rope.get(key));
        if let Some(kind) = rope("rope_type").and_then(Value::as_str).filter(|kind| *kind != "default") {
            return bad("rope_parameters.rope_type", format!("`{kind}`"), "`default`");
        }
        if let Some(scaling) =
            stored.rope_scaling.as_ref().filter(|scaling| !scaling.is_null() && scaling["rope_type"] != "default")
        {
            return bad("rope_scaling", scaling.to_string(), "none");
        }
        if stored.use_sliding_window {
            return bad("use_sliding_window", "true".into(), "false");
        }
        if let Some(act) = stored.hidden_act.as_ref().filter(|act| *act != "silu") {
            return bad("hidden_act", format!("`{act}`"), "`silu`");
        }
        let heads = stored.num_attention_heads;
        let config = Self {
            vocab_size: stored.vocab_size,
            hidden_size: stored.hidden_size,
            intermediate_size: stored.intermediate_size,
            num_hidden_layers: stored.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: stored.num_key_value_heads.unwrap_or(heads),
            head_dim: stored.head_dim.unwrap_or(if heads > 0 { stored.hidden_size / heads } else { 0 }),
            rope_theta: stored.rope_theta.or(rope("rope_theta").and_then(Value::as_f64)).unwrap_or(10_000.0),
            rms_norm_eps: stored.rms_norm_eps,
            tie_word_embeddings: stored.tie_word_embeddings,
            max_position_embeddings: stored.max_position_embeddings,
        };
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("num_attention_heads", config.num_attention_heads),
            ("num_key_value_heads", config.num_key_value_heads),
            ("head_dim", config.head_dim),
            ("max_position_embeddings", config.max_position_embeddings),
        ];
        if let Some((key, size)) = sizes.into_iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
            return bad(key, size.to_string(), &format!("a size from 1 to {MAX_SIZE}"));
        }
        if config.num_hidden_layers > MAX_LAYERS {
            let expected = format!("at most {MAX_LAYERS} layers");
            return bad("num_hidden_layers", config.num_hidden_layers.to_string(), &expected);
        }
        if heads % config.num_key_value_heads != 0 {
            let expected = format!("a divisor of `num_attention_heads` {heads}");
            return bad("num_key_value_heads", config.num_key_value_heads.to_string(), &expected);
        }
        if config.head_dim % 2 != 0 {
            return bad("head_dim", config.head_dim.to_string(), "an even size");
        }
        Ok(config)
    }

    /// `config.json` as transformers 4 and 5 read it.
    pub fn to_json(&self, torch_dtype: &str) -> Value {
        json!({
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "attention_dropout": 0.0,
            "use_sliding_window": false,
            "use_cache": true,
            "initializer_range": 0.02,
            "torch_dtype": torch_dtype,
        })
    }

    /// The linear layers of one block: path below the block, `[out, in]`, whether it has a bias.
    pub fn projections(&self) -> [(&'static str, [i64; 2], bool); 7] {
        let (h, i) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        [
            ("self_attn.q_proj", [q, h], true),
            ("self_attn.k_proj", [kv, h], true),
            ("self_attn.v_proj", [kv, h], true),
            ("self_attn.o_proj", [h, q], false),
            ("mlp.gate_proj", [i, h], false),
            ("mlp.up_proj", [i, h], false),
            ("mlp.down_proj", [h, i], false),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Value {
        json!({"architectures": ["Qwen2ForCausalLM"], "vocab_size": 32, "hidden_size": 24, "intermediate_size": 40,
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2})
    }

    #[test]
    fn rope_theta_is_read_from_its_old_and_its_new_place() {
        let mut old = stored();
        old["rope_theta"] = json!(1e6);
        let mut new = stored();
        new["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1e6});
        let path = Path::new("config.json");
        let config = Config::from_json(old, path).unwrap();
        assert_eq!((config.rope_theta, config.head_dim), (1e6, 4));
        assert_eq!(config, Config::from_json(new, path).unwrap());
        assert_eq!(config, Config::from_json(config.to_json("float32"), path).unwrap());
    }

    #[test]
    fn other_architectures_and_sizes_are_refused_by_name() {
        let refuse = |key: &str, value: Value| {
            let mut stored = stored();
            stored[key] = value;
            Config::from_json(stored, Path::new("config.json")).unwrap_err().to_string()
        };
        assert!(refuse("architectures", json!(["LlamaForCausalLM"])).contains("LlamaForCausalLM"));
        assert!(refuse("num_key_value_heads", json!(4)).contains("a divisor of `num_attention_heads` 6"));
        assert!(refuse("hidden_size", json!(-1)).contains("`hidden_size` is -1"));
        assert!(refuse("rope_scaling", json!({"rope_type": "yarn"})).contains("yarn"));
        assert!(refuse("num_hidden_layers", json!(1_000_000)).contains("at most 4096 layers"));
        assert!(refuse("max_position_embeddings", json!(1i64 << 40)).contains("`max_position_embeddings`"));
        assert!(refuse("vocab_size", json!("x")).contains("config.json"));
    }
}
