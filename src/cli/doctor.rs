//! `axismapper doctor`: what can be known before a run is paid for.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args as ClapArgs;
use serde_json::{Value, json};
use tch::Device;

use super::hub::access;
use super::release::ReleaseArgs;
use super::train::{load, report_settings};
use super::{device, style, write_indented_json, write_line};
use crate::config::{self, Override, StageConfig, Tracker};
use crate::diag::{Diagnostic, Failure};
use crate::doctor::{
    Check, Date, Estimate, Memory, Price, StageChecks, Status, check_compute, check_disk, check_hub, check_memory,
    check_processor, check_release, check_stage, check_wandb, measure, memory,
};
use crate::hub::Access;
use crate::stop::Stop;
use crate::track::Console;

/// Check machine, services and stage files before a run, and estimate its time, memory and cost
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Stage files to check and estimate; without one, the machine and the services
    #[arg(value_name = "STAGE.yaml")]
    configs: Vec<PathBuf>,
    /// Override a setting of every stage, as in training.learning_rate=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder of the stages' results, where the estimates go
    #[arg(long, default_value = "out")]
    out: PathBuf,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Ask no service
    #[arg(long)]
    offline: bool,
    /// Take N steps of each stage to know its time and memory
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "3", require_equals = true, value_parser = clap::value_parser!(u64).range(2..=1000))]
    measure: Option<u64>,
    /// What an hour of the machine costs, in any currency
    #[arg(long, value_name = "PRICE", value_parser = price)]
    price_per_hour: Option<f64>,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Print checks and estimates as JSON
    #[arg(long)]
    json: bool,
}

fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err("expected a number of at least 0, as in 0.79".into()),
    }
}

/// Names longer than this break the column.
const MAX_NAME: usize = 18;

/// What is known of one stage.
struct Examined {
    stage: StageConfig,
    found: StageChecks,
    estimate: Option<Estimate>,
}

/// Runs the command.
///
/// # Errors
/// When a check is fatal, or a stop is requested; all checks are printed first.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let hub = access(args.offline);
    let mut checks = Vec::new();
    let stages = read_stages(args, &mut checks)?;
    let reports = stages.iter().any(|stage| stage.training.report_to.contains(&Tracker::Wandb));
    let memory = memory();
    checks.extend([check_processor(), check_memory(memory), check_compute()]);
    let device = check_device(&args.device, console, &mut checks);
    checks.push(check_disk("disk", &args.out, None));
    checks.push(check_disk("model cache", &hub.cache, None));
    let cache = args.release.cache_dir();
    checks.extend(cache.as_deref().map(|dir| check_disk("code cache", dir, None)));
    checks.push(code_release(args, cache.as_deref()));
    checks.push(check_hub(&hub, false, stop));
    checks.push(check_wandb(report_settings(), reports, hub.is_offline, stop));

    let mut examined = Vec::new();
    for stage in stages {
        stop.check("checking")?;
        examined.push(examine(args, stage, device, memory, &hub, console, stop, &mut checks)?);
    }
    let n_fatal = checks.iter().filter(|check| check.status == Status::Fatal).count();
    if args.json {
        let stages: Vec<Value> = examined.iter().map(stage_json).collect();
        write_indented_json(out, &json!({"ok": n_fatal == 0, "checks": checks, "stages": stages}))?;
    } else {
        tell(&checks, &examined, out)?;
    }
    match n_fatal {
        0 => Ok(()),
        n => Err(NotWell { n }.into()),
    }
}

/// Reads the stage files; a fault is a fatal check, and the others are looked at all the same.
fn read_stages(args: &Args, checks: &mut Vec<Check>) -> Result<Vec<StageConfig>, Failure> {
    let overrides = args.overrides.iter().map(|text| text.parse()).collect::<Result<Vec<Override>, config::Error>>()?;
    let mut stages = Vec::new();
    for path in &args.configs {
        let name = format!("config {}", path.display());
        match load(path, &overrides) {
            Ok(loaded) if loaded.warnings.is_empty() => {
                checks.push(Check::ok(name, "every setting is known and sound"));
                stages.push(loaded.stage);
            }
            Ok(loaded) => {
                let hint = "remove what has no use here, so that nobody relies on it";
                checks.push(Check::warning(name, loaded.warnings.join("; "), hint));
                stages.push(loaded.stage);
            }
            Err(error) => checks.push(Check::of_error(name, &error)),
        }
    }
    Ok(stages)
}

/// The device that the stages would run on.
fn check_device(given: &str, console: &Console, checks: &mut Vec<Check>) -> Device {
    match device::choose(given, console) {
        Ok(device) => {
            let shown = match device {
                Device::Cuda(n) => format!("cuda:{n}"),
                _ => "cpu".to_owned(),
            };
            checks.push(Check::ok("device", shown));
            device
        }
        Err(error) => {
            checks.push(Check::of_error("device", &error));
            Device::Cpu
        }
    }
}

fn code_release(args: &Args, cache: Option<&Path>) -> Check {
    match args.release.edition() {
        Some(edition) if edition != crate::codes::Edition::BUILTIN => match args.release.load() {
            Ok(_) => check_release(edition, Date::of(SystemTime::now()), cache),
            Err(error) => Check::of_error("code release", &error),
        },
        Some(edition) => check_release(edition, Date::of(SystemTime::now()), cache),
        None => match args.release.load() {
            Ok(release) => Check::ok("code release", format!("{}, {} codes", release.name(), release.len())),
            Err(error) => Check::of_error("code release", &error),
        },
    }
}

/// Looks at a stage, measures it when that is asked for, and leaves its estimate in its folder.
#[allow(clippy::too_many_arguments, reason = "what the checks of all stages share")]
fn examine(
    args: &Args,
    stage: StageConfig,
    device: Device,
    memory: Memory,
    hub: &Access,
    console: &Console,
    stop: &Stop,
    checks: &mut Vec<Check>,
) -> Result<Examined, Failure> {
    let dir = args.out.join(&stage.name);
    let memory = (device == Device::Cpu).then_some(memory);
    let found = check_stage(&stage, &dir, memory, hub, stop);
    checks.extend(found.checks.iter().cloned());
    let is_sound = found.checks.iter().all(|check| check.status != Status::Fatal);
    let (Some(taken), true) = (found.taken, is_sound) else { return Ok(Examined { stage, found, estimate: None }) };
    let mut measured = None;
    if let (Some(n), Some(base), Some(preview)) = (args.measure, &found.base, &found.preview) {
        console.note(&format!("{}: taking {n} steps to measure them", stage.name));
        match measure(&stage, (base, device), preview, n, (console, stop)) {
            Ok(rate) => measured = Some(rate),
            Err(error) if stop.is_requested() => return Err(error.into()),
            Err(error) => checks.push(Check::of_error(format!("{}: measured steps", stage.name), &error)),
        }
    }
    let settings = Estimate::settings_of(&stage.to_yaml()?, &args.device);
    let estimate = Estimate::new(&stage, settings, taken, measured, args.price_per_hour.map(Price));
    if let Err(error) = estimate.write(&dir) {
        checks.push(Check::of_error(format!("{}: estimate", stage.name), &error));
    }
    Ok(Examined { stage, found, estimate: Some(estimate) })
}

fn stage_json(examined: &Examined) -> Value {
    json!({
        "stage": examined.stage.name,
        "estimate": examined.estimate,
        "example": examined.found.preview.as_ref().map(|preview| &preview.example),
    })
}

fn tell(checks: &[Check], examined: &[Examined], out: &mut dyn Write) -> Result<(), Failure> {
    let colour = style::has_colour();
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0).min(MAX_NAME);
    for check in checks {
        let status = style::status_text(check.status, colour);
        write_line(out, &format!("{status}  {:width$}  {}", check.name, check.message))?;
        if let Some(hint) = check.hint.as_ref().filter(|_| check.status > Status::Skipped) {
            write_line(out, &format!("{:9}hint: {hint}", ""))?;
        }
    }
    for Examined { stage, found, estimate } in examined {
        let objective = if stage.orpo.is_some() { "ORPO" } else { "SFT" };
        write_line(out, &format!("\n{}: {objective}", stage.name))?;
        match estimate {
            Some(estimate) => write_line(out, estimate.text().trim_end())?,
            None => write_line(out, "  not estimated: see the checks above")?,
        }
        if let Some(preview) = &found.preview {
            write_line(out, preview.example_text(style::marks()).trim_end())?;
        }
    }
    Ok(())
}

/// Something is in the way.
#[derive(Debug, thiserror::Error)]
#[error("{n} {} would end a run", if *n == 1 { "fault" } else { "faults" })]
struct NotWell {
    n: usize,
}

impl Diagnostic for NotWell {
    fn hint(&self) -> Option<String> {
        Some("mend what is marked fatal above and run the same command again".into())
    }
}
