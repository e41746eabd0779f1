//! An answer on its way from the engine to its client: tokens to text, stop texts, and what is said at the end.

use serde_json::{Value, json};

use super::openai::{Spelled, StopScanner};
use super::routing::Decision;
use crate::codes::Release;
use crate::decode::{Answer, Reason, Token};
use crate::predict::{Predicted, Prediction};

/// Puts an answer together, token by token.
#[derive(Debug)]
pub struct Assembly {
    stops: StopScanner,
    /// Bytes of a character that is not complete yet.
    pending: Vec<u8>,
    /// The text so far, as shown.
    pub text: String,
    /// Tokens so far.
    pub n_tokens: usize,
    /// Whether a stop text was met: the rest of the answer is not wanted.
    pub is_stopped: bool,
}

impl Assembly {
    /// An answer that ends before any of these texts.
    pub fn new(stops: Vec<String>) -> Self {
        let (pending, text) = (Vec::new(), String::new());
        Self { stops: StopScanner::new(stops), pending, text, n_tokens: 0, is_stopped: false }
    }

    /// Takes a token's bytes; gives the text that can be shown now. Nothing is shown after a stop text.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.is_stopped {
            return String::new();
        }
        self.n_tokens += 1;
        self.pending.extend(bytes);
        let piece = take_whole_characters(&mut self.pending);
        let (shown, is_stopped) = self.stops.push(&piece);
        self.is_stopped = is_stopped;
        self.text += &shown;
        shown
    }

    /// What was held back, once no token follows.
    pub fn finish(&mut self) -> String {
        if self.is_stopped {
            return String::new();
        }
        let rest = String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned();
        let (mut shown, is_stopped) = self.stops.push(&rest);
        if !is_stopped {
            shown += &self.stops.finish();
        }
        self.text += &shown;
        shown
    }
}

/// Takes the text at the front that later bytes cannot change; what is not UTF-8 becomes U+FFFD.
fn take_whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(whole) => {
                text += whole;
                bytes.clear();
                return text;
            }
            Err(fault) => {
                let valid = fault.valid_up_to();
                text += &String::from_utf8_lossy(&bytes[..valid]);
                let Some(n_bad) = fault.error_len() else {
                    bytes.drain(..valid);
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes.drain(..valid + n_bad);
            }
        }
    }
}

/// A token as clients see it, from the bytes of all tokens by id.
pub fn spelled(token: &Token, bytes_of: &[Option<Vec<u8>>]) -> Spelled {
    let bytes = |id: u32| bytes_of.get(id as usize).cloned().flatten().unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let own = bytes(token.id);
    let top = token.top.iter().map(|&(id, log_prob)| {
        let bytes = bytes(id);
        // The end token has no bytes; clients would see it as an empty text.
        let text = if bytes.is_empty() { "<end>".to_owned() } else { text(&bytes) };
        (text, bytes, log_prob)
    });
    Spelled { text: text(&own), bytes: own, log_prob: token.log_prob, top: top.collect() }
}

/// OpenAI's word for how an answer ended.
pub fn finish_reason(answer: Option<&Answer>) -> &'static str {
    match answer {
        Some(answer) if answer.reason == Reason::Length => "length",
        // The model's end token, or a stop text.
        _ => "stop",
    }
}

/// What an answer says beside OpenAI's fields.
pub fn extension(release: &Release, answer: Option<&Answer>, decision: Option<&Decision>) -> Value {
    let codes = answer.map(|answer| answer.codes.as_slice()).unwrap_or_default();
    let predicted = codes.iter().map(|scored| Predicted {
        code: scored.code,
        description: None,
        probability: Some(scored.probability),
    });
    let prediction = Prediction { predicted: predicted.collect(), ..Prediction::default() }.explained(release);
    let confidence = answer.filter(|answer| !answer.codes.is_empty()).map(|answer| answer.probability);
    json!({
        "codes": prediction.predicted,
        "confidence": confidence,
        "conflicts": prediction.conflicts,
        "route": decision,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_shown_when_they_are_complete() {
        let mut answer = Assembly::new(Vec::new());
        let shown: Vec<String> = [&b"na\xc3"[..], b"\xafve ", b"\xe2\x80", b"\x94\xff", b"\xf0\x9f"]
            .iter()
            .map(|b| answer.push(b))
            .collect();
        assert_eq!(shown, ["na", "ïve ", "", "—\u{fffd}", ""]);
        assert_eq!(answer.finish(), "\u{fffd}");
        assert_eq!((answer.text.as_str(), answer.n_tokens), ("naïve —\u{fffd}\u{fffd}", 5));
    }

    #[test]
    fn a_stop_text_is_never_shown() {
        let mut answer = Assembly::new(vec![", ".into()]);
        let shown: Vec<String> = ["I10", ",", " R", "54"].iter().map(|text| answer.push(text.as_bytes())).collect();
        assert_eq!(shown, ["I10", "", "", ""]);
        assert_eq!((answer.finish(), answer.text.as_str(), answer.is_stopped), (String::new(), "I10", true));
    }
}
