//! Several records in one row of tokens: positions restart with each record, attention stays inside it.
//!
//! Records that begin alike may share their beginning ([`Segment`]): each sees it and its own rest, not those of the others, at the
//! positions that it would have alone.

use std::cell::OnceCell;

use tch::{Device, Tensor};

use super::sequences::Sequences;
use super::{Error, Result};
use crate::quant::Segment;
use crate::tensor::upload;

/// A packed row of records, ready for the model.
#[derive(Debug)]
pub struct Packed {
    /// `[tokens]` i64.
    pub ids: Tensor,
    /// `[tokens]`, restarting with each record.
    pub positions: Positions,
    pub(super) segments: Vec<Segment>,
    /// For attention by libtorch's operations, made when first asked for.
    sequences: OnceCell<Sequences>,
}

/// Positions of tokens, and the last of them, so that no device has to be asked for it.
#[derive(Debug)]
pub struct Positions {
    /// `[n]` i64.
    pub(super) tensor: Tensor,
    pub(super) last: i64,
}

impl Positions {
    /// Places positions on a device.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(positions: &[i64], device: Device) -> Result<Self> {
        let last = positions.iter().copied().max().unwrap_or(0);
        Ok(Self { tensor: upload(positions, device)?, last })
    }
}

impl Packed {
    /// Packs the token ids of records laid out as `segments` say.
    ///
    /// # Errors
    /// [`Error::TokenRange`] when an id is outside the vocabulary, or when memory is short.
    pub fn new(ids: &[i64], segments: &[Segment], vocab_size: i64, device: Device) -> Result<Self> {
        if let Some(&id) = ids.iter().find(|id| !(0..vocab_size).contains(*id)) {
            return Err(Error::TokenRange { id, vocab_size });
        }
        Ok(Self {
            ids: upload(ids, device)?,
            positions: Positions::new(&positions(segments), device)?,
            segments: segments.to_vec(),
            sequences: OnceCell::new(),
        })
    }

    /// Tokens in the row.
    pub fn n_tokens(&self) -> i64 {
        self.ids.size().first().copied().unwrap_or(0)
    }

    pub(super) fn sequences(&self) -> Result<&Sequences> {
        if let Some(sequences) = self.sequences.get() {
            return Ok(sequences);
        }
        let sequences = Sequences::new(&self.segments, self.ids.device())?;
        Ok(self.sequences.get_or_init(|| sequences))
    }
}

/// The position of every token.
fn positions(segments: &[Segment]) -> Vec<i64> {
    let first = |followed: Vec<usize>| followed.iter().map(|&number| segments[number].len).sum::<usize>() as i64;
    let all = segments.iter().zip(Segment::followed(segments));
    all.flat_map(|(segment, followed)| (first(followed)..).take(segment.len)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_on_after_what_is_followed() {
        let segments = [(2, 0), (2, 1), (1, 2), (3, 1), (2, 0)].map(|(len, depth)| Segment { depth, len });
        let packed = Packed::new(&[0; 10], &segments, 1, Device::Cpu).unwrap();
        assert_eq!(Vec::<i64>::try_from(&packed.positions.tensor).unwrap(), [0, 1, 2, 3, 4, 2, 3, 4, 0, 1]);
        assert_eq!(packed.positions.last, 4);
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_refused() {
        let refused = Packed::new(&[3], &[Segment::plain(1)], 3, Device::Cpu);
        assert!(matches!(refused, Err(Error::TokenRange { id: 3, vocab_size: 3 })));
    }
}
