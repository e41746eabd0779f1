//! Properties over random input: nothing panics, and what is printed is read back.

use axismapper::codes::{Code, Release, Status, check};
use proptest::prelude::*;

use crate::codes::{BUILTIN, INDEX};

const SMALL: &str = "<ICD10CM.tabular><version>2027</version><chapter><name>1</name><desc>All (A00-B99)</desc>\
    <section id=\"A00-B99\"><desc>All (A00-B99)</desc><diag><name>A00</name><desc>Cholera</desc><excludes1><note>other \
    (A01.-)</note></excludes1><sevenChrDef><extension char=\"A\">initial</extension></sevenChrDef></diag></section>\
    </chapter></ICD10CM.tabular>";

/// A billable code, any of them.
fn billable() -> impl Strategy<Value = &'static axismapper::codes::Billable> {
    (0..BUILTIN.len()).prop_map(|idx| &BUILTIN.billable()[idx])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reading_any_bytes_ends_in_a_release_or_an_error(
        start in prop::sample::select(vec!["", "<", "{", "PK\u{3}\u{4}", "icd10cm-table 1\t", "00001 A00    0 "]),
        noise in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [start.as_bytes(), &noise].concat()).unwrap();
        let _ = Release::load(file.path());
    }

    #[test]
    fn a_list_with_bytes_changed_ends_in_a_release_or_an_error(
        changes in prop::collection::vec((0..SMALL.len(), b' '..b'~'), 1..6),
        cut in 0..SMALL.len(),
    ) {
        let mut bytes = SMALL.as_bytes().to_vec();
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in [&bytes[..], &bytes[..cut], &SMALL.as_bytes()[..cut]] {
            std::fs::write(file.path(), text).unwrap();
            if let Ok(release) = Release::load(file.path()) {
                prop_assert!(release.billable().is_sorted_by(|a, b| a.code < b.code));
            }
        }
    }

    #[test]
    fn any_text_is_a_code_that_prints_as_it_was_read_or_none(text in "[ A-Za-z0-9.é]{0,10}") {
        if let Ok(code) = Code::parse_lenient(&text) {
            prop_assert_eq!(Code::parse(&code.to_string()).unwrap(), code);
            prop_assert_eq!(Code::parse_lenient(&code.undotted().to_lowercase()).unwrap(), code);
            prop_assert!((3..=7).contains(&code.len()));
        }
    }

    /// A slip in a code is never taken for billable by mistake, and what is offered in its place is billable.
    #[test]
    fn codes_with_a_slip_are_answered_with_billable_ones(found in billable(), at in 0..7usize, by in "[0-9A-Z]") {
        let mut text = found.code.undotted().to_owned();
        let at = at % text.len();
        text.replace_range(at..=at, &by);
        let check = check(&BUILTIN, &[&text]);
        let code = Code::parse_lenient(&text).ok();
        let is_listed = code.is_some_and(|code| BUILTIN.billable().iter().any(|other| other.code == code));
        prop_assert_eq!(matches!(check.codes[0].status, Status::Billable { .. }), is_listed);
        if let Status::Unknown { nearest: offered, .. } | Status::NotBillable { below: offered, .. } = &check.codes[0].status {
            prop_assert!(offered.iter().all(|offer| BUILTIN.is_billable(offer.code)));
        }
    }

    #[test]
    fn sets_of_any_codes_are_judged_alike_in_any_order(a in billable(), b in billable(), noise in ".{0,12}") {
        let excluded = BUILTIN.excludes1(a.code, b.code).map(|found| found.note);
        prop_assert_eq!(excluded, BUILTIN.excludes1(b.code, a.code).map(|found| found.note));
        let texts = [a.code.to_string(), noise, b.code.to_string()];
        let _ = check(&BUILTIN, &texts.each_ref().map(String::as_str));
    }

    #[test]
    fn any_question_gets_billable_codes_in_order(text in "(\\PC{0,30})|([a-z]{1,9}( [a-z]{1,9}){0,4})", limit in 0..40usize) {
        let hits = INDEX.search(&text, limit).unwrap();
        prop_assert!(hits.len() <= limit);
        prop_assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
        prop_assert!(hits.iter().all(|hit| BUILTIN.is_billable(hit.code)));
    }
}
