//! One step of a product: 32 rows by 32 columns over a run of the summed dimension, on AMX tiles or in vector registers.
//! Both read the same operands.

use super::super::Isa;
use super::{amx, vectors};

/// Rows of a tile, and its columns of f32.
pub const SIDE: usize = 16;

/// Elements of bf16 that a tile's row holds: the part of the summed dimension that one instruction takes.
pub const DEPTH: usize = 32;

/// Lines that a step reads of either operand for each [`DEPTH`]: two tiles.
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
    Vectors,
}

impl Engine {
    /// That of a set of instructions.
    ///
    /// # Safety
    /// The processor has them, and they are [`Isa::Avx512Bf16`] or more.
    pub unsafe fn new(isa: Isa) -> Self {
        match isa {
            // SAFETY: the processor has tiles, says the caller.
            Isa::Amx => Self::Tiles(unsafe { amx::Tiles::new() }),
            _ => Self::Vectors,
        }
    }

    /// `sums = a b` over an extent of the summed dimension, or with `adds` that much more.
    ///
    /// Either operand is a run of pairs of tiles, a pair for each [`DEPTH`]. A tile of `a` has 16 rows of 32 elements; one of
    /// `b` has 16 rows, each with two neighbours of the summed dimension for each of 16 columns.
    pub fn step(&self, a: &[Line], b: &[Line], extent: Extent, adds: bool, sums: &mut Sums) {
        let lines = extent.summed.div_ceil(DEPTH) * PAIR_LINES;
        let (a, b) = (&a[..lines], &b[..lines]);
        match self {
            Self::Tiles(tiles) => tiles.step(a, b, adds, sums),
            // SAFETY: the processor has the instructions, which `new` asks for.
            Self::Vectors if extent.summed <= DEPTH / 2 => unsafe {
                vectors::step::<{ SIDE / 2 }>(a, b, extent.rows, adds, sums);
            },
            // SAFETY: as above.
            Self::Vectors => unsafe { vectors::step::<SIDE>(a, b, extent.rows, adds, sums) },
        }
    }
}
