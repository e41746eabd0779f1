//! Words to codes, and what changes between two releases.

use axismapper::codes::{Release, SearchIndex, diff};

use crate::codes::{BUILTIN, INDEX};

fn found(text: &str, limit: usize) -> Vec<String> {
    INDEX.search(text, limit).unwrap().iter().map(|hit| hit.code.to_string()).collect()
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

/// What patients, claim developers and doctors type, slips included: the first hit.
#[test]
fn people_find_what_they_mean_in_their_own_words() {
    let mut missed = Vec::new();
    for (text, expected) in [
        ("broken shin bone left", "S82.202A"),
        ("shin fracture right sequela", "S82.201S"),
        ("sugar diabetes", "E11.9"),
        ("diabetes", "E11.9"),
        ("gestational diabetes", "O24.419"),
        ("diabetes insipidus", "E23.2"),
        ("breast cancer left", "C50.912"),
        ("t2dm with kidney disease", "E11.22"),
        ("hart atack", "I21.9"),
        ("heart att", "I21.9"),
        ("high blood pressure", "I10"),
        ("copd", "J44.9"),
        ("asthma", "J45.909"),
        ("stroke", "I63.9"),
        ("lower back pain", "M54.50"),
        ("shortness of breath", "R06.02"),
        ("pink eye", "H10.9"),
        ("ear infection right ear", "H66.91"),
        ("broken left wrist", "S62.102A"),
        ("twisted ankle", "S93.409A"),
        ("sprained right ankle", "S93.401A"),
        ("kidney stones", "N20.0"),
        ("urinary tract infection", "N39.0"),
        ("uti", "N39.0"),
        ("depression", "F32.A"),
        ("pnemonia", "J18.9"),
        ("migraine", "G43.909"),
        ("gallstones", "K80.20"),
        ("high cholesterol", "E78.00"),
        ("acid reflux", "K21.9"),
        ("covid", "U07.1"),
        ("afib", "I48.91"),
        ("nosebleed", "R04.0"),
        ("open fracture left femur shaft", "S72.302B"),
        ("fell off my bike", "V18.0XXA"),
        ("dog bite", "W54.0XXA"),
        ("I have type I diabetes", "E10.9"),
        ("S82.20", "S82.201A"),
    ] {
        let found = found(text, 3);
        if found.first().is_none_or(|first| first != expected) {
            missed.push(format!("{text}: {expected} expected, {found:?} found"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// A whole word is what was meant before the words that it begins: `flu` before `fluid`, `heart` before `heartburn`.
/// The last word may be unfinished all the same.
#[test]
fn a_whole_word_comes_before_what_it_begins() {
    for (text, beginnings) in [
        ("flu", &["J09", "J10", "J11"][..]),
        ("the flu", &["J09", "J10", "J11"]),
        ("fever flu", &["J09", "J10", "J11", "R50"]),
        ("flu ", &["J09", "J10", "J11"]),
        ("heart", &["I", "S26"]),
    ] {
        let found = found(text, 5);
        let fits = |code: &String| beginnings.iter().any(|beginning| code.starts_with(beginning));
        assert!(found.len() == 5 && found.iter().all(fits), "{text}: {found:?}");
    }
    for (text, expected) in [("influ", "J11.1"), ("heartb", "K21.9"), ("nosebl", "R04.0")] {
        assert_eq!(found(text, 1), [expected], "{text}");
    }
}

/// The index is kept where it can be, and its absence or damage changes no answer.
#[test]
fn a_kept_index_answers_as_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let kept = |cache: &std::path::Path| {
        let index = SearchIndex::open(&*BUILTIN, cache).unwrap();
        let hits = index.search("broken shin bone left", 5).unwrap();
        hits.iter().map(|hit| (hit.code, hit.score.to_bits())).collect::<Vec<_>>()
    };
    let first = kept(dir.path());
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(kept(dir.path()), first);
    for damage in [&b"axismapper-search 1\n"[..], b"", b"axismapper-search 1\n\x08\0\0\0\0\0\0\0meta"] {
        std::fs::write(&files[0], damage).unwrap();
        assert_eq!(kept(dir.path()), first);
        assert!(std::fs::metadata(&files[0]).unwrap().len() > 100_000, "the damaged file is replaced");
    }
    // A folder that cannot be made: a file stands in its place.
    assert_eq!(kept(&files[0].join("below")), first);
}

/// Most descriptions lead back to their own code. Leaves share words, hence a share and not all.
#[test]
fn descriptions_find_their_own_codes() {
    let (mut n_asked, mut n_first) = (0, 0);
    for billable in BUILTIN.billable().iter().step_by(997) {
        n_asked += 1;
        n_first +=
            usize::from(INDEX.search(&billable.description, 1).unwrap().iter().any(|hit| hit.code == billable.code));
    }
    assert!(n_asked > 70 && n_first * 10 >= n_asked * 8, "{n_first} of {n_asked}");
}

#[test]
fn hits_are_ranked_and_the_same_each_time() {
    let hits = INDEX.search("diabetes with kidney disease", 20).unwrap();
    assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
    assert_eq!(hits, INDEX.search("diabetes with kidney disease", 20).unwrap());
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
    // As people read it.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_axismapper"));
    let output = command.args(["codes", "diff", "builtin"]).arg(&path).arg("--notes").output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows[0], "change        code   description");
    for row in [
        "added         I10.0  Primary",
        "deleted       I10    Essential (primary) hypertension",
        "                     now a header, 2 codes from I10.0",
        "renamed       R54    Age-related physical debility",
        "                     now: Frailty of age",
        "note added    E08    excludes1: type 2 diabetes (E11.-)",
        "note deleted  E08    excludes1: type 2 diabetes mellitus (E11.-)",
    ] {
        assert!(rows.contains(&row), "{row}: {table}");
    }
    let same = axismapper::codes::diff(&BUILTIN, &BUILTIN);
    assert!(same.added.is_empty() && same.deleted.is_empty() && same.renamed.is_empty() && same.notes.is_empty());
}
