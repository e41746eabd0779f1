//! The loops of a product with AVX2 and FMA, for processors without bf16 products: operands become f32 on their way into a
//! register. As in `wide.rs`, but for the order of sums.
//!
//! Closures with instructions of their own are not made part of the loop around them by a library function that has none, such as an
//! array's `map`: hence plain loops.

use std::arch::x86_64::*;

use half::bf16;

use super::super::Quantizable as _;
use super::super::avx2::{bytes_of, look_up_bf16, look_up_bytes, nibbles, store16, widen};
use super::dropped::Entry;
use super::layout::{Codes, Order, PAIR_ROWS, Rows, line, part};
use super::step::{DEPTH, Line, PAIR_LINES, SIDE, Sums};

/// Rows whose sums are in registers at a time, two for each: with more of them some would wait in memory.
const ROWS: usize = 4;

/// Lines of so many rows of tokens for each [`DEPTH`], in f32.
const GROUP_LINES: usize = 2 * ROWS;

/// Lines of 32 rows of tokens for each [`DEPTH`], in f32.
pub const TOKEN_LINES: usize = 2 * PAIR_LINES;

/// As [`Codes::expand_rows`].
#[target_feature(enable = "avx2,fma,f16c")]
pub fn expand_rows(codes: &Codes<'_>, row: usize, blocks: (usize, usize), order: Order, out: &mut [Line]) {
    codes.expand_rows(
        row,
        blocks,
        order,
        out,
        |scale, rounding| bytes_of(scale, rounding),
        |bytes, table, line| {
            store_line(look_up_bytes(bytes, *table), line);
        },
    );
}

/// 32 columns of a matrix `[any, width]`, from `column` on, as [`expand_columns`] gives those of a weight: rows from `first`
/// times [`DEPTH`] on.
#[target_feature(enable = "avx2,fma")]
pub fn pack_columns(matrix: &[bf16], width: usize, column: usize, first: usize, out: &mut [Line]) {
    for (depth, out) in (first..).zip(out.chunks_exact_mut(PAIR_LINES)) {
        let (even, odd) = out.split_at_mut(SIDE);
        for (idx, (even, odd)) in even.iter_mut().zip(odd).enumerate() {
            let row = depth * DEPTH + 2 * idx;
            let (a, b) = (line(matrix, width, row, column), line(matrix, width, row + 1, column));
            let pairs = a.0.as_chunks::<2>().0.iter().zip(b.0.as_chunks::<2>().0);
            let outs = even.0.as_chunks_mut::<2>().0.iter_mut().zip(odd.0.as_chunks_mut::<2>().0);
            for ((a, b), (even, odd)) in pairs.zip(outs) {
                (*even, *odd) = ([a[0], b[0]], [a[1], b[1]]);
            }
        }
    }
}

/// As [`Codes::expand_columns`].
#[target_feature(enable = "avx2,fma,f16c")]
pub fn expand_columns(codes: &Codes<'_>, block: usize, rows: (usize, usize), out: &mut [Line]) {
    let table = |scale, rounding| bytes_of(scale, rounding);
    codes.expand_columns(block, rows, out, table, |[first, second], [table, other], outs| {
        for ((&a, &b), out) in nibbles(first).iter().zip(&nibbles(second)).zip(outs) {
            let ([a, b], [c, d]) = (look_up_bf16(a, *table), look_up_bf16(b, *other));
            let low = [_mm_unpacklo_epi16(a, c), _mm_unpackhi_epi16(a, c)];
            store_line([low[0], low[1], _mm_unpacklo_epi16(b, d), _mm_unpackhi_epi16(b, d)], out);
        }
    });
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_line(quarters: [__m128i; 4], line: &mut Line) {
    for (quarter, out) in quarters.into_iter().zip(line.0.as_chunks_mut::<8>().0) {
        // SAFETY: 16 bytes are there; the store needs no alignment.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), quarter) }
    }
}

/// As [`super::wide::turn_rows`].
#[target_feature(enable = "avx2,fma")]
pub fn turn_rows(lines: &mut [Line]) {
    for tile in lines.as_chunks_mut::<SIDE>().0 {
        *tile = turned(tile);
    }
}

/// As [`super::wide::turn_columns`].
#[target_feature(enable = "avx2,fma")]
pub fn turn_columns(lines: &[Line], out: &mut [Line]) {
    let pairs = lines.as_chunks::<PAIR_LINES>().0;
    for (depth, pair) in pairs.iter().enumerate() {
        for (odd, tile) in pair.as_chunks::<SIDE>().0.iter().enumerate() {
            for (idx, row) in turned(tile).into_iter().enumerate() {
                out[(2 * idx + odd) * pairs.len() + depth] = row;
            }
        }
    }
}

/// 16 x 16 elements of 32 bits, rows to columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn turned(tile: &[Line; SIDE]) -> [Line; SIDE] {
    let mut out = [Line::ZERO; SIDE];
    for (first, half) in [(0, 0), (0, 1), (8, 0), (8, 1)] {
        let mut rows = [_mm256_setzero_si256(); 8];
        for (row, line) in rows.iter_mut().zip(&tile[first..]) {
            *row = load(line)[half];
        }
        for (idx, &row) in transpose(rows).iter().enumerate() {
            let out = &mut out[8 * half + idx].0.as_chunks_mut::<SIDE>().0[first / 8];
            // SAFETY: 32 bytes are there; the store needs no alignment.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), row) }
        }
    }
    out
}

/// 8 x 8 elements of 32 bits, rows to columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let mut quads = [_mm256_setzero_si256(); 8];
    for (quad, rows) in quads.chunks_exact_mut(4).zip(rows.chunks_exact(4)) {
        let low = [_mm256_unpacklo_epi32(rows[0], rows[1]), _mm256_unpacklo_epi32(rows[2], rows[3])];
        let high = [_mm256_unpackhi_epi32(rows[0], rows[1]), _mm256_unpackhi_epi32(rows[2], rows[3])];
        quad[0] = _mm256_unpacklo_epi64(low[0], low[1]);
        quad[1] = _mm256_unpackhi_epi64(low[0], low[1]);
        quad[2] = _mm256_unpacklo_epi64(high[0], high[1]);
        quad[3] = _mm256_unpackhi_epi64(high[0], high[1]);
    }
    let mut out = [_mm256_setzero_si256(); 8];
    for column in 0..4 {
        out[column] = _mm256_permute2x128_si256::<0x20>(quads[column], quads[4 + column]);
        out[4 + column] = _mm256_permute2x128_si256::<0x31>(quads[column], quads[4 + column]);
    }
    out
}

/// As [`super::wide::keep_rest`].
#[target_feature(enable = "avx2,fma")]
pub fn keep_rest(first: &Sums, second: &mut Sums, kept: f32) {
    let pairs = first.0.as_flattened().as_flattened().iter().zip(second.0.as_flattened_mut().as_flattened_mut());
    pairs.for_each(|(first, second)| *second = (first - *second) * kept);
}

/// As [`super::wide::round_interleaved`].
#[target_feature(enable = "avx2,fma")]
pub fn round_interleaved(
    sums: &Sums,
    masked: Option<(&Sums, Rows<'_>)>,
    before: Option<Rows<'_>>,
    out: &mut [Line; PAIR_ROWS],
) {
    for (row, out) in out.iter_mut().enumerate() {
        let mut values = sums_of(sums, row);
        if let Some((sums, mask)) = masked {
            add_products(&sums_of(sums, row), &even_and_odd(mask, row), &mut values);
        }
        if let Some(before) = before {
            add(&even_and_odd(before, row), &mut values);
        }
        interleave(&values, out);
    }
}

/// As [`super::wide::round_gained`].
#[target_feature(enable = "avx2,fma")]
pub fn round_gained(
    sums: &Sums,
    gained: Option<(&Sums, [f32; DEPTH])>,
    bias: Option<[f32; DEPTH]>,
    out: &mut [Line; PAIR_ROWS],
) {
    let split = |values: [f32; DEPTH]| [0, 1].map(|odd| std::array::from_fn(|idx| values[2 * idx + odd]));
    let gained = gained.map(|(sums, factors)| (sums, split(factors)));
    let bias = split(bias.unwrap_or([0.0; DEPTH]));
    for (row, out) in out.iter_mut().enumerate() {
        let mut values = sums_of(sums, row);
        if let Some((sums, factors)) = &gained {
            add_products(&sums_of(sums, row), factors, &mut values);
        }
        add(&bias, &mut values);
        interleave(&values, out);
    }
}

/// A row's sums in its two tiles.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sums_of(sums: &Sums, row: usize) -> [[f32; SIDE]; 2] {
    let (half, idx) = (row / SIDE, row % SIDE);
    [sums.0[2 * half][idx], sums.0[2 * half + 1][idx]]
}

/// The even and the odd ones of 32 elements of a row, zeros where there are none.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn even_and_odd(rows: Rows<'_>, row: usize) -> [[f32; SIDE]; 2] {
    let mut rest = [bf16::ZERO; DEPTH];
    let pairs = rows.row(row, &mut rest).as_chunks::<2>().0;
    let mut out = [[0.0; SIDE]; 2];
    let [even, odd] = &mut out;
    for (pair, (even, odd)) in pairs.iter().zip(even.iter_mut().zip(odd)) {
        (*even, *odd) = (pair[0].widen(), pair[1].widen());
    }
    out
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_products(a: &[[f32; SIDE]; 2], b: &[[f32; SIDE]; 2], sums: &mut [[f32; SIDE]; 2]) {
    let factors = a.as_flattened().iter().zip(b.as_flattened());
    sums.as_flattened_mut().iter_mut().zip(factors).for_each(|(sum, (a, b))| *sum = a.mul_add(*b, *sum));
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add(terms: &[[f32; SIDE]; 2], sums: &mut [[f32; SIDE]; 2]) {
    sums.as_flattened_mut().iter_mut().zip(terms.as_flattened()).for_each(|(sum, term)| *sum += term);
}

/// Even and odd elements rounded to bf16, ties to even, in turn.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn interleave([even, odd]: &[[f32; SIDE]; 2], out: &mut Line) {
    for ((out, even), odd) in out.0.as_chunks_mut::<2>().0.iter_mut().zip(even).zip(odd) {
        *out = [super::super::bf16_bits(*even), super::super::bf16_bits(*odd)];
    }
}

/// Rows of tokens, as [`super::layout::pack_left`] takes them, for the left side of a product in f32: `chunk` times [`DEPTH`] columns
/// of four rows one after another, as [`step`] reads them, then those of the next rows, then the next chunk. In it, two lines have 32
/// columns of a row; of every 16 the even ones come first.
#[target_feature(enable = "avx2,fma")]
pub fn pack_tokens(x: &[bf16], width: usize, scale: Option<&[f32]>, chunk: usize, out: &mut [Line]) {
    for (chunk_idx, out) in out.chunks_mut((chunk * TOKEN_LINES).max(1)).enumerate() {
        let len = out.len() / TOKEN_LINES;
        for (depth, column) in (0..len).map(|depth| (depth, (chunk_idx * chunk + depth) * DEPTH)) {
            let scale = scale.map(|scale| part(scale, column));
            for row in 0..PAIR_ROWS {
                let mut line = line(x, width, row, column);
                if let Some(scale) = &scale {
                    line.multiply(scale);
                }
                for (out, &pairs) in out[token_line(row, depth, len)..].iter_mut().zip(&load(&line)) {
                    let [even, odd] = widen(pairs);
                    // SAFETY: a line has 64 bytes at an address that divides by 64.
                    unsafe {
                        _mm256_store_ps(out.0.as_mut_ptr().cast(), even);
                        _mm256_store_ps(out.0.as_mut_ptr().cast::<f32>().add(8), odd);
                    }
                }
            }
        }
    }
}

/// Where 32 columns of a row begin in a chunk of `len` times as many.
#[inline(always)]
fn token_line(row: usize, depth: usize, len: usize) -> usize {
    (row / ROWS * len + depth) * GROUP_LINES + row % ROWS * 2
}

/// As [`super::step::Engine::step`], for all the pairs of tiles and the first `rows` rows, over the first `PAIRS` pairs of
/// neighbours that the tiles of a [`super::step::DEPTH`] hold. `a` is a chunk as [`pack_tokens`] gives it.
#[target_feature(enable = "avx2,fma")]
pub fn step<const PAIRS: usize>(a: &[Line], b: &[Line], rows: usize, adds: bool, sums: &mut Sums) {
    let (a, b) = (a.as_chunks::<GROUP_LINES>().0, b.as_chunks::<PAIR_LINES>().0);
    for (group, a) in a.chunks_exact(b.len().max(1)).take(rows.div_ceil(ROWS)).enumerate() {
        let (half, place) = (group / (SIDE / ROWS), group % (SIDE / ROWS));
        for tile in 0..2 {
            let out = &mut sums.0[2 * half + tile].as_chunks_mut::<ROWS>().0[place];
            let mut rows = [[_mm256_setzero_ps(); 2]; ROWS];
            if adds {
                for (row, out) in rows.iter_mut().zip(&*out) {
                    *row = load_sums(out);
                }
            }
            for (a, b) in a.iter().zip(b) {
                for (pair, b) in b[tile * SIDE..][..PAIRS].iter().enumerate() {
                    let [left, right] = load(b);
                    let (left, right) = (widen(left), widen(right));
                    for odd in 0..2 {
                        let at = pair / 8 * SIDE + odd * 8 + pair % 8;
                        for (a, [sum_left, sum_right]) in a.as_chunks::<2>().0.iter().zip(&mut rows) {
                            // SAFETY: two lines have 32 floats, and `at` is below that.
                            let a = unsafe { _mm256_broadcast_ss(&*a.as_ptr().cast::<f32>().add(at)) };
                            *sum_left = _mm256_fmadd_ps(a, left[odd], *sum_left);
                            *sum_right = _mm256_fmadd_ps(a, right[odd], *sum_right);
                        }
                    }
                }
            }
            out.iter_mut().zip(rows).for_each(|(out, sums)| store16(sums, out));
        }
    }
}

/// As two of [`step`], for a left operand of few elements, the entries of each of 32 rows. `b` is one right operand after the
/// other.
#[target_feature(enable = "avx2,fma")]
pub fn step_entries<'a>(rows: impl Iterator<Item = &'a [Entry]>, b: &[Line], adds: bool, sums: [&mut Sums; 2]) {
    let [first, second] = sums;
    let (b, other) = b.split_at(b.len() / 2);
    for (row, entries) in rows.enumerate() {
        let (tile, row) = (2 * (row / SIDE), row % SIDE);
        let mut parts = [[_mm256_setzero_ps(); 2]; 4];
        if adds {
            let tiles = [&first.0[tile], &first.0[tile + 1], &second.0[tile], &second.0[tile + 1]];
            for (part, tile) in parts.iter_mut().zip(tiles) {
                *part = load_sums(&tile[row]);
            }
        }
        for entry in entries {
            let (b, other) = (&b[entry.line as usize..][..SIDE + 1], &other[entry.line as usize..][..SIDE + 1]);
            let [even, odd] = widen(_mm256_set1_epi32(entry.values as i32));
            for (part, line) in parts.iter_mut().zip([&b[0], &b[SIDE], &other[0], &other[SIDE]]) {
                let [left, right] = load(line);
                let (left, right) = (widen(left), widen(right));
                part[0] = _mm256_fmadd_ps(odd, left[1], _mm256_fmadd_ps(even, left[0], part[0]));
                part[1] = _mm256_fmadd_ps(odd, right[1], _mm256_fmadd_ps(even, right[0], part[1]));
            }
        }
        let [a, b, c, d] = parts;
        store16(a, &mut first.0[tile][row]);
        store16(b, &mut first.0[tile + 1][row]);
        store16(c, &mut second.0[tile][row]);
        store16(d, &mut second.0[tile + 1][row]);
    }
}

/// Adds to the sums of few elements of a result, in four parts each: those that `bits` names of 32 columns for each of 32
/// rows. `a` is as [`pack_tokens`] gives it, `columns` has `depth` lines for each column. Says how many sums there are.
#[target_feature(enable = "avx2,fma")]
pub fn step_elements(a: &[Line], columns: &[Line], bits: &[u32; PAIR_ROWS], sums: &mut [[f32; 4]]) -> usize {
    let depth = a.len() / TOKEN_LINES;
    let mut n_sums = 0;
    for (row, &row_bits) in bits.iter().enumerate() {
        let mut row_bits = row_bits;
        while row_bits != 0 {
            let column = row_bits.trailing_zeros() as usize;
            row_bits &= row_bits - 1;
            let (column, sum) = (&columns[column * depth..][..depth], &mut sums[n_sums]);
            n_sums += 1;
            // One register for each half of a line, and in it for the even and the odd elements.
            let mut parts = [[_mm256_setzero_ps(); 2]; 2];
            for (depth_idx, column) in column.iter().enumerate() {
                let a = &a[token_line(row, depth_idx, depth)..][..2];
                for ((part, a), &b) in parts.iter_mut().zip(a).zip(&load(column)) {
                    let ([a_even, a_odd], [b_even, b_odd]) = (load(a), widen(b));
                    part[0] = _mm256_fmadd_ps(_mm256_castsi256_ps(a_even), b_even, part[0]);
                    part[1] = _mm256_fmadd_ps(_mm256_castsi256_ps(a_odd), b_odd, part[1]);
                }
            }
            let [[a, b], [c, d]] = parts;
            let eight = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            // SAFETY: there are four floats to load and to store.
            unsafe { _mm_storeu_ps(sum.as_mut_ptr(), _mm_add_ps(_mm_loadu_ps(sum.as_ptr()), four)) }
        }
    }
    n_sums
}

/// Finds the zeros of up to 32 rows of a mask; none when there is a value that is neither 0 nor `kept`.
#[target_feature(enable = "avx2,fma,popcnt")]
pub fn scan(mask: &[bf16], columns: usize, kept: bf16, bits: &mut [[u32; PAIR_ROWS]]) -> Option<usize> {
    let kept = _mm256_set1_epi16(kept.to_bits() as i16);
    let (mut n_dropped, mut is_other) = (0, false);
    for (row, mask) in mask.chunks_exact(columns).enumerate() {
        for (bits, mask) in bits.iter_mut().zip(mask.as_chunks::<DEPTH>().0) {
            // SAFETY: 32 elements of two bytes are there; the loads need no alignment.
            let (first, second) = unsafe {
                (_mm256_loadu_si256(mask.as_ptr().cast()), _mm256_loadu_si256(mask.as_ptr().add(SIDE).cast()))
            };
            let zero = _mm256_setzero_si256();
            let zeros = bit_mask(_mm256_cmpeq_epi16(first, zero), _mm256_cmpeq_epi16(second, zero));
            is_other |= zeros != !bit_mask(_mm256_cmpeq_epi16(first, kept), _mm256_cmpeq_epi16(second, kept));
            n_dropped += zeros.count_ones() as usize;
            bits[row] = zeros;
        }
    }
    (!is_other).then_some(n_dropped)
}

/// A bit for each of 32 elements of 16 bits that are all ones or all zeros.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn bit_mask(first: __m256i, second: __m256i) -> u32 {
    // Packing takes the halves of registers in turn.
    let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(first, second));
    _mm256_movemask_epi8(bytes) as u32
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load(line: &Line) -> [__m256i; 2] {
    // SAFETY: a line has 64 bytes at an address that divides by 64.
    unsafe { [_mm256_load_si256(line.0.as_ptr().cast()), _mm256_load_si256(line.0.as_ptr().cast::<__m256i>().add(1))] }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_sums(row: &[f32; SIDE]) -> [__m256; 2] {
    // SAFETY: 16 floats are there.
    unsafe { [_mm256_loadu_ps(row.as_ptr()), _mm256_loadu_ps(row.as_ptr().add(8))] }
}
