//! Sentence frames: the committed list of wording families, and how a frame becomes a text.
//!
//! A family is one frame. Test sets hold out whole families, so that a model is judged on sentences of a shape that it
//! never saw; the phrases that fill the frames are shared.

use std::sync::LazyLock;

use crate::data::wording::Register;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The family's name, as `clinician/history-1`.
    pub(crate) family: &'static str,
    /// Who speaks.
    pub(crate) register: Register,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Always(Vec<Piece>),
    /// Left out when a slot in it is empty.
    Optional(Vec<Piece>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(&'static str),
    Slot(&'static str),
}

static FRAMES: LazyLock<Vec<Frame>> = LazyLock::new(|| {
    rows_of(include_str!("frames.tsv")).filter_map(|(family, text)| Frame::parse(family, text)).collect()
});

/// Every frame, in the order of the list.
pub(crate) fn frames() -> &'static [Frame] {
    &FRAMES
}

/// The names of all wording families.
pub fn families() -> Vec<&'static str> {
    frames().iter().map(|frame| frame.family).collect()
}

impl Frame {
    fn parse(family: &'static str, text: &'static str) -> Option<Self> {
        let register = Register::ALL.into_iter().find(|register| family.split('/').next() == Some(register.name()))?;
        let mut parts = Vec::new();
        for (idx, piece) in text.split('[').enumerate() {
            let (optional, always) = if idx == 0 { ("", piece) } else { piece.split_once(']')? };
            if !optional.is_empty() {
                parts.push(Part::Optional(pieces(optional)?));
            }
            if !always.is_empty() {
                parts.push(Part::Always(pieces(always)?));
            }
        }
        Some(Self { family, register, parts })
    }

    /// The text with its slots filled by `value`; sentences of a note or a letter start with a capital.
    pub(crate) fn render<'a>(&self, value: impl Fn(&str) -> &'a str) -> String {
        let mut text = String::with_capacity(256);
        for part in &self.parts {
            let pieces = match part {
                Part::Always(pieces) => pieces,
                Part::Optional(pieces) => {
                    let is_full =
                        pieces.iter().all(|piece| !matches!(piece, Piece::Slot(slot) if value(slot).is_empty()));
                    if !is_full {
                        continue;
                    }
                    pieces
                }
            };
            for piece in pieces {
                text.push_str(match piece {
                    Piece::Literal(literal) => literal,
                    Piece::Slot(slot) => value(slot),
                });
            }
        }
        let text = text.trim();
        if self.register == Register::Triage { text.to_owned() } else { with_capitals(text) }
    }
}

/// The frame table has free text where other tables have alternatives.
fn rows_of(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('\t'))
}

fn pieces(text: &'static str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    for (idx, piece) in text.split('{').enumerate() {
        let (slot, literal) = if idx == 0 { ("", piece) } else { piece.split_once('}')? };
        if !slot.is_empty() {
            pieces.push(Piece::Slot(slot));
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
    }
    Some(pieces)
}

/// A capital at the start and after each full stop.
fn with_capitals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_start = true;
    let mut before = ' ';
    for c in text.chars() {
        if is_start && c.is_alphanumeric() {
            out.extend(c.to_uppercase());
            is_start = false;
        } else {
            out.push(c);
            is_start |= c == ' ' && matches!(before, '.' | '?');
        }
        before = c;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(frame: &Frame) -> Vec<&'static str> {
        let pieces = frame.parts.iter().flat_map(|part| match part {
            Part::Always(pieces) | Part::Optional(pieces) => pieces,
        });
        pieces.filter_map(|piece| if let Piece::Slot(name) = piece { Some(*name) } else { None }).collect()
    }

    #[test]
    fn every_frame_can_carry_every_code() {
        let n_rows = rows_of(include_str!("frames.tsv")).count();
        assert_eq!(frames().len(), n_rows, "a frame does not parse");
        assert!(n_rows >= 60);
        let mut names = std::collections::BTreeSet::new();
        for frame in frames() {
            let slots = slots(frame);
            let count = |name| slots.iter().filter(|slot| **slot == name).count();
            assert_eq!((count("dx"), count("visit"), count("how") + count("after")), (1, 1, 1), "{}", frame.family);
            let known = ["dx", "visit", "how", "after", "who", "age", "neg", "ctx"];
            assert!(slots.iter().all(|slot| known.contains(slot)), "{}: {slots:?}", frame.family);
            assert!(!frame.family.starts_with("patient/family") || !slots.contains(&"how"), "{}", frame.family);
            assert!(names.insert(frame.family), "{} stands twice", frame.family);
            let bare = frame.render(|slot| if matches!(slot, "dx" | "who" | "age") { "X" } else { "" });
            assert!(bare.contains('X') && !bare.contains(['[', ']', '{', '}']), "{}: {bare}", frame.family);
        }
    }

    #[test]
    fn a_part_with_an_empty_slot_is_left_out() {
        let frame = Frame::parse("patient/x-1", "{dx}[ after {after}]. [{ctx}. ]end").unwrap();
        let render = |after: &'static str| {
            frame.render(|slot| {
                if slot == "dx" {
                    "a. b"
                } else if slot == "after" {
                    after
                } else {
                    ""
                }
            })
        };
        assert_eq!(render(""), "A. B. End");
        assert_eq!(render("rain"), "A. B after rain. End");
    }
}
