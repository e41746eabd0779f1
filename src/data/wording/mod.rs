//! What a code is called: phrases for diagnoses, visits and external causes, in the words of clinicians, patients and
//! triage notes.
//!
//! In: a release. Out: [`Wording`], which words any code so that no other code could be meant. Sentences around the
//! phrases are made by `generate` and `corpus`.

mod cause;
mod encounter;
mod forms;
mod style;
mod table;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

pub use encounter::Episode;
pub(crate) use style::with_slips;

use self::cause::{Cause, Causes};
use self::encounter::Encounter;
use self::forms::{Forms, Leaf};
use self::style::Style;
use super::draw::Draw;
use crate::codes::{Billable, Code, Release};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Register {
    /// A clinician's note.
    Clinician,
    /// A patient's own words.
    Patient,
    /// A triage note, in shorthand.
    Triage,
}

impl Register {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Clinician, Self::Patient, Self::Triage];

    /// As it stands at the head of a family's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clinician => "clinician",
            Self::Patient => "patient",
            Self::Triage => "triage",
        }
    }
}

/// The words for the codes of a release.
pub struct Wording {
    forms: Forms,
    causes: Causes,
    style: Style,
    /// The leaf and the seventh character of each billable code.
    parts: HashMap<Code, Parts>,
}

struct Parts {
    leaf: Code,
    encounter: Option<Encounter>,
}

impl Wording {
    /// Prepares the wording of every code of `release`.
    pub fn new(release: &Release) -> Self {
        let mut parts = HashMap::with_capacity(release.len());
        let mut leaves: HashMap<Code, Leaf<'_>> = HashMap::new();
        for billable in release.billable() {
            let leaf = leaf_of(release, billable);
            let encounter = billable.seventh.as_ref().map(|seventh| Encounter::parse(&seventh.text));
            parts.insert(billable.code, Parts { leaf: leaf.code, encounter });
            leaves.entry(leaf.code).or_insert(leaf);
        }
        let (causes, diagnoses): (Vec<Leaf<'_>>, Vec<Leaf<'_>>) =
            leaves.into_values().partition(|leaf| is_external_cause(leaf.code));
        Self {
            forms: Forms::new(diagnoses.into_iter()),
            causes: Causes::new(causes.iter().map(|leaf| (leaf.code, leaf.description))),
            style: Style::new(),
            parts,
        }
    }

    /// Whether `code` can be worded so that it alone is meant.
    pub fn can_word(&self, code: Code) -> bool {
        self.parts.get(&code).is_some_and(|parts| self.causes.has(parts.leaf) || self.forms.of(parts.leaf).is_some())
    }

    /// The visit that the seventh character of `code` stands for.
    pub fn episode(&self, code: Code) -> Option<Episode> {
        self.parts.get(&code)?.encounter.as_ref()?.episode
    }

    /// A phrase for the diagnosis `code` with every detail but the visit (see [`Self::episode`]).
    pub(crate) fn diagnosis(&self, code: Code, register: Register, draw: &mut Draw) -> Option<String> {
        let parts = self.parts.get(&code)?;
        let forms = self.forms.of(parts.leaf)?;
        let lists = [(&forms.everyday, 45), (&forms.included, 20), (&forms.described, 45)];
        let total = lists.iter().filter(|(list, _)| !list.is_empty()).map(|(_, weight)| weight).sum();
        let mut at = draw.below(total);
        let (list, _) = lists.iter().filter(|(list, _)| !list.is_empty()).find(|(_, weight)| {
            let is_here = at < *weight;
            at = at.saturating_sub(*weight);
            is_here
        })?;
        let form = draw.pick(list)?;
        let mut text = self.said(form, parts.leaf, register, forms.has_side, draw);
        if let Some(encounter) = &parts.encounter {
            text.push_str(&encounter.detail(register, draw));
        }
        Some(text)
    }

    /// Words the external cause `code`.
    pub(crate) fn cause(&self, code: Code, draw: &mut Draw) -> Option<Cause> {
        self.causes.word(self.parts.get(&code)?.leaf, draw)
    }

    fn said(&self, form: &str, leaf: Code, register: Register, has_side: bool, draw: &mut Draw) -> String {
        let everyday_share = match register {
            Register::Clinician => 0.04,
            Register::Patient => 0.7,
            Register::Triage => 0.15,
        };
        let is_everyday = draw.chance(if register == Register::Patient { 0.85 } else { 0.3 });
        let mut text = style::in_weeks(form, draw);
        if is_everyday {
            let everyday = self.style.in_everyday_words(&text, everyday_share, draw);
            if !self.forms.means_another(&everyday, leaf) {
                text = everyday;
            }
        }
        if has_side && draw.chance(0.25) {
            text = style::with_side_last(&text, draw);
        }
        let inverted_share = match register {
            Register::Clinician => 0.12,
            Register::Patient => 0.0,
            Register::Triage => 0.25,
        };
        if draw.chance(inverted_share) {
            text = style::inverted(&text);
        } else if draw.chance(if register == Register::Triage { 0.0 } else { 0.5 }) {
            text = style::with_articles(&text);
        }
        text = style::reworded(&text, register, draw);
        match register {
            Register::Clinician if draw.chance(0.15) => self.style.in_short_forms(&text, 0.5, draw),
            Register::Triage if draw.chance(0.6) => self.style.in_short_forms(&text, 0.7, draw),
            _ => text,
        }
    }
}

/// Whether a code is of chapter 20: how an injury came about, never a diagnosis.
pub fn is_external_cause(code: Code) -> bool {
    code.undotted().starts_with(['V', 'W', 'X', 'Y'])
}

fn leaf_of<'a>(release: &'a Release, billable: &'a Billable) -> Leaf<'a> {
    match billable.node {
        Some(id) => {
            let node = release.node_at(id);
            Leaf { code: node.code, description: &node.description, inclusion_terms: &node.inclusion_terms }
        }
        None => Leaf { code: billable.code, description: &billable.description, inclusion_terms: &[] },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Categories whose codes differ in all that wording has to keep: side, visit, opening, trimester, stage, severity.
    const CATEGORIES: &[&str] = &[
        "A15", "B18", "C50", "D57", "E08", "E10", "E11", "F32", "G40", "G43", "H40", "I21", "I25", "I63", "I70", "J15",
        "J44", "J45", "K50", "L89", "L97", "M05", "M17", "M1A", "M80", "M84", "N18", "O10", "O24", "O31", "P07", "Q66",
        "R10", "S06", "S42", "S52", "S61", "S72", "S80", "S81", "S82", "S83", "S92", "S93", "T20", "T24", "T40", "Z79",
        "Z85",
    ];

    #[test]
    fn a_phrase_and_its_visit_mean_one_code() {
        let release = Release::builtin().unwrap();
        let wording = Wording::new(&release);
        let mut owners: HashMap<(u64, Option<Episode>), (Code, String)> = HashMap::new();
        let mut draw = Draw::new(11, "test", 0);
        let mut faults = Vec::new();
        for category in CATEGORIES {
            for billable in release.billable_under(Code::parse(category).unwrap()) {
                if !wording.can_word(billable.code) {
                    continue;
                }
                for register in Register::ALL.into_iter().cycle().take(9) {
                    let phrase = wording.diagnosis(billable.code, register, &mut draw).unwrap();
                    let key = (forms::bag(&phrase), wording.episode(billable.code));
                    let (owner, other) = owners.entry(key).or_insert_with(|| (billable.code, phrase.clone()));
                    if *owner != billable.code {
                        faults.push(format!("{} `{phrase}` / {owner} `{other}`", billable.code));
                    }
                }
            }
        }
        assert!(owners.len() > 50_000, "{}", owners.len());
        assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults[..faults.len().min(40)].join("\n"));
    }

    #[test]
    fn almost_every_code_can_be_worded() {
        let release = Release::builtin().unwrap();
        let wording = Wording::new(&release);
        let unworded: Vec<Code> =
            release.billable().iter().map(|billable| billable.code).filter(|code| !wording.can_word(*code)).collect();
        assert!(
            unworded.len() < release.len() / 200,
            "{} codes: {:?}",
            unworded.len(),
            &unworded[..unworded.len().min(30)]
        );
    }
}
