//! A step of a product with AVX-512's bf16 instructions, for processors that have no tiles.

use std::arch::x86_64::*;

use super::step::{Line, PAIR_LINES, SIDE, Sums};

/// Rows whose sums are in registers at a time: two for each, enough of them to hide the latency of a product.
const ROWS: usize = 8;

/// As [`super::step::Engine::step`], for whole pairs of tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn step(a: &[Line], b: &[Line], adds: bool, sums: &mut Sums) {
    for first in (0..2 * SIDE).step_by(ROWS) {
        let [left, right] = &mut sums.0.as_chunks_mut::<2>().0[first / SIDE];
        let start = first % SIDE;
        let both = |left: &[f32; SIDE], right: &[f32; SIDE]| [load(left), load(right)];
        let mut rows: [[__m512; 2]; ROWS] = match adds {
            true => std::array::from_fn(|row| both(&left[start + row], &right[start + row])),
            false => [[_mm512_setzero_ps(); 2]; ROWS],
        };
        for (a, b) in a.as_chunks::<PAIR_LINES>().0.iter().zip(b.as_chunks::<PAIR_LINES>().0) {
            for pair in 0..SIDE {
                let columns = [bits(&b[pair]), bits(&b[SIDE + pair])];
                for (row, sums) in rows.iter_mut().enumerate() {
                    let [low, high] = [0, 1].map(|idx| u32::from(a[first + row].0[2 * pair + idx]));
                    let twice = same(_mm512_set1_epi32((low | high << 16) as i32));
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

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn same(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes without a rule on their bits.
    unsafe { std::mem::transmute(bits) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn bits(line: &Line) -> __m512bh {
    // SAFETY: a line has 64 bytes at an address that divides by 64.
    same(unsafe { _mm512_load_si512(line.0.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn load(row: &[f32; SIDE]) -> __m512 {
    // SAFETY: 16 floats are there.
    unsafe { _mm512_loadu_ps(row.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn store(values: __m512, row: &mut [f32; SIDE]) {
    // SAFETY: there is room for 16 floats.
    unsafe { _mm512_storeu_ps(row.as_mut_ptr(), values) }
}
