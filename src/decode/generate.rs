//! Greedy decoding of many prompts: sorted by length, a finished one making room for the next.

use std::sync::Arc;

use super::Error;
use super::batch::{Answer, Batch, Form, Request, Settings};
use super::constraint::Constraint;
use super::sampler::Sampling;
use crate::model::Qwen2;
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
    let mut answers = vec![Vec::new(); prompts.len()];
    decode_all(model, prompts, limits, None, stop, |idx, answer| {
        answers[idx] = answer.tokens.iter().map(|token| token.id).collect();
        done(1);
    })?;
    Ok(answers)
}

/// The greedy answer to every prompt that a constraint allows. `done` is called with the index of a prompt and its
/// answer as soon as it is finished; prompts of like length are answered together, so not in their order.
///
/// # Errors
/// As [`generate`], and when `max_new_tokens` cannot hold a code.
pub fn generate_codes(
    model: &mut Qwen2,
    prompts: &[Vec<u32>],
    limits: &Limits,
    constraint: &Arc<Constraint>,
    stop: &Stop,
    done: impl FnMut(usize, Answer),
) -> Result<(), Error> {
    decode_all(model, prompts, limits, Some(constraint), stop, done)
}

fn decode_all(
    model: &mut Qwen2,
    prompts: &[Vec<u32>],
    limits: &Limits,
    constraint: Option<&Arc<Constraint>>,
    stop: &Stop,
    mut done: impl FnMut(usize, Answer),
) -> Result<(), Error> {
    let mut batch = Batch::new(Settings {
        batch_size: limits.batch_size,
        end_tokens: limits.end_tokens.clone(),
        constraint: constraint.cloned(),
    });
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&idx| prompts[idx].len());
    for idx in order {
        let request = Request {
            prompt: prompts[idx].clone(),
            max_new_tokens: limits.max_new_tokens,
            sampling: Sampling::default(),
            form: if constraint.is_some() { Form::Codes } else { Form::Free },
            log_probs: false,
            n_top: 0,
        };
        batch.submit(model, idx as u64, request)?;
    }
    while !batch.is_idle() {
        stop.check("decoding")?;
        for event in batch.step(model)? {
            if let Some(answer) = event.answer {
                done(event.key as usize, answer);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::model::{Config, Packed, Segment, init};
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
