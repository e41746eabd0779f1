//! A block's forward pass that keeps what its backward pass needs, and that backward pass, written out by hand.
//!
//! Only the gradients of the block's input and of its adapters are computed: frozen weights have none. Projections and
//! the MLP are differentiated here, attention's core in [`super::attention`]. The graph of the whole block,
//! [`Block::forward`], is the oracle of the tests.

use tch::{Device, Tensor, no_grad};

use super::attention::{Attended, Heads, attend};
use super::block::{Block, Pass, gated};
use super::norm::{rms_norm, rms_norm_backward};
use super::projection::Workspace;
use super::projection_backward::{Keeping, Part};
use super::{Config, Result};
use crate::quant::rows;
use crate::tensor::move_to;

// Indices into `Block::projections`.
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// How much of a block's forward pass is kept for its backward pass. What is not kept is computed again, with the same
/// result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// The block's input.
    Input,
    /// Also the input of the MLP, and what DoRA needs of the two projections back to the hidden size: neither of them is
    /// then computed again.
    Ends,
    /// All projections: only elementwise work and attention's core are computed again.
    All,
}

/// What is kept of a block's forward pass.
#[derive(Debug)]
pub struct Kept {
    /// `[tokens, hidden]`.
    input: Tensor,
    /// After attention was added, `[wanted, hidden]`.
    middle: Option<Tensor>,
    parts: [Option<Part>; 7],
    /// What of a forward pass under way will stay, where that is known.
    stays: Option<Keep>,
}

/// The MLP up to its last projection.
struct Mlp {
    normed: Tensor,
    gate: Tensor,
    up: Tensor,
    /// `silu(gate) * up`.
    inner: Tensor,
}

impl Kept {
    fn new(x: &Tensor, stays: Option<Keep>) -> Self {
        Self { input: x.shallow_clone(), middle: None, parts: [const { None }; 7], stays }
    }

    /// What of a projection's part will stay.
    fn keeping(&self, idx: usize) -> Keeping {
        match is_end(idx) {
            true if self.stays >= Some(Keep::Ends) => Keeping::AllButOutput,
            false if self.stays == Some(Keep::All) => Keeping::All,
            _ => Keeping::Nothing,
        }
    }

    /// Moves the block's input to a device, without waiting for it.
    ///
    /// # Errors
    /// When memory is short.
    pub fn move_input(&mut self, device: Device) -> Result<()> {
        self.input = move_to(&self.input, device)?;
        Ok(())
    }

    /// Forgets what is not to be kept.
    pub fn reduced(mut self, keep: Keep) -> Self {
        self.stays = None;
        if keep == Keep::Input {
            self.middle = None;
        }
        for (idx, part) in self.parts.iter_mut().enumerate() {
            if keep == Keep::Input || (keep == Keep::Ends && !is_end(idx)) {
                *part = None;
            }
        }
        self
    }

    /// The memory that it takes, and would take when reduced to `keep`, which is not [`Keep::Input`].
    pub fn size_bytes(&self, keep: Keep) -> usize {
        let size = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        let is_kept = |idx: usize| keep == Keep::All || is_end(idx);
        let parts = self.parts.iter().enumerate().filter(|(idx, _)| is_kept(*idx));
        let parts: usize = parts.filter_map(|(_, part)| part.as_ref()).map(Part::size_bytes).sum();
        size(&self.input) + self.middle.as_ref().map_or(0, size) + parts
    }
}

/// Whether a projection leads back to the hidden size.
fn is_end(idx: usize) -> bool {
    idx == O || idx == DOWN
}

impl Block {
    /// Applies the block to `x` `[tokens, hidden]` without gradient, keeping everything that [`Kept`] can hold. The output, and what
    /// `keep` says will stay of the rest, lie on the shelf.
    pub(super) fn forward_keeping(
        &mut self,
        config: &Config,
        x: &Tensor,
        keep: Option<Keep>,
        pass: Pass<'_>,
        workspace: &mut Workspace,
    ) -> Result<(Tensor, Kept)> {
        no_grad(|| {
            let mut kept = Kept::new(x, keep);
            let eps = config.rms_norm_eps;
            let (_, [q, k, v]) = self.heads(&mut kept, eps, pass, workspace)?;
            let attended = attend(pass.packed, None, &Heads::new(config, pass.rotation, [&q, &k, &v]))?;
            drop((q, k, v));
            let attended = pass.pick(&attended)?;
            let out = self.part(&mut kept, O, &attended, pass, workspace)?;
            let middle = match keep >= Some(Keep::Ends) {
                true => workspace.shelf.sum(&pass.pick(x)?, &out)?,
                false => pass.pick(x)?.f_add(&out)?,
            };
            drop((attended, out));
            let Mlp { inner, .. } = self.mlp(&mut kept, &middle, eps, pass, workspace)?;
            let out = self.part(&mut kept, DOWN, &inner, pass, workspace)?;
            let output = workspace.shelf.sum(&middle, &out)?;
            kept.middle = Some(middle);
            // They have been added to the stream.
            kept.parts.iter_mut().enumerate().filter(|(idx, _)| is_end(*idx)).for_each(|(_, part)| {
                if let Some(part) = part {
                    part.forget_output();
                }
            });
            Ok((output, kept))
        })
    }

    /// The gradients of the block's input, when it is wanted, and of its adapters' parameters, in the order of
    /// [`super::Qwen2::parameters`], from that of its output.
    pub(super) fn backward(
        &mut self,
        config: &Config,
        mut kept: Kept,
        grad_output: &Tensor,
        wants_input: bool,
        pass: Pass<'_>,
        workspace: &mut Workspace,
    ) -> Result<(Option<Tensor>, Vec<Tensor>)> {
        no_grad(|| {
            let (eps, seed) = (config.rms_norm_eps, pass.dropout_seed);
            let (normed, [q, k, v]) = self.heads(&mut kept, eps, pass, workspace)?;
            let attended = Attended::new(pass.packed, &Heads::new(config, pass.rotation, [&q, &k, &v]))?;
            let attended_out = pass.pick(&attended.out)?;
            let middle = match kept.middle.take() {
                Some(middle) => middle,
                None => self.part(&mut kept, O, &attended_out, pass, workspace)?.f_add(&pass.pick(&kept.input)?)?,
            };
            let mlp = self.mlp(&mut kept, &middle, eps, pass, workspace)?;

            let mut gradients = [const { Vec::new() }; 7];
            let mut parts = kept.parts;
            let mut pull = |projections: &mut [_; 7], idx: usize, x: &Tensor, dy: &Tensor, dx| -> Result<Tensor> {
                let projection: &mut super::Projection = &mut projections[idx];
                let (dx, own) = projection.backward(x, dy, parts[idx].take(), dx, seed, workspace)?;
                gradients[idx] = own;
                Ok(dx)
            };
            let Mlp { normed: normed_middle, gate, up, inner } = mlp;
            let grad_inner = pull(&mut self.projections, DOWN, &inner, grad_output, None)?;
            drop(inner);
            let (grad_gate, grad_up) = gate_backward(&gate, &up, &grad_inner)?;
            drop((grad_inner, gate, up));
            let grad_normed = pull(&mut self.projections, GATE, &normed_middle, &grad_gate, None)?;
            drop(grad_gate);
            let grad_normed = pull(&mut self.projections, UP, &normed_middle, &grad_up, Some(grad_normed))?;
            drop((grad_up, normed_middle));
            let grad_middle =
                rms_norm_backward(&middle, &self.post_attention_layernorm, eps, &grad_normed, grad_output)?;

            let grad_attended = pull(&mut self.projections, O, &attended_out, &grad_middle, None)?;
            let n = normed.size2()?.0;
            let heads = attended.backward(&pass.spread(&grad_attended, n)?)?;
            drop((q, k, v, grad_attended, attended_out));
            let mut grad_normed = None;
            for (idx, grad) in [Q, K, V].into_iter().zip(&heads) {
                grad_normed = Some(pull(&mut self.projections, idx, &normed, grad, grad_normed)?);
            }
            let grad_input = match grad_normed.filter(|_| wants_input) {
                Some(grad) => {
                    let before = pass.spread(&grad_middle, n)?;
                    Some(rms_norm_backward(&kept.input, &self.input_layernorm, eps, &grad, &before)?)
                }
                None => None,
            };
            Ok((grad_input, gradients.into_iter().flatten().collect()))
        })
    }

    /// The output of a projection, from what was kept or computed and then kept.
    fn part(
        &mut self,
        kept: &mut Kept,
        idx: usize,
        x: &Tensor,
        pass: Pass<'_>,
        workspace: &mut Workspace,
    ) -> Result<Tensor> {
        let projection = &mut self.projections[idx];
        let part = match kept.parts[idx].take() {
            Some(part) => part,
            None => projection.forward_keeping(x, pass.dropout_seed, kept.keeping(idx), workspace)?,
        };
        let output = projection.output_of(&part)?;
        kept.parts[idx] = Some(part);
        Ok(output)
    }

    /// The normed input, and queries, keys and values before rotation, `[tokens, heads * head_dim]`.
    fn heads(
        &mut self,
        kept: &mut Kept,
        eps: f64,
        pass: Pass<'_>,
        workspace: &mut Workspace,
    ) -> Result<(Tensor, [Tensor; 3])> {
        let normed = rms_norm(&kept.input, &self.input_layernorm, eps)?;
        let q = self.part(kept, Q, &normed, pass, workspace)?;
        let k = self.part(kept, K, &normed, pass, workspace)?;
        let v = self.part(kept, V, &normed, pass, workspace)?;
        Ok((normed, [q, k, v]))
    }

    fn mlp(
        &mut self,
        kept: &mut Kept,
        middle: &Tensor,
        eps: f64,
        pass: Pass<'_>,
        workspace: &mut Workspace,
    ) -> Result<Mlp> {
        let normed = rms_norm(middle, &self.post_attention_layernorm, eps)?;
        let gate = self.part(kept, GATE, &normed, pass, workspace)?;
        let up = self.part(kept, UP, &normed, pass, workspace)?;
        let inner = gated(&gate, &up)?;
        Ok(Mlp { normed, gate, up, inner })
    }
}

/// The gradients of `gate` and `up` from that of `silu(gate) up`.
fn gate_backward(gate: &Tensor, up: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
    if rows::can_pass(&[gate, up, grad]) {
        return Ok(rows::gate_backward(gate, up, grad)?);
    }
    Ok((gate.f_silu_backward(&up.f_mul(grad)?)?, gate.f_silu()?.f_mul_(grad)?))
}
