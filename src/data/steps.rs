//! The steps from raw scenarios to training files, each from file to file in one or two passes, so that memory does not
//! grow with the records (but for de-duplication, see [`super::dedup`]).
//!
//! `advance` hears of the records done and may end a step with its error; a step that ends early leaves nothing behind.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::Error;
use super::dedup::{DedupReport, DedupSettings, Texts, duplicates, order_by_codes};
use super::lines::Lines;
use super::preference::{PairReport, PairSettings, Pairs};
use super::record::{answer, chat_record};
use super::source::Source;
use super::split::{Census, Place, SplitPlan, SplitReport, SplitSettings};
use super::validate::{ValidateReport, ValidateSettings, judge};
use crate::codes::Release;
use crate::fsio;

/// Records between two calls of `advance`.
const ADVANCE_EVERY: u64 = 1000;

/// Pairs for training and for validation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairReports {
    pub train: PairReport,
    pub val: PairReport,
}

/// Calls `advance` once for many records.
struct Counter<'a> {
    n: u64,
    advance: &'a mut dyn FnMut(u64) -> Result<(), Error>,
}

impl Counter<'_> {
    fn one(&mut self) -> Result<(), Error> {
        self.n += 1;
        if self.n == ADVANCE_EVERY { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        (self.advance)(std::mem::take(&mut self.n))
    }
}

/// Writes the sound records of `sources` to `out` and the others, with their reasons, to `rejected`.
///
/// # Errors
/// A file, no record at all, or what `advance` says.
pub fn validate_files(
    sources: &[Source],
    release: &Release,
    settings: &ValidateSettings,
    out: &Path,
    rejected: Option<&Path>,
    advance: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<ValidateReport, Error> {
    let mut report = ValidateReport::default();
    let mut counter = Counter { n: 0, advance };
    let mut kept = Lines::create(out)?;
    let mut rejects = rejected.map(Lines::create).transpose()?;
    for source in sources {
        source.for_each_raw(|_, raw| {
            match judge(raw, release, settings) {
                Ok(scenario) => {
                    report.count(None);
                    kept.push(&scenario)?;
                }
                Err((reason, reject)) => {
                    report.count(Some(reason));
                    if let Some(rejects) = &mut rejects {
                        rejects.push(&reject)?;
                    }
                }
            }
            counter.one()
        })?;
    }
    counter.flush()?;
    not_empty(report.n_read, sources)?;
    rejects.map(Lines::finish).transpose()?;
    kept.finish()?;
    Ok(report)
}

/// Writes the records of `source` that repeat no other to `out`, and those that do to `rejected`, each with the line of
/// the record that is kept.
///
/// # Errors
/// A setting, a file, no record at all, or what `advance` says.
pub fn dedup_file(
    source: &Source,
    settings: &DedupSettings,
    out: &Path,
    rejected: Option<&Path>,
    advance: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<DedupReport, Error> {
    settings.check()?;
    let (mut texts, mut n_codes, mut codes, mut lines) = (Texts::default(), Vec::new(), Vec::new(), Vec::new());
    source.for_each(|line, scenario| {
        texts.push(&scenario.scenario);
        n_codes.push(scenario.codes.len().min(255) as u8);
        codes.push(xxh3_64(answer(&scenario.codes).as_bytes()));
        lines.push(line as u32);
        Ok::<_, Error>(())
    })?;
    not_empty(texts.len(), std::slice::from_ref(source))?;
    let found = duplicates(&texts, &order_by_codes(&n_codes), settings, advance)?;
    drop(texts);
    let mut report = DedupReport::default();
    let mut kept = Lines::create(out)?;
    let mut rejects = rejected.map(Lines::create).transpose()?;
    let mut idx = 0;
    source.for_each(|line, mut scenario| {
        let duplicate = found.get(idx).copied().flatten();
        let has_same_codes = duplicate.is_none_or(|duplicate| codes.get(idx) == codes.get(duplicate.of as usize));
        idx += 1;
        report.count(duplicate, has_same_codes);
        match (duplicate, &mut rejects) {
            (None, _) => kept.push(&scenario)?,
            (Some(duplicate), Some(rejects)) => {
                let reason = if duplicate.similarity == 1.0 { "duplicate" } else { "near_duplicate" };
                scenario.extra.insert("reason".into(), reason.into());
                scenario.extra.insert("line".into(), line.into());
                scenario.extra.insert("duplicate_of_line".into(), lines[duplicate.of as usize].into());
                scenario.extra.insert("similarity".into(), duplicate.similarity.into());
                rejects.push(&scenario)?;
            }
            (Some(_), None) => {}
        }
        Ok::<_, Error>(())
    })?;
    rejects.map(Lines::finish).transpose()?;
    kept.finish()?;
    Ok(report)
}

/// Writes `train.jsonl`, `val.jsonl` and `test.jsonl`, chat records, to `dir`.
///
/// # Errors
/// A setting, a file, no record at all, or what `advance` says.
pub fn split_file(
    source: &Source,
    settings: &SplitSettings,
    dir: &Path,
    advance: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<SplitReport, Error> {
    let plan = split_plan(source, settings)?;
    let mut report = plan.report();
    let mut counter = Counter { n: 0, advance };
    let open = |name: &str| Lines::create(&dir.join(name));
    let (mut train, mut val, mut test) = (open("train.jsonl")?, open("val.jsonl")?, open("test.jsonl")?);
    source.for_each(|_, scenario| {
        let place = plan.place(&scenario);
        report.count(place);
        let set = match place {
            Place::Train => &mut train,
            Place::Val => &mut val,
            Place::Test => &mut test,
            Place::LeftOut => return counter.one(),
        };
        set.push(&chat_record(&scenario))?;
        counter.one()
    })?;
    counter.flush()?;
    [train, val, test].into_iter().try_for_each(|set| set.finish().map(drop))?;
    Ok(report)
}

/// Writes `orpo_train.jsonl` and `orpo_val.jsonl`, preference records of the training and the validation set, to `dir`;
/// there are none of the test set.
///
/// # Errors
/// A setting, a file, no record at all, or what `advance` says.
pub fn pairs_file(
    source: &Source,
    release: &Release,
    split: &SplitSettings,
    settings: &PairSettings,
    dir: &Path,
    advance: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<PairReports, Error> {
    let pairs = Pairs::new(release, settings.clone())?;
    let plan = split_plan(source, split)?;
    let mut reports = PairReports::default();
    let mut counter = Counter { n: 0, advance };
    let open = |name: &str| Lines::create(&dir.join(name));
    let (mut train, mut val) = (open("orpo_train.jsonl")?, open("orpo_val.jsonl")?);
    source.for_each(|_, scenario| {
        let (report, set) = match plan.place(&scenario) {
            Place::Train => (&mut reports.train, &mut train),
            Place::Val => (&mut reports.val, &mut val),
            Place::Test | Place::LeftOut => return counter.one(),
        };
        let of_record = pairs.of(&scenario, report.n_in);
        report.count(&of_record);
        of_record.iter().try_for_each(|(_, pair)| set.push(pair))?;
        counter.one()
    })?;
    counter.flush()?;
    train.finish()?;
    val.finish()?;
    Ok(reports)
}

fn split_plan(source: &Source, settings: &SplitSettings) -> Result<SplitPlan, Error> {
    settings.check()?;
    let (mut census, mut n_read) = (Census::default(), 0);
    source.for_each(|_, scenario| {
        n_read += 1;
        census.count(&scenario);
        Ok::<_, Error>(())
    })?;
    not_empty(n_read, std::slice::from_ref(source))?;
    Ok(census.plan(settings))
}

fn not_empty(n_read: usize, sources: &[Source]) -> Result<(), Error> {
    let path = || sources.first().map_or_else(PathBuf::new, |source| source.path.clone());
    if n_read == 0 { Err(fsio::Error::Empty { path: path() }.into()) } else { Ok(()) }
}
