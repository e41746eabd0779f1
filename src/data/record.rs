//! The records of a data set, one JSON object a line: scenarios, and the chat, preference and plain texts made of them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::codes::Code;
use crate::text::Message;

/// The instruction of every training and evaluation record.
pub const SYSTEM_PROMPT: &str =
    "Answer with the billable ICD-10-CM codes for the text, separated by commas, and nothing else.";

/// What somebody said or wrote, and the codes it should yield.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// Plain words, without any code.
    pub scenario: String,
    /// Billable codes in the order in which they are reported.
    pub codes: Vec<Code>,
    /// The wording family (sentence frame) it was made with, as `clinician/history-3`; empty when unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub family: String,
    /// The case that it words: records of one group never part when a data set is split. Empty: a group of its own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Every other field, kept as it was read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Scenario {
    /// A scenario with neither family nor group.
    pub fn new(scenario: impl Into<String>, codes: Vec<Code>) -> Self {
        Self { scenario: scenario.into(), codes, family: String::new(), group: String::new(), extra: Map::new() }
    }
}

/// A scenario whose codes are still text, as another program may have written them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RawScenario {
    /// Plain words.
    pub scenario: String,
    /// What should be codes.
    pub codes: Vec<String>,
    /// Every other field.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RawScenario {
    /// The first of its codes that has not the form of one.
    pub fn malformed_code(&self) -> Option<&str> {
        self.codes.iter().find(|text| Code::parse_lenient(text).is_err()).map(String::as_str)
    }

    /// The scenario with its codes in canonical form: case and dot are mended, a malformed code is left out.
    pub fn into_scenario(mut self) -> Scenario {
        let codes = self.codes.iter().filter_map(|text| Code::parse_lenient(text).ok()).collect();
        let mut take = |key: &str| match self.extra.remove(key) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (family, group) = (take("family"), take("group"));
        Scenario { scenario: self.scenario, codes, family, group, extra: self.extra }
    }

    /// Notes why the record is dropped: a word for the reason and the object that it is about.
    pub(crate) fn because(mut self, reason: impl Serialize, detail: String) -> Self {
        // A unit variant always has a JSON name.
        self.extra.insert("reason".into(), serde_json::to_value(reason).unwrap_or(Value::Null));
        self.extra.insert("detail".into(), Value::String(detail));
        self
    }
}

/// A conversation whose assistant turns are trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatRecord {
    /// The turns.
    pub messages: Vec<Message>,
    /// The wording family, for figures by family.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub family: String,
}

/// One side of a preference record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Turns {
    /// Turns, rendered through the chat template.
    Messages(Vec<Message>),
    /// Text used as it is.
    Plain(String),
}

/// A prompt with a better and a worse answer, as TRL takes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreferenceRecord {
    /// What is asked.
    pub prompt: Turns,
    /// The better answer.
    pub chosen: Turns,
    /// The worse answer.
    pub rejected: Turns,
}

/// A text that is trained on as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Text {
    /// The text.
    pub text: String,
}

/// The codes as an answer has them: in order, separated by a comma and a space.
pub fn answer(codes: &[Code]) -> String {
    let mut text = String::with_capacity(10 * codes.len());
    for code in codes {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&code.to_string());
    }
    text
}

/// The system and user turns that ask for the codes of `scenario`.
pub fn prompt(scenario: &str) -> Vec<Message> {
    vec![Message::system(SYSTEM_PROMPT), Message::user(scenario)]
}

/// The conversation that a scenario is trained with.
pub fn chat_record(scenario: &Scenario) -> ChatRecord {
    let mut messages = prompt(&scenario.scenario);
    messages.push(Message::assistant(answer(&scenario.codes)));
    ChatRecord { messages, family: scenario.family.clone() }
}
