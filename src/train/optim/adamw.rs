//! AdamW with decoupled weight decay (Loshchilov & Hutter, 1711.05101), as `torch.optim.AdamW`.

use tch::{Tensor, no_grad};

use crate::model::Parameter;
use crate::train::{Gradients, Result};

/// Defaults of `torch.optim.AdamW` and of transformers' trainer.
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// The optimizer's state: first and second moments, f32, in the order of the parameters.
#[derive(Debug)]
pub struct AdamW {
    /// Optimizer steps taken.
    pub step: u64,
    pub moments: Vec<(Tensor, Tensor)>,
    decays: Vec<bool>,
    weight_decay: f64,
}

impl AdamW {
    /// Zero moments. Biases and norms do not decay, as in transformers' trainer.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(parameters: &[Parameter], weight_decay: f64) -> Result<Self> {
        let zeros = |parameter: &Parameter| -> Result<(Tensor, Tensor)> {
            Ok((parameter.tensor.f_zeros_like()?, parameter.tensor.f_zeros_like()?))
        };
        Ok(Self {
            step: 0,
            moments: no_grad(|| parameters.iter().map(zeros).collect::<Result<_>>())?,
            decays: parameters.iter().map(|parameter| !is_bias_or_norm(&parameter.name)).collect(),
            weight_decay,
        })
    }

    /// One step: `p -= lr * wd * p`, then `p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)`. A parameter
    /// without a gradient is left alone.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn step(&mut self, parameters: &[Parameter], gradients: &Gradients, learning_rate: f64) -> Result<()> {
        self.step += 1;
        let correction1 = 1.0 - BETA1.powf(self.step as f64);
        let correction2 = (1.0 - BETA2.powf(self.step as f64)).sqrt();
        no_grad(|| -> Result<()> {
            for (idx, parameter) in parameters.iter().enumerate() {
                let Some(gradient) = &gradients.tensors[idx] else { continue };
                let mut tensor = parameter.tensor.shallow_clone();
                let (m, v) = &mut self.moments[idx];
                if self.decays[idx] && self.weight_decay != 0.0 {
                    let _ = tensor.f_mul_scalar_(1.0 - learning_rate * self.weight_decay)?;
                }
                let _ = m.f_lerp_(gradient, 1.0 - BETA1)?;
                let _ = v.f_mul_scalar_(BETA2)?.f_addcmul_(&gradient.f_mul_scalar(1.0 - BETA2)?, gradient)?;
                let denominator = v.f_sqrt()?.f_div_scalar_(correction2)?.f_add_scalar_(EPS)?;
                let update = m.f_div(&denominator)?.f_mul_scalar_(-learning_rate / correction1)?;
                let _ = tensor.f_add_(&update)?;
            }
            Ok(())
        })
    }
}

fn is_bias_or_norm(name: &str) -> bool {
    name.ends_with(".bias") || name.contains("layernorm") || name.ends_with("norm.weight")
}
