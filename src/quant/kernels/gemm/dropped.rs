//! The elements that a dropout mask drops, for products of a weight with `x` and with `mask x`: the second one differs from
//! the first, but for a factor, in the few dropped elements only.
//!
//! What is here is made once for a product, from its mask; the loops are in `narrow.rs` and `wide.rs`.

use half::bf16;
use rayon::prelude::*;

use super::super::{Finish, Isa, Product};
use super::layout::PAIR_ROWS;
use super::step::{DEPTH, PAIR_LINES};

/// The mask of a product whose second sums follow from the first and from the dropped elements.
pub fn mask<'a>(product: &Product<'a>) -> Option<&'a [bf16]> {
    match (product.finish, product.streams) {
        (Finish::Outputs { mask, .. }, [_, _]) => mask,
        (Finish::Gradients { mask, .. }, [_, second]) if second.x.is_some() && second.scale.is_some() => mask,
        _ => None,
    }
}

/// Neighbours of the summed dimension of which one or both are dropped.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The pair's line in a run of the summed dimension of the right operand, that of the first 16 columns.
    pub line: u32,
    /// The two values in bf16, the first one low; zero where it is not dropped.
    pub values: u32,
}

/// The entries of 32 rows of tokens: chunk by chunk of the summed dimension, row by row.
#[derive(Default)]
pub struct Entries {
    entries: Vec<Entry>,
    /// For each chunk and row, where its entries end.
    ends: Vec<u32>,
}

impl Entries {
    /// The entries of a chunk, those of each of the 32 rows.
    pub fn rows(&self, chunk: usize) -> impl Iterator<Item = &[Entry]> {
        let first = chunk * PAIR_ROWS;
        (first..first + PAIR_ROWS).map(|idx| {
            let start = idx.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.entries[start as usize..self.ends[idx] as usize]
        })
    }

    /// Lists the dropped elements of `x` `[up to 32, width]`, `chunk` times [`DEPTH`] of them in a chunk.
    fn fill(&mut self, x: &[bf16], width: usize, bits: &[[u32; PAIR_ROWS]], chunk: usize) {
        self.entries.clear();
        self.ends.clear();
        for (chunk_idx, bits) in bits.chunks(chunk).enumerate() {
            for row in 0..PAIR_ROWS {
                for (depth, bits) in bits.iter().enumerate() {
                    let bits = bits[row];
                    let start = row * width + (chunk_idx * chunk + depth) * DEPTH;
                    let mut pairs = (bits | bits >> 1) & 0x5555_5555;
                    while pairs != 0 {
                        let place = pairs.trailing_zeros();
                        pairs &= pairs - 1;
                        let value = |place: u32| match bits >> place & 1 {
                            0 => 0,
                            _ => u32::from(x[start + place as usize].to_bits()),
                        };
                        let values = value(place) | value(place + 1) << 16;
                        self.entries.push(Entry { line: (depth * PAIR_LINES) as u32 + place / 2, values });
                    }
                }
                self.ends.push(self.entries.len() as u32);
            }
        }
    }
}

/// The dropped elements of a mask `[n, columns]`, whose columns are whole [`DEPTH`]s.
#[derive(Default)]
pub struct Dropped {
    /// What the elements that are not dropped are multiplied with.
    pub kept: f32,
    /// [`DEPTH`]s in a row of the mask.
    groups: usize,
    /// For each 32 rows and each [`DEPTH`] of columns, the columns that are dropped in each row.
    bits: Vec<[u32; PAIR_ROWS]>,
    /// For each 32 rows.
    entries: Vec<Entries>,
}

impl Dropped {
    /// The share of dropped elements, one in so many, up to which it pays to handle them one by one.
    const ONE_IN: usize = 7;

    /// Reads a mask. Whether it pays: all elements are 0 or one other value, and few are 0.
    pub fn fill(&mut self, isa: Isa, mask: &[bf16], columns: usize) -> bool {
        let Some(kept) = mask.iter().copied().find(|value| value.to_bits() != 0) else { return false };
        (self.kept, self.groups) = (kept.to_f32(), columns / DEPTH);
        self.bits.clear();
        self.bits.resize((mask.len() / columns).div_ceil(PAIR_ROWS) * self.groups, [0; PAIR_ROWS]);
        let parts = self.bits.par_chunks_mut(self.groups).zip(mask.par_chunks(PAIR_ROWS * columns));
        // SAFETY: the instructions are there (`multiply_many`).
        let n_dropped =
            parts.map(|(bits, mask)| unsafe { made_for!(isa, scan(mask, columns, kept, bits)) }).sum::<Option<usize>>();
        n_dropped.is_some_and(|n_dropped| n_dropped <= mask.len() / Self::ONE_IN)
    }

    /// Lists the dropped elements of `x`, which has the size of the mask.
    pub fn list(&mut self, x: &[bf16], chunk: usize) {
        let (groups, width) = (self.groups, self.groups * DEPTH);
        self.entries.resize_with(self.bits.len() / groups, Entries::default);
        let parts = self.entries.par_iter_mut().zip(x.par_chunks(PAIR_ROWS * width));
        parts.zip(self.bits.par_chunks(groups)).for_each(|((entries, x), bits)| entries.fill(x, width, bits, chunk));
    }

    /// The listed elements of 32 rows.
    pub fn entries(&self, pair: usize) -> &Entries {
        &self.entries[pair]
    }

    /// The dropped ones of 32 columns in each of 32 rows; none beyond the mask.
    pub fn bits(&self, pair: usize, group: usize) -> &[u32; PAIR_ROWS] {
        &self.bits[pair * self.groups + group]
    }
}
