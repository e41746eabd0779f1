//! The continual update: what a new release of codes changes in a data set.
//!
//! In: two releases, the records learned before, and where there is one the table of converted codes. Out: records for
//! codes that are new or mean something new, mixed with a share of the old records, of which those with deleted codes
//! are remapped or dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Error;
use super::dedup::{DedupSettings, dedup};
use super::draw::Draw;
use super::generate::Selection;
use super::generate::template::{Generator, TemplateSettings};
use super::record::{ChatRecord, Scenario, chat_record};
use super::source::Source;
use super::split::{SplitSettings, split};
use super::validate::{ValidateSettings, fault};
use super::wording::Wording;
use crate::codes::{Code, Release, diff};
use crate::fsio;

/// How an update is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateSettings {
    /// Records for each code that is new or changed.
    pub n_per_code: usize,
    /// Share of the old records that is trained on again.
    pub ratio: f64,
    /// Equal seeds give equal updates.
    pub seed: u64,
    /// How the new records are shared out.
    pub split: SplitSettings,
    /// What counts as a duplicate among them.
    pub dedup: DedupSettings,
}

impl Default for UpdateSettings {
    fn default() -> Self {
        Self { n_per_code: 16, ratio: 0.1, seed: 17, split: SplitSettings::default(), dedup: DedupSettings::default() }
    }
}

/// What an update consists of.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// New records and old ones, shuffled.
    pub train: Vec<ChatRecord>,
    /// New records only.
    pub val: Vec<ChatRecord>,
    /// New records only, in wording families of their own.
    pub test: Vec<ChatRecord>,
    pub report: UpdateReport,
}

/// The counts of an update.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UpdateReport {
    pub old_release: String,
    pub new_release: String,
    /// Codes of the new release only.
    pub n_added: usize,
    /// Codes with another description.
    pub n_renamed: usize,
    /// Codes of the old release only.
    pub n_deleted: usize,
    /// Added and renamed codes that no record can be made for.
    pub n_codes_left_out: usize,
    /// New records trained on, validated with, and tested with.
    pub n_new_train: usize,
    pub n_new_val: usize,
    pub n_new_test: usize,
    pub old: CarriedReport,
    /// Old records trained on again.
    pub n_old_taken: usize,
}

/// What became of the old records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CarriedReport {
    pub n_read: usize,
    /// Records whose codes are all billable still.
    pub n_unchanged: usize,
    /// Records in which a deleted code was replaced.
    pub n_remapped: usize,
    /// Records dropped for a deleted code with no single successor, by that code.
    pub dropped: BTreeMap<Code, usize>,
    /// Records that break a rule of the new release, as a new Excludes1 note.
    pub n_unfit: usize,
}

/// What took the place of deleted codes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversion {
    successors: BTreeMap<Code, BTreeSet<Code>>,
}

impl Conversion {
    /// Reads a table (.csv, else with tabs): a column of old and one of new codes. A heading says which is which (it
    /// holds "old" or "previous", "new" or "current"); without one the old code comes first. A cell may hold several
    /// codes.
    ///
    /// # Errors
    /// [`Error::File`] with the line of a cell that is no code.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bad = |line: usize, message: String| {
            Error::from(fsio::Error::BadLine { path: path.to_owned(), line, message, others: 0 })
        };
        let text = fsio::read_text(path)?;
        let first = text.lines().next().unwrap_or_default();
        let delimiter = if first.contains('\t') { b'\t' } else { b',' };
        let mut table = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .flexible(true)
            .from_reader(text.as_bytes());
        let (mut old, mut new) = (0, 1);
        let mut conversion = Self::default();
        for (idx, row) in table.records().enumerate() {
            let row = row.map_err(|error| bad(idx + 1, error.to_string()))?;
            let column = |words: [&str; 2]| {
                row.iter().position(|name| words.iter().any(|word| name.to_lowercase().contains(word)))
            };
            if let (0, Some(old_column), Some(new_column)) =
                (idx, column(["old", "previous"]), column(["new", "current"]))
            {
                (old, new) = (old_column, new_column);
                continue;
            }
            let codes = |column: usize| {
                let cell = row.get(column).unwrap_or_default();
                let words = cell.split([',', ';', '|', ' ', '\n']).filter(|word| !word.is_empty());
                let words = words.filter(|word| !word.eq_ignore_ascii_case("none"));
                words.map(|word| Code::parse_lenient(word).map_err(|error| bad(idx + 1, error.to_string()))).collect()
            };
            let (before, after): (Result<Vec<Code>, Error>, Result<Vec<Code>, Error>) = (codes(old), codes(new));
            let after = after?;
            for code in before? {
                conversion.successors.entry(code).or_default().extend(&after);
            }
        }
        Ok(conversion)
    }

    /// Number of old codes.
    pub fn len(&self) -> usize {
        self.successors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.successors.is_empty()
    }

    /// The one billable code that took the place of `code`; none when there are several, because only the record's
    /// author could tell which.
    fn successor(&self, code: Code, release: &Release) -> Option<Code> {
        let mut billable = self.successors.get(&code)?.iter().filter(|code| release.is_billable(**code));
        match (billable.next(), billable.next()) {
            (Some(only), None) => Some(*only),
            _ => None,
        }
    }
}

/// An old record under a new release.
enum Carried {
    Unchanged(Scenario),
    Remapped(Scenario),
    /// For this code.
    Dropped(Code),
    Unfit,
}

fn carried(mut record: Scenario, release: &Release, conversion: &Conversion) -> Carried {
    let mut codes: Vec<Code> = Vec::with_capacity(record.codes.len());
    for code in &record.codes {
        let now = if release.is_billable(*code) { Some(*code) } else { conversion.successor(*code, release) };
        match now {
            None => return Carried::Dropped(*code),
            Some(now) if !codes.contains(&now) => codes.push(now),
            Some(_) => {}
        }
    }
    let is_same = codes == record.codes;
    record.codes = codes;
    match fault(&record, release, &ValidateSettings::default()) {
        Some(_) => Carried::Unfit,
        None if is_same => Carried::Unchanged(record),
        None => Carried::Remapped(record),
    }
}

/// Makes the update from `old` to `new`; `records` are those learned before.
///
/// # Errors
/// A setting; [`Error::NothingChanged`] when both releases have the same codes; a file.
pub fn update(
    old: &Release,
    new: &Release,
    records: &Source,
    conversion: &Conversion,
    settings: &UpdateSettings,
) -> Result<Update, Error> {
    super::error::check_setting("ratio", settings.ratio, 0.0..=1.0)?;
    super::error::check_setting("n_per_code", settings.n_per_code as f64, 1.0..=100_000.0)?;
    settings.split.check()?;
    settings.dedup.check()?;
    let changes = diff(old, new);
    let mut report = UpdateReport {
        old_release: old.name().to_owned(),
        new_release: new.name().to_owned(),
        n_added: changes.added.len(),
        n_renamed: changes.renamed.len(),
        n_deleted: changes.deleted.len(),
        ..UpdateReport::default()
    };
    let changed: Vec<Code> = changes
        .added
        .iter()
        .map(|entry| entry.code)
        .chain(changes.renamed.iter().map(|renamed| renamed.code))
        .collect();
    if changed.is_empty() && changes.deleted.is_empty() {
        return Err(Error::NothingChanged { old: report.old_release, new: report.new_release });
    }
    let made = if changed.is_empty() { Vec::new() } else { new_records(new, changed, settings, &mut report)? };
    let (made, _) = dedup(made, &settings.dedup);
    let (splits, shares) = split(made, &settings.split);
    (report.n_new_train, report.n_new_val, report.n_new_test) = (shares.n_train, shares.n_val, shares.n_test);
    let chats = |records: &[Scenario]| records.iter().map(chat_record).collect::<Vec<_>>();
    let mut update = Update { train: chats(&splits.train), val: chats(&splits.val), test: chats(&splits.test), report };
    let replayed = replayed(new, records, conversion, settings, &mut update.report)?;
    update.report.n_old_taken = replayed.len();
    update.train.extend(replayed);
    Draw::new(settings.seed, "update", 0).shuffle(&mut update.train);
    Ok(update)
}

/// Sound records about `changed`; the other codes of a case may be any of the release.
fn new_records(
    release: &Release,
    changed: Vec<Code>,
    settings: &UpdateSettings,
    report: &mut UpdateReport,
) -> Result<Vec<Scenario>, Error> {
    let wording = Wording::new(release);
    let template = TemplateSettings {
        codes: Selection { codes: changed, ..Selection::default() },
        companions: Some(Selection::default()),
        seed: settings.seed,
        ..TemplateSettings::default()
    };
    let generator = match Generator::new(release, &wording, template) {
        Err(Error::NothingSelected { .. }) => {
            report.n_codes_left_out = report.n_added + report.n_renamed;
            return Ok(Vec::new());
        }
        generator => generator?,
    };
    let counts = generator.report();
    report.n_codes_left_out = counts.n_codes_left_out;
    let n_records = (counts.n_codes - counts.n_codes_left_out) * settings.n_per_code;
    let is_sound = |record: &Scenario| fault(record, release, &ValidateSettings::default()).is_none();
    Ok((0..n_records).map(|idx| generator.record(idx)).filter(is_sound).collect())
}

/// The share of the old records that is trained on again. The records are read twice, so that not all are held.
fn replayed(
    release: &Release,
    records: &Source,
    conversion: &Conversion,
    settings: &UpdateSettings,
    report: &mut UpdateReport,
) -> Result<Vec<ChatRecord>, Error> {
    let mut kept: Vec<u32> = Vec::new();
    let old = &mut report.old;
    records.for_each(|_, record| {
        match carried(record, release, conversion) {
            Carried::Unchanged(_) => old.n_unchanged += 1,
            Carried::Remapped(_) => old.n_remapped += 1,
            Carried::Dropped(code) => *old.dropped.entry(code).or_default() += 1,
            Carried::Unfit => old.n_unfit += 1,
        }
        if old.n_unchanged + old.n_remapped > kept.len() {
            kept.push(old.n_read as u32);
        }
        old.n_read += 1;
        Ok::<_, Error>(())
    })?;
    Draw::new(settings.seed, "replay", 0).shuffle(&mut kept);
    kept.truncate((settings.ratio * kept.len() as f64).round() as usize);
    let mut places: HashMap<u32, Option<ChatRecord>> = kept.iter().map(|idx| (*idx, None)).collect();
    let mut idx = 0;
    records.for_each(|_, record| {
        if let Some(place) = places.get_mut(&idx)
            && let Carried::Unchanged(record) | Carried::Remapped(record) = carried(record, release, conversion)
        {
            *place = Some(chat_record(&record));
        }
        idx += 1;
        Ok::<_, Error>(())
    })?;
    Ok(kept.iter().filter_map(|idx| places.remove(idx).flatten()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Code {
        Code::parse(text).unwrap()
    }

    #[test]
    fn a_table_of_conversions_is_read_with_a_heading_or_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.csv");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Conversion::read(&path)
        };
        let plain = read("I10,E11.9\nI11.9,\"J45.909, J45.901\"\n").unwrap();
        let headed = read(
            "Current code assignment\tEffective\tPrevious Code(s)\nE119\t2026\tI10\nJ45909\t2026\tI119\nJ45901\t2026\tI119\n",
        );
        assert_eq!(plain, headed.unwrap());
        let release = Release::builtin().unwrap();
        assert_eq!(plain.successor(code("I10"), &release), Some(code("E11.9")));
        assert_eq!(plain.successor(code("I11.9"), &release), None);
        let error = read("I10,E11.9\nI11.9,A00-A01\n").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_deleted_code_is_remapped_or_drops_its_record() {
        let release = Release::builtin().unwrap();
        let mut conversion = Conversion::default();
        conversion.successors.insert(code("Q99.77"), [code("I10")].into());
        let carry = |codes: &[&str]| {
            carried(Scenario::new("x", codes.iter().map(|text| code(text)).collect()), &release, &conversion)
        };
        assert!(matches!(carry(&["I10", "J45.909"]), Carried::Unchanged(_)));
        let Carried::Remapped(record) = carry(&["J45.909", "Q99.77"]) else { panic!() };
        assert_eq!(record.codes, [code("J45.909"), code("I10")]);
        let Carried::Remapped(record) = carry(&["I10", "Q99.77"]) else { panic!() };
        assert_eq!(record.codes, [code("I10")]);
        assert!(matches!(carry(&["Q99.78", "I10"]), Carried::Dropped(dropped) if dropped == code("Q99.78")));
        assert!(matches!(carry(&["E10.9", "E11.9"]), Carried::Unfit));
    }
}
