//! The files a release is read from: compact table, zip, order file; whole, damaged and foreign.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use axismapper::codes::Release;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::codes::{BUILTIN, assert_names_file, code};

/// A zip with the given members.
fn zip_of(path: &Path, members: &[(&str, &str)]) {
    let mut writer = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, text) in members {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
    }
    writer.finish().unwrap();
}

fn temporary(name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    (dir, path)
}

const SMALL: &str = "<ICD10CM.tabular><version>2027</version><chapter><name>1</name><desc>All (A00-B99)</desc>\
    <section id=\"A00-B99\"><desc>All (A00-B99)</desc><diag><name>A00</name><desc>Cholera</desc></diag></section>\
    </chapter></ICD10CM.tabular>";

#[test]
fn the_member_of_a_zip_is_found_by_pattern() {
    let (_dir, path) = temporary("download.zip");
    for (member, name) in [
        ("icd10cm_tabular_2024.xml", "FY2027"),
        ("icd10cm-tabular_-2027.xml", "FY2027"),
        ("Table and Index/icd10c-tabular-April-1-2026.xml", "FY2027 April"),
    ] {
        let noise = ("icd10cm-index-2027.xml", "<ICD10CM.index/>");
        zip_of(&path, &[noise, ("__MACOSX/._icd10cm-tabular.xml", "?"), (member, SMALL), ("tabular.pdf", "?")]);
        let release = Release::load(&path).unwrap();
        assert_eq!((release.name(), release.len()), (name, 1), "{member}");
    }
    zip_of(&path, &[("icd10cm-index-2027.xml", "<ICD10CM.index/>")]);
    assert_names_file(&path, "its members are icd10cm-index-2027.xml");
    zip_of(&path, &[("icd10cm-tabular.xml", &SMALL[..200])]);
    assert_names_file(&path, "is damaged or incomplete: line 1 column ");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 30]).unwrap();
    assert_names_file(&path, "is damaged or incomplete: ");
}

/// The order file made from the built-in release gives the same billable codes by the other road.
#[test]
fn both_roads_give_the_same_codes() {
    let mut lines = String::new();
    for node in BUILTIN.nodes().iter().filter(|node| !BUILTIN.is_billable(node.code)) {
        lines += &order_line(node.code.undotted(), '0', &node.description);
    }
    for billable in BUILTIN.billable() {
        lines += &order_line(billable.code.undotted(), '1', &billable.description);
    }
    let (_dir, path) = temporary("download.zip");
    zip_of(&path, &[("icd10cm-order-addenda-2026.txt", "Add:"), ("icd10cm-order-2026.txt", &lines)]);
    let release = Release::load(&path).unwrap();
    let pairs = |release: &Release| -> Vec<_> {
        release.billable().iter().map(|billable| (billable.code, billable.description.clone())).collect()
    };
    assert!(pairs(&release) == pairs(&BUILTIN));
    assert_eq!(release.name(), "FY2026");
    assert!(!release.has_tree() && release.to_table().is_none());
}

fn order_line(undotted: &str, flag: char, description: &str) -> String {
    let short: String = description.chars().take(60).filter(char::is_ascii).collect();
    format!("00001 {undotted:<7} {flag} {short:<60} {description}\n")
}

#[test]
fn order_files_are_read_by_column() {
    let (_dir, path) = temporary("icd10cm-codes-2027.txt");
    std::fs::write(&path, "A000    Cholera due to X\r\nI10     Hypertension\r\n").unwrap();
    let release = Release::load(&path).unwrap();
    assert_eq!((release.name(), release.len()), ("FY2027", 2));
    assert_eq!(release.description(code("A00.0")), Some("Cholera due to X"));
    std::fs::write(&path, format!("{}{}", order_line("A000", '1', "Cholera"), "00002 A00")).unwrap();
    assert_names_file(&path, "line 2: expected a code and its description, found `00002 A00`");
    std::fs::write(&path, "404: Not Found").unwrap();
    assert_names_file(&path, "is not a set of ICD-10-CM codes: it begins with `404: Not Found`");
    std::fs::write(&path, "").unwrap();
    assert_names_file(&path, "it is empty");
    std::fs::write(&path, [0x1f, 0x8b, 0, 0]).unwrap();
    assert_names_file(&path, "is damaged or incomplete");
    std::fs::write(&path, b"A000    Chol\xe9ra").unwrap();
    assert_names_file(&path, "byte 12 is not UTF-8 text");
}

#[test]
fn a_damaged_table_names_its_line() {
    let (_dir, path) = temporary("x.table");
    let table = BUILTIN.to_table().unwrap();
    let cut = table[..1_000_000].rfind('\n').unwrap();
    std::fs::write(&path, &table[..cut]).unwrap();
    assert_names_file(&path, "it stops before its last line");
    for (from, to, message) in [
        ("\nA00\t", "\nA0\t", "unknown tag `A0`"),
        ("\nA00.1\t", "\nA01.1\t", "`A01.1` stands outside any category"),
        ("\nZ79.4\t", "\nZ7\t", "unknown tag `Z7`"),
        ("\nend\t46881", "\nend\t46882", "expected 46882 entries, found 46881"),
        ("\nc\t2\tC00\tD49\t", "\nc\t2\tC00\t", "does not have the form of an ICD-10-CM code"),
    ] {
        let line = table[..table.find(from).unwrap()].lines().count() + 1;
        std::fs::write(&path, table.replacen(from, to, 1)).unwrap();
        assert_names_file(&path, &format!("line {line}: "));
        assert_names_file(&path, message);
    }
}

/// Whatever a file holds, reading it ends in a release or an error: random bytes after each kind of beginning, and
/// the real thing with a few bytes changed.
#[test]
fn reading_never_panics() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (_dir, path) = temporary("x");
    let starts: [&[u8]; 6] = [b"", b"<ICD10CM.tabular>", b"{\"A00\": ", b"PK\x03\x04", b"\x1f\x8b\x08", b"00001 A00"];
    for start in starts {
        for _ in 0..100 {
            let noise: Vec<u8> = (0..rng.random_range(0..400)).map(|_| rng.random()).collect();
            std::fs::write(&path, [start, &noise].concat()).unwrap();
            let _ = Release::load(&path);
        }
    }
    let table = BUILTIN.to_table().unwrap();
    let tables = [SMALL.as_bytes(), &table.as_bytes()[..20_000], &table.as_bytes()[table.len() - 20_000..]];
    for whole in tables {
        for _ in 0..100 {
            let mut bytes = whole.to_vec();
            for _ in 0..3 {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random_range(b' '..b'~');
            }
            std::fs::write(&path, &bytes).unwrap();
            let _ = Release::load(&path);
        }
    }
}
