//! Phrases for a diagnosis that mean one code only.
//!
//! In: the descriptions and inclusion terms of a release, and a table of everyday names. Out: for each leaf of the list
//! the phrases that name it and no other leaf. A phrase that two leaves could claim is given to neither (an official
//! description wins over a derived one), so that a label always follows from its text.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use super::table::rows;
use crate::codes::{Code, Text};

/// The everyday names and default terms of common codes.
const TERMS: &str = include_str!("terms.tsv");

/// The phrases of one leaf.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeafForms {
    /// From the official description: itself, and with what says nothing left out.
    pub(crate) described: Vec<String>,
    /// Inclusion terms of the tabular list.
    pub(crate) included: Vec<String>,
    /// Everyday names.
    pub(crate) everyday: Vec<String>,
    /// Whether the description names a side, and the same with the other side is another leaf.
    pub(crate) has_side: bool,
}

/// What a leaf of the tabular list says of itself.
pub(crate) struct Leaf<'a> {
    pub(crate) code: Code,
    pub(crate) description: &'a str,
    pub(crate) inclusion_terms: &'a [Text],
}

/// The phrases of all leaves.
pub(crate) struct Forms {
    leaves: HashMap<Code, LeafForms>,
    /// Who a bag of words belongs to; `None` when several leaves claim it.
    owners: HashMap<u64, Option<Code>>,
}

impl Forms {
    pub(crate) fn new<'a>(leaves: impl Iterator<Item = Leaf<'a>>) -> Self {
        let everyday = everyday_names();
        let mut all: Vec<(Code, LeafForms)> = leaves
            .map(|leaf| {
                let mut forms = LeafForms { described: described(leaf.description), ..LeafForms::default() };
                forms.included = leaf.inclusion_terms.iter().filter_map(|term| inclusion_term(term)).collect();
                let names = everyday.exact.get(leaf.code.to_string().as_str()).into_iter().flatten();
                forms.everyday = names.map(|name| (*name).to_owned()).collect();
                let code = leaf.code.to_string();
                if let Some(names) = everyday.sided.get(&code[..code.len() - 1])
                    && let Some(side) = side_word(leaf.description)
                {
                    forms.everyday.extend(names.iter().map(|name| name.replace('@', side)));
                }
                (leaf.code, forms)
            })
            .collect();
        let owners = owners(&all);
        let mirrored =
            |description: &str| swapped_sides(description).is_some_and(|other| owners.contains_key(&bag(&other)));
        for (code, forms) in &mut all {
            forms.has_side = forms.described.first().is_some_and(|description| mirrored(description));
            let is_own = |form: &String| owners.get(&bag(form)) == Some(&Some(*code));
            forms.described.retain(is_own);
            prefer_plain(&mut forms.described);
            forms.included.retain(is_own);
            forms.everyday.retain(is_own);
        }
        Self { leaves: all.into_iter().collect(), owners }
    }

    /// The phrases of a leaf; `None` when none is its own.
    pub(crate) fn of(&self, leaf: Code) -> Option<&LeafForms> {
        let forms = self.leaves.get(&leaf)?;
        let is_empty = forms.described.is_empty() && forms.included.is_empty() && forms.everyday.is_empty();
        (!is_empty).then_some(forms)
    }

    /// Whether `phrase` is wording of a leaf other than `leaf`.
    pub(crate) fn means_another(&self, phrase: &str, leaf: Code) -> bool {
        self.owners.get(&bag(phrase)).is_some_and(|owner| *owner != Some(leaf))
    }
}

/// The hash of the words of `text` in no order, without those that carry no meaning. A word that turns the meaning of
/// the next one ("with", "without", "no", "not") stays with it.
pub(crate) fn bag(text: &str) -> u64 {
    let lower = text.to_lowercase().replace("w/o ", "without ").replace("w/ ", "with ");
    let mut words: Vec<String> = Vec::with_capacity(16);
    let mut turn = "";
    for word in lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        match word {
            "of" | "the" | "a" | "an" => {}
            "with" | "without" | "no" | "not" => turn = word,
            _ => words.push(format!("{}{word}", std::mem::take(&mut turn))),
        }
    }
    words.sort_unstable();
    xxh3_64(words.join(" ").as_bytes())
}

/// Lower case, but for short forms (`HIV`) and words with a digit (`C1`).
pub(crate) fn lower_case(text: &str) -> String {
    let keep = |word: &str| {
        let letters = word.chars().filter(|c| c.is_alphabetic());
        word.chars().filter(|c| c.is_uppercase()).count() > 1 && letters.clone().all(char::is_uppercase)
            || word.chars().any(|c| c.is_ascii_digit())
    };
    text.split(' ')
        .map(|word| if keep(word) { word.to_owned() } else { word.to_lowercase() })
        .collect::<Vec<_>>()
        .join(" ")
}

/// `text` without its round and square brackets and what they hold.
pub(crate) fn without_brackets(text: &str) -> String {
    let mut depth = 0_u32;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    tidy(&out)
}

struct Everyday {
    exact: HashMap<&'static str, Vec<&'static str>>,
    sided: HashMap<&'static str, Vec<&'static str>>,
}

fn everyday_names() -> Everyday {
    let mut names = Everyday { exact: HashMap::new(), sided: HashMap::new() };
    for (key, columns) in rows(TERMS) {
        match key.strip_suffix('-') {
            Some(stem) => names.sided.insert(stem, columns.concat()),
            None => names.exact.insert(key, columns.concat()),
        };
    }
    names
}

/// The side that a description means, with a space after it; empty when it is unspecified.
fn side_word(description: &str) -> Option<&'static str> {
    let text = description.to_lowercase();
    let has = |word| text.split(|c: char| !c.is_alphabetic()).any(|other| other == word);
    match (has("right"), has("left"), has("bilateral")) {
        (true, false, false) => Some("right "),
        (false, true, false) => Some("left "),
        (false, false, true) => Some("bilateral "),
        (false, false, false) if has("unspecified") => Some(""),
        _ => None,
    }
}

/// The same words about the other side, when there is exactly one word for a side.
fn swapped_sides(text: &str) -> Option<String> {
    let is_side = |word: &str| matches!(word.trim_matches(','), "right" | "left");
    if text.split(' ').filter(|word| is_side(word)).count() != 1 {
        return None;
    }
    let swap = |word: &str| match word.trim_matches(',') {
        "right" => word.replace("right", "left"),
        "left" => word.replace("left", "right"),
        _ => word.to_owned(),
    };
    Some(text.split(' ').map(swap).collect::<Vec<_>>().join(" "))
}

/// Who owns each bag of words: the leaf whose description it is, else the only leaf that derives it.
fn owners(leaves: &[(Code, LeafForms)]) -> HashMap<u64, Option<Code>> {
    let mut owners: HashMap<u64, Option<Code>> = HashMap::with_capacity(2 * leaves.len());
    let mut claim = |bag: u64, code: Code| {
        let owner = owners.entry(bag).or_insert(Some(code));
        if *owner != Some(code) {
            *owner = None;
        }
    };
    for (code, forms) in leaves {
        if let Some(description) = forms.described.first() {
            claim(bag(description), *code);
        }
    }
    let descriptions: HashMap<u64, Option<Code>> = owners.clone();
    for (code, forms) in leaves {
        for form in forms.described.iter().skip(1).chain(&forms.included).chain(&forms.everyday) {
            let bag = bag(form);
            if descriptions.contains_key(&bag) {
                continue;
            }
            let owner = owners.entry(bag).or_insert(Some(*code));
            if *owner != Some(*code) {
                *owner = None;
            }
        }
    }
    owners
}

/// The description itself, then its equivalents, without repetition.
fn described(description: &str) -> Vec<String> {
    let full = lower_case(description);
    let mut forms = vec![tidy(&full)];
    let mut add = |form: String| {
        if form.len() > 3 && !forms.contains(&form) {
            forms.push(form);
        }
    };
    for text in [without_brackets(&full), unwrapped(&full)] {
        let specified = without_unspecified(&text);
        let plain = ["uncomplicated", "without complications", "without complication"]
            .iter()
            .find_map(|words| specified.strip_suffix(words))
            .map(|text| text.trim_end_matches([' ', ',']).to_owned());
        add(text);
        add(specified);
        plain.into_iter().for_each(&mut add);
    }
    forms
}

/// Keeps the forms with synonyms in square brackets only for want of others, and makes those that still say
/// "unspecified" rare: people leave it out.
fn prefer_plain(forms: &mut Vec<String>) {
    let is_plain = |form: &String| !form.contains(['[', '(']);
    if forms.iter().any(is_plain) {
        forms.retain(is_plain);
    }
    let omitting: Vec<String> = forms.iter().filter(|form| !form.contains("unspecified")).cloned().collect();
    if omitting.len() < forms.len() {
        forms.extend(omitting.iter().cloned());
        forms.extend(omitting);
    }
}

/// `text` without what only says that nothing is said: "unspecified", "not elsewhere classified".
fn without_unspecified(text: &str) -> String {
    let mut text = text.replace(", not elsewhere classified", "").replace(", not otherwise specified", "");
    // ", unspecified organism" goes up to the next comma, when it is short.
    while let Some(at) = text.find(", unspecified") {
        let rest = &text[at + 2..];
        let part = rest.split(',').next().unwrap_or(rest);
        if part.split(' ').count() > 3 {
            break;
        }
        text.replace_range(at..at + 2 + part.len(), "");
    }
    for part in ["part", "site", "ligament", "muscle", "level", "type", "area", "region", "degree"] {
        text = text.replace(&format!(" of unspecified {part} of "), " of ");
    }
    text = text.replace(" of unspecified site", "");
    tidy(&text.replace("unspecified ", ""))
}

/// `text` with its round brackets taken off when each holds one word: "(acute) exacerbation"; else without brackets.
fn unwrapped(text: &str) -> String {
    let is_simple =
        text.split('(').skip(1).all(|rest| rest.split(')').next().is_some_and(|inside| !inside.contains(' ')));
    if !is_simple || text.contains('[') || text.contains("(s)") || text.matches('(').count() > 1 {
        return without_brackets(text);
    }
    tidy(&text.replace(['(', ')'], ""))
}

/// An inclusion term as a phrase; `None` when it refers elsewhere.
fn inclusion_term(term: &str) -> Option<String> {
    let is_reference = |word: &str| {
        let mut chars = word.chars();
        chars.next().is_some_and(|c| c.is_ascii_uppercase())
            && chars.next().is_some_and(|c| c.is_ascii_digit())
            && chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
    };
    let words = |text: &str| text.split(|c: char| !c.is_alphanumeric()).any(is_reference);
    if term.contains([':', '[', ';']) || words(term) || term.len() > 120 || term.len() < 4 {
        return None;
    }
    let text = term.replace(" NOS", "").replace(" NEC", "");
    let text = without_unspecified(&without_brackets(&lower_case(&text)));
    (text.len() > 3).then_some(text)
}

/// Single spaces, none before a comma, no comma at an end.
fn tidy(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ,", ",").replace(",,", ",");
    text.trim_matches([' ', ',']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms_of(leaves: &[(&str, &str, &[&str])]) -> Forms {
        let terms: Vec<Vec<Text>> = leaves
            .iter()
            .map(|(_, _, terms)| terms.iter().map(|term| Text::from((*term).to_owned())).collect())
            .collect();
        Forms::new(leaves.iter().zip(&terms).map(|((code, description, _), terms)| Leaf {
            code: Code::parse(code).unwrap(),
            description,
            inclusion_terms: terms,
        }))
    }

    #[test]
    fn what_says_nothing_may_be_left_out() {
        assert_eq!(
            described("Unspecified fracture of shaft of unspecified tibia"),
            ["unspecified fracture of shaft of unspecified tibia", "fracture of shaft of tibia"]
        );
        assert!(described("Mild intermittent asthma, uncomplicated").contains(&"mild intermittent asthma".to_owned()));
        assert!(described("Pneumonia, unspecified organism").contains(&"pneumonia".to_owned()));
        assert!(
            described("Sprain of unspecified ligament of right ankle").contains(&"sprain of right ankle".to_owned())
        );
        assert!(described("Asthma with (acute) exacerbation").contains(&"asthma with acute exacerbation".to_owned()));
        assert!(
            described("Corrosion of unspecified degree of unspecified palm").contains(&"corrosion of palm".to_owned())
        );
        assert!(described("Other asthma").iter().all(|form| form.contains("other")));
    }

    #[test]
    fn a_phrase_that_two_leaves_claim_is_given_to_neither() {
        let forms = forms_of(&[
            ("Q00.0", "Rash (red)", &["Spots NOS"]),
            ("Q00.1", "Rash (blue)", &["Spots"]),
            ("Q00.2", "Fever", &[]),
            ("Q00.8", "Heat", &["Fever"]),
        ]);
        let of = |code: &str| forms.of(Code::parse(code).unwrap()).unwrap();
        assert_eq!(of("Q00.0").described, ["rash red"]);
        assert!(of("Q00.0").included.is_empty() && of("Q00.1").included.is_empty());
        assert_eq!(of("Q00.2").described, ["fever"]);
        assert!(of("Q00.8").included.is_empty());
        assert!(forms.means_another("fever", Code::parse("Q00.8").unwrap()));
    }

    #[test]
    fn a_side_is_one_only_when_its_mirror_exists() {
        let forms = forms_of(&[
            ("Q00.0", "Pain in right ear", &[]),
            ("Q00.1", "Pain in left ear", &[]),
            ("Q00.2", "Right heart failure", &[]),
        ]);
        let has_side = |code: &str| forms.of(Code::parse(code).unwrap()).unwrap().has_side;
        assert!(has_side("Q00.0") && has_side("Q00.1") && !has_side("Q00.2"));
    }
}
