//! `axismapper demo`: the whole pipeline, on this machine, with nothing downloaded.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::{device, write_indented_json, write_line};
use crate::diag::Failure;
use crate::pipeline::{DemoRequest, DemoSettings, run_demo};
use crate::stop::Stop;
use crate::track::Console;

/// Run the whole pipeline here: codes, data, a small base model, SFT, ORPO, evaluation, a merged model
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Folder of all results; started again, the demo goes on there
    #[arg(long, default_value = "out/demo")]
    out: PathBuf,
    /// Decides data, weights and order
    #[arg(long, default_value_t = DemoSettings::default().seed)]
    seed: u64,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// A run of seconds to see that every step works; its figures mean nothing
    #[arg(long)]
    tiny: bool,
}

/// Runs the command.
///
/// # Errors
/// When a step fails or a stop is requested; finished steps are kept.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let settings =
        DemoSettings { seed: args.seed, ..if args.tiny { DemoSettings::tiny() } else { DemoSettings::default() } };
    let request = DemoRequest { out: &args.out, settings: &settings, device: device::choose(&args.device, console)? };
    let report = run_demo(&request, console, stop)?;
    if args.json {
        return write_indented_json(out, &report);
    }
    write_line(out, report.to_text().trim_end())?;
    let merged = args.out.join("merged");
    write_line(
        out,
        &format!(
            "\nThe page to read: {}\nTry it:\n  axismapper predict --model {} \"I fell off a ladder and broke my left tibia. First visit.\"",
            args.out.join("report.html").display(),
            merged.display()
        ),
    )
}
