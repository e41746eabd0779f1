//! The commands in README.md and docs/: each is one that the program takes, and those that need no network are run.
//!
//! All `axismapper` lines of fenced blocks count. They are run in a folder with a small model under the names that the
//! pages use, in the order of the pages. A block after the line `<!-- not run: REASON -->` is only parsed.

use std::path::{Path, PathBuf};
use std::process::Command;

use axismapper::cli;
use clap::error::ErrorKind;

use crate::small_model;

/// Parts of commands that need something that a test does not have.
const NOT_RUN: [(&str, &str); 12] = [
    ("serve ", "runs until it is stopped"),
    ("--endpoint ", "needs a server"),
    ("--provider ollama", "needs a server"),
    ("--provider openai", "needs a server"),
    ("codes fetch", "needs a network"),
    ("2027", "needs a download"),
    ("push ", "needs a Hub"),
    ("--push ", "needs a Hub"),
    ("--stop-pod", "needs a rented machine"),
    ("--device cuda", "needs a GPU"),
    ("demo", "has a test of its own"),
    ("--config scripts/qwen2.5", "takes minutes and gigabytes"),
];

/// What placeholders stand for in the folder; a command with another one is only parsed.
const PLACEHOLDERS: [(&str, &str); 2] = [("MODEL", "models/Qwen2.5-0.5B-Instruct"), ("ADAPTER", "out/orpo/final")];

/// A command of a page.
#[derive(Debug)]
struct Shown {
    place: String,
    line: String,
    arguments: Vec<String>,
    is_run: bool,
}

/// The commands of a page's fenced blocks.
fn commands(name: &str, text: &str) -> Vec<Shown> {
    let mut found = Vec::new();
    let (mut is_code, mut is_run, mut line) = (false, true, String::new());
    let mut before = "";
    for (idx, raw) in text.lines().enumerate() {
        if raw.trim_start().starts_with("```") {
            is_code = !is_code;
            is_run = !before.trim().starts_with("<!-- not run:");
        } else if is_code {
            let part = raw.trim().trim_start_matches("$ ");
            line += part.trim_end_matches('\\');
            if part.ends_with('\\') {
                continue;
            }
            let mut words = words(&line);
            let n_variables = words.iter().take_while(|word| is_variable(word)).count();
            words.drain(..n_variables);
            if words.first().is_some_and(|word| word == "axismapper") {
                let place = format!("{name}:{}", idx + 1);
                let is_run = is_run && n_variables == 0;
                found.push(Shown { place, line: line.clone(), arguments: words, is_run });
            }
            line.clear();
        }
        if !raw.trim().is_empty() {
            before = raw;
        }
    }
    found
}

fn is_variable(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    })
}

/// The words of a line as a shell reads them, up to a comment, a pipe or a redirection.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '#' | '|' | '>' | '<' | '&' | ';') if word.is_none() => return words,
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md"].iter().map(|name| root.join(name)).collect();
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    paths.extend(docs.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    paths.sort();
    // The README's commands make what others use.
    paths.sort_by_key(|path| !path.ends_with("README.md"));
    let name = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
    paths.iter().filter_map(|path| Some((name(path), std::fs::read_to_string(path).ok()?))).collect()
}

#[test]
fn every_command_in_the_pages_is_one_that_the_program_takes() {
    let mut n = 0;
    for (name, text) in pages() {
        for shown in commands(&name, &text) {
            n += 1;
            if let Err(error) = cli::definition().try_get_matches_from(&shown.arguments) {
                let is_help = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion].contains(&error.kind());
                assert!(is_help, "{}: {}\n{error}", shown.place, shown.line);
            }
        }
        // In running text, at least the command's name.
        for part in text.split('`').filter_map(|part| part.strip_prefix("axismapper ")) {
            let first = part.split_whitespace().next().unwrap_or_default();
            let is_known = cli::definition().get_subcommands().any(|command| command.get_name() == first);
            assert!(
                is_known || first.starts_with('-') || !first.chars().all(char::is_lowercase),
                "{name}: `axismapper {part}`"
            );
        }
    }
    assert!(n > 15, "{n} commands were found");
}

/// A folder in which the pages' commands can be run: a small model under the names that they use, data, configs.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &str| {
        std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
        std::fs::write(path(name), text).unwrap();
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (idx, name) in ["Qwen2.5-0.5B-Instruct", "Qwen2.5-7B-Instruct"].into_iter().enumerate() {
        small_model::write_folder(&path("models").join(name), idx as u64 + 1);
        let cached = path("hf/hub").join(format!("models--Qwen--{name}"));
        small_model::write_folder(&cached.join("snapshots").join("0".repeat(40)), idx as u64 + 1);
        std::fs::create_dir_all(cached.join("refs")).unwrap();
        std::fs::write(cached.join("refs/main"), "0".repeat(40)).unwrap();
    }
    small_model::write_adapter(&path("out/orpo/final"), 3);
    for entry in std::fs::read_dir(root.join("configs")).unwrap() {
        let file = entry.unwrap().path();
        let text = std::fs::read_to_string(&file).unwrap();
        let name = format!("configs/{}", file.file_name().unwrap().to_string_lossy());
        // Two steps, eighty records.
        let lines = text.lines().map(|line| match line.trim_start().split(':').next() {
            Some("num_train_epochs" | "max_steps") => "  max_steps: 2".to_owned(),
            Some("n_records") => "  n_records: 80".to_owned(),
            _ => line.to_owned(),
        });
        write(&name, &(lines.collect::<Vec<_>>().join("\n") + "\n"));
    }
    let chat = |scenario: &str, code: &str| {
        serde_json::json!({"messages": [{"role": "user", "content": scenario}, {"role": "assistant", "content": code}]})
            .to_string()
            + "\n"
    };
    write("answers.jsonl", &chat("fell off my bike", "S82.201A"));
    write("notes.jsonl", "{\"scenario\": \"fell off my bike\"}\n{\"scenario\": \"high blood pressure\"}\n");
    write("notes.csv", "note,icd10\nFell off my bike yesterday and broke the right shin,S82.201A\n");
    write("drg_weights.csv", "code,weight\nI10,0.5\n");
    write("texts.txt", "fell off my bike\nhigh blood pressure\n");
    write(
        "shape.json",
        "{\"hidden_size\": 32, \"intermediate_size\": 64, \"num_hidden_layers\": 1, \"num_attention_heads\": 2}",
    );
    let answer = "{\"expected\": \"S82.201A\", \"output\": \"S82.201A\", \"scenario\": \"fell off my bike\"}\n";
    ["base.jsonl", "tuned.jsonl"].iter().for_each(|name| write(name, answer));
    run(dir.path(), &["axismapper", "data", "build", "--config", "configs/data.yaml", "--out-dir", "data"]);
    let test = std::fs::read_to_string(path("data/test.jsonl")).unwrap();
    let answers = test.lines().map(|line| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let turns = record["messages"].as_array().unwrap();
        let content = |idx: usize| turns[turns.len() - idx]["content"].clone();
        serde_json::json!({"expected": content(1), "output": "I10", "scenario": content(2)}).to_string()
    });
    write("new.jsonl", &(answers.collect::<Vec<_>>().join("\n") + "\n"));
    dir
}

fn run(dir: &Path, words: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in
        names.filter(|name| ["HF_", "WANDB_", "AXIS"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)))
    {
        command.env_remove(name);
    }
    command.env("HOME", dir.join("home")).env("HF_HOME", dir.join("hf")).env("HF_HUB_OFFLINE", "1");
    command.current_dir(dir).args(&words[1..]).output().unwrap()
}

#[test]
fn the_commands_that_need_no_network_run() {
    let dir = place();
    let mut n_run = 0;
    for (name, text) in pages() {
        for shown in commands(&name, &text) {
            let named = |word: &String| {
                PLACEHOLDERS
                    .iter()
                    .find(|(name, _)| name == word)
                    .map_or(word.clone(), |(_, value)| (*value).to_owned())
            };
            let words: Vec<String> = shown.arguments.iter().map(named).collect();
            let is_open = words.iter().any(|word| {
                word == "..."
                    || word.len() > 1
                        && word.chars().all(|c| c.is_ascii_uppercase() || "/_=.".contains(c))
                        && word.chars().any(char::is_alphabetic)
            });
            let is_out_of_reach = NOT_RUN.iter().any(|(part, _)| format!("{} ", words[1..].join(" ")).contains(part));
            if !shown.is_run || is_open || is_out_of_reach {
                continue;
            }
            let output = run(dir.path(), &words.iter().map(String::as_str).collect::<Vec<_>>());
            let stderr = String::from_utf8_lossy(&output.stderr);
            // A set that may not stand together is what `codes check` is shown with.
            let is_answer =
                words[1..].starts_with(&["codes".into(), "check".into()]) && output.status.code() == Some(1);
            assert!(
                output.status.success() || is_answer,
                "{}: {}\n{stderr}\nwhere its files cannot be made here, put `<!-- not run: REASON -->` above the block",
                shown.place,
                shown.line
            );
            n_run += 1;
        }
    }
    assert!(n_run >= 12, "{n_run} commands were run");
}

#[test]
fn a_page_is_read_as_a_shell_reads_it() {
    let page = "```\nA=1 axismapper train \\\n    --out 'a b' # words\n$ axismapper codes search \"x # y\" | head\n```\n\
                <!-- not run: no reason -->\n\n```sh\naxismapper pull a/b\n```\naxismapper is a program\n";
    let found = commands("p", page);
    let read: Vec<(String, bool)> = found.iter().map(|shown| (shown.arguments[1..].join("|"), shown.is_run)).collect();
    let expected = [("train|--out|a b", false), ("codes|search|x # y", true), ("pull|a/b", false)];
    assert_eq!(read, expected.map(|(words, is_run)| (words.to_owned(), is_run)));
}
