//! Where a command's records go, one a line: a file that an interrupted run goes on with, or stdout.

use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{write_json, written};
use crate::data::growing::Growing;
use crate::diag::{Diagnostic, Failure};

/// A place for records.
pub(super) enum Sink<'a> {
    File(Growing),
    Stdout(&'a mut dyn Write),
}

impl<'a> Sink<'a> {
    /// The file, going on with what was written there with equal `settings`; without one, stdout.
    pub(super) fn open(path: Option<&Path>, settings: &Value, out: &'a mut dyn Write) -> Result<Self, Failure> {
        Ok(match path {
            Some(path) => Self::File(Growing::open(path, settings)?),
            None => Self::Stdout(out),
        })
    }

    /// Records that an earlier run has left.
    pub(super) fn n_before(&self) -> usize {
        match self {
            Self::File(growing) => growing.n_records(),
            Self::Stdout(_) => 0,
        }
    }

    pub(super) fn push(&mut self, record: &impl Serialize) -> Result<(), Failure> {
        match self {
            Self::File(growing) => Ok(growing.push(record)?),
            Self::Stdout(out) => write_json(*out, record),
        }
    }

    /// What was pushed is to be seen, and survives a crash.
    pub(super) fn sync(&mut self) -> Result<(), Failure> {
        match self {
            Self::File(growing) => Ok(growing.sync()?),
            Self::Stdout(out) => written(out.flush()),
        }
    }

    /// Puts the file in its place.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::File(growing) => Ok(growing.finish()?),
            Self::Stdout(_) => Ok(()),
        }
    }

    /// Says how to go on where that is possible.
    pub(super) fn interrupted(&mut self, failure: Failure) -> Failure {
        match self {
            Self::File(growing) => match growing.sync() {
                Ok(()) => Interrupted { n_kept: growing.n_records(), failure }.into(),
                Err(error) => error.into(),
            },
            Self::Stdout(_) => failure,
        }
    }
}

/// A run that can go on.
#[derive(Debug, thiserror::Error)]
#[error("{}", failure.render().lines().next().unwrap_or_default().trim_start_matches("error: "))]
struct Interrupted {
    n_kept: usize,
    failure: Failure,
}

impl Diagnostic for Interrupted {
    fn hint(&self) -> Option<String> {
        Some(format!("{} lines are kept; run the same command again to go on", self.n_kept))
    }
}
