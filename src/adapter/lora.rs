//! The adapted linear layer: `y = g (W x + s B A x) + b`, with `g = 1` for LoRA.
//!
//! DoRA's `g = m / ||W + s B A||` is taken per output row, the norm as a constant (2402.09353, section 4.3). The norm
//! comes from its three terms, so that `W + s B A` is never made; the reference makes it.

use tch::{Device, Kind, Tensor, no_grad};

use super::{Result, Settings};
use crate::tensor::Rng;

/// Rows whose squares are there at one time.
const ROWS_AT_A_TIME: i64 = 64;

/// The adapter of one linear layer `[out, in]`. Parameters are f32 leaves that require gradients.
#[derive(Debug)]
pub struct Lora {
    /// `[r, in]`.
    pub lora_a: Tensor,
    /// `[out, r]`.
    pub lora_b: Tensor,
    /// `[out]`, DoRA's `m`.
    pub magnitude: Option<Tensor>,
    /// The factor `s` on `B A x`.
    pub scaling: f64,
    /// Probability that an element of `x` is dropped on its way into the adapter.
    pub dropout: f64,
}

impl Lora {
    /// A fresh adapter that changes nothing: A Kaiming-uniform (a = sqrt 5, so the bound is `1 / sqrt(in)`), B zero,
    /// `m` the row norms of `weight` `[out, in]`. The draw depends on the seed and the module's path only.
    ///
    /// # Errors
    /// When a pattern of the settings is wrong or memory is short.
    pub fn init(settings: &Settings, path: &str, weight: &Tensor, seed: u64) -> Result<Self> {
        let (n_out, n_in) = weight.size2()?;
        let rank = settings.rank_of(path)?;
        let bound = 1.0 / (n_in as f32).sqrt();
        let lora_a = Rng::named(seed, &format!("{path}.lora_A")).uniform(&[rank, n_in], bound)?;
        let lora_b = Tensor::f_zeros([n_out, rank], (Kind::Float, Device::Cpu))?;
        let magnitude = match settings.use_dora {
            true => Some(no_grad(|| row_norms_squared(weight)?.f_sqrt())?),
            false => None,
        };
        Self::from_parts(settings, path, lora_a, lora_b, magnitude, weight.device())
    }

    /// An adapter from stored tensors, converted to f32 on `device`.
    ///
    /// # Errors
    /// When a pattern of the settings is wrong or memory is short.
    pub fn from_parts(
        settings: &Settings,
        path: &str,
        lora_a: Tensor,
        lora_b: Tensor,
        magnitude: Option<Tensor>,
        device: Device,
    ) -> Result<Self> {
        let leaf = |tensor: Tensor| -> Result<Tensor> {
            Ok(tensor
                .f_detach()?
                .f_to_device(device)?
                .f_to_kind(Kind::Float)?
                .f_contiguous()?
                .f_set_requires_grad(true)?)
        };
        Ok(Self {
            lora_a: leaf(lora_a)?,
            lora_b: leaf(lora_b)?,
            magnitude: magnitude.map(leaf).transpose()?,
            scaling: settings.scaling_of(path)?,
            dropout: settings.lora_dropout,
        })
    }

    /// The parameters with their PEFT suffixes.
    pub fn parameters(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        [
            ("lora_A.weight", Some(&self.lora_a)),
            ("lora_B.weight", Some(&self.lora_b)),
            ("lora_magnitude_vector", self.magnitude.as_ref()),
        ]
        .into_iter()
        .filter_map(|(suffix, tensor)| tensor.map(|tensor| (suffix, tensor)))
    }

    /// Applies the layer to `x` `[tokens, in]`, giving `[tokens, out]` in the type of `x`.
    ///
    /// `norm` is [`dora_norm`] of the same parameters, used by DoRA only. `dropout` draws the elements of `x` that the
    /// adapter does not see; `None` in evaluation. With dropout DoRA runs the base layer on the
    /// dropped input a second time, as the reference does: `W x + b + (g - 1) W d(x) + g s B A d(x)`.
    ///
    /// # Errors
    /// When shapes do not fit or memory is short.
    pub fn forward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        norm: Option<&Tensor>,
        dropout: Option<Rng>,
    ) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let base = x.f_linear(weight, None::<&Tensor>)?;
        let dropped = match dropout {
            Some(mut rng) if self.dropout > 0.0 => {
                let mask = rng.dropout_mask(&x.size(), self.dropout, kind)?;
                x.f_mul(&mask.f_to_device(x.device())?)?
            }
            _ => return self.forward_from(base, x, bias, norm, kind),
        };
        let low_rank = self.low_rank(&dropped, kind)?;
        let y = match self.gain(norm, kind)? {
            Some(gain) => {
                let dropped_base = dropped.f_linear(weight, None::<&Tensor>)?;
                let change = low_rank.f_add(&dropped_base)?.f_mul(&gain)?.f_sub(&dropped_base)?;
                base.f_add(&change)?
            }
            None => base.f_add(&low_rank)?,
        };
        add_bias(y, bias)
    }

    /// As [`Lora::forward`] without dropout, when the base layer's output `W x` `[tokens, out]` is there already. The low-rank
    /// product is computed in `compute`.
    ///
    /// # Errors
    /// When shapes do not fit or memory is short.
    pub fn forward_from(
        &self,
        base: Tensor,
        x: &Tensor,
        bias: Option<&Tensor>,
        norm: Option<&Tensor>,
        compute: Kind,
    ) -> Result<Tensor> {
        let kind = base.f_kind()?;
        let sum = base.f_add(&self.low_rank(x, compute)?.f_to_kind(kind)?)?;
        let y = match self.gain(norm, kind)? {
            Some(gain) => sum.f_mul(&gain)?,
            None => sum,
        };
        add_bias(y, bias)
    }

    /// `s B A x` in `kind`.
    fn low_rank(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        let inner = x.f_to_kind(kind)?.f_linear(&self.lora_a.f_to_kind(kind)?, None::<&Tensor>)?;
        Ok(inner.f_linear(&self.lora_b.f_to_kind(kind)?, None::<&Tensor>)?.f_mul_scalar(self.scaling)?)
    }

    /// DoRA's `m / norm` in `kind`, `[out]`.
    fn gain(&self, norm: Option<&Tensor>, kind: Kind) -> Result<Option<Tensor>> {
        Ok(match (&self.magnitude, norm) {
            (Some(magnitude), Some(norm)) => Some(magnitude.f_div(norm)?.f_to_kind(kind)?),
            _ => None,
        })
    }

    /// The weight with the adapter merged into it, `[out, in]` f32: `g (W + s B A)`.
    ///
    /// # Errors
    /// When shapes do not fit or memory is short.
    pub fn merged(&self, weight: &Tensor) -> Result<Tensor> {
        no_grad(|| {
            let weight = weight.f_to_kind(Kind::Float)?;
            let sum = weight.f_add(&self.lora_b.f_matmul(&self.lora_a)?.f_mul_scalar(self.scaling)?)?;
            Ok(match &self.magnitude {
                Some(magnitude) => {
                    let gain = magnitude.f_div(&row_norms_squared(&sum)?.f_sqrt()?)?;
                    sum.f_mul(&gain.f_unsqueeze(1)?)?
                }
                None => sum,
            })
        })
    }
}

fn add_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Ok(match bias {
        Some(bias) => y.f_add(bias)?,
        None => y,
    })
}

/// Row norms of `W + s B A` in f32, `[out]`, without gradient:
/// `sqrt(|W|^2 + 2 s rowsum((W A^T) * B) + s^2 rowsum((B A A^T) * B))`.
///
/// `weight` is `[out, in]`, `weight_squared` its row sums of squares `[out]` ([`row_norms_squared`]).
///
/// # Errors
/// When shapes do not fit or memory is short.
pub fn dora_norm(lora: &Lora, weight: &Tensor, weight_squared: &Tensor) -> Result<Tensor> {
    no_grad(|| {
        let w_at = weight.f_linear(&lora.lora_a.f_to_kind(weight.f_kind()?)?, None::<&Tensor>)?;
        let cross = w_at.f_to_kind(Kind::Float)?.f_mul(&lora.lora_b)?.f_sum_dim_intlist(1i64, false, Kind::Float)?;
        let sum = dora_squares(lora, weight_squared)?.f_add(&cross.f_mul_scalar(2.0 * lora.scaling)?)?;
        // Rounding can push the sum of a vanishing row just below zero.
        Ok(sum.f_clamp_min(0.0)?.f_sqrt()?)
    })
}

/// The squares in [`dora_norm`] without the term that needs the weight, `|W|^2 + s^2 rowsum((B A A^T) * B)`: `[out]` f32.
///
/// # Errors
/// When shapes do not fit or memory is short.
pub fn dora_squares(lora: &Lora, weight_squared: &Tensor) -> Result<Tensor> {
    no_grad(|| {
        let (a, b) = (&lora.lora_a, &lora.lora_b);
        let a_at = a.f_matmul(&a.f_transpose(0, 1)?)?;
        let square = b.f_matmul(&a_at)?.f_mul(b)?.f_sum_dim_intlist(1i64, false, Kind::Float)?;
        Ok(weight_squared.f_add(&square.f_mul_scalar(lora.scaling * lora.scaling)?)?)
    })
}

/// Row sums of squares in f32, `[out]`. Some rows at a time: an f32 copy of every weight in turn would leave the heap in
/// pieces, gigabytes of them.
///
/// # Errors
/// When memory is short.
pub fn row_norms_squared(weight: &Tensor) -> std::result::Result<Tensor, tch::TchError> {
    let sums = weight
        .f_split(ROWS_AT_A_TIME, 0)?
        .iter()
        .map(|rows| rows.f_to_kind(Kind::Float)?.f_square()?.f_sum_dim_intlist(1i64, false, Kind::Float))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    Tensor::f_cat(&sums, 0)
}

#[cfg(test)]
mod tests {
    use super::super::TargetModules;
    use super::*;

    fn adapter(use_dora: bool, dropout: f64) -> (Lora, Tensor, Tensor, Tensor) {
        let settings = Settings {
            r: 3,
            lora_alpha: 5.0,
            lora_dropout: dropout,
            use_dora,
            use_rslora: false,
            target_modules: TargetModules::Names(vec!["q".into()]),
            rank_pattern: Default::default(),
            alpha_pattern: Default::default(),
        };
        let mut rng = Rng::named(21, "lora");
        let weight = rng.normal(&[7, 11], 0.3).unwrap();
        let fresh = Lora::init(&settings, "q", &weight, 1).unwrap();
        let magnitude = fresh.magnitude.as_ref().map(|m| m.detach() * 1.3 + 0.1);
        let lora_b = rng.normal(&[7, 3], 0.5).unwrap();
        let lora = Lora::from_parts(&settings, "q", fresh.lora_a.detach(), lora_b, magnitude, Device::Cpu).unwrap();
        (lora, weight, rng.normal(&[4, 11], 1.0).unwrap(), rng.normal(&[7], 1.0).unwrap())
    }

    fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn the_factored_norm_is_the_norm_of_the_sum() {
        let (lora, weight, _, _) = adapter(true, 0.0);
        let norm = dora_norm(&lora, &weight, &row_norms_squared(&weight).unwrap()).unwrap();
        let double = |t: &Tensor| t.detach().to_kind(Kind::Double);
        let sum = double(&weight) + double(&lora.lora_b).matmul(&double(&lora.lora_a)) * lora.scaling;
        let plain = sum.square().sum_dim_intlist(1i64, false, Kind::Double).sqrt();
        // f32 rounding of sums of 11 terms.
        assert!(max_difference(&double(&norm), &plain) < 1e-6);
    }

    #[test]
    fn row_norms_of_many_rows_are_those_of_each() {
        let rows = 2 * ROWS_AT_A_TIME + 5;
        let weight = Rng::named(22, "rows").normal(&[rows, 9], 1.0).unwrap();
        let found = row_norms_squared(&weight).unwrap();
        assert_eq!(found.size(), [rows]);
        let plain = weight.to_kind(Kind::Double).square().sum_dim_intlist(1i64, false, Kind::Double);
        // f32 rounding of sums of 9 terms.
        assert!(max_difference(&found.to_kind(Kind::Double), &plain) < 1e-5);
    }

    #[test]
    fn a_merged_weight_answers_as_the_adapter_does() {
        for use_dora in [false, true] {
            let (lora, weight, x, bias) = adapter(use_dora, 0.0);
            let norm = dora_norm(&lora, &weight, &row_norms_squared(&weight).unwrap()).unwrap();
            let y = lora.forward(&x, &weight, Some(&bias), Some(&norm), Some(Rng::named(1, "dropout"))).unwrap();
            let merged = x.linear(&lora.merged(&weight).unwrap(), Some(&bias));
            assert!(max_difference(&y.detach(), &merged) < 1e-5);
            assert!(max_difference(&y.detach(), &x.linear(&weight, Some(&bias))) > 0.1, "the adapter does nothing");
        }
    }

    #[test]
    fn dropout_changes_the_adapter_path_only() {
        // p so near 1 that everything is dropped: only the base layer and its bias are left.
        let (lora, weight, x, bias) = adapter(true, 1.0 - 1e-9);
        let norm = dora_norm(&lora, &weight, &row_norms_squared(&weight).unwrap()).unwrap();
        let y = lora.forward(&x, &weight, Some(&bias), Some(&norm), Some(Rng::named(1, "dropout"))).unwrap();
        assert!(max_difference(&y.detach(), &x.linear(&weight, Some(&bias))) < 1e-6);
    }
}
