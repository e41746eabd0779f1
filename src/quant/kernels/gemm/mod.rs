//! Products of many token rows with a weight in NF4 or bf16, in bf16, the weight expanded a piece at a time into the cache.
//!
//! The summed dimension is cut into chunks. For each, 64 rows or columns of the weight are expanded into tiles, which stay in
//! the first-level cache while all token rows go by; token rows are brought into tiles once. The weight is the right operand.
//! `dy W` expands two of its rows at a time into one register; `x W^T` expands rows and turns them. With AMX, where turning
//! costs more of the time, `x W^T` takes the weight as the left operand, a bf16 one as it lies in memory, and turns the sums. Every
//! element is summed in the same order whatever the number of threads.
//!
//! Without AMX the second product of a layer with dropout is not computed as such. With `c` what the mask's other elements
//! are:
//!
//! - `(mask x) W^T = c (x W^T - e W^T)`, where `e` has the few elements of `x` that are dropped;
//! - `dy W + mask ((dy scale) W)` is `(dy (1 + c scale)) W` where the mask is `c`, and `dy W` in the few elements where it
//!   is 0.
#![allow(unsafe_code)]

/// Calls a loop that is made for the instructions of `isa`: AVX-512's bf16 products, or AVX2's f32 ones.
macro_rules! made_for {
    ($isa:expr, $name:ident $args:tt) => {
        match $isa >= $crate::quant::Isa::Avx512Bf16 {
            true => $crate::quant::kernels::gemm::wide::$name $args,
            false => $crate::quant::kernels::gemm::narrow::$name $args,
        }
    };
}

mod amx;
mod dropped;
mod layout;
mod narrow;
mod step;
pub mod thin_tiles;
mod wide;

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::{Finish, Isa, Norm, Over, Product, Results, Weight};
use crate::quant::nf4::BLOCK;
use amx::InPlace;
use dropped::Dropped;
use layout::{Codes, Order, PAIR_ROWS, UNIT, unit_lines};
use step::{DEPTH, Engine, Extent, Line, PAIR_LINES, Sums};

pub use amx::{Tiles, has_tiles};
pub use layout::row_of;

/// The most of the summed dimension in a chunk, in [`DEPTH`]s. A pair of tiles of either operand, 20 KB each, fits into 48 KB of
/// first-level cache; AMX is fed from the second-level cache as well, and the longer a chunk, the more seldom it puts sums away.
fn longest_chunk(isa: Isa) -> usize {
    if isa == Isa::Amx { 28 } else { 10 }
}

/// Token rows of a task, in pairs of tiles: their part of a chunk fits into the second-level cache.
const TASK_PAIRS: usize = 32;

/// Sums that a task holds between chunks: they fit into the second-level cache beside the rest.
const TASK_SUMS: usize = (768 << 10) / size_of::<Sums>();

/// Tasks for each thread, as far as there are columns: the more, the less the first to be ready waits for the last.
const THREAD_TASKS: usize = 4;

/// [`DEPTH`]s of a sum for each unit of the result from which on a thread has one task only.
const LONG_SUM: usize = 32;

/// What a thread keeps from one product to the next.
#[derive(Default)]
struct Scratch {
    expanded: Vec<Line>,
    low: Vec<Line>,
    sums: Vec<Sums>,
    /// Half a unit's columns, for the elements of a result that are summed one by one.
    columns: Vec<Line>,
    /// Those elements' sums.
    elements: Vec<[f32; 4]>,
    /// Of the rows of [`Norm::lora_a`].
    norm_sums: Vec<Sums>,
}

/// Rows of tokens as a product's tasks read them.
#[derive(Default)]
struct Tokens {
    /// For each 32 rows the tiles of all factors, then those of the low-rank factor.
    lines: Vec<Line>,
    /// The same of [`Norm::lora_a`].
    norm_lines: Vec<Line>,
    dropped: Dropped,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static TOKENS: RefCell<Tokens> = RefCell::default();
}

/// The memory of norms, which tasks fill side by side.
struct Norms {
    first: *mut f32,
    len: usize,
}

// SAFETY: as [`Out`].
unsafe impl Sync for Norms {}

impl Norms {
    /// Writes 32 norms from a place on, as far as they are there.
    fn write(&self, start: usize, norms: &[f32; DEPTH]) {
        for (at, norm) in (start..self.len).zip(norms) {
            // SAFETY: `at` is below `len`.
            unsafe { self.first.add(at).write(*norm) }
        }
    }
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

/// Computes a product with the instructions `isa`, at least [`Isa::Avx2`]; columns of an NF4 weight are whole blocks. Where the
/// processor has no such instructions, or sizes do not fit, nothing happens.
pub fn multiply_many(isa: Isa, product: &Product<'_>, results: Results<'_>) {
    let (summed, width) = product.widths();
    let n = product.n;
    let low_rank = product.low_rank.as_ref();
    if !super::can_multiply_many(isa) || n == 0 || width == 0 || !product.fits(&results) {
        return;
    }
    let depth = summed.div_ceil(DEPTH);
    let n_chunks = depth.div_ceil(longest_chunk(isa));
    // Even, as blocks of the weight are whole: two `DEPTH`s each.
    let chunk = depth.div_ceil(n_chunks.max(1)).next_multiple_of(BLOCK / DEPTH).min(longest_chunk(isa));
    let low_depth = low_rank.map_or(0, |low_rank| low_rank.rank.div_ceil(DEPTH));
    let n_streams = product.streams.len();
    let pairs = n.div_ceil(PAIR_ROWS);
    // Taken, not borrowed: while it waits for others, a thread of the pool may begin another product.
    let mut tokens = TOKENS.take();
    let Tokens { lines, norm_lines, dropped } = &mut tokens;
    let mask = dropped::mask(product).filter(|_| isa != Isa::Amx);
    let has_dropped = mask.is_some_and(|mask| dropped.fill(isa, mask, product.columns));
    let has_turned_sums = isa == Isa::Amx && product.over == Over::Columns;
    let scale: Vec<f32>;
    let factors = match (has_dropped, product.over, product.streams) {
        (true, Over::Columns, [first, ..]) => {
            dropped.list(first.x.unwrap_or_default(), chunk);
            vec![(first.x, None)]
        }
        (true, Over::Rows, [first, second]) => {
            scale = second.scale.into_iter().flatten().map(|scale| dropped.kept.mul_add(*scale, 1.0)).collect();
            vec![(first.x, Some(&*scale)), (first.x, None)]
        }
        _ => product.streams.iter().map(|stream| (stream.x, stream.scale)).collect(),
    };
    let token_lines = if isa >= Isa::Avx512Bf16 { PAIR_LINES } else { narrow::TOKEN_LINES };
    let low_line = factors.len() * depth * token_lines;
    let pair_lines = low_line + low_depth * token_lines;
    if lines.len() < pairs * pair_lines {
        lines.resize(pairs * pair_lines, Line::ZERO);
    }
    lines[..pairs * pair_lines].par_chunks_exact_mut(pair_lines.max(1)).enumerate().for_each(|(pair, lines)| {
        let pack = |x: &[bf16], width: usize, scale: Option<&[f32]>, chunk: usize, lines: &mut [Line]| {
            let x = &x[pair * PAIR_ROWS * width..((pair + 1) * PAIR_ROWS).min(n) * width];
            pack_tokens((isa, has_turned_sums), x, width, scale, chunk, lines);
        };
        let (parts, low) = lines.split_at_mut(low_line);
        for ((x, scale), lines) in factors.iter().zip(parts.chunks_exact_mut((depth * token_lines).max(1))) {
            if let Some(x) = x {
                pack(x, summed, *scale, chunk, lines);
            }
        }
        if let Some(low_rank) = low_rank {
            pack(low_rank.inner, low_rank.rank, None, low_depth, low);
        }
    });
    if let Some(Norm { rank, lora_a, .. }) = product.norm {
        norm_lines.resize(rank.div_ceil(PAIR_ROWS) * depth * token_lines, Line::ZERO);
        let pairs = norm_lines.par_chunks_exact_mut((depth * token_lines).max(1));
        pairs.zip(lora_a.par_chunks((PAIR_ROWS * summed).max(1))).for_each(|(lines, x)| {
            pack_tokens((isa, has_turned_sums), x, summed, None, chunk, lines);
        });
    }
    let outs = Outs {
        out: Out { first: results.out.as_mut_ptr(), n, width },
        scaled: results.scaled.map(|scaled| Out { first: scaled.as_mut_ptr(), n, width }),
        norms: results.norms.map(|norms| Norms { first: norms.as_mut_ptr(), len: norms.len() }),
    };
    let token_tasks = (pairs * n_streams).div_ceil(TASK_PAIRS).min(pairs);
    let units = width.div_ceil(UNIT);
    let most = (TASK_SUMS / (2 * pairs.div_ceil(token_tasks) * n_streams)).clamp(1, units);
    // Where a sum is long beside them, every task reads as much of a row of the weight as there is.
    let thread_tasks = if depth > LONG_SUM * units { 1 } else { THREAD_TASKS };
    let least_tasks = (thread_tasks * rayon::current_num_threads()).div_ceil(token_tasks);
    let tasks = units.div_ceil(most).max(least_tasks).min(units);
    (0..token_tasks * tasks).into_par_iter().with_max_len(1).for_each(|task| {
        let part = |idx: usize, n: usize, of: usize| idx * of / n..(idx + 1) * of / n;
        let (pairs, units) = (part(task / tasks, token_tasks, pairs), part(task % tasks, tasks, units));
        let mut scratch = SCRATCH.take();
        let dropped = has_dropped.then_some(&tokens.dropped);
        let (lines, norm_lines) = (&tokens.lines, &tokens.norm_lines);
        let outs = &outs;
        let work = Work {
            isa,
            product,
            lines,
            norm_lines,
            dropped,
            has_turned_sums,
            token_lines,
            depth,
            chunk,
            low_depth,
            low_line,
            outs,
        };
        work.run(pairs, units, &mut scratch);
        SCRATCH.set(scratch);
    });
    TOKENS.set(tokens);
}

/// 32 rows of tokens into tiles, for the right side of a product where sums are turned.
fn pack_tokens(
    (isa, has_turned_sums): (Isa, bool),
    x: &[bf16],
    width: usize,
    scale: Option<&[f32]>,
    chunk: usize,
    lines: &mut [Line],
) {
    // SAFETY: the instructions are there (`multiply_many`).
    unsafe {
        match isa >= Isa::Avx512Bf16 {
            true if has_turned_sums => wide::pack_right(x, width, lines),
            true => layout::pack_left(x, width, scale, 0, Order::AsTheyCome, lines),
            false => narrow::pack_tokens(x, width, scale, chunk, lines),
        }
    }
}

struct Outs {
    out: Out,
    scaled: Option<Out>,
    norms: Option<Norms>,
}

/// What the tasks of a product share.
struct Work<'a> {
    isa: Isa,
    product: &'a Product<'a>,
    /// As in [`Tokens`].
    lines: &'a [Line],
    norm_lines: &'a [Line],
    /// Where the second product is made of the first.
    dropped: Option<&'a Dropped>,
    /// Whether sums have a row for each row of the weight, not of tokens.
    has_turned_sums: bool,
    /// Lines of 32 rows of tokens for each [`DEPTH`].
    token_lines: usize,
    /// Of the summed dimension, in [`DEPTH`]s.
    depth: usize,
    /// [`DEPTH`]s in a chunk.
    chunk: usize,
    low_depth: usize,
    /// Where the low-rank factor begins in the lines of 32 rows.
    low_line: usize,
    outs: &'a Outs,
}

impl Work<'_> {
    /// The rows of `pairs` and the columns of `units` of the result.
    fn run(&self, pairs: Range<usize>, units: Range<usize>, scratch: &mut Scratch) {
        let Scratch { expanded, low, sums, columns, elements, norm_sums } = scratch;
        let depth = self.depth;
        let n_streams = self.product.streams.len();
        expanded.resize(unit_lines(self.chunk), Line::ZERO);
        columns.resize(unit_lines(self.chunk) / 2, Line::ZERO);
        low.resize(unit_lines(self.low_depth), Line::ZERO);
        let n_sums = 2 * n_streams * pairs.len() * units.len();
        if sums.len() < n_sums {
            sums.resize(n_sums, Sums::ZERO);
        }
        let norm_rank = self.product.norm.map_or(0, |norm| norm.rank);
        let norm_pairs = norm_rank.div_ceil(PAIR_ROWS);
        norm_sums.resize(2 * units.len() * norm_pairs, Sums::ZERO);
        elements.clear();
        elements.resize(self.count_elements(pairs.clone(), units.clone()), [0.0; 4]);
        // SAFETY: `multiply_many` has asked whether they are there, and enough.
        let engine = unsafe { Engine::new(self.isa) };
        let is_turned = self.has_turned_sums;
        let step = |weight: &[Line], tokens: &[Line], extent: Extent, adds: bool, sums: &mut Sums| match is_turned {
            true => engine.step(weight, tokens, Extent { rows: PAIR_ROWS, ..extent }, adds, sums),
            false => engine.step(tokens, weight, extent, adds, sums),
        };
        let rank = self.product.low_rank.as_ref().map_or(0, |low_rank| low_rank.rank);
        let pair_lines = self.pair_lines();
        for (chunk_idx, start) in (0..depth).step_by(self.chunk).enumerate() {
            let len = self.chunk.min(depth - start);
            let is_last = start + len == depth;
            let mut elements = &mut elements[..];
            for (unit_idx, unit) in units.clone().enumerate() {
                let in_place = [0, 1].map(|half| self.in_place(&engine, unit * UNIT + half * DEPTH, start, len));
                if in_place.iter().any(Option::is_none) {
                    self.expand(unit, start, len, expanded);
                }
                if is_last {
                    self.expand_low_rank(unit, low);
                }
                let sums = &mut sums[2 * unit_idx * pairs.len() * n_streams..][..2 * pairs.len() * n_streams];
                self.add_entries(&expanded[..unit_lines(len)], pairs.clone(), chunk_idx, sums);
                for half in 0..2 {
                    let weight = &expanded[half * len * PAIR_LINES..][..len * PAIR_LINES];
                    let low = &low[half * self.low_depth * PAIR_LINES..][..self.low_depth * PAIR_LINES];
                    let sums = &mut sums[half * pairs.len() * n_streams..][..pairs.len() * n_streams];
                    let (group, column) = (2 * unit + half, unit * UNIT + half * DEPTH);
                    let norm_sums = &mut norm_sums[(2 * unit_idx + half) * norm_pairs..][..norm_pairs];
                    for (pair, sums) in norm_sums.iter_mut().enumerate() {
                        let tokens =
                            &self.norm_lines[(pair * depth + start) * self.token_lines..][..len * self.token_lines];
                        let rows = (norm_rank - pair * PAIR_ROWS).min(PAIR_ROWS);
                        step(weight, tokens, Extent { rows, summed: len * DEPTH }, start > 0, sums);
                    }
                    let change = if is_last { self.change(column, norm_sums, pairs.start == 0) } else { None };
                    if self.with_elements().is_some() {
                        // SAFETY: the instructions are there (`multiply_many`).
                        unsafe { made_for!(self.isa, turn_columns(weight, columns)) }
                    }
                    let n = self.add_elements(columns, pairs.clone(), group, start..start + len, elements);
                    let mut summed: &[_];
                    (summed, elements) = std::mem::take(&mut elements).split_at_mut(n);
                    for (pair, sums) in pairs.clone().zip(sums.chunks_exact_mut(n_streams)) {
                        let lines = &self.lines[pair * pair_lines..][..pair_lines];
                        let rows = (self.product.n - pair * PAIR_ROWS).min(PAIR_ROWS);
                        let tokens = |factor: usize| {
                            &lines[(factor * depth + start) * self.token_lines..][..len * self.token_lines]
                        };
                        let mut has_sums = [false; 2];
                        let n_factors = if self.dropped.is_some() { 1 } else { n_streams };
                        for (idx, stream) in self.product.streams[..n_factors].iter().enumerate() {
                            if stream.x.is_some() {
                                let extent = Extent { rows, summed: len * DEPTH };
                                match in_place[half] {
                                    Some(rows) => rows.step(tokens(idx), start > 0, &mut sums[idx]),
                                    None => step(weight, tokens(idx), extent, start > 0, &mut sums[idx]),
                                }
                                has_sums[idx] = true;
                            }
                        }
                        if !is_last {
                            continue;
                        }
                        match (self.dropped, self.product.over, &mut *sums) {
                            (Some(dropped), Over::Columns, [first, second]) => {
                                // SAFETY: the instructions are there (`multiply_many`).
                                unsafe { made_for!(self.isa, keep_rest(first, second, dropped.kept)) }
                                has_sums[1] = true;
                            }
                            (Some(dropped), Over::Rows, [first, _]) => {
                                let n = layout::put_elements(summed, dropped.bits(pair, group), first);
                                summed = &summed[n..];
                            }
                            _ => {}
                        }
                        for ((stream, sums), has_sums) in self.product.streams.iter().zip(&mut *sums).zip(has_sums) {
                            if stream.has_low_rank {
                                step(low, &lines[self.low_line..], Extent { rows, summed: rank }, has_sums, sums);
                            } else if !has_sums {
                                *sums = Sums::ZERO;
                            }
                        }
                        self.finish(pair * PAIR_ROWS, column, change, sums);
                    }
                }
            }
        }
    }

    /// Adds the products of a unit with the dropped elements of a chunk to the second stream's sums, over columns.
    fn add_entries(&self, weight: &[Line], pairs: Range<usize>, chunk: usize, sums: &mut [Sums]) {
        let Some(dropped) = self.dropped.filter(|_| self.product.over == Over::Columns) else { return };
        let (left, right) = sums.split_at_mut(sums.len() / 2);
        let both = left.as_chunks_mut::<2>().0.iter_mut().zip(right.as_chunks_mut::<2>().0);
        for (pair, ([_, left], [_, right])) in pairs.zip(both) {
            let entries = dropped.entries(pair).rows(chunk);
            // SAFETY: the instructions are there (`multiply_many`).
            unsafe { made_for!(self.isa, step_entries(entries, weight, chunk > 0, [left, right])) }
        }
    }

    /// Where a product over rows sums elements one by one.
    fn with_elements(&self) -> Option<&Dropped> {
        self.dropped.filter(|_| self.product.over == Over::Rows)
    }

    /// Adds the products of half a unit, as [`layout::turn_columns`] gives it, with a chunk to the sums of the dropped
    /// elements. Says how many they are.
    fn add_elements(
        &self,
        columns: &[Line],
        pairs: Range<usize>,
        group: usize,
        chunk: Range<usize>,
        elements: &mut [[f32; 4]],
    ) -> usize {
        let Some(dropped) = self.with_elements() else { return 0 };
        let mut n = 0;
        for pair in pairs {
            // The second factor, that without a scale.
            let lines = &self.lines[pair * self.pair_lines() + self.depth * self.token_lines..];
            let tokens = &lines[chunk.start * self.token_lines..chunk.end * self.token_lines];
            // SAFETY: the instructions are there (`multiply_many`).
            n += unsafe {
                made_for!(self.isa, step_elements(tokens, columns, dropped.bits(pair, group), &mut elements[n..]))
            };
        }
        n
    }

    /// Of rows of the weight: those that are turned come apart.
    fn weight_order(&self) -> Order {
        if self.has_turned_sums { Order::AsTheyCome } else { Order::Apart }
    }

    /// Lines of 32 rows of tokens.
    fn pair_lines(&self) -> usize {
        self.low_line + self.low_depth * self.token_lines
    }

    /// The elements of a part of the result that are summed one by one.
    fn count_elements(&self, pairs: Range<usize>, units: Range<usize>) -> usize {
        let Some(dropped) = self.with_elements() else { return 0 };
        let groups = pairs.flat_map(|pair| (2 * units.start..2 * units.end).map(move |group| (pair, group)));
        groups.flat_map(|(pair, group)| dropped.bits(pair, group)).map(|bits| bits.count_ones() as usize).sum()
    }

    /// What multiplies the second stream's sums in 32 columns from `column` on, over columns. The first task of a column writes its
    /// norm.
    fn change(&self, column: usize, norm_sums: &[Sums], is_first: bool) -> Option<[f32; DEPTH]> {
        let change = match self.product.finish {
            Finish::Outputs { change, .. } => change.map(|change| layout::part(change, column)),
            Finish::Gradients { .. } => None,
        };
        let (Some(norm), Some(norms)) = (&self.product.norm, &self.outs.norms) else { return change };
        let mut squares = layout::part(norm.squares, column);
        for (idx, twice_b) in norm.twice_b.chunks_exact(self.product.rows).enumerate() {
            let sums = &norm_sums[idx / PAIR_ROWS];
            let sums = match self.has_turned_sums {
                true => layout::column_of(sums, idx % PAIR_ROWS),
                false => layout::row_of(sums, idx % PAIR_ROWS, Order::Apart),
            };
            layout::add_products(&sums, &layout::part(twice_b, column), &mut squares);
        }
        // Rounding can push the sum of a vanishing row just below zero.
        let values = squares.map(|square| square.max(0.0).sqrt());
        if is_first {
            norms.write(column, &values);
        }
        change.map(|magnitudes| std::array::from_fn(|at| magnitudes[at] / values[at] - 1.0))
    }

    /// Makes results of sums: 32 rows of tokens from `row` on, 32 columns from `column` on.
    fn finish(&self, row: usize, column: usize, change: Option<[f32; DEPTH]>, sums: &mut [Sums]) {
        let mut rounded = [Line::ZERO; PAIR_ROWS];
        // SAFETY: the instructions are there (`multiply_many`).
        unsafe {
            match self.product.finish {
                Finish::Outputs { bias, .. } if !self.has_turned_sums => {
                    let bias = bias.map(|values| layout::part(values, column));
                    let (first, rest) = sums.split_at(1);
                    if let (Some(scaled), [second]) = (&self.outs.scaled, rest) {
                        made_for!(self.isa, round_gained(second, None, None, &mut rounded));
                        scaled.write(row, column, &rounded);
                    }
                    made_for!(self.isa, round_gained(&first[0], rest.first().zip(change), bias, &mut rounded));
                }
                Finish::Outputs { bias, .. } => {
                    let bias = bias.map(|values| layout::part(values, column));
                    if let [first, second] = sums {
                        wide::add_gained(first, second, change);
                        if let Some(scaled) = &self.outs.scaled {
                            wide::round_transposed(second, None, &mut rounded);
                            scaled.write(row, column, &rounded);
                        }
                    }
                    wide::round_transposed(&sums[0], bias, &mut rounded);
                }
                Finish::Gradients { before, mask } => {
                    let at = row * self.outs.out.width + column;
                    let before = before.map(|values| layout::Rows::new(values, at, self.outs.out.width));
                    let mask = mask.map(|values| layout::Rows::new(values, at, self.outs.out.width));
                    let (first, rest) = sums.split_at(1);
                    made_for!(self.isa, round_interleaved(&first[0], rest.first().zip(mask), before, &mut rounded));
                }
            }
        }
        self.outs.out.write(row, column, &rounded);
    }

    /// Expands what a unit of the result needs of the weight over a part of the summed dimension.
    fn expand(&self, unit: usize, start: usize, len: usize, out: &mut [Line]) {
        let Product { rows, columns, weight, over, .. } = *self.product;
        let (source, rounding) = match weight {
            Weight::Nf4(source, rounding) => (source, rounding),
            Weight::Bf16(matrix) => return self.pack_matrix(matrix, unit, start, len, out),
        };
        let codes = Codes { source, rounding, rows, columns };
        // SAFETY: the instructions are there (`multiply_many`).
        unsafe {
            match over {
                Over::Columns => {
                    let blocks = (start * DEPTH / BLOCK, len * DEPTH / BLOCK);
                    made_for!(self.isa, expand_rows(&codes, unit * UNIT, blocks, self.weight_order(), out));
                    self.turn_rows(&mut out[..unit_lines(len)]);
                }
                Over::Rows => made_for!(self.isa, expand_columns(&codes, unit, (start * DEPTH, len), out)),
            }
        }
    }

    /// 32 rows of the weight from `row` on, where they are a left operand as they lie.
    fn in_place<'a>(&'a self, engine: &'a Engine, row: usize, start: usize, len: usize) -> Option<InPlace<'a>> {
        match (self.product.weight, engine) {
            (Weight::Bf16(matrix), Engine::Tiles(tiles)) if self.has_turned_sums => {
                tiles.in_place(matrix, self.product.columns, row, (start * DEPTH, len))
            }
            _ => None,
        }
    }

    /// As [`Work::expand`] for the matrix of the low-rank term.
    fn expand_low_rank(&self, unit: usize, out: &mut [Line]) {
        if let Some(low_rank) = &self.product.low_rank {
            self.pack_matrix(low_rank.matrix, unit, 0, self.low_depth, out);
        }
    }

    /// As [`Work::expand`] for a matrix of bf16, over columns `[rows, any]`, over rows `[any, columns]`.
    fn pack_matrix(&self, matrix: &[bf16], unit: usize, start: usize, len: usize, out: &mut [Line]) {
        let Product { rows, columns, over, .. } = *self.product;
        for (half, out) in out[..unit_lines(len)].chunks_exact_mut((len * PAIR_LINES).max(1)).enumerate() {
            let first = unit * UNIT + half * DEPTH;
            match over {
                Over::Columns => {
                    let width = matrix.len() / rows;
                    let matrix = &matrix[first.min(rows) * width..(first + DEPTH).min(rows) * width];
                    layout::pack_left(matrix, width, None, start, self.weight_order(), out);
                    self.turn_rows(out);
                }
                // SAFETY: the instructions are there (`multiply_many`).
                Over::Rows => unsafe { made_for!(self.isa, pack_columns(matrix, columns, first, start, out)) },
            }
        }
    }

    /// Makes rows of the weight the right side of a product, unless they are the left one.
    fn turn_rows(&self, lines: &mut [Line]) {
        if !self.has_turned_sums {
            // SAFETY: the instructions are there (`multiply_many`).
            unsafe { made_for!(self.isa, turn_rows(lines)) }
        }
    }
}
