//! Operands into tiles, sums out of them: token rows, NF4 rows and columns, and the rounded result.

use std::arch::x86_64::*;

use half::bf16;

use super::super::avx512::{load_f32, load16, look_up_bf16, values_bf16};
use super::super::{Rounding, Source};
use super::step::{DEPTH, Line, PAIR_LINES, SIDE, Sums};
use crate::quant::nf4::BLOCK;

/// Token rows of a pair of tiles.
pub const PAIR_ROWS: usize = 2 * SIDE;

/// Columns or rows of the weight that are expanded together: two pairs of tiles.
pub const UNIT: usize = 64;

/// Lines into which [`expand_rows`] and [`expand_columns`] expand a unit over `depth` times [`DEPTH`] elements.
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

/// Rows of tokens as tiles for the left side of a product: for 32 rows, `x` `[up to 32, width]`, a pair of tiles for each
/// [`DEPTH`] columns. What is missing is zero. A `scale` `[width]` multiplies the columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn pack_left(x: &[bf16], width: usize, scale: Option<&[f32]>, order: Order, out: &mut [Line]) {
    for (depth, out) in out.chunks_exact_mut(PAIR_LINES).enumerate() {
        for (number, out) in out.iter_mut().enumerate() {
            *out = line(x, width, order.row(number), depth);
        }
        let Some(scale) = scale else { continue };
        let scale = part(scale, depth * DEPTH);
        for out in out {
            for (out, scale) in out.0.iter_mut().zip(&scale) {
                *out = super::super::bf16_bits(f32::from_bits(u32::from(*out) << 16) * scale);
            }
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

/// 32 columns of a matrix `[rank, width]`, from `first` on, as [`expand_columns`] gives those of a weight.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn pack_columns(matrix: &[bf16], width: usize, first: usize, out: &mut [Line]) {
    let at = |row: usize, column: usize| match column < width {
        true => matrix.get(row * width + column).map_or(0, |value| value.to_bits()),
        false => 0,
    };
    for (depth, out) in out.chunks_exact_mut(PAIR_LINES).enumerate() {
        for (idx, out) in out.iter_mut().enumerate() {
            let (odd, row) = (idx / SIDE, depth * DEPTH + 2 * (idx % SIDE));
            for (place, out) in out.0.iter_mut().enumerate() {
                *out = at(row + place % 2, first + 2 * (place / 2) + odd);
            }
        }
    }
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

    /// The even and the odd ones of 32 elements of a row, zeros where there is none.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn even_and_odd(&self, row: usize) -> [__m512; 2] {
        let Some(values) = self.values.get(row * self.width..row * self.width + DEPTH) else {
            return [_mm512_setzero_ps(); 2];
        };
        // SAFETY: 32 elements of two bytes are there; the load needs no alignment.
        let both = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
        let high = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(_mm512_and_si512(both, high))]
    }
}

/// The sums of row `idx` of 32 rows of tokens with 32 rows of the weight, as [`turn_rows`] orders these, or turned.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn row_of(sums: &Sums, idx: usize, is_turned: bool) -> [f32; DEPTH] {
    let (half, idx) = (idx / SIDE, idx % SIDE);
    if is_turned {
        return std::array::from_fn(|row| sums.0[2 * (row / SIDE) + half][row % SIDE][idx]);
    }
    let [even, odd] = [&sums.0[2 * half][idx], &sums.0[2 * half + 1][idx]];
    std::array::from_fn(|row| if row % 2 == 0 { even[row / 2] } else { odd[row / 2] })
}

/// Adds to `sums` the products of `a` and `b`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn add_products(a: &[f32; DEPTH], b: &[f32; DEPTH], sums: &mut [f32; DEPTH]) {
    sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum = a.mul_add(*b, *sum));
}

/// Adds to `first` the sums `second`, each of the 32 rows of the weight by its factor.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn add_gained(first: &mut Sums, second: &Sums, factors: Option<[f32; DEPTH]>) {
    let Some(factors) = factors else { return };
    for (idx, (first, second)) in first.0.iter_mut().zip(&second.0).enumerate() {
        for ((first, second), factor) in first.iter_mut().zip(second).zip(&factors[SIDE * (idx / 2)..]) {
            for (first, second) in first.iter_mut().zip(second) {
                *first = second.mul_add(*factor, *first);
            }
        }
    }
}

/// Makes of the sums with all elements, `first`, and of those with the dropped ones, `second`, the sums with the others,
/// each multiplied by `kept`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn keep_rest(first: &Sums, second: &mut Sums, kept: f32) {
    for (first, second) in first.0.as_flattened().iter().zip(second.0.as_flattened_mut()) {
        let rest = _mm512_mul_ps(_mm512_sub_ps(load_f32(first), load_f32(second)), _mm512_set1_ps(kept));
        // SAFETY: there is room for 16 floats; the store needs no alignment.
        unsafe { _mm512_storeu_ps(second.as_mut_ptr(), rest) }
    }
}

/// Puts sums of four parts in their places: those that `bits` names of 32 columns as [`expand_columns`] orders them, for each
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

/// As [`pack_left`], for the right side: a tile's line has two neighbouring columns of each of 16 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn pack_right(x: &[bf16], width: usize, out: &mut [Line]) {
    for (depth, out) in out.chunks_exact_mut(PAIR_LINES).enumerate() {
        for (half, out) in out.chunks_exact_mut(SIDE).enumerate() {
            let rows = std::array::from_fn(|row| load(&line(x, width, half * SIDE + row, depth)));
            for (out, row) in out.iter_mut().zip(transpose(rows)) {
                store(row, &mut out.0);
            }
        }
    }
}

/// The row's 32 elements from `depth * 32` on, with zeros beyond `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn line(x: &[bf16], width: usize, row: usize, depth: usize) -> Line {
    let start = depth * DEPTH;
    let len = DEPTH.min(width.saturating_sub(start));
    if let (DEPTH, Some(whole)) = (len, x.get(row * width + start..).and_then(<[bf16]>::first_chunk::<DEPTH>)) {
        return Line(whole.map(bf16::to_bits));
    }
    let mut line = Line::ZERO;
    if let Some(x) = x.get(row * width + start..row * width + start + len) {
        for (out, x) in line.0.iter_mut().zip(x) {
            *out = x.to_bits();
        }
    }
    line
}

/// Expands 64 rows of a weight, from `row` on, as the left side of a product: blocks `first..first + depth / 2` of each, for
/// 32 rows and then the other 32 a pair of tiles for each 32 columns. Rows beyond the weight are zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn expand_rows(
    source: &Source<'_>,
    rounding: Rounding,
    (rows, columns): (usize, usize),
    row: usize,
    (first, n_blocks): (usize, usize),
    order: Order,
    out: &mut [Line],
) {
    let depth = 2 * n_blocks;
    let mut scales = [0f32; 64];
    let scales = &mut scales[..n_blocks];
    for (panel, out) in out[..unit_lines(depth)].chunks_exact_mut(depth * PAIR_LINES).enumerate() {
        for idx in 0..PAIR_ROWS {
            let (row, idx) = (row + panel * PAIR_ROWS + idx, order.line(idx));
            if row >= rows {
                (0..depth).for_each(|depth| out[depth * PAIR_LINES + idx] = Line::ZERO);
                continue;
            }
            let block = row * (columns / BLOCK) + first;
            source.scales.fill(block, scales);
            let packed = &source.packed[block * BLOCK / 2..][..n_blocks * BLOCK / 2];
            for (idx_block, (packed, &scale)) in packed.chunks_exact(BLOCK / 2).zip(&*scales).enumerate() {
                let table = _mm512_broadcast_i64x4(values_bf16(scale, rounding));
                for (half, bytes) in packed.chunks_exact(SIDE).enumerate() {
                    let line = &mut out[(2 * idx_block + half) * PAIR_LINES + idx];
                    store(look_up_bf16(bytes, table), &mut line.0);
                }
            }
        }
    }
}

/// Turns what [`expand_rows`] or [`pack_left`] gives with [`Order::Apart`] into the right side of a product: the rows of each tile
/// become its columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn turn_rows(lines: &mut [Line]) {
    for tile in lines.as_chunks_mut::<SIDE>().0 {
        let turned = transpose(std::array::from_fn(|idx| load(&tile[idx])));
        for (out, row) in tile.iter_mut().zip(turned) {
            store(row, &mut out.0);
        }
    }
}

/// The columns that [`expand_columns`] gives, 32 of them: for each, one after another, its lines of 32 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn turn_columns(lines: &[Line], out: &mut [Line]) {
    let pairs = lines.as_chunks::<PAIR_LINES>().0;
    for (depth, pair) in pairs.iter().enumerate() {
        for (odd, tile) in pair.as_chunks::<SIDE>().0.iter().enumerate() {
            for (idx, row) in transpose(std::array::from_fn(|idx| load(&tile[idx]))).into_iter().enumerate() {
                store(row, &mut out[(2 * idx + odd) * pairs.len() + depth].0);
            }
        }
    }
}

/// Expands 64 columns of a weight, those of the blocks number `block` of its rows, as the right side of a product: rows
/// `first..first + 32 * depth`. For 32 columns and then the other 32, a pair of tiles for each 32 rows: the even columns
/// and the odd ones. Rows beyond the weight are zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn expand_columns(
    source: &Source<'_>,
    rounding: Rounding,
    (rows, columns): (usize, usize),
    block: usize,
    (first, depth): (usize, usize),
    out: &mut [Line],
) {
    let blocks_a_row = columns / BLOCK;
    let (left, right) = out[..unit_lines(depth)].split_at_mut(depth * PAIR_LINES);
    let table_of = |row: usize| {
        let mut scale = [0f32];
        source.scales.fill(row * blocks_a_row + block, &mut scale);
        values_bf16(scale[0], rounding)
    };
    let bytes_of = |row: usize| &source.packed[(row * blocks_a_row + block) * BLOCK / 2..][..BLOCK / 2];
    // The second row's values are the upper half of the table: bit 4 of an index.
    let second = _mm512_set1_epi32(0x10_0000);
    let low = _mm512_set1_epi32(0xF);
    for idx in 0..depth * SIDE {
        let row = first + 2 * idx;
        let at = (idx / SIDE) * PAIR_LINES + idx % SIDE;
        if row >= rows {
            for out in [&mut *left, &mut *right] {
                (out[at], out[at + SIDE]) = (Line::ZERO, Line::ZERO);
            }
            continue;
        }
        let has_other = row + 1 < rows;
        let other = if has_other { table_of(row + 1) } else { _mm256_setzero_si256() };
        let table = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(table_of(row)), other);
        let bytes = [bytes_of(row), bytes_of(if has_other { row + 1 } else { row })];
        for (half, out) in [&mut *left, &mut *right].into_iter().enumerate() {
            let [a, b] = bytes.map(|bytes| load16(&bytes[half * SIDE..][..SIDE]));
            let even = _mm512_or_si512(_mm512_or_si512(_mm512_srli_epi32::<4>(a), _mm512_slli_epi32::<12>(b)), second);
            let odd = _mm512_or_si512(_mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32::<16>(b)), second);
            store(_mm512_permutexvar_epi16(even, table), &mut out[at].0);
            store(_mm512_permutexvar_epi16(odd, table), &mut out[at + SIDE].0);
        }
    }
}

/// The sums of 32 rows of the weight with 32 rows of tokens, and a bias for each row of the weight, rounded: a row of 32 for
/// each row of tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn round_transposed(sums: &Sums, bias: Option<[f32; DEPTH]>, out: &mut [Line; PAIR_ROWS]) {
    let bias = bias.unwrap_or([0.0; DEPTH]);
    for (half, out) in out.chunks_exact_mut(SIDE).enumerate() {
        let rows = std::array::from_fn(|pair| {
            let tile = &sums.0[half + 2 * (pair / 8)];
            let [a, b] = [2 * (pair % 8), 2 * (pair % 8) + 1].map(|row| load_f32(&tile[row]));
            let (a, b) = (
                _mm512_add_ps(a, _mm512_set1_ps(bias[2 * pair])),
                _mm512_add_ps(b, _mm512_set1_ps(bias[2 * pair + 1])),
            );
            interleave(a, b)
        });
        for (out, row) in out.iter_mut().zip(transpose(rows)) {
            store(row, &mut out.0);
        }
    }
}

/// The sums of 32 rows of tokens with 32 columns of the weight as [`expand_columns`] orders them, and what is added to them,
/// rounded: other sums element by element by a mask, and a matrix.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn round_interleaved(
    sums: &Sums,
    masked: Option<(&Sums, Rows<'_>)>,
    before: Option<Rows<'_>>,
    out: &mut [Line; PAIR_ROWS],
) {
    for (row, out) in out.iter_mut().enumerate() {
        let (half, idx) = (row / SIDE, row % SIDE);
        let of = |sums: &Sums| [load_f32(&sums.0[2 * half][idx]), load_f32(&sums.0[2 * half + 1][idx])];
        let [mut even, mut odd] = of(sums);
        if let Some((sums, mask)) = masked {
            let ([more_even, more_odd], [mask_even, mask_odd]) = (of(sums), mask.even_and_odd(row));
            even = _mm512_fmadd_ps(more_even, mask_even, even);
            odd = _mm512_fmadd_ps(more_odd, mask_odd, odd);
        }
        if let Some(before) = before {
            let [before_even, before_odd] = before.even_and_odd(row);
            even = _mm512_add_ps(even, before_even);
            odd = _mm512_add_ps(odd, before_odd);
        }
        store(interleave(even, odd), &mut out.0);
    }
}

/// The sums of 32 rows of tokens with 32 rows of the weight as [`turn_rows`] orders them, and for each row of the weight
/// other sums by a factor, and a bias, rounded.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn round_gained(
    sums: &Sums,
    gained: Option<(&Sums, [f32; DEPTH])>,
    bias: Option<[f32; DEPTH]>,
    out: &mut [Line; PAIR_ROWS],
) {
    let split =
        |values: &[f32; DEPTH]| [0, 1].map(|odd| std::array::from_fn::<_, SIDE, _>(|idx| values[2 * idx + odd]));
    let load_split = |values: [f32; DEPTH]| split(&values).map(|values| load_f32(&values));
    let gained = gained.map(|(sums, factors)| (sums, load_split(factors)));
    let bias = load_split(bias.unwrap_or([0.0; DEPTH]));
    for (row, out) in out.iter_mut().enumerate() {
        let (half, idx) = (row / SIDE, row % SIDE);
        let of = |sums: &Sums| [load_f32(&sums.0[2 * half][idx]), load_f32(&sums.0[2 * half + 1][idx])];
        let [mut even, mut odd] = of(sums);
        if let Some((sums, factors)) = gained {
            let [more_even, more_odd] = of(sums);
            even = _mm512_fmadd_ps(more_even, factors[0], even);
            odd = _mm512_fmadd_ps(more_odd, factors[1], odd);
        }
        store(interleave(_mm512_add_ps(even, bias[0]), _mm512_add_ps(odd, bias[1])), &mut out.0);
    }
}

/// Two rows rounded to bf16, ties to even, element by element in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn interleave(a: __m512, b: __m512) -> __m512i {
    // SAFETY: both types are 64 bytes in a register, without a rule on their bits.
    let both: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(b, a)) };
    let turns = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
        16, 0,
    );
    _mm512_permutexvar_epi16(turns, both)
}

/// 16 x 16 elements of 32 bits, rows to columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn transpose(rows: [__m512i; SIDE]) -> [__m512i; SIDE] {
    let mut quads = [_mm512_setzero_si512(); SIDE];
    for (quad, rows) in quads.chunks_exact_mut(4).zip(rows.chunks_exact(4)) {
        let low = [_mm512_unpacklo_epi32(rows[0], rows[1]), _mm512_unpacklo_epi32(rows[2], rows[3])];
        let high = [_mm512_unpackhi_epi32(rows[0], rows[1]), _mm512_unpackhi_epi32(rows[2], rows[3])];
        quad[0] = _mm512_unpacklo_epi64(low[0], low[1]);
        quad[1] = _mm512_unpackhi_epi64(low[0], low[1]);
        quad[2] = _mm512_unpacklo_epi64(high[0], high[1]);
        quad[3] = _mm512_unpackhi_epi64(high[0], high[1]);
    }
    let mut out = [_mm512_setzero_si512(); SIDE];
    for column in 0..4 {
        let [a, b, c, d] = [0, 4, 8, 12].map(|quad| quads[quad + column]);
        let first = [_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d)];
        let last = [_mm512_shuffle_i32x4::<0xEE>(a, b), _mm512_shuffle_i32x4::<0xEE>(c, d)];
        out[column] = _mm512_shuffle_i32x4::<0x88>(first[0], first[1]);
        out[4 + column] = _mm512_shuffle_i32x4::<0xDD>(first[0], first[1]);
        out[8 + column] = _mm512_shuffle_i32x4::<0x88>(last[0], last[1]);
        out[12 + column] = _mm512_shuffle_i32x4::<0xDD>(last[0], last[1]);
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line has 64 bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn store(values: __m512i, out: &mut [u16; 32]) {
    // SAFETY: 64 bytes are there; the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), values) }
}
