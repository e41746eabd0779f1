//! The demo's sizes, and the stage files made from them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{self, StageConfig};
use crate::model::Config;

/// The sizes of a demo. The defaults take under ten minutes on two CPU cores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DemoSettings {
    pub seed: u64,
    /// Scenarios generated, before validation and de-duplication.
    pub n_scenarios: usize,
    /// Texts about codes for the base model.
    pub n_texts: usize,
    pub vocab_size: usize,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub base_steps: u64,
    pub sft_steps: u64,
    pub orpo_steps: u64,
}

impl Default for DemoSettings {
    fn default() -> Self {
        Self {
            seed: 17,
            n_scenarios: 20_000,
            n_texts: 30_000,
            vocab_size: 2048,
            hidden_size: 192,
            intermediate_size: 512,
            num_hidden_layers: 4,
            base_steps: 800,
            sft_steps: 450,
            orpo_steps: 40,
        }
    }
}

impl DemoSettings {
    /// Sizes with which every step runs in seconds and nothing is learned.
    pub fn tiny() -> Self {
        Self {
            n_scenarios: 600,
            n_texts: 300,
            vocab_size: 400,
            hidden_size: 64,
            intermediate_size: 64,
            num_hidden_layers: 1,
            base_steps: 3,
            sft_steps: 3,
            orpo_steps: 2,
            ..Self::default()
        }
    }
}

/// The stages, named as their folders.
const STAGES: [&str; 3] = ["base", "sft", "orpo"];

impl DemoSettings {
    /// The base model's shape: heads of 32, two query heads for each key head, tied embeddings.
    pub fn shape(&self, vocab_size: usize) -> Config {
        let heads = self.hidden_size / 32;
        Config {
            vocab_size: vocab_size as i64,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: (heads / 2).max(1),
            head_dim: 32,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            max_position_embeddings: 512,
        }
    }

    /// The text of a stage's file: `base`, `sft` or `orpo`.
    pub fn stage_file(&self, name: &str, out: &Path) -> String {
        let path = |below: &str| format!("\"{}\"", out.join(below).display().to_string().replace('"', "\\\""));
        let lora = |init: &str| {
            format!(
                "lora:\n  r: 16\n  lora_alpha: 32\n  target_modules: all-linear\n  use_dora: true\n  random_state: {}\n{init}",
                self.seed
            )
        };
        let training = |steps: u64, batch: u64, rate: &str, warmup: &str| {
            format!(
                "training:\n  max_steps: {steps}\n  per_device_train_batch_size: {batch}\n  learning_rate: {rate}\n  lr_scheduler_type: cosine\n  warmup_ratio: {warmup}\n  weight_decay: 0.01\n  optim: adamw_torch\n  save_strategy: no\n  logging_steps: 10\n  report_to: none\n  seed: {}\n",
                self.seed
            )
        };
        let model = |dir: &str, in_4bit: bool| {
            format!(
                "model:\n  name: {}\n  max_seq_length: 256\n  load_in_4bit: {in_4bit}\n  dtype: float32\n",
                path(dir)
            )
        };
        match name {
            "base" => format!(
                "{}{}data:\n  train: {}\n",
                model("base/init", false),
                training(self.base_steps, 32, "3.0e-3", "0.05"),
                path("base/corpus.jsonl")
            ),
            "sft" => format!(
                "{}{}{}  eval_strategy: epoch\ndata:\n  train: {}\n  validation: {}\n",
                model("base/final", true),
                lora(""),
                training(self.sft_steps, 32, "3.0e-3", "0.05"),
                path("data/train.jsonl"),
                path("data/val.jsonl")
            ),
            _ => format!(
                "{}{}orpo:\n  beta: 0.1\n  max_prompt_length: 192\n  nll_on: completion\n{}  eval_strategy: epoch\ndata:\n  train: {}\n  validation: {}\n",
                model("base/final", true),
                lora(&format!("  init_adapter: {}\n", path("sft/final"))),
                training(self.orpo_steps, 16, "2.0e-4", "0.1"),
                path("data/orpo_train.jsonl"),
                path("data/orpo_val.jsonl")
            ),
        }
    }

    /// A stage's settings, read as any stage file is.
    ///
    /// # Errors
    /// When the text is not a sound stage file.
    pub fn stage(&self, name: &str, out: &Path) -> Result<StageConfig, config::Error> {
        let file = out.join("configs").join(format!("{name}.yaml"));
        Ok(config::parse(name, &file.display().to_string(), &self.stage_file(name, out), &[])?.stage)
    }

    /// Every stage's name.
    pub fn stages(&self) -> [&'static str; 3] {
        STAGES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_file_is_sound_and_warns_of_nothing() {
        let settings = DemoSettings::default();
        let out = Path::new("a folder/with \"quotes\"");
        for name in settings.stages() {
            let loaded = config::parse(name, name, &settings.stage_file(name, out), &[]).unwrap();
            assert_eq!(loaded.warnings, Vec::<String>::new());
            assert_eq!(loaded.stage.orpo.is_some(), name == "orpo");
            assert_eq!(loaded.stage.lora.is_some(), name != "base");
            assert!(loaded.stage.data.train.starts_with(out));
        }
    }
}
