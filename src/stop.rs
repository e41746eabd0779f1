//! A request to stop, raised by Ctrl-C or SIGTERM and polled by long work at points where it can stop cleanly.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::diag::Diagnostic;

/// A shared flag. Cloning shares it; it is never lowered again.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

/// The work stopped because it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("stopped on request while {doing}")]
pub struct Stopped {
    /// What was going on, as in "training `sft`".
    pub doing: String,
    /// How to go on.
    pub resume: Option<String>,
}

impl Diagnostic for Stopped {
    fn hint(&self) -> Option<String> {
        self.resume.clone()
    }
}

impl Stop {
    /// Raises the flag.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether a stop was asked for.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Fails with [`Stopped`] when a stop was asked for.
    pub fn check(&self, doing: &str) -> Result<(), Stopped> {
        if self.is_requested() { Err(Stopped { doing: doing.to_owned(), resume: None }) } else { Ok(()) }
    }
}
