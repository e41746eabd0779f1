//! Products with a bf16 matrix on the CPU: with few rows, as the head of a decoding step, which reads the whole matrix for one
//! token; and with many rows: on processors without bf16 products libtorch's are many times slower than those in f32, and on AMX
//! they are somewhat slower than ours and take memory besides.

use tch::{Device, Kind, Tensor};

use super::kernels::{self, Finish, Isa, Over, Product, Stream, Weight};
use super::{Error, Result, products, rows};
use crate::tensor::{as_slice, as_slice_mut};

/// The most rows of `x` for each of which the matrix is read on its own.
const FEW_ROWS: i64 = 4;

/// Whether [`multiply_dense`] is worth calling: a contiguous bf16 matrix on the CPU, and vector instructions for it.
pub fn can_multiply_dense(weight: &Tensor) -> bool {
    Isa::best() >= Isa::Avx2
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

/// `x W^T + bias` for a matrix `[rows, columns]` and `x` `[n, columns]`, giving `[n, rows]`: as libtorch's, but by loops of our own where
/// the processor has AMX, or AVX2 and no bf16 products, and the tensors are as [`rows::can_pass`] asks. With AVX-512's bf16
/// products alone libtorch is ahead.
///
/// # Errors
/// When shapes do not fit or memory is short.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !takes(x, weight) || bias.is_some_and(|bias| bias.requires_grad()) {
        return Ok(x.f_linear(weight, bias)?);
    }
    let bias = bias.map(|bias| bias.f_to_kind(Kind::Float)).transpose()?;
    if x.size()[0] <= FEW_ROWS {
        let sums = multiply_dense(weight, x)?;
        let sums = match &bias {
            Some(bias) => sums.f_add(bias)?,
            None => sums,
        };
        return Ok(sums.f_to_kind(Kind::BFloat16)?);
    }
    let finish = Finish::Outputs { bias: bias.as_ref().map(as_slice).transpose()?, change: None, mask: None };
    multiply_many(Isa::best(), weight, x, Over::Columns, finish)
}

/// `before + x W` for a matrix `[rows, columns]` and `x` `[n, rows]`, giving `[n, columns]`, as [`linear`]. `before`, `[n, columns]`,
/// may be overwritten.
///
/// # Errors
/// As [`linear`].
pub fn matmul(x: &Tensor, weight: &Tensor, before: Option<Tensor>) -> Result<Tensor> {
    if takes(x, weight) && before.as_ref().is_none_or(|before| rows::can_pass(&[before])) {
        let before = before.as_ref().map(as_slice).transpose()?;
        return multiply_many(Isa::best(), weight, x, Over::Rows, Finish::Gradients { before, mask: None });
    }
    Ok(match before {
        Some(mut before) => before.f_addmm_(x, weight)?,
        None => x.f_matmul(weight)?,
    })
}

fn takes(x: &Tensor, weight: &Tensor) -> bool {
    let isa = Isa::best();
    isa != Isa::Avx512Bf16 && kernels::can_multiply_many(isa) && x.dim() == 2 && rows::can_pass(&[x, weight])
}

fn multiply_many(isa: Isa, weight: &Tensor, x: &Tensor, over: Over, finish: Finish<'_>) -> Result<Tensor> {
    let ([rows, columns], n) = (weight.size2().map(|(rows, columns)| [rows as usize, columns as usize])?, x.size2()?.0);
    let (weight, n) = (Weight::Bf16(as_slice(weight)?), n as usize);
    let streams = &[Stream { x: Some(as_slice(x)?), scale: None, has_low_rank: false }];
    let product = Product { weight, rows, columns, over, n, streams, low_rank: None, norm: None, finish };
    Ok(products::run(isa, &product, false, [None; 2])?.out)
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
            for isa in Isa::available() {
                let found = multiply_with(isa, &weight, &x).unwrap();
                assert_eq!((found.size(), found.kind()), (vec![n, rows], Kind::Float));
                let excess = ((found.to_kind(Kind::Double) - &exact).abs() - &bound).max().double_value(&[]);
                assert!(excess <= 0.0, "{isa:?} [{rows}, {columns}] x {n}: {excess} over");
            }
        }
        let weight = rng.normal(&[3, 4], 1.0).unwrap().to_kind(Kind::BFloat16);
        assert!(multiply_dense(&weight, &rng.normal(&[1, 5], 1.0).unwrap()).is_err());
    }

    /// A result, made of operands as they are, or of their sizes.
    type Exact<'a> = &'a dyn Fn(&dyn Fn(&Tensor) -> Tensor) -> Tensor;

    #[test]
    fn products_of_many_rows_are_those_of_f64_rounded_once() {
        let mut rng = Rng::named(15, "dense rows");
        // Sizes that fill no tile, more than one chunk of the summed dimension, more than one task.
        for (rows, columns, n) in
            [(1, 1, 1), (7, 33, 2), (70, 896, 40), (1030, 100, 33), (35, 417, 100), (2100, 40, 33)]
        {
            let mut draw = |shape: [i64; 2]| rng.normal(&shape, 1.0).unwrap().to_kind(Kind::BFloat16);
            let (weight, x, dy, bias) = (draw([rows, columns]), draw([n, columns]), draw([n, rows]), draw([1, rows]));
            let wide = |x: &Tensor| x.to_kind(Kind::Double);
            let size = |x: &Tensor| wide(x).abs();
            let check = |found: Tensor, of: Exact<'_>, what: &str| {
                let exact = of(&wide);
                assert_eq!((found.size(), found.kind()), (exact.size(), Kind::BFloat16));
                let bound = of(&size) * 2e-6 + exact.abs() * (2f64.powi(-8) * 1.001);
                let excess = ((wide(&found) - exact).abs() - bound).max().double_value(&[]);
                assert!(excess <= 0.0, "{what} [{rows}, {columns}] x {n}: {excess} over");
            };
            let outputs = |of: &dyn Fn(&Tensor) -> Tensor| of(&x).matmul(&of(&weight).transpose(0, 1)) + of(&bias);
            let gradients = |of: &dyn Fn(&Tensor) -> Tensor| of(&dy).matmul(&of(&weight));
            check(linear(&x, &weight, Some(&bias.view([rows]))).unwrap(), &outputs, "linear");
            check(matmul(&dy, &weight, None).unwrap(), &gradients, "matmul");
            let added = |of: &dyn Fn(&Tensor) -> Tensor| of(&dy).matmul(&of(&weight)) + of(&x);
            check(matmul(&dy, &weight, Some(x.copy())).unwrap(), &added, "matmul, added");
            for isa in Isa::available().filter(|&isa| kernels::can_multiply_many(isa)) {
                let wide_bias = bias.to_kind(Kind::Float);
                let finish = Finish::Outputs { bias: Some(as_slice(&wide_bias).unwrap()), change: None, mask: None };
                let found = multiply_many(isa, &weight, &x, Over::Columns, finish).unwrap();
                check(found, &outputs, &format!("outputs by {isa:?}"));
                let finish = Finish::Gradients { before: None, mask: None };
                let found = multiply_many(isa, &weight, &dy, Over::Rows, finish).unwrap();
                check(found, &gradients, &format!("gradients by {isa:?}"));
                let finish = Finish::Gradients { before: None, mask: None };
                assert!(multiply_many(isa, &weight, &draw_wider(&x), Over::Columns, finish).is_err());
            }
        }
    }

    fn draw_wider(x: &Tensor) -> Tensor {
        Tensor::cat(&[x, &x.narrow(1, 0, 1)], 1)
    }
}
