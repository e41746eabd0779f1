//! Near-duplicate removal: MinHash signatures, banded LSH, and the exact Jaccard similarity of every candidate pair.
//!
//! MinHash (Broder 1997) with 128 permutations of one 64-bit hash of each character 5-gram; 16 bands of 8 rows, whose
//! threshold `(1/16)^(1/8)` is 0.71, so that pairs at 0.8 and above are found with a probability over 0.94. Only
//! signatures and gram hashes of kept records are in memory, not texts.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::record::Scenario;

const N_PERMUTATIONS: usize = 128;
const N_BANDS: usize = 16;
const BAND_ROWS: usize = N_PERMUTATIONS / N_BANDS;

/// What counts as a duplicate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DedupSettings {
    /// Records whose grams have at least this Jaccard similarity are duplicates.
    pub threshold: f64,
    /// Characters of a gram.
    pub gram: usize,
}

impl Default for DedupSettings {
    fn default() -> Self {
        Self { threshold: 0.8, gram: 5 }
    }
}

/// What de-duplication kept and dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DedupReport {
    pub n_read: usize,
    pub n_kept: usize,
    /// Records whose normalised text another record has.
    pub n_exact: usize,
    /// Records only similar to another one.
    pub n_near: usize,
    /// Duplicates whose codes differ from those of the record that was kept.
    pub n_with_other_codes: usize,
}

/// The hashes of a text's character grams, sorted and distinct; case, punctuation and runs of space do not count.
pub fn grams(text: &str, gram: usize) -> Vec<u64> {
    let mut normal: Vec<char> = Vec::with_capacity(text.len());
    for c in text.chars().flat_map(char::to_lowercase) {
        let c = if c.is_alphanumeric() { c } else { ' ' };
        if c != ' ' || normal.last().is_some_and(|&last| last != ' ') {
            normal.push(c);
        }
    }
    if normal.last() == Some(&' ') {
        normal.pop();
    }
    let hash = |window: &[char]| xxh3_64(window.iter().collect::<String>().as_bytes());
    let mut hashes: Vec<u64> = match normal.len() {
        len if len <= gram.max(1) => vec![hash(&normal)],
        _ => normal.windows(gram.max(1)).map(hash).collect(),
    };
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

/// The Jaccard similarity of two sorted, distinct lists.
pub fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut n_both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                n_both += 1;
                i += 1;
                j += 1;
            }
        }
    }
    let n_either = a.len() + b.len() - n_both;
    if n_either == 0 { 1.0 } else { n_both as f64 / n_either as f64 }
}

/// The permutations: odd multiplier and offset of each, from a fixed seed.
fn permutations() -> [(u64, u64); N_PERMUTATIONS] {
    std::array::from_fn(|idx| {
        let draw = |seed| xxh3_64_with_seed(&(idx as u64).to_le_bytes(), seed);
        (draw(1) | 1, draw(2))
    })
}

fn signature(grams: &[u64], permutations: &[(u64, u64); N_PERMUTATIONS]) -> [u64; N_PERMUTATIONS] {
    let mut minima = [u64::MAX; N_PERMUTATIONS];
    for &gram in grams {
        for (minimum, &(multiplier, offset)) in minima.iter_mut().zip(permutations) {
            // Multiply and fold: the high half of a product mixes all bits of the gram.
            let product = u128::from(gram ^ offset) * u128::from(multiplier);
            *minimum = (*minimum).min((product >> 64) as u64 ^ product as u64);
        }
    }
    minima
}

/// Finds, among the texts seen so far, one at least `threshold` similar to the next.
pub struct NearDuplicates {
    settings: DedupSettings,
    permutations: [(u64, u64); N_PERMUTATIONS],
    /// For each band, the kept records by the hash of their rows.
    bands: Vec<HashMap<u64, Vec<u32>>>,
    /// Gram hashes of each kept record.
    kept: Vec<Vec<u64>>,
}

impl NearDuplicates {
    /// Nothing seen yet.
    pub fn new(settings: DedupSettings) -> Self {
        Self { settings, permutations: permutations(), bands: vec![HashMap::new(); N_BANDS], kept: Vec::new() }
    }

    /// The number (in order of keeping) and similarity of the most similar kept text, if it reaches the threshold;
    /// otherwise the text is kept.
    pub fn find_or_keep(&mut self, text: &str) -> Option<(usize, f64)> {
        let grams = grams(text, self.settings.gram);
        let signature = signature(&grams, &self.permutations);
        let keys: Vec<u64> = signature
            .chunks(BAND_ROWS)
            .map(|rows| {
                let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
                xxh3_64(&bytes)
            })
            .collect();
        let mut candidates: Vec<u32> =
            self.bands.iter().zip(&keys).filter_map(|(band, key)| band.get(key)).flatten().copied().collect();
        candidates.sort_unstable();
        candidates.dedup();
        let best = candidates
            .into_iter()
            .map(|idx| (idx as usize, jaccard(&grams, &self.kept[idx as usize])))
            .filter(|&(_, similarity)| similarity >= self.settings.threshold)
            .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
        if best.is_none() {
            let idx = self.kept.len() as u32;
            self.kept.push(grams);
            for (band, key) in self.bands.iter_mut().zip(keys) {
                band.entry(key).or_default().push(idx);
            }
        }
        best
    }
}

/// Removes near-duplicates, keeping of similar records the one with the most codes, and of those the first. The order
/// of the records stays.
pub fn dedup(scenarios: Vec<Scenario>, settings: &DedupSettings) -> (Vec<Scenario>, DedupReport) {
    let mut report = DedupReport { n_read: scenarios.len(), ..DedupReport::default() };
    let mut order: Vec<usize> = (0..scenarios.len()).collect();
    order.sort_by_key(|&idx| std::cmp::Reverse(scenarios[idx].codes.len()));
    let mut seen = NearDuplicates::new(settings.clone());
    let mut kept: Vec<usize> = Vec::new();
    for idx in order {
        match seen.find_or_keep(&scenarios[idx].scenario) {
            None => kept.push(idx),
            Some((of, similarity)) => {
                *if similarity == 1.0 { &mut report.n_exact } else { &mut report.n_near } += 1;
                report.n_with_other_codes += usize::from(scenarios[idx].codes != scenarios[kept[of]].codes);
            }
        }
    }
    let mut is_kept = vec![false; scenarios.len()];
    kept.iter().for_each(|&idx| is_kept[idx] = true);
    report.n_kept = kept.len();
    let kept = scenarios.into_iter().zip(is_kept).filter_map(|(scenario, keep)| keep.then_some(scenario)).collect();
    (kept, report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Code;
    use rand::SeedableRng;
    use rand::rand_core::Rng as _;
    use rand_chacha::ChaCha8Rng;

    /// Sentences of random words, each followed by variants with a few words replaced.
    fn texts(seed: u64) -> Vec<String> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut below = |n: u64| rng.next_u64() % n;
        let mut texts = Vec::new();
        for _ in 0..60 {
            let base: Vec<String> = (0..25).map(|_| format!("w{}", below(5000))).collect();
            for n_changed in [0, 1, 2, 6] {
                let mut words = base.clone();
                (0..n_changed).for_each(|_| words[below(25) as usize] = format!("v{}", below(5000)));
                texts.push(words.join(" "));
            }
        }
        texts
    }

    #[test]
    fn candidates_are_those_of_a_comparison_of_all_pairs() {
        let settings = DedupSettings::default();
        let (mut n_pairs, mut n_found) = (0, 0);
        for seed in 0..4 {
            let texts = texts(seed);
            let sets: Vec<Vec<u64>> = texts.iter().map(|text| grams(text, settings.gram)).collect();
            let mut seen = NearDuplicates::new(settings.clone());
            let mut kept: Vec<usize> = Vec::new();
            for (idx, text) in texts.iter().enumerate() {
                let expected = kept.iter().any(|&of| jaccard(&sets[idx], &sets[of]) >= settings.threshold);
                let found = seen.find_or_keep(text);
                if let Some((of, similarity)) = found {
                    assert_eq!(similarity, jaccard(&sets[idx], &sets[kept[of]]));
                    assert!(expected, "a pair below the threshold was found");
                } else {
                    kept.push(idx);
                }
                n_pairs += usize::from(expected);
                n_found += usize::from(expected && found.is_some());
            }
        }
        assert!(n_pairs > 100, "{n_pairs}");
        // The bands find a pair at 0.8 with probability 1 - (1 - 0.8^8)^16 = 0.947, and more similar ones more often.
        assert!(n_found as f64 >= 0.93 * n_pairs as f64, "{n_found} of {n_pairs}");
    }

    #[test]
    fn of_duplicates_the_record_with_more_codes_stays() {
        let code = |text: &str| Code::parse(text).unwrap();
        let text = "Fell off the ladder and broke the right tibia, first visit";
        let records = vec![
            Scenario::new(text, vec![code("S82.201A")]),
            Scenario::new("Something else entirely", vec![code("I10")]),
            Scenario::new(text.to_uppercase(), vec![code("S82.201A"), code("W11.XXXA")]),
        ];
        let (kept, report) = dedup(records, &DedupSettings::default());
        assert_eq!(kept.iter().map(|record| record.codes.len()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((report.n_exact, report.n_near, report.n_with_other_codes), (1, 0, 1));
    }
}
