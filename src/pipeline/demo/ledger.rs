//! What of a demo is finished: `demo.json`, with each step's result and seconds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::DemoSettings;
use crate::fsio;
use crate::pipeline::Error;

const FILE: &str = "demo.json";

#[derive(Serialize, Deserialize)]
struct Stored {
    settings: DemoSettings,
    steps: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    seconds: f64,
    result: Value,
}

/// The steps that are finished.
pub struct Ledger {
    path: PathBuf,
    stored: Stored,
    /// Steps in the order in which they came, with their seconds.
    pub order: Vec<(String, f64)>,
}

impl Ledger {
    /// Opens the ledger of a folder, or starts one.
    ///
    /// # Errors
    /// [`Error::OtherDemo`] when the folder's demo has other settings.
    pub fn open(out: &Path, settings: &DemoSettings) -> Result<Self, Error> {
        let path = out.join(FILE);
        let stored = if path.exists() {
            let stored: Stored = fsio::read_json(&path)?;
            if stored.settings != *settings {
                return Err(Error::OtherDemo { path: out.to_owned() });
            }
            stored
        } else {
            Stored { settings: settings.clone(), steps: BTreeMap::new() }
        };
        Ok(Self { path, stored, order: Vec::new() })
    }

    /// The result of a step: stored, or of `work`, which is then noted as finished.
    ///
    /// # Errors
    /// Those of `work`, or when the ledger cannot be written.
    pub fn once<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let bad = |path: &Path, error: serde_json::Error| fsio::Error::BadFile {
            path: path.to_owned(),
            message: error.to_string(),
        };
        if let Some(entry) = self.stored.steps.get(name) {
            self.order.push((name.to_owned(), entry.seconds));
            return Ok(serde_json::from_value(entry.result.clone()).map_err(|error| bad(&self.path, error))?);
        }
        let result = self.timed(name, work)?;
        let seconds = self.order.last().map_or(0.0, |(_, seconds)| *seconds);
        let value = serde_json::to_value(&result).map_err(|error| bad(&self.path, error))?;
        self.stored.steps.insert(name.to_owned(), Entry { seconds, result: value });
        fsio::write_json(&self.path, &self.stored)?;
        Ok(result)
    }

    /// Runs a step that is never stored.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn timed<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let started = Instant::now();
        let result = work()?;
        self.order.push((name.to_owned(), started.elapsed().as_secs_f64()));
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_step_is_not_run_again_and_a_failed_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let settings = DemoSettings::default();
        let mut ledger = Ledger::open(dir.path(), &settings).unwrap();
        assert_eq!(ledger.once("a", || Ok(7)).unwrap(), 7);
        assert!(ledger.once::<i32>("b", || Err(Error::FullQuantized)).is_err());

        let mut again = Ledger::open(dir.path(), &settings).unwrap();
        assert_eq!(again.once("a", || Ok(8)).unwrap(), 7);
        assert_eq!(again.once("b", || Ok(9)).unwrap(), 9);
        assert_eq!(again.order.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);

        let other = DemoSettings { seed: 1, ..settings };
        assert!(matches!(Ledger::open(dir.path(), &other), Err(Error::OtherDemo { .. })));
    }
}
