//! The built-in code set: its fingerprint, its tree, and the files a release can be read from.

mod check;
mod fetch;
mod files;
mod notes;
mod properties;
mod search;

use std::io::Write as _;
use std::path::Path;
use std::sync::LazyLock;

use axismapper::codes::{Code, Release, SearchIndex};
use axismapper::fsio;

pub const XML_GZ: &str = "assets/icd10cm/icd10cm-tabular-April-1-2026.xml.gz";

pub static BUILTIN: LazyLock<Release> = LazyLock::new(|| Release::builtin().unwrap());

pub static INDEX: LazyLock<SearchIndex<&Release>> = LazyLock::new(|| SearchIndex::of(&*BUILTIN).unwrap());

pub fn code(text: &str) -> Code {
    Code::parse(text).unwrap()
}

fn fingerprint(release: &Release) -> String {
    let lines: String = release.billable().iter().map(|b| format!("{}\t{}\n", b.code, b.description)).collect();
    fsio::sha256_bytes(lines.as_bytes())
}

/// The figures come from a reading of the same XML by another program, in Python, written apart from this one.
#[test]
fn the_built_in_release_is_exact() {
    let release = &*BUILTIN;
    assert_eq!((release.name(), release.len()), ("FY2026 April", 74_719));
    let n_of_len = |len| release.billable().iter().filter(|b| b.code.len() == len).count();
    assert_eq!((n_of_len(3), n_of_len(7)), (214, 51_485));
    assert_eq!(release.nodes().iter().filter(|node| node.has_placeholder).count(), 246);
    assert_eq!(release.nodes().len(), 46_881);
    assert_eq!(fingerprint(release), "1af65454c40386a8c5f0ce1b0f0bc9796a2ff0863b1d6a8813b5df7e2e9d5936");
    assert!(release.billable().is_sorted_by(|a, b| a.code < b.code));
}

/// The committed table says exactly what the committed XML says.
#[test]
fn the_built_in_table_is_the_official_list() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/icd10cm");
    let from_xml = Release::load(&assets.join("icd10cm-tabular-April-1-2026.xml.gz")).unwrap();
    let table = std::fs::read_to_string(assets.join("fy2026-april.table")).unwrap();
    assert!(
        from_xml.to_table().unwrap() == table,
        "write it anew: `axismapper codes build --tabular XML --out assets/icd10cm/fy2026-april.table`"
    );
    assert_eq!(from_xml.to_table(), BUILTIN.to_table());
    assert_eq!(from_xml.billable(), BUILTIN.billable());
    assert_eq!(from_xml.nodes(), BUILTIN.nodes());
}

#[test]
fn well_known_codes_read_as_printed() {
    for (text, description) in [
        ("S82.201A", "Unspecified fracture of shaft of right tibia, initial encounter for closed fracture"),
        (
            "V18.4XXA",
            "Pedal cycle driver injured in noncollision transport accident in traffic accident, initial encounter",
        ),
        ("I10", "Essential (primary) hypertension"),
        ("R54", "Age-related physical debility"),
        ("C4A.0", "Merkel cell carcinoma of lip"),
        ("T36.0X1A", "Poisoning by penicillins, accidental (unintentional), initial encounter"),
    ] {
        assert_eq!(BUILTIN.get(code(text)).map(|b| b.description.as_str()), Some(description), "{text}");
    }
    for header in ["S82.201", "S82.20", "S82", "V18.4", "A00", "C4A", "T36.0X", "T36.0X1"] {
        assert!(!BUILTIN.is_billable(code(header)), "{header}");
        assert!(BUILTIN.description(code(header)).is_some(), "{header}");
        assert!(!BUILTIN.billable_under(code(header)).is_empty(), "{header}");
    }
    for unknown in ["S82.201Z", "V18.4A", "I10.0", "A00.00", "U99", "S06.1X7D", "S06.1X8S", "T36.0XXA"] {
        assert!(!BUILTIN.is_billable(code(unknown)), "{unknown}");
        assert!(BUILTIN.billable_under(code(unknown)).is_empty(), "{unknown}");
    }
}

/// The note under S06 takes D and S from codes of death; without it there are 76 codes too many.
#[test]
fn head_injuries_that_end_in_death_have_only_the_initial_encounter() {
    let under = BUILTIN.billable_under(code("S06"));
    let of_death: Vec<_> = under.iter().filter(|b| matches!(b.code.character(6), Some('7' | '8'))).collect();
    assert_eq!(of_death.len(), 38);
    assert!(of_death.iter().all(|b| b.code.character(7) == Some('A')));
    assert!(BUILTIN.is_billable(code("S06.1X9S")));
}

#[test]
fn the_tree_is_walked_both_ways() {
    let codes_of = |found: Vec<&axismapper::codes::Billable>| -> Vec<String> {
        found.iter().map(|b| b.code.to_string()).collect()
    };
    let above: Vec<String> = BUILTIN.ancestors(code("S82.201A")).map(|node| node.code.to_string()).collect();
    assert_eq!(above, ["S82.201", "S82.20", "S82.2", "S82"]);
    assert_eq!(BUILTIN.ancestors(code("I10")).count(), 0);
    assert_eq!(BUILTIN.parent_of(code("S82.20")).unwrap().code, code("S82.2"));
    assert_eq!(codes_of(BUILTIN.siblings(code("A00.0"))), ["A00.1", "A00.9"]);
    assert_eq!(codes_of(BUILTIN.siblings(code("V18.4XXA"))), ["V18.4XXD", "V18.4XXS"]);
    assert_eq!(BUILTIN.siblings(code("S82.201A")).len(), 15);
    assert!(BUILTIN.siblings(code("I10")).is_empty());
    assert_eq!(BUILTIN.chapter_of(code("S82.201A")).unwrap().number, 19);
    assert_eq!(BUILTIN.chapter_of(code("D3A.00")).unwrap().title, "Neoplasms");
    assert_eq!(BUILTIN.chapters().len(), 22);
    let titles: Vec<&str> = BUILTIN.sections_of(code("C4A.0")).map(|section| section.title.as_str()).collect();
    assert_eq!(titles.last(), Some(&"Melanoma and other malignant neoplasms of skin"), "{titles:?}");
    assert_eq!(titles.len(), 3, "{titles:?}");
    let encounter = BUILTIN.get(code("V18.4XXD")).unwrap().seventh.as_ref().unwrap();
    assert_eq!((encounter.character, &*encounter.text), ('D', "subsequent encounter"));
}

#[test]
fn every_code_is_in_one_chapter_and_one_branch() {
    for billable in BUILTIN.billable() {
        let code = billable.code;
        assert_eq!(Code::parse(&code.to_string()).unwrap(), code);
        assert_eq!(Code::parse_lenient(&code.undotted().to_lowercase()).unwrap(), code);
        assert_eq!(BUILTIN.get(code), Some(billable));
        assert_eq!(BUILTIN.billable_under(code), std::slice::from_ref(billable));
        assert!(BUILTIN.chapter_of(code).is_some(), "{code}");
        assert!(BUILTIN.sections_of(code).next().is_some(), "{code}");
        for len in 3..code.len() {
            assert!(!BUILTIN.is_billable(code.truncated(len)), "{code} and its beginning are both billable");
        }
    }
}

#[test]
fn codes_are_read_strictly_or_leniently() {
    for (text, strict, lenient) in [
        ("I10", Some("I10"), Some("I10")),
        ("S82.201A", Some("S82.201A"), Some("S82.201A")),
        ("C4A.0", Some("C4A.0"), Some("C4A.0")),
        ("QA0.0101", Some("QA0.0101"), Some("QA0.0101")),
        ("S82201A", None, Some("S82.201A")),
        (" s82.201a\n", None, Some("S82.201A")),
        ("i10", None, Some("I10")),
        ("I10.", None, Some("I10")),
        ("I1", None, None),
        ("THE", None, None),
        ("110", None, None),
        ("S82.201AB", None, None),
        ("S8.2201A", None, None),
        ("S82..20", None, None),
        ("S82-20", None, None),
        ("É10", None, None),
        ("I1é", None, None),
        ("", None, None),
    ] {
        let printed = |code: Result<Code, _>| code.ok().map(|code| code.to_string());
        assert_eq!(printed(Code::parse(text)).as_deref(), strict, "strict {text:?}");
        assert_eq!(printed(Code::parse_lenient(text)).as_deref(), lenient, "lenient {text:?}");
    }
    assert_eq!(serde_json::to_string(&code("I10")).unwrap(), r#""I10""#);
    assert!(serde_json::from_str::<Code>(r#""i10""#).is_err());
    assert!(code("A00") < code("A00.0") && code("A00.0") < code("A01"));
}

#[test]
fn a_json_release_holds_what_it_lists() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.json");
    std::fs::write(&path, r#"{"I10": "Hypertension", "A00.1": "Cholera", "A00.0": "Classic cholera"}"#).unwrap();
    let release = Release::load(&path).unwrap();
    assert_eq!((release.name(), release.len()), ("mine", 3));
    assert_eq!(release.description(code("A00.1")), Some("Cholera"));
    assert_eq!(release.siblings(code("A00.1"))[0].code, code("A00.0"));
    assert_eq!(release.billable_under(code("A00")).len(), 2);
    std::fs::write(&path, r#"{"I10": "Hypertension", "A0": "?"}"#).unwrap();
    assert_names_file(&path, "line 1: `A0` does not have the form of an ICD-10-CM code");
    std::fs::write(&path, r#"{"I10": "Hyper"#).unwrap();
    assert_names_file(&path, "is damaged or incomplete: EOF while parsing a string at line 1 column 14");
}

#[test]
fn a_torn_or_foreign_list_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list.xml");
    let xml = fsio::read_text(&Path::new(env!("CARGO_MANIFEST_DIR")).join(XML_GZ)).unwrap();
    std::fs::write(&path, &xml[..5_000_000]).unwrap();
    assert_names_file(&path, "is damaged or incomplete: line ");
    std::fs::write(&path, "<html><body>Not found</body></html>").unwrap();
    assert_names_file(&path, "is not an ICD-10-CM tabular list: its root is `<html>`, not `<ICD10CM.tabular>`");
    std::fs::write(&path, "<ICD10CM.tabular>\n<version>2026</version></ICD10CM.tabular>").unwrap();
    assert_names_file(&path, "it has no codes");
    let broken = xml.replacen("<name>A00.1</name>", "<name>A01.1</name>", 1);
    std::fs::write(&path, broken).unwrap();
    assert_names_file(&path, "`A01.1` cannot stand right below `A00`");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(xml.as_bytes()).unwrap();
    let whole = gz.finish().unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert_names_file(&path, "is damaged or incomplete");
    std::fs::write(&path, whole).unwrap();
    assert_eq!(fingerprint(&Release::load(&path).unwrap()), fingerprint(&BUILTIN));
}

pub fn assert_names_file(path: &Path, expected: &str) {
    use axismapper::diag::Diagnostic as _;
    let error = Release::load(path).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(expected) && message.contains(&*path.to_string_lossy()), "{message}");
    assert!(error.hint().is_some(), "{message} has no hint");
}
