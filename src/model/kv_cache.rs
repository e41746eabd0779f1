//! Keys and values of the tokens seen so far, for a batch of sequences of different lengths that come and go.

use tch::{Kind, Tensor};

use super::packing::Positions;
use super::rope::Rotation;
use super::{Config, Result};
use crate::quant::rows::{self, NewTokens};
use crate::tensor::Placement;

/// The cache of a batch. Sequences are numbered from 0; the rows after the last are free for more.
#[derive(Debug)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
    /// Tokens stored in each sequence.
    pub(super) lengths: Vec<i64>,
}

/// One layer's keys and values, each `[rows, kv_heads, max_len, head_dim]`.
#[derive(Debug)]
pub(super) struct LayerCache {
    pub keys: Tensor,
    pub values: Tensor,
}

/// Where one decoding step writes and what it may see.
#[derive(Debug)]
pub(super) struct Step {
    /// `[batch]` i64: 0, 1, 2, ...
    sequences: Tensor,
    /// Tokens before the new one in each sequence.
    lens: Vec<i64>,
    /// `[batch]`: the position of the new token in each sequence.
    pub(super) positions: Positions,
    /// Tokens of the longest sequence, the new one included.
    len: i64,
    /// `[batch, 1, 1, len]` f32, 0 or minus infinity.
    mask: Tensor,
}

impl KvCache {
    /// An empty cache with room for `rows` sequences of `max_len` tokens each.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(config: &Config, placement: Placement, rows: i64, max_len: i64) -> Result<Self> {
        let shape = [rows, config.num_key_value_heads, max_len, config.head_dim];
        let zeros = || Tensor::f_zeros(shape, (placement.dtype, placement.device));
        let layer = |_| -> Result<LayerCache> { Ok(LayerCache { keys: zeros()?, values: zeros()? }) };
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, lengths: Vec::new() })
    }

    /// Makes room for `n_more` further sequences, and for `max_len` tokens in every one.
    ///
    /// # Errors
    /// When memory is short.
    pub fn reserve(&mut self, n_more: usize, max_len: i64) -> Result<()> {
        let n_held = self.lengths.len() as i64;
        for layer in &mut self.layers {
            let [rows, heads, room, dim] = layer.keys.size()[..] else { continue };
            let (more_rows, more_room) = (rows.max(n_held + n_more as i64), room.max(max_len));
            if (more_rows, more_room) == (rows, room) {
                continue;
            }
            for held in [&mut layer.keys, &mut layer.values] {
                let larger = Tensor::f_zeros([more_rows, heads, more_room, dim], (held.kind(), held.device()))?;
                let copied = larger.f_narrow(0, 0, n_held)?.f_narrow(2, 0, room)?;
                copied.shallow_clone().f_copy_(&held.f_narrow(0, 0, n_held)?)?;
                *held = larger;
            }
        }
        Ok(())
    }

    /// Forgets a sequence; the last one takes its number.
    ///
    /// # Errors
    /// Never on a sound cache.
    pub fn swap_remove(&mut self, sequence: usize) -> Result<()> {
        let last = self.lengths.len().saturating_sub(1);
        if sequence < last {
            let len = self.lengths[last];
            for layer in &self.layers {
                for held in [&layer.keys, &layer.values] {
                    let from = held.f_select(0, last as i64)?.f_narrow(1, 0, len)?;
                    held.f_select(0, sequence as i64)?.f_narrow(1, 0, len)?.f_copy_(&from)?;
                }
            }
        }
        if sequence <= last && !self.lengths.is_empty() {
            self.lengths.swap_remove(sequence);
        }
        Ok(())
    }

    /// Prepares the next step: one new token in every sequence.
    ///
    /// # Errors
    /// When memory is short.
    pub(super) fn next_step(&mut self) -> Result<Step> {
        let device = self.layers.first().map_or(tch::Device::Cpu, |layer| layer.keys.device());
        let len = self.lengths.iter().max().copied().unwrap_or(0) + 1;
        let mut hidden = Vec::with_capacity(self.lengths.len() * len as usize);
        for &length in &self.lengths {
            hidden.extend((0..len).map(|key| if key <= length { 0.0f32 } else { f32::NEG_INFINITY }));
        }
        let batch = self.lengths.len() as i64;
        let step = Step {
            sequences: Tensor::f_arange(batch, (Kind::Int64, device))?,
            lens: self.lengths.clone(),
            positions: Positions::new(&self.lengths, device)?,
            len,
            mask: Tensor::f_from_slice(&hidden)?.f_reshape([batch, 1, 1, len])?.f_to_device(device)?,
        };
        self.lengths.iter_mut().for_each(|length| *length += 1);
        Ok(step)
    }

    /// Keeps only the sequences of these numbers, in this order; one may be kept more than once.
    ///
    /// # Errors
    /// When memory is short.
    pub fn keep(&mut self, sequences: &[i64]) -> Result<()> {
        let index = Tensor::f_from_slice(sequences)?;
        for layer in &mut self.layers {
            let index = index.f_to_device(layer.keys.device())?;
            layer.keys = layer.keys.f_index_select(0, &index)?;
            layer.values = layer.values.f_index_select(0, &index)?;
        }
        self.lengths = sequences.iter().map(|&idx| self.lengths[idx as usize]).collect();
        Ok(())
    }
}

impl LayerCache {
    /// Stores the first `len` tokens in row `idx`: `keys` and `values` are `[len, kv_heads, head_dim]`.
    pub fn prefill(&mut self, idx: i64, keys: &Tensor, values: &Tensor) -> Result<()> {
        let len = keys.size()[0];
        for (cache, new) in [(&self.keys, keys), (&self.values, values)] {
            cache.f_select(0, idx)?.f_narrow(1, 0, len)?.f_copy_(&new.f_transpose(0, 1)?)?;
        }
        Ok(())
    }

    /// Stores one new token a sequence and attends to it and all before it. Queries `[batch, heads, head_dim]`, keys and values
    /// `[batch, kv_heads, head_dim]` are not rotated yet; the result is `[batch, heads * head_dim]`.
    pub fn attend(&mut self, step: &Step, rotation: &Rotation, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
        let rotation_tables = rotation.tables();
        if rows::can_pass(&[q, k, v, rotation_tables[0], &self.keys, &self.values]) {
            let new = NewTokens { queries: q, keys: k, values: v, rotation: rotation_tables, lens: &step.lens };
            return Ok(rows::attend(&new, &mut self.keys, &mut self.values)?);
        }
        let (batch, heads, head_dim) = q.size3()?;
        let kv_heads = k.size3()?.1;
        let kind = q.f_kind()?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        for (cache, new) in [(&mut self.keys, &rotation.apply(k)?), (&mut self.values, v)] {
            let _ = cache.f_index_put_(&[Some(&step.sequences), None, Some(&step.positions.tensor)], new, false)?;
        }
        let seen = |held: &Tensor| held.f_narrow(0, 0, batch)?.f_narrow(2, 0, step.len);
        let (keys, values) = (seen(&self.keys)?, seen(&self.values)?);
        // Heads that share keys become more query rows: keys are not repeated.
        let q = rotation.apply(q)?.f_reshape([batch, kv_heads, heads / kv_heads, head_dim])?;
        let scores = q.f_matmul(&keys.f_transpose(2, 3)?)?.f_to_kind(Kind::Float)?.f_mul_scalar(scale)?;
        let weights = scores.f_add(&step.mask)?.f_softmax(-1, None)?.f_to_kind(kind)?;
        Ok(weights.f_matmul(&values)?.f_reshape([batch, heads * head_dim])?)
    }
}
