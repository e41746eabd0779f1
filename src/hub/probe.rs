//! Questions to the Hub that fetch nothing: whose token it is, whether a repository is there, what is missing of it here.

use serde::Serialize;

use super::api::Api;
use super::cache::RepoCache;
use super::download::{cached, is_needed};
use super::{Access, Error, RepoId, Result};
use crate::http::{Client, Settings};
use crate::stop::Stop;

/// Who a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Whoami {
    pub user: String,
    pub orgs: Vec<String>,
    /// Whether the token may write.
    pub may_write: bool,
}

/// A repository that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    pub commit: String,
    /// Bytes of what loading reads.
    pub size_bytes: u64,
    /// Those that are not in the cache yet.
    pub missing_bytes: u64,
}

/// Whose the token is, asked once and with little patience.
///
/// # Errors
/// [`Error::NoToken`], [`Error::BadToken`] or [`Error::Http`].
pub fn whoami(access: &Access, stop: &Stop) -> Result<Whoami> {
    let account = impatient(access, stop)?.account()?;
    let may_write = !account.is_read_only();
    Ok(Whoami { user: account.name, orgs: account.orgs.into_iter().map(|org| org.name).collect(), may_write })
}

/// Whether a repository is there and how much of it is not here yet, asked once and with little patience. Offline, what
/// the cache says.
///
/// # Errors
/// When the Hub refuses or cannot be reached; offline, when the cache does not have all of it.
pub fn probe(access: &Access, id: &RepoId, stop: &Stop) -> Result<Probe> {
    let cache = RepoCache::new(access, &id.repo);
    if access.is_offline {
        let commit = cached(access, id)?.commit;
        return Ok(Probe { commit, size_bytes: 0, missing_bytes: 0 });
    }
    let api = impatient(access, stop)?;
    let commit = api.commit_of(&id.repo, &id.revision)?;
    let files: Vec<_> = api.files(&id.repo, &commit)?.into_iter().filter(|file| is_needed(&file.path)).collect();
    if files.is_empty() {
        return Err(Error::NothingNeeded { repo: id.repo.clone() });
    }
    let is_here = |path: std::path::PathBuf, size| path.metadata().is_ok_and(|metadata| metadata.len() == size);
    let missing = files.iter().filter(|file| !is_here(cache.blob(&file.hash), file.size_bytes));
    let missing_bytes = missing.map(|file| file.size_bytes).sum();
    Ok(Probe { commit, size_bytes: files.iter().map(|file| file.size_bytes).sum(), missing_bytes })
}

fn impatient(access: &Access, stop: &Stop) -> Result<Api> {
    Ok(Api { client: Client::new(Settings::impatient(), stop)?, access: access.clone() })
}
