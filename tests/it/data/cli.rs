//! `axismapper data` end to end: generate, validate, dedup, split, pairs, build, replay.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

pub fn run(dir: &Path, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    command.current_dir(dir).args(args.split(' ')).output().unwrap()
}

/// Runs a command that must succeed and returns what it prints.
pub fn check(dir: &Path, args: &str) -> String {
    let output = run(dir, args);
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn report(dir: &Path, args: &str) -> Value {
    serde_json::from_str(&check(dir, &format!("{args} --json"))).unwrap()
}

pub fn lines(path: impl AsRef<Path>) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn user_texts(records: &[Value], turns: &str) -> BTreeSet<String> {
    records.iter().map(|record| record[turns][1]["content"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_steps_lead_from_codes_to_training_files() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let made = report(dir, "data generate --demo -n 3000 --seed 8 --out raw.jsonl");
    assert_eq!((made["n_records"].as_u64(), made["n_codes_left_out"].as_u64()), (Some(3000), Some(0)));
    // Three unfit records: a header, no code at all, and a text that gives its code away.
    let mut raw = std::fs::read_to_string(dir.join("raw.jsonl")).unwrap();
    raw.push_str("{\"scenario\":\"a\",\"codes\":[\"S82.201\"],\"note\":1}\n{\"scenario\":\"b\",\"codes\":[\"flu\"]}\n");
    raw.push_str("{\"scenario\":\"it is i10.9 or s82.201a\",\"codes\":[\"s82201a\"]}\n");
    std::fs::write(dir.join("raw.jsonl"), raw).unwrap();

    let valid = report(dir, "data validate --in raw.jsonl --out valid.jsonl --rejected rejected.jsonl");
    assert_eq!(valid["n_kept"], 3000);
    for reason in ["not_billable", "unknown_code", "leaked_code"] {
        assert_eq!(valid["dropped"][reason], 1, "{valid}");
    }
    let rejected = lines(dir.join("rejected.jsonl"));
    assert!(rejected.iter().any(|record| record["reason"] == "unknown_code" && record["detail"] == "flu"));
    assert!(rejected.iter().any(|record| record["reason"] == "not_billable" && record["note"] == 1));

    let unique = report(dir, "data dedup --in valid.jsonl --out unique.jsonl");
    assert!(unique["n_kept"].as_u64().unwrap() > 2500, "{unique}");
    let split = report(dir, "data split --in unique.jsonl --out-dir sets");
    let sets: Vec<Vec<Value>> =
        ["train", "val", "test"].iter().map(|name| lines(dir.join(format!("sets/{name}.jsonl")))).collect();
    assert_eq!(sets.iter().map(Vec::len).sum::<usize>() as u64, unique["n_kept"].as_u64().unwrap());
    let families = |set: &[Value]| set.iter().map(|record| record["family"].to_string()).collect::<BTreeSet<_>>();
    assert!(families(&sets[0]).is_disjoint(&families(&sets[2])) && families(&sets[1]).is_disjoint(&families(&sets[2])));
    assert_eq!(split["held_out_families"].as_array().unwrap().len(), families(&sets[2]).len());

    let pairs = report(dir, "data pairs --in unique.jsonl --out-dir sets");
    let train = lines(dir.join("sets/orpo_train.jsonl"));
    let val = lines(dir.join("sets/orpo_val.jsonl"));
    assert_eq!(
        (train.len() as u64, val.len() as u64),
        (pairs["train"]["n_pairs"].as_u64().unwrap(), pairs["val"]["n_pairs"].as_u64().unwrap())
    );
    assert!(user_texts(&train, "prompt").is_subset(&user_texts(&sets[0], "messages")));
    assert!(user_texts(&val, "prompt").is_subset(&user_texts(&sets[1], "messages")));

    check(dir, "data replay --new sets/val.jsonl --old sets/train.jsonl --ratio 0.1 --out mix.jsonl");
    assert_eq!(lines(dir.join("mix.jsonl")).len(), sets[1].len() + (sets[0].len() as f64 * 0.1).round() as usize);
}

#[test]
fn build_makes_all_files_and_goes_on_after_an_interruption() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    std::fs::write(dir.join("own.csv"), "note,icd\nmy blood pressure is too high,I10\nno such thing,Q00.77\n").unwrap();
    let own = "records:\n  - path: own.csv\n    columns: {text: note, codes: icd}\n";
    let settings = format!("generate:\n  codes:\n    prefixes: [J45, J18]\n  n_records: 1500\n{own}");
    std::fs::write(dir.join("data.yaml"), settings).unwrap();
    let whole = report(dir, "data build --config data.yaml --out-dir a");
    const SETS: [&str; 5] = ["train", "val", "test", "orpo_train", "orpo_val"];
    for name in ["raw", "valid", "rejected", "unique", "duplicates"].iter().chain(&SETS) {
        assert!(dir.join(format!("a/{name}.jsonl")).exists(), "{name}");
    }
    assert_eq!((&whole["validate"]["n_kept"], &whole["validate"]["n_read"]), (&1501.into(), &1502.into()), "{whole}");
    assert_eq!(lines(dir.join("a/rejected.jsonl"))[0]["reason"], "unknown_code");

    // The manifest names every file with its hash, the settings and the counts.
    let manifest: Value = serde_json::from_slice(&std::fs::read(dir.join("a/manifest.json")).unwrap()).unwrap();
    let steps = manifest["steps"].as_object().unwrap();
    assert_eq!(steps.keys().collect::<Vec<_>>(), ["generate", "validate", "dedup", "split", "pairs"]);
    assert_eq!(steps["generate"]["settings"][0]["seed"], 17);
    assert_eq!(steps["generate"]["release"]["n_codes"], 74_719);
    assert_eq!(steps["validate"]["inputs"][1]["path"], "own.csv");
    assert_eq!(steps["split"]["report"], whole["split"]);
    for output in steps.values().flat_map(|step| step["outputs"].as_array().unwrap()) {
        let path = dir.join("a").join(output["path"].as_str().unwrap());
        assert_eq!(axismapper::fsio::sha256_file(&path).unwrap(), output["sha256"].as_str().unwrap());
    }

    // As a run that was killed in its 701st record leaves things.
    let raw = std::fs::read_to_string(dir.join("a/raw.jsonl")).unwrap();
    let cut: usize = raw.lines().take(700).map(|line| line.len() + 1).sum();
    check(dir, "data build --config data.yaml --out-dir b");
    std::fs::create_dir(dir.join("c")).unwrap();
    let settings = format!("[\"{}\",{}]", whole["release"].as_str().unwrap(), settings_of(dir));
    std::fs::write(dir.join("c/raw.jsonl.partial.settings.json"), settings).unwrap();
    std::fs::write(dir.join("c/raw.jsonl.partial"), format!("{}{{\"scen", &raw[..cut])).unwrap();
    check(dir, "data build --config data.yaml --out-dir c");
    let read = |set: &str, name: &str| std::fs::read(dir.join(format!("{set}/{name}"))).unwrap();
    for name in SETS.map(|name| format!("{name}.jsonl")).iter().chain(["manifest.json".to_owned()].iter()) {
        assert!(read("a", name) == read("b", name) && read("a", name) == read("c", name), "{name}");
    }

    // What is done is not done again; what is gone, or made of something else now, is.
    let made = |name: &str| std::fs::metadata(dir.join(format!("a/{name}.jsonl"))).unwrap().modified().unwrap();
    let (raw_made, unique_made, train_made) = (made("raw"), made("unique"), made("train"));
    let before = read("a", "val.jsonl");
    std::fs::remove_file(dir.join("a/val.jsonl")).unwrap();
    assert_eq!(report(dir, "data build --config data.yaml --out-dir a"), whole);
    assert_eq!(read("a", "val.jsonl"), before);
    assert_eq!((made("raw"), made("unique")), (raw_made, unique_made));
    assert_ne!(made("train"), train_made);
    std::fs::write(dir.join("own.csv"), "note,icd\nmy blood pressure is too high,I10\n").unwrap();
    let other = report(dir, "data build --config data.yaml --out-dir a");
    assert_eq!((&other["validate"]["n_read"], made("raw")), (&1501.into(), raw_made));
}

/// The settings of generation in force, as JSON.
fn settings_of(dir: &Path) -> String {
    use axismapper::data::generate::Selection;
    use axismapper::data::generate::template::TemplateSettings;
    assert!(check(dir, "data build --config data.yaml --dry-run").contains("n_records: 1500"));
    let codes = Selection { prefixes: vec!["J45".into(), "J18".into()], ..Selection::default() };
    serde_json::to_string(&TemplateSettings { codes, n_records: 1500, ..TemplateSettings::default() }).unwrap()
}

#[test]
fn wrong_requests_say_what_is_wrong() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    std::fs::write(dir.join("data.yaml"), "generate:\n  n_record: 5\n").unwrap();
    for (args, status, part) in [
        ("data generate --provider openai --out x.jsonl", 2, "`--provider openai`"),
        ("data dedup --in data.yaml --out x.jsonl --threshold 0", 2, "`dedup.threshold`"),
        ("data generate --prefix QQQ --out x.jsonl", 2, "`QQQ`"),
        ("data build --config data.yaml", 2, "n_record"),
        ("data dedup --in none.jsonl --out x.jsonl", 1, "none.jsonl"),
    ] {
        let output = run(dir, args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{args}: {told}");
        assert!(told.contains(part), "{args}: {told}");
    }
    assert_eq!(check(dir, "data generate --demo --out x.jsonl --dry-run").lines().count(), 5);
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
}
