//! A training run that is stopped and resumed ends with the bytes of one that never stopped; what a run does when it
//! evaluates, diverges or stops early.

use std::path::Path;

use axismapper::adapter::{Settings, TargetModules};
use axismapper::config;
use axismapper::diag::Diagnostic;
use axismapper::model::{Config, Qwen2, init, new_adapter, quantize};
use axismapper::stop::Stop;
use axismapper::tensor::{Placement, Rng};
use axismapper::text::Tokens;
use axismapper::track::Console;
use axismapper::train::checkpoint::{State, Trained, newest};
use axismapper::train::{Error, Outcome, Plan, Source, Task, run};
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

/// Wide enough that some adapter tensors have moments in 8 bits.
fn model() -> Qwen2 {
    let config = Config {
        vocab_size: 50,
        hidden_size: 32,
        intermediate_size: 1040,
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

fn records(name: &str, n: usize) -> Vec<Tokens> {
    let mut rng = Rng::named(5, name);
    (0..n)
        .map(|idx| {
            let len = 6 + idx % 5;
            Tokens::new((0..len).map(|_| rng.below(50) as u32).collect(), (0..len).map(|at| at > 2).collect())
        })
        .collect()
}

type Adapter = Vec<(String, Vec<f32>)>;

/// Trains for 12 steps in one process's lifetime; a checkpoint every 2. `more` are further lines of the section `training`.
fn train(out: &Path, stop: &Stop, resume: bool, more: &str) -> Result<(Adapter, Outcome), Error> {
    train_and_watch(out, stop, resume, more, |_, _| ())
}

fn train_and_watch(
    out: &Path,
    stop: &Stop,
    resume: bool,
    more: &str,
    observe: impl Fn(u64, &serde_json::Map<String, serde_json::Value>),
) -> Result<(Adapter, Outcome), Error> {
    let text = format!(
        "model:\n  name: x\n  load_in_4bit: true\nlora:\n  r: 4\ntraining:\n  num_train_epochs: 4\n  per_device_train_batch_size: 4\n  gradient_accumulation_steps: 2\n  warmup_ratio: 0.2\n  save_steps: 2\n{more}\ndata:\n  train: x\n  validation: val\n"
    );
    let stage = config::parse("resume", "resume.yaml", &text, &[]).unwrap().stage;
    let (task, settings) = (Task::Sft { train: records("train", 23), validation: records("val", 9) }, settings());
    let lines: Vec<usize> = (0..23).map(|idx| idx + 101).collect();
    let mut model = model();
    let trained = Trained::Adapter { settings: &settings, base_model: "x" };
    let plan = Plan {
        resume,
        source: Source { file: Some(Path::new("train.jsonl")), lines: &lines, n_skipped: 3 },
        observe: Some(&observe),
        ..Plan::new("resume", &task, &stage.training, trained, out)
    };
    let outcome = run(&mut model, &plan, &Console::new(true), stop)?;
    let values = |tensor: &tch::Tensor| Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).unwrap();
    Ok((model.parameters().iter().map(|p| (p.name.clone(), values(&p.tensor))).collect(), outcome))
}

fn log(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn checkpoints(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "metrics.jsonl").collect();
    names.sort();
    names
}

const RATE: &str = "  learning_rate: 1e-2\n  save_total_limit: 2\n  logging_steps: 1\n";

/// `then` are lines for the resumed run only.
fn check_resumed(optim: &str, then: &str) {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let more = format!("{RATE}  optim: {optim}\n");
    let expected = train(whole.path(), &Stop::default(), false, &more).unwrap().0;
    assert!(expected.iter().any(|(name, values)| name.ends_with("lora_B.weight") && values.iter().any(|&v| v != 0.0)));

    // A kill: what is left is the checkpoint of step 8 and a log that runs past it.
    train(cut.path(), &Stop::default(), false, &more).unwrap();
    let last = newest(cut.path()).unwrap().unwrap();
    std::fs::remove_dir_all(&last).unwrap();
    let before = newest(cut.path()).unwrap().unwrap();
    assert!(before.ends_with("checkpoint-8"), "{} after {}", before.display(), last.display());
    // Whole tensors would drown the message.
    assert!(train(cut.path(), &Stop::default(), true, &(more + then)).unwrap().0 == expected, "the adapters differ");

    let (whole, cut) = (log(whole.path()), log(cut.path()));
    assert_eq!(whole.len(), 12);
    for key in ["step", "loss", "grad_norm", "learning_rate", "epoch", "skipped_records"] {
        let column = |rows: &[serde_json::Value]| rows.iter().map(|row| row[key].clone()).collect::<Vec<_>>();
        assert_eq!(column(&whole), column(&cut), "{optim}: {key}");
    }
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    check_resumed("adamw_torch", "");
}

#[test]
fn a_resumed_run_with_eight_bit_moments_ends_with_the_same_bytes() {
    check_resumed("paged_adamw_8bit", "");
}

#[test]
fn a_run_resumed_with_another_use_of_memory_ends_with_the_same_bytes() {
    check_resumed("adamw_torch", "  gradient_checkpointing: false\n  activation_offloading: true\n");
}

#[test]
fn a_stop_writes_a_checkpoint_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let stop = Stop::default();
    stop.request();
    let error = train(dir.path(), &stop, false, RATE).unwrap_err();
    assert!(matches!(error, Error::Stopped(_)) && error.hint().unwrap().contains("--resume"));
    assert!(newest(dir.path()).unwrap().unwrap().ends_with("checkpoint-0"));
    let expected = train(tempfile::tempdir().unwrap().path(), &Stop::default(), false, RATE).unwrap().0;
    assert!(train(dir.path(), &Stop::default(), true, RATE).unwrap().0 == expected, "the adapters differ");
}

#[test]
fn a_stop_between_lines_and_before_an_evaluation_changes_neither() {
    // Step 6 is evaluated, and lies inside a line of the log that step 8 ends.
    let more = "  learning_rate: 1e-2\n  logging_steps: 4\n  eval_strategy: steps\n  eval_steps: 3\n";
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train(whole.path(), &Stop::default(), false, more).unwrap();
    for stopped_by in ["eval_loss", "loss"] {
        let stop = Stop::default();
        let stop_at = |step: u64, row: &serde_json::Map<String, serde_json::Value>| {
            // The line of step 3 or 4 asks for a stop: the first before a step, the second before the evaluation of 6.
            if row.contains_key(stopped_by) && step < 6 {
                stop.request();
            }
        };
        let error = train_and_watch(cut.path(), &stop, stopped_by == "loss", more, stop_at).unwrap_err();
        assert!(matches!(error, Error::Stopped(_)), "{error}");
    }
    let found = train(cut.path(), &Stop::default(), true, more).unwrap();
    assert!(found.0 == expected.0, "the adapters differ");
    assert_eq!((found.1.n_tokens, found.1.eval_loss), (expected.1.n_tokens, expected.1.eval_loss));
    let (whole, cut) = (log(whole.path()), log(cut.path()));
    let steps = |rows: &[serde_json::Value]| rows.iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(steps(&whole), [3, 4, 6, 8, 9, 12, 12]);
    assert_eq!(steps(&whole), steps(&cut));
    for (whole, cut) in whole.iter().zip(&cut) {
        for key in ["loss", "eval_loss"].into_iter().filter(|key| !whole[*key].is_null()) {
            let (whole, cut) = (whole[key].as_f64().unwrap(), cut[key].as_f64().unwrap());
            // A sum that went through a JSON file may lose its last bit.
            assert!((whole - cut).abs() < 1e-12 * whole.abs(), "{key}: {whole} {cut}");
        }
    }
}

#[test]
fn a_checkpoint_of_other_settings_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    train(dir.path(), &Stop::default(), false, RATE).unwrap();
    let other = RATE.replace("1e-2", "2e-2");
    assert!(matches!(train(dir.path(), &Stop::default(), true, &other), Err(Error::OtherRun { .. })));
    // How often something is written down is no such setting.
    let same = RATE.replace("logging_steps: 1", "logging_steps: 3");
    assert!(train(dir.path(), &Stop::default(), true, &same).is_ok());
}

#[test]
fn a_run_that_diverges_names_step_records_and_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    // The first learning rate of a warm-up is 0; the second one is not.
    let more = "  learning_rate: 1e38\n  max_grad_norm: 0\n";
    let error = train(dir.path(), &Stop::default(), false, more).unwrap_err();
    let Error::Diverged { step, records, checkpoint, .. } = &error else { panic!("{error}") };
    assert!((3..5).contains(step), "{error}");
    assert!(records.as_ref().unwrap().starts_with("`train.jsonl` lines 1"), "{error}");
    let checkpoint = checkpoint.as_ref().unwrap();
    assert!(checkpoint.ends_with("checkpoint-2") && checkpoint.is_dir());
    let hint = error.hint().unwrap();
    assert!(hint.contains("checkpoint-2") && hint.contains("training.learning_rate"), "{hint}");
}

#[test]
fn a_run_without_gain_stops_early_and_ends_with_the_best_weights() {
    let dir = tempfile::tempdir().unwrap();
    // Random tokens cannot be learnt: the validation loss soon rises.
    let more = "  learning_rate: 0.1\n  save_total_limit: 1\n  eval_strategy: steps\n  eval_steps: 1\n  load_best_model_at_end: true\n  early_stopping_patience: 2\n";
    let (adapter, outcome) = train(dir.path(), &Stop::default(), false, more).unwrap();
    let losses: Vec<(u64, f64)> =
        log(dir.path()).iter().filter_map(|row| Some((row["step"].as_u64()?, row["eval_loss"].as_f64()?))).collect();
    let (best, _) = losses.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(outcome.steps < 12 && outcome.steps == best + 2, "{losses:?}, {} steps", outcome.steps);

    let best_dir = dir.path().join(format!("checkpoint-{best}"));
    let kept = axismapper::tensor::Checkpoint::open_file(&best_dir.join("adapter_model.safetensors")).unwrap();
    for (name, values) in &adapter {
        let stored = kept.tensor(&format!("{}{name}", axismapper::adapter::PREFIX)).unwrap();
        assert!(&Vec::<f32>::try_from(stored.flatten(0, -1)).unwrap() == values, "{name} is not that of step {best}");
    }
    // One checkpoint is asked for; the best and the newest are both needed.
    let found = checkpoints(dir.path());
    assert!(found.len() <= 2 && found.contains(&format!("checkpoint-{best}")), "{found:?}");
    let state: State = serde_json::from_slice(&std::fs::read(best_dir.join("trainer_state.json")).unwrap()).unwrap();
    assert_eq!((state.best.unwrap().1, state.n_without_gain), (best, 0));
}

#[test]
fn a_half_written_checkpoint_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join(".partial-checkpoint-x");
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join("adapter_model.safetensors"), b"torn").unwrap();
    train(dir.path(), &Stop::default(), true, RATE).unwrap();
    assert_eq!(checkpoints(dir.path()), ["checkpoint-10", "checkpoint-8"]);
}
