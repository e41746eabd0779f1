//! Near-duplicate removal: MinHash signatures, banded LSH, and the exact Jaccard similarity of every candidate pair.
//!
//! MinHash (Broder 1997) with 128 permutations of the character 5-grams. The bands are as many and as wide as finds a
//! pair at the threshold with a probability of at least 0.99: 21 bands of 6 rows at 0.8. A candidate first has to share
//! enough of its signature (one byte of each minimum, b-bit MinHash of Li and König 2010), then its grams are compared.
//!
//! Memory grows with the records, not with their grams: a text in normal form, and for a kept record 128 bytes of
//! signature and 13 bytes a band; about 0.7 GB for a million records of two sentences.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::record::Scenario;

const N_PERMUTATIONS: usize = 128;

/// The least probability with which a pair at the threshold becomes a candidate.
const RECALL: f64 = 0.99;

/// How many standard deviations below the threshold the shares of a signature may lie.
const SLACK: f64 = 4.5;

/// Texts whose signatures are made at once, on all cores.
const CHUNK: usize = 4096;

/// Stands for "no record".
const NONE: u32 = u32::MAX;

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

impl DedupSettings {
    /// # Errors
    /// [`super::Error::BadSetting`].
    pub fn check(&self) -> Result<(), super::Error> {
        super::error::check_setting("dedup.threshold", self.threshold, 0.3..=1.0)?;
        super::error::check_setting("dedup.gram", self.gram as f64, 1.0..=20.0)
    }
}

/// What de-duplication kept and dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// The record that another one repeats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Duplicate {
    /// The number of the record that is kept.
    pub of: u32,
    /// Jaccard similarity of their grams, at least the threshold.
    pub similarity: f64,
}

/// The hashes of a text's character grams, sorted and distinct; case, punctuation and runs of space do not count.
pub fn grams(text: &str, gram: usize) -> Vec<u64> {
    grams_of(&normal_form(text), gram)
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

/// Lower case, letters and digits only, single spaces.
fn normal_form(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_alphanumeric() {
            normal.push(c);
        } else if !normal.is_empty() && !normal.ends_with(' ') {
            normal.push(' ');
        }
    }
    normal.truncate(normal.trim_end().len());
    normal
}

fn grams_of(normal: &str, gram: usize) -> Vec<u64> {
    let gram = gram.max(1);
    let mut bounds: Vec<usize> = normal.char_indices().map(|(at, _)| at).collect();
    bounds.push(normal.len());
    let mut hashes: Vec<u64> = match bounds.len() - 1 {
        len if len <= gram => vec![xxh3_64(normal.as_bytes())],
        _ => bounds.windows(gram + 1).map(|bounds| xxh3_64(&normal.as_bytes()[bounds[0]..bounds[gram]])).collect(),
    };
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

/// The permutations: strongly universal hashes of 32-bit values, `(a x + b) >> 32` (Thorup 2015, section 3.3).
struct Permutations {
    multipliers: [u64; N_PERMUTATIONS],
    offsets: [u64; N_PERMUTATIONS],
}

impl Permutations {
    /// The same on every machine.
    fn new() -> Self {
        let draw = |idx: usize, seed| xxh3_64_with_seed(&(idx as u64).to_le_bytes(), seed);
        Self { multipliers: std::array::from_fn(|idx| draw(idx, 1)), offsets: std::array::from_fn(|idx| draw(idx, 2)) }
    }

    fn signature(&self, grams: &[u64]) -> [u32; N_PERMUTATIONS] {
        let mut minima = [u32::MAX; N_PERMUTATIONS];
        for &gram in grams {
            let gram = gram & u64::from(u32::MAX);
            for ((minimum, multiplier), offset) in minima.iter_mut().zip(&self.multipliers).zip(&self.offsets) {
                let hash = (multiplier.wrapping_mul(gram).wrapping_add(*offset) >> 32) as u32;
                *minimum = (*minimum).min(hash);
            }
        }
        minima
    }
}

/// How signatures are cut into bands for a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bands {
    n_bands: usize,
    n_rows: usize,
}

impl Bands {
    /// The widest bands that still find a pair at `threshold` with probability [`RECALL`].
    fn for_threshold(threshold: f64) -> Self {
        let of_rows = |n_rows: usize| Self { n_bands: N_PERMUTATIONS / n_rows, n_rows };
        let finds = |bands: &Self| bands.recall(threshold) >= RECALL;
        (1..=N_PERMUTATIONS).rev().map(of_rows).find(finds).unwrap_or_else(|| of_rows(1))
    }

    /// The probability that a pair of this similarity shares a band.
    fn recall(self, similarity: f64) -> f64 {
        1.0 - (1.0 - similarity.powi(self.n_rows as i32)).powi(self.n_bands as i32)
    }
}

/// Spreads keys that are hashes already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_u32(&mut self, key: u32) {
        self.0 = u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// What is compared of a text.
struct Sketch {
    grams: Vec<u64>,
    keys: Vec<u32>,
    bytes: [u8; N_PERMUTATIONS],
}

/// The kept records, found by what they share with the next one.
struct Index {
    settings: DedupSettings,
    permutations: Permutations,
    bands: Bands,
    /// The least number of equal bytes of two sketches worth a comparison.
    min_equal: usize,
    /// For each band, the record kept last by the hash of its rows.
    newest: Vec<HashMap<u32, u32, BuildHasherDefault<KeyHasher>>>,
    /// For each kept record and band, the one kept before it with the same rows.
    before: Vec<u32>,
    sketches: Vec<[u8; N_PERMUTATIONS]>,
}

impl Index {
    fn new(settings: DedupSettings) -> Self {
        let bands = Bands::for_threshold(settings.threshold);
        let t = settings.threshold;
        let slack = SLACK * (t * (1.0 - t) / N_PERMUTATIONS as f64).sqrt();
        Self {
            settings,
            permutations: Permutations::new(),
            bands,
            min_equal: ((t - slack).max(0.0) * N_PERMUTATIONS as f64).floor() as usize,
            newest: (0..bands.n_bands).map(|_| HashMap::default()).collect(),
            before: Vec::new(),
            sketches: Vec::new(),
        }
    }

    fn sketch(&self, normal: &str) -> Sketch {
        let grams = grams_of(normal, self.settings.gram);
        let signature = self.permutations.signature(&grams);
        let key = |rows: &[u32]| {
            let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
            xxh3_64(&bytes) as u32
        };
        let keys = signature.chunks_exact(self.bands.n_rows).map(key).collect();
        Sketch { grams, keys, bytes: signature.map(|minimum| minimum as u8) }
    }

    /// The most similar kept record, by its number, if it reaches the threshold; the first of several.
    fn find<'t>(&self, sketch: &Sketch, normal_of: impl Fn(u32) -> &'t str) -> Option<Duplicate> {
        let mut candidates: Vec<u32> = Vec::new();
        for (band, (newest, key)) in self.newest.iter().zip(&sketch.keys).enumerate() {
            let mut at = newest.get(key).copied().unwrap_or(NONE);
            while at != NONE {
                let bytes = &self.sketches[at as usize];
                let n_equal = bytes.iter().zip(&sketch.bytes).filter(|(a, b)| a == b).count();
                if n_equal >= self.min_equal {
                    candidates.push(at);
                }
                at = self.before[at as usize * self.bands.n_bands + band];
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        let similarity = |of: u32| jaccard(&sketch.grams, &grams_of(normal_of(of), self.settings.gram));
        candidates
            .into_iter()
            .map(|of| Duplicate { of, similarity: similarity(of) })
            .filter(|duplicate| duplicate.similarity >= self.settings.threshold)
            .max_by(|a, b| a.similarity.total_cmp(&b.similarity).then(b.of.cmp(&a.of)))
    }

    fn keep(&mut self, sketch: &Sketch) {
        let number = self.sketches.len() as u32;
        self.sketches.push(sketch.bytes);
        for (newest, key) in self.newest.iter_mut().zip(&sketch.keys) {
            self.before.push(newest.insert(*key, number).unwrap_or(NONE));
        }
    }
}

/// Texts in normal form, one after the other.
#[derive(Debug, Default)]
pub struct Texts {
    all: String,
    ends: Vec<usize>,
}

impl Texts {
    /// Adds a text.
    pub fn push(&mut self, text: &str) {
        self.all.push_str(&normal_form(text));
        self.ends.push(self.all.len());
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn get(&self, idx: u32) -> &str {
        let idx = idx as usize;
        let start = idx.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.all[start..self.ends[idx]]
    }
}

/// For each text the one that it repeats, if any. A text is compared with those before it in `order` that repeat none.
/// `advance` hears of the texts compared and may end the work with its error.
///
/// # Errors
/// Those of `advance`.
pub fn duplicates<E>(
    texts: &Texts,
    order: &[u32],
    settings: &DedupSettings,
    mut advance: impl FnMut(u64) -> Result<(), E>,
) -> Result<Vec<Option<Duplicate>>, E> {
    let mut index = Index::new(settings.clone());
    let mut kept: Vec<u32> = Vec::new();
    let mut found = vec![None; texts.len()];
    for numbers in order.chunks(CHUNK) {
        let sketches: Vec<Sketch> = numbers.par_iter().map(|&idx| index.sketch(texts.get(idx))).collect();
        for (&idx, sketch) in numbers.iter().zip(sketches) {
            let duplicate = index.find(&sketch, |number| texts.get(kept[number as usize]));
            match duplicate {
                None => {
                    index.keep(&sketch);
                    kept.push(idx);
                }
                Some(duplicate) => {
                    found[idx as usize] = Some(Duplicate { of: kept[duplicate.of as usize], ..duplicate });
                }
            }
        }
        advance(numbers.len() as u64)?;
    }
    Ok(found)
}

/// The order in which records are compared: those with more codes first, and of equals the first.
pub fn order_by_codes(n_codes: &[u8]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n_codes.len() as u32).collect();
    order.sort_by_key(|&idx| std::cmp::Reverse(n_codes[idx as usize]));
    order
}

impl DedupReport {
    /// Counts a record that repeats another, or none.
    pub(crate) fn count(&mut self, duplicate: Option<Duplicate>, has_same_codes: bool) {
        self.n_read += 1;
        match duplicate {
            None => self.n_kept += 1,
            Some(duplicate) => {
                *if duplicate.similarity == 1.0 { &mut self.n_exact } else { &mut self.n_near } += 1;
                self.n_with_other_codes += usize::from(!has_same_codes);
            }
        }
    }
}

/// Removes near-duplicates, keeping of similar records the one with the most codes, and of those the first. The order
/// of the records stays.
pub fn dedup(scenarios: Vec<Scenario>, settings: &DedupSettings) -> (Vec<Scenario>, DedupReport) {
    let mut texts = Texts::default();
    scenarios.iter().for_each(|scenario| texts.push(&scenario.scenario));
    let n_codes: Vec<u8> = scenarios.iter().map(|scenario| scenario.codes.len().min(255) as u8).collect();
    let never = |_| Ok::<_, std::convert::Infallible>(());
    let Ok(found) = duplicates(&texts, &order_by_codes(&n_codes), settings, never);
    let mut report = DedupReport::default();
    for (scenario, duplicate) in scenarios.iter().zip(&found) {
        let has_same_codes = duplicate.is_none_or(|of| scenarios[of.of as usize].codes == scenario.codes);
        report.count(*duplicate, has_same_codes);
    }
    let kept = scenarios.into_iter().zip(found).filter(|(_, duplicate)| duplicate.is_none());
    (kept.map(|(scenario, _)| scenario).collect(), report)
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
    fn what_is_found_is_what_a_comparison_of_all_pairs_finds() {
        let settings = DedupSettings::default();
        let (mut n_pairs, mut n_found) = (0, 0);
        for seed in 0..4 {
            let all = texts(seed);
            let sets: Vec<Vec<u64>> = all.iter().map(|text| grams(text, settings.gram)).collect();
            let mut in_normal_form = Texts::default();
            all.iter().for_each(|text| in_normal_form.push(text));
            let order: Vec<u32> = (0..all.len() as u32).collect();
            let found = duplicates(&in_normal_form, &order, &settings, |_| Ok::<_, ()>(())).unwrap();
            let mut kept: Vec<usize> = Vec::new();
            for (idx, duplicate) in found.iter().enumerate() {
                let expected = kept.iter().any(|&of| jaccard(&sets[idx], &sets[of]) >= settings.threshold);
                match duplicate {
                    None => kept.push(idx),
                    Some(duplicate) => {
                        assert_eq!(duplicate.similarity, jaccard(&sets[idx], &sets[duplicate.of as usize]));
                        assert!(expected, "a pair below the threshold was found");
                    }
                }
                n_pairs += usize::from(expected);
                n_found += usize::from(expected && duplicate.is_some());
            }
        }
        assert!(n_pairs > 100, "{n_pairs}");
        assert!(n_found as f64 >= RECALL * n_pairs as f64, "{n_found} of {n_pairs}");
    }

    #[test]
    fn bands_are_as_wide_as_the_threshold_allows() {
        assert_eq!(Bands::for_threshold(0.8), Bands { n_bands: 21, n_rows: 6 });
        assert!(Bands::for_threshold(0.9).n_rows > 6 && Bands::for_threshold(0.6).n_rows < 6);
        for threshold in [0.3, 0.5, 0.7, 0.8, 0.9, 0.99] {
            assert!(Bands::for_threshold(threshold).recall(threshold) >= RECALL);
        }
        // A sketch of equal texts is equal, and one of others is not.
        let index = Index::new(DedupSettings::default());
        let n_equal = |a: &str, b: &str| {
            let (a, b) = (index.sketch(&normal_form(a)), index.sketch(&normal_form(b)));
            a.bytes.iter().zip(&b.bytes).filter(|(a, b)| a == b).count()
        };
        assert_eq!(n_equal("The left knee, swollen", "the  left knee swollen."), N_PERMUTATIONS);
        assert!(n_equal("The left knee, swollen", "fever since yesterday") < 10);
    }

    #[test]
    fn minima_agree_as_often_as_grams_do() {
        let index = Index::new(DedupSettings::default());
        let (mut estimated, mut exact, mut n) = (0.0, 0.0, 0.0);
        for seed in 10..14 {
            for four in texts(seed).chunks(4) {
                let sketches: Vec<Sketch> = four.iter().map(|text| index.sketch(&normal_form(text))).collect();
                for other in &sketches[1..] {
                    let n_equal = sketches[0].bytes.iter().zip(&other.bytes).filter(|(a, b)| a == b).count();
                    estimated += n_equal as f64 / N_PERMUTATIONS as f64;
                    exact += jaccard(&sketches[0].grams, &other.grams);
                    n += 1.0;
                }
            }
        }
        // 720 pairs of 128 minima: the standard error is below 0.002; equal bytes of unequal minima add up to 1/256.
        let difference: f64 = (estimated - exact) / n;
        assert!((-0.01..0.014).contains(&difference), "{difference}");
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
