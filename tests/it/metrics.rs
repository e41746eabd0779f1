//! Metrics against figures worked out by hand.

use axismapper::codes::{Code, Release};
use axismapper::eval::{Answer, Figures, Outcome, TARGETS, evaluate, is_compliant, score, stage_table};

fn answer(expected: &str, output: &str) -> Answer {
    Answer::new(expected, output)
}

/// Every code but those of category S82 without a seventh character.
fn is_billable(code: Code) -> bool {
    !(code.undotted().starts_with("S82") && code.len() < 7)
}

fn outcome(expected: &str, output: &str) -> Outcome {
    score(&answer(expected, output), &is_billable)
}

#[track_caller]
fn check(outcome: &Outcome, expected: [f64; 4]) {
    let found = [outcome.precision(), outcome.recall(), outcome.f1(), outcome.category_f1()];
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}, expected {expected:?}");
}

#[test]
fn records_are_scored_as_sets() {
    let right = outcome("S82.201A, V18.4XXA", "V18.4XXA, S82.201A, S82.201A");
    check(&right, [1.0, 1.0, 1.0, 1.0]);
    assert!(right.is_exact() && right.is_compliant);
    assert_eq!((right.n_expected, right.n_predicted, right.n_right, right.n_not_billable), (2, 2, 2, 0));

    // One of two right; the other in the right category; one more that is not billable.
    let part = outcome("S82.201A, V18.4XXA", "S82.201A,V18.5XXA ,S82.201");
    check(&part, [1.0 / 3.0, 0.5, 0.4, 1.0]);
    assert!(!part.is_exact() && !part.is_compliant);
    assert_eq!((part.n_predicted, part.n_right, part.n_not_billable), (3, 1, 1));

    check(&outcome("I10", ""), [0.0; 4]);
    assert!(!outcome("I10", "").is_compliant);
    check(&outcome("", "nothing"), [1.0; 4]);
    check(&outcome("", "I10"), [0.0; 4]);
}

#[test]
fn only_canonical_codes_are_predictions() {
    for output in ["i10", "I10.", "The code is I10", "I10 (hypertension)", "S82201A", "I10; R54", "I1", "S82.201AAA"] {
        let found = outcome("I10", output);
        assert_eq!((found.n_predicted, found.is_compliant), (0, false), "{output}");
    }
    let found = outcome("I10", "Sure: here, I10, I10 and more,  \nR54");
    assert_eq!((found.n_predicted, found.n_right, found.is_compliant), (2, 1, false));
}

#[test]
fn the_principal_is_the_first_code_whatever_follows() {
    for (expected, output, is_right) in [
        ("S82.201A, V18.4XXA", "S82.201A, I10", true),
        ("S82.201A, V18.4XXA", "V18.4XXA, S82.201A", false),
        ("I10", "well, I10, R54", true),
        ("I10", "i10, I10", true),
        ("I10", "nothing", false),
        ("", "nothing", true),
        ("", "I10", false),
    ] {
        assert_eq!(outcome(expected, output).is_principal_right, is_right, "{expected}: {output}");
    }
}

#[test]
fn compliance_is_codes_joined_by_comma_and_space() {
    for text in ["I10", "I10, R54", "I10, I10", "C4A.0, S82.201A, U07.1"] {
        assert!(is_compliant(text), "{text}");
    }
    for text in ["", " ", "I10,R54", "I10, ", " I10", "I10\n", "I10 , R54", "I10,  R54", "I10 R54", "Codes: I10"] {
        assert!(!is_compliant(text), "{text:?}");
    }
}

#[test]
fn figures_are_means_over_records_and_pooled_where_said() {
    let outcomes = [
        outcome("I10", "I10"),
        outcome("S82.201A, V18.4XXA", "S82.201A, V18.5XXA, S82.201"),
        outcome("I10", "I10, R54, R52, M54.50"),
        outcome("I10, R54, R52", "R52"),
        outcome("I10, R54", "I10"),
        outcome("I10", "no idea"),
    ];
    let figures = Figures::of(&outcomes);
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a}, expected {b}");
    close(figures.exact_match, 1.0 / 6.0);
    close(figures.precision, (1.0 + 1.0 / 3.0 + 0.25 + 1.0 + 1.0 + 0.0) / 6.0);
    close(figures.recall, (1.0 + 0.5 + 1.0 + 1.0 / 3.0 + 0.5 + 0.0) / 6.0);
    close(figures.f1, (1.0 + 0.4 + 0.4 + 0.5 + 2.0 / 3.0 + 0.0) / 6.0);
    // 5 right; 1+2+1+3+2+1 = 10 expected; 1+3+4+1+1+0 = 10 predicted.
    close(figures.micro_f1, 10.0 / 20.0);
    close(figures.category_f1, (1.0 + 1.0 + 0.4 + 0.5 + 2.0 / 3.0 + 0.0) / 6.0);
    // The third record has its first code right, the fourth only its last.
    close(figures.principal_accuracy, 4.0 / 6.0);
    close(figures.format_compliance, 5.0 / 6.0);
    close(figures.hallucination_rate, 1.0 / 10.0);
    close(figures.over_coding_rate, 1.0 / 6.0);
    close(figures.under_coding_rate, 1.0 / 6.0);
    assert_eq!(figures.get("f1"), Some(figures.f1));
    assert_eq!(Figures::of(&[]), Figures::default());
}

#[test]
fn a_report_has_every_figure_with_its_interval_overall_and_by_chapter() {
    let release = Release::builtin().unwrap();
    let answers = [
        answer("S82.201A, V18.4XXA", "S82.201A, V18.4XXA"),
        answer("S82.201A", "S82.201"),
        answer("I10", "I10"),
        answer("I10", "I10 is the code"),
    ];
    let report = evaluate(&answers, &release, 1);
    assert_eq!(report.overall.n, 4);
    assert_eq!(report.by_chapter.keys().copied().collect::<Vec<_>>(), [9, 19]);
    let json = serde_json::to_value(&report).unwrap();
    for name in Figures::NAMES {
        assert!(json["overall"][name].is_f64(), "{name}");
        let [low, high] = [0, 1].map(|idx| json["overall"]["intervals"][name][idx].as_f64().unwrap());
        let value = json["overall"][name].as_f64().unwrap();
        assert!(0.0 <= low && low <= value && value <= high && high <= 1.0, "{name}: {low} {value} {high}");
    }
    assert_eq!(json["overall"]["exact_match"], 0.5);
    assert_eq!(json["overall"]["hallucination_rate"], 0.25);
    assert_eq!(json["by_chapter"]["19"]["n"], 2);
    assert_eq!(json["by_chapter"]["9"]["format_compliance"], 0.5);
    assert_eq!(evaluate(&answers, &release, 1), report);
    assert!(json.get("by_family").is_none() && json.get("calibration").is_none(), "{json}");
}

#[test]
fn records_are_grouped_by_number_of_codes_and_by_family() {
    let release = Release::builtin().unwrap();
    let of_family = |family: &str, answer: Answer| Answer { family: family.into(), ..answer };
    let answers = [
        of_family("nurse/1", answer("S82.201A, V18.4XXA", "S82.201A, V18.4XXA")),
        of_family("nurse/1", answer("I10, I10", "R54")),
        of_family("nurse/2", answer("I10", "I10")),
        answer("", "I10"),
    ];
    let report = evaluate(&answers, &release, 1);
    let shares = |json: &serde_json::Value| -> Vec<(String, u64, f64)> {
        let groups = json.as_object().unwrap().iter();
        groups.map(|(k, g)| (k.clone(), g["n"].as_u64().unwrap(), g["exact_match"].as_f64().unwrap())).collect()
    };
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(shares(&json["by_code_count"]), [("0".into(), 1, 0.0), ("1".into(), 2, 0.5), ("2".into(), 1, 1.0)]);
    assert_eq!(shares(&json["by_family"]), [("nurse/1".into(), 2, 0.5), ("nurse/2".into(), 1, 1.0)]);
    assert_eq!(shares(&json["by_chapter"]), [("9".into(), 2, 0.5), ("19".into(), 1, 1.0)]);
}

#[test]
fn the_table_says_which_targets_the_last_stage_meets() {
    let release = Release::builtin().unwrap();
    let before = evaluate(&[answer("I10", "high blood pressure"), answer("R54", "I10")], &release, 1);
    let after = evaluate(&[answer("I10", "I10"), answer("R54", "R54, I10.0")], &release, 1);
    let table = stage_table(&[("base", &before), ("ORPO", &after)], &TARGETS);
    let row = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(row("exact match").contains("0.0 (0.0-0.0)") && row("exact match").ends_with(">= 65  MISSED"), "{table}");
    assert!(row("format compliance").contains("100.0 (100.0-100.0)   >= 99     met"), "{table}");
    assert!(row("hallucination rate").ends_with("< 1  MISSED"), "{table}");
    assert!(row("records").ends_with('2'), "{table}");
    assert!(table.lines().all(|line| line.len() < 100 && line == line.trim_end()), "{table}");
    assert_eq!(table.lines().count(), 13);
}
