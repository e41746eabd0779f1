//! Grouped-query attention over packed records, scores and softmax in f32.
//!
//! For bf16 on the CPU without a graph it has loops of its own, forward and backward. Everything else goes through libtorch's
//! operations, which also are the oracle of the tests.

use tch::{Tensor, with_grad};

use super::kv_cache::LayerCache;
use super::packing::Packed;
use super::rope::Rotation;
use super::{Config, Result};
use crate::quant::{PackedHeads, attend_packed, attend_packed_backward, rows};

/// Where the keys and values of packed records go: those of record `i`, `lens[i]` tokens, to row `first + i`.
#[derive(Debug)]
pub(super) struct Store<'a> {
    pub lens: &'a [i64],
    pub first: i64,
    pub cache: &'a mut LayerCache,
}

/// Queries `[tokens, heads * head_dim]`, keys and values `[tokens, kv_heads * head_dim]`, before rotation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads<'a> {
    pub head_dim: i64,
    pub rotation: &'a Rotation,
    pub queries: &'a Tensor,
    pub keys: &'a Tensor,
    pub values: &'a Tensor,
}

impl<'a> Heads<'a> {
    pub fn new(config: &Config, rotation: &'a Rotation, [queries, keys, values]: [&'a Tensor; 3]) -> Self {
        Self { head_dim: config.head_dim, rotation, queries, keys, values }
    }

    /// `[tokens, heads, head_dim]`.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_view([x.size()[0], -1, self.head_dim])?)
    }

    /// As [`Heads::split`], rotated.
    fn rotated(&self, x: &Tensor) -> Result<Tensor> {
        self.rotation.apply(&self.split(x)?)
    }

    /// For the loops of our own, where they take such tensors.
    fn own(&self, packed: &'a Packed) -> Option<PackedHeads<'a>> {
        let Self { head_dim, queries, keys, values, .. } = *self;
        let rotation = self.rotation.tables();
        let can_pass = rows::can_pass(&[queries, keys, values, rotation[0], rotation[1]]);
        can_pass.then_some(PackedHeads { head_dim, segments: &packed.segments, queries, keys, values, rotation })
    }
}

/// Attends to packed records, each to itself, and stores their keys and values where they are to be: `[tokens, heads * head_dim]`.
pub(super) fn attend(packed: &Packed, store: Option<Store<'_>>, heads: &Heads<'_>) -> Result<Tensor> {
    let rotated_keys = match store {
        None => None,
        Some(Store { lens, first, cache }) => {
            let (keys, values) = (heads.rotated(heads.keys)?, heads.split(heads.values)?);
            let mut start = 0;
            for (row, &len) in (first..).zip(lens) {
                cache.prefill(row, &keys.f_narrow(0, start, len)?, &values.f_narrow(0, start, len)?)?;
                start += len;
            }
            Some(keys)
        }
    };
    if let Some(own) = heads.own(packed) {
        return Ok(attend_packed(&own)?);
    }
    let keys = rotated_keys.map_or_else(|| heads.rotated(heads.keys), Ok)?;
    packed.sequences()?.attend(&heads.rotated(heads.queries)?, &keys, &heads.split(heads.values)?)
}

/// The result of attention to packed records, and what its backward pass needs.
#[derive(Debug)]
pub(super) struct Attended<'a> {
    /// `[tokens, heads * head_dim]`, without gradient.
    pub out: Tensor,
    way_back: WayBack<'a>,
}

#[derive(Debug)]
enum WayBack<'a> {
    Own(PackedHeads<'a>),
    /// The result with a graph, and its leaves.
    Graph(Tensor, [Tensor; 3]),
}

impl<'a> Attended<'a> {
    pub fn new(packed: &'a Packed, heads: &Heads<'a>) -> Result<Self> {
        if let Some(own) = heads.own(packed) {
            return Ok(Self { out: attend_packed(&own)?, way_back: WayBack::Own(own) });
        }
        let leaf = |x: &Tensor| x.f_detach()?.f_set_requires_grad(true);
        let leaves = [leaf(heads.queries)?, leaf(heads.keys)?, leaf(heads.values)?];
        let [queries, keys, values] = &leaves;
        let heads = Heads { head_dim: heads.head_dim, rotation: heads.rotation, queries, keys, values };
        let graph = with_grad(|| attend(packed, None, &heads))?;
        Ok(Self { out: graph.f_detach()?, way_back: WayBack::Graph(graph, leaves) })
    }

    /// The gradients of queries, keys and values, from that of the result.
    pub fn backward(self, grad: &Tensor) -> Result<Vec<Tensor>> {
        match self.way_back {
            WayBack::Own(own) => Ok(attend_packed_backward(&own, &grad.f_contiguous()?)?.into()),
            WayBack::Graph(graph, leaves) => {
                let product = with_grad(|| graph.f_mul(grad)?.f_sum(graph.f_kind()?))?;
                Ok(Tensor::f_run_backward(&[product], &leaves, false, false)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::model::rope::Rope;
    use crate::quant::Segment;
    use crate::tensor::{Placement, Rng};

    /// Our own loops beside libtorch's operations in f32, forward and backward.
    #[test]
    fn our_own_loops_attend_as_the_operations_do() {
        let segments = [(6, 0), (9, 0), (3, 1), (40, 1), (7, 2), (0, 0), (2, 1), (5, 1), (31, 0)];
        let segments = segments.map(|(len, depth)| Segment { depth, len });
        let (head_dim, n) = (16, segments.iter().map(|segment| segment.len).sum::<usize>());
        let packed = Packed::new(&vec![0; n], &segments, 1, Device::Cpu).unwrap();
        let rope = Rope::new(head_dim, 1e4, 100, Device::Cpu).unwrap();
        let mut rng = Rng::named(5, "attention");
        let mut draw = |width: i64| rng.normal(&[n as i64, width], 1.0).unwrap().to_kind(Kind::BFloat16);
        let [queries, keys, values, grad] = [64, 32, 32, 64].map(&mut draw);
        let run = |kind: Kind| {
            let [queries, keys, values, grad] = [&queries, &keys, &values, &grad].map(|x| x.to_kind(kind));
            let rotation = rope.at(&packed.positions, Placement { device: Device::Cpu, dtype: kind }).unwrap();
            let heads = Heads { head_dim, rotation: &rotation, queries: &queries, keys: &keys, values: &values };
            let forward = attend(&packed, None, &heads).unwrap();
            let attended = Attended::new(&packed, &heads).unwrap();
            assert_eq!(
                (&forward, matches!(attended.way_back, WayBack::Own(_))),
                (&attended.out, kind == Kind::BFloat16)
            );
            let mut all = vec![attended.out.shallow_clone()];
            all.extend(attended.backward(&grad).unwrap());
            all
        };
        for (idx, (expected, found)) in run(Kind::Float).iter().zip(run(Kind::BFloat16)).enumerate() {
            let difference = (expected - found.to_kind(Kind::Float)).abs().max().double_value(&[]);
            // Angles, rotated values and results are rounded to 8 bits.
            assert!(difference < 0.02 * expected.abs().max().double_value(&[]), "{idx}: {difference}");
        }
    }
}
