//! Attention over packed records of bf16 on the CPU, and its gradients: see the loops in `kernels::packed_attention`.
//!
//! Autograd does not see it. [`super::rows::can_pass`] says whether tensors are such; where they are not, callers use libtorch's
//! operations.

use tch::Tensor;

use super::kernels::packed_attention as kernels;
pub use super::kernels::packed_attention::Segment;
use super::{Error, Result};
use crate::tensor::{as_slice, as_slice_mut};

/// Queries, keys and values of a packed row of `n` tokens.
#[derive(Clone, Copy, Debug)]
pub struct PackedHeads<'a> {
    pub head_dim: i64,
    /// Who sees whom, `n` tokens in all.
    pub segments: &'a [Segment],
    /// `[n, heads * head_dim]`, not yet rotated.
    pub queries: &'a Tensor,
    /// `[n, kv_heads * head_dim]`, not yet rotated.
    pub keys: &'a Tensor,
    /// `[n, kv_heads * head_dim]`.
    pub values: &'a Tensor,
    /// The cosines and sines of the positions, `[n, 1, head_dim / 2]`.
    pub rotation: [&'a Tensor; 2],
}

/// Rotates queries and keys, and attends: `[n, heads * head_dim]`.
///
/// # Errors
/// When the tensors are not as [`super::rows::can_pass`] asks, or do not fit.
pub fn attend_packed(heads: &PackedHeads<'_>) -> Result<Tensor> {
    let rows = heads.as_rows()?;
    let mut out = heads.queries.f_empty_like()?;
    kernels::attend(&rows, as_slice_mut(&mut out)?);
    Ok(out)
}

/// The gradients of queries, keys and values from that of the result of [`attend_packed`].
///
/// # Errors
/// As [`attend_packed`].
pub fn attend_packed_backward(heads: &PackedHeads<'_>, grad: &Tensor) -> Result<[Tensor; 3]> {
    let rows = heads.as_rows()?;
    if grad.size() != heads.queries.size() {
        return Err(Error::Rows(grad.size()));
    }
    let mut grads = [heads.queries.f_empty_like()?, heads.keys.f_empty_like()?, heads.values.f_empty_like()?];
    let [grad_q, grad_k, grad_v] = &mut grads;
    let outs = [as_slice_mut(grad_q)?, as_slice_mut(grad_k)?, as_slice_mut(grad_v)?];
    kernels::attend_backward(&rows, as_slice(grad)?, outs);
    Ok(grads)
}

impl PackedHeads<'_> {
    fn as_rows(&self) -> Result<kernels::Heads<'_>> {
        let Self { head_dim, segments, queries, keys, values, rotation: [cos, sin] } = *self;
        let ((n, width), (n_keys, kv_width)) = (queries.size2()?, keys.size2()?);
        let is_dim = head_dim > 0 && head_dim % 2 == 0 && kv_width > 0 && kv_width % head_dim == 0;
        let is_shape = is_dim && width % kv_width == 0 && n_keys == n && values.size() == keys.size();
        let is_rotation = [cos, sin].iter().all(|x| x.numel() as i64 * 2 == n * head_dim);
        if !is_shape || !is_rotation || segments.iter().map(|segment| segment.len).sum::<usize>() as i64 != n {
            return Err(Error::Rows(queries.size()));
        }
        Ok(kernels::Heads {
            head_dim: head_dim as usize,
            kv_heads: (kv_width / head_dim) as usize,
            per_kv: (width / kv_width) as usize,
            segments,
            queries: as_slice(queries)?,
            keys: as_slice(keys)?,
            values: as_slice(values)?,
            cos: as_slice(cos)?,
            sin: as_slice(sin)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use tch::Kind;

    use super::*;
    use crate::tensor::Rng;

    /// The relative error of a rounding to f32 and to bf16.
    const ROUNDING: f64 = 1.0 / (1 << 24) as f64;
    const NARROWING: f64 = 1.0 / 256.0;

    /// Inputs, and the gradient of the result.
    struct Drawn {
        segments: Vec<Segment>,
        shape: [i64; 3],
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cos: Tensor,
        sin: Tensor,
        grad: Tensor,
    }

    impl Drawn {
        fn new(segments: &[Segment], [heads, kv_heads, dim]: [i64; 3]) -> Self {
            let n = segments.iter().map(|segment| segment.len).sum::<usize>() as i64;
            let mut rng = Rng::named(n as u64, "packed attention");
            let mut draw = |width: i64| rng.normal(&[n, width], 1.5).unwrap();
            let angles = draw(dim / 2).unsqueeze(1) * 3.0;
            let narrow = |x: Tensor| x.to_kind(Kind::BFloat16);
            Self {
                segments: segments.to_vec(),
                shape: [heads, kv_heads, dim],
                queries: narrow(draw(heads * dim)),
                keys: narrow(draw(kv_heads * dim)),
                values: narrow(draw(kv_heads * dim)),
                cos: narrow(angles.cos()),
                sin: narrow(angles.sin()),
                grad: narrow(draw(heads * dim)),
            }
        }

        fn heads(&self) -> PackedHeads<'_> {
            PackedHeads {
                head_dim: self.shape[2],
                segments: &self.segments,
                queries: &self.queries,
                keys: &self.keys,
                values: &self.values,
                rotation: [&self.cos, &self.sin],
            }
        }

        /// `[n, n]`, 0 or minus infinity.
        fn mask(&self) -> Tensor {
            let rows: Vec<_> = Segment::rows(&self.segments).collect();
            let n = self.queries.size()[0] as usize;
            let mut mask = vec![f64::NEG_INFINITY; n * n];
            for (idx, followed) in Segment::followed(&self.segments).enumerate() {
                for query in rows[idx].clone() {
                    let seen =
                        followed.iter().flat_map(|&number| rows[number].clone()).chain(rows[idx].start..query + 1);
                    seen.for_each(|key| mask[query * n + key] = 0.0);
                }
            }
            Tensor::from_slice(&mask).view([n as i64, n as i64])
        }

        /// `[n, heads, dim]` in f64.
        fn split(&self, x: &Tensor) -> Tensor {
            x.to_kind(Kind::Double).view([x.size()[0], -1, self.shape[2]])
        }

        /// Rotates in bf16 as tensor operations do; the result is in f64.
        fn rotated(&self, x: &Tensor) -> Tensor {
            let halves = x.view([x.size()[0], -1, self.shape[2]]).chunk(2, -1);
            let (a, b) = (&halves[0], &halves[1]);
            let (cos, sin) = (&self.cos, &self.sin);
            Tensor::cat(&[a * cos - b * sin, b * cos + a * sin], -1).to_kind(Kind::Double)
        }

        /// The product of a gradient with the transposed rotation, or with its absolute values.
        fn rotated_back(&self, grad: &Tensor, is_size: bool) -> Tensor {
            let halves = grad.chunk(2, -1);
            let (a, b) = (&halves[0], &halves[1]);
            let (cos, sin) = (self.cos.to_kind(Kind::Double), self.sin.to_kind(Kind::Double));
            match is_size {
                true => Tensor::cat(&[a * cos.abs() + b * sin.abs(), b * cos.abs() + a * sin.abs()], -1),
                false => Tensor::cat(&[a * &cos + b * &sin, b * &cos - a * &sin], -1),
            }
        }
    }

    /// Within one rounding to bf16 and an error in f32, `[n, heads, dim]` each.
    fn check(name: &str, found: &Tensor, exact: &Tensor, error: &Tensor) {
        assert_eq!(found.kind(), Kind::BFloat16);
        let found = found.to_kind(Kind::Double).view_as(exact);
        let bound = (exact.abs() + error) * NARROWING + error + 1e-30;
        let excess = ((found - exact).abs() / bound).max().double_value(&[]);
        assert!(excess <= 1.0, "{name}: {excess} times the bound");
    }

    /// The result and the gradients are those of the formula, with errors as large as the roundings of their terms allow.
    fn check_formula(segments: &[Segment], shape: [i64; 3]) {
        let drawn = Drawn::new(segments, shape);
        let [heads, kv_heads, dim] = shape;
        let n = drawn.queries.size()[0];
        let (per_kv, scale) = (heads / kv_heads, 1.0 / (dim as f64).sqrt());
        // [heads, n, dim]
        let by_head = |x: &Tensor| x.transpose(0, 1);
        let repeated = |x: &Tensor| by_head(x).repeat_interleave_self_int(per_kv, 0, None);
        let leaves = [drawn.rotated(&drawn.queries), drawn.rotated(&drawn.keys), drawn.split(&drawn.values)]
            .map(|x| x.set_requires_grad(true));
        let [q, k, v] = [by_head(&leaves[0]), repeated(&leaves[1]), repeated(&leaves[2])];
        let weights = (q.matmul(&k.transpose(1, 2)) * scale + drawn.mask()).softmax(-1, Kind::Double);
        let out = weights.matmul(&v).transpose(0, 1);
        let grad = drawn.split(&drawn.grad);
        let exact = Tensor::run_backward(&[(&out * &grad).sum(Kind::Double)], &leaves, false, false);

        let [q, k, v, weights] = [q, k, v, weights].map(|x| x.detach());
        let [size_q, size_k, size_v, size_grad] = [&q, &k, &v, &by_head(&grad)].map(Tensor::abs);
        // A score's error is that of its sum of `dim` terms; it is a relative one of weights, as are those of the exponential, a
        // few units, and of the sum of all.
        let score = size_q.matmul(&size_k.transpose(1, 2)).max().double_value(&[]) * scale * (dim + 3) as f64;
        let weight = (2.0 * score + (n + 24) as f64) * ROUNDING;
        let sum = |terms: i64| (terms + 2) as f64 * ROUNDING;
        let heads_summed = |x: Tensor| x.view([kv_heads, per_kv, n, dim]).sum_dim_intlist(1i64, false, Kind::Double);

        let error = weights.matmul(&size_v) * (weight + sum(n));
        check("out", &attend_packed(&drawn.heads()).unwrap(), &out.detach(), &error.transpose(0, 1));

        let found = attend_packed_backward(&drawn.heads(), &drawn.grad).unwrap();
        let transposed = |x: &Tensor| x.transpose(1, 2);
        let error = heads_summed(transposed(&weights).matmul(&size_grad)) * (weight + sum(n * per_kv));
        check("values", &found[2], &exact[2], &error.transpose(0, 1));

        // The gradient of a score is `weight (through - mean)`, and `through` a sum of `dim` terms.
        let through = size_grad.matmul(&transposed(&size_v));
        let mean = (&weights * &through).sum_dim_intlist(-1i64, true, Kind::Double);
        let size = &weights * (through + mean) * scale;
        let error = 2.0 * weight + sum(dim) + 2.0 * sum(n);
        let error_q = size.matmul(&size_k) * (error + sum(n + 4));
        let error_k = heads_summed(transposed(&size).matmul(&size_q)) * (error + sum(n * per_kv + 4));
        for (name, idx, error) in [("queries", 0, error_q), ("keys", 1, error_k)] {
            let (exact, error) = (drawn.rotated_back(&exact[idx], false), error.transpose(0, 1));
            check(name, &found[idx], &exact, &drawn.rotated_back(&error, true));
        }
    }

    /// Segments of these lengths and depths.
    fn forest(segments: &[(usize, usize)]) -> Vec<Segment> {
        segments.iter().map(|&(len, depth)| Segment { depth, len }).collect()
    }

    #[test]
    fn attention_and_its_gradients_are_those_of_the_formula() {
        let check = |lens: &[usize], shape| {
            check_formula(&lens.iter().copied().map(Segment::plain).collect::<Vec<_>>(), shape);
        };
        check(&[1], [2, 1, 8]);
        check(&[7], [4, 2, 8]);
        check(&[3, 19, 1, 16, 17], [6, 2, 10]);
        // Longer than two tiles.
        check(&[70], [14, 2, 64]);
        check(&[33, 50], [3, 3, 128]);
    }

    #[test]
    fn segments_see_what_they_follow_and_themselves() {
        let check = |segments: &[(usize, usize)], shape| check_formula(&forest(segments), shape);
        check(&[(5, 0), (3, 1), (6, 1)], [2, 2, 8]);
        check(&[(1, 0), (1, 1), (1, 1), (4, 0), (20, 0), (30, 1), (9, 1)], [6, 2, 64]);
        check(&[(18, 0), (7, 1), (3, 2), (33, 2), (40, 1), (1, 2), (2, 3), (26, 2), (5, 0), (4, 1)], [6, 2, 16]);
        // Nothing to follow, and nothing in what is followed.
        check(&[(5, 1), (4, 3), (0, 0), (3, 1), (2, 0), (0, 1), (6, 2), (0, 0)], [2, 1, 10]);
    }

    #[test]
    fn a_segment_follows_the_last_of_each_smaller_depth() {
        let followed: Vec<Vec<usize>> =
            Segment::followed(&forest(&[(1, 1), (1, 0), (1, 1), (1, 2), (1, 1), (1, 5), (1, 0)])).collect();
        let expected: [&[usize]; 7] = [&[], &[], &[1], &[1, 2], &[1], &[1, 4], &[]];
        assert_eq!(followed, expected);
    }

    #[test]
    fn every_number_of_threads_gives_the_same_bytes() {
        let drawn = Drawn::new(&forest(&[(40, 0), (37, 1), (20, 2), (2, 1), (61, 0)]), [6, 2, 64]);
        let heads = drawn.heads();
        let (rows, grad) = (heads.as_rows().unwrap(), as_slice::<bf16>(&drawn.grad).unwrap());
        let run = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let empty = |like: &[bf16]| vec![bf16::NAN; like.len()];
            let [mut out, mut grad_q] = [(); 2].map(|()| empty(rows.queries));
            let [mut grad_k, mut grad_v] = [(); 2].map(|()| empty(rows.keys));
            pool.install(|| {
                kernels::attend(&rows, &mut out);
                kernels::attend_backward(&rows, grad, [&mut grad_q, &mut grad_k, &mut grad_v]);
            });
            [out, grad_q, grad_k, grad_v].map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
        };
        let alone = run(1);
        assert!(alone.iter().flatten().all(|bits| bf16::from_bits(*bits).is_finite()));
        assert!(run(2) == alone && run(3) == alone);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let drawn = Drawn::new(&forest(&[(4, 0), (2, 1)]), [4, 2, 8]);
        let heads = drawn.heads();
        let short = drawn.queries.narrow(0, 0, 5);
        let narrow = drawn.keys.narrow(1, 0, 8).contiguous();
        for broken in [
            PackedHeads { segments: &[Segment::plain(5)], ..heads },
            PackedHeads { head_dim: 7, ..heads },
            PackedHeads { head_dim: 4, ..heads },
            PackedHeads { queries: &short, ..heads },
            PackedHeads { values: &narrow, ..heads },
            PackedHeads { rotation: [&drawn.cos, &short], ..heads },
        ] {
            assert!(attend_packed(&broken).is_err() && attend_packed_backward(&broken, &drawn.grad).is_err());
        }
        assert!(attend_packed_backward(&heads, &drawn.keys).is_err());
        let none = Drawn::new(&[], [4, 2, 8]);
        assert_eq!(attend_packed(&none.heads()).unwrap().size(), [0, 32]);
        assert_eq!(attend_packed_backward(&none.heads(), &none.grad).unwrap()[1].size(), [0, 16]);
    }
}
