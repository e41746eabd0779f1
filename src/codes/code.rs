//! One ICD-10-CM code by its form: eight bytes, no heap. Whether it exists is the release's business.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Error;

/// A code of the right form: a three-character category, then up to four letters or digits.
///
/// Printed with the dot after the third character and in upper case (`S82.201A`). The order is that of the undotted
/// text, so that a header comes right before the codes below it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(
    /// The characters, then zeros: seven at most, so that the eight bytes compare as one number.
    [u8; 8],
);

impl Code {
    /// Characters of the longest code, the dot not counted.
    pub const MAX_LEN: usize = 7;

    /// Reads the canonical form only: a letter and two more characters, at least one of them a digit (`A00`, `C4A`,
    /// `QA0`), then nothing, or a dot and one to four of `[0-9A-Z]`.
    ///
    /// # Errors
    /// [`Error::NotACode`] for any other text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let code = match text.split_once('.') {
            None => Self::from_parts(text.as_bytes(), b""),
            Some((_, "")) => None,
            Some((category, rest)) => Self::from_parts(category.as_bytes(), rest.as_bytes()),
        };
        code.ok_or_else(|| Error::not_a_code(text))
    }

    /// Reads what people type: any case, the dot or none, space around it.
    ///
    /// # Errors
    /// [`Error::NotACode`] when even so the form is not that of a code.
    pub fn parse_lenient(text: &str) -> Result<Self, Error> {
        let upper = text.trim().to_ascii_uppercase();
        let (category, rest) = upper.as_bytes().split_at(upper.len().min(3));
        Self::from_parts(category, rest.strip_prefix(b".").unwrap_or(rest)).ok_or_else(|| Error::not_a_code(text))
    }

    /// The characters without the dot.
    pub fn undotted(&self) -> &str {
        // The bytes are ASCII by construction.
        std::str::from_utf8(&self.0[..self.len()]).unwrap_or_default()
    }

    /// Number of characters, the dot not counted: 3 to 7.
    #[expect(clippy::len_without_is_empty, reason = "a code has at least three characters")]
    pub fn len(&self) -> usize {
        self.0.len() - self.key().trailing_zeros() as usize / 8
    }

    /// The three-character category that this code belongs to.
    pub fn category(&self) -> Self {
        self.truncated(3)
    }

    /// The first `len` characters (at least 3; the whole code when it is shorter).
    pub fn truncated(&self, len: usize) -> Self {
        let mut bytes = self.0;
        bytes[len.clamp(3, Self::MAX_LEN)..].fill(0);
        Self(bytes)
    }

    /// This code with `suffix` appended, when that has the form of a code.
    pub fn extended(&self, suffix: &str) -> Option<Self> {
        let mut bytes = self.0;
        let len = self.len();
        bytes[..Self::MAX_LEN].get_mut(len..len + suffix.len())?.copy_from_slice(suffix.as_bytes());
        suffix.bytes().all(is_tail).then_some(Self(bytes))
    }

    /// Whether this code lies below `header` or is it.
    pub fn is_under(&self, header: Self) -> bool {
        let beyond_header = 8 * (self.0.len() - header.len());
        (self.key() ^ header.key()) >> beyond_header == 0
    }

    /// The character at `position`, counted from 1 as the notes do.
    pub fn character(&self, position: usize) -> Option<char> {
        let byte = *self.0.get(position.checked_sub(1)?)?;
        (byte != 0).then_some(char::from(byte))
    }

    /// The bytes as one number, whose order is theirs.
    fn key(self) -> u64 {
        u64::from_be_bytes(self.0)
    }

    fn from_parts(category: &[u8], rest: &[u8]) -> Option<Self> {
        let &[first, second, third] = category else { return None };
        let is_code = first.is_ascii_uppercase()
            && is_tail(second)
            && is_tail(third)
            && (second.is_ascii_digit() || third.is_ascii_digit())
            && rest.len() <= Self::MAX_LEN - 3
            && rest.iter().copied().all(is_tail);
        let mut bytes = [0; 8];
        if is_code {
            bytes[..3].copy_from_slice(category);
            bytes[3..3 + rest.len()].copy_from_slice(rest);
        }
        is_code.then_some(Self(bytes))
    }
}

/// Whether a character may stand after the first of a code.
fn is_tail(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

impl Ord for Code {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Code {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (category, rest) = self.undotted().split_at(3);
        if rest.is_empty() { f.pad(category) } else { f.pad(&format!("{category}.{rest}")) }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Code {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}
