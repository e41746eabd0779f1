//! AdamW with decoupled weight decay (Loshchilov & Hutter, 1711.05101), as `torch.optim.AdamW`, and with its moments in
//! 8 bits, as bitsandbytes' `AdamW8bit`.

use std::sync::Arc;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

use super::blockwise::{BLOCK, Codes, MIN_SIZE, Update, update};
use crate::config::Optim;
use crate::model::Parameter;
use crate::quant::cuda::{self, Adam, Kernels};
use crate::tensor::{as_slice, as_slice_mut};
use crate::train::{Gradients, Result};

/// Defaults of `torch.optim.AdamW` and of transformers' trainer.
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// The optimizer's state, in the order of the parameters.
#[derive(Debug)]
pub struct AdamW {
    /// Optimizer steps taken.
    pub step: u64,
    moments: Vec<Moments>,
    decays: Vec<bool>,
    /// The kernels for 8-bit moments on a GPU, and the codes that they read there.
    gpu: Option<(Arc<Kernels>, [Tensor; 4])>,
    weight_decay: f64,
}

/// First and second moments of one parameter.
#[derive(Debug)]
enum Moments {
    /// f32, on the parameter's device.
    Full { m: Tensor, v: Tensor },
    /// Codes u8 and block scales f32, on the parameter's device; when paged, a GPU's codes are in pinned memory of the host.
    Blockwise { m: Tensor, v: Tensor, m_absmax: Tensor, v_absmax: Tensor, codes: Arc<Codes> },
}

impl Moments {
    /// Zeros, in 8 bits when there are codes for them and the parameter is not small; in paged memory where `pages` makes it.
    fn new(parameter: &Tensor, codes: Option<&Arc<Codes>>, pages: Option<&Kernels>) -> Result<Self> {
        let n = parameter.numel();
        let Some(codes) = codes.filter(|_| n >= MIN_SIZE) else {
            return Ok(Self::Full { m: parameter.f_zeros_like()?, v: parameter.f_zeros_like()? });
        };
        let device = parameter.device();
        let zeros = |n: usize, kind| Tensor::f_zeros([n as i64], (kind, device));
        let moment = || -> Result<Tensor> {
            Ok(match pages {
                Some(kernels) => kernels.paged_zeros(n, Kind::Uint8)?,
                None => zeros(n, Kind::Uint8)?,
            })
        };
        let n_blocks = n.div_ceil(BLOCK);
        Ok(Self::Blockwise {
            m: moment()?,
            v: moment()?,
            m_absmax: zeros(n_blocks, Kind::Float)?,
            v_absmax: zeros(n_blocks, Kind::Float)?,
            codes: Arc::clone(codes),
        })
    }

    fn named(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Full { m, v } => vec![("exp_avg", m), ("exp_avg_sq", v)],
            Self::Blockwise { m, v, m_absmax, v_absmax, .. } => {
                vec![("exp_avg", m), ("exp_avg_sq", v), ("exp_avg_absmax", m_absmax), ("exp_avg_sq_absmax", v_absmax)]
            }
        }
    }
}

impl AdamW {
    /// Zero moments: in 32 bits with `adamw_torch`, else in 8 bits for parameters of at least 4096 elements. Biases and
    /// norms do not decay, as in transformers' trainer.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(parameters: &[Parameter], optim: Optim, weight_decay: f64) -> Result<Self> {
        let codes = match optim {
            Optim::AdamwTorch => None,
            Optim::Adamw8bit | Optim::PagedAdamw8bit => Some(Arc::new(Codes::new())),
        };
        let device = parameters.first().map_or(Device::Cpu, |parameter| parameter.tensor.device());
        let gpu = match codes.as_ref().map(|_| cuda::of(device)).transpose()?.flatten() {
            Some(kernels) => Some((kernels, Kernels::adam_codes(device)?)),
            None => None,
        };
        let pages = gpu.as_ref().map(|(kernels, _)| &**kernels).filter(|_| optim == Optim::PagedAdamw8bit);
        let moments = |parameter: &Parameter| Moments::new(&parameter.tensor, codes.as_ref(), pages);
        Ok(Self {
            step: 0,
            moments: no_grad(|| parameters.iter().map(moments).collect::<Result<_>>())?,
            decays: parameters.iter().map(|parameter| !is_bias_or_norm(&parameter.name)).collect(),
            gpu,
            weight_decay,
        })
    }

    /// Every tensor of the state under its name in a checkpoint.
    pub fn named_state<'a>(&'a self, parameters: &[Parameter]) -> Vec<(String, &'a Tensor)> {
        parameters
            .iter()
            .zip(&self.moments)
            .flat_map(|(parameter, moments)| {
                moments.named().into_iter().map(|(prefix, tensor)| (format!("{prefix}.{}", parameter.name), tensor))
            })
            .collect()
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
                let weight_decay = if self.decays[idx] { self.weight_decay } else { 0.0 };
                let keep = 1.0 - learning_rate * weight_decay;
                let step_size = learning_rate / correction1;
                match &mut self.moments[idx] {
                    Moments::Blockwise { m, v, m_absmax, v_absmax, codes } => {
                        if let Some((kernels, codes)) = &self.gpu {
                            kernels.adamw_8bit(&Adam {
                                values: &tensor,
                                gradient: &gradient.f_contiguous()?,
                                m,
                                v,
                                m_absmax,
                                v_absmax,
                                codes,
                                betas: [BETA1, BETA2],
                                eps: EPS as f32,
                                keep: keep as f32,
                                step_size: step_size as f32,
                                correction2: correction2 as f32,
                            })?;
                            continue;
                        }
                        let gradient = gradient.f_to_device(Device::Cpu)?.f_contiguous()?;
                        let mut values = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
                        update(Update {
                            values: as_slice_mut(&mut values)?,
                            gradient: as_slice(&gradient)?,
                            m: as_slice_mut(m)?,
                            v: as_slice_mut(v)?,
                            m_absmax: as_slice_mut(m_absmax)?,
                            v_absmax: as_slice_mut(v_absmax)?,
                            betas: [BETA1, BETA2],
                            eps: EPS as f32,
                            keep: keep as f32,
                            step_size: step_size as f32,
                            correction2: correction2 as f32,
                            codes,
                        });
                        if values.data_ptr() != tensor.data_ptr() {
                            tensor.f_copy_(&values)?;
                        }
                    }
                    Moments::Full { m, v } if can_update(&[&tensor, gradient, m, v]) => {
                        let (gradient, tensor) = (as_slice(gradient)?, as_slice_mut(&mut tensor)?);
                        let factors =
                            Factors { keep: keep as f32, step_size: step_size as f32, correction2: correction2 as f32 };
                        update_full(tensor, gradient, as_slice_mut(m)?, as_slice_mut(v)?, factors);
                    }
                    Moments::Full { m, v } => {
                        if weight_decay != 0.0 {
                            let _ = tensor.f_mul_scalar_(keep)?;
                        }
                        let _ = m.f_lerp_(gradient, 1.0 - BETA1)?;
                        let _ = v.f_mul_scalar_(BETA2)?.f_addcmul_(&gradient.f_mul_scalar(1.0 - BETA2)?, gradient)?;
                        let denominator = v.f_sqrt()?.f_div_scalar_(correction2)?.f_add_scalar_(EPS)?;
                        let _ = tensor.f_add_(&m.f_div(&denominator)?.f_mul_scalar_(-step_size)?)?;
                    }
                }
            }
            Ok(())
        })
    }
}

/// Whether [`update_full`] takes these tensors.
fn can_update(tensors: &[&Tensor]) -> bool {
    tensors
        .iter()
        .all(|tensor| tensor.device() == Device::Cpu && tensor.kind() == Kind::Float && tensor.is_contiguous())
}

/// The numbers of a step that all elements share.
#[derive(Clone, Copy)]
struct Factors {
    /// What is left of a value after the decay.
    keep: f32,
    step_size: f32,
    correction2: f32,
}

/// A step of f32 values with f32 moments in one pass over memory, with the operations of libtorch's tensors in their order.
fn update_full(values: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32], factors: Factors) {
    const TASK: usize = 1 << 13;
    let Factors { keep, step_size, correction2 } = factors;
    let (rise1, decay2, rise2, eps) = ((1.0 - BETA1) as f32, BETA2 as f32, (1.0 - BETA2) as f32, EPS as f32);
    let moments = m.par_chunks_mut(TASK).zip(v.par_chunks_mut(TASK));
    values.par_chunks_mut(TASK).zip(gradient.par_chunks(TASK)).zip(moments).for_each(|((values, gradient), (m, v))| {
        for (((value, gradient), m), v) in values.iter_mut().zip(gradient).zip(m).zip(v) {
            *m += rise1 * (gradient - *m);
            *v = decay2 * *v + rise2 * gradient * gradient;
            let denominator = v.sqrt() / correction2 + eps;
            *value = keep * *value - step_size * (*m / denominator);
        }
    });
}

fn is_bias_or_norm(name: &str) -> bool {
    name.ends_with(".bias") || name.contains("layernorm") || name.ends_with("norm.weight")
}
