//! The minimal automaton of a set of codes: every code is a path of bytes from the root, and no two states accept the
//! same endings.
//!
//! It numbers the codes in their sorted order (a minimal perfect hash, as in Lucchesi and Kowaltowski 1993): the number
//! of a code is the sum of [`Edge::n_before`] along its path, and the codes that begin with a text are a range of
//! numbers. In: distinct texts. Out: an [`Automaton`], from which token masks and grammars are made.

use std::collections::HashMap;

/// The number of a state.
pub type StateId = u32;

/// A minimal acyclic automaton.
#[derive(Clone, Debug)]
pub struct Automaton {
    states: Vec<State>,
    root: StateId,
}

/// A state: the endings of some beginning of a code.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Whether a code may end here.
    pub is_final: bool,
    /// Sorted by byte.
    pub edges: Vec<Edge>,
    /// Endings in all.
    pub n_codes: u32,
    /// Bytes of the longest ending.
    pub longest: u32,
}

/// One byte further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    pub byte: u8,
    pub next: StateId,
    /// Endings of the state that sort before those through this edge.
    pub n_before: u32,
}

impl Automaton {
    /// The automaton of these texts, in any order; equal ones count once.
    pub fn of<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Self {
        let mut texts: Vec<S> = texts.into_iter().collect();
        texts.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        texts.dedup_by(|a, b| a.as_ref() == b.as_ref());
        let bytes: Vec<&[u8]> = texts.iter().map(|text| text.as_ref().as_bytes()).collect();
        let mut builder = Builder::default();
        let root = builder.state_of(&bytes, 0);
        Self { states: builder.states, root }
    }

    /// The state before the first byte.
    pub fn root(&self) -> StateId {
        self.root
    }

    /// A state by its number. Numbers come from this automaton only.
    pub fn state(&self, id: StateId) -> &State {
        &self.states[id as usize]
    }

    /// The number of states.
    pub fn n_states(&self) -> usize {
        self.states.len()
    }

    /// The number of codes.
    pub fn n_codes(&self) -> u32 {
        self.state(self.root).n_codes
    }

    /// The number of a code in sorted order; none for any other text.
    pub fn rank(&self, text: &str) -> Option<u32> {
        let mut state = self.state(self.root);
        let mut rank = 0;
        for &byte in text.as_bytes() {
            let edge = state.edge(byte)?;
            rank += edge.n_before;
            state = self.state(edge.next);
        }
        state.is_final.then_some(rank)
    }

    /// Every byte that occurs in a code, sorted.
    pub fn alphabet(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.states.iter().flat_map(|state| &state.edges).map(|edge| edge.byte).collect();
        bytes.sort_unstable();
        bytes.dedup();
        bytes
    }
}

impl State {
    /// The edge for a byte.
    pub fn edge(&self, byte: u8) -> Option<&Edge> {
        self.edges.binary_search_by_key(&byte, |edge| edge.byte).ok().map(|idx| &self.edges[idx])
    }
}

/// States made so far. Each is made after all that it leads to, so that equal states are found by equality.
#[derive(Default)]
struct Builder {
    states: Vec<State>,
    known: HashMap<State, StateId>,
}

impl Builder {
    /// The state after `depth` bytes of these texts, which share them.
    fn state_of(&mut self, texts: &[&[u8]], depth: usize) -> StateId {
        // The shortest of texts that share a beginning sorts first.
        let is_final = texts.first().is_some_and(|text| text.len() == depth);
        let mut state = State { is_final, edges: Vec::new(), n_codes: u32::from(is_final), longest: 0 };
        for group in texts[usize::from(is_final)..].chunk_by(|a, b| a[depth] == b[depth]) {
            let next = self.state_of(group, depth + 1);
            state.edges.push(Edge { byte: group[0][depth], next, n_before: state.n_codes });
            let below = &self.states[next as usize];
            state.n_codes += below.n_codes;
            state.longest = state.longest.max(below.longest + 1);
        }
        if let Some(&id) = self.known.get(&state) {
            return id;
        }
        let id = self.states.len() as StateId;
        self.states.push(state.clone());
        self.known.insert(state, id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Release;

    #[test]
    fn the_release_is_a_small_automaton_that_numbers_its_codes() {
        let release = Release::builtin().unwrap();
        let automaton = Automaton::of(release.billable().iter().map(|billable| billable.code.to_string()));
        assert_eq!(automaton.n_codes(), 74_719);
        assert!(automaton.n_states() < 3_500, "{} states", automaton.n_states());
        assert_eq!(automaton.state(automaton.root()).longest, 8);
        for (idx, billable) in release.billable().iter().enumerate() {
            assert_eq!(automaton.rank(&billable.code.to_string()), Some(idx as u32));
        }
        let headers = release.nodes().iter().filter(|node| !release.is_billable(node.code));
        assert!(headers.into_iter().all(|node| automaton.rank(&node.code.to_string()).is_none()));
        assert_eq!(automaton.rank(""), None);
        assert_eq!(automaton.rank("I10, I10"), None);
    }

    #[test]
    fn equal_endings_share_states_and_a_code_may_begin_another() {
        let automaton = Automaton::of(["B12", "A1", "A12", "A1", "B1"]);
        // After A or B, after 1, after 2, and the root.
        assert_eq!(automaton.n_states(), 4);
        let ranks = ["A1", "A12", "B1", "B12", "A", "B123"].map(|text| automaton.rank(text));
        assert_eq!(ranks, [Some(0), Some(1), Some(2), Some(3), None, None]);
        assert_eq!(automaton.alphabet(), *b"12AB");
        assert_eq!(Automaton::of(Vec::<String>::new()).n_codes(), 0);
    }
}
