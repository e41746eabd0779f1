//! Training files to token ids: which kind of record a line is, and what it loses when it is too long.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Error;
use crate::data::record::{ChatRecord, PreferenceRecord, Turns};
use crate::eval::Answer;
use crate::fsio;
use crate::text::{Message, Role, Tokenizer, Tokens};
use crate::train::PreferenceTokens;

/// A tokenized file and what was cut or dropped on the way.
#[derive(Debug)]
pub struct Loaded<T> {
    pub records: Vec<T>,
    /// The line of each record in the file.
    pub lines: Vec<usize>,
    /// Records that lost prompt tokens.
    pub n_cut: usize,
    /// Records too long even so, with nothing to learn from, or whose chosen and rejected answers are the same.
    pub n_dropped: usize,
}

/// A line of an SFT file.
#[derive(Deserialize)]
#[serde(untagged)]
enum SftRecord {
    Chat { messages: Vec<Message> },
    Completion { prompt: String, completion: String },
    Text { text: String },
}

/// A question and its right answer, from a chat record.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The turns before the answer.
    pub prompt: Vec<Message>,
    /// The content of the last assistant turn.
    pub expected: String,
    /// The wording family; empty when unknown.
    pub family: String,
}

impl Question {
    /// What the patient or the doctor says: the last user turn.
    pub fn scenario(&self) -> &str {
        let user = self.prompt.iter().rfind(|message| message.role == Role::User);
        user.map_or("", |message| message.content.as_str())
    }

    /// The question with what was answered, and how sure the model was of it.
    pub fn answered(self, output: String, confidence: Option<f64>) -> Answer {
        let scenario = self.scenario().to_owned();
        Answer { expected: self.expected, output, confidence, family: self.family, scenario }
    }
}

/// Reads a file of chat records for evaluation: the last turn, the assistant's, is the right answer.
///
/// # Errors
/// When the file cannot be read, has no records, or a line does not end with an assistant turn.
pub fn load_questions(path: &Path) -> Result<Vec<Question>, Error> {
    let mut questions = Vec::new();
    fsio::for_each_line(path, |_, line| {
        let mut record: ChatRecord = serde_json::from_str(line).map_err(|error| fsio::json_fault(&error))?;
        match record.messages.pop() {
            Some(last) if last.role == Role::Assistant && !record.messages.is_empty() => {
                questions.push(Question { prompt: record.messages, expected: last.content, family: record.family });
                Ok(())
            }
            _ => Err("expected `messages` that end with an assistant turn after a user turn".into()),
        }
    })?;
    if questions.is_empty() {
        return Err(fsio::Error::Empty { path: path.to_owned() }.into());
    }
    Ok(questions)
}

/// Reads a file of preference records for evaluation: the chosen answer is the right one.
///
/// # Errors
/// When the file cannot be read, has no records, or a line has no message lists.
pub fn load_preference_questions(path: &Path) -> Result<Vec<Question>, Error> {
    let mut questions = Vec::new();
    fsio::for_each_line(path, |_, line| {
        let record: PreferenceRecord = serde_json::from_str(line).map_err(|error| fsio::json_fault(&error))?;
        match (record.prompt, record.chosen) {
            (Turns::Messages(prompt), Turns::Messages(mut chosen)) if chosen.len() == 1 && !prompt.is_empty() => {
                questions.push(Question { prompt, expected: chosen.remove(0).content, family: String::new() });
                Ok(())
            }
            _ => Err("expected `prompt` and `chosen` to be message lists, `chosen` of one turn".into()),
        }
    })?;
    if questions.is_empty() {
        return Err(fsio::Error::Empty { path: path.to_owned() }.into());
    }
    Ok(questions)
}

/// Reads and tokenizes an SFT file: chat records, prompt-completion pairs or plain texts.
///
/// # Errors
/// When the file cannot be read, or a line is none of these: file and line are named.
pub fn load_sft(path: &Path, tokenizer: &Tokenizer, max_seq_length: usize) -> Result<Loaded<Tokens>, Error> {
    let mut loaded = Loaded { records: Vec::new(), lines: Vec::new(), n_cut: 0, n_dropped: 0 };
    fsio::for_each_line(path, |number, line| {
        let value: Value = serde_json::from_str(line).map_err(|error| fsio::json_fault(&error))?;
        let record = SftRecord::deserialize(&value).map_err(|_| {
            let keys: Vec<&String> = value.as_object().map(|object| object.keys().collect()).unwrap_or_default();
            format!("expected `messages`, `prompt` and `completion`, or `text`, found the keys {keys:?}")
        })?;
        let tokens = match &record {
            SftRecord::Chat { messages } => tokenizer.encode_chat(messages),
            SftRecord::Completion { prompt, completion } => tokenizer.encode_completion(prompt, completion),
            SftRecord::Text { text } => tokenizer.encode_text(text),
        };
        let mut tokens = tokens.map_err(|error| error.to_string())?;
        match tokens.fit(max_seq_length) {
            // The first token is never predicted.
            Ok(_) if !tokens.is_target.iter().skip(1).any(|&is_target| is_target) => loaded.n_dropped += 1,
            Ok(n_removed) => {
                loaded.n_cut += usize::from(n_removed > 0);
                loaded.records.push(tokens);
                loaded.lines.push(number);
            }
            Err(_) => loaded.n_dropped += 1,
        }
        Ok(())
    })?;
    Ok(loaded)
}

/// Reads and tokenizes a preference file. Prompts are cut to `max_prompt_length`, whole records to `max_seq_length`.
///
/// # Errors
/// When the file cannot be read or a line is not a preference record: file and line are named.
pub fn load_preferences(
    path: &Path,
    tokenizer: &Tokenizer,
    max_prompt_length: usize,
    max_seq_length: usize,
) -> Result<Loaded<PreferenceTokens>, Error> {
    let mut loaded = Loaded { records: Vec::new(), lines: Vec::new(), n_cut: 0, n_dropped: 0 };
    fsio::for_each_line(path, |number, line| {
        let record: PreferenceRecord = serde_json::from_str(line).map_err(|error| fsio::json_fault(&error))?;
        let encode = |answer: &Turns| -> Result<Tokens, String> {
            match (&record.prompt, answer) {
                (Turns::Messages(prompt), Turns::Messages(answer)) => tokenizer.encode_answer(prompt, answer),
                (Turns::Plain(prompt), Turns::Plain(answer)) => tokenizer.encode_completion(prompt, answer),
                _ => return Err("expected prompt, chosen and rejected to be all messages or all text".into()),
            }
            .map_err(|error| error.to_string())
        };
        let (mut chosen, mut rejected) = (encode(&record.chosen)?, encode(&record.rejected)?);
        let n_prompt = chosen.first_target();
        let n_answer = answer_of(&chosen).len().max(answer_of(&rejected).len());
        let room = max_prompt_length.min(max_seq_length.saturating_sub(n_answer));
        let excess = n_prompt.saturating_sub(room);
        let fits = [&mut chosen, &mut rejected].into_iter().all(|tokens| tokens.fit(tokens.len() - excess).is_ok());
        let pair = PreferenceTokens {
            prompt: chosen.ids[..chosen.first_target()].to_vec(),
            chosen: answer_of(&chosen).to_vec(),
            rejected: answer_of(&rejected).to_vec(),
        };
        let is_empty = [&pair.prompt, &pair.chosen, &pair.rejected].iter().any(|ids| ids.is_empty());
        let same_prompt = rejected.ids.starts_with(&pair.prompt);
        if fits && !is_empty && same_prompt && pair.chosen != pair.rejected {
            loaded.n_cut += usize::from(excess > 0);
            loaded.records.push(pair);
            loaded.lines.push(number);
        } else {
            loaded.n_dropped += 1;
        }
        Ok(())
    })?;
    Ok(loaded)
}

/// From the first target to the last: the answer with its end token, without what the template puts after it.
fn answer_of(tokens: &Tokens) -> &[u32] {
    let end = tokens.is_target.iter().rposition(|&is_target| is_target).map_or(0, |last| last + 1);
    &tokens.ids[tokens.first_target().min(end)..end]
}
