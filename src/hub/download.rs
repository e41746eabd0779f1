//! Downloads: a repository at a revision in, its folder in the cache out; every file whole and checked, or an error.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use sha1::{Digest as _, Sha1};
use sha2::{Digest, Sha256};

use super::api::{Api, Hash, RemoteFile};
use super::cache::RepoCache;
use super::{Access, Error, RepoId, Result};
use crate::fsio;
use crate::http;
use crate::stop::Stop;
use crate::track::{Console, Progress};

/// Files fetched at a time.
const N_WORKERS: usize = 4;
/// How often contents may arrive with a wrong hash.
const MAX_DAMAGED: u32 = 3;
/// The unit of progress.
const MEGABYTE: u64 = 1_000_000;

/// Which files of a repository are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// What loading a model or an adapter reads.
    Needed,
    /// Every file; those in the cache are hashed again.
    All,
}

/// A download to be made.
#[derive(Debug)]
pub struct Fetch<'a> {
    pub access: &'a Access,
    pub id: &'a RepoId,
    pub which: Which,
}

/// A repository's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fetched {
    /// The folder in the cache.
    pub dir: PathBuf,
    pub commit: String,
    /// Files in the folder, by path, of those asked for. Empty when the Hub was not asked.
    pub files: Vec<String>,
    /// Bytes of these files, and of those that were fetched now.
    pub size_bytes: u64,
    pub fetched_bytes: u64,
}

/// Brings a repository's files into the cache. Offline, or when the Hub cannot be reached and the folder is there, the
/// cache is taken as it is.
///
/// # Errors
/// When the Hub refuses, a file does not arrive whole, something is missing offline, or a stop is requested; what has
/// arrived is kept, and the next call goes on after it.
pub fn fetch(request: &Fetch<'_>, console: &Console, stop: &Stop) -> Result<Fetched> {
    let Fetch { access, id, which } = *request;
    let cache = RepoCache::new(access, &id.repo);
    if access.is_offline {
        return from_cache(access, id, &cache);
    }
    let api = Api::new(access, stop)?;
    let commit = match api.commit_of(&id.repo, &id.revision) {
        Ok(commit) => commit,
        Err(Error::Http(error)) if is_no_network(&error) => match from_cache(access, id, &cache) {
            Ok(fetched) => {
                console
                    .note(&format!("the Hub cannot be reached; `{id}` is taken from the cache ({})", fetched.commit));
                return Ok(fetched);
            }
            Err(_) => return Err(error.into()),
        },
        Err(error) => return Err(error),
    };
    let mut files = api.files(&id.repo, &commit)?;
    if which == Which::Needed {
        files.retain(|file| is_needed(&file.path));
        if files.is_empty() {
            return Err(Error::NothingNeeded { repo: id.repo.clone() });
        }
    }
    let size_bytes = files.iter().map(|file| file.size_bytes).sum();
    let mut missing = Vec::new();
    for file in &files {
        if !is_there(&cache, file, which, stop)? {
            missing.push(file);
        }
    }
    let fetched_bytes = missing.iter().map(|file| file.size_bytes).sum();
    if !missing.is_empty() {
        let label = format!("fetching {id}, {} files, MB", missing.len());
        let progress = console.bar(&label, u64::div_ceil(fetched_bytes, MEGABYTE));
        let meter = Meter { progress: &progress, n_bytes: Mutex::new(0) };
        fetch_all(&Job { api: &api, cache: &cache, repo: &id.repo, commit: &commit, meter: &meter, stop }, &missing)?;
        progress.finish();
    }
    // The links come last: a folder never points to contents that are not there.
    files.iter().try_for_each(|file| cache.link(&commit, file))?;
    cache.set_ref(id, &commit)?;
    let dir = cache.snapshot(&commit);
    Ok(Fetched { dir, commit, files: files.into_iter().map(|file| file.path).collect(), size_bytes, fetched_bytes })
}

/// What loading reads: configs, tokenizer, templates and safetensors in the top folder.
pub(super) fn is_needed(path: &str) -> bool {
    let is_top = !path.contains('/');
    let ending = path.rsplit('.').next().unwrap_or_default();
    is_top && ["json", "safetensors", "jinja", "txt"].contains(&ending)
}

fn is_no_network(error: &http::Error) -> bool {
    matches!(error, http::Error::Unreachable { .. } | http::Error::Timeout { .. })
        || error.status().is_some_and(|status| status >= 500)
}

/// The folder that an earlier download left of a repository; the Hub is not asked.
///
/// # Errors
/// [`Error::NotCached`] or [`Error::PartlyCached`].
pub fn cached(access: &Access, id: &RepoId) -> Result<Fetched> {
    from_cache(access, id, &RepoCache::new(access, &id.repo))
}

/// The folder that an earlier download left, when it has what its own index files promise.
fn from_cache(access: &Access, id: &RepoId, cache: &RepoCache) -> Result<Fetched> {
    let missing = || Error::NotCached { repo: id.to_string(), cache: access.cache.clone() };
    let commit = cache.commit_of(&id.revision).ok_or_else(missing)?;
    let dir = cache.snapshot(&commit);
    let index = dir.join("model.safetensors.index.json");
    let mut expected = Vec::new();
    if index.exists() {
        let index: serde_json::Value = fsio::read_json(&index)?;
        let names = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
        expected.extend(names.filter_map(|name| name.as_str()).map(str::to_owned));
    } else if dir.join("adapter_config.json").exists() {
        expected.push("adapter_model.safetensors".to_owned());
    } else if dir.join("config.json").exists() {
        expected.push("model.safetensors".to_owned());
    }
    match expected.into_iter().find(|file| !dir.join(file).exists()) {
        Some(file) => Err(Error::PartlyCached { repo: id.to_string(), file }),
        None => Ok(Fetched { dir, commit, files: Vec::new(), size_bytes: 0, fetched_bytes: 0 }),
    }
}

/// Whether contents are in the cache, by size; by hash too where all is asked for. Wrong ones are removed.
fn is_there(cache: &RepoCache, file: &RemoteFile, which: Which, stop: &Stop) -> Result<bool> {
    let path = cache.blob(&file.hash);
    let Ok(metadata) = path.metadata() else { return Ok(false) };
    let is_right = metadata.len() == file.size_bytes
        && (which == Which::Needed || hash_of(&path, &file.hash, stop)? == file.hash.as_hex());
    if !is_right {
        std::fs::remove_file(&path).map_err(fsio::Error::io("remove the damaged", &path))?;
    }
    Ok(is_right)
}

/// What the fetching of every file shares.
struct Job<'a> {
    api: &'a Api,
    cache: &'a RepoCache,
    repo: &'a str,
    commit: &'a str,
    meter: &'a Meter<'a>,
    stop: &'a Stop,
}

/// Counts bytes into megabytes of progress.
struct Meter<'a> {
    progress: &'a Progress,
    n_bytes: Mutex<u64>,
}

impl Meter<'_> {
    fn add(&self, n: u64) {
        let mut n_bytes = self.n_bytes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = *n_bytes / MEGABYTE;
        *n_bytes += n;
        self.progress.advance(*n_bytes / MEGABYTE - before);
    }
}

/// Fetches files, the largest first, some at a time. The first error is given back after all workers ended.
fn fetch_all(job: &Job<'_>, files: &[&RemoteFile]) -> Result<()> {
    let mut order: Vec<&RemoteFile> = files.to_vec();
    order.sort_by_key(|file| std::cmp::Reverse(file.size_bytes));
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work = || {
        while let Some(file) = order.get(next.fetch_add(1, Ordering::SeqCst)) {
            if let Err(error) = fetch_file(job, file) {
                // The others end with the file at hand.
                next.store(order.len(), Ordering::SeqCst);
                failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        (0..N_WORKERS.min(order.len())).for_each(|_| {
            scope.spawn(work);
        });
    });
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn fetch_file(job: &Job<'_>, file: &RemoteFile) -> Result<()> {
    let _lock = job.cache.lock(&file.hash, job.stop)?;
    let blob = job.cache.blob(&file.hash);
    if blob.metadata().is_ok_and(|metadata| metadata.len() == file.size_bytes) {
        // Another program, or another name of the same contents, brought it.
        job.meter.add(file.size_bytes);
        return Ok(());
    }
    let partial = job.cache.incomplete(&file.hash);
    if let Some(parent) = partial.parent() {
        fsio::make_dir(parent)?;
    }
    let mut out = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .open(&partial)
        .map_err(fsio::Error::io("write", &partial))?;
    for n_attempts in 1.. {
        receive(job, file, &mut out, &partial)?;
        let found = hash_of(&partial, &file.hash, job.stop)?;
        if found == file.hash.as_hex() {
            break;
        }
        out.set_len(0).map_err(fsio::Error::io("write", &partial))?;
        if n_attempts == MAX_DAMAGED {
            let (repo, path) = (job.repo.to_owned(), file.path.clone());
            return Err(Error::Damaged { repo, file: path, n_attempts, found, expected: file.hash.as_hex().into() });
        }
    }
    out.sync_all().map_err(fsio::Error::io("write", &partial))?;
    std::fs::rename(&partial, &blob).map_err(fsio::Error::io("rename", &partial))?;
    Ok(())
}

/// Fills the file up to its size. A try that ends early is followed by others as long as each brings something.
fn receive(job: &Job<'_>, file: &RemoteFile, out: &mut File, path: &Path) -> Result<()> {
    let len_of = |out: &File| out.metadata().map(|metadata| metadata.len()).map_err(fsio::Error::io("read", path));
    let (client, size) = (&job.api.client, file.size_bytes);
    job.meter.add(len_of(out)?.min(size));
    loop {
        let before = len_of(out)?;
        let received = client.retried(|| receive_once(job, file, out, path));
        match received {
            Ok(()) => return Ok(()),
            Err(http::Error::Cut { .. } | http::Error::Timeout { .. } | http::Error::Unreachable { .. })
                if len_of(out)? > before => {}
            Err(error) => return Err(job.api.explained(error, job.repo, None)),
        }
    }
}

fn receive_once(job: &Job<'_>, file: &RemoteFile, out: &mut File, path: &Path) -> std::result::Result<(), http::Error> {
    let write_error = fsio::Error::io("write", path);
    let mut have = out.metadata().map_err(fsio::Error::io("read", path))?.len();
    if have > file.size_bytes {
        out.set_len(0).map_err(fsio::Error::io("write", path))?;
        have = 0;
    }
    if have == file.size_bytes {
        return Ok(());
    }
    let mut request = job.api.file_request(job.repo, job.commit, &file.path);
    if have > 0 {
        request = request.header("range", &format!("bytes={have}-"));
    }
    let mut failed = None;
    let mut is_first = true;
    let outcome = job.api.client.stream_once(&request, |status, chunk| {
        if std::mem::take(&mut is_first) && have > 0 && status != reqwest::StatusCode::PARTIAL_CONTENT {
            // The whole file comes again.
            if let Err(error) = out.set_len(0) {
                failed = Some(error);
                return false;
            }
            have = 0;
        }
        if have + chunk.len() as u64 > file.size_bytes {
            return false;
        }
        if let Err(error) = out.write_all(chunk) {
            failed = Some(error);
            return false;
        }
        have += chunk.len() as u64;
        job.meter.add(chunk.len() as u64);
        true
    });
    if let Some(error) = failed {
        return Err(write_error(error).into());
    }
    outcome?;
    if have == file.size_bytes {
        return Ok(());
    }
    let message = format!("{have} bytes of {}", file.size_bytes);
    let source = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, message);
    Err(http::Error::Cut { url: request.shown_url(), n_attempts: 1, source })
}

/// A file's hash of the kind that the Hub names it by.
fn hash_of(path: &Path, kind: &Hash, stop: &Stop) -> Result<String> {
    let mut file = File::open(path).map_err(fsio::Error::io("open", path))?;
    let len = file.metadata().map_err(fsio::Error::io("read", path))?.len();
    let mut sha1 = Sha1::new();
    sha1.update(format!("blob {len}\0"));
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        stop.check("checking a download")?;
        let n = file.read(&mut buffer).map_err(fsio::Error::io("read", path))?;
        if n == 0 {
            break;
        }
        match kind {
            Hash::GitBlob(_) => sha1.update(&buffer[..n]),
            Hash::Sha256(_) => sha256.update(&buffer[..n]),
        }
    }
    Ok(match kind {
        Hash::GitBlob(_) => hex(&sha1.finalize()),
        Hash::Sha256(_) => hex(&sha256.finalize()),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_git_blob_is_hashed_as_git_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        // `git hash-object` of the same bytes.
        let git = hash_of(&path, &Hash::GitBlob(String::new()), &Stop::default()).unwrap();
        assert_eq!(git, "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha = hash_of(&path, &Hash::Sha256(String::new()), &Stop::default()).unwrap();
        assert_eq!(sha, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
    }

    #[test]
    fn loading_needs_the_files_of_the_top_folder_only() {
        for path in ["config.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "merges.txt"] {
            assert!(is_needed(path), "{path}");
        }
        for path in ["pytorch_model.bin", "onnx/config.json", "README.md", ".gitattributes", "m.gguf"] {
            assert!(!is_needed(path), "{path}");
        }
    }
}
