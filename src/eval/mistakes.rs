//! Where answers go wrong: what kind of mistake, which category is taken for which, and the examples to read first.
//!
//! The expected codes that an answer lacks and the codes that it has too many are paired, those with the most leading
//! characters in common first; what is left over was missed or added. Each pair is a mistake of one kind.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::metrics::codes_in;
use super::{Answer, Record};
use crate::codes::{Code, Release};

/// The most confusions kept.
const MAX_CONFUSIONS: usize = 100;

/// The most examples kept.
const MAX_EXAMPLES: usize = 12;

/// The most examples with the same expected codes; a fault that comes often is not all there is to see.
const MAX_ALIKE: usize = 2;

/// The kinds of mistake, from near to far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The predicted code is no billable code of the release.
    NotBillable,
    /// Another seventh character: the wrong encounter.
    SeventhCharacter,
    /// Another code of the right category.
    SameCategory,
    /// Another category of the right chapter.
    SameChapter,
    /// A code of another chapter.
    OtherChapter,
    /// Nothing was predicted for an expected code.
    Missing,
    /// A code too many.
    Added,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::NotBillable,
        Self::SeventhCharacter,
        Self::SameCategory,
        Self::SameChapter,
        Self::OtherChapter,
        Self::Missing,
        Self::Added,
    ];
}

/// One mistake of an answer. At least one of both codes is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// The code that should have come.
    pub expected: Option<Code>,
    /// The code that came.
    pub predicted: Option<Code>,
    /// What kind it is.
    pub fault: Fault,
}

/// A category taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// The category expected.
    pub expected: Code,
    /// The category predicted in its place.
    pub predicted: Code,
    /// How often.
    pub n: usize,
}

/// A wrong answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// The number of the record, counted from 1.
    pub number: usize,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
    /// The expected codes that came.
    pub right: Vec<Code>,
    /// What is wrong with it.
    pub mistakes: Vec<Mistake>,
}

/// The mistakes of an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Mistakes {
    /// How many there are of each kind.
    pub faults: BTreeMap<Fault, usize>,
    /// The most frequent confusions of categories, most frequent first.
    pub confusions: Vec<Confusion>,
    /// The worst answers: the wrong codes that the model was surest of, then the most wrong.
    pub worst: Vec<Example>,
}

impl Mistakes {
    /// The mistakes of answers, whose records are given in the same order.
    pub fn of(answers: &[Answer], records: &[Record], release: &Release) -> Self {
        let mut found = Self::default();
        let mut confusions: BTreeMap<(Code, Code), usize> = BTreeMap::new();
        for answer in answers {
            for mistake in mistakes_in(answer, release) {
                *found.faults.entry(mistake.fault).or_default() += 1;
                if let (Some(expected), Some(predicted)) = (mistake.expected, mistake.predicted) {
                    let (expected, predicted) = (expected.category(), predicted.category());
                    if expected != predicted {
                        *confusions.entry((expected, predicted)).or_default() += 1;
                    }
                }
            }
        }
        found.confusions =
            confusions.into_iter().map(|((expected, predicted), n)| Confusion { expected, predicted, n }).collect();
        found.confusions.sort_by_key(|confusion| std::cmp::Reverse(confusion.n));
        found.confusions.truncate(MAX_CONFUSIONS);
        found.worst = worst(answers, records, release);
        found
    }
}

/// The mistakes of one answer.
pub fn mistakes_in(answer: &Answer, release: &Release) -> Vec<Mistake> {
    let (expected, predicted) = (codes_in(&answer.expected), codes_in(&answer.output));
    let mut missed: BTreeSet<Code> = expected.difference(&predicted).copied().collect();
    let mut added: BTreeSet<Code> = predicted.difference(&expected).copied().collect();
    let mut pairs: Vec<(usize, Code, Code)> =
        missed.iter().flat_map(|&a| added.iter().map(move |&b| (n_shared(a, b), a, b))).collect();
    pairs.sort_by(|a, b| b.0.cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut mistakes = Vec::new();
    for (_, expected, predicted) in pairs {
        if missed.contains(&expected) && added.contains(&predicted) {
            missed.remove(&expected);
            added.remove(&predicted);
            mistakes.push(Mistake {
                expected: Some(expected),
                predicted: Some(predicted),
                fault: fault(expected, predicted, release),
            });
        }
    }
    mistakes.extend(missed.iter().map(|&code| Mistake {
        expected: Some(code),
        predicted: None,
        fault: Fault::Missing,
    }));
    mistakes.extend(added.iter().map(|&code| Mistake {
        expected: None,
        predicted: Some(code),
        fault: if release.is_billable(code) { Fault::Added } else { Fault::NotBillable },
    }));
    mistakes
}

fn fault(expected: Code, predicted: Code, release: &Release) -> Fault {
    let chapter = |code| release.chapter_of(code).map(|chapter| chapter.number);
    if !release.is_billable(predicted) {
        Fault::NotBillable
    } else if expected.len() == 7 && predicted.len() == 7 && expected.truncated(6) == predicted.truncated(6) {
        Fault::SeventhCharacter
    } else if expected.category() == predicted.category() {
        Fault::SameCategory
    } else if chapter(expected).is_some() && chapter(expected) == chapter(predicted) {
        Fault::SameChapter
    } else {
        Fault::OtherChapter
    }
}

/// Leading characters that two codes have in common.
fn n_shared(a: Code, b: Code) -> usize {
    a.undotted().bytes().zip(b.undotted().bytes()).take_while(|(a, b)| a == b).count()
}

/// The answers that do most harm: the share that is wrong, weighed by the confidence (1 where there is none).
fn worst(answers: &[Answer], records: &[Record], release: &Release) -> Vec<Example> {
    let harm = |record: &Record| (1.0 - record.outcome.f1()) * record.confidence.unwrap_or(1.0);
    let mut wrong: Vec<usize> =
        (0..answers.len().min(records.len())).filter(|&idx| harm(&records[idx]) > 0.0).collect();
    wrong.sort_by(|&a, &b| harm(&records[b]).total_cmp(&harm(&records[a])).then(a.cmp(&b)));
    let mut n_alike: BTreeMap<&str, usize> = BTreeMap::new();
    wrong.retain(|&idx| {
        let n = n_alike.entry(&answers[idx].expected).or_default();
        *n += 1;
        *n <= MAX_ALIKE
    });
    let example = |idx: usize| {
        let answer = &answers[idx];
        let right = codes_in(&answer.expected).intersection(&codes_in(&answer.output)).copied().collect();
        Example { number: idx + 1, answer: answer.clone(), right, mistakes: mistakes_in(answer, release) }
    };
    wrong.into_iter().take(MAX_EXAMPLES).map(example).collect()
}
