//! `axismapper train`: stage files in order, each starting from the adapter of the one before.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::json;
use tch::Device;

use super::finish::{Ending, FinishArgs};
use super::push::push_folder;
use super::{device, hub, say_next, style, write_json, write_line};
use crate::config::{self, Override, StageConfig, Tracker};
use crate::diag::{Diagnostic, Failure};
use crate::doctor::{Actual, Check, Estimate, Status, check_fatal, check_hub, check_model, compared, memory};
use crate::pipeline::{StageRequest, peak_memory, preview_stage, reset_peak, run_stage};
use crate::stop::Stop;
use crate::track::{Console, wandb};

/// The recipes that run when no stage file is named, for folders that do not hold them.
const RECIPES: [(&str, &str); 2] = [
    ("configs/dora.yaml", include_str!("../../configs/dora.yaml")),
    ("configs/orpo.yaml", include_str!("../../configs/orpo.yaml")),
];

/// Train: run each stage file in order, starting from the adapter of the stage before
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A stage file; give it again for the next stage
    #[arg(long = "config", value_name = "STAGE.yaml", default_values = RECIPES.map(|(path, _)| path))]
    configs: Vec<PathBuf>,
    /// Go on from the newest checkpoint of each stage
    #[arg(long)]
    resume: bool,
    /// Override a setting of every stage, as in training.learning_rate=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder of the stages' results
    #[arg(long, default_value = "out")]
    out: PathBuf,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Take what is on the Hub from the cache and ask nobody
    #[arg(long)]
    offline: bool,
    /// Read everything but the weights, count records and steps, show a record with its mask, and train nothing
    #[arg(long)]
    dry_run: bool,
    /// Start although a check says that the run would fail
    #[arg(long)]
    skip_checks: bool,
    /// Print a JSON object for each stage
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    finish: FinishArgs,
}

/// Runs the command, and then what was asked for at its end.
///
/// # Errors
/// When a stage file is wrong, a stage, the push or the end fails; finished stages are kept.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let finish = args.finish.prepare()?;
    let worked = train(args, console, stop, out).and_then(|last| match (&args.finish.push, last) {
        (Some(repo), Some(dir)) => push_folder(repo, &dir, console, stop, out).map(|()| Ending::Pushed),
        _ => Ok(Ending::Done),
    });
    if args.dry_run {
        return worked.map(drop);
    }
    let ending = match &worked {
        Ok(ending) => *ending,
        Err(_) if stop.is_requested() => Ending::Stopped,
        Err(_) => Ending::Failed,
    };
    let finished = finish.run(ending, &args.out, console);
    if let (Err(_), Err(failure)) = (&worked, &finished) {
        // The error of the work is the command's; this one is told beside it.
        console.note(&failure.render());
    }
    worked.and(finished)
}

/// Runs the stages. Gives the folder of the last one's result; none after a dry run.
fn train(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<Option<PathBuf>, Failure> {
    let wanted = device::parse(&args.device)?;
    let overrides = args.overrides.iter().map(|text| text.parse()).collect::<Result<Vec<Override>, config::Error>>()?;
    // Every stage file is read before the first stage is paid for.
    let mut stages = Vec::new();
    for path in &args.configs {
        let loaded = load(path, &overrides)?;
        loaded.warnings.iter().for_each(|warning| console.note(&format!("{}: {warning}", path.display())));
        stages.push(loaded.stage);
    }
    let folder = |what, name: &str| hub::folder(what, Path::new(name), args.offline, console, stop);
    if args.dry_run {
        for stage in &stages {
            let preview = preview_stage(stage, &folder("model", &stage.model.name)?)?;
            match args.json {
                true => write_json(out, &preview)?,
                false => write_line(out, preview.text(stage, style::marks()).trim_end())?,
            }
        }
        return Ok(None);
    }
    let device = device::open(wanted, console)?;
    let is_reported = |stage: &StageConfig| stage.training.report_to.contains(&Tracker::Wandb);
    let report = if stages.iter().any(is_reported) { Some(report_settings()?) } else { None };
    let bases = stages.iter().map(|stage| folder("model", &stage.model.name)).collect::<Result<Vec<_>, _>>()?;
    if !args.skip_checks {
        check(args, &stages, &bases, device, console, stop)?;
    }
    let n_stages = stages.len();
    let mut previous: Option<PathBuf> = None;
    let mut last = None;
    for (mut stage, base) in stages.into_iter().zip(bases) {
        let dir = args.out.join(&stage.name);
        // A new run moves the folder of an earlier one aside, and the estimate with it.
        let settings = Estimate::settings_of(&stage.to_yaml()?, &args.device);
        let estimate = Estimate::read(&dir, &settings);
        if let (Some(lora), Some(dir)) = (&mut stage.lora, &previous)
            && lora.init_adapter.is_none()
        {
            lora.init_adapter = Some(dir.display().to_string());
        }
        if let Some(start) = stage.lora.as_mut().and_then(|lora| lora.init_adapter.as_mut()) {
            *start = folder("adapter", start)?.display().to_string();
        }
        let report = report.as_ref().filter(|_| is_reported(&stage));
        let report = report.map(|report| if n_stages > 1 { report.for_stage(&stage.name) } else { report.clone() });
        let (resume, report) = (args.resume, report.as_ref());
        let request = StageRequest { config: &stage, base: &base, out: &dir, device, resume, report };
        // Where the system does not start its count anew, the peak is that of the whole process.
        let _ = reset_peak();
        let outcome = run_stage(&request, console, stop)?;
        if let Some(estimate) = estimate.filter(|estimate| estimate.actual.is_none()) {
            // On a GPU the memory that counts is not the process's.
            let peak_bytes = peak_memory().filter(|_| device == Device::Cpu);
            let actual = Actual { seconds: outcome.training.seconds, peak_bytes };
            console.note(&format!("{}: {}", stage.name, compared(&estimate, &actual)));
            Estimate { actual: Some(actual), ..estimate }.write(&dir)?;
        }
        let (training, final_dir) = (&outcome.training, outcome.final_dir.display());
        let rate = training.n_tokens as f64 / training.seconds.max(1e-9);
        if args.json {
            let report = json!({
                "stage": stage.name,
                "steps": training.steps,
                "loss": training.loss,
                "eval_loss": training.eval_loss,
                "n_tokens": training.n_tokens,
                "seconds": training.seconds,
                "tokens_per_second": rate,
                "final": outcome.final_dir,
            });
            write_json(out, &report)?;
        } else {
            let eval_loss = training.eval_loss.map_or(String::new(), |loss| format!(", eval_loss {loss:.4}"));
            let (name, steps, loss) = (&stage.name, training.steps, training.loss);
            let line = format!("{name}: {steps} steps, loss {loss:.4}{eval_loss}, {rate:.0} tokens/s -> {final_dir}");
            write_line(out, &line)?;
        }
        last = Some((outcome.final_dir.clone(), stage.model.name.clone(), stage.lora.is_some()));
        previous = stage.lora.is_some().then_some(outcome.final_dir);
    }
    let Some((dir, base, is_adapter)) = last else { return Ok(None) };
    let shown = dir.display();
    match is_adapter {
        true => {
            let merged = args.out.join("merged");
            say_next(console, &format!("axismapper eval --model {base} --adapter {shown} --data data/test.jsonl"));
            let merge = format!("axismapper merge --model {base} --adapter {shown} --out {}", merged.display());
            console.note(&format!("then: {merge}"));
        }
        false => say_next(console, &format!("axismapper eval --model {shown} --data data/test.jsonl")),
    }
    Ok(Some(dir))
}

/// Looks for what would end the run early. What is only worth a thought is told; the stages go on.
fn check(
    args: &Args,
    stages: &[StageConfig],
    bases: &[PathBuf],
    device: Device,
    console: &Console,
    stop: &Stop,
) -> Result<(), Failure> {
    let memory = (device == Device::Cpu).then(memory);
    let mut checks = Vec::new();
    for (idx, (stage, base)) in stages.iter().zip(bases).enumerate() {
        // Stages mostly share a model: it is looked at once.
        if !bases[..idx].contains(base) {
            checks.push(check_model(&format!("{}: model", stage.name), base));
        }
        checks.extend(check_fatal(stage, base, &args.out.join(&stage.name), memory));
    }
    if args.finish.push.is_some() {
        checks.push(check_hub(&hub::access(args.offline), true, stop));
    }
    let mut fatal = Vec::new();
    for check in checks {
        match check.status {
            Status::Fatal => fatal.push(check),
            Status::Warning => {
                let hint = check.hint.map_or(String::new(), |hint| format!(" ({hint})"));
                console.note(&format!("{}: {}{hint}", check.name, check.message));
            }
            Status::Ok | Status::Skipped => {}
        }
    }
    if fatal.is_empty() { Ok(()) } else { Err(NotReady { checks: fatal }.into()) }
}

/// The run would fail.
#[derive(Debug, thiserror::Error)]
#[error("{}", checks.iter().map(|check| format!("{}: {}", check.name, check.message)).collect::<Vec<_>>().join("; "))]
struct NotReady {
    checks: Vec<Check>,
}

impl Diagnostic for NotReady {
    fn hint(&self) -> Option<String> {
        let own = self.checks.iter().find_map(|check| check.hint.clone());
        let more = "`axismapper doctor` says more, --skip-checks starts all the same";
        Some(own.map_or_else(|| more.to_owned(), |own| format!("{own}; {more}")))
    }
}

/// What the environment says about reports to Weights & Biases.
pub(super) fn report_settings() -> Result<wandb::Settings, wandb::Error> {
    let settings = wandb::Settings::from_env(|name| std::env::var(name).ok())?;
    Ok(wandb::Settings { command: std::env::args().collect(), ..settings })
}

/// Reads a stage file; a recipe that is named by default is there without its file.
pub(super) fn load(path: &Path, overrides: &[Override]) -> Result<config::Loaded, config::Error> {
    let recipe = RECIPES.iter().find(|(name, _)| path == Path::new(name) && !path.exists());
    match recipe {
        Some((name, text)) => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            config::parse(&stem, name, text, overrides)
        }
        None => config::load(path, overrides),
    }
}
