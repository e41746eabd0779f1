//! `axismapper data replay`: new records mixed with a share of old ones.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::Serialize;
use serde_json::{Value, json};

use super::tell;
use crate::cli::say_next;
use crate::data::manifest::{Manifest, Plan};
use crate::data::replay;
use crate::diag::Failure;
use crate::fsio;
use crate::track::Console;

/// Mix new records with a share of old ones, for a continual update
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Records to learn
    #[arg(long, value_name = "FILE")]
    new: PathBuf,
    /// Records learned before
    #[arg(long, value_name = "FILE")]
    old: PathBuf,
    /// Share of the old records that is taken
    #[arg(long, default_value_t = 0.1)]
    ratio: f64,
    /// Equal seeds give equal mixes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The mix
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ReplayReport {
    n_new: usize,
    n_old: usize,
    n_old_taken: usize,
}

pub(super) fn run(args: &Args, console: &Console, out: &mut dyn Write) -> Result<(), Failure> {
    let read = |path: &Path| fsio::read_jsonl::<Value>(path);
    let (new, old) = (read(&args.new)?, read(&args.old)?);
    let (n_new, n_old) = (new.len(), old.len());
    let mixed = replay::mix(new, old, args.ratio, args.seed)?;
    let report = ReplayReport { n_new, n_old, n_old_taken: mixed.len() - n_new };
    fsio::write_jsonl(&args.out, &mixed)?;
    let inputs = [args.new.clone(), args.old.clone()];
    let settings = json!({"ratio": args.ratio, "seed": args.seed});
    let plan = Plan { step: "replay", settings, release: None, inputs: &inputs };
    Manifest::beside(&args.out)?.note(&plan, std::slice::from_ref(&args.out), &report)?;
    let sets = format!("--set data.train={}", args.out.display());
    say_next(console, &format!("axismapper train --config configs/continual.yaml {sets}"));
    let summary = format!("{n_new} new records and {} of {n_old} old ones", report.n_old_taken);
    tell(out, args.json, &report, &summary)
}
