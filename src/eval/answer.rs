//! What was asked, expected and answered: a line of a predictions file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::fsio;

/// What a record expects and what was answered. Fields that are not named here are ignored when read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The right codes, separated by commas.
    pub expected: String,
    /// The answer as it was given.
    pub output: String,
    /// How probable the model held the whole answer to be, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// The wording family of the question; empty when unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub family: String,
    /// The question; empty when unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scenario: String,
}

impl Answer {
    /// An answer of which no more is known.
    pub fn new(expected: impl Into<String>, output: impl Into<String>) -> Self {
        Self { expected: expected.into(), output: output.into(), ..Self::default() }
    }
}

/// Reads a predictions file.
///
/// # Errors
/// When the file cannot be read, has no records, or a line is not one: file and line are named.
pub fn read_answers(path: &Path) -> Result<Vec<Answer>, fsio::Error> {
    let mut answers = Vec::new();
    fsio::for_each_line(path, |_, line| {
        let answer: Answer = serde_json::from_str(line).map_err(|error| fsio::json_fault(&error))?;
        if let Some(confidence) = answer.confidence.filter(|value| !(0.0..=1.0).contains(value)) {
            return Err(format!("`confidence` is {confidence}, expected a number from 0 to 1"));
        }
        answers.push(answer);
        Ok(())
    })?;
    if answers.is_empty() {
        return Err(fsio::Error::Empty { path: path.to_owned() });
    }
    Ok(answers)
}
