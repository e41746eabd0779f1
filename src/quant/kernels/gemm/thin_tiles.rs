//! Products with an adapter's thin matrices on AMX, by the steps of the large ones: 32 rows of activations lie as a left operand in
//! memory, or 32 columns of them are packed as a right one, and the thin matrix is the other.

use half::bf16;

use super::amx::Tiles;
use super::layout::{Order, PAIR_ROWS};
use super::step::{DEPTH, Line, PAIR_LINES, Sums};
use super::wide;

/// A thin matrix as an operand.
pub struct Thin {
    /// For each 32 ranks pairs of tiles over the summed dimension.
    lines: Vec<Line>,
    /// Pairs of tiles for 32 ranks.
    depth: usize,
    /// Of the ranks in a right operand's tiles.
    order: Order,
}

impl Thin {
    /// `A` `[rank, summed]` as a right operand.
    ///
    /// # Safety
    /// The processor has AVX-512.
    pub unsafe fn of_rows(a: &[bf16], rank: usize, summed: usize) -> Self {
        let mut thin = Self::zeros(rank, summed, Order::AsTheyCome);
        for (lines, a) in thin.lines.chunks_exact_mut(thin.depth * PAIR_LINES).zip(a.chunks(PAIR_ROWS * summed)) {
            // SAFETY: the caller has the instructions.
            unsafe { wide::pack_right(a, summed, lines) }
        }
        thin
    }

    /// `B` `[summed, rank]` as a right operand.
    ///
    /// # Safety
    /// As [`Thin::of_rows`].
    pub unsafe fn of_columns(b: &[bf16], rank: usize, summed: usize) -> Self {
        let mut thin = Self::zeros(rank, summed, Order::Apart);
        for (group, lines) in thin.lines.chunks_exact_mut(thin.depth * PAIR_LINES).enumerate() {
            // SAFETY: as above.
            unsafe { wide::pack_columns(b, rank, group * PAIR_ROWS, 0, lines) }
        }
        thin
    }

    /// `z` `[summed, rank]`, transposed, as a left operand.
    pub fn transposed(z: &[bf16], rank: usize, summed: usize) -> Self {
        let mut thin = Self::zeros(rank, summed, Order::AsTheyCome);
        for (at, z) in z.chunks_exact(rank).enumerate() {
            for (idx, value) in z.iter().enumerate() {
                let pair = idx / PAIR_ROWS * thin.depth + at / DEPTH;
                thin.lines[pair * PAIR_LINES + idx % PAIR_ROWS].0[at % DEPTH] = value.to_bits();
            }
        }
        thin
    }

    fn zeros(rank: usize, summed: usize, order: Order) -> Self {
        let depth = summed.div_ceil(DEPTH);
        Self { lines: vec![Line::ZERO; rank.div_ceil(PAIR_ROWS) * depth * PAIR_LINES], depth, order }
    }

    /// For each 32 ranks their lines.
    fn groups(&self) -> impl Iterator<Item = &[Line]> {
        self.lines.chunks_exact(self.depth * PAIR_LINES)
    }

    /// The sums of `x` `[up to 32, summed]`, `summed` whole [`DEPTH`]s, with this right operand, 32 ranks after the other: the first
    /// rank, the sums and how [`row_of`](super::row_of) reads them.
    pub fn products(&self, tiles: &Tiles, x: &[bf16], summed: usize, mut use_sums: impl FnMut(usize, &Sums, Order)) {
        let run = (0, self.depth);
        let whole: Vec<bf16>;
        let rows = match tiles.in_place(x, summed, 0, run) {
            Some(rows) => Some(rows),
            None => {
                let missing = (PAIR_ROWS * summed).saturating_sub(x.len());
                whole = x.iter().copied().chain(std::iter::repeat_n(bf16::ZERO, missing)).collect();
                tiles.in_place(&whole, summed, 0, run)
            }
        };
        let mut sums = Sums::ZERO;
        for (group, lines) in self.groups().enumerate() {
            if let Some(rows) = rows {
                rows.step(lines, false, &mut sums);
            }
            use_sums(group * PAIR_ROWS, &sums, self.order);
        }
    }

    /// The sums of this left operand with 32 columns, from `column` on, of `x` `[n, width]`, 32 ranks after the other, as
    /// [`Thin::products`]. `packed` is overwritten.
    pub fn sums_over_rows(
        &self,
        tiles: &Tiles,
        (x, width, column): (&[bf16], usize, usize),
        packed: &mut Vec<Line>,
        mut use_sums: impl FnMut(usize, &Sums, Order),
    ) {
        packed.resize(self.depth * PAIR_LINES, Line::ZERO);
        // SAFETY: whoever has tiles has AVX-512.
        unsafe { wide::pack_columns(x, width, column, 0, packed) }
        let mut sums = Sums::ZERO;
        for (group, lines) in self.groups().enumerate() {
            tiles.step(lines, packed, false, &mut sums);
            use_sums(group * PAIR_ROWS, &sums, Order::Apart);
        }
    }
}
