//! The page: well-formed, without outside resources, and with nothing from data that could be markup.

use axismapper::codes::Release;
use axismapper::eval::{Answer, Evaluation, Stage};
use roxmltree::{Document, Node};

const EVIL: &str =
    "</p><script>alert('x')</script>\"><img src=\"https://example.org/a.png\" onerror=alert(1)>&nbsp;\u{7}";

/// An evaluation in which every text from data is `EVIL` or holds it.
fn evil() -> Evaluation {
    let release = Release::builtin().unwrap();
    let expected = ["S82.201A, V18.4XXA", "S82.201A", "I10", "S82.202A", "R54"];
    let answers: Vec<Answer> = ["S92.001A", "I10", EVIL, "S82.201, C50.911", ""]
        .iter()
        .enumerate()
        .map(|(idx, output)| Answer {
            expected: expected[idx].into(),
            output: format!("{output}{}", if idx == 1 { EVIL } else { "" }),
            confidence: Some(0.2 * idx as f64 + 0.1),
            family: EVIL.into(),
            scenario: format!("{EVIL}{idx}"),
        })
        .collect();
    let stage = |name: &str| Stage::of_answers(name, &answers, &release, 1);
    let mut evaluation = Evaluation::new(stage(EVIL), &answers, vec![stage(&format!("{EVIL}2"))], &release, 1).unwrap();
    evaluation.release = EVIL.into();
    evaluation
}

fn written(evaluation: &Evaluation) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.html");
    evaluation.write_html(&path, &Release::builtin().unwrap()).unwrap();
    std::fs::read_to_string(path).unwrap()
}

/// Parses the page as XML, which every `<` or `&` that came through would break or change.
fn parsed(html: &str) -> Document<'_> {
    let body = html.strip_prefix("<!DOCTYPE html>\n").unwrap();
    Document::parse(body).unwrap_or_else(|error| panic!("{error}"))
}

fn texts<'a>(document: &'a Document<'_>, class: &'a str) -> Vec<String> {
    let all = document.descendants().filter(move |node| node.attribute("class") == Some(class));
    all.map(|node| node.descendants().filter(Node::is_text).filter_map(|text| text.text()).collect()).collect()
}

#[test]
fn nothing_from_data_becomes_markup() {
    let html = written(&evil());
    let document = parsed(&html);
    for node in document.descendants().filter(Node::is_element) {
        let name = node.tag_name().name();
        assert!(!["script", "img", "iframe", "object", "link", "a", "form"].contains(&name), "<{name}>");
        for attribute in node.attributes() {
            assert!(!attribute.name().starts_with("on") && attribute.name() != "src", "{}", attribute.name());
        }
    }
    // It is there all the same, as text, with what no page may hold replaced.
    let shown = EVIL.replace('\u{7}', "\u{fffd}");
    let heads: Vec<_> = document.descendants().filter(|node| node.has_tag_name("h1")).collect();
    assert_eq!(heads[0].text(), Some(shown.as_str()));
    assert!(texts(&document, "said").contains(&format!("{shown}3")));
    assert!(texts(&document, "raw").contains(&shown));
    assert!(texts(&document, "meta").iter().all(|text| text.contains(&shown)));
    assert!(document.descendants().any(|node| node.has_tag_name("dd") && node.text() == Some("(nothing)")));
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let release = Release::builtin().unwrap();
    let answers = [Answer { confidence: Some(0.5), ..Answer::new("I10", "R54") }];
    let stage = Stage::of_answers("tuned", &answers, &release, 1);
    let html = written(&Evaluation::new(stage, &answers, Vec::new(), &release, 1).unwrap());
    for part in ["://", "url(", "@import", "<script", "src="] {
        assert!(!html.contains(part), "the page holds `{part}`");
    }
    assert!(html.contains("default-src 'none'") || html.contains("default-src &#39;none&#39;"));
}

#[test]
fn every_section_is_there_when_it_has_something_to_show() {
    let titles = |evaluation: &Evaluation| -> Vec<String> {
        let html = written(evaluation);
        let document = parsed(&html);
        document
            .descendants()
            .filter(|node| node.has_tag_name("h2"))
            .filter_map(|node| node.text())
            .map(str::to_owned)
            .collect()
    };
    let all = [
        "Is it better?",
        "Stages compared",
        "Can its confidence be trusted?",
        "Where does it go wrong?",
        "By chapter",
        "By number of codes",
        "By wording",
        "Worst answers",
        "How to read the figures",
    ];
    assert_eq!(titles(&evil()), all);

    let release = Release::builtin().unwrap();
    let right = [Answer::new("I10", "I10")];
    let plain = Stage::of_answers("plain", &right, &release, 1);
    let plain = Evaluation::new(plain, &right, Vec::new(), &release, 1).unwrap();
    let few = ["Figures", "Where does it go wrong?", "By chapter", "By number of codes", "How to read the figures"];
    assert_eq!(titles(&plain), few);
}

#[test]
fn the_figures_on_the_page_are_those_of_the_report() {
    let release = Release::builtin().unwrap();
    let mut answers = vec![Answer { confidence: Some(0.97), ..Answer::new("S82.201A", "S82.201A") }; 3];
    answers.push(Answer { confidence: Some(0.55), ..Answer::new("S82.201A", "S92.001A") });
    let stage = Stage::of_answers("tuned", &answers, &release, 1);
    let html = written(&Evaluation::new(stage, &answers, Vec::new(), &release, 1).unwrap());
    let document = parsed(&html);
    assert_eq!(texts(&document, "number"), ["75.0 %", "75.0 %", "100.0 %", "0.0 %"]);
    let statuses: Vec<_> = document
        .descendants()
        .filter(|node| node.attribute("class").is_some_and(|class| class.starts_with("status")))
        .filter_map(|node| node.text())
        .collect();
    assert_eq!(statuses[0], "✓ target met (≥\u{a0}65\u{a0}%)");
    assert_eq!(statuses[1], "✗ target missed (≥\u{a0}84\u{a0}%)");
    // One confusion, of S82 with S92; one card, with the wrong code in words.
    let hits: Vec<_> =
        document.descendants().filter(|n| n.attribute("class") == Some("hit")).map(|n| n.text()).collect();
    assert_eq!(hits, [Some("1")]);
    let cards = texts(&document, "answer");
    assert!(cards.len() == 1 && cards[0].contains("Unspecified fracture of right calcaneus"), "{cards:?}");
}
