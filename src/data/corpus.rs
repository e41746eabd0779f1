//! Texts about codes, from which a small base model learns what they are called before it is tuned.
//!
//! In: a release and a selection. Out: any number of short texts, words first and code after: terms, definitions,
//! lists, contrasts of neighbours, and coded notes made with allowed wording families only.

use serde::{Deserialize, Serialize};

use super::Error;
use super::draw::Draw;
use super::generate::Selection;
use super::generate::template::{Generator, TemplateSettings};
use super::record::{Text, answer};
use super::wording::{Register, Wording, is_external_cause};
use crate::codes::{Code, Release};

/// What to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorpusSettings {
    /// The codes that the texts are about.
    pub codes: Selection,
    /// Number of texts.
    pub n_records: usize,
    /// Equal seeds give equal texts.
    pub seed: u64,
    /// Wording families that coded notes may use: those of the training split. All when empty.
    pub families: Vec<String>,
    /// Texts that are coded notes.
    pub note_share: f64,
}

impl Default for CorpusSettings {
    fn default() -> Self {
        Self { codes: Selection::default(), n_records: 50_000, seed: 29, families: Vec::new(), note_share: 0.5 }
    }
}

/// A source of texts with random access.
pub struct Corpus<'a> {
    release: &'a Release,
    wording: &'a Wording,
    notes: Generator<'a>,
    codes: Vec<Code>,
    settings: CorpusSettings,
}

impl<'a> Corpus<'a> {
    /// Prepares a source.
    ///
    /// # Errors
    /// Those of [`Generator::new`].
    pub fn new(release: &'a Release, wording: &'a Wording, settings: CorpusSettings) -> Result<Self, Error> {
        let codes = settings.codes.resolve(release)?;
        let notes = TemplateSettings {
            codes: settings.codes.clone(),
            seed: settings.seed,
            families: settings.families.clone(),
            ..TemplateSettings::default()
        };
        let notes = Generator::new(release, wording, notes)?;
        let mut codes: Vec<Code> = codes.into_iter().filter(|code| wording.can_word(*code)).collect();
        Draw::new(settings.seed, "corpus order", 0).shuffle(&mut codes);
        Ok(Self { release, wording, notes, codes, settings })
    }

    /// Text `idx`, counted from 0; there is no last one.
    pub fn text(&self, idx: usize) -> Text {
        let mut draw = Draw::new(self.settings.seed, "corpus", idx as u64);
        let text = if draw.chance(self.settings.note_share) {
            self.note(idx, &mut draw)
        } else {
            let code = self.codes[idx % self.codes.len()];
            match draw.below(10) {
                0 => self.list(code, &mut draw),
                1 | 2 => self.contrast(code, &mut draw),
                _ => entry(&self.term(code, &mut draw), code, &mut draw),
            }
        };
        Text { text }
    }

    fn note(&self, idx: usize, draw: &mut Draw) -> String {
        let scenario = self.notes.record(idx);
        let codes = answer(&scenario.codes);
        let lead = draw.word(&["\nCodes: ", " => ", "\nAnswer: ", "\n", " Codes: "]);
        format!("{}{lead}{codes}", scenario.scenario)
    }

    /// Terms of several codes, one a line.
    fn list(&self, first: Code, draw: &mut Draw) -> String {
        let mut lines = vec![format!("{}: {first}", self.term(first, draw))];
        for _ in 0..draw.between(2, 4) {
            if let Some(&code) = draw.pick(&self.codes) {
                lines.push(format!("{}: {code}", self.term(code, draw)));
            }
        }
        lines.join("\n")
    }

    /// A code beside one that differs little: the nearest in the order of codes.
    fn contrast(&self, code: Code, draw: &mut Draw) -> String {
        let near = self.release.billable_under(code.truncated(code.len() - 1));
        let others: Vec<Code> = near
            .iter()
            .map(|billable| billable.code)
            .chain(self.release.siblings(code).iter().map(|billable| billable.code))
            .filter(|other| *other != code && self.codes.contains(other))
            .collect();
        let Some(&other) = draw.pick(&others) else { return entry(&self.term(code, draw), code, draw) };
        let (a, b) = (self.term(code, draw), self.term(other, draw));
        match draw.below(3) {
            0 => format!("{a} is {code}, but {b} is {other}."),
            1 => format!("{a}: {code}. {b}: {other}."),
            _ => format!("Not the same: {a} ({code}) and {b} ({other})."),
        }
    }

    /// A term with every detail that the code has, the visit included.
    fn term(&self, code: Code, draw: &mut Draw) -> String {
        let official = self.release.get(code).map(|billable| billable.description.to_string()).unwrap_or_default();
        if draw.chance(0.2) {
            return official;
        }
        let register = *draw.pick(&Register::ALL).unwrap_or(&Register::Clinician);
        let words = if is_external_cause(code) {
            let cause = self.wording.cause(code, draw);
            cause.map(|cause| if draw.chance(0.5) { cause.verb } else { cause.noun })
        } else {
            self.wording.diagnosis(code, register, draw)
        };
        let Some(words) = words else { return official };
        match self.wording.episode(code) {
            Some(episode) => format!("{words}, {}", episode.visit(register, draw)),
            None => words,
        }
    }
}

/// Writes `settings.n_records` texts to `each`; it ends at the first fault of `each`.
///
/// # Errors
/// Those of [`Corpus::new`] and of `each`.
pub fn generate<E: From<Error>>(
    release: &Release,
    settings: &CorpusSettings,
    mut each: impl FnMut(Text) -> Result<(), E>,
) -> Result<(), E> {
    let wording = Wording::new(release);
    let corpus = Corpus::new(release, &wording, settings.clone())?;
    for idx in 0..settings.n_records {
        each(corpus.text(idx))?;
    }
    Ok(())
}

fn entry(term: &str, code: Code, draw: &mut Draw) -> String {
    match draw.below(8) {
        0 => format!("{term} is coded {code}."),
        1 => format!("Term: {term}. Code: {code}."),
        2 => format!("{term}: {code}"),
        3 => format!("The code for {term} is {code}."),
        4 => format!("{term} -> {code}"),
        5 => format!("Q: {term}\nA: {code}"),
        6 => format!("Text: {term}\nCodes: {code}"),
        _ => format!("{term}\n{code}"),
    }
}
