//! `axismapper eval`: a model's answers, or stored ones, against the right codes.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args as ClapArgs, ValueEnum};

use super::constrain::ConstrainArgs;
use super::model::{ModelArgs, load_model};
use super::release::ReleaseArgs;
use super::{say_next, write_indented_json, write_line};
use crate::codes::Release;
use crate::decode::Constraint;
use crate::diag::{Diagnostic, Failure};
use crate::eval::{Answer, Earlier, Error, Evaluation, Key, Stage, answers, pair, read_answers, search_answers};
use crate::fsio;
use crate::pipeline::{Question, confidences, load_questions};
use crate::predict::{self, Options, Prediction};
use crate::stop::Stop;
use crate::track::Console;

/// Evaluate a model, or stored predictions, against the right codes
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Chat records: the last assistant turn is the right answer
    #[arg(long, value_name = "FILE", required_unless_present = "predictions")]
    data: Option<PathBuf>,
    /// Stored answers instead of a model: {"expected": "A, B", "output": "raw text"}, and where known "confidence",
    /// "family" and "scenario"; given more than once, the last is the result and the others stand beside it
    #[arg(long, value_name = "[NAME=]FILE", conflicts_with_all = ["data", "model", "adapter"])]
    predictions: Vec<String>,
    /// A report.json of before, to be compared with record by record; may be given more than once
    #[arg(long, value_name = "OLD.json")]
    compare: Vec<PathBuf>,
    /// Put answers beside the result that need no model
    #[arg(long, value_enum)]
    baseline: Option<Baseline>,
    /// What the result is called in the report
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    constrain: ConstrainArgs,
    #[command(flatten)]
    release: ReleaseArgs,
    /// Folder for report.html, report.json and, of a model, predictions.jsonl
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Keep the questions out of all files; `family` and codes stay
    #[arg(long)]
    without_text: bool,
    /// Prompts answered together
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Seed of the intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What the answers of the baseline are called.
const SEARCH: &str = "search";

/// `--baseline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Baseline {
    /// The best hit of `codes search` for the question
    Search,
}

/// A request that cannot be met.
#[derive(Debug, thiserror::Error)]
#[error("`{}` and what is to be evaluated have no record in common", path.display())]
struct Unrelated {
    path: PathBuf,
}

impl Diagnostic for Unrelated {
    fn hint(&self) -> Option<String> {
        Some("--compare takes the report of an evaluation of the same test file".into())
    }

    fn is_usage(&self) -> bool {
        true
    }
}

/// Answers and what they are called.
struct Column {
    name: String,
    answers: Vec<Answer>,
}

/// What is evaluated, and what stands beside it, the earlier first.
struct Columns {
    others: Vec<Column>,
    result: Column,
}

/// Runs the command.
///
/// # Errors
/// When a file or the model cannot be read, the evaluations have nothing in common, or a stop is requested.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let release = Arc::new(args.release.load()?);
    let earlier: Vec<Earlier> = args.compare.iter().map(|path| Earlier::read(path)).collect::<Result<_, _>>()?;
    let columns = match (args.predictions.split_last(), &args.data) {
        (Some((last, before)), _) => stored(last, before)?,
        (None, data) => {
            let questions = load_questions(data.as_deref().unwrap_or(Path::new("-")))?;
            check_related(args, &earlier, &questions)?;
            match (args.baseline, &args.model.model) {
                (Some(Baseline::Search), None) => searched(questions, &release, console, stop)?,
                _ => from_model(args, questions, &release, console, stop)?,
            }
        }
    };
    let evaluation = evaluate(args, columns, earlier, &release, console, stop)?;
    if let Some(dir) = &args.out {
        evaluation.write_json(&dir.join("report.json"))?;
        evaluation.write_html(&dir.join("report.html"), &release)?;
        console.note(&format!("report: {}", dir.join("report.html").display()));
        let report = dir.join("report.json");
        say_next(console, &format!("compare another model with it by --compare {}", report.display()));
    }
    if args.json {
        return write_indented_json(out, &evaluation.summary());
    }
    write_line(out, evaluation.to_text().trim_end())
}

/// Scores every column, and puts the records of earlier reports and the baseline first.
fn evaluate(
    args: &Args,
    columns: Columns,
    earlier: Vec<Earlier>,
    release: &Release,
    console: &Console,
    stop: &Stop,
) -> Result<Evaluation, Error> {
    let Columns { mut others, mut result } = columns;
    if let Some(name) = &args.name {
        result.name.clone_from(name);
    }
    if args.baseline.is_some() && others.iter().chain([&result]).all(|column| column.name != SEARCH) {
        let found = search(&result.answers, release, console, stop)?;
        others.insert(0, Column { name: SEARCH.into(), answers: found });
    }
    let stage = |column: &Column| Stage::of_answers(column.name.clone(), &column.answers, release, args.seed);
    let mut stages: Vec<Stage> = Vec::with_capacity(earlier.len() + others.len());
    for Earlier { name, records } in earlier {
        let name = if name == result.name { format!("{name} (before)") } else { name };
        stages.push(Stage::of_records(name, records, release, args.seed));
    }
    stages.extend(others.iter().map(stage));
    let result_stage = stage(&result);
    let shown: Vec<Answer> = result.answers.into_iter().map(|answer| shown(args, answer)).collect();
    Evaluation::new(result_stage, &shown, stages, release, args.seed)
}

/// Every earlier report must have a record of these questions: told before hours of answering, not after.
fn check_related(args: &Args, earlier: &[Earlier], questions: &[Question]) -> Result<(), Unrelated> {
    let keys: Vec<Key> = questions.iter().map(|question| Key::new(question.scenario(), &question.expected)).collect();
    for (report, path) in earlier.iter().zip(&args.compare) {
        let theirs: Vec<Key> = report.records.iter().map(|record| record.key.clone()).collect();
        if pair(&theirs, &keys).places.is_empty() {
            return Err(Unrelated { path: path.clone() });
        }
    }
    Ok(())
}

/// The model's answers, stored before anything else is done with them.
fn from_model(
    args: &Args,
    questions: Vec<Question>,
    release: &Arc<Release>,
    console: &Console,
    stop: &Stop,
) -> Result<Columns, Failure> {
    let (mut model, tokenizer) = load_model(&args.model, console, stop)?;
    let prompts: Vec<_> = questions.iter().map(|question| question.prompt.clone()).collect();
    let progress = console.bar("answering", prompts.len() as u64);
    let outputs: Vec<(String, Option<f64>)> = if args.constrain.constrains() {
        let constraint = Constraint::new(Arc::clone(release), &tokenizer, args.constrain.rules())?;
        let options = Options { batch_size: args.batch_size, constraint: Some(Arc::new(constraint)) };
        let mut predictions = vec![Prediction::default(); prompts.len()];
        predict::predict(&mut model, &tokenizer, &prompts, &options, stop, |idx, prediction| {
            predictions[idx] = prediction;
            progress.advance(1);
        })?;
        progress.finish();
        predictions.into_iter().map(|prediction| (prediction.output, prediction.confidence)).collect()
    } else {
        let outputs = answers(&mut model, &tokenizer, &prompts, args.batch_size, stop, |n| progress.advance(n))?;
        progress.finish();
        let progress = console.bar("weighing", prompts.len() as u64);
        let confidences = confidences(&mut model, &tokenizer, &prompts, &outputs, stop, |n| progress.advance(n))?;
        progress.finish();
        outputs.into_iter().zip(confidences).collect()
    };
    let answers: Vec<Answer> = questions
        .into_iter()
        .zip(outputs)
        .map(|(question, (output, confidence))| question.answered(output, confidence))
        .collect();
    if let Some(dir) = &args.out {
        fsio::write_jsonl(&dir.join("predictions.jsonl"), answers.iter().cloned().map(|answer| shown(args, answer)))?;
    }
    Ok(Columns { others: Vec::new(), result: Column { name: "result".into(), answers } })
}

/// The baseline alone.
fn searched(questions: Vec<Question>, release: &Release, console: &Console, stop: &Stop) -> Result<Columns, Error> {
    let asked: Vec<Answer> = questions.into_iter().map(|question| question.answered(String::new(), None)).collect();
    let answers = search(&asked, release, console, stop)?;
    Ok(Columns { others: Vec::new(), result: Column { name: SEARCH.into(), answers } })
}

fn search(asked: &[Answer], release: &Release, console: &Console, stop: &Stop) -> Result<Vec<Answer>, Error> {
    let progress = console.bar("searching", asked.len() as u64);
    let found = search_answers(asked, release, stop, |n| progress.advance(n))?;
    progress.finish();
    Ok(found)
}

/// The answers of every predictions file. A lone one is called `result`, others are called after their files.
fn stored(last: &str, before: &[String]) -> Result<Columns, Error> {
    let column = |given: &String| -> Result<Column, Error> {
        let (name, path) = named(given);
        Ok(Column { name: name.unwrap_or_else(|| name_of(path)), answers: read_answers(path)? })
    };
    let others: Vec<Column> = before.iter().map(column).collect::<Result<_, _>>()?;
    let (name, path) = named(last);
    let name = name.unwrap_or_else(|| if others.is_empty() { "result".into() } else { name_of(path) });
    Ok(Columns { others, result: Column { name, answers: read_answers(path)? } })
}

/// `NAME=FILE`, or a file, which may have `=` in its own name.
fn named(given: &str) -> (Option<String>, &Path) {
    match given.split_once('=') {
        Some((name, path)) if !Path::new(given).exists() => (Some(name.to_owned()), Path::new(path)),
        _ => (None, Path::new(given)),
    }
}

/// The name of a file without its ending; that of its folder when the file is called as `eval` calls them all.
fn name_of(path: &Path) -> String {
    let text = |part: Option<&OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let stem = text(path.file_stem()).unwrap_or_default();
    match text(path.parent().and_then(Path::file_name)) {
        Some(folder) if stem == "predictions" => folder,
        _ => stem,
    }
}

/// An answer as files may show it.
fn shown(args: &Args, answer: Answer) -> Answer {
    if args.without_text { Answer { scenario: String::new(), ..answer } } else { answer }
}
