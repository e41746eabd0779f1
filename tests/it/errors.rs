//! What a user is told when a request is wrong, for all commands: held to `tests/it/errors.txt`.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test --test it errors` writes the file anew; its difference is then to be read as its readers
//! will read it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::golden::fixture;
use crate::small_model;

const SNAPSHOT: &str = "tests/it/errors.txt";

/// Requests that cannot be met. `%` is the folder that they are made in.
const REQUESTS: &[&str] = &[
    "",
    "trian",
    "codes",
    "codes build --tabular none.xml",
    "codes build --tabular notes.txt",
    "codes build --tabular codes.json --out list.table",
    "codes check",
    "codes check 'S82.201, I1O, ZZZ'",
    "codes check --input none.txt",
    "codes show S82.999X",
    "codes search",
    "codes diff builtin none.json",
    "codes diff builtin 2031",
    "codes show I10 --release 27",
    "codes show I10 --codes empty.json",
    "codes fetch --release 1999",
    "codes export --format yaml",
    "data generate",
    "data generate --out raw.jsonl --chapter 40",
    "data generate --out raw.jsonl --prefix QQQ",
    "data generate --out raw.jsonl --code S82",
    "data generate --out raw.jsonl --provider openai",
    "data validate --in none.jsonl --out v.jsonl",
    "data validate --in torn.jsonl --out v.jsonl",
    "data validate --in notes.csv --out v.jsonl",
    "data dedup --in raw.csv --out u.jsonl --threshold 3",
    "data dedup --in torn.jsonl --out u.jsonl",
    "data split --in torn.jsonl --out-dir d --val 0.8 --test 0.5",
    "data split --in empty.jsonl --out-dir d",
    "data pairs --in torn.jsonl --out-dir d --n-pairs none",
    "data build --config none.yaml",
    "data build --config typo-data.yaml",
    "data replay --new torn.jsonl --old torn.jsonl --ratio 7 --out r.jsonl",
    "data update --to none.zip --old torn.jsonl --out-dir u",
    "data inspect none.jsonl",
    "train --config none.yaml",
    "train --config typo.yaml",
    "train --config torn.yaml",
    "train --config no-model.yaml",
    "train --config sound.yaml --set lora.r",
    "train --config sound.yaml --set lora.rank=3",
    "train --config sound.yaml --device tpu",
    "train --config sound.yaml --set data.train=none.jsonl",
    "train --config sound.yaml --set data.train=torn.jsonl",
    "train --config sound.yaml --set data.train=empty.jsonl",
    "train --config sound.yaml --set lora=null --set model.load_in_4bit=true",
    "train --config sound.yaml --set lora=null --set orpo={}",
    "train --config sound.yaml --set lora.init_adapter=base",
    "train --config sound.yaml --set lora.target_modules=[x_proj]",
    "train --config sound.yaml --set model.name=acme/none",
    "train --config sound.yaml --push acme/new",
    "train --config sound.yaml --stop-pod",
    "train --config sound.yaml --out notes.txt",
    "score --model base --input none.jsonl",
    "score --model base --input unanswered.jsonl",
    "score --model base --adapter base --input unanswered.jsonl",
    "eval",
    "eval --model none --data torn.jsonl",
    "eval --model base --data unanswered.jsonl",
    "eval --predictions none.jsonl",
    "eval --predictions torn.jsonl",
    "eval --predictions answers.jsonl --compare codes.json",
    "predict 'it hurts'",
    "predict --model empty 'it hurts'",
    "predict --model adapter 'it hurts'",
    "predict --model base --adapter none 'it hurts'",
    "predict --model base --input torn.jsonl",
    "predict --model base --min-confidence 2 'it hurts'",
    "predict --model base --join notes.csv 'it hurts'",
    "predict --model base --no-constrain --top 3 'it hurts'",
    "predict --endpoint ftp://x --model m 'it hurts'",
    "predict --model llama 'it hurts'",
    "serve",
    "serve --model none",
    "serve --model base --adapter general",
    "serve --model base --port 99999",
    "init --config none.json --corpus notes.txt --out new",
    "init --config shape.json --corpus notes.txt --out new",
    "init --config notes.txt --corpus notes.txt --out new",
    "quantize --model none --out q",
    "quantize --model base --out base",
    "quantize --model base --out q --max-shard-size 5GiB",
    "merge --model none --adapter adapter --out m",
    "merge --model base --adapter base --out m",
    "merge --model base --adapter other-adapter --out m",
    "export gguf --model adapter --out a.gguf",
    "export gguf --model base --out a.gguf --type q3",
    "push --repo acme/new --dir none",
    "push --repo acme/new --dir empty",
    "push --repo acme --dir adapter --base-model Qwen/Qwen2.5-0.5B",
    "push --repo acme/new --dir adapter --base-model Qwen/Qwen2.5-0.5B",
    "pull acme",
    "pull acme/none",
    "demo --device tpu --tiny",
    "demo --tiny --out notes.txt",
    "doctor --price-per-hour much",
    "doctor none.yaml --measure=1",
    "completions tcl",
    "man --out notes.txt",
];

/// The folder that the requests are made in.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
    small_model::write_folder(&path("base"), 1);
    small_model::write_adapter(&path("adapter"), 2);
    let config = std::fs::read_to_string(path("adapter/adapter_config.json")).unwrap();
    std::fs::create_dir(path("other-adapter")).unwrap();
    write("other-adapter/adapter_config.json", &config);
    let weights = fixture("adapters/lora").join("adapter_model.safetensors");
    std::fs::copy(weights, path("other-adapter/adapter_model.safetensors")).unwrap();
    std::fs::create_dir(path("empty")).unwrap();
    std::fs::create_dir(path("llama")).unwrap();
    std::fs::copy(path("base/tokenizer.json"), path("llama/tokenizer.json")).unwrap();
    std::fs::copy(path("base/tokenizer_config.json"), path("llama/tokenizer_config.json")).unwrap();
    write("llama/config.json", "{\"architectures\": [\"LlamaForCausalLM\"]}");
    write("notes.txt", "some words\n");
    write("notes.csv", "note,icd10\nfell,I10\n");
    write("raw.csv", "scenario,codes\nfell,I10\n");
    write("empty.jsonl", "");
    write("empty.json", "{}");
    write("codes.json", "{\"I10\": \"Essential (primary) hypertension\"}");
    write("torn.jsonl", "{\"scenario\": \"fell\", \"codes\": [\"I10\"]}\n{\"scenario\": \"fe\n");
    write("answers.jsonl", "{\"expected\": \"I10\", \"output\": \"I10\"}\n");
    write("unanswered.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"fell\"}]}\n");
    let answered = "{\"messages\": [{\"role\": \"user\", \"content\": \"fell\"}, {\"role\": \"assistant\", \"content\": \"I10\"}]}\n";
    write("train.jsonl", answered);
    write("shape.json", "{\"vocab_size\": 10, \"hidden_size\": 32}");
    let sound =
        "model: {name: base, dtype: float32}\nlora: {r: 4}\ntraining: {max_steps: 1}\ndata: {train: train.jsonl}\n";
    write("sound.yaml", sound);
    write("typo.yaml", "model:\n  name: base\n  max_seq_lenght: 3\ntrianing:\n  max_steps: 3\ndata:\n  train: [x]\n");
    write("torn.yaml", "model: {name: base\n");
    write("no-model.yaml", &sound.replace("name: base", "name: none"));
    write("typo-data.yaml", "generate:\n  n_record: 5\n");
    dir
}

/// Splits a request into arguments; quotes hold words together.
fn arguments(request: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    for (idx, part) in request.split('\'').enumerate() {
        match idx % 2 {
            0 => arguments.extend(part.split_whitespace().map(str::to_owned)),
            _ => arguments.push(part.to_owned()),
        }
    }
    arguments
}

/// A command that knows nothing of who runs it.
fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    let (path, libraries) = (std::env::var_os("PATH"), std::env::var_os("LD_LIBRARY_PATH"));
    command.env_clear().current_dir(dir).arg("--quiet").env("HOME", dir).env("HF_HUB_OFFLINE", "1");
    command.envs(path.map(|path| ("PATH", path))).envs(libraries.map(|path| ("LD_LIBRARY_PATH", path)));
    command
}

fn told(dir: &Path, request: &str) -> String {
    let output = command(dir).args(arguments(request)).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap().replace(&*dir.to_string_lossy(), "%");
    let mut text = format!("$ axismapper {request}\n");
    let status = output.status.code().map_or("ended by a signal".to_owned(), |code| format!("exit status {code}"));
    let _ = writeln!(text, "{status}");
    text += &stderr;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[test]
fn every_command_says_what_is_wrong_and_how_to_mend_it() {
    let dir = place();
    let real = dir.path().canonicalize().unwrap();
    let texts: Vec<String> = std::thread::scope(|scope| {
        let half = REQUESTS.len().div_ceil(2);
        let parts: Vec<_> = REQUESTS
            .chunks(half)
            .map(|part| scope.spawn(|| part.iter().map(|request| told(&real, request)).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    });
    let found = texts.join("\n");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(SNAPSHOT);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    for text in &texts {
        assert!(!text.contains("panicked") && !text.contains("a fault of axismapper"), "{text}");
        assert!(text.contains("exit status 1") || text.contains("exit status 2"), "{text}");
        // One line of our own, or clap's words with the usage.
        let n_errors = text.lines().filter(|line| line.starts_with("error: ")).count();
        assert!(n_errors == 1 && text.matches("\n  hint: ").count() <= 1 || text.contains("Usage: "), "{text}");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (found, expected) in found.split("\n\n$").zip(expected.split("\n\n$")) {
        assert_eq!(found, expected, "{SNAPSHOT} says otherwise; UPDATE_SNAPSHOTS=1 writes it anew");
    }
    assert_eq!(found, expected, "{SNAPSHOT} has other requests; UPDATE_SNAPSHOTS=1 writes it anew");
}

#[test]
fn an_empty_cache_variable_counts_as_not_set() {
    let dir = tempfile::tempdir().unwrap();
    let output = command(dir.path()).env("AXISMAPPER_CACHE", "").args(["codes", "show", "I10"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
