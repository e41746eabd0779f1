//! The two codes of QLoRA: 16 normal-float values for weights, 256 dynamic values for the block scales.

/// The NF4 code (2305.14314, appendix E), ascending: quantiles of a standard normal scaled to [-1, 1].
pub const NF4_CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The decision thresholds of NF4: the midpoints of neighbouring code values in f32. A value equal to a threshold
/// takes the lower code.
pub fn nf4_thresholds() -> [f32; 15] {
    std::array::from_fn(|idx| (NF4_CODE[idx] + NF4_CODE[idx + 1]) / 2.0)
}

/// The signed dynamic 8-bit code (Dettmers, 1511.04561), ascending: seven exponents of ten, the number of fraction
/// values doubling with each, then 0 and 1. Equal to `bitsandbytes.functional.create_dynamic_map()`.
pub fn dynamic_code() -> [f32; 256] {
    dynamic(0, |mean| [mean, -mean])
}

/// The same for values that are never negative: the sign's bit goes to the fraction. Equal to
/// `bitsandbytes.functional.create_dynamic_map(signed=False)`.
pub fn unsigned_dynamic_code() -> [f32; 256] {
    dynamic(1, |mean| [mean])
}

fn dynamic<const N: usize>(extra_bits: i32, signs: impl Fn(f32) -> [f32; N]) -> [f32; 256] {
    let mut code = Vec::with_capacity(256);
    for exponent in 0..7 {
        let n_boundaries = (1usize << (exponent + extra_bits)) + 1;
        let boundaries = linspace(0.1, 1.0, n_boundaries);
        // The reference multiplies an f32 tensor by a Python float: the factor is rounded to f32 first.
        let scale = 10f64.powi(exponent - 6) as f32;
        for pair in boundaries.windows(2) {
            code.extend(signs((pair[0] + pair[1]) / 2.0 * scale));
        }
    }
    code.extend([0.0, 1.0]);
    code.sort_by(f32::total_cmp);
    let mut out = [0.0; 256];
    out.copy_from_slice(&code);
    out
}

/// `torch.linspace` in f32: counted up from the start in the first half, down from the end in the second, with one rounding
/// for product and sum, as libtorch's kernels for AVX2 and later do (those for older processors round twice).
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n - 1) as f32;
    let up = |idx: usize| step.mul_add(idx as f32, start);
    let down = |idx: usize| (-step).mul_add((n - 1 - idx) as f32, end);
    (0..n).map(|idx| if idx < n / 2 { up(idx) } else { down(idx) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_code_is_ascending_and_has_256_values() {
        let code = dynamic_code();
        assert!(code.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((code[127], code[255]), (0.0, 1.0));
        assert!((code[0] + 0.992_968_8).abs() < 1e-6, "{}", code[0]);
        let code = unsigned_dynamic_code();
        assert!(code.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((code[0], code[255]), (0.0, 1.0));
        assert!((code[1] - 3.25e-7).abs() < 1e-12, "{}", code[1]);
    }
}
