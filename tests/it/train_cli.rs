//! `axismapper train` as a process: killed, terminated, on a full disk, run twice, asked what it would do.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use axismapper::model::{self, Config};
use axismapper::tensor::{Placement, Rng};
use axismapper::text::Tokenizer;
use tch::{Device, Kind};

use super::golden::fixture;

/// A folder with a small model, records and a stage file of 24 quick steps, each with a checkpoint.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = Tokenizer::load(&fixture("tokenizer")).unwrap();
        let config = Config {
            vocab_size: tokenizer.vocab_size() as i64,
            hidden_size: 32,
            intermediate_size: 272,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            max_position_embeddings: 512,
        };
        let base = dir.path().join("base");
        let blank = model::init(config, 3, Placement { device: Device::Cpu, dtype: Kind::Float }).unwrap();
        model::save(&blank, &base, tokenizer.eos_id(), tokenizer.pad_id()).unwrap();
        tokenizer.save(&base).unwrap();

        let mut rng = Rng::named(1, "train_cli");
        let mut record = |_| {
            let code = format!("S82.{}01A", rng.below(9));
            format!(
                "{{\"messages\": [{{\"role\": \"user\", \"content\": \"fell on leg {}\"}}, {{\"role\": \"assistant\", \"content\": \"{code}\"}}]}}\n",
                rng.below(1000)
            )
        };
        let train: String = (0..20).map(&mut record).collect();
        let validation: String = (0..5).map(&mut record).collect();
        let pair = "{\"prompt\": [{\"role\": \"user\", \"content\": \"fell\"}], \"chosen\": [{\"role\": \"assistant\", \"content\": \"S82.201A\"}], \"rejected\": [{\"role\": \"assistant\", \"content\": \"a break: S82.2\"}]}\n";
        let nothing = "{\"messages\": [{\"role\": \"user\", \"content\": \"no answer\"}]}\n";
        let place = Self(dir);
        place.write("train.jsonl", &(train + nothing));
        place.write("val.jsonl", &validation);
        place.write("pairs.jsonl", &pair.repeat(3));
        let head = "model:\n  name: base\n  load_in_4bit: true\n  dtype: float32\n  max_seq_length: 200\nlora:\n  r: 4\n  lora_dropout: 0.1\n  target_modules: all-linear\n  use_dora: true\n";
        place.write(
            "sft.yaml",
            &format!(
                "{head}training:\n  max_steps: 24\n  per_device_train_batch_size: 2\n  gradient_accumulation_steps: 2\n  learning_rate: 1e-3\n  optim: paged_adamw_8bit\n  eval_strategy: steps\n  eval_steps: 7\n  predict_with_generate: true\n  max_eval_samples: 1\n  save_steps: 1\n  save_total_limit: 2\n  logging_steps: 3\n  load_best_model_at_end: true\ndata:\n  train: train.jsonl\n  validation: val.jsonl\n"
            ),
        );
        place.write(
            "orpo.yaml",
            &format!(
                "{head}orpo:\n  beta: 0.1\ntraining:\n  max_steps: 2\n  per_device_train_batch_size: 2\ndata:\n  train: pairs.jsonl\n"
            ),
        );
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
        command.current_dir(self.0.path()).args(["train", "--config", "sft.yaml"]).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The adapter's bytes.
    fn adapter(&self, out: &str) -> Vec<u8> {
        std::fs::read(self.path(out).join("sft/final/adapter_model.safetensors")).unwrap()
    }

    fn newest_step(&self, out: &str) -> u64 {
        steps(&self.path(out).join("sft")).into_iter().max().unwrap_or(0)
    }

    /// Waits until a checkpoint beyond `step` is there, or the process has ended.
    pub fn wait_beyond(&self, child: &mut Child, out: &str, step: u64) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.newest_step(out) <= step && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "no checkpoint beyond step {step}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The steps of a folder's checkpoints.
fn steps(dir: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    names.filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[cfg(unix)]
#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let place = Place::new();
    let output = place.run(&["--out", "whole"]);
    assert_success(&output);
    let told = text(&output.stderr);
    assert!(told.lines().any(|line| line.contains(": step ") && line.contains(": eval_loss ")), "{told}");
    let expected = place.adapter("whole");

    let mut rng = Rng::named(2, "kills");
    let mut n_cut_short = 0;
    for life in 0..4 {
        let step = place.newest_step("cut");
        let mut child = place.command(&["--out", "cut", "--resume"]).spawn().unwrap();
        place.wait_beyond(&mut child, "cut", step + rng.below(4));
        std::thread::sleep(Duration::from_micros(rng.below(20_000)));
        if life == 1 {
            // SIGTERM asks for an orderly end.
            let pid = child.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
            let output = child.wait_with_output().unwrap();
            let stderr = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(stderr.contains("--resume") && stderr.contains("checkpoint-"), "{stderr}");
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        n_cut_short += u32::from(!place.path("cut/sft/final").exists());
    }
    assert!(n_cut_short >= 3, "{n_cut_short} of 4 lives were cut short");

    // A disk that takes no file of the optimizer's size: the last good checkpoint stays.
    let step = place.newest_step("cut");
    let limited = "trap '' XFSZ; ulimit -f 8; exec \"$0\" train --config sft.yaml --out cut --resume";
    let mut shell = Command::new("sh");
    shell.current_dir(place.0.path()).args(["-c", limited, env!("CARGO_BIN_EXE_axismapper")]);
    let output = shell.output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: cannot write `") && stderr.contains("too large"), "{stderr}");
    assert_eq!(place.newest_step("cut"), step);
    let left: Vec<_> = std::fs::read_dir(place.path("cut/sft")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");

    assert_success(&place.run(&["--out", "cut", "--resume"]));
    assert!(place.adapter("cut") == expected, "the adapters differ");
    let log = |out: &str| {
        let text = std::fs::read_to_string(place.path(out).join("sft/metrics.jsonl")).unwrap();
        let row = |line: &str| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            (row["step"].as_u64().unwrap(), row["eval_loss"].as_f64(), row["grad_norm"].as_f64())
        };
        text.lines().map(row).collect::<Vec<_>>()
    };
    assert_eq!(log("whole"), log("cut"));
    assert!(log("whole").iter().any(|row| row.1.is_some()));
}

#[test]
fn a_finished_stage_is_kept_on_resume_and_moved_aside_by_a_new_run() {
    let place = Place::new();
    let few = ["--set", "training.max_steps=3", "--config", "orpo.yaml"];
    let output = place.run(&few);
    assert_success(&output);
    assert_eq!(text(&output.stdout).lines().count(), 2, "{}", text(&output.stdout));
    let first = place.adapter("out");
    let log = std::fs::read_to_string(place.path("out/sft/metrics.jsonl")).unwrap();
    assert!(log.contains("\"eval_exact_match\":") && log.contains("\"eval_f1\":"), "{log}");
    assert!(log.contains("\"skipped_records\":1"), "{log}");

    let log_before = std::fs::metadata(place.path("out/sft/metrics.jsonl")).unwrap().modified().unwrap();
    let output = place.run(&[&few[..], &["--resume", "--json"]].concat());
    assert_success(&output);
    assert!(text(&output.stderr).contains("finished before"), "{}", text(&output.stderr));
    let report: serde_json::Value =
        serde_json::from_slice(output.stdout.split(|&b| b == b'\n').next().unwrap()).unwrap();
    assert_eq!((report["stage"].as_str(), report["steps"].as_u64()), (Some("sft"), Some(3)));
    assert_eq!(std::fs::metadata(place.path("out/sft/metrics.jsonl")).unwrap().modified().unwrap(), log_before);

    let output = place.run(&["--set", "training.max_steps=2"]);
    assert_success(&output);
    assert!(text(&output.stderr).contains("out/sft.1"), "{}", text(&output.stderr));
    let aside = std::fs::read(place.path("out/sft.1/final/adapter_model.safetensors")).unwrap();
    assert!(aside == first && place.adapter("out") != first);

    // What a stage starts from is not moved away under it.
    let output = place.run(&["--set", "lora.init_adapter=out/sft/final"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--out") && place.path("out/sft/final").is_dir());
}

/// Without dropout sharing changes no figure but for rounding; with it, what is shared has one mask.
#[test]
fn packing_decides_whether_records_share_what_they_begin_with() {
    let place = Place::new();
    let norms = |packing: bool, dropout: f64| {
        let out = format!("out-{packing}-{dropout}");
        let (packing, dropout) = (format!("data.packing={packing}"), format!("lora.lora_dropout={dropout}"));
        let few = [
            "--set",
            "training.max_steps=2",
            "--set",
            "training.logging_steps=1",
            "--set",
            "training.eval_strategy=no",
        ];
        let more =
            ["--set", "training.load_best_model_at_end=false", "--set", &packing, "--set", &dropout, "--out", &out];
        assert_success(&place.run(&[&few[..], &more].concat()));
        let log = std::fs::read_to_string(place.path(&out).join("sft/metrics.jsonl")).unwrap();
        let rows = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        rows.filter_map(|row| row["grad_norm"].as_f64()).collect::<Vec<_>>()
    };
    let difference = |dropout: f64| {
        let (shared, apart) = (norms(true, dropout), norms(false, dropout));
        assert_eq!((shared.len(), apart.len()), (2, 2));
        shared.iter().zip(&apart).map(|(a, b)| ((a - b) / b).abs()).fold(0.0, f64::max)
    };
    let (without, with) = (difference(0.0), difference(0.3));
    assert!(without < 1e-4 && with > 1e-3, "{without} {with}");
}

#[test]
fn a_dry_run_shows_records_steps_and_an_example_with_its_mask() {
    let place = Place::new();
    let output = place.run(&["--config", "orpo.yaml", "--dry-run"]);
    assert_success(&output);
    let shown = text(&output.stdout);
    for part in [
        "sft: SFT",
        "train: 20 records of train.jsonl, 0 cut, 1 dropped",
        "24 steps of 4 records, 5 an epoch",
        "<|im_start|>assistant",
        "<|im_end|>]]",
        "orpo: ORPO",
        "chosen: [[S82.201A<|im_end|>]]",
        "rejected: [[a break: S82.2<|im_end|>]]",
    ] {
        assert!(shown.contains(part), "`{part}` is not in:\n{shown}");
    }
    assert!(!place.path("out").exists());

    let output = place.run(&["--dry-run", "--json"]);
    let preview: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((preview["steps"].as_u64(), preview["train"]["n_dropped"].as_u64()), (Some(24), Some(1)));
    let roles: Vec<&str> = preview["example"].as_array().unwrap().iter().map(|s| s["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["prompt", "target", "prompt"]);
}

#[test]
fn the_default_recipes_are_there_without_their_files() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    let sets = ["--set", "model.name=base", "--set", "data.train=train.jsonl", "--set", "data.validation=val.jsonl"];
    let output = command.current_dir(place.0.path()).args(["train", "--dry-run"]).args(sets).output().unwrap();
    // The second recipe, ORPO, is given chat records here, which are no pairs.
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(stdout.contains("dora: SFT") && stdout.contains("of 16 records"), "{stdout}{stderr}");
    assert!(stderr.contains("train.jsonl") && stderr.contains("missing field `prompt`"), "{stderr}");
}
