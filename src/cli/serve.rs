//! `axismapper serve`: the model behind OpenAI's interface, and a page for people.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;

use super::constrain::ConstrainArgs;
use super::hub;
use super::model::{Dtype, ModelArgs, Quant, load_model};
use super::release::ReleaseArgs;
use super::write_line;
use crate::adapter;
use crate::decode::Constraint;
use crate::diag::{Diagnostic, Failure};
use crate::fsio;
use crate::model;
use crate::serve::{self, Access, Limits, Log, Routes, Setup};
use crate::stop::Stop;
use crate::track::Console;

/// Serve a model over HTTP: OpenAI's interface, /health, /metrics, and a page at /
///
/// The address is printed once clients can connect. SIGTERM and Ctrl-C let what is under way finish. What is asked and
/// answered is not logged.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A folder in Hugging Face layout, or a model on the Hub
    #[arg(long, value_name = "DIR|ORG/NAME")]
    model: Option<PathBuf>,
    /// An adapter, a folder in PEFT layout or on the Hub, and the model name that clients ask for; may be given more than once. The
    /// first answers requests without a name
    #[arg(long, value_name = "NAME=DIR", value_parser = named)]
    adapter: Vec<(String, PathBuf)>,
    /// The model name of the base
    #[arg(long, value_name = "NAME", default_value = "base")]
    base_name: String,
    /// Chapters of the tabular list that `model: auto` gives to an adapter, as injuries=19,20; may be given more than
    /// once. All else goes to the first model
    #[arg(long, value_name = "NAME=CHAPTERS", value_parser = route)]
    route: Vec<(String, Vec<u8>)>,
    /// How the linear layers are held in memory
    #[arg(long, value_enum, default_value_t = Quant::None)]
    quant: Quant,
    /// The type that the model computes in
    #[arg(long, value_enum, default_value_t = Dtype::Float32)]
    dtype: Dtype,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Take what is on the Hub from the cache and ask nobody
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    constrain: ConstrainArgs,
    #[command(flatten)]
    release: ReleaseArgs,
    /// The address to listen on; anything but this machine's own needs a key to be safe
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port to listen on, 0 for any free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// File with the keys that clients may use, one on a line; or one key in AXISMAPPER_API_KEY
    #[arg(long, value_name = "FILE")]
    api_key: Option<PathBuf>,
    /// Requests answered together
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Requests that may wait; more are told to come back (429)
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_waiting: usize,
    /// The largest request
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    max_body_bytes: usize,
    /// The most new tokens of an unconstrained answer
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// The longest that an answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout_seconds: u64,
    /// How long requests under way may take once the server is asked to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_seconds: u64,
    /// Log what is asked and answered. It may be about patients
    #[arg(long)]
    log_text: bool,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded, the address cannot be had, or requests are left at the end.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let models = models_of(args)?;
    let routes = routes_of(args, &models)?;
    let keys = keys_of(args.api_key.as_deref())?;
    // Taken before the model is loaded, which can take minutes.
    let address = format!("{}:{}", args.host, args.port);
    let listener =
        TcpListener::bind(&address).map_err(|source| serve::Error::Listen { address: address.clone(), source })?;
    let release = Arc::new(args.release.load()?);
    let base = ModelArgs {
        model: args.model.clone(),
        adapter: None,
        quant: args.quant,
        dtype: args.dtype,
        device: args.device.clone(),
        offline: args.offline,
    };
    let (mut model, tokenizer) = load_model(&base, console, stop)?;
    for (name, dir) in &args.adapter {
        let dir = hub::folder("adapter", dir, args.offline, console, stop)?;
        model::add_adapter(&mut model, name, adapter::load(&dir)?)?;
    }
    let constraint = Arc::new(Constraint::new(Arc::clone(&release), &tokenizer, args.constrain.rules())?);
    let voters = serve::voters(&release, args.release.cache_dir().as_deref())?;
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    if !is_local && keys.is_empty() {
        console.note("warning: anybody who reaches this address can use the model; --api-key FILE sets keys");
    }
    let lines = console.clone();
    let setup = Setup {
        model,
        tokenizer,
        release,
        constraint,
        constrain: args.constrain.constrains(),
        models,
        routes,
        voters,
        limits: Limits {
            batch_size: args.batch_size as usize,
            max_waiting: args.max_waiting,
            max_body_bytes: args.max_body_bytes,
            max_new_tokens: args.max_new_tokens,
            timeout: Duration::from_secs(args.timeout_seconds),
            drain: Duration::from_secs(args.drain_seconds),
        },
        access: Access::keys(keys.iter().map(String::as_str)),
        log: Log { write: Arc::new(move |line| lines.note(line)), with_text: args.log_text },
    };
    let mut announced = Ok(());
    let served = serve::serve(setup, listener, stop, |address| {
        announced = write_line(out, &format!("http://{address}")).and_then(|()| super::written(out.flush()));
    });
    announced.and(served.map_err(Failure::from))
}

/// The model names with what they stand for: the adapters, then the base; the base alone where there are none.
fn models_of(args: &Args) -> Result<Vec<(String, Option<String>)>, Failure> {
    let adapters = args.adapter.iter().map(|(name, _)| (name.clone(), Some(name.clone())));
    let models: Vec<_> = adapters.chain(std::iter::once((args.base_name.clone(), None))).collect();
    for (idx, (name, _)) in models.iter().enumerate() {
        if name == "auto" || models[..idx].iter().any(|(other, _)| other == name) {
            return Err(BadName { name: name.clone() }.into());
        }
    }
    Ok(models)
}

fn routes_of(args: &Args, models: &[(String, Option<String>)]) -> Result<Routes, Failure> {
    let mut by_chapter = BTreeMap::new();
    for (name, chapters) in &args.route {
        let number = models.iter().position(|(known, _)| known == name);
        let number = number.ok_or_else(|| NoSuchModel {
            name: name.clone(),
            known: models.iter().map(|(name, _)| name.clone()).collect(),
        })?;
        by_chapter.extend(chapters.iter().map(|&chapter| (chapter, number)));
    }
    Ok(Routes::new(by_chapter, 0))
}

fn keys_of(path: Option<&Path>) -> Result<Vec<String>, Failure> {
    let text = match path {
        Some(path) => fsio::read_text(path)?,
        None => std::env::var("AXISMAPPER_API_KEY").unwrap_or_default(),
    };
    let keys: Vec<String> = text.lines().map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned).collect();
    match path {
        // An empty file is a mistake that would open the server to everybody.
        Some(path) if keys.is_empty() => Err(fsio::Error::Empty { path: path.to_owned() }.into()),
        _ => Ok(keys),
    }
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !dir.is_empty() => Ok((name.to_owned(), dir.into())),
        _ => Err("expected NAME=DIR".into()),
    }
}

fn route(text: &str) -> Result<(String, Vec<u8>), String> {
    let expected = "expected NAME=CHAPTERS, as in injuries=19,20";
    let (name, chapters) = text.split_once('=').ok_or(expected)?;
    let chapters: Result<Vec<u8>, _> = chapters.split(',').map(|number| number.trim().parse::<u8>()).collect();
    let chapters = chapters.map_err(|_| expected)?;
    match chapters.iter().find(|number| !(1..=22).contains(*number)) {
        Some(number) => Err(format!("there is no chapter {number}: they are numbered 1 to 22")),
        None => Ok((name.to_owned(), chapters)),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the model name `{name}` is taken")]
struct BadName {
    name: String,
}

impl Diagnostic for BadName {
    fn hint(&self) -> Option<String> {
        Some("names differ from each other, from `auto`, and from --base-name".into())
    }

    fn is_usage(&self) -> bool {
        true
    }
}

#[derive(Debug, thiserror::Error)]
#[error("--route names the model `{name}`, which is not served")]
struct NoSuchModel {
    name: String,
    known: Vec<String>,
}

impl Diagnostic for NoSuchModel {
    fn hint(&self) -> Option<String> {
        Some(format!("there are {}", self.known.join(", ")))
    }

    fn is_usage(&self) -> bool {
        true
    }
}
