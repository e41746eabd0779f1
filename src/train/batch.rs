//! A micro-batch: tokenized records packed into one row, and the rows whose next token is scored.

use std::ops::Range;

use crate::config::NllOn;
use crate::model::Segment;
use crate::text::Tokens;

/// A packed micro-batch, still plain numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids of every record, one after another.
    pub ids: Vec<i64>,
    pub segments: Vec<Segment>,
    /// Rows of `ids` whose hidden state predicts `targets`, in order. A row may stand for two targets: the last token
    /// of a prompt predicts the first of either answer.
    pub rows: Vec<i64>,
    pub targets: Vec<i64>,
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

impl Batch {
    fn score(&mut self, row: usize, target: u32) {
        self.rows.push(row as i64);
        self.targets.push(i64::from(target));
    }

    fn append(&mut self, ids: &[u32]) -> usize {
        let start = self.ids.len();
        self.ids.extend(ids.iter().map(|&id| i64::from(id)));
        start
    }
}

/// Packs records for SFT: every target token but a record's first is scored from the row before it.
pub fn pack_records<'a>(records: impl IntoIterator<Item = &'a Tokens>) -> Batch {
    let mut batch = Batch::default();
    for record in records {
        let start = batch.append(&record.ids);
        batch.segments.push(Segment::plain(record.ids.len()));
        for (idx, (&id, &is_target)) in record.ids.iter().zip(&record.is_target).enumerate().skip(1) {
            if is_target {
                batch.score(start + idx - 1, id);
            }
        }
    }
    batch
}

/// Packs preference records: the prompt once, both answers after it as branches. The answers are scored, and, where the
/// likelihood counts it, the prompt but for its first token.
pub fn pack_preferences<'a>(
    records: impl IntoIterator<Item = &'a PreferenceTokens>,
    nll_on: NllOn,
) -> (Batch, Vec<PreferenceSpans>) {
    let mut batch = Batch::default();
    let mut spans = Vec::new();
    for record in records {
        let start = batch.append(&record.prompt);
        let first_target = batch.targets.len();
        if nll_on == NllOn::All {
            for (idx, &id) in record.prompt.iter().enumerate().skip(1) {
                batch.score(start + idx - 1, id);
            }
        }
        let last_of_prompt = start + record.prompt.len() - 1;
        let answer = |batch: &mut Batch, ids: &[u32]| {
            let first_target = batch.targets.len();
            let start = batch.append(ids);
            for (idx, &id) in ids.iter().enumerate() {
                batch.score(if idx == 0 { last_of_prompt } else { start + idx - 1 }, id);
            }
            first_target..batch.targets.len()
        };
        let prompt = first_target..batch.targets.len();
        let chosen = answer(&mut batch, &record.chosen);
        let rejected = answer(&mut batch, &record.rejected);
        batch.segments.push(Segment {
            len_trunk: record.prompt.len(),
            len_branches: vec![record.chosen.len(), record.rejected.len()],
        });
        spans.push(PreferenceSpans { prompt, chosen, rejected });
    }
    (batch, spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sft_scores_targets_from_the_row_before() {
        let record = |ids: &[u32], is_target: &[bool]| Tokens::new(ids.to_vec(), is_target.to_vec());
        let records = [record(&[1, 2, 3], &[false, true, true]), record(&[4, 5], &[true, true])];
        let batch = pack_records(&records);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5]);
        assert_eq!((batch.rows, batch.targets), (vec![0, 1, 3], vec![2, 3, 5]));
    }

    #[test]
    fn both_answers_start_from_the_last_token_of_the_prompt() {
        let record = PreferenceTokens { prompt: vec![1, 2], chosen: vec![3, 4], rejected: vec![5] };
        let (batch, spans) = pack_preferences([&record, &record], NllOn::All);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]);
        assert_eq!(batch.rows, [0, 1, 2, 1, 5, 6, 7, 6]);
        assert_eq!(batch.targets, [2, 3, 4, 5, 2, 3, 4, 5]);
        assert_eq!(spans[1], PreferenceSpans { prompt: 4..5, chosen: 5..7, rejected: 7..8 });

        let (batch, spans) = pack_preferences([&record], NllOn::Completion);
        assert_eq!((batch.rows, batch.targets), (vec![1, 2, 1], vec![3, 4, 5]));
        assert_eq!(spans[0], PreferenceSpans { prompt: 0..0, chosen: 0..2, rejected: 2..3 });
    }
}
