//! Models and adapters by folder or by their name on the Hub.

use std::path::{Path, PathBuf};

use crate::diag::{Diagnostic, Failure};
use crate::hub::{Access, Fetch, RepoId, Which, fetch};
use crate::pipeline::require_folder;
use crate::stop::Stop;
use crate::track::Console;

/// How the Hub is reached, by the environment and `--offline`.
pub fn access(is_offline: bool) -> Access {
    let access = Access::from_env(|name| std::env::var(name).ok());
    Access { is_offline: access.is_offline || is_offline, ..access }
}

/// The folder that `--model` or `--adapter` names: itself, or the cache's of a repository, fetched where needed.
///
/// # Errors
/// When it is neither a folder nor the name of a repository, or the repository cannot be fetched.
pub fn folder(
    what: &'static str,
    name: &Path,
    is_offline: bool,
    console: &Console,
    stop: &Stop,
) -> Result<PathBuf, Failure> {
    if name.is_dir() {
        if what == "model" && !name.join("config.json").exists() {
            return Err(NotAModel { path: name.to_owned() }.into());
        }
        return Ok(name.to_owned());
    }
    match name.to_str().and_then(RepoId::parse) {
        Some(id) => {
            Ok(fetch(&Fetch { access: &access(is_offline), id: &id, which: Which::Needed }, console, stop)?.dir)
        }
        None => {
            require_folder(what, name)?;
            Ok(name.to_owned())
        }
    }
}

/// A folder without a model.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is {}, expected a model", path.display(), if self.is_adapter() { "an adapter" } else { "a folder without config.json" })]
struct NotAModel {
    path: PathBuf,
}

impl NotAModel {
    fn is_adapter(&self) -> bool {
        self.path.join("adapter_config.json").exists()
    }
}

impl Diagnostic for NotAModel {
    fn hint(&self) -> Option<String> {
        Some(match self.is_adapter() {
            true => {
                "give its base with --model and this folder with --adapter, or merge the two: axismapper merge".into()
            }
            false => "a model's folder has config.json, tokenizer.json and *.safetensors".into(),
        })
    }

    fn is_usage(&self) -> bool {
        true
    }
}
