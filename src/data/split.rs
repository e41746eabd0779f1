//! Splits that do not leak: a case is in one split only, and test wordings can be ones that training never saw.

use std::collections::{BTreeMap, BTreeSet};

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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SplitReport {
    pub n_train: usize,
    pub n_val: usize,
    pub n_test: usize,
    /// Families that only the test split has.
    pub held_out_families: BTreeSet<String>,
    /// Records of other families that word a case of the test split; they are in no split.
    pub n_left_out: usize,
}

/// Shares records out by a stable hash of their group (of their text when they have none): the same record is in the
/// same split whatever else is there, so that a data set can grow. With held-out families the test split is every
/// record of some families, taken in the order of the families' hashes until the share is reached.
pub fn split(scenarios: Vec<Scenario>, settings: &SplitSettings) -> (Splits, SplitReport) {
    let mut report = SplitReport::default();
    if settings.hold_out_families {
        report.held_out_families = families_to_hold_out(&scenarios, settings);
    }
    let is_held_out = |scenario: &Scenario| report.held_out_families.contains(&scenario.family);
    let test_groups: BTreeSet<String> = scenarios
        .iter()
        .filter(|scenario| is_held_out(scenario))
        .map(|scenario| group_of(scenario).to_owned())
        .collect();

    let mut splits = Splits::default();
    let mut n_left_out = 0;
    for scenario in scenarios {
        let place = unit_hash(group_of(&scenario), settings.seed);
        let has_families = !report.held_out_families.is_empty() && !scenario.family.is_empty();
        if is_held_out(&scenario) {
            splits.test.push(scenario);
        } else if test_groups.contains(group_of(&scenario)) {
            n_left_out += 1;
        } else if !has_families && place >= 1.0 - settings.test {
            splits.test.push(scenario);
        } else if place < settings.validation {
            splits.val.push(scenario);
        } else {
            splits.train.push(scenario);
        }
    }
    (report.n_train, report.n_val, report.n_test) = (splits.train.len(), splits.val.len(), splits.test.len());
    report.n_left_out = n_left_out;
    (splits, report)
}

fn families_to_hold_out(scenarios: &[Scenario], settings: &SplitSettings) -> BTreeSet<String> {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for scenario in scenarios.iter().filter(|scenario| !scenario.family.is_empty()) {
        *sizes.entry(&scenario.family).or_default() += 1;
    }
    // One family cannot be both held out and trained on.
    if sizes.len() < 2 {
        return BTreeSet::new();
    }
    let n_wanted = (settings.test * sizes.values().sum::<usize>() as f64).ceil() as usize;
    let mut order: Vec<(&str, usize)> = sizes.into_iter().collect();
    order.sort_by(|a, b| unit_hash(a.0, settings.seed).total_cmp(&unit_hash(b.0, settings.seed)));
    let mut n_taken = 0;
    let last = order.len() - 1;
    let wanted = order.into_iter().take(last).take_while(|&(_, size)| {
        let goes_on = n_taken < n_wanted;
        n_taken += size;
        goes_on
    });
    wanted.map(|(family, _)| family.to_owned()).collect()
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
                family: format!("f{}", idx % 40),
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
        assert!((200..=300).contains(&report.n_test) && report.n_val > 120, "{report:?}");
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
