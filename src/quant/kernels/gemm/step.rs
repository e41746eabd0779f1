//! One step of a product: 32 rows by 32 columns over a run of the summed dimension, on AMX tiles or in vector registers.
//! Both read the same operands.

use super::super::Isa;
use super::{amx, narrow, wide};

/// Rows of a tile, and its columns of f32.
pub const SIDE: usize = 16;

/// Elements of bf16 that a tile's row holds: the part of the summed dimension that one instruction takes.
pub const DEPTH: usize = 32;

/// Lines that a step reads of an operand in bf16 for each [`DEPTH`]: two tiles.
pub const PAIR_LINES: usize = 2 * SIDE;

/// The sums of a step: those of the first 16 rows, 16 columns at a time, then those of the other rows.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Sums(pub [[[f32; SIDE]; SIDE]; 4]);

impl Sums {
    pub const ZERO: Self = Self([[[0.0; SIDE]; SIDE]; 4]);
}

/// 64 bytes where a vector register or a tile's row finds its place without crossing a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Line(pub [u16; 32]);

impl Line {
    pub const ZERO: Self = Self([0; 32]);

    /// Multiplies elements of bf16, rounded.
    #[inline(always)]
    pub fn multiply(&mut self, factors: &[f32; DEPTH]) {
        for (value, factor) in self.0.iter_mut().zip(factors) {
            *value = super::super::bf16_bits(f32::from_bits(u32::from(*value) << 16) * factor);
        }
    }
}

/// How much of its operands a step has to look at: the rest of a tile is zero, or nobody wants it.
#[derive(Clone, Copy)]
pub struct Extent {
    /// Rows of the left operand, and of the sums that are wanted.
    pub rows: usize,
    /// Elements of the summed dimension.
    pub summed: usize,
}

/// What multiplies, on this thread as long as it lives.
pub enum Engine {
    Tiles(amx::Tiles),
    /// AVX-512's bf16 products.
    Wide,
    /// AVX2's f32 products.
    Narrow,
}

impl Engine {
    /// That of a set of instructions.
    ///
    /// # Safety
    /// The processor has them, and they are [`Isa::Avx2`] or more.
    pub unsafe fn new(isa: Isa) -> Self {
        match isa {
            // SAFETY: the processor has tiles, says the caller.
            Isa::Amx => Self::Tiles(unsafe { amx::Tiles::new() }),
            Isa::Avx512Bf16 => Self::Wide,
            _ => Self::Narrow,
        }
    }

    /// `sums = a b` over an extent of the summed dimension, or with `adds` that much more.
    ///
    /// Either operand is a run of pairs of tiles, a pair for each [`DEPTH`] of the extent. A tile of `a` has 16 rows of 32 elements; with
    /// AVX2 the pairs of `a` are a chunk of what [`narrow::pack_tokens`] gives. A tile of `b` has 16 rows, each with two neighbours
    /// of the summed dimension for each of 16 columns.
    pub fn step(&self, a: &[Line], b: &[Line], extent: Extent, adds: bool, sums: &mut Sums) {
        match self {
            Self::Tiles(tiles) => tiles.step(a, b, adds, sums),
            // SAFETY: the processor has the instructions, which `new` asks for.
            Self::Wide => unsafe {
                match extent.summed <= DEPTH / 2 {
                    true => wide::step::<{ SIDE / 2 }>(a, b, extent.rows, adds, sums),
                    false => wide::step::<SIDE>(a, b, extent.rows, adds, sums),
                }
            },
            // SAFETY: as above.
            Self::Narrow => unsafe {
                match extent.summed <= DEPTH / 2 {
                    true => narrow::step::<{ SIDE / 2 }>(a, b, extent.rows, adds, sums),
                    false => narrow::step::<SIDE>(a, b, extent.rows, adds, sums),
                }
            },
        }
    }
}
