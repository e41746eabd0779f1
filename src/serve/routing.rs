//! `model: auto`: which adapter answers, by the chapter of the tabular list that the words point to.
//!
//! The classifier is a vote of the search: the codes found for the words, each with its score, for their chapters.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::codes::{self, Code, Release, SearchIndex};

/// Codes that vote.
const N_VOTERS: usize = 30;

/// Finds codes for words, each with its score.
pub type Voters = Box<dyn Fn(&str) -> Result<Vec<(Code, f32)>, codes::Error> + Send + Sync>;

/// The voters of a release; their index is kept in the folder `cache`, where there is one.
///
/// # Errors
/// When the search cannot be set up.
pub fn voters(release: &Arc<Release>, cache: Option<&Path>) -> Result<Voters, codes::Error> {
    let index = match cache {
        Some(cache) => SearchIndex::open(Arc::clone(release), cache)?,
        None => SearchIndex::of(Arc::clone(release))?,
    };
    Ok(Box::new(move |words| {
        let hits = index.search(words, N_VOTERS)?;
        Ok(hits.iter().map(|hit| (hit.code, hit.score)).collect())
    }))
}

/// Which adapters answer for which chapters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Model by chapter number.
    by_chapter: BTreeMap<u8, usize>,
    /// The model for all else.
    fallback: usize,
}

/// How a question was routed: part of its answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// The model that answers.
    pub model: String,
    /// The chapter with the most votes; none when no code has the words.
    pub chapter: Option<u8>,
    /// Its title.
    pub title: Option<String>,
    /// Its share of all votes.
    pub share: f64,
}

impl Routes {
    /// Routes of these chapters to these models, by number; `fallback` answers all else.
    pub fn new(by_chapter: BTreeMap<u8, usize>, fallback: usize) -> Self {
        Self { by_chapter, fallback }
    }

    /// The model for a question, from the codes that were found for its words.
    pub fn choose(&self, release: &Release, found: &[(Code, f32)], names: &[String]) -> (usize, Decision) {
        let mut votes: BTreeMap<u8, f64> = BTreeMap::new();
        for &(code, score) in found {
            if let Some(chapter) = release.chapter_of(code) {
                *votes.entry(chapter.number).or_default() += f64::from(score);
            }
        }
        let total: f64 = votes.values().sum();
        let best = votes.into_iter().reduce(|best, other| if other.1 > best.1 { other } else { best });
        let chapter = best.map(|(number, _)| number);
        let model = chapter.and_then(|number| self.by_chapter.get(&number)).copied().unwrap_or(self.fallback);
        let title = release.chapters().iter().find(|known| Some(known.number) == chapter);
        let decision = Decision {
            model: names.get(model).cloned().unwrap_or_default(),
            chapter,
            title: title.map(|chapter| chapter.title.clone()),
            share: best.map_or(0.0, |(_, votes)| votes / total),
        };
        (model, decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_routed_to_the_adapter_of_their_chapter() {
        let release = Arc::new(Release::builtin().unwrap());
        let voters = voters(&release, None).unwrap();
        let names = ["base", "injuries", "heart"].map(str::to_owned);
        let routes = Routes::new(BTreeMap::from([(19, 1), (9, 2)]), 0);
        let decide = |text: &str| routes.choose(&release, &voters(text).unwrap(), &names);
        let (model, decision) = decide("fracture of shaft of right tibia");
        assert_eq!((model, decision.chapter, decision.model.as_str()), (1, Some(19), "injuries"));
        assert!(decision.share > 0.5 && decision.title.unwrap().starts_with("Injury"));
        assert_eq!(decide("essential hypertension").0, 2);
        assert_eq!(decide("cholera due to vibrio").0, 0);
        let (model, decision) = decide("xyzzy");
        assert_eq!((model, decision.chapter, decision.share), (0, None, 0.0));
    }
}
