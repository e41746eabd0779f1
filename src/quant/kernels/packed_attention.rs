//! Attention over packed records of bf16, and its gradients, a tile of queries at a time.
//!
//! Queries and keys are rotated here, with the roundings that tensor operations give them. Everything after that is in f32 and
//! rounded once, at the end: softmax's weights are not rounded, nor is anything between the gradients. The backward pass computes
//! the weights again; no matrix of scores outlives a tile. Results do not depend on the number of threads.
#![allow(unsafe_code)]

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Quantizable as _;
use super::attention::rotated;
use super::f32_products::{Left, PANEL, ROWS, Right, Sums, add_product, set_product};
use super::rows::{exp, narrow, round_row};

/// Queries of a tile, a multiple of [`ROWS`]: among 8 to 64 the fastest on records of a hundred and of some hundred tokens.
const TILE: usize = 24;

/// Rows of gradients that one task adds up.
const SUM_ROWS: usize = 16;

/// Neighbouring tokens of a packed row. Each sees those before it in its segment, and all of the segments that this one follows.
///
/// Segments are a forest, depth first: one follows the last of each smaller depth before it. A record that shares nothing is one
/// segment of depth 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub depth: usize,
    /// Tokens.
    pub len: usize,
}

impl Segment {
    /// One that follows no other.
    pub fn plain(len: usize) -> Self {
        Self { depth: 0, len }
    }

    /// The rows of each segment's tokens in the packed row.
    pub fn rows(segments: &[Self]) -> impl Iterator<Item = Range<usize>> {
        segments.iter().scan(0, |end, segment| {
            *end += segment.len;
            Some(*end - segment.len..*end)
        })
    }

    /// For each segment the numbers of those that it follows, the first one first. A depth without a segment of the depth below it
    /// counts as less.
    pub fn followed(segments: &[Self]) -> impl Iterator<Item = Vec<usize>> {
        let mut path: Vec<usize> = Vec::new();
        segments.iter().enumerate().map(move |(idx, segment)| {
            path.truncate(segment.depth);
            let followed = path.clone();
            path.push(idx);
            followed
        })
    }
}

/// A packed row of `n` tokens.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    pub head_dim: usize,
    pub kv_heads: usize,
    /// Query heads that share a key head.
    pub per_kv: usize,
    /// `n` tokens in all.
    pub segments: &'a [Segment],
    /// `[n, kv_heads * per_kv, head_dim]`, not yet rotated.
    pub queries: &'a [bf16],
    /// `[n, kv_heads, head_dim]`, not yet rotated.
    pub keys: &'a [bf16],
    /// `[n, kv_heads, head_dim]`.
    pub values: &'a [bf16],
    /// `[n, head_dim / 2]`.
    pub cos: &'a [bf16],
    /// `[n, head_dim / 2]`.
    pub sin: &'a [bf16],
}

/// Attends. `out` has the shape of the queries.
pub fn attend(heads: &Heads<'_>, out: &mut [bf16]) {
    let Heads { head_dim, kv_heads, per_kv, .. } = *heads;
    if out.is_empty() {
        return;
    }
    let records = records(heads.segments);
    let laid_out = heads.lay_out(&records, &[Matrix::KeyPanels, Matrix::ValueRows]);
    let tiles: Vec<Tile<'_>> = records.iter().flat_map(Record::tiles).collect();
    let outs = by_column(out, kv_heads, per_kv * head_dim, tiles.iter().map(|tile| tile.len));
    outs.into_par_iter().enumerate().with_max_len(1).for_each(|(task, mut outs)| {
        let (tile, kv_head) = (&tiles[task / kv_heads], task % kv_heads);
        let [key_panels, value_rows] = laid_out.of(tile.record, kv_head);
        let (width, rows) = (heads.padded_dim(), tile.rows());
        // Columns that pad stay zero.
        let (mut queries, mut sums) = (vec![0f32; rows * width], vec![0f32; rows * width]);
        let mut weights = vec![0f32; rows * tile.width()];
        for idx in 0..per_kv {
            heads.fill_queries(tile, kv_head * per_kv + idx, &mut queries);
            heads.weigh(tile, &queries, key_panels, &mut weights);
            tile.sum_over_keys(&weights, value_rows, width, &mut sums);
            for (out, sums) in outs.iter_mut().zip(sums.chunks_exact(width)) {
                round_row(sums, &mut out[idx * head_dim..][..head_dim]);
            }
        }
    });
}

/// The gradients of queries, keys and values as they come into [`attend`], from that of its result.
pub fn attend_backward(heads: &Heads<'_>, grad: &[bf16], [grad_q, grad_k, grad_v]: [&mut [bf16]; 3]) {
    let Heads { head_dim, kv_heads, per_kv, .. } = *heads;
    if grad.is_empty() {
        return;
    }
    let (n_heads, width, half) = (kv_heads * per_kv, heads.padded_dim(), head_dim / 2);
    let scale = heads.scale();
    let records = records(heads.segments);
    let laid_out = heads.lay_out(&records, &[Matrix::KeyPanels, Matrix::KeyRows, Matrix::ValuePanels]);
    // For each query head the gradients of keys and values: they are added up in an order that does not depend on the threads.
    let sizes = records.iter().flat_map(|record| std::iter::repeat_n(2 * record.len_padded * width, n_heads));
    let mut shares = vec![0f32; sizes.clone().sum()];
    let outs = by_column(grad_q, n_heads, head_dim, records.iter().map(|record| record.len));
    let tasks: Vec<_> = split(&mut shares, sizes).into_iter().zip(outs).collect();
    tasks.into_par_iter().enumerate().with_max_len(1).for_each(|(task, (share, mut outs))| {
        let (record, head) = (&records[task / n_heads], task % n_heads);
        let (share_k, share_v) = share.split_at_mut(record.len_padded * width);
        let [key_panels, key_rows, value_panels] = laid_out.of(record, head / per_kv);
        // Columns that pad stay zero. Rows that pad hold anything: no result depends on them.
        let size = TILE * width;
        let (mut queries, mut upstream, mut sums) = (vec![0f32; size], vec![0f32; size], vec![0f32; size]);
        let (mut weights, mut grads) = (Vec::new(), Vec::new());
        for tile in record.tiles() {
            let (rows, seen) = (tile.rows(), tile.width());
            let (queries, upstream) = (&mut queries[..rows * width], &mut upstream[..rows * width]);
            let sums = &mut sums[..rows * width];
            weights.resize(rows * seen, 0.0);
            grads.resize(rows * seen, 0.0);
            heads.fill_queries(&tile, head, queries);
            heads.weigh(&tile, queries, key_panels, &mut weights);
            for (idx, upstream) in upstream.chunks_exact_mut(width).take(tile.len).enumerate() {
                let grad = &grad[((tile.row() + idx) * n_heads + head) * head_dim..][..head_dim];
                widen(grad, &mut upstream[..head_dim]);
            }
            tile.sum_over_width(upstream, value_panels, width, head_dim, &mut grads);
            score_gradients(&weights[..tile.len * seen], seen, &mut grads[..tile.len * seen]);
            tile.sum_over_keys(&grads, key_rows, width, sums);
            for (idx, sums) in sums.chunks_exact(width).take(tile.len).enumerate() {
                let (row, out) = (tile.row() + idx, &mut outs[tile.row() + idx - record.row]);
                let (cos, sin) = (&heads.cos[row * half..][..half], &heads.sin[row * half..][..half]);
                rotate_back(&sums[..head_dim], cos, sin, scale, out);
            }
            tile.add_over_queries(&grads, queries, width, share_k);
            tile.add_over_queries(&weights, upstream, width, share_v);
        }
    });
    let places: Vec<(usize, usize)> = records.iter().enumerate().flat_map(Record::places).collect();
    let outs = grad_k.par_chunks_exact_mut(head_dim).zip(grad_v.par_chunks_exact_mut(head_dim));
    outs.enumerate().with_min_len(SUM_ROWS).for_each(|(idx, (out_k, out_v))| {
        let (row, kv_head) = (idx / kv_heads, idx % kv_heads);
        let (record, at) = (&records[places[row].0], places[row].1);
        let size = record.len_padded * width;
        let first = 2 * (record.before * width * n_heads + kv_head * per_kv * size);
        let shares = shares[first..][..2 * size * per_kv].chunks_exact(2 * size);
        let (cos, sin) = (&heads.cos[row * half..][..half], &heads.sin[row * half..][..half]);
        let mut sums = vec![0f32; 2 * head_dim];
        let (sum_k, sum_v) = sums.split_at_mut(head_dim);
        for share in shares {
            add(&share[at * width..][..head_dim], sum_k);
            add(&share[size + at * width..][..head_dim], sum_v);
        }
        // The queries were scaled.
        rotate_back(sum_k, cos, sin, 1.0, out_k);
        round_row(sum_v, out_v);
    });
}

/// A segment.
#[derive(Debug)]
struct Span {
    /// The first token's row.
    row: usize,
    len: usize,
    /// Rows of the record before it, each span's a multiple of [`PANEL`].
    at: usize,
    /// Those that it follows, by their numbers in the record.
    followed: Vec<usize>,
}

/// A segment that follows no other, and those that follow it.
#[derive(Debug, Default)]
struct Record {
    /// The first token's row.
    row: usize,
    len: usize,
    /// Rows of the records before it, as `len_padded`.
    before: usize,
    /// Rows, each span's a multiple of [`PANEL`].
    len_padded: usize,
    spans: Vec<Span>,
}

/// Queries of a span that are computed together.
#[derive(Clone, Copy, Debug)]
struct Tile<'a> {
    record: &'a Record,
    span: &'a Span,
    /// Tokens of the span before it.
    first: usize,
    len: usize,
}

/// Keys that a tile sees: columns of its scores.
struct Stretch {
    column: usize,
    /// A multiple of [`PANEL`].
    columns: usize,
    /// The first key's row in its record.
    at: usize,
    len: usize,
}

fn records(segments: &[Segment]) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let (mut before, mut first) = (0, 0);
    for (idx, (rows, followed)) in Segment::rows(segments).zip(Segment::followed(segments)).enumerate() {
        let (row, len) = (rows.start, rows.len());
        if followed.is_empty() {
            before += records.last().map_or(0, |record| record.len_padded);
            first = idx;
            records.push(Record { row, before, ..Record::default() });
        }
        if let Some(record) = records.last_mut() {
            let followed = followed.into_iter().map(|number| number - first).collect();
            record.spans.push(Span { row, len, at: record.len_padded, followed });
            record.len += len;
            record.len_padded += len.next_multiple_of(PANEL);
        }
    }
    records
}

impl Record {
    fn tiles(&self) -> impl Iterator<Item = Tile<'_>> {
        self.spans.iter().flat_map(move |span| {
            (0..span.len).step_by(TILE).map(move |first| {
                let len = TILE.min(span.len - first);
                Tile { record: self, span, first, len }
            })
        })
    }

    /// For each token the record's number and the row in it.
    fn places((number, record): (usize, &Self)) -> impl Iterator<Item = (usize, usize)> {
        record.spans.iter().flat_map(move |span| (span.at..span.at + span.len).map(move |at| (number, at)))
    }
}

impl Tile<'_> {
    /// The first query's row.
    fn row(&self) -> usize {
        self.span.row + self.first
    }

    /// Rows of its matrices.
    fn rows(&self) -> usize {
        self.len.next_multiple_of(ROWS)
    }

    /// Columns of its scores.
    fn width(&self) -> usize {
        self.stretches().map(|stretch| stretch.columns).sum()
    }

    /// The keys that its queries see: all of the spans that its own follows, and those of its own up to the last query.
    fn stretches(&self) -> impl Iterator<Item = Stretch> {
        let followed = self.span.followed.iter().map(|&number| &self.record.spans[number]);
        let seen = followed.map(|span| (span.at, span.len)).filter(|&(_, len)| len > 0);
        let mut column = 0;
        seen.chain([(self.span.at, self.first + self.len)]).map(move |(at, len)| {
            let columns = len.next_multiple_of(PANEL);
            column += columns;
            Stretch { column: column - columns, columns, at, len }
        })
    }

    /// Sets `scores` `[rows, width()]` to the product of `[rows, width]` over its first `depth` columns with the panels.
    fn sum_over_width(&self, rows: &[f32], panels: &[f32], width: usize, depth: usize, scores: &mut [f32]) {
        for Stretch { column, columns, at, .. } in self.stretches() {
            let left = Left { values: rows, row: width, step: 1 };
            let right = Right::panels(&panels[at * width..], width);
            let sums = Sums { values: &mut scores[column..], width: self.width(), columns };
            set_product(self.rows(), depth, left, right, sums);
        }
    }

    /// Sets `sums` `[rows, width]` to the product of `scores` `[rows, width()]` with the rows of keys, `[len_padded, width]`.
    fn sum_over_keys(&self, scores: &[f32], keys: &[f32], width: usize, sums: &mut [f32]) {
        for (idx, Stretch { column, at, len, .. }) in self.stretches().enumerate() {
            let left = Left { values: &scores[column..], row: self.width(), step: 1 };
            let sums = Sums { values: &mut *sums, width, columns: width };
            let product = if idx == 0 { set_product } else { add_product };
            product(self.rows(), len, left, Right::rows(&keys[at * width..], width), sums);
        }
    }

    /// Adds to `sums` `[len_padded, width]` for each key the product of its `scores` `[rows, width()]` with the rows of queries,
    /// `[rows, width]`.
    fn add_over_queries(&self, scores: &[f32], queries: &[f32], width: usize, sums: &mut [f32]) {
        for Stretch { column, columns, at, .. } in self.stretches() {
            let left = Left { values: &scores[column..], row: 1, step: self.width() };
            let sums = Sums { values: &mut sums[at * width..], width, columns: width };
            add_product(columns, self.len, left, Right::rows(queries, width), sums);
        }
    }
}

/// A matrix of a record's keys or values, of `len_padded` times `padded_dim` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matrix {
    /// Rotated keys in panels, `[len_padded / PANEL, padded_dim, PANEL]`.
    KeyPanels,
    /// Rotated keys, `[len_padded, padded_dim]`.
    KeyRows,
    ValuePanels,
    ValueRows,
}

/// Some matrices of all key heads of all records, in f32.
struct LaidOut {
    values: Vec<f32>,
    kv_heads: usize,
    padded_dim: usize,
}

impl LaidOut {
    /// The `N` matrices of a record and key head.
    fn of<const N: usize>(&self, record: &Record, kv_head: usize) -> [&[f32]; N] {
        let size = record.len_padded * self.padded_dim;
        let first = N * (record.before * self.padded_dim * self.kv_heads + kv_head * size);
        std::array::from_fn(|idx| &self.values[first + idx * size..][..size])
    }
}

impl Heads<'_> {
    fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Rotates and scales one head of one token.
    fn rotate(&self, x: &[bf16], (row, head, n_heads): (usize, usize, usize), scale: f32, out: &mut [f32]) {
        let half = self.head_dim / 2;
        let (cos, sin) = (&self.cos[row * half..][..half], &self.sin[row * half..][..half]);
        rotate(&x[(row * n_heads + head) * self.head_dim..][..self.head_dim], cos, sin, scale, out);
    }

    fn lay_out(&self, records: &[Record], matrices: &[Matrix]) -> LaidOut {
        let Self { head_dim, kv_heads, .. } = *self;
        let width = self.padded_dim();
        let size = |record: &Record| matrices.len() * record.len_padded * width;
        let sizes = records.iter().flat_map(|record| std::iter::repeat_n(size(record), kv_heads));
        let mut values = vec![0f32; sizes.clone().sum()];
        split(&mut values, sizes).into_par_iter().enumerate().for_each(|(task, values)| {
            let (record, kv_head) = (&records[task / kv_heads], task % kv_heads);
            let (mut key, mut value) = (vec![0f32; head_dim], vec![0f32; head_dim]);
            let pieces = values.chunks_exact_mut((record.len_padded * width).max(1));
            let mut pieces: Vec<_> = matrices.iter().zip(pieces).collect();
            for span in &record.spans {
                for (row, at) in (span.row..span.row + span.len).zip(span.at..) {
                    self.rotate(self.keys, (row, kv_head, kv_heads), 1.0, &mut key);
                    widen(&self.values[(row * kv_heads + kv_head) * head_dim..][..head_dim], &mut value);
                    for (matrix, values) in &mut pieces {
                        match matrix {
                            Matrix::KeyRows => values[at * width..][..head_dim].copy_from_slice(&key),
                            Matrix::ValueRows => values[at * width..][..head_dim].copy_from_slice(&value),
                            Matrix::KeyPanels => lay_in_panel(&key, at, width, values),
                            Matrix::ValuePanels => lay_in_panel(&value, at, width, values),
                        }
                    }
                }
            }
        });
        LaidOut { values, kv_heads, padded_dim: width }
    }

    /// The rotated and scaled queries of a tile, `[rows, padded_dim]`.
    fn fill_queries(&self, tile: &Tile<'_>, head: usize, out: &mut [f32]) {
        let n_heads = self.kv_heads * self.per_kv;
        for (row, out) in (tile.row()..).zip(out.chunks_exact_mut(self.padded_dim()).take(tile.len)) {
            self.rotate(self.queries, (row, head, n_heads), self.scale(), &mut out[..self.head_dim]);
        }
    }

    /// How much the queries of a tile weigh each key, `[rows, width()]`.
    fn weigh(&self, tile: &Tile<'_>, queries: &[f32], key_panels: &[f32], weights: &mut [f32]) {
        tile.sum_over_width(queries, key_panels, self.padded_dim(), self.head_dim, weights);
        let unseen_by_last = |stretch: Stretch| stretch.column + stretch.len..stretch.column + stretch.columns;
        let mut unseen: Vec<Range<usize>> = tile.stretches().map(unseen_by_last).collect();
        let end = unseen.last().map_or(0, |own| own.start);
        for (n_later, weights) in (0..tile.len).rev().zip(weights.chunks_exact_mut(tile.width())) {
            if let Some(own) = unseen.last_mut() {
                own.start = end - n_later;
            }
            softmax(weights, &unseen);
        }
    }
}

/// Puts row `at` of a matrix `[len_padded, width]` into its panels.
fn lay_in_panel(row: &[f32], at: usize, width: usize, panels: &mut [f32]) {
    let panel = &mut panels[at / PANEL * PANEL * width..][..PANEL * width];
    panel.chunks_exact_mut(PANEL).zip(row).for_each(|(to, value)| to[at % PANEL] = *value);
}

/// Cuts values into pieces of these sizes.
fn split(values: &mut [f32], sizes: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    let mut rest = values;
    sizes.map(|size| rest.split_off_mut(..size).unwrap_or_default()).collect()
}

/// Cuts rows of `columns` times `width` elements into groups of these numbers of rows. For each group and then each column the
/// pieces of its rows.
fn by_column(
    values: &mut [bf16],
    columns: usize,
    width: usize,
    groups: impl Iterator<Item = usize>,
) -> Vec<Vec<&mut [bf16]>> {
    let mut pieces = values.chunks_exact_mut(width);
    let mut all = Vec::new();
    for rows in groups {
        let first = all.len();
        all.extend((0..columns).map(|_| Vec::with_capacity(rows)));
        for _ in 0..rows {
            all[first..].iter_mut().zip(&mut pieces).for_each(|(to, piece): (&mut Vec<_>, _)| to.push(piece));
        }
    }
    all
}

/// Joins halves until one value is left.
#[inline(always)]
fn joined(values: [f32; PANEL], join: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|idx| join(values[idx], values[idx + 8]));
    let four: [f32; 4] = std::array::from_fn(|idx| join(eight[idx], eight[idx + 4]));
    join(join(four[0], four[2]), join(four[1], four[3]))
}

for_each_processor! {
    fn widen(x: &[bf16], out: &mut [f32]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x.widen());
    }
}

for_each_processor! {
    fn add(x: &[f32], sums: &mut [f32]) {
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }
}

for_each_processor! {
    /// Rotates one head, the first half with the second, every product and sum rounded; scales the result, which is not.
    fn rotate(x: &[bf16], cos: &[bf16], sin: &[bf16], scale: f32, out: &mut [f32]) {
        let (a, b) = x.split_at(cos.len());
        let (first, second) = out.split_at_mut(cos.len());
        let pairs = a.iter().zip(b).zip(cos.iter().zip(sin));
        for (((a, b), (cos, sin)), (first, second)) in pairs.zip(first.iter_mut().zip(second)) {
            [*first, *second] = rotated([*a, *b], [*cos, *sin]).map(|x| x.widen() * scale);
        }
    }
}

for_each_processor! {
    /// The gradient of what was rotated, scaled.
    fn rotate_back(grad: &[f32], cos: &[bf16], sin: &[bf16], scale: f32, out: &mut [bf16]) {
        let (a, b) = grad.split_at(cos.len());
        let (first, second) = out.split_at_mut(cos.len());
        let pairs = a.iter().zip(b).zip(cos.iter().zip(sin));
        for (((a, b), (cos, sin)), (first, second)) in pairs.zip(first.iter_mut().zip(second)) {
            let (cos, sin) = (cos.widen() * scale, sin.widen() * scale);
            *first = narrow(a * cos + b * sin);
            *second = narrow(b * cos - a * sin);
        }
    }
}

for_each_processor! {
    /// Softmax over all scores but those `unseen`, which weigh nothing.
    fn softmax(scores: &mut [f32], unseen: &[Range<usize>]) {
        unseen.iter().for_each(|range| scores[range.clone()].fill(f32::NEG_INFINITY));
        let lanes = scores.as_chunks_mut::<PANEL>().0;
        let mut largest = [f32::NEG_INFINITY; PANEL];
        for scores in &*lanes {
            largest.iter_mut().zip(scores).for_each(|(largest, score)| *largest = largest.max(*score));
        }
        let largest = joined(largest, f32::max);
        let mut totals = [0f32; PANEL];
        for scores in lanes {
            for (score, total) in scores.iter_mut().zip(&mut totals) {
                *score = exp(*score - largest);
                *total += *score;
            }
        }
        unseen.iter().for_each(|range| scores[range.clone()].fill(0.0));
        let factor = 1.0 / joined(totals, |a, b| a + b);
        scores.iter_mut().for_each(|score| *score *= factor);
    }
}

for_each_processor! {
    /// Makes gradients of the weights, in rows of `width`, those of the scores.
    fn score_gradients(weights: &[f32], width: usize, grads: &mut [f32]) {
        for (weights, grads) in weights.chunks_exact(width).zip(grads.chunks_exact_mut(width)) {
            let (weights, grads) = (weights.as_chunks::<PANEL>().0, grads.as_chunks_mut::<PANEL>().0);
            let mut sums = [0f32; PANEL];
            for (weights, grads) in weights.iter().zip(&*grads) {
                sums.iter_mut().zip(weights.iter().zip(grads)).for_each(|(sum, (weight, grad))| *sum += weight * grad);
            }
            let mean = joined(sums, |a, b| a + b);
            for (weights, grads) in weights.iter().zip(grads) {
                weights.iter().zip(grads).for_each(|(weight, grad)| *grad = weight * (*grad - mean));
            }
        }
    }
}
