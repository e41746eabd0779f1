//! A new tokenizer: byte-level BPE trained on a corpus, in the pipeline and with the chat template of Qwen2.5.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::{Error, Tokenizer};

/// The special tokens, last in the vocabulary and in this order, as in Qwen2.5.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Every byte is a token, so that any text can be written.
const N_BYTES: usize = 256;

const CHAT_TEMPLATE: &str = include_str!("../../assets/qwen2.5/chat_template.jinja");

/// Splits words, single digits, punctuation and newlines, as `tokenizer.json` of Qwen2.5 does.
const SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Trains a tokenizer of at most `vocab_size` tokens, special ones included. Equal texts give equal bytes.
///
/// The end token is `<|im_end|>`, the padding token `<|endoftext|>`, the chat template that of Qwen2.5.
///
/// # Errors
/// [`Error::SmallVocabulary`], or [`Error::Tokenize`].
pub fn train_bpe<S>(texts: impl Iterator<Item = S> + Send, vocab_size: usize) -> Result<Tokenizer, Error>
where
    S: AsRef<str> + Send,
{
    let least = N_BYTES + SPECIAL.len();
    if vocab_size < least {
        return Err(Error::SmallVocabulary { size: vocab_size, least });
    }
    let fault = |error: tokenizers::Error| Error::Tokenize(error.to_string());
    let mut inner = tokenizers::Tokenizer::from_bytes(untrained().to_string()).map_err(fault)?;
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size - SPECIAL.len())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    inner.train(&mut TrainerWrapper::from(trainer), texts).map_err(fault)?;
    inner.add_special_tokens(&SPECIAL.map(|token| AddedToken::from(token, true).normalized(false)));
    let config = config_for(&inner);
    Tokenizer::from_parts(Path::new("."), inner.to_string(false).map_err(fault)?, config, None)
}

/// `tokenizer.json` of Qwen2.5 with an empty vocabulary.
fn untrained() -> Value {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": false},
            byte_level,
        ]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": {}, "merges": [],
        },
    })
}

fn config_for(inner: &tokenizers::Tokenizer) -> Map<String, Value> {
    let added: Map<String, Value> = SPECIAL
        .iter()
        .filter_map(|token| {
            let entry = json!({
                "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
                "special": true,
            });
            Some((inner.token_to_id(token)?.to_string(), entry))
        })
        .collect();
    let config = json!({
        "add_bos_token": false,
        "add_prefix_space": false,
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL[1..],
        "bos_token": null,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": SPECIAL[2],
        "errors": "replace",
        "pad_token": SPECIAL[0],
        "split_special_tokens": false,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": null,
    });
    match config {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
