//! How operands lie in tiles and sums come out of them, and the loops for it that need no instructions of their own.

use half::bf16;

use super::super::{Rounding, Source};
use super::step::{DEPTH, Line, PAIR_LINES, SIDE, Sums};
use crate::quant::nf4::BLOCK;

/// Token rows of a pair of tiles.
pub const PAIR_ROWS: usize = 2 * SIDE;

/// Columns or rows of the weight that are expanded together: two pairs of tiles.
pub const UNIT: usize = 64;

/// Lines into which [`Codes::expand_rows`] and [`Codes::expand_columns`] expand a unit over `depth` times [`DEPTH`] elements.
pub fn unit_lines(depth: usize) -> usize {
    2 * depth * PAIR_LINES
}

/// Which rows the lines of a pair of tiles hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they come.
    AsTheyCome,
    /// The even ones, then the odd ones.
    Apart,
}

impl Order {
    /// The row of a line.
    fn row(self, line: usize) -> usize {
        match self {
            Self::AsTheyCome => line,
            Self::Apart => 2 * (line % SIDE) + line / SIDE,
        }
    }

    /// The line of a row.
    fn line(self, row: usize) -> usize {
        match self {
            Self::AsTheyCome => row,
            Self::Apart => row % 2 * SIDE + row / 2,
        }
    }
}

for_each_processor! {
    /// Rows of a matrix as tiles for the left side of a product: for 32 rows, `x` `[up to 32, width]`, a pair of tiles for each
    /// [`DEPTH`] columns from number `first` on. What is missing is zero. A `scale` `[width]` multiplies the columns.
    pub fn pack_left(x: &[bf16], width: usize, scale: Option<&[f32]>, first: usize, order: Order, out: &mut [Line]) {
        for (depth, out) in (first..).zip(out.chunks_exact_mut(PAIR_LINES)) {
            for (number, out) in out.iter_mut().enumerate() {
                *out = line(x, width, order.row(number), depth * DEPTH);
            }
            let Some(scale) = scale else { continue };
            let scale = part(scale, depth * DEPTH);
            out.iter_mut().for_each(|out| out.multiply(&scale));
        }
    }
}

/// Up to 32 values from `start` on, then zeros.
pub fn part(values: &[f32], start: usize) -> [f32; DEPTH] {
    let mut part = [0.0; DEPTH];
    let values = values.get(start..).unwrap_or_default();
    part.iter_mut().zip(values).for_each(|(part, value)| *part = *value);
    part
}

/// Rows of a matrix of bf16 from a place on.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    values: &'a [bf16],
    width: usize,
}

impl<'a> Rows<'a> {
    /// From element `at` of a matrix that is `width` wide.
    pub fn new(values: &'a [bf16], at: usize, width: usize) -> Self {
        Self { values: values.get(at..).unwrap_or_default(), width }
    }

    /// 32 elements of a row; `rest` takes those that are there where they are not all, then zeros.
    #[inline(always)]
    pub fn row<'b>(&self, row: usize, rest: &'b mut [bf16; DEPTH]) -> &'b [bf16; DEPTH]
    where
        'a: 'b,
    {
        let values = self.values.get(row * self.width..).unwrap_or_default();
        values.first_chunk().unwrap_or_else(|| {
            *rest = [bf16::ZERO; DEPTH];
            rest.iter_mut().zip(values).for_each(|(rest, value)| *rest = *value);
            rest
        })
    }
}

/// The 32 sums of row `idx`, whose columns the tiles hold in an order.
pub fn row_of(sums: &Sums, idx: usize, order: Order) -> [f32; DEPTH] {
    let tiles = &sums.0[2 * (idx / SIDE)..][..2];
    std::array::from_fn(|at| {
        let line = order.line(at);
        tiles[line / SIDE][idx % SIDE][line % SIDE]
    })
}

/// The 32 sums of column `idx`.
pub fn column_of(sums: &Sums, idx: usize) -> [f32; DEPTH] {
    std::array::from_fn(|row| sums.0[2 * (row / SIDE) + idx / SIDE][row % SIDE][idx % SIDE])
}

for_each_processor! {
    /// Adds to `sums` the products of `a` and `b`.
    pub fn add_products(a: &[f32; DEPTH], b: &[f32; DEPTH], sums: &mut [f32; DEPTH]) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum = a.mul_add(*b, *sum));
    }
}

/// Puts sums of four parts in their places: those that `bits` names of 32 columns as [`Codes::expand_columns`] orders them, for each
/// of 32 rows. Says how many they are.
pub fn put_elements(elements: &[[f32; 4]], bits: &[u32; PAIR_ROWS], sums: &mut Sums) -> usize {
    let places = bits.iter().enumerate().flat_map(|(row, &bits)| {
        let rests = std::iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1)));
        rests.take_while(|&bits| bits != 0).map(move |bits| (row, bits.trailing_zeros() as usize))
    });
    let mut n = 0;
    for (&[a, b, c, d], (row, column)) in elements.iter().zip(places) {
        sums.0[2 * (row / SIDE) + column % 2][row % SIDE][column / 2] = (a + b) + (c + d);
        n += 1;
    }
    n
}

/// The row's 32 elements from a column on, with zeros beyond `x`.
#[inline(always)]
pub fn line(x: &[bf16], width: usize, row: usize, column: usize) -> Line {
    let (at, len) = (row * width + column, DEPTH.min(width.saturating_sub(column)));
    let x = x.get(at..at + len).unwrap_or_default();
    let mut line = Line::ZERO;
    match x.first_chunk::<DEPTH>() {
        // A size that the compiler knows is one load.
        Some(x) => line.0.iter_mut().zip(x).for_each(|(out, x)| *out = x.to_bits()),
        None => line.0.iter_mut().zip(x).for_each(|(out, x)| *out = x.to_bits()),
    }
    line
}

/// An NF4 weight `[rows, columns]` as it is expanded; columns are whole blocks.
#[derive(Clone, Copy)]
pub struct Codes<'a> {
    pub source: Source<'a>,
    pub rounding: Rounding,
    pub rows: usize,
    pub columns: usize,
}

impl Codes<'_> {
    /// The bytes of some blocks of a row from number `block` on.
    #[inline(always)]
    fn bytes(&self, row: usize, block: usize, n_blocks: usize) -> &[[u8; SIDE]] {
        let first = row * (self.columns / BLOCK) + block;
        self.source.packed[first * BLOCK / 2..][..n_blocks * BLOCK / 2].as_chunks().0
    }

    /// Expands 64 rows, from `row` on, as the left side of a product: blocks `first..first + n_blocks` of each, for 32 rows and
    /// then the other 32 a pair of tiles for each 32 columns. Rows beyond the weight are zero.
    ///
    /// `table` makes of a scale what `look_up` needs to fill a line with the values of 16 bytes, two each, the high nibble first.
    #[inline(always)]
    pub fn expand_rows<T>(
        &self,
        row: usize,
        (first, n_blocks): (usize, usize),
        order: Order,
        out: &mut [Line],
        table: impl Fn(f32, Rounding) -> T,
        look_up: impl Fn(&[u8; SIDE], &T, &mut Line),
    ) {
        let depth = 2 * n_blocks;
        let mut scales = [0f32; 64];
        let scales = &mut scales[..n_blocks];
        for (panel, out) in out[..unit_lines(depth)].chunks_exact_mut(depth * PAIR_LINES).enumerate() {
            for idx in 0..PAIR_ROWS {
                let (row, idx) = (row + panel * PAIR_ROWS + idx, order.line(idx));
                if row >= self.rows {
                    (0..depth).for_each(|depth| out[depth * PAIR_LINES + idx] = Line::ZERO);
                    continue;
                }
                self.source.scales.fill(row * (self.columns / BLOCK) + first, scales);
                let blocks = self.bytes(row, first, n_blocks).as_chunks::<2>().0;
                for (idx_block, (block, &scale)) in blocks.iter().zip(&*scales).enumerate() {
                    let table = table(scale, self.rounding);
                    for (half, bytes) in block.iter().enumerate() {
                        look_up(bytes, &table, &mut out[(2 * idx_block + half) * PAIR_LINES + idx]);
                    }
                }
            }
        }
    }

    /// Expands 64 columns, those of the blocks number `block` of its rows, as the right side of a product: rows
    /// `first..first + 32 * depth`. For 32 columns and then the other 32, a pair of tiles for each 32 rows: the even columns
    /// and the odd ones. Rows beyond the weight are zero.
    ///
    /// `table` is as in [`Codes::expand_rows`]; `look_up` fills the lines of the even and of the odd columns of two rows.
    #[inline(always)]
    pub fn expand_columns<T>(
        &self,
        block: usize,
        (first, depth): (usize, usize),
        out: &mut [Line],
        table: impl Fn(f32, Rounding) -> T,
        look_up: impl Fn([&[u8; SIDE]; 2], &[T; 2], [&mut Line; 2]),
    ) {
        let table_of = |row: usize| {
            let mut scale = [0f32];
            // The row after the last one is zero.
            if row < self.rows {
                self.source.scales.fill(row * (self.columns / BLOCK) + block, &mut scale);
            }
            table(scale[0], self.rounding)
        };
        for idx in 0..depth * SIDE {
            let row = first + 2 * idx;
            let at = (idx / SIDE) * PAIR_LINES + idx % SIDE;
            let tables = if row < self.rows { Some([table_of(row), table_of(row + 1)]) } else { None };
            for (half, out) in out[..unit_lines(depth)].chunks_exact_mut(depth * PAIR_LINES).enumerate() {
                let (even, odd) = out[at..].split_at_mut(SIDE);
                let Some(tables) = &tables else {
                    (even[0], odd[0]) = (Line::ZERO, Line::ZERO);
                    continue;
                };
                let bytes = [row, (row + 1).min(self.rows - 1)].map(|row| &self.bytes(row, block, 1)[half]);
                look_up(bytes, tables, [&mut even[0], &mut odd[0]]);
            }
        }
    }
}
