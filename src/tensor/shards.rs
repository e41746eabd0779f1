//! A checkpoint written tensor by tensor: files of a bounded size and, when there are several, their index.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use tch::Tensor;

use super::{Result, pytorch_metadata, save};
use crate::fsio;

/// The name of a checkpoint in one file.
const SINGLE: &str = "model.safetensors";

/// The index of a checkpoint in several files.
const INDEX: &str = "model.safetensors.index.json";

/// A checkpoint under way. At most one file's tensors are in memory.
#[derive(Debug)]
pub struct Shards<'a> {
    dir: &'a Path,
    max_bytes: u64,
    pending: Vec<(String, Tensor)>,
    pending_bytes: u64,
    /// Finished files under their provisional names, with the names of their tensors.
    files: Vec<(tempfile::TempPath, Vec<String>)>,
    size_bytes: u64,
}

/// A finished checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Files of weights, in order.
    pub files: Vec<PathBuf>,
    pub size_bytes: u64,
    pub n_tensors: usize,
}

impl<'a> Shards<'a> {
    /// Starts a checkpoint of files of at most `max_bytes`, or of one weight, in a folder, which is made.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(dir: &'a Path, max_bytes: u64) -> Result<Self> {
        fsio::make_dir(dir)?;
        // Here and not at each file, because the finished ones wait unlocked for their names.
        fsio::clear_partials(&dir.join(SINGLE));
        Ok(Self { dir, max_bytes, pending: Vec::new(), pending_bytes: 0, files: Vec::new(), size_bytes: 0 })
    }

    /// Adds tensors that belong into one file.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn push(&mut self, tensors: Vec<(String, Tensor)>) -> Result<()> {
        let mut size = 0;
        for (_, tensor) in &tensors {
            size += (tensor.numel() * tensor.f_kind()?.elt_size_in_bytes()) as u64;
        }
        if self.pending_bytes + size > self.max_bytes && !self.pending.is_empty() {
            self.write_pending()?;
        }
        self.pending.extend(tensors);
        self.pending_bytes += size;
        self.size_bytes += size;
        Ok(())
    }

    /// Writes what is left and gives the files their names. A checkpoint that was there before is replaced.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn finish(mut self) -> Result<Written> {
        self.write_pending()?;
        let n_files = self.files.len();
        let n_tensors = self.files.iter().map(|(_, names)| names.len()).sum();
        let mut weight_map = BTreeMap::new();
        let mut files = Vec::with_capacity(n_files);
        for (idx, (partial, names)) in self.files.into_iter().enumerate() {
            let name = match n_files {
                1 => SINGLE.to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", idx + 1),
            };
            fsio::publish(partial, &self.dir.join(&name))?;
            weight_map.extend(names.into_iter().map(|tensor| (tensor, name.clone())));
            files.push(self.dir.join(name));
        }
        let index = self.dir.join(INDEX);
        if n_files > 1 {
            let metadata = json!({"total_size": self.size_bytes});
            fsio::write_json(&index, &json!({"metadata": metadata, "weight_map": weight_map}))?;
        } else if index.exists() {
            // An older index would be read instead of the new file.
            std::fs::remove_file(&index).map_err(fsio::Error::io("remove", &index))?;
        }
        Ok(Written { files, size_bytes: self.size_bytes, n_tensors })
    }

    fn write_pending(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let partial = tempfile::Builder::new()
            .prefix(&fsio::partial_prefix(Path::new(SINGLE)))
            .suffix(".safetensors")
            .tempfile_in(self.dir)
            .map_err(fsio::Error::io("write", self.dir))?
            .into_temp_path();
        let tensors = self.pending.iter().map(|(name, tensor)| (name.as_str(), tensor));
        save(&partial, tensors, Some(pytorch_metadata()))?;
        self.files.push((partial, self.pending.drain(..).map(|(name, _)| name).collect()));
        self.pending_bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Checkpoint, Rng};

    #[test]
    fn files_stay_below_the_limit_and_read_back_as_one_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = Rng::named(1, "shards");
        let tensors: Vec<(String, Tensor)> =
            (0..7).map(|idx| (format!("t{idx}"), rng.normal(&[10 + idx, 4], 1.0).unwrap())).collect();
        let write = |max_bytes: u64| {
            let mut shards = Shards::new(dir.path(), max_bytes).unwrap();
            for (name, tensor) in &tensors {
                shards.push(vec![(name.clone(), tensor.shallow_clone())]).unwrap();
            }
            shards.finish().unwrap()
        };
        for (max_bytes, n_files) in [(500, 4), (1, 7), (1 << 20, 1)] {
            let written = write(max_bytes);
            assert_eq!((written.files.len(), written.n_tensors, written.size_bytes), (n_files, 7, 1456), "{max_bytes}");
            let read = Checkpoint::open_dir(dir.path()).unwrap();
            assert_eq!(read.files().count(), n_files);
            for (name, tensor) in &tensors {
                assert_eq!(&read.tensor(name).unwrap(), tensor);
            }
        }
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".partial")), "{left:?}");
    }
}
