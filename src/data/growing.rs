//! A JSON Lines file that grows record by record and survives an interruption.
//!
//! Until it is finished it stands beside its place as `NAME.partial`, with the settings that it is made with; the same
//! settings go on where it stopped, others start anew.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::fsio;

/// Records between two syncs to the disk.
const SYNC_EVERY: usize = 1000;

/// Such a file, open for more records.
pub struct Growing {
    path: PathBuf,
    partial: PathBuf,
    settings: PathBuf,
    out: BufWriter<File>,
    n_records: usize,
}

impl Growing {
    /// Opens the file for `path`: what was written with equal `settings` stays, but for a torn last line.
    ///
    /// # Errors
    /// [`fsio::Error`] when a file cannot be read or written.
    pub fn open(path: &Path, settings: &impl Serialize) -> Result<Self, fsio::Error> {
        let sibling = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (partial, settings_path) = (sibling(".partial"), sibling(".partial.settings.json"));
        let bad =
            |error: serde_json::Error| fsio::Error::BadFile { path: settings_path.clone(), message: error.to_string() };
        let wanted = serde_json::to_value(settings).map_err(bad)?;
        let is_same = partial.exists() && fsio::read_json::<Value>(&settings_path).is_ok_and(|found| found == wanted);
        if !is_same {
            fsio::write_json(&settings_path, &wanted)?;
            fsio::write_atomic(&partial, |_| Ok(()))?;
        }
        let (n_records, len_bytes) = whole_lines(&partial)?;
        let mut file = OpenOptions::new().write(true).open(&partial).map_err(fsio::Error::io("open", &partial))?;
        file.set_len(len_bytes).map_err(fsio::Error::io("write", &partial))?;
        file.seek(SeekFrom::End(0)).map_err(fsio::Error::io("write", &partial))?;
        Ok(Self {
            path: path.to_owned(),
            partial,
            settings: settings_path,
            out: BufWriter::with_capacity(1 << 20, file),
            n_records,
        })
    }

    /// Records in the file.
    pub fn n_records(&self) -> usize {
        self.n_records
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`fsio::Error`] when that fails.
    pub fn push(&mut self, record: &impl Serialize) -> Result<(), fsio::Error> {
        let fail = || fsio::Error::io("write", &self.partial);
        serde_json::to_writer(&mut self.out, record).map_err(std::io::Error::from).map_err(fail())?;
        self.out.write_all(b"\n").map_err(fail())?;
        self.n_records += 1;
        if self.n_records.is_multiple_of(SYNC_EVERY) { self.sync() } else { Ok(()) }
    }

    /// Brings what was appended to the disk.
    ///
    /// # Errors
    /// [`fsio::Error`] when that fails.
    pub fn sync(&mut self) -> Result<(), fsio::Error> {
        let written = self.out.flush().and_then(|()| self.out.get_ref().sync_data());
        written.map_err(fsio::Error::io("write", &self.partial))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`fsio::Error`] when that fails.
    pub fn finish(mut self) -> Result<(), fsio::Error> {
        self.sync()?;
        std::fs::rename(&self.partial, &self.path).map_err(fsio::Error::io("write", &self.path))?;
        std::fs::remove_file(&self.settings).map_err(fsio::Error::io("remove", &self.settings))
    }
}

/// The number of lines that end in a newline, and their bytes.
pub(super) fn whole_lines(path: &Path) -> Result<(usize, u64), fsio::Error> {
    let fail = || fsio::Error::io("read", path);
    let mut reader = BufReader::new(File::open(path).map_err(fail())?);
    let (mut n_lines, mut len_bytes, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        let n_read = reader.read_until(b'\n', &mut line).map_err(fail())?;
        if !line.ends_with(b"\n") {
            return Ok((n_lines, len_bytes));
        }
        n_lines += 1;
        len_bytes += n_read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_file_goes_on_after_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw.jsonl");
        let mut growing = Growing::open(&path, &"a").unwrap();
        (0..3).for_each(|n| growing.push(&n).unwrap());
        growing.out.write_all(b"{\"torn").unwrap();
        drop(growing);
        assert!(!path.exists());
        let mut growing = Growing::open(&path, &"a").unwrap();
        assert_eq!(growing.n_records(), 3);
        growing.push(&3).unwrap();
        growing.finish().unwrap();
        assert_eq!(fsio::read_jsonl::<i32>(&path).unwrap(), [0, 1, 2, 3]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_settings_start_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw.jsonl");
        let mut growing = Growing::open(&path, &"a").unwrap();
        growing.push(&1).unwrap();
        growing.sync().unwrap();
        assert_eq!(Growing::open(&path, &"a").unwrap().n_records(), 1);
        assert_eq!(Growing::open(&path, &"b").unwrap().n_records(), 0);
    }
}
