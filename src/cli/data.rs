//! `axismapper data`: scenarios made, validated, freed of near-duplicates, split and paired.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use super::{json_line, write_indented_json, write_line};
use crate::codes::{Code, Release};
use crate::data;
use crate::data::build::{BuildSettings, build, write_pairs, write_scenarios, write_splits};
use crate::data::dedup::{DedupSettings, dedup};
use crate::data::generate::template::{Generator, TemplateSettings};
use crate::data::preference::PairSettings;
use crate::data::record::{RawScenario, Scenario};
use crate::data::replay;
use crate::data::split::{SplitSettings, split};
use crate::data::validate::{Reason, ValidateSettings, validate};
use crate::data::wording::{Register, Wording};
use crate::diag::Failure;
use crate::fsio;
use crate::stop::Stop;
use crate::track::Console;

/// Make a data set: scenarios, validated, split and paired
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(GenerateArgs),
    Validate(ValidateArgs),
    Dedup(DedupArgs),
    Split(SplitArgs),
    Pairs(PairsArgs),
    Build(BuildArgs),
    Replay(ReplayArgs),
}

/// Make scenarios for codes; an interrupted run goes on where it stopped
#[derive(Debug, ClapArgs)]
struct GenerateArgs {
    /// The scenarios, one a line
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where the words come from
    #[arg(long, value_enum, default_value_t = Provider::Template)]
    provider: Provider,
    /// The language model of a provider that has several
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
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
    /// The billable codes, instead of the built-in release
    #[arg(long, value_name = "FILE")]
    codes: Option<PathBuf>,
    /// Print the first five scenarios and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// Drop records with codes that are unknown or not billable, and other unfit ones, counted by reason
#[derive(Debug, ClapArgs)]
struct ValidateArgs {
    /// Scenarios
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// The scenarios that are kept
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The scenarios that are dropped, each with its reason
    #[arg(long, value_name = "FILE")]
    rejected: Option<PathBuf>,
    /// Keep scenarios that name a code
    #[arg(long)]
    keep_leaked_codes: bool,
    /// Drop scenarios that quote the official description of one of their codes
    #[arg(long)]
    drop_exact_descriptions: bool,
    /// The billable codes, instead of the built-in release
    #[arg(long, value_name = "FILE")]
    codes: Option<PathBuf>,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// Remove near-duplicates; of two, the record with more codes stays
#[derive(Debug, ClapArgs)]
struct DedupArgs {
    /// Scenarios
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// The scenarios that are kept
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How alike two texts may be: Jaccard index of their 5-grams of characters
    #[arg(long, default_value_t = DedupSettings::default().threshold)]
    threshold: f64,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// How records are shared out.
#[derive(Debug, ClapArgs)]
struct SharesArgs {
    /// Share of the validation set
    #[arg(long, default_value_t = SplitSettings::default().validation)]
    val: f64,
    /// Share of the test set
    #[arg(long, default_value_t = SplitSettings::default().test)]
    test: f64,
    /// Test on whole wording families that training never sees, where records name theirs
    #[arg(long, action = clap::ArgAction::Set, default_value_t = SplitSettings::default().hold_out_families)]
    hold_out_families: bool,
    /// Another seed gives other sets
    #[arg(long, default_value_t = SplitSettings::default().seed)]
    seed: u64,
}

/// Share records out: train.jsonl, val.jsonl, test.jsonl (chat records)
#[derive(Debug, ClapArgs)]
struct SplitArgs {
    /// Scenarios
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Folder of the sets
    #[arg(long, value_name = "DIR")]
    out_dir: PathBuf,
    #[command(flatten)]
    shares: SharesArgs,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// Make preference pairs of the training and validation sets: orpo_train.jsonl, orpo_val.jsonl
#[derive(Debug, ClapArgs)]
struct PairsArgs {
    /// The scenarios that `data split` was given
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Folder of the pairs
    #[arg(long, value_name = "DIR")]
    out_dir: PathBuf,
    /// Pairs of one record
    #[arg(long, default_value_t = PairSettings::default().n_pairs)]
    n_pairs: usize,
    /// The shares of `data split`: the test set has no pairs
    #[command(flatten)]
    shares: SharesArgs,
    /// The billable codes, instead of the built-in release
    #[arg(long, value_name = "FILE")]
    codes: Option<PathBuf>,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// All steps in order, as a file of settings says
#[derive(Debug, ClapArgs)]
struct BuildArgs {
    /// The settings
    #[arg(long, value_name = "FILE", default_value = "configs/data.yaml")]
    config: PathBuf,
    /// Folder of the data set
    #[arg(long, value_name = "DIR", default_value = "data")]
    out_dir: PathBuf,
    /// The billable codes, instead of the built-in release
    #[arg(long, value_name = "FILE")]
    codes: Option<PathBuf>,
    /// Print the settings in force and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// Mix new records with a share of old ones, for a continual update
#[derive(Debug, ClapArgs)]
struct ReplayArgs {
    /// Records to learn
    #[arg(long, value_name = "FILE")]
    new: PathBuf,
    /// Records learned before
    #[arg(long, value_name = "FILE")]
    old: PathBuf,
    /// Share of the old records that is taken
    #[arg(long, default_value_t = 0.1)]
    ratio: f64,
    /// Equal seeds give equal mixes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The mix
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
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

/// Runs the command.
///
/// # Errors
/// When an argument or a setting is wrong, a file cannot be used, or a stop is requested.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    match &args.command {
        Command::Generate(args) => run_generate(args, console, stop, out),
        Command::Validate(args) => run_validate(args, out),
        Command::Dedup(args) => run_dedup(args, out),
        Command::Split(args) => run_split(args, out),
        Command::Pairs(args) => run_pairs(args, out),
        Command::Build(args) => run_build(args, console, stop, out),
        Command::Replay(args) => run_replay(args, out),
    }
}

fn run_generate(args: &GenerateArgs, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let settings = args.settings()?;
    let release = release(args.codes.as_deref())?;
    if args.dry_run {
        let wording = Wording::new(&release);
        let generator = Generator::new(&release, &wording, settings.clone())?;
        for idx in 0..settings.n_records.min(5) {
            write_line(out, &json_line(&generator.record(idx))?)?;
        }
        return Ok(());
    }
    let progress = console.bar("scenarios", settings.n_records as u64);
    let report = write_scenarios(&release, &settings, &args.out, stop, |n| progress.advance(n))?;
    progress.finish();
    let left_out = match report.n_codes_left_out {
        0 => String::new(),
        n => format!(" ({n} left out: no wording of their own, or a cause without an injury)"),
    };
    let summary = format!("{} scenarios about {} codes{left_out}", report.n_records, report.n_codes);
    tell(out, args.json, &report, &summary)
}

impl GenerateArgs {
    fn settings(&self) -> Result<TemplateSettings, data::Error> {
        let provider = match self.provider {
            Provider::Template => {
                let base = if self.demo { TemplateSettings::demo() } else { TemplateSettings::default() };
                return Ok(self.apply_to(base));
            }
            Provider::Ollama => "ollama",
            Provider::Openai => "openai",
        };
        Err(data::Error::NoProvider { provider: provider.into() })
    }

    fn apply_to(&self, mut settings: TemplateSettings) -> TemplateSettings {
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

fn run_validate(args: &ValidateArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let release = release(args.codes.as_deref())?;
    let settings = ValidateSettings {
        reject_leaked_codes: !args.keep_leaked_codes,
        reject_exact_descriptions: args.drop_exact_descriptions,
        ..ValidateSettings::default()
    };
    let (mut records, mut malformed) = (Vec::new(), Vec::new());
    for mut raw in fsio::read_jsonl::<RawScenario>(&args.input)? {
        match raw.malformed_code().map(str::to_owned) {
            None => records.push(raw.into_scenario()),
            Some(code) => {
                raw.extra.insert("reason".into(), serde_json::to_value(Reason::UnknownCode).unwrap_or(Value::Null));
                raw.extra.insert("detail".into(), Value::String(code));
                malformed.push(raw);
            }
        }
    }
    let (kept, rejected, mut report) = validate(records, &release, &settings);
    if !malformed.is_empty() {
        report.n_read += malformed.len();
        *report.dropped.entry(Reason::UnknownCode).or_default() += malformed.len();
    }
    fsio::write_jsonl(&args.out, &kept)?;
    if let Some(path) = &args.rejected {
        let lines = malformed.iter().map(json_line).chain(rejected.iter().map(json_line));
        let lines = lines.collect::<Result<Vec<String>, _>>()?;
        fsio::write_atomic(path, |file| lines.iter().try_for_each(|line| writeln!(file, "{line}")))?;
    }
    let mut summary = format!("{} of {} records kept", report.n_kept, report.n_read);
    for (reason, n) in &report.dropped {
        summary.push_str(&format!("\n  {n} dropped: {}", json_line(reason)?.trim_matches('"').replace('_', " ")));
    }
    tell(out, args.json, &report, &summary)
}

fn run_dedup(args: &DedupArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let settings = DedupSettings { threshold: args.threshold, ..DedupSettings::default() };
    let (kept, report) = dedup(fsio::read_jsonl(&args.input)?, &settings);
    fsio::write_jsonl(&args.out, &kept)?;
    let summary = format!(
        "{} of {} records kept; {} had the text of another, {} almost",
        report.n_kept, report.n_read, report.n_exact, report.n_near
    );
    tell(out, args.json, &report, &summary)
}

fn run_split(args: &SplitArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let (splits, report) = split(scenarios(&args.input)?, &args.shares.settings());
    write_splits(&splits, &args.out_dir)?;
    let mut summary = format!("train {}, val {}, test {}", report.n_train, report.n_val, report.n_test);
    if !report.held_out_families.is_empty() {
        summary.push_str(&format!(", {} wording families in test only", report.held_out_families.len()));
    }
    tell(out, args.json, &report, &summary)
}

fn run_pairs(args: &PairsArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let release = release(args.codes.as_deref())?;
    let (splits, _) = split(scenarios(&args.input)?, &args.shares.settings());
    let settings = PairSettings { n_pairs: args.n_pairs, ..PairSettings::default() };
    let (train, val) = write_pairs(&release, &splits, &settings, &args.out_dir)?;
    let mut summary = format!("{} pairs to train on, {} to validate", train.n_pairs, val.n_pairs);
    for (flaw, n) in &train.by_flaw {
        summary.push_str(&format!("\n  {n} {}", json_line(flaw)?.trim_matches('"').replace('_', " ")));
    }
    #[derive(Serialize)]
    struct Both<T> {
        train: T,
        val: T,
    }
    tell(out, args.json, &Both { train, val }, &summary)
}

fn run_build(args: &BuildArgs, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let text = fsio::read_text(&args.config)?;
    let bad = |message: String| data::Error::BadSettings { path: args.config.clone(), message };
    let settings: BuildSettings =
        serde_saphyr::from_str_with_options(&text, serde_saphyr::options! { with_snippet: false })
            .map_err(|error| bad(error.to_string()))?;
    if args.dry_run {
        let text = serde_saphyr::to_string(&settings).map_err(|error| bad(error.to_string()))?;
        return write_line(out, text.trim_end());
    }
    let release = release(args.codes.as_deref())?;
    let progress = console.bar("scenarios", settings.generate.n_records as u64);
    let report = build(&release, &settings, &args.out_dir, stop, |n| progress.advance(n))?;
    progress.finish();
    let summary = format!(
        "{} scenarios, {} valid, {} unique: train {}, val {}, test {}; {} and {} pairs in {}",
        report.generate.n_records,
        report.validate.n_kept,
        report.dedup.n_kept,
        report.split.n_train,
        report.split.n_val,
        report.split.n_test,
        report.pairs_train.n_pairs,
        report.pairs_val.n_pairs,
        args.out_dir.display()
    );
    tell(out, args.json, &report, &summary)
}

fn run_replay(args: &ReplayArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let read = |path: &Path| fsio::read_jsonl::<Value>(path);
    let (new, old) = (read(&args.new)?, read(&args.old)?);
    let (n_new, n_old) = (new.len(), old.len());
    let mixed = replay::mix(new, old, args.ratio, args.seed)?;
    fsio::write_jsonl(&args.out, &mixed)?;
    write_line(out, &format!("{n_new} new records and {} of {n_old} old ones", mixed.len() - n_new))
}

impl SharesArgs {
    fn settings(&self) -> SplitSettings {
        SplitSettings {
            validation: self.val,
            test: self.test,
            hold_out_families: self.hold_out_families,
            seed: self.seed,
        }
    }
}

fn scenarios(path: &Path) -> Result<Vec<Scenario>, fsio::Error> {
    let records = fsio::read_jsonl(path)?;
    if records.is_empty() { Err(fsio::Error::Empty { path: path.to_owned() }) } else { Ok(records) }
}

fn release(path: Option<&Path>) -> Result<Release, crate::codes::Error> {
    path.map_or_else(Release::builtin, Release::load)
}

fn parse_code(text: &str) -> Result<Code, String> {
    Code::parse_lenient(text).map_err(|error| error.to_string())
}

/// Writes the report: as JSON when asked for, else its summary.
fn tell(out: &mut dyn Write, as_json: bool, report: &impl Serialize, summary: &str) -> Result<(), Failure> {
    if as_json { write_indented_json(out, report) } else { write_line(out, summary) }
}
