//! Whether a device computes what the CPU computes: weights, logits, losses, gradients, optimizer steps, dropout masks and
//! answers of a small quantized model with an adapter, the same on both.

use serde::Serialize;
use tch::{Device, Kind, Tensor, no_grad};

use super::Result;
use crate::adapter::{Settings, TargetModules};
use crate::config::{NllOn, Optim};
use crate::decode::{Limits, generate};
use crate::model::{Config, Packed, Parameter, Qwen2, Segment, Weight, init, new_adapter, quantize};
use crate::quant::{Nf4, cuda};
use crate::stop::Stop;
use crate::tensor::{Placement, Rng};
use crate::text::Tokens;
use crate::train::objective::orpo;
use crate::train::{
    AdamW, Batch, Gradients, PreferenceTokens, Sharing, Weigh, backward, pack_preferences, pack_records,
};

const SEED: u64 = 20;
const VOCAB: i64 = 515;

/// How far a device is from the CPU in one respect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    pub name: String,
    /// A share of the largest value, or for what must be equal the number of elements that differ.
    pub error: f64,
    pub limit: f64,
}

impl Finding {
    /// Whether it is near enough. NaN is not.
    pub fn is_fine(&self) -> bool {
        self.error <= self.limit
    }
}

/// Runs every comparison. With `disturb` one weight of the device's model is changed first: then it must not come out fine.
///
/// # Errors
/// When something cannot be computed at all.
pub fn compare(device: Device, disturb: bool) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    // What the order of sums does: in f32 a few steps; in bf16, where every product is rounded, some hundredths of a gradient.
    for (dtype, name, logits, gradient) in
        [(Kind::Float, "float32", 2e-4, 2e-3), (Kind::BFloat16, "bfloat16", 4e-2, 1.5e-1)]
    {
        for use_dora in [false, true] {
            let adapter = if use_dora { "DoRA" } else { "LoRA" };
            let mut add = |what: &str, error, limit| {
                findings.push(Finding { name: format!("{what}, {adapter}, {name}"), error, limit });
            };
            let build = |device, disturb| model(Placement { device, dtype }, use_dora, disturb);
            let (mut cpu, mut other) = (build(Device::Cpu, false)?, build(device, disturb)?);
            add("expanded NF4 weights", n_unequal_weights(&cpu, &other)?, 0.0);
            if dtype == Kind::Float {
                add("fused NF4 products", fused_products(&other)?, 1e-5);
            }
            add("logits", relative(&logits_of(&mut other)?, &logits_of(&mut cpu)?)?, logits);
            for (objective, batch, weigh) in objectives() {
                let (logps, gradients) = pass(&mut cpu, &batch, &weigh)?;
                let (other_logps, other_gradients) = pass(&mut other, &batch, &weigh)?;
                add(&format!("{objective} losses"), relative(&other_logps, &logps)?, logits);
                let mut worst = 0f64;
                for (found, expected) in other_gradients.iter().zip(&gradients) {
                    worst = worst.max(difference_of_norms(found, expected)?);
                }
                add(&format!("{objective} gradients"), worst, gradient);
            }
            if dtype == Kind::Float {
                add("answers", n_unequal_answers(&mut cpu, &mut other)?, 0.0);
            }
        }
    }
    for (optim, name, limit) in [
        (Optim::AdamwTorch, "adamw_torch", 1e-6),
        (Optim::Adamw8bit, "adamw_8bit", 0.0),
        (Optim::PagedAdamw8bit, "paged_adamw_8bit", 0.0),
    ] {
        let (expected, found) = (optimized(Device::Cpu, optim)?, optimized(device, optim)?);
        findings.push(Finding { name: format!("steps of {name}"), error: relative(&found, &expected)?, limit });
    }
    for kind in [Kind::Float, Kind::BFloat16] {
        let error = n_unequal_draws(device, kind)?;
        findings.push(Finding { name: format!("dropout masks, {kind:?}"), error, limit: 0.0 });
    }
    Ok(findings)
}

fn model(placement: Placement, use_dora: bool, disturb: bool) -> Result<Qwen2> {
    let config = Config {
        vocab_size: VOCAB,
        hidden_size: 256,
        intermediate_size: 704,
        num_hidden_layers: 3,
        num_attention_heads: 8,
        num_key_value_heads: 2,
        head_dim: 32,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        max_position_embeddings: 256,
    };
    let mut model = init(config, SEED, placement)?;
    quantize(&mut model)?;
    let settings = Settings {
        r: 8,
        lora_alpha: 16.0,
        lora_dropout: 0.1,
        use_dora,
        use_rslora: false,
        target_modules: TargetModules::Pattern("all-linear".into()),
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
    };
    new_adapter(&mut model, &settings, SEED)?;
    let mut rng = Rng::named(SEED, "check.adapter");
    for parameter in model.parameters() {
        let noise = rng.normal(&parameter.tensor.size(), 0.02)?.f_to_device(placement.device)?;
        let mut tensor = parameter.tensor.shallow_clone();
        let _ = no_grad(|| tensor.f_add_(&noise))?;
    }
    model.parameters_changed();
    if disturb && let Weight::Nf4(weight) = &model.blocks[1].projections[3].weight {
        let _ = weight.packed.f_narrow(0, 0, 512)?.f_bitwise_not_()?;
    }
    Ok(model)
}

fn ids(rng: &mut Rng, len: usize) -> Vec<u32> {
    (0..len).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

/// What is trained on: a name, a batch, and how its targets count. Lengths differ, so that packing and padding show.
fn objectives() -> Vec<(&'static str, Batch, Weigh<'static>)> {
    let mut rng = Rng::named(SEED, "check.records");
    let beginning = ids(&mut rng, 9);
    let records: Vec<Tokens> = [33usize, 40, 7, 64]
        .iter()
        .map(|&len| {
            // Most share what they begin with.
            let ids = if len > 10 { [&*beginning, &ids(&mut rng, len)].concat() } else { ids(&mut rng, len) };
            let is_target = (0..ids.len()).map(|idx| idx % 4 != 1).collect();
            Tokens::new(ids, is_target)
        })
        .collect();
    let pairs: Vec<PreferenceTokens> = [(20, 9, 14), (31, 5, 5), (3, 1, 40)]
        .iter()
        .map(|&(prompt, chosen, rejected)| PreferenceTokens {
            prompt: [&*beginning, &ids(&mut rng, prompt)].concat(),
            chosen: ids(&mut rng, chosen),
            rejected: ids(&mut rng, rejected),
        })
        .collect();
    let (preferences, spans) = pack_preferences(&pairs, NllOn::All, Sharing::All);
    let by_logps: &'static dyn Fn(&Tensor) -> crate::train::Result<Tensor> =
        Box::leak(Box::new(move |logps: &Tensor| orpo::weigh(logps, &spans, 0.3, NllOn::All)));
    vec![
        ("SFT", pack_records(&records, Sharing::All), Weigh::Uniform(0.01)),
        ("ORPO", preferences, Weigh::ByLogps(by_logps)),
    ]
}

/// Log-probabilities of a batch's targets, and the gradients of the adapter's parameters on the CPU.
fn pass(model: &mut Qwen2, batch: &Batch, weigh: &Weigh<'_>) -> Result<(Tensor, Vec<Tensor>)> {
    let parameters = model.parameters();
    let mut gradients = Gradients::new(&parameters)?;
    let logps = backward(model, &parameters, &mut gradients, batch, weigh, SEED)?;
    let gradients = gradients.tensors.into_iter().flatten().map(|tensor| tensor.f_to_device(Device::Cpu));
    Ok((Tensor::f_from_slice(&logps)?, gradients.collect::<std::result::Result<_, _>>()?))
}

fn logits_of(model: &mut Qwen2) -> Result<Tensor> {
    let mut rng = Rng::named(SEED, "check.logits");
    let lens = [50usize, 37, 5];
    let ids: Vec<i64> = lens.iter().flat_map(|&len| ids(&mut rng, len)).map(i64::from).collect();
    let segments: Vec<Segment> = lens.iter().map(|&len| Segment::plain(len)).collect();
    let packed = Packed::new(&ids, &segments, VOCAB, model.placement.device)?;
    let hidden = model.hidden_states(&packed)?;
    Ok(model.logits(&hidden)?)
}

fn nf4_weights(model: &Qwen2) -> impl Iterator<Item = &Nf4> {
    let weights = model.blocks.iter().flat_map(|block| &block.projections).map(|projection| &projection.weight);
    weights.filter_map(|weight| if let Weight::Nf4(weight) = weight { Some(weight) } else { None })
}

fn n_unequal_weights(cpu: &Qwen2, other: &Qwen2) -> Result<f64> {
    let mut n = 0.0;
    for (expected, found) in nf4_weights(cpu).zip(nf4_weights(other)) {
        n += n_unequal(&found.packed, &expected.packed)?;
        for kind in [Kind::Float, Kind::BFloat16] {
            n += n_unequal(&found.dequantize(kind)?, &expected.dequantize(kind)?)?;
        }
    }
    Ok(n)
}

/// The worst error of the product that decoding uses, against the product with the expanded weight in f64.
fn fused_products(model: &Qwen2) -> Result<f64> {
    let mut rng = Rng::named(SEED, "check.product");
    let mut worst = 0f64;
    for (weight, n) in nf4_weights(model).zip((1..=8).cycle()) {
        let x = rng.normal(&[n, weight.shape()[1]], 1.0)?;
        let found = weight.multiply(&x.f_to_device(weight.device())?)?;
        let expanded = weight.dequantize(Kind::Float)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        worst = worst.max(relative(&found, &x.f_to_kind(Kind::Double)?.f_matmul(&expanded.f_transpose(0, 1)?)?)?);
    }
    Ok(worst)
}

fn n_unequal_answers(cpu: &mut Qwen2, other: &mut Qwen2) -> Result<f64> {
    let mut rng = Rng::named(SEED, "check.prompts");
    let prompts: Vec<Vec<u32>> = [12, 5, 31].iter().map(|&len| ids(&mut rng, len)).collect();
    let limits = Limits { max_new_tokens: 24, batch_size: 2, end_tokens: Vec::new() };
    let answers = |model: &mut Qwen2| generate(model, &prompts, &limits, &Stop::default(), |_| ());
    let (expected, found) = (answers(cpu)?, answers(other)?);
    let pairs = expected.iter().flatten().zip(found.iter().flatten());
    Ok(pairs.filter(|(expected, found)| expected != found).count() as f64)
}

/// Parameters after some steps on the same gradients.
fn optimized(device: Device, optim: Optim) -> Result<Tensor> {
    let mut rng = Rng::named(SEED, "check.optimizer");
    let tensor = rng.normal(&[4096 + 100], 0.1)?.f_to_device(device)?.f_set_requires_grad(true)?;
    let parameters = [Parameter { name: "a.weight".into(), tensor, block: None }];
    let mut optimizer = AdamW::new(&parameters, optim, 0.01)?;
    for _ in 0..4 {
        let mut gradients = Gradients::new(&parameters)?;
        gradients.tensors[0] = Some(rng.normal(&[4096 + 100], 0.02)?.f_to_device(device)?);
        optimizer.step(&parameters, &gradients, 1e-3)?;
    }
    let [parameter] = parameters;
    Ok(parameter.tensor.f_detach()?)
}

fn n_unequal_draws(device: Device, kind: Kind) -> Result<f64> {
    let mut rng = Rng::named(SEED, "check.dropout");
    let shape = [131, 77];
    let expected = rng.clone().dropout_mask(&shape, 0.1, kind)?;
    let found = match cuda::of(device)? {
        Some(kernels) => kernels.dropout_mask(&shape, kind, rng.dropout_draws(0.1))?,
        None => rng.dropout_mask(&shape, 0.1, kind)?,
    };
    n_unequal(&found, &expected)
}

fn n_unequal(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let found = found.f_to_device(Device::Cpu)?;
    Ok(found.f_ne_tensor(expected)?.f_sum(Kind::Double)?.f_double_value(&[])?)
}

/// The largest difference as a share of the largest value.
fn relative(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let wide = |tensor: &Tensor| tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double);
    let (found, expected) = (wide(found)?, wide(expected)?);
    let difference = found.f_sub(&expected)?.f_abs()?.f_max()?.f_double_value(&[])?;
    Ok(difference / expected.f_abs()?.f_max()?.f_double_value(&[])?.max(1e-30))
}

/// The norm of the difference as a share of the norm.
fn difference_of_norms(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let difference = found.f_sub(expected)?.f_norm()?.f_double_value(&[])?;
    Ok(difference / expected.f_norm()?.f_double_value(&[])?.max(1e-30))
}
