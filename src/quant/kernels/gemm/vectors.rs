//! A step of a product with AVX-512's bf16 instructions, for processors that have no tiles, and the products with few
//! elements of an operand or of the result.

use std::arch::x86_64::*;

use super::super::avx512::load_f32;
use super::super::avx512bf16::as_bf16;
use super::dropped::Entry;
use super::layout::PAIR_ROWS;
use super::step::{Line, PAIR_LINES, SIDE, Sums};

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
            store(even, &mut left[start + row]);
            store(odd, &mut right[start + row]);
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
        store(_mm512_add_ps(even[0], odd[0]), &mut first.0[tile][row]);
        store(_mm512_add_ps(even[1], odd[1]), &mut first.0[tile + 1][row]);
        store(_mm512_add_ps(even[2], odd[2]), &mut second.0[tile][row]);
        store(_mm512_add_ps(even[3], odd[3]), &mut second.0[tile + 1][row]);
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
fn store(values: __m512, row: &mut [f32; SIDE]) {
    // SAFETY: there is room for 16 floats.
    unsafe { _mm512_storeu_ps(row.as_mut_ptr(), values) }
}
