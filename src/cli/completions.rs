//! `axismapper completions` and `axismapper man`: what shells and `man` read, made from the definitions of all commands.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, write_line, written};
use crate::diag::Failure;
use crate::fsio;

/// Print a completion script for a shell
#[derive(Debug, ClapArgs)]
pub struct CompletionsArgs {
    /// The shell; `axismapper completions bash > ~/.local/share/bash-completion/completions/axismapper` installs it
    #[arg(value_enum)]
    shell: Shell,
}

/// Write man pages, one for each command
#[derive(Debug, ClapArgs)]
pub struct ManArgs {
    /// Folder of the pages
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Prints the script.
///
/// # Errors
/// When stdout cannot be written to.
pub fn run_completions(args: &CompletionsArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "axismapper", &mut script);
    written(out.write_all(&script))
}

/// Writes the pages.
///
/// # Errors
/// When a file cannot be written.
pub fn run_man(args: &ManArgs, out: &mut dyn Write) -> Result<(), Failure> {
    fsio::make_dir(&args.out)?;
    let command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, &args.out).map_err(fsio::Error::io("write", &args.out))?;
    let n = count_pages(&args.out)?;
    let dir = args.out.display();
    write_line(out, &format!("{n} pages -> {dir}; read one with: man -l {dir}/axismapper.1"))
}

fn count_pages(dir: &Path) -> Result<usize, fsio::Error> {
    let entries = std::fs::read_dir(dir).map_err(fsio::Error::io("read", dir))?;
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    Ok(names.filter(|name| name.starts_with("axismapper") && name.ends_with(".1")).count())
}
