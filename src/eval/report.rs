//! Reports: the figures of an evaluation overall, by chapter, by number of codes and by wording family.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::interval::{Interval, bootstrap};
use super::metrics::{Figures, N_FIGURES, Outcome, Summands, principal_in};
use super::{Answer, Calibration, Record, score_all};
use crate::codes::Release;

/// The figures of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Over all records.
    pub overall: Group,
    /// By the number of the chapter (`"19"`) that the first expected code is in.
    #[serde(serialize_with = "by_number")]
    pub by_chapter: BTreeMap<u8, Group>,
    /// By the number of distinct codes expected.
    #[serde(serialize_with = "by_number")]
    pub by_code_count: BTreeMap<usize, Group>,
    /// By wording family, of the records that have one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_family: BTreeMap<String, Group>,
    /// What confidence is worth; none when no record has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

/// The figures of a set of records.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Number of records.
    pub n: usize,
    /// Each a share from 0 to 1, under its own name.
    #[serde(flatten)]
    pub figures: Figures,
    /// 95 % intervals, in the order of [`Figures::NAMES`]; written under the same names.
    #[serde(serialize_with = "by_name")]
    pub intervals: [Interval; N_FIGURES],
}

/// What a figure should reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// A name of [`Figures::NAMES`].
    pub figure: &'static str,
    /// Which side of it is good.
    pub bound: Bound,
}

/// A bound on a share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// At least this much.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
}

/// What a finished model should reach.
pub const TARGETS: [Target; 4] = [
    Target { figure: "exact_match", bound: Bound::AtLeast(0.65) },
    Target { figure: "f1", bound: Bound::AtLeast(0.84) },
    Target { figure: "format_compliance", bound: Bound::AtLeast(0.99) },
    Target { figure: "hallucination_rate", bound: Bound::Below(0.01) },
];

impl Bound {
    /// Whether a value is on the good side.
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::Below(limit) => value < limit,
        }
    }

    /// The share that it bounds with.
    pub fn value(self) -> f64 {
        match self {
            Self::AtLeast(value) | Self::Below(value) => value,
        }
    }
}

/// Scores answers against a release. The seed is that of the intervals.
pub fn evaluate(answers: &[Answer], release: &Release, seed: u64) -> Report {
    Report::of(&score_all(answers, release), release, seed)
}

impl Report {
    /// The figures of scored records. The seed is that of the intervals.
    pub fn of(records: &[Record], release: &Release, seed: u64) -> Self {
        let chapter = |record: &Record| {
            principal_in(&record.key.expected).and_then(|code| release.chapter_of(code)).map(|chapter| chapter.number)
        };
        let family = |record: &Record| (!record.family.is_empty()).then(|| record.family.clone());
        Self {
            overall: group(records.iter().map(|record| &record.outcome), seed),
            by_chapter: grouped(records, chapter, seed),
            by_code_count: grouped(records, |record| Some(record.outcome.n_expected), seed),
            by_family: grouped(records, family, seed),
            calibration: Calibration::of(records),
        }
    }
}

impl Group {
    /// The figure of that name with its interval.
    pub fn figure(&self, name: &str) -> Option<(f64, Interval)> {
        let idx = Figures::NAMES.iter().position(|known| *known == name)?;
        Some((self.figures.values()[idx], self.intervals[idx]))
    }
}

fn grouped<K: Ord>(records: &[Record], key: impl Fn(&Record) -> Option<K>, seed: u64) -> BTreeMap<K, Group> {
    let mut outcomes: BTreeMap<K, Vec<&Outcome>> = BTreeMap::new();
    for record in records {
        if let Some(key) = key(record) {
            outcomes.entry(key).or_default().push(&record.outcome);
        }
    }
    outcomes.into_iter().map(|(key, outcomes)| (key, group(outcomes, seed))).collect()
}

fn group<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>, seed: u64) -> Group {
    let records: Vec<Summands> = outcomes.into_iter().map(Summands::of).collect();
    let resampled = |indices: &[usize]| Figures::from_summands(indices.iter().map(|&idx| records[idx])).values();
    Group {
        n: records.len(),
        figures: Figures::from_summands(records.iter().copied()),
        intervals: bootstrap(records.len(), seed, resampled),
    }
}

fn by_name<S: Serializer>(intervals: &[Interval; N_FIGURES], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Figures::NAMES.iter().zip(intervals))
}

/// Keys of JSON objects are text, also where they are numbers.
fn by_number<S: Serializer, K: ToString>(groups: &BTreeMap<K, Group>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(groups.iter().map(|(number, group)| (number.to_string(), group)))
}
