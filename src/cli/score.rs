//! `axismapper score`: log-probabilities of the answers in a file.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::model::{ModelArgs, load_model};
use super::sink::Sink;
use crate::data::record::Turns;
use crate::diag::{Diagnostic, Failure};
use crate::fsio;
use crate::model::Qwen2;
use crate::stop::Stop;
use crate::text::{Message, Tokenizer, Tokens};
use crate::track::Console;
use crate::train::{Sharing, log_probabilities, pack_records};

/// Records scored before their lines are written: what an interruption can cost.
const WINDOW: usize = 128;

/// Score answers: the log-probability of every token that the model was to write
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Chat records, whose assistant turns are scored, or {"prompt": ..., "completion": ...}; - for stdin
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the scores go, a line for each of the input's; stdout when left out. An interrupted run goes on where it
    /// stopped
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Tokens that go through the model together
    #[arg(long, default_value_t = 2048, value_name = "N")]
    batch_tokens: usize,
}

/// A line of the input.
#[derive(Deserialize)]
#[serde(untagged)]
enum Record {
    Chat { messages: Vec<Message> },
    Completion { prompt: Turns, completion: Turns },
}

/// A line of the output.
#[derive(Debug, PartialEq, Serialize)]
struct Score {
    /// Tokens scored.
    n_tokens: usize,
    /// Minus the sum of their log-probabilities, nats.
    nll: f64,
    /// Of each token given those before it, nats.
    logprobs: Vec<f32>,
}

/// A record ready to be scored, with the line it came from.
struct Item {
    line: usize,
    tokens: Tokens,
}

/// Runs the command.
///
/// # Errors
/// When a file or the model cannot be read, a record is too long for the model, or a stop is requested.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let (mut model, tokenizer) = load_model(&args.model, console, stop)?;
    let items = read(&args.input, &tokenizer, model.config.max_position_embeddings)?;
    let mut sink = Sink::open(args.out.as_deref(), &settings_of(args, items.len()), out)?;
    let n_before = sink.n_before().min(items.len());
    let progress = console.bar("scoring", items.len() as u64);
    progress.resume_at(n_before as u64);
    let (mut n_tokens, mut nll) = (0, 0.0);
    for window in items[n_before..].chunks(WINDOW) {
        let scores = score(&mut model, window, args, stop, |n| progress.advance(n));
        for score in scores.map_err(|failure| sink.interrupted(failure))? {
            (n_tokens, nll) = (n_tokens + score.n_tokens, nll + score.nll);
            sink.push(&score)?;
        }
        sink.sync()?;
    }
    sink.finish()?;
    progress.finish();
    let mean = nll / (n_tokens.max(1) as f64);
    let perplexity = mean.exp();
    let n = items.len() - n_before;
    let before = if n_before > 0 { format!(", after {n_before} of an earlier run") } else { String::new() };
    console
        .note(&format!("{n} records{before}, {n_tokens} tokens, {mean:.4} nats a token, perplexity {perplexity:.4}"));
    if let Some(path) = &args.out {
        console.note(&format!("scores: {}, a line for each of {}", path.display(), args.input.display()));
    }
    Ok(())
}

/// What an unfinished output must agree in, to be gone on with.
fn settings_of(args: &Args, n_records: usize) -> Value {
    let ModelArgs { model, adapter, quant, dtype, .. } = &args.model;
    json!({
        "input": args.input,
        "n_records": n_records,
        "model": model,
        "adapter": adapter,
        "quant": format!("{quant:?}"),
        "dtype": format!("{dtype:?}"),
    })
}

fn read(path: &Path, tokenizer: &Tokenizer, max_positions: i64) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    fsio::for_each_line(path, |line, text| {
        let record =
            serde_json::from_str(text).map_err(|error| match serde_json::from_str::<serde_json::Value>(text) {
                Ok(_) => "expected `messages`, or `prompt` and `completion`, both texts or both messages".to_owned(),
                Err(_) => fsio::json_fault(&error),
            })?;
        let tokens = match &record {
            Record::Chat { messages } => tokenizer.encode_chat(messages),
            Record::Completion { prompt: Turns::Messages(prompt), completion: Turns::Messages(answer) } => {
                tokenizer.encode_answer(prompt, answer)
            }
            Record::Completion { prompt: Turns::Plain(prompt), completion: Turns::Plain(answer) } => {
                tokenizer.encode_continuation(prompt, answer)
            }
            Record::Completion { .. } => {
                return Err("expected prompt and completion to be both text or both messages".into());
            }
        };
        let tokens = tokens.map_err(|error| error.to_string())?;
        if tokens.len() as i64 > max_positions {
            return Err(format!("{} tokens, the model takes {max_positions}", tokens.len()));
        }
        if tokens.n_targets() == 0 {
            return Err("nothing to score: no assistant turn, or an empty completion".into());
        }
        items.push(Item { line, tokens });
        Ok(())
    })?;
    if items.is_empty() {
        return Err(fsio::Error::Empty { path: path.to_owned() }.into());
    }
    Ok(items)
}

/// Scores records of similar length together; the result is in the order of the items.
fn score(
    model: &mut Qwen2,
    items: &[Item],
    args: &Args,
    stop: &Stop,
    mut done: impl FnMut(u64),
) -> Result<Vec<Score>, Failure> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    // The longest first: what does not fit into memory shows at once.
    order.sort_by_key(|&idx| std::cmp::Reverse(items[idx].tokens.len()));
    let mut scores: Vec<Option<Score>> = items.iter().map(|_| None).collect();
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        stop.check("scoring")?;
        let mut n_tokens = 0;
        let fits = |&&idx: &&usize| {
            n_tokens += items[idx].tokens.len();
            n_tokens <= args.batch_tokens
        };
        let (batch, others) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = others;
        let packed = pack_records(batch.iter().map(|&idx| &items[idx].tokens), Sharing::All);
        let logprobs = log_probabilities(model, &packed)?;
        let mut logprobs = logprobs.as_slice();
        for &idx in batch {
            // A record's first token has none before it to be predicted from.
            let n_scored = items[idx].tokens.is_target.iter().skip(1).filter(|&&is_target| is_target).count();
            let (own, others) = logprobs.split_at(n_scored);
            logprobs = others;
            if own.iter().any(|logprob| !logprob.is_finite()) {
                return Err(NotFinite { path: args.input.clone(), line: items[idx].line }.into());
            }
            let nll = -own.iter().map(|&logprob| f64::from(logprob)).sum::<f64>();
            scores[idx] = Some(Score { n_tokens: n_scored, nll, logprobs: own.to_vec() });
        }
        done(batch.len() as u64);
    }
    Ok(scores.into_iter().flatten().collect())
}

/// The model broke down on a record.
#[derive(Debug, thiserror::Error)]
#[error("`{}` line {line}: the model gives a log-probability that is not finite", path.display())]
struct NotFinite {
    path: PathBuf,
    line: usize,
}

impl Diagnostic for NotFinite {
    fn hint(&self) -> Option<String> {
        Some("try --dtype float32; if that does not help, the model or the adapter diverged in training".into())
    }
}
