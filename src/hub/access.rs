//! How the Hub is reached: address, token, cache folder, offline or not, as Python's `huggingface_hub` reads them.

use std::fmt;
use std::path::{Path, PathBuf};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A token of the Hub. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The text, for a header.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(...)")
    }
}

/// How the Hub is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Without a slash at the end.
    pub endpoint: String,
    pub token: Option<Token>,
    /// The folder of `models--owner--name` folders.
    pub cache: PathBuf,
    /// Use the cache only.
    pub is_offline: bool,
}

impl Access {
    /// Reads the environment through `var`: `HF_ENDPOINT`, `HF_TOKEN` (or the file that `HF_TOKEN_PATH` or `HF_HOME`
    /// leads to), `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE`.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| var(name));
        let is_set = |name: &str| {
            var(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
        };
        let user_home = PathBuf::from(var("HOME").unwrap_or_else(|| ".".into()));
        let path = |text: String| match text.strip_prefix("~/") {
            Some(rest) => user_home.join(rest),
            None => PathBuf::from(text),
        };
        let hf_home = var("HF_HOME").map(path).unwrap_or_else(|| {
            var("XDG_CACHE_HOME").map(path).unwrap_or_else(|| user_home.join(".cache")).join("huggingface")
        });
        let cache = first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(path).unwrap_or_else(|| hf_home.join("hub"));
        let token_path = var("HF_TOKEN_PATH").map(path).unwrap_or_else(|| hf_home.join("token"));
        let token = first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| stored_token(&token_path));
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(Token),
            cache,
            is_offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
        }
    }
}

/// A token file that cannot be read is no token.
fn stored_token(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_as_python_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_stored\n").unwrap();
        let home = dir.path().display().to_string();
        let access = |vars: &[(&str, &str)]| {
            Access::from_env(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        let plain = access(&[("HOME", "/home/a")]);
        assert_eq!(plain.cache, Path::new("/home/a/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.is_offline), (DEFAULT_ENDPOINT, None, false));
        let stored = access(&[("HF_HOME", &home), ("HF_ENDPOINT", "http://h:1/"), ("HF_HUB_OFFLINE", "true")]);
        assert_eq!(stored.cache, dir.path().join("hub"));
        assert_eq!(stored.token.as_ref().unwrap().reveal(), "hf_stored");
        assert_eq!((stored.endpoint.as_str(), stored.is_offline), ("http://h:1", true));
        assert!(!format!("{stored:?}").contains("hf_stored"));
        let given = access(&[("HF_HOME", &home), ("HF_TOKEN", " hf_given "), ("HF_HUB_CACHE", "/c")]);
        assert_eq!((given.token.unwrap().reveal(), given.cache.as_path()), ("hf_given", Path::new("/c")));
    }
}
