//! Texts of a release without a copy of each: slices of the table that is built in, of a file read whole, or of one
//! long text in which all full descriptions stand.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A text that is cheap to clone and to cut out of a longer one; reads like a `str`.
#[derive(Clone)]
pub struct Text(Repr);

#[derive(Clone)]
enum Repr {
    BuiltIn(&'static str),
    Shared { whole: Arc<String>, start: u32, end: u32 },
}

/// A long text that [`Text`]s are cut out of.
#[derive(Clone, Debug)]
pub(super) enum Source {
    BuiltIn(&'static str),
    Shared(Arc<String>),
}

impl Text {
    /// The text itself.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::BuiltIn(text) => text,
            // The bounds are those of a slice of `whole`.
            Repr::Shared { whole, start, end } => whole.get(*start as usize..*end as usize).unwrap_or_default(),
        }
    }
}

impl Source {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::BuiltIn(text) => text,
            Self::Shared(text) => text,
        }
    }

    /// `part`, a slice of this text, without a copy; anything else is copied.
    pub(super) fn cut(&self, part: &str) -> Text {
        let start = (part.as_ptr() as usize).wrapping_sub(self.as_str().as_ptr() as usize);
        let end = start.wrapping_add(part.len());
        let is_inside = start <= end && end <= self.as_str().len();
        match self {
            Self::BuiltIn(text) if is_inside => text.get(start..end).map_or_else(|| part.to_owned().into(), Text::from),
            Self::Shared(whole) if is_inside => match (u32::try_from(start), u32::try_from(end)) {
                (Ok(start), Ok(end)) => Text(Repr::Shared { whole: Arc::clone(whole), start, end }),
                _ => part.to_owned().into(),
            },
            _ => part.to_owned().into(),
        }
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        match u32::try_from(text.len()) {
            Ok(end) => Self(Repr::Shared { whole: Arc::new(text), start: 0, end }),
            // No description is that long; what cannot be addressed is left out.
            Err(_) => Self::default(),
        }
    }
}

impl From<&'static str> for Text {
    fn from(text: &'static str) -> Self {
        Self(Repr::BuiltIn(text))
    }
}

impl Default for Text {
    fn default() -> Self {
        Self(Repr::BuiltIn(""))
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
        let whole = Source::Shared(Arc::new("Cholera, é, typhoid".to_owned()));
        let part = whole.cut(whole.as_str().split(", ").nth(1).unwrap());
        assert_eq!(part, "é");
        let elsewhere = whole.cut("typhoid");
        drop(whole);
        assert_eq!((part.as_str(), elsewhere.as_str()), ("é", "typhoid"));
        assert_eq!(Source::BuiltIn("abc").cut("abc"), Text::from("abc".to_owned()));
    }
}
