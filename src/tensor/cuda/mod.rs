//! CUDA at run time: NVIDIA's driver, libtorch's CUDA parts and the compiler of kernels are opened as libraries when a GPU
//! is asked for or there, and every one that is missing is an error that says so.
//!
//! The program links none of them. `libtorch_cuda.so` has to be open before anything asks libtorch about devices: a first
//! question without it leaves libtorch without CUDA for good.

mod driver;
mod nvrtc;

pub use driver::{Argument, Driver, Function, Gpu, HostFunctions, Launch};
pub use nvrtc::{Compiled, Nvrtc};

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::Device;

use crate::diag::Diagnostic;

/// CUDA 13, which libtorch 2.11's wheels are built with, in the driver's way of counting.
const MIN_DRIVER: i32 = 13_000;

/// A GPU that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no NVIDIA driver: `{}` does not load ({reason})", library.display())]
    NoDriver { library: PathBuf, reason: String },
    #[error("NVIDIA's driver supports CUDA {}.{}, libtorch needs {}.{}", found / 1000, found % 1000 / 10, MIN_DRIVER / 1000, MIN_DRIVER % 1000 / 10)]
    OldDriver { found: i32 },
    #[error("NVIDIA's driver sees no GPU")]
    NoGpu,
    #[error("there is no GPU {index}, the driver sees {count}")]
    NoSuchGpu { index: usize, count: usize },
    #[error("NVIDIA's driver failed in {call}: {fault}")]
    Driver { call: &'static str, fault: String },
    #[error("libtorch has no CUDA parts: `{}` does not load ({reason})", library.display())]
    NoParts { library: PathBuf, reason: String },
    #[error("libtorch's CUDA parts are of another version: `{}` does not load ({reason})", library.display())]
    OtherVersion { library: PathBuf, reason: String },
    #[error("libtorch sees no GPU, though the driver sees {count}")]
    NotSeen { count: usize },
    #[error("the compiler of CUDA kernels is missing: `libnvrtc.so` of CUDA 13 is in none of {}", listed(folders))]
    NoCompiler { folders: Vec<PathBuf> },
    #[error("CUDA kernels do not compile for {arch}: {log}")]
    Compile { arch: String, log: String },
}

fn listed(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| format!("`{}`", folder.display())).collect::<Vec<_>>().join(", ")
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoDriver { .. } => {
                "`nvidia-smi` must list a GPU; in a container, pass the GPUs on (`docker run --gpus all`). Without one: --device cpu"
            }
            Self::OldDriver { .. } => "update NVIDIA's driver to 580 or later, or use --device cpu",
            Self::NoGpu => "is CUDA_VISIBLE_DEVICES set? `nvidia-smi` must list a GPU; without one: --device cpu",
            Self::NoSuchGpu { .. } => {
                "GPUs are counted from 0, and CUDA_VISIBLE_DEVICES hides some; --device cuda is GPU 0"
            }
            Self::NoParts { .. } | Self::NoCompiler { .. } => {
                "scripts/setup.sh --cuda installs them (2.8 GB); without them: --device cpu"
            }
            Self::OtherVersion { .. } => {
                "remove .libtorch and run scripts/setup.sh --cuda, or set LIBTORCH to one whole libtorch"
            }
            Self::Driver { .. } | Self::NotSeen { .. } => {
                "does `nvidia-smi` work? The driver may need a restart; else use --device cpu"
            }
            Self::Compile { .. } => "remove the folder `cuda` of the cache (~/.cache/axismapper), or use --device cpu",
        };
        Some(hint.into())
    }

    fn is_usage(&self) -> bool {
        matches!(self, Self::NoSuchGpu { .. })
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Where the libraries are looked for.
#[derive(Clone, Debug)]
pub struct Search {
    /// The driver's library: a name for the loader, or a path.
    pub driver: OsString,
    /// The folder that `libtorch_cpu.so` came from. `None` when it is linked in, and the loader has to find the rest.
    pub libtorch: Option<PathBuf>,
}

impl Search {
    /// The system's driver, and the libtorch that this process runs on.
    pub fn system() -> Self {
        Self { driver: "libcuda.so.1".into(), libtorch: loaded_libtorch() }
    }

    /// Opens the driver, and asks for a GPU: the first when no index is given.
    ///
    /// # Errors
    /// When there is no driver, it is too old, or the GPU is not there.
    pub fn driver(&self, index: Option<usize>) -> Result<Driver> {
        let driver = Driver::open(&self.driver)?;
        let found = driver.version()?;
        if found < MIN_DRIVER {
            return Err(Error::OldDriver { found });
        }
        match (driver.count()?, index.unwrap_or(0)) {
            (0, _) => Err(Error::NoGpu),
            (count, index) if index >= count => Err(Error::NoSuchGpu { index, count }),
            _ => Ok(driver),
        }
    }

    /// Opens everything that libtorch needs to compute on a GPU. What was opened stays open.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn open(&self, index: Option<usize>) -> Result<Opened> {
        let driver = self.driver(index)?;
        open_parts(self.libtorch.as_deref())?;
        if !tch::Cuda::is_available() {
            return Err(Error::NotSeen { count: driver.count()? });
        }
        let index = index.unwrap_or(0);
        Ok(Opened { device: Device::Cuda(index), index, driver })
    }

    /// Folders in which the compiler of kernels may be: NVIDIA's wheels beside libtorch's, and libtorch's own.
    pub fn compiler_folders(&self) -> Vec<PathBuf> {
        let Some(libtorch) = &self.libtorch else { return Vec::new() };
        let beside = libtorch.ancestors().nth(2).unwrap_or(libtorch);
        vec![beside.join("nvidia/cu13/lib"), libtorch.clone()]
    }
}

/// A GPU that libtorch can compute on.
#[derive(Debug)]
pub struct Opened {
    pub device: Device,
    pub index: usize,
    pub driver: Driver,
}

/// The folder of the `libtorch_cpu.so` in this process, by its memory map.
fn loaded_libtorch() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let library = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let mut libraries = library.filter(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"));
    libraries.next()?.parent().map(Path::to_owned)
}

/// Opens libtorch's CUDA parts, for all libraries to see, and keeps them open.
fn open_parts(folder: Option<&Path>) -> Result<()> {
    let library: PathBuf = folder.map_or_else(|| "libtorch_cuda.so".into(), |folder| folder.join("libtorch_cuda.so"));
    match driver::open_library(library.as_os_str(), RTLD_NOW | RTLD_GLOBAL) {
        Ok(opened) => {
            keep(opened);
            Ok(())
        }
        Err(reason) if reason.contains("undefined symbol") || reason.contains("version `") => {
            Err(Error::OtherVersion { library, reason })
        }
        Err(reason) => Err(Error::NoParts { library, reason }),
    }
}

/// Leaves a library open until the process ends: what it registered elsewhere points into it.
fn keep(library: Library) {
    std::mem::forget(library);
}
