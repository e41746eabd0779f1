//! A stage's settings: their meaning, their defaults, and how they are read.
//!
//! Defaults are those of transformers' `TrainingArguments` (5.23), PEFT's `LoraConfig` (0.21) and TRL's `SFTConfig`
//! and `ORPOConfig` (1.16), except where a field says otherwise.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;
use serde_json::{Map, Value};

use super::choice::Choice as _;
use super::section::{Findings, Section, count_of, flag_of, number_of, shown, word_of};
use super::{BestMetric, Dtype, Error, EvalStrategy, NllOn, Optim, Scheduler, Tracker};
use crate::adapter::Patterns;
use crate::fsio;

/// A stage with every setting resolved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageConfig {
    /// The stage's name and that of its folder: the file's name without `.yaml`.
    #[serde(skip)]
    pub name: String,
    /// The base model.
    pub model: Model,
    /// The adapter; none trains all weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// The run.
    pub training: Training,
    /// The records.
    pub data: Data,
    /// Preference training; none is supervised fine-tuning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orpo: Option<Orpo>,
}

/// Section `model`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// A folder or a Hub id. Required.
    pub name: String,
    /// Longer records lose prompt text. Default 1024.
    pub max_seq_length: usize,
    /// Whether the frozen weights are quantized to NF4. Default false.
    pub load_in_4bit: bool,
    /// Default `bfloat16`.
    pub dtype: Dtype,
}

/// Section `lora`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lora {
    /// Rank, at least 1. Default 8.
    pub r: i64,
    /// The product `B A` counts `lora_alpha / r`. Default 8.
    pub lora_alpha: f64,
    /// Probability in 0..1 that an input of `A` is zeroed in training. Default 0.
    pub lora_dropout: f64,
    /// Default `q_proj` and `v_proj`, as PEFT for Qwen2; `all-linear` is every projection.
    pub target_modules: TargetModules,
    /// Default false.
    pub use_dora: bool,
    /// Scale by `lora_alpha / sqrt(r)`. Default false.
    pub use_rslora: bool,
    /// Module name or pattern to its own rank.
    pub rank_pattern: Patterns<i64>,
    /// Module name or pattern to its own alpha.
    pub alpha_pattern: Patterns<f64>,
    /// Seed of the first values of `A`. Default: `training.seed`.
    pub random_state: u64,
    /// The adapter to start from: a folder or a Hub id.
    pub init_adapter: Option<String>,
}

/// Which modules get an adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Last parts of module paths, such as `q_proj`.
    Names(Vec<String>),
    /// `all-linear`, or a regular expression over whole module paths.
    Pattern(String),
}

/// Section `training`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Training {
    /// Above 0; may be a fraction. Default 3.
    pub num_train_epochs: f64,
    /// Optimizer steps; overrides the epochs. Default none (a file may say -1).
    pub max_steps: Option<u64>,
    /// Records in a forward pass. Default 8.
    pub per_device_train_batch_size: usize,
    /// Records in a forward pass of an evaluation. Default 8.
    pub per_device_eval_batch_size: usize,
    /// Forward passes in an optimizer step. Default 1.
    pub gradient_accumulation_steps: usize,
    /// The highest learning rate. Default 5e-5 for SFT and 1e-6 for ORPO.
    pub learning_rate: f64,
    /// Default `linear`.
    pub lr_scheduler_type: Scheduler,
    /// Share of the optimizer steps in which the learning rate rises from 0. Default 0.
    pub warmup_ratio: f64,
    /// Number of those steps; overrides the ratio when above 0. Default 0.
    pub warmup_steps: u64,
    /// Default 0.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm; 0 leaves them. Default 1.
    pub max_grad_norm: f64,
    /// Default `adamw_torch`.
    pub optim: Optim,
    /// Default `no`.
    pub eval_strategy: EvalStrategy,
    /// Optimizer steps between evaluations. Default: `logging_steps`.
    pub eval_steps: u64,
    /// Optimizer steps between checkpoints; none with `save_strategy: no`. Default 500.
    #[serde(serialize_with = "save_steps_or_no", flatten)]
    pub save_steps: Option<u64>,
    /// How many checkpoints are kept. Default: all.
    pub save_total_limit: Option<u64>,
    /// Optimizer steps between lines of the log. Default 10 (transformers: 500).
    pub logging_steps: u64,
    /// Services that figures are sent to. Default none.
    pub report_to: Vec<Tracker>,
    /// Whether the stage ends with the weights of the best evaluation. Default false.
    pub load_best_model_at_end: bool,
    /// Default `eval_loss`.
    pub metric_for_best_model: BestMetric,
    /// Evaluations in a row without a gain after which the run stops. Default: none.
    pub early_stopping_patience: Option<u64>,
    /// A gain of no more than this is none. Default 0.
    pub early_stopping_threshold: f64,
    /// Whether an evaluation also answers validation prompts and logs exact match and F1. Default false.
    pub predict_with_generate: bool,
    /// How many prompts it answers. Default 100.
    pub max_eval_samples: usize,
    /// Whether the backward pass computes again what does not fit beside the blocks' inputs; else all of it is kept.
    /// Default true (transformers: false).
    pub gradient_checkpointing: bool,
    /// Whether the blocks' inputs wait for the backward pass in pinned memory of the host instead of the GPU's. Default
    /// false.
    pub activation_offloading: bool,
    /// Seed of every random draw. Default 42.
    pub seed: u64,
}

/// Section `data`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Data {
    /// Records to train on: JSON Lines. Required.
    pub train: PathBuf,
    /// Records to evaluate on.
    pub validation: Option<PathBuf>,
    /// Whether every epoch has its own order; else that of the file. Default true.
    pub shuffle: bool,
    /// Whether the records of a batch that begin alike share those tokens, which are then computed once; losses are the same, and
    /// dropout draws one mask for them. Nothing is padded either way. Default true (TRL: false, and its packing mixes records).
    pub packing: bool,
}

/// Section `orpo`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Orpo {
    /// Weight of the odds-ratio term. Default 0.1.
    pub beta: f64,
    /// Longer prompts are cut when the whole is longer than `max_seq_length`. Default 512.
    pub max_prompt_length: usize,
    /// Default `all`.
    pub nll_on: NllOn,
    /// Whether `lora_dropout` is off in this stage. Default true, as in TRL.
    pub disable_dropout: bool,
}

impl Training {
    /// The optimizer steps in which the learning rate rises, of `n_steps` in all.
    pub fn n_warmup(&self, n_steps: u64) -> u64 {
        if self.warmup_steps > 0 { self.warmup_steps } else { (self.warmup_ratio * n_steps as f64).ceil() as u64 }
    }
}

/// A setting given beside the file: `training.learning_rate=1e-4`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// `section.key`, or a section alone to replace it whole (`lora=null`).
    pub key: String,
    /// YAML.
    pub value: String,
}

impl FromStr for Override {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (key, value) = text.split_once('=').ok_or_else(|| Error::BadOverride(text.to_owned()))?;
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        if key.is_empty() { Err(Error::BadOverride(text.to_owned())) } else { Ok(Self { key, value }) }
    }
}

/// A stage and what its reader should be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub stage: StageConfig,
    /// Keys that were ignored, and why.
    pub warnings: Vec<String>,
}

/// Reads a stage file. The stage is named after it.
///
/// # Errors
/// [`Error::File`], [`Error::NotYaml`], or [`Error::Faults`] with all that is wrong.
pub fn load(path: &Path, overrides: &[Override]) -> Result<Loaded, Error> {
    let name = path.file_stem().map_or_else(|| "stage".to_owned(), |stem| stem.to_string_lossy().into_owned());
    parse(&name, &path.display().to_string(), &fsio::read_text(path)?, overrides)
}

/// As [`load`], for a text. `file` names it in messages.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, file: &str, text: &str, overrides: &[Override]) -> Result<Loaded, Error> {
    let not_yaml = |message: String| Error::NotYaml { file: file.to_owned(), message };
    let mut root = match from_yaml(text).map_err(not_yaml)? {
        Value::Object(map) => map,
        Value::Null => Map::new(),
        other => return Err(not_yaml(format!("expected sections, found `{}`", shown(&other)))),
    };
    let mut findings = Findings::default();
    for given in overrides {
        apply(&mut root, given, &mut findings);
    }
    let stage = resolve(name, root, &mut findings);
    let Findings { faults, warnings } = findings;
    if faults.is_empty() {
        Ok(Loaded { stage, warnings })
    } else {
        Err(Error::Faults { file: file.to_owned(), faults })
    }
}

impl StageConfig {
    /// Every setting in force, as a stage file that gives this very stage.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn to_yaml(&self) -> Result<String, Error> {
        serde_saphyr::to_string(self).map_err(|error| Error::Write(error.to_string()))
    }
}

fn from_yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

fn apply(root: &mut Map<String, Value>, given: &Override, findings: &mut Findings) {
    let shown_key = format!("--set {}", given.key);
    let value = match from_yaml(&given.value) {
        Ok(value) => value,
        Err(message) => return findings.fault(shown_key, format!("not YAML: {message}")),
    };
    let Some((section, key)) = given.key.split_once('.') else {
        root.insert(given.key.clone(), value);
        return;
    };
    let is_optional = ["lora", "orpo"].contains(&section);
    match root.get_mut(section) {
        Some(Value::Object(map)) => drop(map.insert(key.to_owned(), value)),
        None | Some(Value::Null) if is_optional => {
            findings.warn(&shown_key, format!("the stage has no section `{section}`; not applied"));
        }
        _ => drop(root.insert(section.to_owned(), Value::Object([(key.to_owned(), value)].into_iter().collect()))),
    }
}

fn resolve(name: &str, mut root: Map<String, Value>, findings: &mut Findings) -> StageConfig {
    let model =
        read_model(Section::new("model", section_of(&mut root, "model", findings).unwrap_or_default(), findings));
    let orpo = section_of(&mut root, "orpo", findings).map(|values| read_orpo(Section::new("orpo", values, findings)));
    let training = section_of(&mut root, "training", findings).unwrap_or_default();
    let training = read_training(Section::new("training", training, findings), orpo.is_some());
    let lora = section_of(&mut root, "lora", findings)
        .map(|values| read_lora(Section::new("lora", values, findings), training.seed));
    let data = read_data(Section::new("data", section_of(&mut root, "data", findings).unwrap_or_default(), findings));

    for key in root.keys() {
        findings.fault(key, "unknown section, expected model, lora, training, data or orpo");
    }
    if orpo.is_some() && lora.is_none() {
        findings.fault("orpo", "a preference stage trains an adapter, and the file has no `lora` section");
    }
    if model.load_in_4bit && lora.is_none() {
        findings.fault("model.load_in_4bit", "expected false without a `lora` section: 4-bit weights are frozen");
    }
    if training.eval_strategy != EvalStrategy::No && data.validation.is_none() {
        let message = format!("`{}` needs `data.validation`, which is not set", training.eval_strategy.as_str());
        findings.fault("training.eval_strategy", message);
    }
    if training.load_best_model_at_end && training.eval_strategy == EvalStrategy::No {
        findings.fault("training.load_best_model_at_end", "true needs an `eval_strategy`, which is `no`");
    }
    if training.early_stopping_patience.is_some() && training.eval_strategy == EvalStrategy::No {
        findings.fault("training.early_stopping_patience", "needs an `eval_strategy`, which is `no`");
    }
    if training.metric_for_best_model != BestMetric::EvalLoss && !training.predict_with_generate {
        let message = format!("`{}` needs `predict_with_generate: true`", training.metric_for_best_model.as_str());
        findings.fault("training.metric_for_best_model", message);
    }
    StageConfig { name: name.to_owned(), model, lora, training, data, orpo }
}

fn section_of(root: &mut Map<String, Value>, name: &str, findings: &mut Findings) -> Option<Map<String, Value>> {
    match root.shift_remove(name)? {
        Value::Object(map) => Some(map),
        Value::Null => None,
        other => {
            findings.fault(name, format!("expected keys and values, found `{}`", shown(&other)));
            None
        }
    }
}

fn read_model(mut section: Section<'_>) -> Model {
    let model = Model {
        name: section.required_text("name", "a model folder or a Hub id"),
        max_seq_length: size(section.count("max_seq_length"), 1024),
        load_in_4bit: section.flag("load_in_4bit", false),
        dtype: section.choice("dtype", Dtype::Bfloat16),
    };
    section.finish();
    model
}

fn read_lora(mut section: Section<'_>, seed: u64) -> Lora {
    let rank = |n: u64| i64::try_from(n).ok();
    let alpha_expected = "a number above 0";
    let lora = Lora {
        r: section.count("r").and_then(rank).unwrap_or(8),
        lora_alpha: section.number("lora_alpha", alpha_expected, |x| x > 0.0).unwrap_or(8.0),
        lora_dropout: section.number("lora_dropout", "a number from 0 to below 1", is_probability).unwrap_or(0.0),
        target_modules: section
            .get("target_modules", "a list of module names, `all-linear` or a pattern", target_modules_of)
            .unwrap_or_else(|| TargetModules::Names(vec!["q_proj".into(), "v_proj".into()])),
        use_dora: section.flag("use_dora", false),
        use_rslora: section.flag("use_rslora", false),
        rank_pattern: section
            .get("rank_pattern", "module names with ranks", |value| {
                map_of(value, |rank_value| count_of(rank_value).filter(|&n| n > 0).and_then(rank))
            })
            .unwrap_or_default(),
        alpha_pattern: section
            .get("alpha_pattern", "module names with alphas", |value| {
                map_of(value, |alpha| number_of(alpha).filter(|&x| x > 0.0))
            })
            .unwrap_or_default(),
        random_state: section.get("random_state", "a whole number", count_of).unwrap_or(seed),
        init_adapter: section.text("init_adapter"),
    };
    section.finish();
    lora
}

fn read_training(mut section: Section<'_>, is_orpo: bool) -> Training {
    let logging_steps = section.count("logging_steps").unwrap_or(10);
    let (warmup_ratio, warmup_steps) = read_warmup(&mut section);
    let training = Training {
        num_train_epochs: section.number("num_train_epochs", "a number above 0", |x| x > 0.0).unwrap_or(3.0),
        max_steps: section
            .get("max_steps", "a whole number above 0, or -1", |value| match number_of(value)? {
                -1.0 => Some(None),
                _ => count_of(value).filter(|&n| n > 0).map(Some),
            })
            .flatten(),
        per_device_train_batch_size: size(section.count("per_device_train_batch_size"), 8),
        per_device_eval_batch_size: size(section.count("per_device_eval_batch_size"), 8),
        gradient_accumulation_steps: size(section.count("gradient_accumulation_steps"), 1),
        learning_rate: section.number("learning_rate", "a number above 0", |x| x > 0.0).unwrap_or(if is_orpo {
            1e-6
        } else {
            5e-5
        }),
        lr_scheduler_type: section.choice("lr_scheduler_type", Scheduler::Linear),
        warmup_ratio,
        warmup_steps,
        weight_decay: section.number("weight_decay", "a number of at least 0", |x| x >= 0.0).unwrap_or(0.0),
        max_grad_norm: section.number("max_grad_norm", "a number of at least 0", |x| x >= 0.0).unwrap_or(1.0),
        optim: section
            .get("optim", "adamw_torch, adamw_8bit or paged_adamw_8bit", |value| optim_of(&word_of(value)?))
            .unwrap_or(Optim::AdamwTorch),
        eval_strategy: section.choice("eval_strategy", EvalStrategy::No),
        eval_steps: section.count("eval_steps").unwrap_or(logging_steps),
        save_steps: read_save_steps(&mut section),
        save_total_limit: section.count("save_total_limit"),
        logging_steps,
        report_to: read_trackers(&mut section),
        load_best_model_at_end: section.flag("load_best_model_at_end", false),
        metric_for_best_model: section
            .get("metric_for_best_model", &BestMetric::names(), |value| {
                let name = value.as_str()?;
                BestMetric::parse(name).or_else(|| BestMetric::parse(&format!("eval_{name}")))
            })
            .unwrap_or(BestMetric::EvalLoss),
        early_stopping_patience: section.count("early_stopping_patience"),
        early_stopping_threshold: section
            .number("early_stopping_threshold", "a number of at least 0", |x| x >= 0.0)
            .unwrap_or(0.0),
        predict_with_generate: section.flag("predict_with_generate", false),
        max_eval_samples: size(section.count("max_eval_samples"), 100),
        // Unsloth's files name its own method here.
        gradient_checkpointing: section
            .get("gradient_checkpointing", "true or false", |value| match value.as_str() {
                Some("unsloth") => Some(true),
                _ => flag_of(value),
            })
            .unwrap_or(true),
        activation_offloading: section.flag("activation_offloading", false),
        seed: section.get("seed", "a whole number", count_of).unwrap_or(42),
    };
    section.finish();
    training
}

/// `warmup_ratio`, and `warmup_steps`, which transformers 5 also takes as a ratio when it is below 1.
fn read_warmup(section: &mut Section<'_>) -> (f64, u64) {
    let ratio = section.number("warmup_ratio", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x)).unwrap_or(0.0);
    let steps = section
        .number("warmup_steps", "a whole number, or a ratio below 1", |x| x >= 0.0 && (x < 1.0 || x.fract() == 0.0))
        .unwrap_or(0.0);
    if steps > 0.0 && steps < 1.0 { (steps, 0) } else { (ratio, steps as u64) }
}

fn read_save_steps(section: &mut Section<'_>) -> Option<u64> {
    let strategy = section.get("save_strategy", "no or steps", |value| {
        word_of(value).filter(|word| ["no", "steps", "epoch", "best"].contains(&word.as_str()))
    });
    let every = section.count("save_steps").unwrap_or(500);
    match strategy.as_deref() {
        Some("no") => None,
        Some("epoch" | "best") => {
            let message = format!("only no and steps are known; checkpoints are written every {every} steps");
            section.findings.warn("training.save_strategy", message);
            Some(every)
        }
        _ => Some(every),
    }
}

/// `save_steps`, or `save_strategy: no` where there are none.
fn save_steps_or_no<S: serde::Serializer>(every: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap as _;
    let mut map = serializer.serialize_map(Some(1))?;
    match every {
        Some(every) => map.serialize_entry("save_steps", every)?,
        None => map.serialize_entry("save_strategy", "no")?,
    }
    map.end()
}

/// One name or a list; services that are not known here are named in a warning.
fn read_trackers(section: &mut Section<'_>) -> Vec<Tracker> {
    let names = section.get("report_to", "none, wandb or a list", |value| match value {
        Value::Array(items) => items.iter().map(word_of).collect::<Option<Vec<_>>>(),
        other => Some(vec![word_of(other)?]),
    });
    let mut trackers = Vec::new();
    for name in names.unwrap_or_default() {
        match name.as_str() {
            "none" | "no" => {}
            "wandb" | "all" if trackers.is_empty() => trackers.push(Tracker::Wandb),
            "wandb" | "all" => {}
            other => section.findings.warn("training.report_to", format!("`{other}` is not known here and is ignored")),
        }
    }
    trackers
}

fn read_data(mut section: Section<'_>) -> Data {
    let data = Data {
        train: section.required_text("train", "a JSON Lines file").into(),
        validation: section.text("validation").map(PathBuf::from),
        shuffle: section.flag("shuffle", true),
        packing: section.flag("packing", true),
    };
    section.finish();
    data
}

fn read_orpo(mut section: Section<'_>) -> Orpo {
    let orpo = Orpo {
        beta: section.number("beta", "a number of at least 0", |x| x >= 0.0).unwrap_or(0.1),
        max_prompt_length: size(section.count("max_prompt_length"), 512),
        nll_on: section.choice("nll_on", NllOn::All),
        disable_dropout: section.flag("disable_dropout", true),
    };
    section.finish();
    orpo
}

fn size(count: Option<u64>, default: usize) -> usize {
    count.map_or(default, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

fn is_probability(x: f64) -> bool {
    (0.0..1.0).contains(&x)
}

/// The optimizers, also by the other names that transformers has for them.
fn optim_of(name: &str) -> Option<Optim> {
    match name {
        "adamw_torch" | "adamw_torch_fused" | "adamw_hf" => Some(Optim::AdamwTorch),
        "adamw_8bit" | "adamw_bnb_8bit" => Some(Optim::Adamw8bit),
        "paged_adamw_8bit" => Some(Optim::PagedAdamw8bit),
        _ => None,
    }
}

fn target_modules_of(value: &Value) -> Option<TargetModules> {
    match value {
        Value::String(pattern) if !pattern.is_empty() => Some(TargetModules::Pattern(pattern.clone())),
        Value::Array(names) if !names.is_empty() => {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>()?;
            Some(TargetModules::Names(names))
        }
        _ => None,
    }
}

fn map_of<T>(value: &Value, parse: impl Fn(&Value) -> Option<T>) -> Option<Patterns<T>> {
    value.as_object()?.iter().map(|(key, value)| Some((key.clone(), parse(value)?))).collect()
}
