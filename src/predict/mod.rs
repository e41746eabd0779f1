//! Codes for texts, as a program or a person asks for them: from a model here, or from a server elsewhere.
//!
//! In: questions (chat turns). Out: a [`Prediction`] for each, with its confidence where one is known; a user's own
//! columns can be joined to its codes.

mod endpoint;
mod join;
mod local;
mod question;

pub use endpoint::{Endpoint, ask};
pub use join::Table;
pub use local::{FREE_TOKENS, Options, alternatives, predict};
pub use question::{Question, read_questions};

use serde::Serialize;

use crate::codes::{Code, Release, check};
use crate::decode;
use crate::diag::Diagnostic;
use crate::fsio;
use crate::http;
use crate::text;

/// The answer to one question.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Prediction {
    /// The answer as text: of a constrained model codes joined by a comma and a space, of a free one whatever it wrote.
    /// Empty when it is held back.
    pub output: String,
    /// The codes of the answer, in order, those of a free answer that have the form of one included.
    pub predicted: Vec<Predicted>,
    /// The probability of the whole answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Whether the answer was held back because its confidence is too low.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub abstained: bool,
    /// The likeliest answers, best first, where they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Other>,
    /// What is wrong with the codes as a set: one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<String>,
    /// Why a server gave no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A code of an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Predicted {
    pub code: Code,
    /// None for a code that is not in the release.
    pub description: Option<String>,
    /// Given what comes before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
}

/// One of several answers to the same question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Other {
    pub output: String,
    pub confidence: f64,
}

impl Prediction {
    /// Names the codes and says what is wrong with them as a set.
    pub fn explained(mut self, release: &Release) -> Self {
        for predicted in &mut self.predicted {
            predicted.description = release.description(predicted.code).map(str::to_owned);
        }
        let texts: Vec<String> = self.predicted.iter().map(|predicted| predicted.code.to_string()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        if !texts.is_empty() {
            self.conflicts = check(release, &texts).faults.into_iter().map(|fault| fault.message).collect();
        }
        self
    }

    /// Holds the answer back when its confidence is known and below `least`. The alternatives stay.
    pub fn held_to(mut self, least: f64) -> Self {
        if self.confidence.is_some_and(|confidence| confidence < least) {
            self.abstained = true;
            self.output.clear();
            self.predicted.clear();
            self.conflicts.clear();
        }
        self
    }
}

/// A question that got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Text(#[from] text::Error),
    #[error(transparent)]
    Decode(#[from] decode::Error),
    #[error(transparent)]
    File(#[from] fsio::Error),
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error("the answer of `{url}` is not that of OpenAI's interface")]
    NoAnswer { url: String },
    #[error("the model reads at most {limit} tokens, which leaves no room for a question")]
    NoRoom { limit: usize },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Text(error) => error.hint(),
            Self::Decode(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Http(error) => error.hint(),
            Self::NoAnswer { .. } => Some("the address is that of the API, as in http://127.0.0.1:8000/v1".into()),
            Self::NoRoom { .. } => Some("use a model with a larger max_position_embeddings".into()),
        }
    }
}
