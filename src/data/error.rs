//! What can go wrong when a data set is made.

use crate::codes;
use crate::diag::Diagnostic;
use crate::fsio;
use crate::stop::Stopped;

/// A data set that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part of a selection matches no billable code.
    #[error("the selection matches nothing: `{what}`")]
    NothingSelected {
        /// The part.
        what: String,
    },
    /// No frame has this name.
    #[error("unknown wording family `{family}`")]
    UnknownFamily {
        /// The name as given.
        family: String,
    },
    /// A setting outside its range.
    #[error("`{key}` is {value}, expected {expected}")]
    BadSetting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// A file of settings that cannot be used.
    #[error("`{}`: {message}", path.display())]
    BadSettings {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong in it, and where.
        message: String,
    },
    /// A source of scenarios that this build does not have.
    #[error("the provider `{provider}` is not available, expected `template`")]
    NoProvider {
        /// Its name.
        provider: String,
    },
    /// A code or a release that cannot be used.
    #[error(transparent)]
    Codes(#[from] codes::Error),
    /// A file that cannot be used.
    #[error(transparent)]
    File(#[from] fsio::Error),
    /// The work was asked to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NothingSelected { .. } => Some(
                "name chapters by number, codes or their beginnings that the release has, and injuries with their causes"
                    .into(),
            ),
            Self::UnknownFamily { .. } => Some("a family is named as in the records, for example `patient/story-1`".into()),
            Self::NoProvider { .. } => {
                Some("`--provider template` needs no server and makes 100,000 scenarios in about a minute".into())
            }
            Self::BadSettings { .. } => Some("`configs/data.yaml` names every setting; what is left out has its default".into()),
            Self::BadSetting { .. } => None,
            Self::Codes(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Stopped(error) => error.hint(),
        }
    }

    fn is_usage(&self) -> bool {
        match self {
            Self::NothingSelected { .. }
            | Self::UnknownFamily { .. }
            | Self::BadSetting { .. }
            | Self::BadSettings { .. }
            | Self::NoProvider { .. } => true,
            Self::Codes(error) => error.is_usage(),
            Self::File(error) => error.is_usage(),
            Self::Stopped(error) => error.is_usage(),
        }
    }
}

/// Fails unless `value` is within `range`.
pub(super) fn check_setting(key: &'static str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::BadSetting { key, value: value.to_string(), expected: format!("{} to {}", range.start(), range.end()) })
}
