//! The figures by chapter, by number of codes and by wording family.

use std::fmt::Write as _;

use super::markup::{Row, counted};
use crate::codes::Release;
use crate::eval::{Group, Report};

/// Families shown at once; the others are folded away.
const MAX_FAMILIES: usize = 10;

/// The three sections; one without groups is left out.
pub(super) fn all(report: &Report, release: &Release) -> String {
    let title_of = |number: u8| {
        let chapter = release.chapters().iter().find(|chapter| chapter.number == number);
        chapter.map_or_else(|| format!("Chapter {number}"), |chapter| format!("{number}. {}", chapter.title))
    };
    let chapters: Vec<(String, &Group)> =
        report.by_chapter.iter().map(|(&number, group)| (title_of(number), group)).collect();
    let code_counts: Vec<(String, &Group)> =
        report.by_code_count.iter().map(|(&n, group)| (counted(n, "code"), group)).collect();
    let mut families: Vec<(String, &Group)> =
        report.by_family.iter().map(|(name, group)| (name.clone(), group)).collect();
    families.sort_by(|a, b| a.1.figures.exact_match.total_cmp(&b.1.figures.exact_match));
    let mut html = String::new();
    html += &section("By chapter", "Exact match, by the chapter of the first expected code.", &chapters, usize::MAX);
    html += &section("By number of codes", "Exact match, by how many codes are expected.", &code_counts, usize::MAX);
    let lead = "Exact match, by how the question is worded; the hardest wording first.";
    html + &section("By wording", lead, &families, MAX_FAMILIES)
}

fn section(title: &str, lead: &str, groups: &[(String, &Group)], n_shown: usize) -> String {
    if groups.is_empty() {
        return String::new();
    }
    let mut html = format!("<section class=\"wide\">\n<h2>{title}</h2>\n<p class=\"lead\">{lead}</p>\n");
    let (shown, folded) = groups.split_at(n_shown.min(groups.len()));
    shown.iter().for_each(|group| html += &row(group));
    if !folded.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(html, "<details><summary>{} more</summary>", folded.len());
        folded.iter().for_each(|group| html += &row(group));
        html += "</details>\n";
    }
    html + "</section>\n"
}

fn row((label, group): &(String, &Group)) -> String {
    let note = counted(group.n, "record");
    let (value, interval) = group.figure("exact_match").unwrap_or_default();
    Row { label, note: &note, value, interval: Some(interval), full: 1.0, target: None, is_main: true }.to_string()
}
