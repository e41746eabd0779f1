//! Uploads: files in, commits on the Hub out. What is there already is not sent again, and a commit whose answer was
//! lost is found again instead of being made twice.
//!
//! Each commit names its parent, so that the Hub refuses a repeated one; after any failure the repository's files are
//! listed again and compared by hash before more is sent. Large files get a commit each.

mod client;
mod local;

pub use local::Upload;

use std::path::PathBuf;

use serde::Serialize;

use super::api::{Api, Hash, RemoteFile};
use super::{Access, Error, RepoId, Result, Secrets};
use crate::stop::Stop;
use crate::track::Console;

use client::Uploader;
use local::Hashed;

/// A file of this size gets a commit of its own.
const LARGE_BYTES: u64 = 10 << 20;

/// A push to be made.
#[derive(Debug)]
pub struct Request<'a> {
    pub access: &'a Access,
    /// `owner/name`.
    pub repo: &'a str,
    /// Whether the repository, if it is made now, is private.
    pub is_private: bool,
    pub uploads: Vec<Upload>,
    pub secrets: &'a Secrets,
    /// Say what would be done, and do nothing.
    pub is_dry_run: bool,
}

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    New,
    Changed,
    /// The repository has these very contents.
    Unchanged,
}

/// A file of a push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub path: String,
    pub size_bytes: u64,
    pub sha256: String,
    pub change: Change,
}

/// A commit that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Committed {
    /// `None` when its answer was lost; the files were found to be there.
    pub commit: Option<String>,
    pub files: Vec<String>,
}

/// The outcome of a push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    pub repo: String,
    pub url: String,
    /// Whether the repository was made, or would be.
    pub is_new: bool,
    pub files: Vec<Plan>,
    pub commits: Vec<Committed>,
}

/// Brings files into a repository.
///
/// # Errors
/// When a file holds a secret, the Hub refuses, a stop is requested, or the service fails for too long; what has
/// arrived is kept, and the next call sends the rest.
pub fn push(request: Request<'_>, console: &Console, stop: &Stop) -> Result<Pushed> {
    let Request { access, repo, is_private, mut uploads, secrets, is_dry_run } = request;
    let id = RepoId::parse(repo).filter(|id| id.repo == repo);
    let id = id.ok_or_else(|| Error::BadId { text: repo.to_owned() })?;
    uploads.sort_by(|a, b| a.path.cmp(&b.path));
    for upload in &uploads {
        stop.check("looking for secrets")?;
        upload.scan(secrets)?;
    }
    let api = Api::new(access, stop)?;
    check_rights(&api, &id, is_dry_run)?;
    let is_new = match api.commit_of(&id.repo, "main") {
        Ok(_) => false,
        Err(Error::NoRepo { .. }) => true,
        Err(error) => return Err(error),
    };
    let total: u64 = uploads.iter().map(|upload| upload.size_bytes).sum();
    let progress = console.bar("hashing, MB", total.div_ceil(1_000_000));
    let mut hashed = Vec::with_capacity(uploads.len());
    for upload in uploads {
        let size = upload.size_bytes;
        hashed.push(Hashed::of(upload, stop)?);
        progress.advance(size / 1_000_000);
    }
    progress.finish();
    let remote = if is_new { Vec::new() } else { remote_files(&api, &id.repo)? };
    let files: Vec<Plan> = hashed
        .iter()
        .map(|file| Plan {
            path: file.upload.path.clone(),
            size_bytes: file.upload.size_bytes,
            sha256: file.sha256.clone(),
            change: change_of(file, &remote),
        })
        .collect();
    let url = format!("{}/{}", access.endpoint, id.repo);
    let mut pushed = Pushed { repo: id.repo.clone(), url, is_new, files, commits: Vec::new() };
    if is_dry_run {
        return Ok(pushed);
    }
    let uploader = Uploader::new(&api, &id.repo, console, stop)?;
    if is_new {
        uploader.create_repository(is_private)?;
    }
    let to_send: Vec<&Hashed> = hashed
        .iter()
        .zip(&pushed.files)
        .filter(|(_, plan)| plan.change != Change::Unchanged)
        .map(|(file, _)| file)
        .collect();
    for group in groups(&to_send) {
        stop.check("pushing").map_err(|stopped| crate::stop::Stopped {
            resume: Some("what has arrived is kept; run the same command again to go on".into()),
            ..stopped
        })?;
        pushed.commits.push(uploader.commit(&group)?);
    }
    Ok(pushed)
}

/// Large files alone and first, then all others together: configs and card appear when the weights are there.
fn groups<'a>(files: &[&'a Hashed]) -> Vec<Vec<&'a Hashed>> {
    let (large, small): (Vec<&Hashed>, Vec<&Hashed>) =
        files.iter().partition(|file| file.upload.size_bytes >= LARGE_BYTES);
    let mut groups: Vec<Vec<&Hashed>> = large.into_iter().map(|file| vec![file]).collect();
    if !small.is_empty() {
        groups.push(small);
    }
    groups
}

/// Tells a wrong or a weak token before anything is hashed or sent. A dry run needs no token.
fn check_rights(api: &Api, id: &RepoId, is_dry_run: bool) -> Result<()> {
    let account = match api.account() {
        Err(Error::NoToken) if is_dry_run => return Ok(()),
        account => account?,
    };
    let owner = id.repo.split('/').next().unwrap_or_default();
    let user = account.name.clone();
    if account.is_read_only() {
        return Err(Error::ReadOnly { user });
    }
    let may_write = account.name.eq_ignore_ascii_case(owner)
        || account.orgs.iter().any(|organisation| organisation.name.eq_ignore_ascii_case(owner));
    if may_write { Ok(()) } else { Err(Error::NotOwner { user, owner: owner.to_owned() }) }
}

fn remote_files(api: &Api, repo: &str) -> Result<Vec<RemoteFile>> {
    let head = api.commit_of(repo, "main")?;
    api.files(repo, &head)
}

fn change_of(file: &Hashed, remote: &[RemoteFile]) -> Change {
    match remote.iter().find(|there| there.path == file.upload.path) {
        None => Change::New,
        Some(there) => {
            let ours = match &there.hash {
                Hash::GitBlob(_) => &file.git_blob,
                Hash::Sha256(_) => &file.sha256,
            };
            if ours == there.hash.as_hex() { Change::Unchanged } else { Change::Changed }
        }
    }
}

/// Every file of a folder that goes to the Hub, symbolic links followed.
///
/// # Errors
/// When the folder cannot be read or holds nothing to push.
pub fn collect(dir: &std::path::Path) -> Result<Vec<Upload>> {
    let mut uploads = Vec::new();
    local::walk(dir, "", &mut uploads)?;
    if uploads.is_empty() {
        return Err(Error::NothingToPush { path: PathBuf::from(dir) });
    }
    Ok(uploads)
}
