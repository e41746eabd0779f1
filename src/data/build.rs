//! A whole data set in one go: scenarios, validated, without near-duplicates, split, and paired.
//!
//! Out, in one folder: `raw.jsonl`, `rejected.jsonl`, `unique.jsonl`, `duplicates.jsonl`, `train.jsonl`, `val.jsonl`,
//! `test.jsonl` (chat records), `orpo_train.jsonl`, `orpo_val.jsonl` (preference records), and `manifest.json` with the
//! settings, hashes and counts of every step. A step that the manifest has is not run again.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Error;
use super::dedup::{DedupReport, DedupSettings};
use super::generate::llm::{self, LlmReport};
use super::generate::provider::{Environment, ProviderSettings};
use super::generate::template::{Generator, TemplateReport, TemplateSettings};
use super::growing::Growing;
use super::manifest::{Manifest, Plan, ReleaseId};
use super::preference::{PairReport, PairSettings};
use super::record::Scenario;
use super::source::Source;
use super::split::{SplitReport, SplitSettings};
use super::steps::{PairReports, dedup_file, pairs_file, split_file, validate_files};
use super::validate::{ValidateReport, ValidateSettings};
use super::wording::Wording;
use crate::codes::Release;
use crate::fsio;
use crate::stop::{Stop, Stopped};

/// Records generated at once, on all cores.
const CHUNK: usize = 1024;

/// The settings of every step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuildSettings {
    /// Who words the scenarios.
    pub provider: ProviderSettings,
    /// What they are about.
    pub generate: TemplateSettings,
    /// Files of records that are taken in beside them.
    pub records: Vec<Source>,
    /// What is dropped.
    pub validate: ValidateSettings,
    /// What counts as a duplicate.
    pub dedup: DedupSettings,
    /// Sets.
    pub split: SplitSettings,
    /// Preference pairs.
    pub pairs: PairSettings,
}

/// The steps, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    Generate,
    Validate,
    Dedup,
    Split,
    Pairs,
}

impl Step {
    /// Its name, as in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Validate => "validate",
            Self::Dedup => "dedup",
            Self::Split => "split",
            Self::Pairs => "pairs",
        }
    }
}

/// Progress: `n` more of the `total` records of a step are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    pub step: Step,
    pub total: u64,
    pub n: u64,
}

/// The counts of a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GenerateReport {
    /// Of a language model.
    Llm(LlmReport),
    /// Of templates.
    Template(TemplateReport),
}

impl GenerateReport {
    /// Scenarios in the file.
    pub fn n_records(&self) -> usize {
        match self {
            Self::Llm(report) => report.n_records,
            Self::Template(report) => report.n_records,
        }
    }

    /// Scenarios that the provider did not give.
    pub fn n_missing(&self) -> usize {
        match self {
            Self::Llm(report) => report.n_missing,
            Self::Template(_) => 0,
        }
    }
}

/// The counts of every step.
#[derive(Clone, Debug, Serialize)]
pub struct BuildReport {
    /// The release that the codes are of.
    pub release: String,
    /// Scenarios.
    pub generate: GenerateReport,
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

/// Makes the data set in `dir`, or what is left of it. `tell` hears of the records done.
///
/// # Errors
/// A setting, a file, a provider, or [`Error::Stopped`]; an interrupted build goes on when run again.
pub fn build(
    release: &Release,
    settings: &BuildSettings,
    environment: &Environment,
    dir: &Path,
    stop: &Stop,
    tell: impl FnMut(Tick),
) -> Result<BuildReport, Error> {
    settings.dedup.check()?;
    settings.split.check()?;
    settings.pairs.check()?;
    let id = Some(ReleaseId::of(release));
    let mut work = Work { manifest: Manifest::in_dir(dir)?, dir, stop, tell };
    let file = |name: &str| dir.join(name);
    let (raw, valid, unique) = (file("raw.jsonl"), file("valid.jsonl"), file("unique.jsonl"));

    let llm = settings.provider.llm(environment)?;
    let how = json(&(&settings.generate, llm.as_ref().map(|(endpoint, llm)| (endpoint.protocol, llm))))?;
    let plan = Plan { step: Step::Generate.name(), settings: how, release: id.clone(), inputs: &[] };
    let n_wanted = settings.generate.n_records as u64;
    let is_whole = |report: &GenerateReport| report.n_missing() == 0;
    let generate: GenerateReport =
        work.run(Step::Generate, &plan, &["raw.jsonl"], n_wanted, is_whole, |advance| match &llm {
            None => write_scenarios(release, &settings.generate, &raw, stop, |n| drop(advance(n)))
                .map(GenerateReport::Template),
            Some((endpoint, llm)) => {
                let advance = |n| drop(advance(n));
                llm::write_scenarios(release, &settings.generate, endpoint, llm, &raw, stop, advance)
                    .map(GenerateReport::Llm)
            }
        })?;

    let mut sources = vec![Source::new(&raw)];
    sources.extend(settings.records.iter().cloned());
    let inputs: Vec<PathBuf> = sources.iter().map(|source| source.path.clone()).collect();
    let how = json(&(&settings.validate, &settings.records))?;
    let plan = Plan { step: Step::Validate.name(), settings: how, release: id.clone(), inputs: &inputs };
    let n_records = generate.n_records() as u64;
    let outputs = ["valid.jsonl", "rejected.jsonl"];
    let validate: ValidateReport = work.run(
        Step::Validate,
        &plan,
        &outputs,
        n_records,
        |_| true,
        |advance| {
            let rejected = file("rejected.jsonl");
            validate_files(&sources, release, &settings.validate, &valid, Some(&rejected), advance)
        },
    )?;

    let how = json(&settings.dedup)?;
    let plan = Plan { step: Step::Dedup.name(), settings: how, release: None, inputs: std::slice::from_ref(&valid) };
    let n_records = validate.n_kept as u64;
    let outputs = ["unique.jsonl", "duplicates.jsonl"];
    let dedup: DedupReport = work.run(
        Step::Dedup,
        &plan,
        &outputs,
        n_records,
        |_| true,
        |advance| dedup_file(&Source::new(&valid), &settings.dedup, &unique, Some(&file("duplicates.jsonl")), advance),
    )?;

    let how = json(&settings.split)?;
    let plan = Plan { step: Step::Split.name(), settings: how, release: None, inputs: std::slice::from_ref(&unique) };
    let n_records = dedup.n_kept as u64;
    let outputs = ["train.jsonl", "val.jsonl", "test.jsonl"];
    let split: SplitReport = work.run(
        Step::Split,
        &plan,
        &outputs,
        n_records,
        |_| true,
        |advance| split_file(&Source::new(&unique), &settings.split, dir, advance),
    )?;

    let how = json(&(&settings.pairs, &settings.split))?;
    let plan = Plan { step: Step::Pairs.name(), settings: how, release: id, inputs: std::slice::from_ref(&unique) };
    let outputs = ["orpo_train.jsonl", "orpo_val.jsonl"];
    let pairs: PairReports = work.run(
        Step::Pairs,
        &plan,
        &outputs,
        n_records,
        |_| true,
        |advance| pairs_file(&Source::new(&unique), release, &settings.split, &settings.pairs, dir, advance),
    )?;

    let (pairs_train, pairs_val) = (pairs.train, pairs.val);
    Ok(BuildReport { release: release.name().to_owned(), generate, validate, dedup, split, pairs_train, pairs_val })
}

/// What the steps of a build share.
struct Work<'a, T> {
    manifest: Manifest,
    dir: &'a Path,
    stop: &'a Stop,
    tell: T,
}

impl<T: FnMut(Tick)> Work<'_, T> {
    /// The report of a step: of an earlier run when that is good, else of running it now.
    fn run<R: Serialize + DeserializeOwned>(
        &mut self,
        step: Step,
        plan: &Plan<'_>,
        outputs: &[&str],
        total: u64,
        is_good: impl FnOnce(&R) -> bool,
        run: impl FnOnce(&mut dyn FnMut(u64) -> Result<(), Error>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if let Some(report) = self.manifest.report_of::<R>(plan).filter(is_good) {
            (self.tell)(Tick { step, total, n: total });
            return Ok(report);
        }
        let stop = self.stop;
        let mut advance = |n| {
            (self.tell)(Tick { step, total, n });
            stop.check("building the data set").map_err(|stopped| Error::Stopped(resumable(stopped)))
        };
        advance(0)?;
        let report = run(&mut advance)?;
        let outputs: Vec<PathBuf> = outputs.iter().map(|name| self.dir.join(name)).collect();
        self.manifest.note(plan, &outputs, &report)?;
        Ok(report)
    }
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
    for start in (0..settings.n_records).step_by(CHUNK) {
        let numbers = start..settings.n_records.min(start + CHUNK);
        let records: Vec<Scenario> = numbers.clone().into_par_iter().map(|idx| generator.record(idx)).collect();
        for (idx, scenario) in numbers.zip(&records) {
            report.count(scenario);
            if idx >= n_before {
                file.push(scenario)?;
            }
        }
        advance(records.len() as u64);
        if let Err(stopped) = stop.check("generating scenarios") {
            file.sync()?;
            return Err(resumable(stopped).into());
        }
    }
    file.finish()?;
    Ok(report)
}

fn resumable(mut stopped: Stopped) -> Stopped {
    stopped.resume = Some("run the same command again: it goes on where it stopped".into());
    stopped
}

/// A value as the manifest keeps it.
fn json(value: &impl Serialize) -> Result<serde_json::Value, fsio::Error> {
    let bad =
        |error: serde_json::Error| fsio::Error::BadFile { path: "manifest.json".into(), message: error.to_string() };
    serde_json::to_value(value).map_err(bad)
}
