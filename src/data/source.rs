//! Scenario records in files, ours and those of other people: JSON Lines or tables, with any names of fields.
//!
//! In: a path (plain or gzip; `-` is stdin) and the names of the fields of text and codes. Out: [`RawScenario`] records
//! one by one, so that a file may be larger than the memory.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Error;
use super::record::{RawScenario, Scenario};
use crate::fsio;

/// Where a record has its text and its codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// The field of the text.
    pub text: String,
    /// The field of the codes: a list, or one text with codes between commas, semicolons, bars or spaces.
    pub codes: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self { text: "scenario".into(), codes: "codes".into() }
    }
}

/// A file of records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The file. A name that ends in `.csv` or `.tsv` (or those with `.gz`) is a table, any other JSON Lines.
    pub path: PathBuf,
    /// The names of its fields.
    #[serde(default)]
    pub columns: Columns,
}

/// How a file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    JsonLines,
    Table { delimiter: u8 },
}

impl Source {
    /// A file of our own records.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), columns: Columns::default() }
    }

    fn layout(&self) -> Layout {
        let name = self.path.to_string_lossy().to_lowercase();
        match name.strip_suffix(".gz").unwrap_or(&name) {
            name if name.ends_with(".csv") => Layout::Table { delimiter: b',' },
            name if name.ends_with(".tsv") => Layout::Table { delimiter: b'\t' },
            _ => Layout::JsonLines,
        }
    }

    /// Calls `each` with the line number and the record of every line; it ends the reading with its error.
    ///
    /// A chat record counts as a record too: its last question is the text, its last answer the codes. Of a preference
    /// record it is the prompt and the chosen answer.
    ///
    /// # Errors
    /// Those of `each`; [`Error::File`] with the line of the first record that cannot be read.
    pub fn for_each_raw<E: From<Error>>(&self, each: impl FnMut(usize, RawScenario) -> Result<(), E>) -> Result<(), E> {
        match self.layout() {
            Layout::JsonLines => self.for_each_line(each),
            Layout::Table { delimiter } => self.for_each_row(delimiter, each),
        }
    }

    /// The same for records whose codes must have the form of codes.
    ///
    /// # Errors
    /// As [`Source::for_each_raw`]; [`Error::File`] too for a code that has not that form.
    pub fn for_each<E: From<Error>>(&self, mut each: impl FnMut(usize, Scenario) -> Result<(), E>) -> Result<(), E> {
        self.for_each_raw(|line, raw| match raw.malformed_code() {
            None => each(line, raw.into_scenario()),
            Some(code) => Err(Error::from(fsio::Error::BadLine {
                path: self.path.clone(),
                line,
                message: format!("`{code}` has not the form of a code; `data validate` sorts such records out"),
                others: 0,
            })
            .into()),
        })
    }

    fn for_each_line<E: From<Error>>(
        &self,
        mut each: impl FnMut(usize, RawScenario) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut failed = None;
        let read = fsio::for_each_line(&self.path, |line, text| {
            if failed.is_some() {
                return Ok(());
            }
            let fields: Map<String, Value> = serde_json::from_str(text).map_err(|error| fsio::json_fault(&error))?;
            failed = each(line, self.record(fields)?).err();
            Ok(())
        });
        match failed {
            Some(error) => Err(error),
            None => read.map_err(|error| Error::from(error).into()),
        }
    }

    fn for_each_row<E: From<Error>>(
        &self,
        delimiter: u8,
        mut each: impl FnMut(usize, RawScenario) -> Result<(), E>,
    ) -> Result<(), E> {
        let bad = |line: usize, message: String| {
            let (path, others) = (self.path.clone(), 0);
            Error::from(fsio::Error::BadLine { path, line, message, others })
        };
        let input = fsio::open(&self.path).map_err(Error::from)?;
        let mut table = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(input);
        let header = table.headers().map_err(|error| bad(1, error.to_string()))?;
        // Spreadsheets put a byte order mark before the first name.
        let names: Vec<String> =
            header.iter().map(|name| name.trim_start_matches('\u{feff}').trim().to_owned()).collect();
        for row in table.records() {
            let row = row.map_err(|error| {
                let line = error.position().map_or(0, |position| position.line() as usize);
                bad(line, error.to_string())
            })?;
            let line = row.position().map_or(0, |position| position.line() as usize);
            let values = row.iter().map(|value| Value::String(value.to_owned()));
            let record =
                self.record(names.iter().cloned().zip(values).collect()).map_err(|message| bad(line, message))?;
            each(line, record)?;
        }
        Ok(())
    }

    /// A record of its fields; the others are kept.
    fn record(&self, mut fields: Map<String, Value>) -> Result<RawScenario, String> {
        let Columns { text, codes } = &self.columns;
        if let (false, Some(Value::Array(turns))) = (fields.contains_key(text), fields.get("messages")) {
            let said = |role: &str| {
                let turn = turns.iter().rev().find(|turn| turn["role"] == role);
                turn.and_then(|turn| turn["content"].as_str()).map(str::to_owned)
            };
            let (Some(scenario), Some(answer)) = (said("user"), said("assistant")) else {
                return Err("the conversation has no question with an answer".into());
            };
            fields.shift_remove("messages");
            return Ok(RawScenario { scenario, codes: codes_of(&answer), extra: fields });
        }
        if let (false, Some(prompt), Some(chosen)) =
            (fields.contains_key(text), fields.get("prompt"), fields.get("chosen"))
        {
            let (Some(scenario), Some(answer)) = (last_said(prompt), last_said(chosen)) else {
                return Err("the preference record has no prompt or no chosen answer".into());
            };
            return Ok(RawScenario { scenario, codes: codes_of(&answer), extra: fields });
        }
        let names = || fields.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let missing = |name: &str, flag: &str| format!("has no `{name}` but {}; {flag} names the field", names());
        if !fields.contains_key(text) {
            return Err(missing(text, "`--text-column`"));
        }
        if !fields.contains_key(codes) {
            return Err(missing(codes, "`--codes-column`"));
        }
        let codes = match fields.shift_remove(codes) {
            Some(Value::String(list)) => codes_of(&list),
            Some(Value::Null) | None => Vec::new(),
            Some(Value::Array(list)) => list
                .iter()
                .map(|code| {
                    code.as_str().map(str::to_owned).ok_or_else(|| format!("`{codes}` holds {code}, not a text"))
                })
                .collect::<Result<_, _>>()?,
            Some(other) => return Err(format!("`{codes}` is {other}, expected codes")),
        };
        match fields.shift_remove(text) {
            Some(Value::String(scenario)) => Ok(RawScenario { scenario, codes, extra: fields }),
            other => Err(format!("`{text}` is {}, expected a text", other.unwrap_or_default())),
        }
    }
}

/// A text, or the last turn of a conversation.
fn last_said(turns: &Value) -> Option<String> {
    let said = turns.as_str().or_else(|| turns.as_array()?.last()?["content"].as_str());
    said.map(str::to_owned)
}

/// The codes in one text: between commas, semicolons, bars, brackets, quotes or spaces.
fn codes_of(list: &str) -> Vec<String> {
    let is_between = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '|' | '[' | ']' | '"' | '\'' | '/');
    list.split(is_between).filter(|code| !code.is_empty()).map(str::to_owned).collect()
}

/// A copy of stdin when `path` is `-`, so that it can be read twice; removed when dropped.
pub struct Spooled {
    path: PathBuf,
    _copy: Option<tempfile::TempPath>,
}

impl Spooled {
    /// # Errors
    /// [`Error::File`] when stdin cannot be copied.
    pub fn new(path: &Path) -> Result<Self, Error> {
        if path != Path::new("-") {
            return Ok(Self { path: path.to_owned(), _copy: None });
        }
        let copy = || -> std::io::Result<tempfile::TempPath> {
            let mut file = tempfile::NamedTempFile::new()?;
            std::io::copy(&mut std::io::stdin().lock(), &mut file)?;
            Ok(file.into_temp_path())
        };
        let copy = copy().map_err(fsio::Error::io("copy", path))?;
        Ok(Self { path: copy.to_path_buf(), _copy: Some(copy) })
    }

    /// The file to read.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: &str, text: &str, codes: &str) -> Result<Vec<(usize, RawScenario)>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let mut records = Vec::new();
        let source = Source { path, columns: Columns { text: text.into(), codes: codes.into() } };
        source.for_each_raw(|line, record| {
            records.push((line, record));
            Ok::<_, Error>(())
        })?;
        Ok(records)
    }

    #[test]
    fn tables_and_lines_of_others_are_read_alike() {
        let table = "\u{feff}Note,id,ICD\n\"broke, badly,\nthe shin\",7,\"S82.201A; V18.4XXA\"\nfever,8,R50.9|J10.1\n";
        let records = read("x.csv", table, "Note", "ICD").unwrap();
        assert_eq!(records[0].1.scenario, "broke, badly,\nthe shin");
        assert_eq!(records[0].1.codes, ["S82.201A", "V18.4XXA"]);
        assert_eq!(records[0].1.extra["id"], "7");
        assert_eq!((records[1].0, records[1].1.codes.len()), (4, 2));

        let lines = "{\"Note\":\"a\",\"ICD\":\"I10\",\"id\":1}\n{\"Note\":\"b\",\"ICD\":[\"I10\",\"E11.9\"]}\n";
        let records = read("x.jsonl", lines, "Note", "ICD").unwrap();
        assert_eq!((records[0].1.extra["id"].as_i64(), records[1].1.codes.len()), (Some(1), 2));

        let chat = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"I10, E11.9\"}],\"family\":\"f\"}";
        let records = read("x.jsonl", chat, "scenario", "codes").unwrap();
        assert_eq!((records[0].1.scenario.as_str(), records[0].1.codes.len()), ("q", 2));
        assert_eq!(records[0].1.extra["family"], "f");
    }

    #[test]
    fn a_missing_field_is_named_with_those_that_are_there() {
        let error = read("x.tsv", "Note\tICD\nfever\tR50.9\n", "scenario", "ICD").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("`Note`") && error.contains("`--text-column`"), "{error}");
        let error = read("x.jsonl", "{\"a\":1}\n{\"scenario\":5,\"codes\":[]}\n", "scenario", "codes").unwrap_err();
        assert!(error.to_string().contains("line 1") && error.to_string().contains("1 more"), "{error}");
        let error = read("x.csv", "a,b\n1,2,3\n", "a", "b").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
