//! Seventh characters: how one leaf of the tabular list becomes several billable codes.
//!
//! The tabular list names a leaf once and gives, on it or on a header above it, the characters that complete it. A
//! leaf takes the nearest such list, is padded with the placeholder `X` to six characters, and yields one billable
//! code for each extension, described as "DESCRIPTION, EXTENSION".

use super::{Code, Text};

/// One entry of a list of seventh characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The character itself, `A` in `S82.201A`.
    pub character: char,
    /// What it stands for, as "initial encounter for closed fracture".
    pub text: Text,
    /// Other words for the same thing, as "initial encounter for open fracture NOS".
    pub terms: Vec<String>,
}

/// The seventh character of a billable code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seventh {
    /// The character itself.
    pub character: char,
    /// What it stands for.
    pub text: Text,
}

/// A note that takes some seventh characters away from a part of a category.
///
/// The one in the list (S06): "7th characters D and S do not apply to codes in category S06 with 6th character
/// 7 - death due to brain injury prior to regaining consciousness, or 8 - death due to other cause ...".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeventhLimit {
    category: Code,
    sixth: Vec<char>,
    withheld: Vec<char>,
}

impl SeventhLimit {
    /// Reads such a note; `None` when the note is about something else.
    pub(super) fn parse(note: &str) -> Option<Self> {
        let rest = note.strip_prefix("7th character")?;
        let (withheld, rest) = rest.split_once("not apply to codes in category ")?;
        let (category, sixth) = rest.split_once(" with 6th character ")?;
        let limit = Self {
            category: Code::parse(category).ok()?,
            sixth: single_characters(sixth),
            withheld: single_characters(withheld),
        };
        (!limit.sixth.is_empty() && !limit.withheld.is_empty()).then_some(limit)
    }

    fn withholds(&self, leaf: Code, character: char) -> bool {
        leaf.is_under(self.category)
            && leaf.character(6).is_some_and(|sixth| self.sixth.contains(&sixth))
            && self.withheld.contains(&character)
    }
}

/// The words that are one upper-case letter or digit: `D` and `S` in "s D and S do".
fn single_characters(text: &str) -> Vec<char> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() == 1);
    words.filter_map(|word| word.chars().next()).filter(|c| c.is_ascii_uppercase() || c.is_ascii_digit()).collect()
}

/// The billable code that each extension makes of a leaf; none where a limit withholds it.
pub(super) fn complete<'a>(
    leaf: Code,
    extensions: &'a [Extension],
    limits: &'a [SeventhLimit],
) -> impl Iterator<Item = (Option<Code>, &'a Extension)> {
    let padded = leaf.extended(&"XXX"[..Code::MAX_LEN - 1 - leaf.len().min(6)]).unwrap_or(leaf);
    let withheld = move |character| limits.iter().any(|limit| limit.withholds(padded, character));
    extensions.iter().map(move |extension| {
        let character = Some(extension.character).filter(|&character| !withheld(character));
        (character.and_then(|character| padded.extended(character.encode_utf8(&mut [0; 4]))), extension)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_injury_note_withholds_d_and_s_after_death() {
        let note = "7th characters D and S do not apply to codes in category S06 with 6th character 7 - death due to \
                    brain injury prior to regaining consciousness, or 8 - death due to other cause prior to regaining \
                    consciousness.";
        let limit = SeventhLimit::parse(note).unwrap();
        let encounter = |character| Extension { character, text: "x".to_owned().into(), terms: Vec::new() };
        let extensions = ['A', 'D', 'S'].map(encounter);
        let complete = |leaf: &str| -> Vec<String> {
            let leaf = Code::parse(leaf).unwrap();
            let completed = complete(leaf, &extensions, std::slice::from_ref(&limit));
            completed.filter_map(|(code, _)| Some(code?.to_string())).collect()
        };
        assert_eq!(complete("S06.1X7"), ["S06.1X7A"]);
        assert_eq!(complete("S06.1X9"), ["S06.1X9A", "S06.1X9D", "S06.1X9S"]);
        assert_eq!(complete("V18.4"), ["V18.4XXA", "V18.4XXD", "V18.4XXS"]);
        assert_eq!(complete("T07"), ["T07.XXXA", "T07.XXXD", "T07.XXXS"]);
        assert_eq!(SeventhLimit::parse("The drug giving rise to the adverse effect (T36-T50)"), None);
    }
}
