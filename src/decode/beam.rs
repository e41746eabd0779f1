//! The likeliest answers to one prompt: a beam search over the walks that a constraint allows.
//!
//! Answers are ranked by the probability that [`super::Batch`] gives them, without any reward for length. The search is
//! exact where no more walks than its width are worth following, else close to it.

use tch::Tensor;

use super::Error;
use super::batch::{ScoredCode, head_rows};
use super::constraint::{Advance, Choice, Constraint, Walk};
use super::sampler::log_softmax;
use crate::model::{KvCache, Packed, Qwen2, Segment};

/// Walks followed beside those asked for, so that a late favourite is not lost.
const SPARE_WIDTH: usize = 4;

/// One of the likeliest answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// The codes, in order.
    pub codes: Vec<ScoredCode>,
    /// The probability of the whole answer.
    pub probability: f64,
}

#[derive(Clone)]
struct Beam {
    walk: Walk,
    log_prob: f64,
    code_log_probs: Vec<f64>,
}

/// A way to go on from a beam.
struct Branch {
    beam: usize,
    choice: Choice,
    /// Of this token, and of the answer with it.
    token_log_prob: f64,
    log_prob: f64,
}

/// The `n` likeliest answers, best first; fewer where the release has no more.
///
/// # Errors
/// When the prompt is empty or does not fit the model together with the longest answer, or memory is short.
pub fn alternatives(
    model: &mut Qwen2,
    constraint: &Constraint,
    prompt: &[u32],
    max_new_tokens: usize,
    n: usize,
) -> Result<Vec<Alternative>, Error> {
    let limit = model.config.max_position_embeddings;
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt { index: 0 });
    }
    if prompt.len() + max_new_tokens > limit as usize {
        return Err(Error::TooLong { index: 0, len_tokens: prompt.len(), max_new_tokens, limit });
    }
    if max_new_tokens < constraint.min_tokens() {
        return Err(Error::TooFewTokens { max_new_tokens, least: constraint.min_tokens() });
    }
    let head_rows = head_rows(model, constraint)?;
    let ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
    let len = ids.len() as i64;
    let packed = Packed::new(&ids, &[Segment::plain(ids.len())], model.config.vocab_size, model.placement.device)?;
    let mut cache = KvCache::new(&model.config, model.placement, 1, len + max_new_tokens as i64)?;
    let mut hidden = model.prefill_hidden(&packed, &[len], &mut cache)?;

    let mut beams = vec![Beam { walk: constraint.start(), log_prob: 0.0, code_log_probs: Vec::new() }];
    let mut finished: Vec<Beam> = Vec::new();
    let mut choices = Vec::new();
    for n_left in (1..=max_new_tokens).rev() {
        let logits = Vec::<f32>::try_from(model.logits_over(&hidden, &head_rows)?.f_reshape([-1])?)?;
        let mut branches = Vec::new();
        for (idx, (beam, logits)) in beams.iter().zip(logits.chunks(constraint.tokens().len())).enumerate() {
            constraint.choices(&beam.walk, n_left, &mut choices);
            let mut log_probs: Vec<f32> = choices.iter().map(|choice| logits[choice.slot as usize]).collect();
            log_softmax(&mut log_probs);
            branches.extend(choices.iter().zip(log_probs).map(|(&choice, log_prob)| {
                let token_log_prob = f64::from(log_prob);
                Branch { beam: idx, choice, token_log_prob, log_prob: beam.log_prob + token_log_prob }
            }));
        }
        branches.sort_by(|a, b| b.log_prob.total_cmp(&a.log_prob));
        let mut followed: Vec<Beam> = Vec::new();
        let (mut parents, mut next) = (Vec::new(), Vec::new());
        for branch in branches {
            if followed.len() >= n + SPARE_WIDTH || is_beaten(&finished, n, branch.log_prob) {
                break;
            }
            let mut beam = beams[branch.beam].clone();
            beam.log_prob = branch.log_prob;
            match constraint.advance(&mut beam.walk, branch.choice) {
                Advance::Ended => insert(&mut finished, beam, n),
                Advance::Spelled(codes) => {
                    for idx in codes {
                        if idx >= beam.code_log_probs.len() {
                            beam.code_log_probs.resize(idx + 1, 0.0);
                        }
                        beam.code_log_probs[idx] += branch.token_log_prob;
                    }
                    parents.push(branch.beam as i64);
                    next.push(i64::from(constraint.token(branch.choice)));
                    followed.push(beam);
                }
            }
        }
        if followed.is_empty() {
            break;
        }
        cache.keep(&parents)?;
        beams = followed;
        let next = Tensor::f_from_slice(&next)?.f_to_device(model.placement.device)?;
        hidden = model.decode_hidden(&next, &mut cache)?;
    }
    Ok(finished.iter().map(|beam| alternative(constraint, beam)).collect())
}

/// Whether no walk that is now at `log_prob` can come among the `n` best: a walk never gains.
fn is_beaten(finished: &[Beam], n: usize, log_prob: f64) -> bool {
    finished.len() >= n && finished.last().is_none_or(|worst| worst.log_prob >= log_prob)
}

fn insert(finished: &mut Vec<Beam>, beam: Beam, n: usize) {
    let at = finished.partition_point(|other| other.log_prob >= beam.log_prob);
    finished.insert(at, beam);
    finished.truncate(n);
}

fn alternative(constraint: &Constraint, beam: &Beam) -> Alternative {
    let codes = constraint.codes(&beam.walk).into_iter().zip(&beam.code_log_probs);
    let codes = codes.map(|(code, log_prob)| ScoredCode { code, probability: log_prob.exp() }).collect();
    Alternative { codes, probability: beam.log_prob.exp() }
}
