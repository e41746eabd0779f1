//! Models and adapters from the Hub and to it, against a stand-in with faults: the program as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::hub_server::{Fault, Hub, READ_TOKEN, Stored, WRITE_TOKEN, git_blob, sha256};

/// A user at a machine: a Hub, a home folder, a token.
struct User {
    hub: Hub,
    home: TempDir,
    token: &'static str,
}

impl User {
    fn new() -> Self {
        Self { hub: Hub::start(), home: tempfile::tempdir().unwrap(), token: WRITE_TOKEN }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
        command.current_dir(self.home.path()).arg("--quiet");
        command.env("HF_HOME", self.home.path().join("hf")).env("HOME", self.home.path());
        command.env("HF_ENDPOINT", &self.hub.server.url).env("HF_TOKEN", self.token);
        for name in ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"]
        {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Runs a command that must succeed; what it printed.
    fn succeeds(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {stderr}\n{:#?}", self.hub.requests());
        assert_eq!(self.hub.unknown(), Vec::<String>::new());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with every one of `parts` in its message, and no token.
    fn fails(&self, args: &[&str], parts: &[&str]) {
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{args:?} succeeded");
        for part in parts {
            assert!(stderr.contains(part), "{args:?}: `{part}` is not in: {stderr}");
        }
        assert!(!stderr.contains(self.token) && !stderr.contains("panicked"), "{stderr}");
    }

    fn repo_cache(&self) -> PathBuf {
        self.home.path().join("hf/hub/models--acme--model")
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.home.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// A repository with a small model's files; the weights are long enough to be cut in the middle.
fn weights() -> Vec<u8> {
    (0..200_000u32).flat_map(|i| (i * 7).to_le_bytes()).collect()
}

fn with_model(user: &User) -> Vec<u8> {
    let weights = weights();
    user.hub.add(
        "acme/model",
        true,
        &[
            ("config.json", b"{\"a\": 1}"),
            ("model.safetensors", &weights),
            ("tokenizer.json", b"{}"),
            ("README.md", b"# card"),
            ("sub/notes.txt", b"notes"),
        ],
    );
    weights
}

#[test]
fn a_repository_is_fetched_once_and_laid_out_as_python_does() {
    let user = User::new();
    let weights = with_model(&user);
    let report: Value = serde_json::from_str(&user.succeeds(&["pull", "acme/model", "--json"])).unwrap();
    assert_eq!(report["files"].as_array().unwrap().len(), 5);
    let commit = report["commit"].as_str().unwrap();
    let cache = user.repo_cache();
    assert_eq!(std::fs::read_to_string(cache.join("refs/main")).unwrap(), commit);
    let file = |path: &str| cache.join("snapshots").join(commit).join(path);
    let blob = Path::new("../../blobs").join(sha256(&weights));
    assert_eq!(std::fs::read_link(file("model.safetensors")).unwrap(), blob);
    let nested = Path::new("../../../blobs").join(git_blob(b"notes"));
    assert_eq!(std::fs::read_link(file("sub/notes.txt")).unwrap(), nested);
    assert!(std::fs::read(file("model.safetensors")).unwrap() == weights);
    assert_eq!(std::fs::read(file("sub/notes.txt")).unwrap(), b"notes");

    let n_files = user.hub.count("/resolve/");
    user.succeeds(&["pull", "acme/model", "--out", "copy"]);
    assert_eq!(user.hub.count("/resolve/"), n_files, "a file was fetched again");
    assert!(std::fs::read(user.home.path().join("copy/model.safetensors")).unwrap() == weights);
    // A damaged file in the cache is found and fetched again.
    std::fs::write(cache.join("blobs").join(git_blob(b"{}")), "[]").unwrap();
    user.succeeds(&["pull", "acme/model"]);
    assert_eq!(std::fs::read(file("tokenizer.json")).unwrap(), b"{}");
    assert_eq!(user.hub.count("/resolve/"), n_files + 1);
}

#[test]
fn a_bad_line_costs_time_and_never_a_wrong_byte() {
    let user = User::new();
    let weights = with_model(&user);
    // An error page must not become a file; a cut download goes on; a changed byte is noticed.
    user.hub.fail("/resolve/", 2, Fault::Status(503, "try later", None));
    user.hub.fail("GET /_cdn/", 1, Fault::Cut(300_000));
    user.hub.fail("config.json", 1, Fault::Corrupt);
    user.hub.fail("/revision/", 1, Fault::HangUp);
    user.hub.fail("/tree/", 1, Fault::Cut(10));
    user.succeeds(&["pull", "acme/model", "--out", "copy"]);
    let read = |name: &str| std::fs::read(user.home.path().join("copy").join(name)).unwrap();
    assert!(read("model.safetensors") == weights);
    assert_eq!(read("config.json"), b"{\"a\": 1}");
    let ranges: Vec<String> =
        user.hub.storage.received().iter().filter_map(|request| Some(request.header("range")?.to_owned())).collect();
    assert_eq!(ranges, ["bytes=300000-"], "the download did not go on where it was cut");
    let leftovers = std::fs::read_dir(user.repo_cache().join("blobs")).unwrap();
    assert!(leftovers.into_iter().all(|entry| entry.unwrap().path().extension().is_none()));
}

#[test]
fn offline_the_cache_is_enough_and_says_when_it_is_not() {
    let user = User::new();
    with_model(&user);
    user.fails(&["pull", "acme/model", "--offline"], &["`acme/model` is not in the cache", "axismapper pull"]);
    user.succeeds(&["pull", "acme/model"]);
    let n = user.hub.requests().len();
    assert!(user.succeeds(&["pull", "acme/model", "--offline"]).contains("from the cache"));
    let mut command = user.command();
    let output = command.env("HF_HUB_OFFLINE", "1").args(["pull", "acme/model"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(user.hub.requests().len(), n, "the Hub was asked");
    std::fs::remove_file(user.repo_cache().join("blobs").join(sha256(&weights()))).unwrap();
    user.fails(&["pull", "acme/model", "--offline"], &["only partly", "model.safetensors"]);
}

#[test]
fn refusals_say_what_to_do() {
    let mut user = User::new();
    with_model(&user);
    user.fails(&["pull", "acme/none"], &["no repository `acme/none`", "check the name"]);
    user.fails(&["pull", "acme/model@v9"], &["no revision `v9`", "after the @"]);
    user.fails(&["pull", "acme"], &["`acme` is not the name of a repository", "ORG/NAME"]);
    user.hub.fail("/revision/", 1, Fault::Status(403, "Access is restricted", None));
    user.fails(&["predict", "--model", "acme/model", "x"], &["does not allow access", "Access is restricted", "terms"]);
    user.token = "hf_wrong_token_of_the_tests";
    user.fails(&["pull", "acme/model"], &["refused the token", "HF_TOKEN"]);
    user.write("b/notes.txt", b"no model");
    user.fails(&["push", "--repo", "acme/new", "--dir", "b"], &["neither an adapter"]);
}

/// An adapter folder whose base is known by its name.
fn adapter(user: &User, dir: &str) {
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let bytes = std::fs::read(crate::golden::fixture("adapters/lora").join(name)).unwrap();
        user.write(&format!("{dir}/{name}"), &bytes);
    }
    user.write(&format!("{dir}/checkpoint-10/optimizer.safetensors"), b"stays here");
    user.write(&format!("{dir}/.env"), b"SECRET=1");
}

const PUSH: [&str; 7] = ["push", "--repo", "acme/new", "--dir", "a", "--base-model", "Qwen/Qwen2.5-0.5B"];

#[test]
fn a_push_makes_a_private_repository_and_a_second_one_changes_nothing() {
    let user = User::new();
    adapter(&user, "a");
    let listed = user.succeeds(&[&PUSH[..], &["--dry-run"]].concat());
    assert!(listed.contains("README.md") && listed.contains("4 of 4 files would go to"), "{listed}");
    assert!(!listed.contains(".env") && !listed.contains("checkpoint"), "{listed}");
    assert!(user.hub.repo("acme/new").is_none(), "a dry run made the repository");

    user.succeeds(&PUSH);
    let repo = user.hub.repo("acme/new").unwrap();
    assert!(repo.is_private);
    assert_eq!(repo.commits.len(), 2);
    let tree = &repo.head().tree;
    assert_eq!(
        tree.keys().collect::<Vec<_>>(),
        [".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "icd10cm.regex"]
    );
    let Stored::Inline(regex) = &tree["icd10cm.regex"] else { panic!("the regular expression is large") };
    let regex = regex::Regex::new(&format!("^(?:{})$", String::from_utf8(regex.clone()).unwrap())).unwrap();
    assert!(regex.is_match("S82.201A, V18.4XXA") && !regex.is_match("S82.201") && !regex.is_match("I10, "));
    let weights = std::fs::read(user.home.path().join("a/adapter_model.safetensors")).unwrap();
    let expected = Stored::Large { sha256: sha256(&weights), size: weights.len() as u64 };
    assert_eq!(tree["adapter_model.safetensors"], expected);
    let config = std::fs::read(user.home.path().join("a/adapter_config.json")).unwrap();
    assert_eq!(tree["adapter_config.json"], Stored::Inline(config));
    let Stored::Inline(card) = &tree["README.md"] else { panic!("the card is large") };
    let card = String::from_utf8(card.clone()).unwrap();
    for part in
        ["base_model: Qwen/Qwen2.5-0.5B\n", "base_model_relation: adapter", "license: apache-2.0", "library_name: peft"]
    {
        assert!(card.contains(part), "`{part}` is not in {card}");
    }

    assert!(user.succeeds(&PUSH).contains("nothing to do"));
    assert_eq!(user.hub.repo("acme/new").unwrap().commits.len(), 2);
    user.write("a/extra.json", b"{}");
    user.succeeds(&PUSH);
    assert_eq!(user.hub.repo("acme/new").unwrap().head().title, "Upload extra.json");
}

/// An evaluation's folder holds questions of the test: its figures go into the card, its files stay.
#[test]
fn what_an_evaluation_left_stays_here_unless_asked_for() {
    let user = User::new();
    adapter(&user, "a");
    user.write(
        "a/report.json",
        br#"{"overall": {"n": 40, "exact_match": 0.8125}, "records": [{"text": "my secret knee"}]}"#,
    );
    for name in ["a/report.html", "a/predictions.jsonl", "a/eval/report.json"] {
        user.write(name, b"my secret knee");
    }
    let tree = |user: &User| user.hub.repo("acme/new").unwrap().head().tree.clone();
    user.succeeds(&PUSH);
    let Stored::Inline(card) = &tree(&user)["README.md"] else { panic!("the card is large") };
    let card = String::from_utf8(card.clone()).unwrap();
    assert!(card.contains("0.8125") && !card.contains("knee"), "{card}");
    assert!(!tree(&user).keys().any(|name| name.contains("report") || name.contains("predictions")));
    user.succeeds(&[&PUSH[..], &["--with-report"]].concat());
    for name in ["report.json", "report.html", "predictions.jsonl", "eval/report.json"] {
        assert!(tree(&user).contains_key(name), "{name}");
    }
}

#[test]
fn lost_answers_and_busy_times_make_no_second_commit() {
    let user = User::new();
    adapter(&user, "a");
    user.hub.fail("POST /api/repos/create", 1, Fault::LoseAnswer);
    user.hub.fail("POST /api/models/acme/new/commit", 1, Fault::LoseAnswer);
    user.hub.fail("/preupload/", 1, Fault::Status(503, "busy", None));
    user.hub.fail("batch", 4, Fault::Status(429, "We had to rate limit you", Some(1)));
    let report: Value = serde_json::from_str(&user.succeeds(&[&PUSH[..], &["--json"]].concat())).unwrap();
    assert_eq!(report["commits"].as_array().unwrap().len(), 1);
    let repo = user.hub.repo("acme/new").unwrap();
    assert_eq!(repo.commits.len(), 2, "{:?}", repo.commits.iter().map(|commit| &commit.title).collect::<Vec<_>>());
    assert!(repo.is_private);
    assert!(user.succeeds(&PUSH).contains("nothing to do"));
}

#[test]
fn what_the_hub_does_not_allow_is_said_before_anything_is_sent() {
    let mut user = User::new();
    adapter(&user, "a");
    user.fails(&["push", "--repo", "else/new", "--dir", "a"], &["`alice` may not write to `else`"]);
    user.token = READ_TOKEN;
    user.fails(&PUSH, &["the token of `alice` may only read", "right to write"]);
    user.token = WRITE_TOKEN;
    user.write("a/notes.txt", format!("first\nkey {WRITE_TOKEN}\n").as_bytes());
    user.fails(&PUSH, &["`notes.txt` line 2", "nothing was uploaded"]);
    std::fs::remove_file(user.home.path().join("a/notes.txt")).unwrap();
    assert_eq!(user.hub.count("POST"), 0, "something was sent");
    user.hub.fail("/commit/", 1, Fault::Status(403, "Private repository storage limit reached", None));
    user.fails(&PUSH, &["storage of `acme/new` is full", "what is there is kept"]);
}
