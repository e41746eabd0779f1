//! `axismapper train` with `report_to: wandb`, as a process.

use std::process::Command;

use serde_json::Value;

use crate::train_cli::Place;
use crate::wandb_server::{Fault, KEY, Service};

/// The command with nothing of W&B in its environment but what is given.
fn command(place: &Place, args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = place.command(args);
    let names = std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("WANDB_"));
    for name in names {
        command.env_remove(name);
    }
    command.env_remove("NETRC").env("HOME", place.path("")).envs(env.iter().copied());
    command
}

/// What it said; it must have ended well.
fn run(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !said.contains(KEY), "{said}");
    said
}

fn logged(place: &Place, stage: &str) -> Vec<Value> {
    axismapper::fsio::read_jsonl(&place.path("out").join(stage).join("metrics.jsonl")).unwrap()
}

#[test]
fn a_killed_run_goes_on_as_the_same_run_with_every_row_once() {
    let service = Service::start(|_, _| Fault::None);
    let place = Place::new();
    let env = [("WANDB_API_KEY", KEY), ("WANDB_BASE_URL", &*service.server.url), ("WANDB_NAME", "mine")];
    let args = ["--set", "training.report_to=wandb", "--resume"];
    let mut child = command(&place, &args, &env).spawn().unwrap();
    place.wait_beyond(&mut child, "out", 8);
    child.kill().unwrap();
    child.wait().unwrap();
    let said = run(command(&place, &args, &env));
    assert!(said.contains("wandb: run `shown` at http"), "{said}");

    let found = service.run();
    let (rows, expected) = (found.history(), logged(&place, "sft"));
    assert_eq!(rows.len(), expected.len());
    for (idx, (row, logged)) in rows.iter().zip(&expected).enumerate() {
        assert_eq!(row["_step"], idx);
        assert_eq!(row["train/global_step"], logged["step"]);
        for (key, name) in
            [("loss", "train/loss"), ("eval_loss", "eval/loss"), ("learning_rate", "train/learning_rate")]
        {
            // Rows before the kill come from the log.
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs();
            match (logged[key].as_f64(), row[name].as_f64()) {
                (Some(logged), Some(row)) => assert!(close(logged, row), "{name}: {logged} {row}"),
                (logged, row) => assert_eq!(logged, row),
            }
        }
    }
    assert!(rows.iter().any(|row| row["eval/loss"].is_number()));
    assert_eq!(found.exit_code, Some(0));
    assert_eq!(
        (found.upserts[0]["displayName"].as_str(), found.upserts[0]["jobType"].as_str()),
        (Some("mine"), Some("sft"))
    );
    let config: Value = serde_json::from_str(found.upserts[0]["config"].as_str().unwrap()).unwrap();
    assert_eq!((&config["lora"]["value"]["r"], &config["training"]["value"]["max_steps"]), (&4.into(), &24.into()));
    assert!(found.output().iter().any(|line| line.contains("sft: going on from step ")), "{:?}", found.output());
}

#[test]
fn stages_are_runs_of_their_own_and_a_run_without_a_key_is_a_folder() {
    let place = Place::new();
    let service = Service::start(|_, _| Fault::None);
    let few = ["--config", "orpo.yaml", "--set", "training.max_steps=2", "--set", "training.logging_steps=1"];
    let reported = [&few[..], &["--set", "training.report_to=wandb"]].concat();
    let env = [("WANDB_API_KEY", KEY), ("WANDB_BASE_URL", &*service.server.url), ("WANDB_RUN_ID", "r")];
    run(command(&place, &reported, &env));
    let runs = service.runs();
    assert_eq!(runs.keys().collect::<Vec<_>>(), ["r-orpo", "r-sft"]);
    assert!(runs.values().all(|run| run.exit_code == Some(0) && run.anomalies.is_empty()), "{runs:?}");
    assert!(runs["r-orpo"].history()[0]["train/rewards/margins"].is_number());

    let said = run(command(&place, &reported, &[]));
    let folders: Vec<_> = std::fs::read_dir(place.path("wandb")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(folders.len(), 2, "{folders:?}");
    assert!(
        folders.iter().all(|dir| said.contains(&format!("wandb sync ./wandb/{}", dir.file_name().unwrap().display()))),
        "{said}"
    );

    // Asked for nothing, it says nothing and sends nothing, key or not.
    std::fs::remove_dir_all(place.path("wandb")).unwrap();
    let n_requests = service.server.received().len();
    let said = run(command(&place, &few, &env));
    assert!(!said.contains("wandb"), "{said}");
    assert!(!place.path("wandb").exists() && !place.path("out/sft/wandb.json").exists());
    assert_eq!(service.server.received().len(), n_requests);

    let output = command(&place, &reported, &[("WANDB_MODE", "onlin")]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`WANDB_MODE` is one of"));
}
