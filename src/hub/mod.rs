//! The Hugging Face Hub: models and adapters by name in, folders out; finished folders in, repositories out.
//!
//! Downloads go into the cache that Python's `huggingface_hub` uses, laid out as it lays it out, so that nothing is
//! fetched twice. Every file is checked by size and by the hash that the Hub names; a broken download goes on where it
//! stopped. They are made here, because the crate `hf-hub` (1.0) checks neither status nor hash and cannot go on; uploads
//! are made by it (`push`).

mod access;
mod api;
mod cache;
mod download;
mod probe;
mod push;
mod scan;

pub use access::{Access, Token};
pub use download::{Fetch, Fetched, Which, cached, fetch};
pub use probe::{Probe, Whoami, probe, whoami};
pub use push::{Change, Committed, Plan, Pushed, Request as PushRequest, Upload, collect, push};
pub use scan::{Secrets, ignored};

use std::path::PathBuf;

use crate::diag::Diagnostic;
use crate::fsio;
use crate::http;
use crate::stop::Stopped;

/// A repository of models on the Hub at a revision, written `owner/name` or `owner/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId {
    /// `owner/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl RepoId {
    /// Reads `owner/name[@revision]`; `None` when the text is not of that form.
    pub fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = repo.split_once('/')?;
        let is_name = |part: &str| {
            let is_edge_fine = |c: Option<char>| c.is_some_and(|c| c != '-' && c != '.');
            part.len() <= 96
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && is_edge_fine(part.chars().next())
                && is_edge_fine(part.chars().last())
        };
        let is_revision = !revision.is_empty() && !revision.contains(char::is_whitespace) && !revision.contains("..");
        (is_name(owner) && is_name(name) && is_revision)
            .then(|| Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }
}

impl std::fmt::Display for RepoId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            "main" => out.write_str(&self.repo),
            revision => write!(out, "{}@{revision}", self.repo),
        }
    }
}

/// Something that the Hub, or the way there, did not allow.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("`{text}` is not the name of a repository, expected ORG/NAME")]
    BadId { text: String },
    #[error("the Hub refused the token: {message}")]
    BadToken { message: String },
    #[error("there is no token for the Hub")]
    NoToken,
    #[error("the token of `{user}` may only read")]
    ReadOnly { user: String },
    #[error("`{user}` may not write to `{owner}`")]
    NotOwner { user: String, owner: String },
    #[error("the Hub has no repository `{repo}`{}", if *.has_token { " that the token may see" } else { "" })]
    NoRepo { repo: String, has_token: bool },
    #[error("`{repo}` has no revision `{revision}`")]
    NoRevision { repo: String, revision: String },
    #[error("the Hub does not allow access to `{repo}`: {message}")]
    Forbidden { repo: String, message: String },
    #[error("the storage of `{repo}` is full: {message}")]
    Quota { repo: String, message: String },
    #[error("`{repo}` is not in the cache `{}`, and the Hub is not asked (offline)", cache.display())]
    NotCached { repo: String, cache: PathBuf },
    #[error("`{repo}` is only partly in the cache: `{file}` is missing, and the Hub is not asked (offline)")]
    PartlyCached { repo: String, file: String },
    #[error("`{file}` of `{repo}` arrived damaged {n_attempts} times: its hash is {found}, expected {expected}")]
    Damaged { repo: String, file: String, n_attempts: u32, found: String, expected: String },
    #[error("the Hub names the file `{file}` in `{repo}`, which is no path inside a folder")]
    BadPath { repo: String, file: String },
    #[error("`{repo}` has no file that a model or an adapter needs")]
    NothingNeeded { repo: String },
    #[error("the folder `{}` has nothing to push", path.display())]
    NothingToPush { path: PathBuf },
    #[error("`{file}` line {line} holds what looks like {what}; nothing was uploaded")]
    Secret { file: String, line: usize, what: &'static str },
    #[error("the upload to `{repo}` failed after {n_attempts} attempts: {message}")]
    Upload { repo: String, n_attempts: u32, message: String },
    #[error("the Hub rejected the upload to `{repo}`: {message}")]
    Rejected { repo: String, message: String },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::File(error) => return error.hint(),
            Self::Http(error) => return error.hint(),
            Self::Stopped(stopped) => return stopped.hint(),
            Self::BadId { .. } => "as in --repo my-org/my-model",
            Self::BadToken { .. } => {
                "make a new one at https://huggingface.co/settings/tokens and put it into HF_TOKEN, or sign in with \
                 `hf auth login`"
            }
            Self::NoToken => {
                "make one with the right to write at https://huggingface.co/settings/tokens and put it into HF_TOKEN"
            }
            Self::ReadOnly { .. } => {
                "make a token with the right to write at https://huggingface.co/settings/tokens and put it into HF_TOKEN"
            }
            Self::NotOwner { .. } => "check the spelling of ORG in --repo ORG/NAME, or ask its admin for the right",
            Self::NoRepo { has_token: false, .. } => {
                "check the name; a local folder of that name does not exist either. A private model needs HF_TOKEN"
            }
            Self::NoRepo { .. } => "check the name; a local folder of that name does not exist either",
            Self::NoRevision { .. } => "name a branch, a tag or a commit after the @",
            Self::Forbidden { .. } => "accept the model's terms on its page, or use a token with the right",
            Self::Quota { .. } => {
                "remove what is not needed from the account's repositories, or get more storage, and run the same \
                 command again; what is there is kept"
            }
            Self::NotCached { .. } | Self::PartlyCached { .. } => {
                "fetch it once with `axismapper pull ORG/NAME` on a machine with a network, or unset HF_HUB_OFFLINE"
            }
            Self::Damaged { .. } => "something between here and the Hub changes the data: a proxy, or a failing disk",
            Self::BadPath { .. } | Self::Rejected { .. } => return None,
            Self::NothingNeeded { .. } => {
                "a model has config.json and *.safetensors, an adapter adapter_config.json and adapter_model.safetensors"
            }
            Self::NothingToPush { .. } => "name the adapter's, the merged model's or the GGUF file's folder with --dir",
            Self::Secret { .. } => "remove it from the file, and revoke it if it was ever shared",
            Self::Upload { .. } => "run the same command again: what has arrived is kept and not sent again",
        };
        Some(text.into())
    }

    fn is_usage(&self) -> bool {
        match self {
            Self::Http(error) => error.is_usage(),
            Self::BadId { .. } | Self::NothingToPush { .. } => true,
            _ => false,
        }
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_told_from_a_path() {
        let id = RepoId::parse("Qwen/Qwen2.5-0.5B-Instruct@refs/pr/1").unwrap();
        assert_eq!((id.repo.as_str(), id.revision.as_str()), ("Qwen/Qwen2.5-0.5B-Instruct", "refs/pr/1"));
        assert_eq!(RepoId::parse("org/name").unwrap().to_string(), "org/name");
        for text in ["name", "/tmp/x", "./a", "../a", "a/b/c", "a/", "org/na me", "org/name@", "a/.b", "a/b@../x"] {
            assert_eq!(RepoId::parse(text), None, "{text}");
        }
    }
}
