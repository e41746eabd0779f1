//! A micro-batch on its device: the packed row, the rows that are scored, and which of their targets are the same.

use std::collections::{BTreeSet, HashMap};

use tch::{Kind, Tensor};

use super::Result;
use super::batch::Batch;
use crate::model::{Packed, Qwen2};
use crate::tensor::{pick_rows, upload, upload_index};

/// The tensors of a micro-batch.
///
/// A batch scores pairs of a row and its next token. Records that share the row share the pair: it is scored once.
#[derive(Debug)]
pub(super) struct Placed {
    pub packed: Packed,
    /// `[rows]` i64: the rows of the packed row that are scored, ascending, none twice.
    pub rows: Tensor,
    /// The next token of each pair, `[pairs]` i64.
    pub targets: Tensor,
    /// Of each pair its place in `rows`, `[pairs]` i64; `None`: they are the same.
    row_of_pair: Option<Tensor>,
    /// Of each target of the batch its pair, `[targets]` i64; `None`: they are the same.
    pair_of_target: Option<Tensor>,
}

impl Placed {
    pub fn new(model: &Qwen2, batch: &Batch) -> Result<Self> {
        let device = model.placement.device;
        let rows: Vec<i64> = batch.rows.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let place_of: HashMap<i64, i64> = rows.iter().copied().zip(0..).collect();
        let mut pairs = Vec::new();
        let mut number_of = HashMap::new();
        let of_target: Vec<i64> = batch
            .rows
            .iter()
            .zip(&batch.targets)
            .map(|pair| {
                *number_of.entry(pair).or_insert_with(|| {
                    pairs.push(pair);
                    pairs.len() as i64 - 1
                })
            })
            .collect();
        let targets: Vec<i64> = pairs.iter().map(|&(_, &target)| target).collect();
        let of_pair: Vec<i64> = pairs.iter().map(|(row, _)| place_of[row]).collect();
        Ok(Self {
            packed: Packed::new(&batch.ids, &batch.segments, model.config.vocab_size, device)?,
            row_of_pair: upload_index(&of_pair, rows.len(), device)?,
            pair_of_target: upload_index(&of_target, pairs.len(), device)?,
            rows: upload(&rows, device)?,
            targets: upload(&targets, device)?,
        })
    }

    /// Of values of each row, `[rows, n]`, those of each pair, `[pairs, n]`.
    pub fn of_pairs(&self, of_rows: &Tensor) -> Result<Tensor> {
        Ok(pick_rows(of_rows, self.row_of_pair.as_ref())?)
    }

    /// Of values of each pair, `[pairs]`, those of each target, `[targets]`.
    pub fn of_targets(&self, of_pairs: &Tensor) -> Result<Tensor> {
        Ok(pick_rows(of_pairs, self.pair_of_target.as_ref())?)
    }

    /// The reverse of [`Placed::of_pairs`]: sums for each row, `[rows, n]`.
    pub fn sums_of_rows(&self, of_pairs: &Tensor) -> Result<Tensor> {
        summed(of_pairs, self.row_of_pair.as_ref(), &self.rows)
    }

    /// The reverse of [`Placed::of_targets`]: sums for each pair, `[pairs]`.
    pub fn sums_of_pairs(&self, of_targets: &Tensor) -> Result<Tensor> {
        summed(of_targets, self.pair_of_target.as_ref(), &self.targets)
    }
}

/// The sums of the rows of `x` at each place, as many as `like` has.
fn summed(x: &Tensor, places: Option<&Tensor>, like: &Tensor) -> Result<Tensor> {
    let Some(places) = places else { return Ok(x.shallow_clone()) };
    let mut size = x.size();
    if let (Some(n), Some(of)) = (size.first_mut(), like.size().first()) {
        *n = *of;
    }
    // One rounding, however many are summed.
    let sums = Tensor::f_zeros(&size, (Kind::Float, x.device()))?;
    Ok(sums.f_index_add(0, places, &x.f_to_kind(Kind::Float)?)?.f_to_kind(x.f_kind()?)?)
}
