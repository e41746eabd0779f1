//! How sure a model is of answers that it gave: the probability of the whole answer, its end token included.
//!
//! The answers go through the model once more, as records do in training; that costs about what reading the prompts
//! does.

use super::Error;
use crate::model::Qwen2;
use crate::stop::Stop;
use crate::text::{Message, Tokenizer, Tokens};
use crate::train::{Sharing, log_probabilities, pack_records};

/// Tokens that go through the model together.
const BATCH_TOKENS: usize = 2048;

/// The probability of each output after its prompt, from 0 to 1. None for an output that the chat
/// template does not render as it is, or that the model gives no finite probability. `done` is called with the number
/// of outputs that are finished.
///
/// # Errors
/// When a stop is requested or memory is short.
pub fn confidences(
    model: &mut Qwen2,
    tokenizer: &Tokenizer,
    prompts: &[Vec<Message>],
    outputs: &[String],
    stop: &Stop,
    mut done: impl FnMut(u64),
) -> Result<Vec<Option<f64>>, Error> {
    let max_tokens = model.config.max_position_embeddings as usize;
    let encode = |(prompt, output): (&Vec<Message>, &String)| {
        let mut tokens = tokenizer.encode_answer(prompt, &[Message::assistant(output.clone())]).ok()?;
        tokens.fit(max_tokens).ok()?;
        Some(tokens)
    };
    let records: Vec<Option<Tokens>> = prompts.iter().zip(outputs).map(encode).collect();
    let mut confidences = vec![None; records.len()];
    let mut rest: Vec<(usize, &Tokens)> =
        records.iter().enumerate().filter_map(|(idx, tokens)| Some((idx, tokens.as_ref()?))).collect();
    // Records of like length go together.
    rest.sort_by_key(|(_, tokens)| tokens.len());
    while let Some((_, longest)) = rest.last() {
        stop.check("weighing answers")?;
        let n_together = (BATCH_TOKENS / longest.len().max(1)).clamp(1, rest.len());
        let batch = rest.split_off(rest.len() - n_together);
        let log_probs = log_probabilities(model, &pack_records(batch.iter().map(|(_, tokens)| *tokens), Sharing::All))?;
        let mut log_probs = log_probs.as_slice();
        for (idx, tokens) in batch {
            let (own, others) = log_probs.split_at(tokens.n_targets().min(log_probs.len()));
            log_probs = others;
            let sum: f64 = own.iter().map(|&log_prob| f64::from(log_prob)).sum();
            confidences[idx] = sum.is_finite().then(|| sum.exp().min(1.0));
        }
        done(n_together as u64);
    }
    Ok(confidences)
}
