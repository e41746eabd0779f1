//! `axismapper predict` as a user runs it, on a small model with random weights and against servers.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use axismapper::codes::{Code, Release};
use serde_json::{Value, json};

use super::http_server::{Reply, Server};
use super::small_model::write_folder;

fn predict(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_axismapper"))
        .current_dir(dir)
        .args(["--quiet", "predict"])
        .args(args)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn codes_of(release: &Release, text: &str) -> Vec<Code> {
    let codes: Vec<Code> = text.trim_end().split(", ").map(|part| Code::parse(part).unwrap()).collect();
    assert!(codes.iter().all(|code| release.is_billable(*code)), "{text}");
    codes
}

#[test]
fn a_text_is_answered_with_codes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("m"), 1);
    let release = Release::builtin().unwrap();
    let run = |more: &[&str]| stdout(&predict(dir.path(), &[&["--model", "m", "it hurts a lot"], more].concat()));
    let text = run(&[]);
    assert_eq!(text.lines().count(), 1);
    let codes = codes_of(&release, &text);

    let record: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    assert_eq!(record["output"], text.trim_end());
    assert_eq!(record["predicted"].as_array().unwrap().len(), codes.len());
    assert_eq!(record["predicted"][0]["description"], release.description(codes[0]).unwrap());
    let confidence = record["confidence"].as_f64().unwrap();
    assert!(confidence > 0.0 && confidence <= record["predicted"][0]["probability"].as_f64().unwrap());

    let top = run(&["--top", "3"]);
    let shares: Vec<f64> = top.lines().map(|line| line.split('\t').next().unwrap().parse().unwrap()).collect();
    assert!(shares.len() == 3 && shares.is_sorted_by(|a, b| a >= b), "{top}");
    top.lines().for_each(|line| drop(codes_of(&release, line.split('\t').nth(1).unwrap())));

    assert_eq!(run(&["--min-confidence", "1"]), "\n");
    let held: Value = serde_json::from_str(&run(&["--min-confidence", "1", "--json"])).unwrap();
    assert_eq!(
        (&held["output"], &held["abstained"], &held["confidence"]),
        (&json!(""), &json!(true), &record["confidence"])
    );

    let table = format!("weight,code,group\n1.5,{},\"a, b\"\n", codes[0].undotted().to_lowercase());
    std::fs::write(dir.path().join("t.csv"), table).unwrap();
    let joined = run(&["--join", "t.csv", "--max-codes", "1"]);
    assert!(joined.starts_with("code\tweight\tgroup\n"), "{joined}");
    let joined: Value = serde_json::from_str(&run(&["--join", "t.csv", "--json"])).unwrap();
    assert_eq!(joined["predicted"][0]["joined"], json!({"weight": "1.5", "group": "a, b"}));

    let free = run(&["--no-constrain"]);
    assert!(free.trim_end().split(", ").any(|part| Code::parse(part).is_err()), "{free}");
    let refused = predict(dir.path(), &["--model", "m", "--no-constrain", "--top", "2", "it hurts"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn a_file_is_answered_in_its_order_whatever_is_answered_together() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("m"), 1);
    let questions = [
        r#"{"scenario": "a long story about a fall from a ladder and a broken arm", "codes": ["I10"]}"#,
        "fever",
        r#"{"messages": [{"role": "user", "content": "cough"}, {"role": "assistant", "content": "R05.9"}], "id": 3}"#,
        "pain in the knee",
    ];
    std::fs::write(dir.path().join("q.jsonl"), questions.join("\n")).unwrap();
    let together = stdout(&predict(dir.path(), &["--model", "m", "--input", "q.jsonl"]));
    let alone = stdout(&predict(dir.path(), &["--model", "m", "--input", "q.jsonl", "--batch-size", "1"]));
    let outputs = |text: &str| -> Vec<Value> { lines(text).iter().map(|record| record["output"].clone()).collect() };
    assert_eq!(outputs(&together), outputs(&alone));
    let records = lines(&together);
    assert_eq!(records.len(), 4);
    assert_eq!((&records[0]["codes"], &records[2]["id"]), (&json!(["I10"]), &json!(3)));
    assert_eq!(records[1]["scenario"], "fever");
    let single = stdout(&predict(dir.path(), &["--model", "m", "fever"]));
    assert_eq!(records[1]["output"], single.trim_end());

    stdout(&predict(dir.path(), &["--model", "m", "--input", "q.jsonl", "--out", "a.jsonl"]));
    let written = lines(&std::fs::read_to_string(dir.path().join("a.jsonl")).unwrap());
    assert_eq!(outputs(&together), written.iter().map(|record| record["output"].clone()).collect::<Vec<_>>());
    assert!(!dir.path().join("a.jsonl.partial").exists());
}

/// A chat completion with this content.
fn completion(content: &str) -> Reply {
    let tokens = json!([{"token": "x", "logprob": -0.5}, {"token": "y", "logprob": -0.25}]);
    let choice =
        json!({"index": 0, "message": {"role": "assistant", "content": content}, "logprobs": {"content": tokens}});
    Reply::json(200, &json!({"choices": [choice]}))
}

#[test]
fn a_server_is_asked_and_an_interrupted_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let questions: Vec<String> = (0..12).map(|n| format!("question {n}")).collect();
    std::fs::write(dir.path().join("q.txt"), questions.join("\n")).unwrap();
    let is_refusing = std::sync::Arc::new(AtomicBool::new(true));
    let refuses = std::sync::Arc::clone(&is_refusing);
    let server = Server::start(move |_, received| {
        if received.target == "/v1/models" {
            return Reply::json(200, &json!({"data": [{"id": "coder"}]}));
        }
        let text = received.json()["messages"][1]["content"].as_str().unwrap().to_owned();
        let number: usize = text.trim_start_matches("question ").parse().unwrap();
        if number >= 7 && refuses.load(Ordering::SeqCst) {
            return Reply::json(401, &json!({"error": {"message": "no more"}}));
        }
        match text.as_str() {
            "question 9" => Reply::json(400, &json!({"error": {"message": "too long"}})),
            "question 4" => completion("I10, Z99.99X"),
            _ => completion("I10, R54"),
        }
    });
    let args = [
        "--endpoint",
        &server.url,
        "--input",
        "q.txt",
        "--out",
        "a.jsonl",
        "--concurrency",
        "2",
        "--api-key",
        "s3cret",
    ];
    let failed = predict(dir.path(), &args);
    let stderr = String::from_utf8(failed.stderr).unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        stderr.contains("401") && stderr.contains("the same command again") && !stderr.contains("s3cret"),
        "{stderr}"
    );
    assert!(!dir.path().join("a.jsonl").exists());
    let n_asked = server.received().len();

    is_refusing.store(false, Ordering::SeqCst);
    let finished = predict(dir.path(), &args);
    let stderr = String::from_utf8(finished.stderr).unwrap();
    assert_eq!(finished.status.code(), Some(1), "one question was refused: {stderr}");
    assert!(stderr.contains("refused 1 question"), "{stderr}");
    let records = lines(&std::fs::read_to_string(dir.path().join("a.jsonl")).unwrap());
    let scenarios: Vec<&str> = records.iter().map(|record| record["scenario"].as_str().unwrap()).collect();
    assert_eq!(scenarios, questions);
    assert_eq!(records[0]["output"], "I10, R54");
    assert!((records[0]["confidence"].as_f64().unwrap() - (-0.75f64).exp()).abs() < 1e-9);
    assert!(records[9]["error"].as_str().unwrap().contains("400"), "{}", records[9]);
    assert_eq!(records[4]["predicted"][1], json!({"code": "Z99.99X", "description": null}));
    // What was answered is not asked again.
    let n_again = server.received().split_off(n_asked).iter().filter(|one| one.target != "/v1/models").count();
    assert_eq!(n_again, 5);

    let received = server.received();
    let asked = received.iter().find(|one| one.target == "/v1/chat/completions").unwrap();
    assert_eq!(asked.header("authorization"), Some("Bearer s3cret"));
    assert_eq!((&asked.json()["model"], &asked.json()["temperature"]), (&json!("coder"), &json!(0)));
    assert!(asked.json().get("structured_outputs").is_none());
    let args = ["--endpoint", &server.url, "--model", "other", "--constrain", "question 1"];
    assert_eq!(stdout(&predict(dir.path(), &args)), "I10, R54\n");
    let last = server.received().last().unwrap().json();
    assert_eq!(last["model"], "other");
    assert!(last["structured_outputs"]["regex"].as_str().unwrap().len() > 50_000);
}

#[test]
fn evaluation_answers_with_codes_unless_the_model_may_say_what_it_likes() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("m"), 1);
    let line = |text: &str| {
        json!({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "I10"}]}).to_string()
    };
    std::fs::write(dir.path().join("q.jsonl"), ["it hurts", "fever", "cough"].map(line).join("\n")).unwrap();
    let compliance = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_axismapper"))
            .current_dir(dir.path())
            .args(["--quiet", "eval", "--model", "m", "--data", "q.jsonl", "--out", "r"])
            .args(more)
            .output()
            .unwrap();
        stdout(&output);
        let answers = lines(&std::fs::read_to_string(dir.path().join("r/predictions.jsonl")).unwrap());
        assert!(answers.iter().all(|answer| answer["confidence"].is_number()), "{answers:?}");
        let is_codes =
            |answer: &&Value| answer["output"].as_str().unwrap().split(", ").all(|part| Code::parse(part).is_ok());
        answers.iter().filter(is_codes).count()
    };
    assert_eq!((compliance(&[]), compliance(&["--no-constrain"])), (3, 0));
}
