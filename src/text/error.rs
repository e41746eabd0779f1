//! What can go wrong between text and token ids.

use std::path::PathBuf;

use crate::diag::Diagnostic;
use crate::fsio;

/// A tokenizer, a template or a record that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each case and field is")]
pub enum Error {
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error("`{}` is not a tokenizer: {message}", path.display())]
    BadTokenizer { path: PathBuf, message: String },
    #[error("`{}` names no `{key}`", path.display())]
    MissingSpecial { path: PathBuf, key: &'static str },
    #[error("`{}` names the {key} `{token}`, which `tokenizer.json` does not know", path.display())]
    UnknownSpecial { path: PathBuf, key: &'static str, token: String },
    #[error("the tokenizer has no chat template")]
    NoTemplate,
    #[error("the chat template is faulty: {0}")]
    BadTemplate(String),
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    #[error("the chat template rewrites the messages, so that the answer cannot be found in its text")]
    ContentRewritten,
    #[error("the tokenizer failed: {0}")]
    Tokenize(String),
    #[error("a vocabulary of {size} is too small: {least} tokens are the bytes and the special tokens alone")]
    SmallVocabulary { size: usize, least: usize },
    #[error(
        "a record of {len_tokens} tokens cannot be cut to {max_seq_length}: only {removable} of them are prompt text"
    )]
    TooLong { len_tokens: usize, max_seq_length: usize, removable: usize },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::BadTokenizer { .. } => {
                Some("it should be the tokenizer.json of a Hugging Face model folder; fetch it again".into())
            }
            Self::MissingSpecial { key, .. } | Self::UnknownSpecial { key, .. } => {
                Some(format!("set `{key}` in tokenizer_config.json to a token of the vocabulary"))
            }
            Self::NoTemplate => Some(
                "use an instruct model, or put `chat_template.jinja` into the model folder; Qwen2.5's is in \
                 assets/qwen2.5"
                    .into(),
            ),
            Self::SmallVocabulary { least, .. } => Some(format!("ask for more than {least}")),
            Self::TooLong { .. } => Some("raise `model.max_seq_length`, or drop the record".into()),
            Self::BadTemplate(_) | Self::Refused(_) | Self::ContentRewritten | Self::Tokenize(_) => None,
        }
    }
}
