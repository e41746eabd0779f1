//! Stage files: YAML in the section and key names of Hugging Face trainers, read into settings that are all set.
//!
//! A file with an `orpo` section is an ORPO stage, any other an SFT stage; one without a `lora` section trains all
//! weights. Every fault of a file is reported at once. Keys that transformers, PEFT or TRL know and that have no use
//! here are warned about; a key that nobody knows is refused with the nearest known one.

mod choice;
mod section;
mod stage;
mod unused;

use std::fmt::Write as _;

pub use choice::{BestMetric, Dtype, EvalStrategy, NllOn, Optim, Scheduler, Tracker};
pub use section::{Fault, KEYS};
pub use stage::{Data, Loaded, Lora, Model, Orpo, Override, StageConfig, TargetModules, Training, load, parse};

use crate::diag::Diagnostic;
use crate::fsio;

/// A stage file or a `--set` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each case and field is")]
pub enum Error {
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error("`{file}` is not YAML: {message}")]
    NotYaml { file: String, message: String },
    #[error("`{file}`: {}", list(faults))]
    Faults { file: String, faults: Vec<Fault> },
    #[error("`--set {0}`: expected key=value, as in training.learning_rate=1e-4")]
    BadOverride(String),
    #[error("the settings cannot be written as YAML: {0}")]
    Write(String),
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::NotYaml { .. } => Some("configs/dora.yaml shows the form of a stage file".into()),
            Self::Faults { faults, .. } => {
                Some(faults.iter().find_map(|fault| fault.hint.clone()).unwrap_or_else(|| {
                    "configs/dora.yaml and configs/orpo.yaml show every setting with its default".into()
                }))
            }
            Self::BadOverride(_) => Some("a key is SECTION.KEY of a stage file; the value is YAML".into()),
            Self::Write(_) => None,
        }
    }

    fn is_usage(&self) -> bool {
        true
    }
}

fn list(faults: &[Fault]) -> String {
    let mut text = String::new();
    for (idx, fault) in faults.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{}{fault}", if idx == 0 { "" } else { "; " });
    }
    text
}
