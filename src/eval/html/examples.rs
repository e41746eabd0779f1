//! Where answers go wrong: kinds of mistake, confused categories, and the worst answers in full.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::markup::{Row, Text, count, percent};
use crate::codes::{Code, Release};
use crate::eval::{Confusion, Example, Fault, Mistake, Mistakes, is_compliant};

/// Categories of the heat map.
const N_CATEGORIES: usize = 10;

/// Confusions listed with their words.
const N_LISTED: usize = 8;

/// Characters of a question or an answer that are shown.
const MAX_CHARS: usize = 600;

/// The section on kinds of mistake and confused categories.
pub(super) fn mistakes(mistakes: &Mistakes, release: &Release) -> String {
    let mut html = String::from("<section>\n<h2>Where does it go wrong?</h2>\n");
    let n: usize = mistakes.faults.values().sum();
    if n == 0 {
        return html + "<p class=\"lead\">No answer is wrong.</p>\n</section>\n";
    }
    html += "<p class=\"lead\">Each code that is missing or too many, as a share of all such mistakes. A missing code and the most similar one that came in its place are one mistake.</p>\n";
    for fault in Fault::ALL {
        let n_here = mistakes.faults.get(&fault).copied().unwrap_or(0);
        let share = n_here as f64 / n as f64;
        let note = format!("({})", count(n_here));
        let row = Row {
            label: spoken(fault),
            note: &note,
            value: share,
            interval: None,
            full: 1.0,
            target: None,
            is_main: true,
        };
        // Writing to a String cannot fail.
        let _ = write!(html, "{row}");
    }
    if !mistakes.confusions.is_empty() {
        html += "<div class=\"grid2\" style=\"margin-top:22px\">\n<div><h3>Confused categories</h3>\n<p class=\"note\">Rows: expected. Columns: predicted instead.</p>\n";
        html += &heat_map(&mistakes.confusions, release);
        html += "</div>\n<div><h3>Most frequent</h3>\n";
        html += &listed(&mistakes.confusions, release);
        html += "</div>\n</div>\n";
    }
    html + "</section>\n"
}

fn spoken(fault: Fault) -> &'static str {
    match fault {
        Fault::NotBillable => "Not a billable code",
        Fault::SeventhCharacter => "Wrong 7th character",
        Fault::SameCategory => "Other code, right category",
        Fault::SameChapter => "Other category, right chapter",
        Fault::OtherChapter => "Other chapter",
        Fault::Missing => "Code missing",
        Fault::Added => "Code too many",
    }
}

/// The categories that are confused most, each with each.
fn heat_map(confusions: &[Confusion], release: &Release) -> String {
    let mut totals: BTreeMap<Code, usize> = BTreeMap::new();
    for confusion in confusions {
        for category in [confusion.expected, confusion.predicted] {
            *totals.entry(category).or_default() += confusion.n;
        }
    }
    let mut categories: Vec<(Code, usize)> = totals.into_iter().collect();
    categories.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
    let mut categories: Vec<Code> = categories.into_iter().take(N_CATEGORIES).map(|(code, _)| code).collect();
    categories.sort();
    let most = confusions.iter().map(|confusion| confusion.n).max().unwrap_or(1) as f64;

    let mut html = String::from("<div class=\"scroll\"><table class=\"heat\"><thead><tr><th></th>");
    let head = |code: Code| {
        let title = release.description(code).unwrap_or_default();
        format!("<th title=\"{}\">{code}</th>", Text(title))
    };
    categories.iter().for_each(|&code| html += &head(code));
    html += "</tr></thead>\n<tbody>\n";
    for &expected in &categories {
        let _ = write!(html, "<tr>{}", head(expected));
        for &predicted in &categories {
            let found = confusions.iter().find(|c| c.expected == expected && c.predicted == predicted);
            let _ = match found {
                _ if expected == predicted => write!(html, "<td class=\"same\">·</td>"),
                Some(Confusion { n, .. }) => {
                    let heat = 0.15 + 0.55 * (*n as f64 / most).sqrt();
                    write!(html, "<td class=\"hit\" style=\"--heat:{heat:.2}\">{}</td>", count(*n))
                }
                None => write!(html, "<td></td>"),
            };
        }
        html += "</tr>\n";
    }
    html + "</tbody></table></div>\n"
}

fn listed(confusions: &[Confusion], release: &Release) -> String {
    let mut html = String::from("<table class=\"pairs\"><tbody>\n");
    for Confusion { expected, predicted, n } in confusions.iter().take(N_LISTED) {
        let words = |code: &Code| {
            let words = release.description(*code).map(|text| Text(text).to_string()).unwrap_or_default();
            format!("<span class=\"code\">{code}</span> {words}")
        };
        let _ = writeln!(
            html,
            "<tr><td class=\"n\"><b>{}×</b></td><td>{}<br/><span class=\"quiet\">taken for</span> {}</td></tr>",
            count(*n),
            words(expected),
            words(predicted)
        );
    }
    html + "</tbody></table>\n"
}

/// The section of the worst answers.
pub(super) fn worst(examples: &[Example], release: &Release) -> String {
    if examples.is_empty() {
        return String::new();
    }
    let has_confidence = examples.iter().any(|example| example.answer.confidence.is_some());
    let order =
        if has_confidence { "Wrong answers that the model was surest of come first" } else { "The most wrong first" };
    let mut html = format!(
        "<section>\n<h2>Worst answers</h2>\n<p class=\"lead\">{order}; at most two with the same right codes. What to read before trusting the figures above.</p>\n"
    );
    examples.iter().for_each(|example| html += &card(example, release));
    html + "</section>\n"
}

fn card(example: &Example, release: &Release) -> String {
    let answer = &example.answer;
    let mut html =
        format!("<div class=\"example\">\n<div class=\"meta\"><span>record {}</span>", count(example.number));
    if let Some(confidence) = answer.confidence {
        let _ = write!(html, "<span>confidence {} %</span>", percent(confidence));
    }
    if !answer.family.is_empty() {
        let _ = write!(html, "<span>{}</span>", Text(&answer.family));
    }
    html += "</div>\n";
    if !answer.scenario.is_empty() {
        let _ = writeln!(html, "<p class=\"said\">{}</p>", Text(&cut(&answer.scenario)));
    }
    html += "<dl class=\"answer\">\n";
    let words = |code: Code| match release.description(code) {
        Some(text) => format!("<span class=\"code\">{code}</span> {}", Text(text)),
        None => format!("<span class=\"code\">{code}</span> <span class=\"quiet\">(unknown)</span>"),
    };
    for code in &example.right {
        let _ = writeln!(html, "<dt class=\"met\">✓ Right</dt><dd>{}</dd>", words(*code));
    }
    for Mistake { expected, predicted, fault } in &example.mistakes {
        let _ = write!(html, "<dt class=\"missed\">✗ {}</dt><dd>", spoken(*fault));
        if let Some(code) = expected {
            let _ = write!(html, "<span class=\"quiet\">expected</span> {}", words(*code));
        }
        if expected.is_some() && predicted.is_some() {
            html += "<br/>";
        }
        if let Some(code) = predicted {
            let _ = write!(html, "<span class=\"quiet\">predicted</span> {}", words(*code));
        }
        html += "</dd>\n";
    }
    if answer.output.is_empty() {
        html += "<dt>Output</dt><dd class=\"quiet\">(nothing)</dd>\n";
    } else if !is_compliant(&answer.output) {
        let _ = writeln!(html, "<dt>Output</dt><dd class=\"raw\">{}</dd>", Text(&cut(&answer.output)));
    }
    html + "</dl>\n</div>\n"
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
