//! `axismapper train`: stage files in order, each starting from the adapter of the one before.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::{device, write_line};
use crate::config::{self, Override};
use crate::diag::Failure;
use crate::pipeline::{StageRequest, run_stage};
use crate::stop::Stop;
use crate::track::Console;

/// Train: run each stage file in order, starting from the adapter of the stage before
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A stage file; give it again for the next stage
    #[arg(long = "config", value_name = "STAGE.yaml", default_values = ["configs/dora.yaml", "configs/orpo.yaml"])]
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
}

/// Runs the command.
///
/// # Errors
/// When a stage file is wrong or a stage fails; finished stages are kept.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let device = device::parse(&args.device)?;
    let overrides = args.overrides.iter().map(|text| text.parse()).collect::<Result<Vec<Override>, config::Error>>()?;
    // Every stage file is read before the first stage is paid for.
    let mut stages = Vec::new();
    for path in &args.configs {
        let loaded = config::load(path, &overrides)?;
        loaded.warnings.iter().for_each(|warning| console.note(&format!("{}: {warning}", path.display())));
        stages.push(loaded.stage);
    }
    let mut previous: Option<PathBuf> = None;
    for mut stage in stages {
        if let (Some(lora), Some(dir)) = (&mut stage.lora, &previous)
            && lora.init_adapter.is_none()
        {
            lora.init_adapter = Some(dir.display().to_string());
        }
        let dir = args.out.join(&stage.name);
        let request = StageRequest { config: &stage, out: &dir, device, resume: args.resume };
        let outcome = run_stage(&request, console, stop)?;
        let eval_loss = outcome.training.eval_loss.map_or(String::new(), |loss| format!(", eval_loss {loss:.4}"));
        write_line(
            out,
            &format!(
                "{}: {} steps, loss {:.4}{eval_loss}, {:.0} tokens/s -> {}",
                stage.name,
                outcome.training.steps,
                outcome.training.loss,
                outcome.training.n_tokens as f64 / outcome.training.seconds.max(1e-9),
                outcome.final_dir.display()
            ),
        )?;
        previous = stage.lora.is_some().then_some(outcome.final_dir);
    }
    Ok(())
}
