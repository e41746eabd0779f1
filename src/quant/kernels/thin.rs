//! Products of many rows of activations with an adapter's thin matrices, by AMX, AVX-512's bf16 instructions or AVX2's f32 ones.
//!
//! A thin product is too small for a general one to be worth its preparations. Sums are in f32; each is taken in the same
//! order whatever the number of threads.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;
use rayon::prelude::*;

use super::avx2::{store16, widen};
use super::avx512bf16::as_bf16;
use super::gemm::{Tiles, row_of, thin_tiles};
use super::rows::narrow;
use super::{Isa, Quantizable, can_multiply_many};

/// Ranks in a vector register.
const LANES: usize = 16;

/// Rows of `x` whose sums are in registers at a time.
const ROWS: usize = 8;

/// Of those, rows or ranks whose sums AVX2's fewer registers hold at a time.
const NARROW: usize = 4;

/// Columns of `x` that one register holds.
const COLUMNS: usize = 32;

/// Rows of `x`, or ranks, that AMX takes at a time.
const TILE_ROWS: usize = 32;

/// Rows of `x` for one task of [`inner`].
const TASK_ROWS: usize = 4 * ROWS;

/// Groups of columns for one task of [`outer`].
const TASK_GROUPS: usize = 4;

/// Two neighbours of the summed dimension for each of 16 ranks.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([[bf16; 2]; LANES]);

/// How an adapter's matrix lies in memory.
#[derive(Clone, Copy, Debug)]
pub enum Thin<'a> {
    /// `A` `[rank, summed]`.
    Rows(&'a [bf16]),
    /// `B` `[summed, rank]`, each of its rows times a factor, rounded.
    Columns(&'a [bf16], Option<&'a [f32]>),
}

/// What becomes of the sums of [`outer`], for `x` `[n, width]`.
#[derive(Clone, Copy, Debug)]
pub enum Outer<'a> {
    /// `[rank, width]`.
    Rows,
    /// `[width, rank]`, times a number, and each row times a factor.
    Columns(f32, Option<&'a [f32]>),
}

/// `out[row][i] = sum(x[row] * matrix[i])`, rounded: `x` is `[n, summed]`, `out` `[n, rank]`. Nothing happens where
/// [`can_multiply_many`] is false or sizes do not fit.
pub fn inner(isa: Isa, x: &[bf16], matrix: Thin<'_>, n: usize, rank: usize, out: &mut [bf16]) {
    let summed = x.len() / n.max(1);
    let (len, factors) = match matrix {
        Thin::Rows(values) => (values.len(), None),
        Thin::Columns(values, factors) => (values.len(), factors),
    };
    let fits = x.len() == n * summed && len == rank * summed && out.len() == n * rank;
    if !can_multiply_many(isa) || !fits || factors.is_some_and(|factors| factors.len() != summed) || out.is_empty() {
        return;
    }
    if summed == 0 {
        out.fill(bf16::ZERO);
        return;
    }
    if isa == Isa::Amx && summed.is_multiple_of(COLUMNS) {
        inner_on_tiles(x, matrix, summed, rank, out);
        return;
    }
    let lines = lines_of(matrix, summed, rank);
    let pairs = summed.div_ceil(2);
    out.par_chunks_mut(TASK_ROWS * rank).zip(x.par_chunks(TASK_ROWS * summed)).for_each(|(out, x)| {
        for (out, x) in out.chunks_mut(ROWS * rank).zip(x.chunks(ROWS * summed)) {
            for (group, lines) in lines.chunks_exact(pairs).enumerate() {
                let mut sums = [[0f32; LANES]; ROWS];
                // SAFETY: the instructions are there (`can_multiply_many`).
                unsafe {
                    match isa >= Isa::Avx512Bf16 {
                        true => inner_rows(x, summed, lines, &mut sums),
                        false => inner_rows_narrow(x, summed, lines, &mut sums),
                    }
                }
                for (out, sums) in out.chunks_exact_mut(rank).zip(&sums) {
                    let out = &mut out[group * LANES..];
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = narrow(*sum));
                }
            }
        }
    });
}

/// As [`inner`] with AMX, `summed` being whole [`COLUMNS`].
fn inner_on_tiles(x: &[bf16], matrix: Thin<'_>, summed: usize, rank: usize, out: &mut [bf16]) {
    // SAFETY: the instructions are there (`inner`).
    let thin = unsafe {
        match matrix {
            Thin::Rows(values) => thin_tiles::Thin::of_rows(values, rank, summed),
            Thin::Columns(values, None) => thin_tiles::Thin::of_columns(values, rank, summed),
            Thin::Columns(values, Some(factors)) => {
                let mut scaled = values.to_vec();
                for (row, factor) in scaled.chunks_exact_mut(rank).zip(factors) {
                    row.iter_mut().for_each(|value| *value = narrow(value.widen() * factor));
                }
                thin_tiles::Thin::of_columns(&scaled, rank, summed)
            }
        }
    };
    out.par_chunks_mut(TILE_ROWS * rank).zip(x.par_chunks(TILE_ROWS * summed)).for_each(|(out, x)| {
        // SAFETY: as above.
        let tiles = unsafe { Tiles::new() };
        thin.products(&tiles, x, summed, |first, sums, order| {
            for (row, out) in out.chunks_exact_mut(rank).enumerate() {
                out[first..].iter_mut().zip(row_of(sums, row, order)).for_each(|(out, sum)| *out = narrow(sum));
            }
        });
    });
}

/// `sum(z[row][i] * x[row][column])` over the rows: `z` is `[n, rank]`, `x` `[n, width]`. Nothing happens where
/// [`can_multiply_many`] is false or sizes do not fit.
pub fn outer(isa: Isa, z: &[bf16], x: &[bf16], n: usize, finish: Outer<'_>, out: &mut [f32]) {
    if n == 0 {
        out.fill(0.0);
        return;
    }
    let (rank, width) = (z.len() / n, x.len() / n);
    let fits = z.len() == n * rank && x.len() == n * width && out.len() == rank * width;
    let has_factors = |finish| match finish {
        Outer::Columns(_, Some(factors)) => <[f32]>::len(factors) == width,
        _ => true,
    };
    if !can_multiply_many(isa) || !fits || !has_factors(finish) || out.is_empty() {
        return;
    }
    let out = Out { first: out.as_mut_ptr(), rank, width, finish };
    let groups = width.div_ceil(COLUMNS);
    let tasks = (0..groups.div_ceil(TASK_GROUPS)).into_par_iter().with_max_len(1);
    let groups_of = |task: usize| task * TASK_GROUPS..((task + 1) * TASK_GROUPS).min(groups);
    if isa == Isa::Amx {
        let thin = thin_tiles::Thin::transposed(z, rank, n);
        tasks.for_each(|task| {
            // SAFETY: the instructions are there (`can_multiply_many`).
            let tiles = unsafe { Tiles::new() };
            let mut packed = Vec::new();
            for column in groups_of(task).map(|group| group * COLUMNS) {
                thin.sums_over_rows(&tiles, (x, width, column), &mut packed, |first, sums, order| {
                    for idx in first..(first + TILE_ROWS).min(rank) {
                        // SAFETY: no other task has these columns.
                        unsafe { out.write(idx, column, &row_of(sums, idx - first, order)) }
                    }
                });
            }
        });
        return;
    }
    // Two neighbouring rows of `z` side by side, some ranks at a time.
    let n_parts = rank.div_ceil(ROWS);
    let mut pairs = vec![[[bf16::ZERO; 2]; ROWS]; n.div_ceil(2) * n_parts];
    for (row, z) in z.chunks_exact(rank).enumerate() {
        for (pairs, z) in pairs[row / 2 * n_parts..].iter_mut().zip(z.chunks(ROWS)) {
            pairs.iter_mut().zip(z).for_each(|(pair, z)| pair[row % 2] = *z);
        }
    }
    tasks.for_each(|task| {
        for column in groups_of(task).map(|group| group * COLUMNS) {
            for part in 0..n_parts {
                let mut sums = [[0f32; COLUMNS]; ROWS];
                let pairs = pairs[part..].iter().step_by(n_parts);
                // SAFETY: the instructions are there (`can_multiply_many`).
                unsafe {
                    match isa >= Isa::Avx512Bf16 {
                        true => outer_group(x, width, column, pairs, &mut sums),
                        false => outer_group_narrow(x, width, column, pairs, &mut sums),
                    }
                }
                for (idx, sums) in (part * ROWS..rank).zip(&sums) {
                    // SAFETY: no other task has these columns.
                    unsafe { out.write(idx, column, sums) }
                }
            }
        }
    });
}

/// A result's memory, which tasks fill side by side.
struct Out<'a> {
    first: *mut f32,
    rank: usize,
    width: usize,
    finish: Outer<'a>,
}

// SAFETY: tasks write different columns ([`outer`]).
unsafe impl Sync for Out<'_> {}

impl Out<'_> {
    /// Writes the sums of rank `idx`, below `rank`, with 32 columns from `column` on, as far as they are there.
    ///
    /// # Safety
    /// Nobody else writes them.
    unsafe fn write(&self, idx: usize, column: usize, sums: &[f32; COLUMNS]) {
        for (column, sum) in (column..self.width).zip(sums) {
            let (at, value) = match self.finish {
                Outer::Rows => (idx * self.width + column, *sum),
                Outer::Columns(factor, factors) => {
                    let factor = factors.map_or(factor, |factors| factors[column] * factor);
                    (column * self.rank + idx, sum * factor)
                }
            };
            // SAFETY: `idx` is below `rank`, `column` below `width`.
            unsafe { self.first.add(at).write(value) }
        }
    }
}

/// The matrix as lines: for each 16 ranks one for each two elements of the summed dimension; zeros where there is nothing.
fn lines_of(matrix: Thin<'_>, summed: usize, rank: usize) -> Vec<Line> {
    let pairs = summed.div_ceil(2);
    let mut lines = vec![Line([[bf16::ZERO; 2]; LANES]); rank.div_ceil(LANES) * pairs];
    match matrix {
        Thin::Rows(values) => {
            for (idx, row) in values.chunks_exact(summed).enumerate() {
                let lines = &mut lines[idx / LANES * pairs..][..pairs];
                let (twos, last) = row.as_chunks::<2>();
                lines.iter_mut().zip(twos).for_each(|(line, two)| line.0[idx % LANES] = *two);
                if let ([last], Some(line)) = (last, lines.last_mut()) {
                    line.0[idx % LANES][0] = *last;
                }
            }
        }
        Thin::Columns(values, factors) => {
            for (at, row) in values.chunks_exact(rank).enumerate() {
                for (group, row) in row.chunks(LANES).enumerate() {
                    let line = &mut lines[group * pairs + at / 2];
                    for (lane, value) in line.0.iter_mut().zip(row) {
                        lane[at % 2] = factors.map_or(*value, |factors| narrow(value.widen() * factors[at]));
                    }
                }
            }
        }
    }
    lines
}

/// The sums of up to [`ROWS`] rows `x` with one group of ranks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn inner_rows(x: &[bf16], summed: usize, lines: &[Line], sums: &mut [[f32; LANES]; ROWS]) {
    let n = x.len() / summed;
    // A row that is missing is the last one again.
    let rows: [_; ROWS] = std::array::from_fn(|row| x[row.min(n - 1) * summed..][..summed].as_chunks::<2>());
    let mut registers = [_mm512_setzero_ps(); ROWS];
    for (at, line) in lines[..summed / 2].iter().enumerate() {
        let line = load(line);
        for (sum, (pairs, _)) in registers.iter_mut().zip(&rows) {
            // SAFETY: every row has half of `summed` pairs, which `at` is below.
            let pair = unsafe { pairs.get_unchecked(at) };
            *sum = _mm512_dpbf16_ps(*sum, as_bf16(_mm512_set1_epi32(bits(pair))), line);
        }
    }
    if let (1, Some(line)) = (summed % 2, lines.last()) {
        for (sum, (_, last)) in registers.iter_mut().zip(&rows) {
            let twice = as_bf16(_mm512_set1_epi32(bits(&[last[0], bf16::ZERO])));
            *sum = _mm512_dpbf16_ps(*sum, twice, load(line));
        }
    }
    for (sums, register) in sums.iter_mut().zip(registers) {
        // SAFETY: there is room for 16 floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), register) }
    }
}

/// The sums over all rows of `x` `[n, width]` of its 32 columns from `column` on, with some ranks of every two rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn outer_group<'a>(
    x: &[bf16],
    width: usize,
    column: usize,
    pairs: impl Iterator<Item = &'a [[bf16; 2]; ROWS]>,
    sums: &mut [[f32; COLUMNS]; ROWS],
) {
    let here = (width - column).min(COLUMNS);
    let mask = u32::MAX >> (COLUMNS - here);
    let row_of = |row: Option<&[bf16]>| match row {
        // SAFETY: the `here` elements that the mask lets through are there.
        Some(row) => unsafe { _mm512_maskz_loadu_epi16(mask, row[column..][..here].as_ptr().cast()) },
        None => _mm512_setzero_si512(),
    };
    let mut registers = [[_mm512_setzero_ps(); 2]; ROWS];
    let mut rows = x.chunks_exact(width);
    for pairs in pairs {
        let (a, b) = (row_of(rows.next()), row_of(rows.next()));
        let both = [as_bf16(_mm512_unpacklo_epi16(a, b)), as_bf16(_mm512_unpackhi_epi16(a, b))];
        for (sums, pair) in registers.iter_mut().zip(pairs) {
            let twice = as_bf16(_mm512_set1_epi32(bits(pair)));
            *sums = [_mm512_dpbf16_ps(sums[0], twice, both[0]), _mm512_dpbf16_ps(sums[1], twice, both[1])];
        }
    }
    for (sums, registers) in sums.iter_mut().zip(registers) {
        let mut halves = [[0f32; LANES]; 2];
        for (half, register) in halves.iter_mut().zip(registers) {
            // SAFETY: there is room for 16 floats.
            unsafe { _mm512_storeu_ps(half.as_mut_ptr(), register) }
        }
        // The unpacking took four columns in turn for the one and the other register.
        for (idx, sums) in sums.chunks_exact_mut(4).enumerate() {
            sums.copy_from_slice(&halves[idx % 2][idx / 2 * 4..][..4]);
        }
    }
}

/// As [`inner_rows`].
#[target_feature(enable = "avx2,fma")]
fn inner_rows_narrow(x: &[bf16], summed: usize, lines: &[Line], sums: &mut [[f32; LANES]; ROWS]) {
    let n = x.len() / summed;
    for (part, sums) in sums.as_chunks_mut::<NARROW>().0.iter_mut().enumerate().take(n.div_ceil(NARROW)) {
        // A row that is missing is the last one again.
        let rows: [_; NARROW] = std::array::from_fn(|row| &x[(part * NARROW + row).min(n - 1) * summed..][..summed]);
        let mut registers = [[_mm256_setzero_ps(); 2]; NARROW];
        for (at, line) in lines[..summed / 2].iter().enumerate() {
            let [left, right] = load_narrow(line);
            for ([sum_left, sum_right], row) in registers.iter_mut().zip(&rows) {
                // SAFETY: every row has `summed` elements, which `2 * at + 1` is below.
                let pair = unsafe { [*row.get_unchecked(2 * at), *row.get_unchecked(2 * at + 1)] };
                let [even, odd] = widen(_mm256_set1_epi32(bits(&pair)));
                *sum_left = _mm256_fmadd_ps(odd, left[1], _mm256_fmadd_ps(even, left[0], *sum_left));
                *sum_right = _mm256_fmadd_ps(odd, right[1], _mm256_fmadd_ps(even, right[0], *sum_right));
            }
        }
        if let (1, Some(line)) = (summed % 2, lines.last()) {
            let [left, right] = load_narrow(line);
            for ([sum_left, sum_right], row) in registers.iter_mut().zip(&rows) {
                let last = _mm256_set1_ps(row[summed - 1].widen());
                *sum_left = _mm256_fmadd_ps(last, left[0], *sum_left);
                *sum_right = _mm256_fmadd_ps(last, right[0], *sum_right);
            }
        }
        sums.iter_mut().zip(registers).for_each(|(sums, registers)| store16(registers, sums));
    }
}

/// As [`outer_group`].
#[target_feature(enable = "avx2,fma")]
fn outer_group_narrow<'a>(
    x: &[bf16],
    width: usize,
    column: usize,
    pairs: impl Iterator<Item = &'a [[bf16; 2]; ROWS]> + Clone,
    sums: &mut [[f32; COLUMNS]; ROWS],
) {
    for (part, sums) in sums.as_chunks_mut::<NARROW>().0.iter_mut().enumerate() {
        for (half, column) in [column, column + LANES].into_iter().enumerate() {
            let here = width.saturating_sub(column).min(LANES);
            let row_of = |row: Option<&[bf16]>| {
                let row = row.map_or(&[][..], |row| &row[width.min(column)..][..here]);
                if let Some(row) = row.first_chunk() {
                    return load_row(row);
                }
                let mut values = [bf16::ZERO; LANES];
                values[..row.len()].copy_from_slice(row);
                load_row(&values)
            };
            let mut registers = [[_mm256_setzero_ps(); 2]; NARROW];
            let mut rows = x.chunks_exact(width);
            for pairs in pairs.clone() {
                let (a, b) = (row_of(rows.next()), row_of(rows.next()));
                let pairs = &pairs.as_chunks::<NARROW>().0[part];
                for ([sum_left, sum_right], pair) in registers.iter_mut().zip(pairs) {
                    let [even, odd] = widen(_mm256_set1_epi32(bits(pair)));
                    *sum_left = _mm256_fmadd_ps(odd, b[0], _mm256_fmadd_ps(even, a[0], *sum_left));
                    *sum_right = _mm256_fmadd_ps(odd, b[1], _mm256_fmadd_ps(even, a[1], *sum_right));
                }
            }
            for (sums, registers) in sums.iter_mut().zip(registers) {
                store16(registers, &mut sums.as_chunks_mut::<LANES>().0[half]);
            }
        }
    }
}

/// The first and the second of two neighbours, for the first eight ranks and the others.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_narrow(line: &Line) -> [[__m256; 2]; 2] {
    let halves = line.0.as_chunks::<8>().0;
    // SAFETY: a line has 64 bytes at an address that divides by 64.
    unsafe {
        [widen(_mm256_load_si256(halves[0].as_ptr().cast())), widen(_mm256_load_si256(halves[1].as_ptr().cast()))]
    }
}

/// Elements of a row in f32, the first eight and the others.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_row(row: &[bf16; LANES]) -> [__m256; 2] {
    // SAFETY: 16 elements of two bytes are there; the loads need no alignment.
    let (left, right) = unsafe { (_mm_loadu_si128(row.as_ptr().cast()), _mm_loadu_si128(row.as_ptr().add(8).cast())) };
    let (left, right) = (_mm256_cvtepu16_epi32(left), _mm256_cvtepu16_epi32(right));
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(left)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(right))]
}

/// Two values as they lie in memory.
#[inline(always)]
fn bits([a, b]: &[bf16; 2]) -> i32 {
    (u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16) as i32
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn load(line: &Line) -> __m512bh {
    // SAFETY: a line has 64 bytes at an address that divides by 64.
    as_bf16(unsafe { _mm512_load_si512((&raw const *line).cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Rng;

    #[test]
    fn sums_are_the_same_bytes_on_any_number_of_threads_and_near_with_any_instructions() {
        // AMX takes whole tiles of columns only.
        for width in [701, 704] {
            check_sums(width);
        }
    }

    fn check_sums(width: usize) {
        let mut rng = Rng::named(52, "threads");
        let mut draw = |len: usize| (0..len).map(|_| bf16::from_f32(rng.next_f32() - 0.5)).collect::<Vec<_>>();
        let (n, rank) = (133, 17);
        let (x, z, a) = (draw(n * width), draw(n * rank), draw(rank * width));
        let run = |isa: Isa, n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let (mut product, mut sums) = (vec![bf16::ZERO; n * rank], vec![0f32; rank * width]);
            pool.install(|| {
                inner(isa, &x, Thin::Rows(&a), n, rank, &mut product);
                outer(isa, &z, &x, n, Outer::Rows, &mut sums);
            });
            (product, sums)
        };
        // In f64, the sum of terms of at most a quarter each.
        let sum = |n_terms: usize, term: &dyn Fn(usize) -> (bf16, bf16)| {
            (0..n_terms).map(term).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>()
        };
        let product = |row: usize, idx: usize| sum(width, &|at| (x[row * width + at], a[idx * width + at]));
        let outer_sum = |idx: usize, at: usize| sum(n, &|row| (z[row * rank + idx], x[row * width + at]));
        for isa in Isa::ALL {
            let one = run(isa, 1);
            assert_eq!(one.1.iter().any(|sum| *sum != 0.0), can_multiply_many(isa), "{isa:?}");
            assert!([2, 3].into_iter().all(|n_threads| run(isa, n_threads) == one), "{isa:?}");
            if !can_multiply_many(isa) {
                continue;
            }
            for (at, found) in one.0.iter().enumerate() {
                let exact = product(at / rank, at % rank);
                let bound = 2e-6 * 0.25 * width as f64 + exact.abs() * 1.001 / 256.0;
                assert!((found.to_f64() - exact).abs() <= bound, "{isa:?}: product {at}");
            }
            for (at, found) in one.1.iter().enumerate() {
                let exact = outer_sum(at / width, at % width);
                assert!((f64::from(*found) - exact).abs() <= 2e-6 * 0.25 * n as f64, "{isa:?}: sum {at}");
            }
        }
    }
}
