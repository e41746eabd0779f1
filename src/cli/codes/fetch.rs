//! `axismapper codes fetch`: a published release, downloaded, verified and kept for `--release`.

use std::io::Write;

use clap::Args as ClapArgs;

use super::{Refused, grouped};
use crate::cli::release::{CacheArgs, parse_edition};
use crate::cli::{write_json, write_line};
use crate::codes::{Edition, Publishers, Release, fetch};
use crate::diag::Failure;
use crate::fsio;
use crate::http::{Client, Settings};
use crate::stop::Stop;
use crate::track::Console;

/// Download a release from NCHS, or CMS where that fails, for use with --release
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The release: a fiscal year as in 2027, or an update of April as in 2025-april
    #[arg(long, value_name = "YEAR", value_parser = parse_edition)]
    release: Edition,
    /// Download it again although it is there
    #[arg(long)]
    force: bool,
    /// The folder of NCHS, which holds one for each fiscal year
    #[arg(long, value_name = "URL", env = "AXISMAPPER_NCHS_URL", hide_short_help = true,
        default_value_t = Publishers::default().nchs)]
    nchs_url: String,
    /// The folder of CMS, which holds the zip files of all years
    #[arg(long, value_name = "URL", env = "AXISMAPPER_CMS_URL", hide_short_help = true,
        default_value_t = Publishers::default().cms)]
    cms_url: String,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let edition = args.release;
    if edition == Edition::BUILTIN {
        return write_line(out, &format!("{} is built in; nothing to fetch", edition.title()));
    }
    let cache = args.cache.dir().ok_or(Refused::NoCache)?;
    let file = edition.file_in(&cache);
    if !args.force && file.is_file() && Release::load(&file).is_ok() {
        if args.json {
            let kept: serde_json::Value = fsio::read_json(&file.with_extension("json"))?;
            return write_json(out, &kept);
        }
        return write_line(out, &format!("{} is there already: {}", edition.title(), file.display()));
    }
    let publishers = Publishers { nchs: args.nchs_url.clone(), cms: args.cms_url.clone() };
    let client = Client::new(Settings::default(), stop)?;
    let fetched = fetch(edition, &publishers, &client, &cache, &mut |text| console.note(text))?;
    if args.json {
        return write_json(out, &fetched);
    }
    let (billable, entries) = (grouped(fetched.billable), grouped(fetched.entries));
    write_line(out, &format!("{}: {billable} billable codes from {entries} entries", fetched.release))?;
    write_line(out, &format!("from {} (sha256 {})", fetched.url, fetched.sha256))?;
    write_line(out, &format!("kept as {}; use it with --release {edition}", fetched.file.display()))
}
