//! `axismapper score` as a process: its lines come as it goes, and an interrupted run goes on.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use axismapper::fsio::read_jsonl;
use axismapper::tensor::Rng;
use serde_json::Value;

use crate::small_model;

const N_RECORDS: usize = 700;

fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    small_model::write_folder(&dir.path().join("base"), 1);
    let mut rng = Rng::named(3, "score");
    let record = |_| {
        let words: Vec<String> = (0..1 + rng.below(20)).map(|_| format!("leg {}", rng.below(100))).collect();
        serde_json::json!({"prompt": words.join(" "), "completion": "S82.201A, V18.4XXA"}).to_string() + "\n"
    };
    let records: String = (0..N_RECORDS).map(record).collect();
    std::fs::write(dir.path().join("in.jsonl"), records).unwrap();
    dir
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    command.current_dir(dir).args(["score", "--model", "base", "--input", "in.jsonl"]).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn lines_are_there_before_the_last_record_is_scored() {
    let dir = place();
    let mut child = command(dir.path(), &[]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("{\"n_tokens\":"), "{first}");
    // Asked to stop after its first line, it has not written all of them.
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let n = 1 + lines.count();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(n < N_RECORDS, "all lines came at once");
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let dir = place();
    let whole = command(dir.path(), &["--out", "whole.jsonl"]).output().unwrap();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let (partial, finished) = (dir.path().join("cut.jsonl.partial"), dir.path().join("cut.jsonl"));
    let deadline = Instant::now() + Duration::from_secs(120);
    // Whole lines: the kill may have come in the middle of one, which is written again.
    let n_lines = || std::fs::read_to_string(&partial).map_or(0, |text| text.matches('\n').count());
    let n_before = loop {
        let mut child = command(dir.path(), &["--out", "cut.jsonl"]).spawn().unwrap();
        while n_lines() == 0 && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "no line came");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !finished.exists() {
            break n_lines();
        }
        // On a busy machine the run may have ended before the kill came.
        std::fs::remove_file(&finished).unwrap();
    };
    assert!(n_before > 0 && n_before < N_RECORDS, "{n_before}");

    let rest = command(dir.path(), &["--out", "cut.jsonl"]).output().unwrap();
    let said = String::from_utf8_lossy(&rest.stderr).into_owned();
    assert!(rest.status.success(), "{said}");
    let told = format!("{} records, after {n_before} of an earlier run", N_RECORDS - n_before);
    assert!(said.contains(&told), "`{told}` is not in: {said}");
    let read = |name: &str| read_jsonl::<Value>(&dir.path().join(name)).unwrap();
    let (whole, cut) = (read("whole.jsonl"), read("cut.jsonl"));
    assert_eq!((whole.len(), cut.len()), (N_RECORDS, N_RECORDS));
    for (a, b) in whole.iter().zip(&cut) {
        assert_eq!(a["n_tokens"], b["n_tokens"]);
        // A record may lie in a batch with others than before, which changes the last bits of a sum.
        let (a, b) = (a["nll"].as_f64().unwrap(), b["nll"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
}
