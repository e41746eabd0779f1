//! Cases: which codes go together, in the order in which they are reported.
//!
//! A case is one to four codes: injuries of one episode with how they came about (cause, then place or activity), or
//! an illness, alone or beside others that stand on their own. No pair is in an Excludes1 conflict.

use std::collections::HashMap;

use super::person::Fit;
use crate::codes::{Code, Release};
use crate::data::draw::Draw;
use crate::data::wording::{Episode, Wording, is_external_cause};

/// At most so many codes a case.
const MAX_CODES: usize = 4;

/// The codes of a case. Diagnoses come before causes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Case {
    pub(super) diagnoses: Vec<Code>,
    pub(super) causes: Vec<Code>,
    pub(super) episode: Option<Episode>,
    pub(super) fit: Fit,
}

impl Case {
    pub(super) fn codes(&self) -> Vec<Code> {
        self.diagnoses.iter().chain(&self.causes).copied().collect()
    }
}

/// How often a case has what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    pub(super) cause: f64,
    pub(super) second: f64,
}

/// The selected codes, sorted by what they can be in a case.
pub(super) struct Cases<'a> {
    release: &'a Release,
    /// The codes that a case can be built around.
    leads: Vec<Code>,
    traits: HashMap<Code, Trait>,
    injuries: HashMap<Episode, Vec<Code>>,
    causes: HashMap<(Episode, Harm), Vec<Code>>,
    circumstances: Vec<Code>,
    companions: Vec<Code>,
    /// Those of [`ADVERSE`] that may be used.
    reactions: Vec<Code>,
}

#[derive(Clone, Copy, Debug)]
struct Trait {
    kind: Kind,
    episode: Option<Episode>,
    fit: Fit,
    /// Whether an illness can stand beside another.
    is_companion: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Illness,
    /// An adverse effect of a drug: what it does comes first.
    AdverseEffect,
    /// Too little of a drug: never first, the condition that it is taken for is.
    Underdosing,
    Injury(Harm),
    Cause(Harm),
    /// Place, activity or status (Y92, Y93, Y99): only with a first visit.
    Circumstance,
}

/// What does the harm, so that a burn is not put down to a fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Harm {
    Mechanical,
    Bite,
    /// Burns.
    Heat,
    /// Heatstroke and the like.
    Weather,
    Cold,
    Water,
    Current,
    Radiation,
    ForeignBody,
    /// Corrosions: their cause is coded by the substance (T51-T65), not in chapter 20.
    Substance,
    Other,
}

/// What a drug taken as prescribed does: coded before the adverse effect (guidelines, section I.C.19.e.5.a).
const ADVERSE: &[&str] = &["K52.1", "L27.0", "R00.0", "R11.0", "R11.2", "R21", "R40.0", "R42", "R51.9", "R55", "R63.0"];

impl<'a> Cases<'a> {
    /// Sorts `pool`, the codes that cases are put together from; `codes`, a part of it, are those they are built around.
    /// Left out are codes without wording of their own, and causes with no injury to go with.
    pub(super) fn new(release: &'a Release, wording: &Wording, codes: &[Code], pool: &[Code]) -> Self {
        let mut cases = Self {
            release,
            leads: Vec::new(),
            traits: HashMap::new(),
            injuries: HashMap::new(),
            causes: HashMap::new(),
            circumstances: Vec::new(),
            companions: Vec::new(),
            reactions: Vec::new(),
        };
        for &code in pool.iter().filter(|code| wording.can_word(**code)) {
            let description = release.get(code).map(|billable| billable.description.to_lowercase()).unwrap_or_default();
            let traits = Trait {
                kind: Kind::of(code, &description),
                episode: wording.episode(code),
                fit: Fit::of(code.undotted(), &description),
                is_companion: is_companion(code, &description) && wording.episode(code).is_none(),
            };
            match (traits.kind, traits.episode) {
                (Kind::Injury(_), Some(episode)) => cases.injuries.entry(episode).or_default().push(code),
                (Kind::Cause(harm), Some(episode)) => cases.causes.entry((episode, harm)).or_default().push(code),
                (Kind::Circumstance, _) => cases.circumstances.push(code),
                _ if traits.is_companion => cases.companions.push(code),
                _ => {}
            }
            if ADVERSE.contains(&code.to_string().as_str()) {
                cases.reactions.push(code);
            }
            cases.traits.insert(code, traits);
        }
        let can_lead = |code: &&Code| match cases.traits.get(code) {
            None => false,
            Some(Trait { kind: Kind::Cause(_), episode, .. }) => {
                episode.is_some_and(|episode| cases.injuries.contains_key(&episode))
            }
            Some(Trait { kind: Kind::Circumstance, .. }) => cases.injuries.contains_key(&Episode::Initial),
            Some(_) => true,
        };
        cases.leads = codes.iter().filter(can_lead).copied().collect();
        cases
    }

    /// The codes that a case can be built around.
    pub(super) fn leads(&self) -> &[Code] {
        &self.leads
    }

    /// A case in which `lead` has its place.
    pub(super) fn build(&self, lead: Code, shares: Shares, draw: &mut Draw) -> Case {
        let Some(traits) = self.traits.get(&lead) else {
            return Case { diagnoses: vec![lead], causes: Vec::new(), episode: None, fit: Fit::default() };
        };
        let mut case = Case { diagnoses: Vec::new(), causes: Vec::new(), episode: traits.episode, fit: traits.fit };
        match traits.kind {
            Kind::Illness => {
                case.diagnoses.push(lead);
                if traits.is_companion && draw.chance(shares.second) {
                    for _ in 0..draw.between(1, 2) {
                        self.add_companion(&mut case, draw);
                    }
                }
            }
            Kind::AdverseEffect => {
                self.add_code(&mut case, &self.reactions, false, draw, |_| true);
                case.diagnoses.push(lead);
            }
            Kind::Underdosing => {
                self.add_code(&mut case, &self.companions, false, draw, |_| true);
                case.diagnoses.push(lead);
            }
            Kind::Injury(harm) => {
                case.diagnoses.push(lead);
                if draw.chance(shares.second) {
                    self.add_injury(&mut case, draw);
                }
                if draw.chance(shares.cause) {
                    self.add_cause(&mut case, harm, draw);
                }
            }
            Kind::Cause(harm) => {
                case.causes.push(lead);
                self.add_first_injury(&mut case, harm, draw);
                if draw.chance(shares.second) {
                    self.add_injury(&mut case, draw);
                }
            }
            Kind::Circumstance => {
                case.episode = Some(Episode::Initial);
                case.causes.push(lead);
                self.add_first_injury(&mut case, Harm::Mechanical, draw);
                self.add_cause(&mut case, Harm::Mechanical, draw);
                case.causes.reverse();
            }
        }
        let is_fresh = case.episode == Some(Episode::Initial) && traits.kind != Kind::Circumstance;
        if is_fresh && !case.causes.is_empty() && draw.chance(0.3) {
            self.add_code(&mut case, &self.circumstances, true, draw, |_| true);
        }
        case
    }

    /// An injury of the case's visit that `harm` does, or failing that one by force, or any of the visit.
    fn add_first_injury(&self, case: &mut Case, harm: Harm, draw: &mut Draw) {
        let Some(injuries) = case.episode.and_then(|episode| self.injuries.get(&episode)) else { return };
        let fits = |code: Code| self.traits.get(&code).is_some_and(|traits| traits.kind == Kind::Injury(harm));
        self.add_code(case, injuries, false, draw, fits);
        if case.diagnoses.is_empty() {
            let is_by_force = Kind::Injury(Harm::Mechanical);
            let may = |code: Code| self.traits.get(&code).is_some_and(|traits| traits.kind == is_by_force);
            self.add_code(case, injuries, false, draw, may);
        }
        if case.diagnoses.is_empty() {
            let start = draw.below(injuries.len());
            let mut others = injuries[start..].iter().chain(&injuries[..start]);
            let is_free =
                |code: &&Code| case.causes.iter().all(|other| self.release.excludes1(*other, **code).is_none());
            let first = others.find(is_free).copied();
            case.diagnoses.extend(first);
        }
    }

    fn add_injury(&self, case: &mut Case, draw: &mut Draw) {
        let Some(injuries) = case.episode.and_then(|episode| self.injuries.get(&episode)) else { return };
        let first = case.diagnoses.first().copied();
        self.add_code(case, injuries, false, draw, |code| first.is_none_or(|first| can_occur_together(first, code)));
    }

    fn add_cause(&self, case: &mut Case, harm: Harm, draw: &mut Draw) {
        let Some(episode) = case.episode else { return };
        if let Some(causes) = self.causes.get(&(episode, harm)) {
            self.add_code(case, causes, true, draw, |_| true);
        }
    }

    fn add_companion(&self, case: &mut Case, draw: &mut Draw) {
        let present = case.diagnoses.clone();
        self.add_code(case, &self.companions, false, draw, |code| {
            present.iter().all(|other| stand_alone(*other, code))
        });
    }

    /// Adds one of `codes` that may be added: a few tries, then none.
    fn add_code(&self, case: &mut Case, codes: &[Code], is_cause: bool, draw: &mut Draw, may: impl Fn(Code) -> bool) {
        if case.diagnoses.len() + case.causes.len() >= MAX_CODES {
            return;
        }
        for _ in 0..16 {
            let Some(&code) = draw.pick(codes) else { return };
            let present = case.codes();
            let fit = self.traits.get(&code).and_then(|traits| case.fit.and(traits.fit));
            let is_free = !present.contains(&code)
                && present.iter().all(|other| self.release.excludes1(*other, code).is_none())
                && may(code);
            if let (true, Some(fit)) = (is_free, fit) {
                case.fit = fit;
                if is_cause {
                    case.causes.push(code)
                } else {
                    case.diagnoses.push(code)
                }
                return;
            }
        }
    }
}

impl Kind {
    fn of(code: Code, description: &str) -> Self {
        let category = code.category();
        let category = category.undotted();
        let is_within = |first: &str, last: &str| (first..=last).contains(&category);
        let has = |word: &str| description.contains(word);
        if is_external_cause(code) {
            return match category {
                "Y92" | "Y93" | "Y99" => Self::Circumstance,
                _ if has("drowning") => Self::Cause(Harm::Water),
                "X31" | "W93" => Self::Cause(Harm::Cold),
                "X30" | "W92" => Self::Cause(Harm::Weather),
                _ if has("heat exposure on") => Self::Cause(Harm::Weather),
                "W85" | "W86" | "X33" => Self::Cause(Harm::Current),
                "W88" | "W89" | "W90" | "X32" => Self::Cause(Harm::Radiation),
                "W44" => Self::Cause(Harm::ForeignBody),
                _ if is_within("W53", "W62") && has("bitten") || code.undotted().starts_with("W503") => {
                    Self::Cause(Harm::Bite)
                }
                _ if is_within("X00", "X19") || matches!(category, "X97" | "X98" | "Y26" | "Y27" | "X76" | "X77") => {
                    Self::Cause(Harm::Heat)
                }
                _ if category.starts_with('V')
                    || is_within("W00", "W41")
                    || is_within("W45", "W64")
                    || is_within("X78", "X83")
                    || is_within("X99", "Y04")
                    || category == "X50"
                    || category == "Y08" =>
                {
                    Self::Cause(Harm::Mechanical)
                }
                _ => Self::Cause(Harm::Other),
            };
        }
        match category {
            _ if description.starts_with("adverse effect of") => return Self::AdverseEffect,
            _ if description.starts_with("underdosing of") => return Self::Underdosing,
            "T66" => return Self::Injury(Harm::Radiation),
            "T67" => return Self::Injury(Harm::Weather),
            "T68" | "T69" => return Self::Injury(Harm::Cold),
            _ if code.undotted().starts_with("T751") => return Self::Injury(Harm::Water),
            _ if code.undotted().starts_with("T750") || code.undotted().starts_with("T754") => {
                return Self::Injury(Harm::Current);
            }
            _ if !is_within("S00", "T34") => return Self::Illness,
            _ => {}
        }
        Self::Injury(match category {
            _ if has("bite") => Harm::Bite,
            _ if is_within("T15", "T19") => Harm::ForeignBody,
            _ if has("corrosion") => Harm::Substance,
            _ if is_within("T20", "T32") => Harm::Heat,
            "T33" | "T34" => Harm::Cold,
            _ => Harm::Mechanical,
        })
    }
}

/// Whether two injuries of one event are both coded: other sites or kinds, and no superficial injury of a site that
/// has a graver one (guidelines, section I.C.19.b.1).
fn can_occur_together(first: Code, second: Code) -> bool {
    let region = |code: Code| code.undotted().as_bytes()[1];
    let is_superficial = |code: Code| code.character(1) == Some('S') && code.character(3) == Some('0');
    let is_local = |code: Code| code.character(1) == Some('S');
    is_local(first)
        && is_local(second)
        && first.truncated(5) != second.truncated(5)
        && (region(first) != region(second) || !(is_superficial(first) || is_superficial(second)))
}

/// Whether an illness can be named beside others: no infection, tumour stage, pregnancy, newborn, symptom or
/// screening, all of which change how other conditions are coded.
fn is_companion(code: Code, description: &str) -> bool {
    let letter = code.character(1).unwrap_or_default();
    let is_kept_status = letter == 'Z' && ("Z79".."Z99").contains(&code.category().undotted());
    (is_kept_status || matches!(letter, 'E' | 'F' | 'G' | 'H' | 'I' | 'J' | 'K' | 'L' | 'M' | 'N'))
        && !["in diseases classified elsewhere", "complication", "other specified", "due to underlying"]
            .iter()
            .any(|words| description.contains(words))
}

/// Whether two illnesses are coded separately: neither is assumed to cause or to be part of the other.
fn stand_alone(a: Code, b: Code) -> bool {
    let letters = (a.character(1).unwrap_or_default(), b.character(1).unwrap_or_default());
    let is = |code: Code, prefixes: &[&str]| prefixes.iter().any(|prefix| code.undotted().starts_with(prefix));
    let either = |one: &[&str], other: &[&str]| is(a, one) && is(b, other) || is(b, one) && is(a, other);
    let diabetes: &[&str] = &["E08", "E09", "E10", "E11", "E13"];
    letters.0 != letters.1
        && !either(diabetes, &["G", "H", "I2", "I5", "I6", "I7", "K31", "L", "M", "N"])
        && !either(&["I1"], &["N"])
        && !either(&["F"], &["G", "I6"])
        && !either(&["K7"], &["F", "I8"])
        && !either(&["Z794"], &["F", "G", "H", "I", "J", "K", "L", "M", "N"])
}
