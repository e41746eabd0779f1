//! The codes that a note names: "(S82.-)", "(A00-B99)", "(T36-T50 with fifth or sixth character 1-4)".
//!
//! In: the text of one note. Out: [`Reference`]s, still without knowledge of the code set. A note whose wording this
//! grammar does not cover yields none, and its reader counts it; nothing is guessed.

use super::Code;

/// A code with all below it, or a range of codes, perhaps limited to those with certain characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub first: Code,
    /// Equal to `first` for a single code.
    pub last: Code,
    pub condition: Option<Condition>,
}

/// "with 5th character 9", "with .51-.52", "with final characters -23".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    at: At,
    /// Inclusive ranges of texts of one length each; a single value is a range of itself.
    values: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    /// The characters that start at one of these positions, counted from 1.
    Positions(Vec<usize>),
    /// The last characters before the seventh.
    End,
    /// Words in the text of the seventh character, as "open fracture".
    SeventhText(String),
}

impl Condition {
    /// Whether `code`, which completes `leaf` by the seventh character that means `seventh`, meets the condition.
    pub(super) fn is_met(&self, code: Code, leaf: Code, seventh: Option<&str>) -> bool {
        let within = |text: &str| {
            let is_in = |(low, high): &(String, String)| {
                text.len() >= low.len() && **low <= text[..low.len()] && text[..low.len()] <= **high
            };
            self.values.iter().any(is_in)
        };
        match &self.at {
            At::Positions(positions) => {
                positions.iter().filter_map(|position| code.undotted().get(position - 1..)).any(within)
            }
            At::End => {
                let ends_with = |(low, high): &(String, String)| {
                    leaf.undotted()
                        .len()
                        .checked_sub(low.len())
                        .is_some_and(|start| (low.as_str()..=high.as_str()).contains(&&leaf.undotted()[start..]))
                };
                self.values.iter().any(ends_with)
            }
            At::SeventhText(words) => seventh.is_some_and(|text| text.contains(words.as_str())),
        }
    }
}

/// The codes that a note names, or none when its wording is not understood.
///
/// Codes stand in parentheses, or bare at the end of the note ("conditions classified to Q67.0-Q67.4").
pub(super) fn references_of(note: &str) -> Option<Vec<Reference>> {
    let mut found = Vec::new();
    let mut rest = note;
    while let Some((_, group)) = rest.split_once('(') {
        let (inside, after) = group.split_once(')').unwrap_or((group, ""));
        rest = after;
        if starts_with_code(inside) {
            let mut cursor = Cursor(inside);
            found.extend(cursor.list().filter(|_| cursor.is_at_end())?);
        }
    }
    if found.is_empty() {
        return bare_references(note);
    }
    // "(I05-I09) unless rheumatic fever is also present" depends on what only the record can tell.
    (!rest.contains("unless")).then_some(found)
}

fn bare_references(note: &str) -> Option<Vec<Reference>> {
    let starts = note.char_indices().filter(|&(at, _)| at == 0 || note.as_bytes()[at - 1] == b' ').map(|(at, _)| at);
    let start = starts.into_iter().find(|&at| starts_with_code(&note[at..]))?;
    let mut cursor = Cursor(&note[start..]);
    let list = cursor.list()?;
    (cursor.is_at_end() || cursor.0.starts_with("code to")).then_some(list)
}

fn starts_with_code(text: &str) -> bool {
    Cursor(text).code().is_some()
}

/// What is left of the text to read.
struct Cursor<'a>(&'a str);

impl Cursor<'_> {
    fn is_at_end(&self) -> bool {
        self.0.trim_matches([' ', ',', '.', ';']).is_empty()
    }

    fn skip(&mut self, characters: &[char]) -> bool {
        let rest = self.0.trim_start_matches(characters);
        let skipped = rest.len() < self.0.len();
        self.0 = rest;
        skipped
    }

    fn skip_word(&mut self, word: &str) -> bool {
        let rest = self.0.strip_prefix(word).filter(|rest| !rest.starts_with(char::is_alphanumeric));
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// A code not followed by more of a word, with its dot if there is something after it.
    fn code(&mut self) -> Option<Code> {
        let len_of = |text: &str| text.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let len = len_of(self.0);
        let tail = self.0.get(len..)?.strip_prefix('.').map_or(0, len_of);
        let text = if tail > 0 { self.0.get(..len + 1 + tail)? } else { self.0.get(..len)? };
        let code = Code::parse(text).ok()?;
        self.0 = &self.0[text.len()..];
        Some(code)
    }

    /// Codes and ranges with commas or "and" between them, and the condition that holds for all of them.
    fn list(&mut self) -> Option<Vec<Reference>> {
        let mut list: Vec<Reference> = Vec::new();
        loop {
            let first = self.code()?;
            let dashed = self.0.trim_start_matches([' ', '.']).starts_with(['-', '–']);
            self.skip(&[' ', '.', '-', '–']);
            let is_range = self.skip_word("to") || dashed;
            self.skip(&[' ']);
            let last = if is_range && starts_with_code(self.0) { self.code()? } else { first };
            list.push(Reference { first, last, condition: None });
            self.skip(&[' ', '.', '-', '–', ',', ';']);
            while self.skip_word("and") || self.skip_word("or") {
                self.skip(&[' ']);
            }
            if self.skip_word("with") {
                let condition = condition(self.0.trim_start())?;
                self.0 = "";
                list.iter_mut().for_each(|reference| reference.condition = Some(condition.clone()));
            }
            if !starts_with_code(self.0) {
                return Some(list);
            }
        }
    }
}

/// Reads what follows "with".
fn condition(text: &str) -> Option<Condition> {
    if text.starts_with('.') {
        // After the dot is from the fourth character on.
        return Some(Condition { at: At::Positions(vec![4]), values: values(text)? });
    }
    if let Some(words) = text.strip_suffix("7th character").filter(|words| !words.is_empty()) {
        return Some(Condition { at: At::SeventhText(words.trim().to_owned()), values: Vec::new() });
    }
    let (ordinals, list) = text.split_once("character")?;
    let values = values(list.strip_prefix('s').unwrap_or(list))?;
    let mut positions = Vec::new();
    for word in ordinals.split([' ', '-']).filter(|word| !word.is_empty()) {
        positions.push(match word {
            "or" => continue,
            // "fifth to sixth characters 51": the text starts at the first of them.
            "to" => break,
            "final" => return Some(Condition { at: At::End, values }),
            "4th" | "fourth" => 4,
            "5th" | "fifth" => 5,
            "6th" | "sixth" | "six" => 6,
            "7th" | "seventh" => 7,
            _ => return None,
        });
    }
    (!positions.is_empty()).then_some(Condition { at: At::Positions(positions), values })
}

/// "1-4 or 6", ".51-.52", "B or C", "-23".
fn values(text: &str) -> Option<Vec<(String, String)>> {
    let is_value =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    let mut values = Vec::new();
    for word in text.split([' ', ',']) {
        let word = word.trim_matches(['.', '-']);
        if ["", "or", "and"].contains(&word) {
            continue;
        }
        let (low, high) = word.split_once('-').unwrap_or((word, word));
        let high = high.trim_start_matches('.');
        if !is_value(low) || !is_value(high) || low.len() != high.len() {
            return None;
        }
        values.push((low.to_owned(), high.to_owned()));
    }
    (!values.is_empty()).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prints references compactly: `S06.1..S06.6, E08..E13 [4: 44]`.
    fn read(note: &str) -> String {
        let print = |reference: &Reference| {
            let mut text = reference.first.to_string();
            if reference.last != reference.first {
                text += &format!("..{}", reference.last);
            }
            if let Some(Condition { at, values }) = &reference.condition {
                let values: Vec<String> = values
                    .iter()
                    .map(|(low, high)| if low == high { low.clone() } else { format!("{low}-{high}") })
                    .collect();
                text += &format!(" [{at:?} {}]", values.join("|"));
            }
            text
        };
        references_of(note).map_or("-".into(), |list| list.iter().map(print).collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn the_forms_found_in_the_list_are_read() {
        for (note, expected) in [
            ("bacterial foodborne intoxications, NEC (A05.-)", "A05"),
            ("Escherichia coli infection (A04.0-A04.4)", "A04.0..A04.4"),
            ("meningitis (G00-G03, G04.2 and G05.-)", "G00..G03, G04.2, G05"),
            ("Klinefelter's syndrome (Q98.0-Q98.1, Q98.4)", "Q98.0..Q98.1, Q98.4"),
            ("skin of ear (C43.2-,C44.2-)", "C43.2, C44.2"),
            ("benign neoplasm of testis (D29.2.-)", "D29.2"),
            ("eating disorders (F98.2.-F98.3)", "F98.2..F98.3"),
            ("rheumatic fever with heart involvement (I01.0 -I01.9)", "I01.0..I01.9"),
            (
                "sequelae (I69.01-I69.11-, I69.21-I69.31-, I69.81- I69.91-)",
                "I69.01..I69.11, I69.21..I69.31, I69.81..I69.91",
            ),
            ("apnea of newborn (P28.3- - P28.4-)", "P28.3..P28.4"),
            ("fracture (S32.1--S32.9 with 7th character B)", "S32.1..S32.9 [Positions([7]) B]"),
            ("injury (S06.1- to S06.6-)", "S06.1..S06.6"),
            ("adverse effects (A00-R94 and T80-T88.6, T88.8)", "A00..R94, T80..T88.6, T88.8"),
            ("abscess with Crohn's disease (K50.014, K50.914,)", "K50.014, K50.914"),
            ("collision (V01-V09 with 5th character 9)", "V01..V09 [Positions([5]) 9]"),
            ("poisoning (T36-T65 with fifth or sixth character 1-4 or 6)", "T36..T65 [Positions([5, 6]) 1-4|6]"),
            ("hallucinations (F11-F19 with fifth to sixth characters 51)", "F11..F19 [Positions([5]) 51]"),
            ("amnestic syndrome (F10-F19 with 5th character .6)", "F10..F19 [Positions([5]) 6]"),
            ("angiopathy (E08-E13 with .51-.52)", "E08..E13 [Positions([4]) 51-52]"),
            ("dementia (F10, F13 with .26, .96)", "F10 [Positions([4]) 26|96], F13 [Positions([4]) 26|96]"),
            ("whooping cough (A37 with fifth-character 1)", "A37 [Positions([5]) 1]"),
            ("aphasia (I69. with final characters -20)", "I69 [End 20]"),
            ("concussion (S06.0X- with seventh character A)", "S06.0X [Positions([7]) A]"),
            ("open fracture (S52.- with open fracture 7th character)", "S52 [SeventhText(\"open fracture\") ]"),
            ("G6PD (glucose (G6PD)) deficiency (D75.A)", "D75.A"),
            ("pleural effusion (J91.0))", "J91.0"),
            ("congenital (sternomastoid) torticollis Q68.0", "Q68.0"),
            ("conditions classified to Q67.0-Q67.4", "Q67.0..Q67.4"),
            ("leukemia in remission C91.0-C95.9 with 5th character 1", "C91.0..C95.9 [Positions([5]) 1]"),
            ("conditions classifiable to S06.0- to S06.8-code to specified intracranial injury", "S06.0..S06.8"),
            ("specified in S06.1- to S06.6-, and S06.81- to S06.89-, code to it", "S06.1..S06.6, S06.81..S06.89"),
            ("diabetic acidosis - see categories E08-E10, E11, E13 with ketoacidosis", "-"),
            ("rheumatic disease (I05-I09) unless rheumatic fever is also present", "-"),
            ("toxic effect (T51-T65 with fifth or sixth character to indicate intent)", "-"),
            ("current injury - see Alphabetical Index", "-"),
            ("meningitis (in):", "-"),
        ] {
            assert_eq!(read(note), expected, "{note}");
        }
    }

    #[test]
    fn conditions_look_at_the_right_characters() {
        let met = |note: &str, code: &str, leaf: &str, seventh: Option<&str>| {
            let list = references_of(note).unwrap();
            let (code, leaf) = (Code::parse(code).unwrap(), Code::parse(leaf).unwrap());
            list[0].condition.as_ref().unwrap().is_met(code, leaf, seventh)
        };
        let poisoning = "(T36-T65 with fifth or sixth character 1-4)";
        assert!(met(poisoning, "T36.0X1A", "T36.0X1", None));
        assert!(!met(poisoning, "T36.0X5A", "T36.0X5", None));
        assert!(met("(E08-E13 with .51-.52)", "E11.52", "E11.52", None));
        assert!(!met("(E08-E13 with .51-.52)", "E11.5", "E11.5", None));
        assert!(met("(E08-E13 with .62-)", "E11.621", "E11.621", None));
        assert!(met("(I69. with final characters -20)", "I69.320", "I69.320", None));
        assert!(!met("(I69. with final characters -20)", "I69.220A", "I69.22", None));
        assert!(met("(T36-T50 with final character 6)", "T36.0X6A", "T36.0X6", None));
        let open = "(S52.- with open fracture 7th character)";
        assert!(met(open, "S52.001B", "S52.001", Some("initial encounter for open fracture type I or II")));
        assert!(!met(open, "S52.001A", "S52.001", Some("initial encounter for closed fracture")));
    }
}
