//! How a phrase is said: everyday words, short forms, the place of the side, articles, inversions, slips of the pen.
//!
//! Each change keeps the meaning: the words that tell one code from another stay or are replaced by words of their own.

use super::Register;
use super::table::Substitutions;
use crate::data::draw::Draw;

/// The tables that styles draw from.
pub(super) struct Style {
    lay: Substitutions,
    short: Substitutions,
}

/// Nouns that take an article when they head a phrase.
const COUNTABLE: &[&str] = &[
    "fracture",
    "laceration",
    "contusion",
    "sprain",
    "strain",
    "dislocation",
    "subluxation",
    "burn",
    "bite",
    "wound",
    "abrasion",
    "blister",
    "injury",
    "break",
    "cut",
    "bruise",
    "scrape",
    "gash",
    "graze",
    "tear",
    "rupture",
    "cyst",
    "abscess",
    "ulcer",
    "corrosion",
    "concussion",
    "amputation",
];

/// Words that take "the" after "of".
const DEFINITE: &[&str] = &[
    "right",
    "left",
    "shaft",
    "upper",
    "lower",
    "neck",
    "head",
    "base",
    "proximal",
    "distal",
    "anterior",
    "posterior",
    "medial",
    "lateral",
    "middle",
    "bottom",
    "top",
    "tibia",
    "fibula",
    "femur",
    "knee",
    "ankle",
    "patella",
    "shin",
];

impl Style {
    pub(super) fn new() -> Self {
        Self {
            lay: Substitutions::new(include_str!("lay.tsv")),
            short: Substitutions::new(include_str!("abbreviations.tsv")),
        }
    }

    /// Everyday words for medical ones, each with probability `share`.
    pub(super) fn in_everyday_words(&self, text: &str, share: f64, draw: &mut Draw) -> String {
        self.lay.apply(text, |_, words| if draw.chance(share) { draw.pick(words).copied() } else { None })
    }

    /// Chart short forms, each with probability `share`.
    pub(super) fn in_short_forms(&self, text: &str, share: f64, draw: &mut Draw) -> String {
        self.short.apply(text, |_, words| if draw.chance(share) { draw.pick(words).copied() } else { None })
    }
}

/// Weeks of pregnancy in place of a trimester (14 and 28 weeks are the borders of chapter 15), now and then.
pub(super) fn in_weeks(text: &str, draw: &mut Draw) -> String {
    for (trimester, first, last) in [("first", 5, 13), ("second", 14, 27), ("third", 28, 40)] {
        let words = format!("{trimester} trimester");
        if text.contains(&words) && draw.chance(0.5) {
            return text.replace(&words, &format!("at {} weeks", draw.between(first, last)));
        }
    }
    text.to_owned()
}

/// The one side of `text` moved to its end: "pain in knee, right side".
pub(super) fn with_side_last(text: &str, draw: &mut Draw) -> String {
    for side in ["right", "left"] {
        let word = format!("{side} ");
        let is_movable = text.matches(side).count() == 1 && !text.contains(&format!("{side} side"));
        if is_movable && (text.starts_with(&word) || text.contains(&format!(" {word}"))) {
            let rest = text.replacen(&word, "", 1);
            return match draw.below(3) {
                0 => format!("{rest}, {side} side"),
                1 => format!("{rest} on the {side}"),
                _ => format!("{rest}, {side}"),
            };
        }
    }
    text.to_owned()
}

/// The order of an index: "fracture of shaft of right tibia" as "fracture, right tibia, shaft".
pub(super) fn inverted(text: &str) -> String {
    let is_plain = !text.contains([',', '(', ';'])
        && [" with", " due to", " and ", " or "].iter().all(|part| !text.contains(part));
    if !is_plain {
        return text.to_owned();
    }
    let mut parts: Vec<&str> = text.split(" of ").collect();
    if parts.len() < 2 {
        return text.to_owned();
    }
    parts[1..].reverse();
    parts.join(", ")
}

/// "due to" and "without" in other words.
pub(super) fn reworded(text: &str, register: Register, draw: &mut Draw) -> String {
    let mut text = text.to_owned();
    if text.contains(" due to ") && !text.contains("not due to") {
        let words = match register {
            Register::Patient => draw.word(&["due to", "caused by", "from", "because of"]),
            _ => draw.word(&["due to", "due to", "caused by", "secondary to"]),
        };
        text = text.replace(" due to ", &format!(" {words} "));
    }
    if text.contains(" without ") && draw.chance(0.3) {
        text = text.replace(" without ", " with no ");
    }
    text
}

/// Articles as in running prose.
pub(super) fn with_articles(text: &str) -> String {
    let head = text.split([',']).next().unwrap_or(text).split(" of ").next().unwrap_or(text);
    let is_countable = head.rsplit(' ').next().is_some_and(|noun| COUNTABLE.contains(&noun));
    let mut out = String::with_capacity(text.len() + 16);
    if is_countable && !head.starts_with("multiple") {
        out.push_str(match head {
            // "Another fracture" would be a second one.
            _ if head.starts_with("other ") => "",
            _ if sounds_like_a_vowel(head) => "an ",
            _ => "a ",
        });
    }
    for (idx, part) in text.split(" of ").enumerate() {
        if idx > 0 {
            out.push_str(" of ");
            let next = part.split([' ', ',']).next().unwrap_or_default();
            if DEFINITE.contains(&next) {
                out.push_str("the ");
            }
        }
        out.push_str(part);
    }
    out
}

/// Whether "an" goes before `text`; short forms are spelled out ("an LCL sprain").
fn sounds_like_a_vowel(text: &str) -> bool {
    let word = text.split(' ').next().unwrap_or(text);
    if word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return word.starts_with(['A', 'E', 'F', 'H', 'I', 'L', 'M', 'N', 'O', 'R', 'S', 'X']);
    }
    word.starts_with(['a', 'e', 'i', 'o'])
        || word.starts_with('u') && !word.starts_with("uni") && !word.starts_with("ure")
}

/// `text` with a slip in one or two of its long words. The first five and the last two letters stay, so that no
/// prefix ("hypo", "hyper", "inter") turns into another; words with digits or capitals stay as they are.
pub(crate) fn with_slips(text: &str, draw: &mut Draw) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let is_candidate = |word: &&&str| word.len() >= 9 && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let candidates: Vec<usize> =
        words.iter().enumerate().filter(|(_, word)| is_candidate(word)).map(|(idx, _)| idx).collect();
    let mut slipped: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    for _ in 0..draw.between(1, 2) {
        let Some(&idx) = draw.pick(&candidates) else { break };
        let mut letters: Vec<char> = words[idx].chars().collect();
        let at = draw.between(5, letters.len() - 3);
        match draw.below(3) {
            0 => letters.swap(at, at + 1),
            1 => drop(letters.remove(at)),
            _ => letters.insert(at, letters[at]),
        }
        slipped[idx] = letters.into_iter().collect();
    }
    slipped.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::wording::table::rows;

    #[test]
    fn every_substitute_leads_back_to_one_term() {
        for table in [include_str!("lay.tsv"), include_str!("abbreviations.tsv")] {
            let mut owners = std::collections::HashMap::new();
            let mut n_rows = 0;
            for (term, columns) in rows(table) {
                assert!(!columns[0].is_empty() && columns.len() == 1, "{term}");
                for words in &columns[0] {
                    assert_eq!(
                        *owners.entry(words.to_lowercase()).or_insert(term),
                        term,
                        "`{words}` stands in two rows"
                    );
                    assert!(!words.is_empty() && words.trim() == *words, "{term}");
                }
                n_rows += 1;
            }
            assert!(n_rows > 40);
        }
    }

    #[test]
    fn phrases_are_turned_without_losing_a_word() {
        let mut draw = Draw::new(3, "test", 0);
        assert_eq!(inverted("fracture of shaft of right tibia"), "fracture, right tibia, shaft");
        assert_eq!(inverted("pain, knee"), "pain, knee");
        let text = with_side_last("pain in right knee", &mut draw);
        assert!(text.starts_with("pain in knee") && text.contains("right"), "{text}");
        assert_eq!(with_side_last("injury of nerve, left side", &mut draw), "injury of nerve, left side");
        assert_eq!(with_articles("ACL sprain"), "an ACL sprain");
        assert_eq!(with_articles("other fracture of foot"), "other fracture of foot");
        assert_eq!(with_articles("unspecified fracture of foot"), "an unspecified fracture of foot");
        assert_eq!(with_articles("fracture of shaft of right tibia"), "a fracture of the shaft of the right tibia");
    }

    #[test]
    fn a_slip_keeps_the_start_of_a_word() {
        let mut draw = Draw::new(3, "test", 1);
        for _ in 0..200 {
            let text = with_slips("hypothyroidism and Hyperthyroidism", &mut draw);
            assert!(text.starts_with("hypot") && text.ends_with("and Hyperthyroidism"), "{text}");
            assert_ne!(text, "hypothyroidism and Hyperthyroidism");
        }
    }
}
