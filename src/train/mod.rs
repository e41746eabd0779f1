//! Training: SFT and ORPO by block-wise recompute, exact and deterministic on the CPU.

mod batch;
pub mod checkpoint;
mod head;
pub mod objective;
mod optim;
mod placed;
mod schedule;
mod step;
mod task;
mod trainer;
mod window;

pub use batch::{Batch, PreferenceTokens, Sharing, pack_preferences, pack_records};
pub use head::{CHUNK_ROWS, Scored, score};
pub use optim::AdamW;
pub use schedule::learning_rate_factor;
pub use step::{Activations, Gradients, KEEP_BYTES, Weigh, backward, backward_on_device, log_probabilities};
pub use task::Task;
pub use trainer::{AnswerQuestions, Length, Observe, Outcome, Plan, Source, run};
pub use window::{Named, Window};

use std::path::PathBuf;

use crate::diag::Diagnostic;
use crate::fsio;
use crate::model;
use crate::quant;
use crate::stop::Stopped;
use crate::tensor;

/// Training that could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    #[error(transparent)]
    Quant(#[from] quant::Error),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("a {what} became {value}")]
    NotFinite { what: &'static str, value: f64 },
    #[error("training `{stage}` diverged at step {step}: the {what} became {value}{}", on(records.as_deref()))]
    Diverged {
        stage: String,
        step: u64,
        what: &'static str,
        value: f64,
        /// The records of the batch.
        records: Option<String>,
        /// The last checkpoint, which is from before.
        checkpoint: Option<PathBuf>,
    },
    #[error("the questions of an evaluation could not be answered: {0}")]
    Answers(Box<dyn Diagnostic>),
    #[error("stage `{stage}` has no training records")]
    NoRecords { stage: String },
    #[error("`{}` belongs to a run with other settings or data", path.display())]
    OtherRun { path: PathBuf },
}

/// What makes a run that diverged steadier.
const CALM: &str = "look at the records, lower `training.learning_rate`, raise `training.warmup_ratio` or lower `training.max_grad_norm`";

fn on(records: Option<&str>) -> String {
    records.map_or(String::new(), |records| format!(" on {records}"))
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Tensor(error.into())
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Tensor(error) => error.hint(),
            Self::Quant(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Stopped(stopped) => stopped.hint(),
            Self::NotFinite { .. } => Some(CALM.into()),
            Self::Diverged { checkpoint, .. } => Some(match checkpoint {
                Some(dir) => format!("{CALM}; the last good checkpoint is `{}`", dir.display()),
                None => format!("{CALM}; no checkpoint had been written"),
            }),
            Self::Answers(error) => error.hint(),
            Self::NoRecords { .. } => Some("check `data.train`; every record may have been dropped".into()),
            Self::OtherRun { .. } => Some("give another --out, or leave out --resume to start over".into()),
        }
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, Error>;
