//! What a language model is asked: one text for given codes, anchored on what the tabular list says of each.

use serde_json::{Value, json};

use crate::codes::{Code, Node, Release, Text};
use crate::data::generate::template::Assignment;
use crate::data::wording::Register;
use crate::text::Message;

/// Inclusion terms and neighbours shown for one code.
const MAX_TERMS: usize = 6;
const MAX_NEIGHBOURS: usize = 6;

const SYSTEM: &str = "You write short, realistic texts from which a medical coder assigns ICD-10-CM codes. \
    You answer with one JSON object that has the fields `scenario` (the text) and `codes` (the codes it was written for).";

/// The conversation that asks for the text of an assignment.
pub(super) fn messages(release: &Release, assignment: &Assignment) -> Vec<Message> {
    let mut text =
        format!("Write one to three sentences about a {}, {}.\n", assignment.who, voice(assignment.register));
    text.push_str("A coder must arrive at exactly these codes, in this order, and at no other:\n");
    for code in &assignment.codes {
        describe(release, *code, &mut text);
    }
    text.push_str(
        "Rules: say every detail that tells these codes from their neighbours (side, severity, which visit it is, how it \
         happened), in everyday words where they are as exact. Name no further condition, injury or cause. Write no code \
         and no number of a code. Do not copy a description word for word.\n",
    );
    let codes: Vec<String> = assignment.codes.iter().map(Code::to_string).collect();
    text.push_str(&format!("In `codes` return exactly {}.", codes.join(", ")));
    vec![Message::system(SYSTEM), Message::user(text)]
}

/// The JSON schema of an answer.
pub(super) fn schema(codes: &[Code]) -> Value {
    let codes: Vec<String> = codes.iter().map(Code::to_string).collect();
    json!({
        "type": "object",
        "properties": {
            "scenario": {"type": "string"},
            "codes": {"type": "array", "items": {"type": "string", "enum": codes}},
        },
        "required": ["scenario", "codes"],
        "additionalProperties": false,
    })
}

fn voice(register: Register) -> &'static str {
    match register {
        Register::Clinician => "as a clinician writes in a note",
        Register::Patient => "in the patient's own words, first person, without medical terms where people avoid them",
        Register::Triage => "as a hurried triage note in telegram style with usual abbreviations",
    }
}

fn describe(release: &Release, code: Code, text: &mut String) {
    let description = release.description(code).unwrap_or_default();
    text.push_str(&format!("- {code}: {description}\n"));
    let node = release.get(code).and_then(|billable| billable.node).map(|id| release.node_at(id));
    let terms: Vec<&str> = node
        .into_iter()
        .chain(release.ancestors(code))
        .flat_map(|node| node.inclusion_terms.iter().map(Text::as_str))
        .filter(|term| *term != description)
        .take(MAX_TERMS)
        .collect();
    if !terms.is_empty() {
        text.push_str(&format!("  includes: {}\n", terms.join("; ")));
    }
    let neighbours = neighbours(release, code, node);
    if !neighbours.is_empty() {
        text.push_str(&format!("  not to be mistaken for: {}\n", neighbours.join("; ")));
    }
}

/// Descriptions of the codes that differ least: half of them other entries beside its own, the rest other visits.
fn neighbours<'a>(release: &'a Release, code: Code, node: Option<&'a Node>) -> Vec<&'a str> {
    let above = node.and_then(|node| node.parent).into_iter();
    let entries = above
        .flat_map(|above| release.children_of(above))
        .filter(|other| Some(other.code) != node.map(|node| node.code))
        .map(|other| other.description.as_str())
        .take(MAX_NEIGHBOURS / 2);
    let visits = release.siblings(code).into_iter().map(|billable| billable.description.as_str());
    let mut all: Vec<&str> = Vec::with_capacity(MAX_NEIGHBOURS);
    for description in entries.chain(visits) {
        if all.len() < MAX_NEIGHBOURS && !all.contains(&description) {
            all.push(description);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_names_codes_terms_and_neighbours() {
        let release = Release::builtin().unwrap();
        let codes: Vec<Code> = ["S82.201A", "J45.909"].iter().map(|code| Code::parse(code).unwrap()).collect();
        let register = Register::Patient;
        let assignment = Assignment { idx: 0, case_idx: 0, codes, register, who: "54-year-old woman".into() };
        let asked = &messages(&release, &assignment)[1].content;
        for part in [
            "54-year-old woman",
            "first person",
            "S82.201A: Unspecified fracture of shaft of right tibia, initial encounter for closed fracture",
            "fracture of shaft of left tibia",
            "subsequent encounter for closed fracture",
            "Asthmatic bronchitis NOS",
            "exactly S82.201A, J45.909",
        ] {
            assert!(asked.contains(part), "{part}: {asked}");
        }
        assert_eq!(schema(&assignment.codes)["properties"]["codes"]["items"]["enum"][1], "J45.909");
    }
}
