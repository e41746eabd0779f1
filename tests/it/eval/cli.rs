//! `axismapper eval` as a user meets it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn eval(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    command.current_dir(dir).args(["--quiet", "eval"]).args(args).output().unwrap()
}

#[track_caller]
fn check_runs(dir: &Path, args: &[&str]) -> String {
    let output = eval(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn check_fails(dir: &Path, args: &[&str], status: i32, parts: &[&str]) {
    let output = eval(dir, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: `{part}` is not in: {stderr}");
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

const QUESTIONS: [(&str, &str); 3] = [
    ("essential (primary) hypertension", "I10"),
    ("age-related physical debility", "R54"),
    ("unspecified fracture of shaft of right tibia, and I fell off my bike", "S82.201A, V18.4XXA"),
];

/// Predictions in which the records of these numbers are right.
fn predictions(right: &[usize], extra: &str) -> String {
    let line = |(idx, (scenario, expected)): (usize, &(&str, &str))| {
        let output = if right.contains(&idx) { expected } else { "R52" };
        format!("{{\"scenario\":\"{scenario}\",\"expected\":\"{expected}\",\"output\":\"{output}\"{extra}}}\n")
    };
    QUESTIONS.iter().enumerate().map(line).collect()
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

#[test]
fn stages_are_compared_and_put_on_one_page() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "base.jsonl", &predictions(&[0], ""));
    write(dir, "tuned.jsonl", &predictions(&[0, 1, 2], ",\"confidence\":0.9,\"family\":\"nurse/1\",\"other\":[1]"));
    let text = check_runs(
        dir,
        &["--predictions", "base.jsonl", "--predictions", "SFT=tuned.jsonl", "--baseline", "search", "--out", "r"],
    );
    let heads: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(heads, ["%", "search", "base", "SFT", "target"]);
    assert!(text.contains("No difference between `SFT` and `base`"), "{text}");
    assert!(text.contains("Confidence of 3 answers: calibration error 10.0 %"), "{text}");
    assert!(!text.contains("From confidence"), "three answers are too few for a threshold: {text}");
    let report = read(&dir.join("r/report.json"));
    assert_eq!((&report["name"], &report["others"][0]["name"]), (&"SFT".into(), &"search".into()));
    assert_eq!(report["others"][1]["overall"]["n"], 3);
    assert_eq!(report["comparisons"][1]["n_gained"], 2);
    assert_eq!(report["by_family"]["nurse/1"]["exact_match"], 1.0);
    assert_eq!(report["records"].as_array().unwrap().len(), 3);
    let html = std::fs::read_to_string(dir.join("r/report.html")).unwrap();
    assert!(html.contains("<h1>SFT</h1>"));
    // What was given is not written again.
    assert!(!dir.join("r/predictions.jsonl").exists());
}

#[test]
fn a_later_evaluation_is_compared_with_an_earlier_report() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "a.jsonl", &predictions(&[0, 1], ""));
    write(dir, "b.jsonl", &predictions(&[2], ""));
    check_runs(dir, &["--predictions", "a.jsonl", "--out", "a"]);
    let text = check_runs(dir, &["--predictions", "b.jsonl", "--compare", "a/report.json", "--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let comparison = &report["comparisons"][0];
    assert_eq!((&comparison["before"], &comparison["after"]), (&"result (before)".into(), &"result".into()));
    assert_eq!((&comparison["n_gained"], &comparison["n_lost"]), (&1.into(), &2.into()));
    assert_eq!(comparison["verdict"], "undecided");
    assert!((comparison["differences"]["exact_match"]["before"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-12);
    assert!(report.get("records").is_none());
}

#[test]
fn the_baseline_stands_alone_where_there_is_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let chat = |(scenario, expected): &(&str, &str)| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{scenario}\"}},{{\"role\":\"assistant\",\"content\":\"{expected}\"}}],\"family\":\"f\"}}\n"
        )
    };
    write(dir, "test.jsonl", &QUESTIONS.iter().map(chat).collect::<String>());
    let text = check_runs(dir, &["--data", "test.jsonl", "--baseline", "search", "--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["name"], "search");
    assert_eq!((&report["overall"]["n"], &report["by_family"]["f"]["n"]), (&3.into(), &3.into()));
    assert!((report["by_code_count"]["1"]["exact_match"].as_f64().unwrap() - 1.0).abs() < 1e-12, "{text}");
    check_fails(dir, &["--data", "test.jsonl"], 2, &["no model is given", "--model"]);
}

#[test]
fn questions_are_kept_out_of_files_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "a.jsonl", &predictions(&[0], ""));
    for (args, is_there) in [(&["--out", "with"][..], true), (&["--out", "without", "--without-text"][..], false)] {
        check_runs(dir, &[&["--predictions", "a.jsonl"], args].concat());
        for file in ["report.json", "report.html"] {
            let text = std::fs::read_to_string(dir.join(args[1]).join(file)).unwrap();
            assert_eq!(text.contains("I fell off my bike"), is_there, "{args:?} {file}");
        }
    }
    // The records still find each other.
    check_runs(dir, &["--predictions", "a.jsonl", "--compare", "without/report.json"]);
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "a.jsonl", &predictions(&[0], ""));
    write(dir, "sure.jsonl", &predictions(&[0], ",\"confidence\":1.5"));
    write(dir, "word.jsonl", &predictions(&[0], ",\"confidence\":\"high\""));
    write(dir, "bare.jsonl", "{\"expected\":\"I10\",\"output\":\"I10\"}\n");
    write(dir, "empty.jsonl", "\n");
    write(dir, "old.json", "{\"overall\": {\"n\": 3}}");
    write(dir, "torn.json", "{\"records\": [");
    write(
        dir,
        "unsound.json",
        "{\"records\":[{\"expected\":\"I10\",\"n_expected\":1,\"n_predicted\":1,\"n_right\":2,\"n_not_billable\":0,\
         \"n_categories_expected\":1,\"n_categories_predicted\":1,\"n_categories_right\":1,\
         \"is_principal_right\":true,\"is_compliant\":true}]}",
    );
    let fails = |args: &[&str], status, parts: &[&str]| check_fails(dir, args, status, parts);
    fails(&["--predictions", "sure.jsonl"], 1, &["sure.jsonl", "line 1", "`confidence` is 1.5"]);
    fails(&["--predictions", "word.jsonl"], 1, &["word.jsonl", "line 1", "hint: "]);
    fails(&["--predictions", "empty.jsonl"], 1, &["empty.jsonl", "no records"]);
    fails(&["--predictions", "before=none.jsonl", "--predictions", "a.jsonl"], 1, &["none.jsonl", "hint: "]);
    fails(&["--predictions", "bare.jsonl", "--baseline", "search"], 2, &["record 1 has no `scenario`", "hint: "]);
    fails(&["--predictions", "a.jsonl", "--compare", "none.json"], 1, &["none.json", "hint: "]);
    fails(&["--predictions", "a.jsonl", "--compare", "old.json"], 2, &["old.json", "no records", "hint: "]);
    fails(&["--predictions", "a.jsonl", "--compare", "torn.json"], 1, &["torn.json", "line 1"]);
    fails(&["--predictions", "a.jsonl", "--compare", "unsound.json"], 1, &["unsound.json", "record 1"]);
    check_runs(dir, &["--predictions", "bare.jsonl", "--out", "bare"]);
    fails(
        &["--predictions", "a.jsonl", "--compare", "bare/report.json"],
        2,
        &["`result (before)` and `result` have no record in common", "hint: "],
    );
    fails(&[], 2, &["--data"]);
}
