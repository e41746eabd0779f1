//! Training against PyTorch: losses, gradient norms, learning rates and final tensors of whole runs; full fine-tuning's
//! gradients; schedules.

use std::collections::BTreeMap;

use axismapper::adapter;
use axismapper::config::{self, Scheduler};
use axismapper::model::{self, Quantization, Qwen2};
use axismapper::stop::Stop;
use axismapper::text::Tokens;
use axismapper::track::Console;
use axismapper::train::checkpoint::Trained;
use axismapper::train::{Gradients, Plan, Sharing, Task, Weigh, backward, learning_rate_factor, pack_records, run};
use serde::Deserialize;

use super::golden::{self, PLACEMENT, assert_gradients, assert_near, difference, fixture, records, tensors};

/// Losses and gradient norms are sums in f32 in another order, and small differences of the weights add to them step by
/// step; 8e-7 was seen.
const FIGURE_TOLERANCE: f64 = 3e-6;
/// How far a final value may be off, in units of what another attention kernel moves it in the reference itself. Both are
/// single draws of the same rounding noise, which Adam enlarges where a gradient is nearly zero; 2 was seen.
const ROUNDINGS: f64 = 10.0;

#[derive(Deserialize)]
struct Expected {
    schedule: String,
    learning_rate: f64,
    n_warmup_steps: u64,
    weight_decay: f64,
    max_grad_norm: f64,
    rounding: f64,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    micro_batches: Vec<Vec<usize>>,
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
}

/// A run of the trainer logs and ends as the loop in PyTorch. `prefix` comes before a parameter's name in the file of final
/// tensors.
fn check(mut model: Qwen2, trained: Trained<'_>, name: &str, final_tensors: &str, prefix: &str) {
    let expected: Expected = golden::figures(&format!("train/{name}.json"));
    let Expected { schedule, learning_rate, n_warmup_steps, weight_decay, max_grad_norm, .. } = &expected;
    let stage = config::parse(
        name,
        name,
        &format!(
            "{{model: {{name: tiny}}, data: {{train: none}}, training: {{num_train_epochs: 1, lr_scheduler_type: {schedule}, \
             learning_rate: {learning_rate}, warmup_steps: {n_warmup_steps}, weight_decay: {weight_decay}, \
             max_grad_norm: {max_grad_norm}, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, \
             logging_steps: 1, save_strategy: \"no\"}}}}"
        ),
        &[],
    );
    let records = golden::targets(&records("tied"));
    let order = expected.steps.iter().flat_map(|step| step.micro_batches.iter().flatten());
    let train: Vec<Tokens> = order.map(|&idx| records[idx].clone()).collect();
    let out = tempfile::tempdir().unwrap();
    let (task, training) = (Task::Sft { train, validation: Vec::new() }, stage.unwrap().stage.training);
    let plan = Plan { shuffle: false, ..Plan::new(name, &task, &training, trained, out.path()) };
    run(&mut model, &plan, &Console::new(true), &Stop::default()).unwrap();

    let log = std::fs::read_to_string(out.path().join("metrics.jsonl")).unwrap();
    let lines: Vec<BTreeMap<String, f64>> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), expected.steps.len(), "{name}");
    for (line, step) in lines.iter().zip(&expected.steps) {
        let near = |figure: &str, expected| {
            assert_near(&format!("{name}, step {}: {figure}", line["step"]), line[figure], expected, FIGURE_TOLERANCE);
        };
        near("learning_rate", step.learning_rate);
        near("loss", step.loss);
        near("grad_norm", step.grad_norm);
    }
    let file = tensors(final_tensors);
    let parameters = model.parameters();
    assert_eq!(parameters.len(), file.names().count(), "{name}");
    for parameter in &parameters {
        let key = format!("{prefix}{}", parameter.name);
        let difference = difference(&parameter.tensor, &file.tensor(&key).unwrap());
        assert!(difference <= ROUNDINGS * expected.rounding, "{name}: `{key}` ends {difference:e} off");
    }
}

fn check_adapter(name: &str) {
    let settings = adapter::load(&fixture(&format!("adapters/{name}"))).unwrap().settings;
    let trained = Trained::Adapter { settings: &settings, base_model: "tiny/tied" };
    let file = format!("train/{name}/adapter_model.safetensors");
    check(golden::adapted(&format!("adapters/{name}")), trained, name, &file, adapter::PREFIX);
}

fn trainable() -> Qwen2 {
    let mut model = model::load(&fixture("tiny/tied"), PLACEMENT, Quantization::None).unwrap();
    model.train_all().unwrap();
    model
}

#[test]
fn lora_trains_as_in_pytorch() {
    check_adapter("lora");
}

#[test]
fn dora_trains_as_in_pytorch() {
    check_adapter("dora");
}

#[test]
fn a_whole_model_trains_as_in_pytorch() {
    check(trainable(), Trained::All, "full", "train/full/final.safetensors", "");
}

#[test]
fn every_tensor_of_a_tied_model_has_the_gradient_of_pytorch() {
    let mut model = trainable();
    let batch = pack_records(&golden::targets(&records("tied")[..4]), Sharing::All);
    let parameters = model.parameters();
    let mut gradients = Gradients::new(&parameters).unwrap();
    let weigh = Weigh::Uniform(1.0 / batch.targets.len() as f64);
    backward(&mut model, &parameters, &mut gradients, &batch, &weigh, 0).unwrap();
    let file = tensors("train/full/gradients.safetensors");
    // f32 sums in another order, back through three blocks; 8e-7 was seen.
    assert_gradients("full", &parameters, &gradients, str::to_owned, &file, 5e-6);
}

#[test]
fn learning_rates_are_those_of_transformers() {
    let file: BTreeMap<String, Vec<f64>> = golden::figures("train/schedules.json");
    let schedulers = [
        ("cosine", Scheduler::Cosine),
        ("linear", Scheduler::Linear),
        ("constant", Scheduler::Constant),
        ("inverse_sqrt", Scheduler::InverseSqrt),
    ];
    for (name, scheduler) in schedulers {
        for n_warmup in [0, 3] {
            let expected = &file[&format!("{name}.{n_warmup}")];
            for (step, rate) in expected.iter().enumerate() {
                let found = learning_rate_factor(scheduler, step as u64, n_warmup, expected.len() as u64);
                // The same formula in f64.
                assert!((found - rate).abs() < 1e-12, "{name}, warm-up {n_warmup}, step {step}: {found}");
            }
        }
    }
}
