//! What is in a file of records: counts, lengths, codes and chapters, and a sample.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::Error;
use super::draw::Draw;
use super::record::RawScenario;
use super::source::Source;
use crate::codes::{Code, Release};

/// Codes listed as the most frequent.
const N_FREQUENT: usize = 10;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Inspection {
    pub n_records: usize,
    /// Length of a text in characters.
    pub chars: Distribution,
    /// Length of a text in words.
    pub words: Distribution,
    /// Codes of a record.
    pub codes_per_record: Distribution,
    /// Records with a code that is not billable in the release.
    pub n_not_billable: usize,
    /// Billable codes that occur.
    pub n_distinct_codes: usize,
    /// Billable codes of the release.
    pub n_billable: usize,
    /// Distinct codes by how often they occur: once, twice, three or four times, five to eight, and so on.
    pub code_frequency: BTreeMap<usize, usize>,
    /// The most frequent codes.
    pub frequent: Vec<Frequent>,
    /// Chapters in order, those without a record too. Empty when the release has no chapters.
    pub chapters: Vec<ChapterCount>,
    /// Records by register, where their family or field says so.
    pub registers: BTreeMap<String, usize>,
    /// Wording families.
    pub n_families: usize,
    /// Records taken at random.
    pub samples: Vec<RawScenario>,
}

/// A code that occurs often.
#[derive(Clone, Debug, Serialize)]
pub struct Frequent {
    pub code: Code,
    pub n_records: usize,
    pub description: String,
}

/// What a file has of a chapter.
#[derive(Clone, Debug, Serialize)]
pub struct ChapterCount {
    pub number: u8,
    pub title: String,
    /// Codes in records, each time counted.
    pub n_uses: usize,
    /// Distinct codes.
    pub n_codes: usize,
    /// Billable codes of the chapter.
    pub n_billable: usize,
}

/// Numbers, by how often each occurs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Distribution {
    pub min: usize,
    pub median: usize,
    /// 95 of 100 are at most this.
    pub p95: usize,
    pub max: usize,
    /// Each value with its count.
    #[serde(skip)]
    pub counts: BTreeMap<usize, usize>,
}

impl Distribution {
    fn add(&mut self, value: usize) {
        *self.counts.entry(value).or_default() += 1;
    }

    fn finish(&mut self) {
        let n: usize = self.counts.values().sum();
        self.min = self.counts.keys().next().copied().unwrap_or(0);
        self.max = self.counts.keys().next_back().copied().unwrap_or(0);
        (self.median, self.p95) = (self.quantile(n, 0.5), self.quantile(n, 0.95));
    }

    fn quantile(&self, n: usize, share: f64) -> usize {
        let wanted = (share * n as f64).ceil() as usize;
        let mut n_below = 0;
        let reaches = |(_, count): &(&usize, &usize)| {
            n_below += **count;
            n_below >= wanted
        };
        self.counts.iter().find(reaches).map_or(0, |(value, _)| *value)
    }

    /// The counts in at most `n_bins` ranges of equal width: first and last value of each, and its count.
    pub fn bins(&self, n_bins: usize) -> Vec<(usize, usize, usize)> {
        if self.counts.is_empty() {
            return Vec::new();
        }
        let width = (self.max - self.min + 1).div_ceil(n_bins.max(1));
        let mut bins = Vec::new();
        for first in (self.min..=self.max).step_by(width) {
            let last = (first + width - 1).min(self.max);
            bins.push((first, last, self.counts.range(first..=last).map(|(_, count)| count).sum()));
        }
        bins
    }
}

/// Reads a whole file and describes it; memory does not grow with the records. Equal seeds give equal samples.
///
/// # Errors
/// [`Error::File`]; a record whose fields cannot be read.
pub fn inspect(source: &Source, release: &Release, n_samples: usize, seed: u64) -> Result<Inspection, Error> {
    let mut found = Inspection { n_billable: release.len(), ..Inspection::default() };
    let mut uses: HashMap<Code, usize> = HashMap::new();
    let mut families: HashMap<String, usize> = HashMap::new();
    let mut draw = Draw::new(seed, "inspect", 0);
    source.for_each_raw(|_, record| {
        found.chars.add(record.scenario.chars().count());
        found.words.add(record.scenario.split_whitespace().count());
        found.codes_per_record.add(record.codes.len());
        let codes: Vec<Code> = record.codes.iter().filter_map(|text| Code::parse_lenient(text).ok()).collect();
        let is_sound = codes.len() == record.codes.len() && codes.iter().all(|code| release.is_billable(*code));
        found.n_not_billable += usize::from(!is_sound);
        for code in codes.into_iter().filter(|code| release.is_billable(*code)) {
            *uses.entry(code).or_default() += 1;
        }
        let text = |key: &str| record.extra.get(key).and_then(|value| value.as_str());
        let family = text("family").filter(|family| !family.is_empty());
        if let Some(family) = family {
            *families.entry(family.to_owned()).or_default() += 1;
        }
        let register = text("register").or_else(|| Some(family?.split_once('/')?.0));
        if let Some(register) = register {
            *found.registers.entry(register.to_owned()).or_default() += 1;
        }
        // Each record is in the sample with the same probability (Vitter 1985, algorithm R).
        found.n_records += 1;
        if found.samples.len() < n_samples {
            found.samples.push(record);
        } else if let Some(place) = found.samples.get_mut(draw.below(found.n_records)) {
            *place = record;
        }
        Ok::<_, Error>(())
    })?;
    [&mut found.chars, &mut found.words, &mut found.codes_per_record].into_iter().for_each(Distribution::finish);
    found.n_families = families.len();
    found.n_distinct_codes = uses.len();
    for n in uses.values() {
        *found.code_frequency.entry(n.next_power_of_two()).or_default() += 1;
    }
    found.chapters = chapters(release, &uses);
    let mut frequent: Vec<(Code, usize)> = uses.into_iter().collect();
    frequent.sort_by_key(|(code, n)| (std::cmp::Reverse(*n), *code));
    let describe = |(code, n_records)| {
        let description = release.description(code).unwrap_or_default().to_owned();
        Frequent { code, n_records, description }
    };
    found.frequent = frequent.into_iter().take(N_FREQUENT).map(describe).collect();
    Ok(found)
}

fn chapters(release: &Release, uses: &HashMap<Code, usize>) -> Vec<ChapterCount> {
    let mut chapters: BTreeMap<u8, ChapterCount> = BTreeMap::new();
    for chapter in release.chapters() {
        let (number, title) = (chapter.number, chapter.title.clone());
        chapters.insert(number, ChapterCount { number, title, n_uses: 0, n_codes: 0, n_billable: 0 });
    }
    for billable in release.billable() {
        let number = release.chapter_of(billable.code).map(|chapter| chapter.number);
        let Some(count) = number.and_then(|number| chapters.get_mut(&number)) else { continue };
        let n_uses = uses.get(&billable.code).copied().unwrap_or(0);
        count.n_uses += n_uses;
        count.n_codes += usize::from(n_uses > 0);
        count.n_billable += 1;
    }
    chapters.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_tells_its_quantiles_and_bins() {
        let mut lengths = Distribution::default();
        (1..=100).for_each(|value| lengths.add(value));
        lengths.finish();
        assert_eq!((lengths.min, lengths.median, lengths.p95, lengths.max), (1, 50, 95, 100));
        assert_eq!(lengths.bins(4), [(1, 25, 25), (26, 50, 25), (51, 75, 25), (76, 100, 25)]);
        assert_eq!(Distribution::default().bins(4), []);
    }

    #[test]
    fn a_file_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let lines = [
            r#"{"scenario":"high blood pressure","codes":["I10"],"family":"patient/a"}"#,
            r#"{"scenario":"asthma and high blood pressure","codes":["J45.909","I10"],"family":"triage/b"}"#,
            r#"{"scenario":"a header","codes":["S82"]}"#,
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let release = Release::builtin().unwrap();
        let found = inspect(&Source::new(&path), &release, 2, 0).unwrap();
        assert_eq!((found.n_records, found.n_distinct_codes, found.n_not_billable), (3, 2, 1));
        assert_eq!((found.words.max, found.codes_per_record.max, found.samples.len()), (5, 2, 2));
        assert_eq!(found.code_frequency, [(1, 1), (2, 1)].into());
        assert_eq!((found.frequent[0].code.to_string().as_str(), found.frequent[0].n_records), ("I10", 2));
        let circulation = found.chapters.iter().find(|chapter| chapter.number == 9).unwrap();
        assert_eq!((circulation.n_uses, circulation.n_codes), (2, 1));
        assert_eq!(found.chapters.iter().map(|chapter| chapter.n_billable).sum::<usize>(), release.len());
        assert_eq!(found.registers, [("patient".to_owned(), 1), ("triage".to_owned(), 1)].into());
    }
}
