//! `axismapper codes search`: words to codes.

use std::io::Write;

use clap::Args as ClapArgs;

use crate::cli::release::ReleaseArgs;
use crate::cli::{write_json, write_line};
use crate::codes::{Hit, SearchIndex};
use crate::diag::Failure;

/// Find billable codes by words; typing slips are forgiven, the last word may be unfinished
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The words
    #[arg(required = true, value_name = "TEXT")]
    words: Vec<String>,
    /// The most codes to print
    #[arg(long, short = 'n', default_value_t = 10)]
    limit: usize,
    /// Print the result as JSON, one line for each code
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    release: ReleaseArgs,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let release = args.release.load()?;
    let index = match args.release.cache_dir() {
        Some(cache) => SearchIndex::open(&release, &cache)?,
        None => SearchIndex::of(&release)?,
    };
    let hits = index.search(&args.words.join(" "), args.limit)?;
    if hits.is_empty() && !args.json {
        return write_line(out, "no code has these words");
    }
    for hit in &hits {
        let Hit { code, description, .. } = hit;
        if args.json { write_json(out, hit)? } else { write_line(out, &format!("{code:<9} {description}"))? }
    }
    Ok(())
}
