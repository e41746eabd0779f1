//! A model's answers to chat prompts.

use super::Error;
use crate::decode::{Limits, generate};
use crate::model::Qwen2;
use crate::stop::Stop;
use crate::text::{Message, Tokenizer};

/// New tokens an answer may have: twelve codes and their commas in Qwen's tokenizer, which gives a token to each digit.
pub const MAX_NEW_TOKENS: usize = 96;

/// The greedy answer to every prompt, as text without special tokens; prompts too long for `max_prompt_tokens` lose
/// words from their middle. `done` is called with the number of prompts answered since the last call.
///
/// # Errors
/// When a prompt cannot be tokenized, a stop is requested or memory is short.
pub fn answers(
    model: &mut Qwen2,
    tokenizer: &Tokenizer,
    prompts: &[Vec<Message>],
    batch_size: usize,
    stop: &Stop,
    done: impl FnMut(u64),
) -> Result<Vec<String>, Error> {
    let max_prompt_tokens = (model.config.max_position_embeddings as usize).saturating_sub(MAX_NEW_TOKENS);
    let mut ids = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let mut tokens = tokenizer.encode_prompt(prompt)?;
        tokens.fit(max_prompt_tokens)?;
        ids.push(tokens.ids);
    }
    let limits = Limits { max_new_tokens: MAX_NEW_TOKENS, batch_size, end_tokens: tokenizer.stop_ids() };
    let answers = generate(model, &ids, &limits, stop, done)?;
    answers.iter().map(|ids| Ok(tokenizer.decode(ids)?)).collect()
}
