//! What a run needs to go on as if never stopped: the trained tensors, the optimizer's moments and the step.
//!
//! Order of records, dropout masks and learning rates follow from the seed and the step, so nothing else is stored.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Tensor, no_grad};

use super::optim::AdamW;
use super::window::Window;
use super::{Error, Result};
use crate::adapter::{self, Settings};
use crate::fsio;
use crate::model::Parameter;
use crate::tensor::{Checkpoint, pytorch_metadata, save};

/// The small part of a checkpoint, `trainer_state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps taken.
    pub global_step: u64,
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    /// Identifies settings and data: a run with another one is not resumed.
    pub fingerprint: String,
    /// The best value so far of the metric that decides, and the step that had it.
    pub best: Option<(f64, u64)>,
    /// The last step that was evaluated; 0 when none was.
    #[serde(default)]
    pub evaluated_step: u64,
    /// Mean loss of the last line of the log.
    #[serde(default)]
    pub loss: Option<f64>,
    /// The loss of the last evaluation.
    #[serde(default)]
    pub eval_loss: Option<f64>,
    /// Evaluations in a row that were no better than the best.
    #[serde(default)]
    pub n_without_gain: u64,
    /// Sums since the last line of the log.
    #[serde(default)]
    pub window: Window,
    /// Tokens trained on, prompts included.
    #[serde(default)]
    pub n_tokens: u64,
    /// Time spent, evaluations included.
    #[serde(default)]
    pub seconds: f64,
}

/// What is trained.
#[derive(Clone, Copy, Debug)]
pub enum Trained<'a> {
    /// Adapter parameters, stored in PEFT layout under this base model's name.
    Adapter { settings: &'a Settings, base_model: &'a str },
    /// All weights.
    All,
}

const PARTIAL_PREFIX: &str = ".partial-checkpoint-";
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
    let is_of_this_run = |found: &State| found.fingerprint == state.fingerprint;
    if dir.is_dir() && fsio::read_json::<State>(&dir.join(STATE_FILE)).is_ok_and(|found| is_of_this_run(&found)) {
        // A step of a run has one set of tensors; what an evaluation added is in the state.
        fsio::write_json(&dir.join(STATE_FILE), state)?;
        return Ok(dir);
    }
    let partial = tempfile::Builder::new()
        .prefix(PARTIAL_PREFIX)
        .tempdir_in(out)
        .map_err(fsio::Error::io("create a folder in", out))?;
    save_trained(partial.path(), trained, parameters)?;
    let moments = optimizer.named_state(parameters);
    save(&partial.path().join(OPTIMIZER_FILE), moments.iter().map(|(name, tensor)| (name.as_str(), *tensor)), None)?;
    fsio::write_json(&partial.path().join(STATE_FILE), state)?;
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(fsio::Error::io("replace", &dir))?;
    }
    publish(partial, &dir)?;
    if let Some(limit) = limit {
        remove_oldest(out, limit, state.best.map(|(_, step)| step))?;
    }
    Ok(dir)
}

/// Gives a finished temporary folder its name, readable by all, so that it is there whole or not at all.
fn publish(partial: tempfile::TempDir, dir: &Path) -> Result<()> {
    set_default_mode(partial.path()).map_err(fsio::Error::io("open up", partial.path()))?;
    std::fs::rename(partial.path(), dir).map_err(fsio::Error::io("rename into", dir))?;
    // What the guard would remove now has another name.
    drop(partial.keep());
    if let Some(parent) = dir.parent() {
        // The rename is only as durable as the folder that holds the name.
        let sync = || std::fs::File::open(parent)?.sync_all();
        sync().map_err(fsio::Error::io("write", parent))?;
    }
    Ok(())
}

#[cfg(unix)]
fn set_default_mode(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn set_default_mode(_dir: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Keeps the newest `limit` checkpoints, the last of which makes room for that of the best step; the newest always stays.
fn remove_oldest(out: &Path, limit: u64, best_step: Option<u64>) -> Result<()> {
    let mut found = list(out)?;
    found.sort_by_key(|&(step, _)| (Some(step) != best_step, std::cmp::Reverse(step)));
    let newest = found.iter().map(|&(step, _)| step).max();
    for (step, dir) in found.into_iter().skip(limit.max(1) as usize) {
        if Some(step) != newest {
            std::fs::remove_dir_all(&dir).map_err(fsio::Error::io("remove", &dir))?;
        }
    }
    Ok(())
}

/// Removes what a process that was killed while it wrote a checkpoint left behind.
///
/// # Errors
/// When a folder cannot be listed or removed.
pub fn remove_partial(out: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(out) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(fsio::Error::io("list", out))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL_PREFIX)) {
            std::fs::remove_dir_all(&path).map_err(fsio::Error::io("remove", &path))?;
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

/// The step of the newest checkpoint in `out`, if there is one.
///
/// # Errors
/// When the folder cannot be listed.
pub fn newest_step(out: &Path) -> Result<Option<u64>> {
    Ok(list(out)?.into_iter().map(|(step, _)| step).max())
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
    let stored = Checkpoint::open_file(&dir.join(OPTIMIZER_FILE))?;
    for (name, tensor) in optimizer.named_state(parameters) {
        tensor.shallow_clone().f_copy_(&stored.tensor_of_shape(&name, &tensor.size())?)?;
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
