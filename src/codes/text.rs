//! Texts of a release without a copy of each: slices of the table that is built in, of a file read whole, or of one
//! long text in which the full descriptions of codes with a seventh character stand, once one of them is read.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

use serde::{Serialize, Serializer};

/// The compact table of `icd10cm-tabular-April-1-2026.xml.gz`, which stands beside it.
const BUILTIN: &str = include_str!("../../assets/icd10cm/fy2026-april.table");

/// What stands between a description and the text of its seventh character.
const SEPARATOR: &str = ", ";

/// A text that is cheap to clone and to cut out of a longer one; reads like a `str`.
#[derive(Clone, Default)]
pub struct Text {
    source: Source,
    start: u32,
    end: u32,
}

/// A long text that [`Text`]s are cut out of.
#[derive(Clone, Default)]
pub(super) struct Source(
    /// None for the table that is built in.
    Option<Arc<Whole>>,
);

enum Whole {
    Read(String),
    Composed { parts: OnceLock<Parts>, text: OnceLock<String> },
}

/// A text of full descriptions in parts: each beginning comes once with each ending of its list.
#[derive(Default)]
pub(super) struct Parts {
    endings: Vec<Vec<Text>>,
    /// With the place of the list in `endings`.
    beginnings: Vec<(Text, u32)>,
    len_bytes: usize,
}

impl Text {
    /// The text itself.
    pub fn as_str(&self) -> &str {
        // The bounds are those of a slice of the source.
        self.source.as_str().get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    fn len_bytes(&self) -> usize {
        (self.end - self.start) as usize
    }
}

impl Source {
    pub(super) fn built_in() -> Self {
        Self::default()
    }

    pub(super) fn read(text: String) -> Self {
        Self(Some(Arc::new(Whole::Read(text))))
    }

    /// A source that is put together from parts, given by [`Source::compose_from`], when it is first read.
    pub(super) fn composed() -> Self {
        Self(Some(Arc::new(Whole::Composed { parts: OnceLock::new(), text: OnceLock::new() })))
    }

    /// Gives a composed source its parts, once.
    pub(super) fn compose_from(&self, of: Parts) {
        if let Some(Whole::Composed { parts, .. }) = self.0.as_deref() {
            parts.get_or_init(|| of);
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self.0.as_deref() {
            None => BUILTIN,
            Some(Whole::Read(text)) => text,
            Some(Whole::Composed { parts, text }) => {
                text.get_or_init(|| parts.get().map(Parts::compose).unwrap_or_default())
            }
        }
    }

    /// `part`, a slice of this text, without a copy; anything else is copied.
    pub(super) fn cut(&self, part: &str) -> Text {
        let start = (part.as_ptr() as usize).wrapping_sub(self.as_str().as_ptr() as usize);
        let end = start.wrapping_add(part.len());
        let is_inside = start <= end && end <= self.as_str().len();
        is_inside.then(|| self.slice(start..end)).flatten().unwrap_or_else(|| part.to_owned().into())
    }

    /// What stands at a place of this source, without a look at it; none where the place cannot be addressed.
    pub(super) fn slice(&self, place: Range<usize>) -> Option<Text> {
        let (start, end) = (u32::try_from(place.start).ok()?, u32::try_from(place.end).ok()?);
        Some(Text { source: self.clone(), start, end })
    }
}

impl Parts {
    pub(super) fn new(endings: Vec<Vec<Text>>) -> Self {
        Self { endings, ..Self::default() }
    }

    /// Adds "BEGINNING, ENDING" for each ending of a list; `take` is told where each of them will stand.
    pub(super) fn add(&mut self, beginning: &Text, list: u32, mut take: impl FnMut(Range<usize>)) {
        for ending in self.endings.get(list as usize).into_iter().flatten() {
            let start = self.len_bytes;
            self.len_bytes += beginning.len_bytes() + SEPARATOR.len() + ending.len_bytes();
            take(start..self.len_bytes);
        }
        self.beginnings.push((beginning.clone(), list));
    }

    /// What [`Parts::add`] places, as a text of its own.
    pub(super) fn joined(beginning: &str, ending: &str) -> Text {
        format!("{beginning}{SEPARATOR}{ending}").into()
    }

    fn compose(&self) -> String {
        let mut whole = String::with_capacity(self.len_bytes);
        for (beginning, list) in &self.beginnings {
            for ending in self.endings.get(*list as usize).into_iter().flatten() {
                whole.push_str(beginning);
                whole.push_str(SEPARATOR);
                whole.push_str(ending);
            }
        }
        whole
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.as_str().len()).finish()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        let end = text.len();
        // No description is that long; what cannot be addressed is left out.
        Source::read(text).slice(0..end).unwrap_or_default()
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        self
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Text {}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_the_part_and_keeps_its_source() {
        let whole = Source::read("Cholera, é, typhoid".to_owned());
        let part = whole.cut(whole.as_str().split(", ").nth(1).unwrap());
        assert_eq!(part, "é");
        let elsewhere = whole.cut("typhoid");
        drop(whole);
        assert_eq!((part.as_str(), elsewhere.as_str()), ("é", "typhoid"));
        let built_in = Source::built_in();
        assert_eq!(built_in.cut(&built_in.as_str()[2..5]), &BUILTIN[2..5]);
        assert_eq!(Text::default(), "");
    }

    #[test]
    fn composed_texts_stand_where_they_were_placed() {
        let text = |text: &str| Text::from(text.to_owned());
        let mut parts = Parts::new(vec![vec![], vec![text("first"), text("später")], vec![text("x")]]);
        let source = Source::composed();
        let mut cuts = Vec::new();
        for (beginning, list) in [("é", 1), ("none", 0), ("last", 2)] {
            parts.add(&text(beginning), list, |place| cuts.push(source.slice(place).unwrap()));
        }
        source.compose_from(parts);
        assert_eq!(cuts, ["é, first", "é, später", "last, x"]);
        assert_eq!(Parts::joined("é", "first"), cuts[0]);
    }
}
