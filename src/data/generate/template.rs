//! Scenarios from templates: deterministic, fast, and with labels that follow from the text.
//!
//! Record `i` of a seed is always the same, whatever was generated before it, so that an interrupted run resumes by
//! counting lines. A record's case is drawn first, then a sentence frame, then the phrases.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::case::{Case, Cases, Shares};
use super::context::{absent_findings, remark};
use super::frames::{Frame, frames};
use super::selection::Selection;
use crate::codes::{Code, Release};
use crate::data::Error;
use crate::data::draw::Draw;
use crate::data::record::Scenario;
use crate::data::wording::{Episode, Register, Wording, with_slips};

/// What to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemplateSettings {
    /// The codes that cases are about.
    pub codes: Selection,
    /// Further codes that may stand beside them, as injuries beside the causes that are asked for; none when left out.
    pub companions: Option<Selection>,
    /// Number of records.
    pub n_records: usize,
    /// Equal seeds give equal records.
    pub seed: u64,
    /// Who speaks.
    pub registers: Vec<Register>,
    /// Wording families to use; all when empty.
    pub families: Vec<String>,
    /// Records that word one case (they share a group).
    pub n_variants: usize,
    /// Injuries whose cause is told and coded.
    pub cause_share: f64,
    /// Cases with a second diagnosis.
    pub second_share: f64,
    /// Records that deny findings.
    pub negated_share: f64,
    /// Records with a remark that matters to no code.
    pub context_share: f64,
    /// Records with slips of the pen.
    pub misspelled_share: f64,
    /// Records in lower case throughout.
    pub lower_case_share: f64,
}

impl Default for TemplateSettings {
    fn default() -> Self {
        Self {
            codes: Selection::default(),
            companions: None,
            n_records: 100_000,
            seed: 17,
            registers: Register::ALL.to_vec(),
            families: Vec::new(),
            n_variants: 1,
            cause_share: 0.6,
            second_share: 0.25,
            negated_share: 0.3,
            context_share: 0.35,
            misspelled_share: 0.08,
            lower_case_share: 0.05,
        }
    }
}

impl TemplateSettings {
    /// A few hundred codes that a small model can learn in minutes: injuries of the knee, lower leg, ankle and foot
    /// with how cyclists, walkers and people at home come by them; asthma, COPD, pneumonia, diabetes, hypertension.
    pub fn demo() -> Self {
        let text = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
        Self {
            codes: Selection {
                chapters: Vec::new(),
                prefixes: text(&[
                    "S80.0", "S80.1", "S81.01", "S81.05", "S82.00", "S82.20", "S82.40", "S83.51", "S90.0", "S92.00",
                    "S93.40", "V03.10", "V13.4", "V18.0", "V18.4", "W01.0", "W06", "W10.9", "W11", "W14", "W54.0",
                    "J12.1", "J12.3", "J13", "J14", "J15.0", "J15.1", "J15.21", "J15.5", "J15.7", "J18.0", "J18.1",
                    "J18.9", "J44.0", "J44.1", "J44.9", "J45", "E10.9", "E11.6", "E11.9", "I10", "E78.0", "E78.5",
                    "E03.9", "K21", "G43.90", "M25.51", "M25.56", "M25.57", "M54.2", "M54.5", "Y92.480", "Y92.830",
                ]),
                codes: Vec::new(),
                sevenths: vec!['A', 'D', 'S'],
            },
            n_records: 30_000,
            ..Self::default()
        }
    }
}

/// What was generated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateReport {
    /// Records.
    pub n_records: usize,
    /// Selected codes.
    pub n_codes: usize,
    /// Selected codes that cannot be worded, or are a cause without a selected injury of the same visit.
    pub n_codes_left_out: usize,
    /// Records by number of codes.
    pub by_n_codes: BTreeMap<usize, usize>,
    /// Records by register.
    pub by_register: BTreeMap<Register, usize>,
    /// Records by wording family.
    pub by_family: BTreeMap<String, usize>,
}

impl TemplateReport {
    pub(crate) fn count(&mut self, scenario: &Scenario) {
        self.n_records += 1;
        *self.by_n_codes.entry(scenario.codes.len()).or_default() += 1;
        *self.by_family.entry(scenario.family.clone()).or_default() += 1;
        if let Some(register) = Register::ALL.into_iter().find(|register| scenario.family.starts_with(register.name()))
        {
            *self.by_register.entry(register).or_default() += 1;
        }
    }
}

/// What a record is to be about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) idx: usize,
    /// The case; several records may word it.
    pub(super) case_idx: usize,
    /// Diagnoses first, then causes.
    pub(super) codes: Vec<Code>,
    pub(super) register: Register,
    /// A person who fits, as "54-year-old woman".
    pub(super) who: String,
}

/// A source of scenarios with random access.
pub struct Generator<'a> {
    release: &'a Release,
    wording: &'a Wording,
    cases: Cases<'a>,
    frames: Vec<&'static Frame>,
    settings: TemplateSettings,
    order: Vec<Code>,
    n_codes: usize,
}

impl<'a> Generator<'a> {
    /// Prepares a source.
    ///
    /// # Errors
    /// [`Error::NothingSelected`] when no selected code can be worded or no frame is left; [`Error::UnknownFamily`].
    pub fn new(release: &'a Release, wording: &'a Wording, settings: TemplateSettings) -> Result<Self, Error> {
        let known = frames();
        if let Some(name) =
            settings.families.iter().find(|name| known.iter().all(|frame| frame.family != name.as_str()))
        {
            return Err(Error::UnknownFamily { family: name.clone() });
        }
        let is_wanted = |frame: &&Frame| {
            settings.registers.contains(&frame.register)
                && (settings.families.is_empty() || settings.families.iter().any(|name| name == frame.family))
        };
        let frames: Vec<&Frame> = known.iter().filter(is_wanted).collect();
        if frames.is_empty() {
            return Err(Error::NothingSelected { what: "the registers and families".into() });
        }
        let codes = settings.codes.resolve(release)?;
        let pool: BTreeSet<Code> = match &settings.companions {
            None => codes.iter().copied().collect(),
            Some(companions) => codes.iter().copied().chain(companions.resolve(release)?).collect(),
        };
        let pool: Vec<Code> = pool.into_iter().collect();
        let cases = Cases::new(release, wording, &codes, &pool);
        let mut order = cases.leads().to_vec();
        if order.is_empty() {
            return Err(Error::NothingSelected { what: "the selection (external causes need injuries)".into() });
        }
        Draw::new(settings.seed, "order", 0).shuffle(&mut order);
        Ok(Self { release, wording, cases, frames, settings, order, n_codes: codes.len() })
    }

    /// Record `idx`, counted from 0; there is no last one.
    pub fn record(&self, idx: usize) -> Scenario {
        let (case_idx, case) = self.case(idx);
        let mut draw = Draw::new(self.settings.seed, "wording", idx as u64);
        let frame = self.frames[draw.below(self.frames.len())];
        Scenario {
            scenario: self.text(&case, frame, &mut draw),
            codes: case.codes(),
            family: frame.family.to_owned(),
            group: format!("template-{}-{case_idx}", self.settings.seed),
            extra: serde_json::Map::new(),
        }
    }

    /// What record `idx` is to be about, for somebody else to word.
    pub(super) fn assignment(&self, idx: usize) -> Assignment {
        let (case_idx, case) = self.case(idx);
        let mut draw = Draw::new(self.settings.seed, "assignment", idx as u64);
        let register = draw.pick(&self.settings.registers).copied().unwrap_or(Register::Clinician);
        let who = case.fit.person(&mut draw).who(Register::Clinician, &mut draw);
        Assignment { idx, case_idx, codes: case.codes(), register, who }
    }

    fn case(&self, idx: usize) -> (usize, Case) {
        let case_idx = idx / self.settings.n_variants.max(1);
        let lead = self.order[case_idx % self.order.len()];
        let shares = Shares { cause: self.settings.cause_share, second: self.settings.second_share };
        (case_idx, self.cases.build(lead, shares, &mut Draw::new(self.settings.seed, "case", case_idx as u64)))
    }

    /// A report with the codes counted and no record yet.
    pub(crate) fn report(&self) -> TemplateReport {
        TemplateReport {
            n_codes: self.n_codes,
            n_codes_left_out: self.n_codes - self.order.len(),
            ..TemplateReport::default()
        }
    }

    fn text(&self, case: &Case, frame: &Frame, draw: &mut Draw) -> String {
        let register = frame.register;
        let settings = &self.settings;
        let phrases: Vec<String> =
            case.diagnoses.iter().filter_map(|code| self.wording.diagnosis(*code, register, draw)).collect();
        let mut diagnoses = joined(&phrases, register, draw);
        if register == Register::Patient && !frame.family.starts_with("patient/family") && draw.chance(0.5) {
            diagnoses = diagnoses.replace(" the right ", " my right ").replace(" the left ", " my left ");
        }
        let person = case.fit.person(draw);
        let story = self.story(case, draw);
        let how = match register {
            _ if story.verb.is_empty() => String::new(),
            Register::Clinician => {
                format!("{} {}", if draw.chance(0.5) { "the patient" } else { person.pronoun() }, story.verb)
            }
            Register::Patient => format!("I {}", story.verb),
            Register::Triage => story.verb,
        };
        // A visit that goes without saying is the first one.
        let is_told = |episode: Episode, draw: &mut Draw| episode != Episode::Initial || draw.chance(0.55);
        let visit = match case.episode {
            Some(episode) if is_told(episode, draw) => episode.visit(register, draw),
            _ => "",
        };
        let absent = if draw.chance(settings.negated_share) {
            absent_findings(&self.descriptions(case), register, draw)
        } else {
            String::new()
        };
        let remark = if draw.chance(settings.context_share) { remark(register, draw) } else { "" };
        let who = person.who(register, draw);
        let age = person.age();
        let mut text = frame.render(|slot| match slot {
            "dx" => &diagnoses,
            "visit" => visit,
            "how" => &how,
            "after" => &story.noun,
            "who" => &who,
            "age" => &age,
            "neg" => &absent,
            "ctx" => remark,
            _ => "",
        });
        if ["8", "11-", "18-"].iter().any(|number| who.starts_with(number)) {
            text = text.replace(&format!(" a {who}"), &format!(" an {who}"));
        }
        if draw.chance(settings.misspelled_share) {
            text = with_slips(&text, draw);
        }
        if draw.chance(settings.lower_case_share) {
            text = text.to_lowercase();
        }
        text
    }

    /// What happened: the causes of a case as one noun phrase and as one verb phrase, both empty without causes.
    fn story(&self, case: &Case, draw: &mut Draw) -> Story {
        let mut story = Story::default();
        if case.causes.is_empty() {
            return story;
        }
        for cause in &case.causes {
            let Some(words) = self.wording.cause(*cause, draw) else { continue };
            if matches!(cause.category().undotted(), "Y92" | "Y93" | "Y99") {
                let lead = match cause.category().undotted() {
                    "Y92" => "place: ",
                    "Y93" => "",
                    _ => "status: ",
                };
                story.circumstances.push_str(&format!(", {lead}{}", words.noun));
            } else {
                story.verb = words.verb;
                story.noun = words.noun;
            }
        }
        if story.noun.is_empty() {
            story.noun = "an incident".to_owned();
            story.verb = "got hurt".to_owned();
        }
        if let Some(episode) = case.episode
            && draw.chance(0.4)
        {
            let time = episode.time(draw);
            story.noun = format!("{} {time}", story.noun);
            story.verb = format!("{} {time}", story.verb);
        }
        story.noun.push_str(&story.circumstances);
        story.verb.push_str(&story.circumstances);
        story
    }

    fn descriptions(&self, case: &Case) -> String {
        let description = |code: &Code| Some(self.release.get(*code)?.description.to_lowercase());
        case.diagnoses.iter().filter_map(description).collect::<Vec<_>>().join("; ")
    }
}

/// Generates `settings.n_records` records, hands each to `each`, and counts them. It ends at the first fault of `each`.
///
/// # Errors
/// Those of [`Generator::new`] and of `each`.
pub fn generate<E: From<Error>>(
    release: &Release,
    settings: &TemplateSettings,
    mut each: impl FnMut(Scenario) -> Result<(), E>,
) -> Result<TemplateReport, E> {
    let wording = Wording::new(release);
    let generator = Generator::new(release, &wording, settings.clone())?;
    let mut report = generator.report();
    for idx in 0..settings.n_records {
        let scenario = generator.record(idx);
        report.count(&scenario);
        each(scenario)?;
    }
    Ok(report)
}

#[derive(Default)]
struct Story {
    noun: String,
    verb: String,
    circumstances: String,
}

/// Several diagnoses as one phrase.
fn joined(phrases: &[String], register: Register, draw: &mut Draw) -> String {
    let separator = match register {
        Register::Clinician => draw.word(&["; ", " and ", ", and also ", " as well as "]),
        Register::Patient => draw.word(&[" and also ", " together with ", ", and then there is ", " plus "]),
        Register::Triage => draw.word(&[" + ", "; ", " & ", ", "]),
    };
    phrases.join(separator)
}
