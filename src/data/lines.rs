//! A JSON Lines file written record by record that appears whole or not at all, so that its records need not be held.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::fsio;

/// Such a file, open for more records. Dropped before [`Lines::finish`], it leaves nothing behind.
pub struct Lines {
    path: PathBuf,
    partial: tempfile::TempPath,
    out: BufWriter<File>,
    n_records: usize,
}

impl Lines {
    /// Opens a file for `path`; its folder is made.
    ///
    /// # Errors
    /// [`fsio::Error`] when that fails.
    pub fn create(path: &Path) -> Result<Self, fsio::Error> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fsio::make_dir(parent)?;
        let (file, partial) = fsio::partial_beside(path).map_err(fsio::Error::io("write", path))?.into_parts();
        Ok(Self { path: path.to_owned(), partial, out: BufWriter::with_capacity(1 << 18, file), n_records: 0 })
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`fsio::Error`] when that fails.
    pub fn push(&mut self, record: &impl Serialize) -> Result<(), fsio::Error> {
        let fail = || fsio::Error::io("write", &self.path);
        serde_json::to_writer(&mut self.out, record).map_err(std::io::Error::from).map_err(fail())?;
        self.out.write_all(b"\n").map_err(fail())?;
        self.n_records += 1;
        Ok(())
    }

    /// Puts the file in its place and returns the number of its records.
    ///
    /// # Errors
    /// [`fsio::Error`] when that fails.
    pub fn finish(mut self) -> Result<usize, fsio::Error> {
        self.out.flush().map_err(fsio::Error::io("write", &self.path))?;
        fsio::publish(self.partial, &self.path)?;
        Ok(self.n_records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_when_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/x.jsonl");
        let mut lines = Lines::create(&path).unwrap();
        lines.push(&1).unwrap();
        assert!(!path.exists());
        lines.push(&"b").unwrap();
        assert_eq!(lines.finish().unwrap(), 2);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n\"b\"\n");
        drop(Lines::create(&dir.path().join("a/y.jsonl")).unwrap());
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
    }
}
