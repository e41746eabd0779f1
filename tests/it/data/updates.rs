//! Records of other people's making, the continual update, and a look into a file.

use std::path::Path;

use axismapper::codes::Release;
use axismapper::data::dedup::{DedupSettings, grams, jaccard};
use axismapper::data::record::Scenario;
use axismapper::fsio;

use super::cli::{check, lines, report, run, user_texts};

#[test]
fn records_of_others_are_taken_in() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let table =
        "id\tNote\tICD-10\n1\tFever and jaw pain\tr50.9\n2\tHigh blood pressure, asthma\tI10; J45909\n3\tFlu\t487.1\n";
    std::fs::write(dir.join("notes.tsv"), table).unwrap();
    let columns = "--text-column Note --codes-column ICD-10";
    let valid = report(dir, &format!("data validate --in notes.tsv {columns} --out v.jsonl --rejected r.jsonl"));
    assert_eq!((&valid["n_kept"], &valid["dropped"]["unknown_code"]), (&2.into(), &1.into()));
    let kept = lines(dir.join("v.jsonl"));
    assert_eq!(kept[1]["codes"], serde_json::json!(["I10", "J45.909"]));
    assert_eq!(
        (kept[1]["scenario"].as_str(), kept[1]["id"].as_str()),
        (Some("High blood pressure, asthma"), Some("2"))
    );
    assert_eq!(lines(dir.join("r.jsonl"))[0]["detail"], "487.1");
    let split = report(dir, "data split --in v.jsonl --out-dir sets");
    assert_eq!(
        split["n_train"].as_u64().unwrap() + split["n_val"].as_u64().unwrap() + split["n_test"].as_u64().unwrap(),
        2
    );

    let told = check(dir, &format!("data inspect notes.tsv {columns}"));
    for part in
        ["3 records", "1 records with a code that is not billable", "J45.909", "22 chapters", "Fever and jaw pain"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    let output = run(dir, "data validate --in notes.tsv --out v.jsonl");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("--text-column") && told.contains("`Note`"), "{told}");
}

/// The built-in release with J45.998 renamed, without R68.84, and with a code of its own, R68.85.
fn next_release(dir: &Path) {
    let table = Release::builtin().unwrap().to_table().unwrap();
    let find = |code: &str| {
        let place = table.lines().position(|line| line.split('\t').next() == Some(code));
        place.unwrap_or_else(|| panic!("{code} is not in the table"))
    };
    let mut lines: Vec<String> = table.lines().map(str::to_owned).collect();
    let renamed = find("J45.998");
    assert!(lines[renamed].contains("Other asthma"), "{}", lines[renamed]);
    lines[renamed] = lines[renamed].replace("Other asthma", "Asthma of thunderstorms");
    let moved = find("R68.84");
    lines[moved] = lines[moved].replace("R68.84", "R68.85").replace("Jaw pain", "Feeling of walking on wool");
    assert!(lines[moved].contains("walking on wool"), "{}", lines[moved]);
    std::fs::write(dir.join("next.table"), lines.join("\n") + "\n").unwrap();
}

#[test]
fn a_new_release_becomes_a_stage_ready_to_train() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    next_release(dir);
    let chat = |text: &str, codes: &str| {
        let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
        serde_json::json!({"messages": [turn("system", "s"), turn("user", text), turn("assistant", codes)]})
    };
    let old: Vec<_> = (0..200)
        .map(|idx| match idx % 4 {
            0 => chat(&format!("jaw pain, case {idx}"), "R68.84"),
            1 => chat(&format!("jaw pain and high blood pressure, case {idx}"), "I10, R68.84"),
            _ => chat(&format!("high blood pressure, case {idx}"), "I10"),
        })
        .collect();
    fsio::write_jsonl(&dir.join("old.jsonl"), &old).unwrap();
    let args = "data update --to next.table --old old.jsonl --ratio 0.5 --per-code 40 --model m --init-adapter a";
    let made = report(dir, &format!("{args} --out-dir up"));
    assert_eq!((&made["n_added"], &made["n_renamed"], &made["n_deleted"]), (&1.into(), &1.into(), &1.into()), "{made}");
    assert_eq!((&made["old"]["n_unchanged"], &made["old"]["dropped"]["R68.84"]), (&100.into(), &100.into()));
    let train = lines(dir.join("up/train.jsonl"));
    let answers = |records: &[serde_json::Value], code: &str| {
        records.iter().filter(|record| record["messages"][2]["content"].as_str().unwrap().contains(code)).count()
    };
    assert_eq!(train.len() as u64, made["n_new_train"].as_u64().unwrap() + 50);
    assert_eq!(answers(&train, "R68.84"), 0);
    assert!(answers(&train, "R68.85") > 10 && answers(&train, "J45.998") > 10, "{made}");
    assert!(answers(&lines(dir.join("up/test.jsonl")), "") > 0);

    // A release is named as everywhere else.
    std::fs::create_dir_all(dir.join("kept/releases")).unwrap();
    std::fs::copy(dir.join("next.table"), dir.join("kept/releases/2027.table")).unwrap();
    let named = args.replace("--to next.table", "--from 2026-april --to 2027 --cache-dir kept");
    assert_eq!(report(dir, &format!("{named} --out-dir named")), made);
    assert_eq!(lines(dir.join("named/train.jsonl")), train);

    // With a table of conversions the old records go on under the new code.
    std::fs::write(dir.join("map.csv"), "new,old\nR68.85,R68.84\n").unwrap();
    let mapped = report(dir, &format!("{args} --conversion map.csv --out-dir mapped"));
    assert_eq!((&mapped["old"]["n_remapped"], &mapped["n_old_taken"]), (&100.into(), &100.into()), "{mapped}");
    assert!(answers(&lines(dir.join("mapped/train.jsonl")), "R68.85") > answers(&train, "R68.85"));

    let stage = axismapper::config::load(&dir.join("up/stage.yaml"), &[]).unwrap().stage;
    let text = format!("{stage:?}");
    for part in ["up/train.jsonl", "up/val.jsonl", "\"m\"", "\"a\""] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let output = run(dir, "data update --to builtin --old old.jsonl --out-dir none");
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn no_near_duplicates_cross_the_sets_and_none_of_test_is_in_a_pair() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let settings = "generate:\n  codes:\n    prefixes: [I10, J45.90, E11.9]\n  n_records: 1200\n  n_variants: 2\n";
    for (name, hold_out) in [("held", "true"), ("shared", "false")] {
        std::fs::write(dir.join("data.yaml"), format!("{settings}split:\n  hold_out_families: {hold_out}\n")).unwrap();
        let made = report(dir, &format!("data build --config data.yaml --out-dir {name}"));
        assert!(made["dedup"]["n_near"].as_u64().unwrap() > 20, "there is nothing to find: {}", made["dedup"]);
        let sets = ["train", "val", "test"].map(|set| lines(dir.join(format!("{name}/{set}.jsonl"))));
        let texts: Vec<(usize, Vec<u64>)> = sets
            .iter()
            .enumerate()
            .flat_map(|(set, records)| {
                user_texts(records, "messages").into_iter().map(move |text| (set, grams(&text, 5)))
            })
            .collect();
        assert!(sets.iter().all(|set| set.len() > 10), "{}", made["split"]);
        for (idx, (set, one)) in texts.iter().enumerate() {
            for (_, other) in texts[idx + 1..].iter().filter(|(of, _)| of != set) {
                assert!(jaccard(one, other) < DedupSettings::default().threshold, "a pair crosses the sets");
            }
        }
        // No case crosses either: its group decides.
        let unique: Vec<Scenario> = fsio::read_jsonl(&dir.join(format!("{name}/unique.jsonl"))).unwrap();
        let groups = sets.each_ref().map(|records| {
            let texts = user_texts(records, "messages");
            let of_set = unique.iter().filter(|record| texts.contains(&record.scenario));
            of_set.map(|record| record.group.clone()).collect::<std::collections::BTreeSet<_>>()
        });
        assert!(
            groups[0].is_disjoint(&groups[1]) && groups[0].is_disjoint(&groups[2]) && groups[1].is_disjoint(&groups[2])
        );
        let test = user_texts(&sets[2], "messages");
        for pairs in ["orpo_train", "orpo_val"] {
            let pairs = lines(dir.join(format!("{name}/{pairs}.jsonl")));
            assert!(!pairs.is_empty() && user_texts(&pairs, "prompt").is_disjoint(&test));
        }
    }
}
