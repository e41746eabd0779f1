//! Pieces of markup: text made harmless, numbers for readers, and the row with a bar that most figures are shown as.

use std::fmt;

use indicatif::HumanCount;

use crate::eval::{Bound, Interval};

/// Text from data. What has a meaning in HTML is replaced, and so is what no page may hold (control characters).
pub(super) struct Text<'a>(pub &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => out.write_str("&amp;")?,
                '<' => out.write_str("&lt;")?,
                '>' => out.write_str("&gt;")?,
                '"' => out.write_str("&quot;")?,
                '\'' => out.write_str("&#39;")?,
                '\n' | '\t' => write!(out, "{character}")?,
                '\u{fffe}' | '\u{ffff}' => write!(out, "{}", char::REPLACEMENT_CHARACTER)?,
                _ if character.is_control() => write!(out, "{}", char::REPLACEMENT_CHARACTER)?,
                _ => write!(out, "{character}")?,
            }
        }
        Ok(())
    }
}

/// A share in per cent with one decimal, without the sign.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// A number with its thousands set apart.
pub(super) fn count(n: usize) -> String {
    HumanCount(n as u64).to_string()
}

/// `1 record`, `2 records`.
pub(super) fn counted(n: usize, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// `exact_match` as `exact match`, `f1` as `F1`.
pub(super) fn spoken(figure: &str) -> String {
    figure.replace('_', " ").replace("f1", "F1")
}

/// A share as a bar with its interval.
pub(super) struct Row<'a> {
    /// What it is the share of; text, not markup.
    pub label: &'a str,
    /// A second, quieter label.
    pub note: &'a str,
    pub value: f64,
    pub interval: Option<Interval>,
    /// The share at the right end of the scale.
    pub full: f64,
    /// Where the figure should be.
    pub target: Option<Bound>,
    /// Whether this is the row that the reader came for.
    pub is_main: bool,
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |share: f64| 100.0 * (share / self.full).clamp(0.0, 1.0);
        let class = if self.is_main { "row main" } else { "row" };
        write!(out, r#"<div class="{class}"><span class="label">{}"#, Text(self.label))?;
        if !self.note.is_empty() {
            write!(out, r#" <span class="note">{}</span>"#, Text(self.note))?;
        }
        write!(out, r#"</span><span class="track"><span class="bar" style="width:{:.2}%"></span>"#, place(self.value))?;
        if let Some(Interval { low, high }) = self.interval {
            let (left, right) = (place(low), place(high));
            write!(out, r#"<span class="whisker" style="left:{left:.2}%;width:{:.2}%"></span>"#, right - left)?;
        }
        if let Some(bound) = self.target {
            write!(out, r#"<span class="target" style="left:{:.2}%"></span>"#, place(bound.value()))?;
        }
        write!(out, r#"</span><span class="value">{}"#, percent(self.value))?;
        if let Some(Interval { low, high }) = self.interval {
            write!(out, r#" <span class="note">{}–{}</span>"#, percent(low), percent(high))?;
        }
        out.write_str("</span></div>\n")
    }
}

/// The least round share that is not below `share`, to end a scale with.
pub(super) fn round_up(share: f64) -> f64 {
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].into_iter().find(|end| share <= *end).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_data_is_harmless() {
        let text = "<img src=x onerror=\"alert('1')\">&amp;\u{0}\u{1b}[31m\u{ffff}\nend";
        let shown = Text(text).to_string();
        assert_eq!(
            shown,
            "&lt;img src=x onerror=&quot;alert(&#39;1&#39;)&quot;&gt;&amp;amp;\u{fffd}\u{fffd}[31m\u{fffd}\nend"
        );
    }

    #[test]
    fn numbers_are_for_readers() {
        assert_eq!((counted(1, "record"), counted(74_719, "record")), ("1 record".into(), "74,719 records".into()));
        assert_eq!((percent(0.7594), spoken("micro_f1")), ("75.9".into(), "micro F1".into()));
        assert_eq!([0.0, 0.011, 0.3, 0.7].map(round_up), [0.01, 0.02, 0.5, 1.0]);
    }

    #[test]
    fn a_row_keeps_within_its_scale() {
        let row = Row {
            label: "a<b",
            note: "",
            value: 0.05,
            interval: Some(Interval { low: 0.0, high: 0.3 }),
            full: 0.1,
            target: Some(Bound::Below(0.01)),
            is_main: false,
        };
        let html = row.to_string();
        for part in ["a&lt;b", "width:50.00%", "left:0.00%;width:100.00%", "left:10.00%", ">5.0 "] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
    }
}
