//! Words as `search` compares them: lower case, singular, without those that say nothing about a condition; and what
//! people say in place of the words of the list.
//!
//! Both the index and the questions put to it are read by [`words_of`], so that equal words meet.

use std::collections::HashMap;

/// Rows of `words of the list<TAB>what people say|another`.
const LAY: &str = include_str!("lay.tsv");

/// Words that say nothing about a condition.
const STOP_WORDS: [&str; 27] = [
    "a", "an", "and", "as", "at", "by", "due", "during", "for", "from", "has", "have", "his", "her", "in", "is", "it",
    "its", "of", "on", "or", "the", "to", "was", "were", "while", "with",
];

/// Words of people who speak of themselves or of others; no description has them.
const FILLERS: [&str; 26] = [
    "i", "i'm", "i've", "me", "my", "mine", "am", "are", "be", "been", "being", "he", "she", "they", "their", "this",
    "that", "had", "got", "get", "having", "patient", "pt", "very", "really", "some",
];

/// The words of a text that count, as the index holds them.
pub(super) fn words_of(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !c.is_alphanumeric() && !is_apostrophe(c)).filter(|word| !word.is_empty());
    words.map(normal_form).filter(|word| !word.is_empty() && !STOP_WORDS.contains(&word.as_str()))
}

/// The words of a question that count.
pub(super) fn asked_words(text: &str) -> Vec<String> {
    let mut asked: Vec<String> = Vec::new();
    for word in words_of(text) {
        let is_number = word == "i" && asked.last().is_some_and(|last| ["type", "stage", "class"].contains(&&**last));
        if is_number {
            asked.push("1".into());
        } else if !FILLERS.contains(&word.as_str()) {
            asked.push(word);
        }
    }
    asked
}

fn is_apostrophe(c: char) -> bool {
    c == '\'' || c == '\u{2019}'
}

fn normal_form(word: &str) -> String {
    let word = word.to_lowercase().replace('\u{2019}', "'");
    let word = word.trim_end_matches("'s").trim_matches('\'');
    if ["cant", "cannot"].contains(&word) {
        return "can't".into();
    }
    let keeps_s = ["ss", "us", "is"].iter().any(|end| word.ends_with(end));
    match word.strip_suffix("ies") {
        Some(stem) if stem.len() > 2 => format!("{stem}y"),
        _ if keeps_s || word.len() < 4 => word.to_owned(),
        _ => word.strip_suffix('s').unwrap_or(word).to_owned(),
    }
}

/// What people say, and the words of the list that it stands for.
#[derive(Debug)]
pub(super) struct Lay {
    /// By the first word of what people say.
    by_first: HashMap<String, Vec<Phrase>>,
    /// Every word that people say.
    words: Vec<String>,
}

#[derive(Debug)]
struct Phrase {
    said: Vec<String>,
    meant: Vec<String>,
}

/// A place of a question where people's words stand for words of the list.
#[derive(Debug, PartialEq)]
pub(super) struct Meaning<'a> {
    /// How many words of the question it takes.
    pub n_words: usize,
    /// How surely the words of the question are those that people say: the weight of the least sure of them.
    pub certainty: f32,
    /// The words of the list.
    pub meant: &'a [String],
}

impl Lay {
    pub(super) fn read() -> Self {
        let mut lay = Self { by_first: HashMap::new(), words: Vec::new() };
        for line in LAY.lines().filter(|line| !line.starts_with('#')) {
            let Some((meant, said)) = line.split_once('\t') else { continue };
            let meant: Vec<String> = words_of(meant).collect();
            for said in said.split('|') {
                let said: Vec<String> = words_of(said).collect();
                let Some(first) = said.first() else { continue };
                lay.words.extend(said.iter().cloned());
                lay.by_first.entry(first.clone()).or_default().push(Phrase { said, meant: meant.clone() });
            }
        }
        lay.words.sort_unstable();
        lay.words.dedup();
        lay
    }

    /// Every word that people say, sorted.
    pub(super) fn words(&self) -> &[String] {
        &self.words
    }

    /// What the beginning of `asked` may stand for, the longest phrases only; each place of `asked` lists the words
    /// that may have been meant there, with their weights. The last word may be unfinished where `is_open`.
    pub(super) fn meanings<'a>(&'a self, asked: &[Vec<(&str, f32)>], is_open: bool) -> Vec<Meaning<'a>> {
        let certainty_of = |phrase: &Phrase| {
            let weight_at = |(at, said): (usize, &String)| {
                let is_open = is_open && at > 0 && at + 1 == asked.len();
                let fits = |word: &str| word == said || (is_open && word.len() >= 3 && said.starts_with(word));
                let weights = asked.get(at)?.iter().filter(|(word, _)| fits(word)).map(|(_, weight)| *weight);
                weights.reduce(f32::max)
            };
            phrase.said.iter().enumerate().map(weight_at).try_fold(1.0, |least, weight| Some(weight?.min(least)))
        };
        let firsts = asked.first().into_iter().flatten().filter_map(|(first, _)| self.by_first.get(*first));
        let fitting: Vec<(&Phrase, f32)> =
            firsts.flatten().filter_map(|phrase| Some((phrase, certainty_of(phrase)?))).collect();
        let longest = fitting.iter().map(|(phrase, _)| phrase.said.len()).max().unwrap_or_default();
        let of_longest = fitting.into_iter().filter(|(phrase, _)| phrase.said.len() == longest);
        of_longest.map(|(phrase, certainty)| Meaning { n_words: longest, certainty, meant: &phrase.meant }).collect()
    }

    /// The words of the list that some phrase stands for.
    #[cfg(test)]
    pub(super) fn meant_words(&self) -> impl Iterator<Item = &str> {
        self.by_first.values().flatten().flat_map(|phrase| &phrase.meant).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_meet_whatever_their_case_number_and_apostrophes() {
        let words = |text: &str| words_of(text).collect::<Vec<_>>().join(" ");
        assert_eq!(words("Fractures of the right Tibia"), "fracture right tibia");
        assert_eq!(words("Crohn\u{2019}s disease; biopsies"), "crohn disease biopsy");
        assert_eq!(words("Cannot sleep"), "can't sleep");
        assert_eq!(words("pus, diagnosis, abscess"), "pus diagnosis abscess");
        assert_eq!(asked_words("I have type I diabetes").join(" "), "type 1 diabete");
    }

    #[test]
    fn the_longest_phrase_is_taken() {
        let lay = Lay::read();
        let meanings = |words: &[&str]| {
            let places: Vec<Vec<(&str, f32)>> = words.iter().map(|word| vec![(*word, 1.0)]).collect();
            let meanings = lay.meanings(&places, true);
            meanings.iter().map(|meaning| (meaning.n_words, meaning.meant.join(" "))).collect::<Vec<_>>()
        };
        assert_eq!(meanings(&["heart", "attack"]), [(2, "acute myocardial infarction".to_owned())]);
        assert_eq!(meanings(&["heart"]), [(1, "cardiac".to_owned())]);
        assert_eq!(meanings(&["heart", "atta"]).first().map(|(n, _)| *n), Some(2));
        assert!(meanings(&["qqq"]).is_empty());
        let certainties = |places: &[Vec<(&str, f32)>]| {
            let meanings = lay.meanings(places, true);
            meanings.iter().map(|meaning| (meaning.meant.join(" "), meaning.certainty)).collect::<Vec<_>>()
        };
        let begun = certainties(&[vec![("flu", 1.0), ("fluid", 0.3)]]);
        assert!(
            begun.contains(&("influenza".to_owned(), 1.0)) && begun.contains(&("effusion".to_owned(), 0.3)),
            "{begun:?}"
        );
    }
}
