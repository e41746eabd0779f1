//! The CUDA kernels, compiled for the host, against the CPU's loops.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axismapper::config::Optim;
use axismapper::model::{Packed, Parameter, Projection, Qwen2, Segment, Weight, init, new_adapter, quantize};
use axismapper::quant::cuda::{Adam, Kernels};
use axismapper::quant::{Absmax, Nf4};
use axismapper::tensor::{Placement, Rng, as_slice};
use axismapper::train::{AdamW, Gradients, Sharing, Weigh, backward, pack_records};
use tch::{Device, Kind, Tensor};

use super::{build_library, folder};

/// The kernels, which one thread may use at a time.
fn kernels() -> MutexGuard<'static, Arc<Kernels>> {
    static KERNELS: OnceLock<Mutex<Arc<Kernels>>> = OnceLock::new();
    let kernels = KERNELS.get_or_init(|| {
        let dir = folder("kernels");
        let library = dir.join("kernels.so");
        let options =
            "-std=c++17 -O1 -ffp-contract=off -Wall -Werror -Wno-unknown-pragmas -Isrc/quant/kernels/cuda -Itests/cuda";
        build_library("tests/cuda/kernels.cpp", &options.split(' ').collect::<Vec<_>>(), &library);
        let kernels = Kernels::on_host(&library).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        Mutex::new(Arc::new(kernels))
    });
    kernels.lock().unwrap_or_else(PoisonError::into_inner)
}

const SHAPES: [[i64; 2]; 7] = [[1, 1], [7, 33], [3, 64], [5, 130], [130, 257], [300, 192], [67, 1088]];

#[test]
fn expanded_weights_are_those_of_the_cpu() {
    let kernels = kernels();
    let mut rng = Rng::named(rand_seed(), "cuda.dequantize");
    for shape in SHAPES {
        let source = rng.normal(&shape, 0.05).unwrap();
        for dtype in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let weight = || Nf4::quantize(&source).unwrap().with_dtype(dtype);
            let mut on_gpu = weight().with_kernels(Arc::clone(&kernels)).unwrap();
            for is_single in [false, true] {
                let mut on_cpu = weight();
                if is_single {
                    // Scales in f32, as a checkpoint without double quantization has them.
                    let scales = Tensor::from_slice(&rng_scales(&mut rng, source.numel().div_ceil(64)));
                    on_cpu.absmax = Absmax::Single(scales.copy());
                    on_gpu.absmax = Absmax::Single(scales);
                }
                for kind in [Kind::Float, Kind::BFloat16] {
                    let (expected, found) = (on_cpu.dequantize(kind).unwrap(), on_gpu.dequantize(kind).unwrap());
                    assert_eq!(found, expected, "{shape:?}, {dtype:?} into {kind:?}, single {is_single}");
                }
            }
        }
    }
    // A buffer that starts in the middle of 16 bytes.
    let weight = Nf4::quantize(&rng.normal(&[3, 64], 0.05).unwrap()).unwrap();
    let expected = weight.dequantize(Kind::BFloat16).unwrap();
    let mut odd = Tensor::zeros([193], (Kind::BFloat16, Device::Cpu)).narrow(0, 1, 192);
    weight.with_kernels(Arc::clone(&kernels)).unwrap().dequantize_into(&mut odd).unwrap();
    assert_eq!(odd.view([3, 64]), expected);
}

fn rng_scales(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| 0.01 + rng.next_f32()).collect()
}

/// Other inputs in every run; the seed is told when a test fails.
fn rand_seed() -> u64 {
    let seed = std::process::id().into();
    println!("seed {seed}");
    seed
}

#[test]
fn a_product_is_that_with_the_expanded_weight() {
    let kernels = kernels();
    let mut rng = Rng::named(rand_seed(), "cuda.multiply");
    for (rows, columns) in [(1, 64), (5, 128), (67, 192), (33, 1088), (18, 2112)] {
        for n in [1, 2, 3, 4, 5, 8, 11] {
            for (kind, dtype) in [
                (Kind::Float, Kind::Float),
                (Kind::Float, Kind::BFloat16),
                (Kind::BFloat16, Kind::BFloat16),
                (Kind::BFloat16, Kind::Half),
            ] {
                let source = rng.normal(&[rows, columns], 0.05).unwrap();
                let x = rng.normal(&[n, columns], 1.0).unwrap().to_kind(kind);
                let weight = || Nf4::quantize(&source).unwrap().with_dtype(dtype);
                let found = weight().with_kernels(Arc::clone(&kernels)).unwrap().multiply(&x).unwrap();
                assert_eq!((found.size(), found.kind()), (vec![n, rows], kind));
                let expanded = weight().dequantize(kind).unwrap().to_kind(Kind::Double);
                let exact = x.to_kind(Kind::Double).matmul(&expanded.transpose(0, 1));
                let size = x.to_kind(Kind::Double).abs().matmul(&expanded.abs().transpose(0, 1));
                // Sums in f32: an error of a few f32 steps of the sum of absolute products; then one rounding.
                let rounding = if kind == Kind::Float { 0.0 } else { 2f64.powi(-8) };
                let bound = &size * 1e-6 + exact.abs() * (rounding * 1.001);
                let excess = ((found.to_kind(Kind::Double) - &exact).abs() - bound).max().double_value(&[]);
                assert!(excess <= 0.0, "[{rows}, {columns}] x {n} in {kind:?} of {dtype:?}: {excess} over");
            }
        }
    }
}

#[test]
fn a_loss_and_its_gradient_are_those_of_f64() {
    let kernels = kernels();
    let mut rng = Rng::named(rand_seed(), "cuda.loss");
    for (n, vocab) in [(1, 1), (3, 7), (5, 4096), (4, 4100), (2, 9001)] {
        for kind in [Kind::Float, Kind::BFloat16] {
            for is_weighted in [false, true] {
                let logits = rng.normal(&[n, vocab], 6.0).unwrap().to_kind(kind);
                // A row whose probabilities are far apart, and one with logits of minus infinity.
                let _ = logits.get(0).get(vocab / 2).fill_(300.0);
                if n > 1 && vocab > 1 {
                    let _ = logits.get(1).get(0).fill_(f64::NEG_INFINITY);
                }
                // Not the one of minus infinity.
                let targets: Vec<i64> = (0..n).map(|_| (rng.below(vocab as u64) as i64).max(1) % vocab).collect();
                let targets = Tensor::from_slice(&targets);
                let weights = rng.uniform(&[n], 2.0).unwrap();
                let wide = logits.to_kind(Kind::Double).set_requires_grad(true);
                let expected =
                    wide.log_softmax(-1, Kind::Double).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
                let weighted = match is_weighted {
                    true => -(&expected * weights.to_kind(Kind::Double)).sum(Kind::Double),
                    false => -expected.sum(Kind::Double),
                };
                let gradient = Tensor::run_backward(&[weighted], &[&wide], false, false).remove(0);
                let mut found = logits.copy();
                let logps = kernels.cross_entropy(&mut found, &targets, is_weighted.then_some(&weights)).unwrap();
                let what = format!("[{n}, {vocab}] {kind:?}, weighted {is_weighted}");
                let off = (logps.to_kind(Kind::Double) - &expected).abs() / (expected.abs() + 1.0);
                assert!(off.max().double_value(&[]) < 2e-6, "{what}: logp off by {off}");
                // One rounding to the type of the logits, beside the errors of f32.
                let rounding = if kind == Kind::Float { 0.0 } else { 2f64.powi(-8) };
                let bound = gradient.abs() * (rounding + 1e-5) + 1e-6;
                let excess = ((found.to_kind(Kind::Double) - &gradient).abs() - bound).max().double_value(&[]);
                assert!(excess <= 0.0, "{what}: {excess} over");
            }
        }
    }
    // What the guard of a step looks for stays to be seen.
    let targets = Tensor::from_slice(&[9i64, 0, -1]);
    let mut logits = Tensor::zeros([3, 4], (Kind::Float, Device::Cpu));
    let _ = logits.get(1).get(2).fill_(f64::NAN);
    let logps = kernels.cross_entropy(&mut logits, &targets, None).unwrap();
    assert!(as_slice::<f32>(&logps).unwrap().iter().all(|logp| logp.is_nan()), "{logps}");
    assert!(logits.get(1).isnan().any().int64_value(&[]) == 1);
}

#[test]
fn a_step_on_8_bit_moments_gives_the_bytes_of_the_cpu() {
    const N: i64 = 4096 + 300;
    let kernels = kernels();
    let mut rng = Rng::named(rand_seed(), "cuda.adam");
    let values = rng.normal(&[N], 0.1).unwrap();
    let parameters = [Parameter { name: "a.weight".into(), tensor: values.copy(), block: None }];
    let mut optimizer = AdamW::new(&parameters, Optim::Adamw8bit, 0.01).unwrap();
    let zeros = |n: i64, kind| Tensor::zeros([n], (kind, Device::Cpu));
    let n_blocks = (N + 255) / 256;
    let [m, v] = [zeros(N, Kind::Uint8), zeros(N, Kind::Uint8)];
    let [m_absmax, v_absmax] = [zeros(n_blocks, Kind::Float), zeros(n_blocks, Kind::Float)];
    let codes = Kernels::adam_codes(Device::Cpu).unwrap();
    let learning_rate = 3e-3;
    for step in 1..=6 {
        let gradient = rng.normal(&[N], 0.02).unwrap();
        // A block without a gradient.
        let _ = gradient.narrow(0, 512, 256).zero_();
        let mut gradients = Gradients::new(&parameters).unwrap();
        gradients.tensors[0] = Some(gradient.copy());
        optimizer.step(&parameters, &gradients, learning_rate).unwrap();
        let corrections = [0.9f64, 0.999].map(|beta| 1.0 - beta.powf(f64::from(step)));
        let update = Adam {
            values: &values,
            gradient: &gradient,
            m: &m,
            v: &v,
            m_absmax: &m_absmax,
            v_absmax: &v_absmax,
            codes: &codes,
            betas: [0.9, 0.999],
            eps: 1e-8,
            keep: (1.0 - learning_rate * 0.01) as f32,
            step_size: (learning_rate / corrections[0]) as f32,
            correction2: corrections[1].sqrt() as f32,
        };
        kernels.adamw_8bit(&update).unwrap();
        assert_eq!(values, parameters[0].tensor, "step {step}");
        let state = optimizer.named_state(&parameters);
        for ((name, expected), found) in state.iter().zip([&m, &v, &m_absmax, &v_absmax]) {
            assert_eq!(found, *expected, "step {step}: {name}");
        }
    }
    assert!(values.isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn a_dropout_mask_has_the_draws_of_the_cpu() {
    let kernels = kernels();
    let seed = rand_seed();
    for shape in [[1, 1], [3, 7], [130, 33], [64, 256]] {
        for kind in [Kind::Float, Kind::BFloat16] {
            for p in [0.05, 0.5] {
                let mut rng = Rng::named(seed, "cuda.dropout");
                let expected = rng.clone().dropout_mask(&shape, p, kind).unwrap();
                assert_eq!(kernels.dropout_mask(&shape, kind, rng.dropout_draws(p)).unwrap(), expected);
            }
        }
    }
}

#[test]
fn what_does_not_fit_a_kernel_is_refused() {
    let kernels = kernels();
    let weight = Nf4::quantize(&Rng::named(1, "w").normal(&[4, 64], 1.0).unwrap()).unwrap();
    let weight = weight.with_kernels(Arc::clone(&kernels)).unwrap();
    let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
    assert!(weight.dequantize_into(&mut zeros(&[4, 63], Kind::Float)).is_err());
    assert!(weight.dequantize_into(&mut zeros(&[4, 64], Kind::Half)).is_err());
    assert!(weight.dequantize_into(&mut zeros(&[64, 4], Kind::Float).transpose(0, 1)).is_err());
    assert!(weight.multiply(&zeros(&[1, 32], Kind::Float)).is_err());
    let targets = zeros(&[3], Kind::Int64);
    assert!(kernels.cross_entropy(&mut zeros(&[2, 5], Kind::Float), &targets, None).is_err());
    assert!(kernels.cross_entropy(&mut zeros(&[3, 5], Kind::Float), &zeros(&[3], Kind::Int), None).is_err());
}

/// A small quantized model with an adapter, its weights worked on by the kernels where they are given.
fn model(kernels: Option<&Arc<Kernels>>) -> Qwen2 {
    let config: axismapper::model::Config = serde_json::from_str(
        r#"{"vocab_size": 61, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "max_position_embeddings": 64}"#,
    )
    .unwrap();
    let mut model = init(config, 5, Placement { device: Device::Cpu, dtype: Kind::Float }).unwrap();
    quantize(&mut model).unwrap();
    if let Some(kernels) = kernels {
        let on_kernels = |projection: &mut Projection| {
            let hole = Weight::Dense(Tensor::new());
            if let Weight::Nf4(weight) = std::mem::replace(&mut projection.weight, hole) {
                projection.weight = Weight::Nf4(weight.with_kernels(Arc::clone(kernels)).unwrap());
            }
        };
        model.blocks.iter_mut().flat_map(|block| &mut block.projections).for_each(on_kernels);
    }
    let settings = serde_json::from_str(
        r#"{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "use_dora": true, "target_modules": "all-linear"}"#,
    )
    .unwrap();
    new_adapter(&mut model, &settings, 3).unwrap();
    model
}

#[test]
fn a_model_on_the_kernels_trains_and_decodes_as_on_the_cpu() {
    let kernels = kernels();
    let record = |ids: &[u32]| axismapper::text::Tokens::new(ids.to_vec(), vec![true; ids.len()]);
    let batch = pack_records(&[record(&[3, 1, 4, 1, 5, 9, 2, 6]), record(&[53, 58, 9])], Sharing::All);
    let run = |model: &mut Qwen2| {
        let parameters = model.parameters();
        let mut gradients = Gradients::new(&parameters).unwrap();
        let logps = backward(model, &parameters, &mut gradients, &batch, &Weigh::Uniform(0.1), 7).unwrap();
        let prompt = Packed::new(&[3, 1, 4], &[Segment::plain(3)], 61, Device::Cpu).unwrap();
        let mut cache = axismapper::model::KvCache::new(&model.config, model.placement, 1, 20).unwrap();
        let mut logits = model.prefill(&prompt, &[3], &mut cache).unwrap();
        let mut answer = Vec::new();
        for _ in 0..12 {
            let id = logits.argmax(-1, false);
            answer.push(id.int64_value(&[0]));
            logits = model.decode(&id, &mut cache).unwrap();
        }
        (logps, gradients.tensors, answer, logits)
    };
    let (expected, found) = (run(&mut model(None)), run(&mut model(Some(&kernels))));
    // Expanded weights are the same bytes, and so is all that comes of them.
    assert_eq!(found.0, expected.0);
    assert_eq!(found.1, expected.1);
    // Decoding sums in another order.
    assert_eq!(found.2, expected.2);
    assert!((found.3 - expected.3).abs().max().double_value(&[]) < 1e-4);
}
