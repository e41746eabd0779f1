//! The Hub cache as `huggingface_hub` lays it out: `blobs/HASH`, `snapshots/COMMIT/PATH` pointing to them, `refs/REVISION`.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::api::{Hash, RemoteFile};
use super::{Access, RepoId, Result};
use crate::fsio;
use crate::stop::Stop;

/// A repository's folder in the cache.
#[derive(Clone, Debug)]
pub struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// The folder of a repository; it need not exist.
    pub fn new(access: &Access, repo: &str) -> Self {
        let folder = format!("models--{}", repo.replace('/', "--"));
        Self { root: access.cache.join(&folder), locks: access.cache.join(".locks").join(folder) }
    }

    /// Where a file's contents are kept.
    pub fn blob(&self, hash: &Hash) -> PathBuf {
        self.root.join("blobs").join(hash.as_hex())
    }

    /// Where contents are kept while they arrive.
    pub fn incomplete(&self, hash: &Hash) -> PathBuf {
        self.root.join("blobs").join(format!("{}.incomplete", hash.as_hex()))
    }

    /// A commit's folder.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that a revision named when it was last asked for, where its folder is there.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let stored = std::fs::read_to_string(self.root.join("refs").join(revision)).ok();
        let commit = stored.map_or_else(|| revision.to_owned(), |text| text.trim().to_owned());
        (!commit.is_empty() && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// Notes which commit a revision names.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_ref(&self, id: &RepoId, commit: &str) -> Result<()> {
        if id.revision != commit {
            let path = self.root.join("refs").join(&id.revision);
            fsio::write_atomic(&path, |out| out.write_all(commit.as_bytes()))?;
        }
        Ok(())
    }

    /// Puts a file whose contents are there into a commit's folder.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub fn link(&self, commit: &str, file: &RemoteFile) -> Result<()> {
        let path = self.snapshot(commit).join(&file.path);
        let depth = file.path.split('/').count();
        let target: PathBuf =
            std::iter::repeat_n("..", depth + 1).collect::<PathBuf>().join("blobs").join(file.hash.as_hex());
        if std::fs::read_link(&path).is_ok_and(|found| found == target) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            fsio::make_dir(parent)?;
        }
        if path.symlink_metadata().is_ok() {
            std::fs::remove_file(&path).map_err(fsio::Error::io("replace", &path))?;
        }
        link_or_copy(&target, &self.blob(&file.hash), &path).map_err(fsio::Error::io("write", &path))?;
        Ok(())
    }

    /// Waits until no other program fetches these contents. The lock goes with the file that is given back.
    ///
    /// # Errors
    /// When the lock file cannot be made or a stop is requested.
    pub fn lock(&self, hash: &Hash, stop: &Stop) -> Result<File> {
        fsio::make_dir(&self.locks)?;
        let path = self.locks.join(format!("{}.lock", hash.as_hex()));
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(fsio::Error::io("open", &path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => stop.check("waiting for another download of the same file")?,
                Err(TryLockError::Error(error)) => return Err(fsio::Error::io("lock", &path)(error).into()),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[cfg(unix)]
fn link_or_copy(target: &Path, _blob: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn link_or_copy(_target: &Path, blob: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::copy(blob, path).map(|_| ())
}
