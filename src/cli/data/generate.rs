//! `axismapper data generate`: scenarios for codes, from templates or from a language model.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use super::{ReleaseArgs, parse_code, tell, words_of};
use crate::cli::{json_line, say_next, write_line};
use crate::codes::Code;
use crate::data;
use crate::data::build::write_scenarios;
use crate::data::generate::llm::{self, LlmReport, LlmSettings};
use crate::data::generate::provider::{Environment, Kind, ProviderSettings};
use crate::data::generate::template::{Generator, TemplateSettings};
use crate::data::manifest::{Manifest, Plan, ReleaseId};
use crate::data::wording::{Register, Wording};
use crate::diag::Failure;
use crate::stop::Stop;
use crate::track::Console;

/// Make scenarios for codes; an interrupted run goes on where it stopped
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The scenarios, one a line
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where the words come from
    #[arg(long, value_enum, default_value_t = Provider::Template)]
    provider: Provider,
    /// The language model of a provider that has several; `llama3.2` for Ollama
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The server of the model, instead of OLLAMA_HOST or OPENAI_BASE_URL
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Requests to the server at a time
    #[arg(long, value_name = "N", default_value_t = ProviderSettings::default().concurrency)]
    concurrency: usize,
    /// Answers asked for at most until one can be used
    #[arg(long, value_name = "N", default_value_t = ProviderSettings::default().attempts)]
    attempts: u32,
    /// How freely the model words
    #[arg(long, value_name = "T", default_value_t = ProviderSettings::default().temperature)]
    temperature: f64,
    /// Seconds to wait for one answer
    #[arg(long, value_name = "SECONDS", default_value_t = ProviderSettings::default().timeout_seconds)]
    timeout: u64,
    /// Throw away what an earlier run left, and ask for all of it anew
    #[arg(long)]
    restart: bool,
    /// Number of scenarios
    #[arg(long, short = 'n', default_value_t = 100_000)]
    n_records: usize,
    /// Equal seeds give equal scenarios
    #[arg(long, default_value_t = TemplateSettings::default().seed)]
    seed: u64,
    /// A chapter to take codes from, 1 to 22; may be repeated
    #[arg(long = "chapter", value_name = "N")]
    chapters: Vec<u8>,
    /// A beginning of codes, as in J45 or S82.2; may be repeated
    #[arg(long = "prefix", value_name = "PREFIX")]
    prefixes: Vec<String>,
    /// A code by itself; may be repeated
    #[arg(long = "code", value_name = "CODE", value_parser = parse_code)]
    only: Vec<Code>,
    /// A seventh character to keep, as in A; may be repeated, all when left out
    #[arg(long = "seventh", value_name = "CHARACTER")]
    sevenths: Vec<char>,
    /// Who speaks; may be repeated
    #[arg(long = "register", value_enum)]
    registers: Vec<RegisterArg>,
    /// Scenarios that word one case
    #[arg(long, default_value_t = 1)]
    n_variants: usize,
    /// The few hundred codes of the demo, instead of a selection
    #[arg(long, conflicts_with_all = ["chapters", "prefixes", "only", "sevenths"])]
    demo: bool,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Print the first five scenarios and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// `--provider`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Provider {
    Template,
    Ollama,
    Openai,
}

/// `--register`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RegisterArg {
    Clinician,
    Patient,
    Triage,
}

pub(super) fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let settings = args.settings();
    let llm = args.provider().llm(&environment())?;
    let release = args.release.load()?;
    if args.dry_run {
        let wording = Wording::new(&release);
        let generator = Generator::new(&release, &wording, settings.clone())?;
        for idx in 0..settings.n_records.min(5) {
            match &llm {
                None => write_line(out, &json_line(&generator.record(idx))?)?,
                Some((endpoint, llm)) => {
                    write_line(out, &llm::preview(&release, &generator, endpoint, llm, idx))?;
                }
            }
        }
        return Ok(());
    }
    let progress = console.bar("scenarios", settings.n_records as u64);
    let left_out = |n: usize| match n {
        0 => String::new(),
        n => format!(" ({n} left out: no wording of their own, or a cause without an injury)"),
    };
    let id = Some(ReleaseId::of(&release));
    let plan = |settings| Plan { step: "generate", settings, release: id, inputs: &[] };
    let outputs = std::slice::from_ref(&args.out);
    let Some((endpoint, llm)) = &llm else {
        let report = write_scenarios(&release, &settings, &args.out, stop, |n| progress.advance(n))?;
        progress.finish();
        Manifest::beside(&args.out)?.note(&plan(value(&settings)?), outputs, &report)?;
        let left_out = left_out(report.n_codes_left_out);
        let summary = format!("{} scenarios about {} codes{left_out}", report.n_records, report.n_codes);
        next(args, console);
        return tell(out, args.json, &report, &summary);
    };
    if args.restart {
        llm::discard(&args.out)?;
    }
    let report = llm::write_scenarios(&release, &settings, endpoint, llm, &args.out, stop, |n| progress.advance(n))?;
    progress.finish();
    let how = value(&(endpoint.protocol, llm, &settings))?;
    Manifest::beside(&args.out)?.note(&plan(how), outputs, &report)?;
    next(args, console);
    tell(out, args.json, &report, &summary_of(&report, llm, &left_out(report.n_codes_left_out))?)
}

fn next(args: &Args, console: &Console) {
    say_next(console, &format!("axismapper data validate --in {} --out valid.jsonl", args.out.display()));
}

/// What a model gave, and what was wrong with the rest.
pub(super) fn summary_of(report: &LlmReport, settings: &LlmSettings, left_out: &str) -> Result<String, Failure> {
    let mut text =
        format!("{} scenarios by {} about {} codes{left_out}", report.n_records, settings.model, report.n_codes);
    if report.n_before > 0 {
        text.push_str(&format!(", {} of them from earlier runs", report.n_before));
    }
    for (reason, n) in &report.bad_answers {
        text.push_str(&format!("\n  {n} answers of no use, asked for again: {}", words_of(reason)?));
    }
    for (reason, n) in &report.missing {
        text.push_str(&format!("\n  {n} scenarios missing, the last time because of: {}", reason.replace('_', " ")));
    }
    if report.n_missing > 0 {
        text.push_str(&format!("\n  the same command asks for the missing {} again", report.n_missing));
    }
    Ok(text)
}

/// What the environment says about servers.
pub(super) fn environment() -> Environment {
    let read = |name| std::env::var(name).ok();
    Environment {
        ollama_host: read("OLLAMA_HOST"),
        openai_base_url: read("OPENAI_BASE_URL"),
        openai_api_key: read("OPENAI_API_KEY"),
    }
}

fn value(settings: &impl serde::Serialize) -> Result<serde_json::Value, data::Error> {
    let bad =
        |error: serde_json::Error| data::Error::BadSettings { path: "settings".into(), message: error.to_string() };
    serde_json::to_value(settings).map_err(bad)
}

impl Args {
    fn provider(&self) -> ProviderSettings {
        ProviderSettings {
            kind: match self.provider {
                Provider::Template => Kind::Template,
                Provider::Ollama => Kind::Ollama,
                Provider::Openai => Kind::Openai,
            },
            model: self.model.clone(),
            base_url: self.base_url.clone(),
            concurrency: self.concurrency,
            attempts: self.attempts,
            temperature: self.temperature,
            timeout_seconds: self.timeout,
        }
    }

    fn settings(&self) -> TemplateSettings {
        let mut settings = if self.demo { TemplateSettings::demo() } else { TemplateSettings::default() };
        if !self.demo {
            settings.codes.chapters.clone_from(&self.chapters);
            settings.codes.prefixes.clone_from(&self.prefixes);
            settings.codes.codes.clone_from(&self.only);
            settings.codes.sevenths = self.sevenths.iter().map(char::to_ascii_uppercase).collect();
        }
        if !self.registers.is_empty() {
            settings.registers = self.registers.iter().map(|register| register.register()).collect();
        }
        settings.n_records = self.n_records;
        settings.n_variants = self.n_variants;
        settings.seed = self.seed;
        settings
    }
}

impl RegisterArg {
    fn register(self) -> Register {
        match self {
            Self::Clinician => Register::Clinician,
            Self::Patient => Register::Patient,
            Self::Triage => Register::Triage,
        }
    }
}
