//! The tokenizer inside a GGUF file: tokens with their kinds, merges, special tokens, chat template.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;

use super::file::Value;
use super::{Error, Result};
use crate::text::Tokenizer;

/// How Qwen2.5's tokenizer splits text before merging; llama.cpp knows this rule as `qwen2`.
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Kinds of tokens, as llama.cpp numbers them.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// What of `tokenizer.json` is needed here.
#[derive(Deserialize)]
struct Stored {
    model: Bpe,
    #[serde(default)]
    added_tokens: Vec<Added>,
    pre_tokenizer: Json,
}

#[derive(Deserialize)]
struct Bpe {
    #[serde(rename = "type")]
    kind: String,
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    special: bool,
}

/// The tokenizer's metadata for a model with `vocab_size` rows of embeddings; rows without a token are named `[PADn]`.
///
/// # Errors
/// [`Error::Tokenizer`] when it is not a byte-level BPE of Qwen2's kind or has more tokens than the model has rows.
pub fn metadata(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Vec<(String, Value)>> {
    let refuse = |message: String| Error::Tokenizer { message };
    let stored: Stored = serde_json::from_str(tokenizer.json()).map_err(|error| refuse(error.to_string()))?;
    if stored.model.kind != "BPE" {
        return Err(refuse(format!("it is of the kind `{}`, expected `BPE`", stored.model.kind)));
    }
    if !names_text(&stored.pre_tokenizer, QWEN2_SPLIT) {
        return Err(refuse("it does not split text as Qwen2 does, which no setting of llama.cpp would follow".into()));
    }
    let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; vocab_size];
    let normal = stored.model.vocab.into_iter().map(|(token, id)| (id, token, NORMAL));
    let added = stored.added_tokens.into_iter().map(|added| {
        let kind = if added.special { CONTROL } else { USER_DEFINED };
        (added.id, added.content, kind)
    });
    // An added token may stand in the vocabulary too; its kind is that of the addition.
    for (id, token, kind) in normal.chain(added) {
        let (Some(slot), Some(slot_kind)) = (tokens.get_mut(id as usize), kinds.get_mut(id as usize)) else {
            return Err(refuse(format!("its token {id} is outside the model's vocabulary of {vocab_size}")));
        };
        *slot = token;
        *slot_kind = kind;
    }
    let merges = stored.model.merges.into_iter().map(|merge| match merge {
        Merge::Joined(text) => text,
        Merge::Pair(left, right) => format!("{left} {right}"),
    });
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let mut metadata = vec![
        (key("model"), Value::Text("gpt2".into())),
        (key("pre"), Value::Text("qwen2".into())),
        (key("tokens"), Value::Texts(tokens)),
        (key("token_type"), Value::I32s(kinds)),
        (key("merges"), Value::Texts(merges.collect())),
        (key("eos_token_id"), Value::U32(tokenizer.eos_id())),
        (key("padding_token_id"), Value::U32(tokenizer.pad_id())),
        // Named, so that a reader has one; never put before a prompt.
        (key("bos_token_id"), Value::U32(tokenizer.pad_id())),
        (key("add_bos_token"), Value::Bool(false)),
    ];
    if let Some(template) = tokenizer.template_source() {
        metadata.push(("tokenizer.chat_template".into(), Value::Text(template.to_owned())));
    }
    Ok(metadata)
}

/// Whether a text stands anywhere in a JSON value.
fn names_text(value: &Json, text: &str) -> bool {
    match value {
        Json::String(found) => found == text,
        Json::Array(values) => values.iter().any(|value| names_text(value, text)),
        Json::Object(map) => map.values().any(|value| names_text(value, text)),
        _ => false,
    }
}
