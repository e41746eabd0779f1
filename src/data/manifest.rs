//! What a data set was made of: for each step its settings, the hashes of its inputs and outputs, and its counts.
//!
//! The manifest stands beside the files (`manifest.json` in a folder, `FILE.manifest.json` for one file). It holds no
//! times, so that equal inputs give equal bytes, and it is how an interrupted build knows which steps are done.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Error;
use crate::codes::Release;
use crate::fsio;

/// The record of a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The program and its version.
    pub program: String,
    /// The steps by name, in the order in which they were first run.
    pub steps: Map<String, Value>,
    #[serde(skip)]
    path: PathBuf,
}

/// A step that was run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Every setting in force, seeds included.
    pub settings: Value,
    /// The release of codes, where the step depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// The files that were read.
    pub inputs: Vec<FileId>,
    /// The files that were written.
    pub outputs: Vec<FileId>,
    /// The counts.
    pub report: Value,
}

/// A file at the time when it was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    /// Its name: below the manifest's folder where it stands there, else as it was given.
    pub path: String,
    pub sha256: String,
    pub size_bytes: u64,
}

/// A release of codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseId {
    pub name: String,
    pub n_codes: usize,
    /// Hash of its codes, descriptions and notes.
    pub sha256: String,
}

impl ReleaseId {
    /// The identity of `release`.
    pub fn of(release: &Release) -> Self {
        let list = || {
            let lines =
                release.billable().iter().map(|billable| format!("{}\t{}\n", billable.code, billable.description));
            lines.collect::<String>()
        };
        let text = release.to_table().unwrap_or_else(list);
        Self { name: release.name().to_owned(), n_codes: release.len(), sha256: fsio::sha256_bytes(text.as_bytes()) }
    }
}

/// What a step is run with.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The step's name, as `validate`.
    pub step: &'a str,
    pub settings: Value,
    pub release: Option<ReleaseId>,
    pub inputs: &'a [PathBuf],
}

impl Manifest {
    /// The manifest at `path`, or a new one.
    ///
    /// # Errors
    /// [`Error::File`] when the file there is something else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let new = Self { program: program(), steps: Map::new(), path: path.to_owned() };
        if !path.exists() {
            return Ok(new);
        }
        let found: Self = fsio::read_json(path)?;
        let is_ours = found.program.starts_with(env!("CARGO_PKG_NAME"));
        let message = "is not the manifest of a data set; name another folder".to_owned();
        if is_ours {
            Ok(Self { program: new.program, path: new.path, ..found })
        } else {
            Err(fsio::Error::BadFile { path: path.to_owned(), message }.into())
        }
    }

    /// The manifest of one file.
    ///
    /// # Errors
    /// As [`Manifest::open`].
    pub fn beside(file: &Path) -> Result<Self, Error> {
        let mut name = file.as_os_str().to_owned();
        name.push(".manifest.json");
        Self::open(Path::new(&name))
    }

    /// The manifest of a folder.
    ///
    /// # Errors
    /// As [`Manifest::open`].
    pub fn in_dir(dir: &Path) -> Result<Self, Error> {
        Self::open(&dir.join("manifest.json"))
    }

    /// The report of a step that was run with this plan and whose outputs are as it left them.
    pub fn report_of<T: DeserializeOwned>(&self, plan: &Plan<'_>) -> Option<T> {
        let step: Step = serde_json::from_value(self.steps.get(plan.step)?.clone()).ok()?;
        let inputs = self.ids(plan.inputs).ok()?;
        let is_there = |id: &FileId| self.id(&self.resolved(&id.path)).is_ok_and(|now| now == *id);
        let is_same = step.settings == plan.settings && step.release == plan.release && step.inputs == inputs;
        if is_same && step.outputs.iter().all(is_there) { serde_json::from_value(step.report).ok() } else { None }
    }

    /// Notes a step that has been run, and writes the manifest.
    ///
    /// # Errors
    /// [`Error::File`] when a file cannot be read or the manifest not be written.
    pub fn note(&mut self, plan: &Plan<'_>, outputs: &[PathBuf], report: &impl Serialize) -> Result<(), Error> {
        let bad =
            |error: serde_json::Error| fsio::Error::BadFile { path: self.path.clone(), message: error.to_string() };
        let step = Step {
            settings: plan.settings.clone(),
            release: plan.release.clone(),
            inputs: self.ids(plan.inputs)?,
            outputs: self.ids(outputs)?,
            report: serde_json::to_value(report).map_err(bad)?,
        };
        self.steps.insert(plan.step.to_owned(), serde_json::to_value(step).map_err(bad)?);
        Ok(fsio::write_json(&self.path, self)?)
    }

    fn ids(&self, paths: &[PathBuf]) -> Result<Vec<FileId>, fsio::Error> {
        paths.iter().map(|path| self.id(path)).collect()
    }

    fn id(&self, path: &Path) -> Result<FileId, fsio::Error> {
        let dir = self.path.parent().unwrap_or(Path::new(""));
        let name = path.strip_prefix(dir).unwrap_or(path);
        let size_bytes = std::fs::metadata(path).map_err(fsio::Error::io("read", path))?.len();
        Ok(FileId { path: name.display().to_string(), sha256: fsio::sha256_file(path)?, size_bytes })
    }

    fn resolved(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(name)
    }
}

fn program() -> String {
    format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_done_while_settings_inputs_and_outputs_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::write(&input, "1").unwrap();
        std::fs::write(&output, "2").unwrap();
        let inputs = [input.clone()];
        let plan = |seed: u64| Plan { step: "s", settings: seed.into(), release: None, inputs: &inputs };
        Manifest::in_dir(dir.path()).unwrap().note(&plan(1), std::slice::from_ref(&output), &"report").unwrap();
        let report = |seed: u64| Manifest::in_dir(dir.path()).unwrap().report_of::<String>(&plan(seed));
        assert_eq!(report(1).as_deref(), Some("report"));
        assert_eq!(report(2), None);
        std::fs::write(&output, "3").unwrap();
        assert_eq!(report(1), None);
        std::fs::write(&output, "2").unwrap();
        std::fs::write(&input, "0").unwrap();
        assert_eq!(report(1), None);
        let text = std::fs::read_to_string(dir.path().join("manifest.json")).unwrap();
        assert!(text.contains("\"path\": \"out\"") && text.contains("axismapper "), "{text}");
    }

    #[test]
    fn the_manifest_of_another_program_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("manifest.json"), "{\"name\":\"a web page\"}").unwrap();
        assert!(Manifest::in_dir(dir.path()).is_err());
    }
}
