//! The `axismapper` program: arguments in, results to stdout, progress and errors to stderr.

mod check_gpu;
mod codes;
mod completions;
mod constrain;
mod data;
mod demo;
mod device;
mod doctor;
mod eval;
mod export;
mod finish;
mod hub;
mod init;
mod merge;
mod model;
mod predict;
mod pull;
mod push;
mod quantize;
mod release;
mod score;
mod serve;
mod sink;
mod style;
mod train;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::diag::Failure;
use crate::fsio;
use crate::stop::Stop;
use crate::tensor::threads;
use crate::track::Console;

/// Plain words to billable ICD-10-CM codes: data, training, evaluation and export in one program.
#[derive(Debug, Parser)]
#[command(name = "axismapper", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    /// Show no progress
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Codes(codes::Args),
    Demo(demo::Args),
    Data(data::Args),
    Train(train::Args),
    Eval(eval::Args),
    Predict(predict::Args),
    Serve(serve::Args),
    Score(score::Args),
    Init(init::Args),
    Quantize(quantize::Args),
    Merge(merge::Args),
    Export(export::Args),
    Push(push::Args),
    Pull(pull::Args),
    CheckGpu(check_gpu::Args),
    Doctor(doctor::Args),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

impl Command {
    /// Whether a model computes for so long that threads that spin cost more than another start, 0.4 s.
    fn computes_long(&self) -> bool {
        match self {
            Self::Train(_) | Self::Demo(_) | Self::Eval(_) | Self::Serve(_) | Self::Score(_) => true,
            Self::Predict(args) => args.is_for_a_file(),
            _ => false,
        }
    }
}

/// The definition of every command and argument, for what reads them: completions, man pages, tests of the docs.
pub fn definition() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    install_panic_hook();
    let cli = Cli::parse();
    if cli.command.computes_long() {
        threads::let_openmp_sleep();
    }
    let stop = Stop::default();
    install_signal_handler(&stop);
    // Without it the work is done all the same, with more waiting.
    let _ = threads::join_pool();
    let mut out = io::stdout().lock();
    let outcome = run(cli, &stop, &mut out).and_then(|()| written(out.flush()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing is left to do when stderr is closed.
            let _ = writeln!(io::stderr(), "{}", failure.render());
            ExitCode::from(failure.exit_status())
        }
    }
}

fn run(cli: Cli, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let console = Console::new(cli.quiet);
    match cli.command {
        Command::Codes(args) => codes::run(&args, &console, stop, out),
        Command::Demo(args) => demo::run(&args, &console, stop, out),
        Command::Data(args) => data::run(&args, &console, stop, out),
        Command::Train(args) => train::run(&args, &console, stop, out),
        Command::Eval(args) => eval::run(&args, &console, stop, out),
        Command::Predict(args) => predict::run(&args, &console, stop, out),
        Command::Serve(args) => serve::run(&args, &console, stop, out),
        Command::Score(args) => score::run(&args, &console, stop, out),
        Command::Init(args) => init::run(&args, &console, stop, out),
        Command::Quantize(args) => quantize::run(&args, &console, stop, out),
        Command::Merge(args) => merge::run(&args, &console, stop, out),
        Command::Export(args) => export::run(&args, &console, stop, out),
        Command::Push(args) => push::run(&args, &console, stop, out),
        Command::Pull(args) => pull::run(&args, &console, stop, out),
        Command::CheckGpu(args) => check_gpu::run(&args, &console, stop, out),
        Command::Doctor(args) => doctor::run(&args, &console, stop, out),
        Command::Completions(args) => completions::run_completions(&args, out),
        Command::Man(args) => completions::run_man(&args, out),
    }
}

/// Says which command comes next; on stderr, because it is no result.
fn say_next(console: &Console, command: &str) {
    console.note(&format!("next: {command}"));
}

/// Writes a line of the result.
fn write_line(out: &mut dyn Write, line: &str) -> Result<(), Failure> {
    written(writeln!(out, "{line}"))
}

/// Writes a value as one line of JSON.
fn write_json(out: &mut dyn Write, value: &impl Serialize) -> Result<(), Failure> {
    write_line(out, &json_line(value)?)
}

/// A value as one line of JSON.
fn json_line(value: &impl Serialize) -> Result<String, fsio::Error> {
    serde_json::to_string(value).map_err(unwritable)
}

/// Writes a value as indented JSON.
fn write_indented_json(out: &mut dyn Write, value: &impl Serialize) -> Result<(), Failure> {
    write_line(out, &serde_json::to_string_pretty(value).map_err(unwritable)?)
}

fn unwritable(error: serde_json::Error) -> fsio::Error {
    fsio::Error::BadFile { path: "report".into(), message: error.to_string() }
}

/// A reader that has seen enough (`axismapper ... | head`) is not a failure.
fn written(outcome: io::Result<()>) -> Result<(), Failure> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(fsio::Error::io("write to", "stdout".as_ref())(error).into())
        }
        _ => Ok(()),
    }
}

/// A fault of the program itself is told in a line, with how to report it. `RUST_BACKTRACE` shows more.
pub fn install_panic_hook() {
    let wants_more = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| !value.is_empty() && value != "0");
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map_or(String::new(), |at| format!(" ({}:{})", at.file(), at.line()));
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let said = text.and_then(|text| text.lines().next()).unwrap_or("no message");
        let version = env!("CARGO_PKG_VERSION");
        let line = format!("error: a fault of axismapper {version} itself: {said}{place}");
        let whom = match env!("CARGO_PKG_REPOSITORY") {
            "" => "whoever you have the program from".to_owned(),
            repository => format!("{repository}/issues"),
        };
        // Nothing is left to do when stderr is closed.
        let _ = writeln!(io::stderr(), "{line}\n  hint: please report this line and the command to {whom}");
        if wants_more {
            default(info);
        }
    }));
}

/// The first Ctrl-C asks the work to stop where it can go on later; the second ends the program.
fn install_signal_handler(stop: &Stop) {
    let stop = stop.clone();
    // Without a handler Ctrl-C still ends the program, at once.
    let _ = ctrlc::set_handler(move || {
        if stop.is_requested() {
            std::process::exit(130);
        }
        stop.request();
        let _ = writeln!(io::stderr(), "\nstopping at the next safe point (Ctrl-C again ends at once)");
    });
}
