//! `axismapper codes show`: one code with its place in the list and the notes that hold for it.

use std::io::Write;

use clap::Args as ClapArgs;
use serde::Serialize;

use super::Refused;
use crate::cli::release::ReleaseArgs;
use crate::cli::{write_json, write_line};
use crate::codes::{Code, Notes, Release, Suggestion, Text, nearest};
use crate::diag::Failure;

/// Codes listed below a header.
const MAX_BELOW: usize = 40;

/// Show a code: its description, its place in the list, and the notes that hold for it
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The code, billable or a header; case and dot do not matter
    code: String,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    release: ReleaseArgs,
}

#[derive(Serialize)]
struct Shown<'a> {
    code: Code,
    billable: bool,
    description: Option<&'a str>,
    /// From the chapter down to the entry right above.
    above: Vec<Above<'a>>,
    inclusion_terms: &'a [Text],
    notes: Vec<Note<'a>>,
    n_below: usize,
    below: Vec<Suggestion<'a>>,
}

#[derive(Serialize)]
struct Above<'a> {
    place: String,
    title: &'a str,
}

#[derive(Serialize)]
struct Note<'a> {
    kind: &'static str,
    holder: String,
    note: &'a str,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let release = args.release.load()?;
    let code = Code::parse_lenient(&args.code)?;
    let is_known = release.is_billable(code) || release.node(code).is_some();
    if !is_known && release.billable_under(code).is_empty() {
        let nearest = nearest(&release, code).iter().map(|billable| billable.code.to_string()).collect();
        let (text, release) = (code.to_string(), release.name().to_owned());
        return Err(Refused::Unknown { text, release, nearest }.into());
    }
    let shown = show(&release, code);
    if args.json { write_json(out, &shown) } else { print(out, &shown) }
}

fn show(release: &Release, code: Code) -> Shown<'_> {
    let chapter = release.chapter_of(code);
    let chapter = chapter.map(|chapter| Above { place: format!("chapter {}", chapter.number), title: &chapter.title });
    let sections = release.sections_of(code);
    let sections =
        sections.map(|section| Above { place: format!("{}-{}", section.first, section.last), title: &section.title });
    let mut entries: Vec<Above> =
        release.ancestors(code).map(|node| Above { place: node.code.to_string(), title: &node.description }).collect();
    entries.reverse();
    let own = release.node(code).or_else(|| release.parent_of(code).filter(|_| release.is_billable(code)));
    let is_billable = release.is_billable(code);
    let below = if is_billable { &[] } else { release.billable_under(code) };
    Shown {
        code,
        billable: is_billable,
        description: release.description(code),
        above: chapter.into_iter().chain(sections).chain(entries).collect(),
        inclusion_terms: own.map(|node| node.inclusion_terms.as_slice()).unwrap_or_default(),
        notes: release.notes_above(code).flat_map(|(holder, notes)| with_kinds(holder.to_string(), notes)).collect(),
        n_below: below.len(),
        below: below.iter().take(MAX_BELOW).map(Suggestion::from).collect(),
    }
}

fn with_kinds(holder: String, notes: &Notes) -> impl Iterator<Item = Note<'_>> {
    let kinds = [
        ("includes", &notes.includes),
        ("excludes1", &notes.excludes1),
        ("excludes2", &notes.excludes2),
        ("code_first", &notes.code_first),
        ("use_additional", &notes.use_additional),
        ("code_also", &notes.code_also),
    ];
    kinds.into_iter().flat_map(move |(kind, notes)| {
        let holder = holder.clone();
        notes.iter().map(move |note| Note { kind, holder: holder.clone(), note })
    })
}

fn print(out: &mut dyn Write, shown: &Shown) -> Result<(), Failure> {
    let billable = if shown.billable { "billable" } else { "not billable" };
    write_line(out, &format!("{}  {billable}", shown.code))?;
    if let Some(description) = shown.description {
        write_line(out, &format!("  {description}"))?;
    }
    for above in &shown.above {
        write_line(out, &format!("    {:<11} {}", above.place, above.title))?;
    }
    if !shown.inclusion_terms.is_empty() {
        write_line(out, "also called")?;
    }
    for term in shown.inclusion_terms {
        write_line(out, &format!("  {term}"))?;
    }
    let mut heading = String::new();
    for note in &shown.notes {
        let next = format!("{}, under {}", note.kind.replace('_', " "), note.holder);
        if next != heading {
            write_line(out, &next)?;
            heading = next;
        }
        write_line(out, &format!("  {}", note.note))?;
    }
    if shown.n_below > 0 {
        write_line(out, &format!("billable codes below it: {}", shown.n_below))?;
    }
    for Suggestion { code, description } in &shown.below {
        write_line(out, &format!("  {code:<9} {description}"))?;
    }
    match shown.n_below - shown.below.len() {
        0 => Ok(()),
        n_more => write_line(out, &format!("  and {n_more} more")),
    }
}
