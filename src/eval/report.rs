//! Reports: the figures of an evaluation overall and by chapter, and a table that sets stages side by side.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Serialize, Serializer};

use super::{Answer, Figures, Interval, Outcome, bootstrap, codes_in, score};
use crate::codes::Release;

/// The figures of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Over all records.
    pub overall: Group,
    /// By the number of the chapter (`"19"`) that the first expected code is in.
    #[serde(serialize_with = "by_number")]
    pub by_chapter: BTreeMap<u8, Group>,
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
    pub intervals: [Interval; Figures::NAMES.len()],
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
}

/// Scores answers against a release. The seed is that of the intervals.
pub fn evaluate(answers: &[Answer], release: &Release, seed: u64) -> Report {
    let is_billable = |code| release.is_billable(code);
    let outcomes: Vec<Outcome> = answers.iter().map(|answer| score(answer, &is_billable)).collect();
    let mut chapters: BTreeMap<u8, Vec<&Outcome>> = BTreeMap::new();
    for (answer, outcome) in answers.iter().zip(&outcomes) {
        let first = answer.expected.split(',').find_map(|part| codes_in(part).first().copied());
        if let Some(chapter) = first.and_then(|code| release.chapter_of(code)) {
            chapters.entry(chapter.number).or_default().push(outcome);
        }
    }
    Report {
        overall: group(&outcomes.iter().collect::<Vec<_>>(), seed),
        by_chapter: chapters.iter().map(|(&number, outcomes)| (number, group(outcomes, seed))).collect(),
    }
}

/// A table of stages side by side, in per cent: a figure a row with its interval, and whether the last stage meets the
/// targets.
pub fn stage_table(stages: &[(&str, &Report)], targets: &[Target]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let heads = stages.iter().map(|(name, _)| (*name).to_owned());
    rows.push(["%".to_owned()].into_iter().chain(heads).chain(["target".to_owned(), String::new()]).collect());
    for (idx, name) in Figures::NAMES.iter().enumerate() {
        let cells = stages.iter().map(|(_, report)| {
            let interval = report.overall.intervals[idx];
            let value = report.overall.figures.values()[idx];
            format!("{:.1} ({:.1}-{:.1})", 100.0 * value, 100.0 * interval.low, 100.0 * interval.high)
        });
        let mut row: Vec<String> = [name.replace('_', " ")].into_iter().chain(cells).collect();
        if let Some(target) = targets.iter().find(|target| target.figure == *name) {
            let is_met =
                stages.last().is_some_and(|(_, report)| target.bound.is_met(report.overall.figures.values()[idx]));
            row.push(match target.bound {
                Bound::AtLeast(least) => format!(">= {:.0}", 100.0 * least),
                Bound::Below(limit) => format!("< {:.0}", 100.0 * limit),
            });
            row.push(if is_met { "met" } else { "MISSED" }.into());
        }
        rows.push(row);
    }
    let counts = stages.iter().map(|(_, report)| report.overall.n.to_string());
    rows.push(["records".to_owned()].into_iter().chain(counts).collect());
    aligned(&rows)
}

fn group(outcomes: &[&Outcome], seed: u64) -> Group {
    let resampled = |indices: &[usize]| Figures::of(indices.iter().map(|&idx| outcomes[idx])).values();
    Group {
        n: outcomes.len(),
        figures: Figures::of(outcomes.iter().copied()),
        intervals: bootstrap(outcomes.len(), seed, resampled),
    }
}

/// Columns two spaces apart, the first to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..n_columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a String cannot fail.
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn by_name<S: Serializer>(intervals: &[Interval; Figures::NAMES.len()], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Figures::NAMES.iter().zip(intervals))
}

fn by_number<S: Serializer>(chapters: &BTreeMap<u8, Group>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(chapters.iter().map(|(number, group)| (number.to_string(), group)))
}
