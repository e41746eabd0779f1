//! A training run that is stopped and resumed ends with the bytes of one that never stopped.

use std::path::Path;

use axismapper::adapter::{Settings, TargetModules};
use axismapper::config;
use axismapper::model::{Config, Qwen2, init, new_adapter, quantize};
use axismapper::stop::Stop;
use axismapper::tensor::{Placement, Rng};
use axismapper::text::Tokens;
use axismapper::track::Console;
use axismapper::train::checkpoint::{Trained, newest};
use axismapper::train::{Error, Plan, Task, run};
use tch::{Device, Kind};

fn settings() -> Settings {
    Settings {
        r: 4,
        lora_alpha: 8.0,
        lora_dropout: 0.1,
        use_dora: true,
        use_rslora: false,
        target_modules: TargetModules::Pattern("all-linear".into()),
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
    }
}

fn model() -> Qwen2 {
    let config = Config {
        vocab_size: 50,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        max_position_embeddings: 32,
    };
    let mut model = init(config, 3, Placement { device: Device::Cpu, dtype: Kind::Float }).unwrap();
    quantize(&mut model).unwrap();
    new_adapter(&mut model, &settings(), 3).unwrap();
    model
}

fn task() -> Task {
    let mut rng = Rng::named(5, "resume");
    let train = (0..23)
        .map(|idx| {
            let len = 6 + idx % 5;
            Tokens::new((0..len).map(|_| rng.below(50) as u32).collect(), (0..len).map(|at| at > 2).collect())
        })
        .collect();
    Task::Sft { train, validation: Vec::new() }
}

/// Trains for `max_steps` of 12 steps in one process's lifetime; checkpoints every 2.
fn train(out: &Path, stop: &Stop, resume: bool, learning_rate: f64) -> Result<Vec<(String, Vec<f32>)>, Error> {
    let text = format!(
        "model:\n  name: x\n  load_in_4bit: true\nlora:\n  r: 4\ntraining:\n  num_train_epochs: 4\n  per_device_train_batch_size: 4\n  gradient_accumulation_steps: 2\n  learning_rate: {learning_rate}\n  warmup_ratio: 0.2\n  save_steps: 2\n  save_total_limit: 2\n  logging_steps: 1\ndata:\n  train: x\n"
    );
    let stage = config::parse("resume", "resume.yaml", &text, &[]).unwrap().stage;
    let (task, settings) = (task(), settings());
    let mut model = model();
    let plan = Plan {
        name: "resume",
        task: &task,
        training: &stage.training,
        shuffle: true,
        trained: Trained::Adapter { settings: &settings, base_model: "x" },
        out,
        resume,
    };
    run(&mut model, &plan, &Console::new(true), stop)?;
    Ok(model
        .parameters()
        .iter()
        .map(|p| (p.name.clone(), Vec::<f32>::try_from(p.tensor.detach().flatten(0, -1)).unwrap()))
        .collect())
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train(whole.path(), &Stop::default(), false, 1e-2).unwrap();
    assert!(expected.iter().any(|(name, values)| name.ends_with("lora_B.weight") && values.iter().any(|&v| v != 0.0)));

    // A kill: what is left is the checkpoint of step 8 and a log that runs past it.
    train(cut.path(), &Stop::default(), false, 1e-2).unwrap();
    let last = newest(cut.path()).unwrap().unwrap();
    std::fs::remove_dir_all(&last).unwrap();
    let before = newest(cut.path()).unwrap().unwrap();
    assert!(before.ends_with("checkpoint-8"), "{} after {}", before.display(), last.display());
    // Whole tensors would drown the message.
    assert!(train(cut.path(), &Stop::default(), true, 1e-2).unwrap() == expected, "the adapters differ");

    let log = |dir: &Path| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (whole, cut) = (log(whole.path()), log(cut.path()));
    assert_eq!(whole.len(), 12);
    for key in ["step", "loss", "grad_norm", "learning_rate", "epoch"] {
        let column = |rows: &[serde_json::Value]| rows.iter().map(|row| row[key].clone()).collect::<Vec<_>>();
        assert_eq!(column(&whole), column(&cut), "{key}");
    }
}

#[test]
fn a_stop_writes_a_checkpoint_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let stop = Stop::default();
    stop.request();
    let error = train(dir.path(), &stop, false, 1e-2).unwrap_err();
    assert!(matches!(error, Error::Stopped(_)));
    assert!(newest(dir.path()).unwrap().unwrap().ends_with("checkpoint-0"));
    let expected = train(tempfile::tempdir().unwrap().path(), &Stop::default(), false, 1e-2).unwrap();
    assert!(train(dir.path(), &Stop::default(), true, 1e-2).unwrap() == expected, "the adapters differ");
}

#[test]
fn a_checkpoint_of_other_settings_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    train(dir.path(), &Stop::default(), false, 1e-2).unwrap();
    assert!(matches!(train(dir.path(), &Stop::default(), true, 2e-2), Err(Error::OtherRun { .. })));
}
