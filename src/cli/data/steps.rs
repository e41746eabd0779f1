//! `axismapper data validate`, `dedup`, `split` and `pairs`: one step each, from file to file.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::Serialize;
use serde_json::{Value, json};

use super::{ReleaseArgs, SourceArgs, tell, watched, words_of};
use crate::cli::say_next;
use crate::data;
use crate::data::dedup::DedupSettings;
use crate::data::manifest::{Manifest, Plan, ReleaseId};
use crate::data::preference::PairSettings;
use crate::data::source::Source;
use crate::data::split::SplitSettings;
use crate::data::steps::{dedup_file, pairs_file, split_file, validate_files};
use crate::data::validate::{ValidateReport, ValidateSettings};
use crate::diag::Failure;
use crate::fsio;
use crate::stop::Stop;
use crate::track::Console;

/// Drop records with codes that are unknown or not billable, and other unfit ones, counted by reason
#[derive(Debug, ClapArgs)]
pub(super) struct ValidateArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The scenarios that are kept
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The scenarios that are dropped, each with its reason
    #[arg(long, value_name = "FILE")]
    rejected: Option<PathBuf>,
    /// Keep scenarios that name a code
    #[arg(long)]
    keep_leaked_codes: bool,
    /// Drop scenarios that quote the official description of one of their codes
    #[arg(long)]
    drop_exact_descriptions: bool,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// Remove near-duplicates; of two, the record with more codes stays
#[derive(Debug, ClapArgs)]
pub(super) struct DedupArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The scenarios that are kept
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The scenarios that repeat one that is kept, each with the line of that one
    #[arg(long, value_name = "FILE")]
    rejected: Option<PathBuf>,
    /// How alike two texts may be: Jaccard index of their 5-grams of characters
    #[arg(long, default_value_t = DedupSettings::default().threshold)]
    threshold: f64,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// How records are shared out.
#[derive(Debug, ClapArgs)]
pub(super) struct SharesArgs {
    /// Share of the validation set
    #[arg(long, default_value_t = SplitSettings::default().validation)]
    val: f64,
    /// Share of the test set
    #[arg(long, default_value_t = SplitSettings::default().test)]
    test: f64,
    /// Test on whole wording families that training never sees, where records name theirs
    #[arg(long, action = clap::ArgAction::Set, default_value_t = SplitSettings::default().hold_out_families)]
    hold_out_families: bool,
    /// Another seed gives other sets
    #[arg(long, default_value_t = SplitSettings::default().seed)]
    seed: u64,
}

/// Share records out: train.jsonl, val.jsonl, test.jsonl (chat records)
#[derive(Debug, ClapArgs)]
pub(super) struct SplitArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Folder of the sets
    #[arg(long, value_name = "DIR")]
    out_dir: PathBuf,
    #[command(flatten)]
    shares: SharesArgs,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// Make preference pairs of the training and validation sets: orpo_train.jsonl, orpo_val.jsonl
#[derive(Debug, ClapArgs)]
pub(super) struct PairsArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Folder of the pairs
    #[arg(long, value_name = "DIR")]
    out_dir: PathBuf,
    /// Pairs of one record
    #[arg(long, default_value_t = PairSettings::default().n_pairs)]
    n_pairs: usize,
    /// The shares of `data split`: the test set has no pairs
    #[command(flatten)]
    shares: SharesArgs,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run_validate(
    args: &ValidateArgs,
    console: &Console,
    stop: &Stop,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let release = args.release.load()?;
    let settings = ValidateSettings {
        reject_leaked_codes: !args.keep_leaked_codes,
        reject_exact_descriptions: args.drop_exact_descriptions,
        ..ValidateSettings::default()
    };
    let (source, _spooled) = args.source.source()?;
    let progress = console.bar("validated", count_records(&source));
    let sources = std::slice::from_ref(&source);
    let mut advance = watched(&progress, stop);
    let report = validate_files(sources, &release, &settings, &args.out, args.rejected.as_deref(), &mut advance)?;
    drop(advance);
    progress.finish();
    let how = json!([settings, source.columns]);
    let plan = Plan { step: "validate", settings: how, release: Some(ReleaseId::of(&release)), inputs: &[source.path] };
    note(Manifest::beside(&args.out)?, &plan, &[Some(&args.out), args.rejected.as_ref()], &report)?;
    say_next(console, &format!("axismapper data dedup --in {} --out unique.jsonl", args.out.display()));
    tell(out, args.json, &report, &summary_of(&report)?)
}

/// What was kept, and the rest by reason.
pub(super) fn summary_of(report: &ValidateReport) -> Result<String, Failure> {
    let mut summary = format!("{} of {} records kept", report.n_kept, report.n_read);
    for (reason, n) in &report.dropped {
        summary.push_str(&format!("\n  {n} dropped: {}", words_of(reason)?));
    }
    Ok(summary)
}

pub(super) fn run_dedup(args: &DedupArgs, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let settings = DedupSettings { threshold: args.threshold, ..DedupSettings::default() };
    let (source, _spooled) = args.source.source()?;
    let progress = console.bar("compared", count_records(&source));
    let mut advance = watched(&progress, stop);
    let report = dedup_file(&source, &settings, &args.out, args.rejected.as_deref(), &mut advance)?;
    drop(advance);
    progress.finish();
    let plan = plan("dedup", json!([settings, source.columns]), &source);
    note(Manifest::beside(&args.out)?, &plan, &[Some(&args.out), args.rejected.as_ref()], &report)?;
    say_next(console, &format!("axismapper data split --in {} --out-dir data", args.out.display()));
    let summary = format!(
        "{} of {} records kept; {} had the text of another, {} almost",
        report.n_kept, report.n_read, report.n_exact, report.n_near
    );
    tell(out, args.json, &report, &summary)
}

pub(super) fn run_split(args: &SplitArgs, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let settings = args.shares.settings();
    let (source, _spooled) = args.source.source()?;
    let progress = console.bar("shared out", count_records(&source));
    let report = split_file(&source, &settings, &args.out_dir, &mut watched(&progress, stop))?;
    progress.finish();
    let plan = plan("split", json!([settings, source.columns]), &source);
    let outputs = ["train.jsonl", "val.jsonl", "test.jsonl"].map(|name| args.out_dir.join(name));
    Manifest::in_dir(&args.out_dir)?.note(&plan, &outputs, &report)?;
    let dir = args.out_dir.display();
    say_next(
        console,
        &format!("axismapper train --set data.train={dir}/train.jsonl --set data.validation={dir}/val.jsonl"),
    );
    let mut summary = format!("train {}, val {}, test {}", report.n_train, report.n_val, report.n_test);
    if !report.held_out_families.is_empty() {
        summary.push_str(&format!(", {} wording families in test only", report.held_out_families.len()));
    }
    if report.n_left_out > 0 {
        summary.push_str(&format!("; {} left out, because they word a case of the test set", report.n_left_out));
    }
    tell(out, args.json, &report, &summary)
}

pub(super) fn run_pairs(args: &PairsArgs, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let release = args.release.load()?;
    let settings = PairSettings { n_pairs: args.n_pairs, ..PairSettings::default() };
    let shares = args.shares.settings();
    let (source, _spooled) = args.source.source()?;
    let progress = console.bar("paired", count_records(&source));
    let mut advance = watched(&progress, stop);
    let report = pairs_file(&source, &release, &shares, &settings, &args.out_dir, &mut advance)?;
    drop(advance);
    progress.finish();
    let how = json!([settings, shares, source.columns]);
    let plan = Plan { release: Some(ReleaseId::of(&release)), ..plan("pairs", how, &source) };
    let outputs = ["orpo_train.jsonl", "orpo_val.jsonl"].map(|name| args.out_dir.join(name));
    Manifest::in_dir(&args.out_dir)?.note(&plan, &outputs, &report)?;
    let dir = args.out_dir.display();
    let sets = format!("--set data.train={dir}/orpo_train.jsonl --set data.validation={dir}/orpo_val.jsonl");
    say_next(console, &format!("axismapper train --config configs/orpo.yaml {sets}"));
    let mut summary = format!("{} pairs to train on, {} to validate", report.train.n_pairs, report.val.n_pairs);
    for (flaw, n) in &report.train.by_flaw {
        summary.push_str(&format!("\n  {n} {}", words_of(flaw)?));
    }
    tell(out, args.json, &report, &summary)
}

/// The lines of a file that is not packed, so that the time left can be told; 0 where that is not known.
fn count_records(source: &Source) -> u64 {
    let name = source.path.to_string_lossy().to_lowercase();
    let is_plain = [".jsonl", ".json", ".txt"].iter().any(|ending| name.ends_with(ending));
    if !is_plain {
        return 0;
    }
    let mut n = 0;
    let counted = fsio::for_each_line(&source.path, |_, _| {
        n += 1;
        Ok(())
    });
    if counted.is_ok() { n } else { 0 }
}

fn plan<'a>(step: &'a str, settings: Value, source: &'a Source) -> Plan<'a> {
    Plan { step, settings, release: None, inputs: std::slice::from_ref(&source.path) }
}

fn note(
    mut manifest: Manifest,
    plan: &Plan<'_>,
    outputs: &[Option<&PathBuf>],
    report: &impl Serialize,
) -> Result<(), data::Error> {
    let outputs: Vec<PathBuf> = outputs.iter().copied().flatten().cloned().collect();
    manifest.note(plan, &outputs, report)
}

impl SharesArgs {
    pub(super) fn settings(&self) -> SplitSettings {
        SplitSettings {
            validation: self.val,
            test: self.test,
            hold_out_families: self.hold_out_families,
            seed: self.seed,
        }
    }
}
