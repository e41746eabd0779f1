//! The answers that a release allows, written for other engines: a regular expression, a Lark grammar, a GBNF grammar.
//!
//! The language is that of constrained decoding, one or more codes joined by a comma and a space, except that a grammar
//! of a sane size cannot demand that the codes be distinct. In: an [`Automaton`]. Out: text.

use std::fmt::Write as _;

use super::automaton::{Automaton, State, StateId};

/// How many codes an answer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Exactly one.
    One,
    /// One or more.
    Unbounded,
    /// From one to this number.
    AtMost(usize),
}

/// A regular expression that matches whole answers, with beginnings factored out. It has no anchors: engines for
/// structured output match the whole text, and so do `fullmatch` in Python and `^(?:...)$` elsewhere.
///
/// Every engine knows what it uses: literals, classes, groups that do not capture, `?`, `*` and `{0,n}`.
pub fn regex(automaton: &Automaton, length: Length) -> String {
    let mut code = String::new();
    write_regex(automaton, automaton.root(), &mut code);
    match repetition(length) {
        None => code,
        Some(repetition) => format!("{code}(?:, {code}){repetition}"),
    }
}

/// A Lark grammar as llguidance reads it.
pub fn lark(automaton: &Automaton, length: Length) -> String {
    let code = regex(automaton, Length::One);
    let rest = repetition(length).map_or(String::new(), |repetition| format!(" (\", \" CODE){repetition}"));
    format!("start: CODE{rest}\nCODE: /{code}/\n")
}

/// A GBNF grammar as llama.cpp reads it: one rule for each state that more than one place leads to.
pub fn gbnf(automaton: &Automaton, length: Length) -> String {
    let mut n_uses = vec![0u32; automaton.n_states()];
    for id in 0..automaton.n_states() as StateId {
        groups_of(automaton.state(id)).iter().for_each(|(_, next)| n_uses[*next as usize] += 1);
    }
    let writer = Gbnf { automaton, n_uses };
    let rest = repetition(length).map_or(String::new(), |repetition| format!(" (\", \" code){repetition}"));
    let mut text = format!("root ::= code{rest}\ncode ::= {}\n", writer.body(automaton.root()));
    for id in 0..automaton.n_states() as StateId {
        if writer.is_rule(id) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "s{id} ::= {}", writer.body(id));
        }
    }
    text
}

fn repetition(length: Length) -> Option<String> {
    match length {
        Length::One => None,
        Length::Unbounded => Some("*".into()),
        Length::AtMost(most) if most <= 1 => None,
        Length::AtMost(most) => Some(format!("{{0,{}}}", most - 1)),
    }
}

/// The bytes that lead to one state together, in the order of their first bytes.
fn groups_of(state: &State) -> Vec<(Vec<u8>, StateId)> {
    let mut groups: Vec<(Vec<u8>, StateId)> = Vec::new();
    for edge in &state.edges {
        match groups.iter_mut().find(|(_, next)| *next == edge.next) {
            Some((bytes, _)) => bytes.push(edge.byte),
            None => groups.push((vec![edge.byte], edge.next)),
        }
    }
    groups
}

/// What may follow, as a regular expression that can stand in a sequence.
fn write_regex(automaton: &Automaton, id: StateId, out: &mut String) {
    let state = automaton.state(id);
    let groups = groups_of(state);
    let is_one_class = matches!(groups.as_slice(), [(_, next)] if automaton.state(*next).edges.is_empty());
    let is_grouped = groups.len() > 1 || (state.is_final && !groups.is_empty() && !is_one_class);
    if is_grouped {
        out.push_str("(?:");
    }
    for (idx, (bytes, next)) in groups.iter().enumerate() {
        if idx > 0 {
            out.push('|');
        }
        match bytes.as_slice() {
            [b'.'] => out.push_str("\\."),
            [byte] => out.push(char::from(*byte)),
            bytes => out.push_str(&class(bytes)),
        }
        write_regex(automaton, *next, out);
    }
    if is_grouped {
        out.push(')');
    }
    if state.is_final && !groups.is_empty() {
        out.push('?');
    }
}

/// `[0-46AD]`: runs of three and more as a range.
fn class(bytes: &[u8]) -> String {
    let mut text = String::from("[");
    for run in bytes.chunk_by(|a, b| a + 1 == *b) {
        match run {
            [first, _, .., last] => text.extend([char::from(*first), '-', char::from(*last)]),
            few => text.extend(few.iter().copied().map(char::from)),
        }
    }
    text.push(']');
    text
}

struct Gbnf<'a> {
    automaton: &'a Automaton,
    n_uses: Vec<u32>,
}

impl Gbnf<'_> {
    fn is_rule(&self, id: StateId) -> bool {
        self.n_uses[id as usize] > 1 && !self.automaton.state(id).edges.is_empty()
    }

    /// The alternatives of a state.
    fn body(&self, id: StateId) -> String {
        let state = self.automaton.state(id);
        let mut alternatives: Vec<String> = Vec::new();
        for (bytes, next) in groups_of(state) {
            let head = match bytes.as_slice() {
                [byte] => format!("\"{}\"", char::from(*byte)),
                bytes => class(bytes),
            };
            let below = self.automaton.state(next);
            alternatives.push(if below.edges.is_empty() {
                head
            } else if self.is_rule(next) {
                format!("{head} s{next}")
            } else if groups_of(below).len() > 1 || below.is_final {
                format!("{head} ({})", self.body(next))
            } else {
                format!("{head} {}", self.body(next))
            });
        }
        if state.is_final {
            alternatives.push("\"\"".into());
        }
        alternatives.join(" | ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_and_endings_are_factored() {
        let automaton = Automaton::of(["A00.0", "A00.1", "A00.2", "A00.9", "B10", "B10.5", "C10"]);
        let code = "(?:A00\\.[0-29]|B10(?:\\.5)?|C10)";
        assert_eq!(regex(&automaton, Length::One), code);
        assert_eq!(regex(&automaton, Length::AtMost(1)), code);
        assert_eq!(regex(&automaton, Length::Unbounded), format!("{code}(?:, {code})*"));
        assert_eq!(lark(&automaton, Length::AtMost(3)), format!("start: CODE (\", \" CODE){{0,2}}\nCODE: /{code}/\n"));
        let text = gbnf(&automaton, Length::Unbounded);
        assert!(
            text.starts_with("root ::= code (\", \" code)*\ncode ::= \"A\" \"0\" \"0\" \".\" [0-29] | \"B\""),
            "{text}"
        );
    }
}
