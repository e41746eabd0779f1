//! The house rules that a compiler does not hold: import edges, file sizes, opening comments, names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each module of `src/` with the modules it may use. A new edge is a reviewed change to this list.
const LAYERS: &[(&str, &[&str])] = &[
    ("diag", &[]),
    ("stop", &["diag"]),
    ("fsio", &["diag"]),
    ("http", &["diag", "stop", "fsio"]),
    ("tensor", &["diag", "fsio"]),
    ("codes", &["diag", "stop", "fsio", "http"]),
    ("text", &["diag", "fsio"]),
    ("data", &["diag", "stop", "fsio", "http", "codes", "text"]),
    ("quant", &["diag", "fsio", "tensor"]),
    ("adapter", &["diag", "fsio", "tensor"]),
    ("model", &["diag", "stop", "fsio", "tensor", "quant", "adapter"]),
    ("decode", &["diag", "stop", "fsio", "tensor", "codes", "text", "model"]),
    ("predict", &["diag", "stop", "fsio", "http", "codes", "text", "data", "model", "decode"]),
    ("serve", &["diag", "stop", "tensor", "codes", "text", "data", "model", "decode", "predict"]),
    ("config", &["diag", "fsio", "adapter"]),
    ("track", &["diag", "stop", "fsio", "http"]),
    ("train", &["diag", "stop", "fsio", "tensor", "text", "data", "quant", "adapter", "model", "config", "track"]),
    ("eval", &["diag", "stop", "fsio", "codes", "text", "data", "model", "decode", "track"]),
    ("check", &["diag", "stop", "tensor", "text", "quant", "adapter", "model", "decode", "config", "train"]),
    ("export", &["diag", "stop", "fsio", "tensor", "quant", "adapter", "model", "text", "decode"]),
    ("hub", &["diag", "stop", "fsio", "http", "track"]),
    (
        "pipeline",
        &[
            "diag", "stop", "fsio", "http", "tensor", "codes", "text", "data", "quant", "adapter", "model", "decode",
            "config", "track", "train", "eval", "export",
        ],
    ),
    (
        "doctor",
        &[
            "diag", "stop", "fsio", "http", "codes", "adapter", "model", "config", "track", "text", "train", "hub",
            "pipeline",
        ],
    ),
    (
        "cli",
        &[
            "diag", "stop", "fsio", "http", "tensor", "codes", "text", "data", "quant", "adapter", "model", "decode",
            "predict", "serve", "config", "track", "train", "eval", "check", "export", "hub", "pipeline", "doctor",
        ],
    ),
];

/// Files that hold a table or generated data, exempt from the length rule.
const TABLES: &[&str] = &[];

const MAX_LINES: usize = 800;

fn source_files() -> Vec<PathBuf> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    walk(&root.join("src"), &mut files);
    walk(&root.join("tests"), &mut files);
    files.sort();
    assert!(files.len() > 10, "the walk found almost nothing");
    files
}

fn name_of(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_string_lossy().into_owned()
}

/// The first path segment under `src/`: `src/quant/nf4.rs` is in `quant`, `src/diag.rs` in `diag`.
fn module_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("src/")?;
    let module = rest.split('/').next()?.trim_end_matches(".rs");
    (!["lib", "main"].contains(&module)).then_some(module)
}

/// The modules that a source text names as `crate::module` or in `use crate::{module, ...}`.
fn imports_of(text: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for after in line.split("crate::").skip(1) {
            assert!(!after.starts_with('{'), "write one `use crate::module` a line, so that edges can be read: {line}");
            found.insert(after.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap());
        }
    }
    found
}

#[test]
fn imports_go_downwards_only() {
    let mut faults = Vec::new();
    for path in source_files() {
        let name = name_of(&path);
        let Some(module) = module_of(&name) else { continue };
        let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == module) else {
            faults.push(format!("{name}: module `{module}` is not in LAYERS"));
            continue;
        };
        for import in imports_of(&std::fs::read_to_string(&path).unwrap()) {
            if import != module && !allowed.contains(&import) {
                faults.push(format!("{name}: `{module}` may not use `{import}`"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn layers_are_listed_from_the_bottom_up() {
    for (idx, (module, allowed)) in LAYERS.iter().enumerate() {
        for below in *allowed {
            assert!(LAYERS[..idx].iter().any(|(name, _)| name == below), "`{module}` uses `{below}`, listed later");
        }
    }
}

#[test]
fn files_are_short_and_open_with_what_they_hold() {
    let mut faults = Vec::new();
    for path in source_files() {
        let name = name_of(&path);
        let text = std::fs::read_to_string(&path).unwrap();
        let n_lines = text.lines().count();
        if n_lines > MAX_LINES && !TABLES.contains(&name.as_str()) {
            faults.push(format!("{name}: {n_lines} lines, at most {MAX_LINES}"));
        }
        if !text.starts_with("//!") {
            faults.push(format!("{name}: does not open with `//!`"));
        }
        if ["utils", "util", "common", "helpers", "misc"].iter().any(|word| path.file_stem().unwrap() == *word) {
            faults.push(format!("{name}: name the concept it holds"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A read holds the host up until all enqueued work is done: `tensor::read` is the one way, and the trainer counts it.
#[test]
fn a_training_step_reads_no_device() {
    let step = [
        "src/train/head.rs",
        "src/train/objective/orpo.rs",
        "src/train/step.rs",
        "src/train/task.rs",
        "src/train/trainer.rs",
        "src/model/attention.rs",
        "src/model/block.rs",
        "src/model/block_backward.rs",
        "src/model/fused.rs",
        "src/model/norm.rs",
        "src/model/packing.rs",
        "src/model/projection.rs",
        "src/model/projection_backward.rs",
        "src/model/rope.rs",
    ];
    let reads = ["double_value", "int64_value", "copy_data", "to_device(", "try_from(&", "f_item", "nonzero"];
    for path in source_files().iter().filter(|path| step.contains(&name_of(path).as_str())) {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for read in reads {
            assert!(!code.contains(read), "{}: `{read}` may wait for a GPU", name_of(path));
        }
    }
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    for path in source_files() {
        let name = name_of(&path);
        let is_room = ["src/quant/kernels/", "src/tensor/cuda/", "src/tensor/memory.rs"]
            .iter()
            .any(|room| name.starts_with(room));
        let text = std::fs::read_to_string(&path).unwrap();
        if !is_room && name != "tests/it/tidy.rs" {
            assert!(
                !text.contains("allow(unsafe_code)"),
                "{name}: unsafe code belongs in a kernel, tensor/cuda or tensor/memory.rs"
            );
        }
    }
}
