//! The end of a training: the user's command and the rented machine, after a failure too.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use crate::http_server::{Reply, Server};

fn train(dir: &Path, server: &Server, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    command.current_dir(dir).args(["--quiet", "train", "--config", "none.yaml"]).args(args);
    command.env("RUNPOD_REST_URL", &server.url).env("RUNPOD_API_KEY", "rpa_test").env("RUNPOD_POD_ID", "pod1");
    command.output().unwrap()
}

#[test]
fn a_failed_training_runs_the_command_and_stops_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| Reply::json(200, &json!({"id": "pod1", "desiredStatus": "EXITED"})));
    let output =
        train(dir.path(), &server, &["--on-finish", "echo $AXISMAPPER_STATUS in $AXISMAPPER_OUT > done", "--stop-pod"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    // The failure is still what is told, and the status.
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("none.yaml") && !stderr.contains("rpa_test"), "{stderr}");
    assert_eq!(std::fs::read_to_string(dir.path().join("done")).unwrap(), "failed in out\n");
    let received = server.received();
    assert_eq!(received.len(), 1);
    assert_eq!((received[0].method.as_str(), received[0].target.as_str()), ("POST", "/pods/pod1/stop"));
    assert_eq!(received[0].header("authorization"), Some("Bearer rpa_test"));
}

#[test]
fn a_machine_that_waits_for_a_push_goes_on_after_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| Reply::new(200, "{}"));
    train(dir.path(), &server, &["--stop-pod=pushed", "--push", "acme/model"]);
    assert!(server.received().is_empty());
    let output = train(dir.path(), &server, &["--stop-pod=pushed"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--push ORG/NAME"));
}

#[test]
fn what_stopping_needs_is_asked_for_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_axismapper"))
        .current_dir(dir.path())
        .args(["train", "--config", "none.yaml", "--stop-pod"])
        .env_remove("RUNPOD_API_KEY")
        .env_remove("RUNPOD_POD_ID")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("RUNPOD_POD_ID"));
}
