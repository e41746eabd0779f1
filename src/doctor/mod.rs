//! What can be known before a run is paid for: the machine, the services, a stage's model and records, what it will cost.
//!
//! Each question gives a [`Check`], a value that a program can test and a person can read. Nothing here ends the
//! program, and nothing is written but the estimate. Device selection is the command line's, which hands its answer in.

mod estimate;
mod machine;
mod reach;
mod release;
mod stage;

pub use estimate::{Actual, Estimate, Footprint, Price, Rate, Tokens, compared, footprint, steps_text};
pub use machine::{
    CgroupLimit, Memory, cgroup_limit, check_compute, check_disk, check_memory, check_processor, free_bytes, memory,
};
pub use reach::{check_hub, check_wandb};
pub use release::{Date, check_release, edition_in_force};
pub use stage::{Local, StageChecks, check_fatal, check_model, check_stage, local_model, measure};

use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Could not be looked at, for a reason that is no fault.
    Skipped,
    /// The run will work, but not as well as it could.
    Warning,
    /// The run will fail.
    Fatal,
}

impl Status {
    /// The word for it, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Fatal => "fatal",
        }
    }
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: String,
    pub status: Status,
    /// One line: what was found.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Check {
    /// All is well.
    pub fn ok(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, message: message.into(), hint: None }
    }

    /// Not looked at.
    pub fn skipped(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status: Status::Skipped, ..Self::ok(name, message) }
    }

    /// Worth a thought.
    pub fn warning(name: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Warning, hint: Some(hint.into()), ..Self::ok(name, message) }
    }

    /// In the way.
    pub fn fatal(name: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Fatal, ..Self::warning(name, message, hint) }
    }

    /// An error as a fatal check, with its causes on the same line.
    pub fn of_error(name: impl Into<String>, error: &dyn crate::diag::Diagnostic) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        Self { name: name.into(), status: Status::Fatal, message, hint: error.hint() }
    }
}

/// `812 MB`, `1.3 GB`.
pub fn size_text(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!([1_500, 812_000_000, 1_340_000_000].map(size_text), ["2 kB", "812 MB", "1.3 GB"]);
    }

    #[test]
    fn an_error_becomes_one_line_with_its_cause() {
        let error = crate::fsio::open("no/such/file".as_ref()).err().unwrap();
        let check = Check::of_error("data", &error);
        assert_eq!(check.status, Status::Fatal);
        assert!(check.message.starts_with("cannot open `no/such/file`: "), "{}", check.message);
        assert!(check.hint.unwrap().contains("does not exist"));
    }
}
