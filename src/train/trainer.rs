//! The loop: epochs, accumulation, schedule, logging, evaluation, checkpoints.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::Tensor;

use super::batch::Sharing;
use super::checkpoint::{self, State, Trained};
use super::optim::AdamW;
use super::schedule::learning_rate_factor;
use super::step::{Activations, Gradients};
use super::task::{Accumulated, Scored, Task, accumulate, evaluate};
use super::window::Named;
use super::{Error, Result};
use crate::config::{BestMetric, EvalStrategy, Training};
use crate::diag::Diagnostic;
use crate::fsio;
use crate::model::{Parameter, Qwen2};
use crate::stop::{Stop, Stopped};
use crate::tensor::{Rng, move_to, read};
use crate::track::{Console, MetricsLog, Progress};

/// Answers questions with the model and gives figures about the answers, under names without `eval_`.
pub type AnswerQuestions<'a> = dyn Fn(&mut Qwen2) -> std::result::Result<Named, Box<dyn Diagnostic>> + 'a;

/// Sees every line of the log after it is written: the step, and what was logged.
pub type Observe<'a> = dyn Fn(u64, &Map<String, Value>) + 'a;

/// A stage to be run.
pub struct Plan<'a> {
    /// Named in progress and messages.
    pub name: &'a str,
    pub task: &'a Task,
    pub training: &'a Training,
    /// Whether each epoch has its own order.
    pub shuffle: bool,
    /// Which records of a batch share the tokens that they begin with.
    pub sharing: Sharing,
    pub trained: Trained<'a>,
    /// Folder of checkpoints and `metrics.jsonl`.
    pub out: &'a Path,
    /// Go on from the newest checkpoint in `out`.
    pub resume: bool,
    pub source: Source<'a>,
    /// What an evaluation does beside the loss.
    pub answer: Option<&'a AnswerQuestions<'a>>,
    pub observe: Option<&'a Observe<'a>>,
}

/// Where the training records come from, for messages and the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source<'a> {
    pub file: Option<&'a Path>,
    /// The line of each training record in its file.
    pub lines: &'a [usize],
    /// Records of the file that could not be used.
    pub n_skipped: usize,
}

/// What a finished stage reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Optimizer steps taken.
    pub steps: u64,
    /// Mean loss of the last line of the log.
    pub loss: f64,
    pub eval_loss: Option<f64>,
    /// Tokens trained on, prompts included.
    pub n_tokens: u64,
    pub seconds: f64,
}

impl<'a> Plan<'a> {
    /// A plan that starts anew, shuffles, and tells nobody but the log.
    pub fn new(name: &'a str, task: &'a Task, training: &'a Training, trained: Trained<'a>, out: &'a Path) -> Self {
        Self {
            name,
            task,
            training,
            shuffle: true,
            sharing: Sharing::All,
            trained,
            out,
            resume: false,
            source: Source::default(),
            answer: None,
            observe: None,
        }
    }
}

impl Source<'_> {
    /// `train.jsonl lines 3, 17`, or the records' numbers from 1 when the file is not known.
    fn name_of(&self, records: &[usize]) -> String {
        let line = |idx: &usize| self.lines.get(*idx).copied().unwrap_or(idx + 1).to_string();
        let lines = records.iter().map(line).collect::<Vec<_>>().join(", ");
        match self.file {
            Some(file) => format!("`{}` lines {lines}", file.display()),
            None => format!("records {lines}"),
        }
    }
}

/// Micro-batches an epoch, and optimizer steps an epoch and in all.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    pub micro_batches: usize,
    pub steps_per_epoch: u64,
    pub steps: u64,
}

impl Length {
    /// The length of a run over so many records.
    pub fn new(n_records: usize, training: &Training) -> Self {
        let micro_batches = n_records.div_ceil(training.per_device_train_batch_size);
        let steps_per_epoch = micro_batches.div_ceil(training.gradient_accumulation_steps).max(1) as u64;
        let by_epochs = (training.num_train_epochs * steps_per_epoch as f64).ceil() as u64;
        Self { micro_batches, steps_per_epoch, steps: training.max_steps.unwrap_or(by_epochs) }
    }

    fn epoch_at(&self, step: u64) -> f64 {
        step as f64 / self.steps_per_epoch as f64
    }
}

/// Trains the model's parameters in place.
///
/// # Errors
/// When a figure is not finite, a file cannot be written, memory is short, or a stop is requested: then a checkpoint
/// has been written first.
pub fn run(model: &mut Qwen2, plan: &Plan<'_>, console: &Console, stop: &Stop) -> Result<Outcome> {
    if plan.task.is_empty() {
        return Err(Error::NoRecords { stage: plan.name.to_owned() });
    }
    let parameters = model.parameters();
    let length = Length::new(plan.task.len(), plan.training);
    let mut optimizer = AdamW::new(&parameters, plan.training.optim, plan.training.weight_decay)?;
    let fingerprint = fingerprint(plan, &parameters);
    checkpoint::remove_partial(plan.out)?;
    let mut state = State { max_steps: length.steps, fingerprint, ..State::default() };
    let mut saved_step = None;
    if plan.resume
        && let Some(dir) = checkpoint::newest(plan.out)?
    {
        state = checkpoint::read(&dir, plan.trained, &parameters, &mut optimizer, &state.fingerprint)?;
        saved_step = Some(state.global_step);
        model.parameters_changed();
        console.note(&format!("{}: going on from step {} of {}", plan.name, state.global_step, state.max_steps));
    }
    let log = MetricsLog::open(&plan.out.join("metrics.jsonl"), state.global_step)?;
    let progress = console.bar(plan.name, length.steps);
    progress.resume_at(state.global_step);
    let gradients = Gradients::new(&parameters)?;
    Run {
        plan,
        model,
        parameters,
        gradients,
        optimizer,
        length,
        state,
        saved_step,
        log,
        progress,
        order: EpochOrder::default(),
        unread: Vec::new(),
        clock: Instant::now(),
        console,
        stop,
    }
    .finish()
}

/// The most optimizer steps whose figures wait on the device, so that a run that diverged does not go on for long.
const MAX_UNREAD: usize = 16;

/// An optimizer step that was enqueued, and whose figures nobody has looked at.
struct Unread {
    step: u64,
    /// The records of each.
    micro_batches: Vec<Vec<usize>>,
    scored: Scored,
    /// `[]` f32.
    grad_norm: Tensor,
}

/// A run under way.
struct Run<'a> {
    plan: &'a Plan<'a>,
    model: &'a mut Qwen2,
    parameters: Vec<Parameter>,
    gradients: Gradients,
    optimizer: AdamW,
    length: Length,
    state: State,
    /// The step of the last checkpoint, when it holds the state as it is.
    saved_step: Option<u64>,
    log: MetricsLog,
    progress: Progress,
    order: EpochOrder,
    unread: Vec<Unread>,
    /// When `state.seconds` was last brought up to date.
    clock: Instant,
    console: &'a Console,
    stop: &'a Stop,
}

impl Run<'_> {
    fn finish(mut self) -> Result<Outcome> {
        let training = self.plan.training;
        self.state.window.resume();
        loop {
            // Everything that belongs to the step just taken comes first, so that a resumed run finds it undone or done.
            if self.is_evaluation_due() && !self.evaluate()? {
                return self.stopped();
            }
            let done = self.state.global_step;
            let has_lost_patience =
                training.early_stopping_patience.is_some_and(|patience| self.state.n_without_gain >= patience);
            if done == self.length.steps || has_lost_patience {
                if has_lost_patience {
                    let metric = training.metric_for_best_model.as_str();
                    let n = self.state.n_without_gain;
                    self.console
                        .note(&format!("{}: stopped early, {n} evaluations without a better {metric}", self.plan.name));
                }
                break;
            }
            if done > 0 && training.save_steps.is_some_and(|every| done.is_multiple_of(every.max(1))) {
                self.save()?;
            }
            if self.stop.is_requested() || !self.step()? {
                return self.stopped();
            }
        }
        self.keep_best()?;
        self.progress.finish();
        self.state.seconds += self.clock.elapsed().as_secs_f64();
        Ok(Outcome {
            steps: self.state.global_step,
            loss: self.state.loss.unwrap_or(f64::NAN),
            eval_loss: self.state.eval_loss,
            n_tokens: self.state.n_tokens,
            seconds: self.state.seconds,
        })
    }

    /// One optimizer step. False when a stop was requested meanwhile: then nothing has changed.
    fn step(&mut self) -> Result<bool> {
        let (training, step) = (self.plan.training, self.state.global_step);
        self.order.enter(self.plan, step / self.length.steps_per_epoch);
        let records = &self.order.records;
        let first = (step % self.length.steps_per_epoch) as usize * training.gradient_accumulation_steps;
        let last = self.length.micro_batches.min(first + training.gradient_accumulation_steps);
        let size = training.per_device_train_batch_size;
        let micro_batches: Vec<&[usize]> =
            (first..last).map(|idx| &records[idx * size..records.len().min((idx + 1) * size)]).collect();

        self.gradients.clear();
        let seed = Rng::named(training.seed, &format!("dropout.{step}")).next_u64();
        let activations =
            Activations { checkpointing: training.gradient_checkpointing, offloading: training.activation_offloading };
        let trained = (self.parameters.as_slice(), &mut self.gradients);
        let how = (self.plan.sharing, seed, activations);
        let accumulated = accumulate(self.model, self.plan.task, trained, &micro_batches, how, self.stop)?;
        let Accumulated::Done(scored) = accumulated else { return Ok(false) };
        let micro_batches: Vec<Vec<usize>> = micro_batches.iter().map(|records| records.to_vec()).collect();
        let grad_norm = self.gradients.norm()?;
        if training.max_grad_norm > 0.0 {
            self.gradients.clip(&grad_norm, training.max_grad_norm)?;
        }
        let n_warmup = training.n_warmup(self.length.steps);
        let factor = learning_rate_factor(training.lr_scheduler_type, step, n_warmup, self.length.steps);
        let learning_rate = training.learning_rate * factor;
        self.optimizer.step(&self.parameters, &self.gradients, learning_rate)?;
        self.model.parameters_changed();

        self.state.global_step += 1;
        self.state.n_tokens += scored.n_tokens;
        let done = self.state.global_step;
        self.unread.push(Unread { step: done, micro_batches, scored, grad_norm });
        self.progress.advance(1);
        if done == self.length.steps || done.is_multiple_of(training.logging_steps.max(1)) {
            let grad_norm = self.settle()?;
            self.log_window(grad_norm.unwrap_or(f64::NAN), learning_rate)?;
        } else if self.unread.len() >= MAX_UNREAD {
            self.settle()?;
        }
        Ok(true)
    }

    /// Reads the figures of the steps since the last time, all at once, and judges them. Gives the norm of the last step's
    /// gradient when there was a step.
    ///
    /// Until then an update by a gradient that is not finite is in memory only: this comes before a line of the log, an
    /// evaluation, a checkpoint and the end.
    fn settle(&mut self) -> Result<Option<f64>> {
        let unread = std::mem::take(&mut self.unread);
        if unread.is_empty() {
            return Ok(None);
        }
        let device = self.model.placement.device;
        let mut tensors = Vec::new();
        for step in &unread {
            tensors.push(move_to(&step.grad_norm.f_view([1])?, device)?);
            tensors.extend(step.scored.logps.iter().map(Tensor::shallow_clone));
        }
        let values = read(&Tensor::f_cat(&tensors, 0)?)?;
        let mut rest = values.as_slice();
        let mut take = |n: usize| {
            let (taken, others) = rest.split_at(n);
            rest = others;
            taken
        };
        let mut last = None;
        for Unread { step, micro_batches, scored, .. } in &unread {
            let grad_norm = f64::from(take(1)[0]);
            let logps: Vec<&[f32]> = scored.logps.iter().map(|logps| take(logps.numel())).collect();
            for (logps, records) in logps.iter().zip(micro_batches) {
                if let Some(logp) = logps.iter().find(|logp| !logp.is_finite()) {
                    return Err(self.diverged(*step, "log-probability", f64::from(*logp), records));
                }
            }
            let (loss, figures) = scored.figures(self.plan.task, &logps);
            if !loss.is_finite() || !grad_norm.is_finite() {
                let (what, value) = if loss.is_finite() { ("gradient norm", grad_norm) } else { ("loss", loss) };
                return Err(self.diverged(*step, what, value, &micro_batches.concat()));
            }
            let n_records = micro_batches.iter().map(|records| records.len() as u64).sum();
            self.state.window.add(loss, figures, n_records, scored.n_tokens);
            last = Some(grad_norm);
        }
        Ok(last)
    }

    /// A line of `metrics.jsonl` with the names of transformers' trainer.
    fn log_window(&mut self, grad_norm: f64, learning_rate: f64) -> Result<()> {
        let mut window = std::mem::take(&mut self.state.window);
        window.pause();
        let loss = window.mean_loss();
        self.state.loss = Some(loss);
        let rate = window.tokens_per_second();
        self.progress.message(format!("loss {loss:.4}, {rate:.0} tokens/s"));
        let mut values = Map::new();
        values.insert("epoch".into(), json!(self.length.epoch_at(self.state.global_step)));
        values.insert("loss".into(), json!(loss));
        values.insert("grad_norm".into(), json!(grad_norm));
        values.insert("learning_rate".into(), json!(learning_rate));
        values.insert("tokens_per_second".into(), json!(rate));
        values.insert("samples_per_second".into(), json!(window.samples_per_second()));
        values.insert("skipped_records".into(), json!(self.plan.source.n_skipped));
        values.extend(window.means());
        self.state.window.resume();
        self.log(values)
    }

    fn log(&mut self, values: Map<String, Value>) -> Result<()> {
        if let Some(observe) = self.plan.observe {
            observe(self.state.global_step, &values);
        }
        Ok(self.log.write(self.state.global_step, values)?)
    }

    fn is_evaluation_due(&self) -> bool {
        let (training, done) = (self.plan.training, self.state.global_step);
        let is_time = match training.eval_strategy {
            EvalStrategy::No => return false,
            EvalStrategy::Steps => done.is_multiple_of(training.eval_steps.max(1)),
            EvalStrategy::Epoch => done.is_multiple_of(self.length.steps_per_epoch),
        };
        let is_due = done > 0 && (is_time || done == self.length.steps);
        is_due && self.plan.task.n_validation() > 0 && self.state.evaluated_step != done
    }

    /// Evaluates the step just taken. False when a stop was requested meanwhile: it is then still to be done.
    fn evaluate(&mut self) -> Result<bool> {
        let training = self.plan.training;
        self.settle()?;
        self.state.window.pause();
        let max_tokens = training.per_device_train_batch_size * self.plan.task.longest();
        let batch_size = training.per_device_eval_batch_size;
        let progress =
            self.console.passing_bar(&format!("{} evaluation", self.plan.name), self.plan.task.n_validation() as u64);
        let done = |n| progress.advance(n);
        let found = evaluate(self.model, self.plan.task, self.plan.sharing, (batch_size, max_tokens), self.stop, done)?;
        progress.finish();
        let Some((loss, mut figures)) = found else { return Ok(false) };
        if !loss.is_finite() {
            return Err(self.diverged(self.state.global_step, "eval_loss", loss, &[]));
        }
        if let Some(answer) = self.plan.answer {
            match answer(self.model) {
                Ok(found) => figures.extend(found),
                Err(_) if self.stop.is_requested() => return Ok(false),
                Err(error) => return Err(Error::Answers(error)),
            }
        }
        let done = self.state.global_step;
        let mut values = Map::new();
        values.insert("epoch".into(), json!(self.length.epoch_at(done)));
        values.insert("eval_loss".into(), json!(loss));
        values.extend(figures.iter().map(|(name, value)| (format!("eval_{name}"), json!(value))));
        self.state.eval_loss = Some(loss);
        self.state.evaluated_step = done;
        self.log(values)?;
        let told = figures.iter().map(|(name, value)| format!(", eval_{name} {value:.4}")).collect::<String>();
        self.console.note(&format!("{}: step {done}: eval_loss {loss:.4}{told}", self.plan.name));

        let found = |name: &str| figures.iter().find(|(found, _)| found == name).map(|(_, value)| *value);
        let value = match training.metric_for_best_model {
            BestMetric::EvalLoss => Some(loss),
            BestMetric::EvalExactMatch => found("exact_match"),
            BestMetric::EvalF1 => found("f1"),
        };
        let Some(value) = value else { return Ok(true) };
        let gain = self.state.best.map(|(best, _)| match training.metric_for_best_model {
            BestMetric::EvalLoss => best - value,
            BestMetric::EvalExactMatch | BestMetric::EvalF1 => value - best,
        });
        // transformers' EarlyStoppingCallback counts a gain within the threshold as none.
        let is_gain = gain.is_none_or(|gain| gain > training.early_stopping_threshold);
        self.state.n_without_gain = if is_gain { 0 } else { self.state.n_without_gain + 1 };
        self.saved_step = None;
        if gain.is_none_or(|gain| gain > 0.0) {
            self.state.best = Some((value, done));
            if training.load_best_model_at_end {
                self.save()?;
            }
        }
        self.state.window.resume();
        Ok(true)
    }

    fn save(&mut self) -> Result<PathBuf> {
        let (plan, done) = (self.plan, self.state.global_step);
        if self.saved_step == Some(done) {
            return Ok(plan.out.join(format!("checkpoint-{done}")));
        }
        self.settle()?;
        let now = Instant::now();
        self.state.seconds += now.duration_since(self.clock).as_secs_f64();
        self.clock = now;
        let mut state = self.state.clone();
        state.window.pause();
        let limit = plan.training.save_total_limit;
        let dir = checkpoint::write(plan.out, plan.trained, &self.parameters, &self.optimizer, &state, limit)?;
        self.saved_step = Some(done);
        Ok(dir)
    }

    /// Writes a checkpoint, then says how to go on.
    fn stopped(&mut self) -> Result<Outcome> {
        let dir = self.save()?;
        let doing = format!("training `{}` at step {}", self.plan.name, self.state.global_step);
        let resume = format!("`{}` is written; run the same command with --resume to go on", dir.display());
        Err(Stopped { doing, resume: Some(resume) }.into())
    }

    /// Ends with the weights of the best evaluation when that is asked for.
    fn keep_best(&mut self) -> Result<()> {
        let (true, Some((value, step))) = (self.plan.training.load_best_model_at_end, self.state.best) else {
            return Ok(());
        };
        if step == self.state.global_step {
            return Ok(());
        }
        let best = self.plan.out.join(format!("checkpoint-{step}"));
        checkpoint::read_trained(&best, self.plan.trained, &self.parameters)?;
        self.model.parameters_changed();
        let metric = self.plan.training.metric_for_best_model.as_str();
        self.console
            .note(&format!("{}: step {step} had the best {metric}, {value:.4}; its weights are kept", self.plan.name));
        Ok(())
    }

    /// `step` is the one that went wrong, or after which the evaluation did.
    fn diverged(&self, step: u64, what: &'static str, value: f64, records: &[usize]) -> Error {
        Error::Diverged {
            stage: self.plan.name.to_owned(),
            step,
            what,
            value,
            records: if records.is_empty() { None } else { Some(self.plan.source.name_of(records)) },
            checkpoint: checkpoint::newest(self.plan.out).ok().flatten(),
        }
    }
}

/// The records of the current epoch, in order.
#[derive(Default)]
struct EpochOrder {
    epoch: Option<u64>,
    records: Vec<usize>,
}

impl EpochOrder {
    fn enter(&mut self, plan: &Plan<'_>, epoch: u64) {
        if self.epoch != Some(epoch) {
            self.records = (0..plan.task.len()).collect();
            if plan.shuffle {
                Rng::named(plan.training.seed, &format!("epoch.{epoch}")).shuffle(&mut self.records);
            }
            self.epoch = Some(epoch);
        }
    }
}

/// Identifies what decides a run's numbers: settings, data, and the shapes of what is trained.
fn fingerprint(plan: &Plan<'_>, parameters: &[Parameter]) -> String {
    let objective = match plan.task {
        Task::Sft { .. } => "sft".to_owned(),
        Task::Orpo { beta, nll_on, .. } => format!("orpo {beta} {nll_on:?}"),
    };
    let shapes: Vec<String> = parameters.iter().map(|p| format!("{} {:?}", p.name, p.tensor.size())).collect();
    // How often a run writes something down may change when it goes on.
    let eval_steps = if plan.training.eval_strategy == EvalStrategy::Steps { plan.training.eval_steps } else { 0 };
    let training = Training {
        eval_steps,
        save_steps: None,
        save_total_limit: None,
        logging_steps: 0,
        report_to: Vec::new(),
        // Neither changes a number, and memory may be what a run was stopped for.
        gradient_checkpointing: true,
        activation_offloading: false,
        ..plan.training.clone()
    };
    let (order, hash) = ((plan.shuffle, plan.sharing), plan.task.hash());
    let text = format!("{training:?}\n{order:?}\n{objective}\n{hash:016x}\n{}", shapes.join("\n"));
    fsio::sha256_bytes(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::adapter::{Settings, TargetModules};
    use crate::config::{NllOn, parse};
    use crate::model::{Config, init, new_adapter, quantize};
    use crate::tensor::Placement;
    use crate::tensor::transfer::tests::n_reads;
    use crate::text::Tokens;
    use crate::train::PreferenceTokens;

    /// Trains for 20 steps of two micro-batches. Gives the reads of the device that it took.
    fn n_reads_of(task: &Task, more: &str) -> Result<u64> {
        let config = Config {
            vocab_size: 50,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 8,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            max_position_embeddings: 32,
        };
        let settings = Settings {
            r: 4,
            lora_alpha: 8.0,
            lora_dropout: 0.1,
            use_dora: true,
            use_rslora: false,
            target_modules: TargetModules::Pattern("all-linear".into()),
            rank_pattern: Default::default(),
            alpha_pattern: Default::default(),
        };
        let mut model = init(config, 3, Placement { device: Device::Cpu, dtype: Kind::Float }).unwrap();
        quantize(&mut model).unwrap();
        new_adapter(&mut model, &settings, 3).unwrap();
        let text = format!(
            "model: {{name: x, load_in_4bit: true}}\nlora: {{r: 4}}\ndata: {{train: x}}\ntraining:\n  max_steps: 20\n  \
             per_device_train_batch_size: 2\n  gradient_accumulation_steps: 2\n{more}"
        );
        let training = parse("x", "x.yaml", &text, &[]).unwrap().stage.training;
        let out = tempfile::tempdir().unwrap();
        let trained = Trained::Adapter { settings: &settings, base_model: "x" };
        let before = n_reads();
        let plan = Plan::new("x", task, &training, trained, out.path());
        run(&mut model, &plan, &Console::new(true), &Stop::default())?;
        Ok(n_reads() - before)
    }

    fn tasks() -> [Task; 2] {
        let ids = |rng: &mut Rng, len: usize| -> Vec<u32> { (0..len).map(|_| rng.below(50) as u32).collect() };
        let mut rng = Rng::named(5, "records");
        let records = (0..6).map(|idx| Tokens::new(ids(&mut rng, 6 + idx), vec![true; 6 + idx])).collect();
        let pairs = (0..6).map(|idx| PreferenceTokens {
            prompt: ids(&mut rng, 3),
            chosen: ids(&mut rng, 2 + idx),
            rejected: ids(&mut rng, 4),
        });
        let orpo = Task::Orpo { train: pairs.collect(), validation: Vec::new(), beta: 0.1, nll_on: NllOn::All };
        [Task::Sft { train: records, validation: Vec::new() }, orpo]
    }

    #[test]
    fn steps_read_the_device_only_for_a_line_of_the_log_a_checkpoint_or_a_full_list() {
        for task in &tasks() {
            for (more, expected) in [
                ("  save_strategy: no\n  logging_steps: 5\n", 4),
                ("  save_strategy: no\n  logging_steps: 1\n", 20),
                // After 16 steps, and for the last line.
                ("  save_strategy: no\n  logging_steps: 100\n", 2),
                // After 8 and 16 steps, and for the last line.
                ("  save_steps: 8\n  logging_steps: 100\n", 3),
            ] {
                assert_eq!(n_reads_of(task, more).unwrap(), expected, "{more}");
            }
        }
    }

    #[test]
    fn a_run_that_diverged_unread_names_the_step_that_did() {
        let more = "  save_strategy: no\n  logging_steps: 100\n  learning_rate: 1e38\n  max_grad_norm: 0\n";
        for task in &tasks() {
            let error = n_reads_of(task, more).unwrap_err();
            let Error::Diverged { step, records: Some(records), checkpoint: None, .. } = &error else {
                panic!("{error}")
            };
            assert!((2..5).contains(step) && records.starts_with("records "), "{error}");
        }
    }
}
