//! The token ids of one record, with the tokens that a loss counts and those that may be cut.

use std::ops::Range;

use super::Error;

/// A tokenized record. `ids` and `is_target` have the same length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, in order.
    pub ids: Vec<u32>,
    /// Whether the loss counts the prediction of this token.
    pub is_target: Vec<bool>,
    pub(super) cut: Cut,
}

/// What an over-long record may lose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Tokens out of the middle of this range, which is prompt text.
    Middle(Range<usize>),
    /// Tokens at the end: running text, of which every token is a target.
    End,
}

impl Tokens {
    /// A record of ids of which some are targets; too long, it loses tokens from the middle of those before its first
    /// target. The shorter of the two lists decides the length.
    pub fn new(mut ids: Vec<u32>, mut is_target: Vec<bool>) -> Self {
        let len = ids.len().min(is_target.len());
        ids.truncate(len);
        is_target.truncate(len);
        let n_prompt = is_target.iter().position(|&is_target| is_target).unwrap_or(len);
        Self { ids, is_target, cut: Cut::Middle(0..n_prompt) }
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The number of tokens that the loss counts.
    pub fn n_targets(&self) -> usize {
        self.is_target.iter().filter(|&&is_target| is_target).count()
    }

    /// Where the answer starts: the index of the first target, or the length when there is none.
    pub fn first_target(&self) -> usize {
        self.is_target.iter().position(|&is_target| is_target).unwrap_or(self.len())
    }

    /// Cuts the record to at most `max_seq_length` tokens and returns how many were removed.
    ///
    /// A chat record or a prompt loses tokens from the middle of its last user turn, never from an answer; running
    /// text loses its end.
    ///
    /// # Errors
    /// [`Error::TooLong`] when removing the whole of that turn is not enough; the record is then unchanged.
    pub fn fit(&mut self, max_seq_length: usize) -> Result<usize, Error> {
        let excess = self.len().saturating_sub(max_seq_length);
        if excess == 0 {
            return Ok(0);
        }
        let removed = match &self.cut {
            Cut::End => max_seq_length..self.len(),
            Cut::Middle(spare) if spare.len() < excess => {
                return Err(Error::TooLong { len_tokens: self.len(), max_seq_length, removable: spare.len() });
            }
            Cut::Middle(spare) => {
                let start = spare.start + (spare.len() - excess) / 2;
                start..start + excess
            }
        };
        self.ids.drain(removed.clone());
        self.is_target.drain(removed);
        if let Cut::Middle(spare) = &mut self.cut {
            spare.end -= excess;
        }
        Ok(excess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n_before: usize, n_spare: usize, n_answer: usize) -> Tokens {
        let len = n_before + n_spare + n_answer;
        Tokens {
            ids: (0..len as u32).collect(),
            is_target: (0..len).map(|idx| idx >= n_before + n_spare).collect(),
            cut: Cut::Middle(n_before..n_before + n_spare),
        }
    }

    #[test]
    fn only_the_middle_of_the_prompt_is_cut() {
        let mut tokens = record(3, 6, 2);
        assert_eq!(tokens.fit(8).unwrap(), 3);
        assert_eq!(tokens.ids, [0, 1, 2, 3, 7, 8, 9, 10]);
        assert_eq!(tokens.n_targets(), 2);
        assert_eq!(tokens.first_target(), 6);
        assert_eq!(tokens.fit(8).unwrap(), 0);
        assert_eq!(tokens.fit(5).unwrap(), 3);
        assert_eq!(tokens.ids, [0, 1, 2, 9, 10]);
        let before = tokens.clone();
        assert!(matches!(tokens.fit(4), Err(Error::TooLong { len_tokens: 5, removable: 0, .. })));
        assert_eq!(tokens, before);
    }

    #[test]
    fn running_text_loses_its_end() {
        let mut tokens = Tokens { ids: vec![7, 8, 9], is_target: vec![true; 3], cut: Cut::End };
        assert_eq!(tokens.fit(2).unwrap(), 1);
        assert_eq!(tokens.ids, [7, 8]);
        assert_eq!(tokens.is_target.len(), 2);
    }
}
