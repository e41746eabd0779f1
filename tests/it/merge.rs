//! `merge` as a user runs it: its certificate, its limit, a quantized base.

use std::path::Path;
use std::process::{Command, Output};

use axismapper::fsio::sha256_file;
use serde_json::Value;
use tempfile::TempDir;

use crate::golden::{fixture, with_tokenizer};

/// A folder with the tied model and the fixture tokenizer as `base`.
fn prepared() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    with_tokenizer("tiny/tied", &dir.path().join("base"));
    dir
}

fn run(dir: &Path, args: &[&str]) -> Output {
    let adapter = fixture("adapters/dora");
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    command.current_dir(dir).args(["--quiet", "merge", "--adapter", adapter.to_str().unwrap(), "--dtype", "float32"]);
    command.args(["--sample", "5", "--json"]).args(args).output().unwrap()
}

fn certificate(dir: &Path, args: &[&str]) -> Value {
    let output = run(dir, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_certificate_tells_how_far_the_merge_is_and_of_which_files() {
    let dir = prepared();
    let quantized = certificate(dir.path(), &["--model", "base", "--out", "q", "--onto", "quantized"]);
    let original = certificate(dir.path(), &["--model", "base", "--out", "o"]);
    let of = |certificate: &Value, name: &str| certificate["logits"][name].as_f64().unwrap();
    // Merged into what the adapter was trained on, only rounding is left; into the original weights NF4's error is.
    assert!(of(&quantized, "max_abs") < 1e-3, "{quantized}");
    assert!(of(&original, "mean_kl") > 10.0 * of(&quantized, "mean_kl").max(1e-12), "{original}");
    assert_eq!((&quantized["answers"]["n"], &quantized["answers"]["n_same"]), (&5.into(), &5.into()));
    let sha256 = |path: &Path| Value::from(sha256_file(path).unwrap());
    assert_eq!(original["inputs"]["base/model.safetensors"], sha256(&dir.path().join("base/model.safetensors")));
    let adapter = fixture("adapters/dora/adapter_model.safetensors");
    assert_eq!(original["inputs"]["adapter/adapter_model.safetensors"], sha256(&adapter));
    assert_eq!(original["outputs"]["model.safetensors"], sha256(&dir.path().join("o/model.safetensors")));
    let stored: Value = serde_json::from_slice(&std::fs::read(dir.path().join("o/merge.json")).unwrap()).unwrap();
    assert_eq!(stored, original);
}

#[test]
fn a_merge_beyond_the_limit_is_refused_and_leaves_no_weights() {
    let dir = prepared();
    let output = run(dir.path(), &["--model", "base", "--out", "o", "--max-divergence", "1e-12"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("above the limit of 1.000e-12") && stderr.contains("--onto quantized"), "{stderr}");
    assert!(!dir.path().join("o/model.safetensors").exists());
    let stored: Value = serde_json::from_slice(&std::fs::read(dir.path().join("o/merge.json")).unwrap()).unwrap();
    assert_eq!(stored["is_refused"], true);
    certificate(dir.path(), &["--model", "base", "--out", "o", "--max-divergence", "100"]);
    assert!(dir.path().join("o/model.safetensors").exists());
}

#[test]
fn a_base_in_nf4_is_merged_into_as_it_is_and_never_taken_for_the_original() {
    let dir = prepared();
    let mut quantize = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    quantize.current_dir(dir.path()).args(["--quiet", "quantize", "--model", "base", "--out", "nf4"]);
    assert!(quantize.output().unwrap().status.success());
    let refused = run(dir.path(), &["--model", "nf4", "--out", "o"]);
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("are quantized") && stderr.contains("--onto quantized"), "{stderr}");
    certificate(dir.path(), &["--model", "nf4", "--out", "a", "--onto", "quantized"]);
    certificate(dir.path(), &["--model", "base", "--out", "b", "--onto", "quantized"]);
    let read = |name: &str| std::fs::read(dir.path().join(name).join("model.safetensors")).unwrap();
    assert!(read("a") == read("b"), "the stored NF4 weights merge to others");
}
