//! `--device`: where the model runs.

use tch::Device;

use crate::diag::Diagnostic;

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the device `{0}` is not known, expected auto, cpu, cuda or cuda:N")]
    Unknown(String),
    #[error("the device `{0}` was asked for, but this build runs on the CPU only")]
    NoCuda(String),
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some("use --device cpu".into())
    }

    fn is_usage(&self) -> bool {
        true
    }
}

/// The device that an argument names.
///
/// # Errors
/// When it is unknown or cannot be used.
pub fn parse(text: &str) -> Result<Device, Error> {
    match text {
        "auto" | "cpu" => Ok(Device::Cpu),
        cuda if cuda == "cuda" || cuda.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok()) => {
            Err(Error::NoCuda(cuda.to_owned()))
        }
        other => Err(Error::Unknown(other.to_owned())),
    }
}
