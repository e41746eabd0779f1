//! Evaluations as a whole: where answers go wrong, before and after, and the files that show it.

mod cli;
mod confidence;
mod page;

use axismapper::codes::{Code, Release};
use axismapper::eval::{
    Answer, Earlier, Evaluation, Fault, Side, Stage, Verdict, compare, mistakes_in, score_all, search_answers,
};
use axismapper::stop::Stop;

fn code(text: &str) -> Code {
    Code::parse(text).unwrap()
}

fn answer(scenario: &str, expected: &str, output: &str) -> Answer {
    Answer { scenario: scenario.into(), ..Answer::new(expected, output) }
}

/// The mistakes of an answer, each as its codes and kind.
#[track_caller]
fn check_mistakes(expected: &str, output: &str, wanted: &[(&str, &str, Fault)]) {
    let release = Release::builtin().unwrap();
    let optional = |text: &str| (!text.is_empty()).then(|| code(text));
    let found: Vec<_> = mistakes_in(&Answer::new(expected, output), &release)
        .into_iter()
        .map(|mistake| (mistake.expected, mistake.predicted, mistake.fault))
        .collect();
    let wanted: Vec<_> = wanted.iter().map(|(a, b, fault)| (optional(a), optional(b), *fault)).collect();
    assert_eq!(found, wanted, "{expected} against {output}");
}

#[test]
fn a_mistake_is_named_by_what_it_misses() {
    check_mistakes("S82.201A", "S82.201A", &[]);
    check_mistakes("S82.201A", "S82.201D", &[("S82.201A", "S82.201D", Fault::SeventhCharacter)]);
    check_mistakes("S82.201A", "S82.202A", &[("S82.201A", "S82.202A", Fault::SameCategory)]);
    check_mistakes("S82.201A", "S82.201", &[("S82.201A", "S82.201", Fault::NotBillable)]);
    check_mistakes("S82.201A", "S92.001A", &[("S82.201A", "S92.001A", Fault::SameChapter)]);
    check_mistakes("S82.201A", "I10", &[("S82.201A", "I10", Fault::OtherChapter)]);
    check_mistakes("S82.201A", "a broken leg", &[("S82.201A", "", Fault::Missing)]);
    check_mistakes("S82.201A", "S82.201A, I10", &[("", "I10", Fault::Added)]);
    check_mistakes("S82.201A", "S82.201A, I10.99", &[("", "I10.99", Fault::NotBillable)]);
}

#[test]
fn the_most_similar_codes_are_paired_first() {
    check_mistakes(
        "S82.201A, V18.4XXA, I10",
        "V18.5XXA, S92.001A, S82.202A, I10",
        &[
            ("S82.201A", "S82.202A", Fault::SameCategory),
            ("V18.4XXA", "V18.5XXA", Fault::SameCategory),
            ("", "S92.001A", Fault::Added),
        ],
    );
}

/// `n_right` right answers of `n`, to questions that are numbered from `first`.
fn answers(first: usize, n: usize, is_right: impl Fn(usize) -> bool) -> Vec<Answer> {
    let output = |idx| if is_right(idx) { "I10" } else { "R54" };
    (first..first + n).map(|idx| answer(&format!("question {idx}"), "I10", output(idx))).collect()
}

#[test]
fn a_comparison_counts_what_turned_and_says_so() {
    let release = Release::builtin().unwrap();
    // Of 60 records the second gets 20 to 59 right, the first 30 to 49 and 0 to 4.
    let before = score_all(&answers(0, 60, |idx| idx < 5 || (30..50).contains(&idx)), &release);
    let after = score_all(&answers(0, 60, |idx| idx >= 20), &release);
    let (before, after) = (Side { name: "base", records: &before }, Side { name: "tuned", records: &after });

    let found = compare(before, after, 1).unwrap();
    assert_eq!((found.n, found.n_gained, found.n_lost, found.verdict), (60, 20, 5, Verdict::Better));
    // 2 (C(25,0) + ... + C(25,5)) / 2^25
    assert!((found.p_value - 2.0 * 68_406.0 / 33_554_432.0).abs() < 1e-12, "{}", found.p_value);
    let rise = found.difference("exact_match").unwrap();
    assert!((rise.before - 25.0 / 60.0).abs() < 1e-12 && (rise.after - 40.0 / 60.0).abs() < 1e-12, "{rise:?}");
    // The rise is 15 of 60; its standard error sqrt((25 - 15 * 15 / 60) / 60^2) is 0.0768.
    assert!((rise.interval.low - 0.10).abs() < 0.03 && (rise.interval.high - 0.40).abs() < 0.03, "{rise:?}");
    for part in ["`tuned` is better than `base`", "41.7 % -> 66.7 %", "same 60 records", "20 wrong", "p = 0.004"] {
        assert!(found.statement.contains(part), "`{part}` is not in: {}", found.statement);
    }

    let back = compare(after, before, 1).unwrap();
    assert_eq!((back.n_gained, back.n_lost, back.verdict), (5, 20, Verdict::Worse));
    assert!(back.statement.contains("`base` is worse than `tuned`"), "{}", back.statement);

    let same = compare(after, after, 1).unwrap();
    assert_eq!((same.p_value, same.verdict), (1.0, Verdict::Undecided));
    assert!(same.statement.contains("get the same records right"), "{}", same.statement);
}

#[test]
fn only_records_of_both_are_compared() {
    let release = Release::builtin().unwrap();
    let before = score_all(&answers(0, 30, |_| true), &release);
    let mut later = answers(10, 30, |idx| idx % 2 == 0);
    later[0].expected = "R54".into();
    later.reverse();
    let after = score_all(&later, &release);
    let found = compare(Side { name: "a", records: &before }, Side { name: "b", records: &after }, 1).unwrap();
    assert_eq!((found.n, found.n_relabelled, found.n_only_before, found.n_only_after), (19, 1, 10, 10));
    assert_eq!((found.n_gained, found.n_lost), (0, 10));
    assert!(found.statement.contains("left out: 10 only in `a`, 10 only in `b`, 1 with other"), "{}", found.statement);
    let strangers = score_all(&answers(100, 5, |_| true), &release);
    assert!(compare(Side { name: "a", records: &before }, Side { name: "c", records: &strangers }, 1).is_none());
}

#[test]
fn a_small_difference_is_not_called_one() {
    let release = Release::builtin().unwrap();
    let before = score_all(&answers(0, 40, |idx| idx != 3), &release);
    let after = score_all(&answers(0, 40, |idx| ![5, 6, 7].contains(&idx)), &release);
    let found = compare(Side { name: "a", records: &before }, Side { name: "b", records: &after }, 1).unwrap();
    assert_eq!((found.n_gained, found.n_lost, found.verdict), (1, 3, Verdict::Undecided));
    assert!((found.p_value - 0.625).abs() < 1e-12, "{}", found.p_value);
    assert!(
        found.statement.starts_with("No difference between `b` and `a` that these records can show"),
        "{}",
        found.statement
    );
}

#[test]
fn a_report_can_be_read_again_and_compared_with() {
    let release = Release::builtin().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let first = answers(0, 20, |idx| idx % 4 == 0);
    let stage = Stage::of_answers("first", &first, &release, 3);
    let evaluation = Evaluation::new(stage.clone(), &first, Vec::new(), &release, 3).unwrap();
    evaluation.write_json(&path).unwrap();

    let text = std::fs::read_to_string(&path).unwrap();
    let lines = text.lines().filter(|line| line.contains("\"question\":")).count();
    assert_eq!(lines, 20, "a record is a line");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["name"], &json["overall"]["exact_match"]), (&"first".into(), &0.25.into()));
    // Through text, because reading a number may cost its last bit.
    let summary = serde_json::to_string(&evaluation.summary()).unwrap();
    let mut summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    summary["records"] = json["records"].clone();
    assert_eq!(json, summary);

    let earlier = Earlier::read(&path).unwrap();
    assert_eq!(earlier.records, stage.records);
    let again = Stage::of_records(earlier.name, earlier.records, &release, 3);
    assert_eq!(again, stage, "every figure follows from the records");
}

#[test]
fn the_baseline_is_the_best_hit_of_the_search() {
    let release = Release::builtin().unwrap();
    let asked = [answer("essential (primary) hypertension", "I10", ""), answer("xqzzk wvvkj", "R54", "R54")];
    let mut n_done = 0;
    let found = search_answers(&asked, &release, &Stop::default(), |n| n_done += n).unwrap();
    assert_eq!(found[0].output, "I10");
    assert_eq!((found[1].expected.as_str(), found[1].output.as_str(), n_done), ("R54", "", 2));
    let without = search_answers(&[Answer::new("I10", "")], &release, &Stop::default(), |_| ()).unwrap_err();
    assert!(without.to_string().contains("record 1 has no `scenario`"), "{without}");
}
