//! One section of a stage file, read key by key; faults and warnings are collected, and what is left over is judged.

use std::fmt;

use serde_json::{Map, Value};

use super::choice::Choice;
use super::unused;

/// The keys that have a use, by section.
pub const KEYS: &[(&str, &[&str])] = &[
    ("model", &["name", "max_seq_length", "load_in_4bit", "dtype"]),
    (
        "lora",
        &[
            "r",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "use_dora",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
            "random_state",
            "init_adapter",
        ],
    ),
    (
        "training",
        &[
            "num_train_epochs",
            "max_steps",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "learning_rate",
            "lr_scheduler_type",
            "warmup_ratio",
            "warmup_steps",
            "weight_decay",
            "max_grad_norm",
            "optim",
            "eval_strategy",
            "eval_steps",
            "save_strategy",
            "save_steps",
            "save_total_limit",
            "logging_steps",
            "report_to",
            "load_best_model_at_end",
            "metric_for_best_model",
            "early_stopping_patience",
            "early_stopping_threshold",
            "predict_with_generate",
            "max_eval_samples",
            "gradient_checkpointing",
            "activation_offloading",
            "seed",
        ],
    ),
    ("data", &["train", "validation", "shuffle", "packing"]),
    ("orpo", &["beta", "max_prompt_length", "nll_on", "disable_dropout"]),
];

/// Old names that Hugging Face's files still carry.
const RENAMED: &[(&str, &str, &str)] =
    &[("training", "evaluation_strategy", "eval_strategy"), ("model", "torch_dtype", "dtype")];

/// One thing that is wrong with a stage file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `section.key`, or the section alone.
    pub key: String,
    /// What was expected and what was found.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "`{}`: {}", self.key, self.message)
    }
}

/// What reading found beside the settings.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub faults: Vec<Fault>,
    pub warnings: Vec<String>,
}

impl Findings {
    pub(super) fn fault(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault { key: key.into(), message: message.into(), hint: None });
    }

    pub(super) fn warn(&mut self, key: &str, message: impl fmt::Display) {
        self.warnings.push(format!("`{key}`: {message}"));
    }
}

/// The keys of a section that were not read yet.
pub(super) struct Section<'a> {
    pub name: &'static str,
    pub findings: &'a mut Findings,
    values: Map<String, Value>,
}

impl<'a> Section<'a> {
    pub(super) fn new(name: &'static str, mut values: Map<String, Value>, findings: &'a mut Findings) -> Self {
        for &(_, old, new) in RENAMED.iter().filter(|(section, ..)| *section == name) {
            if let Some(value) = values.shift_remove(old) {
                values.entry(new).or_insert(value);
            }
        }
        Self { name, findings, values }
    }

    pub(super) fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    pub(super) fn fault(&mut self, key: &str, message: impl Into<String>) {
        self.findings.fault(self.path(key), message);
    }

    /// The value of a key; `null` counts as not given.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        debug_assert!(KEYS.iter().any(|(section, keys)| *section == self.name && keys.contains(&key)), "{key}");
        self.values.shift_remove(key).filter(|value| !value.is_null())
    }

    /// The value of a key as `parse` reads it, else a fault that says what was `expected`.
    pub(super) fn get<T>(&mut self, key: &str, expected: &str, parse: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.take(key)?;
        let parsed = parse(&value);
        if parsed.is_none() {
            self.fault(key, format!("expected {expected}, found `{}`", shown(&value)));
        }
        parsed
    }

    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        self.get(key, "true or false", flag_of).unwrap_or(default)
    }

    /// A whole number of at least 1.
    pub(super) fn count(&mut self, key: &str) -> Option<u64> {
        self.get(key, "a whole number above 0", |value| count_of(value).filter(|&n| n > 0))
    }

    pub(super) fn number(&mut self, key: &str, expected: &str, holds: impl Fn(f64) -> bool) -> Option<f64> {
        self.get(key, expected, |value| number_of(value).filter(|&x| holds(x)))
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        self.get(key, "a text", text)
    }

    pub(super) fn required_text(&mut self, key: &str, expected: &str) -> String {
        let is_given = self.values.get(key).is_some_and(|value| !value.is_null());
        if !is_given {
            self.take(key);
            self.fault(key, format!("expected {expected}, found nothing"));
        }
        self.text(key).unwrap_or_default()
    }

    pub(super) fn choice<C: Choice>(&mut self, key: &str, default: C) -> C {
        self.get(key, &C::names(), |value| C::parse(&word_of(value)?)).unwrap_or(default)
    }

    /// Warns about keys without a use and refuses those that nobody knows.
    pub(super) fn finish(mut self) {
        for key in std::mem::take(&mut self.values).into_iter().map(|(key, _)| key) {
            let path = self.path(&key);
            if unused::is_known(&key) {
                self.findings.warn(&path, "has no use here and is ignored");
                continue;
            }
            let hint = match home_of(&key).filter(|home| *home != self.name) {
                Some(home) => format!("`{key}` belongs in the section `{home}`"),
                None => format!("the nearest known key is `{}`", self.path(nearest(&key, keys_of(self.name)))),
            };
            self.findings.faults.push(Fault { key: path, message: format!("unknown key ({hint})"), hint: None });
        }
    }
}

fn keys_of(section: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(name, _)| *name == section).map_or(&[], |(_, keys)| keys)
}

fn home_of(key: &str) -> Option<&'static str> {
    KEYS.iter().find(|(_, keys)| keys.contains(&key)).map(|(section, _)| *section)
}

/// The known name most like `name`; a name that contains it comes first (`epochs`: `num_train_epochs`).
fn nearest<'k>(name: &str, known: &[&'k str]) -> &'k str {
    let name = name.to_lowercase();
    let score = |key: &str| {
        let contains = name.len() > 2 && key.contains(&name);
        strsim::normalized_damerau_levenshtein(&name, key) + if contains { 1.0 } else { 0.0 }
    };
    known.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b))).unwrap_or_default()
}

/// A value as the reader wrote it, shortened.
pub(super) fn shown(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Numbers may be texts: `1e-4` is one to many YAML readers.
pub(super) fn number_of(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|x| x.is_finite())
}

pub(super) fn count_of(value: &Value) -> Option<u64> {
    let whole = |x: f64| (x >= 0.0 && x.fract() == 0.0 && x < 1e15).then_some(x as u64);
    value.as_u64().or_else(|| whole(number_of(value)?))
}

pub(super) fn flag_of(value: &Value) -> Option<bool> {
    match value.as_str() {
        Some("true" | "True" | "yes" | "on") => Some(true),
        Some("false" | "False" | "no" | "off") => Some(false),
        _ => value.as_bool(),
    }
}

/// A word; YAML 1.1 turns a bare `no` into false.
pub(super) fn word_of(value: &Value) -> Option<String> {
    match value {
        Value::Bool(false) => Some("no".into()),
        Value::String(text) => Some(text.to_lowercase()),
        _ => None,
    }
}
