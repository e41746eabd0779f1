//! Text to token ids: messages, the tokenizer, the chat template, and the mask of tokens that a loss counts.

mod message;

pub use message::{Message, Role};
