//! `axismapper data build`: all steps in order, as a file of settings says.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::generate::environment;
use super::{ReleaseArgs, tell, words_of};
use crate::cli::{say_next, write_line};
use crate::data;
use crate::data::build::{BuildReport, BuildSettings, Step, Tick, build};
use crate::diag::Failure;
use crate::fsio;
use crate::stop::Stop;
use crate::track::{Console, Progress};

/// All steps in order, as a file of settings says
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The settings
    #[arg(long, value_name = "FILE", default_value = "configs/data.yaml")]
    config: PathBuf,
    /// Folder of the data set
    #[arg(long, value_name = "DIR", default_value = "data")]
    out_dir: PathBuf,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Print the settings in force and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let text = fsio::read_text(&args.config)?;
    let bad = |message: String| data::Error::BadSettings { path: args.config.clone(), message };
    let settings: BuildSettings =
        serde_saphyr::from_str_with_options(&text, serde_saphyr::options! { with_snippet: false })
            .map_err(|error| bad(error.to_string()))?;
    if args.dry_run {
        let text = serde_saphyr::to_string(&settings).map_err(|error| bad(error.to_string()))?;
        return write_line(out, text.trim_end());
    }
    let release = args.release.load()?;
    let mut under_way: Option<(Step, Progress)> = None;
    let tell_step = |tick: Tick| {
        if under_way.as_ref().is_none_or(|(step, _)| *step != tick.step) {
            let bar = console.bar(label(tick.step), tick.total);
            if let Some((_, before)) = under_way.replace((tick.step, bar)) {
                before.finish();
            }
        }
        if let Some((_, bar)) = &under_way {
            bar.advance(tick.n);
        }
    };
    let report = build(&release, &settings, &environment(), &args.out_dir, stop, tell_step)?;
    if let Some((_, bar)) = under_way {
        bar.finish();
    }
    let (sft, orpo) = (args.out_dir.join("train.jsonl"), args.out_dir.join("orpo_train.jsonl"));
    match args.out_dir == Path::new("data") {
        true => say_next(console, "axismapper doctor configs/dora.yaml configs/orpo.yaml, then axismapper train"),
        false => {
            say_next(console, &format!("axismapper train with data.train: {} (and {})", sft.display(), orpo.display()))
        }
    }
    tell(out, args.json, &report, &summary_of(&report, args)?)
}

fn label(step: Step) -> &'static str {
    match step {
        Step::Generate => "scenarios",
        Step::Validate => "validated",
        Step::Dedup => "compared",
        Step::Split => "shared out",
        Step::Pairs => "paired",
    }
}

fn summary_of(report: &BuildReport, args: &Args) -> Result<String, Failure> {
    let BuildReport { generate, validate, dedup, split, .. } = report;
    let mut text = format!("{} scenarios; {} of {} sound", generate.n_records(), validate.n_kept, validate.n_read);
    if generate.n_missing() > 0 {
        text.push_str(&format!(" ({} missing: run the same command again)", generate.n_missing()));
    }
    for (reason, n) in &validate.dropped {
        text.push_str(&format!("\n  {n} dropped: {}", words_of(reason)?));
    }
    text.push_str(&format!("\n{} unique", dedup.n_kept));
    for (n, what) in [(dedup.n_exact, "had the text of another"), (dedup.n_near, "almost")] {
        text.push_str(&if n > 0 { format!("\n  {n} {what}") } else { String::new() });
    }
    text.push_str(&format!("\ntrain {}, val {}, test {}", split.n_train, split.n_val, split.n_test));
    if !split.held_out_families.is_empty() {
        text.push_str(&format!(" in {} wording families of their own", split.held_out_families.len()));
    }
    let (train, val) = (&report.pairs_train, &report.pairs_val);
    text.push_str(&format!("\n{} pairs to train on, {} to validate", train.n_pairs, val.n_pairs));
    text.push_str(&format!("\nin {}; manifest.json says what each file was made of", args.out_dir.display()));
    Ok(text)
}
