//! `axismapper push`: an adapter, a model or GGUF files onto the Hub, with a card.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{ArgAction, Args as ClapArgs};
use serde_json::Value;

use super::hub::access;
use super::release::ReleaseArgs;
use super::{write_json, write_line};
use crate::decode::automaton::Automaton;
use crate::decode::grammar::{self, Length};
use crate::diag::{Diagnostic, Failure};
use crate::export::{CARD_MARK, Card, Contents, card, contents_of, licence_of};
use crate::fsio;
use crate::hub::{Change, PushRequest, RepoId, Secrets, Upload, collect, push};
use crate::pipeline::require_folder;
use crate::stop::Stop;
use crate::track::Console;

/// Environment variables whose values must never be uploaded.
const SECRET_VARIABLES: [&str; 8] = [
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "OPENAI_API_KEY",
    "RUNPOD_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "ANTHROPIC_API_KEY",
];

/// Push an adapter, a merged model or GGUF files to the Hub, with a model card
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The repository; it is made when it is not there
    #[arg(long, value_name = "ORG/NAME")]
    repo: String,
    /// The folder: an adapter, a model, or GGUF files
    #[arg(long, value_name = "DIR", default_value = "out/orpo/final")]
    dir: PathBuf,
    /// Whether a new repository is private; --private false makes it public
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = ArgAction::Set)]
    private: bool,
    /// Say what would be uploaded, and upload nothing
    #[arg(long)]
    dry_run: bool,
    /// report.json of `axismapper eval`, for the card; a report.json in the folder is found by itself
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Upload report.json, report.html and predictions.jsonl too, which hold questions of the test or answers to them
    #[arg(long)]
    with_report: bool,
    /// The base model's name on the Hub, where the folder does not say it
    #[arg(long, value_name = "ORG/NAME")]
    base_model: Option<String>,
    /// The licence, as the Hub names it; that of a Qwen2.5 base is known
    #[arg(long, value_name = "NAME")]
    license: Option<String>,
    /// A data set on the Hub that the model was trained on; give it again for another
    #[arg(long = "dataset", value_name = "ORG/NAME")]
    datasets: Vec<String>,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the folder has nothing to push, a file holds a secret, the Hub refuses, or the service fails for too long.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    require_folder("adapter or model", &args.dir)?;
    let mut uploads = collect(&args.dir)?;
    if !args.with_report {
        let held_back = hold_back(&mut uploads);
        if !held_back.is_empty() {
            let names = held_back.join(", ");
            console.note(&format!("stays here, as it may hold questions of the test: {names}; --with-report sends it"));
        }
    }
    if let Some(texts) = make_card(args, console)? {
        uploads.retain(|upload| texts.iter().all(|(name, _)| upload.path != *name));
        uploads.extend(texts.into_iter().map(|(name, text)| Upload::text(name, text)));
    }
    let access = access(false);
    let in_force = SECRET_VARIABLES.iter().filter_map(|name| std::env::var(name).ok());
    let secrets = Secrets::new(in_force.chain(access.token.iter().map(|token| token.reveal().to_owned())));
    let request = PushRequest {
        access: &access,
        repo: &args.repo,
        is_private: args.private,
        uploads,
        secrets: &secrets,
        is_dry_run: args.dry_run,
    };
    let pushed = push(request, console, stop)?;
    if args.json {
        return write_json(out, &pushed);
    }
    let n_sent = pushed.files.iter().filter(|file| file.change != Change::Unchanged).count();
    if args.dry_run {
        for file in &pushed.files {
            let change = match file.change {
                Change::New => "new",
                Change::Changed => "changed",
                Change::Unchanged => "unchanged",
            };
            write_line(out, &format!("{change:9}  {:>12}  {}", size_text(file.size_bytes), file.path))?;
        }
        let made = match (pushed.is_new, args.private) {
            (true, true) => ", which would be made, private",
            (true, false) => ", which would be made, public",
            (false, _) => "",
        };
        return write_line(out, &format!("{n_sent} of {} files would go to {}{made}", pushed.files.len(), pushed.url));
    }
    let n_commits = pushed.commits.len();
    let line = match n_sent {
        0 => format!("nothing to do: all {} files are there -> {}", pushed.files.len(), pushed.url),
        _ => format!("{n_sent} of {} files sent in {n_commits} commits -> {}", pushed.files.len(), pushed.url),
    };
    write_line(out, &line)
}

/// Takes out what an evaluation leaves in its folder, and returns its paths. The card has the figures.
fn hold_back(uploads: &mut Vec<Upload>) -> Vec<String> {
    let is_report = |upload: &mut Upload| {
        let name = upload.path.rsplit('/').next().unwrap_or_default();
        ["report.json", "report.html", "predictions.jsonl"].contains(&name)
    };
    uploads.extract_if(.., is_report).map(|upload| upload.path).collect()
}

/// Pushes a folder with every other choice left as it is.
///
/// # Errors
/// As [`run`].
pub fn push_folder(repo: &str, dir: &Path, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let args = Args {
        repo: repo.to_owned(),
        dir: dir.to_owned(),
        private: true,
        dry_run: false,
        report: None,
        with_report: false,
        base_model: None,
        license: None,
        datasets: Vec::new(),
        release: ReleaseArgs::default(),
        json: false,
    };
    run(&args, console, stop, out)
}

/// The card and the grammar that it speaks of, unless the folder has a card of its author's.
fn make_card(args: &Args, console: &Console) -> Result<Option<[(&'static str, String); 2]>, Failure> {
    let readme = args.dir.join("README.md");
    if readme.exists() && !fsio::read_text(&readme)?.contains(CARD_MARK) {
        console.note("the folder's own README.md is pushed as it is");
        return Ok(None);
    }
    let Some((contents, named_base)) = contents_of(&args.dir)? else {
        return Err(NotAModel { path: args.dir.clone() }.into());
    };
    let merge = json_in(&args.dir, "merge.json")?;
    let merged_base = merge.as_ref().and_then(|merge| merge["base_model"].as_str().map(str::to_owned));
    // A folder's path says nothing to others, and may say too much.
    let on_hub = |name: &String| RepoId::parse(name).is_some() && !Path::new(name).exists();
    let base_model = args.base_model.clone().or_else(|| named_base.or(merged_base).filter(on_hub));
    if base_model.is_none() {
        console.note("the card names no base model; give its name on the Hub with --base-model");
    }
    let report = match &args.report {
        Some(path) => Some(fsio::read_json(path)?),
        None => json_in(&args.dir, "report.json")?,
    };
    if report.is_none() {
        console.note("the card has no figures; give an evaluation's report.json with --report");
    }
    let licence = args.license.clone().or_else(|| licence_of(base_model.as_deref()?).map(str::to_owned));
    let release = args.release.load()?;
    let automaton = Automaton::of(release.billable().iter().map(|billable| billable.code.to_string()));
    // What vLLM takes, and what llama.cpp takes.
    let (grammar_file, grammar) = match contents {
        Contents::Gguf { .. } => ("icd10cm.gbnf", grammar::gbnf(&automaton, Length::Unbounded)),
        _ => ("icd10cm.regex", grammar::regex(&automaton, Length::Unbounded)),
    };
    let text = card(&Card {
        repo: args.repo.clone(),
        contents,
        base_model,
        licence,
        datasets: args.datasets.clone(),
        report,
        release: release.name().to_owned(),
        grammar_file: grammar_file.to_owned(),
        merge,
    });
    Ok(Some([("README.md", text), (grammar_file, grammar)]))
}

fn json_in(dir: &Path, name: &str) -> Result<Option<Value>, Failure> {
    let path = dir.join(name);
    Ok(if path.exists() { Some(fsio::read_json(&path)?) } else { None })
}

fn size_text(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// The folder is not what this command pushes.
#[derive(Debug, thiserror::Error)]
#[error("`{}` holds neither an adapter, nor a model, nor a GGUF file", path.display())]
struct NotAModel {
    path: PathBuf,
}

impl Diagnostic for NotAModel {
    fn hint(&self) -> Option<String> {
        Some("name a folder that train, merge or export gguf made".into())
    }

    fn is_usage(&self) -> bool {
        true
    }
}
