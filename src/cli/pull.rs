//! `axismapper pull`: a repository of the Hub brought here and checked.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::hub::access;
use super::{say_next, write_json, write_line};
use crate::diag::Failure;
use crate::fsio;
use crate::hub::{self, Fetch, RepoId, Which, fetch};
use crate::stop::Stop;
use crate::track::Console;

/// Fetch a model or an adapter from the Hub, every file checked by its hash
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The repository, as in Qwen/Qwen2.5-0.5B-Instruct or ORG/NAME@REVISION
    #[arg(value_name = "ORG/NAME[@REVISION]")]
    repo: String,
    /// Copy the files into this folder too; the cache keeps its own
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Take the cache as it is and ask nobody
    #[arg(long)]
    offline: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the name is none, the Hub refuses, or a file does not arrive as it should.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let id = RepoId::parse(&args.repo).ok_or_else(|| hub::Error::BadId { text: args.repo.clone() })?;
    let access = access(args.offline);
    let fetched = fetch(&Fetch { access: &access, id: &id, which: Which::All }, console, stop)?;
    if let Some(dir) = &args.out {
        copy_folder(&fetched.dir, dir, stop)?;
    }
    let model = args.out.as_ref().map_or_else(|| id.to_string(), |dir| dir.display().to_string());
    say_next(console, &format!("axismapper predict --model {model} TEXT, or model.name: {model} in a stage file"));
    if args.json {
        return write_json(out, &fetched);
    }
    let dir = args.out.as_ref().unwrap_or(&fetched.dir);
    let (n_files, size_mb) = (fetched.files.len(), fetched.size_bytes as f64 / 1e6);
    let what = match (args.offline || access.is_offline, fetched.fetched_bytes) {
        (true, _) => "from the cache".to_owned(),
        (false, 0) => format!("{n_files} files, {size_mb:.1} MB, all there and checked"),
        (false, bytes) => format!("{n_files} files, {size_mb:.1} MB, {:.1} MB fetched", bytes as f64 / 1e6),
    };
    write_line(out, &format!("{id} ({}): {what} -> {}", &fetched.commit[..fetched.commit.len().min(8)], dir.display()))
}

/// Copies a folder; each file appears whole or not at all.
fn copy_folder(from: &Path, to: &Path, stop: &Stop) -> Result<(), Failure> {
    fsio::make_dir(to)?;
    for entry in std::fs::read_dir(from).map_err(fsio::Error::io("read", from))? {
        let path = entry.map_err(fsio::Error::io("read", from))?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target, stop)?;
            continue;
        }
        stop.check("copying")?;
        let (_lock, partial) = fsio::partial_beside(&target).map_err(fsio::Error::io("write", to))?.into_parts();
        std::fs::copy(&path, &partial).map_err(fsio::Error::io("copy", &path))?;
        fsio::publish(partial, &target)?;
    }
    Ok(())
}
