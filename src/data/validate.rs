//! Validation: what may be trained on, and why the rest may not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::{RawScenario, Scenario};
use crate::codes::{Code, Release};

/// What validation asks for beyond sound codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidateSettings {
    /// Drop scenarios that name a code (with or without its dot).
    pub reject_leaked_codes: bool,
    /// Drop scenarios that hold the full official description of one of their codes.
    pub reject_exact_descriptions: bool,
    /// The most codes a record may have.
    pub max_codes: usize,
}

impl Default for ValidateSettings {
    fn default() -> Self {
        Self { reject_leaked_codes: true, reject_exact_descriptions: false, max_codes: 12 }
    }
}

/// Why a record is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    EmptyScenario,
    NoCodes,
    TooManyCodes,
    RepeatedCode,
    UnknownCode,
    NotBillable,
    Excludes1Conflict,
    LeakedCode,
    ExactDescription,
}

/// What validation kept and dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidateReport {
    pub n_read: usize,
    pub n_kept: usize,
    pub dropped: BTreeMap<Reason, usize>,
}

/// The first reason against a record, with the object that it is about; `None` when it is sound.
pub fn fault(scenario: &Scenario, release: &Release, settings: &ValidateSettings) -> Option<(Reason, String)> {
    if scenario.scenario.trim().is_empty() {
        return Some((Reason::EmptyScenario, String::new()));
    }
    if scenario.codes.is_empty() {
        return Some((Reason::NoCodes, String::new()));
    }
    if scenario.codes.len() > settings.max_codes {
        return Some((Reason::TooManyCodes, scenario.codes.len().to_string()));
    }
    for (idx, &code) in scenario.codes.iter().enumerate() {
        if !release.is_billable(code) {
            let reason = if release.node(code).is_some() { Reason::NotBillable } else { Reason::UnknownCode };
            return Some((reason, code.to_string()));
        }
        for &other in &scenario.codes[..idx] {
            if other == code {
                return Some((Reason::RepeatedCode, code.to_string()));
            }
            if release.excludes1(other, code).is_some() {
                return Some((Reason::Excludes1Conflict, format!("{other} and {code}")));
            }
        }
    }
    if settings.reject_leaked_codes
        && let Some(code) = leaked_code(&scenario.scenario, release)
    {
        return Some((Reason::LeakedCode, code));
    }
    if settings.reject_exact_descriptions {
        let text = scenario.scenario.to_lowercase();
        let is_quoted = |code: &&Code| {
            release.description(**code).is_some_and(|description| text.contains(&description.to_lowercase()))
        };
        return scenario.codes.iter().find(is_quoted).map(|code| (Reason::ExactDescription, code.to_string()));
    }
    None
}

/// A word of the text that is a code of the release and is written as one: with its dot, or with four characters or
/// more. Words such as `T12` or `C5` are anatomy as often as codes.
fn leaked_code(text: &str, release: &Release) -> Option<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '.';
    text.split(|c| !is_part(c)).map(|word| word.trim_end_matches('.')).find_map(|word| {
        let code = Code::parse_lenient(word).ok()?;
        let is_written_out = word.contains('.') || code.len() >= 4;
        let has_digits = word.chars().filter(char::is_ascii_digit).count() >= 2;
        (is_written_out && has_digits && release.node(code.truncated(3)).is_some() && is_known(code, release))
            .then(|| word.to_owned())
    })
}

fn is_known(code: Code, release: &Release) -> bool {
    release.is_billable(code) || release.node(code).is_some()
}

/// The record with its codes in canonical form, or the record with `reason` and `detail` added to its fields.
///
/// # Errors
/// The record, when it is not sound. It is boxed, because it would make every result large.
pub fn judge(
    raw: RawScenario,
    release: &Release,
    settings: &ValidateSettings,
) -> Result<Scenario, (Reason, Box<RawScenario>)> {
    if let Some(code) = raw.malformed_code().map(str::to_owned) {
        return Err((Reason::UnknownCode, Box::new(raw.because(Reason::UnknownCode, code))));
    }
    let original = raw.codes.clone();
    let scenario = raw.into_scenario();
    match fault(&scenario, release, settings) {
        None => Ok(scenario),
        Some((reason, detail)) => Err((reason, Box::new(as_read(scenario, original).because(reason, detail)))),
    }
}

/// A scenario as it was before its codes were read.
fn as_read(scenario: Scenario, codes: Vec<String>) -> RawScenario {
    let mut extra = scenario.extra;
    for (key, value) in [("family", scenario.family), ("group", scenario.group)] {
        if !value.is_empty() {
            extra.insert(key.into(), value.into());
        }
    }
    RawScenario { scenario: scenario.scenario, codes, extra }
}

impl ValidateReport {
    /// Counts a record, dropped for a reason or kept.
    pub(crate) fn count(&mut self, dropped: Option<Reason>) {
        self.n_read += 1;
        match dropped {
            None => self.n_kept += 1,
            Some(reason) => *self.dropped.entry(reason).or_default() += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_named() {
        let release = Release::builtin().unwrap();
        let settings = ValidateSettings { reject_exact_descriptions: true, ..ValidateSettings::default() };
        let check = |text: &str, codes: &[&str]| {
            let codes = codes.iter().map(|code| Code::parse(code).unwrap()).collect();
            fault(&Scenario::new(text, codes), &release, &settings).map(|(reason, _)| reason)
        };
        assert_eq!(check("my blood pressure is high", &["I10"]), None);
        assert_eq!(check(" ", &["I10"]), Some(Reason::EmptyScenario));
        assert_eq!(check("x", &[]), Some(Reason::NoCodes));
        assert_eq!(check("x", &["I10", "I10"]), Some(Reason::RepeatedCode));
        assert_eq!(check("x", &["S82.201"]), Some(Reason::NotBillable));
        assert_eq!(check("x", &["Q99.77"]), Some(Reason::UnknownCode));
        assert_eq!(check("type 1 and type 2 diabetes", &["E10.9", "E11.9"]), Some(Reason::Excludes1Conflict));
        assert_eq!(check("it is S82.201A, I think", &["I10"]), Some(Reason::LeakedCode));
        assert_eq!(check("coded s82201a today", &["I10"]), Some(Reason::LeakedCode));
        assert_eq!(check("fracture of T12 on level A10 of the building", &["I10"]), None);
        assert_eq!(check("ESSENTIAL (primary) hypertension", &["I10"]), Some(Reason::ExactDescription));
    }

    #[test]
    fn rejects_say_why_and_nothing_is_lost() {
        let release = Release::builtin().unwrap();
        let settings = ValidateSettings::default();
        let raw = |text: &str, code: &str| RawScenario {
            scenario: text.into(),
            codes: vec![code.into()],
            extra: [("group".to_owned(), "g".into()), ("note".to_owned(), 1.into())].into_iter().collect(),
        };
        let sound = judge(raw("a", "s82201a"), &release, &settings).unwrap();
        assert_eq!((sound.codes[0].to_string().as_str(), sound.group.as_str()), ("S82.201A", "g"));
        for (code, reason, name) in
            [("s82", Reason::NotBillable, "not_billable"), ("flu", Reason::UnknownCode, "unknown_code")]
        {
            let (found, reject) = judge(raw("b", code), &release, &settings).unwrap_err();
            assert_eq!((found, reject.codes[0].as_str()), (reason, code));
            assert_eq!(reject.extra["reason"], name);
            assert_eq!((&reject.extra["group"], &reject.extra["note"]), (&"g".into(), &1.into()));
        }
    }
}
