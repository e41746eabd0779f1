//! A stand-in for the Hub: repositories with commits, the interface that clients use, storage on another host as in
//! reality, and faults where a test asks for them.
//!
//! Large files arrive by Xet; of them only the hashes that the client computed are kept. Whole contents are compared by
//! `tests/reference/hub_roundtrip.sh`, with the reference client on the other side.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use crate::http_server::{Received, Reply, Server};

pub const WRITE_TOKEN: &str = "hf_alice_write_token_of_the_tests";
pub const READ_TOKEN: &str = "hf_alice_read_token_of_the_tests";

/// Files of this ending are stored outside git.
const LARGE_ENDING: &str = ".safetensors";

/// A file's contents.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    Inline(Vec<u8>),
    Large { sha256: String, size: u64 },
}

impl Stored {
    pub fn oid(&self) -> String {
        match self {
            Self::Inline(bytes) => git_blob(bytes),
            Self::Large { sha256, .. } => git_blob(format!("pointer to {sha256}").as_bytes()),
        }
    }
}

pub fn git_blob(bytes: &[u8]) -> String {
    use sha1::Digest as _;
    let mut sha1 = sha1::Sha1::new();
    sha1.update(format!("blob {}\0", bytes.len()));
    sha1.update(bytes);
    hex(&sha1.finalize())
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex(&sha2::Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A commit with the whole tree after it.
#[derive(Clone, Debug)]
pub struct Commit {
    pub oid: String,
    pub title: String,
    pub tree: BTreeMap<String, Stored>,
}

#[derive(Clone, Debug)]
pub struct Repo {
    pub is_private: bool,
    pub commits: Vec<Commit>,
}

impl Repo {
    pub fn head(&self) -> &Commit {
        self.commits.last().unwrap()
    }
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An error status with a message, and perhaps a `Retry-After`.
    Status(u16, &'static str, Option<u32>),
    /// The connection is closed, the request unheard.
    HangUp,
    /// The request is handled, and its answer lost.
    LoseAnswer,
    /// The body ends after this many bytes.
    Cut(usize),
    /// The first byte of the body is another.
    Corrupt,
}

#[derive(Default)]
struct State {
    repos: BTreeMap<String, Repo>,
    /// Contents of large files by SHA-256.
    blobs: BTreeMap<String, Vec<u8>>,
    uploaded: BTreeSet<String>,
    /// Text in `METHOD target`, how often still, what.
    faults: Vec<(String, usize, Fault)>,
    unknown: Vec<String>,
    cdn: String,
    url: String,
}

/// A running Hub.
pub struct Hub {
    pub server: Server,
    pub storage: Server,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let for_storage = Arc::clone(&state);
        let storage = Server::start(move |_, request| with_faults(&for_storage, request, storage_answer));
        state.lock().unwrap().cdn = storage.url.clone();
        let for_server = Arc::clone(&state);
        let server = Server::start(move |_, request| with_faults(&for_server, request, answer));
        state.lock().unwrap().url = server.url.clone();
        Self { server, storage, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Adds a repository with these files.
    pub fn add(&self, repo: &str, is_private: bool, files: &[(&str, &[u8])]) {
        let mut state = self.state();
        let mut tree = BTreeMap::new();
        for (path, bytes) in files {
            let stored = if path.ends_with(LARGE_ENDING) {
                let sha256 = sha256(bytes);
                state.blobs.insert(sha256.clone(), bytes.to_vec());
                Stored::Large { sha256, size: bytes.len() as u64 }
            } else {
                Stored::Inline(bytes.to_vec())
            };
            tree.insert((*path).to_owned(), stored);
        }
        let commit = Commit { oid: git_blob(repo.as_bytes()), title: "initial commit".into(), tree };
        state.repos.insert(repo.to_owned(), Repo { is_private, commits: vec![commit] });
    }

    /// The next `n` requests whose `METHOD target` has `text` in it go wrong.
    pub fn fail(&self, text: &str, n: usize, fault: Fault) {
        self.state().faults.push((text.to_owned(), n, fault));
    }

    pub fn repo(&self, name: &str) -> Option<Repo> {
        self.state().repos.get(name).cloned()
    }

    /// Requests that this stand-in does not know.
    pub fn unknown(&self) -> Vec<String> {
        self.state().unknown.clone()
    }

    /// `METHOD target` of every request to the Hub and to its storage.
    pub fn requests(&self) -> Vec<String> {
        let of = |server: &Server| {
            server.received().into_iter().map(|request| format!("{} {}", request.method, request.target))
        };
        of(&self.server).chain(of(&self.storage)).collect()
    }

    pub fn count(&self, text: &str) -> usize {
        self.requests().iter().filter(|request| request.contains(text)).count()
    }
}

fn with_faults(state: &Mutex<State>, request: &Received, answer: fn(&mut State, &Received) -> Reply) -> Reply {
    let mut state = state.lock().unwrap();
    let what = format!("{} {}", request.method, request.target);
    let found = state.faults.iter_mut().find(|(text, n, _)| *n > 0 && what.contains(text.as_str()));
    let fault = found.map(|(_, n, fault)| {
        *n -= 1;
        fault.clone()
    });
    match fault {
        None => answer(&mut state, request),
        Some(Fault::Status(status, message, retry_after)) => {
            let reply = Reply::json(status, &json!({"error": message})).with("x-error-message", message);
            match retry_after {
                Some(seconds) => reply.with("retry-after", &seconds.to_string()),
                None => reply,
            }
        }
        Some(Fault::HangUp) => Reply::hang_up(),
        Some(Fault::LoseAnswer) => {
            answer(&mut state, request);
            Reply::hang_up()
        }
        Some(Fault::Cut(n)) => answer(&mut state, request).cut_after(n),
        Some(Fault::Corrupt) => {
            let mut reply = answer(&mut state, request);
            reply.body[0] ^= 1;
            reply
        }
    }
}

/// The storage host: it takes no token, and honours ranges.
fn storage_answer(state: &mut State, request: &Received) -> Reply {
    if request.header("authorization").is_some() {
        return Reply::new(400, "Only one auth mechanism allowed");
    }
    let sha256 = request.target.trim_start_matches("/_cdn/");
    let Some(bytes) = state.blobs.get(sha256) else { return Reply::new(404, "no such object") };
    ranged(bytes, request)
}

fn ranged(bytes: &[u8], request: &Received) -> Reply {
    let start = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, bytes[start..].to_vec()).with("content-range", &range)
        }
        None => Reply::new(200, bytes.to_vec()),
    }
}

fn error(status: u16, message: &str) -> Reply {
    Reply::json(status, &json!({"error": message})).with("x-error-message", message)
}

/// Whether the token is one, and whether it may write.
fn token_of(request: &Received) -> Result<Option<bool>, Reply> {
    match request.header("authorization") {
        None => Ok(None),
        Some(text) if text == format!("Bearer {WRITE_TOKEN}") => Ok(Some(true)),
        Some(text) if text == format!("Bearer {READ_TOKEN}") => Ok(Some(false)),
        Some(_) => Err(error(401, "Invalid credentials in Authorization header")),
    }
}

fn answer(state: &mut State, request: &Received) -> Reply {
    let path = request.target.split('?').next().unwrap().to_owned();
    if path.starts_with("/cas/") {
        return cas(state, request, &path);
    }
    let may_write = match token_of(request) {
        Ok(token) => token,
        Err(reply) => return reply,
    };
    if path == "/api/whoami-v2" {
        return match may_write {
            None => error(401, "Invalid username or password."),
            Some(write) => {
                let role = if write { "write" } else { "read" };
                Reply::json(
                    200,
                    &json!({"type": "user", "name": "alice", "orgs": [{"name": "acme"}],
                        "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}}),
                )
            }
        };
    }
    if path == "/api/repos/create" {
        return create(state, request);
    }
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let parts: Vec<&str> = rest.splitn(4, '/').collect();
        if let [owner, name, kind, tail] = parts[..] {
            let repo = format!("{owner}/{name}");
            let is_visible = state.repos.get(&repo).is_some_and(|found| !found.is_private || may_write.is_some());
            return match is_visible {
                true => api(state, request, &repo, kind, tail),
                false if may_write.is_none() => error(401, "Invalid username or password."),
                false => error(404, "Repository not found"),
            };
        }
    }
    if path.ends_with(".git/info/lfs/objects/batch") {
        let objects: Vec<Value> = request.json()["objects"].as_array().unwrap().clone();
        let objects: Vec<Value> = objects
            .iter()
            .map(|object| json!({"oid": object["oid"], "size": object["size"], "actions": {"upload": {"href": format!("{}/cas", state.url), "header": {}}}}))
            .collect();
        return Reply::json(200, &json!({"transfer": "xet", "objects": objects}));
    }
    if let Some((repo, rest)) = path.trim_start_matches('/').split_once("/resolve/") {
        let (_, file) = rest.split_once('/').unwrap();
        let stored = state.repos.get(repo).and_then(|repo| repo.head().tree.get(file)).cloned();
        return match stored {
            None => error(404, "Entry not found"),
            Some(Stored::Inline(bytes)) => ranged(&bytes, request),
            Some(Stored::Large { sha256, .. }) => {
                Reply::new(302, "").with("location", &format!("{}/_cdn/{sha256}", state.cdn))
            }
        };
    }
    state.unknown.push(format!("{} {}", request.method, request.target));
    error(404, "not found")
}

fn create(state: &mut State, request: &Received) -> Reply {
    let body = request.json();
    let repo = format!("{}/{}", body["organization"].as_str().unwrap_or("alice"), body["name"].as_str().unwrap());
    if state.repos.contains_key(&repo) {
        return error(409, "You already created this model repo");
    }
    let tree = [(".gitattributes".to_owned(), Stored::Inline(b"*.safetensors filter=lfs\n".to_vec()))].into();
    let commit = Commit { oid: git_blob(repo.as_bytes()), title: "initial commit".into(), tree };
    state.repos.insert(repo.clone(), Repo { is_private: body["private"] == json!(true), commits: vec![commit] });
    Reply::json(200, &json!({"url": format!("{}/{repo}", state.url), "name": repo, "id": "r-1"}))
}

fn api(state: &mut State, request: &Received, name: &str, kind: &str, tail: &str) -> Reply {
    let url = state.url.clone();
    let Some(repo) = state.repos.get_mut(name) else { return error(404, "Repository not found") };
    let known = |revision: &str| revision == "main" || repo.commits.iter().any(|commit| commit.oid == revision);
    match kind {
        "revision" if !known(tail) => error(404, &format!("Invalid rev id: {tail}")),
        "revision" => Reply::json(200, &json!({"id": name, "sha": repo.head().oid, "private": repo.is_private})),
        "tree" => {
            let start: usize = request.target.split("cursor=").nth(1).map_or(0, |cursor| cursor.parse().unwrap());
            let entries: Vec<Value> = repo
                .head()
                .tree
                .iter()
                .map(|(path, stored)| match stored {
                    Stored::Inline(bytes) => {
                        json!({"type": "file", "path": path, "oid": stored.oid(), "size": bytes.len()})
                    }
                    Stored::Large { sha256, size } => {
                        json!({"type": "file", "path": path, "oid": stored.oid(), "size": size,
                        "lfs": {"oid": sha256, "size": size, "pointerSize": 134}})
                    }
                })
                .collect();
            let page: Vec<Value> = entries.iter().skip(start).take(3).cloned().collect();
            let reply = Reply::json(200, &Value::from(page));
            match start + 3 < entries.len() {
                true => {
                    let next = format!("<{url}/api/models/{name}/tree/{tail}?cursor={}>; rel=\"next\"", start + 3);
                    reply.with("link", &next)
                }
                false => reply,
            }
        }
        "preupload" => {
            let body = request.json();
            let files: Vec<Value> = body["files"]
                .as_array()
                .unwrap()
                .iter()
                .map(|file| {
                    let is_large = file["path"].as_str().unwrap().ends_with(LARGE_ENDING);
                    json!({"path": file["path"], "uploadMode": if is_large { "lfs" } else { "regular" }, "shouldIgnore": false})
                })
                .collect();
            Reply::json(200, &json!({"files": files}))
        }
        "xet-write-token" => Reply::json(
            200,
            &json!({"accessToken": "xet-token", "exp": 4_000_000_000u64, "casUrl": format!("{url}/cas")}),
        ),
        "commit" => commit(repo, &state.uploaded, request),
        _ => {
            state.unknown.push(format!("{} {}", request.method, request.target));
            error(404, "not found")
        }
    }
}

fn commit(repo: &mut Repo, uploaded: &BTreeSet<String>, request: &Received) -> Reply {
    let mut tree = repo.head().tree.clone();
    let mut title = String::new();
    for line in String::from_utf8(request.body.clone()).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let value = &line["value"];
        let path = || value["path"].as_str().unwrap().to_owned();
        match line["key"].as_str().unwrap() {
            "header" => {
                if value.get("parentCommit").is_some_and(|parent| *parent != json!(repo.head().oid)) {
                    return error(412, "A commit has happened since. Please refresh and try again.");
                }
                title = value["summary"].as_str().unwrap().to_owned();
            }
            "file" => {
                tree.insert(path(), Stored::Inline(base64(value["content"].as_str().unwrap())));
            }
            "lfsFile" => {
                let sha256 = value["oid"].as_str().unwrap().to_owned();
                if !uploaded.contains(&sha256) {
                    return error(400, "an LFS pointer pointed to a file that does not exist");
                }
                tree.insert(path(), Stored::Large { sha256, size: value["size"].as_u64().unwrap() });
            }
            other => panic!("operation {other}"),
        }
    }
    let oid = git_blob(format!("{} {}", repo.head().oid, title).as_bytes());
    repo.commits.push(Commit { oid: oid.clone(), title, tree });
    Reply::json(200, &json!({"success": true, "commitOid": oid, "commitUrl": "x"}))
}

/// Xet's store: xorbs are taken unseen, shards tell the hashes of the files in them.
fn cas(state: &mut State, request: &Received, path: &str) -> Reply {
    match (request.method.as_str(), path) {
        ("POST", path) if path.starts_with("/cas/v1/xorbs/") || path.starts_with("/cas/xorbs/") => {
            Reply::json(200, &json!({"was_inserted": true}))
        }
        ("POST", "/cas/v1/shards" | "/cas/shards") => {
            state.uploaded.extend(hashes_in_shard(&request.body));
            Reply::json(200, &json!({"result": 1}))
        }
        _ => error(404, "not found"),
    }
}

/// The SHA-256 of every file in a shard: 48-byte records, a file's followed by its segments and, by its flags, their
/// verification and its SHA-256.
fn hashes_in_shard(shard: &[u8]) -> Vec<String> {
    assert!(shard.starts_with(b"HFRepoMetaData"), "not a shard");
    let number = |at: usize| u32::from_le_bytes(shard[at..at + 4].try_into().unwrap());
    // A hash is four little-endian numbers, written as such.
    let hash = |at: usize| -> String {
        shard[at..at + 32]
            .chunks(8)
            .map(|part| format!("{:016x}", u64::from_le_bytes(part.try_into().unwrap())))
            .collect()
    };
    let mut found = Vec::new();
    let mut at = 48;
    while shard[at..at + 32] != [0xff; 32] {
        let (flags, n_segments) = (number(at + 32), number(at + 36) as usize);
        at += 48 + 48 * n_segments;
        if flags & 1 << 31 != 0 {
            at += 48 * n_segments;
        }
        if flags & 1 << 30 != 0 {
            found.push(hash(at));
            at += 48;
        }
    }
    found
}

fn base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| -> u32 {
        u32::from(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            other => panic!("base64 byte {other}"),
        })
    };
    let digits = text.trim_end_matches('=').as_bytes();
    let mut out = Vec::new();
    for group in digits.chunks(4) {
        let bits = group.iter().enumerate().fold(0, |bits, (idx, &byte)| bits | value(byte) << (18 - 6 * idx));
        out.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    out
}
