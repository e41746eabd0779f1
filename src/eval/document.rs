//! A whole evaluation: the result, what stands beside it, how they compare; `report.json` and `report.html`.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

use super::compare::{Comparison, Side, compare};
use super::{Answer, Error, Mistakes, Record, Report, TARGETS, html, score_all, stage_table};
use crate::codes::Release;
use crate::fsio;

/// Depth below which a report is written on one line, so that a record is a line.
const LINE_DEPTH: usize = 3;

/// A named evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// What it is called.
    pub name: String,
    /// Its figures.
    pub report: Report,
    /// Its records.
    pub records: Vec<Record>,
}

/// The records of an earlier report.
#[derive(Clone, Debug, PartialEq)]
pub struct Earlier {
    /// What it was called.
    pub name: String,
    /// Its records.
    pub records: Vec<Record>,
}

/// An evaluation with everything that its report shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The code set that the answers were checked against.
    pub release: String,
    /// What is evaluated.
    pub result: Stage,
    /// What stands beside it, the earlier first.
    pub others: Vec<Stage>,
    /// The result against each of them.
    pub comparisons: Vec<Comparison>,
    /// Where the result goes wrong.
    pub mistakes: Mistakes,
}

impl Stage {
    /// Scores answers. The seed is that of the intervals.
    pub fn of_answers(name: impl Into<String>, answers: &[Answer], release: &Release, seed: u64) -> Self {
        Self::of_records(name, score_all(answers, release), release, seed)
    }

    /// The figures of records. The seed is that of the intervals.
    pub fn of_records(name: impl Into<String>, records: Vec<Record>, release: &Release, seed: u64) -> Self {
        Self { name: name.into(), report: Report::of(&records, release, seed), records }
    }
}

impl Earlier {
    /// Reads the records of a `report.json`.
    ///
    /// # Errors
    /// When the file cannot be read, is no report, or has no records or unsound ones.
    pub fn read(path: &Path) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Stored {
            name: Option<String>,
            records: Option<Vec<Record>>,
        }
        let Stored { name, records } = fsio::read_json(path)?;
        let records = records.unwrap_or_default();
        if records.is_empty() {
            return Err(Error::NoRecords { path: path.to_owned() });
        }
        if let Some(idx) = records.iter().position(|record| !record.outcome.is_sound()) {
            return Err(Error::UnsoundRecord { path: path.to_owned(), number: idx + 1 });
        }
        Ok(Self { name: name.unwrap_or_else(|| "before".into()), records })
    }
}

impl Evaluation {
    /// Puts an evaluation together: `answers` are those of `result`. The seed is that of the intervals.
    ///
    /// # Errors
    /// When the result has no record in common with what stands beside it.
    pub fn new(
        result: Stage,
        answers: &[Answer],
        others: Vec<Stage>,
        release: &Release,
        seed: u64,
    ) -> Result<Self, Error> {
        let after = Side { name: &result.name, records: &result.records };
        let mut comparisons = Vec::with_capacity(others.len());
        for other in &others {
            let before = Side { name: &other.name, records: &other.records };
            comparisons.push(
                compare(before, after, seed)
                    .ok_or_else(|| Error::NothingInCommon { before: other.name.clone(), after: result.name.clone() })?,
            );
        }
        let mistakes = Mistakes::of(answers, &result.records, release);
        Ok(Self { release: release.name().to_owned(), result, others, comparisons, mistakes })
    }

    /// Every evaluation, the result last.
    pub fn stages(&self) -> impl Iterator<Item = &Stage> {
        self.others.iter().chain([&self.result])
    }

    /// What a terminal shows: the table, the comparisons, and what confidence is worth.
    pub fn to_text(&self) -> String {
        let stages: Vec<(&str, &Report)> = self.stages().map(|stage| (stage.name.as_str(), &stage.report)).collect();
        let mut text = stage_table(&stages, &TARGETS);
        for comparison in &self.comparisons {
            text += &format!("\n{}\n", comparison.statement);
        }
        if let Some(calibration) = &self.result.report.calibration {
            text += &format!("\n{}\n", calibration.to_text());
        }
        text + &format!("\n{} records, codes of {}\n", self.result.report.overall.n, self.release)
    }

    /// What `report.json` holds, without the single records.
    pub fn summary(&self) -> impl Serialize + '_ {
        self.file(None)
    }

    /// Writes `report.json`, which a later evaluation can be compared with.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<(), fsio::Error> {
        fsio::write_atomic(path, |out| {
            let file = self.file(Some(&self.result.records));
            file.serialize(&mut Serializer::with_formatter(&mut *out, LinePerRecord::default()))?;
            out.write_all(b"\n")
        })
    }

    /// Writes `report.html`: one page without outside resources. `release` gives the words of codes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_html(&self, path: &Path, release: &Release) -> Result<(), fsio::Error> {
        fsio::write_atomic(path, |out| out.write_all(html::page(self, release).as_bytes()))
    }

    fn file<'a>(&'a self, records: Option<&'a [Record]>) -> File<'a> {
        File {
            name: &self.result.name,
            release: &self.release,
            report: &self.result.report,
            mistakes: &self.mistakes,
            others: self.others.iter().map(|stage| Column { name: &stage.name, report: &stage.report }).collect(),
            comparisons: &self.comparisons,
            records,
        }
    }
}

/// `report.json`.
#[derive(Serialize)]
struct File<'a> {
    name: &'a str,
    release: &'a str,
    #[serde(flatten)]
    report: &'a Report,
    mistakes: &'a Mistakes,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    others: Vec<Column<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    comparisons: &'a [Comparison],
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<&'a [Record]>,
}

#[derive(Serialize)]
struct Column<'a> {
    name: &'a str,
    #[serde(flatten)]
    report: &'a Report,
}

/// Indented JSON in which everything deeper than [`LINE_DEPTH`] stays on its line.
#[derive(Default)]
struct LinePerRecord {
    pretty: PrettyFormatter<'static>,
    depth: usize,
}

impl LinePerRecord {
    fn is_inline(&self) -> bool {
        self.depth >= LINE_DEPTH
    }
}

/// Both formatters must see what is opened and closed at their own depths only.
macro_rules! by_depth {
    ($self:ident, $call:ident($($arg:expr),*)) => {
        if $self.is_inline() { CompactFormatter.$call($($arg),*) } else { $self.pretty.$call($($arg),*) }
    };
}

impl Formatter for LinePerRecord {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth += 1;
        by_depth!(self, begin_array(out))
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        let written = by_depth!(self, end_array(out));
        self.depth -= 1;
        written
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, is_first: bool) -> io::Result<()> {
        by_depth!(self, begin_array_value(out, is_first))
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        by_depth!(self, end_array_value(out))
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth += 1;
        by_depth!(self, begin_object(out))
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        let written = by_depth!(self, end_object(out));
        self.depth -= 1;
        written
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, is_first: bool) -> io::Result<()> {
        by_depth!(self, begin_object_key(out, is_first))
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        by_depth!(self, begin_object_value(out))
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        by_depth!(self, end_object_value(out))
    }
}
