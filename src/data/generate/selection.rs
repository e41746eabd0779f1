//! Which codes a data set is about.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::codes::{Code, Release};
use crate::data::Error;

/// A choice of billable codes: the union of what is named, all of them when nothing is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// Chapters by number, 1 to 22.
    pub chapters: Vec<u8>,
    /// Beginnings of codes, with the dot or without: `J45`, `S82.2`.
    pub prefixes: Vec<String>,
    /// Codes by themselves, kept whatever their seventh character.
    pub codes: Vec<Code>,
    /// Seventh characters to keep, where a code has one; all when empty.
    pub sevenths: Vec<char>,
}

impl Selection {
    /// The selected codes, sorted.
    ///
    /// # Errors
    /// [`Error::NothingSelected`] when a part of the selection matches no billable code.
    pub fn resolve(&self, release: &Release) -> Result<Vec<Code>, Error> {
        let nothing = |what: String| Error::NothingSelected { what };
        let is_kept = |code: Code| {
            self.sevenths.is_empty() || code.character(7).is_none_or(|seventh| self.sevenths.contains(&seventh))
        };
        let mut selected = BTreeSet::new();
        let mut add = |what: String, matches: &dyn Fn(Code) -> bool| {
            let before = selected.len();
            let all = release.billable().iter().map(|billable| billable.code);
            selected.extend(all.filter(|code| is_kept(*code) && matches(*code)));
            if selected.len() == before { Err(nothing(what)) } else { Ok(()) }
        };
        for number in &self.chapters {
            add(format!("chapter {number}"), &|code| {
                release.chapter_of(code).is_some_and(|chapter| chapter.number == *number)
            })?;
        }
        for prefix in &self.prefixes {
            let plain = prefix.replace('.', "").to_ascii_uppercase();
            add(prefix.clone(), &|code| code.undotted().starts_with(&plain))?;
        }
        if self.chapters.is_empty() && self.prefixes.is_empty() && self.codes.is_empty() {
            add("the release".to_owned(), &|_| true)?;
        }
        for code in &self.codes {
            if !release.is_billable(*code) {
                return Err(nothing(code.to_string()));
            }
            selected.insert(*code);
        }
        Ok(selected.into_iter().collect())
    }
}
