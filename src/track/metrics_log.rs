//! `metrics.jsonl`: a JSON object a line, appended and never rewritten, except that a resumed run drops what the run
//! before it logged after the checkpoint.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::fsio::{self, Error};

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
}

/// The length of the lines up to `step`; the first line that is later, torn or not a row of figures ends them.
fn len_up_to(file: &File, step: u64) -> std::io::Result<u64> {
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut size_bytes = 0;
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        let row: Option<Value> = line.ends_with(b"\n").then(|| serde_json::from_slice(&line).ok()).flatten();
        match row.and_then(|row| row.get("step")?.as_u64()) {
            Some(row_step) if row_step <= step => size_bytes += line.len() as u64,
            _ => return Ok(size_bytes),
        }
    }
}
