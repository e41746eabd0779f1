//! The program as a user meets it: exit status, one clear line on stderr, results on stdout.

use std::path::Path;
use std::process::{Command, Output};

fn axismapper(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_axismapper")).current_dir(dir).arg("--quiet").args(args).output().unwrap()
}

/// Runs a command that must fail: its status, and every one of `parts` in its message.
fn check_fails(dir: &Path, args: &[&str], status: i32, parts: &[&str]) {
    let output = axismapper(dir, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} wrote results");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: `{part}` is not in: {stderr}");
    }
    let n_errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert!(n_errors == 1 && !stderr.contains("panicked"), "{args:?}: {stderr}");
}

#[test]
fn a_bad_request_is_named_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("typo.yaml", "model:\n  name: base\n  max_seq_lenght: 3\ndata:\n  train: x.jsonl\n");
    write("sound.yaml", "model:\n  name: base\nlora:\n  r: 4\ndata:\n  train: x.jsonl\n");
    write("torn.jsonl", "{\"expected\": \"I10\", \"output\": \"I10\"}\n{\"expected\": \"I10\", \"out\n");
    write("other.jsonl", "{\"scenario\": 3}\n");
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let fails = |args: &[&str], status, parts: &[&str]| check_fails(dir.path(), args, status, parts);

    fails(&["train", "--config", "typo.yaml"], 2, &["model.max_seq_lenght", "model.max_seq_length"]);
    fails(&["train", "--config", "none.yaml"], 2, &["none.yaml", "hint: "]);
    fails(&["train", "--config", "sound.yaml"], 2, &["`base` is not a folder", "hint: "]);
    fails(&["train", "--config", "sound.yaml", "--set", "lora.r"], 2, &["expected key=value"]);
    fails(&["train", "--config", "sound.yaml", "--device", "tpu"], 2, &["`tpu`", "--device cpu"]);
    fails(&["eval", "--predictions", "torn.jsonl"], 1, &["torn.jsonl", "line 2", "hint: "]);
    fails(&["eval", "--predictions", "none.jsonl"], 1, &["none.jsonl", "hint: "]);
    fails(&["predict", "it hurts"], 2, &["no model is given", "--model"]);
    fails(&["predict", "--model", "empty", "it hurts"], 2, &["without config.json", "tokenizer.json", "hint: "]);
    fails(&["predict", "--model", "empty", "--input", "other.jsonl"], 1, &["other.jsonl", "line 1", "scenario"]);
    fails(&["merge", "--model", "none", "--adapter", "empty", "--out", "x"], 2, &["`none` is not a folder"]);
}

#[test]
fn stored_predictions_are_evaluated_without_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let lines =
        "{\"expected\": \"I10\", \"output\": \"I10\"}\n{\"expected\": \"I10\", \"output\": \"Hypertension: I10.99\"}\n";
    std::fs::write(dir.path().join("p.jsonl"), lines).unwrap();
    let output = axismapper(dir.path(), &["eval", "--predictions", "p.jsonl", "--json", "--out", "r"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["overall"]["exact_match"], 0.5);
    assert_eq!(report["overall"]["format_compliance"], 0.5);
    assert!(dir.path().join("r/report.json").is_file());
}

#[test]
#[ignore = "a_fault_of_the_program_is_told_in_one_line runs it in a process of its own"]
fn a_fault_of_the_program() {
    axismapper::cli::install_panic_hook();
    panic!("made by a test\nwith a second line");
}

#[test]
fn a_fault_of_the_program_is_told_in_one_line() {
    let itself = std::env::current_exe().unwrap();
    let told = |backtrace: &str| {
        let args = ["--ignored", "--exact", "cli::a_fault_of_the_program", "--nocapture"];
        let output = Command::new(&itself).args(args).env("RUST_BACKTRACE", backtrace).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let plain = told("0");
    let lines: Vec<&str> = plain.lines().filter(|line| line.contains("fault") || line.contains("hint")).collect();
    assert!(lines[0].starts_with("error: a fault of axismapper ") && lines[0].contains("made by a test ("), "{plain}");
    assert!(lines[1].starts_with("  hint: please report this line"), "{plain}");
    assert!(!plain.contains("stack backtrace") && !plain.contains("second line"), "{plain}");
    assert!(told("1").contains("stack backtrace"));
}
