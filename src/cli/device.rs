//! `--device`: where the model runs.

use tch::Device;

use super::release::CacheArgs;
use crate::diag::{Diagnostic, Failure};
use crate::quant;
use crate::quant::cuda::prepare;
use crate::tensor::cuda::{self, Opened, Search};
use crate::track::Console;

/// What `--device` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The first GPU when there is one that can be used, else the CPU.
    Auto,
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the device `{0}` is not known, expected auto, cpu, cuda or cuda:N")]
    Unknown(String),
    #[error(transparent)]
    Gpu(#[from] cuda::Error),
    #[error(transparent)]
    Kernels(#[from] quant::Error),
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown(_) => Some("use --device cpu, or leave it out".into()),
            Self::Gpu(error) => error.hint(),
            Self::Kernels(error) => error.hint(),
        }
    }

    fn is_usage(&self) -> bool {
        match self {
            Self::Unknown(_) => true,
            Self::Gpu(error) => error.is_usage(),
            Self::Kernels(error) => error.is_usage(),
        }
    }
}

/// Reads the argument.
///
/// # Errors
/// When it names no device.
pub fn parse(text: &str) -> Result<Wanted, Error> {
    match text {
        "auto" => Ok(Wanted::Auto),
        "cpu" => Ok(Wanted::Cpu),
        "cuda" => Ok(Wanted::Cuda(0)),
        other => match other.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(index)) => Ok(Wanted::Cuda(index)),
            _ => Err(Error::Unknown(other.to_owned())),
        },
    }
}

/// Opens the device, a GPU with its kernels compiled.
///
/// # Errors
/// When a GPU was asked for and cannot be used.
pub fn open(wanted: Wanted, console: &Console) -> Result<Device, Error> {
    match wanted {
        Wanted::Cpu => Ok(Device::Cpu),
        Wanted::Cuda(index) => {
            let search = Search::system();
            Ok(with_kernels(&search, search.open(Some(index))?)?.device)
        }
        Wanted::Auto => {
            let search = Search::system();
            let found = search.open(None).map_err(Error::from).and_then(|opened| with_kernels(&search, opened));
            match found {
                Ok(opened) => Ok(opened.device),
                Err(_) if is_without_gpu(&search) => Ok(Device::Cpu),
                Err(error) => {
                    let why = Failure::from(error).render();
                    console.note(&format!("running on the CPU: the GPU cannot be used\n{why}"));
                    Ok(Device::Cpu)
                }
            }
        }
    }
}

/// Reads the argument and opens the device.
///
/// # Errors
/// As [`parse`] and [`open`].
pub fn choose(text: &str, console: &Console) -> Result<Device, Error> {
    open(parse(text)?, console)
}

fn with_kernels(search: &Search, opened: Opened) -> Result<Opened, Error> {
    prepare(&opened, &search.compiler_folders(), CacheArgs::of_environment().dir().as_deref())?;
    Ok(opened)
}

/// Whether nothing suggests that there is a GPU.
fn is_without_gpu(search: &Search) -> bool {
    matches!(search.driver(None), Err(cuda::Error::NoDriver { .. } | cuda::Error::NoGpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_named_by_its_number() {
        let parsed = ["auto", "cpu", "cuda", "cuda:3"].map(|text| parse(text).unwrap());
        assert_eq!(parsed, [Wanted::Auto, Wanted::Cpu, Wanted::Cuda(0), Wanted::Cuda(3)]);
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda0"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
