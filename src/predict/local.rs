//! Answers of a model on this machine.

use std::sync::Arc;

use super::{Error, Other, Predicted, Prediction};
use crate::codes::Code;
use crate::decode::{self, Answer, Constraint, Limits, ScoredCode, generate, generate_codes};
use crate::model::Qwen2;
use crate::stop::Stop;
use crate::text::{Message, Tokenizer};

/// New tokens that a free answer may have: twelve codes and their commas in Qwen's tokenizer, a token a digit.
pub const FREE_TOKENS: usize = 96;

/// How questions are answered.
#[derive(Clone, Debug)]
pub struct Options {
    /// Questions answered together.
    pub batch_size: usize,
    /// The language of answers; none for free ones.
    pub constraint: Option<Arc<Constraint>>,
}

impl Options {
    /// New tokens that an answer may have: a free one a fixed number, a constrained one as many as it may need.
    pub fn max_new_tokens(&self) -> usize {
        self.constraint.as_ref().map_or(FREE_TOKENS, |constraint| constraint.max_tokens())
    }
}

/// The greedy answer to every prompt. `done` gets the index of a prompt and its answer as soon as it is finished.
/// Prompts too long for the model lose words from the middle of the last question.
///
/// # Errors
/// When a prompt cannot be tokenized, a stop is requested or memory is short.
pub fn predict(
    model: &mut Qwen2,
    tokenizer: &Tokenizer,
    prompts: &[Vec<Message>],
    options: &Options,
    stop: &Stop,
    mut done: impl FnMut(usize, Prediction),
) -> Result<(), Error> {
    let max_new_tokens = options.max_new_tokens();
    let ids = prompts
        .iter()
        .map(|prompt| encode(model, tokenizer, prompt, max_new_tokens))
        .collect::<Result<Vec<_>, Error>>()?;
    let limits = Limits { max_new_tokens, batch_size: options.batch_size, end_tokens: tokenizer.stop_ids() };
    if let Some(constraint) = &options.constraint {
        generate_codes(model, &ids, &limits, constraint, stop, |idx, answer| done(idx, constrained(&answer)))?;
        return Ok(());
    }
    for (idx, ids) in generate(model, &ids, &limits, stop, |_| ())?.into_iter().enumerate() {
        done(idx, Prediction::of_text(tokenizer.decode(&ids)?));
    }
    Ok(())
}

/// The `n` likeliest answers to one prompt; the first is the answer itself.
///
/// # Errors
/// When the prompt cannot be tokenized or memory is short.
pub fn alternatives(
    model: &mut Qwen2,
    tokenizer: &Tokenizer,
    prompt: &[Message],
    constraint: &Constraint,
    n: usize,
) -> Result<Prediction, Error> {
    let max_new_tokens = constraint.max_tokens();
    let ids = encode(model, tokenizer, prompt, max_new_tokens)?;
    let found = decode::alternatives(model, constraint, &ids, max_new_tokens, n.max(1))?;
    let first = found.first().map(|best| predicted(&best.codes)).unwrap_or_default();
    let alternatives: Vec<Other> =
        found.iter().map(|other| Other { output: joined(&other.codes), confidence: other.probability }).collect();
    let output = alternatives.first().map(|best| best.output.clone()).unwrap_or_default();
    let confidence = alternatives.first().map(|best| best.confidence);
    Ok(Prediction { output, predicted: first, confidence, alternatives, ..Prediction::default() })
}

/// The token ids of a prompt, cut to what the model can read beside `max_new_tokens`.
fn encode(model: &Qwen2, tokenizer: &Tokenizer, prompt: &[Message], max_new_tokens: usize) -> Result<Vec<u32>, Error> {
    let limit = model.config.max_position_embeddings as usize;
    let room = limit.checked_sub(max_new_tokens).filter(|&room| room > 0).ok_or(Error::NoRoom { limit })?;
    let mut tokens = tokenizer.encode_prompt(prompt)?;
    tokens.fit(room)?;
    Ok(tokens.ids)
}

fn constrained(answer: &Answer) -> Prediction {
    Prediction {
        output: joined(&answer.codes),
        predicted: predicted(&answer.codes),
        confidence: Some(answer.probability),
        ..Prediction::default()
    }
}

fn joined(codes: &[ScoredCode]) -> String {
    codes.iter().map(|scored| scored.code.to_string()).collect::<Vec<_>>().join(", ")
}

fn predicted(codes: &[ScoredCode]) -> Vec<Predicted> {
    let scored = codes.iter();
    scored
        .map(|scored| Predicted { code: scored.code, description: None, probability: Some(scored.probability) })
        .collect()
}

impl Prediction {
    /// A free answer: its codes are the parts between commas that have the form of one.
    pub(super) fn of_text(output: String) -> Self {
        let parts = output.split(',').filter_map(|part| Code::parse(part.trim()).ok());
        let predicted = parts.map(|code| Predicted { code, description: None, probability: None }).collect();
        Self { output, predicted, ..Self::default() }
    }
}
