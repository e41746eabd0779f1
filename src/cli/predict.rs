//! `axismapper predict`: codes for a text, and nothing else.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use super::constrain::ConstrainArgs;
use super::model::{ModelArgs, load_model};
use super::release::ReleaseArgs;
use super::sink::Sink;
use super::{write_json, write_line};
use crate::codes::Release;
use crate::decode::Constraint;
use crate::decode::automaton::Automaton;
use crate::decode::grammar::{self, Length};
use crate::diag::{Diagnostic, Failure};
use crate::http;
use crate::model::Qwen2;
use crate::predict::{self, Endpoint, FREE_TOKENS, Options, Prediction, Question, Table, alternatives, ask};
use crate::stop::Stop;
use crate::text::{Message, Tokenizer};
use crate::track::{Console, Progress};

/// Questions answered before their answers are written: what an interruption can cost.
const WINDOW: usize = 1024;

/// Predict the codes of a text, or of every line of a file
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the patient or the doctor says
    #[arg(required_unless_present = "input", conflicts_with = "input")]
    text: Option<String>,
    /// Lines to answer, or - for stdin: {"scenario": "..."}, chat records, or plain text
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where the records go with their `output`, `predicted` and `confidence`; stdout when left out. An interrupted
    /// run goes on where it stopped
    #[arg(long, value_name = "FILE", requires = "input")]
    out: Option<PathBuf>,
    /// Questions answered together
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    #[command(flatten)]
    constrain: ConstrainArgs,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Hold back answers whose probability is lower
    #[arg(long, value_name = "P", value_parser = probability)]
    min_confidence: Option<f64>,
    /// Give the N likeliest answers with their probabilities
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    top: Option<u16>,
    /// Add the columns of a CSV table to each code, found by its column `code`
    #[arg(long, value_name = "TABLE.csv")]
    join: Option<PathBuf>,
    /// Ask a server with OpenAI's interface instead of a model here; --model is then a name there. With --constrain it
    /// is sent the codes as a regular expression, as vLLM takes it
    #[arg(long, value_name = "URL", conflicts_with_all = ["adapter", "top"])]
    endpoint: Option<String>,
    /// Requests under way at once
    #[arg(long, value_name = "N", default_value_t = 32, requires = "endpoint")]
    concurrency: usize,
    /// The server's key
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, requires = "endpoint")]
    api_key: Option<String>,
    /// Print the answer to TEXT as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Whether a file of questions is answered.
    pub(super) fn is_for_a_file(&self) -> bool {
        self.input.is_some()
    }
}

/// Runs the command.
///
/// # Errors
/// When a file, the model or the server cannot be read, an answer is missing, or a stop is requested.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let questions = match (&args.text, &args.input) {
        (Some(text), _) => vec![Question::of_text(text)],
        (None, Some(path)) => predict::read_questions(path)?,
        (None, None) => Vec::new(),
    };
    let table = args.join.as_deref().map(Table::read).transpose()?;
    let release = Arc::new(args.release.load()?);
    let mut answerer = Answerer::new(args, &release, console, stop)?;
    let finish = |prediction: Prediction| prediction.explained(&release).held_to(args.min_confidence.unwrap_or(0.0));
    if args.text.is_some() {
        let progress = console.bar("answering", 1);
        let mut predictions = vec![None];
        answerer.answer(args, &questions, stop, &progress, &mut predictions)?;
        progress.finish();
        let prediction = predictions.pop().flatten().unwrap_or_default();
        return write_answer(args, finish(prediction), table.as_ref(), console, out);
    }
    let mut sink = Sink::open(args.out.as_deref(), &settings_of(args, questions.len()), out)?;
    let n_before = sink.n_before();
    let progress = console.bar("answering", questions.len() as u64);
    progress.resume_at(n_before as u64);
    let mut counts = Counts::default();
    for window in questions[n_before.min(questions.len())..].chunks(WINDOW) {
        let mut predictions = vec![None; window.len()];
        let answered = answerer.answer(args, window, stop, &progress, &mut predictions);
        // Where it failed, what comes before the first missing answer is kept.
        for (question, prediction) in window.iter().zip(predictions.into_iter().map_while(|prediction| prediction)) {
            let prediction = finish(prediction);
            counts.add(&prediction);
            sink.push(&record_of(question, &prediction, table.as_ref())?)?;
        }
        answered.map_err(|failure| sink.interrupted(failure))?;
    }
    sink.finish()?;
    progress.finish();
    if let Some(path) = &args.out {
        console.note(&format!("answers: {}, a line for each of the input's", path.display()));
    }
    counts.report(console)
}

/// Who answers.
enum Answerer {
    Local { model: Box<Qwen2>, tokenizer: Box<Tokenizer>, options: Options },
    Remote { endpoint: Endpoint, client: Box<http::Client> },
}

impl Answerer {
    fn new(args: &Args, release: &Arc<Release>, console: &Console, stop: &Stop) -> Result<Self, Failure> {
        if let Some(url) = &args.endpoint {
            let settings = http::Settings { timeout: Duration::from_secs(600), ..http::Settings::default() };
            let regex = args.constrain.is_asked_for().then(|| {
                let automaton = Automaton::of(release.billable().iter().map(|billable| billable.code.to_string()));
                grammar::regex(&automaton, Length::Unbounded)
            });
            let endpoint = Endpoint {
                url: url.clone(),
                model: args.model.model.as_ref().map(|name| name.to_string_lossy().into_owned()),
                api_key: args.api_key.clone(),
                concurrency: args.concurrency,
                max_tokens: FREE_TOKENS.max(args.constrain.rules().max_codes * 10),
                regex,
            };
            let client = Box::new(http::Client::new(settings, stop)?);
            return Ok(Self::Remote { endpoint, client });
        }
        let rules = args.constrain.constrains().then(|| args.constrain.rules());
        if rules.is_none() && (args.top.is_some() || args.min_confidence.is_some()) {
            return Err(NeedsConstraint.into());
        }
        let (model, tokenizer) = load_model(&args.model, console, stop)?;
        let constraint = match rules {
            Some(rules) => Some(Arc::new(Constraint::new(Arc::clone(release), &tokenizer, rules)?)),
            None => None,
        };
        let options = Options { batch_size: args.batch_size, constraint };
        Ok(Self::Local { model: Box::new(model), tokenizer: Box::new(tokenizer), options })
    }

    /// Puts the answers in the places of their questions; those that were finished before a failure are there too.
    fn answer(
        &mut self,
        args: &Args,
        questions: &[Question],
        stop: &Stop,
        progress: &Progress,
        predictions: &mut [Option<Prediction>],
    ) -> Result<(), Failure> {
        let prompts: Vec<Vec<Message>> = questions.iter().map(|question| question.prompt.clone()).collect();
        let mut done = |idx: usize, prediction| {
            predictions[idx] = Some(prediction);
            progress.advance(1);
        };
        match self {
            Self::Remote { endpoint, client } => ask(endpoint, client, &prompts, stop, done)?,
            Self::Local { model, tokenizer, options } => match (args.top, &options.constraint) {
                (Some(n), Some(constraint)) => {
                    for (idx, prompt) in prompts.iter().enumerate() {
                        stop.check("answering")?;
                        done(idx, alternatives(model, tokenizer, prompt, constraint, usize::from(n))?);
                    }
                }
                _ => predict::predict(model, tokenizer, &prompts, options, stop, done)?,
            },
        }
        Ok(())
    }
}

/// What became of the answers.
#[derive(Default)]
struct Counts {
    n_abstained: u64,
    n_refused: u64,
    n_not_billable: u64,
}

impl Counts {
    fn add(&mut self, prediction: &Prediction) {
        self.n_abstained += u64::from(prediction.abstained);
        self.n_refused += u64::from(prediction.error.is_some());
        self.n_not_billable += u64::from(prediction.predicted.iter().any(|code| code.description.is_none()));
    }

    fn report(&self, console: &Console) -> Result<(), Failure> {
        if self.n_abstained > 0 {
            console.note(&format!("{} answers are held back: their confidence is too low", self.n_abstained));
        }
        if self.n_not_billable > 0 {
            console.note(&format!("{} answers have a code that is not billable", self.n_not_billable));
        }
        if self.n_refused > 0 { Err(Refused { n: self.n_refused }.into()) } else { Ok(()) }
    }
}

/// What decides the records of a file: the same settings go on with an interrupted one.
fn settings_of(args: &Args, n_questions: usize) -> Value {
    json!({
        "model": args.model.model,
        "adapter": args.model.adapter,
        "quant": format!("{:?}", args.model.quant),
        "dtype": format!("{:?}", args.model.dtype),
        "endpoint": args.endpoint,
        "input": args.input,
        "n_questions": n_questions,
        "constrain": format!("{:?}", args.constrain),
        "release": format!("{:?}", args.release),
        "min_confidence": args.min_confidence,
        "top": args.top,
        "join": args.join,
    })
}

/// A question's record with its answer.
fn record_of(question: &Question, prediction: &Prediction, table: Option<&Table>) -> Result<Value, Failure> {
    let mut record = question.record.clone();
    let answer = serde_json::to_value(prediction).map_err(super::unwritable)?;
    if let Value::Object(fields) = answer {
        record.extend(fields);
    }
    for (code, predicted) in prediction.predicted.iter().zip(record["predicted"].as_array_mut().into_iter().flatten()) {
        if let Some(table) = table {
            predicted["joined"] = joined(table, code.code).into();
        }
    }
    Ok(Value::Object(record))
}

/// The table's fields for a code by column; null where the table does not have it.
fn joined(table: &Table, code: crate::codes::Code) -> Map<String, Value> {
    let fields = table.get(code);
    let field =
        |idx: usize| fields.and_then(|fields| fields.get(idx)).map_or(Value::Null, |field| field.clone().into());
    table.columns.iter().enumerate().map(|(idx, column)| (column.clone(), field(idx))).collect()
}

/// The answer to a text: codes and nothing else; a line for each answer or code where more was asked for.
fn write_answer(
    args: &Args,
    prediction: Prediction,
    table: Option<&Table>,
    console: &Console,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if let Some(message) = &prediction.error {
        return Err(RefusedText { message: message.clone() }.into());
    }
    if args.json {
        let question = Question::of_text(args.text.as_deref().unwrap_or_default());
        return write_json(out, &record_of(&question, &prediction, table)?);
    }
    if let (true, Some(confidence)) = (prediction.abstained, prediction.confidence) {
        console.note(&format!("no answer: the likeliest has a probability of {confidence:.3}"));
    }
    for conflict in &prediction.conflicts {
        console.note(&format!("note: {conflict}"));
    }
    if !prediction.alternatives.is_empty() {
        let lines = prediction.alternatives.iter().map(|other| format!("{:.4}\t{}", other.confidence, other.output));
        return lines.into_iter().try_for_each(|line| write_line(out, &line));
    }
    let Some(table) = table else { return write_line(out, &prediction.output) };
    let mut lines = vec![std::iter::once("code").chain(table.columns.iter().map(String::as_str)).collect::<Vec<_>>()];
    let codes: Vec<String> = prediction.predicted.iter().map(|predicted| predicted.code.to_string()).collect();
    for (predicted, code) in prediction.predicted.iter().zip(&codes) {
        let fields = table.get(predicted.code).unwrap_or_default().iter().map(String::as_str);
        let mut line: Vec<&str> = std::iter::once(code.as_str()).chain(fields).collect();
        line.resize(1 + table.columns.len(), "");
        lines.push(line);
    }
    lines.iter().try_for_each(|line| write_line(out, &line.join("\t")))
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a probability from 0 to 1".into()),
    }
}

/// Confidence was asked of a free answer.
#[derive(Debug, thiserror::Error)]
#[error("--top and --min-confidence need constrained answers")]
struct NeedsConstraint;

impl Diagnostic for NeedsConstraint {
    fn hint(&self) -> Option<String> {
        Some("leave --no-constrain out".into())
    }

    fn is_usage(&self) -> bool {
        true
    }
}

/// The server refused some questions.
#[derive(Debug, thiserror::Error)]
#[error("the server refused {n} questions; their records say why (`error`)")]
struct Refused {
    n: u64,
}

impl Diagnostic for Refused {}

/// The server refused the text.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct RefusedText {
    message: String,
}

impl Diagnostic for RefusedText {}
