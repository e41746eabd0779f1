//! Records to tokens: which tokens the loss counts, and which an over-long record may lose.
//!
//! The targets of a chat are the tokens of every assistant turn's content and the special token that ends the turn.
//! They are found by position in the rendered text, so that ids are those of the whole rendering. A token that holds
//! both the end of a header and the start of a content (two newlines, for one) is a target, as it is for transformers'
//! `return_assistant_tokens_mask`.

use std::ops::Range;

use super::tokens::Cut;
use super::{Error, Message, Role, Tokenizer, Tokens};

impl Tokenizer {
    /// A chat record: every assistant turn is a target.
    ///
    /// # Errors
    /// [`Error::NoTemplate`], [`Error::Refused`], [`Error::ContentRewritten`], [`Error::Tokenize`].
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Tokens, Error> {
        self.encode_turns(messages, 0, false)
    }

    /// A prompt and its answer, as in a preference record: only the assistant turns of `answer` are targets.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_chat`].
    pub fn encode_answer(&self, prompt: &[Message], answer: &[Message]) -> Result<Tokens, Error> {
        self.encode_turns(&[prompt, answer].concat(), prompt.len(), false)
    }

    /// A prompt for generation: the messages and the header of the assistant's turn. No targets.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_chat`].
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Tokens, Error> {
        self.encode_turns(messages, messages.len(), true)
    }

    /// Running text, every token a target, with the end token added where it is not the last already.
    ///
    /// # Errors
    /// [`Error::Tokenize`].
    pub fn encode_text(&self, text: &str) -> Result<Tokens, Error> {
        let ids = self.encode(text)?;
        let mut tokens = Tokens { is_target: vec![true; ids.len()], ids, cut: Cut::End };
        self.end(&mut tokens);
        Ok(tokens)
    }

    /// A prompt and a completion as plain strings, with the end token added where it is not the last already.
    ///
    /// # Errors
    /// [`Error::Tokenize`].
    pub fn encode_completion(&self, prompt: &str, completion: &str) -> Result<Tokens, Error> {
        let mut tokens = self.encode_continuation(prompt, completion)?;
        self.end(&mut tokens);
        Ok(tokens)
    }

    /// A prompt and its continuation as plain strings, nothing added: what is scored.
    ///
    /// # Errors
    /// [`Error::Tokenize`].
    pub fn encode_continuation(&self, prompt: &str, continuation: &str) -> Result<Tokens, Error> {
        let text = [prompt, continuation].concat();
        let encoding = self.inner.encode(text.as_str(), true).map_err(|error| Error::Tokenize(error.to_string()))?;
        let continued = prompt.len()..text.len();
        let is_target: Vec<_> = encoding.get_offsets().iter().map(|&at| overlaps(at, &continued)).collect();
        let n_prompt = is_target.iter().position(|&is_target| is_target).unwrap_or(is_target.len());
        Ok(Tokens { ids: encoding.get_ids().to_vec(), is_target, cut: Cut::Middle(0..n_prompt) })
    }

    /// The text of a record with every run of targets in double brackets: what the loss counts, for a reader.
    ///
    /// # Errors
    /// [`Error::Tokenize`].
    pub fn mark_targets(&self, tokens: &Tokens) -> Result<String, Error> {
        let mut text = String::new();
        let mut start = 0;
        for run in tokens.is_target.chunk_by(|a, b| a == b) {
            let decoded = self.decode_with_special(&tokens.ids[start..start + run.len()])?;
            text += &if run[0] { format!("[[{decoded}]]") } else { decoded };
            start += run.len();
        }
        Ok(text)
    }

    fn end(&self, tokens: &mut Tokens) {
        if tokens.ids.last() != Some(&self.eos_id()) {
            tokens.ids.push(self.eos_id());
            tokens.is_target.push(true);
        }
    }

    /// The assistant turns from `first_turn` on are targets.
    fn encode_turns(
        &self,
        messages: &[Message],
        first_turn: usize,
        add_generation_prompt: bool,
    ) -> Result<Tokens, Error> {
        let text = self.chat_template()?.render(messages, add_generation_prompt)?;
        let contents = self.find_contents(messages, &text, add_generation_prompt)?;
        let encoding = self.inner.encode(text, false).map_err(|error| Error::Tokenize(error.to_string()))?;
        let (ids, offsets) = (encoding.get_ids().to_vec(), encoding.get_offsets());

        let mut is_target = vec![false; ids.len()];
        for (message, content) in messages.iter().zip(&contents).skip(first_turn) {
            if message.role != Role::Assistant {
                continue;
            }
            let from = offsets.partition_point(|&(_, end)| end <= content.start);
            let is_end = |idx: usize| offsets[idx].0 == content.end && self.is_special(ids[idx]);
            for idx in from..ids.len() {
                if !overlaps(offsets[idx], content) {
                    is_target[idx] = is_end(idx);
                    break;
                }
                is_target[idx] = true;
            }
        }

        let last_user = messages.iter().rposition(|message| message.role == Role::User);
        let spare = last_user.map_or(0..0, |turn| {
            let content = &contents[turn];
            let from = offsets.partition_point(|&(start, _)| start < content.start);
            let to = offsets.partition_point(|&(_, end)| end <= content.end);
            from..to.max(from)
        });
        Ok(Tokens { ids, is_target, cut: Cut::Middle(spare) })
    }

    /// The byte range of every message's content in the rendered text.
    ///
    /// The messages are rendered once more with a mark in place of every content. Putting the contents back, as they
    /// are or with their outer white space trimmed, must give the text; then the ranges are certain.
    fn find_contents(
        &self,
        messages: &[Message],
        text: &str,
        add_generation_prompt: bool,
    ) -> Result<Vec<Range<usize>>, Error> {
        let marks = marks_for(messages, text);
        let marked: Vec<_> =
            messages.iter().zip(&marks).map(|(message, mark)| Message::new(message.role, mark)).collect();
        let skeleton = self.chat_template()?.render(&marked, add_generation_prompt)?;
        let parts = split_at_marks(&skeleton, &marks).ok_or(Error::ContentRewritten)?;
        place(&parts, messages, text, |content| content)
            .or_else(|| place(&parts, messages, text, str::trim))
            .ok_or(Error::ContentRewritten)
    }
}

fn overlaps((start, end): (usize, usize), range: &Range<usize>) -> bool {
    start < range.end && end > range.start
}

/// A mark for each message, between private-use characters and found nowhere in the text.
fn marks_for(messages: &[Message], text: &str) -> Vec<String> {
    let mut salt = String::new();
    while text.contains(&format!("\u{e000}{salt}:")) {
        salt.push('x');
    }
    (0..messages.len()).map(|turn| format!("\u{e000}{salt}:{turn}\u{e001}")).collect()
}

/// The text before, between and after the marks, when each occurs once and in order.
fn split_at_marks<'a>(skeleton: &'a str, marks: &[String]) -> Option<Vec<&'a str>> {
    let mut parts = Vec::with_capacity(marks.len() + 1);
    let mut rest = skeleton;
    for mark in marks {
        let (before, after) = rest.split_once(mark.as_str())?;
        parts.push(before);
        rest = after;
    }
    parts.push(rest);
    let has_mark = |part: &&str| marks.iter().any(|mark| part.contains(mark.as_str()));
    (!parts.iter().any(has_mark)).then_some(parts)
}

/// The ranges of the contents in `text`, if it is `parts` with the `shown` contents between them.
fn place(parts: &[&str], messages: &[Message], text: &str, shown: impl Fn(&str) -> &str) -> Option<Vec<Range<usize>>> {
    let mut ranges = Vec::with_capacity(messages.len());
    let mut at = 0;
    for (part, message) in parts.iter().zip(messages) {
        at += text.get(at..)?.starts_with(part).then_some(part.len())?;
        let content = shown(&message.content);
        text.get(at..)?.starts_with(content).then_some(())?;
        ranges.push(at..at + content.len());
        at += content.len();
    }
    (text.get(at..)? == *parts.last()?).then_some(ranges)
}
