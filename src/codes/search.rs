//! Words to codes: a ranked search over descriptions and inclusion terms that forgives typing slips.
//!
//! In: free text. Out: billable codes, best first. Codes that differ only in the seventh character are one hit, shown
//! with the seventh character that the words ask for, else with the first. The ranking is BM25 (Robertson and
//! Zaragoza 2009, equation 3.15) with the usual `k1`, and a `b` made smaller because the texts are short.

use std::collections::HashMap;
use std::ops::Range;

use serde::Serialize;

use super::Code;
use super::release::{Billable, Release};

const K1: f32 = 1.2;
const B: f32 = 0.4;
/// A word of an inclusion term counts less than one of the description.
const TERM_WEIGHT: f32 = 0.6;
/// A word that only begins like the last word typed.
const PREFIX_WEIGHT: f32 = 0.6;
/// A word one slip away; two slips count the square.
const SLIP_WEIGHT: f32 = 0.5;
/// Words that say nothing about a condition.
const STOP_WORDS: [&str; 16] =
    ["a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "the", "to", "with"];

/// A billable code found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Hit<'a> {
    /// The code.
    pub code: Code,
    /// Its full description.
    pub description: &'a str,
    /// Comparable within one search only.
    pub score: f32,
}

/// The words of a release, ready to be searched.
#[derive(Debug)]
pub struct SearchIndex<'a> {
    release: &'a Release,
    /// The billable codes of each document: those that differ in the seventh character only.
    documents: Vec<Range<usize>>,
    /// Length of each document, as a share of the mean length.
    lengths: Vec<f32>,
    /// Sorted, so that the words with one beginning are neighbours.
    words: Vec<String>,
    /// For each word, the documents with it and how much it counts there.
    postings: Vec<Vec<(u32, f32)>>,
}

impl<'a> SearchIndex<'a> {
    /// Indexes a release.
    pub fn of(release: &'a Release) -> Self {
        let mut documents: Vec<Range<usize>> = Vec::new();
        let mut lengths = Vec::new();
        let mut by_word: HashMap<String, Vec<(u32, f32)>> = HashMap::new();
        for group in release.billable().chunk_by(|a, b| a.node.is_some() && a.node == b.node) {
            let document = documents.len() as u32;
            let start = documents.last().map_or(0, |last| last.end);
            documents.push(start..start + group.len());
            let mut length = 0.0;
            let mut count = |text: &str, weight: f32| {
                for word in words_of(text) {
                    length += weight;
                    let postings = by_word.entry(word).or_default();
                    match postings.last_mut().filter(|(last, _)| *last == document) {
                        Some((_, frequency)) => *frequency += weight,
                        None => postings.push((document, weight)),
                    }
                }
            };
            let node = group[0].node.map(|id| release.node_at(id));
            count(node.map_or(&*group[0].description, |node| &node.description), 1.0);
            let above = node.and_then(|node| node.parent).map(|id| release.node_at(id));
            for entry in node.into_iter().chain(above) {
                entry.inclusion_terms.iter().chain(&entry.includes).for_each(|term| count(term, TERM_WEIGHT));
            }
            lengths.push(length);
        }
        let mean = lengths.iter().sum::<f32>() / lengths.len().max(1) as f32;
        lengths.iter_mut().for_each(|length| *length /= mean.max(f32::MIN_POSITIVE));
        let mut entries: Vec<_> = by_word.into_iter().collect();
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let (words, postings) = entries.into_iter().unzip();
        Self { release, documents, lengths, words, postings }
    }

    /// The codes whose words fit `text` best, at most `limit`; the last word may be unfinished.
    pub fn search(&self, text: &str, limit: usize) -> Vec<Hit<'a>> {
        let asked: Vec<String> = words_of(text).collect();
        let mut scores: HashMap<u32, f32> = HashMap::new();
        for (idx, word) in asked.iter().enumerate() {
            // Of all readings of one word a document counts only the best.
            let mut best: HashMap<u32, f32> = HashMap::new();
            for (word, weight) in self.readings(word, idx + 1 == asked.len()) {
                for (document, score) in self.scores_of(word) {
                    let entry = best.entry(document).or_default();
                    *entry = entry.max(weight * score);
                }
            }
            for (document, score) in best {
                *scores.entry(document).or_default() += score;
            }
        }
        let mut ranked: Vec<(u32, f32)> = scores.into_iter().collect();
        ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(limit);
        ranked.into_iter().map(|(document, score)| self.hit(document, score, &asked)).collect()
    }

    /// The words of the index that `word` may mean, with their weights: itself, what it begins, or what it misspells.
    fn readings(&self, word: &str, is_last: bool) -> Vec<(usize, f32)> {
        let start = self.words.partition_point(|known| known.as_str() < word);
        let is_known = self.words.get(start).is_some_and(|known| known == word);
        let mut readings = Vec::from_iter(is_known.then_some((start, 1.0)));
        if is_last && word.len() >= 3 {
            let begun = self.words[start..].iter().take_while(|known| known.starts_with(word)).count();
            readings.extend((start + usize::from(is_known)..start + begun).map(|idx| (idx, PREFIX_WEIGHT)));
        }
        if readings.is_empty() {
            let most = if word.len() < 4 { 0 } else { 1 + usize::from(word.len() >= 8) };
            let near = self.words.iter().enumerate().filter(|(_, known)| known.len().abs_diff(word.len()) <= most);
            let slips = near.map(|(idx, known)| (idx, strsim::osa_distance(known, word)));
            readings.extend(
                slips.filter(|(_, n_slips)| *n_slips <= most).map(|(idx, n)| (idx, SLIP_WEIGHT.powi(n as i32))),
            );
        }
        readings
    }

    fn scores_of(&self, word: usize) -> impl Iterator<Item = (u32, f32)> {
        let postings = &self.postings[word];
        let (n_all, n_with) = (self.documents.len() as f32, postings.len() as f32);
        let rarity = (1.0 + (n_all - n_with + 0.5) / (n_with + 0.5)).ln();
        postings.iter().map(move |&(document, frequency)| {
            let norm = K1 * (1.0 - B + B * self.lengths[document as usize]);
            (document, rarity * frequency * (K1 + 1.0) / (frequency + norm))
        })
    }

    fn hit(&self, document: u32, score: f32, asked: &[String]) -> Hit<'a> {
        let group = &self.release.billable()[self.documents[document as usize].clone()];
        let title = group[0].node.map_or("", |id| &self.release.node_at(id).description);
        let of_title: Vec<String> = words_of(title).collect();
        let asked: Vec<&String> = asked.iter().filter(|word| !of_title.contains(word)).collect();
        let n_asked_for = |billable: &Billable| {
            let text = billable.seventh.as_ref().map_or("", |seventh| &seventh.text);
            words_of(text).filter(|word| asked.contains(&word)).count()
        };
        // The first of the best: `rev`, because the last of equals is the maximum.
        let billable = group.iter().rev().max_by_key(|billable| n_asked_for(billable)).unwrap_or(&group[0]);
        Hit { code: billable.code, description: &billable.description, score }
    }
}

/// The words that count, in lower case and singular.
fn words_of(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty());
    words.map(|word| singular(&word.to_lowercase())).filter(|word| !STOP_WORDS.contains(&word.as_str()))
}

fn singular(word: &str) -> String {
    let word = word.trim_end_matches("'s").trim_matches('\'');
    let keeps_s = ["ss", "us", "is"].iter().any(|end| word.ends_with(end));
    match word.strip_suffix("ies") {
        Some(stem) if stem.len() > 2 => format!("{stem}y"),
        _ if keeps_s || word.len() < 4 => word.to_owned(),
        _ => word.strip_suffix('s').unwrap_or(word).to_owned(),
    }
}
