//! What is trained on: tokenized records, the loss and gradient of an optimizer step over them, and their evaluation.

use tch::Tensor;

use super::Result;
use super::batch::{Batch, PreferenceSpans, PreferenceTokens, Sharing, pack_preferences, pack_records};
use super::objective::orpo;
use super::step::{Activations, Gradients, Weigh, backward_on_device, log_probabilities};
use super::window::Named;
use crate::config::NllOn;
use crate::model::{Parameter, Qwen2};
use crate::stop::Stop;
use crate::text::Tokens;

/// Tokenized records and what is minimised over them.
#[derive(Clone, Debug)]
pub enum Task {
    /// Cross-entropy over target tokens.
    Sft { train: Vec<Tokens>, validation: Vec<Tokens> },
    /// ORPO over preference pairs.
    Orpo { train: Vec<PreferenceTokens>, validation: Vec<PreferenceTokens>, beta: f64, nll_on: NllOn },
}

/// How the gradient of an optimizer step came out.
#[derive(Debug)]
pub(super) enum Accumulated {
    Done(Scored),
    /// A stop was requested between two micro-batches.
    Stopped,
}

/// The log-probabilities of an optimizer step, still on the device, and what makes figures of them.
#[derive(Debug)]
pub(super) struct Scored {
    /// Of each micro-batch, `[targets]` f32.
    pub logps: Vec<Tensor>,
    /// Of the records, also where they share some.
    pub n_tokens: u64,
    /// Where the answers of each micro-batch are; none in SFT.
    spans: Vec<Vec<PreferenceSpans>>,
}

impl Scored {
    /// Loss and figures, from the log-probabilities of each micro-batch.
    pub fn figures(&self, task: &Task, logps: &[&[f32]]) -> (f64, Named) {
        match task {
            Task::Sft { .. } => {
                let n_targets = n_targets(logps.iter().map(|logps| logps.len()));
                let sum_of = |logps: &&[f32]| logps.iter().map(|&logp| f64::from(logp)).sum::<f64>();
                (-logps.iter().fold(0.0, |sum, logps| sum + sum_of(logps)) / n_targets, Vec::new())
            }
            Task::Orpo { beta, nll_on, .. } => {
                let share = 1.0 / logps.len() as f64;
                let mut mean = MeanFigures::default();
                for (logps, spans) in logps.iter().zip(&self.spans) {
                    mean.add(logps, spans, *beta, *nll_on, share);
                }
                (mean.loss, mean.others)
            }
        }
    }
}

/// What the loss of an SFT step is divided by.
fn n_targets(of_micro_batches: impl Iterator<Item = usize>) -> f64 {
    of_micro_batches.sum::<usize>().max(1) as f64
}

impl Task {
    /// The number of training records.
    pub fn len(&self) -> usize {
        match self {
            Self::Sft { train, .. } => train.len(),
            Self::Orpo { train, .. } => train.len(),
        }
    }

    /// Whether there are no training records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of validation records.
    pub fn n_validation(&self) -> usize {
        match self {
            Self::Sft { validation, .. } => validation.len(),
            Self::Orpo { validation, .. } => validation.len(),
        }
    }

    /// Tokens of the longest training record.
    pub fn longest(&self) -> usize {
        let longest = match self {
            Self::Sft { train, .. } => train.iter().map(Tokens::len).max(),
            Self::Orpo { train, .. } => train.iter().map(PreferenceTokens::len).max(),
        };
        longest.unwrap_or(0)
    }

    /// Tokens of each training record and of each validation record.
    pub fn lengths(&self) -> (Vec<usize>, Vec<usize>) {
        let of_pairs = |pairs: &[PreferenceTokens]| pairs.iter().map(PreferenceTokens::len).collect();
        match self {
            Self::Sft { train, validation } => {
                (train.iter().map(Tokens::len).collect(), validation.iter().map(Tokens::len).collect())
            }
            Self::Orpo { train, validation, .. } => (of_pairs(train), of_pairs(validation)),
        }
    }

    /// Tokens of some training records.
    fn n_tokens(&self, records: &[usize]) -> usize {
        match self {
            Self::Sft { train, .. } => records.iter().map(|&idx| train[idx].len()).sum(),
            Self::Orpo { train, .. } => records.iter().map(|&idx| train[idx].len()).sum(),
        }
    }

    /// Tokens that all training records begin with.
    pub fn len_common_beginning(&self) -> usize {
        let ids = |idx: usize| match self {
            Self::Sft { train, .. } => &*train[idx].ids,
            Self::Orpo { train, .. } => &*train[idx].prompt,
        };
        let common = |first: &[u32], other: &[u32]| first.iter().zip(other).take_while(|(a, b)| a == b).count();
        (0..self.len()).map(|idx| common(ids(0), ids(idx))).min().unwrap_or(0)
    }

    /// A stable hash of the training records.
    pub fn hash(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        let mut add = |ids: &[u32]| {
            hasher.update(&(ids.len() as u64).to_le_bytes());
            ids.iter().for_each(|id| hasher.update(&id.to_le_bytes()));
        };
        match self {
            Self::Sft { train, .. } => train.iter().for_each(|record| add(&record.ids)),
            Self::Orpo { train, .. } => {
                train.iter().for_each(|r| [&r.prompt, &r.chosen, &r.rejected].iter().for_each(|ids| add(ids)));
            }
        }
        hasher.digest()
    }
}

/// One optimizer step's micro-batches, given by the indices of their records: adds their gradients.
pub(super) fn accumulate(
    model: &mut Qwen2,
    task: &Task,
    (parameters, gradients): (&[Parameter], &mut Gradients),
    micro_batches: &[&[usize]],
    (sharing, seed, activations): (Sharing, u64, Activations),
    stop: &Stop,
) -> Result<Accumulated> {
    let mut scored = Scored { logps: Vec::new(), n_tokens: 0, spans: Vec::new() };
    let batches: Vec<Batch> = match task {
        Task::Sft { train, .. } => {
            let pack = |records: &&[usize]| pack_records(records.iter().map(|&idx| &train[idx]), sharing);
            micro_batches.iter().map(pack).collect()
        }
        Task::Orpo { train, nll_on, .. } => {
            let pack = |records: &&[usize]| pack_preferences(records.iter().map(|&idx| &train[idx]), *nll_on, sharing);
            let (batches, spans) = micro_batches.iter().map(pack).unzip();
            scored.spans = spans;
            batches
        }
    };
    let n_targets = n_targets(batches.iter().map(|batch| batch.targets.len()));
    let share = 1.0 / micro_batches.len() as f64;
    for (idx, (batch, records)) in batches.iter().zip(micro_batches).enumerate() {
        if stop.is_requested() {
            return Ok(Accumulated::Stopped);
        }
        let by_logps;
        let weigh = match task {
            Task::Sft { .. } => Weigh::Uniform(1.0 / n_targets),
            Task::Orpo { beta, nll_on, .. } => {
                let spans = &scored.spans[idx];
                by_logps = move |logps: &Tensor| -> Result<Tensor> {
                    Ok(orpo::weigh(logps, spans, *beta, *nll_on)?.f_mul_scalar_(share)?)
                };
                Weigh::ByLogps(&by_logps)
            }
        };
        let seed = seed.wrapping_add((idx as u64) << 32);
        scored.logps.push(backward_on_device(activations, model, (parameters, gradients), batch, &weigh, seed)?);
        scored.n_tokens += task.n_tokens(records) as u64;
    }
    Ok(Accumulated::Done(scored))
}

/// Weighted means of ORPO's figures.
#[derive(Default)]
struct MeanFigures {
    loss: f64,
    others: Named,
}

impl MeanFigures {
    fn add(&mut self, logps: &[f32], spans: &[PreferenceSpans], beta: f64, nll_on: NllOn, share: f64) {
        let (figures, _) = orpo::loss(logps, spans, beta, nll_on);
        self.loss += figures.loss * share;
        for (idx, (name, value)) in figures.named().into_iter().enumerate() {
            match self.others.get_mut(idx) {
                Some((_, sum)) => *sum += value * share,
                None => self.others.push((name.to_owned(), value * share)),
            }
        }
    }
}

/// Loss and figures over the validation records, without dropout. Nothing when a stop is requested meanwhile. `done` hears
/// how many more records were evaluated.
///
/// Batches of SFT are also cut at `max_tokens`, so that an evaluation needs no more memory than training; those of ORPO
/// are not, because their likelihood is a mean over a batch.
pub(super) fn evaluate(
    model: &mut Qwen2,
    task: &Task,
    sharing: Sharing,
    (batch_size, max_tokens): (usize, usize),
    stop: &Stop,
    done: impl Fn(u64),
) -> Result<Option<(f64, Named)>> {
    match task {
        Task::Sft { validation, .. } => {
            let (mut sum, mut n_targets) = (0.0, 0);
            let mut rest = validation.as_slice();
            while let Some(first) = rest.first() {
                if stop.is_requested() {
                    return Ok(None);
                }
                let mut room = max_tokens.saturating_sub(first.len());
                let more = rest[1..].iter().take(batch_size.saturating_sub(1)).take_while(|record| {
                    let fits = record.len() <= room;
                    room = room.saturating_sub(record.len());
                    fits
                });
                let (records, others) = rest.split_at(1 + more.count());
                rest = others;
                let batch = pack_records(records, sharing);
                n_targets += batch.targets.len();
                sum += log_probabilities(model, &batch)?.iter().map(|&logp| f64::from(logp)).sum::<f64>();
                done(records.len() as u64);
            }
            Ok(Some((-sum / n_targets.max(1) as f64, Vec::new())))
        }
        Task::Orpo { validation, beta, nll_on, .. } => {
            let mut mean = MeanFigures::default();
            for records in validation.chunks(batch_size.max(1)) {
                if stop.is_requested() {
                    return Ok(None);
                }
                let (batch, spans) = pack_preferences(records, *nll_on, sharing);
                let share = records.len() as f64 / validation.len() as f64;
                mean.add(&log_probabilities(model, &batch)?, &spans, *beta, *nll_on, share);
                done(records.len() as u64);
            }
            Ok(Some((mean.loss, mean.others)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_beginning_is_that_of_all_records() {
        let of = |records: &[&[u32]]| {
            let record = |ids: &&[u32]| Tokens::new(ids.to_vec(), vec![true; ids.len()]);
            Task::Sft { train: records.iter().map(record).collect(), validation: Vec::new() }.len_common_beginning()
        };
        assert_eq!(of(&[&[1, 2, 3, 4], &[1, 2, 3], &[1, 2, 5, 6]]), 2);
        assert_eq!((of(&[&[1, 2], &[3]]), of(&[&[7, 8]]), of(&[])), (0, 2, 0));
    }
}
