//! Preference pairs for ORPO: the right codes against an answer that is wrong in a way models are wrong.
//!
//! A rejected answer is either the right codes in the wrong form (prose around them) or a set of codes that differs in
//! one telling point. It never equals the chosen answer, and one that is about codes never has the chosen set.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::Error;
use super::draw::Draw;
use super::record::{PreferenceRecord, Scenario, Turns, answer, prompt};
use super::wording::is_external_cause;
use crate::codes::{Code, Release};
use crate::text::Message;

/// How an answer is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// The right codes, with other text around them or in another form.
    Prose,
    /// A code for the other side, or for no side.
    Laterality,
    /// Another seventh character.
    SeventhCharacter,
    /// A header in place of the billable code.
    Header,
    /// A neighbour of a code.
    Sibling,
    /// The external cause left out.
    MissingCause,
    /// A diagnosis left out.
    MissingDiagnosis,
    /// A code too many.
    ExtraCode,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Prose,
        Self::Laterality,
        Self::SeventhCharacter,
        Self::Header,
        Self::Sibling,
        Self::MissingCause,
        Self::MissingDiagnosis,
        Self::ExtraCode,
    ];
}

/// Which pairs to make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PairSettings {
    /// Pairs of one record, each with another rejected answer.
    pub n_pairs: usize,
    /// Weight of each flaw among those that a record can have; a flaw left out has weight 0.
    pub shares: BTreeMap<Flaw, f64>,
    /// Equal seeds give equal pairs.
    pub seed: u64,
}

impl Default for PairSettings {
    fn default() -> Self {
        let shares = [
            (Flaw::Prose, 0.35),
            (Flaw::Laterality, 0.15),
            (Flaw::SeventhCharacter, 0.12),
            (Flaw::Header, 0.1),
            (Flaw::Sibling, 0.12),
            (Flaw::MissingCause, 0.06),
            (Flaw::MissingDiagnosis, 0.04),
            (Flaw::ExtraCode, 0.06),
        ];
        Self { n_pairs: 1, shares: shares.into(), seed: 7 }
    }
}

impl PairSettings {
    /// # Errors
    /// [`Error::BadSetting`].
    pub fn check(&self) -> Result<(), Error> {
        super::error::check_setting("pairs.n_pairs", self.n_pairs as f64, 1.0..=8.0)?;
        self.shares.values().try_for_each(|share| super::error::check_setting("pairs.shares", *share, 0.0..=1e6))?;
        super::error::check_setting("pairs.shares", self.shares.values().sum(), f64::MIN_POSITIVE..=1e7)
    }
}

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairReport {
    /// Records read.
    pub n_in: usize,
    /// Pairs made.
    pub n_pairs: usize,
    /// Pairs by flaw.
    pub by_flaw: BTreeMap<Flaw, usize>,
    /// Records that can have none of the flaws asked for.
    pub n_without: usize,
}

impl PairReport {
    /// Counts a record with its pairs.
    pub(crate) fn count(&mut self, pairs: &[(Flaw, PreferenceRecord)]) {
        self.n_in += 1;
        self.n_without += usize::from(pairs.is_empty());
        self.n_pairs += pairs.len();
        for (flaw, _) in pairs {
            *self.by_flaw.entry(*flaw).or_default() += 1;
        }
    }
}

/// A maker of pairs for one release.
pub struct Pairs<'a> {
    release: &'a Release,
    by_description: HashMap<String, Code>,
    settings: PairSettings,
}

impl<'a> Pairs<'a> {
    /// Prepares the look-up of descriptions.
    ///
    /// # Errors
    /// [`Error::BadSetting`].
    pub fn new(release: &'a Release, settings: PairSettings) -> Result<Self, Error> {
        settings.check()?;
        let by_description =
            release.billable().iter().map(|billable| (billable.description.to_lowercase(), billable.code)).collect();
        Ok(Self { release, by_description, settings })
    }

    /// The pairs of a record, each with another flaw or another rejected answer; `idx` is the record's number.
    pub fn of(&self, scenario: &Scenario, idx: usize) -> Vec<(Flaw, PreferenceRecord)> {
        let mut draw = Draw::new(self.settings.seed, "pairs", idx as u64);
        let chosen = answer(&scenario.codes);
        let mut rejected: BTreeSet<String> = BTreeSet::from([chosen.clone()]);
        let mut pairs = Vec::new();
        for _ in 0..self.settings.n_pairs {
            for flaw in self.flaws(&mut draw) {
                let answer = self.rejected(flaw, &scenario.codes, &mut draw);
                if let Some(answer) = answer.filter(|answer| rejected.insert(answer.clone())) {
                    pairs.push((flaw, pair(scenario, &chosen, answer)));
                    break;
                }
            }
        }
        pairs
    }

    /// Makes the pairs of all `records` and hands each to `each`; it ends at the first fault of `each`.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn write<'b, E>(
        &self,
        records: impl IntoIterator<Item = &'b Scenario>,
        mut each: impl FnMut(PreferenceRecord) -> Result<(), E>,
    ) -> Result<PairReport, E> {
        let mut report = PairReport::default();
        for (idx, record) in records.into_iter().enumerate() {
            let pairs = self.of(record, idx);
            report.count(&pairs);
            pairs.into_iter().try_for_each(|(_, pair)| each(pair))?;
        }
        Ok(report)
    }

    /// The flaws with a weight in a random order that favours heavy ones: the first comes up with its share, and the
    /// others stand by in case the record cannot have it (Efraimidis and Spirakis, 2006).
    fn flaws(&self, draw: &mut Draw) -> Vec<Flaw> {
        let weighted = self.settings.shares.iter().filter(|(_, share)| **share > 0.0);
        let mut flaws: Vec<(f64, Flaw)> = weighted.map(|(flaw, share)| (draw.unit().ln() / share, *flaw)).collect();
        flaws.sort_by(|a, b| b.0.total_cmp(&a.0));
        flaws.into_iter().map(|(_, flaw)| flaw).collect()
    }

    /// An answer with the flaw; `None` when these codes cannot have it.
    fn rejected(&self, flaw: Flaw, codes: &[Code], draw: &mut Draw) -> Option<String> {
        let n_causes = codes.iter().filter(|code| is_external_cause(**code)).count();
        let wrong: Vec<String> = match flaw {
            Flaw::Prose => return Some(self.prose(codes, draw)),
            Flaw::Laterality => self.replaced(codes, draw, |code, draw| self.other_side(code, draw))?,
            Flaw::SeventhCharacter => self.replaced(codes, draw, |code, draw| self.other_seventh(code, draw))?,
            Flaw::Header => self.replaced(codes, draw, |code, _| self.header(code))?,
            Flaw::Sibling => self.replaced(codes, draw, |code, draw| self.neighbour(code, draw))?,
            Flaw::MissingCause if n_causes > 0 && n_causes < codes.len() => {
                codes.iter().filter(|code| !is_external_cause(**code)).map(ToString::to_string).collect()
            }
            Flaw::MissingDiagnosis if codes.len() - n_causes > 1 => {
                let left_out = draw.below(codes.len() - n_causes);
                codes.iter().enumerate().filter(|(idx, _)| *idx != left_out).map(|(_, code)| code.to_string()).collect()
            }
            Flaw::ExtraCode => {
                let extra = self.extra(codes, draw)?;
                codes.iter().chain(&[extra]).map(ToString::to_string).collect()
            }
            Flaw::MissingCause | Flaw::MissingDiagnosis => return None,
        };
        let right: BTreeSet<String> = codes.iter().map(ToString::to_string).collect();
        let is_different = wrong.iter().cloned().collect::<BTreeSet<_>>() != right;
        is_different.then(|| wrong.join(", "))
    }

    /// The codes with one of them replaced: the first, from a random one on, for which `replace` finds something.
    fn replaced(
        &self,
        codes: &[Code],
        draw: &mut Draw,
        replace: impl Fn(Code, &mut Draw) -> Option<Code>,
    ) -> Option<Vec<String>> {
        let start = draw.below(codes.len());
        (0..codes.len()).map(|step| (start + step) % codes.len()).find_map(|at| {
            let other = replace(codes[at], draw).filter(|other| !codes.contains(other))?;
            let swap = |(idx, code): (usize, &Code)| if idx == at { other.to_string() } else { code.to_string() };
            Some(codes.iter().enumerate().map(swap).collect())
        })
    }

    fn other_side(&self, code: Code, draw: &mut Draw) -> Option<Code> {
        let description = self.release.get(code)?.description.to_lowercase();
        let mut sides = ["right", "left", "unspecified", "bilateral"];
        draw.shuffle(&mut sides);
        let is_side = |word: &str| matches!(word, "right" | "left" | "bilateral");
        let word = description.split([' ', ',']).find(|word| is_side(word))?;
        sides.iter().filter(|side| **side != word).find_map(|side| {
            let other = description.replacen(word, side, 1);
            self.by_description.get(&other).copied()
        })
    }

    fn other_seventh(&self, code: Code, draw: &mut Draw) -> Option<Code> {
        self.release.get(code)?.seventh.as_ref()?;
        let siblings: Vec<Code> = self.release.siblings(code).iter().map(|billable| billable.code).collect();
        draw.pick(&siblings).copied()
    }

    /// The entry right above: for a code completed by a seventh character, the code without it.
    fn header(&self, code: Code) -> Option<Code> {
        let parent = self.release.parent_of(code)?;
        (!self.release.is_billable(parent.code)).then_some(parent.code)
    }

    /// A billable code next to `code` that means something else than another visit.
    fn neighbour(&self, code: Code, draw: &mut Draw) -> Option<Code> {
        let seventh = code.character(7);
        (3..code.len()).rev().find_map(|len| {
            let near: Vec<Code> = self
                .release
                .billable_under(code.truncated(len))
                .iter()
                .map(|billable| billable.code)
                .filter(|other| *other != code && (seventh.is_none() || other.character(7) == seventh))
                .collect();
            draw.pick(&near).copied()
        })
    }

    /// A code of the same chapter that is none of `codes` and could be taken for a part of the case.
    fn extra(&self, codes: &[Code], draw: &mut Draw) -> Option<Code> {
        let near = *draw.pick(codes)?;
        if draw.chance(0.5) {
            return self.neighbour(near, draw).filter(|code| !codes.contains(code));
        }
        let chapter = self.release.chapter_of(near)?;
        let all = self.release.billable();
        let first = all.partition_point(|billable| billable.code < chapter.first);
        let n_codes = all[first..].partition_point(|billable| billable.code.category() <= chapter.last);
        let other = all.get(first + draw.below(n_codes))?.code;
        (!codes.contains(&other)).then_some(other)
    }

    /// The right codes as no machine wants them.
    fn prose(&self, codes: &[Code], draw: &mut Draw) -> String {
        let plain = answer(codes);
        let description =
            |code: &Code| self.release.get(*code).map(|billable| billable.description.as_str()).unwrap_or_default();
        let each = |format: &dyn Fn(&Code) -> String, separator: &str| {
            codes.iter().map(format).collect::<Vec<_>>().join(separator)
        };
        match draw.below(16) {
            0 => format!("The appropriate ICD-10-CM codes are: {plain}."),
            1 => format!("Based on the description, I would assign {plain}."),
            2 => format!("ICD-10-CM: {plain}"),
            3 => format!("Sure! Here are the codes you asked for: {plain}. Let me know if you need anything else."),
            4 => each(&|code| format!("- {code}: {}", description(code)), "\n"),
            5 => each(&|code| format!("{code} ({})", description(code)), ", "),
            6 => each(&|code| format!("**{code}** - {}", description(code)), "\n"),
            7 => format!("{{\"codes\": [{}]}}", each(&|code| format!("\"{code}\""), ", ")),
            8 => format!("{plain}\n\nPlease consult a certified coder before billing."),
            9 => format!(
                "The patient has {}, which is coded as {plain}.",
                each(&|code| description(code).to_lowercase(), " and ")
            ),
            10 => format!("Codes: {plain}"),
            11 => format!("```\n{plain}\n```"),
            // A category such as I10 has no dot to lose.
            12 if codes.iter().any(|code| code.len() > 3) => each(&|code| code.to_string().replace('.', " "), "; "),
            13 => format!("{plain} - these are the billable codes for the scenario."),
            14 => format!("I am not a doctor, but the most likely codes would be {plain}."),
            _ => format!("1. {}", each(&|code| format!("{code} {}", description(code)), "\n2. ")),
        }
    }
}

fn pair(scenario: &Scenario, chosen: &str, rejected: String) -> PreferenceRecord {
    PreferenceRecord {
        prompt: Turns::Messages(prompt(&scenario.scenario)),
        chosen: Turns::Messages(vec![Message::assistant(chosen)]),
        rejected: Turns::Messages(vec![Message::assistant(rejected)]),
    }
}
