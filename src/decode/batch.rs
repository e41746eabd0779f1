//! Decoding of many sequences at once, which come and go: one step gives every running sequence its next token, a
//! finished one leaves its place to one that waits (continuous batching, as in Orca, OSDI 2022).
//!
//! A sequence's tokens depend on its own request only, not on what is decoded beside it. Constrained sequences use the
//! rows of the model's head that answers can need, a few hundred, and never see the others.

use std::collections::VecDeque;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::Error;
use super::constraint::{Advance, Choice, Constraint, Walk};
use super::sampler::{Sampling, log_softmax};
use crate::codes::Code;
use crate::model::{KvCache, Packed, Qwen2, Segment};
use crate::tensor::Rng;

/// Prompt tokens read in one step, so that running sequences do not wait long; one prompt is always read.
const MAX_PREFILL_TOKENS: usize = 2048;

/// What is decoded together.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The most sequences at once.
    pub batch_size: usize,
    /// Tokens that end a free answer.
    pub end_tokens: Vec<u32>,
    /// The language of constrained answers.
    pub constraint: Option<Arc<Constraint>>,
}

/// A prompt to be continued.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<u32>,
    /// The end token counts.
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    pub form: Form,
    /// Whether tokens come with their log-probability; constrained ones always do.
    pub log_probs: bool,
    /// The likeliest tokens listed beside each token, where `log_probs` is set.
    pub n_top: usize,
}

/// What an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Anything.
    Free,
    /// What the batch's constraint allows.
    Codes,
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    /// Natural logarithm of its probability among the tokens that could follow; 0 where none was asked for.
    pub log_prob: f32,
    /// The likeliest tokens in its place with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The model ended it.
    End,
    /// It has as many tokens as were allowed.
    Length,
}

/// A finished answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Without the end token.
    pub tokens: Vec<Token>,
    pub reason: Reason,
    /// Of a constrained answer: its codes, in order.
    pub codes: Vec<ScoredCode>,
    /// Of a constrained answer: the product of its tokens' probabilities, end token included, each renormalised over
    /// the tokens that could follow; 1 for a free one.
    pub probability: f64,
}

/// A code of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredCode {
    pub code: Code,
    /// The product of the probabilities of the tokens that spell it, given what comes before it.
    pub probability: f64,
}

/// A sequence got a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The key that it was submitted with.
    pub key: u64,
    /// The token; none for the one that ended it.
    pub token: Option<Token>,
    /// The whole answer, once it is finished.
    pub answer: Option<Answer>,
}

/// Sequences decoded together.
#[derive(Debug)]
pub struct Batch {
    settings: Settings,
    waiting: VecDeque<Sequence>,
    /// In the order of the cache.
    running: Vec<Sequence>,
    cache: Option<KvCache>,
    /// The rows of the head for the constraint's tokens.
    head_rows: Option<Tensor>,
    choices: Vec<Choice>,
}

#[derive(Debug)]
struct Sequence {
    key: u64,
    request: Request,
    rng: Rng,
    walk: Option<Walk>,
    tokens: Vec<Token>,
    code_log_probs: Vec<f64>,
    log_prob: f64,
    reason: Option<Reason>,
}

impl Batch {
    /// An empty batch.
    pub fn new(settings: Settings) -> Self {
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Self { settings, waiting, running, cache: None, head_rows: None, choices: Vec::new() }
    }

    /// Puts a request in line. `key` names it in events.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::TooLong`] for the model, [`Error::TooFewTokens`] for a constrained answer,
    /// [`Error::NoConstraint`] when the batch has none. The `index` of an error is `key`.
    pub fn submit(&mut self, model: &Qwen2, key: u64, request: Request) -> Result<(), Error> {
        let index = key as usize;
        let limit = model.config.max_position_embeddings;
        let (len_tokens, max_new_tokens) = (request.prompt.len(), request.max_new_tokens);
        if request.prompt.is_empty() {
            return Err(Error::EmptyPrompt { index });
        }
        if len_tokens + max_new_tokens > limit as usize {
            return Err(Error::TooLong { index, len_tokens, max_new_tokens, limit });
        }
        let walk = match (request.form, &self.settings.constraint) {
            (Form::Free, _) => None,
            (Form::Codes, None) => return Err(Error::NoConstraint),
            (Form::Codes, Some(constraint)) if max_new_tokens < constraint.min_tokens() => {
                return Err(Error::TooFewTokens { max_new_tokens, least: constraint.min_tokens() });
            }
            (Form::Codes, Some(constraint)) => Some(constraint.start()),
        };
        let rng = request.sampling.rng();
        let (tokens, code_log_probs) = (Vec::new(), Vec::new());
        self.waiting.push_back(Sequence {
            key,
            request,
            rng,
            walk,
            tokens,
            code_log_probs,
            log_prob: 0.0,
            reason: None,
        });
        Ok(())
    }

    /// Forgets a request, wherever it is; nothing happens when it is finished already.
    ///
    /// # Errors
    /// Never on a sound cache.
    pub fn cancel(&mut self, key: u64) -> Result<(), Error> {
        self.waiting.retain(|sequence| sequence.key != key);
        while let Some(idx) = self.running.iter().position(|sequence| sequence.key == key) {
            self.remove(idx)?;
        }
        Ok(())
    }

    /// Requests not yet begun.
    pub fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences being decoded.
    pub fn n_running(&self) -> usize {
        self.running.len()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// One token for every running sequence, and the first for those that find a place. A request without new tokens
    /// (`max_new_tokens` 0) is answered without one.
    ///
    /// # Errors
    /// When a prompt has a token outside the model's vocabulary, or memory is short.
    pub fn step(&mut self, model: &mut Qwen2) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        if let (false, Some(cache)) = (self.running.is_empty(), &mut self.cache) {
            let ids: Vec<i64> = self.running.iter().map(|sequence| i64::from(sequence.last_id())).collect();
            let ids = Tensor::f_from_slice(&ids)?.f_to_device(model.placement.device)?;
            let hidden = model.decode_hidden(&ids, cache)?;
            self.pick(model, &hidden, 0, &mut events)?;
        }
        self.drop_finished()?;
        let first = self.running.len();
        if let Some(hidden) = self.admit(model, &mut events)? {
            self.pick(model, &hidden, first, &mut events)?;
            self.drop_finished()?;
        }
        Ok(events)
    }

    /// Reads the prompts of waiting requests as far as there are places; gives the hidden states after them.
    fn admit(&mut self, model: &mut Qwen2, events: &mut Vec<Event>) -> Result<Option<Tensor>, Error> {
        let first = self.running.len();
        let mut n_tokens = 0;
        while self.running.len() < self.settings.batch_size.max(1) {
            let Some(next) = self.waiting.front() else { break };
            n_tokens += next.request.prompt.len();
            if self.running.len() > first && n_tokens > MAX_PREFILL_TOKENS {
                break;
            }
            let Some(next) = self.waiting.pop_front() else { break };
            if next.request.max_new_tokens == 0 {
                let answer = next.answer(Reason::Length, None);
                events.push(Event { key: next.key, token: None, answer: Some(answer) });
                continue;
            }
            self.running.push(next);
        }
        let new = &self.running[first..];
        if new.is_empty() {
            return Ok(None);
        }
        let ids: Vec<i64> = new.iter().flat_map(|sequence| &sequence.request.prompt).map(|&id| i64::from(id)).collect();
        let lens: Vec<i64> = new.iter().map(|sequence| sequence.request.prompt.len() as i64).collect();
        let segments: Vec<Segment> = lens.iter().map(|&len| Segment::plain(len as usize)).collect();
        let packed = Packed::new(&ids, &segments, model.config.vocab_size, model.placement.device)?;
        let room = new.iter().map(|sequence| sequence.request.prompt.len() + sequence.request.max_new_tokens).max();
        // Rounded up, so that a slightly longer sequence moves nothing.
        let room = (room.unwrap_or(0).next_multiple_of(64) as i64).min(model.config.max_position_embeddings);
        let cache = match &mut self.cache {
            Some(cache) => {
                cache.reserve(new.len(), room)?;
                cache
            }
            none => none.insert(KvCache::new(&model.config, model.placement, new.len() as i64, room)?),
        };
        Ok(Some(model.prefill_hidden(&packed, &lens, cache)?))
    }

    /// Gives the sequences from `first` on their next tokens, from the hidden states `[n, hidden]` after what they have.
    fn pick(&mut self, model: &Qwen2, hidden: &Tensor, first: usize, events: &mut Vec<Event>) -> Result<(), Error> {
        let sequences = &mut self.running[first..];
        let rows_of = |is_wanted: &dyn Fn(&Sequence) -> bool| -> Vec<i64> {
            (0..sequences.len() as i64).filter(|&row| is_wanted(&sequences[row as usize])).collect()
        };
        let (walking, free) = (rows_of(&|s| s.walk.is_some()), rows_of(&|s| s.walk.is_none()));
        if let (false, Some(constraint)) = (walking.is_empty(), &self.settings.constraint) {
            let head_rows = match &self.head_rows {
                Some(rows) => rows.shallow_clone(),
                None => self.head_rows.insert(head_rows(model, constraint)?).shallow_clone(),
            };
            let logits = model.logits_over(&select(hidden, &walking)?, &head_rows)?;
            let n_slots = constraint.tokens().len();
            let logits = Vec::<f32>::try_from(logits.f_reshape([-1])?)?;
            for (&row, logits) in walking.iter().zip(logits.chunks(n_slots)) {
                events.push(sequences[row as usize].walk_on(constraint, logits, &mut self.choices));
            }
        }
        if !free.is_empty() {
            let logits = model.logits(&select(hidden, &free)?)?;
            let best = Vec::<i64>::try_from(logits.f_argmax(-1, false)?.f_to_kind(Kind::Int64)?)?;
            for (idx, &row) in free.iter().enumerate() {
                let sequence = &mut sequences[row as usize];
                let token = sequence.free_token(&logits.f_get(idx as i64)?, best[idx])?;
                events.push(sequence.go_on(token, &self.settings.end_tokens));
            }
        }
        Ok(())
    }

    fn drop_finished(&mut self) -> Result<(), Error> {
        for idx in (0..self.running.len()).rev() {
            if self.running[idx].reason.is_some() {
                self.remove(idx)?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, idx: usize) -> Result<(), Error> {
        self.running.swap_remove(idx);
        if let Some(cache) = &mut self.cache {
            cache.swap_remove(idx)?;
        }
        Ok(())
    }
}

impl Sequence {
    fn last_id(&self) -> u32 {
        self.tokens.last().map_or(0, |token| token.id)
    }

    /// The next token of a constrained answer, from the logits of the constraint's tokens by slot.
    fn walk_on(&mut self, constraint: &Constraint, logits: &[f32], choices: &mut Vec<Choice>) -> Event {
        let Some(walk) = &mut self.walk else { return self.event(None) };
        constraint.choices(walk, self.request.max_new_tokens - self.tokens.len(), choices);
        let mut log_probs: Vec<f32> = choices.iter().map(|choice| logits[choice.slot as usize]).collect();
        log_softmax(&mut log_probs);
        let chosen = self.request.sampling.choose(&log_probs, &mut self.rng);
        let (choice, log_prob) = (choices[chosen], log_probs[chosen]);
        self.log_prob += f64::from(log_prob);
        match constraint.advance(walk, choice) {
            Advance::Ended => self.reason = Some(Reason::End),
            Advance::Spelled(codes) => {
                for idx in codes {
                    if idx >= self.code_log_probs.len() {
                        self.code_log_probs.resize(idx + 1, 0.0);
                    }
                    self.code_log_probs[idx] += f64::from(log_prob);
                }
            }
        }
        if self.reason.is_some() {
            return self.finished(Reason::End, Some(constraint));
        }
        let offered = choices.iter().zip(&log_probs).map(|(choice, &log_prob)| (constraint.token(*choice), log_prob));
        let top = if self.request.log_probs { likeliest(offered, self.request.n_top) } else { Vec::new() };
        self.tokens.push(Token { id: constraint.token(choice), log_prob, top });
        self.event(self.tokens.last().cloned())
    }

    /// The next token of a free answer: from the logits `[vocab]`, whose largest is at `best`.
    fn free_token(&mut self, logits: &Tensor, best: i64) -> Result<Token, Error> {
        if self.request.sampling.temperature <= 0.0 && !self.request.log_probs {
            return Ok(Token { id: best as u32, log_prob: 0.0, top: Vec::new() });
        }
        let mut log_probs = Vec::<f32>::try_from(logits)?;
        log_softmax(&mut log_probs);
        let chosen = self.request.sampling.choose(&log_probs, &mut self.rng);
        let n_top = if self.request.log_probs { self.request.n_top } else { 0 };
        let top = likeliest(log_probs.iter().zip(0..).map(|(&log_prob, id)| (id, log_prob)), n_top);
        Ok(Token { id: chosen as u32, log_prob: log_probs[chosen], top })
    }

    fn go_on(&mut self, token: Token, end_tokens: &[u32]) -> Event {
        if end_tokens.contains(&token.id) {
            return self.finished(Reason::End, None);
        }
        self.tokens.push(token);
        let mut event = self.event(self.tokens.last().cloned());
        if self.tokens.len() >= self.request.max_new_tokens {
            event.answer = self.finished(Reason::Length, None).answer;
        }
        event
    }

    fn event(&self, token: Option<Token>) -> Event {
        Event { key: self.key, token, answer: None }
    }

    fn finished(&mut self, reason: Reason, constraint: Option<&Constraint>) -> Event {
        self.reason = Some(reason);
        Event { key: self.key, token: None, answer: Some(self.answer(reason, constraint)) }
    }

    fn answer(&self, reason: Reason, constraint: Option<&Constraint>) -> Answer {
        let codes = match (constraint, &self.walk) {
            (Some(constraint), Some(walk)) => constraint.codes(walk),
            _ => Vec::new(),
        };
        let scored = codes.into_iter().zip(&self.code_log_probs);
        Answer {
            tokens: self.tokens.clone(),
            reason,
            codes: scored.map(|(code, log_prob)| ScoredCode { code, probability: log_prob.exp() }).collect(),
            probability: self.log_prob.exp(),
        }
    }
}

/// The rows of the head for a constraint's tokens.
pub(super) fn head_rows(model: &Qwen2, constraint: &Constraint) -> Result<Tensor, Error> {
    let ids: Vec<i64> = constraint.tokens().iter().map(|&id| i64::from(id)).collect();
    let ids = Tensor::f_from_slice(&ids)?.f_to_device(model.placement.device)?;
    Ok(tch::no_grad(|| model.head_weight().f_index_select(0, &ids))?)
}

fn select(hidden: &Tensor, rows: &[i64]) -> Result<Tensor, Error> {
    if rows.len() as i64 == hidden.size()[0] {
        return Ok(hidden.shallow_clone());
    }
    Ok(hidden.f_index_select(0, &Tensor::f_from_slice(rows)?.f_to_device(hidden.device())?)?)
}

/// The `n` likeliest, best first.
fn likeliest(offered: impl Iterator<Item = (u32, f32)>, n: usize) -> Vec<(u32, f32)> {
    if n == 0 {
        return Vec::new();
    }
    let mut all: Vec<(u32, f32)> = offered.collect();
    let by_log_prob = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if all.len() > n {
        all.select_nth_unstable_by(n - 1, by_log_prob);
        all.truncate(n);
    }
    all.sort_by(by_log_prob);
    all
}
