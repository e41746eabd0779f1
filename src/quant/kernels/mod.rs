//! The loops over NF4 bytes on the CPU, in portable Rust and with the vector instructions that the processor has.
//!
//! Work is shared out over the cores here; the loops themselves handle one task's blocks. Every loop gives the bytes of the
//! portable one, but for the order of the sums in products.

/// Makes a module's `multiply_row` of its `dot`, which knows the number of rows when it is compiled.
#[cfg(target_arch = "x86_64")]
macro_rules! multiply_row_by_dot {
    ($(#[$doc:meta])* $element:ty) => {
        $(#[$doc])*
        pub fn multiply_row(packed: &[u8], scales: &[f32], rounding: Rounding, x: &[$element], out: &mut [f32]) {
            // SAFETY: the caller chose these instructions because the processor has them (`Isa::is_available`).
            unsafe {
                match out {
                    [a] => [*a] = dot::<1>(packed, scales, rounding, x),
                    [a, b] => [*a, *b] = dot::<2>(packed, scales, rounding, x),
                    [a, b, c] => [*a, *b, *c] = dot::<3>(packed, scales, rounding, x),
                    [a, b, c, d] => [*a, *b, *c, *d] = dot::<4>(packed, scales, rounding, x),
                    _ => {}
                }
            }
        }
    };
}

/// Makes a function of a loop that is compiled for AVX2 and for AVX-512 too, and chosen by the processor.
macro_rules! for_each_processor {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $kind),*) {
            #[inline(always)]
            fn portable($($arg: $kind),*) $body
            #[cfg(target_arch = "x86_64")]
            if crate::quant::Isa::Avx512.is_available() {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
                fn wide($($arg: $kind),*) {
                    portable($($arg),*)
                }
                // SAFETY: the processor has the instructions; AVX-512 comes with FMA.
                return unsafe { wide($($arg),*) };
            }
            #[cfg(target_arch = "x86_64")]
            if crate::quant::Isa::Avx2.is_available() {
                #[target_feature(enable = "avx2,fma")]
                fn narrow($($arg: $kind),*) {
                    portable($($arg),*)
                }
                // SAFETY: as before.
                return unsafe { narrow($($arg),*) };
            }
            portable($($arg),*)
        }
    };
}

pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
pub mod cuda;
mod f32_products;
#[cfg(target_arch = "x86_64")]
mod gemm;
pub mod packed_attention;
mod portable;
pub mod rows;
#[cfg(target_arch = "x86_64")]
pub mod thin;

use half::bf16;
use rayon::prelude::*;

use super::absmax::Scales;
use super::codebook::NF4_CODE;
use super::nf4::BLOCK;

/// Values handled by one task.
const TASK: usize = 256 * BLOCK;

/// Blocks whose scales are held on the stack at a time.
const SCALES: usize = TASK / BLOCK;

/// Rows of `x` that one pass of [`multiply_each`] over the weight takes.
const MAX_ROWS: usize = 4;

/// Products of a multiplication that is done before another core is awake.
const SMALL: usize = 1 << 19;

/// Products that one task of [`multiply_each`] takes: some ten microseconds, so that all cores end together.
const TASK_PRODUCTS: usize = 1 << 18;

/// A set of vector instructions, each with all of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same and its bf16 products, which the activations of a bf16 model are multiplied with.
    Avx512Bf16,
    /// The same and AMX's tiles of bf16, in products of many rows.
    Amx,
}

impl Isa {
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// Whether the processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Bf16.is_available() && gemm::has_tiles(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The best that the processor has.
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }

    /// All that the processor has, the best one last.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }
}

/// The parts of an NF4 weight that the loops read.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub packed: &'a [u8],
    pub scales: Scales<'a>,
}

/// To which type a value is rounded after the product of code and scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    None,
    Bf16,
    F16,
    F16ThenBf16,
}

/// Which dimension of a weight a product sums over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// `x W^T`: `x` `[n, columns]` gives `[n, rows]`.
    Columns,
    /// `x W`: `x` `[n, rows]` gives `[n, columns]`.
    Rows,
}

/// What a row of tokens is multiplied by a weight for: one sum for each element of the result.
#[derive(Clone, Copy, Debug)]
pub struct Stream<'a> {
    /// `[n, summed]`; without it, only the low-rank term is summed.
    pub x: Option<&'a [bf16]>,
    /// `[summed]`, multiplies the columns of `x`, rounded to bf16. Only over rows.
    pub scale: Option<&'a [f32]>,
    /// Whether the low-rank term is added.
    pub has_low_rank: bool,
}

/// The product of two thin matrices, added to that with the weight.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    pub rank: usize,
    /// `[n, rank]`.
    pub inner: &'a [bf16],
    /// Over columns `[rows, rank]`, over rows `[rank, columns]`.
    pub matrix: &'a [bf16],
}

/// Row norms of the weight and an adapter's product, `|W + s B A|`, which come of products with `A`'s few rows.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    pub rank: usize,
    /// `A`, `[rank, columns]`.
    pub lora_a: &'a [bf16],
    /// `2 s B^T`, `[rank, rows]`.
    pub twice_b: &'a [f32],
    /// `|W|^2 + |s B A|^2` of each row, `[rows]`.
    pub squares: &'a [f32],
}

/// What becomes of the sums, before they are rounded.
#[derive(Clone, Copy, Debug)]
pub enum Finish<'a> {
    /// Over columns: `first + change second + bias`, `[rows]` each; `second` alone is a result too. Where there is a [`Norm`],
    /// `change` is DoRA's magnitude `m`, and the sums are multiplied by `m / norm - 1`. With a `mask` `[n, columns]` the second
    /// stream's `x` is the first's times the mask, but for rounding.
    Outputs { bias: Option<&'a [f32]>, change: Option<&'a [f32]>, mask: Option<&'a [bf16]> },
    /// Over rows: `before + first + mask second`, `[n, columns]` each. If both streams have an `x`, it is the same.
    Gradients { before: Option<&'a [bf16]>, mask: Option<&'a [bf16]> },
}

/// A weight `[rows, columns]` of a [`Product`].
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// Columns are whole blocks; values are rounded to a type on their way to bf16.
    Nf4(Source<'a>, Rounding),
    Bf16(&'a [bf16]),
}

/// Products of many rows with one weight.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    pub weight: Weight<'a>,
    pub rows: usize,
    pub columns: usize,
    pub over: Over,
    /// Rows of tokens.
    pub n: usize,
    /// One or two.
    pub streams: &'a [Stream<'a>],
    pub low_rank: Option<LowRank<'a>>,
    /// Only over columns.
    pub norm: Option<Norm<'a>>,
    pub finish: Finish<'a>,
}

/// Where results go.
#[derive(Debug, Default)]
pub struct Results<'a> {
    /// `[n, width]`.
    pub out: &'a mut [bf16],
    /// The second stream's sums, `[n, width]`.
    pub scaled: Option<&'a mut [bf16]>,
    /// Those of [`Norm`], `[rows]`.
    pub norms: Option<&'a mut [f32]>,
}

impl Product<'_> {
    /// How wide a row of the factor and of the result is.
    pub fn widths(&self) -> (usize, usize) {
        match self.over {
            Over::Columns => (self.columns, self.rows),
            Over::Rows => (self.rows, self.columns),
        }
    }

    /// Whether everything has the size that it should have.
    pub fn fits(&self, results: &Results<'_>) -> bool {
        let (summed, width) = self.widths();
        let (n, is) = (self.n, |values: Option<usize>, expected: usize| values.is_none_or(|len| len == expected));
        let len = |values: Option<&[bf16]>| values.map(<[bf16]>::len);
        let size = |values: Option<&[f32]>| values.map(<[f32]>::len);
        let streams = self.streams.iter().all(|stream| is(len(stream.x), n * summed) && is(size(stream.scale), summed));
        let low_rank = match &self.low_rank {
            Some(LowRank { rank, inner, matrix }) => inner.len() == n * rank && matrix.len() == width * rank,
            None => self.streams.iter().all(|stream| !stream.has_low_rank),
        };
        let finish = match self.finish {
            Finish::Outputs { bias, change, mask } => {
                is(size(bias), width) && is(size(change), width) && is(len(mask), n * summed)
            }
            Finish::Gradients { before, mask } => is(len(before), n * width) && is(len(mask), n * width),
        };
        let weight = match self.weight {
            Weight::Nf4(source, _) => {
                2 * source.packed.len() == self.rows * self.columns && self.columns.is_multiple_of(BLOCK)
            }
            Weight::Bf16(matrix) => matrix.len() == self.rows * self.columns,
        };
        let is_over_columns = self.over == Over::Columns;
        let is_of_columns = matches!(self.finish, Finish::Outputs { .. }) == is_over_columns;
        let norm = match &self.norm {
            Some(Norm { rank, lora_a, twice_b, squares }) => {
                let sizes = [lora_a.len(), twice_b.len(), squares.len()];
                is_over_columns && sizes == [rank * self.columns, rank * self.rows, self.rows]
            }
            None => true,
        };
        let norms = results.norms.as_ref().map(|norms| norms.len());
        let norm = norm && norms == self.norm.map(|_| self.rows);
        let scaled = results.scaled.as_ref().map(|scaled| scaled.len());
        let results = results.out.len() == n * width && is(scaled, n * width);
        matches!(self.streams.len(), 1 | 2)
            && weight
            && streams
            && low_rank
            && norm
            && finish
            && is_of_columns
            && results
    }
}

/// A weight's element that can be quantized.
pub trait Quantizable: Copy + Send + Sync {
    /// The same value in f32.
    fn widen(self) -> f32;
}

impl Quantizable for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Quantizable for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Quantizable for half::f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// The values of a block's 16 codes.
#[inline(always)]
fn table(scale: f32, rounding: Rounding) -> [f32; 16] {
    let values = NF4_CODE.map(|code| code * scale);
    let round_f16 = |value: f32| half::f16::from_f32(value).to_f32();
    match rounding {
        Rounding::None => values,
        Rounding::Bf16 => values.map(|value| f32::from_bits(u32::from(bf16_bits(value)) << 16)),
        Rounding::F16 => values.map(round_f16),
        Rounding::F16ThenBf16 => values.map(|value| f32::from_bits(u32::from(bf16_bits(round_f16(value))) << 16)),
    }
}

/// The bits of a finite value rounded to bf16, ties to even.
#[inline(always)]
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    // Finite values do not wrap; a check would keep loops from being made of vector instructions.
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The values of a block's 16 codes in bf16.
#[inline(always)]
fn table_bf16(scale: f32, rounding: Rounding) -> [u16; 16] {
    table(scale, rounding).map(bf16_bits)
}

/// Quantizes `values` into nibbles (first value high) and one scale a block. A block with a value that is not finite has a
/// scale that is not finite.
pub fn quantize<T: Quantizable>(isa: Isa, values: &[T], packed: &mut [u8], absmax: &mut [f32]) {
    values.par_chunks(TASK).zip(packed.par_chunks_mut(TASK / 2)).zip(absmax.par_chunks_mut(SCALES)).for_each(
        |((values, packed), absmax)| {
            let mut wide = [0f32; BLOCK];
            for ((block, packed), absmax) in values.chunks(BLOCK).zip(packed.chunks_mut(BLOCK / 2)).zip(absmax) {
                let wide = &mut wide[..block.len()];
                wide.iter_mut().zip(block).for_each(|(wide, value)| *wide = value.widen());
                *absmax = match isa {
                    #[cfg(target_arch = "x86_64")]
                    isa if isa >= Isa::Avx512 => avx512::quantize_block(wide, packed),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => avx2::quantize_block(wide, packed),
                    _ => portable::quantize_block(wide, packed),
                };
            }
        },
    );
}

/// Shares out the blocks: calls `expand` with a task's bytes, scales and output.
fn for_each_task<T: Send>(source: &Source<'_>, out: &mut [T], expand: impl Fn(&[u8], &[f32], &mut [T]) + Sync) {
    out.par_chunks_mut(TASK).enumerate().for_each(|(task, out)| {
        let mut scales = [0f32; SCALES];
        let scales = &mut scales[..out.len().div_ceil(BLOCK)];
        source.scales.fill(task * SCALES, scales);
        expand(&source.packed[task * (TASK / 2)..][..out.len().div_ceil(2)], scales, out);
    });
}

/// Expands NF4 into f32, each value `code * scale` in f32, then rounded.
pub fn dequantize_f32(isa: Isa, source: &Source<'_>, rounding: Rounding, out: &mut [f32]) {
    for_each_task(source, out, |packed, scales, out| match isa {
        #[cfg(target_arch = "x86_64")]
        isa if isa >= Isa::Avx512 => avx512::dequantize_f32(packed, scales, rounding, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::dequantize_f32(packed, scales, rounding, out),
        _ => portable::dequantize(packed, scales, out, |scale| table(scale, rounding)),
    });
}

/// Expands NF4 into bf16, each value `code * scale` in f32, then rounded.
pub fn dequantize_bf16(isa: Isa, source: &Source<'_>, rounding: Rounding, out: &mut [bf16]) {
    for_each_task(source, out, |packed, scales, out| match isa {
        #[cfg(target_arch = "x86_64")]
        isa if isa >= Isa::Avx512 => avx512::dequantize_bf16(packed, scales, rounding, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::dequantize_bf16(packed, scales, rounding, out),
        _ => portable::dequantize(packed, scales, out, |scale| table_bf16(scale, rounding).map(bf16::from_bits)),
    });
}

/// A weight of [`multiply_each`], whose rows are whole blocks.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub source: Source<'a>,
    pub rounding: Rounding,
    pub rows: usize,
}

/// `out[row][i] = sum(matrix[row] * x[i])` for `n` rows of `x`, `[n, columns]`, and the rows of all matrices one after another:
/// `out` is `[rows of all, n]`.
pub fn multiply_each(isa: Isa, matrices: &[Matrix<'_>], x: &[f32], n: usize, out: &mut [f32]) {
    if n == 0 || out.is_empty() {
        return;
    }
    let lanes = match isa {
        Isa::Portable => 1,
        Isa::Avx2 => 8,
        _ => 16,
    };
    let x = by_nibble(x, lanes);
    for_each_row(matrices, &x, n, out, |packed, scales, rounding, x, out| match isa {
        #[cfg(target_arch = "x86_64")]
        isa if isa >= Isa::Avx512 => avx512::multiply_row(packed, scales, rounding, x, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::multiply_row(packed, scales, rounding, x, out),
        _ => portable::multiply_row(packed, scales, rounding, x, out),
    });
}

/// As [`multiply_each`] with bf16 products, from [`Isa::Avx512Bf16`] on, for activations in bf16 and roundings that end there.
#[cfg(target_arch = "x86_64")]
pub fn multiply_each_bf16(matrices: &[Matrix<'_>], x: &[bf16], n: usize, out: &mut [f32]) {
    if n == 0 || out.is_empty() {
        return;
    }
    for_each_row(matrices, &by_nibble(x, avx512bf16::LANES), n, out, avx512bf16::multiply_row);
}

/// Whether [`multiply_many`] is there: from [`Isa::Avx2`] on.
pub fn can_multiply_many(isa: Isa) -> bool {
    isa >= Isa::Avx2 && isa.is_available()
}

/// Computes a product, where [`can_multiply_many`] says that it can and sizes fit ([`Product::fits`]); else nothing.
pub fn multiply_many(isa: Isa, product: &Product<'_>, results: Results<'_>) {
    #[cfg(target_arch = "x86_64")]
    gemm::multiply_many(isa, product, results);
}

/// Shares out the rows of all matrices: calls `multiply_row` with a row's bytes, scales and rounding, up to four rows of `x`, and
/// their sums.
fn for_each_row<T: Sync>(
    matrices: &[Matrix<'_>],
    x: &[T],
    n: usize,
    out: &mut [f32],
    multiply_row: impl Fn(&[u8], &[f32], Rounding, &[T], &mut [f32]) + Sync,
) {
    let columns = x.len() / n;
    let blocks = columns / BLOCK;
    let multiply_rows = |(matrix, first, out): (&Matrix<'_>, usize, &mut [f32])| {
        let mut scales = vec![0f32; blocks];
        for (row, out) in (first..).zip(out.chunks_mut(n)) {
            matrix.source.scales.fill(row * blocks, &mut scales);
            let packed = &matrix.source.packed[row * (columns / 2)..][..columns / 2];
            for (x, out) in x.chunks(MAX_ROWS * columns).zip(out.chunks_mut(MAX_ROWS)) {
                multiply_row(packed, &scales, matrix.rounding, x, out);
            }
        }
    };
    let is_small = out.len() * columns <= SMALL;
    let task_rows = (TASK_PRODUCTS / (columns * n)).max(1);
    let mut tasks = Vec::new();
    let mut rest = out;
    for matrix in matrices {
        let (part, after) = rest.split_at_mut(matrix.rows * n);
        let parts = part.chunks_mut(task_rows * n).enumerate();
        tasks.extend(parts.map(|(task, out)| (matrix, task * task_rows, out)));
        rest = after;
    }
    match is_small {
        true => tasks.into_iter().for_each(multiply_rows),
        false => tasks.into_par_iter().for_each(multiply_rows),
    }
}

/// `out[row][i] = sum(weight[row] * x[i])` for a bf16 matrix, `n` rows of `x` `[n, columns]`; `out` is `[rows, n]`.
pub fn multiply_dense(isa: Isa, weight: &[bf16], x: &[f32], n: usize, out: &mut [f32]) {
    for_each_dense_row(weight, x, n, out, |row, x| match isa {
        #[cfg(target_arch = "x86_64")]
        isa if isa >= Isa::Avx512 => avx512::dot_dense(row, x),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::dot_dense(row, x),
        _ => portable::dot_dense(row, x),
    });
}

/// As [`multiply_dense`] with bf16 products, from [`Isa::Avx512Bf16`] on, for activations in bf16.
#[cfg(target_arch = "x86_64")]
pub fn multiply_dense_bf16(weight: &[bf16], x: &[bf16], n: usize, out: &mut [f32]) {
    for_each_dense_row(weight, x, n, out, avx512bf16::dot_dense);
}

/// Shares out the rows of a bf16 matrix: calls `dot` with each and every row of `x`.
fn for_each_dense_row<T: Sync>(
    weight: &[bf16],
    x: &[T],
    n: usize,
    out: &mut [f32],
    dot: impl Fn(&[bf16], &[T]) -> f32 + Sync,
) {
    if n == 0 || out.is_empty() {
        return;
    }
    let columns = x.len() / n;
    let task_rows = (TASK_PRODUCTS / (columns * n)).max(1);
    out.par_chunks_mut(task_rows * n).zip(weight.par_chunks(task_rows * columns)).for_each(|(out, weight)| {
        for (out, row) in out.chunks_mut(n).zip(weight.chunks(columns)) {
            for (out, x) in out.iter_mut().zip(x.chunks(columns)) {
                *out = dot(row, x);
            }
        }
    });
}

/// Reorders every `2 * lanes` values into those of the high nibbles, then those of the low ones. Rows are whole blocks.
fn by_nibble<T: Copy>(x: &[T], lanes: usize) -> Vec<T> {
    let mut out = x.to_vec();
    for (part, out) in x.chunks_exact(2 * lanes).zip(out.chunks_exact_mut(2 * lanes)) {
        let (high, low) = out.split_at_mut(lanes);
        for ((pair, high), low) in part.as_chunks::<2>().0.iter().zip(high).zip(low) {
            [*high, *low] = *pair;
        }
    }
    out
}
