//! Checking sets of codes: the status of each, the rules about the set, and the commands that report them.

use std::process::Command;

use axismapper::codes::{Check, Rule, Severity, Status, check, nearest};

use crate::codes::{BUILTIN, code};

fn checked(texts: &[&str]) -> Check<'static> {
    check(&BUILTIN, texts)
}

/// `rule!` for an error and `rule?` for a warning.
fn faults(texts: &[&str]) -> Vec<String> {
    let mark = |severity| if severity == Severity::Error { "!" } else { "?" };
    checked(texts).faults.iter().map(|fault| format!("{:?}{}", fault.rule, mark(fault.severity))).collect()
}

#[test]
fn sets_are_judged_by_the_rules_of_the_list() {
    for (texts, expected, claimable) in [
        (&["S82.201A", "V18.4XXA"][..], &[][..], true),
        (&["s82201a", " v18.4xxa "], &[], true),
        (&["I10"], &[], true),
        (&["E11.9", "I10"], &[], true),
        (&["E10.9", "E11.9"], &["Excludes1!"], false),
        (&["I10", "I10", "I10"], &["Duplicate!"], false),
        // Never first: external causes, and what other diseases manifest.
        (&["V18.4XXA"], &["ExternalCauseFirst!"], false),
        (&["V18.4XXA", "S82.201A"], &["ExternalCauseFirst!"], false),
        (&["M01.X0"], &["ManifestationFirst!"], false),
        (&["B95.0", "N39.0"], &["ManifestationFirst!"], false),
        // "Code first" decides an order where both codes are there, and warns where they are not.
        (&["I50.9"], &["CodeFirst?"], true),
        (&["I50.9", "I11.0"], &["CodeFirst?", "CodeFirst!"], false),
        (&["I11.0", "I50.9"], &[], true),
        (&["S82.201A", "S82.201"], &[], false),
        (&[], &[], false),
    ] {
        assert_eq!(faults(texts), expected, "{texts:?}");
        assert_eq!(checked(texts).claimable, claimable, "{texts:?}");
    }
    let check = checked(&["E11.9", "E10.9"]);
    let fault = &check.faults[0];
    assert_eq!((fault.rule, fault.note), (Rule::Excludes1, Some("type 2 diabetes mellitus (E11.-)")));
}

/// For each text its status, what it says of it, and the first code it offers.
#[test]
fn a_code_that_is_not_billable_is_explained() {
    for (text, status, reason, offered) in [
        ("S82.201", "not billable", "it needs a 7th character: A initial encounter for closed fracture, B", "S82.201A"),
        ("S82", "not billable", "it is a header of", "S82.001A"),
        ("A00", "not billable", "it is a header of 3 billable codes", "A00.0"),
        ("V18.4", "not billable", "it needs a 7th character: A initial encounter, D", "V18.4XXA"),
        ("V18.4A", "unknown", "the placeholder X is missing before the 7th character: V18.4XXA", "V18.4XXA"),
        ("S82.201Z", "unknown", "S82.201 has no 7th character Z; it has A initial", "S82.201A"),
        ("S06.1X7D", "unknown", "S06.1X7 has no 7th character D; it has A initial encounter", "S06.1X7A"),
        ("I10.9", "unknown", "I10 is complete; nothing may follow it", "I10"),
        ("A00.00", "unknown", "A00.0 is complete; nothing may follow it", "A00.0"),
        ("A00.2", "unknown", "", "A00.0"),
        ("E11.99", "unknown", "E11.9 is complete", "E11.9"),
        ("fever", "not a code", "", ""),
    ] {
        let check = checked(&[text]);
        let (found, said, offers) = match &check.codes[0].status {
            Status::Billable { .. } => ("billable", "", None),
            Status::NotBillable { reason, below, .. } => ("not billable", reason.as_str(), below.first()),
            Status::Unknown { reason, nearest } => ("unknown", reason.as_deref().unwrap_or_default(), nearest.first()),
            Status::NotACode => ("not a code", "", None),
        };
        assert_eq!(found, status, "{text}");
        assert!(said.starts_with(reason), "{text}: {said}");
        assert_eq!(offers.map(|offer| offer.code.to_string()).unwrap_or_default(), offered, "{text}");
        assert!(!check.claimable, "{text}");
    }
}

#[test]
fn the_nearest_codes_share_the_category_or_one_slip() {
    let near = |text: &str| -> Vec<String> {
        nearest(&BUILTIN, code(text)).iter().map(|billable| billable.code.to_string()).collect()
    };
    assert_eq!(near("A00.2")[..3], ["A00.0", "A00.1", "A00.9"]);
    // No such category: one character swapped or changed leads to a known one.
    assert!(near("Q10.A").iter().all(|found| found.starts_with("Q10")), "{:?}", near("Q10.A"));
    assert!(!near("U99").is_empty());
    assert!(near("S82.201Z").iter().all(|found| found.starts_with("S82.2")));
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_axismapper")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_says_what_to_change_and_exits_with_1() {
    let (status, out, err) = run(&["codes", "check", "S82.201A, I10, S82.201"]);
    assert_eq!(status, Some(1));
    assert!(out.contains("S82.201A  billable      Unspecified fracture of shaft of right tibia, initial"), "{out}");
    assert!(out.contains("S82.201   not billable") && out.contains("and 8 more"), "{out}");
    assert_eq!(
        err,
        "error: the set is not claimable: 1 code is not billable\n  \
         hint: the lines above say which codes, and what to use instead\n"
    );
    assert_eq!(run(&["codes", "check", "S82.201A", "V18.4XXA"]).0, Some(0));
    assert_eq!(run(&["codes", "check"]).0, Some(2));
    let (status, out, _) = run(&["codes", "check", "--json", "E10.9,E11.9"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &json["claimable"]), (Some(1), &false.into()));
    assert_eq!((&json["codes"][0]["status"], &json["faults"][0]["rule"]), (&"billable".into(), &"excludes1".into()));
    let (status, out, _) = run(&["codes", "show", "s82201a"]);
    assert_eq!(status, Some(0));
    assert!(out.starts_with("S82.201A  billable\n") && out.contains("    S82.20      "), "{out}");
    let (status, _, err) = run(&["codes", "show", "A00.2"]);
    assert_eq!(status, Some(1));
    assert!(err.contains("`A00.2` is not in FY2026 April") && err.contains("A00.0, A00.1, A00.9"), "{err}");
}

#[test]
fn a_file_is_checked_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sets.txt");
    std::fs::write(&path, "S82.201A, V18.4XXA\n{\"scenario\": \"x\", \"codes\": [\"I10\", \"I10\"]}\n\nI10\n").unwrap();
    let path = path.to_str().unwrap();
    let (status, out, err) = run(&["codes", "check", "--input", path]);
    assert_eq!(status, Some(1));
    assert!(out.starts_with("line 2:\n") && out.contains("error: I10 is given more than once"), "{out}");
    assert!(err.starts_with("error: 1 of 3 sets are not claimable\n"), "{err}");
    let (_, out, _) = run(&["codes", "check", "--json", "--input", path]);
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["line"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 4]);
}

#[test]
fn build_writes_what_every_command_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (json, table) = (dir.path().join("codes.json"), dir.path().join("codes.table"));
    let (json, table) = (json.to_str().unwrap(), table.to_str().unwrap());
    let xml = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/icd10cm/icd10cm-tabular-April-1-2026.xml.gz");
    let (status, out, _) = run(&["codes", "build", "--tabular", xml, "--out", json, "--dry-run"]);
    assert_eq!(status, Some(0));
    assert!(out.starts_with("FY2026 April: 74,719 billable codes from 46,881 entries; 76 Excludes1 and "), "{out}");
    assert!(!std::path::Path::new(json).exists());
    let (_, out, _) = run(&["codes", "build", "--tabular", xml, "--out", table, "--verbose"]);
    assert_eq!(out.lines().filter(|line| line.starts_with("  excludes1 ")).count(), 76);
    assert!(out.lines().any(|line| line.starts_with("  code_first ")), "{out}");
    assert_eq!(std::fs::read_to_string(table).unwrap(), BUILTIN.to_table().unwrap());
    assert_eq!(run(&["codes", "build", "--tabular", table, "--out", json]).0, Some(0));
    let (status, out, _) = run(&["codes", "check", "--codes", json, "S82.201A"]);
    assert_eq!(status, Some(0), "{out}");
    let (status, _, err) = run(&["codes", "build", "--tabular", json, "--out", table]);
    assert_eq!(status, Some(1));
    assert!(err.contains("a `.table` needs a tabular list"), "{err}");
}

#[test]
fn build_holds_the_list_against_an_order_file() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, skip: &str| {
        let path = dir.path().join(name);
        let billable = BUILTIN.billable().iter().filter(|billable| billable.code.to_string() != skip);
        let lines: String =
            billable.map(|billable| format!("{:<8}{}\n", billable.code.undotted(), billable.description)).collect();
        std::fs::write(&path, lines.replacen("Essential (primary)", "Primary", 1)).unwrap();
        path.to_string_lossy().into_owned()
    };
    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/icd10cm/fy2026-april.table");
    let build = |order: &str| run(&["codes", "build", "--tabular", table, "--dry-run", "--order", order]);
    let (status, out, err) = build(&write("same.txt", ""));
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains("the order file has the same codes; 1 are worded otherwise"), "{out}");
    let (status, _, err) = build(&write("less.txt", "R54"));
    assert_eq!(status, Some(1));
    assert!(err.contains("less.txt") && err.contains("1 only there (R54)"), "{err}");
}
