//! The Hub's JSON interface: what a revision is, which files it has, who a token is.

use reqwest::header::LINK;
use serde::Deserialize;

use super::{Access, Error, Result};
use crate::http::{self, Answer, Client, Request};
use crate::stop::Stop;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    pub path: String,
    pub size_bytes: u64,
    pub hash: Hash,
}

/// How the Hub names a file's contents, in lower-case hex; also the name of its file in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hash {
    /// Of a file inside the git repository: SHA-1 of its git blob.
    GitBlob(String),
    /// Of a large file: SHA-256 of its bytes.
    Sha256(String),
}

impl Hash {
    /// The hex digits.
    pub fn as_hex(&self) -> &str {
        match self {
            Self::GitBlob(hex) | Self::Sha256(hex) => hex,
        }
    }
}

/// Whose token it is.
#[derive(Debug, Deserialize)]
pub struct Account {
    pub name: String,
    #[serde(default)]
    pub orgs: Vec<Organisation>,
    #[serde(default)]
    auth: Option<Auth>,
}

/// An organisation that the account belongs to.
#[derive(Debug, Deserialize)]
pub struct Organisation {
    pub name: String,
}

#[derive(Debug, Deserialize)]
struct Auth {
    #[serde(rename = "accessToken")]
    access_token: Option<AccessToken>,
}

#[derive(Debug, Deserialize)]
struct AccessToken {
    role: Option<String>,
}

impl Account {
    /// Whether the token can only read.
    pub fn is_read_only(&self) -> bool {
        let role = self.auth.as_ref().and_then(|auth| auth.access_token.as_ref()?.role.as_deref());
        role == Some("read")
    }
}

#[derive(Deserialize)]
struct Info {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// The Hub's interface with one client.
#[derive(Clone, Debug)]
pub struct Api {
    pub client: Client,
    pub access: Access,
}

impl Api {
    /// An interface whose waits end when `stop` is raised.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(access: &Access, stop: &Stop) -> Result<Self> {
        Ok(Self { client: Client::new(http::Settings::default(), stop)?, access: access.clone() })
    }

    /// A GET request below the endpoint, with the token where there is one.
    pub fn get(&self, path: &str) -> Request {
        self.get_url(format!("{}{path}", self.access.endpoint))
    }

    fn get_url(&self, url: String) -> Request {
        let request = Request::get(url);
        match &self.access.token {
            Some(token) => request.bearer(token.reveal()),
            None => request,
        }
    }

    /// The address of a file.
    pub fn file_request(&self, repo: &str, commit: &str, path: &str) -> Request {
        self.get(&format!("/{repo}/resolve/{}/{}", encoded(commit, ""), encoded(path, "/")))
    }

    /// The commit that a revision names.
    ///
    /// # Errors
    /// [`Error::NoRepo`], [`Error::NoRevision`], [`Error::BadToken`], [`Error::Forbidden`], or [`Error::Http`].
    pub fn commit_of(&self, repo: &str, revision: &str) -> Result<String> {
        let request = self.get(&format!("/api/models/{repo}/revision/{}", encoded(revision, "")));
        let info: Info = self.send(&request, repo, Some(revision))?.json()?;
        let is_hash = info.sha.len() == 40 && info.sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hash {
            let message = format!("`{}` is no commit", info.sha);
            return Err(http::Error::BadBody { url: request.shown_url(), message }.into());
        }
        Ok(info.sha)
    }

    /// Every file of a commit.
    ///
    /// # Errors
    /// As [`Api::commit_of`].
    pub fn files(&self, repo: &str, commit: &str) -> Result<Vec<RemoteFile>> {
        let mut request = self.get(&format!("/api/models/{repo}/tree/{}?recursive=true", encoded(commit, "")));
        let mut files = Vec::new();
        loop {
            let answer = self.send(&request, repo, Some(commit))?;
            for entry in answer.json::<Vec<Entry>>()?.into_iter().filter(|entry| entry.kind == "file") {
                let file = match entry.lfs {
                    Some(lfs) => RemoteFile { path: entry.path, size_bytes: lfs.size, hash: Hash::Sha256(lfs.oid) },
                    None => RemoteFile { path: entry.path, size_bytes: entry.size, hash: Hash::GitBlob(entry.oid) },
                };
                check_file(repo, &file)?;
                files.push(file);
            }
            match next_page(&answer) {
                // The token goes to the Hub only.
                Some(url) if url.starts_with(&self.access.endpoint) => request = self.get_url(url),
                Some(url) => request = Request::get(url),
                None => return Ok(files),
            }
        }
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// [`Error::NoToken`], [`Error::BadToken`] or [`Error::Http`].
    pub fn account(&self) -> Result<Account> {
        if self.access.token.is_none() {
            return Err(Error::NoToken);
        }
        let answer = self.client.send(&self.get("/api/whoami-v2")).map_err(|error| match &error {
            http::Error::Status { status, excerpt, .. } if status.as_u16() == 401 => {
                Error::BadToken { message: excerpt.clone() }
            }
            _ => error.into(),
        })?;
        Ok(answer.json()?)
    }

    fn send(&self, request: &Request, repo: &str, revision: Option<&str>) -> Result<Answer> {
        self.client.send(request).map_err(|error| self.explained(error, repo, revision))
    }

    /// A refusal in the Hub's terms. The Hub answers 401 to who has no token and asks for what is not there.
    pub fn explained(&self, error: http::Error, repo: &str, revision: Option<&str>) -> Error {
        let http::Error::Status { status, excerpt, .. } = &error else { return error.into() };
        let (repo, message) = (repo.to_owned(), excerpt.clone());
        let has_token = self.access.token.is_some();
        match (status.as_u16(), revision) {
            (401, _) if has_token => Error::BadToken { message },
            (401, _) => Error::NoRepo { repo, has_token },
            (403, _) => Error::Forbidden { repo, message },
            (404, Some(revision)) if message.to_lowercase().contains("rev") => {
                Error::NoRevision { repo, revision: revision.to_owned() }
            }
            (404, _) => Error::NoRepo { repo, has_token },
            _ => error.into(),
        }
    }
}

/// A name that the Hub gives becomes a path here: none may lead out of the folder.
fn check_file(repo: &str, file: &RemoteFile) -> Result<()> {
    let is_inside =
        file.path.split('/').all(|part| !["", ".", ".."].contains(&part)) && !file.path.contains(['\\', '\0']);
    let is_hash = file.hash.as_hex().len() >= 40 && file.hash.as_hex().bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_inside && is_hash { Ok(()) } else { Err(Error::BadPath { repo: repo.to_owned(), file: file.path.clone() }) }
}

/// The address of the next page, from a `Link: <URL>; rel="next"` header.
fn next_page(answer: &Answer) -> Option<String> {
    let link = answer.header(LINK.as_str())?;
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

/// Percent-encodes what is not unreserved (RFC 3986, 2.3) nor in `keep`.
fn encoded(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match char::from(byte) {
            c if c.is_ascii_alphanumeric() || "-._~".contains(c) || keep.contains(c) => out.push(c),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_and_never_lead_out() {
        assert_eq!(encoded("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encoded("a b/\u{e9}.json", "/"), "a%20b/%C3%A9.json");
        let file = |path: &str| RemoteFile { path: path.into(), size_bytes: 1, hash: Hash::GitBlob("a".repeat(40)) };
        assert!(check_file("o/n", &file("a/b.json")).is_ok());
        for path in ["../a", "a/../../b", "/etc/passwd", "a//b", "a\\b", ""] {
            assert!(check_file("o/n", &file(path)).is_err(), "{path}");
        }
    }
}
