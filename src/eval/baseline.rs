//! What a model has to beat: the first hit of a search for the question's words.

use super::{Answer, Error};
use crate::codes::{Release, SearchIndex};
use crate::stop::Stop;

/// The answers of a search over the release to the questions of `answers`. `done` is called after each.
///
/// # Errors
/// When a question is unknown, the search fails or a stop is requested.
pub fn search_answers(
    answers: &[Answer],
    release: &Release,
    stop: &Stop,
    mut done: impl FnMut(u64),
) -> Result<Vec<Answer>, Error> {
    if let Some(idx) = answers.iter().position(|answer| answer.scenario.is_empty()) {
        return Err(Error::NoQuestion { number: idx + 1 });
    }
    let index = SearchIndex::of(release)?;
    let mut found = Vec::with_capacity(answers.len());
    for answer in answers {
        stop.check("searching")?;
        let hit = index.search(&answer.scenario, 1)?.first().map(|hit| hit.code.to_string());
        found.push(Answer { output: hit.unwrap_or_default(), confidence: None, ..answer.clone() });
        done(1);
    }
    Ok(found)
}
