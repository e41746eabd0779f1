//! What a run needs to go on as if never stopped: the trained tensors, the optimizer's moments and the step.
//!
//! Order of records, dropout masks and learning rates follow from the seed and the step, so nothing else is stored.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Tensor, no_grad};

use super::optim::AdamW;
use super::{Error, Result};
use crate::adapter::{self, Settings};
use crate::fsio;
use crate::model::Parameter;
use crate::tensor::{Checkpoint, pytorch_metadata, save};

/// The small part of a checkpoint, `trainer_state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps taken.
    pub global_step: u64,
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    /// Identifies settings and data: a run with another one is not resumed.
    pub fingerprint: String,
    /// The lowest evaluation loss so far and the step that had it.
    pub best: Option<(f64, u64)>,
}

/// What is trained.
#[derive(Clone, Copy, Debug)]
pub enum Trained<'a> {
    /// Adapter parameters, stored in PEFT layout under this base model's name.
    Adapter { settings: &'a Settings, base_model: &'a str },
    /// All weights.
    All,
}

const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const ADAPTER_FILE: &str = "adapter_model.safetensors";
const WEIGHTS_FILE: &str = "model.safetensors";

/// Writes the trained tensors into a folder.
///
/// # Errors
/// When a file cannot be written.
pub fn save_trained(dir: &Path, trained: Trained<'_>, parameters: &[Parameter]) -> Result<()> {
    let tensors = parameters.iter().map(|parameter| (parameter.name.clone(), &parameter.tensor));
    match trained {
        Trained::Adapter { settings, base_model } => {
            adapter::save(dir, settings, base_model, tensors).map_err(crate::model::Error::from)?;
        }
        Trained::All => {
            let named: Vec<(String, &Tensor)> = tensors.collect();
            save(
                &dir.join(WEIGHTS_FILE),
                named.iter().map(|(name, tensor)| (name.as_str(), *tensor)),
                Some(pytorch_metadata()),
            )?;
        }
    }
    Ok(())
}

/// Writes `OUT/checkpoint-STEP`, which appears whole or not at all, and removes the oldest beyond `limit`.
///
/// # Errors
/// When a file cannot be written; earlier checkpoints are then untouched.
pub fn write(
    out: &Path,
    trained: Trained<'_>,
    parameters: &[Parameter],
    optimizer: &AdamW,
    state: &State,
    limit: Option<u64>,
) -> Result<PathBuf> {
    fsio::make_dir(out)?;
    let dir = out.join(format!("checkpoint-{}", state.global_step));
    let partial = tempfile::Builder::new()
        .prefix(".partial-checkpoint-")
        .tempdir_in(out)
        .map_err(fsio::Error::io("create a folder in", out))?;
    save_trained(partial.path(), trained, parameters)?;
    let mut moments = Vec::with_capacity(2 * parameters.len());
    for (parameter, (m, v)) in parameters.iter().zip(&optimizer.moments) {
        moments.push((format!("exp_avg.{}", parameter.name), m));
        moments.push((format!("exp_avg_sq.{}", parameter.name), v));
    }
    save(&partial.path().join(OPTIMIZER_FILE), moments.iter().map(|(name, tensor)| (name.as_str(), *tensor)), None)?;
    fsio::write_json(&partial.path().join(STATE_FILE), state)?;
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(fsio::Error::io("replace", &dir))?;
    }
    std::fs::rename(partial.keep(), &dir).map_err(fsio::Error::io("rename into", &dir))?;
    if let Some(limit) = limit {
        remove_oldest(out, limit, state.best.map(|(_, step)| step))?;
    }
    Ok(dir)
}

/// Keeps the newest `limit` checkpoints and the one of the best step.
fn remove_oldest(out: &Path, limit: u64, best_step: Option<u64>) -> Result<()> {
    let mut found = list(out)?;
    found.sort_by_key(|&(step, _)| std::cmp::Reverse(step));
    for (step, dir) in found.into_iter().skip(limit.max(1) as usize) {
        if Some(step) != best_step {
            std::fs::remove_dir_all(&dir).map_err(fsio::Error::io("remove", &dir))?;
        }
    }
    Ok(())
}

/// Steps and folders of the checkpoints in `out`.
fn list(out: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let Ok(entries) = std::fs::read_dir(out) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(fsio::Error::io("list", out))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = name.strip_prefix("checkpoint-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    Ok(found)
}

/// The newest checkpoint in `out`, if there is one.
///
/// # Errors
/// When the folder cannot be listed.
pub fn newest(out: &Path) -> Result<Option<PathBuf>> {
    Ok(list(out)?.into_iter().max_by_key(|&(step, _)| step).map(|(_, dir)| dir))
}

/// Reads a checkpoint into the parameters and the optimizer.
///
/// # Errors
/// When a file is missing or damaged, a tensor does not fit, or the checkpoint is of other settings or data.
pub fn read(
    dir: &Path,
    trained: Trained<'_>,
    parameters: &[Parameter],
    optimizer: &mut AdamW,
    fingerprint: &str,
) -> Result<State> {
    let state: State = fsio::read_json(&dir.join(STATE_FILE))?;
    if state.fingerprint != fingerprint {
        return Err(Error::OtherRun { path: dir.to_owned() });
    }
    read_trained(dir, trained, parameters)?;
    let moments = Checkpoint::open_file(&dir.join(OPTIMIZER_FILE))?;
    for (parameter, (m, v)) in parameters.iter().zip(&mut optimizer.moments) {
        for (prefix, moment) in [("exp_avg", m), ("exp_avg_sq", v)] {
            moment.f_copy_(&moments.tensor_of_shape(&format!("{prefix}.{}", parameter.name), &moment.size())?)?;
        }
    }
    optimizer.step = state.global_step;
    Ok(state)
}

/// Reads the trained tensors of a folder into the parameters.
///
/// # Errors
/// When a file is missing or damaged, or a tensor does not fit.
pub fn read_trained(dir: &Path, trained: Trained<'_>, parameters: &[Parameter]) -> Result<()> {
    let (file, prefix) = match trained {
        Trained::Adapter { .. } => (ADAPTER_FILE, adapter::PREFIX),
        Trained::All => (WEIGHTS_FILE, ""),
    };
    let stored = Checkpoint::open_file(&dir.join(file))?;
    no_grad(|| {
        for parameter in parameters {
            let tensor = stored.tensor_of_shape(&format!("{prefix}{}", parameter.name), &parameter.tensor.size())?;
            parameter.tensor.shallow_clone().f_copy_(&tensor)?;
        }
        Ok(())
    })
}
