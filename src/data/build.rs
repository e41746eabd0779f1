//! A whole data set in one go: scenarios, validated, without near-duplicates, split, and paired.
//!
//! Out, in one folder: `raw.jsonl`, `rejected.jsonl`, `unique.jsonl`, `train.jsonl`, `val.jsonl`, `test.jsonl` (chat
//! records), `orpo_train.jsonl`, `orpo_val.jsonl` (preference records), and `report.json` with every count.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Error;
use super::dedup::{DedupReport, DedupSettings, dedup};
use super::generate::template::{Generator, TemplateReport, TemplateSettings};
use super::growing::Growing;
use super::preference::{PairReport, PairSettings, Pairs};
use super::record::{Scenario, chat_record};
use super::split::{SplitReport, SplitSettings, Splits, split};
use super::validate::{ValidateReport, ValidateSettings, validate};
use super::wording::Wording;
use crate::codes::Release;
use crate::fsio;
use crate::stop::Stop;

/// The settings of every step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuildSettings {
    /// Scenarios.
    pub generate: TemplateSettings,
    /// What is dropped.
    pub validate: ValidateSettings,
    /// What counts as a duplicate.
    pub dedup: DedupSettings,
    /// Sets.
    pub split: SplitSettings,
    /// Preference pairs.
    pub pairs: PairSettings,
}

/// The counts of every step.
#[derive(Clone, Debug, Serialize)]
pub struct BuildReport {
    /// The release that the codes are of.
    pub release: String,
    /// Scenarios.
    pub generate: TemplateReport,
    /// What was dropped.
    pub validate: ValidateReport,
    /// Duplicates.
    pub dedup: DedupReport,
    /// Sets.
    pub split: SplitReport,
    /// Pairs for training.
    pub pairs_train: PairReport,
    /// Pairs for validation.
    pub pairs_val: PairReport,
}

/// Makes the data set in `dir`. `advance` hears of each scenario written, those of an earlier run first.
///
/// # Errors
/// A setting, a file, or [`Error::Stopped`]; an interrupted generation goes on when run again.
pub fn build(
    release: &Release,
    settings: &BuildSettings,
    dir: &Path,
    stop: &Stop,
    advance: impl FnMut(u64),
) -> Result<BuildReport, Error> {
    settings.pairs.check()?;
    let raw = dir.join("raw.jsonl");
    let generate = write_scenarios(release, &settings.generate, &raw, stop, advance)?;
    let (valid, rejected, validate) = validate(fsio::read_jsonl(&raw)?, release, &settings.validate);
    fsio::write_jsonl(&dir.join("rejected.jsonl"), &rejected)?;
    stop.check("building the data set")?;
    let (unique, dedup) = dedup(valid, &settings.dedup);
    fsio::write_jsonl(&dir.join("unique.jsonl"), &unique)?;
    stop.check("building the data set")?;
    let (splits, split) = split(unique, &settings.split);
    write_splits(&splits, dir)?;
    let (pairs_train, pairs_val) = write_pairs(release, &splits, &settings.pairs, dir)?;
    let release = release.name().to_owned();
    let report = BuildReport { release, generate, validate, dedup, split, pairs_train, pairs_val };
    fsio::write_json(&dir.join("report.json"), &report)?;
    Ok(report)
}

/// Writes scenarios to `path`; an interrupted run goes on where it stopped. `advance` hears of the records done.
///
/// # Errors
/// A setting, a file, or [`Error::Stopped`].
pub fn write_scenarios(
    release: &Release,
    settings: &TemplateSettings,
    path: &Path,
    stop: &Stop,
    mut advance: impl FnMut(u64),
) -> Result<TemplateReport, Error> {
    let wording = Wording::new(release);
    let generator = Generator::new(release, &wording, settings.clone())?;
    let mut file = Growing::open(path, &(release.name(), settings))?;
    let n_before = file.n_records();
    let mut report = generator.report();
    for idx in 0..settings.n_records {
        let scenario = generator.record(idx);
        report.count(&scenario);
        if idx >= n_before {
            file.push(&scenario)?;
        }
        advance(1);
        if let Err(mut stopped) = stop.check("generating scenarios") {
            file.sync()?;
            stopped.resume = Some("run the same command again: it goes on where it stopped".into());
            return Err(stopped.into());
        }
    }
    file.finish()?;
    Ok(report)
}

/// Writes the chat records of each set.
///
/// # Errors
/// [`Error::File`].
pub fn write_splits(splits: &Splits, dir: &Path) -> Result<(), Error> {
    for (name, records) in [("train", &splits.train), ("val", &splits.val), ("test", &splits.test)] {
        fsio::write_jsonl(&dir.join(format!("{name}.jsonl")), records.iter().map(chat_record))?;
    }
    Ok(())
}

/// Writes the preference records of the training and the validation set; there are none of the test set.
///
/// # Errors
/// [`Error::BadSetting`] or [`Error::File`].
pub fn write_pairs(
    release: &Release,
    splits: &Splits,
    settings: &PairSettings,
    dir: &Path,
) -> Result<(PairReport, PairReport), Error> {
    let pairs = Pairs::new(release, settings.clone())?;
    let write = |name: &str, records: &[Scenario]| -> Result<PairReport, Error> {
        let mut lines = Vec::new();
        let report = pairs.write(records, |pair| {
            lines.push(pair);
            Ok::<_, Error>(())
        })?;
        fsio::write_jsonl(&dir.join(name), &lines)?;
        Ok(report)
    };
    Ok((write("orpo_train.jsonl", &splits.train)?, write("orpo_val.jsonl", &splits.val)?))
}
