//! The tile instructions themselves: whether they are there, and one step of a product.
//!
//! A step has its sums in four of the eight tiles; two more hold either operand. Rust's intrinsics for tiles are not stable, so that the instructions are written out.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use half::bf16;

use super::step::{DEPTH, Line, PAIR_LINES, SIDE, Sums};

/// Whether the processor, which has AVX-512, has tiles of bf16 too, and the system lets us use them.
pub fn has_tiles() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        // Leaf 7 is there where AVX-512 is. EDX: 22 is AMX-BF16, 24 AMX-TILE.
        __cpuid_count(7, 0).edx >> 22 & 0b101 == 0b101 && is_permitted()
    })
}

/// Asks Linux for the tiles' state, which a process must before its first use of them.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call changes nothing but what the process may use; a kernel that does not know it says so. The
    // instruction overwrites `rcx` and `r11` only.
    unsafe {
        asm!("syscall", inlateout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The tiles of this thread, set up for [`Tiles::step`] as long as it lives.
pub struct Tiles(());

impl Tiles {
    /// Sets the tiles up.
    ///
    /// # Safety
    /// The processor has AVX-512, and [`has_tiles`] is true.
    pub unsafe fn new() -> Self {
        /// Palette 1, all eight tiles of 16 rows of 64 bytes.
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            bytes_a_row: [u16; 16],
            rows: [u8; 16],
        }
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes_a_row: [0; 16], rows: [0; 16] };
        config.bytes_a_row[..8].fill(64);
        config.rows[..8].fill(SIDE as u8);
        // SAFETY: the instruction reads 64 bytes, all of `config`, and the processor has it.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly, preserves_flags)) }
        Self(())
    }

    /// As [`super::step::Engine::step`], for whole pairs of tiles.
    pub fn step(&self, a: &[Line], b: &[Line], adds: bool, sums: &mut Sums) {
        let left = Left { first: a.as_ptr().cast(), row: 64, tile: 1024, pair: 2048, depth: a.len() / PAIR_LINES };
        // SAFETY: `a` has so many pairs of tiles.
        unsafe { self.multiply(left, b, adds, sums) }
    }

    /// Rows of a matrix `[any, width]` as a left operand: 32 of them from `row` on, and of each `depth` times [`DEPTH`] elements from
    /// `column` on; nothing where they are not all there.
    pub fn in_place<'a>(
        &'a self,
        matrix: &'a [bf16],
        width: usize,
        row: usize,
        (column, depth): (usize, usize),
    ) -> Option<InPlace<'a>> {
        let len = depth * DEPTH;
        if depth == 0 || column + len > width {
            return None;
        }
        let values = matrix.get(row * width + column..)?.get(..(PAIR_LINES - 1) * width + len)?;
        Some(InPlace { tiles: self, values, width, depth })
    }

    /// `sums = a b`, or with `adds` that much more.
    ///
    /// # Safety
    /// Memory has the tiles that `a` says.
    unsafe fn multiply(&self, a: Left, b: &[Line], adds: bool, sums: &mut Sums) {
        let Left { first: a, row, tile, pair, depth } = a;
        let depth = depth.min(b.len() / PAIR_LINES);
        if depth == 0 {
            return;
        }
        // SAFETY: the tiles are set up (`self`). Loads stay in `a`, says the caller, in `b`, which has a pair of tiles for each of
        // `depth` steps, and in `sums`, four tiles in one, as do the stores. The compiler uses no tiles.
        unsafe {
            if adds {
                asm!(
                    "tileloadd tmm0, [{c} + {s}*1]",
                    "tileloadd tmm1, [{c} + {s}*1 + 1024]",
                    "tileloadd tmm2, [{c} + {s}*1 + 2048]",
                    "tileloadd tmm3, [{c} + {s}*1 + 3072]",
                    c = in(reg) &raw const *sums,
                    s = in(reg) 64usize,
                    options(nostack, readonly, preserves_flags)
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem, preserves_flags)
                );
            }
            asm!(
                "2:",
                "tileloadd tmm6, [{b} + {s}*1]",
                "tileloadd tmm4, [{a} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {s}*1 + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{second} + {row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, {pair}",
                "add {second}, {pair}",
                "add {b}, 2048",
                "dec {depth}",
                "jnz 2b",
                "tilestored [{c} + {s}*1], tmm0",
                "tilestored [{c} + {s}*1 + 1024], tmm1",
                "tilestored [{c} + {s}*1 + 2048], tmm2",
                "tilestored [{c} + {s}*1 + 3072], tmm3",
                a = inout(reg) a => _,
                second = inout(reg) a.add(tile) => _,
                b = inout(reg) b.as_ptr() => _,
                depth = inout(reg) depth => _,
                row = in(reg) row,
                pair = in(reg) pair,
                c = in(reg) &raw mut *sums,
                s = in(reg) 64usize,
                options(nostack));
        }
    }
}

/// Where the tiles of a left operand lie, in bytes.
struct Left {
    first: *const u8,
    /// From row to row of a tile.
    row: usize,
    /// From the first tile of a pair to the second.
    tile: usize,
    /// From pair to pair.
    pair: usize,
    /// Pairs.
    depth: usize,
}

/// 32 rows of a matrix of bf16 as they lie, over a run of whole [`DEPTH`]s, as [`Tiles::in_place`] gives them.
#[derive(Clone, Copy)]
pub struct InPlace<'a> {
    tiles: &'a Tiles,
    /// From the first element of the first row to the last one of the last row.
    values: &'a [bf16],
    width: usize,
    depth: usize,
}

impl InPlace<'_> {
    /// As [`super::step::Engine::step`].
    pub fn step(&self, b: &[Line], adds: bool, sums: &mut Sums) {
        let row = self.width * size_of::<bf16>();
        let first = self.values.as_ptr().cast();
        let left = Left { first, row, tile: SIDE * row, pair: DEPTH * size_of::<bf16>(), depth: self.depth };
        // SAFETY: all 32 rows have `depth` times `DEPTH` elements, `Tiles::in_place` has seen to it.
        unsafe { self.tiles.multiply(left, b, adds, sums) }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the processor has the instruction, as `new` asks; it frees the tiles of this thread.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}
