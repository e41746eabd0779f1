//! Excludes1 notes: inheritance, ranges, conditions, and notes that name codes below their own place.

use axismapper::codes::Release;

use crate::codes::{BUILTIN, code};

/// `HOLDER: NOTE` of the exclusion between two codes, the same in both orders, or nothing.
fn exclusion(release: &Release, a: &str, b: &str) -> Option<String> {
    let found = release.excludes1(code(a), code(b));
    let swapped = release.excludes1(code(b), code(a));
    assert_eq!(found, swapped, "{a} and {b} in the other order");
    assert!(
        found.is_none_or(|e| [e.code, e.excluded] == [code(a), code(b)] || [e.code, e.excluded] == [code(b), code(a)])
    );
    found.map(|exclusion| format!("{}: {}", exclusion.holder, exclusion.note))
}

#[test]
fn notes_of_the_release_keep_codes_apart() {
    for (a, b, expected) in [
        // Under the category of the first, or of the second.
        ("E11.9", "E10.9", "E10: type 2 diabetes mellitus (E11.-)"),
        (
            "O13.1",
            "I10",
            "I10: hypertensive disease complicating pregnancy, childbirth and the puerperium (O10-O11, O13-O16)",
        ),
        // At the head of a section, a chapter.
        ("B17.8", "B94.2", "section B15-B19: sequelae of viral hepatitis (B94.2)"),
        ("O80", "Z34.00", "chapter 15: supervision of normal pregnancy (Z34.-)"),
        ("J45.20", "J68.0", "section J40-J4A: bronchitis due to chemicals, gases, fumes and vapors (J68.0)"),
        // A section that holds other sections.
        ("V18.4XXA", "X82.8XXA", "section V00-V99: intentional self-harm by crashing of motor vehicle (X82)"),
        // Ranges, and conditions on characters, the seventh among them.
        ("W01.0XXA", "V18.4XXA", "section W00-W19: fall (in) (from) transport vehicle (V01-V99)"),
        ("S01.02XA", "S02.0XXB", "S01: open skull fracture (S02.- with 7th character B)"),
    ] {
        assert_eq!(exclusion(&BUILTIN, a, b).as_deref(), Some(expected), "{a} and {b}");
    }
    for (a, b) in [
        ("S82.201A", "V18.4XXA"),
        ("I10", "E11.9"),
        ("E11.9", "E11.65"),
        ("S01.02XA", "S02.0XXA"),
        ("A00.0", "A00.1"),
        ("I10", "I10"),
        ("I10", "Z99.999"),
    ] {
        assert_eq!(exclusion(&BUILTIN, a, b), None, "{a} and {b}");
    }
}

/// No code is kept from itself, and siblings are kept apart only where a note says so in so many words.
#[test]
fn notes_do_not_turn_on_their_own_branch() {
    for billable in BUILTIN.billable() {
        assert_eq!(BUILTIN.excludes1(billable.code, billable.code), None, "{}", billable.code);
    }
    let siblings = BUILTIN.billable().windows(2).filter(|pair| {
        BUILTIN.parent_of(pair[0].code).is_some()
            && BUILTIN.parent_of(pair[0].code).map(|p| p.code) == BUILTIN.parent_of(pair[1].code).map(|p| p.code)
    });
    let (n_siblings, n_apart) = siblings.fold((0, 0), |(all, apart), pair| {
        (all + 1, apart + usize::from(BUILTIN.excludes1(pair[0].code, pair[1].code).is_some()))
    });
    assert!(n_siblings > 50_000 && n_apart < n_siblings / 50, "{n_apart} of {n_siblings} neighbouring siblings");
    assert!(n_apart > 0);
}

#[test]
fn what_is_not_understood_is_listed() {
    let unparsed = BUILTIN.unparsed_notes();
    let n_of = |kind: &str| unparsed.iter().filter(|unparsed| unparsed.kind == kind).count();
    assert_eq!((n_of("excludes1"), n_of("code_first")), (76, 78));
    let has = |text: &str| unparsed.iter().any(|unparsed| unparsed.note.starts_with(text));
    assert!(has("certain localized infections - see body system-related chapters"));
    assert!(has("chronic diseases of rheumatic origin (I05-I09) unless"));
    assert!(!has("meningitis (in):"));
}

/// Notes that name their own place, a part of it, all of it, more than it, or single codes with a seventh character.
#[test]
fn a_note_about_its_own_branch_parts_only_what_it_names() {
    let category = |code: &str, notes: &[&str]| {
        let excludes: String = notes.iter().map(|note| format!("<note>{note}</note>")).collect();
        let diag = |code: &str, inside: &str| format!("<diag><name>{code}</name><desc>d</desc>{inside}</diag>");
        let leaves: String = (0..4).map(|n| diag(&format!("{code}.{n}"), "")).collect();
        diag(code, &format!("<excludes1>{excludes}</excludes1>{leaves}"))
    };
    let injury = "<diag><name>S00</name><desc>injury</desc><sevenChrDef><extension char=\"A\">first</extension>\
                  <extension char=\"S\">sequela</extension></sevenChrDef></diag>";
    let xml = format!(
        "<ICD10CM.tabular><version>1</version><chapter><name>1</name><desc>All (A00-S99)</desc>\
         <section id=\"A00-S99\"><desc>All (A00-S99)</desc>{}{}{}{}{}{injury}</section></chapter></ICD10CM.tabular>",
        category("A00", &["a part (A00.1-A00.2)"]),
        category("B00", &["itself (B00.-)"]),
        category("C00", &["it and more (A00-C99)"]),
        category("D00", &["some of it and more (C00.0-D00.1)"]),
        category("E00", &["late effect (S00.XXXS)", "not there (F00.0)"]),
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.xml");
    std::fs::write(&path, xml).unwrap();
    let release = Release::load(&path).unwrap();
    let apart = |a: &str, b: &str| exclusion(&release, a, b).is_some();
    // A part: it is kept from the rest, and neither side from itself.
    assert!(apart("A00.0", "A00.1") && apart("A00.2", "A00.3"));
    assert!(!apart("A00.1", "A00.2") && !apart("A00.0", "A00.3"));
    // All of it: nothing can be meant.
    assert!(!apart("B00.0", "B00.1"));
    // More than it: the rest of the range is meant.
    assert!(apart("C00.0", "A00.0") && apart("C00.1", "B00.3"));
    assert!(!apart("C00.0", "C00.1"));
    // Overlapping: what is named is kept from the rest of the branch, and from nothing else.
    assert!(apart("D00.2", "C00.3") && apart("D00.2", "D00.1"));
    assert!(!apart("D00.0", "D00.1") && !apart("D00.0", "C00.3"));
    // One seventh character; a code that is not in the list is reported.
    assert!(apart("E00.0", "S00.XXXS") && !apart("E00.0", "S00.XXXA"));
    let unparsed: Vec<&str> = release.unparsed_notes().iter().map(|unparsed| unparsed.note.as_str()).collect();
    assert_eq!(unparsed, ["not there (F00.0)"]);
}
