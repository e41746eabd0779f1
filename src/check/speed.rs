//! How fast a device trains and decodes a shape with random weights, and what the device itself can do.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::Result;
use crate::adapter::{Settings, TargetModules};
use crate::config::{NllOn, Optim};
use crate::model::{Config, KvCache, Packed, Qwen2, Segment, Weight, new_adapter, noise};
use crate::tensor::cuda::Gpu;
use crate::tensor::{Placement, Rng};
use crate::text::Tokens;
use crate::train::objective::orpo;
use crate::train::{
    Activations, AdamW, Gradients, PreferenceTokens, Sharing, Weigh, backward_on_device, pack_preferences, pack_records,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    SftLora,
    SftDora,
    OrpoLora,
    OrpoDora,
    /// One stream of tokens without an adapter.
    Decode,
}

impl Case {
    /// All, in the order of the table.
    pub const ALL: [Self; 5] = [Self::SftLora, Self::SftDora, Self::OrpoLora, Self::OrpoDora, Self::Decode];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::SftLora => "sft-lora",
            Self::SftDora => "sft-dora",
            Self::OrpoLora => "orpo-lora",
            Self::OrpoDora => "orpo-dora",
            Self::Decode => "decode",
        }
    }

    fn is_orpo(self) -> bool {
        matches!(self, Self::OrpoLora | Self::OrpoDora)
    }

    fn uses_dora(self) -> bool {
        matches!(self, Self::SftDora | Self::OrpoDora)
    }
}

/// The model that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// That of Qwen2.5-7B.
    Qwen7b,
    /// Small enough for a test of the measurement itself.
    Tiny,
}

impl Shape {
    /// All.
    pub const ALL: [Self; 2] = [Self::Qwen7b, Self::Tiny];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen7b => "qwen2.5-7b",
            Self::Tiny => "tiny",
        }
    }

    fn config(self) -> Config {
        let (sizes, rope_theta) = match self {
            Self::Qwen7b => ([152_064, 3584, 18_944, 28, 28, 4, 128], 1e6),
            Self::Tiny => ([211, 64, 128, 2, 4, 2, 16], 1e4),
        };
        let [vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim] = sizes;
        Config {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rope_theta,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            max_position_embeddings: 32_768,
        }
    }
}

/// How much is run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records of a step.
    pub batch: usize,
    /// Tokens of a record; of ORPO's, half of them are the prompt's, and a quarter each answer's.
    pub len: usize,
    /// Measured steps end when this time is over, after two at least.
    pub seconds: f64,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    pub case: Case,
    pub tokens_per_second: f64,
    pub seconds_a_step: f64,
    pub n_steps: usize,
    /// Floating-point operations of the forward pass and of the gradient of every layer's input, for one token. What is
    /// computed again is not counted. Decoding: of the forward pass.
    pub flops_a_token: f64,
    /// What is read at least for one token of a single stream: weights, and the head.
    pub bytes_a_token: f64,
    /// Memory taken from the GPU since before the model was made; libtorch gives none back meanwhile. None on the CPU.
    pub peak_bytes: Option<u64>,
}

/// Measures one case on one device.
///
/// # Errors
/// When memory is short.
pub fn measure(shape: Shape, case: Case, limits: Limits, device: Device, gpu: Option<&Gpu>) -> Result<Speed> {
    let free = |gpu: Option<&Gpu>| gpu.map(|gpu| gpu.memory().map(|(free, _)| free)).transpose();
    let before = free(gpu).map_err(crate::tensor::Error::from)?;
    let mut model = noise(shape.config(), 1, Placement { device, dtype: Kind::BFloat16 })?;
    let bytes_a_token = n_bytes(&model) as f64;
    let linear: i64 = shape.config().projections().iter().map(|(_, [rows, columns], _)| rows * columns).sum();
    let n_linear = (linear * shape.config().num_hidden_layers) as f64;
    let n_head = (shape.config().vocab_size * shape.config().hidden_size) as f64;
    let (n_tokens, seconds, n_steps) = match case {
        Case::Decode => decode(&mut model, limits)?,
        _ => train(&mut model, case, limits)?,
    };
    let passes = if case == Case::Decode { 1.0 } else { 2.0 };
    let after = free(gpu).map_err(crate::tensor::Error::from)?;
    Ok(Speed {
        case,
        tokens_per_second: n_tokens as f64 / seconds,
        seconds_a_step: seconds / n_steps as f64,
        n_steps,
        flops_a_token: 2.0 * passes * (n_linear + n_head),
        bytes_a_token,
        peak_bytes: before.zip(after).map(|(before, after)| before.saturating_sub(after) as u64),
    })
}

/// The bytes of the blocks' weights and of the head.
fn n_bytes(model: &Qwen2) -> usize {
    let size = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
    let projections = model.blocks.iter().flat_map(|block| &block.projections);
    let blocks: usize = projections
        .map(|projection| match &projection.weight {
            Weight::Nf4(weight) => weight.size_bytes(),
            Weight::Dense(weight) => size(weight),
        })
        .sum();
    blocks + size(model.head_weight())
}

/// Tokens trained on, seconds and steps, without the first step.
fn train(model: &mut Qwen2, case: Case, limits: Limits) -> Result<(usize, f64, usize)> {
    let settings = Settings {
        r: 16,
        lora_alpha: 32.0,
        lora_dropout: 0.0,
        use_dora: case.uses_dora(),
        use_rslora: false,
        target_modules: TargetModules::Pattern("all-linear".into()),
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
    };
    new_adapter(model, &settings, 1)?;
    let parameters = model.parameters();
    let mut optimizer = AdamW::new(&parameters, Optim::PagedAdamw8bit, 0.01)?;
    let mut rng = Rng::named(1, "check.speed");
    let vocab = model.config.vocab_size as u64;
    let mut ids = |len: usize| -> Vec<u32> { (0..len).map(|_| rng.below(vocab) as u32).collect() };
    let (len, batch) = (limits.len, limits.batch);
    let (packed, spans) = if case.is_orpo() {
        let pairs: Vec<PreferenceTokens> = (0..batch)
            .map(|_| PreferenceTokens { prompt: ids(len / 2), chosen: ids(len / 4), rejected: ids(len / 4) })
            .collect();
        pack_preferences(&pairs, NllOn::All, Sharing::All)
    } else {
        let records: Vec<Tokens> = (0..batch).map(|_| Tokens::new(ids(len), vec![true; len])).collect();
        (pack_records(&records, Sharing::All), Vec::new())
    };
    let by_logps = |logps: &Tensor| orpo::weigh(logps, &spans, 0.1, NllOn::All);
    let weigh = match case.is_orpo() {
        true => Weigh::ByLogps(&by_logps),
        false => Weigh::Uniform(1.0 / packed.targets.len() as f64),
    };
    let mut gradients = Gradients::new(&parameters)?;
    let mut step = |model: &mut Qwen2| -> Result<()> {
        gradients.clear();
        let _ = backward_on_device(Activations::default(), model, (&parameters, &mut gradients), &packed, &weigh, 1)?;
        let norm = gradients.norm()?;
        gradients.clip(&norm, 1.0)?;
        optimizer.step(&parameters, &gradients, 1e-5)?;
        model.parameters_changed();
        Ok(())
    };
    step(model)?;
    wait(&parameters[0].tensor)?;
    let (clock, mut n_steps) = (Instant::now(), 0);
    while n_steps < 2 || clock.elapsed().as_secs_f64() < limits.seconds {
        step(model)?;
        n_steps += 1;
    }
    wait(&parameters[0].tensor)?;
    Ok((packed.ids.len() * n_steps, clock.elapsed().as_secs_f64(), n_steps))
}

/// Tokens decoded one after the other, seconds and steps, without the first eight.
fn decode(model: &mut Qwen2, limits: Limits) -> Result<(usize, f64, usize)> {
    const WARM: usize = 8;
    let mut rng = Rng::named(1, "check.decode");
    let len = (limits.len / 4).max(1);
    let ids: Vec<i64> = (0..len).map(|_| rng.below(model.config.vocab_size as u64) as i64).collect();
    let packed = Packed::new(&ids, &[Segment::plain(len)], model.config.vocab_size, model.placement.device)?;
    let room = len + limits.len;
    let mut cache = KvCache::new(&model.config, model.placement, 1, room as i64)?;
    let mut logits = model.prefill(&packed, &[len as i64], &mut cache)?;
    let (mut clock, mut n_steps) = (Instant::now(), 0);
    for idx in 0..limits.len {
        if idx == WARM {
            (clock, n_steps) = (Instant::now(), 0);
        }
        if n_steps >= 2 && idx > WARM && clock.elapsed().as_secs_f64() > limits.seconds {
            break;
        }
        // As when answering: the token goes to the host, which decides whether to go on.
        let id = logits.f_argmax(-1, false)?.f_int64_value(&[0])?;
        let id = Tensor::f_from_slice(&[id])?.f_to_device(model.placement.device)?;
        logits = model.decode(&id, &mut cache)?;
        n_steps += 1;
    }
    wait(&logits)?;
    Ok((n_steps, clock.elapsed().as_secs_f64(), n_steps))
}

/// Reads an element, for which everything launched before has to be done.
fn wait(tensor: &Tensor) -> Result<()> {
    tensor.f_detach()?.f_view(-1)?.f_get(0)?.f_double_value(&[])?;
    Ok(())
}

/// What the device reaches in one large bf16 product by libtorch, operations a second: the best of some.
///
/// # Errors
/// When memory is short.
pub fn peak_flops(device: Device) -> Result<f64> {
    let n: i64 = if device == Device::Cpu { 256 } else { 8192 };
    let mut rng = Rng::named(1, "check.peak");
    let part = rng.normal(&[64, n], 1.0)?.f_repeat([n / 64, 1])?;
    let a = part.f_to_device(device)?.f_to_kind(Kind::BFloat16)?;
    let product = || a.f_matmul(&a);
    wait(&product()?)?;
    let mut best = 0f64;
    for _ in 0..5 {
        let clock = Instant::now();
        let mut last = product()?;
        for _ in 0..3 {
            last = product()?;
        }
        wait(&last)?;
        best = best.max(4.0 * 2.0 * (n as f64).powi(3) / clock.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Bytes a second that a copy in the device's memory reads and writes: the best of some.
///
/// # Errors
/// When memory is short.
pub fn bandwidth(device: Device) -> Result<f64> {
    let n: i64 = if device == Device::Cpu { 1 << 22 } else { 1 << 28 };
    let from = Tensor::f_ones([n], (Kind::Float, device))?;
    let mut to = from.f_empty_like()?;
    to.f_copy_(&from)?;
    wait(&to)?;
    let mut best = 0f64;
    for _ in 0..5 {
        let clock = Instant::now();
        for _ in 0..4 {
            to.f_copy_(&from)?;
        }
        wait(&to)?;
        best = best.max(4.0 * 2.0 * 4.0 * n as f64 / clock.elapsed().as_secs_f64());
    }
    Ok(best)
}
