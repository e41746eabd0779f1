//! The files of a push on this side: where their contents are, and the hashes by which the Hub would name them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::Sha256;

use super::super::Result;
use super::super::scan::{Secrets, ignored};
use crate::fsio;
use crate::stop::Stop;

/// A file to be pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Its path in the repository.
    pub path: String,
    pub size_bytes: u64,
    pub source: Source,
}

/// Where contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Text(String),
}

impl Upload {
    /// A text made for the push, such as the card.
    pub fn text(path: &str, text: String) -> Self {
        Self { path: path.to_owned(), size_bytes: text.len() as u64, source: Source::Text(text) }
    }

    /// Fails when the contents hold a secret.
    pub fn scan(&self, secrets: &Secrets) -> Result<()> {
        match &self.source {
            Source::File(path) => secrets.check_file(&self.path, path),
            Source::Text(text) => secrets.check_text(&self.path, text),
        }
    }
}

/// A file with its hashes.
#[derive(Debug)]
pub struct Hashed {
    pub upload: Upload,
    pub sha256: String,
    /// SHA-1 of the git blob.
    pub git_blob: String,
}

impl Hashed {
    /// Hashes a file's contents.
    pub fn of(upload: Upload, stop: &Stop) -> Result<Self> {
        use sha1::Digest as _;
        use sha2::Digest as _;
        let (mut sha256, mut git) = (Sha256::new(), Sha1::new());
        git.update(format!("blob {}\0", upload.size_bytes));
        match &upload.source {
            Source::Text(text) => {
                sha256.update(text);
                git.update(text);
            }
            Source::File(path) => {
                let mut file = File::open(path).map_err(fsio::Error::io("open", path))?;
                let mut buffer = vec![0; 1 << 20];
                loop {
                    stop.check("hashing what is pushed")?;
                    let n = file.read(&mut buffer).map_err(fsio::Error::io("read", path))?;
                    if n == 0 {
                        break;
                    }
                    sha256.update(&buffer[..n]);
                    git.update(&buffer[..n]);
                }
            }
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (sha256, git_blob) = (hex(&sha256.finalize()), hex(&git.finalize()));
        Ok(Self { upload, sha256, git_blob })
    }
}

/// Adds the files of a folder, those of its folders included.
pub fn walk(dir: &Path, prefix: &str, uploads: &mut Vec<Upload>) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(fsio::Error::io("read", dir))?;
    for entry in entries {
        let entry = entry.map_err(fsio::Error::io("read", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if ignored(&name) {
            continue;
        }
        let path = entry.path();
        let metadata = path.metadata().map_err(fsio::Error::io("read", &path))?;
        let in_repo = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if metadata.is_dir() {
            walk(&path, &in_repo, uploads)?;
        } else if metadata.is_file() {
            uploads.push(Upload { path: in_repo, size_bytes: metadata.len(), source: Source::File(path) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_walked_through_links_and_past_what_stays_here() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        };
        for path in ["a/config.json", "a/sub/x.txt", "a/.env", "a/checkpoint-5/optimizer.safetensors", "blob"] {
            write(path);
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink("../blob", dir.path().join("a/linked.json")).unwrap();
        let mut uploads = Vec::new();
        walk(&dir.path().join("a"), "", &mut uploads).unwrap();
        let mut paths: Vec<&str> = uploads.iter().map(|upload| upload.path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["config.json", "linked.json", "sub/x.txt"]);
    }

    #[test]
    fn contents_are_named_as_git_names_them() {
        let hashed = Hashed::of(Upload::text("x", "hello\n".into()), &Stop::default()).unwrap();
        assert_eq!(hashed.git_blob, "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
