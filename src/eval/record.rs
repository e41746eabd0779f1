//! A scored record: its counts and what it is sorted by, small enough to be kept in every report, so that a later
//! evaluation can be compared with it record by record.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{Answer, Outcome, score};
use crate::codes::Release;

/// A scored record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which record of which file it is.
    #[serde(flatten)]
    pub key: Key,
    /// Its counts.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How probable the model held its answer to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// The wording family of the question; empty when unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub family: String,
}

/// What a record is known by: the same question with the same right answer is the same record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    /// A hash of the question, XXH3 in hex; empty when the question is unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub question: String,
    /// The right codes, separated by commas.
    pub expected: String,
}

impl Key {
    /// The key of a question (empty when unknown) with its right codes.
    pub fn new(scenario: &str, expected: &str) -> Self {
        let question =
            if scenario.is_empty() { String::new() } else { format!("{:016x}", xxh3_64(scenario.as_bytes())) };
        Self { question, expected: expected.to_owned() }
    }
}

/// Scores answers against a release.
pub fn score_all(answers: &[Answer], release: &Release) -> Vec<Record> {
    let is_billable = |code| release.is_billable(code);
    let record = |answer: &Answer| Record {
        key: Key::new(&answer.scenario, &answer.expected),
        outcome: score(answer, &is_billable),
        confidence: answer.confidence,
        family: answer.family.clone(),
    };
    answers.iter().map(record).collect()
}

/// Which records of two evaluations are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Places in the one and the other.
    pub places: Vec<(usize, usize)>,
    /// Questions of both whose right codes are not the same in both; they are not among the pairs.
    pub n_relabelled: usize,
}

/// Pairs the records of two evaluations: by question where every question is known (a question that comes twice is
/// paired in order), else by place, when the right codes are the same from the first record to the last.
pub fn pair(before: &[Key], after: &[Key]) -> Pairs {
    let all_known = |keys: &[Key]| keys.iter().all(|key| !key.question.is_empty());
    if !all_known(before) || !all_known(after) {
        let is_same_list =
            before.len() == after.len() && before.iter().zip(after).all(|(a, b)| a.expected == b.expected);
        let n_pairs = if is_same_list { before.len() } else { 0 };
        return Pairs { places: (0..n_pairs).map(|place| (place, place)).collect(), n_relabelled: 0 };
    }
    // Places by question, the first one last, so that it is the first to be taken.
    let mut waiting: HashMap<&str, Vec<usize>> = HashMap::new();
    for (place, key) in before.iter().enumerate().rev() {
        waiting.entry(&key.question).or_default().push(place);
    }
    let mut pairs = Pairs::default();
    for (place, key) in after.iter().enumerate() {
        let Some(partner) = waiting.get_mut(key.question.as_str()).and_then(Vec::pop) else { continue };
        if before[partner].expected == key.expected {
            pairs.places.push((partner, place));
        } else {
            pairs.n_relabelled += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(of: &[(&str, &str)]) -> Vec<Key> {
        of.iter().map(|(scenario, expected)| Key::new(scenario, expected)).collect()
    }

    #[test]
    fn questions_find_their_partners_in_any_order() {
        let before = keys(&[("a", "I10"), ("b", "R54"), ("a", "I10"), ("c", "R52")]);
        let after = keys(&[("c", "R54"), ("a", "I10"), ("d", "I10"), ("a", "I10"), ("a", "I10")]);
        assert_eq!(pair(&before, &after), Pairs { places: vec![(0, 1), (2, 3)], n_relabelled: 1 });
    }

    #[test]
    fn without_questions_the_lists_must_be_the_same() {
        let list = keys(&[("", "I10"), ("", "R54")]);
        assert_eq!(pair(&list, &list).places, [(0, 0), (1, 1)]);
        assert_eq!(pair(&list, &keys(&[("a", "I10"), ("b", "R54")])).places, [(0, 0), (1, 1)]);
        assert!(pair(&list, &keys(&[("", "R54"), ("", "I10")])).places.is_empty());
        assert!(pair(&list, &list[..1]).places.is_empty());
    }
}
