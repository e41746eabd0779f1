//! Whether a set of codes, in the order of a claim, can stand as it is; if not, what to change.
//!
//! In: the texts of codes. Out: a [`Check`], one [`Status`] for each text, and what is wrong with the set as a whole.
//! Errors make a set not claimable; warnings are for a person to judge. Not checked: age, sex, payer's rules.

use std::collections::BTreeSet;

use serde::Serialize;

use super::release::{Billable, Release};
use super::{Code, Node, excludes};

/// Codes listed below a header or beside an unknown code.
const MAX_LISTED: usize = 20;
/// Codes offered in place of an unknown one.
const MAX_NEAREST: usize = 5;

/// The outcome for one set of codes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check<'a> {
    /// One entry for each text, in the order given.
    pub codes: Vec<Checked<'a>>,
    /// What is wrong with the set.
    pub faults: Vec<Fault<'a>>,
    /// Whether every code is billable and no fault is an error.
    pub claimable: bool,
}

/// One text and what it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked<'a> {
    /// The text as given.
    pub text: String,
    /// The code in canonical form, when the text has the form of one.
    pub code: Option<Code>,
    /// What the release says about it.
    #[serde(flatten)]
    pub status: Status<'a>,
}

/// What the release says about a code.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Status<'a> {
    /// A claim may carry it.
    Billable {
        /// The full description.
        description: &'a str,
    },
    /// It is in the list, but a claim needs one of the codes below it.
    NotBillable {
        /// Its description; none in a release without headers.
        description: Option<&'a str>,
        /// What is missing.
        reason: String,
        /// How many billable codes are below it.
        n_below: usize,
        /// The first of them.
        below: Vec<Suggestion<'a>>,
    },
    /// It has the form of a code but is not in the release.
    Unknown {
        /// What is wrong with it, where that can be told.
        reason: Option<String>,
        /// Billable codes that may have been meant, the likeliest first.
        nearest: Vec<Suggestion<'a>>,
    },
    /// It does not have the form of a code.
    NotACode,
}

/// A billable code to use instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Suggestion<'a> {
    /// The code.
    pub code: Code,
    /// Its full description.
    pub description: &'a str,
}

/// Something wrong with the set as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault<'a> {
    /// The rule that is broken.
    pub rule: Rule,
    /// Whether it keeps the set from being claimed, or is for a person to judge.
    pub severity: Severity,
    /// The codes concerned.
    pub codes: Vec<Code>,
    /// One sentence that says what is wrong.
    pub message: String,
    /// The note of the tabular list that says so.
    pub note: Option<&'a str>,
}

/// The rules about sets of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A code is reported once (guideline I.B.12).
    Duplicate,
    /// Codes that an Excludes1 note keeps apart (I.A.12.a).
    Excludes1,
    /// A manifestation code is never first (I.A.13).
    ManifestationFirst,
    /// What a "code first" note names goes before the code it is printed under (I.A.13).
    CodeFirst,
    /// An external cause is never first, hence never alone (I.C.20.a.6).
    ExternalCauseFirst,
}

/// How much a fault weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The set is not claimable.
    Error,
    /// The set may be claimable; the record decides.
    Warning,
}

/// Checks the codes of one claim, the principal diagnosis first. Case, dots and outer space do not matter.
pub fn check<'a>(release: &'a Release, texts: &[&str]) -> Check<'a> {
    let codes: Vec<Checked> = texts.iter().map(|text| check_one(release, text)).collect();
    let is_billable = |checked: &&Checked| matches!(checked.status, Status::Billable { .. });
    let billable: Vec<Code> = codes.iter().filter(is_billable).filter_map(|checked| checked.code).collect();
    let faults = faults_of(release, &billable);
    let has_error = faults.iter().any(|fault| fault.severity == Severity::Error);
    let claimable = !has_error && !codes.is_empty() && billable.len() == codes.len();
    Check { codes, faults, claimable }
}

/// What the release says about one text.
pub fn check_one<'a>(release: &'a Release, text: &str) -> Checked<'a> {
    let code = Code::parse_lenient(text).ok();
    let status = code.map_or(Status::NotACode, |code| status_of(release, code));
    Checked { text: text.trim().to_owned(), code, status }
}

/// The billable codes most like `code`: of its own category first, then by the number of characters to change.
pub fn nearest(release: &Release, code: Code) -> Vec<&Billable> {
    let distance = |other: Code| strsim::osa_distance(code.undotted(), other.undotted());
    let mut found: Vec<(usize, Code)> = release
        .billable_under(code.category())
        .iter()
        .map(|billable| (distance(billable.code), billable.code))
        .collect();
    found.sort_unstable();
    if found.len() < MAX_NEAREST {
        let elsewhere: BTreeSet<Code> = one_change_from(code).flat_map(|other| below_or_self(release, other)).collect();
        let mut elsewhere: Vec<(usize, Code)> = elsewhere.into_iter().map(|other| (distance(other), other)).collect();
        elsewhere.sort_unstable();
        let others = elsewhere.into_iter().filter(|(_, other)| other.category() != code.category());
        found.extend(others);
    }
    found.into_iter().take(MAX_NEAREST).filter_map(|(_, code)| release.get(code)).collect()
}

fn status_of(release: &Release, code: Code) -> Status<'_> {
    if let Some(billable) = release.get(code) {
        return Status::Billable { description: &billable.description };
    }
    let below = release.billable_under(code);
    if !below.is_empty() {
        let reason = if needs_only_seventh(release, code) {
            format!("it needs a 7th character: {}", sevenths_of(below))
        } else {
            format!("it is a header of {} billable codes", below.len())
        };
        let (n_below, below) = (below.len(), below.iter().take(MAX_LISTED).map(Suggestion::from).collect());
        return Status::NotBillable { description: release.description(code), reason, n_below, below };
    }
    let (reason, meant) = explain_unknown(release, code);
    let nearest = if meant.is_empty() { nearest(release, code) } else { meant };
    Status::Unknown { reason, nearest: nearest.into_iter().take(MAX_LISTED).map(Suggestion::from).collect() }
}

/// Whether `code` is a leaf of the list, so that only the seventh character (and perhaps placeholders) is missing.
fn needs_only_seventh(release: &Release, code: Code) -> bool {
    release.node(code).is_some_and(Node::is_leaf)
}

/// "A initial encounter, D subsequent encounter, S sequela".
fn sevenths_of(completed: &[Billable]) -> String {
    let sevenths = completed.iter().filter_map(|billable| billable.seventh.as_ref());
    sevenths.map(|seventh| format!("{} {}", seventh.character, seventh.text)).collect::<Vec<_>>().join(", ")
}

/// What is wrong with an unknown code whose beginning is known, and the codes that may have been meant.
fn explain_unknown(release: &Release, code: Code) -> (Option<String>, Vec<&Billable>) {
    let known = (3..code.len())
        .rev()
        .map(|len| code.truncated(len))
        .find(|beginning| release.is_billable(*beginning) || release.node(*beginning).is_some());
    let Some(known) = known else { return (None, Vec::new()) };
    if let Some(billable) = release.get(known) {
        return (Some(format!("{known} is complete; nothing may follow it")), vec![billable]);
    }
    if !needs_only_seventh(release, known) {
        return (None, Vec::new());
    }
    let completed = release.billable_under(known);
    let last = code.character(code.len());
    let meant: Vec<&Billable> = completed.iter().filter(|billable| billable.code.character(7) == last).collect();
    match (meant.as_slice(), code.len()) {
        ([meant], 4..=6) => {
            (Some(format!("the placeholder X is missing before the 7th character: {}", meant.code)), vec![meant])
        }
        ([], _) => {
            let character = last.unwrap_or_default();
            let reason = format!("{known} has no 7th character {character}; it has {}", sevenths_of(completed));
            (Some(reason), completed.iter().collect())
        }
        _ => (None, completed.iter().collect()),
    }
}

/// Every text of a code's form that one typing slip makes of `code`.
fn one_change_from(code: Code) -> impl Iterator<Item = Code> {
    let text = code.undotted().as_bytes().to_vec();
    let letters = || (b'0'..=b'9').chain(b'A'..=b'Z');
    let mut variants: Vec<Vec<u8>> = Vec::new();
    for at in 0..=text.len() {
        variants.extend(letters().map(|letter| [&text[..at], &[letter], &text[at..]].concat()));
        if at < text.len() {
            variants.extend(letters().map(|letter| [&text[..at], &[letter], &text[at + 1..]].concat()));
            variants.push([&text[..at], &text[at + 1..]].concat());
        }
        if at + 1 < text.len() {
            variants.push([&text[..at], &[text[at + 1], text[at]], &text[at + 2..]].concat());
        }
    }
    variants.into_iter().filter_map(|bytes| Code::parse_lenient(std::str::from_utf8(&bytes).ok()?).ok())
}

/// `code` when it is billable, else the first few below it.
fn below_or_self(release: &Release, code: Code) -> impl Iterator<Item = Code> {
    release.billable_under(code).iter().take(MAX_NEAREST).map(|billable| billable.code)
}

fn faults_of<'a>(release: &'a Release, codes: &[Code]) -> Vec<Fault<'a>> {
    let mut faults = Vec::new();
    let mut unique: Vec<Code> = Vec::with_capacity(codes.len());
    for &code in codes {
        if !unique.contains(&code) {
            unique.push(code);
        } else if !faults.iter().any(|fault: &Fault| fault.codes == [code]) {
            faults.push(error(Rule::Duplicate, vec![code], format!("{code} is given more than once"), None));
        }
    }
    faults.extend(unique.first().into_iter().flat_map(|&first| faults_of_first(release, first, unique.len() == 1)));
    for (idx, &code) in unique.iter().enumerate() {
        for &later in &unique[idx + 1..] {
            if let Some(exclusion) = release.excludes1(code, later) {
                let message = format!(
                    "{} and {} are never coded together (Excludes1 under {})",
                    exclusion.code, exclusion.excluded, exclusion.holder
                );
                let codes = vec![exclusion.code, exclusion.excluded];
                faults.push(error(Rule::Excludes1, codes, message, Some(exclusion.note)));
            }
        }
        faults.extend(belongs_before(release, code, &unique[idx + 1..]));
    }
    faults
}

fn error(rule: Rule, codes: Vec<Code>, message: String, note: Option<&str>) -> Fault<'_> {
    Fault { rule, severity: Severity::Error, codes, message, note }
}

/// What is wrong with the code in first place.
///
/// Only a title "in diseases classified elsewhere" marks a code that is never first. "Code first" is printed under
/// many codes that do stand first when nothing it names is present (heart failure, I50), so it is a warning.
fn faults_of_first(release: &Release, first: Code, is_alone: bool) -> Option<Fault<'_>> {
    if ('V'..='Y').any(|letter| first.character(1) == Some(letter)) {
        let message = match is_alone {
            true => format!("{first} is an external cause and cannot stand alone; the injury or condition is missing"),
            false => format!("{first} is an external cause and cannot stand first"),
        };
        return Some(error(Rule::ExternalCauseFirst, vec![first], message, None));
    }
    let description = release.description(first).unwrap_or_default();
    if description.contains("classified elsewhere") {
        let message = format!("{first} ({description}) is never first; the disease it belongs to goes first");
        return Some(error(Rule::ManifestationFirst, vec![first], message, None));
    }
    let (holder, note) = code_first_notes(release, first).next()?;
    let message = format!("a \"code first\" note under {holder} may put another code before {first}");
    let severity = Severity::Warning;
    Some(Fault { rule: Rule::CodeFirst, severity, codes: vec![first], message, note: Some(note) })
}

/// The first of the `later` codes that a note puts before `code`.
fn belongs_before<'a>(release: &'a Release, code: Code, later: &[Code]) -> Option<Fault<'a>> {
    if later.is_empty() {
        return None;
    }
    code_first_notes(release, code).find_map(|(holder, note)| {
        let other = *later.iter().find(|other| excludes::names(release, note, **other))?;
        let message = format!("{other} goes before {code} (code first under {holder})");
        Some(error(Rule::CodeFirst, vec![code, other], message, Some(note)))
    })
}

fn code_first_notes(release: &Release, code: Code) -> impl Iterator<Item = (super::Holder, &str)> {
    let above = release.notes_above(code);
    above.flat_map(|(holder, notes)| notes.code_first.iter().map(move |note| (holder, note.as_str())))
}

impl<'a> From<&'a Billable> for Suggestion<'a> {
    fn from(billable: &'a Billable) -> Self {
        Self { code: billable.code, description: &billable.description }
    }
}
