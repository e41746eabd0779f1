//! Text to token ids: messages, the tokenizer, the chat template, and the mask of tokens that a loss counts.
//!
//! A [`Tokenizer`] is a folder's `tokenizer.json`, `tokenizer_config.json` and chat template together. Its ids equal
//! those that transformers gives for the same folder and the same messages.

mod bpe;
mod chat;
mod error;
mod message;
mod spelling;
mod template;
mod tokenizer;
mod tokens;

pub use bpe::train_bpe;
pub use error::Error;
pub use message::{Message, Role};
pub use template::ChatTemplate;
pub(crate) use template::civil_date;
pub use tokenizer::Tokenizer;
pub use tokens::Tokens;
