//! Products of the many rows of a training step with an NF4 weight as it is, and what a layer with an adapter does to them.
//!
//! The type [`Nf4`] has its other work in `nf4.rs`; the loops are in `kernels`.

use tch::{Device, Kind, Tensor};

use super::kernels::{self, Finish, Isa, LowRank, Norm, Over, Product, Results, Stream, Weight};
use super::{Error, Nf4, Result};
use crate::tensor::{Shelf, as_slice, as_slice_mut};

/// What [`Nf4::outputs`] computes. All are bf16 but `bias`.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// `[n, columns]`.
    pub x: &'a Tensor,
    /// `z` `[n, r]` and `B` `[rows, r]`.
    pub low_rank: Option<(&'a Tensor, &'a Tensor)>,
    /// `[rows]` f32.
    pub bias: Option<&'a Tensor>,
    pub change: Option<Change<'a>>,
    pub norm: Option<NormOf<'a>>,
    /// Where [`Outputs::out`] and [`Outputs::scaled`] lie, when not in the heap.
    pub shelves: [Option<&'a Shelf>; 2],
}

impl<'a> Forward<'a> {
    /// `x W^T` alone.
    pub fn plain(x: &'a Tensor) -> Self {
        Self { x, low_rank: None, bias: None, change: None, norm: None, shelves: [None; 2] }
    }
}

/// What a layer with dropout adds to its output. All are bf16 but `factors`.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// `[rows]` f32. With [`Forward::norm`], DoRA's magnitudes `m`, which make the factors `m / norm - 1`.
    pub factors: &'a Tensor,
    /// `[n, columns]`.
    pub mask: &'a Tensor,
    /// `mask x`, `[n, columns]`.
    pub dropped: &'a Tensor,
}

/// The row norms of `W + s B A`, `sqrt(squares + rowsum((W A^T) * twice_b^T))`, computed on the way: the weight is expanded only once
/// for them and the layer's output.
#[derive(Clone, Copy, Debug)]
pub struct NormOf<'a> {
    /// `A`, `[r, columns]` bf16.
    pub lora_a: &'a Tensor,
    /// `2 s B^T`, `[r, rows]` f32.
    pub twice_b: &'a Tensor,
    /// `|W|^2 + |s B A|^2` of each row, `[rows]` f32.
    pub squares: &'a Tensor,
}

/// What [`Nf4::outputs`] gives.
#[derive(Debug)]
pub struct Outputs {
    /// `[n, rows]` bf16.
    pub out: Tensor,
    /// With [`Forward::change`], `p`, `[n, rows]` bf16.
    pub scaled: Option<Tensor>,
    /// With [`Forward::norm`], `[rows]` f32.
    pub norm: Option<Tensor>,
}

/// What [`Nf4::gradients`] computes. All are bf16 but `scale`.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// `[n, rows]`.
    pub dy: &'a Tensor,
    /// `[rows]` f32.
    pub scale: Option<&'a Tensor>,
    /// `z` `[n, r]` and `A` `[r, columns]`.
    pub low_rank: Option<(&'a Tensor, &'a Tensor)>,
    /// `[n, columns]`.
    pub before: Option<&'a Tensor>,
    /// `[n, columns]`.
    pub mask: Option<&'a Tensor>,
}

impl Nf4 {
    /// Whether [`Nf4::outputs`] and [`Nf4::gradients`] can be called: the processor has AVX2, the weight is on the CPU, and rows
    /// are whole blocks.
    pub fn can_multiply_many(&self) -> bool {
        self.can_multiply() && self.device() == Device::Cpu && kernels::can_multiply_many(self.isa)
    }

    /// The products of a layer's forward pass over many rows, from the 4 bits as they are, bf16: with `z` the low-rank
    /// term's inner product, `[n, r]`, and `B` its matrix, `[rows, r]`,
    ///
    /// - without `change`, `x W^T + z B^T + bias`;
    /// - with it, `p = (mask x) W^T + z B^T` as the second result, and first `x W^T + z B^T + factors p + bias`;
    /// - with `norm`, that too, its sums in f32.
    ///
    /// The weight is expanded a piece at a time to the values that [`Nf4::dequantize`] gives; sums are in f32 and rounded
    /// once. `mask x` is what [`Change::dropped`] holds, or where the processor has no AMX and few elements are dropped the
    /// same without that rounding. Autograd does not see it.
    ///
    /// # Errors
    /// [`Error::Factors`] when shapes do not fit or [`Nf4::can_multiply_many`] is false; when a tensor is of another type.
    pub fn outputs(&self, forward: &Forward<'_>) -> Result<Outputs> {
        let Forward { x, low_rank, bias, change, norm, shelves } = *forward;
        let x = contiguous(x)?;
        let [mask, dropped] = [change.map(|change| change.mask), change.map(|change| change.dropped)];
        let (mask, dropped) = (mask.map(contiguous).transpose()?, dropped.map(contiguous).transpose()?);
        let low_rank = low_rank.map(contiguous_pair).transpose()?;
        let n = x.size()[0];
        let stream = |x| -> Result<Stream<'_>> {
            Ok(Stream { x: Some(as_slice(x)?), scale: None, has_low_rank: low_rank.is_some() })
        };
        let mut streams = vec![stream(&x)?];
        if let Some(dropped) = &dropped {
            streams.push(stream(dropped)?);
        }
        let finish = Finish::Outputs {
            bias: bias.map(as_slice).transpose()?,
            change: change.map(|change| as_slice(change.factors)).transpose()?,
            mask: mask.as_ref().map(as_slice).transpose()?,
        };
        let norm = match &norm {
            Some(NormOf { lora_a, twice_b, squares }) => {
                let rank = lora_a.size2()?.0 as usize;
                let (lora_a, twice_b, squares) = (as_slice(lora_a)?, as_slice(twice_b)?, as_slice(squares)?);
                Some(Norm { rank, lora_a, twice_b, squares })
            }
            None => None,
        };
        let product = self.product(Over::Columns, n, &streams, low_rank.as_ref(), finish)?;
        run(self.isa, &Product { norm, ..product }, dropped.is_some(), shelves)
    }

    /// The gradient of a layer's input over many rows, as [`Nf4::outputs`]: with `z` the gradient of the low-rank term's
    /// inner product, `[n, r]`, and `A` its matrix, `[r, columns]`,
    ///
    /// - without a mask, `before + (dy scale) W + z A`;
    /// - with it, `before + dy W + mask ((dy scale) W + z A)`, where without a `scale` there is no second product.
    ///
    /// `dy scale` is rounded to bf16. Where the processor has no AMX, and few elements of the mask are 0 and the others `c`, it
    /// is `dy (1 + c scale)` that is rounded instead, for the elements of the result that are not dropped.
    ///
    /// # Errors
    /// As [`Nf4::outputs`].
    pub fn gradients(&self, backward: &Backward<'_>) -> Result<Tensor> {
        let Backward { dy, scale, low_rank, before, mask } = *backward;
        let dy = contiguous(dy)?;
        let low_rank = low_rank.map(contiguous_pair).transpose()?;
        let (before, mask) = (before.map(contiguous).transpose()?, mask.map(contiguous).transpose()?);
        let (x, scale) = (Some(as_slice(&dy)?), scale.map(as_slice).transpose()?);
        let has_low_rank = low_rank.is_some();
        let streams = match &mask {
            None => vec![Stream { x, scale, has_low_rank }],
            Some(_) => vec![
                Stream { x, scale: None, has_low_rank: false },
                Stream { x: x.filter(|_| scale.is_some()), scale, has_low_rank },
            ],
        };
        let finish = Finish::Gradients {
            before: before.as_ref().map(as_slice).transpose()?,
            mask: mask.as_ref().map(as_slice).transpose()?,
        };
        let product = self.product(Over::Rows, dy.size()[0], &streams, low_rank.as_ref(), finish)?;
        Ok(run(self.isa, &product, false, [None; 2])?.out)
    }

    /// A product of the weight, which is on the CPU and multiplied as it is.
    fn product<'a>(
        &'a self,
        over: Over,
        n: i64,
        streams: &'a [Stream<'a>],
        low_rank: Option<&'a (Tensor, Tensor)>,
        finish: Finish<'a>,
    ) -> Result<Product<'a>> {
        if !self.can_multiply_many() {
            return Err(Error::Factors(self.shape()));
        }
        let [rows, columns] = self.shape().map(|size| size as usize);
        let low_rank = match low_rank {
            Some((inner, matrix)) => {
                Some(LowRank { rank: inner.size2()?.1 as usize, inner: as_slice(inner)?, matrix: as_slice(matrix)? })
            }
            None => None,
        };
        // Values are rounded to bf16 in the end, whatever they are before.
        let rounding = self.rounding(Kind::BFloat16);
        let (weight, n) = (Weight::Nf4(self.source()?, rounding), n as usize);
        Ok(Product { weight, rows, columns, over, n, streams, low_rank, norm: None, finish })
    }
}

/// Computes a product with the instructions `isa`, its results on the shelves that are given.
pub(super) fn run(isa: Isa, product: &Product<'_>, has_scaled: bool, shelves: [Option<&Shelf>; 2]) -> Result<Outputs> {
    let width = product.widths().1 as i64;
    let new = |shelf: Option<&Shelf>| -> Result<Tensor> {
        let (shape, kind) = ([product.n as i64, width], Kind::BFloat16);
        Ok(match shelf {
            Some(shelf) => shelf.place(&shape, kind, Device::Cpu)?,
            None => Tensor::f_empty(shape, (kind, Device::Cpu))?,
        })
    };
    let mut outputs = Outputs {
        out: new(shelves[0])?,
        scaled: if has_scaled { Some(new(shelves[1])?) } else { None },
        norm: match product.norm {
            Some(_) => Some(Tensor::f_empty([width], (Kind::Float, Device::Cpu))?),
            None => None,
        },
    };
    let results = Results {
        out: as_slice_mut(&mut outputs.out)?,
        scaled: outputs.scaled.as_mut().map(as_slice_mut).transpose()?,
        norms: outputs.norm.as_mut().map(as_slice_mut).transpose()?,
    };
    if !kernels::can_multiply_many(isa) || !product.fits(&results) {
        return Err(Error::Factors([product.rows, product.columns].map(|size| size as i64)));
    }
    kernels::multiply_many(isa, product, results);
    Ok(outputs)
}

fn contiguous(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_contiguous()?)
}

fn contiguous_pair((inner, matrix): (&Tensor, &Tensor)) -> Result<(Tensor, Tensor)> {
    Ok((contiguous(inner)?, contiguous(matrix)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    fn double(x: &Tensor) -> Tensor {
        x.to_kind(Kind::Double)
    }

    /// Sums are in f32: an error of a few of its steps of `size`, the sum of what is added up without signs. Then one
    /// rounding to bf16.
    fn check(found: &Tensor, exact: &Tensor, size: &Tensor, what: &str) {
        assert_eq!((found.size(), found.kind()), (exact.size(), Kind::BFloat16), "{what}");
        let bound = size * 2e-6 + exact.abs() * (2f64.powi(-8) * 1.001);
        let excess = ((double(found) - exact).abs() - bound).max().double_value(&[]);
        assert!(excess <= 0.0, "{what}: {excess} over");
    }

    #[test]
    fn products_are_those_with_the_expanded_weight() {
        let mut rng = Rng::named(16, "many");
        // Narrow and odd shapes, one and several chunks of the summed dimension, rows that fill no tile.
        for (rows, columns, n, rank) in
            [(1, 64, 1, 1), (7, 128, 17, 3), (128, 896, 40, 16), (131, 704, 1100, 33), (896, 64, 33, 8)]
        {
            for dtype in [Kind::Float, Kind::BFloat16, Kind::Half] {
                let mut draw = |shape: [i64; 2]| rng.normal(&shape, 1.0).unwrap().to_kind(Kind::BFloat16);
                let source = draw([rows, columns]) * 0.05;
                let weight = Nf4::quantize(&source).unwrap().with_dtype(dtype);
                let w = double(&weight.dequantize(Kind::BFloat16).unwrap());
                let (x, z, before) = (draw([n, columns]), draw([n, rank]), draw([n, columns]));
                let (b, a, dy) = (draw([rows, rank]), draw([rank, columns]), draw([n, rows]));
                let [bias, factors] = [draw([1, rows]), draw([1, rows])].map(|x| x.view([rows]).to_kind(Kind::Float));
                let no_mask = draw([n, columns]);
                // Few elements are dropped, or many, or the mask is none.
                let [few, many] = [0.05, 0.3].map(|p| rng.dropout_mask(&[n, columns], p, Kind::BFloat16).unwrap());
                for isa in Isa::ALL {
                    let weight = Nf4::quantize(&source).unwrap().with_dtype(dtype).with_isa(isa);
                    if !weight.can_multiply_many() {
                        assert!(weight.gradients(&plain(&dy)).is_err());
                        continue;
                    }
                    let what = format!("[{rows}, {columns}] x {n}, rank {rank}, {dtype:?}, {isa:?}");

                    // In f64, of the values and of their sizes.
                    let forward = |of: fn(&Tensor) -> Tensor, x: &Tensor| {
                        of(x).matmul(&of(&w).transpose(0, 1)) + of(&z).matmul(&of(&b).transpose(0, 1))
                    };
                    let size_of = |x: &Tensor| double(x).abs();
                    let (bias, factors) = (&bias, &factors);
                    let expected = |of: fn(&Tensor) -> Tensor| forward(of, &x) + of(bias);
                    let request = Forward { low_rank: Some((&z, &b)), bias: Some(bias), ..Forward::plain(&x) };
                    let Outputs { out: found, scaled: None, norm: None } = weight.outputs(&request).unwrap() else {
                        panic!("{what}: more than was asked for");
                    };
                    check(&found, &expected(double), &expected(size_of), &what);

                    let back = |of: fn(&Tensor) -> Tensor, dy: &Tensor| of(dy).matmul(&of(&w));
                    let low = |of: fn(&Tensor) -> Tensor| of(&z).matmul(&of(&a));
                    let scaled_by = |scale: &Tensor| (dy.to_kind(Kind::Float) * scale).to_kind(Kind::BFloat16);
                    let back_request = Backward { low_rank: Some((&z, &a)), ..plain(&dy) };
                    let check_back = |request: Backward<'_>, expected: &dyn Fn(fn(&Tensor) -> Tensor) -> Tensor| {
                        check(&weight.gradients(&request).unwrap(), &expected(double), &expected(size_of), &what);
                    };
                    check_back(plain(&dy), &|of| back(of, &dy));
                    check_back(Backward { scale: Some(factors), ..back_request }, &|of| {
                        back(of, &scaled_by(factors)) + low(of)
                    });

                    for mask in [&few, &many, &no_mask] {
                        let dropped = mask * &x;
                        let is_dropped = double(mask).eq(0.0);
                        let share = is_dropped.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
                        let kept = double(mask).max().double_value(&[]);
                        let is_sparse = isa != Isa::Amx && !std::ptr::eq(mask, &no_mask) && share <= 1.0 / 7.0;

                        // What is dropped is subtracted, so that sums of both count.
                        let value_of_d = if is_sparse { double(mask) * double(&x) } else { double(&dropped) };
                        let size_of_d = match is_sparse {
                            true => size_of(&x) * (is_dropped.to_kind(Kind::Double) + 1.0) * kept,
                            false => size_of(&dropped),
                        };
                        let low_forward = |of: fn(&Tensor) -> Tensor| of(&z).matmul(&of(&b).transpose(0, 1));
                        let second = value_of_d.matmul(&double(&w).transpose(0, 1)) + low_forward(double);
                        let second_size = size_of_d.matmul(&size_of(&w).transpose(0, 1)) + low_forward(size_of);
                        let change = Change { factors, mask, dropped: &dropped };
                        let found = weight.outputs(&Forward { change: Some(change), ..request }).unwrap();
                        let first = expected(double) + double(factors) * &second;
                        let first_size = expected(size_of) + size_of(factors) * &second_size;
                        check(&found.out, &first, &first_size, &what);
                        check(&found.scaled.unwrap(), &second, &second_size, &what);

                        // The same factors from magnitudes; the norm is that of the formula.
                        let (twice_b, squares) = (
                            (b.to_kind(Kind::Float) * 0.5).transpose(0, 1).contiguous(),
                            (factors * 0.0) + 40.0 * columns as f64,
                        );
                        let cross = double(&w).matmul(&double(&a).transpose(0, 1)) * double(&twice_b).transpose(0, 1);
                        let exact = (double(&squares) + cross.sum_dim_intlist(1i64, false, Kind::Double)).sqrt();
                        let norm = NormOf { lora_a: &a, twice_b: &twice_b, squares: &squares };
                        let magnitudes = ((factors + 1.0) * &exact).to_kind(Kind::Float);
                        let change = Change { factors: &magnitudes, mask, dropped: &dropped };
                        let request = Forward { change: Some(change), norm: Some(norm), ..request };
                        let found = weight.outputs(&request).unwrap();
                        let error = ((double(&found.norm.unwrap()) - &exact) / &exact).abs().max().double_value(&[]);
                        assert!(error < 1e-6, "{what}: norm off by {error}");
                        // A factor is off by two roundings of a gain.
                        let first_size = first_size + (size_of(factors) + 1.0) * &second_size;
                        check(&found.out, &first, &first_size, &what);
                        check(&found.scaled.unwrap(), &second, &second_size, &what);

                        let masked = Backward { before: Some(&before), mask: Some(mask), ..back_request };
                        check_back(masked, &|of| of(&before) + back(of, &dy) + of(mask) * low(of));
                        let masked = Backward { scale: Some(factors), ..masked };
                        if !is_sparse {
                            check_back(masked, &|of| {
                                of(&before) + back(of, &dy) + of(mask) * (back(of, &scaled_by(factors)) + low(of))
                            });
                            continue;
                        }
                        let whole = (double(factors) * kept + 1.0).to_kind(Kind::Float);
                        check_back(masked, &|of| {
                            let products = back(of, &dy).where_self(&is_dropped, &back(of, &scaled_by(&whole)));
                            of(&before) + products + of(mask) * low(of)
                        });
                    }
                    assert!(weight.gradients(&Backward { before: Some(&z), ..plain(&dy) }).is_err());
                    assert!(weight.gradients(&plain(&dy.to_kind(Kind::Float))).is_err());
                }
            }
        }
    }

    fn plain(dy: &Tensor) -> Backward<'_> {
        Backward { dy, scale: None, low_rank: None, before: None, mask: None }
    }

    /// Where few elements are dropped, all of `dy (1 + c scale)` is rounded, not only `dy scale`. That is the error of the layer
    /// without dropout, which rounds `dy g`.
    #[test]
    fn gradients_behind_a_mask_are_as_near_as_those_without() {
        let mut rng = Rng::named(19, "near");
        let mut draw = |shape: [i64; 2], std| rng.normal(&shape, std).unwrap();
        let (source, dy) = (draw([512, 256], 0.05), draw([96, 512], 1.0).to_kind(Kind::BFloat16));
        let scales = [1e-3, 0.02, 0.3].map(|std| draw([1, 512], std).view([512]));
        let mask = rng.dropout_mask(&[96, 256], 0.05, Kind::BFloat16).unwrap();
        for isa in Isa::available().filter(|&isa| isa >= Isa::Avx2) {
            let weight = Nf4::quantize(&source).unwrap().with_dtype(Kind::BFloat16).with_isa(isa);
            let w = double(&weight.dequantize(Kind::BFloat16).unwrap());
            let error = |request: Backward<'_>, exact: Tensor| {
                let error = double(&weight.gradients(&request).unwrap()) - &exact;
                error.norm().double_value(&[]) / exact.norm().double_value(&[])
            };
            for scale in &scales {
                let change = (double(&dy) * double(scale)).matmul(&w);
                let masked = Backward { scale: Some(scale), mask: Some(&mask), ..plain(&dy) };
                let masked = error(masked, double(&dy).matmul(&w) + double(&mask) * &change);
                let gain = scale + 1.0;
                let whole =
                    error(Backward { scale: Some(&gain), ..plain(&dy) }, (double(&dy) * double(&gain)).matmul(&w));
                // The mask's other elements are 1.05, and so is the part of an error that they multiply.
                assert!(masked < 1.1 * whole, "{isa:?}: {masked}, without a mask {whole}");
            }
        }
    }

    #[test]
    fn products_are_the_same_bytes_on_any_number_of_threads() {
        let mut rng = Rng::named(17, "threads");
        let weight = Nf4::quantize(&rng.normal(&[200, 704], 0.05).unwrap()).unwrap();
        let draws = rng.normal(&[130, 704], 1.0).unwrap().to_kind(Kind::BFloat16);
        let mask = rng.dropout_mask(&[130, 704], 0.05, Kind::BFloat16).unwrap();
        let dropped = &draws * &mask;
        let [x, mask, dropped] = [&draws, &mask, &dropped].map(|tensor| as_slice::<half::bf16>(tensor).unwrap());
        let factors: Vec<f32> = (0..200u16).map(|idx| f32::from(idx) * 0.01 - 1.0).collect();
        let able = || Isa::available().filter(|&isa| isa >= Isa::Avx2);
        let overs = || [(Over::Columns, false), (Over::Columns, true), (Over::Rows, false), (Over::Rows, true)];
        for (isa, (over, has_mask)) in able().flat_map(|isa| overs().map(|over| (isa, over))) {
            let mask = has_mask.then_some(mask);
            let (finish, summed) = match over {
                Over::Columns => (Finish::Outputs { bias: None, change: mask.map(|_| &*factors), mask }, 704),
                Over::Rows => (Finish::Gradients { before: None, mask }, 200),
            };
            let second = match over {
                Over::Columns => Stream { x: Some(dropped), scale: None, has_low_rank: false },
                Over::Rows => Stream { x: Some(&x[..130 * 200]), scale: Some(&factors), has_low_rank: false },
            };
            let streams = [Stream { x: Some(&x[..130 * summed]), scale: None, has_low_rank: false }, second];
            let bytes = |n_threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                let streams = &streams[..1 + usize::from(has_mask)];
                let product = weight.product(over, 130, streams, None, finish).unwrap();
                let mut out = vec![half::bf16::ZERO; 130 * product.widths().1];
                pool.install(|| kernels::multiply_many(isa, &product, Results { out: &mut out, ..Results::default() }));
                out.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            };
            let one = bytes(1);
            let what = format!("{isa:?} {over:?}, mask {has_mask}");
            assert!(one.iter().any(|&bits| bits != 0) && one == bytes(2) && one == bytes(3), "{what}");
        }
    }

    #[test]
    fn many_rows_are_left_alone_where_other_instructions_are_asked_for() {
        let weight = Rng::named(18, "isa").normal(&[5, 64], 1.0).unwrap();
        assert!(!Nf4::quantize(&weight).unwrap().with_isa(Isa::Portable).can_multiply_many());
        assert!(!Nf4::quantize(&weight.narrow(1, 0, 33)).unwrap().can_multiply_many());
    }
}
