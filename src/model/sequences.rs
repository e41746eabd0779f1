//! Attention over packed records through libtorch's operations, which know sequences and one mask, the causal one.
//!
//! So what records share is laid out once for each of them, and its queries are computed more than once: a sequence is a segment
//! that nothing follows, after all that it follows. Sequences of similar length are padded on the right to one length; a causal
//! query never sees padding after it.
//!
//! On a GPU fused kernels never make the matrix of scores: flash attention for 16-bit types, the memory-efficient kernel for f32. On
//! the CPU that way is slower than scores and softmax in f32.

use tch::{Device, Kind, Tensor};

use super::Result;
use crate::quant::Segment;
use crate::tensor::{pick_rows, upload_index};

/// The most elements of attention scores per head that exist at a time on the CPU where sequences are short enough, so that memory
/// grows with tokens, not their square.
pub const MAX_GROUP_SCORES: i64 = 1 << 20;

/// How a packed row is laid out.
#[derive(Debug)]
pub(super) struct Sequences {
    groups: Vec<Group>,
    /// Where attention goes by the matrix of scores, what is added to them for the longest sequence: `[len, len]` f32, minus infinity
    /// for the keys after a query.
    unseen: Option<Tensor>,
    /// `[tokens]` i64: each token's row in the groups' rows one after another. `None` when that is the identity.
    unpack: Option<Tensor>,
}

/// Sequences of one length, padding included.
#[derive(Debug)]
struct Group {
    /// `[n * len]` i64: the packed row of every token, 0 for padding. `None` when that is the identity.
    gather: Option<Tensor>,
    n: i64,
    len: i64,
}

impl Sequences {
    /// The layout of records.
    pub fn new(segments: &[Segment], device: Device) -> Result<Self> {
        let n_tokens: usize = segments.iter().map(|segment| segment.len).sum();
        let by_scores = device == Device::Cpu;
        let max_scores = if by_scores { MAX_GROUP_SCORES } else { i64::MAX };
        let mut sequences = sequences(segments);
        sequences.sort_by_key(|rows| std::cmp::Reverse(rows.len()));
        let longest = sequences.first().map_or(0, Vec::len).max(1) as i64;
        let all = || Tensor::f_full([longest, longest], f64::NEG_INFINITY, (Kind::Float, device));
        let unseen = if by_scores { Some(all()?.f_triu_(1)?) } else { None };
        let mut unpack = vec![0i64; n_tokens];
        let (mut groups, mut n_rows) = (Vec::new(), 0);
        let mut rest = sequences.as_slice();
        while let Some(first) = rest.first() {
            let len = first.len().max(1);
            let n_alike = rest.partition_point(|rows| 4 * rows.len() >= 3 * len);
            let n = n_alike.min((max_scores / (len * len) as i64) as usize).max(1);
            let (members, others) = rest.split_at(n);
            rest = others;
            let mut gather = Vec::with_capacity(members.len() * len);
            for rows in members {
                // What is shared is in several sequences and comes out equal of all of them.
                for (&row, at) in rows.iter().zip(n_rows..) {
                    unpack[row as usize] = at;
                }
                n_rows += len as i64;
                gather.extend(rows.iter().copied().chain(std::iter::repeat_n(0, len - rows.len())));
            }
            let gather = upload_index(&gather, n_tokens, device)?;
            groups.push(Group { gather, n: members.len() as i64, len: len as i64 });
        }
        Ok(Self { groups, unseen, unpack: upload_index(&unpack, n_rows as usize, device)? })
    }

    /// Attends with rotated queries `[tokens, heads, head_dim]`, keys and values `[tokens, kv_heads, head_dim]`. Gives
    /// `[tokens, heads * head_dim]`.
    pub fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            rows.push(match &self.unseen {
                Some(unseen) => group.attend_by_scores(unseen, [q, k, v])?,
                None => group.attend_fused([q, k, v])?,
            });
        }
        let rows = if rows.len() == 1 { rows.swap_remove(0) } else { Tensor::f_cat(&rows, 0)? };
        Ok(pick_rows(&rows, self.unpack.as_ref())?)
    }
}

impl Group {
    fn gathered(&self, x: &Tensor) -> Result<Tensor> {
        Ok(pick_rows(x, self.gather.as_ref())?)
    }

    /// `[n * len, heads * head_dim]`, padded rows included.
    fn attend_fused(&self, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
        let (_, heads, head_dim) = q.size3()?;
        let kv_heads = k.size3()?.1;
        let (n, len) = (self.n, self.len);
        let is_narrow = q.f_kind()? != Kind::Float;
        // [n, heads, len, head_dim]
        let lay_out = |x: &Tensor, n_heads: i64| -> Result<Tensor> {
            let x = self.gathered(x)?.f_reshape([n, len, n_heads, head_dim])?.f_transpose(1, 2)?;
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

    /// As [`Group::attend_fused`], scores and softmax in f32. `unseen` is that of [`Sequences`].
    fn attend_by_scores(&self, unseen: &Tensor, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
        let (_, heads, head_dim) = q.size3()?;
        let kv_heads = k.size3()?.1;
        let per_kv = heads / kv_heads;
        let (n, len) = (self.n, self.len);
        let kind = q.f_kind()?;
        // Heads that share keys become more query rows: keys are not repeated.
        let q = self.gathered(q)?.f_reshape([n, len, kv_heads, per_kv, head_dim])?.f_permute([0, 2, 3, 1, 4])?;
        let q = q.f_reshape([n * kv_heads, per_kv * len, head_dim])?.f_to_kind(Kind::Float)?;
        let k = self.gathered(k)?.f_reshape([n, len, kv_heads, head_dim])?.f_permute([0, 2, 3, 1])?;
        let k = k.f_reshape([n * kv_heads, head_dim, len])?.f_to_kind(Kind::Float)?;
        let v = self.gathered(v)?.f_reshape([n, len, kv_heads, head_dim])?.f_transpose(1, 2)?;
        let v = v.f_reshape([n * kv_heads, len, head_dim])?;

        let scores = q.f_mul_scalar(1.0 / (head_dim as f64).sqrt())?.f_bmm(&k)?;
        let unseen = unseen.f_narrow(0, 0, len)?.f_narrow(1, 0, len)?;
        let scores = scores.f_view([n * kv_heads, per_kv, len, len])?.f_add(&unseen)?;
        let weights = scores.f_softmax(-1, None)?.f_to_kind(kind)?.f_view([n * kv_heads, per_kv * len, len])?;
        let out = weights.f_bmm(&v)?.f_view([n, kv_heads, per_kv, len, head_dim])?;
        Ok(out.f_permute([0, 3, 1, 2, 4])?.f_reshape([n * len, heads * head_dim])?)
    }
}

/// The packed rows of every sequence.
fn sequences(segments: &[Segment]) -> Vec<Vec<i64>> {
    let all_rows: Vec<_> = Segment::rows(segments).collect();
    let rows = |number: usize| all_rows[number].clone().map(|row| row as i64);
    let paths: Vec<Vec<usize>> = Segment::followed(segments).collect();
    let is_followed = |number: usize| paths.get(number + 1).is_some_and(|followed| followed.contains(&number));
    let last = (0..segments.len()).filter(|&number| !is_followed(number));
    last.map(|number| paths[number].iter().copied().chain([number]).flat_map(rows).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    /// Output and gradients of every query by a formula of its own, and by the operations: with scores, and fused, here the CPU's.
    fn check(segments: &[(usize, usize)], [heads, kv_heads, head_dim]: [i64; 3]) {
        let segments: Vec<Segment> = segments.iter().map(|&(len, depth)| Segment { depth, len }).collect();
        let n = segments.iter().map(|segment| segment.len).sum::<usize>() as i64;
        let sequences = Sequences::new(&segments, Device::Cpu).unwrap();
        let mut rng = Rng::named(n as u64, "sequences");
        let mut draw = |n_heads: i64| rng.normal(&[n, n_heads, head_dim], 1.5).unwrap();
        let leaves = [draw(heads), draw(kv_heads), draw(kv_heads)].map(|x| x.set_requires_grad(true));
        let upstream = rng.normal(&[n, heads * head_dim], 1.0).unwrap();
        let [q, k, v] = &leaves;
        let gradients =
            |out: &Tensor| Tensor::run_backward(&[(out * &upstream).sum(Kind::Float)], &leaves, false, false);
        let expected = one_by_one(&segments, q, k, v);
        let by_scores = sequences.attend(q, k, v).unwrap();
        let fused = Sequences { unseen: None, ..sequences }.attend(q, k, v).unwrap();
        for found in [by_scores, fused] {
            let mut pairs = vec![(expected.detach(), found.detach())];
            let of_expected = Tensor::run_backward(&[(&expected * &upstream).sum(Kind::Float)], &leaves, true, false);
            pairs.extend(of_expected.into_iter().zip(gradients(&found)));
            for (idx, (expected, found)) in pairs.iter().enumerate() {
                let difference = (expected - found).abs().max().double_value(&[]);
                // f32, sums of some ten values of a size near 1.
                assert!(difference < 2e-5 * (1.0 + expected.abs().max().double_value(&[])), "{idx}: {difference}");
            }
        }
    }

    /// Attends query by query, with the keys that it sees picked one by one.
    fn one_by_one(segments: &[Segment], q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let per_kv = q.size()[1] / k.size()[1];
        let repeated = |x: &Tensor| x.repeat_interleave_self_int(per_kv, 1, None);
        let (k, v) = (repeated(k), repeated(v));
        let rows: Vec<_> = Segment::rows(segments).collect();
        let mut outs = Vec::new();
        for (own, followed) in rows.iter().zip(Segment::followed(segments)) {
            for query in own.clone() {
                let seen = followed.iter().flat_map(|&number| rows[number].clone()).chain(own.start..query + 1);
                let seen = Tensor::from_slice(&seen.map(|key| key as i64).collect::<Vec<_>>());
                let (k, v) = (k.index_select(0, &seen), v.index_select(0, &seen));
                let scores = (q.narrow(0, query as i64, 1) * &k).sum_dim_intlist(-1i64, true, Kind::Float);
                let weights = (scores / (q.size()[2] as f64).sqrt()).softmax(0, Kind::Float);
                outs.push((weights * v).sum_dim_intlist(0i64, false, Kind::Float).view([1, -1]));
            }
        }
        Tensor::cat(&outs, 0)
    }

    #[test]
    fn attention_is_that_of_each_query_with_its_gradients() {
        check(&[(7, 0)], [4, 2, 8]);
        check(&[(3, 0), (9, 0), (2, 0), (10, 0), (8, 0), (3, 0)], [4, 1, 4]);
        check(&[(5, 0), (3, 1), (6, 1)], [2, 2, 4]);
        check(&[(1, 0), (1, 1), (1, 1), (4, 0), (9, 0), (4, 1), (2, 1), (8, 0), (3, 1), (3, 1)], [6, 2, 8]);
        check(&[(6, 0), (3, 1), (2, 2), (9, 2), (4, 1), (5, 0)], [6, 2, 8]);
        check(&[(3, 0), (0, 1), (2, 1), (0, 0), (4, 1), (0, 2)], [2, 1, 4]);
    }

    #[test]
    fn sequences_are_segments_that_nothing_follows_after_what_they_follow() {
        let segments = [(2, 0), (1, 1), (2, 2), (1, 1), (1, 0)].map(|(len, depth)| Segment { depth, len });
        assert_eq!(sequences(&segments), [vec![0, 1, 2, 3, 4], vec![0, 1, 5], vec![6]]);
    }

    #[test]
    fn scores_on_the_cpu_stay_within_their_bound() {
        let n = MAX_GROUP_SCORES / (200 * 200);
        let layout = Sequences::new(&vec![Segment::plain(200); 2 * n as usize + 1], Device::Cpu).unwrap();
        assert_eq!(layout.groups.iter().map(|group| group.n).collect::<Vec<_>>(), [n, n, 1]);
    }
}
