//! Whether every value of a tensor is a number: what is read from a file is checked once, at memory speed.

use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::{Error, Result, as_bytes};

/// Bytes looked at by one task.
const TASK: usize = 1 << 20;

/// Fails when a CPU tensor of floats holds NaN or infinity; `name` serves the message. Whole numbers always pass.
///
/// # Errors
/// [`Error::NotFinite`], or [`Error::View`] when the tensor is not contiguous CPU memory.
pub fn check_finite(name: &str, tensor: &Tensor) -> Result<()> {
    let bytes = as_bytes(tensor)?;
    // All bits of the exponent are set in infinity and in every NaN, and in no number.
    let is_finite = match tensor.f_kind()? {
        Kind::Float => all::<4>(bytes, |value| u32::from_le_bytes(value) & 0x7f80_0000 != 0x7f80_0000),
        Kind::BFloat16 => all::<2>(bytes, |value| u16::from_le_bytes(value) & 0x7f80 != 0x7f80),
        Kind::Half => all::<2>(bytes, |value| u16::from_le_bytes(value) & 0x7c00 != 0x7c00),
        Kind::Double => all::<8>(bytes, |value| f64::from_le_bytes(value).is_finite()),
        _ => true,
    };
    if is_finite { Ok(()) } else { Err(Error::NotFinite { name: name.to_owned() }) }
}

fn all<const N: usize>(bytes: &[u8], is_number: impl Fn([u8; N]) -> bool + Sync) -> bool {
    bytes.par_chunks(TASK).all(|part| {
        let (values, _) = part.as_chunks::<N>();
        // No early exit: the loop without one is vector code.
        values.iter().fold(true, |all, &value| all & is_number(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_value_anywhere_is_found_and_the_largest_numbers_are_fine() {
        for (kind, largest) in [(Kind::Float, 3.4e38), (Kind::BFloat16, 3.38e38), (Kind::Half, 65504.0)] {
            let fine = (Tensor::ones([700, 900], (Kind::Double, tch::Device::Cpu)) * -largest).to_kind(kind);
            check_finite("x", &fine).unwrap();
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                for place in [0, 399_999, 629_999] {
                    let broken = fine.copy();
                    let _ = broken.view(-1).get(place).fill_(bad);
                    let error = check_finite("x", &broken).unwrap_err().to_string();
                    assert_eq!(error, "tensor `x` holds NaN or infinite values");
                }
            }
        }
        check_finite("x", &Tensor::from_slice(&[255u8, 255])).unwrap();
    }
}
