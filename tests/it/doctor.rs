//! `axismapper doctor` as a process: checks, estimates, the measured steps, and what `train` makes of them.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::train_cli::Place;
use crate::{hub_server, wandb_server};

/// The command with nothing of Hub and W&B in its environment, and no network.
fn command(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    command.current_dir(place.path("")).args(args);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().into_owned();
        if ["HF_", "WANDB_", "AXISMAPPER_"].iter().any(|prefix| text.starts_with(prefix)) || text.ends_with("_PROXY") {
            command.env_remove(name);
        }
    }
    command.env("HOME", place.path("home")).env_remove("XDG_CACHE_HOME").env("HF_HUB_OFFLINE", "1");
    command
}

fn report(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{}", said(output)))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The status and the message of a check.
fn check<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no check `{name}` in {checks:#?}"));
    (found["status"].as_str().unwrap(), found["message"].as_str().unwrap())
}

#[test]
fn a_sound_stage_is_estimated_without_a_network() {
    let place = Place::new();
    let output = command(&place, &["doctor", "sft.yaml", "--json", "--price-per-hour", "2"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let found = report(&output);
    assert_eq!(found["ok"], true);
    for name in ["processor", "memory", "libtorch", "device", "disk", "config sft.yaml", "sft: model", "sft: memory"] {
        assert!(["ok", "warning"].contains(&check(&found, name).0), "{name}: {:?}", check(&found, name));
    }
    // One of the records has no answer.
    assert_eq!(check(&found, "sft: records"), ("warning", "20 records in `train.jsonl`, 0 cut, 1 dropped"));
    assert_eq!(check(&found, "sft: validation").0, "ok");
    let estimate = &found["stages"][0]["estimate"];
    assert_eq!((estimate["tokens"]["steps"].as_u64(), estimate["seconds"].is_null()), (Some(24), true));
    assert!(estimate["peak_bytes"].as_u64().unwrap() > 100_000_000);
    assert_eq!(found["stages"][0]["example"][1]["role"], "target");
    assert!(place.path("out/sft/estimate.json").is_file());

    let text = command(&place, &["doctor", "sft.yaml"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["ok       libtorch", "24 steps", "--measure takes a few steps", "<|im_end|>]]"] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    assert!(!text.contains('\x1b'), "{text}");
}

#[test]
fn measured_steps_give_time_and_cost_and_the_run_is_held_to_them() {
    let place = Place::new();
    let args = ["doctor", "sft.yaml", "orpo.yaml", "--measure=3", "--price-per-hour", "3600", "--json"];
    let output = command(&place, &args).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let found = report(&output);
    for (idx, steps) in [24, 2].into_iter().enumerate() {
        let estimate = &found["stages"][idx]["estimate"];
        assert_eq!(estimate["tokens"]["steps"], steps);
        let (seconds, cost) = (estimate["seconds"].as_f64().unwrap(), estimate["cost"].as_f64().unwrap());
        assert!(seconds > 0.0 && (seconds - cost).abs() < 1e-9 * seconds, "{estimate}");
        assert!(estimate["measured"]["peak_bytes"].as_u64().unwrap() > 50_000_000, "{estimate}");
    }
    assert!(!place.path("out/sft/final").exists(), "measuring left results");

    let train = command(&place, &["train", "--config", "sft.yaml"]).output().unwrap();
    assert!(train.status.success(), "{}", said(&train));
    let line = said(&train).lines().find(|line| line.starts_with("sft: estimated ")).map(str::to_owned);
    let line = line.unwrap_or_else(|| panic!("no comparison in: {}", said(&train)));
    assert!(line.contains(" s and ") && line.contains(", took ") && line.contains("MB"), "{line}");
    assert!(said(&train).contains("next: axismapper eval --model base --adapter out/sft/final"), "{}", said(&train));
    let kept: Value = axismapper::fsio::read_json(&place.path("out/sft/estimate.json")).unwrap();
    assert!(kept["actual"]["seconds"].as_f64().unwrap() > 0.0);

    // Another setting is another run: its estimate is not known.
    let other = command(&place, &["train", "--config", "sft.yaml", "--set", "training.max_steps=1"]).output().unwrap();
    assert!(other.status.success() && !said(&other).contains("estimated"), "{}", said(&other));
}

#[test]
fn every_fault_is_found_at_once_and_none_hides_another() {
    let place = Place::new();
    std::fs::remove_file(place.path("base/model.safetensors")).unwrap();
    std::fs::write(place.path("bad.yaml"), "model: {nam: x}\ndata: {train: t.jsonl}\ntraining: {epochs: 3}\n").unwrap();
    std::fs::write(place.path("far.yaml"), "model: {name: acme/none}\ndata: {train: none.jsonl}\n").unwrap();
    let args = ["doctor", "bad.yaml", "far.yaml", "sft.yaml", "--json", "--device", "tpu"];
    let output = command(&place, &args).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).starts_with("error: ") && said(&output).contains("hint: "), "{}", said(&output));
    let found = report(&output);
    for (name, part) in [
        ("config bad.yaml", "`training.epochs`"),
        ("config bad.yaml", "`model.name`"),
        ("device", "`tpu`"),
        ("far: model", "acme/none"),
        ("far: records", "none.jsonl"),
        ("sft: model", "lacks `model.safetensors`"),
    ] {
        let (status, message) = check(&found, name);
        assert!(status == "fatal" && message.contains(part), "{name}: {status} {message}");
    }
    assert_eq!(check(&found, "sft: records"), ("ok", "21 records in `train.jsonl`, not tokenized"));
    assert_eq!(check(&found, "sft: memory").0, "skipped");
    assert_eq!(check(&found, "libtorch").0, "ok");
}

#[test]
fn training_looks_before_it_starts() {
    let place = Place::new();
    std::fs::remove_file(place.path("base/model.safetensors")).unwrap();
    let train = |args: &[&str]| {
        let output = command(&place, &[&["train", "--config", "sft.yaml", "--config", "orpo.yaml"], args].concat());
        let output = { output }.output().unwrap();
        (output.status.code(), said(&output))
    };
    let (status, text) = train(&["--set", "data.train=none.jsonl"]);
    assert_eq!(status, Some(1), "{text}");
    for part in ["sft: model: ", "lacks `model.safetensors`", "orpo: records: ", "none.jsonl", "--skip-checks"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(!place.path("out").exists(), "something was begun");
    let (status, text) = train(&["--skip-checks"]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("model.safetensors") && !text.contains("--skip-checks"), "{text}");
}

#[test]
fn tokens_are_tried_and_never_shown() {
    let place = Place::new();
    let hub = hub_server::Hub::start();
    let wandb = wandb_server::Service::start(|_, _| wandb_server::Fault::None);
    let ask = |token: &str, key: &str, extra: &[&str]| {
        let mut command = command(&place, &[&["doctor", "--json"], extra].concat());
        command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.server.url).env("HF_TOKEN", token);
        command.env("WANDB_BASE_URL", &wandb.server.url).env("WANDB_API_KEY", key);
        let output = command.output().unwrap();
        let all = format!("{}{}", said(&output), String::from_utf8_lossy(&output.stdout));
        assert!(!all.contains(token) && !all.contains(key), "{all}");
        report(&output)
    };
    let found = ask(hub_server::WRITE_TOKEN, wandb_server::KEY, &[]);
    assert_eq!(check(&found, "hugging face"), ("ok", "the token is `alice`'s and may write"));
    assert_eq!(check(&found, "weights & biases"), ("ok", "the key is `alice`'s; runs go to `team/axismapper`"));
    let found = ask(hub_server::READ_TOKEN, "wrong-key-of-the-tests", &[]);
    assert_eq!(check(&found, "hugging face"), ("ok", "the token is `alice`'s and may only read"));
    assert_eq!(check(&found, "weights & biases").0, "warning");
    let found = ask("hf_wrong_token_of_the_tests", wandb_server::KEY, &[]);
    assert_eq!(check(&found, "hugging face").0, "fatal");
    let n = hub.requests().len();
    let found = ask(hub_server::WRITE_TOKEN, wandb_server::KEY, &["--offline"]);
    assert_eq!((check(&found, "hugging face").0, check(&found, "weights & biases").0), ("skipped", "skipped"));
    assert_eq!(hub.requests().len(), n, "the Hub was asked");

    // A model on the Hub is looked at, not fetched.
    hub.add("acme/model", true, &[("config.json", b"{}"), ("model.safetensors", &[7; 3_000_000])]);
    std::fs::write(place.path("far.yaml"), "model: {name: acme/model}\ndata: {train: train.jsonl}\n").unwrap();
    let found = ask(hub_server::WRITE_TOKEN, wandb_server::KEY, &["far.yaml"]);
    let (status, message) = check(&found, "far: model");
    assert!(status == "ok" && message.contains("3 MB are fetched first"), "{status} {message}");
    assert_eq!(hub.count("/resolve/"), 0);
}

#[test]
fn a_model_of_the_hub_is_trained_on() {
    let place = Place::new();
    let hub = hub_server::Hub::start();
    let read = |name: &str| std::fs::read(place.path("base").join(name)).unwrap();
    let names: Vec<String> = std::fs::read_dir(place.path("base"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), read(name))).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    hub.add("acme/base", true, &files);
    std::fs::rename(place.path("base"), place.path("elsewhere")).unwrap();
    let sets = ["--set", "model.name=acme/base", "--set", "training.max_steps=1"];
    let mut train = command(&place, &[&["train", "--config", "sft.yaml"], &sets[..]].concat());
    train.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.server.url).env("HF_TOKEN", hub_server::WRITE_TOKEN);
    let output = train.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let config = std::fs::read_to_string(place.path("out/sft/final/adapter_config.json")).unwrap();
    assert!(config.contains("\"acme/base\"") && !config.contains("snapshots"), "{config}");
    assert!(Path::new(&place.path("out/sft/final/adapter_model.safetensors")).is_file());
}
