//! Preference pairs: every rejected answer is worse in the way that its flaw says.

use std::collections::{BTreeMap, BTreeSet};

use axismapper::codes::{Code, Release};
use axismapper::data::generate::template::{Generator, TemplateSettings};
use axismapper::data::preference::{Flaw, PairSettings, Pairs};
use axismapper::data::record::{PreferenceRecord, Scenario, Turns, answer};
use axismapper::data::wording::{Wording, is_external_cause};

fn content(turns: &Turns) -> &str {
    match turns {
        Turns::Messages(messages) => &messages.last().unwrap().content,
        Turns::Plain(text) => text,
    }
}

fn set(text: &str) -> Option<BTreeSet<Code>> {
    text.split(", ").map(|code| Code::parse(code).ok()).collect()
}

/// Checks what holds for every pair, and what holds for its flaw.
fn check(release: &Release, scenario: &Scenario, flaw: Flaw, pair: &PreferenceRecord) {
    let (chosen, rejected) = (content(&pair.chosen), content(&pair.rejected));
    assert_eq!(chosen, answer(&scenario.codes));
    assert_eq!(content(&pair.prompt), scenario.scenario);
    assert_ne!(chosen, rejected);
    let right: BTreeSet<Code> = scenario.codes.iter().copied().collect();
    if flaw == Flaw::Prose {
        assert!(set(rejected).is_none_or(|set| set != right), "{rejected}");
        let plain = rejected.replace(' ', ".");
        assert!(right.iter().all(|code| plain.contains(&code.to_string())), "{rejected} / {chosen}");
        return;
    }
    let wrong = set(rejected).unwrap();
    assert_ne!(wrong, right);
    let lost: Vec<Code> = right.difference(&wrong).copied().collect();
    let added: Vec<Code> = wrong.difference(&right).copied().collect();
    let context = format!("{flaw:?}: {rejected} / {chosen}");
    match (flaw, lost.as_slice(), added.as_slice()) {
        (Flaw::Laterality, [old], [new]) => {
            let (old, new) = (release.description(*old).unwrap(), release.description(*new).unwrap());
            let without_side = |text: &str| {
                let is_side = |word: &&str| !["right", "left", "unspecified", "bilateral"].contains(word);
                text.to_lowercase().split([' ', ',']).filter(is_side).collect::<Vec<_>>().join(" ")
            };
            assert_eq!(without_side(old), without_side(new), "{context}");
        }
        (Flaw::SeventhCharacter, [old], [new]) => {
            assert_eq!((old.truncated(6), release.is_billable(*new)), (new.truncated(6), true), "{context}");
        }
        (Flaw::Header, [old], [new]) => assert!(old.is_under(*new) && !release.is_billable(*new), "{context}"),
        (Flaw::Sibling, [old], [new]) => {
            assert!(old.category() == new.category() && release.is_billable(*new), "{context}");
        }
        (Flaw::MissingCause, lost, []) => assert!(lost.iter().all(|code| is_external_cause(*code)), "{context}"),
        (Flaw::MissingDiagnosis, [lost], []) => assert!(!is_external_cause(*lost), "{context}"),
        (Flaw::ExtraCode, [], [new]) => assert!(release.is_billable(*new), "{context}"),
        _ => panic!("{context}"),
    }
}

#[test]
fn every_pair_has_its_flaw() {
    let release = Release::builtin().unwrap();
    let wording = Wording::new(&release);
    for settings in [TemplateSettings::demo(), TemplateSettings { seed: 3, ..TemplateSettings::default() }] {
        let generator = Generator::new(&release, &wording, settings).unwrap();
        let pairs = Pairs::new(&release, PairSettings { n_pairs: 3, ..PairSettings::default() }).unwrap();
        let mut by_flaw: BTreeMap<Flaw, usize> = BTreeMap::new();
        for idx in 0..3_000 {
            let scenario = generator.record(idx);
            let of_record = pairs.of(&scenario, idx);
            assert!(!of_record.is_empty(), "{scenario:?}");
            let rejected: BTreeSet<&str> = of_record.iter().map(|(_, pair)| content(&pair.rejected)).collect();
            assert_eq!(rejected.len(), of_record.len(), "two pairs of one record are the same");
            for (flaw, pair) in &of_record {
                check(&release, &scenario, *flaw, pair);
                *by_flaw.entry(*flaw).or_default() += 1;
            }
        }
        assert!(Flaw::ALL.iter().all(|flaw| by_flaw[flaw] > 50), "{by_flaw:?}");
    }
}

#[test]
fn a_code_without_dot_and_neighbours_has_a_pair_too() {
    let release = Release::builtin().unwrap();
    let pairs = Pairs::new(&release, PairSettings::default()).unwrap();
    let scenario = Scenario::new("my blood pressure is high", vec![Code::parse("I10").unwrap()]);
    assert!((0..300).all(|idx| pairs.of(&scenario, idx).len() == 1));
}

fn push(pairs: &mut Vec<PreferenceRecord>, pair: PreferenceRecord) -> Result<(), ()> {
    pairs.push(pair);
    Ok(())
}

#[test]
fn shares_decide_which_flaws_come_up() {
    let release = Release::builtin().unwrap();
    let wording = Wording::new(&release);
    let generator = Generator::new(&release, &wording, TemplateSettings::demo()).unwrap();
    let records: Vec<Scenario> = (0..2_000).map(|idx| generator.record(idx)).collect();
    let settings =
        PairSettings { shares: [(Flaw::Prose, 3.0), (Flaw::Sibling, 1.0)].into(), ..PairSettings::default() };
    let pairs = Pairs::new(&release, settings).unwrap();
    let mut first = Vec::new();
    let report = pairs.write(&records, |pair| push(&mut first, pair)).unwrap();
    assert_eq!((report.n_in, report.n_pairs, report.by_flaw.len()), (2_000, first.len(), 2));
    let prose_share = report.by_flaw[&Flaw::Prose] as f64 / report.n_pairs as f64;
    // Some records have no sibling; four standard deviations of 2,000 draws are 0.04.
    assert!((0.71..0.87).contains(&prose_share), "{prose_share}");
    let mut again = Vec::new();
    pairs.write(&records, |pair| push(&mut again, pair)).unwrap();
    assert_eq!(first, again);
    assert!(Pairs::new(&release, PairSettings { shares: BTreeMap::new(), ..PairSettings::default() }).is_err());
}
