//! Stages in order: a stage file run from its model to its `final/` folder, and the demo of them all.

mod confidence;
mod demo;
mod peak;
mod preview;
mod records;
mod stage;
mod tracking;

pub use confidence::confidences;
pub use demo::{DemoReport, DemoRequest, DemoSettings, run_demo};
pub use peak::{peak_memory, reset_peak};
pub use preview::{Marks, Preview, preview_stage};
pub use records::{Loaded, Question, load_preferences, load_questions, load_sft};
pub use stage::{FileCounts, StageData, StageOutcome, StageRequest, adapter_settings, load_data, run_stage};

use std::path::{Path, PathBuf};

use crate::adapter;
use crate::codes;
use crate::config;
use crate::data;
use crate::diag::Diagnostic;
use crate::eval;
use crate::export;
use crate::fsio;
use crate::model;
use crate::stop::Stopped;
use crate::text;
use crate::train;

/// A pipeline that could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Adapter(#[from] adapter::Error),
    #[error(transparent)]
    Codes(#[from] codes::Error),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Data(#[from] data::Error),
    #[error(transparent)]
    Eval(#[from] eval::Error),
    #[error(transparent)]
    Export(#[from] export::Error),
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    Text(#[from] text::Error),
    #[error(transparent)]
    Train(#[from] train::Error),
    #[error("the {what} `{}` is not a folder", path.display())]
    NoFolder { what: &'static str, path: PathBuf },
    #[error("an ORPO stage needs an adapter, and `{file}` has no `lora` section")]
    OrpoWithoutAdapter { file: String },
    #[error("full fine-tuning of a 4-bit model is not possible (`model.load_in_4bit: true` without a `lora` section)")]
    FullQuantized,
    #[error("the adapter to start from, `{}`, is in the folder `{}` that this stage writes anew", adapter.display(), out.display())]
    StartsFromItself { adapter: PathBuf, out: PathBuf },
    #[error("the release has {found} billable codes, expected {expected}")]
    CodeCount { found: usize, expected: usize },
    #[error("the folder `{}` holds a demo made with other settings", path.display())]
    OtherDemo { path: PathBuf },
}

/// Checks that a model or an adapter is a local folder; `what` names it in the message.
///
/// # Errors
/// [`Error::NoFolder`].
pub fn require_folder(what: &'static str, path: &Path) -> Result<(), Error> {
    if path.is_dir() { Ok(()) } else { Err(Error::NoFolder { what, path: path.to_owned() }) }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Adapter(error) => error.hint(),
            Self::Codes(error) => error.hint(),
            Self::Config(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Eval(error) => error.hint(),
            Self::Export(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Stopped(error) => error.hint(),
            Self::Text(error) => error.hint(),
            Self::Train(error) => error.hint(),
            Self::NoFolder { .. } => Some("check the path; ORG/NAME means a model or an adapter on the Hub".into()),
            Self::OrpoWithoutAdapter { .. } => {
                Some("add a `lora` section; `lora.init_adapter` names the adapter to start from".into())
            }
            Self::FullQuantized => Some("add a `lora` section, or set `model.load_in_4bit: false`".into()),
            Self::StartsFromItself { .. } => Some("give another --out, or --resume to go on with the stage".into()),
            Self::CodeCount { .. } => None,
            Self::OtherDemo { .. } => Some("remove the folder, or give another --out".into()),
        }
    }

    fn is_usage(&self) -> bool {
        match self {
            Self::Config(error) => error.is_usage(),
            Self::Export(error) => error.is_usage(),
            Self::NoFolder { .. }
            | Self::OrpoWithoutAdapter { .. }
            | Self::FullQuantized
            | Self::StartsFromItself { .. } => true,
            _ => false,
        }
    }
}
