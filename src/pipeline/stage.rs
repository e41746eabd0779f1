//! One training stage, from its settings to a `final/` folder.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use super::records::{Loaded, Question, load_preference_questions, load_preferences, load_questions, load_sft};
use super::{Error, require_folder, tracking};
use crate::adapter::{self, Settings, TargetModules};
use crate::config::{self, Dtype, StageConfig};
use crate::diag::Diagnostic;
use crate::eval::{self, Answer, Figures};
use crate::fsio;
use crate::model::{self, Quantization, Qwen2};
use crate::stop::Stop;
use crate::tensor::Placement;
use crate::text::Tokenizer;
use crate::track::{Console, wandb};
use crate::train::checkpoint::{self, Trained, save_trained};
use crate::train::{self, AnswerQuestions, Named, Observe, Outcome, Plan, Sharing, Source, Task};

/// A stage to be run.
#[derive(Debug)]
pub struct StageRequest<'a> {
    pub config: &'a StageConfig,
    /// The folder of the base model, which the configuration may name by its place on the Hub.
    pub base: &'a Path,
    /// Takes `config.yaml`, `metrics.jsonl`, checkpoints and `final/`.
    pub out: &'a Path,
    pub device: Device,
    /// Go on from the newest checkpoint in `out`.
    pub resume: bool,
    /// Where the stage is reported.
    pub report: Option<&'a wandb::Settings>,
}

/// A finished stage.
#[derive(Clone, Debug)]
pub struct StageOutcome {
    pub training: Outcome,
    /// The adapter, or the whole model after full fine-tuning.
    pub final_dir: PathBuf,
}

/// What a stage trains on, tokenized.
#[derive(Debug)]
pub struct StageData {
    pub task: Task,
    pub train: FileCounts,
    pub validation: Option<FileCounts>,
    /// The line of each training record in its file.
    pub lines: Vec<usize>,
}

/// What became of a file's records.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileCounts {
    pub path: PathBuf,
    pub n_records: usize,
    /// Records that lost prompt tokens to fit.
    pub n_cut: usize,
    /// Records that could not be used.
    pub n_dropped: usize,
}

/// `finished.json`: what a resumed pipeline needs to know about a stage that is done.
#[derive(Serialize, Deserialize)]
struct Finished {
    /// Identifies settings and training records.
    fingerprint: String,
    outcome: Outcome,
}

/// Loads model and data, trains, and writes `final/`: an adapter in PEFT layout, or a Hugging Face folder when the
/// stage has no `lora` section.
///
/// A stage that starts anew moves what an earlier run left in its folder aside. A resumed one that is already finished
/// is not run again.
///
/// # Errors
/// When settings, model and data do not fit together, the work fails, or a stop is requested.
pub fn run_stage(request: &StageRequest<'_>, console: &Console, stop: &Stop) -> Result<StageOutcome, Error> {
    let config = request.config;
    let base = request.base;
    require_folder("model", base)?;
    let tokenizer = Tokenizer::load(base)?;
    let data = load_data(config, &tokenizer)?;
    data.counts().for_each(|counts| counts.tell(console));

    let final_dir = request.out.join("final");
    let finished_file = request.out.join("finished.json");
    let yaml = config.to_yaml()?;
    let fingerprint = fsio::sha256_bytes(format!("{yaml}\n{:016x}", data.task.hash()).as_bytes());
    if request.resume {
        let finished = fsio::read_json::<Finished>(&finished_file).ok();
        if let Some(Finished { outcome, .. }) = finished.filter(|finished| finished.fingerprint == fingerprint) {
            console.note(&format!("{}: finished before, {} is kept", config.name, final_dir.display()));
            return Ok(StageOutcome { training: outcome, final_dir });
        }
    } else {
        move_aside(request, console)?;
    }
    fsio::make_dir(request.out)?;
    fsio::write_atomic(&request.out.join("config.yaml"), |out| out.write_all(yaml.as_bytes()))?;

    let work = |console: &Console, observe: Option<&Observe<'_>>| {
        let outcome = train_stage(request, tokenizer, &data, (console, stop), observe)?;
        fsio::write_json(&finished_file, &Finished { fingerprint, outcome: outcome.training.clone() })?;
        Ok(outcome)
    };
    tracking::reported(request, &data, (console, stop), work)
}

/// Loads the model, trains it, and writes `final/`.
fn train_stage(
    request: &StageRequest<'_>,
    tokenizer: Tokenizer,
    data: &StageData,
    (console, stop): (&Console, &Stop),
    observe: Option<&Observe<'_>>,
) -> Result<StageOutcome, Error> {
    let config = request.config;
    let questions = load_sample(config)?;
    // A tokenizer takes some 50 MB, and most stages have no more use for theirs.
    let tokenizer = Some(tokenizer).filter(|_| !questions.is_empty() || config.lora.is_none());
    let quantization = match (config.model.load_in_4bit, &config.lora) {
        (true, None) => return Err(Error::FullQuantized),
        (true, Some(_)) => Quantization::Nf4,
        (false, _) => Quantization::None,
    };
    let mut model = model::load(request.base, placement(config.model.dtype, request.device), quantization)?;
    let settings = attach(&mut model, config)?;
    let trained = match &settings {
        Some(settings) => Trained::Adapter { settings, base_model: &config.model.name },
        None => Trained::All,
    };
    let answer = tokenizer
        .as_ref()
        .filter(|_| !questions.is_empty())
        .map(|tokenizer| |model: &mut Qwen2| figures_of_answers(model, tokenizer, &questions, config, (console, stop)));
    let plan = Plan {
        shuffle: config.data.shuffle,
        sharing: if config.data.packing { Sharing::All } else { Sharing::Prompts },
        resume: request.resume,
        source: Source { file: Some(&config.data.train), lines: &data.lines, n_skipped: data.train.n_dropped },
        answer: answer.as_ref().map(|answer| answer as &AnswerQuestions<'_>),
        observe,
        ..Plan::new(&config.name, &data.task, &config.training, trained, request.out)
    };
    let training = train::run(&mut model, &plan, console, stop)?;

    let final_dir = request.out.join("final");
    match trained {
        Trained::Adapter { .. } => save_trained(&final_dir, trained, &model.parameters())?,
        Trained::All => {
            let tokenizer = tokenizer.map_or_else(|| Tokenizer::load(request.base), Ok)?;
            model::save(&model, &final_dir, tokenizer.eos_id(), tokenizer.pad_id())?;
            tokenizer.save(&final_dir)?;
        }
    }
    Ok(StageOutcome { training, final_dir })
}

/// Gives what an earlier run left in the stage's folder the first free name beside it.
fn move_aside(request: &StageRequest<'_>, console: &Console) -> Result<(), Error> {
    let out = request.out;
    let has_results = ["final", "finished.json"].iter().any(|name| out.join(name).exists());
    if !has_results && checkpoint::newest(out)?.is_none() {
        return Ok(());
    }
    let start = request.config.lora.as_ref().and_then(|lora| lora.init_adapter.as_deref());
    if let Some(adapter) = start.filter(|adapter| Path::new(adapter).starts_with(out)) {
        return Err(Error::StartsFromItself { adapter: adapter.into(), out: out.to_owned() });
    }
    let free = |n: &u32| {
        let name = format!("{}.{n}", out.file_name().unwrap_or_default().to_string_lossy());
        Some(out.with_file_name(name)).filter(|path| !path.exists())
    };
    let Some(aside) = (1..).find_map(|n| free(&n)) else { return Ok(()) };
    std::fs::rename(out, &aside).map_err(fsio::Error::io("rename", out))?;
    console.note(&format!("{}: the results of an earlier run are now in {}", request.config.name, aside.display()));
    Ok(())
}

/// Validation prompts that an evaluation answers: none unless the stage asks for it.
fn load_sample(config: &StageConfig) -> Result<Vec<Question>, Error> {
    let Some(path) = config.data.validation.as_deref().filter(|_| config.training.predict_with_generate) else {
        return Ok(Vec::new());
    };
    let mut questions = if config.orpo.is_some() { load_preference_questions(path)? } else { load_questions(path)? };
    questions.truncate(config.training.max_eval_samples);
    Ok(questions)
}

/// Exact match and F1 of the model's answers.
fn figures_of_answers(
    model: &mut Qwen2,
    tokenizer: &Tokenizer,
    questions: &[Question],
    config: &StageConfig,
    (console, stop): (&Console, &Stop),
) -> Result<Named, Box<dyn Diagnostic>> {
    let prompts: Vec<_> = questions.iter().map(|question| question.prompt.clone()).collect();
    let batch_size = config.training.per_device_eval_batch_size;
    let progress = console.passing_bar(&format!("{} answers", config.name), prompts.len() as u64);
    let outputs = eval::answers(model, tokenizer, &prompts, batch_size, stop, |n| progress.advance(n))
        .map_err(|error| Box::new(error) as Box<dyn Diagnostic>)?;
    progress.finish();
    let outcomes: Vec<_> = questions
        .iter()
        .zip(outputs)
        .map(|(question, output)| eval::score(&Answer::new(question.expected.clone(), output), &|_| true))
        .collect();
    let figures = Figures::of(&outcomes);
    Ok(vec![("exact_match".into(), figures.exact_match), ("f1".into(), figures.f1)])
}

/// Where and in which type a model computes.
pub fn placement(dtype: Dtype, device: Device) -> Placement {
    let dtype = match dtype {
        Dtype::Bfloat16 => Kind::BFloat16,
        Dtype::Float32 => Kind::Float,
    };
    Placement { device, dtype }
}

/// Puts the stage's adapter on the model, a new one or the one that it starts from; without one all weights train.
fn attach(model: &mut Qwen2, config: &StageConfig) -> Result<Option<Settings>, Error> {
    let Some(lora) = &config.lora else {
        if config.orpo.is_some() {
            return Err(Error::OrpoWithoutAdapter { file: config.name.clone() });
        }
        model.train_all()?;
        return Ok(None);
    };
    let no_dropout = config.orpo.as_ref().is_some_and(|orpo| orpo.disable_dropout);
    let dropout = if no_dropout { 0.0 } else { lora.lora_dropout };
    if let Some(dir) = &lora.init_adapter {
        let mut file = adapter::load(Path::new(dir))?;
        // Rank, alpha and targets are the stored adapter's own; what this stage may choose is the dropout.
        let stored = Settings { lora_dropout: lora.lora_dropout, ..file.settings.clone() };
        file.settings.lora_dropout = dropout;
        model::attach_adapter(model, file)?;
        return Ok(Some(stored));
    }
    let settings = adapter_settings(lora);
    model::new_adapter(model, &Settings { lora_dropout: dropout, ..settings.clone() }, lora.random_state)?;
    Ok(Some(settings))
}

/// A new adapter as a stage file describes it.
pub fn adapter_settings(lora: &config::Lora) -> Settings {
    Settings {
        r: lora.r,
        lora_alpha: lora.lora_alpha,
        lora_dropout: lora.lora_dropout,
        use_dora: lora.use_dora,
        use_rslora: lora.use_rslora,
        target_modules: match &lora.target_modules {
            config::TargetModules::Names(names) => TargetModules::Names(names.clone()),
            config::TargetModules::Pattern(pattern) => TargetModules::Pattern(pattern.clone()),
        },
        rank_pattern: lora.rank_pattern.clone(),
        alpha_pattern: lora.alpha_pattern.clone(),
    }
}

/// Reads and tokenizes a stage's records.
///
/// # Errors
/// When a file cannot be read or a line is not a record: file and line are named.
pub fn load_data(config: &StageConfig, tokenizer: &Tokenizer) -> Result<StageData, Error> {
    let max_seq_length = config.model.max_seq_length;
    match &config.orpo {
        None => {
            let load = |path: &Path| load_sft(path, tokenizer, max_seq_length);
            load_both(config, load, |train, validation| Task::Sft { train, validation })
        }
        Some(orpo) => {
            let load = |path: &Path| load_preferences(path, tokenizer, orpo.max_prompt_length, max_seq_length);
            let (beta, nll_on) = (orpo.beta, orpo.nll_on);
            load_both(config, load, |train, validation| Task::Orpo { train, validation, beta, nll_on })
        }
    }
}

fn load_both<T>(
    config: &StageConfig,
    load: impl Fn(&Path) -> Result<Loaded<T>, Error>,
    task: impl FnOnce(Vec<T>, Vec<T>) -> Task,
) -> Result<StageData, Error> {
    let read = |path: &Path| -> Result<(Loaded<T>, FileCounts), Error> {
        let loaded = load(path)?;
        let (n_records, n_cut, n_dropped) = (loaded.records.len(), loaded.n_cut, loaded.n_dropped);
        Ok((loaded, FileCounts { path: path.to_owned(), n_records, n_cut, n_dropped }))
    };
    let (train, train_counts) = read(&config.data.train)?;
    let (validation, validation_counts) = config.data.validation.as_deref().map(read).transpose()?.unzip();
    Ok(StageData {
        task: task(train.records, validation.map(|loaded| loaded.records).unwrap_or_default()),
        train: train_counts,
        validation: validation_counts,
        lines: train.lines,
    })
}

impl StageData {
    fn counts(&self) -> impl Iterator<Item = &FileCounts> {
        [&self.train].into_iter().chain(&self.validation)
    }
}

impl FileCounts {
    fn tell(&self, console: &Console) {
        let Self { path, n_cut, n_dropped, .. } = self;
        if n_cut + n_dropped > 0 {
            let path = path.display();
            console.note(&format!("{path}: {n_cut} records lost prompt tokens to fit, {n_dropped} could not be used"));
        }
    }
}
