//! The loops on a GPU: CUDA C sources, compiled by NVRTC when a GPU is first used, and launched on libtorch's tensors.
//!
//! They give what the CPU's loops give: expanded weights, moments in 8 bits and dropout masks bit for bit; products and
//! losses but for the order of sums. A launch returns before its kernel has run.
#![allow(unsafe_code)]

mod launches;

pub use launches::{Adam, Nf4Parts};

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tch::{Device, Kind, Tensor};

use crate::fsio;
use crate::quant::{Error, Result};
use crate::tensor;
use crate::tensor::cuda::{Argument, Compiled, Function, Gpu, HostFunctions, Launch, Nvrtc, Opened};

const SOURCES: [&str; 4] =
    [include_str!("common.cuh"), include_str!("nf4.cu"), include_str!("loss.cu"), include_str!("optimizer.cu")];

/// Products and sums are rounded one by one, as on the CPU; where one rounding for both is meant, the source says `fmaf`.
const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// Every kernel.
const NAMES: [&str; 15] = [
    "nf4_dequantize_f32",
    "nf4_dequantize_bf16",
    "nf4_multiply_f32_1",
    "nf4_multiply_f32_2",
    "nf4_multiply_f32_4",
    "nf4_multiply_f32_8",
    "nf4_multiply_bf16_1",
    "nf4_multiply_bf16_2",
    "nf4_multiply_bf16_4",
    "nf4_multiply_bf16_8",
    "cross_entropy_f32",
    "cross_entropy_bf16",
    "adamw_8bit",
    "dropout_mask_f32",
    "dropout_mask_bf16",
];

/// The kernels, ready to be launched on one device.
#[derive(Debug)]
pub struct Kernels(Backend);

#[derive(Debug)]
enum Backend {
    Gpu { index: usize, gpu: Gpu, functions: Vec<Function> },
    Host(HostFunctions),
}

/// The kernels of each GPU that was prepared. They belong to the process, as the GPU's context does.
static PREPARED: RwLock<Vec<(usize, Arc<Kernels>)>> = RwLock::new(Vec::new());

/// Compiles the kernels for a GPU, or takes them from `cache`, and keeps them for [`of`].
///
/// # Errors
/// When the compiler is missing or fails, or the GPU does not take the result.
pub fn prepare(opened: &Opened, compiler_folders: &[PathBuf], cache: Option<&Path>) -> Result<()> {
    let is_there = |prepared: &[(usize, Arc<Kernels>)]| prepared.iter().any(|(index, _)| *index == opened.index);
    if is_there(&PREPARED.read().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(());
    }
    let gpu = opened.driver.gpu(opened.index).map_err(tensor::Error::from)?;
    let nvrtc = Nvrtc::open(compiler_folders).map_err(tensor::Error::from)?;
    let stored = cache.map(|dir| cache_file(dir, &nvrtc, gpu.capability));
    let held = stored.as_ref().and_then(|path| std::fs::read(path).ok());
    let functions = match held.and_then(|bytes| gpu.load(&bytes, &NAMES).ok()) {
        Some(functions) => functions,
        None => {
            let compiled = compile(&nvrtc, gpu.capability)?;
            let functions = gpu.load(compiled.bytes(), &NAMES).map_err(tensor::Error::from)?;
            if let Some(path) = stored {
                // A cache that cannot be written costs the time of compiling again, nothing else.
                let _ = path.parent().map(fsio::make_dir);
                let _ = fsio::write_atomic(&path, |file| file.write_all(compiled.bytes()));
            }
            functions
        }
    };
    let kernels = Arc::new(Kernels(Backend::Gpu { index: opened.index, gpu, functions }));
    let mut prepared = PREPARED.write().unwrap_or_else(PoisonError::into_inner);
    if !is_there(&prepared) {
        prepared.push((opened.index, kernels));
    }
    Ok(())
}

/// The kernels of a device that was prepared; none for the CPU, whose loops are in Rust.
///
/// # Errors
/// [`Error::NotPrepared`].
pub fn of(device: Device) -> Result<Option<Arc<Kernels>>> {
    let Device::Cuda(wanted) = device else { return Ok(None) };
    let prepared = PREPARED.read().unwrap_or_else(PoisonError::into_inner);
    match prepared.iter().find(|(index, _)| *index == wanted) {
        Some((_, kernels)) => Ok(Some(Arc::clone(kernels))),
        None => Err(Error::NotPrepared(wanted)),
    }
}

/// Compiles all kernels for a GPU of this capability; none has to be there.
///
/// # Errors
/// When NVRTC fails.
pub fn compile(nvrtc: &Nvrtc, capability: (u32, u32)) -> Result<Compiled> {
    Ok(nvrtc.compile(&SOURCES.concat(), capability, &OPTIONS).map_err(tensor::Error::from)?)
}

/// The file of compiled kernels: its name changes with whatever decides what is in it.
fn cache_file(dir: &Path, nvrtc: &Nvrtc, (major, minor): (u32, u32)) -> PathBuf {
    let (version, revision) = nvrtc.version();
    let hash = fsio::sha256_bytes([SOURCES.concat(), OPTIONS.concat()].concat().as_bytes());
    dir.join("cuda").join(format!("{}-sm{major}{minor}-nvrtc{version}.{revision}", &hash[..16]))
}

impl Kernels {
    /// The kernels compiled for the host (`tests/cuda/kernels.cpp`), to be run on CPU tensors: how tests see their
    /// arithmetic, and the arguments they are called with, where there is no GPU. Only one thread may use it.
    ///
    /// # Errors
    /// When the library does not load.
    pub fn on_host(library: &Path) -> Result<Self> {
        Ok(Self(Backend::Host(HostFunctions::open(library).map_err(tensor::Error::from)?)))
    }

    /// The device that the kernels run on.
    pub fn device(&self) -> Device {
        match &self.0 {
            Backend::Gpu { index, .. } => Device::Cuda(*index),
            Backend::Host(_) => Device::Cpu,
        }
    }

    /// The GPU; none on the host.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.0 {
            Backend::Gpu { gpu, .. } => Some(gpu),
            Backend::Host(_) => None,
        }
    }

    /// Zeros in memory of the host that the kernels reach: pinned where they run on a GPU.
    ///
    /// # Errors
    /// When memory is short.
    pub fn paged_zeros(&self, n: usize, kind: Kind) -> Result<Tensor> {
        match &self.0 {
            Backend::Gpu { gpu, .. } => Ok(gpu.pinned_zeros(n, kind).map_err(tensor::Error::from)?),
            Backend::Host(_) => Ok(Tensor::f_zeros([n as i64], (kind, Device::Cpu))?),
        }
    }

    /// The memory of a tensor as an argument, when it is what the kernel expects: on the kernels' device, contiguous, of
    /// this type and so many elements.
    fn argument(&self, tensor: &Tensor, kind: Kind, len: usize) -> Result<Argument> {
        self.argument_on(tensor.device() == self.device(), tensor, kind, len)
    }

    /// As [`Kernels::argument`], for a tensor that may also be in pinned memory of the host.
    fn pageable(&self, tensor: &Tensor, kind: Kind, len: usize) -> Result<Argument> {
        let is_pinned = || match &self.0 {
            Backend::Gpu { gpu, .. } => tensor.device() == Device::Cpu && gpu.is_pinned(tensor.data_ptr()),
            Backend::Host(_) => false,
        };
        self.argument_on(tensor.device() == self.device() || is_pinned(), tensor, kind, len)
    }

    fn argument_on(&self, is_reachable: bool, tensor: &Tensor, kind: Kind, len: usize) -> Result<Argument> {
        let found = tensor.f_kind().map_err(tensor::Error::from)?;
        if !is_reachable || found != kind || !tensor.is_contiguous() {
            let wanted = "an argument of a CUDA kernel";
            return Err(tensor::Error::View { device: tensor.device(), kind: found, wanted }.into());
        }
        if tensor.numel() != len {
            return Err(Error::BufferSize { found: tensor.numel(), expected: len });
        }
        Ok(Argument::Pointer(tensor.data_ptr()))
    }

    /// # Safety
    /// As for [`Gpu::launch`].
    unsafe fn launch(&self, name: &'static str, launch: Launch, arguments: &[Argument]) -> Result<()> {
        if launch.blocks == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for the arguments.
        let outcome = unsafe {
            match &self.0 {
                Backend::Host(functions) => functions.launch(name, launch, arguments),
                Backend::Gpu { gpu, functions, .. } => {
                    let idx = NAMES.iter().position(|known| *known == name).unwrap_or_default();
                    gpu.launch(&functions[idx], launch, arguments)
                }
            }
        };
        Ok(outcome.map_err(tensor::Error::from)?)
    }
}
