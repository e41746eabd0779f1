//! Which release is meant by a name, and where it is kept: "2027" is that of October 2026, "2026-april" its update.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Error;
use super::release::Release;

/// The first fiscal year whose tabular list has the form of today.
const FIRST_YEAR: u16 = 2016;

/// A published release, by its fiscal year: FY2027 is in force from 1 October 2026, its April update from 1 April 2027.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edition {
    /// The fiscal year.
    pub year: u16,
    /// Whether it is the update of April.
    pub is_april: bool,
}

impl Edition {
    /// The release built into the program.
    pub const BUILTIN: Self = Self { year: 2026, is_april: true };

    /// The billable codes of the releases that this program was checked against.
    pub fn n_billable(self) -> Option<usize> {
        match (self.year, self.is_april) {
            (2026, true) => Some(74_719),
            (2027, false) => Some(74_879),
            _ => None,
        }
    }

    /// The name that its release bears, as "FY2026 April".
    pub fn title(self) -> String {
        format!("FY{}{}", self.year, if self.is_april { " April" } else { "" })
    }

    /// Where a fetched release is kept below the cache folder.
    pub fn file_in(self, cache: &Path) -> PathBuf {
        cache.join("releases").join(format!("{self}.table"))
    }

    /// The release: the built-in one, or one that was fetched into `cache` before.
    ///
    /// # Errors
    /// [`Error::NotFetched`] when it is not there, and what is wrong with a file that is.
    pub fn load(self, cache: Option<&Path>) -> Result<Release, Error> {
        if self == Self::BUILTIN {
            return Release::builtin();
        }
        let file = cache.map(|cache| self.file_in(cache)).filter(|file| file.is_file());
        Release::load(&file.ok_or(Error::NotFetched { edition: self })?)
    }
}

/// "2027", "2026-april".
impl fmt::Display for Edition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.year, if self.is_april { "-april" } else { "" })
    }
}

/// Reads "2027", "FY2027", "2026-april", "2026-04" or "April 2026".
impl FromStr for Edition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::NotAnEdition { text: text.chars().take(40).collect() };
        let lower = text.to_lowercase();
        let mut edition: Option<Self> = None;
        let mut is_april = false;
        for word in lower.split([' ', '-', '_', '/']).filter(|word| !word.is_empty()) {
            match word.strip_prefix("fy").unwrap_or(word) {
                "april" | "apr" | "04" => is_april = true,
                year => {
                    let year =
                        year.parse().ok().filter(|year| (FIRST_YEAR..2100).contains(year)).ok_or_else(unknown)?;
                    if edition.replace(Self { year, is_april: false }).is_some() {
                        return Err(unknown());
                    }
                }
            }
        }
        edition.map(|edition| Self { is_april, ..edition }).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editions_are_read_as_people_write_them() {
        for (text, printed) in [
            ("2027", Some("2027")),
            ("FY2027", Some("2027")),
            ("2026-april", Some("2026-april")),
            ("April 2026", Some("2026-april")),
            ("2026-04", Some("2026-april")),
            ("fy2025 April", Some("2025-april")),
            ("27", None),
            ("1999", None),
            ("2026-may", None),
            ("2026 2027", None),
            ("april", None),
            ("october 2026", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<Edition>().ok().map(|edition| edition.to_string()).as_deref(), printed, "{text}");
        }
    }

    #[test]
    fn a_release_that_is_not_there_says_how_to_fetch_it() {
        use crate::diag::Diagnostic as _;
        let error = "2027".parse::<Edition>().unwrap().load(None).unwrap_err();
        assert_eq!(error.to_string(), "the release `2027` is not on this machine");
        assert!(error.hint().unwrap().contains("axismapper codes fetch --release 2027"));
        assert_eq!(Edition::BUILTIN.load(None).unwrap().name(), "FY2026 April");
    }
}
