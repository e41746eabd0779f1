//! Safetensors files and sharded checkpoints: mapped when read, appearing whole when written.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorInfo, View};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::memory::{Mapped, as_bytes};
use super::{Error, Result};
use crate::fsio;

/// The string metadata of a safetensors header.
pub type Metadata = HashMap<String, String>;

/// The header that says a file holds PyTorch's tensors; transformers refuses one without it.
pub fn pytorch_metadata() -> Metadata {
    [("format".to_owned(), "pt".to_owned())].into()
}

/// The tensors of a folder (`model.safetensors`, or shards with an index) or of one file, mapped into memory.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<ShardFile>,
    /// Tensor name to the position of its file.
    names: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct ShardFile {
    path: PathBuf,
    map: Mapped,
    metadata: safetensors::tensor::Metadata,
    /// Where tensor data starts in the file.
    data_start: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a model folder: the index's shards when there is an index, else `model.safetensors`.
    ///
    /// # Errors
    /// When a file is missing, damaged, or lacks a tensor that the index promises.
    pub fn open_dir(dir: &Path) -> Result<Self> {
        let index_path = dir.join("model.safetensors.index.json");
        if !index_path.exists() {
            return Self::open_files(dir, &[dir.join("model.safetensors")]);
        }
        let index: Index = fsio::read_json(&index_path)?;
        let mut shards: Vec<PathBuf> = index.weight_map.values().map(|file| dir.join(file)).collect();
        shards.sort();
        shards.dedup();
        let checkpoint = Self::open_files(dir, &shards)?;
        match index.weight_map.keys().find(|name| !checkpoint.names.contains_key(*name)) {
            Some(name) => Err(Error::Missing { name: name.clone(), path: dir.to_owned() }),
            None => Ok(checkpoint),
        }
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// When the file is missing or damaged.
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::open_files(path, &[path.to_owned()])
    }

    fn open_files(path: &Path, paths: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::with_capacity(paths.len());
        let mut names = BTreeMap::new();
        for (idx, path) in paths.iter().enumerate() {
            let map = Mapped::open(path)?;
            let bad = |error: safetensors::SafeTensorError| Error::BadCheckpoint {
                path: path.clone(),
                message: error.to_string(),
            };
            // Validates the header against the file's length: a cut file is refused here.
            SafeTensors::deserialize(&map).map_err(bad)?;
            let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(bad)?;
            names.extend(metadata.tensors().into_keys().map(|name| (name, idx)));
            files.push(ShardFile { path: path.clone(), map, metadata, data_start: header_len + 8 });
        }
        Ok(Self { path: path.to_owned(), files, names })
    }

    /// Every tensor name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The files read, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// The header's string metadata of the first file.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.files.first()?.metadata.metadata().as_ref()
    }

    /// The file of a tensor and its place there.
    fn find(&self, name: &str) -> Result<(&ShardFile, &TensorInfo)> {
        let missing = || Error::Missing { name: name.to_owned(), path: self.path.clone() };
        let file = &self.files[*self.names.get(name).ok_or_else(missing)?];
        Ok((file, file.metadata.info(name).ok_or_else(missing)?))
    }

    /// Copies a tensor into memory, in the type it is stored in.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Dtype`].
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let (file, info) = self.find(name)?;
        let kind = kind_of(info.dtype)
            .ok_or_else(|| Error::Dtype { name: name.to_owned(), dtype: format!("{:?}", info.dtype) })?;
        let (start, end) = info.data_offsets;
        let place = file.data_start + start..file.data_start + end;
        let tensor = Tensor::f_from_data_size(&file.map[place.clone()], &shape_of(info), kind)?;
        file.map.release(place);
        Ok(tensor)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn shape(&self, name: &str) -> Result<Vec<i64>> {
        Ok(shape_of(self.find(name)?.1))
    }

    /// The type that a tensor is stored in, where libtorch has it.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn kind(&self, name: &str) -> Result<Option<Kind>> {
        Ok(kind_of(self.find(name)?.1.dtype))
    }

    /// The number of elements of a tensor.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn numel(&self, name: &str) -> Result<u64> {
        Ok(self.find(name)?.1.shape.iter().map(|&size| size as u64).product())
    }

    /// Checks a tensor's shape and copies it into memory.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Dtype`] or [`Error::Shape`].
    pub fn tensor_of_shape(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let found = self.shape(name)?;
        match found == shape {
            true => self.tensor(name),
            false => Err(Error::Shape { name: name.to_owned(), found, expected: shape.to_vec() }),
        }
    }
}

fn shape_of(info: &TensorInfo) -> Vec<i64> {
    info.shape.iter().map(|&size| size as i64).collect()
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Int16 => Dtype::I16,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Bool => Dtype::BOOL,
        _ => return None,
    })
}

struct CpuTensor {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for &CpuTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // `save` made the tensor contiguous on the CPU, which is all that `as_bytes` asks for.
        Cow::Borrowed(as_bytes(&self.tensor).unwrap_or_default())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Writes tensors to one safetensors file, atomically. Order and bytes are those of the reference library: by type,
/// then by name, `metadata` in the header (Hugging Face readers want `format: pt`).
///
/// # Errors
/// When a type has no safetensors name or the file cannot be written.
pub fn save<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: Option<Metadata>,
) -> Result<()> {
    let mut views = Vec::new();
    for (name, tensor) in tensors {
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let kind = tensor.f_kind()?;
        let dtype = dtype_of(kind).ok_or_else(|| Error::Dtype { name: name.to_owned(), dtype: format!("{kind:?}") })?;
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        views.push((name, CpuTensor { tensor, dtype, shape }));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fsio::make_dir(parent)?;
    let io_error = |source| Error::Write { path: path.to_owned(), source };
    let (_lock, partial) = fsio::partial_beside(path).map_err(io_error)?.into_parts();
    safetensors::tensor::serialize_to_file(views.iter().map(|(name, view)| (name, view)), metadata, &partial).map_err(
        |error| match error {
            safetensors::SafeTensorError::IoError(source) => io_error(source),
            other => Error::BadCheckpoint { path: path.to_owned(), message: other.to_string() },
        },
    )?;
    fsio::publish(partial, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    #[test]
    fn tensors_come_back_as_they_were_and_a_cut_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let a = Rng::named(1, "a").normal(&[3, 5], 1.0).unwrap();
        let b = a.to_kind(Kind::BFloat16).transpose(0, 1);
        save(&path, [("b", &b), ("a", &a)], None).unwrap();
        let read = Checkpoint::open_dir(dir.path()).unwrap();
        assert_eq!(read.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(read.tensor("a").unwrap(), a);
        assert_eq!(read.tensor_of_shape("b", &[5, 3]).unwrap(), b.contiguous());
        assert!(matches!(read.tensor_of_shape("a", &[5, 3]), Err(Error::Shape { .. })));
        assert!(matches!(read.tensor("c"), Err(Error::Missing { .. })));

        let bytes = std::fs::read(&path).unwrap();
        for keep in [0, 7, 40, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..keep]).unwrap();
            let refused = Checkpoint::open_dir(dir.path());
            assert!(refused.is_err(), "{keep} of {} bytes were accepted", bytes.len());
        }
    }
}
