//! What must never leave: tokens, keys and private files, looked for before an upload.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use regex::bytes::Regex;

use super::{Error, Result};
use crate::fsio;

/// Read at a time; two reads share [`OVERLAP`], so that nothing hides between them.
const CHUNK: usize = 4 << 20;
const OVERLAP: usize = 8 << 10;
/// What of a file of weights is looked at when its header has no length.
const BINARY_LIMIT: u64 = 64 << 20;

/// Forms of well-known secrets: what each is, and how it looks.
const PATTERNS: &[(&str, &str)] = &[
    ("a Hugging Face token", r"\bhf_[A-Za-z0-9]{30,}\b"),
    ("an OpenAI key", r"\bsk-[A-Za-z0-9_-]{32,}"),
    ("a RunPod key", r"\brpa_[A-Za-z0-9]{30,}\b"),
    ("a GitHub token", r"\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_[A-Za-z0-9_]{40,}"),
    ("an AWS key", r"\bAKIA[0-9A-Z]{16}\b"),
    ("a Slack token", r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    ("a Google key", r"\bAIza[0-9A-Za-z_-]{35}\b"),
    ("a Weights & Biases key", r#"(?i)wandb[a-z_]*key["']?\s*[:=]\s*["']?[0-9a-f]{40}"#),
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
];

/// The secrets that are looked for: known forms, and the values in force in this process.
#[derive(Debug)]
pub struct Secrets {
    patterns: Vec<(&'static str, Regex)>,
    exact: Vec<Vec<u8>>,
}

impl Secrets {
    /// `in_force` are secrets of this process, such as the value of `HF_TOKEN`; short ones are left out.
    pub fn new(in_force: impl IntoIterator<Item = String>) -> Self {
        // The patterns are constants; one that did not parse would fail the test below.
        let patterns = PATTERNS.iter().filter_map(|(what, text)| Some((*what, Regex::new(text).ok()?))).collect();
        let exact = in_force.into_iter().filter(|secret| secret.len() >= 12).map(String::into_bytes).collect();
        Self { patterns, exact }
    }

    /// Fails when a text holds a secret. `name` is for the message.
    ///
    /// # Errors
    /// [`Error::Secret`].
    pub fn check_text(&self, name: &str, text: &str) -> Result<()> {
        self.check(name, text.as_bytes(), 1)
    }

    /// Fails when a file holds a secret. Of safetensors files the header is read, of other binary files the beginning.
    ///
    /// # Errors
    /// [`Error::Secret`], or when the file cannot be read.
    pub fn check_file(&self, name: &str, path: &Path) -> Result<()> {
        let read_error = |error: io::Error| Error::from(fsio::Error::io("read", path)(error));
        let mut file = File::open(path).map_err(read_error)?;
        let limit = if path.extension().is_some_and(|ext| ext == "safetensors") {
            let mut len = [0; 8];
            file.read_exact(&mut len).map_err(read_error)?;
            u64::from_le_bytes(len).min(BINARY_LIMIT)
        } else {
            u64::MAX
        };
        let mut file = file.take(limit);
        let mut buffer: Vec<u8> = Vec::new();
        let (mut line, mut n_read) = (1, 0);
        loop {
            let kept = buffer.len();
            let n = file.by_ref().take(CHUNK as u64).read_to_end(&mut buffer).map_err(read_error)?;
            self.check(name, &buffer, line)?;
            n_read += n as u64;
            let is_binary = buffer[kept..].iter().take(OVERLAP).any(|&byte| byte == 0);
            if n < CHUNK || is_binary && n_read >= BINARY_LIMIT {
                return Ok(());
            }
            let cut = buffer.len() - OVERLAP;
            line += buffer[..cut].iter().filter(|&&byte| byte == b'\n').count();
            buffer.drain(..cut);
        }
    }

    fn check(&self, name: &str, bytes: &[u8], first_line: usize) -> Result<()> {
        let known = self.patterns.iter().find_map(|(what, form)| Some((form.find(bytes)?.start(), *what)));
        let exact = || {
            self.exact.iter().find_map(|secret| {
                let at = bytes.windows(secret.len()).position(|window| window == secret.as_slice())?;
                Some((at, "a secret of this process's environment"))
            })
        };
        match known.or_else(exact) {
            Some((at, what)) => {
                let line = first_line + bytes[..at].iter().filter(|&&byte| byte == b'\n').count();
                Err(Error::Secret { file: name.to_owned(), line, what })
            }
            None => Ok(()),
        }
    }
}

/// Whether a file or folder of this name stays here: hidden files, private keys, and what training needs to go on.
pub fn ignored(name: &str) -> bool {
    let lower = name.to_lowercase();
    name.starts_with('.')
        || name.starts_with("checkpoint-")
        || ["wandb", "__pycache__", "optimizer.safetensors", "id_rsa", "id_ed25519"].contains(&lower.as_str())
        || [".pem", ".key", ".p12", ".tmp", ".lock", ".incomplete"].iter().any(|ending| lower.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(outcome: Result<()>) -> String {
        outcome.unwrap_err().to_string()
    }

    #[test]
    fn secrets_of_every_form_are_found_and_never_shown() {
        let secrets = Secrets::new(["my-very-own-secret".to_owned(), "short".to_owned()]);
        assert_eq!(secrets.patterns.len(), PATTERNS.len(), "a pattern does not parse");
        let forms = [
            format!("token = \"hf_{}\"", "aB3".repeat(12)),
            format!("OPENAI_API_KEY=sk-proj-{}", "x9".repeat(20)),
            format!("WANDB_API_KEY={}", "0a".repeat(20)),
            format!("\"wandb_api_key\": \"{}\"", "0a".repeat(20)),
            "-----BEGIN OPENSSH PRIVATE KEY-----".to_owned(),
            "AKIAIOSFODNN7EXAMPLE".to_owned(),
            format!("ghp_{}", "a1".repeat(18)),
            "x my-very-own-secret y".to_owned(),
        ];
        for form in forms {
            let message = refusal(secrets.check_text("README.md", &format!("first\nsecond {form}\n")));
            assert!(message.starts_with("`README.md` line 2 holds what looks like a"), "{message}");
            assert!(!message.contains("aB3") && !message.contains("my-very-own"), "{message}");
        }
        let innocent =
            "hf_hub short sk-learn wandb: 8a, S82.201A, hf_home=/x, sha 0123456789abcdef0123456789abcdef01234567";
        secrets.check_text("README.md", innocent).unwrap();
    }

    #[test]
    fn a_secret_between_two_reads_and_one_in_a_weight_files_header_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(["my-very-own-secret".to_owned()]);
        let path = dir.path().join("notes.txt");
        let mut text = "line\n".repeat(CHUNK / 5 - 1);
        text.truncate(CHUNK - 9);
        text += "my-very-own-secret\n";
        std::fs::write(&path, &text).unwrap();
        let line = text.matches('\n').count();
        assert!(refusal(secrets.check_file("notes.txt", &path)).contains(&format!("line {line} ")));

        let path = dir.path().join("model.safetensors");
        let header = br#"{"__metadata__":{"key":"my-very-own-secret"}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        std::fs::write(&path, &bytes).unwrap();
        assert!(secrets.check_file("m", &path).is_err());
        // Weights are random bytes; only the header is text.
        let mut bytes = 2u64.to_le_bytes().to_vec();
        bytes.extend(b"{}my-very-own-secret");
        std::fs::write(&path, &bytes).unwrap();
        secrets.check_file("m", &path).unwrap();
    }

    #[test]
    fn private_and_passing_files_stay_here() {
        for name in [".env", ".git", "checkpoint-100", "wandb", "id_rsa", "server.pem", ".partial-x"] {
            assert!(ignored(name), "{name}");
        }
        for name in ["adapter_config.json", "README.md", "model.gguf", "Modelfile", "merge.json"] {
            assert!(!ignored(name), "{name}");
        }
    }
}
