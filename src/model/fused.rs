//! Attention over packed records through libtorch's fused kernels, which never make the matrix of scores: on a GPU flash
//! attention for 16-bit types, the memory-efficient kernel for f32.
//!
//! Those kernels know one mask, the causal one. So a record that branches becomes one sequence for each branch, the trunk
//! before it: the trunk's queries are then computed more than once, and no mask is needed. Sequences of similar length are
//! padded on the right to one length; a causal query never sees padding after it.

use tch::{Device, Kind, Tensor};

use super::Result;
use super::packing::Segment;
use crate::tensor::upload;

/// How a packed row is laid out for the kernels.
#[derive(Debug)]
pub(super) struct Fused {
    batches: Vec<Sequences>,
    /// `[tokens]` i64: each token's row in the batches' rows one after another. `None` when that is the identity.
    unpack: Option<Tensor>,
}

/// Sequences of one length, padding included.
#[derive(Debug)]
struct Sequences {
    /// `[n * len]` i64: the packed row of every token, 0 for padding. `None` when that is the identity.
    gather: Option<Tensor>,
    n: i64,
    len: i64,
}

impl Fused {
    /// The layout of records.
    pub fn new(segments: &[Segment], device: Device) -> Result<Self> {
        let n_tokens: usize = segments.iter().map(Segment::len).sum();
        let mut sequences = sequences(segments);
        sequences.sort_by_key(|rows| std::cmp::Reverse(rows.len()));
        let is_identity = |rows: &[i64]| rows.len() == n_tokens && rows.iter().zip(0..).all(|(&row, idx)| row == idx);
        let place = |rows: &[i64]| -> Result<Option<Tensor>> {
            if is_identity(rows) {
                return Ok(None);
            }
            Ok(Some(upload(rows, device)?))
        };
        let mut unpack = vec![0i64; n_tokens];
        let (mut batches, mut n_rows) = (Vec::new(), 0);
        let mut rest = sequences.as_slice();
        while let Some(first) = rest.first() {
            let len = first.len().max(1);
            let (members, others) = rest.split_at(rest.partition_point(|rows| 4 * rows.len() >= 3 * len).max(1));
            rest = others;
            let mut gather = Vec::with_capacity(members.len() * len);
            for rows in members {
                // A trunk's token is in several sequences and comes out equal of all of them.
                for (&row, at) in rows.iter().zip(n_rows..) {
                    unpack[row as usize] = at;
                }
                n_rows += len as i64;
                gather.extend(rows.iter().copied().chain(std::iter::repeat_n(0, len - rows.len())));
            }
            batches.push(Sequences { gather: place(&gather)?, n: members.len() as i64, len: len as i64 });
        }
        let unpack = if n_rows == n_tokens as i64 { place(&unpack)? } else { Some(upload(&unpack, device)?) };
        Ok(Self { batches, unpack })
    }

    /// As [`super::attention::attend_rotated`].
    pub fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(self.batches.len());
        for batch in &self.batches {
            rows.push(batch.attend(q, k, v)?);
        }
        let rows = if rows.len() == 1 { rows.swap_remove(0) } else { Tensor::f_cat(&rows, 0)? };
        Ok(match &self.unpack {
            Some(unpack) => rows.f_index_select(0, unpack)?,
            None => rows,
        })
    }
}

impl Sequences {
    /// `[n * len, heads * head_dim]`, padded rows included.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (_, heads, head_dim) = q.size3()?;
        let kv_heads = k.size3()?.1;
        let (n, len) = (self.n, self.len);
        let is_narrow = q.f_kind()? != Kind::Float;
        // [n, heads, len, head_dim]
        let lay_out = |x: &Tensor, n_heads: i64| -> Result<Tensor> {
            let x = match &self.gather {
                Some(index) => x.f_index_select(0, index)?,
                None => x.shallow_clone(),
            };
            let x = x.f_reshape([n, len, n_heads, head_dim])?.f_transpose(1, 2)?;
            // The memory-efficient kernel, which f32 takes, does not share keys between heads.
            Ok(match n_heads < heads && !is_narrow {
                true => x.f_repeat_interleave_self_int(heads / kv_heads, 1, None)?,
                false => x,
            })
        };
        let (q, k, v) = (lay_out(q, heads)?, lay_out(k, kv_heads)?, lay_out(v, kv_heads)?);
        let shares_keys = is_narrow && kv_heads < heads;
        let out = Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, true, None, shares_keys)?;
        Ok(out.f_transpose(1, 2)?.f_reshape([n * len, heads * head_dim])?)
    }
}

/// The packed rows of every sequence: of a record, or of its trunk and one branch.
fn sequences(segments: &[Segment]) -> Vec<Vec<i64>> {
    let mut sequences = Vec::new();
    let mut start = 0;
    for segment in segments {
        let trunk = start..start + segment.len_trunk as i64;
        let mut at = trunk.end;
        for &len in &segment.len_branches {
            sequences.push(trunk.clone().chain(at..at + len as i64).collect());
            at += len as i64;
        }
        if segment.len_branches.is_empty() {
            sequences.push(trunk.collect());
        }
        start = at;
    }
    sequences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::attention::attend_rotated;
    use crate::model::packing::Packed;
    use crate::tensor::Rng;

    /// Output and gradients by the matrix of scores, and by the fused kernels, here the CPU's.
    fn check(segments: &[Segment], [heads, kv_heads, head_dim]: [i64; 3]) {
        let n: usize = segments.iter().map(Segment::len).sum();
        let packed = Packed::new(&vec![0; n], segments, 1, Device::Cpu).unwrap();
        let fused = Fused::new(segments, Device::Cpu).unwrap();
        let mut rng = Rng::named(n as u64, "fused");
        let mut draw = |n_heads: i64| rng.normal(&[n as i64, n_heads, head_dim], 1.5).unwrap();
        let leaves = [draw(heads), draw(kv_heads), draw(kv_heads)].map(|x| x.set_requires_grad(true));
        let upstream = rng.normal(&[n as i64, heads * head_dim], 1.0).unwrap();
        let [q, k, v] = &leaves;
        let gradients =
            |out: &Tensor| Tensor::run_backward(&[(out * &upstream).sum(Kind::Float)], &leaves, false, false);
        let expected = attend_rotated(&packed, q, k, v).unwrap();
        let found = fused.attend(q, k, v).unwrap();
        let mut pairs = vec![(expected.detach(), found.detach())];
        pairs.extend(gradients(&expected).into_iter().zip(gradients(&found)));
        for (idx, (expected, found)) in pairs.iter().enumerate() {
            let difference = (expected - found).abs().max().double_value(&[]);
            // f32, sums of some ten values of a size near 1.
            assert!(difference < 2e-5 * (1.0 + expected.abs().max().double_value(&[])), "{idx}: {difference}");
        }
    }

    #[test]
    fn fused_attention_is_that_of_the_scores_with_its_gradients() {
        let plain = |len| Segment::plain(len);
        let branching = |len_trunk, len_branches: &[usize]| Segment { len_trunk, len_branches: len_branches.to_vec() };
        check(&[plain(7)], [4, 2, 8]);
        check(&[plain(3), plain(9), plain(2), plain(10), plain(8), plain(3)], [4, 1, 4]);
        check(&[branching(5, &[3, 6])], [2, 2, 4]);
        check(&[branching(1, &[1, 1]), plain(4), branching(9, &[4, 2]), branching(8, &[3, 3])], [6, 2, 8]);
    }
}
