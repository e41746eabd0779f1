//! What is asked: the lines of an input file, each a scenario record, a chat record or plain text.

use std::path::Path;

use serde_json::{Map, Value};

use crate::data::record::prompt;
use crate::fsio;
use crate::text::{Message, Role};

/// One question with the record that it came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The record as it was read; of a plain line `{"scenario": LINE}`.
    pub record: Map<String, Value>,
    /// The turns up to the answer.
    pub prompt: Vec<Message>,
}

impl Question {
    /// A text.
    pub fn of_text(text: &str) -> Self {
        let record = Map::from_iter([("scenario".to_owned(), Value::from(text))]);
        Self { record, prompt: prompt(text) }
    }

    /// A line of a file: `{"scenario": "..."}`, `{"messages": [...]}` whose last turn may be the right answer, or text.
    fn of_line(line: &str) -> Result<Self, String> {
        if !line.trim_start().starts_with(['{', '[']) {
            return Ok(Self::of_text(line.trim()));
        }
        let record: Value = serde_json::from_str(line).map_err(|error| fsio::json_fault(&error))?;
        let Value::Object(record) = record else { return Err("expected an object or plain text".into()) };
        let prompt = match (record.get("scenario"), record.get("messages")) {
            (Some(Value::String(text)), _) => prompt(text),
            (None, Some(messages)) => {
                let mut turns: Vec<Message> =
                    serde_json::from_value(messages.clone()).map_err(|error| fsio::json_fault(&error))?;
                turns.pop_if(|last| last.role == Role::Assistant);
                turns
            }
            _ => return Err("expected an object with a text `scenario` or with `messages`".into()),
        };
        if prompt.is_empty() { Err("`messages` has no question".into()) } else { Ok(Self { record, prompt }) }
    }
}

/// Reads every question of a file, or of stdin where it is `-`.
///
/// # Errors
/// When the file cannot be read, or a line is no question.
pub fn read_questions(path: &Path) -> Result<Vec<Question>, fsio::Error> {
    let mut questions = Vec::new();
    fsio::for_each_line(path, |_, line| {
        questions.push(Question::of_line(line)?);
        Ok(())
    })?;
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_record_a_chat_or_a_text() {
        let texts = [
            r#"{"scenario": "it hurts", "id": 7}"#,
            r#"{"messages": [{"role": "user", "content": "it hurts"}, {"role": "assistant", "content": "R52"}]}"#,
            "it hurts",
        ];
        let questions = texts.map(|text| Question::of_line(text).unwrap());
        assert_eq!(questions[0].record["id"], 7);
        assert_eq!(questions[0].prompt, questions[2].prompt);
        assert_eq!(questions[1].prompt, [Message::user("it hurts")]);
        for bad in [r#"{"scenario": 3}"#, r#"{"scenario": "torn"#, "[1]", r#"{"messages": []}"#, "{}"] {
            assert!(Question::of_line(bad).is_err(), "{bad}");
        }
    }
}
