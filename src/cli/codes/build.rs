//! `axismapper codes build`: a published list made into the billable code set.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use super::grouped;
use crate::cli::{write_json, write_line};
use crate::codes::{Release, UnparsedNote, diff};
use crate::diag::Failure;
use crate::fsio;

/// Make the billable code set out of the official tabular list
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The list as CMS or NCHS publish it: XML, .gz, the .zip as downloaded, or an order file
    #[arg(long, value_name = "FILE")]
    tabular: PathBuf,
    /// The file to write: `.json` for codes and descriptions, `.table` for the whole list in compact form
    #[arg(long, value_name = "FILE", default_value = "codes.json")]
    out: PathBuf,
    /// Hold the list against this order file of the same release; fail when their billable codes differ
    #[arg(long, value_name = "FILE")]
    order: Option<PathBuf>,
    /// List the notes that `codes check` cannot act on
    #[arg(long, short)]
    verbose: bool,
    /// Read and report, write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let release = Release::load(&args.tabular)?;
    let n_reworded = args.order.as_deref().map(|order| held_against(&release, order)).transpose()?;
    if !args.dry_run {
        write(args, &release)?;
    }
    let unparsed = release.unparsed_notes();
    let n_of = |kind: &str| unparsed.iter().filter(|note| note.kind == kind).count();
    let entry = |note: &UnparsedNote| json!({"kind": note.kind, "holder": note.holder.to_string(), "note": note.note});
    if args.json {
        let mut report = json!({
            "release": release.name(),
            "billable": release.len(),
            "entries": release.nodes().len(),
            "unparsed_excludes1": n_of("excludes1"),
            "unparsed_code_first": n_of("code_first"),
            "reworded_in_order": n_reworded,
            "out": (!args.dry_run).then(|| args.out.display().to_string()),
        });
        if args.verbose {
            report["notes"] = unparsed.iter().map(entry).collect();
        }
        return write_json(out, &report);
    }
    let mut line = format!("{}: {} billable codes", release.name(), grouped(release.len()));
    if release.has_tree() {
        line += &format!(" from {} entries", grouped(release.nodes().len()));
        let (excludes1, code_first) = (n_of("excludes1"), n_of("code_first"));
        line += &format!(
            "; {excludes1} Excludes1 and {code_first} code-first notes name no code that a program can act on"
        );
    }
    write_line(out, &line)?;
    if let Some(n_reworded) = n_reworded {
        write_line(out, &format!("the order file has the same codes; {n_reworded} are worded otherwise"))?;
    }
    if args.verbose {
        for note in unparsed {
            write_line(out, &format!("  {} {}: {}", note.kind, note.holder, note.note))?;
        }
    }
    let outcome = if args.dry_run { "would write" } else { "wrote" };
    write_line(out, &format!("{outcome} {}", args.out.display()))
}

/// The number of codes that an order file words otherwise; an error when it has other codes.
fn held_against(release: &Release, order: &Path) -> Result<usize, Failure> {
    let order_release = Release::load(order)?;
    let diff = diff(release, &order_release);
    if diff.added.is_empty() && diff.deleted.is_empty() {
        return Ok(diff.renamed.len());
    }
    let few = |codes: Vec<String>| codes.into_iter().take(5).collect::<Vec<_>>().join(", ");
    let (n_added, n_deleted) = (diff.added.len(), diff.deleted.len());
    let added = few(diff.added.iter().map(|entry| entry.code.to_string()).collect());
    let deleted = few(diff.deleted.iter().map(|entry| entry.code.to_string()).collect());
    let message = format!(
        "its billable codes are not those of the tabular list: {n_added} only here ({added}), {n_deleted} only there ({deleted})"
    );
    Err(fsio::Error::BadFile { path: order.to_owned(), message }.into())
}

fn write(args: &Args, release: &Release) -> Result<(), Failure> {
    if args.out.extension().is_some_and(|extension| extension == "table") {
        let table = release.to_table().ok_or_else(|| fsio::Error::BadFile {
            path: args.tabular.clone(),
            message: "a `.table` needs a tabular list; this file has billable codes only".into(),
        })?;
        return Ok(fsio::write_atomic(&args.out, |file| file.write_all(table.as_bytes()))?);
    }
    let entry = |billable: &crate::codes::Billable| (billable.code.to_string(), billable.description.as_str().into());
    let entries: Map<String, Value> = release.billable().iter().map(entry).collect();
    Ok(fsio::write_json(&args.out, &entries)?)
}
