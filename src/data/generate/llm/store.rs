//! The file of a model's scenarios: each is on the disk as soon as it is there, and the file itself tells what is missing.
//!
//! Scenarios are appended to `NAME.partial` as they come; at the end they stand in `NAME` in the order of their
//! assignments. A record names its assignment, so that files of other settings are recognised and left alone.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::data::Error;
use crate::data::growing::whole_lines;
use crate::data::record::Scenario;
use crate::fsio;

/// Such a file, open for more scenarios.
pub(super) struct Store {
    path: PathBuf,
    partial: PathBuf,
    out: File,
    done: BTreeMap<usize, Scenario>,
}

impl Store {
    /// Opens the file for `path`. `number_of` gives the number of a record's assignment when the record is one of
    /// this run's settings.
    ///
    /// # Errors
    /// [`Error::OtherRecords`] when a record is not; [`Error::File`].
    pub(super) fn open(path: &Path, number_of: impl Fn(&Scenario) -> Option<usize>) -> Result<Self, Error> {
        let partial = partial_of(path);
        let mut done = BTreeMap::new();
        if let Some(parent) = path.parent() {
            fsio::make_dir(parent)?;
        }
        let mut out = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(fsio::Error::io("open", &partial))?;
        // A line without its end was cut off by a crash.
        let (_, len_bytes) = whole_lines(&partial)?;
        out.set_len(len_bytes).map_err(fsio::Error::io("write", &partial))?;
        out.seek(SeekFrom::End(0)).map_err(fsio::Error::io("write", &partial))?;
        for file in [path, &partial].into_iter().filter(|file| file.exists()) {
            for (idx, scenario) in fsio::read_jsonl::<Scenario>(file)?.into_iter().enumerate() {
                let number =
                    number_of(&scenario).ok_or_else(|| Error::OtherRecords { path: file.to_owned(), line: idx + 1 })?;
                done.insert(number, scenario);
            }
        }
        Ok(Self { path: path.to_owned(), partial, out, done })
    }

    pub(super) fn has(&self, number: usize) -> bool {
        self.done.contains_key(&number)
    }

    pub(super) fn len(&self) -> usize {
        self.done.len()
    }

    /// Appends a scenario; it is on the disk when this returns.
    pub(super) fn push(&mut self, number: usize, scenario: Scenario) -> Result<(), Error> {
        let fail = || fsio::Error::io("write", &self.partial);
        let mut line = serde_json::to_vec(&scenario).map_err(std::io::Error::from).map_err(fail())?;
        line.push(b'\n');
        self.out.write_all(&line).and_then(|()| self.out.sync_data()).map_err(fail())?;
        self.done.insert(number, scenario);
        Ok(())
    }

    /// Puts all scenarios in their place, in order.
    pub(super) fn finish(self) -> Result<(), Error> {
        fsio::write_jsonl(&self.path, self.done.values())?;
        std::fs::remove_file(&self.partial).map_err(fsio::Error::io("remove", &self.partial))?;
        Ok(())
    }
}

/// Removes what an earlier run left for `path`.
///
/// # Errors
/// [`Error::File`].
pub(super) fn discard(path: &Path) -> Result<(), Error> {
    for file in [path.to_owned(), partial_of(path)] {
        if file.exists() {
            std::fs::remove_file(&file).map_err(fsio::Error::io("remove", &file))?;
        }
    }
    Ok(())
}

pub(super) fn partial_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}
