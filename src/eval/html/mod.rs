//! `report.html`: an evaluation as one page for people.
//!
//! No scripts and no outside resources, so that it can be sent and opened anywhere; light or dark as the reader's
//! system is; one column on a phone. The page is well-formed XML after its first line. All text from data goes through
//! [`markup::Text`].

mod charts;
mod examples;
mod groups;
mod markup;

use std::fmt::Write as _;

use markup::{Row, Text, count, counted, percent, round_up, spoken};

use super::{Bound, Calibration, Comparison, Evaluation, Figures, Stage, TARGETS, Target, Verdict};
use crate::codes::Release;

const STYLE: &str = include_str!("style.css");

/// Nothing may be loaded or run, whatever the page holds.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Figures shown stage by stage.
const CHARTED: [&str; 6] =
    ["exact_match", "f1", "principal_accuracy", "category_f1", "format_compliance", "hallucination_rate"];

/// The whole page. `release` gives the words of codes.
pub(super) fn page(evaluation: &Evaluation, release: &Release) -> String {
    let result = &evaluation.result;
    let name = Text(&result.name);
    let n = counted(result.report.overall.n, "record");
    let mut html = format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="{}"/>
<meta name="referrer" content="no-referrer"/>
<title>{name}: evaluation</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<header>
<p class="brand">AxisMapper evaluation</p>
<h1>{name}</h1>
<p class="lead">{n}, checked against {}. Ranges are 95 % intervals: where the figure would lie with another draw of as many records.</p>
</header>
"#,
        Text(POLICY),
        Text(&evaluation.release)
    );
    html += &tiles(result);
    html += &comparisons(&evaluation.comparisons);
    html += &stages(evaluation);
    if let Some(calibration) = &result.report.calibration {
        html += &confidence(calibration, &evaluation.others);
    }
    html += &examples::mistakes(&evaluation.mistakes, release);
    html += &groups::all(&result.report, release);
    html += &examples::worst(&evaluation.mistakes.worst, release);
    html += TERMS;
    html += "</main>\n</body>\n</html>\n";
    html
}

/// The figures that have a target, each with whether it is met.
fn tiles(result: &Stage) -> String {
    let mut html = String::from("<div class=\"tiles\">\n");
    for Target { figure, bound } in TARGETS {
        let Some((value, interval)) = result.report.overall.figure(figure) else { continue };
        let (class, status) =
            if bound.is_met(value) { ("met", "✓ target met") } else { ("missed", "✗ target missed") };
        // Writing to a String cannot fail.
        let _ = write!(
            html,
            r#"<div class="tile"><div class="name">{}</div><div class="number">{}<span> %</span></div>
<div class="note">{}–{} %</div><div class="status {class}">{status} ({})</div></div>
"#,
            spoken(figure),
            percent(value),
            percent(interval.low),
            percent(interval.high),
            bound_text(bound)
        );
    }
    html + "</div>\n"
}

fn bound_text(bound: Bound) -> String {
    match bound {
        Bound::AtLeast(least) => format!("≥\u{a0}{:.0}\u{a0}%", 100.0 * least),
        Bound::Below(limit) => format!("&lt;\u{a0}{:.0}\u{a0}%", 100.0 * limit),
    }
}

/// What the comparisons say.
fn comparisons(comparisons: &[Comparison]) -> String {
    if comparisons.is_empty() {
        return String::new();
    }
    let mut html =
        String::from("<section>\n<h2>Is it better?</h2>\n<p class=\"lead\">The same records, before and after.</p>\n");
    for comparison in comparisons {
        let (class, head) = match comparison.verdict {
            Verdict::Better => ("better", "▲ Better"),
            Verdict::Worse => ("worse", "▼ Worse"),
            Verdict::Undecided => ("", "= No difference shown"),
        };
        let _ = writeln!(html, r#"<div class="verdict {class}"><b>{head}</b>{}</div>"#, Text(&comparison.statement));
    }
    html + "</section>\n"
}

/// Every stage beside the others: bars for the main figures, a table of all.
fn stages(evaluation: &Evaluation) -> String {
    let title = if evaluation.others.is_empty() { "Figures" } else { "Stages compared" };
    let mut html = format!(
        "<section>\n<h2>{title}</h2>\n<p class=\"lead\">In per cent. A dashed line is a target.</p>\n<div class=\"grid2\">\n"
    );
    for name in CHARTED {
        let figures: Vec<_> =
            evaluation.stages().filter_map(|stage| Some((stage, stage.report.overall.figure(name)?))).collect();
        let target = TARGETS.iter().find(|target| target.figure == name).map(|target| target.bound);
        let highest = figures.iter().map(|(_, (_, interval))| interval.high).fold(0.0, f64::max);
        // Rates of faults are small; their scale ends where they do.
        let full = if Figures::is_fault(name) { round_up(highest.max(0.02)) } else { 1.0 };
        let scale = if full < 1.0 { format!("scale to {:.0} %, ", 100.0 * full) } else { String::new() };
        let sense = if Figures::is_fault(name) { "lower is better" } else { "" };
        let note = match (scale.is_empty(), sense.is_empty()) {
            (true, true) => String::new(),
            _ => format!(" <span class=\"note\">({scale}{sense})</span>"),
        };
        let _ = writeln!(html, "<div><h3>{}{note}</h3>", sentence(&spoken(name)));
        for (stage, (value, interval)) in figures {
            let is_main = std::ptr::eq(stage, &evaluation.result);
            let row = Row { label: &stage.name, note: "", value, interval: Some(interval), full, target, is_main };
            let _ = write!(html, "{row}");
        }
        html += "</div>\n";
    }
    html += "</div>\n";
    html += &table(evaluation);
    html + "</section>\n"
}

fn table(evaluation: &Evaluation) -> String {
    let mut html = String::from(
        "<details><summary>All figures</summary>\n<div class=\"scroll\"><table class=\"figures\"><thead><tr><th>%</th>",
    );
    for stage in evaluation.stages() {
        let _ = write!(html, "<th class=\"n\">{}</th>", Text(&stage.name));
    }
    html += "</tr></thead>\n<tbody>\n";
    for (idx, name) in Figures::NAMES.iter().enumerate() {
        let _ = write!(html, "<tr><th>{}</th>", spoken(name));
        for stage in evaluation.stages() {
            let interval = stage.report.overall.intervals[idx];
            let _ = write!(
                html,
                "<td class=\"n\">{} <span class=\"note\">{}–{}</span></td>",
                percent(stage.report.overall.figures.values()[idx]),
                percent(interval.low),
                percent(interval.high)
            );
        }
        html += "</tr>\n";
    }
    html += "<tr><th>records</th>";
    for stage in evaluation.stages() {
        let _ = write!(html, "<td class=\"n\">{}</td>", count(stage.report.overall.n));
    }
    html + "</tr>\n</tbody></table></div></details>\n"
}

/// The two curves, and how many answers could go out unread.
fn confidence(calibration: &Calibration, others: &[Stage]) -> String {
    let others: Vec<(&str, &Calibration)> =
        others.iter().filter_map(|stage| Some((stage.name.as_str(), stage.report.calibration.as_ref()?))).collect();
    let auroc = match calibration.auroc {
        Some(auroc) => format!(
            " Of a right and a wrong answer, the right one is the surer in {} % of pairs (50 is chance).",
            percent(auroc)
        ),
        None => String::new(),
    };
    let mut html = format!(
        r#"<section>
<h2>Can its confidence be trusted?</h2>
<p class="lead">{} with a confidence. It is off by {} points on average (expected calibration error; Brier score {:.3}).{auroc}</p>
<div class="grid2">
<figure>{}<figcaption>Reliability. On the dashed line, answers with a confidence of 80 % are right in 80 % of cases; below it the model is too sure. Larger points are more answers.</figcaption></figure>
<figure>{}<figcaption>Coverage against accuracy. The further to the right the curve stays high, the more answers can go out unread.</figcaption></figure>
</div>
"#,
        counted(calibration.n, "answer"),
        percent(calibration.expected_calibration_error),
        calibration.brier_score,
        charts::reliability(calibration),
        charts::coverage(calibration, &others)
    );
    if calibration.thresholds.is_empty() {
        return html
            + "<p class=\"lead\">No confidence sets enough answers apart of which 90 % are right.</p>\n</section>\n";
    }
    html += "<div class=\"scroll\"><table><thead><tr><th>Right, wanted</th><th class=\"n\">Confidence from</th><th class=\"n\">Answers above it</th><th class=\"n\">Right among them</th></tr></thead>\n<tbody>\n";
    for threshold in &calibration.thresholds {
        let reached = threshold.reached;
        let _ = writeln!(
            html,
            "<tr><td>≥ {:.0} %</td><td class=\"n\">{:.4}</td><td class=\"n\">{} <span class=\"note\">({} %)</span></td><td class=\"n\">{} % <span class=\"note\">{}–{}</span></td></tr>",
            100.0 * threshold.wanted,
            reached.confidence,
            count(reached.n),
            percent(reached.coverage),
            percent(reached.accuracy),
            percent(reached.interval.low),
            percent(reached.interval.high)
        );
    }
    html + "</tbody></table></div>\n<p class=\"quiet note\">The thresholds are chosen on these very records; confirm one on others before relying on it.</p>\n</section>\n"
}

/// The first letter made a capital.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

const TERMS: &str = r#"<section>
<h2>How to read the figures</h2>
<dl class="terms">
<dt>Exact match</dt><dd>Records whose set of codes is exactly the right one. Order does not count, duplicates count once.</dd>
<dt>Precision, recall, F1</dt><dd>Right codes among those predicted, right codes among those expected, and their harmonic mean; for each record, then averaged. Micro F1 pools the codes of all records.</dd>
<dt>Category F1</dt><dd>The same on the first three characters: whether the condition is right, whatever its details.</dd>
<dt>Principal accuracy</dt><dd>Records whose first code, the principal diagnosis, is right.</dd>
<dt>Format compliance</dt><dd>Answers that are codes joined by a comma and a space, and nothing else.</dd>
<dt>Hallucination rate</dt><dd>Predicted codes that are not billable in the release, among all predicted codes.</dd>
<dt>Over- and under-coding rate</dt><dd>Answers with more than two codes too many; with more than one code too few.</dd>
</dl>
<footer>These figures hold for these test records. They say nothing about records of another kind. No model output should be billed, or used in care, without a coder's review.</footer>
</section>
"#;
