//! `init`, `score` and `quantize` as a user runs them.

use std::path::Path;
use std::process::{Command, Output};

use axismapper::tensor::Checkpoint;
use serde_json::{Value, json};

use super::golden::fixture;

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_axismapper")).current_dir(dir).arg("--quiet").args(args).output().unwrap()
}

/// Runs a command that must succeed; its standard output.
fn check(dir: &Path, args: &[&str]) -> String {
    let output = run(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail: its status, and every one of `parts` in its message.
fn check_fails(dir: &Path, args: &[&str], status: i32, parts: &[&str]) {
    let output = run(dir, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    parts.iter().for_each(|part| assert!(stderr.contains(part), "{args:?}: `{part}` is not in: {stderr}"));
}

fn shape() -> Value {
    json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": true, "max_position_embeddings": 128})
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

/// A folder with a shape, a corpus, records to score, and a model `base` made of them.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "shape.json", &shape().to_string());
    std::fs::copy(fixture("tokenizer/corpus.txt"), dir.path().join("corpus.txt")).unwrap();
    let chat = |user: &str, answer: &str| json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]});
    let records = [
        chat("My head hurts.", "R51.9"),
        json!({"prompt": "I have ", "completion": "high blood pressure: I10"}),
        chat(
            "I fell off a ladder and broke my left leg. It is the shin, and the bone is not through the skin.",
            "S82.202A, W11.XXXA",
        ),
        json!({"prompt": [{"role": "user", "content": "Sugar"}], "completion": [{"role": "assistant", "content": "E11.9"}]}),
    ];
    write(dir.path(), "records.jsonl", &records.map(|record| record.to_string()).join("\n"));
    check(dir.path(), &["init", "--config", "shape.json", "--corpus", "corpus.txt", "--out", "base", "--seed", "3"]);
    dir
}

fn scores(text: &str) -> Vec<(usize, f64, Vec<f64>)> {
    let numbers = |value: &Value| value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| {
            (line["n_tokens"].as_u64().unwrap() as usize, line["nll"].as_f64().unwrap(), numbers(&line["logprobs"]))
        })
        .collect()
}

fn assert_same_scores(a: &str, b: &str) {
    let (a, b) = (scores(a), scores(b));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        // The same products in other batches: another order of summation in f32.
        assert!(a.0 == b.0 && a.2.iter().zip(&b.2).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
    }
}

#[test]
fn a_new_model_scores_alike_in_any_batch_and_quantized_in_memory_or_in_a_folder() {
    let dir = workplace();
    let dir = dir.path();
    let dense = check(dir, &["score", "--model", "base", "--input", "records.jsonl"]);
    let found = scores(&dense);
    assert_eq!(found.len(), 4);
    for (n_tokens, nll, logprobs) in &found {
        assert!(*n_tokens > 2 && logprobs.len() == *n_tokens && logprobs.iter().all(|logprob| *logprob < 0.0));
        // Log-probabilities are written with the digits of an f32.
        assert!((nll + logprobs.iter().sum::<f64>()).abs() < 1e-6 * nll);
    }
    let apart = check(dir, &["score", "--model", "base", "--input", "records.jsonl", "--batch-tokens", "1"]);
    assert_same_scores(&dense, &apart);
    check(dir, &["score", "--model", "base", "--input", "records.jsonl", "--out", "scores.jsonl"]);
    assert_eq!(std::fs::read_to_string(dir.join("scores.jsonl")).unwrap(), dense);

    check(dir, &["quantize", "--model", "base", "--out", "small"]);
    let in_memory = check(dir, &["score", "--model", "base", "--quant", "nf4", "--input", "records.jsonl"]);
    let stored = check(dir, &["score", "--model", "small", "--input", "records.jsonl"]);
    assert_eq!(in_memory, stored);
    assert!(scores(&dense).iter().zip(scores(&stored)).any(|(a, b)| (a.1 - b.1).abs() > 1e-4), "nothing was quantized");
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert!(dir.join("small").join(file).is_file(), "{file}");
    }

    // Drawn and quantized in one go, in several files: the same model.
    let straight =
        ["init", "--config", "shape.json", "--tokenizer", "base", "--out", "straight", "--seed", "3", "--quant", "nf4"];
    write(dir, "shape.json", &{
        let mut shape = shape();
        shape["vocab_size"] =
            json!(Checkpoint::open_dir(&dir.join("base")).unwrap().shape("model.embed_tokens.weight").unwrap()[0]);
        shape.to_string()
    });
    check(dir, &[&straight[..], &["--max-shard-size", "50KB"]].concat());
    assert!(dir.join("straight/model.safetensors.index.json").is_file());
    assert_eq!(check(dir, &["score", "--model", "straight", "--input", "records.jsonl"]), stored);
}

#[test]
fn wrong_requests_are_named() {
    let dir = workplace();
    let dir = dir.path();
    write(dir, "other.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n");
    write(dir, "unknown.jsonl", "{\"text\": \"a\"}\n");
    write(dir, "long.jsonl", &json!({"prompt": "I10 ".repeat(200), "completion": "I10"}).to_string());
    write(dir, "tight.json", &{
        let mut shape = shape();
        shape["vocab_size"] = json!(10);
        shape.to_string()
    });
    let score = |input| ["score", "--model", "base", "--input", input];
    check_fails(dir, &score("other.jsonl"), 1, &["other.jsonl", "line 1", "nothing to score"]);
    check_fails(dir, &score("unknown.jsonl"), 1, &["unknown.jsonl", "line 1", "`prompt` and `completion`"]);
    check_fails(dir, &score("long.jsonl"), 1, &["long.jsonl", "line 1", "the model takes 128"]);
    check_fails(dir, &["quantize", "--model", "base", "--out", "base"], 1, &["`base`", "another --out"]);
    check(dir, &["quantize", "--model", "base", "--out", "small"]);
    check_fails(dir, &["quantize", "--model", "small", "--out", "again"], 1, &["quantized already"]);
    check_fails(
        dir,
        &["init", "--config", "tight.json", "--tokenizer", "base", "--out", "x"],
        2,
        &["`vocab_size` is 10"],
    );
    check_fails(dir, &["init", "--config", "shape.json", "--out", "x"], 2, &["--corpus"]);
    assert!(check(dir, &["quantize", "--model", "base", "--out", "dry", "--dry-run"]).contains("dry"));
    assert!(!dir.join("dry").exists() && !dir.join("x").exists());
}

/// The peak memory of a command in bytes, the middle of five runs. On a busy machine the last look at a run can come long
/// before its end; and in one run of ten there the heap grew by half a file, where another thread's small allocation took the
/// place that a weight had left.
#[cfg(target_os = "linux")]
fn peak_memory(dir: &Path, args: &[&str]) -> u64 {
    let mut peaks: Vec<u64> = (0..5).map(|_| peak_memory_of_a_run(dir, args)).collect();
    peaks.sort_unstable();
    peaks[2]
}

/// The peak memory of a run in bytes, from the kernel's own high-water mark.
#[cfg(target_os = "linux")]
fn peak_memory_of_a_run(dir: &Path, args: &[&str]) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_axismapper"))
        .current_dir(dir)
        .arg("--quiet")
        .args(args)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Ok(text) = std::fs::read_to_string(&status) {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            peak = line.map_or(peak, |kb| kb.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10);
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Loading holds the quantized model and a tensor or two, not the file: neither copied nor as pages of the mapped file.
#[cfg(target_os = "linux")]
#[test]
fn loading_takes_the_memory_of_the_quantized_model() {
    let dir = workplace();
    let dir = dir.path();
    let mut shape = shape();
    for (key, size) in
        [("hidden_size", 512), ("intermediate_size", 1536), ("num_hidden_layers", 12), ("num_attention_heads", 8)]
    {
        shape[key] = json!(size);
    }
    write(dir, "large.json", &shape.to_string());
    check(dir, &["init", "--config", "large.json", "--tokenizer", "base", "--out", "large"]);
    let file = std::fs::metadata(dir.join("large/model.safetensors")).unwrap().len();
    let small = peak_memory(dir, &["score", "--model", "base", "--quant", "nf4", "--input", "records.jsonl"]);
    let large = peak_memory(dir, &["score", "--model", "large", "--quant", "nf4", "--input", "records.jsonl"]);
    let grown = large.saturating_sub(small);
    // NF4 is an eighth of the file; one block expanded, the embedding and a weight on its way take about as much again.
    assert!(file > 120 << 20 && grown < file / 2, "{} MB for a file of {} MB", grown >> 20, file >> 20);
}
