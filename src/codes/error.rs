//! What can be wrong with a code or with a file of codes.

use std::path::{Path, PathBuf};

use super::edition::Edition;
use crate::diag::Diagnostic;
use crate::fsio;
use crate::http;

/// A code or a code-set file that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text that does not have the form of a code.
    #[error("`{text}` does not have the form of an ICD-10-CM code")]
    NotACode {
        /// The text, shortened when it is long.
        text: String,
    },
    /// A file that could not be opened, read or written.
    #[error(transparent)]
    File(#[from] fsio::Error),
    /// A file that stops before its end or whose bytes are damaged.
    #[error("`{}` is damaged or incomplete: {message}", path.display())]
    Torn {
        /// The file.
        path: PathBuf,
        /// Where and how.
        message: String,
    },
    /// A file that is whole but holds something else than a code set.
    #[error("`{}` is not {expected}: {message}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What a file in this place holds.
        expected: &'static str,
        /// What was found instead.
        message: String,
    },
    /// An entry of a code-set file that breaks the rules of the format.
    #[error("`{}` line {line}: {message}", path.display())]
    BadEntry {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Expected and actual values.
        message: String,
    },
    /// A text that does not name a release.
    #[error("`{text}` does not name a release")]
    NotAnEdition {
        /// The text, shortened when it is long.
        text: String,
    },
    /// A release that is neither built in nor fetched.
    #[error("the release `{edition}` is not on this machine")]
    NotFetched {
        /// The release.
        edition: Edition,
    },
    /// A release that none of its publishers gave.
    #[error("the release `{edition}` could not be fetched: {}", refusals.join("; "))]
    Unfetched {
        /// The release.
        edition: Edition,
        /// What each place answered.
        refusals: Vec<String>,
    },
    /// A request that could not go on.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The search engine failed.
    #[error("the search index cannot be used")]
    Search(#[from] tantivy::TantivyError),
}

impl Error {
    /// The error for a text that is no code; only the beginning of a long text is kept.
    pub(super) fn not_a_code(text: &str) -> Self {
        let mut short: String = text.chars().take(24).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        Self::NotACode { text: short }
    }

    pub(super) fn torn(path: &Path, message: impl Into<String>) -> Self {
        Self::Torn { path: path.to_owned(), message: message.into() }
    }

    pub(super) fn bad_entry(path: &Path, line: usize, message: impl Into<String>) -> Self {
        Self::BadEntry { path: path.to_owned(), line, message: message.into() }
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotACode { .. } => Some("codes look like `I10`, `E11.9` or `S82.201A`".into()),
            Self::File(error) => error.hint(),
            Self::Torn { .. } => Some("download the file again, from the NCHS or CMS page of the release".into()),
            Self::Foreign { .. } => Some(
                "pass the tabular list of CMS or NCHS (XML, .gz or the .zip as downloaded), \
                 or the codes.json that `axismapper codes build` writes"
                    .into(),
            ),
            Self::BadEntry { .. } => Some("check that the file is the official one, unchanged".into()),
            Self::NotAnEdition { .. } => {
                Some("a release is named by its fiscal year, as in `2027`, its update of April as `2026-april`".into())
            }
            Self::NotFetched { edition } => Some(format!(
                "`axismapper codes fetch --release {edition}` downloads it; a file of your own goes with --codes"
            )),
            Self::Unfetched { edition, .. } => Some(format!(
                "check the network and HTTPS_PROXY, and that {edition} is published; a zip downloaded by hand from the \
                 ICD-10-CM page of NCHS or CMS goes with --codes"
            )),
            Self::Http(error) => error.hint(),
            Self::Search(_) => None,
        }
    }

    fn is_usage(&self) -> bool {
        matches!(self, Self::NotACode { .. } | Self::NotAnEdition { .. })
    }
}
