//! `axismapper data`: scenarios made, validated, freed of near-duplicates, split, paired, updated and looked at.

mod build;
mod generate;
mod inspect;
mod replay;
mod steps;
mod update;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use serde::Serialize;

use super::release::ReleaseArgs;
use super::{json_line, write_indented_json, write_line};
use crate::codes::Code;
use crate::data;
use crate::data::source::{Columns, Source, Spooled};
use crate::diag::Failure;
use crate::stop::Stop;
use crate::track::{Console, Progress};

/// Make a data set: scenarios, validated, split and paired
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(generate::Args),
    Validate(steps::ValidateArgs),
    Dedup(steps::DedupArgs),
    Split(steps::SplitArgs),
    Pairs(steps::PairsArgs),
    Build(build::Args),
    Replay(replay::Args),
    Update(update::Args),
    Inspect(inspect::Args),
}

/// A file of records, ours or of other people's making.
#[derive(Debug, ClapArgs)]
struct SourceArgs {
    /// Records: JSON Lines or, by its name, a .csv or .tsv table; `-` is stdin
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    columns: ColumnArgs,
}

/// How the fields of records are called.
#[derive(Debug, ClapArgs)]
struct ColumnArgs {
    /// The field that holds the text
    #[arg(long, value_name = "NAME", default_value_t = Columns::default().text)]
    text_column: String,
    /// The field that holds the codes: a list, or one text with codes between commas, semicolons or spaces
    #[arg(long, value_name = "NAME", default_value_t = Columns::default().codes)]
    codes_column: String,
}

/// Runs the command.
///
/// # Errors
/// When an argument or a setting is wrong, a file cannot be used, or a stop is requested.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    match &args.command {
        Command::Generate(args) => generate::run(args, console, stop, out),
        Command::Validate(args) => steps::run_validate(args, console, stop, out),
        Command::Dedup(args) => steps::run_dedup(args, console, stop, out),
        Command::Split(args) => steps::run_split(args, console, stop, out),
        Command::Pairs(args) => steps::run_pairs(args, console, stop, out),
        Command::Build(args) => build::run(args, console, stop, out),
        Command::Replay(args) => replay::run(args, console, out),
        Command::Update(args) => update::run(args, console, stop, out),
        Command::Inspect(args) => inspect::run(args, out),
    }
}

impl SourceArgs {
    /// The records, with stdin copied where it has to be read more than once.
    fn source(&self) -> Result<(Source, Spooled), data::Error> {
        let spooled = Spooled::new(&self.input)?;
        Ok((Source { path: spooled.path().to_owned(), columns: self.columns.columns() }, spooled))
    }
}

impl ColumnArgs {
    fn columns(&self) -> Columns {
        Columns { text: self.text_column.clone(), codes: self.codes_column.clone() }
    }
}

fn parse_code(text: &str) -> Result<Code, String> {
    Code::parse_lenient(text).map_err(|error| error.to_string())
}

/// Moves a bar and looks whether to stop.
fn watched<'a>(progress: &'a Progress, stop: &'a Stop) -> impl FnMut(u64) -> Result<(), data::Error> + 'a {
    move |n| {
        progress.advance(n);
        Ok(stop.check("reading records")?)
    }
}

/// The name that a value has in JSON, with spaces: `missing cause`.
fn words_of(value: &impl Serialize) -> Result<String, Failure> {
    Ok(json_line(value)?.trim_matches('"').replace('_', " "))
}

/// Writes the report: as JSON when asked for, else its summary.
fn tell(out: &mut dyn Write, as_json: bool, report: &impl Serialize, summary: &str) -> Result<(), Failure> {
    if as_json { write_indented_json(out, report) } else { write_line(out, summary) }
}
