//! Figures as text for a terminal.

use std::fmt::Write as _;

use super::{Bound, Figures, Report, Target};

/// A table of stages side by side, in per cent: a figure a row with its interval, and whether the last stage meets the
/// targets.
pub fn stage_table(stages: &[(&str, &Report)], targets: &[Target]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let heads = stages.iter().map(|(name, _)| (*name).to_owned());
    rows.push(["%".to_owned()].into_iter().chain(heads).chain(["target".to_owned(), String::new()]).collect());
    for (idx, name) in Figures::NAMES.iter().enumerate() {
        let cells = stages.iter().map(|(_, report)| {
            let interval = report.overall.intervals[idx];
            let value = report.overall.figures.values()[idx];
            format!("{:.1} ({:.1}-{:.1})", 100.0 * value, 100.0 * interval.low, 100.0 * interval.high)
        });
        let mut row: Vec<String> = [name.replace('_', " ")].into_iter().chain(cells).collect();
        if let Some(target) = targets.iter().find(|target| target.figure == *name) {
            let is_met =
                stages.last().is_some_and(|(_, report)| target.bound.is_met(report.overall.figures.values()[idx]));
            row.push(match target.bound {
                Bound::AtLeast(least) => format!(">= {:.0}", 100.0 * least),
                Bound::Below(limit) => format!("< {:.0}", 100.0 * limit),
            });
            row.push(if is_met { "met" } else { "MISSED" }.into());
        }
        rows.push(row);
    }
    let counts = stages.iter().map(|(_, report)| report.overall.n.to_string());
    rows.push(["records".to_owned()].into_iter().chain(counts).collect());
    aligned(&rows)
}

/// Columns two spaces apart, the first to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..n_columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a String cannot fail.
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}
