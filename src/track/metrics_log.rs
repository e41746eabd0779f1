//! `metrics.jsonl`: a JSON object a line, appended and never rewritten, except that a resumed run drops what the run
//! before it logged after the checkpoint.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::fsio::{self, Error};

/// A line of `metrics.jsonl`: its step and the other values.
pub type Row = (u64, Map<String, Value>);

/// An open `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the log of a run that stands at `step`: 0 starts anew, more keeps the lines up to that step. Makes the
    /// folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, step: u64) -> Result<Self, Error> {
        if let Some(dir) = path.parent() {
            fsio::make_dir(dir)?;
        }
        let fail = || Error::io("open", path);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(fail())?;
        let size_bytes = if step == 0 { 0 } else { len_up_to(&file, step).map_err(Error::io("read", path))? };
        file.set_len(size_bytes).map_err(fail())?;
        file.seek(SeekFrom::End(0)).map_err(fail())?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends one line, `step` first. It is in the file when this returns.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, step: u64, values: Map<String, Value>) -> Result<(), Error> {
        let mut row = Map::new();
        row.insert("step".into(), step.into());
        row.extend(values);
        let line = format!("{}\n", Value::Object(row));
        self.file.write_all(line.as_bytes()).map_err(Error::io("write", &self.path))
    }

    /// The steps and values of the lines that a run which goes on from `step` keeps; none when there is no log.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn rows(path: &Path, step: u64) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        if step > 0 && path.exists() {
            let file = File::open(path).map_err(Error::io("open", path))?;
            for_each_kept(&file, step, |row, values, _| rows.push((row, values))).map_err(Error::io("read", path))?;
        }
        Ok(rows)
    }
}

/// The length of the lines up to `step`.
fn len_up_to(file: &File, step: u64) -> std::io::Result<u64> {
    let mut size_bytes = 0;
    for_each_kept(file, step, |_, _, len| size_bytes += len as u64)?;
    Ok(size_bytes)
}

/// Calls `each` with the step, the other values and the length of the lines up to `step`; the first line that is later,
/// torn or not a row of figures ends them.
fn for_each_kept(file: &File, step: u64, mut each: impl FnMut(u64, Map<String, Value>, usize)) -> std::io::Result<()> {
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        let row: Option<Map<String, Value>> =
            line.ends_with(b"\n").then(|| serde_json::from_slice(&line).ok()).flatten();
        let Some(mut row) = row else { return Ok(()) };
        match row.shift_remove("step").and_then(|value| value.as_u64()) {
            Some(row_step) if row_step <= step => each(row_step, row, line.len()),
            _ => return Ok(()),
        }
    }
}
