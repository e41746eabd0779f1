//! `axismapper codes diff`: what a new release adds, deletes and renames.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::grouped;
use crate::cli::release::CacheArgs;
use crate::cli::{write_json, write_line};
use crate::codes::{Code, Deleted, Diff, Entry, NoteChange, Renamed, diff};
use crate::diag::Failure;

/// Compare two releases: codes added, deleted and renamed, and notes that changed
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The old release: a file, `builtin`, or a fetched release as in 2026-april
    old: PathBuf,
    /// The new release: a file, `builtin`, or a fetched release as in 2027
    new: PathBuf,
    /// List changed notes too
    #[arg(long)]
    notes: bool,
    /// Print the result as JSON, notes included
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let (old, new) = (args.cache.load(&args.old)?, args.cache.load(&args.new)?);
    let diff = diff(&old, &new);
    if args.json {
        return write_json(out, &diff);
    }
    let rows = rows_of(&diff, args.notes);
    let width = |column: fn(&Row) -> usize, title: &str| rows.iter().map(column).fold(title.len(), usize::max);
    let (changes, codes) = (width(|row| row.change.len(), "change"), width(|row| row.code.len(), "code"));
    let mut write =
        |change: &str, code: &str, text: &str| write_line(out, &format!("{change:<changes$}  {code:<codes$}  {text}"));
    if !rows.is_empty() {
        write("change", "code", "description")?;
    }
    for Row { change, code, text } in &rows {
        write(change, code, text)?;
    }
    let counts = [(diff.added.len(), "added"), (diff.deleted.len(), "deleted"), (diff.renamed.len(), "renamed")];
    let counts = counts.map(|(count, what)| format!("{} {what}", grouped(count))).join(", ");
    let changes = grouped(diff.notes.len());
    write_line(out, &format!("{} to {}: {counts}; notes changed in {changes} places", old.name(), new.name()))
}

/// A line of the table; one that goes on with the line before has no change and no code.
struct Row {
    change: &'static str,
    code: String,
    text: String,
}

impl Row {
    fn new(change: &'static str, code: Code, text: impl Into<String>) -> Self {
        Self { change, code: code.to_string(), text: text.into() }
    }

    fn further(text: String) -> Self {
        Self { change: "", code: String::new(), text }
    }
}

fn rows_of(diff: &Diff, with_notes: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    rows.extend(diff.added.iter().map(|Entry { code, description }| Row::new("added", *code, *description)));
    for Deleted { code, description, now_below } in &diff.deleted {
        rows.push(Row::new("deleted", *code, *description));
        if let [first, ..] = now_below.as_slice() {
            rows.push(Row::further(format!("now a header, {} codes from {first}", now_below.len())));
        }
    }
    for Renamed { code, old, new } in &diff.renamed {
        rows.push(Row::new("renamed", *code, *old));
        rows.push(Row::further(format!("now: {new}")));
    }
    for NoteChange { code, kind, added, deleted } in diff.notes.iter().filter(|_| with_notes) {
        let row = |change| move |note: &&str| Row::new(change, *code, format!("{kind}: {note}"));
        rows.extend(deleted.iter().map(row("note deleted")));
        rows.extend(added.iter().map(row("note added")));
    }
    rows
}
