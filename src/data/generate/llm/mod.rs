//! Scenarios worded by a language model behind an Ollama or an OpenAI-compatible server.
//!
//! What a record is about (codes, person, register) is drawn as for templates, so that it depends on seed and index only;
//! the model words it. Requests run side by side; an answer that cannot be used is asked for again; what a run leaves
//! out is counted, and the next run asks for that alone.

mod prompt;
mod protocol;
mod store;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use protocol::{BadAnswer, Endpoint, Protocol};

use self::protocol::{Ask, Usage, scenario_in};
use self::store::Store;
use super::template::{Assignment, Generator, TemplateSettings};
use crate::codes::Release;
use crate::data::Error;
use crate::data::draw::Draw;
use crate::data::record::Scenario;
use crate::data::wording::Wording;
use crate::http;
use crate::stop::Stop;

/// How a model is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlmSettings {
    /// The model's name on its server.
    pub model: String,
    /// Requests at a time.
    pub concurrency: usize,
    /// Answers asked for at most until one can be used.
    pub attempts: u32,
    pub temperature: f64,
    /// Limit on the wait for one answer.
    pub timeout_seconds: u64,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LlmReport {
    /// Scenarios in the file.
    pub n_records: usize,
    /// Of these, made by earlier runs.
    pub n_before: usize,
    /// Scenarios asked for that are not there.
    pub n_missing: usize,
    /// Selected codes.
    pub n_codes: usize,
    /// Selected codes that cannot be a case.
    pub n_codes_left_out: usize,
    /// Answers of this run that could not be used, by reason; each was asked for again.
    pub bad_answers: BTreeMap<BadAnswer, usize>,
    /// Missing scenarios by the last thing that went wrong.
    pub missing: BTreeMap<String, usize>,
    /// Tokens of this run, as the server counts them.
    pub n_prompt_tokens: u64,
    pub n_completion_tokens: u64,
}

/// What became of an assignment.
struct Outcome {
    assignment: Assignment,
    scenario: Result<String, Trouble>,
    bad: Vec<BadAnswer>,
    usage: Usage,
}

enum Trouble {
    /// No answer could be used.
    Answers(BadAnswer),
    /// The server gave none.
    Server(http::Error),
}

/// A server with a model, ready to be asked.
struct Model<'a> {
    client: http::Client,
    endpoint: &'a Endpoint,
    settings: &'a LlmSettings,
    release: &'a Release,
    seed: u64,
}

/// Asks for the scenarios that `path` lacks and writes them there. `advance` hears of the scenarios done, those of
/// earlier runs first.
///
/// # Errors
/// A setting, a file with other records ([`Error::OtherRecords`]), a server that cannot be used (what was finished is
/// kept), or [`Error::Stopped`].
pub fn write_scenarios(
    release: &Release,
    cases: &TemplateSettings,
    endpoint: &Endpoint,
    settings: &LlmSettings,
    path: &Path,
    stop: &Stop,
    mut advance: impl FnMut(u64),
) -> Result<LlmReport, Error> {
    settings.check()?;
    let wording = Wording::new(release);
    let generator = Generator::new(release, &wording, cases.clone())?;
    let author = author(endpoint.protocol, &settings.model);
    let number_of = |scenario: &Scenario| {
        let number = usize::try_from(scenario.extra.get("assignment")?.as_u64()?).ok()?;
        let is_ours = scenario.extra.get("author")?.as_str()? == author
            && scenario.group == group(endpoint.protocol, cases.seed, generator.assignment(number).case_idx)
            && scenario.codes == generator.assignment(number).codes;
        is_ours.then_some(number)
    };
    let mut store = Store::open(path, number_of)?;
    let mut report = LlmReport { n_before: store.len(), ..LlmReport::default() };
    let counts = generator.report();
    (report.n_codes, report.n_codes_left_out) = (counts.n_codes, counts.n_codes_left_out);
    let missing: Vec<usize> = (0..cases.n_records).filter(|number| !store.has(*number)).collect();
    advance((cases.n_records - missing.len()) as u64);
    let model = Model {
        client: http::Client::new(settings.http(endpoint), stop)?,
        endpoint,
        settings,
        release,
        seed: cases.seed,
    };
    if !missing.is_empty() {
        model.check_server()?;
    }

    let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    // Without a buffer: nobody asks on while an answer waits to be written, so that a crash loses few.
    let (sender, outcomes) = mpsc::sync_channel::<Outcome>(0);
    let work = |sender: mpsc::SyncSender<Outcome>| {
        while !is_over.load(Ordering::SeqCst) && !stop.is_requested() {
            let Some(&number) = missing.get(next.fetch_add(1, Ordering::SeqCst)) else { break };
            if sender.send(model.word(generator.assignment(number))).is_err() {
                break;
            }
        }
    };
    let fault = std::thread::scope(|scope| {
        for _ in 0..settings.concurrency.min(missing.len()) {
            let sender = sender.clone();
            scope.spawn(|| work(sender));
        }
        drop(sender);
        let mut fault: Option<Error> = None;
        let mut n_silent = 0;
        for outcome in outcomes {
            report.add(&outcome);
            let Outcome { assignment, scenario, .. } = outcome;
            match scenario {
                Ok(text) => {
                    n_silent = 0;
                    let number = assignment.idx;
                    let record = record(text, assignment, endpoint.protocol, &author, cases.seed);
                    match store.push(number, record) {
                        Ok(()) => advance(1),
                        Err(error) => drop(fault.get_or_insert(error)),
                    }
                }
                Err(Trouble::Answers(_)) => n_silent = 0,
                Err(Trouble::Server(error)) => {
                    n_silent += 1;
                    if settings.is_hopeless(&error, n_silent) {
                        fault.get_or_insert(model.explain(error));
                    }
                }
            }
            is_over.fetch_or(fault.is_some(), Ordering::SeqCst);
        }
        fault
    });
    report.n_records = store.len();
    report.n_missing = (0..cases.n_records).filter(|number| !store.has(*number)).count();
    let kept =
        || format!("{} scenarios are kept; the same command asks for the other {}", report.n_records, report.n_missing);
    if let Err(mut stopped) = stop.check("asking for scenarios") {
        stopped.resume = Some(kept());
        return Err(stopped.into());
    }
    match fault {
        Some(error) => Err(Error::Unfinished { kept: kept(), source: Box::new(error) }),
        None => {
            store.finish()?;
            Ok(report)
        }
    }
}

/// The request for record `idx` as it would be sent, as JSON.
pub fn preview(
    release: &Release,
    generator: &Generator<'_>,
    endpoint: &Endpoint,
    settings: &LlmSettings,
    idx: usize,
) -> String {
    let ask = Ask { model: &settings.model, temperature: settings.temperature, seed: 0 };
    endpoint.chat_body(release, &generator.assignment(idx), ask).to_string()
}

/// Removes what an earlier run left for `path`, so that the next starts anew.
///
/// # Errors
/// [`Error::File`].
pub fn discard(path: &Path) -> Result<(), Error> {
    store::discard(path)
}

impl LlmSettings {
    fn check(&self) -> Result<(), Error> {
        let check = crate::data::error::check_setting;
        check("concurrency", self.concurrency as f64, 1.0..=256.0)?;
        check("attempts", f64::from(self.attempts), 1.0..=20.0)?;
        check("temperature", self.temperature, 0.0..=2.0)?;
        check("timeout_seconds", self.timeout_seconds as f64, 1.0..=3600.0)
    }

    fn http(&self, endpoint: &Endpoint) -> http::Settings {
        let (timeout, retry) = (Duration::from_secs(self.timeout_seconds), endpoint.retry);
        http::Settings { timeout, retry, ..http::Settings::default() }
    }

    /// Whether to go on makes no sense: the request itself is refused, or nothing has come for a while.
    fn is_hopeless(&self, error: &http::Error, n_silent: usize) -> bool {
        let is_refused =
            error.status().is_some_and(|status| matches!(status, 400..=407 | 409..=424 | 426..=428 | 430..=499));
        is_refused || matches!(error, http::Error::BadUrl { .. }) || n_silent > 2 * self.concurrency.max(2)
    }
}

impl LlmReport {
    fn add(&mut self, outcome: &Outcome) {
        self.n_prompt_tokens += outcome.usage.prompt;
        self.n_completion_tokens += outcome.usage.completion;
        for bad in &outcome.bad {
            *self.bad_answers.entry(*bad).or_default() += 1;
        }
        let reason = match &outcome.scenario {
            Ok(_) => return,
            // A unit variant always has a JSON name.
            Err(Trouble::Answers(bad)) => {
                serde_json::to_value(bad).ok().and_then(|name| Some(name.as_str()?.to_owned()))
            }
            Err(Trouble::Server(http::Error::Stopped(_))) => return,
            Err(Trouble::Server(error)) => Some(server_reason(error)),
        };
        *self.missing.entry(reason.unwrap_or_default()).or_default() += 1;
    }
}

impl Model<'_> {
    /// One request that answers at once, before many that do not.
    fn check_server(&self) -> Result<(), Error> {
        let answer = match self.client.send_once(&self.endpoint.list_request()) {
            Ok(answer) => answer,
            Err(error) => return Err(self.explain(error)),
        };
        if matches!(answer.status.as_u16(), 401 | 403) {
            return Err(Error::NoAccess { url: answer.url, key: self.endpoint.api_key.is_some() });
        }
        // Only Ollama's list is sure to be complete; others serve models that they do not list.
        let list: Option<Value> = if answer.status.is_success() { answer.json().ok() } else { None };
        match list {
            Some(list) if self.endpoint.protocol == Protocol::Ollama => {
                let models = self.endpoint.listed_models(&list);
                let wanted = [self.settings.model.clone(), format!("{}:latest", self.settings.model)];
                if models.iter().any(|model| wanted.contains(model)) { Ok(()) } else { Err(self.no_model(models)) }
            }
            _ => Ok(()),
        }
    }

    /// Words an assignment: asks until an answer can be used.
    fn word(&self, assignment: Assignment) -> Outcome {
        let (mut bad, mut usage) = (Vec::new(), Usage::default());
        for attempt in 0..self.settings.attempts {
            let seed =
                Draw::new(self.seed, "request", (assignment.idx as u64) << 8 | u64::from(attempt)).bits() as u32 >> 1;
            let ask = Ask { model: &self.settings.model, temperature: self.settings.temperature, seed };
            let request = self.endpoint.chat_request(self.release, &assignment, ask);
            let answer = match self.client.send(&request) {
                Ok(answer) => answer.json::<Value>(),
                Err(error) => return Outcome { assignment, scenario: Err(Trouble::Server(error)), bad, usage },
            };
            let (content, used) = match &answer {
                Ok(answer) => self.endpoint.content(answer),
                Err(_) => (Err(BadAnswer::NotJson), Usage::default()),
            };
            usage.prompt += used.prompt;
            usage.completion += used.completion;
            match content.and_then(|content| scenario_in(&content, &assignment.codes, self.release)) {
                Ok(text) => return Outcome { assignment, scenario: Ok(text), bad, usage },
                Err(fault) => bad.push(fault),
            }
        }
        let last = bad.last().copied().unwrap_or(BadAnswer::Empty);
        Outcome { assignment, scenario: Err(Trouble::Answers(last)), bad, usage }
    }

    /// An HTTP fault as what it means here.
    fn explain(&self, error: http::Error) -> Error {
        let says_model = error.to_string().contains("model");
        match (&error, error.status()) {
            (_, Some(404)) if says_model => self.no_model(Vec::new()),
            (_, Some(401 | 403)) => {
                Error::NoAccess { url: self.endpoint.base_url.clone(), key: self.endpoint.api_key.is_some() }
            }
            (http::Error::Unreachable { .. }, _) => Error::NoServer {
                url: self.endpoint.base_url.clone(),
                protocol: self.endpoint.protocol,
                source: Box::new(error),
            },
            _ => error.into(),
        }
    }

    fn no_model(&self, models: Vec<String>) -> Error {
        Error::NoModel { model: self.settings.model.clone(), protocol: self.endpoint.protocol, models }
    }
}

/// Why a server gave no answer, in words that can be counted.
fn server_reason(error: &http::Error) -> String {
    match error {
        http::Error::Status { status, .. } => format!("http_{}", status.as_u16()),
        http::Error::Timeout { .. } => "timeout".into(),
        http::Error::Unreachable { .. } => "unreachable".into(),
        http::Error::Cut { .. } => "cut_connection".into(),
        _ => "other".into(),
    }
}

fn record(text: String, assignment: Assignment, protocol: Protocol, author: &str, seed: u64) -> Scenario {
    let mut extra = Map::new();
    extra.insert("register".into(), assignment.register.name().into());
    extra.insert("author".into(), author.into());
    extra.insert("assignment".into(), assignment.idx.into());
    let group = group(protocol, seed, assignment.case_idx);
    Scenario { scenario: text, codes: assignment.codes, family: String::new(), group, extra }
}

fn author(protocol: Protocol, model: &str) -> String {
    format!("{}:{model}", protocol.name())
}

fn group(protocol: Protocol, seed: u64, case_idx: usize) -> String {
    format!("{}-{seed}-{case_idx}", protocol.name())
}
