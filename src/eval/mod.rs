//! How good answers are: metrics over records, their intervals, and the report that compares stages.

mod interval;
mod metrics;
mod predict;
mod report;

pub use interval::{Interval, N_RESAMPLES, bootstrap};
pub use metrics::{Answer, Figures, Outcome, codes_in, is_compliant, score};
pub use predict::{MAX_NEW_TOKENS, answers};
pub use report::{Bound, Group, Report, TARGETS, Target, evaluate, stage_table};

use crate::decode;
use crate::diag::Diagnostic;
use crate::text;

/// An evaluation that could not go on.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each case passes on the error of a module below")]
pub enum Error {
    #[error(transparent)]
    Text(#[from] text::Error),
    #[error(transparent)]
    Decode(#[from] decode::Error),
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Text(error) => error.hint(),
            Self::Decode(error) => error.hint(),
        }
    }
}
