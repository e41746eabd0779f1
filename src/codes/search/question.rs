//! What the words of a question may mean: themselves, what they misspell or begin, what they stand for.
//!
//! In: the text typed. Out: a [`Question`]: the query put to the index, and how much each word of the list counts.

use std::collections::HashMap;

use tantivy::Term;
use tantivy::query::{BooleanQuery, BoostQuery, DisjunctionMaxQuery, Occur, Query, TermQuery};
use tantivy::schema::{Field, IndexRecordOption};

use super::engine::{Engine, FIELDS, N_FIELDS};
use super::words::{Lay, asked_words};
use crate::codes::Error;

/// A word that only begins like the last word typed.
const PREFIX_WEIGHT: f32 = 0.6;
/// The same, where the word typed is a word of its own: `heart` and `heartburn`.
const LONGER_WEIGHT: f32 = 0.3;
/// Words that begin like the last word typed; the most frequent are kept.
const MAX_BEGUN: usize = 24;
/// A word one slip away; two slips count the square.
const SLIP_WEIGHT: f32 = 0.75;
/// Slips are rare in the first letter.
const FIRST_LETTER_WEIGHT: f32 = 0.6;
/// Corrections of one word.
const MAX_CORRECTIONS: usize = 8;
/// What people's words stand for, against words of the list themselves.
const LAY_WEIGHT: f32 = 0.95;

/// The words of an index, and in how many documents each stands.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// Sorted, so that the words with one beginning are neighbours.
    words: Vec<String>,
    n_with: Vec<[u32; N_FIELDS]>,
    n_documents: u32,
}

/// A question as the index understands it.
pub(super) struct Question<'v> {
    /// The words typed.
    pub asked: Vec<String>,
    /// How surely each word of the list is meant, at most 1.
    pub weights: HashMap<&'v str, f32>,
    pub query: Box<dyn Query>,
}

/// A word that may have been meant, and how likely.
#[derive(Clone, Copy)]
struct Reading<'v> {
    word: &'v str,
    weight: f32,
}

impl Vocabulary {
    pub(super) fn of(engine: &Engine) -> Result<Self, Error> {
        let mut by_word: HashMap<String, [u32; N_FIELDS]> = HashMap::new();
        engine.each_word(|word, field, n_with| match by_word.get_mut(word) {
            Some(counts) => counts[field] += n_with,
            None => {
                let mut counts = [0; N_FIELDS];
                counts[field] = n_with;
                by_word.insert(word.to_owned(), counts);
            }
        })?;
        let mut entries: Vec<_> = by_word.into_iter().collect();
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let (words, n_with) = entries.into_iter().unzip();
        Ok(Self { words, n_with, n_documents: engine.n_documents() as u32 })
    }

    /// How rare a word is, as BM25 counts it; 0 for a word that no document has.
    pub(super) fn rarity(&self, word: &str) -> f32 {
        self.find(word).map_or(0.0, |idx| self.rarity_of(self.n_with[idx].into_iter().max().unwrap_or_default()))
    }

    fn rarity_of(&self, n_with: u32) -> f32 {
        let (n_all, n_with) = (self.n_documents as f32, n_with as f32);
        (1.0 + (n_all - n_with + 0.5) / (n_with + 0.5)).ln()
    }

    fn find(&self, word: &str) -> Option<usize> {
        self.words.binary_search_by(|known| known.as_str().cmp(word)).ok()
    }

    /// The most frequent words that begin with `word` and go on.
    fn begun_by(&self, word: &str) -> Vec<&str> {
        let start = self.words.partition_point(|known| known.as_str() <= word);
        let n_begun = self.words[start..].iter().take_while(|known| known.starts_with(word)).count();
        let mut begun: Vec<usize> = (start..start + n_begun).collect();
        begun.sort_by_key(|idx| std::cmp::Reverse(self.n_with[*idx].into_iter().max()));
        begun.into_iter().take(MAX_BEGUN).map(|idx| self.words[idx].as_str()).collect()
    }

    /// The documents that have `word`, scored by BM25 in the field where they score best. The rarity is that of the
    /// word in the whole list: a word that is common in descriptions is not made precious by being rare in a field.
    fn query(&self, word: &str, fields: [Field; N_FIELDS]) -> Option<Box<dyn Query>> {
        let idx = self.find(word)?;
        let rarity = self.rarity(word);
        let in_field = |(field_idx, &n_with): (usize, &u32)| {
            let term = Term::from_field_text(fields[field_idx], word);
            let weight = FIELDS[field_idx].1 * rarity / self.rarity_of(n_with);
            (n_with > 0).then(|| boosted(Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs)), weight))
        };
        Some(best_of(self.n_with[idx].iter().enumerate().filter_map(in_field).collect()))
    }
}

impl<'v> Question<'v> {
    /// Reads a question; none when it has no word that the list could have.
    pub(super) fn read(text: &str, words: &'v Vocabulary, lay: &'v Lay, fields: [Field; N_FIELDS]) -> Option<Self> {
        let asked = asked_words(text);
        let is_open = !text.ends_with(char::is_whitespace);
        let places: Vec<Vec<Reading>> = asked
            .iter()
            .enumerate()
            .map(|(idx, word)| readings(words, lay, word, is_open && idx + 1 == asked.len()))
            .collect();
        let weighted = |reading: &Reading<'v>| (reading.word, reading.weight);
        let spelled: Vec<Vec<(&str, f32)>> =
            places.iter().map(|readings| readings.iter().map(weighted).collect()).collect();
        let mut weights: HashMap<&str, f32> = HashMap::new();
        let mut count = |word: &'v str, weight: f32| {
            let entry = weights.entry(word).or_default();
            *entry = entry.max(weight);
        };
        let mut parts: Vec<Box<dyn Query>> = Vec::new();
        let mut at = 0;
        while at < places.len() {
            let meanings = lay.meanings(&spelled[at..], is_open);
            let n_words = meanings.first().map_or(1, |meaning| meaning.n_words);
            let said = &places[at..at + n_words];
            at += n_words;
            said.iter().flatten().for_each(|reading| count(reading.word, reading.weight));
            let own: Vec<Box<dyn Query>> =
                said.iter().filter_map(|readings| query_of(words, readings, fields)).collect();
            // Words of the street are rare in the list, which would make them precious.
            let rarity = |list: &mut dyn Iterator<Item = &str>| list.map(|word| words.rarity(word)).sum::<f32>();
            let own_rarity = rarity(&mut said.iter().filter_map(|readings| Some(readings.first()?.word)));
            let mut ways = Vec::new();
            let mut highest = 1.0f32;
            for meaning in meanings {
                let ratio =
                    (own_rarity / rarity(&mut meaning.meant.iter().map(String::as_str)).max(1.0)).max(1.0).sqrt();
                let meant: Option<Vec<_>> = meaning.meant.iter().map(|word| words.query(word, fields)).collect();
                let Some(meant) = meant else { continue };
                let certainty = meaning.certainty * LAY_WEIGHT;
                meaning.meant.iter().for_each(|word| count(word, certainty));
                ways.push(boosted(all_of(meant), certainty * ratio));
                highest = highest.max(ratio);
            }
            if !own.is_empty() {
                ways.push(boosted(any_of(own), 1.0 / highest));
            }
            if !ways.is_empty() {
                parts.push(best_of(ways));
            }
        }
        (!parts.is_empty()).then(|| Self { asked, weights, query: any_of(parts) })
    }
}

/// The words that `word` may mean, the likeliest first: itself, what it begins, or what it misspells.
fn readings<'v>(words: &'v Vocabulary, lay: &'v Lay, word: &str, is_open: bool) -> Vec<Reading<'v>> {
    let mut readings = Vec::new();
    let of_list = words.find(word).and_then(|idx| words.words.get(idx));
    let of_people =
        lay.words().binary_search_by(|known| known.as_str().cmp(word)).ok().and_then(|idx| lay.words().get(idx));
    readings.extend(of_list.or(of_people).map(|known| Reading { word: known, weight: 1.0 }));
    if is_open && word.len() >= 3 {
        let weight = if readings.is_empty() { PREFIX_WEIGHT } else { LONGER_WEIGHT };
        readings.extend(words.begun_by(word).into_iter().map(|word| Reading { word, weight }));
    }
    if readings.is_empty() || readings.iter().all(|reading| reading.weight <= LONGER_WEIGHT) {
        readings.extend(corrections(words, lay, word));
    }
    readings
}

/// The words that a slip or two make of `word`. A number is never corrected.
fn corrections<'v>(words: &'v Vocabulary, lay: &'v Lay, word: &str) -> Vec<Reading<'v>> {
    let most = match word.chars().count() {
        0..4 => return Vec::new(),
        4..8 => 1,
        _ => 2,
    };
    if word.bytes().any(|byte| byte.is_ascii_digit()) {
        return Vec::new();
    }
    let letters = letters_of(word);
    let near = |known: &&'v String| {
        known.len().abs_diff(word.len()) <= most && (letters_of(known) ^ letters).count_ones() as usize <= 2 * most
    };
    let mut found: Vec<(Reading, u32)> = Vec::new();
    for known in words.words.iter().chain(lay.words()).filter(near) {
        let n_slips = strsim::osa_distance(known, word);
        if n_slips <= most && n_slips > 0 && !found.iter().any(|(reading, _)| reading.word == known) {
            let same_first = known.chars().next() == word.chars().next();
            let weight = SLIP_WEIGHT.powi(n_slips as i32) * if same_first { 1.0 } else { FIRST_LETTER_WEIGHT };
            let n_with = words.find(known).map_or(0, |idx| words.n_with[idx].into_iter().max().unwrap_or_default());
            found.push((Reading { word: known, weight }, n_with));
        }
    }
    found.sort_by(|(a, n_a), (b, n_b)| b.weight.total_cmp(&a.weight).then(n_b.cmp(n_a)).then(a.word.cmp(b.word)));
    found.into_iter().take(MAX_CORRECTIONS).map(|(reading, _)| reading).collect()
}

/// One bit for each letter that a word has.
fn letters_of(word: &str) -> u32 {
    word.bytes().fold(0, |letters, byte| letters | 1 << (byte & 31))
}

fn query_of(words: &Vocabulary, readings: &[Reading], fields: [Field; N_FIELDS]) -> Option<Box<dyn Query>> {
    // A word that was perhaps meant is not worth more for being rarer than the one most likely meant.
    let likeliest = readings.iter().map(|reading| words.rarity(reading.word)).find(|rarity| *rarity > 0.0);
    let of_reading = |reading: &Reading| {
        let rarity = likeliest.map_or(1.0, |likeliest| (likeliest / words.rarity(reading.word)).min(1.0));
        Some(boosted(words.query(reading.word, fields)?, reading.weight * rarity))
    };
    let ways: Vec<_> = readings.iter().filter_map(of_reading).collect();
    (!ways.is_empty()).then(|| best_of(ways))
}

fn boosted(query: Box<dyn Query>, weight: f32) -> Box<dyn Query> {
    if weight == 1.0 { query } else { Box::new(BoostQuery::new(query, weight)) }
}

fn best_of(mut queries: Vec<Box<dyn Query>>) -> Box<dyn Query> {
    match queries.len() {
        1 => queries.remove(0),
        _ => Box::new(DisjunctionMaxQuery::new(queries)),
    }
}

fn any_of(mut queries: Vec<Box<dyn Query>>) -> Box<dyn Query> {
    match queries.len() {
        1 => queries.remove(0),
        _ => Box::new(BooleanQuery::new(queries.into_iter().map(|query| (Occur::Should, query)).collect())),
    }
}

fn all_of(mut queries: Vec<Box<dyn Query>>) -> Box<dyn Query> {
    match queries.len() {
        1 => queries.remove(0),
        _ => Box::new(BooleanQuery::new(queries.into_iter().map(|query| (Occur::Must, query)).collect())),
    }
}
