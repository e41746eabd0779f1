//! A run that is reported to W&B: what the training loop holds.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value};

use super::identity::{Identity, Kept, random_id};
use super::line::Line;
use super::sender::{Finish, Message, Sender, Start};
use super::service::Service;
use super::settings::{ApiKey, Mode, Settings};
use super::system;
use crate::diag::Failure;
use crate::http::{self, Client, Retry};
use crate::stop::Stop;
use crate::track::{Console, Row};

/// Lines that wait for the thread. It empties the queue between two requests, each of which has a time limit.
const QUEUE_LINES: usize = 1 << 14;
/// How long the end of a run waits before it says why.
const QUIET_WAIT: Duration = Duration::from_secs(2);

/// What a run is.
#[derive(Debug)]
pub struct RunRequest<'a> {
    /// Names the run unless the environment does.
    pub stage: &'a str,
    /// The kind of the run unless the environment says one, as in `sft`.
    pub job_type: &'a str,
    pub config: Map<String, Value>,
    /// `wandb.json`: keeps the run's ID for a later process.
    pub kept_file: &'a Path,
    /// Go on with the run of `kept_file`, if there is one.
    pub resume: bool,
    /// Steps and figures that were logged before the point from which a resumed run goes on.
    pub rows: Vec<Row>,
}

/// A run under way. Telling it something takes no longer than putting it into a queue.
///
/// What it is told goes to the service or a folder from a thread of its own; nothing that happens there reaches the
/// caller but as a remark on the console.
#[derive(Debug)]
pub struct Run {
    queue: SyncSender<Message>,
    /// Rows of figures so far.
    n_rows: AtomicU64,
    /// Lines that found the queue full.
    n_lost: AtomicU64,
    started: SystemTime,
    console: Console,
    longest_wait: Duration,
    finish_within: Duration,
}

impl Run {
    /// Starts to report; `None` when the mode is `disabled`, or when no thread can be had, which is remarked on.
    ///
    /// `stop` is raised when somebody asks for it on the run's page.
    pub fn start(settings: &Settings, request: RunRequest<'_>, console: &Console, stop: &Stop) -> Option<Arc<Self>> {
        let service = match &settings.mode {
            Mode::Disabled => return None,
            Mode::Offline => None,
            Mode::Online(key) => service(settings, key, console),
        };
        let earlier = if request.resume { Kept::read(request.kept_file) } else { None };
        let is_resumed = earlier.is_some();
        let kept = earlier.unwrap_or_else(|| Kept {
            run_id: settings.run_id.clone().unwrap_or_else(|| random_id(8)),
            project: settings.project.clone(),
            entity: settings.entity.clone(),
            started: Kept::seconds_of(SystemTime::now()),
            n_sent: 0,
            folders: Vec::new(),
        });
        if let Err(error) = kept.write(request.kept_file) {
            console.note(&format!("wandb: {}", Failure::from(error).render()));
        }
        let (started, now) = (kept.started(), SystemTime::now());
        let identity = Identity {
            run_id: kept.run_id.clone(),
            entity: kept.entity.clone(),
            project: kept.project.clone(),
            display_name: settings.name.clone().unwrap_or_else(|| format!("{}-{}", request.stage, kept.run_id)),
            group: settings.group.clone(),
            job_type: settings.job_type.clone().unwrap_or_else(|| request.job_type.to_owned()),
            notes: settings.notes.clone(),
            tags: settings.tags.clone(),
            config: request.config,
            environment: system::environment(&settings.command, now, &random_id(32)),
            started,
        };
        let pace = settings.pace;
        let start = Start {
            identity,
            kept,
            kept_file: request.kept_file.to_owned(),
            is_resumed,
            is_given_id: settings.run_id.is_some() && !is_resumed,
            service,
            root: settings.dir.clone(),
            pace,
            console: console.clone(),
            stop: stop.clone(),
        };
        let n_rows = request.rows.len() as u64;
        let runtime = now.duration_since(started).unwrap_or_default();
        let row = |(idx, (step, values)): (usize, &Row)| Line::history(idx as u64, *step, values, (now, runtime));
        let rows: Vec<Line> = request.rows.iter().enumerate().map(row).collect();
        let (queue, messages) = sync_channel(QUEUE_LINES);
        let thread = Builder::new().name("wandb".into()).spawn(move || Sender::new(start, rows).run(&messages));
        if let Err(error) = thread {
            console.note(&format!("wandb: cannot start a thread, nothing is reported: {error}"));
            return None;
        }
        Some(Arc::new(Self {
            queue,
            n_rows: n_rows.into(),
            n_lost: 0.into(),
            started,
            console: console.clone(),
            longest_wait: pace.finish_within + 2 * pace.request_timeout,
            finish_within: pace.finish_within,
        }))
    }

    /// Reports the figures of an optimizer step under the names of `metrics.jsonl`.
    pub fn log(&self, step: u64, values: &Map<String, Value>) {
        let now = SystemTime::now();
        let runtime = now.duration_since(self.started).unwrap_or_default();
        let row = self.n_rows.fetch_add(1, Ordering::Relaxed);
        self.send(Line::history(row, step, values, (now, runtime)));
        self.output(&text_of(step, values));
    }

    /// Reports a line of console output.
    pub fn output(&self, text: &str) {
        self.send(Line::output(SystemTime::now(), text));
    }

    /// Ends the run with the exit code of the work, and waits a bounded time for the last post.
    pub fn finish(&self, exit_code: i32) {
        let (answer, answered) = channel();
        let deadline = Instant::now() + self.finish_within;
        let mut message = Message::Finish(Finish { exit_code, deadline, answer });
        // A full queue is emptied between two requests.
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => {
                    message = back;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(_) => return self.console.note("wandb: the end of the run could not be reported"),
            }
        }
        let mut outcome = answered.recv_timeout(QUIET_WAIT);
        if outcome == Err(RecvTimeoutError::Timeout) {
            let seconds = self.finish_within.as_secs();
            self.console.note(&format!("wandb: sending the last figures, at most {seconds} s"));
            outcome = answered.recv_timeout(self.longest_wait);
        }
        if outcome.is_err() {
            self.console.note("wandb: the last figures could not be sent in time; metrics.jsonl has them");
        }
        match self.n_lost.load(Ordering::Relaxed) {
            0 => {}
            n => self
                .console
                .note(&format!("wandb: {n} lines came too fast and were left out; metrics.jsonl has every figure")),
        }
    }

    fn send(&self, line: Line) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.n_lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The service, unless no client can be set up, which is remarked on.
fn service(settings: &Settings, key: &ApiKey, console: &Console) -> Option<Arc<Service>> {
    let limits = http::Settings {
        timeout: settings.pace.request_timeout,
        retry: Retry { n_attempts: 1, ..Retry::default() },
        ..http::Settings::default()
    };
    // A stop request ends the work, not the report of its end.
    match Client::new(limits, &Stop::default()) {
        Ok(client) => Some(Arc::new(Service::new(client, &settings.base_url, key))),
        Err(error) => {
            console.note(&format!("wandb: {}", Failure::from(error).render()));
            None
        }
    }
}

/// `step 40: epoch 0.5, loss 0.1234`.
fn text_of(step: u64, values: &Map<String, Value>) -> String {
    let figure = |(key, value): (&String, &Value)| match value.as_f64() {
        Some(number) if number != 0.0 && number.abs() < 1e-3 => format!("{key} {number:.3e}"),
        Some(number) if number.fract() == 0.0 => format!("{key} {number}"),
        Some(number) => format!("{key} {number:.4}"),
        None => format!("{key} {value}"),
    };
    format!("step {step}: {}", values.iter().map(figure).collect::<Vec<_>>().join(", "))
}
