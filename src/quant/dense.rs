//! A bf16 matrix times few rows: the head of a decoding step, which reads the whole matrix for one token.

use tch::{Device, Kind, Tensor};

use super::kernels::{self, Isa};
use super::{Error, Result};
use crate::tensor::{as_slice, as_slice_mut};

/// Whether [`multiply_dense`] is worth calling: a contiguous bf16 matrix on the CPU, and vector instructions for it.
pub fn can_multiply_dense(weight: &Tensor) -> bool {
    Isa::best() >= Isa::Avx512
        && weight.device() == Device::Cpu
        && weight.kind() == Kind::BFloat16
        && weight.is_contiguous()
}

/// `W x` for a bf16 matrix `[rows, columns]` and the few rows of `x` `[n, columns]`, bf16 or f32, giving `[n, rows]` f32: sums
/// are in f32 and not rounded again. Autograd does not see it.
///
/// # Errors
/// [`Error::BufferSize`] when shapes do not fit, or when the matrix is not as [`can_multiply_dense`] asks.
pub fn multiply_dense(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    multiply_with(Isa::best(), weight, x)
}

fn multiply_with(isa: Isa, weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (rows, columns) = weight.size2()?;
    let (n, found) = x.size2()?;
    if found != columns {
        return Err(Error::BufferSize { found: found as usize, expected: columns as usize });
    }
    let x = x.f_detach()?.f_contiguous()?;
    let mut out = Tensor::f_empty([rows, n], (Kind::Float, Device::Cpu))?;
    match (isa, x.f_kind().map_err(crate::tensor::Error::from)?) {
        #[cfg(target_arch = "x86_64")]
        (isa, Kind::BFloat16) if isa >= Isa::Avx512Bf16 => {
            kernels::multiply_dense_bf16(as_slice(weight)?, as_slice(&x)?, n as usize, as_slice_mut(&mut out)?);
        }
        _ => {
            let x = x.f_to_kind(Kind::Float)?;
            kernels::multiply_dense(isa, as_slice(weight)?, as_slice(&x)?, n as usize, as_slice_mut(&mut out)?);
        }
    }
    Ok(out.f_transpose(0, 1)?.f_contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    #[test]
    fn a_dense_product_is_that_of_libtorch() {
        let mut rng = Rng::named(15, "dense");
        for (rows, columns, n) in [(1, 64, 1), (7, 33, 2), (1000, 896, 1), (301, 200, 3)] {
            let weight = rng.normal(&[rows, columns], 0.05).unwrap().to_kind(Kind::BFloat16);
            let x = rng.normal(&[n, columns], 1.0).unwrap().to_kind(Kind::BFloat16);
            let (wide, x_wide) = (weight.to_kind(Kind::Double), x.to_kind(Kind::Double));
            let exact = x_wide.matmul(&wide.transpose(0, 1));
            // Sums in f32: an error of a few f32 steps of the sum of absolute products.
            let bound = x_wide.abs().matmul(&wide.abs().transpose(0, 1)) * 1e-6;
            for isa in Isa::available().filter(|&isa| isa != Isa::Avx2) {
                let found = multiply_with(isa, &weight, &x).unwrap();
                assert_eq!((found.size(), found.kind()), (vec![n, rows], Kind::Float));
                let excess = ((found.to_kind(Kind::Double) - &exact).abs() - &bound).max().double_value(&[]);
                assert!(excess <= 0.0, "{isa:?} [{rows}, {columns}] x {n}: {excess} over");
            }
        }
        let weight = rng.normal(&[3, 4], 1.0).unwrap().to_kind(Kind::BFloat16);
        assert!(multiply_dense(&weight, &rng.normal(&[1, 5], 1.0).unwrap()).is_err());
    }
}
