//! One function for each kernel: it checks what it is given, and launches.

use tch::{Device, Kind, Tensor};

use super::Kernels;
use crate::quant::absmax::Absmax;
use crate::quant::blockwise::DynamicCode;
use crate::quant::kernels::Rounding;
use crate::quant::nf4::BLOCK;
use crate::quant::{Error, Result};
use crate::tensor;
use crate::tensor::cuda::{Argument, Launch};

/// Threads of a block, for kernels whose threads do not work together.
const THREADS: u32 = 256;

/// Rows of the weight that a block of [`Kernels::multiply`] takes: two for each warp (`WARP_ROWS` of the source).
const BLOCK_ROWS: usize = 2 * THREADS as usize / 32;

/// The most rows of `x` that one launch takes.
const MAX_ROWS: usize = 8;

/// Threads that share a row of logits.
const LOSS_THREADS: u32 = 512;

/// Values that share a scale of 8-bit moments (`ADAM_BLOCK` of the source), and the threads that take them.
const ADAM_BLOCK: usize = 256;

/// What a kernel reads of an NF4 weight. Everything is on the kernels' device.
#[derive(Clone, Copy, Debug)]
pub struct Nf4Parts<'a> {
    pub packed: &'a Tensor,
    pub absmax: &'a Absmax,
    /// The dynamic code of double-quantized scales, `[256]` f32.
    pub code: Option<&'a Tensor>,
    /// `[rows, columns]`.
    pub shape: [i64; 2],
}

/// One parameter's AdamW step on 8-bit moments: see `train::optim::blockwise::Update`.
#[derive(Debug)]
pub struct Adam<'a> {
    /// f32, changed in place.
    pub values: &'a Tensor,
    /// f32.
    pub gradient: &'a Tensor,
    /// u8, changed in place; like `v` and the scales on the device, or in pinned memory of the host.
    pub m: &'a Tensor,
    pub v: &'a Tensor,
    pub m_absmax: &'a Tensor,
    pub v_absmax: &'a Tensor,
    /// As [`Kernels::adam_codes`] gives them.
    pub codes: &'a [Tensor; 4],
    pub betas: [f64; 2],
    pub eps: f32,
    pub keep: f32,
    pub step_size: f32,
    pub correction2: f32,
}

fn pointer_to_nothing() -> Argument {
    Argument::Pointer(std::ptr::null_mut())
}

fn launch_of(n: usize, per_block: usize, threads: u32) -> Launch {
    Launch { blocks: n.div_ceil(per_block) as u32, threads }
}

fn number_of(rounding: Rounding) -> Argument {
    Argument::U32(match rounding {
        Rounding::None => 0,
        Rounding::Bf16 => 1,
        Rounding::F16 => 2,
        Rounding::F16ThenBf16 => 3,
    })
}

/// The kernel for f32 or bf16 tensors.
fn by_kind<T>(kind: Kind, for_f32: T, for_bf16: T) -> Result<T> {
    match kind {
        Kind::Float => Ok(for_f32),
        Kind::BFloat16 => Ok(for_bf16),
        other => Err(Error::OutputType(other)),
    }
}

fn kind_of(tensor: &Tensor) -> Result<Kind> {
    Ok(tensor.f_kind().map_err(tensor::Error::from)?)
}

impl Kernels {
    /// The packed codes and the scales, in the order of the kernels' first six arguments.
    fn weight(&self, parts: &Nf4Parts<'_>) -> Result<[Argument; 6]> {
        let n = (parts.shape[0] * parts.shape[1]) as usize;
        let n_blocks = n.div_ceil(BLOCK);
        let packed = self.argument(parts.packed, Kind::Uint8, n.div_ceil(2))?;
        let null = pointer_to_nothing();
        Ok(match (parts.absmax, parts.code) {
            (Absmax::Double(double), Some(code)) => [
                packed,
                null,
                self.argument(&double.codes, Kind::Uint8, n_blocks)?,
                self.argument(code, Kind::Float, 256)?,
                self.argument(&double.nested_absmax, Kind::Float, n_blocks.div_ceil(256))?,
                Argument::F32(double.offset),
            ],
            (Absmax::Single(absmax), _) => {
                [packed, self.argument(absmax, Kind::Float, n_blocks)?, null, null, null, Argument::F32(0.0)]
            }
            (Absmax::Double(_), None) => return Err(Error::BufferSize { found: 0, expected: 256 }),
        })
    }

    /// Expands a weight into a buffer of its size, f32 or bf16.
    ///
    /// # Errors
    /// When the buffer is of another size, type or device.
    pub fn dequantize(&self, parts: &Nf4Parts<'_>, rounding: Rounding, out: &mut Tensor) -> Result<()> {
        let n = (parts.shape[0] * parts.shape[1]) as usize;
        let kind = kind_of(out)?;
        let name = by_kind(kind, "nf4_dequantize_f32", "nf4_dequantize_bf16")?;
        let [packed, single, codes, code, nested, offset] = self.weight(parts)?;
        let out = self.argument(out, kind, n)?;
        let n_values = Argument::I64(n as i64);
        let arguments = [packed, single, codes, code, nested, offset, n_values, number_of(rounding), out];
        // SAFETY: the arguments are the kernel's; it writes `n` elements of `out` and reads the parts of `n` values, whose
        // sizes were checked.
        unsafe { self.launch(name, launch_of(n, 8 * THREADS as usize, THREADS), &arguments) }
    }

    /// `W x` for the rows of `x`, `[n, columns]` f32 or bf16, giving `[n, rows]` in its type. Rows of the weight are whole
    /// blocks.
    ///
    /// # Errors
    /// When shapes, types or devices do not fit.
    pub fn multiply(&self, parts: &Nf4Parts<'_>, rounding: Rounding, x: &Tensor) -> Result<Tensor> {
        let [rows, columns] = parts.shape;
        let (n, found) = x.size2()?;
        if found != columns || columns % BLOCK as i64 != 0 {
            return Err(Error::BufferSize { found: found as usize, expected: columns as usize });
        }
        let kind = kind_of(x)?;
        let names = by_kind(
            kind,
            ["nf4_multiply_f32_1", "nf4_multiply_f32_2", "nf4_multiply_f32_4", "nf4_multiply_f32_8"],
            ["nf4_multiply_bf16_1", "nf4_multiply_bf16_2", "nf4_multiply_bf16_4", "nf4_multiply_bf16_8"],
        )?;
        let weight = self.weight(parts)?;
        let x = aligned(&x.f_detach()?.f_contiguous()?)?;
        if !is_aligned(parts.packed) {
            return Err(Error::Unaligned);
        }
        let out = Tensor::f_empty([n, rows], (kind, self.device()))?;
        for first in (0..n).step_by(MAX_ROWS) {
            let len = (n - first).min(MAX_ROWS as i64);
            let name = names[(len as usize).next_power_of_two().ilog2() as usize];
            let (x, out) = (x.f_narrow(0, first, len)?, out.f_narrow(0, first, len)?);
            let [packed, single, codes, code, nested, offset] = weight;
            let arguments = [
                packed,
                single,
                codes,
                code,
                nested,
                offset,
                number_of(rounding),
                self.argument(&x, kind, (len * columns) as usize)?,
                Argument::I64(len),
                Argument::I64(rows),
                Argument::I64(columns),
                self.argument(&out, kind, (len * rows) as usize)?,
            ];
            // SAFETY: the arguments are the kernel's; rows are whole blocks of 64, so that every row of the packed codes,
            // and, 8 rows on, of `x`, starts at a multiple of 16 bytes, as it does at the first (checked).
            unsafe { self.launch(name, launch_of(rows as usize, BLOCK_ROWS, THREADS), &arguments)? };
        }
        Ok(out)
    }

    /// Turns logits `[n, vocab]`, f32 or bf16, into the gradient of `-sum(weights * logps)`, in place, and gives the
    /// targets' log-probabilities, `[n]` f32. `targets` is `[n]` i64, `weights` `[n]` f32; without them every row counts 1.
    /// A target outside the vocabulary has the log-probability NaN.
    ///
    /// # Errors
    /// When shapes, types or devices do not fit.
    pub fn cross_entropy(&self, logits: &mut Tensor, targets: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let (n, vocab) = logits.size2()?;
        let kind = kind_of(logits)?;
        let name = by_kind(kind, "cross_entropy_f32", "cross_entropy_bf16")?;
        let logps = Tensor::f_empty([n], (Kind::Float, self.device()))?;
        let arguments = [
            self.argument(logits, kind, (n * vocab) as usize)?,
            self.argument(targets, Kind::Int64, n as usize)?,
            match weights {
                Some(weights) => self.argument(weights, Kind::Float, n as usize)?,
                None => pointer_to_nothing(),
            },
            self.argument(&logps, Kind::Float, n as usize)?,
            Argument::I64(vocab),
        ];
        // SAFETY: the arguments are the kernel's; a block takes one row of `vocab` logits and one element of the others.
        unsafe { self.launch(name, launch_of(n as usize, 1, LOSS_THREADS), &arguments)? };
        Ok(logps)
    }

    /// The codes of 8-bit moments and their tables of nearest codes, as [`Adam`] takes them, on `device`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn adam_codes(device: Device) -> Result<[Tensor; 4]> {
        let (m, v) = (DynamicCode::signed(), DynamicCode::unsigned());
        let place = |tensor: Tensor| tensor.f_to_device(device);
        Ok([
            place(Tensor::f_from_slice(m.values())?)?,
            place(Tensor::f_from_slice(v.values())?)?,
            place(Tensor::f_from_slice(m.nearest())?)?,
            place(Tensor::f_from_slice(v.nearest())?)?,
        ])
    }

    /// An AdamW step on 8-bit moments, in place.
    ///
    /// # Errors
    /// When sizes, types or devices do not fit.
    pub fn adamw_8bit(&self, step: &Adam<'_>) -> Result<()> {
        let n = step.values.numel();
        let n_blocks = n.div_ceil(ADAM_BLOCK);
        let [m_code, v_code, m_nearest, v_nearest] = step.codes;
        let [beta1, beta2] = step.betas;
        let arguments = [
            self.argument(step.values, Kind::Float, n)?,
            self.argument(step.gradient, Kind::Float, n)?,
            self.pageable(step.m, Kind::Uint8, n)?,
            self.pageable(step.v, Kind::Uint8, n)?,
            self.pageable(step.m_absmax, Kind::Float, n_blocks)?,
            self.pageable(step.v_absmax, Kind::Float, n_blocks)?,
            self.argument(m_code, Kind::Float, 256)?,
            self.argument(v_code, Kind::Float, 256)?,
            self.argument(m_nearest, Kind::Uint8, 1 << 16)?,
            self.argument(v_nearest, Kind::Uint8, 1 << 16)?,
            Argument::F32(beta1 as f32),
            Argument::F32(beta2 as f32),
            Argument::F32((1.0 - beta1) as f32),
            Argument::F32((1.0 - beta2) as f32),
            Argument::F32(step.eps),
            Argument::F32(step.keep),
            Argument::F32(step.step_size),
            Argument::F32(step.correction2),
            Argument::I64(n as i64),
        ];
        // SAFETY: the arguments are the kernel's; a block takes 256 elements, as far as there are any, and one scale.
        unsafe { self.launch("adamw_8bit", launch_of(n, ADAM_BLOCK, ADAM_BLOCK as u32), &arguments) }
    }

    /// A dropout mask of `kind` with the draws of [`crate::tensor::Rng::dropout_mask`]: `draws` is what
    /// [`crate::tensor::Rng::dropout_draws`] gives.
    ///
    /// # Errors
    /// When the type is neither f32 nor bf16, or memory is short.
    pub fn dropout_mask(&self, shape: &[i64], kind: Kind, draws: tensor::DropoutDraws) -> Result<Tensor> {
        let name = by_kind(kind, "dropout_mask_f32", "dropout_mask_bf16")?;
        let mask = Tensor::f_empty(shape, (kind, self.device()))?;
        let n = mask.numel();
        let arguments = [
            self.argument(&mask, kind, n)?,
            Argument::I64(n as i64),
            Argument::U64(draws.seed),
            Argument::U32(draws.dropped_below),
            Argument::F32(draws.kept),
        ];
        // SAFETY: the arguments are the kernel's; a thread takes four elements, as far as there are any.
        unsafe { self.launch(name, launch_of(n, 4 * THREADS as usize, THREADS), &arguments)? };
        Ok(mask)
    }
}

fn is_aligned(tensor: &Tensor) -> bool {
    (tensor.data_ptr() as usize).is_multiple_of(16)
}

/// The tensor, or a copy of it, which starts at a multiple of 16 bytes as every allocation of libtorch does.
fn aligned(tensor: &Tensor) -> Result<Tensor> {
    if is_aligned(tensor) {
        return Ok(tensor.shallow_clone());
    }
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}
