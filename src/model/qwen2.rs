//! The whole model: embedding, blocks, head; which of its tensors are trained.

use tch::{Kind, Tensor, no_grad};

use super::attention::Store;
use super::block::{Block, Pass};
use super::block_backward::{Keep, Kept};
use super::kv_cache::KvCache;
use super::norm::rms_norm;
use super::packing::{Packed, Positions};
use super::projection::Workspace;
use super::rope::{Rope, Rotation};
use super::slots::Slots;
use super::{Config, Result};
use crate::quant::{can_multiply_dense, linear, multiply_dense};
use crate::tensor::Placement;

/// The most rows of logits for which reading the head's matrix once is what costs, so that our own loop is as good as any.
const MAX_MULTIPLIED_ROWS: i64 = 2;

/// A Qwen2 model on one device. One thread owns it.
#[derive(Debug)]
pub struct Qwen2 {
    pub config: Config,
    pub placement: Placement,
    /// `[vocab, hidden]`.
    pub embed_tokens: Tensor,
    pub blocks: Vec<Block>,
    pub head: Head,
    pub(super) rope: Rope,
    pub(super) workspace: Workspace,
    pub(super) slots: Slots,
}

/// The final norm and the projection onto the vocabulary.
#[derive(Debug)]
pub struct Head {
    /// `[hidden]`.
    pub norm: Tensor,
    /// `[vocab, hidden]`; `None` when it is the embedding.
    pub lm_head: Option<Tensor>,
}

/// A trained tensor.
#[derive(Debug)]
pub struct Parameter {
    /// Its path in the checkpoint or adapter file.
    pub name: String,
    /// A leaf that requires gradients, sharing memory with the model.
    pub tensor: Tensor,
    /// The block that it belongs to; `None` for the embedding and the head.
    pub block: Option<usize>,
}

impl Qwen2 {
    /// The head's matrix, `[vocab, hidden]`.
    pub fn head_weight(&self) -> &Tensor {
        self.head.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// Embeds token ids `[n]`, giving `[n, hidden]`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.embed_tokens.f_index_select(0, ids)?)
    }

    /// The rotation for positions `[n]`.
    ///
    /// # Errors
    /// When a position is beyond `max_position_embeddings`.
    pub fn rotation(&self, positions: &Positions) -> Result<Rotation> {
        self.rope.at(positions, self.placement)
    }

    /// Applies one block to packed records, `x` `[tokens, hidden]`. With gradients on, the result has a graph.
    ///
    /// # Errors
    /// When shapes do not fit or memory is short.
    pub fn run_block(&mut self, idx: usize, x: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        self.blocks[idx].forward(&self.config, x, pass, None, &mut self.workspace)
    }

    /// As [`Qwen2::run_block`] without gradient, keeping what [`Qwen2::block_backward`] can use. `keep` says what of it will stay,
    /// where that is known. The results are good until [`Qwen2::forget_kept`].
    ///
    /// # Errors
    /// When shapes do not fit or memory is short.
    pub fn run_block_keeping(
        &mut self,
        idx: usize,
        x: &Tensor,
        keep: Option<Keep>,
        pass: Pass<'_>,
    ) -> Result<(Tensor, Kept)> {
        self.blocks[idx].forward_keeping(&self.config, x, keep, pass, &mut self.workspace)
    }

    /// What [`Qwen2::run_block_keeping`] gave is not looked at any more: the next step may write over it.
    pub fn forget_kept(&mut self) {
        self.workspace.shelf.clear();
    }

    /// The gradients of a block's input, where `wants_input` says so, and of its adapters' parameters in the order of
    /// [`Qwen2::parameters`], from that of its output. What else the block has must be frozen
    /// ([`Qwen2::trains_adapters_only`]).
    ///
    /// # Errors
    /// When shapes do not fit or memory is short.
    pub fn block_backward(
        &mut self,
        idx: usize,
        kept: Kept,
        grad_output: &Tensor,
        wants_input: bool,
        pass: Pass<'_>,
    ) -> Result<(Option<Tensor>, Vec<Tensor>)> {
        self.blocks[idx].backward(&self.config, kept, grad_output, wants_input, pass, &mut self.workspace)
    }

    /// Whether no dense weight is trained.
    pub fn trains_adapters_only(&self) -> bool {
        self.dense_weights().iter().all(|(_, tensor)| !tensor.requires_grad())
    }

    /// The final norm, `[n, hidden]`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.head.norm, self.config.rms_norm_eps)
    }

    /// Hidden states after the last block, before the final norm, `[tokens, hidden]`, without gradient.
    ///
    /// # Errors
    /// When memory is short.
    pub fn hidden_states(&mut self, packed: &Packed) -> Result<Tensor> {
        self.hidden_states_of(packed, None)
    }

    /// As [`Qwen2::hidden_states`], of these rows only, `[m]` i64, none twice.
    ///
    /// # Errors
    /// When memory is short.
    pub fn hidden_states_at(&mut self, packed: &Packed, rows: &Tensor) -> Result<Tensor> {
        self.hidden_states_of(packed, Some(rows))
    }

    fn hidden_states_of(&mut self, packed: &Packed, rows: Option<&Tensor>) -> Result<Tensor> {
        no_grad(|| {
            let rotation = self.rotation(&packed.positions)?;
            let mut x = self.embed(&packed.ids)?;
            for idx in 0..self.blocks.len() {
                let wanted = rows.filter(|_| idx + 1 == self.blocks.len());
                x = self.run_block(idx, &x, Pass { rotation: &rotation, packed, dropout_seed: None, wanted })?;
            }
            Ok(x)
        })
    }

    /// Logits in f32 for rows of hidden states `[n, hidden]`, giving `[n, vocab]`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        no_grad(|| {
            let normed = self.final_norm(hidden)?;
            let head = self.head_weight();
            if hidden.size()[0] <= MAX_MULTIPLIED_ROWS && can_multiply_dense(head) {
                return Ok(multiply_dense(head, &normed)?);
            }
            Ok(linear(&normed, head, None)?.f_to_kind(Kind::Float)?)
        })
    }

    /// Logits in f32 for rows of hidden states `[n, hidden]` over some rows of the head's matrix, `[m, hidden]`. Gives
    /// `[n, m]`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn logits_over(&self, hidden: &Tensor, head_rows: &Tensor) -> Result<Tensor> {
        no_grad(|| Ok(linear(&self.final_norm(hidden)?, head_rows, None)?.f_to_kind(Kind::Float)?))
    }

    /// Reads prompts packed without branches into a cache: record `i`, of `lens[i]` tokens, becomes the `i`th new
    /// sequence. Gives the logits after each prompt, `[batch, vocab]` f32.
    ///
    /// # Errors
    /// When memory is short.
    pub fn prefill(&mut self, packed: &Packed, lens: &[i64], cache: &mut KvCache) -> Result<Tensor> {
        let hidden = self.prefill_hidden(packed, lens, cache)?;
        self.logits(&hidden)
    }

    /// As [`Qwen2::prefill`], giving the hidden states before the final norm instead, `[batch, hidden]`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn prefill_hidden(&mut self, packed: &Packed, lens: &[i64], cache: &mut KvCache) -> Result<Tensor> {
        no_grad(|| {
            let longest = lens.iter().max().copied().unwrap_or(0);
            cache.reserve(lens.len(), longest)?;
            let first = cache.lengths.len() as i64;
            let rotation = self.rotation(&packed.positions)?;
            let last: Vec<i64> = lens
                .iter()
                .scan(0, |end, len| {
                    *end += len;
                    Some(*end - 1)
                })
                .collect();
            let last = Tensor::f_from_slice(&last)?.f_to_device(self.placement.device)?;
            let mut x = self.embed(&packed.ids)?;
            for idx in 0..self.blocks.len() {
                let wanted = Some(&last).filter(|_| idx + 1 == self.blocks.len());
                let pass = Pass { rotation: &rotation, packed, dropout_seed: None, wanted };
                let store = Some(Store { lens, first, cache: &mut cache.layers[idx] });
                x = self.blocks[idx].forward(&self.config, &x, pass, store, &mut self.workspace)?;
            }
            cache.lengths.extend(lens);
            Ok(x)
        })
    }

    /// Feeds one token `[batch]` to every sequence of the cache, which has room for it. Gives the logits after it,
    /// `[batch, vocab]` f32.
    ///
    /// # Errors
    /// When memory is short.
    pub fn decode(&mut self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let hidden = self.decode_hidden(ids, cache)?;
        self.logits(&hidden)
    }

    /// As [`Qwen2::decode`], giving the hidden states before the final norm instead, `[batch, hidden]`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn decode_hidden(&mut self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        no_grad(|| {
            let step = cache.next_step()?;
            let rotation = self.rotation(&step.positions)?;
            let mut x = self.embed(ids)?;
            for idx in 0..self.blocks.len() {
                let seen = (&step, &mut cache.layers[idx]);
                x = self.blocks[idx].decode(&self.config, &x, &rotation, seen, &mut self.workspace)?;
            }
            Ok(x)
        })
    }

    /// What is trained, in the order of the model: the adapters' parameters when there are adapters, else every dense
    /// weight made trainable by [`Qwen2::train_all`].
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        let mut push = |name: String, tensor: &Tensor, block: Option<usize>| {
            if tensor.requires_grad() {
                parameters.push(Parameter { name, tensor: tensor.shallow_clone(), block });
            }
        };
        push("model.embed_tokens.weight".to_owned(), &self.embed_tokens, None);
        for (idx, block) in self.blocks.iter().enumerate() {
            for (name, tensor) in block.dense_weights() {
                push(format!("model.layers.{idx}.{name}"), tensor, Some(idx));
            }
            for projection in &block.projections {
                for (suffix, tensor) in projection.adapter.iter().flat_map(|adapter| adapter.lora.parameters()) {
                    push(format!("model.layers.{idx}.{}.{suffix}", projection.name), tensor, Some(idx));
                }
            }
        }
        push("model.norm.weight".to_owned(), &self.head.norm, None);
        if let Some(lm_head) = &self.head.lm_head {
            push("lm_head.weight".to_owned(), lm_head, None);
        }
        parameters
    }

    /// Makes every dense weight trainable (full fine-tuning).
    ///
    /// # Errors
    /// When a weight cannot require gradients.
    pub fn train_all(&mut self) -> Result<()> {
        for (_, tensor) in self.dense_weights() {
            let _ = tensor.f_set_requires_grad(true)?;
        }
        Ok(())
    }

    /// Every dense weight with its name in the checkpoint; NF4 weights are not among them.
    pub fn dense_weights(&self) -> Vec<(String, &Tensor)> {
        let mut weights = vec![("model.embed_tokens.weight".to_owned(), &self.embed_tokens)];
        for (idx, block) in self.blocks.iter().enumerate() {
            weights.extend(
                block.dense_weights().into_iter().map(|(name, tensor)| (format!("model.layers.{idx}.{name}"), tensor)),
            );
        }
        weights.push(("model.norm.weight".to_owned(), &self.head.norm));
        weights.extend(self.head.lm_head.iter().map(|tensor| ("lm_head.weight".to_owned(), tensor)));
        weights
    }

    /// Gives the expanded weights' buffers away: the next visit of a block takes new ones.
    pub fn forget_workspace(&mut self) {
        self.workspace = Workspace::default();
    }

    /// Tells the layers that an optimizer step changed their adapters.
    pub fn parameters_changed(&mut self) {
        for block in &mut self.blocks {
            block.projections.iter_mut().for_each(|projection| projection.parameters_changed());
        }
    }
}
