//! How far two models' logits are apart.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::Result;

/// Differences of logits over a sample of rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    pub mean_abs: f64,
    pub max_abs: f64,
    /// Mean Kullback-Leibler divergence of the second model's distribution from the first's, nats.
    pub mean_kl: f64,
}

/// Compares the logits `[rows, vocab]` of two models on the same rows.
///
/// # Errors
/// When the shapes differ.
pub fn divergence(reference: &Tensor, other: &Tensor) -> Result<Divergence> {
    no_grad(|| {
        let difference = reference.f_sub(other)?.f_abs()?;
        let (p, q) = (reference.f_log_softmax(-1, Kind::Double)?, other.f_log_softmax(-1, Kind::Double)?);
        let kl = p.f_exp()?.f_mul(&p.f_sub(&q)?)?.f_sum_dim_intlist(-1i64, false, Kind::Double)?;
        Ok(Divergence {
            mean_abs: difference.f_mean(Kind::Double)?.f_double_value(&[])?,
            max_abs: difference.f_max()?.f_double_value(&[])?,
            mean_kl: kl.f_mean(Kind::Double)?.f_double_value(&[])?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_shift_moves_logits_but_not_the_distribution() {
        let a = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 3.0]).view([2, 2]);
        let shifted = divergence(&a, &(&a + 0.5)).unwrap();
        assert!((shifted.mean_abs - 0.5).abs() < 1e-6 && shifted.mean_kl.abs() < 1e-9);
        // KL of (1/2, 1/2) from (1/4, 3/4) is ln(2 / sqrt 3).
        let (even, skewed) = (Tensor::from_slice(&[0.0f32, 0.0]), Tensor::from_slice(&[0.0f32, 3f32.ln()]));
        let kl = divergence(&even.view([1, 2]), &skewed.view([1, 2])).unwrap().mean_kl;
        assert!((kl - (2.0 / 3f64.sqrt()).ln()).abs() < 1e-6);
    }
}
