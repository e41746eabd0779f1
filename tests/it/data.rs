//! Generated scenarios and texts: equal for equal seeds, and labelled as their codes allow.

mod cli;
mod providers;
mod server;
mod updates;

use std::collections::BTreeSet;

use axismapper::codes::Release;
use axismapper::data::Error;
use axismapper::data::corpus::{Corpus, CorpusSettings};
use axismapper::data::generate::families;
use axismapper::data::generate::template::{Generator, TemplateSettings, generate};
use axismapper::data::record::Scenario;
use axismapper::data::wording::{Wording, is_external_cause};

fn check_labels(release: &Release, scenario: &Scenario) {
    let codes = &scenario.codes;
    assert!((1..=4).contains(&codes.len()), "{scenario:?}");
    assert_eq!(codes.iter().collect::<BTreeSet<_>>().len(), codes.len(), "{scenario:?}");
    assert!(codes.iter().all(|code| release.is_billable(*code)), "{scenario:?}");
    for (idx, a) in codes.iter().enumerate() {
        assert!(codes[idx + 1..].iter().all(|b| release.excludes1(*a, *b).is_none()), "{scenario:?}");
    }
    assert!(codes.is_sorted_by_key(|code| is_external_cause(*code)), "diagnoses come first: {scenario:?}");
    assert!(!is_external_cause(codes[0]), "{scenario:?}");
    let words: Vec<String> = scenario
        .scenario
        .to_uppercase()
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '.')
        .map(|word| word.replace('.', ""))
        .collect();
    for code in codes {
        assert!(!words.iter().any(|word| word == code.undotted()), "the code is in the text: {scenario:?}");
    }
    assert!(scenario.scenario.len() > 6 && !scenario.scenario.contains(['{', '}']), "{scenario:?}");
}

#[test]
fn labels_hold_over_many_records() {
    let release = Release::builtin().unwrap();
    for settings in [TemplateSettings::demo(), TemplateSettings { seed: 99, ..TemplateSettings::default() }] {
        let settings = TemplateSettings { n_records: 20_000, ..settings };
        let report = generate(&release, &settings, |scenario| {
            check_labels(&release, &scenario);
            Ok::<_, Error>(())
        })
        .unwrap();
        assert_eq!(report.n_records, 20_000);
        assert_eq!(report.by_family.len(), families().len());
        assert_eq!(report.by_n_codes.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
}

#[test]
fn the_demo_selection_is_learnable_and_covers_its_codes() {
    let release = Release::builtin().unwrap();
    let settings = TemplateSettings { n_records: 4_000, ..TemplateSettings::demo() };
    let mut seen = BTreeSet::new();
    let report = generate(&release, &settings, |scenario| {
        seen.extend(scenario.codes);
        Ok::<_, Error>(())
    })
    .unwrap();
    assert!((200..=400).contains(&report.n_codes), "{}", report.n_codes);
    assert_eq!((report.n_codes_left_out, seen.len()), (0, report.n_codes));
    for code in ["S82.201A", "V18.4XXA", "J45.909"] {
        assert!(seen.contains(&code.parse().unwrap()), "{code}");
    }
}

#[test]
fn records_depend_on_seed_and_index_only() {
    let release = Release::builtin().unwrap();
    let wording = Wording::new(&release);
    let generator =
        |seed| Generator::new(&release, &wording, TemplateSettings { seed, ..TemplateSettings::demo() }).unwrap();
    let (one, two) = (generator(5), generator(6));
    let again_wording = Wording::new(&release);
    let again =
        Generator::new(&release, &again_wording, TemplateSettings { seed: 5, ..TemplateSettings::demo() }).unwrap();
    let forwards: Vec<Scenario> = (0..300).map(|idx| one.record(idx)).collect();
    let backwards: Vec<Scenario> = (0..300).rev().map(|idx| again.record(idx)).collect();
    assert!(forwards.iter().eq(backwards.iter().rev()));
    assert!((0..300).filter(|idx| two.record(*idx).scenario == forwards[*idx].scenario).count() < 5);
}

#[test]
fn variants_of_a_case_share_codes_and_group() {
    let release = Release::builtin().unwrap();
    let wording = Wording::new(&release);
    let settings = TemplateSettings { n_variants: 3, ..TemplateSettings::demo() };
    let generator = Generator::new(&release, &wording, settings).unwrap();
    let records: Vec<Scenario> = (0..600).map(|idx| generator.record(idx)).collect();
    for variants in records.chunks(3) {
        assert!(variants.iter().all(|other| (&other.codes, &other.group) == (&variants[0].codes, &variants[0].group)));
    }
    let groups: BTreeSet<&str> = records.iter().map(|record| record.group.as_str()).collect();
    assert_eq!(groups.len(), 200);
}

#[test]
fn a_corpus_names_codes_after_words_and_keeps_to_its_families() {
    let release = Release::builtin().unwrap();
    let wording = Wording::new(&release);
    let allowed: Vec<String> = families().into_iter().filter(|name| !name.ends_with('1')).map(str::to_owned).collect();
    let settings = CorpusSettings {
        codes: TemplateSettings::demo().codes,
        families: allowed.clone(),
        ..CorpusSettings::default()
    };
    let corpus = Corpus::new(&release, &wording, settings.clone()).unwrap();
    let codes: Vec<String> = settings.codes.resolve(&release).unwrap().iter().map(ToString::to_string).collect();
    let mut named = BTreeSet::new();
    for idx in 0..3_000 {
        let text = corpus.text(idx).text;
        assert_eq!(text, corpus.text(idx).text);
        let found: Vec<&String> = codes.iter().filter(|code| text.contains(code.as_str())).collect();
        assert!(!found.is_empty(), "{text}");
        named.extend(found.into_iter().cloned());
    }
    assert!(named.len() > codes.len() * 95 / 100, "{} of {}", named.len(), codes.len());
    // The first frame of each kind is held out; its opening words would show.
    for opening in ["walk-in, ", "Chief complaint", "needs codes: ", "My doctor says"] {
        let is_allowed = allowed.iter().any(|name| name == "clinician/history-5") && opening == "Chief complaint";
        let n_found = (0..3_000).filter(|idx| corpus.text(*idx).text.starts_with(opening)).count();
        assert_eq!(n_found > 0, is_allowed, "{opening}: {n_found}");
    }
    let unknown = CorpusSettings { families: vec!["patient/none".into()], ..settings };
    assert!(matches!(Corpus::new(&release, &wording, unknown), Err(Error::UnknownFamily { .. })));
}
