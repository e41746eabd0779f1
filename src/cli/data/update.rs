//! `axismapper data update`: from one release of codes to the next, up to a stage file that is ready to train.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::json;

use super::tell;
use crate::cli::release::CacheArgs;
use crate::data::manifest::{Manifest, Plan, ReleaseId};
use crate::data::source::Source;
use crate::data::update::{Conversion, UpdateReport, UpdateSettings, update};
use crate::diag::Failure;
use crate::fsio;
use crate::stop::Stop;
use crate::track::Console;

/// The recipe that the stage file is made from.
const STAGE: &str = include_str!("../../../configs/continual.yaml");

/// Deleted codes listed in the summary.
const N_LISTED: usize = 10;

/// Make the records of a continual update: new and changed codes of a release, and a share of the old records
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The release that was learned: a file, `builtin`, or a fetched release as in 2026
    #[arg(long, value_name = "RELEASE", default_value = "builtin")]
    from: PathBuf,
    /// The release to learn: a file, `builtin`, or a fetched release as in 2027
    #[arg(long, value_name = "RELEASE")]
    to: PathBuf,
    /// The records that were learned, as data/train.jsonl
    #[arg(long, value_name = "FILE")]
    old: PathBuf,
    /// Folder of train.jsonl, val.jsonl, test.jsonl and stage.yaml
    #[arg(long, value_name = "DIR")]
    out_dir: PathBuf,
    /// What took the place of deleted codes: a table with a column of old and one of new codes
    #[arg(long, value_name = "FILE")]
    conversion: Option<PathBuf>,
    /// Records for each code that is new or changed
    #[arg(long, value_name = "N", default_value_t = UpdateSettings::default().n_per_code)]
    per_code: usize,
    /// Share of the old records that is trained on again
    #[arg(long, default_value_t = UpdateSettings::default().ratio)]
    ratio: f64,
    /// Equal seeds give equal updates
    #[arg(long, default_value_t = UpdateSettings::default().seed)]
    seed: u64,
    /// The model in the stage file
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// The adapter to start from, in the stage file
    #[arg(long, value_name = "DIR")]
    init_adapter: Option<String>,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let (from, to) = (args.cache.load(&args.from)?, args.cache.load(&args.to)?);
    let conversion = match &args.conversion {
        Some(path) => Conversion::read(path)?,
        None => Conversion::default(),
    };
    let settings =
        UpdateSettings { n_per_code: args.per_code, ratio: args.ratio, seed: args.seed, ..UpdateSettings::default() };
    console.note(&format!("from {} to {}", from.name(), to.name()));
    let made = update(&from, &to, &Source::new(&args.old), &conversion, &settings)?;
    stop.check("updating the data set")?;
    let file = |name: &str| args.out_dir.join(name);
    for (name, records) in [("train.jsonl", &made.train), ("val.jsonl", &made.val), ("test.jsonl", &made.test)] {
        fsio::write_jsonl(&file(name), records)?;
    }
    let stage = stage_file(args);
    fsio::write_atomic(&file("stage.yaml"), |out| out.write_all(stage.as_bytes()))?;
    let inputs: Vec<PathBuf> = [&args.from, &args.to]
        .into_iter()
        .filter(|path| path.is_file())
        .chain([&args.old])
        .chain(&args.conversion)
        .cloned()
        .collect();
    let how = json!({"update": settings, "from": ReleaseId::of(&from)});
    let plan = Plan { step: "update", settings: how, release: Some(ReleaseId::of(&to)), inputs: &inputs };
    let outputs = ["train.jsonl", "val.jsonl", "test.jsonl", "stage.yaml"].map(file);
    Manifest::in_dir(&args.out_dir)?.note(&plan, &outputs, &made.report)?;
    tell(out, args.json, &made.report, &summary_of(&made.report, &file("stage.yaml")))
}

/// The recipe with the paths of this update.
fn stage_file(args: &Args) -> String {
    let path = |name: &str| args.out_dir.join(name).display().to_string();
    let (train, val) = (path("train.jsonl"), path("val.jsonl"));
    let replace = |line: &str| {
        let key = line.trim_start().split(':').next().unwrap_or_default();
        let value = match key {
            "train" => Some(train.as_str()),
            "validation" => Some(val.as_str()),
            "name" => args.model.as_deref(),
            "init_adapter" => args.init_adapter.as_deref(),
            _ => None,
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        value.map_or_else(|| line.to_owned(), |value| format!("{indent}{key}: {}", json!(value)))
    };
    let body = STAGE.lines().skip_while(|line| line.starts_with('#')).map(replace);
    let head =
        format!("# Trains the update in {}: axismapper train --config {}", args.out_dir.display(), path("stage.yaml"));
    std::iter::once(head).chain(body).map(|line| line + "\n").collect()
}

fn summary_of(report: &UpdateReport, stage: &Path) -> String {
    let old = &report.old;
    let n_dropped: usize = old.dropped.values().sum();
    let mut text = format!(
        "{} to {}: {} codes added, {} renamed, {} deleted",
        report.old_release, report.new_release, report.n_added, report.n_renamed, report.n_deleted
    );
    if report.n_codes_left_out > 0 {
        text.push_str(&format!("\n  {} of them have no wording of their own and no record", report.n_codes_left_out));
    }
    text.push_str(&format!(
        "\n{} new records to train on, {} to validate, {} to test",
        report.n_new_train, report.n_new_val, report.n_new_test
    ));
    text.push_str(&format!(
        "\n{} old records: {} as they were, {} remapped, {n_dropped} dropped for a deleted code, {} for a new rule; {} taken",
        old.n_read, old.n_unchanged, old.n_remapped, old.n_unfit, report.n_old_taken
    ));
    for (code, n) in old.dropped.iter().take(N_LISTED) {
        text.push_str(&format!("\n  {n} dropped for {code}"));
    }
    if old.dropped.len() > N_LISTED {
        text.push_str(&format!("\n  and for {} codes more", old.dropped.len() - N_LISTED));
    }
    text.push_str(&format!("\nready to train: axismapper train --config {}", stage.display()));
    text
}
