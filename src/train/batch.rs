//! A micro-batch: tokenized records packed into one row, and the rows whose next token is scored.
//!
//! A token's hidden state depends on what comes before it, so records that begin alike share those rows: the instruction that all
//! of them have, a prompt before its answers. The losses and gradients are those of separate records; dropout draws one mask for
//! what is shared.

use std::collections::HashMap;
use std::ops::Range;

use crate::config::NllOn;
use crate::model::Segment;
use crate::text::Tokens;

/// Fewer tokens are not shared: each segment that begins costs attention tiles of its own.
const MIN_SHARED: usize = 4;

/// A packed micro-batch, still plain numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The token ids of all segments, one after another.
    pub ids: Vec<i64>,
    pub segments: Vec<Segment>,
    /// Rows of `ids` whose hidden state predicts `targets`, in order. A row may stand for several targets: the last token of a
    /// prompt predicts the first of either answer.
    pub rows: Vec<i64>,
    pub targets: Vec<i64>,
}

/// Which records of a batch share the tokens that they begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All that begin alike.
    All,
    /// Only the answers to one prompt share that.
    Prompts,
}

/// A tokenized preference record.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferenceTokens {
    pub prompt: Vec<u32>,
    /// End token included.
    pub chosen: Vec<u32>,
    /// End token included.
    pub rejected: Vec<u32>,
}

/// The places of one preference record's targets in [`Batch::targets`].
#[derive(Clone, Debug, PartialEq)]
pub struct PreferenceSpans {
    /// The prompt's tokens after its first; empty when the likelihood counts the answer only.
    pub prompt: Range<usize>,
    pub chosen: Range<usize>,
    pub rejected: Range<usize>,
}

impl PreferenceTokens {
    /// The number of tokens, the prompt counted once.
    pub fn len(&self) -> usize {
        self.prompt.len() + self.chosen.len() + self.rejected.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Batch {
    /// Scores the tokens of a sequence, whose rows are `rows`, from `places`.
    fn score(&mut self, ids: &[u32], rows: &[i64], places: impl Iterator<Item = usize>) -> Range<usize> {
        let first = self.targets.len();
        for idx in places {
            self.rows.push(rows[idx - 1]);
            self.targets.push(i64::from(ids[idx]));
        }
        first..self.targets.len()
    }

    /// Adds the sequences of all records, `n` each. Gives the row of each one's tokens.
    fn append_all(&mut self, sequences: &[&[u32]], n: usize, sharing: Sharing) -> Vec<Vec<i64>> {
        match sharing {
            Sharing::All => self.append(sequences),
            Sharing::Prompts => sequences.chunks(n).flat_map(|record| self.append(record)).collect(),
        }
    }

    /// Adds sequences, those that begin alike after what they share. Gives the row of each one's tokens.
    fn append(&mut self, sequences: &[&[u32]]) -> Vec<Vec<i64>> {
        let mut rows: Vec<Vec<i64>> = sequences.iter().map(|ids| Vec::with_capacity(ids.len())).collect();
        self.grow(sequences, &(0..sequences.len()).collect::<Vec<_>>(), 0, &mut rows);
        rows
    }

    /// Adds what is left of some sequences, at a depth of the forest; `rows` has what is there of them.
    fn grow(&mut self, sequences: &[&[u32]], members: &[usize], depth: usize, rows: &mut [Vec<i64>]) {
        for alike in alike(sequences, members, rows) {
            let [first, others @ ..] = &*alike else { continue };
            let rest = |idx: &usize| &sequences[*idx][rows[*idx].len()..];
            let ids = rest(first);
            let shared = others.iter().map(|other| ids.iter().zip(rest(other)).take_while(|(a, b)| a == b).count());
            let len = shared.min().unwrap_or(ids.len());
            let start = self.ids.len() as i64;
            self.ids.extend(ids[..len].iter().map(|&id| i64::from(id)));
            self.segments.push(Segment { depth, len });
            alike.iter().for_each(|&idx| rows[idx].extend(start..start + len as i64));
            if !others.is_empty() {
                self.grow(sequences, &alike, depth + 1, rows);
            }
        }
    }
}

/// Groups of those sequences whose next tokens are the same, in the order of their first members. Those without more tokens are in
/// none.
fn alike(sequences: &[&[u32]], members: &[usize], rows: &[Vec<i64>]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut group_of: HashMap<&[u32], usize> = HashMap::new();
    for &member in members {
        let rest = &sequences[member][rows[member].len()..];
        let known = rest.get(..MIN_SHARED).map(|next| *group_of.entry(next).or_insert(groups.len()));
        match known.and_then(|number| groups.get_mut(number)) {
            Some(group) => group.push(member),
            None if rest.is_empty() => {}
            None => groups.push(vec![member]),
        }
    }
    groups
}

/// Packs records for SFT: every target token but a record's first is scored from the row before it.
pub fn pack_records<'a>(records: impl IntoIterator<Item = &'a Tokens>, sharing: Sharing) -> Batch {
    let records: Vec<&Tokens> = records.into_iter().collect();
    let mut batch = Batch::default();
    let sequences: Vec<&[u32]> = records.iter().map(|record| &*record.ids).collect();
    for (record, rows) in records.iter().zip(batch.append_all(&sequences, 1, sharing)) {
        batch.score(&record.ids, &rows, (1..record.len()).filter(|&idx| record.is_target[idx]));
    }
    batch
}

/// Packs preference records: a prompt once for both answers. The answers are scored, and, where the likelihood counts it, the prompt
/// but for its first token.
pub fn pack_preferences<'a>(
    records: impl IntoIterator<Item = &'a PreferenceTokens>,
    nll_on: NllOn,
    sharing: Sharing,
) -> (Batch, Vec<PreferenceSpans>) {
    let records: Vec<&PreferenceTokens> = records.into_iter().collect();
    let answered = |record: &&PreferenceTokens| {
        [&record.chosen, &record.rejected].map(|answer| [&*record.prompt, answer].concat())
    };
    let sequences: Vec<Vec<u32>> = records.iter().flat_map(answered).collect();
    let mut batch = Batch::default();
    let rows = batch.append_all(&sequences.iter().map(Vec::as_slice).collect::<Vec<_>>(), 2, sharing);
    let (pairs, rows) = (sequences.as_chunks::<2>().0, rows.as_chunks::<2>().0);
    let spans = records.iter().zip(pairs).zip(rows).map(|((record, [chosen, rejected]), [of_chosen, of_rejected])| {
        let n_prompt = record.prompt.len();
        let prompt = if nll_on == NllOn::All { 1..n_prompt } else { 0..0 };
        PreferenceSpans {
            prompt: batch.score(chosen, of_chosen, prompt),
            chosen: batch.score(chosen, of_chosen, n_prompt..chosen.len()),
            rejected: batch.score(rejected, of_rejected, n_prompt..rejected.len()),
        }
    });
    let spans = spans.collect();
    (batch, spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ids: &[u32], is_target: &[bool]) -> Tokens {
        Tokens::new(ids.to_vec(), is_target.to_vec())
    }

    fn segments(batch: &Batch) -> Vec<(usize, usize)> {
        batch.segments.iter().map(|segment| (segment.len, segment.depth)).collect()
    }

    #[test]
    fn sft_scores_targets_from_the_row_before() {
        let records = [record(&[1, 2, 3], &[false, true, true]), record(&[4, 5], &[true, true])];
        for sharing in [Sharing::All, Sharing::Prompts] {
            let batch = pack_records(&records, sharing);
            assert_eq!(batch.ids, [1, 2, 3, 4, 5]);
            assert_eq!((batch.rows, batch.targets), (vec![0, 1, 3], vec![2, 3, 5]));
        }
    }

    #[test]
    fn records_share_what_they_begin_with() {
        let last = |ids: &[u32]| record(ids, &(1..=ids.len()).map(|idx| idx == ids.len()).collect::<Vec<_>>());
        let records = [
            last(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
            last(&[1, 2, 3, 4, 20, 21, 22, 23]),
            last(&[30]),
            last(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12]),
            // Too little to share, and nothing of its own.
            last(&[1, 2, 3, 50]),
            last(&[1, 2, 3, 4, 20, 21, 22, 23]),
        ];
        let batch = pack_records(&records, Sharing::All);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 20, 21, 22, 23, 30, 1, 2, 3, 50]);
        assert_eq!(segments(&batch), [(4, 0), (5, 1), (1, 2), (2, 2), (4, 1), (1, 0), (4, 0)]);
        assert_eq!(batch.rows, [8, 14, 10, 19, 14]);
        assert_eq!(batch.targets, [10, 23, 12, 50, 23]);

        let apart = pack_records(&records, Sharing::Prompts);
        assert_eq!(apart.segments, records.each_ref().map(|record| Segment::plain(record.len())));
        assert_eq!(apart.targets, batch.targets);
    }

    #[test]
    fn both_answers_start_from_the_last_token_of_the_prompt() {
        let prompt = vec![1, 2, 3, 4, 5];
        let record = PreferenceTokens { prompt, chosen: vec![6, 7], rejected: vec![8] };
        let other = PreferenceTokens { prompt: vec![9, 10, 11, 12], ..record.clone() };
        for sharing in [Sharing::All, Sharing::Prompts] {
            let (batch, spans) = pack_preferences([&record, &other], NllOn::All, sharing);
            assert_eq!(batch.ids, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 6, 7, 8]);
            assert_eq!(segments(&batch), [(5, 0), (2, 1), (1, 1), (4, 0), (2, 1), (1, 1)]);
            assert_eq!(batch.rows, [0, 1, 2, 3, 4, 5, 4, 8, 9, 10, 11, 12, 11]);
            assert_eq!(batch.targets, [2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 6, 7, 8]);
            assert_eq!(spans[1], PreferenceSpans { prompt: 7..10, chosen: 10..12, rejected: 12..13 });

            let (batch, spans) = pack_preferences([&record], NllOn::Completion, sharing);
            assert_eq!((batch.rows, batch.targets), (vec![4, 5, 4], vec![6, 7, 8]));
            assert_eq!(spans[0], PreferenceSpans { prompt: 0..0, chosen: 0..2, rejected: 2..3 });
        }
    }

    #[test]
    fn prompts_share_their_beginning_and_answers_theirs() {
        let record = |last: u32| PreferenceTokens {
            prompt: vec![1, 2, 3, 4, last],
            chosen: vec![5, 6, 7, 8, 9],
            rejected: vec![5, 6, 7, 8, 10, 11],
        };
        let (batch, spans) = pack_preferences([&record(20), &record(21)], NllOn::All, Sharing::All);
        assert_eq!(segments(&batch), [(4, 0), (5, 1), (1, 2), (2, 2), (5, 1), (1, 2), (2, 2)]);
        assert_eq!(batch.rows[spans[1].prompt.clone()], [0, 1, 2, 3]);
        assert_eq!(batch.rows[spans[1].chosen.clone()], [12, 13, 14, 15, 16]);
        assert_eq!(batch.rows[spans[1].rejected.clone()], [12, 13, 14, 15, 16, 18]);
        let (batch, _) = pack_preferences([&record(20), &record(21)], NllOn::All, Sharing::Prompts);
        assert_eq!(segments(&batch), [(9, 0), (1, 1), (2, 1), (9, 0), (1, 1), (2, 1)]);
    }
}
