//! Products of f32 matrices that are small enough to stay in the cache, on one thread.
//!
//! One loop, made for each set of vector instructions: a few rows by a few panels of columns have their sums in registers. Each sum
//! is added up in the order of the summed dimension, whatever the size of the product.
#![allow(unsafe_code)]

/// Columns of a panel; numbers of columns are multiples of it.
pub const PANEL: usize = 16;

/// Rows that have their sums in registers together; numbers of rows are multiples of it.
pub const ROWS: usize = 4;

/// The left factor: element `(i, k)` is `values[i * row + k * step]`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub step: usize,
}

/// The right factor: element `(k, j)` is `values[j / PANEL * panel + k * step + j % PANEL]`.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    pub values: &'a [f32],
    pub panel: usize,
    pub step: usize,
}

impl<'a> Right<'a> {
    /// Rows one after another, `[depth, width]`.
    pub fn rows(values: &'a [f32], width: usize) -> Self {
        Self { values, panel: PANEL, step: width }
    }

    /// Panels one after another, `[columns / PANEL, depth, PANEL]`.
    pub fn panels(values: &'a [f32], depth: usize) -> Self {
        Self { values, panel: depth * PANEL, step: PANEL }
    }
}

/// Sums of `columns` columns, in rows that begin `width` apart.
pub struct Sums<'a> {
    pub values: &'a mut [f32],
    pub width: usize,
    pub columns: usize,
}

/// Sets `sums`, of `rows` rows, to the product over `depth` elements, of which there is one.
pub fn set_product(rows: usize, depth: usize, left: Left<'_>, right: Right<'_>, sums: Sums<'_>) {
    product::<false>(rows, depth, left, right, sums);
}

/// Adds the product to `sums`, else as [`set_product`].
pub fn add_product(rows: usize, depth: usize, left: Left<'_>, right: Right<'_>, sums: Sums<'_>) {
    product::<true>(rows, depth, left, right, sums);
}

fn product<const ADDS: bool>(rows: usize, depth: usize, left: Left<'_>, right: Right<'_>, sums: Sums<'_>) {
    let panels = sums.columns / PANEL;
    if rows == 0 || panels == 0 || depth == 0 {
        return;
    }
    // The last elements that are read and written.
    let _ = left.values[(rows - 1) * left.row + (depth - 1) * left.step];
    let _ = right.values[(panels - 1) * right.panel + (depth - 1) * right.step + PANEL - 1];
    let _ = sums.values[(rows - 1) * sums.width + panels * PANEL - 1];
    #[cfg(target_arch = "x86_64")]
    if rows.is_multiple_of(ROWS) {
        if super::Isa::Avx512.is_available() {
            // SAFETY: the processor has the instructions; AVX-512 comes with FMA. The elements are there (above).
            return unsafe { avx512::product::<ADDS>(rows, panels, depth, left, right, sums) };
        }
        if super::Isa::Avx2.is_available() {
            // SAFETY: as before.
            return unsafe { avx2::product::<ADDS>(rows, panels, depth, left, right, sums) };
        }
    }
    portable::<ADDS>(rows, panels, depth, left, right, sums);
}

fn portable<const ADDS: bool>(
    rows: usize,
    panels: usize,
    depth: usize,
    left: Left<'_>,
    right: Right<'_>,
    sums: Sums<'_>,
) {
    for row in 0..rows {
        for panel in 0..panels {
            let out = &mut sums.values[row * sums.width + panel * PANEL..][..PANEL];
            let mut lanes = [0f32; PANEL];
            if ADDS {
                lanes.copy_from_slice(out);
            }
            for k in 0..depth {
                let a = left.values[row * left.row + k * left.step];
                let b = &right.values[panel * right.panel + k * right.step..][..PANEL];
                lanes.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
            }
            out.copy_from_slice(&lanes);
        }
    }
}

/// Makes a module with the loop in vectors of `$lanes` elements, `$wide` panels together where there are so many.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_loop {
    ($name:ident, $features:literal, $lanes:literal, $wide:literal, $load:ident, $store:ident, $splat:ident, $zero:ident, $fma:ident) => {
        mod $name {
            use std::arch::x86_64::*;

            use super::{Left, PANEL, ROWS, Right, Sums};

            /// Vectors of a panel.
            const VECTORS: usize = PANEL / $lanes;

            /// # Safety
            /// The processor has the instructions, rows are a multiple of [`ROWS`], and the last elements are inside the slices.
            #[target_feature(enable = $features)]
            pub unsafe fn product<const ADDS: bool>(
                rows: usize,
                panels: usize,
                depth: usize,
                left: Left<'_>,
                right: Right<'_>,
                sums: Sums<'_>,
            ) {
                let mut panel = 0;
                while panel < panels {
                    let n = if panels - panel >= $wide { $wide } else { 1 };
                    for row in (0..rows).step_by(ROWS) {
                        // SAFETY: rows and panels from these on are inside the slices, as the caller says.
                        unsafe {
                            let left = (left.values.as_ptr().add(row * left.row), left.row, left.step);
                            let right = (right.values.as_ptr().add(panel * right.panel), right.panel, right.step);
                            let out = sums.values.as_mut_ptr().add(row * sums.width + panel * PANEL);
                            match n {
                                $wide => tile::<ADDS, { $wide * VECTORS }>(depth, left, right, out, sums.width),
                                _ => tile::<ADDS, VECTORS>(depth, left, right, out, sums.width),
                            }
                        }
                    }
                    panel += n;
                }
            }

            /// [`ROWS`] rows and `V` vectors of columns.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<const ADDS: bool, const V: usize>(
                depth: usize,
                (left, row_step, left_step): (*const f32, usize, usize),
                (right, panel_step, right_step): (*const f32, usize, usize),
                out: *mut f32,
                width: usize,
            ) {
                // SAFETY: the caller's elements; the loads and stores need no alignment.
                unsafe {
                    let mut sums = [[$zero(); V]; ROWS];
                    for (row, sums) in sums.iter_mut().enumerate() {
                        for (idx, sum) in sums.iter_mut().enumerate().filter(|_| ADDS) {
                            *sum = $load(out.add(row * width + idx * $lanes));
                        }
                    }
                    for k in 0..depth {
                        let mut b = [$zero(); V];
                        for (idx, b) in b.iter_mut().enumerate() {
                            let column = idx * $lanes;
                            let at = column / PANEL * panel_step + column % PANEL;
                            *b = $load(right.add(k * right_step + at));
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let a = $splat(*left.add(row * row_step + k * left_step));
                            for (sum, b) in sums.iter_mut().zip(b) {
                                *sum = $fma(a, b, *sum);
                            }
                        }
                    }
                    for (row, sums) in sums.iter().enumerate() {
                        for (idx, sum) in sums.iter().enumerate() {
                            $store(out.add(row * width + idx * $lanes), *sum);
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
vector_loop!(
    avx512,
    "avx512f,avx512bw,avx512vl,fma",
    16,
    4,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_setzero_ps,
    _mm512_fmadd_ps
);
#[cfg(target_arch = "x86_64")]
vector_loop!(
    avx2,
    "avx2,fma",
    8,
    1,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_setzero_ps,
    _mm256_fmadd_ps
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Every loop that the processor has gives the sums, which are exact: factors are small whole numbers.
    fn check<const ADDS: bool>(rows: usize, columns: usize, depth: usize, is_transposed: bool, in_panels: bool) {
        let number = |idx: usize| ((idx * 37 + 11) % 23) as f32 - 11.0;
        let panels = columns / PANEL;
        let a: Vec<f32> = (0..rows * depth).map(number).collect();
        let b: Vec<f32> = (0..depth * columns).map(number).collect();
        let (row, step) = if is_transposed { (1, rows) } else { (depth, 1) };
        let left = Left { values: &a, row, step };
        let right = if in_panels { Right::panels(&b, depth) } else { Right::rows(&b, columns) };
        // Two columns more than are written.
        let width = columns + 2;
        let before: Vec<f32> = (0..rows * width).map(|idx| number(idx + 5)).collect();
        let mut expected = before.clone();
        for i in 0..rows {
            for j in 0..columns {
                let at =
                    |k: usize| if in_panels { (j / PANEL * depth + k) * PANEL + j % PANEL } else { k * columns + j };
                let sum = (0..depth).map(|k| a[i * row + k * step] * b[at(k)]).sum::<f32>();
                let before = if ADDS { before[i * width + j] } else { 0.0 };
                expected[i * width + j] = before + sum;
            }
        }
        let run = |product: &dyn Fn(Sums<'_>)| {
            let mut found = before.clone();
            product(Sums { values: &mut found, width, columns });
            assert_eq!(found, expected, "[{rows}, {depth}] [{depth}, {columns}]");
        };
        let product = if ADDS { add_product } else { set_product };
        run(&|sums| product(rows, depth, left, right, sums));
        run(&|sums| portable::<ADDS>(rows, panels, depth, left, right, sums));
        #[cfg(target_arch = "x86_64")]
        if rows.is_multiple_of(ROWS) {
            if crate::quant::Isa::Avx2.is_available() {
                // SAFETY: the processor has the instructions, and the factors are whole.
                run(&|sums| unsafe { avx2::product::<ADDS>(rows, panels, depth, left, right, sums) });
            }
            if crate::quant::Isa::Avx512.is_available() {
                // SAFETY: as before.
                run(&|sums| unsafe { avx512::product::<ADDS>(rows, panels, depth, left, right, sums) });
            }
        }
    }

    #[test]
    fn products_are_set_and_added() {
        for (rows, columns, depth) in [(4, 16, 1), (8, 80, 7), (12, 128, 33), (3, 32, 5)] {
            for (is_transposed, in_panels) in [(false, false), (false, true), (true, false), (true, true)] {
                check::<false>(rows, columns, depth, is_transposed, in_panels);
                check::<true>(rows, columns, depth, is_transposed, in_panels);
            }
        }
    }

    #[test]
    #[should_panic = "out of bounds"]
    fn factors_that_are_too_short_are_not_read() {
        let mut sums = [0.0; 64];
        let left = Left { values: &[1.0; 15], row: 4, step: 1 };
        add_product(4, 4, left, Right::rows(&[1.0; 64], 16), Sums { values: &mut sums, width: 16, columns: 16 });
    }
}
