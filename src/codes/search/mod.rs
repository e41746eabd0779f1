//! Words to codes: a ranked search over descriptions, inclusion terms and notes that forgives typing slips and knows
//! people's words.
//!
//! In: free text. Out: billable codes, best first. Codes that differ only in the seventh character are one hit, shown
//! with the seventh character that the words ask for, else with the first. Documents are scored by BM25 (Robertson
//! and Zaragoza 2009) in `tantivy`, then ranked by how much more they say than was asked.

mod engine;
mod question;
mod rank;
mod words;

use std::ops::{Deref, Range};
use std::path::Path;

use serde::Serialize;

use self::engine::Engine;
use self::question::{Question, Vocabulary};
use self::words::{Lay, words_of};
use super::release::Release;
use super::{Code, Error};

/// Documents that BM25 hands to the ranking.
const MIN_CANDIDATES: usize = 200;

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
///
/// `R` is `&Release`, or `Arc<Release>` where the index has to outlive the place that made it.
#[derive(Debug)]
pub struct SearchIndex<R> {
    release: R,
    /// The billable codes of each document: those that differ in the seventh character only.
    documents: Vec<Range<usize>>,
    engine: Engine,
    words: Vocabulary,
    lay: Lay,
}

impl<R: Deref<Target = Release>> SearchIndex<R> {
    /// Indexes a release in memory.
    ///
    /// # Errors
    /// [`Error::Search`] when the search engine fails.
    pub fn of(release: R) -> Result<Self, Error> {
        let (engine, _) = Engine::build(&release)?;
        Self::with(release, engine)
    }

    /// Takes the index of a release from the folder `cache`, where an earlier call left it, else indexes the release
    /// and leaves the index there. A folder that cannot be written, or a damaged file in it, costs time and nothing
    /// else.
    ///
    /// # Errors
    /// [`Error::Search`] when the search engine fails.
    pub fn open(release: R, cache: &Path) -> Result<Self, Error> {
        let path = cache.join(format!("search-{:032x}.index", release.fingerprint()));
        let n_documents = engine::documents_of(&release).len();
        let kept = std::fs::read(&path).ok().and_then(|bytes| Engine::load(&bytes));
        if let Some(engine) = kept.filter(|engine| engine.n_documents() == n_documents) {
            return Self::with(release, engine);
        }
        let (engine, directory) = Engine::build(&release)?;
        // A kept index saves time; that it could not be kept is no fault of the search.
        let _ = engine.keep(&directory, &path);
        Self::with(release, engine)
    }

    /// The codes whose words fit `text` best, at most `limit`; the last word may be unfinished. A text that is a code
    /// or the beginning of one finds the codes below it.
    ///
    /// # Errors
    /// [`Error::Search`] when the search engine fails.
    pub fn search(&self, text: &str, limit: usize) -> Result<Vec<Hit<'_>>, Error> {
        if let Ok(code) = Code::parse_lenient(text) {
            let below = self.release.billable_under(code).iter().take(limit);
            let below: Vec<Hit> =
                below.map(|found| Hit { code: found.code, description: &found.description, score: 1.0 }).collect();
            if !below.is_empty() {
                return Ok(below);
            }
        }
        let Some(question) = Question::read(text, &self.words, &self.lay, self.engine.fields()) else {
            return Ok(Vec::new());
        };
        let candidates = self.engine.search(&*question.query, MIN_CANDIDATES.max(limit.saturating_mul(2)))?;
        let rank = |(document, score): (usize, f32)| {
            let first = self.release.billable().get(self.documents.get(document)?.start)?;
            Some((document, rank::rank(&self.release, &self.words, &question.weights, first, score)))
        };
        let mut ranked: Vec<(usize, f32)> = candidates.into_iter().filter_map(rank).collect();
        ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Ok(ranked
            .into_iter()
            .take(limit)
            .filter_map(|(document, score)| self.hit(document, score, &question.asked))
            .collect())
    }

    fn with(release: R, engine: Engine) -> Result<Self, Error> {
        let words = Vocabulary::of(&engine)?;
        Ok(Self { documents: engine::documents_of(&release), release, engine, words, lay: Lay::read() })
    }

    fn hit(&self, document: usize, score: f32, asked: &[String]) -> Option<Hit<'_>> {
        let group = self.release.billable().get(self.documents.get(document)?.clone())?;
        let title = group.first()?.node.map_or("", |id| &self.release.node_at(id).description);
        let of_title: Vec<String> = words_of(title).collect();
        let asked: Vec<&String> = asked.iter().filter(|word| !of_title.contains(word)).collect();
        let n_asked_for = |billable: &super::Billable| {
            let text = billable.seventh.as_ref().map_or("", |seventh| &seventh.text);
            words_of(text).filter(|word| asked.contains(&word)).count()
        };
        // The first of the best: `rev`, because the last of equals is the maximum.
        let billable = group.iter().rev().max_by_key(|billable| n_asked_for(billable))?;
        Some(Hit { code: billable.code, description: &billable.description, score })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_say_stands_for_words_of_the_list() {
        let release = Release::builtin().unwrap();
        let index = SearchIndex::of(&release).unwrap();
        let unknown: Vec<&str> = index.lay.meant_words().filter(|word| index.words.rarity(word) == 0.0).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
