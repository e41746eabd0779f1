//! Products of many token rows with an NF4 weight in bf16, the weight expanded a piece at a time into the cache.
//!
//! The summed dimension is cut into chunks. For each, 64 rows or columns of the weight are expanded into tiles, which stay in
//! the first-level cache while all token rows go by; token rows are brought into tiles once. `x W^T` takes the
//! weight as the left operand, so that its rows need no rearranging, and turns the sums; `dy W` takes it as the right one,
//! where two rows at a time are expanded into one register. Every element is summed in the same order whatever the number
//! of threads.
#![allow(unsafe_code)]

mod amx;
mod layout;
mod step;
mod vectors;

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::{Finish, Isa, Over, Product};
use crate::quant::nf4::BLOCK;
use layout::{PAIR_ROWS, UNIT, unit_lines};
use step::{DEPTH, Engine, Line, PAIR_LINES, Sums};

pub use amx::has_tiles;

/// The most of the summed dimension in a chunk, in [`DEPTH`]s: a pair of tiles of either operand, 20 KB each, fits into
/// 48 KB of first-level cache.
const CHUNK: usize = 10;

/// Token rows of a task, in pairs of tiles: their part of a chunk fits into the second-level cache.
const TASK_PAIRS: usize = 32;

/// Sums that a task holds between chunks: they fit into the second-level cache beside the rest.
const TASK_SUMS: usize = (768 << 10) / size_of::<Sums>();

/// What a thread keeps from one product to the next.
#[derive(Default)]
struct Scratch {
    expanded: Vec<Line>,
    low: Vec<Line>,
    sums: Vec<Sums>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static PACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// A result's memory, which tasks fill side by side.
struct Out {
    first: *mut bf16,
    n: usize,
    width: usize,
}

// SAFETY: tasks write different elements (`Work::run` names a task's rows and columns).
unsafe impl Sync for Out {}

impl Out {
    /// Writes 32 columns of 32 rows from a place on, as far as they are there.
    fn write(&self, row: usize, column: usize, values: &[Line; PAIR_ROWS]) {
        let len = (self.width.saturating_sub(column)).min(DEPTH);
        for (row, values) in (row..self.n).zip(values) {
            // SAFETY: `row` is below `n`, and `column + len` not above `width`.
            unsafe {
                let to = self.first.add(row * self.width + column);
                match len {
                    // A size that the compiler knows is one store.
                    DEPTH => to.cast::<[u16; DEPTH]>().write_unaligned(values.0),
                    _ => std::ptr::copy_nonoverlapping(values.0.as_ptr().cast(), to, len),
                }
            }
        }
    }
}

/// Computes a product with the instructions `isa`, at least [`Isa::Avx512Bf16`]; columns are whole blocks. Where the processor
/// has no such instructions, or sizes do not fit, nothing happens.
pub fn multiply_many(isa: Isa, product: &Product<'_>, out: &mut [bf16], scaled: Option<&mut [bf16]>) {
    let (summed, width) = product.widths();
    let n = product.n;
    let low_rank = product.low_rank.as_ref();
    let fits = product.fits(out.len(), scaled.as_ref().map(|scaled| scaled.len()));
    if !super::can_multiply_many(isa) || n == 0 || width == 0 || !fits {
        return;
    }
    let depth = summed.div_ceil(DEPTH);
    let low_depth = low_rank.map_or(0, |low_rank| low_rank.rank.div_ceil(DEPTH));
    let n_streams = product.streams.len();
    let pairs = n.div_ceil(PAIR_ROWS);
    // Taken, not borrowed: while it waits for others, a thread of the pool may begin another product.
    let mut packed = PACKED.take();
    let pair_lines = (n_streams * depth + low_depth) * PAIR_LINES;
    if packed.len() < pairs * pair_lines {
        packed.resize(pairs * pair_lines, Line::ZERO);
    }
    packed[..pairs * pair_lines].par_chunks_exact_mut(pair_lines.max(1)).enumerate().for_each(|(pair, packed)| {
        let rows = |x: &'_ [bf16], width: usize| {
            let range = pair * PAIR_ROWS * width..((pair + 1) * PAIR_ROWS).min(n) * width;
            (range.start, range.end.min(x.len()))
        };
        let pack = |x: &[bf16], width: usize, scale: Option<&[f32]>, packed: &mut [Line]| {
            let (start, end) = rows(x, width);
            // SAFETY: the instructions are there (`can_multiply_many`).
            unsafe {
                match product.over {
                    Over::Columns => layout::pack_right(&x[start..end], width, packed),
                    Over::Rows => layout::pack_left(&x[start..end], width, scale, packed),
                }
            }
        };
        let (streams, low) = packed.split_at_mut(n_streams * depth * PAIR_LINES);
        for (stream, packed) in product.streams.iter().zip(streams.chunks_exact_mut((depth * PAIR_LINES).max(1))) {
            if let Some(x) = stream.x {
                pack(x, summed, stream.scale, packed);
            }
        }
        if let Some(low_rank) = low_rank {
            pack(low_rank.inner, low_rank.rank, None, low);
        }
    });
    let outs = Outs {
        out: Out { first: out.as_mut_ptr(), n, width },
        scaled: scaled.map(|scaled| Out { first: scaled.as_mut_ptr(), n, width }),
    };
    let token_tasks = (pairs * n_streams).div_ceil(TASK_PAIRS).min(pairs);
    let task_pairs = pairs.div_ceil(token_tasks);
    let units = width.div_ceil(UNIT);
    let most = (TASK_SUMS / (2 * task_pairs * n_streams)).clamp(1, units);
    let tasks = units.div_ceil(most).next_multiple_of(rayon::current_num_threads()).min(units);
    let task_units = units.div_ceil(tasks);
    (0..token_tasks * tasks).into_par_iter().with_max_len(1).for_each(|task| {
        let (token_task, task) = (task / tasks, task % tasks);
        let range = |size: usize, idx: usize, end: usize| (idx * size).min(end)..((idx + 1) * size).min(end);
        let (pairs, units) = (range(task_pairs, token_task, pairs), range(task_units, task, units));
        let mut scratch = SCRATCH.take();
        let work = Work { isa, product, packed: &packed, depth, low_depth, pair_lines, outs: &outs };
        work.run(pairs, units, &mut scratch);
        SCRATCH.set(scratch);
    });
    PACKED.set(packed);
}

struct Outs {
    out: Out,
    scaled: Option<Out>,
}

/// What the tasks of a product share.
struct Work<'a> {
    isa: Isa,
    product: &'a Product<'a>,
    /// For each 32 rows of tokens the tiles of all streams, then those of the low-rank factor.
    packed: &'a [Line],
    depth: usize,
    low_depth: usize,
    pair_lines: usize,
    outs: &'a Outs,
}

impl Work<'_> {
    /// The rows of `pairs` and the columns of `units` of the result.
    fn run(&self, pairs: Range<usize>, units: Range<usize>, scratch: &mut Scratch) {
        let Scratch { expanded, low, sums } = scratch;
        let depth = self.depth;
        let n_streams = self.product.streams.len();
        expanded.resize(unit_lines(CHUNK), Line::ZERO);
        low.resize(unit_lines(self.low_depth), Line::ZERO);
        let n_sums = 2 * n_streams * pairs.len() * units.len();
        if sums.len() < n_sums {
            sums.resize(n_sums, Sums::ZERO);
        }
        // SAFETY: `multiply_many` has asked whether they are there, and enough.
        let engine = unsafe { Engine::new(self.isa) };
        let step = |weight: &[Line], tokens: &[Line], len: usize, adds: bool, sums: &mut Sums| match self.product.over {
            Over::Columns => engine.step(weight, tokens, len, adds, sums),
            Over::Rows => engine.step(tokens, weight, len, adds, sums),
        };
        let n_chunks = depth.div_ceil(CHUNK);
        // Even, as blocks of the weight are whole: two `DEPTH`s each.
        let chunk = depth.div_ceil(n_chunks.max(1)).next_multiple_of(BLOCK / DEPTH).min(CHUNK);
        for start in (0..depth).step_by(chunk) {
            let len = chunk.min(depth - start);
            let is_last = start + len == depth;
            for (unit_idx, unit) in units.clone().enumerate() {
                self.expand(unit, start, len, expanded);
                if is_last {
                    self.expand_low_rank(unit, low);
                }
                for half in 0..2 {
                    let weight = &expanded[half * len * PAIR_LINES..][..len * PAIR_LINES];
                    let low = &low[half * self.low_depth * PAIR_LINES..][..self.low_depth * PAIR_LINES];
                    let sums = &mut sums[(2 * unit_idx + half) * pairs.len() * n_streams..][..pairs.len() * n_streams];
                    for (pair, sums) in pairs.clone().zip(sums.chunks_exact_mut(n_streams)) {
                        let packed = &self.packed[pair * self.pair_lines..][..self.pair_lines];
                        for (idx, (stream, sums)) in self.product.streams.iter().zip(&mut *sums).enumerate() {
                            if stream.x.is_some() {
                                let tokens = &packed[(idx * depth + start) * PAIR_LINES..][..len * PAIR_LINES];
                                step(weight, tokens, len, start > 0, sums);
                            }
                            if is_last && stream.has_low_rank {
                                let tokens = &packed[n_streams * depth * PAIR_LINES..];
                                step(low, tokens, self.low_depth, stream.x.is_some(), sums);
                            }
                        }
                        if is_last {
                            self.finish(pair * PAIR_ROWS, unit * UNIT + half * DEPTH, sums);
                        }
                    }
                }
            }
        }
    }

    /// Makes results of sums: 32 rows of tokens from `row` on, 32 columns from `column` on.
    fn finish(&self, row: usize, column: usize, sums: &mut [Sums]) {
        let mut rounded = [Line::ZERO; PAIR_ROWS];
        // SAFETY: the instructions are there (`multiply_many`).
        unsafe {
            match self.product.finish {
                Finish::Outputs { bias, change } => {
                    let part = |of: Option<&[f32]>| of.map(|values| layout::part(values, column));
                    if let [first, second] = sums {
                        layout::add_gained(first, second, part(change));
                        if let Some(scaled) = &self.outs.scaled {
                            layout::round_transposed(second, None, &mut rounded);
                            scaled.write(row, column, &rounded);
                        }
                    }
                    layout::round_transposed(&sums[0], part(bias), &mut rounded);
                }
                Finish::Gradients { before, mask } => {
                    let at = row * self.outs.out.width + column;
                    let before = before.map(|values| layout::Rows::new(values, at, self.outs.out.width));
                    let mask = mask.map(|values| layout::Rows::new(values, at, self.outs.out.width));
                    let (first, rest) = sums.split_at(1);
                    layout::round_interleaved(&first[0], rest.first().zip(mask), before, &mut rounded);
                }
            }
        }
        self.outs.out.write(row, column, &rounded);
    }

    /// Expands what a unit of the result needs of the weight over a part of the summed dimension.
    fn expand(&self, unit: usize, start: usize, len: usize, out: &mut [Line]) {
        let Product { rows, columns, rounding, ref source, .. } = *self.product;
        // SAFETY: the instructions are there (`multiply_many`).
        unsafe {
            match self.product.over {
                Over::Columns => {
                    let blocks = (start * DEPTH / BLOCK, len * DEPTH / BLOCK);
                    layout::expand_rows(source, rounding, (rows, columns), unit * UNIT, blocks, out);
                }
                Over::Rows => {
                    layout::expand_columns(source, rounding, (rows, columns), unit, (start * DEPTH, len), out);
                }
            }
        }
    }

    /// As [`Work::expand`] for the matrix of the low-rank term.
    fn expand_low_rank(&self, unit: usize, out: &mut [Line]) {
        let Some(low_rank) = &self.product.low_rank else { return };
        let lines = self.low_depth * PAIR_LINES;
        for (half, out) in out.chunks_exact_mut(lines.max(1)).enumerate() {
            let first = unit * UNIT + half * DEPTH;
            // SAFETY: the instructions are there (`multiply_many`).
            unsafe {
                match self.product.over {
                    Over::Columns => {
                        let rows = first.min(self.product.rows)..(first + DEPTH).min(self.product.rows);
                        let matrix = &low_rank.matrix[rows.start * low_rank.rank..rows.end * low_rank.rank];
                        layout::pack_left(matrix, low_rank.rank, None, out);
                    }
                    Over::Rows => layout::pack_columns(low_rank.matrix, self.product.columns, first, out),
                }
            }
        }
    }
}
