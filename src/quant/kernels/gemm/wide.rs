//! The loops of a product with AVX-512 and its bf16 instructions: operands into tiles, a step for processors that have no AMX, the
//! products with few elements, and sums out of tiles.

use std::arch::x86_64::*;

use half::bf16;

use super::super::avx512::{load_f32, load16, look_up_bf16, values_bf16};
use super::super::avx512bf16::as_bf16;
use super::dropped::Entry;
use super::layout::{Codes, Order, PAIR_ROWS, Rows, line};
use super::step::{DEPTH, Line, PAIR_LINES, SIDE, Sums};

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

/// As [`super::layout::pack_left`], for the right side: a tile's line has two neighbouring columns of each of 16 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn pack_right(x: &[bf16], width: usize, out: &mut [Line]) {
    for (depth, out) in out.chunks_exact_mut(PAIR_LINES).enumerate() {
        for (half, out) in out.chunks_exact_mut(SIDE).enumerate() {
            let rows = std::array::from_fn(|row| load(&line(x, width, half * SIDE + row, depth * DEPTH)));
            for (out, row) in out.iter_mut().zip(transpose(rows)) {
                store(row, &mut out.0);
            }
        }
    }
}

/// As [`Codes::expand_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn expand_rows(codes: &Codes<'_>, row: usize, blocks: (usize, usize), order: Order, out: &mut [Line]) {
    let table = |scale, rounding| _mm512_broadcast_i64x4(values_bf16(scale, rounding));
    codes.expand_rows(row, blocks, order, out, table, |bytes, table, line| {
        store(look_up_bf16(bytes, *table), &mut line.0);
    });
}

/// Turns what [`expand_rows`] or [`super::layout::pack_left`] gives with [`Order::Apart`] into the right side of a
/// product: the rows of each tile become its columns.
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

/// As [`super::narrow::pack_columns`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn pack_columns(matrix: &[bf16], width: usize, column: usize, first: usize, out: &mut [Line]) {
    /// Rows from one that is read to one that is fetched.
    const AHEAD: usize = 24;
    /// The second one of each two.
    const ODD: u32 = 0xAAAA_AAAA;
    for (depth, out) in (first..).zip(out.chunks_exact_mut(PAIR_LINES)) {
        let (even, odd) = out.split_at_mut(SIDE);
        for (idx, (even, odd)) in even.iter_mut().zip(odd).enumerate() {
            let row = depth * DEPTH + 2 * idx;
            // Rows are far apart, so that the processor does not see them coming.
            if let Some(ahead) = matrix.get((row + AHEAD) * width + column..) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.as_ptr().cast());
                _mm_prefetch::<_MM_HINT_T0>(ahead.as_ptr().wrapping_add(width).cast());
            }
            let a = load(&line(matrix, width, row, column));
            let b = load(&line(matrix, width, row + 1, column));
            store(_mm512_mask_blend_epi16(ODD, a, _mm512_slli_epi32::<16>(b)), &mut even.0);
            store(_mm512_mask_blend_epi16(ODD, _mm512_srli_epi32::<16>(a), b), &mut odd.0);
        }
    }
}

/// As [`Codes::expand_columns`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub fn expand_columns(codes: &Codes<'_>, block: usize, rows: (usize, usize), out: &mut [Line]) {
    // The second row's values are the upper half of the table: bit 4 of an index.
    let second = _mm512_set1_epi32(0x10_0000);
    let low = _mm512_set1_epi32(0xF);
    let table = |scale, rounding| values_bf16(scale, rounding);
    codes.expand_columns(block, rows, out, table, |bytes, [table, other], [out_even, out_odd]| {
        let table = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(*table), *other);
        let [a, b] = bytes.map(|bytes| load16(bytes));
        let even = _mm512_or_si512(_mm512_or_si512(_mm512_srli_epi32::<4>(a), _mm512_slli_epi32::<12>(b)), second);
        let odd = _mm512_or_si512(_mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32::<16>(b)), second);
        store(_mm512_permutexvar_epi16(even, table), &mut out_even.0);
        store(_mm512_permutexvar_epi16(odd, table), &mut out_odd.0);
    });
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
            let ([more_even, more_odd], [mask_even, mask_odd]) = (of(sums), even_and_odd(mask, row));
            even = _mm512_fmadd_ps(more_even, mask_even, even);
            odd = _mm512_fmadd_ps(more_odd, mask_odd, odd);
        }
        if let Some(before) = before {
            let [before_even, before_odd] = even_and_odd(before, row);
            even = _mm512_add_ps(even, before_even);
            odd = _mm512_add_ps(odd, before_odd);
        }
        store(interleave(even, odd), &mut out.0);
    }
}

/// The even and the odd ones of 32 elements of a row, zeros where there are none.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn even_and_odd(rows: Rows<'_>, row: usize) -> [__m512; 2] {
    let mut rest = [bf16::ZERO; DEPTH];
    let values = rows.row(row, &mut rest);
    // SAFETY: 32 elements of two bytes are there; the load needs no alignment.
    let both = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
    let high = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
    [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(_mm512_and_si512(both, high))]
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

/// Rows whose sums are in registers at a time: two for each, enough of them to hide the latency of a product.
const ROWS: usize = 8;

/// As [`super::step::Engine::step`], for all the pairs of tiles and the first `rows` rows, over the first `PAIRS` pairs of
/// neighbours that the tiles of a [`super::step::DEPTH`] hold.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn step<const PAIRS: usize>(a: &[Line], b: &[Line], rows: usize, adds: bool, sums: &mut Sums) {
    for first in (0..rows.min(2 * SIDE)).step_by(ROWS) {
        let [left, right] = &mut sums.0.as_chunks_mut::<2>().0[first / SIDE];
        let start = first % SIDE;
        let both = |left: &[f32; SIDE], right: &[f32; SIDE]| [load_f32(left), load_f32(right)];
        let mut rows: [[__m512; 2]; ROWS] = match adds {
            true => std::array::from_fn(|row| both(&left[start + row], &right[start + row])),
            false => [[_mm512_setzero_ps(); 2]; ROWS],
        };
        for (a, b) in a.as_chunks::<PAIR_LINES>().0.iter().zip(b.as_chunks::<PAIR_LINES>().0) {
            for pair in 0..PAIRS {
                let columns = [bits(&b[pair]), bits(&b[SIDE + pair])];
                for (row, sums) in rows.iter_mut().enumerate() {
                    let [low, high] = [0, 1].map(|idx| u32::from(a[first + row].0[2 * pair + idx]));
                    let twice = as_bf16(_mm512_set1_epi32((low | high << 16) as i32));
                    *sums =
                        [_mm512_dpbf16_ps(sums[0], twice, columns[0]), _mm512_dpbf16_ps(sums[1], twice, columns[1])];
                }
            }
        }
        for (row, [even, odd]) in rows.into_iter().enumerate() {
            store_sums(even, &mut left[start + row]);
            store_sums(odd, &mut right[start + row]);
        }
    }
}

/// As two of [`step`], for a left operand of few elements, the entries of each of 32 rows. `b` is one right operand after the
/// other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn step_entries<'a>(rows: impl Iterator<Item = &'a [Entry]>, b: &[Line], adds: bool, sums: [&mut Sums; 2]) {
    let zero = [_mm512_setzero_ps(); 4];
    let [first, second] = sums;
    let (b, other) = b.split_at(b.len() / 2);
    for (row, entries) in rows.enumerate() {
        let (tile, row) = (2 * (row / SIDE), row % SIDE);
        let mut even = match adds {
            true => [&first.0[tile], &first.0[tile + 1], &second.0[tile], &second.0[tile + 1]]
                .map(|tile| load_f32(&tile[row])),
            false => zero,
        };
        // Every other entry has sums of its own, so that a product need not wait for the last one.
        let mut odd = zero;
        let add = |entry: &Entry, sums: &mut [__m512; 4]| {
            let (b, other) = (&b[entry.line as usize..][..SIDE + 1], &other[entry.line as usize..][..SIDE + 1]);
            let twice = as_bf16(_mm512_set1_epi32(entry.values as i32));
            *sums = [
                _mm512_dpbf16_ps(sums[0], twice, bits(&b[0])),
                _mm512_dpbf16_ps(sums[1], twice, bits(&b[SIDE])),
                _mm512_dpbf16_ps(sums[2], twice, bits(&other[0])),
                _mm512_dpbf16_ps(sums[3], twice, bits(&other[SIDE])),
            ];
        };
        let (twos, last) = entries.as_chunks::<2>();
        for [a, b] in twos {
            add(a, &mut even);
            add(b, &mut odd);
        }
        last.iter().for_each(|entry| add(entry, &mut even));
        store_sums(_mm512_add_ps(even[0], odd[0]), &mut first.0[tile][row]);
        store_sums(_mm512_add_ps(even[1], odd[1]), &mut first.0[tile + 1][row]);
        store_sums(_mm512_add_ps(even[2], odd[2]), &mut second.0[tile][row]);
        store_sums(_mm512_add_ps(even[3], odd[3]), &mut second.0[tile + 1][row]);
    }
}

/// Adds to the sums of few elements of a result, in four parts each: those that `bits` names of 32 columns for each of 32
/// rows. `a` is a left operand, `columns` has `depth` lines for each column. Says how many sums there are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn step_elements(a: &[Line], columns: &[Line], bits: &[u32; PAIR_ROWS], sums: &mut [[f32; 4]]) -> usize {
    let a = a.as_chunks::<PAIR_LINES>().0;
    let (twos, last) = a.as_chunks::<2>();
    let mut n_sums = 0;
    for (row, &row_bits) in bits.iter().enumerate() {
        let mut row_bits = row_bits;
        while row_bits != 0 {
            let column = row_bits.trailing_zeros() as usize;
            row_bits &= row_bits - 1;
            let (column, sum) = (&columns[column * a.len()..][..a.len()], &mut sums[n_sums]);
            n_sums += 1;
            // SAFETY: four floats are there.
            let mut sums = _mm512_zextps128_ps512(unsafe { _mm_loadu_ps(sum.as_ptr()) });
            let mut others = _mm512_setzero_ps();
            let (column_twos, column_last) = column.as_chunks::<2>();
            for (a, column) in twos.iter().zip(column_twos) {
                sums = _mm512_dpbf16_ps(sums, self::bits(&a[0][row]), self::bits(&column[0]));
                others = _mm512_dpbf16_ps(others, self::bits(&a[1][row]), self::bits(&column[1]));
            }
            for (a, column) in last.iter().zip(column_last) {
                sums = _mm512_dpbf16_ps(sums, self::bits(&a[row]), self::bits(column));
            }
            let sums = _mm512_add_ps(sums, others);
            let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sums)));
            let half = _mm256_add_ps(_mm512_castps512_ps256(sums), upper);
            let parts = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            // SAFETY: there is room for four floats.
            unsafe { _mm_storeu_ps(sum.as_mut_ptr(), parts) }
        }
    }
    n_sums
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn bits(line: &Line) -> __m512bh {
    // SAFETY: a line has 64 bytes at an address that divides by 64.
    as_bf16(unsafe { _mm512_load_si512(line.0.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn store_sums(values: __m512, row: &mut [f32; SIDE]) {
    // SAFETY: there is room for 16 floats.
    unsafe { _mm512_storeu_ps(row.as_mut_ptr(), values) }
}

/// Finds the zeros of up to 32 rows of a mask; none when there is a value that is neither 0 nor `kept`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
pub fn scan(mask: &[bf16], columns: usize, kept: bf16, bits: &mut [[u32; PAIR_ROWS]]) -> Option<usize> {
    let kept = _mm512_set1_epi16(kept.to_bits() as i16);
    let (mut n_dropped, mut others) = (0, 0);
    for (row, mask) in mask.chunks_exact(columns).enumerate() {
        for (bits, mask) in bits.iter_mut().zip(mask.as_chunks::<DEPTH>().0) {
            // SAFETY: 32 elements of two bytes are there; the load needs no alignment.
            let values = unsafe { _mm512_loadu_si512(mask.as_ptr().cast()) };
            let zeros = _mm512_testn_epi16_mask(values, values);
            others |= zeros ^ _mm512_cmpneq_epi16_mask(values, kept);
            n_dropped += zeros.count_ones() as usize;
            bits[row] = zeros;
        }
    }
    (others == 0).then_some(n_dropped)
}
