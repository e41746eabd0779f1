//! `axismapper codes export`: the answers that are allowed, as a grammar for other engines.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use crate::cli::release::ReleaseArgs;
use crate::cli::write_line;
use crate::decode::automaton::Automaton;
use crate::decode::grammar::{self, Length};
use crate::diag::Failure;
use crate::fsio;

/// Write the billable codes as a regular expression or a grammar, for constrained decoding elsewhere
///
/// The language is one or more codes joined by ", ". As vLLM takes it: {"structured_outputs": {"regex": "..."}}.
/// That the codes of one answer differ is not in it: no grammar of a sane size can say so.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// regex for vLLM and others, lark for llguidance, gbnf for llama.cpp and Ollama
    #[arg(long, value_enum)]
    format: Format,
    /// The most codes in an answer; any number when left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_codes: Option<u32>,
    /// Where the grammar goes; stdout when left out
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    release: ReleaseArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Regex,
    Lark,
    Gbnf,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let release = args.release.load()?;
    let automaton = Automaton::of(release.billable().iter().map(|billable| billable.code.to_string()));
    let length = match args.max_codes {
        None => Length::Unbounded,
        Some(1) => Length::One,
        Some(most) => Length::AtMost(most as usize),
    };
    let text = match args.format {
        Format::Regex => grammar::regex(&automaton, length),
        Format::Lark => grammar::lark(&automaton, length),
        Format::Gbnf => grammar::gbnf(&automaton, length),
    };
    match &args.out {
        // A regular expression is the whole file: a newline would be a part of it.
        Some(path) => Ok(fsio::write_atomic(path, |file| file.write_all(text.as_bytes()))?),
        None => write_line(out, text.trim_end()),
    }
}
