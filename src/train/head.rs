//! The loss head: log-probabilities of given tokens and their gradient, at the scored rows only, in chunks.
//!
//! The matrix `[rows, vocab]` never exists as a whole; a chunk's logits turn into their own gradient in place.

use tch::{Kind, Tensor, no_grad};

use super::Result;
use crate::model::Qwen2;
use crate::quant::{cuda, linear, matmul, rows};

/// Rows whose logits exist at one time.
pub const CHUNK_ROWS: i64 = 128;

/// Scored rows with the gradient of `-sum(weight * logp)`.
#[derive(Debug)]
pub struct Scored {
    /// `[rows]` f32, natural log.
    pub logps: Tensor,
    /// `[rows, hidden]`, in the model's type.
    pub grad_hidden: Tensor,
    /// `[vocab, hidden]` f32, when the head is trained.
    pub grad_weight: Option<Tensor>,
}

fn chunks(n_rows: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..n_rows).step_by(CHUNK_ROWS as usize).map(move |start| (start, CHUNK_ROWS.min(n_rows - start)))
}

/// Log-probabilities of `targets` `[rows]` after the normed hidden states `[rows, hidden]`: `[rows]` f32, no gradient.
///
/// # Errors
/// When memory is short.
pub fn score(model: &Qwen2, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
    no_grad(|| {
        let mut logps = Vec::new();
        for (start, len) in chunks(hidden.size()[0]) {
            let mut logits = linear(&hidden.f_narrow(0, start, len)?, model.head_weight(), None)?;
            logps.push(cross_entropy(&mut logits, &targets.f_narrow(0, start, len)?, None)?);
        }
        join(logps, hidden)
    })
}

/// As [`score`], with the gradient of `-sum(weights * logps)` for weights that follow from the log-probabilities, in one
/// pass over a frozen head: a row's gradient is its weight times that of its own `-logp`.
///
/// # Errors
/// When memory is short.
pub fn score_and_weigh(
    model: &Qwen2,
    hidden: &Tensor,
    targets: &Tensor,
    weigh: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Scored> {
    no_grad(|| {
        let scored = score_rows(model, hidden, targets, None)?;
        let weights = weigh(&scored.logps)?.f_unsqueeze(1)?;
        let grad_hidden = scored.grad_hidden.f_to_kind(Kind::Float)?.f_mul_(&weights)?.f_to_kind(hidden.f_kind()?)?;
        Ok(Scored { grad_hidden, ..scored })
    })
}

/// As [`score`], with the gradients of `-sum(weights * logps)` by the hidden states and the head; `weights` is `[rows]`
/// f32.
///
/// # Errors
/// When memory is short.
pub fn score_with_gradient(model: &Qwen2, hidden: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Scored> {
    no_grad(|| score_rows(model, hidden, targets, Some(weights)))
}

/// With weights the head has a gradient too; without, it has none, and every row counts 1.
fn score_rows(model: &Qwen2, hidden: &Tensor, targets: &Tensor, weights: Option<&Tensor>) -> Result<Scored> {
    let head = model.head_weight();
    let mut logps = Vec::new();
    let mut grads = Vec::new();
    let zeros = || Tensor::f_zeros(head.size(), (Kind::Float, head.device()));
    let mut grad_weight = weights.map(|_| zeros()).transpose()?;
    for (start, len) in chunks(hidden.size()[0]) {
        let rows = hidden.f_narrow(0, start, len)?;
        let mut logits = linear(&rows, head, None)?;
        let targets = targets.f_narrow(0, start, len)?;
        let weights = weights.map(|weights| weights.f_narrow(0, start, len)).transpose()?;
        logps.push(cross_entropy(&mut logits, &targets, weights.as_ref())?);
        grads.push(matmul(&logits, head, None)?);
        if let Some(total) = &mut grad_weight {
            let _ = total.f_add_(&logits.f_transpose(0, 1)?.f_matmul(&rows)?.f_to_kind(Kind::Float)?)?;
        }
    }
    let grad_hidden = if grads.is_empty() { hidden.f_zeros_like()? } else { Tensor::f_cat(&grads, 0)? };
    Ok(Scored { logps: join(logps, hidden)?, grad_hidden, grad_weight })
}

/// The log-probabilities of targets; logits `[n, vocab]` become `w (softmax - onehot)`, the gradient of `-w logp`.
fn cross_entropy(logits: &mut Tensor, targets: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    if let Some(kernels) = cuda::of(logits.device())? {
        return Ok(kernels.cross_entropy(logits, targets, weights)?);
    }
    if rows::can_pass(&[logits]) {
        return Ok(rows::cross_entropy(logits, targets, weights)?);
    }
    let kind = logits.f_kind()?;
    let targets = targets.f_unsqueeze(1)?;
    let weights = match weights {
        Some(weights) => weights.f_unsqueeze(1)?,
        None => Tensor::f_ones(targets.size(), (Kind::Float, logits.device()))?,
    };
    let mut wide = logits.f_to_kind(Kind::Float)?;
    let normalizer = wide.f_logsumexp(1i64, true)?;
    let logps = wide.f_gather(1, &targets, false)?.f_sub(&normalizer)?.f_squeeze_dim(1)?;
    let mut gradient = wide.f_subtract_(&normalizer)?.f_exp_()?.f_mul_(&weights)?;
    *logits = gradient.f_scatter_add_(1, &targets, &weights.f_neg()?)?.f_to_kind(kind)?;
    Ok(logps)
}

fn join(parts: Vec<Tensor>, like: &Tensor) -> Result<Tensor> {
    if parts.is_empty() {
        return Ok(Tensor::f_zeros([0], (Kind::Float, like.device()))?);
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}
