//! Greedy decoding of many prompts: sorted by length, a batch at a time, finished sequences leaving early.

use tch::{Kind, Tensor};

use super::Error;
use crate::model::{KvCache, Packed, Qwen2, Segment};
use crate::stop::Stop;

/// When decoding stops and how much runs at once.
#[derive(Clone, Debug)]
pub struct Limits {
    pub max_new_tokens: usize,
    /// Sequences decoded together.
    pub batch_size: usize,
    /// Tokens that end an answer; not part of the result.
    pub end_tokens: Vec<u32>,
}

/// A sequence being decoded.
struct Active {
    /// Index among the prompts.
    prompt: usize,
    answer: Vec<u32>,
    is_done: bool,
}

/// The greedy continuation of every prompt, in the order of the prompts, end token excluded. An answer cut at
/// `max_new_tokens` is returned as far as it came. `done` is called with the number of prompts finished.
///
/// # Errors
/// When a prompt is empty or too long for the model, a stop is requested, or memory is short.
pub fn generate(
    model: &mut Qwen2,
    prompts: &[Vec<u32>],
    limits: &Limits,
    stop: &Stop,
    mut done: impl FnMut(u64),
) -> Result<Vec<Vec<u32>>, Error> {
    let limit = model.config.max_position_embeddings;
    for (index, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt { index });
        }
        if prompt.len() + limits.max_new_tokens > limit as usize {
            let (len_tokens, max_new_tokens) = (prompt.len(), limits.max_new_tokens);
            return Err(Error::TooLong { index, len_tokens, max_new_tokens, limit });
        }
    }
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&idx| prompts[idx].len());
    let mut answers = vec![Vec::new(); prompts.len()];
    for batch in order.chunks(limits.batch_size.max(1)) {
        for active in decode_batch(model, prompts, batch, limits, stop)? {
            answers[active.prompt] = active.answer;
        }
        done(batch.len() as u64);
    }
    Ok(answers)
}

fn decode_batch(
    model: &mut Qwen2,
    prompts: &[Vec<u32>],
    batch: &[usize],
    limits: &Limits,
    stop: &Stop,
) -> Result<Vec<Active>, Error> {
    let ids: Vec<i64> = batch.iter().flat_map(|&idx| &prompts[idx]).map(|&id| i64::from(id)).collect();
    let lens: Vec<i64> = batch.iter().map(|&idx| prompts[idx].len() as i64).collect();
    let segments: Vec<Segment> = lens.iter().map(|&len| Segment::plain(len as usize)).collect();
    let device = model.placement.device;
    let packed = Packed::new(&ids, &segments, model.config.vocab_size, device)?;
    let max_len = lens.iter().max().copied().unwrap_or(0) + limits.max_new_tokens as i64;
    let mut cache = KvCache::new(&model.config, model.placement, batch.len() as i64, max_len)?;

    let mut running: Vec<Active> =
        batch.iter().map(|&prompt| Active { prompt, answer: Vec::new(), is_done: false }).collect();
    let mut finished = Vec::new();
    let mut logits = model.prefill(&packed, &lens, &mut cache)?;
    for n_tokens in 1..=limits.max_new_tokens {
        stop.check("decoding")?;
        let mut next = Vec::<i64>::try_from(logits.f_argmax(-1, false)?.f_to_kind(Kind::Int64)?)?;
        for (active, &id) in running.iter_mut().zip(&next) {
            if active.is_done || limits.end_tokens.contains(&(id as u32)) {
                active.is_done = true;
            } else {
                active.answer.push(id as u32);
            }
        }
        let left: Vec<i64> = (0..running.len() as i64).filter(|&idx| !running[idx as usize].is_done).collect();
        if left.is_empty() || n_tokens == limits.max_new_tokens {
            break;
        }
        // Moving the cache costs about a step; it pays when a quarter of the batch is done.
        if left.len() * 4 <= running.len() * 3 {
            cache.keep(&left)?;
            next = left.iter().map(|&idx| next[idx as usize]).collect();
            let (done, still): (Vec<Active>, Vec<Active>) = running.into_iter().partition(|active| active.is_done);
            finished.extend(done);
            running = still;
        }
        logits = model.decode(&Tensor::f_from_slice(&next)?.f_to_device(device)?, &mut cache)?;
    }
    finished.extend(running);
    Ok(finished)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::model::{Config, init};
    use crate::tensor::{Placement, Rng};

    fn model() -> Qwen2 {
        let config = Config {
            vocab_size: 40,
            hidden_size: 24,
            intermediate_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 6,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            max_position_embeddings: 64,
        };
        let mut rng = Rng::named(3, "sharpen");
        let model = init(config, 1, Placement { device: Device::Cpu, dtype: Kind::Float }).unwrap();
        for (_, tensor) in model.dense_weights() {
            let noise = rng.normal(&tensor.size(), 0.4).unwrap();
            let _ = tch::no_grad(|| tensor.shallow_clone().f_add_(&noise).unwrap());
        }
        model
    }

    /// Greedy decoding by running the whole sequence again for every token.
    fn slow(model: &mut Qwen2, prompt: &[u32], limits: &Limits) -> Vec<u32> {
        let mut ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
        let mut answer = Vec::new();
        for _ in 0..limits.max_new_tokens {
            let packed = Packed::new(&ids, &[Segment::plain(ids.len())], 40, Device::Cpu).unwrap();
            let hidden = model.hidden_states(&packed).unwrap();
            let logits = model.logits(&hidden.narrow(0, ids.len() as i64 - 1, 1)).unwrap();
            let id = logits.argmax(-1, false).int64_value(&[0]);
            if limits.end_tokens.contains(&(id as u32)) {
                break;
            }
            answer.push(id as u32);
            ids.push(id);
        }
        answer
    }

    #[test]
    fn a_batch_with_a_cache_answers_as_each_prompt_does_alone() {
        let mut model = model();
        let mut rng = Rng::named(6, "prompts");
        let prompts: Vec<Vec<u32>> =
            (0..13).map(|n| (0..3 + (n * 5) % 11).map(|_| rng.below(40) as u32).collect()).collect();
        // Tokens 0 to 7 end an answer, so that sequences of a batch end at different steps.
        let limits = Limits { max_new_tokens: 12, batch_size: 5, end_tokens: (0..8).collect() };
        let mut n_done = 0;
        let answers = generate(&mut model, &prompts, &limits, &Stop::default(), |n| n_done += n).unwrap();
        let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| slow(&mut model, prompt, &limits)).collect();
        assert_eq!(answers, expected);
        assert_eq!(n_done, 13);
        let lens: std::collections::BTreeSet<usize> = answers.iter().map(Vec::len).collect();
        assert!(lens.len() > 3, "answers of many lengths are wanted, got {lens:?}");
    }

    #[test]
    fn prompts_that_cannot_be_answered_are_named() {
        let limits = Limits { max_new_tokens: 60, batch_size: 2, end_tokens: vec![] };
        let long = generate(&mut model(), &[vec![1], vec![2; 5]], &limits, &Stop::default(), |_| ());
        assert!(matches!(long, Err(Error::TooLong { index: 1, len_tokens: 5, .. })));
        let empty = generate(&mut model(), &[vec![]], &limits, &Stop::default(), |_| ());
        assert!(matches!(empty, Err(Error::EmptyPrompt { index: 0 })));
    }
}
