//! Which tokens may follow, so that an answer is one or more distinct billable codes joined by a comma and a space, and
//! then the end token.
//!
//! A [`Constraint`] joins the automaton of a release with a tokenizer's vocabulary: for every state of the automaton it
//! knows the tokens that fit there, those included that end one code and begin the next. It holds only tokens that some
//! answer has, in *slots*; a model then computes the logits of these few hundred instead of its whole vocabulary. A
//! [`Walk`] is one answer on its way. [`Constraint::choices`] is exact: from every choice that it offers the answer can
//! be finished, with codes not given before and within the tokens that are left.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::Error;
use super::automaton::{Automaton, StateId};
use crate::codes::{Code, Release};
use crate::text::Tokenizer;

/// What an answer may be, beyond being billable codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The most codes in an answer; at least one is always given.
    pub max_codes: usize,
    /// Whether codes that an Excludes1 note keeps apart are never in one answer.
    pub excludes1: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { max_codes: 12, excludes1: false }
    }
}

/// The language of answers over a tokenizer's vocabulary.
#[derive(Debug)]
pub struct Constraint {
    release: Arc<Release>,
    automaton: Automaton,
    rules: Rules,
    /// By state of the automaton; after them the place between a comma and its space.
    places: Vec<Vec<Transition>>,
    /// Token ids by slot: those that codes and separators are spelled with, then the end tokens.
    tokens: Vec<u32>,
    n_spelling: usize,
}

/// A token that fits at a place.
#[derive(Clone, Debug)]
struct Transition {
    slot: u32,
    next: u32,
    /// What it adds to the number of the code being spelled; that number itself where a code is completed.
    n_before: u32,
    /// The codes that end inside the token: the first relative to the code being spelled, the others by number.
    completes: Box<[u32]>,
    /// Whether it holds bytes of the code being spelled, and of the one after the last that it completes.
    spells_first: bool,
    spells_last: bool,
}

/// An answer on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    place: u32,
    /// The number of the first code that begins as the one being spelled.
    rank: u32,
    /// The codes completed so far, by number.
    done: Vec<u32>,
}

/// A token that may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its slot.
    pub slot: u32,
    /// Its place among the transitions; none for an end token.
    transition: Option<u32>,
}

/// What a token did to an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advance {
    /// It spelled parts of the codes of these numbers within the answer, perhaps none.
    Spelled(Range<usize>),
    /// It ended the answer.
    Ended,
}

impl Constraint {
    /// Joins a release with a tokenizer.
    ///
    /// # Errors
    /// [`Error::NoCodes`] for an empty release, [`Error::Unspellable`] when the vocabulary lacks a token for one of the
    /// characters that codes are made of.
    pub fn new(release: Arc<Release>, tokenizer: &Tokenizer, rules: Rules) -> Result<Self, Error> {
        Self::from_vocabulary(release, &tokenizer.token_bytes(), &tokenizer.stop_ids(), rules)
    }

    /// As [`Constraint::new`], for a vocabulary given as the bytes of each token.
    ///
    /// # Errors
    /// As [`Constraint::new`].
    pub fn from_vocabulary(
        release: Arc<Release>,
        vocabulary: &[Option<Vec<u8>>],
        end_tokens: &[u32],
        rules: Rules,
    ) -> Result<Self, Error> {
        if release.is_empty() {
            return Err(Error::NoCodes);
        }
        let automaton = Automaton::of(release.billable().iter().map(|billable| billable.code.to_string()));
        let trie = TokenTrie::of(vocabulary, &[automaton.alphabet(), b", ".to_vec()].concat())?;
        let mut explorer = Explorer { automaton: &automaton, trie: &trie, slots: BTreeMap::new(), out: Vec::new() };
        let n_states = automaton.n_states() as u32;
        let mut places = Vec::with_capacity(n_states as usize + 1);
        for place in 0..=n_states {
            explorer.explore(0, place, &mut Path::default());
            places.push(std::mem::take(&mut explorer.out));
        }
        let slots = explorer.slots;
        let mut tokens = vec![0; slots.len()];
        slots.iter().for_each(|(&token, &slot)| tokens[slot as usize] = token);
        let n_spelling = tokens.len();
        tokens.extend(end_tokens);
        Ok(Self { release, automaton, rules, places, tokens, n_spelling })
    }

    /// The token ids that answers are made of, by slot.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The rules in force.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// The release that answers are from.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// Tokens that any answer may need: an answer given fewer cannot be promised to end.
    pub fn min_tokens(&self) -> usize {
        self.automaton.state(self.automaton.root()).longest as usize + 1
    }

    /// Tokens within which an answer of `max_codes` codes is spelled and ended, however unlucky its tokens.
    pub fn max_tokens(&self) -> usize {
        let len_code = self.min_tokens() - 1;
        self.rules.max_codes.max(1) * (len_code + 2) - 2 + 1
    }

    /// An answer of which nothing is given yet.
    pub fn start(&self) -> Walk {
        Walk { place: self.automaton.root(), rank: 0, done: Vec::new() }
    }

    /// The tokens that may follow when `n_left` are left, the end token counted; they replace what is in `out`. Never
    /// empty for a walk that started with [`Constraint::min_tokens`] left and took only choices offered.
    pub fn choices(&self, walk: &Walk, n_left: usize, out: &mut Vec<Choice>) {
        out.clear();
        let transitions = &self.places[walk.place as usize];
        let permitted = transitions.iter().zip(0..).filter(|(transition, _)| self.permits(walk, transition, n_left));
        out.extend(permitted.map(|(transition, idx)| Choice { slot: transition.slot, transition: Some(idx) }));
        if self.may_end(walk) {
            let ends = self.n_spelling as u32..self.tokens.len() as u32;
            out.extend(ends.map(|slot| Choice { slot, transition: None }));
        }
    }

    /// Takes a choice that [`Constraint::choices`] offered for this walk.
    pub fn advance(&self, walk: &mut Walk, choice: Choice) -> Advance {
        let Some(idx) = choice.transition else {
            walk.done.push(walk.rank);
            return Advance::Ended;
        };
        let transition = &self.places[walk.place as usize][idx as usize];
        let n_done = walk.done.len();
        walk.done.extend(transition.completed(walk.rank));
        walk.place = transition.next;
        walk.rank = if transition.completes.is_empty() { walk.rank } else { 0 } + transition.n_before;
        let first = n_done + usize::from(!transition.spells_first);
        let last = walk.done.len() + usize::from(transition.spells_last);
        Advance::Spelled(first..last.max(first))
    }

    /// The codes that a walk has completed, in order; all of them after the end token.
    pub fn codes(&self, walk: &Walk) -> Vec<Code> {
        let billable = self.release.billable();
        walk.done.iter().filter_map(|&number| Some(billable.get(number as usize)?.code)).collect()
    }

    /// The id of the token in a slot.
    pub fn token(&self, choice: Choice) -> u32 {
        self.tokens[choice.slot as usize]
    }

    fn may_end(&self, walk: &Walk) -> bool {
        !self.is_space(walk.place) && self.automaton.state(walk.place).is_final && self.is_free(walk.rank, &walk.done)
    }

    fn permits(&self, walk: &Walk, transition: &Transition, n_left: usize) -> bool {
        if transition.completes.is_empty() {
            let first = walk.rank + transition.n_before;
            return self.is_any_free(transition.next, first, &walk.done);
        }
        // Another code must follow: there must be room for it, in codes and in tokens.
        let n_needed = 1 + self.longest(transition.next) + 1;
        if walk.done.len() + transition.completes.len() >= self.rules.max_codes || n_left < n_needed {
            return false;
        }
        let mut done = walk.done.clone();
        for number in transition.completed(walk.rank) {
            if !self.is_free(number, &done) {
                return false;
            }
            done.push(number);
        }
        self.is_any_free(transition.next, transition.n_before, &done)
    }

    /// Whether a code that can be reached from `place`, the first of them numbered `first`, may still be given.
    fn is_any_free(&self, place: StateId, first: u32, done: &[u32]) -> bool {
        let from = if self.is_space(place) { self.automaton.root() } else { place };
        let n_codes = self.automaton.state(from).n_codes;
        if !self.rules.excludes1 && n_codes as usize > done.len() {
            return true;
        }
        (first..first + n_codes).any(|number| self.is_free(number, done))
    }

    /// Whether a code may be given after others.
    fn is_free(&self, number: u32, done: &[u32]) -> bool {
        let is_excluded = || self.rules.excludes1 && done.iter().any(|&other| self.excludes(number, other));
        !done.contains(&number) && !is_excluded()
    }

    fn excludes(&self, a: u32, b: u32) -> bool {
        let billable = self.release.billable();
        match (billable.get(a as usize), billable.get(b as usize)) {
            (Some(a), Some(b)) => self.release.excludes1(a.code, b.code).is_some(),
            _ => false,
        }
    }

    /// Bytes of the longest way from a place to the end of its code.
    fn longest(&self, place: u32) -> usize {
        let of = |state| self.automaton.state(state).longest as usize;
        if self.is_space(place) { 1 + of(self.automaton.root()) } else { of(place) }
    }

    fn is_space(&self, place: u32) -> bool {
        place as usize == self.automaton.n_states()
    }
}

impl Transition {
    /// The codes that end inside the token, by number.
    fn completed(&self, rank: u32) -> impl Iterator<Item = u32> {
        self.completes.iter().enumerate().map(move |(idx, &number)| if idx == 0 { rank + number } else { number })
    }
}

/// The tokens made of the bytes of answers, by their bytes.
struct TokenTrie {
    nodes: Vec<TrieNode>,
}

#[derive(Default)]
struct TrieNode {
    children: BTreeMap<u8, usize>,
    tokens: Vec<u32>,
}

impl TokenTrie {
    fn of(vocabulary: &[Option<Vec<u8>>], alphabet: &[u8]) -> Result<Self, Error> {
        let mut nodes = vec![TrieNode::default()];
        for (bytes, id) in vocabulary.iter().zip(0..) {
            let Some(bytes) = bytes.as_deref().filter(|bytes| !bytes.is_empty()) else { continue };
            if !bytes.iter().all(|byte| alphabet.contains(byte)) {
                continue;
            }
            let mut at = 0;
            for &byte in bytes {
                let new = nodes.len();
                at = *nodes[at].children.entry(byte).or_insert(new);
                if at == new {
                    nodes.push(TrieNode::default());
                }
            }
            nodes[at].tokens.push(id);
        }
        let is_token = |byte: &u8| nodes[0].children.get(byte).is_some_and(|&child| !nodes[child].tokens.is_empty());
        match alphabet.iter().find(|byte| !is_token(byte)) {
            Some(&byte) => Err(Error::Unspellable { character: char::from(byte) }),
            None => Ok(Self { nodes }),
        }
    }
}

/// What a token has done so far, byte by byte.
#[derive(Default)]
struct Path {
    rank: u32,
    completes: Vec<u32>,
    spells_first: bool,
    /// Whether the code after the last completed one has bytes.
    spells_last: bool,
}

/// Finds the tokens that fit at a place: the token trie walked together with the automaton.
struct Explorer<'a> {
    automaton: &'a Automaton,
    trie: &'a TokenTrie,
    slots: BTreeMap<u32, u32>,
    out: Vec<Transition>,
}

impl Explorer<'_> {
    fn explore(&mut self, node: usize, place: u32, path: &mut Path) {
        let trie = self.trie;
        for &token in &trie.nodes[node].tokens {
            let n_slots = self.slots.len() as u32;
            self.out.push(Transition {
                slot: *self.slots.entry(token).or_insert(n_slots),
                next: place,
                n_before: path.rank,
                completes: path.completes.as_slice().into(),
                spells_first: path.spells_first,
                spells_last: path.spells_last,
            });
        }
        let space = self.automaton.n_states() as u32;
        for (&byte, &child) in &trie.nodes[node].children {
            if place == space {
                if byte == b' ' {
                    self.explore(child, self.automaton.root(), path);
                }
                continue;
            }
            let state = self.automaton.state(place);
            let before = (path.rank, path.spells_first, path.spells_last);
            if let Some(edge) = state.edge(byte) {
                path.rank += edge.n_before;
                path.spells_first |= path.completes.is_empty();
                path.spells_last = true;
                self.explore(child, edge.next, path);
                (path.rank, path.spells_first, path.spells_last) = before;
            }
            if state.is_final && byte == b',' {
                path.completes.push(path.rank);
                (path.rank, path.spells_last) = (0, false);
                self.explore(child, space, path);
                path.completes.pop();
                (path.rank, path.spells_first, path.spells_last) = before;
            }
        }
    }
}
