//! Products of the few rows of a decoding step with NF4 weights as they are.
//!
//! Weights that take the same input are multiplied in one go: waking another core costs as much as a small weight.

use tch::{Device, Kind, Tensor};

use super::kernels::{self, Isa, Matrix, rows};
use super::nf4::OnGpu;
use super::{BLOCK, Error, Nf4, Result, Rounding};
use crate::tensor::{as_slice, as_slice_mut};

/// A layer of [`multiply_each`]: `W x + bias + before`.
#[derive(Clone, Copy, Debug)]
pub struct FewRows<'a> {
    pub weight: &'a Nf4,
    /// `[rows]`.
    pub bias: Option<&'a Tensor>,
    /// `[n, rows]`.
    pub before: Option<&'a Tensor>,
}

impl<'a> FewRows<'a> {
    fn matrix(&self, kind: Kind) -> Result<Matrix<'a>> {
        let rounding = self.weight.product_rounding(kind)?;
        Ok(Matrix { source: self.weight.source()?, rounding, rows: self.weight.shape()[0] as usize })
    }
}

impl Nf4 {
    /// Whether [`Nf4::multiply`] can take the weight: rows are whole blocks.
    pub fn can_multiply(&self) -> bool {
        self.shape()[1] % BLOCK as i64 == 0
    }

    /// `W x` without expanding the weight, for the few rows of a decoding step: `x` `[n, columns]` f32 or bf16 gives
    /// `[n, rows]` in its type. The weights are those that [`Nf4::dequantize`] gives in the type of `x`; sums are in f32.
    /// Autograd does not see it.
    ///
    /// # Errors
    /// [`Error::BufferSize`] when `x` has another shape or the rows are not whole blocks, [`Error::OutputType`].
    pub fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(multiply_each(&[FewRows { weight: self, bias: None, before: None }], x)?.swap_remove(0))
    }

    /// How values are rounded that a product in `kind` takes.
    fn product_rounding(&self, kind: Kind) -> Result<Rounding> {
        match (self.rounding(kind), kind) {
            (Rounding::None, Kind::BFloat16) => Ok(Rounding::Bf16),
            (Rounding::F16, Kind::BFloat16) => Ok(Rounding::F16ThenBf16),
            (rounding, Kind::Float | Kind::BFloat16) => Ok(rounding),
            (_, other) => Err(Error::OutputType(other)),
        }
    }
}

/// As [`Nf4::multiply`] for layers with the same input, each with what is added to its product. On the CPU all is added before
/// the one rounding. What is added has the type of `x`.
///
/// # Errors
/// As [`Nf4::multiply`]; [`Error::Rows`] when what is added does not fit.
pub fn multiply_each(layers: &[FewRows<'_>], x: &Tensor) -> Result<Vec<Tensor>> {
    let kind = x.f_kind().map_err(crate::tensor::Error::from)?;
    let (n, found) = x.size2().map(|(n, width)| (n as usize, width as usize))?;
    if let Some(layer) =
        layers.iter().find(|layer| layer.weight.shape()[1] as usize != found || !layer.weight.can_multiply())
    {
        return Err(Error::BufferSize { found, expected: layer.weight.shape()[1] as usize });
    }
    let x = x.f_detach()?.f_contiguous()?;
    let on_gpu: Option<Vec<_>> = layers.iter().map(|layer| Some((layer, layer.weight.gpu.as_ref()?))).collect();
    if let Some(layers) = on_gpu {
        let multiply = |(layer, gpu): (&FewRows<'_>, &OnGpu)| {
            let rounding = layer.weight.product_rounding(kind)?;
            add(gpu.kernels.multiply(&layer.weight.parts(gpu), rounding, &x)?, [layer.bias, layer.before])
        };
        return layers.into_iter().map(multiply).collect();
    }
    let matrices = layers.iter().map(|layer| layer.matrix(kind)).collect::<Result<Vec<_>>>()?;
    let isa = layers.first().map_or(Isa::Portable, |layer| layer.weight.isa);
    let mut sums = vec![0f32; matrices.iter().map(|matrix| matrix.rows).sum::<usize>() * n];
    match (isa, kind) {
        #[cfg(target_arch = "x86_64")]
        (isa, Kind::BFloat16) if isa >= Isa::Avx512Bf16 => {
            kernels::multiply_each_bf16(&matrices, as_slice(&x)?, n, &mut sums)
        }
        _ => kernels::multiply_each(isa, &matrices, as_slice(&x.f_to_kind(Kind::Float)?)?, n, &mut sums),
    }
    let mut rest = sums.as_slice();
    let finished = |(layer, matrix): (&FewRows<'_>, &Matrix<'_>)| {
        let (sums, after) = rest.split_at(matrix.rows * n);
        rest = after;
        finish(layer, sums, n, matrix.rows, kind)
    };
    layers.iter().zip(&matrices).map(finished).collect()
}

/// The result of a layer, `[n, rows]`, of its sums `[rows, n]`.
fn finish(layer: &FewRows<'_>, sums: &[f32], n: usize, rows: usize, kind: Kind) -> Result<Tensor> {
    let shape = [n as i64, rows as i64];
    if layer.bias.is_some_and(|bias| bias.size() != shape[1..]) || layer.before.is_some_and(|x| x.size() != shape) {
        return Err(Error::Rows(shape.to_vec()));
    }
    if kind == Kind::BFloat16 {
        let mut out = Tensor::f_empty(shape, (kind, Device::Cpu))?;
        let bias = layer.bias.map(as_slice).transpose()?;
        let before = layer.before.map(Tensor::f_contiguous).transpose()?;
        let before = before.as_ref().map(as_slice).transpose()?;
        rows::add_and_round(sums, n, bias, before, as_slice_mut(&mut out)?);
        return Ok(out);
    }
    let product = Tensor::f_from_slice(sums)?.f_view([rows as i64, n as i64])?.f_transpose(0, 1)?.f_contiguous()?;
    add(product, [layer.bias, layer.before])
}

fn add(mut product: Tensor, terms: [Option<&Tensor>; 2]) -> Result<Tensor> {
    for term in terms.into_iter().flatten() {
        product = product.f_add(term)?;
    }
    Ok(product)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    #[test]
    fn a_product_is_that_with_the_expanded_weight() {
        let mut rng = Rng::named(14, "multiply");
        for (rows, columns) in [(1, 64), (5, 128), (67, 192), (130, 896)] {
            for n in [1, 2, 3, 4, 5, 9] {
                for kind in [Kind::Float, Kind::BFloat16] {
                    let source = rng.normal(&[rows, columns], 0.05).unwrap().to_kind(kind);
                    let x = rng.normal(&[n, columns], 1.0).unwrap().to_kind(kind);
                    let weight = Nf4::quantize(&source).unwrap();
                    let expanded = weight.dequantize(kind).unwrap().to_kind(Kind::Double);
                    let exact = x.to_kind(Kind::Double).matmul(&expanded.transpose(0, 1));
                    let size = x.to_kind(Kind::Double).abs().matmul(&expanded.abs().transpose(0, 1));
                    for isa in Isa::available() {
                        let found = Nf4::quantize(&source).unwrap().with_isa(isa).multiply(&x).unwrap();
                        assert_eq!((found.size(), found.kind()), (vec![n, rows], kind));
                        // Sums in f32: an error of a few f32 steps of the sum of absolute products; then one rounding.
                        let rounding = if kind == Kind::Float { 0.0 } else { 2f64.powi(-8) };
                        let bound = &size * 1e-6 + exact.abs() * (rounding * 1.001);
                        let excess = ((found.to_kind(Kind::Double) - &exact).abs() - bound).max().double_value(&[]);
                        assert!(excess <= 0.0, "{isa:?} [{rows}, {columns}] x {n} in {kind:?}: {excess} over");
                    }
                }
            }
        }
        let weight = Nf4::quantize(&rng.normal(&[3, 33], 1.0).unwrap()).unwrap();
        assert!(!weight.can_multiply());
        assert!(weight.multiply(&rng.normal(&[1, 33], 1.0).unwrap()).is_err());
    }

    #[test]
    fn layers_with_one_input_are_multiplied_together_and_rounded_once() {
        let mut rng = Rng::named(16, "each");
        // The last rows of a weight are less than a task; the second case is too small for another core.
        for (rows, columns) in [([300, 70, 1], 896), ([5, 3, 2], 64)] {
            for (n, kind) in [(1, Kind::BFloat16), (3, Kind::BFloat16), (6, Kind::BFloat16), (2, Kind::Float)] {
                let mut draw = |shape: &[i64]| rng.normal(shape, 1.0).unwrap().to_kind(kind);
                let x = draw(&[n, columns]);
                let weights = rows.map(|rows| Nf4::quantize(&draw(&[rows, columns])).unwrap());
                let terms = rows.map(|rows| (draw(&[rows]), draw(&[n, rows])));
                let layers: [FewRows<'_>; 3] = std::array::from_fn(|idx| FewRows {
                    weight: &weights[idx],
                    bias: (idx != 1).then_some(&terms[idx].0),
                    before: (idx != 2).then_some(&terms[idx].1),
                });
                let found = multiply_each(&layers, &x).unwrap();
                for ((layer, found), rows) in layers.iter().zip(&found).zip(rows) {
                    let wide = |x: &Tensor| x.to_kind(Kind::Double);
                    let weight = wide(&layer.weight.dequantize(kind).unwrap()).transpose(0, 1);
                    let mut exact = wide(&x).matmul(&weight);
                    let size = wide(&x).abs().matmul(&weight.abs());
                    for term in [layer.bias, layer.before].into_iter().flatten() {
                        exact += wide(term);
                    }
                    assert_eq!((found.size(), found.kind()), (vec![n, rows], kind));
                    // Sums in f32, then one rounding.
                    let rounding = if kind == Kind::Float { 1e-7 } else { 2f64.powi(-8) };
                    let bound = size * 1e-6 + exact.abs() * (rounding * 1.001);
                    let excess = ((wide(found) - &exact).abs() - bound).max().double_value(&[]);
                    assert!(excess <= 0.0, "{rows} x {columns}, {n} in {kind:?}: {excess} over");
                }
                let short = draw(&[n, 4]);
                assert!(multiply_each(&[FewRows { before: Some(&short), ..layers[0] }], &x).is_err());
                assert!(multiply_each(&[layers[0], layers[1]], &short).is_err());
            }
        }
    }
}
