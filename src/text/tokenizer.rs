//! A tokenizer folder: `tokenizer.json`, `tokenizer_config.json` and, where it is a file, `chat_template.jinja`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Map, Value};

use super::{ChatTemplate, Error};
use crate::fsio;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// A tokenizer with its special tokens and its chat template. Shareable between threads.
pub struct Tokenizer {
    pub(super) inner: tokenizers::Tokenizer,
    json: String,
    config: Map<String, Value>,
    template_file: Option<String>,
    template: Option<ChatTemplate>,
    special_ids: BTreeSet<u32>,
    eos_id: u32,
    pad_id: u32,
    vocab_size: usize,
}

impl Tokenizer {
    /// Loads a folder in Hugging Face layout. The padding token falls back to the end token.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::BadTokenizer`], [`Error::BadTemplate`], or a special token that is missing.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let json = fsio::read_text(&dir.join(TOKENIZER))?;
        let config = fsio::read_json(&dir.join(CONFIG))?;
        let template_path = dir.join(TEMPLATE);
        let template_file = template_path.exists().then(|| fsio::read_text(&template_path)).transpose()?;
        Self::from_parts(dir, json, config, template_file)
    }

    /// Writes the files of the folder as they were loaded or made. Makes the folder.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        fsio::write_atomic(&dir.join(TOKENIZER), |out| out.write_all(self.json.as_bytes()))?;
        fsio::write_json(&dir.join(CONFIG), &self.config)?;
        if let Some(template) = &self.template_file {
            fsio::write_atomic(&dir.join(TEMPLATE), |out| out.write_all(template.as_bytes()))?;
        }
        Ok(())
    }

    /// `dir` serves messages only.
    pub(super) fn from_parts(
        dir: &Path,
        json: String,
        config: Map<String, Value>,
        template_file: Option<String>,
    ) -> Result<Self, Error> {
        let bad =
            |error: tokenizers::Error| Error::BadTokenizer { path: dir.join(TOKENIZER), message: error.to_string() };
        let mut inner = tokenizers::Tokenizer::from_bytes(json.as_bytes()).map_err(bad)?;
        // Settings of whoever saved the file; lengths are this program's business.
        inner.with_truncation(None).map_err(bad)?;
        inner.with_padding(None);

        let special = |key: &'static str| -> Result<Option<u32>, Error> {
            let Some(token) = token_text(&config, key) else { return Ok(None) };
            let unknown = || Error::UnknownSpecial { path: dir.join(CONFIG), key, token: token.to_owned() };
            inner.token_to_id(token).ok_or_else(unknown).map(Some)
        };
        let eos_id =
            special("eos_token")?.ok_or_else(|| Error::MissingSpecial { path: dir.join(CONFIG), key: "eos_token" })?;
        let pad_id = special("pad_token")?.unwrap_or(eos_id);

        let added = inner.get_added_tokens_decoder();
        let special_ids = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let template = match template_file.as_deref().or_else(|| template_of(&config)) {
            Some(source) => Some(ChatTemplate::new(source, special_variables(&config), SystemTime::now())?),
            None => None,
        };
        Ok(Self { inner, json, config, template_file, template, special_ids, eos_id, pad_id, vocab_size })
    }

    /// Token ids of a text, as transformers' `tokenizer(text)` gives them.
    ///
    /// # Errors
    /// [`Error::Tokenize`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, true).map_err(|error| Error::Tokenize(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids, without special tokens. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenize`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, true).map_err(|error| Error::Tokenize(error.to_string()))
    }

    /// The text of token ids, special tokens spelled out.
    ///
    /// # Errors
    /// [`Error::Tokenize`].
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, false).map_err(|error| Error::Tokenize(error.to_string()))
    }

    /// The id of a token of the vocabulary, special tokens included.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The end token: `eos_token` of tokenizer_config.json.
    pub fn eos_id(&self) -> u32 {
        self.eos_id
    }

    /// The padding token: `pad_token` of tokenizer_config.json, else the end token.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The tokens that end an answer: the end token, and `<|im_end|>` where the vocabulary has it.
    pub fn stop_ids(&self) -> Vec<u32> {
        let turn_end = self.token_id("<|im_end|>").filter(|&id| id != self.eos_id);
        std::iter::once(self.eos_id).chain(turn_end).collect()
    }

    /// Whether a token is marked as special.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// One more than the largest id. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// `tokenizer.json` as it was loaded or made.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The chat template's own text, where the folder has one.
    pub fn template_source(&self) -> Option<&str> {
        self.template_file.as_deref().or_else(|| template_of(&self.config))
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::NoTemplate`] when the folder has none.
    pub fn chat_template(&self) -> Result<&ChatTemplate, Error> {
        self.template.as_ref().ok_or(Error::NoTemplate)
    }
}

/// A special token's text: `"eos_token": "<x>"` or `"eos_token": {"content": "<x>", ...}`.
fn token_text<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// `chat_template`: a text, or a list of named ones of which `default` is taken.
fn template_of(config: &Map<String, Value>) -> Option<&str> {
    let value = config.get("chat_template")?;
    let default = || value.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
    value.as_str().or_else(default)
}

fn special_variables(config: &Map<String, Value>) -> Vec<(String, String)> {
    ["bos_token", "eos_token", "pad_token", "unk_token"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), token_text(config, key)?.to_owned())))
        .collect()
}
