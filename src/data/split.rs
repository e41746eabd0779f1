//! Splits that do not leak: a case is in one split only, and test wordings can be ones that training never saw.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::record::Scenario;

/// How records are shared out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SplitSettings {
    /// Share of the validation split.
    pub validation: f64,
    /// Share of the test split.
    pub test: f64,
    /// Whether the test split takes whole wording families, of which training and validation then have none.
    pub hold_out_families: bool,
    /// Another seed gives other splits.
    pub seed: u64,
}

impl Default for SplitSettings {
    fn default() -> Self {
        Self { validation: 0.05, test: 0.05, hold_out_families: true, seed: 0 }
    }
}

/// The splits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Splits {
    pub train: Vec<Scenario>,
    pub val: Vec<Scenario>,
    pub test: Vec<Scenario>,
}

/// How many records each split has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitReport {
    pub n_train: usize,
    pub n_val: usize,
    pub n_test: usize,
    /// Families that only the test split has.
    pub held_out_families: BTreeSet<String>,
    /// Records of other families that word a case of the test split; they are in no split.
    pub n_left_out: usize,
}

/// Where a record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Train,
    Val,
    Test,
    /// In no split: it words a case of the test split, in a family that training may have.
    LeftOut,
}

/// What has to be known of all records before the first is placed: families, their sizes and their cases.
#[derive(Debug, Default)]
pub struct Census {
    numbers: BTreeMap<String, u32>,
    sizes: Vec<usize>,
    /// The family and the group of each record that has a family.
    members: Vec<(u32, u64)>,
}

impl Census {
    /// Takes a record into account.
    pub fn count(&mut self, scenario: &Scenario) {
        if scenario.family.is_empty() {
            return;
        }
        let number = match self.numbers.get(&scenario.family) {
            Some(number) => *number,
            None => {
                let number = self.sizes.len() as u32;
                self.numbers.insert(scenario.family.clone(), number);
                self.sizes.push(0);
                number
            }
        };
        self.sizes[number as usize] += 1;
        self.members.push((number, group_hash(scenario)));
    }

    /// Decides which families are held out and with them which cases are the test split's.
    pub fn plan(self, settings: &SplitSettings) -> SplitPlan {
        let held_out = if settings.hold_out_families { self.families_to_hold_out(settings) } else { BTreeSet::new() };
        let numbers: BTreeSet<u32> = held_out.iter().filter_map(|family| self.numbers.get(family)).copied().collect();
        let is_held_out = |(number, _): &&(u32, u64)| numbers.contains(number);
        let test_groups = self.members.iter().filter(is_held_out).map(|(_, group)| *group).collect();
        SplitPlan { settings: settings.clone(), held_out, test_groups }
    }

    /// Of each register (the part of a family's name before the slash) as many families, in the order of their hashes,
    /// as come nearest to the test share of its records; at least one, and never all.
    fn families_to_hold_out(&self, settings: &SplitSettings) -> BTreeSet<String> {
        let mut registers: BTreeMap<&str, Vec<(&str, usize)>> = BTreeMap::new();
        for (family, number) in &self.numbers {
            let register = family.split_once('/').map_or("", |(register, _)| register);
            registers.entry(register).or_default().push((family, self.sizes[*number as usize]));
        }
        let mut held_out = BTreeSet::new();
        for mut families in registers.into_values() {
            families.sort_by(|a, b| unit_hash(a.0, settings.seed).total_cmp(&unit_hash(b.0, settings.seed)));
            let n_wanted = settings.test * families.iter().map(|(_, size)| *size as f64).sum::<f64>();
            let n_most = families.len() - 1;
            let mut n_taken = 0.0;
            for (family, size) in families.into_iter().take(n_most) {
                let size = size as f64;
                let comes_nearer = (n_taken + size - n_wanted).abs() < (n_taken - n_wanted).abs();
                if n_wanted > 0.0 && (n_taken == 0.0 || comes_nearer) {
                    n_taken += size;
                    held_out.insert(family.to_owned());
                } else {
                    break;
                }
            }
        }
        held_out
    }
}

/// Decides for each record alone where it goes.
#[derive(Clone, Debug)]
pub struct SplitPlan {
    settings: SplitSettings,
    held_out: BTreeSet<String>,
    test_groups: HashSet<u64>,
}

impl SplitPlan {
    /// The families that only the test split has.
    pub fn held_out_families(&self) -> &BTreeSet<String> {
        &self.held_out
    }

    /// The place of a record: a stable hash of its group (of its text when it has none) decides, so that it is the same
    /// whatever other records there are. With held-out families, records with a family are in the test split when
    /// theirs is held out, and only then.
    pub fn place(&self, scenario: &Scenario) -> Place {
        let place = unit_hash(group_of(scenario), self.settings.seed);
        let has_family = !self.held_out.is_empty() && !scenario.family.is_empty();
        if self.held_out.contains(&scenario.family) {
            Place::Test
        } else if !self.test_groups.is_empty() && self.test_groups.contains(&group_hash(scenario)) {
            Place::LeftOut
        } else if !has_family && place >= 1.0 - self.settings.test {
            Place::Test
        } else if place < self.settings.validation {
            Place::Val
        } else {
            Place::Train
        }
    }

    /// A report that counts nothing yet.
    pub(crate) fn report(&self) -> SplitReport {
        SplitReport { held_out_families: self.held_out.clone(), ..SplitReport::default() }
    }
}

impl SplitReport {
    pub(crate) fn count(&mut self, place: Place) {
        let n = match place {
            Place::Train => &mut self.n_train,
            Place::Val => &mut self.n_val,
            Place::Test => &mut self.n_test,
            Place::LeftOut => &mut self.n_left_out,
        };
        *n += 1;
    }
}

impl SplitSettings {
    /// # Errors
    /// [`super::Error::BadSetting`].
    pub fn check(&self) -> Result<(), super::Error> {
        super::error::check_setting("split.validation", self.validation, 0.0..=0.9)?;
        super::error::check_setting("split.test", self.test, 0.0..=0.9)?;
        super::error::check_setting("split.validation + split.test", self.validation + self.test, 0.0..=0.95)
    }
}

/// Shares records out (see [`SplitPlan::place`]).
pub fn split(scenarios: Vec<Scenario>, settings: &SplitSettings) -> (Splits, SplitReport) {
    let mut census = Census::default();
    scenarios.iter().for_each(|scenario| census.count(scenario));
    let plan = census.plan(settings);
    let (mut splits, mut report) = (Splits::default(), plan.report());
    for scenario in scenarios {
        let place = plan.place(&scenario);
        report.count(place);
        match place {
            Place::Train => splits.train.push(scenario),
            Place::Val => splits.val.push(scenario),
            Place::Test => splits.test.push(scenario),
            Place::LeftOut => {}
        }
    }
    (splits, report)
}

fn group_hash(scenario: &Scenario) -> u64 {
    xxh3_64_with_seed(group_of(scenario).as_bytes(), 0)
}

fn group_of(scenario: &Scenario) -> &str {
    if scenario.group.is_empty() { &scenario.scenario } else { &scenario.group }
}

/// A stable draw from [0, 1).
fn unit_hash(text: &str, seed: u64) -> f64 {
    (xxh3_64_with_seed(text.as_bytes(), seed) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Scenario> {
        (0..4000)
            .map(|idx| Scenario {
                family: format!("{}/f{}", ["note", "letter", "call", "call"][idx % 4], idx % 40),
                // Two records word each case, in different families.
                group: format!("case-{}", idx / 2),
                ..Scenario::new(format!("text {idx}"), Vec::new())
            })
            .collect()
    }

    fn groups(records: &[Scenario]) -> BTreeSet<&str> {
        records.iter().map(|record| record.group.as_str()).collect()
    }

    #[test]
    fn held_out_families_are_in_test_alone_and_no_case_crosses() {
        let (splits, report) = split(records(), &SplitSettings::default());
        let families = |records: &[Scenario]| records.iter().map(|r| r.family.clone()).collect::<BTreeSet<_>>();
        assert_eq!(families(&splits.test), report.held_out_families);
        assert!(families(&splits.train).is_disjoint(&report.held_out_families));
        assert!(families(&splits.val).is_disjoint(&report.held_out_families));
        assert!(groups(&splits.train).is_disjoint(&groups(&splits.test)));
        assert!(groups(&splits.train).is_disjoint(&groups(&splits.val)));
        assert!(groups(&splits.val).is_disjoint(&groups(&splits.test)));
        assert_eq!(report.n_train + report.n_val + report.n_test + report.n_left_out, 4000);
        // 1,000 notes in ten families, as many letters, 2,000 calls in twenty: one family of each is nearest to 5 %.
        assert_eq!((report.n_test, report.held_out_families.len()), (300, 3), "{report:?}");
        let registers: BTreeSet<&str> = report.held_out_families.iter().map(|f| f.split('/').next().unwrap()).collect();
        assert_eq!(registers.into_iter().collect::<Vec<_>>(), ["call", "letter", "note"]);
        assert!(report.n_val > 120, "{report:?}");
        assert!(report.n_left_out > 0 && report.n_left_out <= report.n_test);
    }

    #[test]
    fn without_families_a_record_keeps_its_split_when_others_come() {
        let settings = SplitSettings { hold_out_families: false, ..SplitSettings::default() };
        let (all, report) = split(records(), &settings);
        let (some, _) = split(records().into_iter().take(500).collect(), &settings);
        assert!(some.test.iter().all(|record| all.test.contains(record)));
        assert!(some.val.iter().all(|record| all.val.contains(record)));
        assert!(groups(&all.train).is_disjoint(&groups(&all.test)));
        for n in [report.n_val, report.n_test] {
            assert!((130..=270).contains(&n), "{report:?}");
        }
    }
}
