//! What a stage will take: memory from shapes, time from a measured rate, cost from both; and how it was in the end.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::size_text;
use crate::adapter;
use crate::config::{Dtype, EvalStrategy, Lora, Optim, StageConfig};
use crate::fsio;
use crate::model::{Config, MAX_GROUP_SCORES, count_parameters, estimate_bytes};
use crate::pipeline::{Preview, adapter_settings};
use crate::train::{CHUNK_ROWS, KEEP_BYTES};

/// The name of the file in a stage's folder.
const FILE: &str = "estimate.json";

/// Program, libtorch and what allocators hold, seen on Linux with libtorch 2.11.
const PROGRAM_BYTES: u64 = 300_000_000;

/// Evaluating a token costs about a third of training on it: one pass of three.
const EVALUATION_SHARE: f64 = 1.0 / 3.0;

/// The tokens of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub steps: u64,
    /// Tokens that the steps train on.
    pub trained: u64,
    /// Tokens of all evaluations together.
    pub evaluated: u64,
    /// Tokens of the largest micro-batch.
    pub largest_batch: u64,
    /// Tokens of the longest record.
    pub longest: u64,
}

impl Tokens {
    /// The tokens of a stage whose records were counted.
    pub fn of(preview: &Preview, stage: &StageConfig) -> Self {
        let epochs = preview.steps as f64 / preview.steps_per_epoch.max(1) as f64;
        let n_evaluations = match stage.training.eval_strategy {
            EvalStrategy::No => 0,
            EvalStrategy::Steps => preview.steps / stage.training.eval_steps.max(1),
            EvalStrategy::Epoch => epochs.ceil() as u64,
        };
        Self {
            steps: preview.steps,
            trained: (epochs * preview.n_tokens as f64).round() as u64,
            evaluated: n_evaluations * preview.n_validation_tokens as u64,
            largest_batch: preview.largest_batch as u64,
            longest: preview.longest as u64,
        }
    }
}

/// The peak of memory by what it is for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// The frozen weights; with full fine-tuning, all of them.
    pub weights: u64,
    /// What is trained: values of an adapter, gradients, the optimizer's states.
    pub trained: u64,
    /// The inputs of all blocks, and what else of them is kept.
    pub kept: u64,
    /// One block at work: expanded weights, activations, attention scores.
    pub block: u64,
    /// A chunk of logits and their gradient.
    pub head: u64,
    /// Program and libraries.
    pub program: u64,
}

impl Footprint {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.floor() + self.kept + self.block + self.head
    }

    /// What is there whatever the records are.
    pub fn floor(&self) -> u64 {
        self.weights + self.trained + self.program
    }

    /// Bytes of a checkpoint: what is trained and the states of the optimizer.
    pub fn checkpoint(&self) -> u64 {
        self.trained
    }
}

/// The memory that a stage takes with micro-batches of at most `largest_batch` tokens and records of at most `longest`.
///
/// # Errors
/// When a pattern of the adapter's settings does not parse.
pub fn footprint(
    shape: &Config,
    stage: &StageConfig,
    largest_batch: u64,
    longest: u64,
) -> Result<Footprint, adapter::Error> {
    let width: u64 = match stage.model.dtype {
        Dtype::Bfloat16 => 2,
        Dtype::Float32 => 4,
    };
    let size = |n: i64| n.max(0) as u64;
    let (layers, hidden, inner) =
        (size(shape.num_hidden_layers), size(shape.hidden_size), size(shape.intermediate_size));
    let weights = estimate_bytes(shape, stage.model.load_in_4bit, width);
    // Values in the model's own type are counted among the weights already.
    let (n_trained, value_bytes) = match &stage.lora {
        Some(_) => (count_adapter(shape, stage)?, 4),
        None => (count_parameters(shape), 0),
    };
    let state_bytes = match stage.training.optim {
        Optim::AdamwTorch => 8.0,
        // Two bytes, and two scales in blocks of 256.
        Optim::Adamw8bit | Optim::PagedAdamw8bit => 2.0 + 8.0 / 256.0,
    };
    let trained = n_trained * (value_bytes + 4) + (n_trained as f64 * state_bytes) as u64;
    let per_token = 6 * hidden + 3 * inner;
    // Records of like length attend together, as far as their scores stay within a bound.
    let group = (largest_batch * longest).min((longest * longest).max(MAX_GROUP_SCORES as u64));
    let scores = size(shape.num_attention_heads) * group * 4;
    let besides = match (stage.training.gradient_checkpointing, &stage.lora) {
        (true, _) => (KEEP_BYTES as u64).min(layers * largest_batch * per_token * width),
        (false, Some(lora)) => layers * largest_batch * kept_whole(shape, lora) * width,
        // Graphs of all blocks.
        (false, None) => layers * (2 * largest_batch * per_token * width + 2 * scores),
    };
    let kept = layers * largest_batch * hidden * width + besides;
    // Each layer of a block has a buffer of its own for its expanded weight.
    let expanded = shape.projections().iter().map(|(_, [n, m], _)| size(n * m)).sum::<u64>();
    // With DoRA and dropout: mask, dropped input, and two products of the widest layer.
    let dropped = match &stage.lora {
        Some(lora) if lora.use_dora && lora.lora_dropout > 0.0 => 2 * (hidden + inner),
        _ => 0,
    };
    let block = expanded * width + largest_batch * (2 * per_token + dropped) * width + 2 * scores;
    // Logits in the model's type, in 32 bits, and their exponentials.
    let head = (CHUNK_ROWS as u64).min(largest_batch) * size(shape.vocab_size) * (width + 8);
    Ok(Footprint { weights, trained, kept, block, head, program: PROGRAM_BYTES })
}

/// What a block leaves of a token besides its input when all projections are kept, in elements: the input of the MLP, the
/// outputs of projections but those back to the hidden size, and with DoRA its own products of all of them, which without
/// dropout stand for the outputs.
fn kept_whole(shape: &Config, lora: &Lora) -> u64 {
    let widths: Vec<i64> = shape.projections().iter().map(|(_, [n_out, _], _)| *n_out).collect();
    let all: i64 = widths.iter().sum();
    let outputs = all - 2 * shape.hidden_size;
    let products = match (lora.use_dora, lora.lora_dropout > 0.0) {
        (false, _) => outputs,
        (true, false) => all,
        (true, true) => outputs + all,
    };
    (shape.hidden_size + products + widths.len() as i64 * lora.r).max(0) as u64
}

/// The parameters of a stage's adapter.
fn count_adapter(shape: &Config, stage: &StageConfig) -> Result<u64, adapter::Error> {
    let Some(lora) = &stage.lora else { return Ok(0) };
    let settings = adapter_settings(lora);
    let mut n = 0;
    for idx in 0..shape.num_hidden_layers {
        for (name, [n_out, n_in], _) in shape.projections() {
            let path = format!("model.layers.{idx}.{name}");
            if settings.target_modules.matches(&path)? {
                n += settings.rank_of(&path)? * (n_in + n_out) + if settings.use_dora { n_out } else { 0 };
            }
        }
    }
    Ok(n.max(0) as u64)
}

/// What measured steps showed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Tokens trained on in a second, prompts included.
    pub tokens_per_second: f64,
    /// Steps that were measured, without the first.
    pub steps: u64,
    /// The most memory held meanwhile, loading included, where the system says it.
    pub peak_bytes: Option<u64>,
}

/// What an hour of the machine costs, in any currency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Price(pub f64);

/// What a stage is expected to take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub stage: String,
    /// Identifies the settings and the device that were estimated.
    pub settings: String,
    pub tokens: Tokens,
    pub footprint: Footprint,
    pub measured: Option<Rate>,
    /// None where no rate is known.
    pub seconds: Option<f64>,
    pub peak_bytes: u64,
    pub price_per_hour: Option<Price>,
    pub cost: Option<f64>,
    /// How it was in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<Actual>,
}

/// What a stage took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Actual {
    pub seconds: f64,
    pub peak_bytes: Option<u64>,
}

impl Estimate {
    /// Puts figures together. `settings` identifies what is estimated, as [`Estimate::settings_of`] gives it.
    pub fn new(
        stage: &StageConfig,
        settings: String,
        (tokens, footprint): (Tokens, Footprint),
        measured: Option<Rate>,
        price_per_hour: Option<Price>,
    ) -> Self {
        let n = tokens.trained as f64 + tokens.evaluated as f64 * EVALUATION_SHARE;
        let seconds = measured.map(|rate| n / rate.tokens_per_second.max(1e-9));
        // A measured peak is that of the longest records; a formula may leave something out.
        let peak_bytes = measured.and_then(|rate| rate.peak_bytes).unwrap_or_else(|| footprint.total());
        let cost = seconds.zip(price_per_hour).map(|(seconds, Price(price))| seconds / 3600.0 * price);
        let stage = stage.name.clone();
        Self { stage, settings, tokens, footprint, measured, seconds, peak_bytes, price_per_hour, cost, actual: None }
    }

    /// Identifies a stage's settings on a device.
    pub fn settings_of(yaml: &str, device: &str) -> String {
        fsio::sha256_bytes(format!("{device}\n{yaml}").as_bytes())
    }

    /// Writes the estimate into the stage's folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), fsio::Error> {
        fsio::write_json(&dir.join(FILE), self)
    }

    /// The estimate in a stage's folder, when there is one of these settings.
    pub fn read(dir: &Path, settings: &str) -> Option<Self> {
        let estimate: Self = fsio::read_json(&dir.join(FILE)).ok()?;
        (estimate.settings == settings).then_some(estimate)
    }

    /// The estimate as lines of text.
    pub fn text(&self) -> String {
        let Footprint { weights, trained, kept, block, head, program } = self.footprint;
        let whole = size_text(self.peak_bytes);
        let how = if self.measured.is_some_and(|rate| rate.peak_bytes.is_some()) { "measured" } else { "from shapes" };
        let parts = [
            ("weights", weights),
            ("adapter and optimizer", trained),
            ("kept of all blocks", kept),
            ("a block at work", block),
            ("logits", head),
            ("program", program),
        ];
        let parts: Vec<String> = parts.iter().map(|(name, bytes)| format!("{name} {}", size_text(*bytes))).collect();
        let Tokens { steps, trained, evaluated, largest_batch, .. } = self.tokens;
        let mut text = format!(
            "  {steps} steps, {trained} tokens to train on, {evaluated} to evaluate; the largest micro-batch has {largest_batch}\n\
             \x20 memory: {whole} at most ({how}); by shapes {}: {}\n",
            size_text(self.footprint.total()),
            parts.join(", ")
        );
        text += &match (self.seconds, self.measured) {
            (Some(seconds), Some(rate)) => {
                format!(
                    "  time: {}, at {:.0} tokens/s over {}\n",
                    time_text(seconds),
                    rate.tokens_per_second,
                    steps_text(rate.steps)
                )
            }
            _ => "  time: not known; --measure takes a few steps and says\n".to_owned(),
        };
        if let (Some(cost), Some(Price(price))) = (self.cost, self.price_per_hour) {
            text += &format!("  cost: {cost:.2} at {price} an hour\n");
        }
        text
    }
}

/// `1 step`, `3 steps`.
pub fn steps_text(n: u64) -> String {
    if n == 1 { "1 step".into() } else { format!("{n} steps") }
}

/// `estimated 12 min and 1.2 GB, took 13 min and 1.1 GB`.
pub fn compared(estimate: &Estimate, actual: &Actual) -> String {
    let told = |seconds: Option<f64>, bytes: Option<u64>| {
        let parts = [seconds.map(time_text), bytes.map(size_text)];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
    };
    format!(
        "estimated {}, took {}",
        told(estimate.seconds, Some(estimate.peak_bytes)),
        told(Some(actual.seconds), actual.peak_bytes)
    )
}

/// `8 s`, `12 min`, `3 h 05 min`.
fn time_text(seconds: f64) -> String {
    match seconds.round().max(0.0) as u64 {
        whole @ 0..120 => format!("{whole} s"),
        whole @ 120..3600 => format!("{} min", (whole + 30) / 60),
        whole => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::parse;

    fn qwen(hidden: i64, inner: i64, layers: i64, heads: i64, kv: i64, is_tied: bool) -> Config {
        let vocab = if is_tied { 151_936 } else { 152_064 };
        let value = json!({"model_type": "qwen2", "vocab_size": vocab, "hidden_size": hidden,
            "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv, "tie_word_embeddings": is_tied});
        Config::from_json(value, "config.json".as_ref()).unwrap()
    }

    fn stage(lora: &str, optim: &str) -> StageConfig {
        let text = format!(
            "model: {{name: m, load_in_4bit: true}}\nlora: {{r: 16, target_modules: all-linear, {lora}}}\n\
             training: {{optim: {optim}, per_device_train_batch_size: 4}}\ndata: {{train: t}}\n"
        );
        parse("s", "s.yaml", &text, &[]).unwrap().stage
    }

    /// Peaks that were measured (docs/benchmarks.md), in GB; a formula may be a fifth above, and not below.
    #[test]
    fn the_formula_is_near_what_was_measured() {
        let half = qwen(896, 4864, 24, 14, 2, true);
        let seven = qwen(3584, 18_944, 28, 28, 4, false);
        for (shape, stage, largest, longest, measured) in [
            (&half, stage("use_dora: false", "adamw_torch"), 400, 120, 1.27),
            (&half, stage("use_dora: true", "adamw_torch"), 400, 120, 1.27),
            (&half, stage("use_dora: false, lora_dropout: 0.05", "adamw_torch"), 603, 159, 1.32),
            (&half, stage("use_dora: true, lora_dropout: 0.05", "adamw_torch"), 603, 159, 1.36),
            (&half, stage("use_dora: true, lora_dropout: 0.05", "adamw_torch"), 1726, 475, 1.72),
            (&seven, stage("use_dora: true", "adamw_torch"), 128, 128, 7.05),
        ] {
            let found = footprint(shape, &stage, largest, longest).unwrap().total() as f64 / 1e9;
            assert!((measured..measured * 1.2).contains(&found), "{found} for {measured}");
        }
    }

    #[test]
    fn an_adapter_has_the_parameters_that_peft_counts() {
        // PEFT's print_trainable_parameters for Qwen2.5-0.5B, r = 16, all seven projections.
        let half = qwen(896, 4864, 24, 14, 2, true);
        assert_eq!(count_adapter(&half, &stage("use_dora: false", "adamw_torch")).unwrap(), 8_798_208);
        let dora = count_adapter(&half, &stage("use_dora: true", "adamw_torch")).unwrap();
        assert_eq!(dora - 8_798_208, 24 * (896 + 128 + 128 + 896 + 4864 + 4864 + 896));
        let few = stage("use_dora: false", "adamw_torch");
        let full = StageConfig { lora: None, ..few };
        assert_eq!(count_adapter(&half, &full).unwrap(), 0);
    }

    #[test]
    fn without_checkpointing_every_block_is_kept() {
        let half = qwen(896, 4864, 24, 14, 2, true);
        let of = |lora: &str, checkpointing: bool| {
            let mut stage = stage(lora, "adamw_torch");
            stage.training.gradient_checkpointing = checkpointing;
            footprint(&half, &stage, 2048, 512).unwrap().kept
        };
        // bf16; the input, that of the MLP, q, k, v, gate, up, and seven products with A.
        let lora = 24 * 2048 * 2 * (2 * 896 + 896 + 128 + 128 + 4864 + 4864 + 7 * 16);
        assert_eq!(of("use_dora: false", false), lora);
        // And o and down.
        assert_eq!(of("use_dora: true, lora_dropout: 0.0", false), lora + 24 * 2048 * 2 * 2 * 896);
        assert!(of("use_dora: true, lora_dropout: 0.1", false) > of("use_dora: true, lora_dropout: 0.0", false));
        assert!(of("use_dora: false", true) < lora);
    }

    #[test]
    fn eight_bits_and_shorter_records_take_less() {
        let half = qwen(896, 4864, 24, 14, 2, true);
        let of = |optim: &str, tokens| footprint(&half, &stage("use_dora: true", optim), tokens, tokens).unwrap();
        assert!(of("adamw_8bit", 512).trained < of("adamw_torch", 512).trained);
        assert!(of("adamw_torch", 128).total() < of("adamw_torch", 1024).total());
        assert!(of("adamw_torch", 1024).floor() < of("adamw_torch", 1024).total());
    }

    #[test]
    fn time_and_cost_follow_from_the_rate() {
        let stage = stage("use_dora: true", "adamw_torch");
        let half = qwen(896, 4864, 24, 14, 2, true);
        let tokens = Tokens { steps: 10, trained: 30_000, evaluated: 9_000, largest_batch: 400, longest: 120 };
        let footprint = footprint(&half, &stage, 400, 120).unwrap();
        let rate = Rate { tokens_per_second: 100.0, steps: 2, peak_bytes: Some(1_200_000_000) };
        let known = Estimate::new(&stage, "x".into(), (tokens, footprint), Some(rate), Some(Price(3.6)));
        assert_eq!((known.seconds, known.peak_bytes), (Some(330.0), 1_200_000_000));
        assert!((known.cost.unwrap() - 0.33).abs() < 1e-9);
        let actual = Actual { seconds: 780.0, peak_bytes: Some(1_100_000_000) };
        assert_eq!(compared(&known, &actual), "estimated 6 min and 1.2 GB, took 13 min and 1.1 GB");
        let text = known.text();
        assert!(text.contains("time: 6 min, at 100 tokens/s over 2 steps") && text.contains("cost: 0.33"), "{text}");

        let unknown = Estimate::new(&stage, "x".into(), (tokens, footprint), None, Some(Price(1.0)));
        assert_eq!((unknown.seconds, unknown.cost), (None, None));
        assert!(unknown.text().contains("--measure"));
        assert!(compared(&unknown, &actual).starts_with("estimated 1."), "{}", compared(&unknown, &actual));

        let dir = tempfile::tempdir().unwrap();
        known.write(dir.path()).unwrap();
        assert_eq!(Estimate::read(dir.path(), "x"), Some(known));
        assert_eq!(Estimate::read(dir.path(), "other settings"), None);
    }
}
