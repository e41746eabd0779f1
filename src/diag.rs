//! What an error owes its reader: one line that names the object, a hint that mends it, an exit status.
//!
//! Every module's `Error` implements [`Diagnostic`]; a command returns [`Failure`], which any of them converts into.

use std::error::Error;
use std::fmt::Write as _;

/// An error that can say how to mend what went wrong.
pub trait Diagnostic: Error + Send + Sync + 'static {
    /// A remedy the reader can act on: a flag, a config key, a file or a command.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Whether the request itself was wrong (exit status 2) rather than the work (exit status 1).
    fn is_usage(&self) -> bool {
        false
    }
}

/// The failure of a command: any [`Diagnostic`], boxed.
#[derive(Debug)]
pub struct Failure(Box<dyn Diagnostic>);

impl<E: Diagnostic> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl Failure {
    /// The exit status: 2 when the request was wrong, 1 when the work failed.
    pub fn exit_status(&self) -> u8 {
        if self.0.is_usage() { 2 } else { 1 }
    }

    /// `error: MESSAGE: CAUSE: ...` on one line and, where there is one, `  hint: ...` on the next.
    pub fn render(&self) -> String {
        let mut line = format!("error: {}", one_line(&self.0.to_string()));
        let mut cause = self.0.source();
        while let Some(error) = cause {
            // Writing to a String cannot fail.
            let _ = write!(line, ": {}", one_line(&error.to_string()));
            cause = error.source();
        }
        if let Some(hint) = self.0.hint() {
            let _ = write!(line, "\n  hint: {hint}");
        }
        line
    }
}

/// A remedy for the I/O errors whose cause a user can remove.
pub fn io_hint(error: &std::io::Error) -> Option<String> {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => Some("check the path; it does not exist".into()),
        ErrorKind::PermissionDenied => Some("check who owns the path and its permissions".into()),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some("the disk is full: free some space and run the same command again; what was finished is kept".into())
        }
        ErrorKind::AlreadyExists => Some("something of that name is in the way; give another name, or move it".into()),
        ErrorKind::IsADirectory => Some("the path is a folder; name a file".into()),
        ErrorKind::NotADirectory => Some("a part of the path is a file; name a folder".into()),
        _ => None,
    }
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read `x`")]
    struct Outer(#[source] std::io::Error);

    impl Diagnostic for Outer {
        fn hint(&self) -> Option<String> {
            io_hint(&self.0)
        }
    }

    #[test]
    fn a_failure_is_one_line_with_its_causes_and_a_hint() {
        let failure = Failure::from(Outer(std::io::Error::new(std::io::ErrorKind::NotFound, "no\n such file")));
        assert_eq!(failure.render(), "error: cannot read `x`: no such file\n  hint: check the path; it does not exist");
        assert_eq!(failure.exit_status(), 1);
    }
}
