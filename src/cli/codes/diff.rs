//! `axismapper codes diff`: what a new release adds, deletes and renames.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::grouped;
use crate::cli::release::CacheArgs;
use crate::cli::{write_json, write_line};
use crate::codes::{Deleted, Entry, Renamed, diff};
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
    for Entry { code, description } in &diff.added {
        write_line(out, &format!("+ {code:<9} {description}"))?;
    }
    for Deleted { code, description, now_below } in &diff.deleted {
        let below = match now_below.as_slice() {
            [] => String::new(),
            [first, ..] => format!("; now a header, {} codes from {first}", now_below.len()),
        };
        write_line(out, &format!("- {code:<9} {description}{below}"))?;
    }
    for Renamed { code, old, new } in &diff.renamed {
        write_line(out, &format!("~ {code:<9} {old} -> {new}"))?;
    }
    for change in diff.notes.iter().filter(|_| args.notes) {
        for note in &change.deleted {
            write_line(out, &format!("- {:<9} {}: {note}", change.code, change.kind))?;
        }
        for note in &change.added {
            write_line(out, &format!("+ {:<9} {}: {note}", change.code, change.kind))?;
        }
    }
    let counts = [(diff.added.len(), "added"), (diff.deleted.len(), "deleted"), (diff.renamed.len(), "renamed")];
    let counts = counts.map(|(count, what)| format!("{} {what}", grouped(count))).join(", ");
    let changes = grouped(diff.notes.len());
    write_line(out, &format!("{} to {}: {counts}; notes changed in {changes} places", old.name(), new.name()))
}
