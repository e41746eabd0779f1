//! The committed tables of wording: a key, then columns led by a tab, each with alternatives separated by `|`; `#` opens
//! a comment line.

use std::collections::HashMap;

/// The rows of a table, in order: the key, and the alternatives of each column.
pub(crate) fn rows(table: &'static str) -> impl Iterator<Item = (&'static str, Vec<Vec<&'static str>>)> {
    table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (key, columns) = line.split_once('\t')?;
        Some((key, columns.split('\t').map(|column| column.split('|').collect()).collect()))
    })
}

/// Phrases and what may stand in their place, found by their words in running text.
pub(super) struct Substitutions {
    by_phrase: HashMap<&'static str, Vec<&'static str>>,
    max_words: usize,
}

impl Substitutions {
    pub(super) fn new(table: &'static str) -> Self {
        let by_phrase: HashMap<_, _> = rows(table).map(|(key, columns)| (key, columns.concat())).collect();
        let max_words = by_phrase.keys().map(|key| key.split(' ').count()).max().unwrap_or(0);
        Self { by_phrase, max_words }
    }

    /// Rewrites `text` from left to right: at each word the longest phrase of the table is handed to `choose`, which
    /// returns its replacement or `None` to keep it.
    pub(super) fn apply(
        &self,
        text: &str,
        mut choose: impl FnMut(&'static str, &[&'static str]) -> Option<&'static str>,
    ) -> String {
        let starts: Vec<usize> = word_starts(text);
        let mut out = String::with_capacity(text.len() + 16);
        let mut word_idx = 0;
        let mut copied = 0;
        while word_idx < starts.len() {
            let start = starts[word_idx];
            let Some((n_words, end, phrase, alternatives)) = self.longest(text, &starts[word_idx..]) else {
                word_idx += 1;
                continue;
            };
            if let Some(replacement) = choose(phrase, alternatives) {
                out.push_str(&text[copied..start]);
                out.push_str(replacement);
                copied = end;
            }
            word_idx += n_words;
        }
        out.push_str(&text[copied..]);
        out
    }

    fn longest(&self, text: &str, starts: &[usize]) -> Option<(usize, usize, &'static str, &[&'static str])> {
        let n_words = self.max_words.min(starts.len());
        (1..=n_words).rev().find_map(|n| {
            let end = word_end(text, starts[n - 1]);
            let (phrase, alternatives) = self.by_phrase.get_key_value(&text[starts[0]..end])?;
            Some((n, end, *phrase, alternatives.as_slice()))
        })
    }
}

fn word_starts(text: &str) -> Vec<usize> {
    let mut starts = Vec::with_capacity(16);
    let mut in_word = false;
    for (at, byte) in text.bytes().enumerate() {
        let is_word = !matches!(byte, b' ' | b',' | b';');
        if is_word && !in_word {
            starts.push(at);
        }
        in_word = is_word;
    }
    starts
}

fn word_end(text: &str, start: usize) -> usize {
    text[start..].find([' ', ',', ';']).map_or(text.len(), |len| start + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_phrase_at_a_word_is_replaced() {
        let table = Substitutions::new("# c\ntibia\tshin bone\nfracture of\tbreak of|broken\nof tibia\tno\n");
        let text = table.apply("fracture of tibia, tibial, tibia", |_, alternatives| alternatives.last().copied());
        assert_eq!(text, "broken shin bone, tibial, shin bone");
        assert_eq!(table.apply("tibia", |_, _| None), "tibia");
    }
}
