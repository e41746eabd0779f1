//! The loop: epochs, accumulation, schedule, logging, evaluation, checkpoints.

use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::batch::{Batch, PreferenceSpans, PreferenceTokens, pack_preferences, pack_records};
use super::checkpoint::{self, State, Trained};
use super::objective::orpo;
use super::optim::AdamW;
use super::schedule::learning_rate_factor;
use super::step::{Gradients, Weigh, backward, log_probabilities};
use super::{Error, Result};
use crate::config::{EvalStrategy, NllOn, Optim, Training};
use crate::fsio;
use crate::model::{Parameter, Qwen2};
use crate::stop::{Stop, Stopped};
use crate::tensor::Rng;
use crate::text::Tokens;
use crate::track::{Console, MetricsLog};

/// Tokenized records and what is minimised over them.
#[derive(Clone, Debug)]
pub enum Task {
    /// Cross-entropy over target tokens.
    Sft { train: Vec<Tokens>, validation: Vec<Tokens> },
    /// ORPO over preference pairs.
    Orpo { train: Vec<PreferenceTokens>, validation: Vec<PreferenceTokens>, beta: f64, nll_on: NllOn },
}

/// A stage to be run.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Named in progress and messages.
    pub name: &'a str,
    pub task: &'a Task,
    pub training: &'a Training,
    /// Whether each epoch has its own order.
    pub shuffle: bool,
    pub trained: Trained<'a>,
    /// Folder of checkpoints and `metrics.jsonl`.
    pub out: &'a Path,
    /// Go on from the newest checkpoint in `out`.
    pub resume: bool,
}

/// What a finished stage reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub steps: u64,
    /// Mean loss since the last line of the log.
    pub loss: f64,
    pub eval_loss: Option<f64>,
    /// Tokens trained on, prompts included.
    pub n_tokens: u64,
    pub seconds: f64,
}

impl Task {
    fn len(&self) -> usize {
        match self {
            Self::Sft { train, .. } => train.len(),
            Self::Orpo { train, .. } => train.len(),
        }
    }

    fn has_validation(&self) -> bool {
        match self {
            Self::Sft { validation, .. } => !validation.is_empty(),
            Self::Orpo { validation, .. } => !validation.is_empty(),
        }
    }

    /// A stable hash of the training records.
    fn hash(&self) -> u64 {
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

/// Micro-batches an epoch, and optimizer steps an epoch and in all.
struct Length {
    micro_batches: usize,
    steps_per_epoch: u64,
    steps: u64,
}

impl Length {
    fn new(n_records: usize, training: &Training) -> Self {
        let micro_batches = n_records.div_ceil(training.per_device_train_batch_size);
        let steps_per_epoch = micro_batches.div_ceil(training.gradient_accumulation_steps).max(1) as u64;
        let by_epochs = (training.num_train_epochs * steps_per_epoch as f64).ceil() as u64;
        Self { micro_batches, steps_per_epoch, steps: training.max_steps.unwrap_or(by_epochs) }
    }
}

/// Figures under the names that are logged.
type Named = Vec<(String, f64)>;

/// Sums between two lines of the log.
#[derive(Default)]
struct Window {
    figures: Named,
    loss: f64,
    n_steps: u64,
    n_tokens: u64,
    started: Option<Instant>,
}

impl Window {
    fn add(&mut self, loss: f64, figures: Named, n_tokens: u64) {
        self.loss += loss;
        self.n_steps += 1;
        self.n_tokens += n_tokens;
        if self.figures.is_empty() {
            self.figures = figures;
        } else {
            self.figures.iter_mut().zip(figures).for_each(|(sum, (_, value))| sum.1 += value);
        }
    }

    fn mean_loss(&self) -> f64 {
        self.loss / self.n_steps.max(1) as f64
    }
}

/// Trains the model's parameters in place.
///
/// # Errors
/// When the loss is not finite, a file cannot be written, memory is short, or a stop is requested: then a checkpoint
/// has been written first.
pub fn run(model: &mut Qwen2, plan: &Plan<'_>, console: &Console, stop: &Stop) -> Result<Outcome> {
    let training = plan.training;
    if plan.task.len() == 0 {
        return Err(Error::NoRecords { stage: plan.name.to_owned() });
    }
    if training.optim != Optim::AdamwTorch {
        return Err(Error::Optimizer { found: format!("{:?}", training.optim) });
    }
    let parameters = model.parameters();
    let length = Length::new(plan.task.len(), training);
    let n_warmup = training.n_warmup(length.steps);
    let mut optimizer = AdamW::new(&parameters, training.weight_decay)?;
    let mut state =
        State { global_step: 0, max_steps: length.steps, fingerprint: fingerprint(plan, &parameters)?, best: None };
    if plan.resume
        && let Some(dir) = checkpoint::newest(plan.out)?
    {
        state = checkpoint::read(&dir, plan.trained, &parameters, &mut optimizer, &state.fingerprint)?;
        model.parameters_changed();
        console.note(&format!("{}: going on from step {} of {}", plan.name, state.global_step, state.max_steps));
    }
    let mut log = MetricsLog::open(&plan.out.join("metrics.jsonl"), state.global_step)?;
    let progress = console.bar(plan.name, length.steps);
    progress.resume_at(state.global_step);

    let mut gradients = Gradients::new(&parameters);
    let mut window = Window { started: Some(Instant::now()), ..Window::default() };
    let mut outcome = Outcome { steps: length.steps, loss: f64::NAN, eval_loss: None, n_tokens: 0, seconds: 0.0 };
    let started = Instant::now();
    let save = |state: &State, optimizer: &AdamW| {
        checkpoint::write(plan.out, plan.trained, &parameters, optimizer, state, training.save_total_limit)
    };
    let mut order = EpochOrder::default();
    while state.global_step < length.steps {
        let step = state.global_step;
        if stop.is_requested() {
            save(&state, &optimizer)?;
            let (doing, resume) = (
                format!("training `{}` at step {step}", plan.name),
                "the checkpoint is written; run the same command with --resume to go on".to_owned(),
            );
            return Err(Stopped { doing, resume: Some(resume) }.into());
        }
        let epoch = step / length.steps_per_epoch;
        let records = order.of(plan, epoch);
        let first = (step % length.steps_per_epoch) as usize * training.gradient_accumulation_steps;
        let micro_batches: Vec<&[usize]> = (first
            ..length.micro_batches.min(first + training.gradient_accumulation_steps))
            .map(|idx| {
                let size = training.per_device_train_batch_size;
                &records[idx * size..records.len().min((idx + 1) * size)]
            })
            .collect();

        gradients.clear();
        let (loss, figures, n_tokens) = accumulate(
            model,
            plan.task,
            &parameters,
            &mut gradients,
            &micro_batches,
            Rng::named(training.seed, &format!("dropout.{step}")).next_u64(),
        )?;
        let grad_norm = gradients.norm()?;
        if !loss.is_finite() || !grad_norm.is_finite() {
            let (what, value) = if loss.is_finite() { ("gradient norm", grad_norm) } else { ("loss", loss) };
            return Err(Error::Diverged { stage: plan.name.to_owned(), step: step + 1, what, value });
        }
        if training.max_grad_norm > 0.0 {
            // torch.nn.utils.clip_grad_norm_
            gradients.scale((training.max_grad_norm / (grad_norm + 1e-6)).min(1.0))?;
        }
        let learning_rate =
            training.learning_rate * learning_rate_factor(training.lr_scheduler_type, step, n_warmup, length.steps);
        optimizer.step(&parameters, &gradients, learning_rate)?;
        model.parameters_changed();
        state.global_step += 1;
        window.add(loss, figures, n_tokens);
        outcome.n_tokens += n_tokens;
        progress.advance(1);

        let done = state.global_step;
        let is_last = done == length.steps;
        if is_last || done.is_multiple_of(training.logging_steps.max(1)) {
            outcome.loss = window.mean_loss();
            progress.message(format!("loss {:.4}", outcome.loss));
            log.write(done, line(done, &length, &window, grad_norm, learning_rate))?;
            window = Window { started: Some(Instant::now()), ..Window::default() };
        }
        let evaluates = match training.eval_strategy {
            EvalStrategy::No => false,
            EvalStrategy::Steps => done.is_multiple_of(training.eval_steps.max(1)),
            EvalStrategy::Epoch => done.is_multiple_of(length.steps_per_epoch),
        };
        if plan.task.has_validation() && (evaluates || (is_last && training.eval_strategy != EvalStrategy::No)) {
            let (loss, figures) = evaluate(model, plan.task, training.per_device_eval_batch_size)?;
            outcome.eval_loss = Some(loss);
            let mut values = Map::new();
            values.insert("epoch".into(), json!(done as f64 / length.steps_per_epoch as f64));
            values.insert("eval_loss".into(), json!(loss));
            values.extend(figures.into_iter().map(|(name, value)| (format!("eval_{name}"), json!(value))));
            log.write(done, values)?;
            if state.best.is_none_or(|(best, _)| loss < best) {
                state.best = Some((loss, done));
                if training.load_best_model_at_end {
                    save(&state, &optimizer)?;
                }
            }
        }
        if training.save_steps.is_some_and(|every| done.is_multiple_of(every.max(1))) && !is_last {
            save(&state, &optimizer)?;
        }
    }
    if let (true, Some((_, step))) = (training.load_best_model_at_end, state.best)
        && step != length.steps
    {
        let best = plan.out.join(format!("checkpoint-{step}"));
        checkpoint::read_trained(&best, plan.trained, &parameters)?;
        model.parameters_changed();
        console.note(&format!("{}: step {step} had the lowest eval_loss; its weights are kept", plan.name));
    }
    progress.finish();
    outcome.seconds = started.elapsed().as_secs_f64();
    Ok(outcome)
}

/// The records of the current epoch, in order.
#[derive(Default)]
struct EpochOrder {
    epoch: Option<u64>,
    records: Vec<usize>,
}

impl EpochOrder {
    fn of(&mut self, plan: &Plan<'_>, epoch: u64) -> &[usize] {
        if self.epoch != Some(epoch) {
            self.records = (0..plan.task.len()).collect();
            if plan.shuffle {
                Rng::named(plan.training.seed, &format!("epoch.{epoch}")).shuffle(&mut self.records);
            }
            self.epoch = Some(epoch);
        }
        &self.records
    }
}

/// One optimizer step's micro-batches: adds gradients; gives loss, the other figures and the number of tokens.
fn accumulate(
    model: &mut Qwen2,
    task: &Task,
    parameters: &[Parameter],
    gradients: &mut Gradients,
    micro_batches: &[&[usize]],
    seed: u64,
) -> Result<(f64, Named, u64)> {
    let mut n_tokens = 0;
    match task {
        Task::Sft { train, .. } => {
            let batches: Vec<Batch> =
                micro_batches.iter().map(|records| pack_records(records.iter().map(|&idx| &train[idx]))).collect();
            let n_targets: usize = batches.iter().map(|batch| batch.targets.len()).sum();
            let weigh = Weigh::Uniform(1.0 / n_targets.max(1) as f64);
            let mut sum = 0.0;
            for (idx, batch) in batches.iter().enumerate() {
                let logps =
                    backward(model, parameters, gradients, batch, &weigh, seed.wrapping_add((idx as u64) << 32))?;
                sum += logps.iter().map(|&logp| f64::from(logp)).sum::<f64>();
                n_tokens += batch.ids.len() as u64;
            }
            Ok((-sum / n_targets.max(1) as f64, Vec::new(), n_tokens))
        }
        Task::Orpo { train, beta, nll_on, .. } => {
            let share = 1.0 / micro_batches.len() as f64;
            let mut mean = MeanFigures::default();
            for (idx, records) in micro_batches.iter().enumerate() {
                let (batch, spans) = pack_preferences(records.iter().map(|&idx| &train[idx]));
                let weigh = |logps: &[f32]| {
                    let (_, weights) = orpo::loss(logps, &spans, *beta, *nll_on);
                    weights.into_iter().map(|weight| weight * share as f32).collect()
                };
                let seed = seed.wrapping_add((idx as u64) << 32);
                let logps = backward(model, parameters, gradients, &batch, &Weigh::ByLogps(&weigh), seed)?;
                mean.add(&logps, &spans, *beta, *nll_on, share)?;
                n_tokens += batch.ids.len() as u64;
            }
            Ok((mean.loss, mean.others, n_tokens))
        }
    }
}

/// Weighted means of ORPO's figures.
#[derive(Default)]
struct MeanFigures {
    loss: f64,
    others: Named,
}

impl MeanFigures {
    fn add(&mut self, logps: &[f32], spans: &[PreferenceSpans], beta: f64, nll_on: NllOn, share: f64) -> Result<()> {
        let (figures, _) = orpo::loss(logps, spans, beta, nll_on);
        self.loss += figures.loss * share;
        for (idx, (name, value)) in figures.named().into_iter().enumerate() {
            match self.others.get_mut(idx) {
                Some((_, sum)) => *sum += value * share,
                None => self.others.push((name.to_owned(), value * share)),
            }
        }
        Ok(())
    }
}

/// Loss and figures over the validation records, without dropout.
fn evaluate(model: &mut Qwen2, task: &Task, batch_size: usize) -> Result<(f64, Named)> {
    match task {
        Task::Sft { validation, .. } => {
            let (mut sum, mut n_targets) = (0.0, 0);
            for records in validation.chunks(batch_size.max(1)) {
                let batch = pack_records(records);
                n_targets += batch.targets.len();
                sum += log_probabilities(model, &batch)?.iter().map(|&logp| f64::from(logp)).sum::<f64>();
            }
            Ok((-sum / n_targets.max(1) as f64, Vec::new()))
        }
        Task::Orpo { validation, beta, nll_on, .. } => {
            let mut mean = MeanFigures::default();
            for records in validation.chunks(batch_size.max(1)) {
                let (batch, spans) = pack_preferences(records);
                let share = records.len() as f64 / validation.len() as f64;
                mean.add(&log_probabilities(model, &batch)?, &spans, *beta, *nll_on, share)?;
            }
            Ok((mean.loss, mean.others))
        }
    }
}

/// A line of `metrics.jsonl` with the names of transformers' trainer.
fn line(step: u64, length: &Length, window: &Window, grad_norm: f64, learning_rate: f64) -> Map<String, Value> {
    let seconds = window.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
    let mut values = Map::new();
    values.insert("epoch".into(), json!(step as f64 / length.steps_per_epoch as f64));
    values.insert("loss".into(), json!(window.mean_loss()));
    values.insert("grad_norm".into(), json!(grad_norm));
    values.insert("learning_rate".into(), json!(learning_rate));
    values.insert("tokens_per_second".into(), json!(window.n_tokens as f64 / seconds.max(1e-9)));
    for (name, sum) in &window.figures {
        values.insert(name.clone(), json!(sum / window.n_steps.max(1) as f64));
    }
    values
}

/// Identifies what decides a run's numbers: settings, data, and the shapes of what is trained.
fn fingerprint(plan: &Plan<'_>, parameters: &[Parameter]) -> Result<String> {
    let objective = match plan.task {
        Task::Sft { .. } => "sft".to_owned(),
        Task::Orpo { beta, nll_on, .. } => format!("orpo {beta} {nll_on:?}"),
    };
    let shapes: Vec<String> = parameters.iter().map(|p| format!("{} {:?}", p.name, p.tensor.size())).collect();
    let text =
        format!("{:?}\n{}\n{objective}\n{:016x}\n{}", plan.training, plan.shuffle, plan.task.hash(), shapes.join("\n"));
    Ok(fsio::sha256_bytes(text.as_bytes()))
}
