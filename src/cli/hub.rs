//! Models and adapters by folder or by their name on the Hub.

use std::path::{Path, PathBuf};

use crate::diag::Failure;
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
