//! How good answers are: metrics over records, their intervals, comparisons, and the reports that show them.

mod answer;
mod baseline;
mod calibration;
mod compare;
mod document;
mod html;
mod interval;
mod metrics;
mod mistakes;
mod predict;
mod record;
mod report;
mod table;

pub use answer::{Answer, read_answers};
pub use baseline::search_answers;
pub use calibration::{Bin, Calibration, Coverage, Threshold};
pub use compare::{Comparison, Difference, Side, Verdict, compare};
pub use document::{Earlier, Evaluation, Stage};
pub use interval::{Interval, N_RESAMPLES, bootstrap, wilson};
pub use metrics::{Figures, N_FIGURES, Outcome, codes_in, is_compliant, principal_in, score};
pub use mistakes::{Confusion, Example, Fault, Mistake, Mistakes, mistakes_in};
pub use predict::{MAX_NEW_TOKENS, answers};
pub use record::{Key, Pairs, Record, pair, score_all};
pub use report::{Bound, Group, Report, TARGETS, Target, evaluate};
pub use table::stage_table;

use std::path::PathBuf;

use crate::codes;
use crate::decode;
use crate::diag::Diagnostic;
use crate::fsio;
use crate::stop::Stopped;
use crate::text;

/// An evaluation that could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Codes(#[from] codes::Error),
    #[error(transparent)]
    Decode(#[from] decode::Error),
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    Text(#[from] text::Error),
    #[error("record {number} has no `scenario` to search with")]
    NoQuestion { number: usize },
    #[error("`{}` holds no records to compare with", path.display())]
    NoRecords { path: PathBuf },
    #[error("`{}` record {number}: the counts cannot be those of a record", path.display())]
    UnsoundRecord { path: PathBuf, number: usize },
    #[error("`{before}` and `{after}` have no record in common")]
    NothingInCommon { before: String, after: String },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Codes(error) => error.hint(),
            Self::Decode(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Stopped(error) => error.hint(),
            Self::Text(error) => error.hint(),
            Self::NoQuestion { .. } => {
                Some("give each line of the predictions its question as `scenario`, or evaluate with --data".into())
            }
            Self::NoRecords { .. } => {
                Some("name a report.json that `axismapper eval --out DIR` wrote, or stored answers as --predictions before=FILE --predictions after=FILE".into())
            }
            Self::UnsoundRecord { .. } => Some("make the report again with `axismapper eval --out DIR`".into()),
            Self::NothingInCommon { .. } => Some(
                "compare evaluations of the same test file; where lines have no `scenario`, they must be as many and in the same order".into(),
            ),
        }
    }

    fn is_usage(&self) -> bool {
        matches!(self, Self::NoQuestion { .. } | Self::NoRecords { .. } | Self::NothingInCommon { .. })
    }
}
