//! `axismapper codes`: the code set built, checked and looked up.

mod build;
mod check;
mod diff;
mod export;
mod fetch;
mod search;
mod show;

use std::io::Write;

use clap::{Args as ClapArgs, Subcommand};

use crate::diag::{Diagnostic, Failure};
use crate::stop::Stop;
use crate::track::Console;

/// Build, check and look up the code set
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(build::Args),
    Check(check::Args),
    Show(show::Args),
    Search(search::Args),
    Diff(diff::Args),
    Export(export::Args),
    Fetch(fetch::Args),
}

/// A request that the code set answers with no.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{message}")]
    NotClaimable { message: String },
    #[error("`{text}` is not in {release}")]
    Unknown { text: String, release: String, nearest: Vec<String> },
    #[error("no codes to check")]
    NoCodes,
    #[error("there is no cache folder to keep the release in, because HOME is not set")]
    NoCache,
}

impl Diagnostic for Refused {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotClaimable { .. } => Some("the lines above say which codes, and what to use instead".into()),
            Self::Unknown { nearest, .. } if nearest.is_empty() => None,
            Self::Unknown { nearest, .. } => Some(format!("the nearest codes are {}", nearest.join(", "))),
            Self::NoCodes => Some("as in `axismapper codes check \"S82.201A, V18.4XXA\"`, or --input FILE".into()),
            Self::NoCache => Some("name a folder with --cache-dir DIR".into()),
        }
    }

    fn is_usage(&self) -> bool {
        matches!(self, Self::NoCodes | Self::NoCache)
    }
}

/// Runs one of the `codes` commands; results go to `out`.
///
/// # Errors
/// What is wrong with a file or a request; `codes check` fails when a set is not claimable.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    match &args.command {
        Command::Build(args) => build::run(args, out),
        Command::Check(args) => check::run(args, out),
        Command::Show(args) => show::run(args, out),
        Command::Search(args) => search::run(args, out),
        Command::Diff(args) => diff::run(args, out),
        Command::Export(args) => export::run(args, out),
        Command::Fetch(args) => fetch::run(args, console, stop, out),
    }
}

/// `74,719`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}
