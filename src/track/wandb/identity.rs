//! What identifies a run, and what of it outlives the process: `wandb.json` beside the run's checkpoints.

use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::line::since_epoch;
use super::record::EnvironmentRecord;
use super::system;
use crate::fsio::{self, Error};

/// A run as the service knows it.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub run_id: String,
    /// The key's own entity when not known.
    pub entity: Option<String>,
    pub project: String,
    pub display_name: String,
    pub group: Option<String>,
    pub job_type: String,
    pub notes: Option<String>,
    pub tags: Vec<String>,
    pub config: Map<String, Value>,
    pub environment: EnvironmentRecord,
    /// When the run first started; a resumed run keeps it.
    pub started: SystemTime,
}

/// `wandb.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub run_id: String,
    pub project: String,
    pub entity: Option<String>,
    /// Seconds since 1970.
    pub started: f64,
    /// Rows of figures that the service has for sure.
    #[serde(default)]
    pub n_sent: u64,
    /// Folders with lines that were not sent.
    #[serde(default)]
    pub folders: Vec<PathBuf>,
}

impl Kept {
    /// Reads the file of an earlier process; `None` when there is none or it cannot be used.
    pub(super) fn read(path: &Path) -> Option<Self> {
        path.exists().then(|| fsio::read_json(path).ok()).flatten()
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        fsio::write_json(path, self)
    }

    pub(super) fn started(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(self.started).unwrap_or_default()
    }

    pub(super) fn seconds_of(time: SystemTime) -> f64 {
        since_epoch(time).as_secs_f64()
    }
}

impl Identity {
    /// The configuration as the service takes it: each value in an object of its own, and beside them what draws the
    /// charts: all figures against the optimizer step (`m`, in wandb's own numbering), and the machine (`e`).
    pub(super) fn config_text(&self) -> String {
        let mut wrapped: Map<String, Value> =
            self.config.iter().map(|(key, value)| (key.clone(), json!({"value": value}))).collect();
        let mut environments = Map::new();
        environments.insert(self.environment.writer_id.clone(), system::environment_json(&self.environment));
        let own = json!({"value": {
            "t": {},
            "m": [{"1": "train/global_step", "6": [3], "7": []}, {"2": "*", "5": 1, "6": [1], "7": []}],
            "e": environments,
        }});
        wrapped.insert("_wandb".into(), own);
        Value::Object(wrapped).to_string()
    }
}

/// Letters and digits that no other run has: W&B's run IDs have 8 of them.
pub(super) fn random_id(n_chars: usize) -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    // A hasher's keys are random; the counter makes each character another draw.
    let state = RandomState::new();
    (0..n_chars).map(|idx| char::from(ALPHABET[(state.hash_one(idx) % 36) as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_are_plain() {
        let (a, b) = (random_id(8), random_id(8));
        assert_ne!(a, b);
        assert!(a.len() == 8 && a.chars().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase()));
    }
}
