//! One decoder block: attention and MLP, each behind a norm and added to its input.

use tch::Tensor;

use super::attention::{Heads, Store, attend};
use super::kv_cache::{LayerCache, Step};
use super::norm::rms_norm;
use super::packing::Packed;
use super::projection::{Projection, Weight, Workspace, decode_each};
use super::rope::Rotation;
use super::{Config, Result};
use crate::quant::rows;
use crate::tensor::pick_rows;

/// What a block is applied to beside its input.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    pub rotation: &'a Rotation,
    pub packed: &'a Packed,
    /// Turns dropout on; the same seed drops the same elements.
    pub dropout_seed: Option<u64>,
    /// The rows of the result that are wanted, `[m]` i64, none twice: it has only those, and work for the others ends with their
    /// keys and values. `None`: all.
    pub wanted: Option<&'a Tensor>,
}

impl Pass<'_> {
    /// The wanted rows of `x`.
    pub(super) fn pick(&self, x: &Tensor) -> Result<Tensor> {
        Ok(pick_rows(x, self.wanted)?)
    }

    /// The reverse of [`Pass::pick`]: `n` rows, those that are not wanted zero.
    pub(super) fn spread(&self, x: &Tensor, n: i64) -> Result<Tensor> {
        Ok(match self.wanted {
            Some(rows) => {
                let zeros = Tensor::f_zeros([n, x.size2()?.1], (x.f_kind()?, x.device()))?;
                zeros.f_index_copy(0, rows, x)?
            }
            None => x.shallow_clone(),
        })
    }
}

/// A decoder block. Its projections are in the order of [`Config::projections`].
#[derive(Debug)]
pub struct Block {
    /// `[hidden]`.
    pub input_layernorm: Tensor,
    /// `[hidden]`.
    pub post_attention_layernorm: Tensor,
    pub projections: [Projection; 7],
}

impl Block {
    /// Applies the block to `x` `[tokens, hidden]`.
    pub(super) fn forward(
        &mut self,
        config: &Config,
        x: &Tensor,
        pass: Pass<'_>,
        store: Option<Store<'_>>,
        workspace: &mut Workspace,
    ) -> Result<Tensor> {
        let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] = &mut self.projections;
        let mut apply = |projection: &mut Projection, x: &Tensor| projection.forward(x, pass.dropout_seed, workspace);

        let normed = rms_norm(x, &self.input_layernorm, config.rms_norm_eps)?;
        let [q, k, v] = [apply(q_proj, &normed)?, apply(k_proj, &normed)?, apply(v_proj, &normed)?];
        let attended = attend(pass.packed, store, &Heads::new(config, pass.rotation, [&q, &k, &v]))?;
        let x = pass.pick(x)?.f_add(&apply(o_proj, &pass.pick(&attended)?)?)?;

        let normed = rms_norm(&x, &self.post_attention_layernorm, config.rms_norm_eps)?;
        let (gate, up) = (apply(gate_proj, &normed)?, apply(up_proj, &normed)?);
        Ok(x.f_add(&apply(down_proj, &gated(&gate, &up)?)?)?)
    }

    /// Applies the block to one new token a sequence, `x` `[batch, hidden]`, which attends to those in the cache and joins them.
    /// No gradient.
    pub(super) fn decode(
        &mut self,
        config: &Config,
        x: &Tensor,
        rotation: &Rotation,
        (step, cache): (&Step, &mut LayerCache),
        workspace: &mut Workspace,
    ) -> Result<Tensor> {
        let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] = &mut self.projections;
        let batch = x.size()[0];
        let heads = |x: &Tensor, n_heads: i64| x.f_view([batch, n_heads, config.head_dim]);

        let normed = rms_norm(x, &self.input_layernorm, config.rms_norm_eps)?;
        let [q, k, v] = decode_each([q_proj, k_proj, v_proj], &normed, None, workspace)?;
        let q = heads(&q, config.num_attention_heads)?;
        let (k, v) = (heads(&k, config.num_key_value_heads)?, heads(&v, config.num_key_value_heads)?);
        let attended = cache.attend(step, rotation, [&q, &k, &v])?;
        let [x] = decode_each([o_proj], &attended, Some(x), workspace)?;

        let normed = rms_norm(&x, &self.post_attention_layernorm, config.rms_norm_eps)?;
        let [gate, up] = decode_each([gate_proj, up_proj], &normed, None, workspace)?;
        let [x] = decode_each([down_proj], &gated(&gate, &up)?, Some(&x), workspace)?;
        Ok(x)
    }

    /// The block's own weights below its path, dense ones only: norms, then weights and biases.
    pub(super) fn dense_weights(&self) -> Vec<(String, &Tensor)> {
        let mut weights = vec![
            ("input_layernorm.weight".to_owned(), &self.input_layernorm),
            ("post_attention_layernorm.weight".to_owned(), &self.post_attention_layernorm),
        ];
        for projection in &self.projections {
            if let Weight::Dense(weight) = &projection.weight {
                weights.push((format!("{}.weight", projection.name), weight));
            }
            if let Some(bias) = &projection.bias {
                weights.push((format!("{}.bias", projection.name), bias));
            }
        }
        weights
    }
}

/// `silu(gate) up`.
pub(super) fn gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(match rows::can_pass(&[gate, up]) {
        true => rows::gate(gate, up)?,
        false => gate.f_silu()?.f_mul(up)?,
    })
}
