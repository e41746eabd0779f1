//! What can go wrong when a data set is made.

use super::generate::llm::Protocol;
use crate::codes;
use crate::diag::Diagnostic;
use crate::fsio;
use crate::http;
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
    /// A provider that has several models, and none is named.
    #[error("`--provider {provider}` needs the name of a model")]
    ModelNotNamed {
        /// The provider.
        provider: &'static str,
    },
    /// No server answers where one should.
    #[error("no {} server answers at `{url}`", protocol.name())]
    NoServer {
        /// Where.
        url: String,
        /// Which kind.
        protocol: Protocol,
        /// What was met.
        source: Box<http::Error>,
    },
    /// The server does not have the model.
    #[error("the {} server has no model `{model}`{}", protocol.name(), among(models))]
    NoModel {
        /// The model's name.
        model: String,
        /// The kind of server.
        protocol: Protocol,
        /// The models that it has, where known.
        models: Vec<String>,
    },
    /// The server wants another key, or one at all.
    #[error("`{url}` refuses access {}", if *key { "with this key" } else { "without a key" })]
    NoAccess {
        /// The server.
        url: String,
        /// Whether a key was sent.
        key: bool,
    },
    /// A file that holds records of other settings or of somebody else, which must not be lost.
    #[error("`{}` line {line} is not a record that these settings make", path.display())]
    OtherRecords {
        /// The file.
        path: std::path::PathBuf,
        /// The first such line.
        line: usize,
    },
    /// The provider failed in the middle.
    #[error("the provider gave up")]
    Unfinished {
        /// What is left to do, and how.
        kept: String,
        /// Why.
        source: Box<Error>,
    },
    /// Two releases with nothing to update.
    #[error("`{old}` and `{new}` have the same codes")]
    NothingChanged {
        /// The old release.
        old: String,
        /// The new one.
        new: String,
    },
    /// A request that failed.
    #[error(transparent)]
    Http(#[from] http::Error),
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
            Self::ModelNotNamed { provider } => {
                let example = if *provider == "ollama" { "llama3.2" } else { "gpt-4o-mini" };
                Some(format!("for example `--model {example}`; `--provider template` needs neither model nor server"))
            }
            Self::NoServer { protocol: Protocol::Ollama, .. } => {
                Some("start it with `ollama serve`, or say where it is with OLLAMA_HOST or --base-url".into())
            }
            Self::NoServer { .. } => Some("say where it is with OPENAI_BASE_URL or --base-url".into()),
            Self::NoModel { model, protocol: Protocol::Ollama, .. } => Some(format!("get it with `ollama pull {model}`")),
            Self::NoModel { .. } => Some("name one of the server's models with --model".into()),
            Self::NoAccess { key: true, .. } => Some("check the key in OPENAI_API_KEY".into()),
            Self::NoAccess { .. } => Some("set OPENAI_API_KEY".into()),
            Self::OtherRecords { .. } => {
                Some("name another file, or --restart to throw these away and ask for all of them anew".into())
            }
            Self::Unfinished { kept, source } => {
                Some(source.hint().map_or_else(|| kept.clone(), |hint| format!("{hint}; {kept}")))
            }
            Self::NothingChanged { .. } => Some("an update goes from one release to another: --from OLD --to NEW".into()),
            Self::Http(error) => error.hint(),
            Self::BadSettings { .. } => Some("`configs/data.yaml` names every setting; what is left out has its default".into()),
            Self::BadSetting { .. } => Some("give a value in that range, or leave it out for the default".into()),
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
            | Self::ModelNotNamed { .. }
            | Self::NothingChanged { .. }
            | Self::OtherRecords { .. } => true,
            Self::NoServer { .. } | Self::NoModel { .. } | Self::NoAccess { .. } => false,
            Self::Unfinished { source, .. } => source.is_usage(),
            Self::Http(error) => error.is_usage(),
            Self::Codes(error) => error.is_usage(),
            Self::File(error) => error.is_usage(),
            Self::Stopped(error) => error.is_usage(),
        }
    }
}

fn among(models: &[String]) -> String {
    if models.is_empty() { String::new() } else { format!(" (it has {})", models.join(", ")) }
}

/// Fails unless `value` is within `range`.
pub(super) fn check_setting(key: &'static str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::BadSetting { key, value: value.to_string(), expected: format!("{} to {}", range.start(), range.end()) })
}
