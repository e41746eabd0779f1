//! Which of the documents found is meant: BM25 sees words, not that a description says more than was asked.
//!
//! A document gains where what was asked covers all of its description or of one of its terms, so that "asthma" leads
//! to unspecified asthma; it loses where its side is the wrong one.

use std::collections::HashMap;

use super::question::Vocabulary;
use super::words::words_of;
use crate::codes::release::{Billable, Release};

/// What a document keeps whose texts the question covers not at all.
const UNCOVERED: f32 = 0.4;
/// Terms are examples of what a code holds.
const TERM_COVER: f32 = 0.95;
/// Of what is said above a code, against what the code says.
const ABOVE_SHARE: f32 = 0.3;
/// A code for the case that nothing more is known.
const DEFAULT_GAIN: f32 = 1.08;
/// A code for what the other codes do not name.
const OTHER_LOSS: f32 = 0.93;
/// A chapter for people in a certain state, which was not asked for.
const STATE_LOSS: f32 = 0.7;
/// The other side of the body.
const WRONG_SIDE: f32 = 0.5;

/// Words that limit nothing: a description is covered without them.
const QUALIFIERS: [&str; 17] = [
    "unspecified",
    "specified",
    "other",
    "nos",
    "nec",
    "elsewhere",
    "classified",
    "uncomplicated",
    "primary",
    "essential",
    "type",
    "organism",
    "site",
    "part",
    "pure",
    "female",
    "male",
];
/// Words that ask for chapter 15 or 16.
const STATES: [&str; 13] = [
    "pregnancy",
    "pregnant",
    "gestational",
    "childbirth",
    "puerperium",
    "labor",
    "delivery",
    "maternal",
    "trimester",
    "newborn",
    "neonatal",
    "fetal",
    "obstetric",
];
const SIDES: [&str; 3] = ["left", "right", "bilateral"];

/// The score of a document, `score` being its BM25.
pub(super) fn rank(
    release: &Release,
    words: &Vocabulary,
    weights: &HashMap<&str, f32>,
    first: &Billable,
    score: f32,
) -> f32 {
    let leaf = first.node.map(|id| release.node_at(id));
    let title = leaf.map_or(first.description.as_str(), |node| node.description.as_str()).to_lowercase();
    let cover = |text: &str| cover(words, weights, text);
    let of_title = cover(&title);
    let terms = leaf.into_iter().flat_map(|node| node.inclusion_terms.iter().chain(&node.includes));
    let of_terms = terms.map(|term| cover(term)).fold(0.0, f32::max);
    let above = std::iter::successors(leaf.and_then(|node| node.parent), |id| release.node_at(*id).parent);
    let above = above.map(|id| release.node_at(id));
    let above =
        above.flat_map(|node| std::iter::once(&node.description).chain(&node.inclusion_terms).chain(&node.includes));
    let of_above = above.map(|text| cover(text)).fold(0.0, f32::max);
    let covered =
        of_title.max(TERM_COVER * of_terms).max(ABOVE_SHARE * of_above + (1.0 - ABOVE_SHARE) * of_title).min(1.0);
    score
        * (UNCOVERED + (1.0 - UNCOVERED) * covered)
        * usualness(&title, leaf.map(|node| node.code))
        * side(&title, weights)
        * state(first, weights)
}

/// How much of what a text says was asked for, 0 to 1. What follows "without" or "not" limits nothing, up to the next
/// comma.
fn cover(words: &Vocabulary, weights: &HashMap<&str, f32>, text: &str) -> f32 {
    let (mut said, mut asked) = (0.0, 0.0);
    for clause in text.split(',') {
        for word in words_of(clause) {
            let weight = weights.get(word.as_str()).copied().unwrap_or_default();
            if weight == 0.0 && (word == "without" || word == "not") {
                break;
            }
            if weight > 0.0 || !QUALIFIERS.contains(&word.as_str()) {
                let rarity = words.rarity(&word).max(0.5);
                said += rarity;
                asked += weight * rarity;
            }
        }
    }
    if said > 0.0 { asked / said } else { 0.0 }
}

/// In the classification a last digit 9 is "unspecified" and 8 "other".
fn usualness(title: &str, leaf: Option<crate::codes::Code>) -> f32 {
    let is_default = ["unspecified", "without", "uncomplicated", " nos"].iter().any(|mark| title.contains(mark));
    let last = leaf.and_then(|code| code.character(code.len()));
    match last {
        _ if title.starts_with("other ") || last == Some('8') => OTHER_LOSS,
        _ if title.contains(" with ") => 1.0,
        Some('9') => DEFAULT_GAIN,
        _ if is_default => DEFAULT_GAIN,
        _ => 1.0,
    }
}

/// Pregnancy and the newborn have codes of their own for most conditions, which are meant only when they are named.
fn state(first: &Billable, weights: &HashMap<&str, f32>) -> f32 {
    let is_of_state = matches!(first.code.character(1), Some('O' | 'P'));
    let is_asked = || STATES.iter().any(|state| weights.get(state).is_some_and(|weight| *weight >= 0.7));
    if is_of_state && !is_asked() { STATE_LOSS } else { 1.0 }
}

fn side(title: &str, weights: &HashMap<&str, f32>) -> f32 {
    let asked = SIDES.map(|side| weights.get(side).is_some_and(|weight| *weight >= 0.9));
    let said = SIDES.map(|side| title.split(|c: char| !c.is_alphanumeric()).any(|word| word == side));
    let is_wrong =
        asked.contains(&true) && said.contains(&true) && !asked.iter().zip(said).any(|(asked, said)| *asked && said);
    if is_wrong { WRONG_SIDE } else { 1.0 }
}
