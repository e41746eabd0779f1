//! Several records in one row of tokens: positions restart with each record, attention stays inside it.
//!
//! A record may branch: after a common trunk (a prompt) each branch (a chosen and a rejected answer) sees the trunk and
//! itself, not the others, at the positions it would have if it followed the trunk alone.

use std::cell::OnceCell;

use tch::{Device, Tensor};

use super::fused::Fused;
use super::{Error, Result};
use crate::quant::Part;
use crate::tensor::upload;

/// The most elements of one group's attention scores per head, so that memory grows with tokens, not their square.
pub const MAX_GROUP_SCORES: i64 = 1 << 20;

/// One record in a packed row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Tokens that every branch sees.
    pub len_trunk: usize,
    /// Lengths of the branches, in the order in which their tokens follow the trunk.
    pub len_branches: Vec<usize>,
}

/// Which part of a segment a token belongs to: the trunk, or the branch of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Branch {
    Trunk,
    Number(usize),
}

impl Segment {
    /// A record without branches.
    pub fn plain(len: usize) -> Self {
        Self { len_trunk: len, len_branches: Vec::new() }
    }

    /// Tokens in all.
    pub fn len(&self) -> usize {
        self.len_trunk + self.len_branches.iter().sum::<usize>()
    }

    /// Whether the record has no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The trunk and the branches.
    fn parts(&self) -> impl Iterator<Item = Part> {
        let branches = self.len_branches.iter().map(|&len| Part::Branch(len));
        std::iter::once(Part::Root(self.len_trunk)).chain(branches)
    }

    /// Position and part of every token.
    fn tokens(&self) -> Vec<(usize, Branch)> {
        let trunk = (0..self.len_trunk).map(|position| (position, Branch::Trunk));
        let branches = self
            .len_branches
            .iter()
            .enumerate()
            .flat_map(|(number, &len)| (0..len).map(move |idx| (self.len_trunk + idx, Branch::Number(number))));
        trunk.chain(branches).collect()
    }
}

/// A packed row of records, ready for the model.
#[derive(Debug)]
pub struct Packed {
    /// `[tokens]` i64.
    pub ids: Tensor,
    /// `[tokens]`, restarting with each record.
    pub positions: Positions,
    /// For attention on a GPU.
    pub(super) fused: Option<Fused>,
    /// For attention on the CPU by our own loops.
    pub(super) parts: Vec<Part>,
    segments: Vec<Segment>,
    /// Made when they are first asked for.
    groups: OnceCell<Groups>,
}

/// For attention on the CPU by libtorch's operations: records of similar length together.
#[derive(Debug)]
pub(super) struct Groups {
    pub groups: Vec<Group>,
    /// `[tokens]` i64: each token's row in the groups' rows one after another. `None` when that is the identity.
    pub unpack: Option<Tensor>,
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

/// Records of similar length, padded on the right to one length for attention only.
#[derive(Debug)]
pub(super) struct Group {
    /// `[n * len]` i64: the packed row of every token, 0 for padding. `None` when that is the identity.
    pub gather: Option<Tensor>,
    pub n: i64,
    pub len: i64,
    /// Added to the scores: `[n or 1, 1, 1, len, len]` f32, 0 or minus infinity. A padded query sees padded keys, so
    /// that no row is empty; no token sees padding.
    pub mask: Tensor,
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
        let tokens = segments.iter().flat_map(Segment::tokens);
        let positions: Vec<i64> = tokens.map(|(position, _)| position as i64).collect();
        Ok(Self {
            ids: upload(ids, device)?,
            positions: Positions::new(&positions, device)?,
            fused: if device == Device::Cpu { None } else { Some(Fused::new(segments, device)?) },
            parts: segments.iter().flat_map(Segment::parts).collect(),
            segments: segments.to_vec(),
            groups: OnceCell::new(),
        })
    }

    /// Tokens in the row.
    pub fn n_tokens(&self) -> i64 {
        self.ids.size().first().copied().unwrap_or(0)
    }

    pub(super) fn groups(&self) -> Result<&Groups> {
        if let Some(groups) = self.groups.get() {
            return Ok(groups);
        }
        let groups = Groups::new(&self.segments, self.ids.device())?;
        Ok(self.groups.get_or_init(|| groups))
    }
}

impl Groups {
    fn new(segments: &[Segment], device: Device) -> Result<Self> {
        let n_tokens = segments.iter().map(Segment::len).sum();
        let mut start = 0;
        let mut order: Vec<(usize, i64)> = Vec::with_capacity(segments.len());
        for (idx, segment) in segments.iter().enumerate() {
            order.push((idx, start));
            start += segment.len() as i64;
        }
        order.sort_by_key(|&(idx, _)| std::cmp::Reverse(segments[idx].len()));

        let mut groups = Vec::new();
        let mut unpack = vec![0i64; n_tokens];
        let mut n_rows = 0;
        let mut rest = order.as_slice();
        while let Some(&(first, _)) = rest.first() {
            let len = segments[first].len().max(1);
            let fits = |(taken, &(idx, _)): (usize, &(usize, i64))| {
                4 * segments[idx].len() >= 3 * len && (taken as i64 + 1) * (len * len) as i64 <= MAX_GROUP_SCORES
            };
            let n = rest.iter().enumerate().take_while(|&(taken, item)| taken == 0 || fits((taken, item))).count();
            let (members, others) = rest.split_at(n);
            rest = others;
            groups.push(group(segments, members, len, device)?);
            for &(idx, start) in members {
                for token in 0..segments[idx].len() as i64 {
                    unpack[(start + token) as usize] = n_rows + token;
                }
                n_rows += len as i64;
            }
        }
        let is_identity = n_rows == n_tokens as i64 && unpack.iter().enumerate().all(|(idx, &row)| idx as i64 == row);
        Ok(Self { groups, unpack: if is_identity { None } else { Some(upload(&unpack, device)?) } })
    }
}

fn group(segments: &[Segment], members: &[(usize, i64)], len: usize, device: Device) -> Result<Group> {
    let mut gather = Vec::with_capacity(members.len() * len);
    for &(idx, start) in members {
        let n_tokens = segments[idx].len();
        gather.extend((0..len).map(|token| if token < n_tokens { start + token as i64 } else { 0 }));
    }
    let is_identity = gather.iter().enumerate().all(|(idx, &row)| idx as i64 == row);
    let branching = members.iter().any(|&(idx, _)| !segments[idx].len_branches.is_empty());
    let mut hidden = Vec::new();
    for &(idx, _) in if branching { members } else { &members[..1] } {
        let mut parts: Vec<Branch> = segments[idx].tokens().iter().map(|&(_, part)| part).collect();
        parts.resize(len, Branch::Trunk);
        for query in 0..len {
            let sees = |key: usize| key <= query && (parts[key] == Branch::Trunk || parts[key] == parts[query]);
            hidden.extend((0..len).map(|key| if sees(key) { 0.0f32 } else { f32::NEG_INFINITY }));
        }
    }
    let shape = [if branching { members.len() as i64 } else { 1 }, 1, 1, len as i64, len as i64];
    Ok(Group {
        gather: if is_identity && members.len() == segments.len() { None } else { Some(upload(&gather, device)?) },
        n: members.len() as i64,
        len: len as i64,
        mask: upload(&hidden, device)?.f_reshape(shape)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_restart_after_the_trunk_and_hide_from_each_other() {
        let segment = Segment { len_trunk: 2, len_branches: vec![2, 1] };
        let packed = Packed::new(&[5, 6, 7, 8, 9], &[segment], 10, Device::Cpu).unwrap();
        assert_eq!(Vec::<i64>::try_from(&packed.positions.tensor).unwrap(), [0, 1, 2, 3, 2]);
        let mask = packed.groups().unwrap().groups[0].mask.view([5, 5]);
        let sees: Vec<Vec<i64>> =
            (0..5).map(|q| (0..5).filter(|&k| mask.double_value(&[q, k]) == 0.0).collect()).collect();
        assert_eq!(sees, [vec![0], vec![0, 1], vec![0, 1, 2], vec![0, 1, 2, 3], vec![0, 1, 4]]);
    }

    #[test]
    fn every_token_finds_its_way_back_from_its_group() {
        let lens = [3usize, 9, 2, 10, 8, 3];
        let segments: Vec<Segment> = lens.iter().map(|&len| Segment::plain(len)).collect();
        let n: usize = lens.iter().sum();
        let ids: Vec<i64> = (0..n as i64).collect();
        let packed = Packed::new(&ids, &segments, n as i64, Device::Cpu).unwrap();
        let Groups { groups, unpack } = packed.groups().unwrap();
        assert!(groups.len() > 1);
        let rows: Vec<Tensor> =
            groups.iter().map(|group| packed.ids.index_select(0, group.gather.as_ref().unwrap())).collect();
        let back = Tensor::cat(&rows, 0).index_select(0, unpack.as_ref().unwrap());
        assert_eq!(back, packed.ids);
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_refused() {
        let refused = Packed::new(&[3], &[Segment::plain(1)], 3, Device::Cpu);
        assert!(matches!(refused, Err(Error::TokenRange { id: 3, vocab_size: 3 })));
    }
}
