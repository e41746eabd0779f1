//! `axismapper codes build`: a published list made into the billable code set.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use super::grouped;
use crate::cli::{write_json, write_line};
use crate::codes::Release;
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
    /// List the Excludes1 notes that `codes check` cannot act on
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
    if !args.dry_run {
        write(args, &release)?;
    }
    let unparsed = release.unparsed_notes();
    let notes: Vec<Value> =
        unparsed.iter().map(|note| json!({"holder": note.holder.to_string(), "note": note.note})).collect();
    if args.json {
        let mut report = json!({
            "release": release.name(),
            "billable": release.len(),
            "entries": release.nodes().len(),
            "unparsed_excludes1": notes.len(),
            "out": (!args.dry_run).then(|| args.out.display().to_string()),
        });
        if args.verbose {
            report["notes"] = notes.into();
        }
        return write_json(out, &report);
    }
    let mut line = format!("{}: {} billable codes", release.name(), grouped(release.len()));
    if release.has_tree() {
        line += &format!(" from {} entries", grouped(release.nodes().len()));
        line += &format!("; {} Excludes1 notes name no code that a program can act on", unparsed.len());
    }
    write_line(out, &line)?;
    if args.verbose {
        for note in unparsed {
            write_line(out, &format!("  {}: {}", note.holder, note.note))?;
        }
    }
    let outcome = if args.dry_run { "would write" } else { "wrote" };
    write_line(out, &format!("{outcome} {}", args.out.display()))
}

fn write(args: &Args, release: &Release) -> Result<(), Failure> {
    if args.out.extension().is_some_and(|extension| extension == "table") {
        let table = release.to_table().ok_or_else(|| fsio::Error::BadFile {
            path: args.tabular.clone(),
            message: "a `.table` needs a tabular list; this file has billable codes only".into(),
        })?;
        return Ok(fsio::write_atomic(&args.out, |file| file.write_all(table.as_bytes()))?);
    }
    let entry = |billable: &crate::codes::Billable| (billable.code.to_string(), billable.description.clone().into());
    let entries: Map<String, Value> = release.billable().iter().map(entry).collect();
    Ok(fsio::write_json(&args.out, &entries)?)
}
