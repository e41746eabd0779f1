//! Words to codes, and what changes between two releases.

use std::sync::LazyLock;

use axismapper::codes::{Release, SearchIndex, diff};

use crate::codes::BUILTIN;

static INDEX: LazyLock<SearchIndex> = LazyLock::new(|| SearchIndex::of(&BUILTIN));

fn found(text: &str, limit: usize) -> Vec<String> {
    INDEX.search(text, limit).iter().map(|hit| hit.code.to_string()).collect()
}

#[test]
fn words_lead_to_their_codes() {
    for (text, expected) in [
        ("essential hypertension", "I10"),
        ("type 2 diabetes without complications", "E11.9"),
        ("cholera biovar eltor", "A00.1"),
        // The plural, words in another order, the seventh character asked for.
        ("shaft fractures of right tibia unspecified", "S82.201A"),
        ("unspecified fracture shaft right tibia sequela", "S82.201S"),
        // Slips in the spelling, and an unfinished last word.
        ("esential hypertensoin", "I10"),
        ("age-related physical debil", "R54"),
        // Words of an inclusion term only.
        ("frailty", "R54"),
    ] {
        let found = found(text, 5);
        assert!(found.iter().any(|code| code == expected), "{text}: {found:?}");
    }
    assert!(found("", 5).is_empty() && found("of the", 5).is_empty() && found("qqqqqqqqqq", 5).is_empty());
    assert_eq!(found("fracture", 7).len(), 7);
}

/// Most descriptions lead back to their own code. Leaves share words, hence a share and not all.
#[test]
fn descriptions_find_their_own_codes() {
    let (mut n_asked, mut n_first) = (0, 0);
    for billable in BUILTIN.billable().iter().step_by(997) {
        n_asked += 1;
        n_first += usize::from(INDEX.search(&billable.description, 1).iter().any(|hit| hit.code == billable.code));
    }
    assert!(n_asked > 70 && n_first * 10 >= n_asked * 8, "{n_first} of {n_asked}");
}

#[test]
fn hits_are_ranked_and_the_same_each_time() {
    let hits = INDEX.search("diabetes with kidney disease", 20);
    assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
    assert_eq!(hits, INDEX.search("diabetes with kidney disease", 20));
    assert!(hits.iter().all(|hit| BUILTIN.is_billable(hit.code)));
}

#[test]
fn a_new_release_is_compared_with_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("next.table");
    let table = BUILTIN.to_table().unwrap();
    let changes = [
        // I10 is renamed and gets codes below it; A00.1 is deleted; R54 is only renamed.
        ("\nI10\tEssential (primary) hypertension\n", "\nI10\tHypertension\nI10.0\tPrimary\nI10.1\tSecondary\n"),
        ("\nA00.1\t", "\nA00.5\t"),
        ("\nR54\tAge-related physical debility\n", "\nR54\tFrailty of age\n"),
        ("1\ttype 2 diabetes mellitus (E11.-)\n", "1\ttype 2 diabetes (E11.-)\n"),
        ("\nend\t46881", "\nend\t46883"),
    ];
    let next = changes.iter().fold(table, |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    });
    std::fs::write(&path, next).unwrap();
    let next = Release::load(&path).unwrap();
    let diff = diff(&BUILTIN, &next);
    let added: Vec<String> = diff.added.iter().map(|entry| entry.code.to_string()).collect();
    assert_eq!(added, ["A00.5", "I10.0", "I10.1"]);
    let deleted: Vec<(String, usize)> =
        diff.deleted.iter().map(|entry| (entry.code.to_string(), entry.now_below.len())).collect();
    assert_eq!(deleted, [("A00.1".into(), 0), ("I10".into(), 2)]);
    assert_eq!((diff.renamed.len(), diff.renamed[0].new), (1, "Frailty of age"));
    // The notes that were under I10 now stand under I10.1, which is new.
    let changed: Vec<String> = diff.notes.iter().map(|change| format!("{} {}", change.code, change.kind)).collect();
    assert_eq!(changed, ["E08 excludes1", "I10 includes", "I10 excludes1", "I10 excludes2"]);
    assert_eq!(diff.notes[0].added, ["type 2 diabetes (E11.-)"]);
    let same = axismapper::codes::diff(&BUILTIN, &BUILTIN);
    assert!(same.added.is_empty() && same.deleted.is_empty() && same.renamed.is_empty() && same.notes.is_empty());
}
