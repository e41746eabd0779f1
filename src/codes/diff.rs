//! What changes from one release to the next: the input of a continual update of model and data.

use std::collections::BTreeSet;

use serde::Serialize;

use super::release::{Billable, Release};
use super::{Code, Text};

/// The differences between two releases, each list sorted by code.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diff<'a> {
    /// Billable in the new release only.
    pub added: Vec<Entry<'a>>,
    /// Billable in the old release only.
    pub deleted: Vec<Deleted<'a>>,
    /// Billable in both, with another description.
    pub renamed: Vec<Renamed<'a>>,
    /// Notes printed under a code that is an entry of both. Empty where a release has no notes.
    pub notes: Vec<NoteChange<'a>>,
}

/// A billable code of the new release.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Entry<'a> {
    /// The code.
    pub code: Code,
    /// Its full description.
    pub description: &'a str,
}

/// A code that is no longer billable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deleted<'a> {
    /// The code.
    pub code: Code,
    /// Its full description in the old release.
    pub description: &'a str,
    /// The billable codes below it in the new release, where it became a header.
    pub now_below: Vec<Code>,
}

/// A code whose description changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Renamed<'a> {
    /// The code.
    pub code: Code,
    /// The description in the old release.
    pub old: &'a str,
    /// The description in the new release.
    pub new: &'a str,
}

/// The notes of one kind under one code.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NoteChange<'a> {
    /// The entry that the notes are printed under.
    pub code: Code,
    /// As in `excludes1`.
    pub kind: &'static str,
    /// Notes of the new release only.
    pub added: Vec<&'a str>,
    /// Notes of the old release only.
    pub deleted: Vec<&'a str>,
}

/// Compares two releases.
pub fn diff<'a>(old: &'a Release, new: &'a Release) -> Diff<'a> {
    let entry = |billable: &'a Billable| Entry { code: billable.code, description: &billable.description };
    let added = new.billable().iter().filter(|billable| !old.is_billable(billable.code)).map(entry).collect();
    let mut deleted = Vec::new();
    let mut renamed = Vec::new();
    for Billable { code, description, .. } in old.billable() {
        match new.get(*code) {
            None => {
                let now_below = new.billable_under(*code).iter().map(|billable| billable.code).collect();
                deleted.push(Deleted { code: *code, description, now_below });
            }
            Some(now) if now.description != *description => {
                renamed.push(Renamed { code: *code, old: description, new: &now.description });
            }
            Some(_) => {}
        }
    }
    Diff { added, deleted, renamed, notes: note_changes(old, new) }
}

fn note_changes<'a>(old: &'a Release, new: &'a Release) -> Vec<NoteChange<'a>> {
    let mut changes = Vec::new();
    for before in old.nodes() {
        let Some(after) = new.node(before.code) else { continue };
        let kinds = [
            ("inclusion_terms", &before.inclusion_terms, &after.inclusion_terms),
            ("includes", &before.includes, &after.includes),
            ("excludes1", &before.excludes1, &after.excludes1),
            ("excludes2", &before.excludes2, &after.excludes2),
            ("code_first", &before.code_first, &after.code_first),
            ("use_additional", &before.use_additional, &after.use_additional),
            ("code_also", &before.code_also, &after.code_also),
        ];
        for (kind, before, now) in kinds {
            let (deleted, added) = (only_in(before, now), only_in(now, before));
            if !deleted.is_empty() || !added.is_empty() {
                changes.push(NoteChange { code: after.code, kind, added, deleted });
            }
        }
    }
    changes.sort_by_key(|change| change.code);
    changes
}

fn only_in<'a>(notes: &'a [Text], others: &[Text]) -> Vec<&'a str> {
    let others: BTreeSet<&str> = others.iter().map(Text::as_str).collect();
    notes.iter().map(Text::as_str).filter(|note| !others.contains(note)).collect()
}
