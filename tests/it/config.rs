//! Stage files: what they resolve to, and what a faulty one is told.

use std::path::Path;

use axismapper::config::{
    Dtype, Error, EvalStrategy, Loaded, NllOn, Optim, Override, Scheduler, StageConfig, TargetModules, Tracker, load,
    parse,
};
use axismapper::diag::Diagnostic;

const LEAST: &str = "model: {name: m}\ndata: {train: t.jsonl}\n";

fn read_with(text: &str, overrides: &[&str]) -> Result<Loaded, Error> {
    let overrides: Vec<Override> = overrides.iter().map(|text| text.parse().unwrap()).collect();
    parse("stage", "stage.yaml", text, &overrides)
}

fn read(text: &str) -> StageConfig {
    let Loaded { stage, warnings } = read_with(text, &[]).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    stage
}

fn faults(text: &str) -> Vec<String> {
    match read_with(text, &[]) {
        Err(Error::Faults { faults, .. }) => faults.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

fn config(file: &str) -> StageConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(file);
    let Loaded { stage, warnings } = load(&path, &[]).unwrap();
    assert!(warnings.is_empty(), "{file}: {warnings:?}");
    stage
}

#[test]
fn what_is_not_set_has_the_default_of_hugging_face() {
    let stage = read(LEAST);
    assert_eq!((stage.name.as_str(), stage.model.name.as_str()), ("stage", "m"));
    assert_eq!(
        (stage.model.max_seq_length, stage.model.load_in_4bit, stage.model.dtype),
        (1024, false, Dtype::Bfloat16)
    );
    assert!(stage.lora.is_none() && stage.orpo.is_none());
    let training = &stage.training;
    assert_eq!((training.num_train_epochs, training.max_steps, training.learning_rate), (3.0, None, 5e-5));
    assert_eq!((training.per_device_train_batch_size, training.gradient_accumulation_steps), (8, 1));
    assert_eq!((training.lr_scheduler_type, training.optim), (Scheduler::Linear, Optim::AdamwTorch));
    assert_eq!((training.weight_decay, training.max_grad_norm, training.seed), (0.0, 1.0, 42));
    assert_eq!(
        (training.eval_strategy, training.save_steps, training.save_total_limit),
        (EvalStrategy::No, Some(500), None)
    );
    assert!(stage.data.shuffle && stage.data.packing && stage.data.validation.is_none());

    let stage = read(&format!("{LEAST}lora: {{}}\norpo: {{}}\n"));
    let lora = stage.lora.unwrap();
    assert_eq!((lora.r, lora.lora_alpha, lora.lora_dropout, lora.random_state), (8, 8.0, 0.0, 42));
    assert_eq!(lora.target_modules, TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]));
    let orpo = stage.orpo.unwrap();
    assert_eq!((orpo.beta, orpo.nll_on, orpo.disable_dropout), (0.1, NllOn::All, true));
    assert_eq!(stage.training.learning_rate, 1e-6);
}

#[test]
fn the_files_in_configs_hold_the_recipes() {
    let dora = config("dora.yaml");
    let lora = dora.lora.as_ref().unwrap();
    assert_eq!(
        (dora.name.as_str(), lora.r, lora.lora_alpha, lora.lora_dropout, lora.use_dora),
        ("dora", 16, 32.0, 0.05, true)
    );
    assert_eq!((dora.training.learning_rate, dora.training.lr_scheduler_type), (1e-4, Scheduler::Cosine));
    assert_eq!(dora.training.optim, Optim::PagedAdamw8bit);
    let qlora = config("qlora.yaml");
    assert_eq!((qlora.training.learning_rate, qlora.lora.as_ref().unwrap().use_dora), (2e-4, false));
    let orpo = config("orpo.yaml");
    let section = orpo.orpo.as_ref().unwrap();
    assert_eq!((section.beta, section.max_prompt_length), (0.1, 256));
    assert_eq!((orpo.training.learning_rate, orpo.training.lr_scheduler_type), (5e-6, Scheduler::InverseSqrt));
    assert_eq!(orpo.training.n_warmup(95), 10);
    let continual = config("continual.yaml");
    assert_eq!((continual.training.num_train_epochs, continual.training.learning_rate), (2.0, 5e-5));
    assert_eq!(continual.lora.unwrap().init_adapter.unwrap(), "out/orpo/final");
    let smoke = config("smoke.yaml");
    assert_eq!((smoke.training.max_steps, smoke.lora.unwrap().r), (Some(20), 8));
}

#[test]
fn the_settings_in_force_are_a_stage_file_of_the_same_stage() {
    let odd = format!(
        "{LEAST}lora: {{target_modules: all-linear, rank_pattern: {{q_proj: 4, 'layers.0.*q_proj': 5}}, alpha_pattern: {{q_proj: 2.5}}}}\n\
         training: {{max_steps: 7, save_strategy: 'no', warmup_steps: 3, learning_rate: 3e-7}}\n\
         orpo: {{nll_on: completion, disable_dropout: false}}\n"
    );
    let files = ["dora.yaml", "qlora.yaml", "orpo.yaml", "continual.yaml", "smoke.yaml"];
    for stage in files.map(config).into_iter().chain([read(LEAST), read(&odd)]) {
        let yaml = stage.to_yaml().unwrap();
        let again = parse(&stage.name, "config.yaml", &yaml, &[]).unwrap();
        assert_eq!(again.stage, stage, "{yaml}");
        assert!(again.warnings.is_empty(), "{:?}\n{yaml}", again.warnings);
    }
    let stage = read(&odd);
    assert_eq!(stage.training.save_steps, None);
    // The first pattern that matches decides, so their order is kept.
    let patterns = [("q_proj".to_owned(), 4), ("layers.0.*q_proj".to_owned(), 5)];
    assert_eq!(stage.lora.unwrap().rank_pattern, patterns.into());
}

#[test]
fn every_fault_is_reported_with_key_expected_and_found() {
    let text = "
model: {load_in_4bit: maybe, max_seq_length: 0}
training:
  learning_rat: 1
  epochs: 3
  r: 4
  learning_rate: -1
  lr_scheduler_type: cosin
  eval_strategy: steps
  load_best_model_at_end: 3
data: [a]
optimizer: {}
";
    let found = faults(text);
    for expected in [
        "`model.name`: expected a model folder or a Hub id, found nothing",
        "`model.load_in_4bit`: expected true or false, found `maybe`",
        "`model.max_seq_length`: expected a whole number above 0, found `0`",
        "`training.learning_rat`: unknown key (the nearest known key is `training.learning_rate`)",
        "`training.epochs`: unknown key (the nearest known key is `training.num_train_epochs`)",
        "`training.r`: unknown key (`r` belongs in the section `lora`)",
        "`training.learning_rate`: expected a number above 0, found `-1`",
        "`training.lr_scheduler_type`: expected constant, linear, cosine or inverse_sqrt, found `cosin`",
        "`training.eval_strategy`: `steps` needs `data.validation`, which is not set",
        "`training.load_best_model_at_end`: expected true or false, found `3`",
        "`data`: expected keys and values, found `[\"a\"]`",
        "`data.train`: expected a JSON Lines file, found nothing",
        "`optimizer`: unknown section, expected model, lora, training, data or orpo",
    ] {
        assert!(found.iter().any(|fault| fault == expected), "missing: {expected}\nfound:\n{}", found.join("\n"));
    }
    assert_eq!(found.len(), 13, "{}", found.join("\n"));
    let error = read_with(text, &[]).unwrap_err();
    assert!(error.to_string().starts_with("`stage.yaml`: `model.name`: "), "{error}");
    assert!(error.is_usage());
}

#[test]
fn four_bits_need_an_adapter_and_a_best_model_an_evaluation() {
    let found =
        faults("model: {name: m, load_in_4bit: true}\ndata: {train: t}\ntraining: {load_best_model_at_end: true}");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("`model.load_in_4bit`"), "{found:?}");
}

#[test]
fn checkpointing_can_be_turned_off_and_offloading_on() {
    let of = |more: &str| {
        let training = read(&format!("{LEAST}training: {{{more}}}\n")).training;
        (training.gradient_checkpointing, training.activation_offloading)
    };
    assert_eq!(of(""), (true, false));
    assert_eq!(of("gradient_checkpointing: false, activation_offloading: true"), (false, true));
    assert_eq!(of("gradient_checkpointing: unsloth"), (true, false));
    let found = faults(&format!("{LEAST}training: {{gradient_checkpointing: 3, activation_offloading: cpu}}\n"));
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn a_file_for_hugging_face_loads_with_warnings() {
    let text = format!(
        "{LEAST}training: {{output_dir: x, bf16: true, report_to: [tensorboard, wandb], gradient_checkpointing: unsloth, \
         evaluation_strategy: no, save_strategy: epoch, max_steps: -1, learning_rate: '2e-4', warmup_steps: 0.1}}\n\
         lora: {{bias: none, task_type: CAUSAL_LM, lora_alpha: 16}}\n"
    );
    let Loaded { stage, warnings } = read_with(&text, &[]).unwrap();
    assert_eq!((stage.training.learning_rate, stage.training.max_steps), (2e-4, None));
    assert_eq!((stage.training.warmup_ratio, stage.training.warmup_steps), (0.1, 0));
    assert_eq!(stage.training.report_to, [Tracker::Wandb]);
    let told = |key: &str| warnings.iter().any(|warning| warning.starts_with(&format!("`{key}`")));
    for key in [
        "training.output_dir",
        "training.bf16",
        "training.report_to",
        "training.save_strategy",
        "lora.bias",
        "lora.task_type",
    ] {
        assert!(told(key), "{key}: {warnings:?}");
    }
    assert_eq!(warnings.len(), 6, "{warnings:?}");
}

#[test]
fn settings_on_the_command_line_win() {
    let text = format!("{LEAST}training: {{learning_rate: 1e-3}}\nlora: {{r: 4}}\n");
    let given = ["training.learning_rate=1e-4", "data.shuffle=false", "lora.r=2", "lora.rank_pattern={q_proj: 3}"];
    let stage = read_with(&text, &given).unwrap().stage;
    assert_eq!((stage.training.learning_rate, stage.data.shuffle), (1e-4, false));
    let lora = stage.lora.unwrap();
    assert_eq!((lora.r, &lora.rank_pattern), (2, &[("q_proj".to_owned(), 3)].into()));
    assert!(read_with(&text, &["lora=null"]).unwrap().stage.lora.is_none());

    let Loaded { stage, warnings } = read_with(LEAST, &["orpo.beta=0.2"]).unwrap();
    assert!(stage.orpo.is_none());
    assert_eq!(warnings, ["`--set orpo.beta`: the stage has no section `orpo`; not applied"]);
    assert!(matches!("lora".parse::<Override>(), Err(Error::BadOverride(_))));
    let error = read_with(LEAST, &["training.lr=1"]).unwrap_err().to_string();
    assert!(error.contains("`training.lr`: unknown key"), "{error}");
}

#[test]
fn what_is_no_stage_file_is_said_to_be_none() {
    for text in ["model: {name: m", "- a\n- b\n", "model: {name: a}\nmodel: {name: b}\n", "just words"] {
        let error = read_with(text, &[]).unwrap_err();
        assert!(matches!(error, Error::NotYaml { .. }), "{text:?}: {error:?}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
    assert!(load(Path::new("no/such.yaml"), &[]).unwrap_err().to_string().contains("no/such.yaml"));
    assert_eq!(faults("").len(), 2);
}
