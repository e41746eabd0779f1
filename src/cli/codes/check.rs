//! `axismapper codes check`: one set of codes, or a file of them.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};

use super::{Refused, grouped};
use crate::cli::release::ReleaseArgs;
use crate::cli::{write_json, write_line, written};
use crate::codes::{Check, Release, Severity, Status, Suggestion, check};
use crate::diag::Failure;
use crate::fsio;

/// Suggestions printed under one code; JSON has more.
const MAX_PRINTED: usize = 8;

/// Check codes, and whether they can stand together on one claim
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The codes of one claim, principal diagnosis first, separated by commas or spaces
    #[arg(value_name = "CODE")]
    set: Vec<String>,
    /// Check every line of a file: codes separated by commas, or JSON with a `codes` list; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "set")]
    input: Option<PathBuf>,
    /// Print the result as JSON, one line for each set
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    release: ReleaseArgs,
}

/// A scenario record, as far as it is read here.
#[derive(Deserialize)]
struct Record {
    codes: Vec<String>,
}

/// One set of a file, as JSON.
#[derive(Serialize)]
struct Line<'a> {
    line: usize,
    #[serde(flatten)]
    check: Check<'a>,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let release = args.release.load()?;
    if args.input.is_some() {
        return run_file(args, &release, out);
    }
    let texts: Vec<&str> = args.set.iter().flat_map(|arg| split(arg)).collect();
    if texts.is_empty() {
        return Err(Refused::NoCodes.into());
    }
    let check = check(&release, &texts);
    if args.json {
        write_json(out, &check)?;
    } else {
        print(out, &check)?;
    }
    if check.claimable {
        return Ok(());
    }
    Err(Refused::NotClaimable { message: format!("the set is not claimable: {}", count_of_faults(&check)) }.into())
}

/// Checks line by line, so that memory does not grow with the file. Only sets with something to say are printed.
fn run_file(args: &Args, release: &Release, out: &mut dyn Write) -> Result<(), Failure> {
    let (mut n_sets, mut n_refused) = (0, 0);
    let mut outcome = Ok(());
    // A line at a time would be a system call for each of perhaps a million sets.
    let mut buffered = BufWriter::with_capacity(1 << 16, &mut *out);
    let read = fsio::for_each_line(args.input.as_deref().unwrap_or("-".as_ref()), |line, text| {
        let record: Record = match text.starts_with('{') {
            true => serde_json::from_str(text).map_err(|error| fsio::json_fault(&error))?,
            false => Record { codes: split(text).map(str::to_owned).collect() },
        };
        let texts: Vec<&str> = record.codes.iter().map(String::as_str).collect();
        let check = check(release, &texts);
        n_sets += 1;
        n_refused += usize::from(!check.claimable);
        if outcome.is_ok() && args.json {
            outcome = write_json(&mut buffered, &Line { line, check });
        } else if outcome.is_ok() && !(check.claimable && check.faults.is_empty()) {
            outcome = write_line(&mut buffered, &format!("line {line}:")).and_then(|()| print(&mut buffered, &check));
        }
        Ok(())
    });
    // What was found before a bad line is shown too.
    let flushed = written(buffered.flush());
    drop(buffered);
    read?;
    outcome.and(flushed)?;
    let summary = format!("{} of {} sets are not claimable", grouped(n_refused), grouped(n_sets));
    if n_refused > 0 {
        return Err(Refused::NotClaimable { message: summary }.into());
    }
    if args.json { Ok(()) } else { write_line(out, &summary) }
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ';', ' ', '\t']).map(str::trim).filter(|text| !text.is_empty())
}

fn count_of_faults(check: &Check) -> String {
    let n_codes = check.codes.iter().filter(|checked| !matches!(checked.status, Status::Billable { .. })).count();
    let n_conflicts = check.faults.iter().filter(|fault| fault.severity == Severity::Error).count();
    let counted = |count: usize, one: &str, more: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {more}")),
    };
    let parts = [
        counted(n_codes, "code is not billable", "codes are not billable"),
        counted(n_conflicts, "conflict in the set", "conflicts in the set"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn print(out: &mut dyn Write, check: &Check) -> Result<(), Failure> {
    for checked in &check.codes {
        let code = checked.code.map_or_else(|| checked.text.clone(), |code| code.to_string());
        match &checked.status {
            Status::Billable { description } => write_line(out, &format!("{code:<9} billable      {description}"))?,
            Status::NotBillable { description, reason, n_below, below } => {
                let description = description.map(|text| format!("{text}; ")).unwrap_or_default();
                write_line(out, &format!("{code:<9} not billable  {description}{reason}"))?;
                print_suggestions(out, below, *n_below)?;
            }
            Status::Unknown { reason, nearest } => {
                let reason = reason.as_deref().unwrap_or("not in the release; the nearest codes are");
                write_line(out, &format!("{code:<9} unknown       {reason}"))?;
                print_suggestions(out, nearest, nearest.len())?;
            }
            Status::NotACode => write_line(out, &format!("{code:<9} not a code    codes look like I10 or S82.201A"))?,
        }
    }
    for fault in &check.faults {
        let severity = if fault.severity == Severity::Error { "error" } else { "warning" };
        let note = fault.note.map(|note| format!(": \"{note}\"")).unwrap_or_default();
        write_line(out, &format!("{severity}: {}{note}", fault.message))?;
    }
    Ok(())
}

fn print_suggestions(out: &mut dyn Write, suggestions: &[Suggestion], n_all: usize) -> Result<(), Failure> {
    let n_printed = suggestions.len().min(MAX_PRINTED);
    for Suggestion { code, description } in &suggestions[..n_printed] {
        write_line(out, &format!("            {code:<9} {description}"))?;
    }
    match n_all - n_printed {
        0 => Ok(()),
        n_more => write_line(out, &format!("            and {n_more} more")),
    }
}
