//! Products of bf16 activations on the CPU with an adapter's thin matrices, and an adapter's gradients.
//!
//! Autograd does not see them. [`can_multiply`] says whether they are there; where they are not, callers use libtorch.

use tch::{Device, Kind, Tensor};

#[cfg(target_arch = "x86_64")]
use super::kernels::thin::{self, Outer, Thin};
use super::{Error, Isa, Result, rows};
use crate::tensor::{as_slice, as_slice_mut};

/// Whether the products here take these tensors: the processor has AVX2, and [`rows::can_pass`].
pub fn can_multiply(tensors: &[&Tensor]) -> bool {
    Isa::best() >= Isa::Avx2 && rows::can_pass(tensors)
}

/// `x A^T`, rounded: `x` is `[n, in]`, `A` `[r, in]`, the result `[n, r]`.
///
/// # Errors
/// [`Error::Rows`] when the tensors are not as [`can_multiply`] asks, or do not fit.
pub fn inner(x: &Tensor, lora_a: &Tensor) -> Result<Tensor> {
    let ([n, summed], [rank, found]) = (shape(x)?, shape(lora_a)?);
    fits(summed == found && can_multiply(&[x, lora_a]), x)?;
    let mut out = Tensor::f_empty([n, rank], (Kind::BFloat16, Device::Cpu))?;
    #[cfg(target_arch = "x86_64")]
    thin::inner(
        Isa::best(),
        as_slice(x)?,
        Thin::Rows(as_slice(lora_a)?),
        n as usize,
        rank as usize,
        as_slice_mut(&mut out)?,
    );
    Ok(out)
}

/// `dy (g B)`, rounded: `dy` is `[n, out]`, `B` `[out, r]`, `g` `[out]` f32 or 1; the result is `[n, r]`. The product `g B` is
/// rounded too.
///
/// # Errors
/// As [`inner`].
pub fn inner_gradient(dy: &Tensor, lora_b: &Tensor, gain: Option<&Tensor>) -> Result<Tensor> {
    let ([n, summed], [found, rank]) = (shape(dy)?, shape(lora_b)?);
    fits(summed == found && can_multiply(&[dy, lora_b]) && has_size(gain, summed), dy)?;
    let mut out = Tensor::f_empty([n, rank], (Kind::BFloat16, Device::Cpu))?;
    #[cfg(target_arch = "x86_64")]
    {
        let matrix = Thin::Columns(as_slice(lora_b)?, gain.map(as_slice).transpose()?);
        thin::inner(Isa::best(), as_slice(dy)?, matrix, n as usize, rank as usize, as_slice_mut(&mut out)?);
    }
    Ok(out)
}

/// `dz^T x` in f32: `dz` is `[n, r]`, `x` `[n, in]`, the result `[r, in]`.
///
/// # Errors
/// As [`inner`].
pub fn gradient_a(inner_gradient: &Tensor, x: &Tensor) -> Result<Tensor> {
    let ([n, rank], [found, width]) = (shape(inner_gradient)?, shape(x)?);
    fits(n == found && can_multiply(&[inner_gradient, x]), x)?;
    let mut out = Tensor::f_empty([rank, width], (Kind::Float, Device::Cpu))?;
    #[cfg(target_arch = "x86_64")]
    thin::outer(Isa::best(), as_slice(inner_gradient)?, as_slice(x)?, n as usize, Outer::Rows, as_slice_mut(&mut out)?);
    Ok(out)
}

/// `s g dy^T z` in f32: `dy` is `[n, out]`, `z` `[n, r]`, `g` `[out]` f32 or 1; the result is `[out, r]`.
///
/// # Errors
/// As [`inner`].
pub fn gradient_b(dy: &Tensor, inner: &Tensor, scaling: f64, gain: Option<&Tensor>) -> Result<Tensor> {
    let ([n, width], [found, rank]) = (shape(dy)?, shape(inner)?);
    fits(n == found && can_multiply(&[dy, inner]) && has_size(gain, width), dy)?;
    let mut out = Tensor::f_empty([width, rank], (Kind::Float, Device::Cpu))?;
    #[cfg(target_arch = "x86_64")]
    {
        let finish = Outer::Columns(scaling as f32, gain.map(as_slice).transpose()?);
        thin::outer(Isa::best(), as_slice(inner)?, as_slice(dy)?, n as usize, finish, as_slice_mut(&mut out)?);
    }
    Ok(out)
}

fn shape(tensor: &Tensor) -> Result<[i64; 2]> {
    let (rows, columns) = tensor.size2()?;
    Ok([rows, columns])
}

fn has_size(gain: Option<&Tensor>, size: i64) -> bool {
    gain.is_none_or(|gain| gain.size() == [size] && gain.is_contiguous())
}

fn fits(is_fit: bool, tensor: &Tensor) -> Result<()> {
    if is_fit { Ok(()) } else { Err(Error::Rows(tensor.size())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    fn double(x: &Tensor) -> Tensor {
        x.to_kind(Kind::Double)
    }

    /// `found` is `exact` but for f32 sums of a `size`, the sum of what is added up without signs, and `rounding`.
    fn check(found: &Tensor, exact: &Tensor, size: &Tensor, rounding: f64, what: &str) {
        assert_eq!(found.size(), exact.size(), "{what}");
        let bound = size * 2e-6 + exact.abs() * rounding;
        let excess = ((double(found) - exact).abs() - bound).max().double_value(&[]);
        assert!(excess <= 0.0, "{what}: {excess} over");
    }

    #[test]
    fn thin_products_are_those_of_the_formula() {
        let mut rng = Rng::named(51, "thin");
        let narrow = |x: Tensor| x.to_kind(Kind::BFloat16);
        // Odd sizes, more and fewer ranks than a register has, more rows and columns than one task takes.
        for (n, width, rank) in [(1, 1, 1), (3, 33, 5), (40, 64, 8), (33, 129, 16), (71, 300, 33), (70, 96, 33)] {
            let what = format!("{n} x {width}, rank {rank}");
            let mut draw = |shape: [i64; 2]| narrow(rng.normal(&shape, 1.0).unwrap());
            let (x, z, a, b) = (draw([n, width]), draw([n, rank]), draw([rank, width]), draw([width, rank]));
            let gain = draw([1, width]).view([width]).to_kind(Kind::Float);
            if !can_multiply(&[&x]) {
                assert!(inner(&x, &a).is_err() && gradient_a(&z, &x).is_err());
                continue;
            }
            const BF16: f64 = 1.001 / 256.0;
            let sizes = |x: &Tensor| double(x).abs();
            let of = |of: &dyn Fn(&Tensor) -> Tensor| of(&x).matmul(&of(&a).transpose(0, 1));
            check(&inner(&x, &a).unwrap(), &of(&double), &of(&sizes), BF16, &what);
            for gain in [None, Some(&gain)] {
                let gained = gain.map_or(b.copy(), |gain| narrow(b.to_kind(Kind::Float) * gain.unsqueeze(1)));
                let of = |of: &dyn Fn(&Tensor) -> Tensor| of(&x).matmul(&of(&gained));
                check(&inner_gradient(&x, &b, gain).unwrap(), &of(&double), &of(&sizes), BF16, &what);
                let of = |of: &dyn Fn(&Tensor) -> Tensor| {
                    let sums = of(&x).transpose(0, 1).matmul(&of(&z)) * 1.75;
                    gain.map_or(sums.copy(), |gain| sums * of(gain).unsqueeze(1))
                };
                let found = gradient_b(&x, &z, 1.75, gain).unwrap();
                assert_eq!(found.kind(), Kind::Float);
                check(&found, &of(&double), &of(&sizes), 0.0, &what);
            }
            let of = |of: &dyn Fn(&Tensor) -> Tensor| of(&z).transpose(0, 1).matmul(&of(&x));
            check(&gradient_a(&z, &x).unwrap(), &of(&double), &of(&sizes), 0.0, &what);
            assert!(inner(&x, &z.narrow(0, 0, 1).to_kind(Kind::Float)).is_err());
            assert!(inner(&x, &draw([rank, width + 1])).is_err() && gradient_a(&draw([n + 1, rank]), &x).is_err());
            assert!(gradient_b(&x, &z, 1.0, Some(&draw([1, width + 1]).view([-1]).to_kind(Kind::Float))).is_err());
        }
    }

    #[test]
    fn nothing_sums_to_zero() {
        let [x, z] = [40, 5].map(|width| Tensor::empty([0, width], (Kind::BFloat16, Device::Cpu)));
        if can_multiply(&[&x]) {
            assert_eq!(gradient_a(&z, &x).unwrap(), Tensor::zeros([5, 40], (Kind::Float, Device::Cpu)));
            assert_eq!(gradient_b(&x, &z, 1.0, None).unwrap(), Tensor::zeros([40, 5], (Kind::Float, Device::Cpu)));
            let [x, a] = [3, 5].map(|rows| Tensor::empty([rows, 0], (Kind::BFloat16, Device::Cpu)));
            assert_eq!(inner(&x, &a).unwrap(), Tensor::zeros([3, 5], (Kind::BFloat16, Device::Cpu)));
        }
    }
}
