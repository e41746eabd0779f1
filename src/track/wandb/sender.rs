//! The thread behind a run: it takes lines from a bounded queue and posts them to the service, or writes them to a
//! folder when there is no service, when the service is away, and at the end when some could not be sent.
//!
//! No line is lost or sent twice. A line leaves memory when the service said that it has it. When an answer is lost the
//! service is asked where it stands before anything is sent again. While the service is away the lines are in the
//! folder too, which `wandb sync` can send should the process end; when it is back they are sent and the folder goes.
//!
//! A resumed run logs rows again that its service or folders may have: rows are numbered, and those that are there
//! already are passed over.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender as Answers};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value, json};

use super::folder::{self, Folder};
use super::identity::{Identity, Kept, random_id};
use super::line::{Line, object_text};
use super::record::Items;
use super::service::{Fault, Names, Service, Standing, Taken};
use super::settings::Pace;
use super::system::{self, Sampler};
use crate::fsio;
use crate::http::jittered;
use crate::stop::Stop;
use crate::track::Console;

/// Lines kept in memory for a service that is away; then the rest of the run goes to the folder alone.
const MAX_PENDING: usize = 200_000;
/// Lines and bytes of one stream in one post.
const MAX_POST_LINES: usize = 5_000;
const MAX_POST_BYTES: usize = 4 << 20;
/// The wait for rates that the first sample needs.
const FIRST_SAMPLE: Duration = Duration::from_secs(1);

const HISTORY: usize = 0;
const EVENTS: usize = 1;
const OUTPUT: usize = 2;
const STREAM_NAMES: [&str; 3] = ["wandb-history.jsonl", "wandb-events.jsonl", "output.log"];
const METADATA: &str = "wandb-metadata.json";

/// What the run tells the thread.
pub(super) enum Message {
    Line(Line),
    Finish(Finish),
}

/// The run is over.
pub(super) struct Finish {
    pub exit_code: i32,
    /// When the thread must have come to an end, but for a request under way.
    pub deadline: Instant,
    pub answer: Answers<()>,
}

/// What a thread starts with.
pub(super) struct Start {
    pub identity: Identity,
    pub kept: Kept,
    pub kept_file: PathBuf,
    /// The run went on before: the service may have lines of it.
    pub is_resumed: bool,
    /// The ID was given, so that it may be that of another run.
    pub is_given_id: bool,
    /// `None`: the run is recorded in a folder.
    pub service: Option<Arc<Service>>,
    /// Where the folder `wandb` is.
    pub root: PathBuf,
    pub pace: Pace,
    pub console: Console,
    pub stop: Stop,
}

/// A post whose fate is not known yet.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    n_lines: [usize; 3],
    has_summary: bool,
    is_last: bool,
}

pub(super) struct Sender {
    start: Start,
    /// Lines that the service has not taken, by stream, and how many it has.
    pending: [VecDeque<Line>; 3],
    offsets: [u64; 3],
    /// The number that the next row must have at least.
    next_row: u64,
    summary: Items,
    is_summary_new: bool,
    /// Names in the service, once it knows the run.
    names: Option<Names>,
    is_metadata_sent: bool,
    /// Files to be told about in the next post.
    uploaded: Vec<&'static str>,
    in_flight: Option<InFlight>,
    n_faults: u32,
    is_away: bool,
    was_told_away: bool,
    /// Before this the service wants no request.
    not_before: Instant,
    next_try: Instant,
    last_post: Instant,
    next_sample: Instant,
    sampler: Sampler,
    n_samples: u64,
    folder: Option<Folder>,
    has_folder_failed: bool,
    /// Folders of earlier processes whose lines are pending here.
    absorbed: Vec<PathBuf>,
    finish: Option<Finish>,
    is_complete: bool,
}

impl Sender {
    /// Takes up what earlier processes left: `rows` of figures, and the folders that were not sent.
    pub(super) fn new(start: Start, rows: Vec<Line>) -> Self {
        let now = Instant::now();
        let first_sample = now + start.pace.sample_every.min(FIRST_SAMPLE);
        let mut sender = Self {
            start,
            pending: Default::default(),
            offsets: [0; 3],
            next_row: 0,
            summary: Items::new(),
            is_summary_new: false,
            names: None,
            is_metadata_sent: false,
            uploaded: Vec::new(),
            in_flight: None,
            n_faults: 0,
            is_away: false,
            was_told_away: false,
            not_before: now,
            next_try: now,
            last_post: now,
            next_sample: first_sample,
            sampler: Sampler::new(),
            n_samples: 0,
            folder: None,
            has_folder_failed: false,
            absorbed: Vec::new(),
            finish: None,
            is_complete: false,
        };
        sender.take_up(rows);
        sender
    }

    fn take_up(&mut self, rows: Vec<Line>) {
        let mut found = Vec::new();
        for dir in self.start.kept.folders.clone() {
            match folder::lines_in(&dir) {
                Ok(Some(lines)) => found.push((dir, lines)),
                Ok(None) => {}
                Err(error) => self.note_error(&error),
            }
        }
        if self.start.service.is_some() {
            rows.into_iter().for_each(|line| self.take(line));
            for (dir, lines) in found {
                lines.into_iter().for_each(|line| self.take(line));
                self.absorbed.push(dir);
            }
            return;
        }
        let steps = found.iter().flat_map(|(_, lines)| lines).filter_map(|line| match line {
            Line::History { step, .. } => Some(step + 1),
            _ => None,
        });
        self.next_row = steps.max().unwrap_or(0).max(self.start.kept.n_sent);
        self.open_folder();
        rows.into_iter().for_each(|line| self.take(line));
    }

    /// Runs to the end of the run.
    pub(super) fn run(mut self, queue: &Receiver<Message>) {
        while self.finish.is_none() {
            let due = if self.start.service.is_some() { self.next_sample.min(self.next_try) } else { self.next_sample };
            match queue.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(message) => self.receive(message),
                Err(RecvTimeoutError::Timeout) => {}
                // The run went away without a word: what is left is written down.
                Err(RecvTimeoutError::Disconnected) => return self.write_down(1),
            }
            self.drain(queue);
            if Instant::now() >= self.next_sample {
                self.sample();
            }
            if self.start.service.is_some() && self.finish.is_none() && Instant::now() >= self.next_try {
                self.try_to_send(queue);
            }
        }
        self.end(queue);
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Line(line) => self.take(line),
            Message::Finish(finish) => {
                // The shortest run has a sample, wherever it was when its end came.
                if self.n_samples == 0 {
                    self.sample();
                }
                self.finish = Some(finish);
            }
        }
    }

    fn drain(&mut self, queue: &Receiver<Message>) {
        while let Ok(message) = queue.try_recv() {
            self.receive(message);
        }
    }

    fn sample(&mut self) {
        let line = self.sampler.sample();
        self.n_samples += 1;
        self.next_sample = Instant::now() + self.start.pace.sample_every;
        self.take(line);
    }

    /// Puts a line where it belongs: in memory for the service, in the folder when one is open.
    fn take(&mut self, line: Line) {
        let stream = match &line {
            Line::History { step, items } => {
                for (key, value) in items {
                    match self.summary.iter_mut().find(|(known, _)| known == key) {
                        Some((_, last)) => last.clone_from(value),
                        None => self.summary.push((key.clone(), value.clone())),
                    }
                }
                self.is_summary_new = true;
                if *step < self.next_row {
                    return;
                }
                self.next_row = step + 1;
                HISTORY
            }
            Line::System { .. } => EVENTS,
            Line::Output { .. } => OUTPUT,
        };
        if self.folder.is_some() {
            self.write(&line);
        }
        if self.start.service.is_none() {
            return;
        }
        self.pending[stream].push_back(line);
        if self.n_pending() > MAX_PENDING {
            self.open_folder();
            self.start.console.note("wandb: the service was away for too long; the rest of the run is recorded only");
            self.leave_service();
        }
    }

    fn n_pending(&self) -> usize {
        self.pending.iter().map(VecDeque::len).sum()
    }

    // The folder.

    /// Opens the folder and writes what is pending into it.
    fn open_folder(&mut self) {
        if self.folder.is_some() || self.has_folder_failed {
            return;
        }
        let may_have_lines = self.start.is_resumed || self.names.is_some();
        match Folder::create(&self.start.root, &self.start.identity, may_have_lines) {
            Ok(folder) => {
                self.start.kept.folders.push(std::path::absolute(folder.dir()).unwrap_or(folder.dir().to_owned()));
                self.folder = Some(folder);
                self.keep();
            }
            Err(error) => return self.lose_folder(&error),
        }
        // Where the service stands may not be known; what it has for sure is not written.
        let first_row = if self.names.is_some() { 0 } else { self.start.kept.n_sent };
        let lines: Vec<Line> = self.pending.iter().flatten().cloned().collect();
        for line in lines {
            let is_sent = matches!(&line, Line::History { step, .. } if *step < first_row);
            if !is_sent {
                self.write(&line);
            }
        }
    }

    fn write(&mut self, line: &Line) {
        if let Some(folder) = &mut self.folder
            && let Err(error) = folder.write(line)
        {
            self.lose_folder(&error);
        }
    }

    fn lose_folder(&mut self, error: &fsio::Error) {
        self.folder = None;
        self.has_folder_failed = true;
        self.note_error(error);
        self.start.console.note("wandb: nothing is recorded in a folder any more; metrics.jsonl has every figure");
    }

    fn note_error(&self, error: &fsio::Error) {
        let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
        self.start.console.note(&format!("wandb: {error}{cause}"));
    }

    /// Writes `wandb.json`.
    fn keep(&mut self) {
        if let Err(error) = self.start.kept.write(&self.start.kept_file) {
            self.note_error(&error);
        }
    }

    /// The lines of earlier folders are elsewhere now.
    fn release_absorbed(&mut self) {
        if self.absorbed.is_empty() {
            return;
        }
        for dir in std::mem::take(&mut self.absorbed) {
            match folder::mark_as_sent(&dir) {
                Ok(()) => self.start.kept.folders.retain(|kept| *kept != dir),
                Err(error) => self.note_error(&error),
            }
        }
        self.keep();
    }

    // The service.

    fn try_to_send(&mut self, queue: &Receiver<Message>) {
        match self.exchange(queue) {
            Ok(()) => self.next_try = (Instant::now() + self.start.pace.post_every).max(self.not_before),
            Err(fault) => self.failed(fault),
        }
    }

    /// Brings the service up to date, as far as it goes without waiting.
    fn exchange(&mut self, queue: &Receiver<Message>) -> Result<(), Fault> {
        let Some(service) = self.start.service.clone() else { return Ok(()) };
        let names = match &self.names {
            Some(names) => names.clone(),
            None => self.register(&service)?,
        };
        if let Some(in_flight) = self.in_flight {
            let standing = service.standing(&self.start.identity)?;
            self.settle(in_flight, &standing.unwrap_or_default());
        }
        self.send_metadata(&service, &names)?;
        while !self.is_complete {
            self.drain(queue);
            if self.start.service.is_none() {
                return Ok(());
            }
            let (body, in_flight) = self.next_post();
            let is_quiet = self.last_post.elapsed() < self.start.pace.heartbeat_every;
            if body.is_empty() && is_quiet {
                break;
            }
            self.in_flight = Some(in_flight);
            let taken = service.post(&names, &body).inspect_err(|fault| {
                if !fault.is_in_doubt() {
                    self.in_flight = None;
                }
            })?;
            self.taken(in_flight, true, taken);
            if self.n_pending() == 0 && !self.is_summary_new && self.finish.is_none() {
                break;
            }
        }
        self.n_faults = 0;
        self.come_back();
        Ok(())
    }

    fn register(&mut self, service: &Service) -> Result<Names, Fault> {
        let mut known = None;
        if self.start.is_resumed || self.start.is_given_id {
            known = service.standing(&self.start.identity)?;
        }
        let has_lines = known.as_ref().is_some_and(|at| at.n_history + at.n_events + at.n_output > 0);
        if has_lines && !self.start.is_resumed {
            let given = self.start.identity.run_id.clone();
            self.start.identity.run_id = format!("{given}-{}", random_id(4));
            self.start.kept.run_id.clone_from(&self.start.identity.run_id);
            self.start.is_given_id = false;
            let id = &self.start.identity.run_id;
            let text = format!(
                "wandb: `{given}` has the figures of an earlier run, which --resume would go on with; this run is `{id}`"
            );
            self.start.console.note(&text);
            known = None;
        }
        let names = service.register(&self.start.identity, known.as_ref().map(|at| at.id.as_str()))?;
        let at = known.unwrap_or_default();
        self.offsets = [at.n_history, at.n_events, at.n_output];
        self.next_row = self.next_row.max(at.n_rows);
        self.pending[HISTORY].retain(|line| !matches!(line, Line::History { step, .. } if *step < at.n_rows));
        self.start.identity.entity = Some(names.entity.clone());
        self.start.identity.project.clone_from(&names.project);
        self.start.kept.entity = Some(names.entity.clone());
        self.start.kept.project.clone_from(&names.project);
        self.start.kept.n_sent = at.n_rows;
        self.keep();
        self.start.console.note(&format!("wandb: run `{}` at {}", names.display_name, service.page(&names)));
        self.names = Some(names.clone());
        Ok(names)
    }

    /// Finds out what became of a post whose answer was lost.
    fn settle(&mut self, in_flight: InFlight, standing: &Standing) {
        let counts = [standing.n_history, standing.n_events, standing.n_output];
        let n_lines = [HISTORY, EVENTS, OUTPUT].map(|stream| {
            let n_taken = counts[stream].saturating_sub(self.offsets[stream]);
            in_flight.n_lines[stream].min(usize::try_from(n_taken).unwrap_or(usize::MAX))
        });
        let is_last = in_flight.is_last && standing.is_over;
        let is_whole = n_lines == in_flight.n_lines && n_lines.iter().sum::<usize>() > 0;
        let post = InFlight { n_lines, is_last, ..in_flight };
        self.taken(post, is_last || is_whole, Taken::default());
    }

    fn send_metadata(&mut self, service: &Service, names: &Names) -> Result<(), Fault> {
        if self.is_metadata_sent {
            return Ok(());
        }
        let text = format!("{:#}", system::environment_json(&self.start.identity.environment));
        match service.upload(names, METADATA, "application/json", text.as_bytes()) {
            Ok(()) => self.uploaded.push(METADATA),
            // The figures do not hang on this file.
            Err(Fault::Refused { message, .. }) => {
                self.start.console.note(&format!("wandb: `{METADATA}` was not taken: {message}"));
            }
            Err(busy) => return Err(busy),
        }
        self.is_metadata_sent = true;
        Ok(())
    }

    /// The body of the next post, empty when there is nothing to tell.
    fn next_post(&self) -> (Map<String, Value>, InFlight) {
        let mut files = Map::new();
        let mut n_lines = [0; 3];
        for stream in [HISTORY, EVENTS, OUTPUT] {
            let mut content = Vec::new();
            let mut size_bytes = 0;
            for line in self.pending[stream].iter().take(MAX_POST_LINES) {
                let text = line.stream_text(self.start.identity.started);
                size_bytes += text.len();
                if size_bytes > MAX_POST_BYTES && !content.is_empty() {
                    break;
                }
                content.push(text);
            }
            n_lines[stream] = content.len();
            if !content.is_empty() {
                let entry = json!({"offset": self.offsets[stream], "content": content});
                files.insert(STREAM_NAMES[stream].into(), entry);
            }
        }
        let is_all = n_lines.iter().sum::<usize>() == self.n_pending();
        let finish = self.finish.as_ref().filter(|_| is_all);
        let has_summary = self.is_summary_new || finish.is_some();
        if has_summary {
            let text = object_text(self.summary_now().into_iter());
            files.insert("wandb-summary.json".into(), json!({"offset": 0, "content": [text]}));
        }
        let mut body = Map::new();
        if !files.is_empty() {
            body.insert("files".into(), files.into());
        }
        if !self.uploaded.is_empty() {
            body.insert("uploaded".into(), json!(self.uploaded));
        }
        if let Some(finish) = finish {
            body.insert("complete".into(), true.into());
            body.insert("exitcode".into(), finish.exit_code.into());
        }
        (body, InFlight { n_lines, has_summary, is_last: finish.is_some() })
    }

    /// The last value of every figure, and the run's length so far.
    fn summary_now(&self) -> Items {
        let seconds = self.runtime().as_secs();
        let mut summary = self.summary.clone();
        summary.push(("_wandb".into(), format!("{{\"runtime\":{seconds}}}")));
        summary
    }

    fn runtime(&self) -> Duration {
        SystemTime::now().duration_since(self.start.identity.started).unwrap_or_default()
    }

    /// The service has the lines of a post, and when `is_whole` all that it told besides.
    fn taken(&mut self, post: InFlight, is_whole: bool, taken: Taken) {
        self.in_flight = None;
        self.last_post = Instant::now();
        for (stream, n_lines) in post.n_lines.into_iter().enumerate() {
            let mut lines = self.pending[stream].drain(..n_lines.min(self.pending[stream].len()));
            if let Some(Line::History { step, .. }) = lines.next_back() {
                self.start.kept.n_sent = step + 1;
            }
            self.offsets[stream] += n_lines as u64;
        }
        if post.n_lines[HISTORY] > 0 {
            self.keep();
        }
        if is_whole {
            self.is_summary_new &= !post.has_summary;
            self.uploaded.clear();
        }
        self.is_complete |= post.is_last;
        if let Some(spacing) = taken.spacing {
            self.not_before = Instant::now() + spacing.min(self.start.pace.max_delay);
        }
        if taken.is_stop_requested && !self.start.stop.is_requested() && self.finish.is_none() {
            self.start.console.note("wandb: the run's page asks for a stop");
            self.start.stop.request();
        }
    }

    fn failed(&mut self, fault: Fault) {
        match fault {
            Fault::Busy { message, retry_after, .. } => {
                self.n_faults = self.n_faults.saturating_add(1);
                let pace = self.start.pace;
                let doubled = pace.first_delay.saturating_mul(1 << (self.n_faults - 1).min(16));
                let asked = retry_after.unwrap_or_default();
                self.not_before = Instant::now() + asked;
                self.next_try = Instant::now() + asked.max(jittered(doubled.min(pace.max_delay)));
                if self.n_faults >= pace.n_faults_away || asked > pace.max_delay {
                    self.go_away(&message);
                }
            }
            Fault::Refused { message, hint } => {
                self.open_folder();
                self.tell_folder(&message);
                if let Some(hint) = hint {
                    self.start.console.note(&format!("  hint: {hint}"));
                }
                self.leave_service();
            }
        }
    }

    fn go_away(&mut self, message: &str) {
        self.is_away = true;
        self.open_folder();
        if !std::mem::replace(&mut self.was_told_away, true) {
            self.tell_folder(message);
        }
    }

    fn tell_folder(&self, message: &str) {
        let place = match &self.folder {
            Some(folder) => format!("; figures are recorded in {}", folder.dir().display()),
            None => String::new(),
        };
        self.start.console.note(&format!("wandb: {message}{place}; training goes on"));
    }

    /// From now on there is the folder only.
    fn leave_service(&mut self) {
        self.start.service = None;
        self.pending.iter_mut().for_each(VecDeque::clear);
        if self.folder.is_some() {
            self.release_absorbed();
        }
    }

    /// After a full exchange: what was recorded meanwhile is in the service.
    fn come_back(&mut self) {
        if self.n_pending() > 0 {
            return;
        }
        self.release_absorbed();
        let was_away = std::mem::take(&mut self.is_away);
        if let Some(folder) = self.folder.take() {
            let dir = std::path::absolute(folder.dir()).unwrap_or(folder.dir().to_owned());
            match folder.remove() {
                Ok(()) => {
                    self.start.kept.folders.retain(|kept| *kept != dir);
                    self.keep();
                }
                Err(error) => self.note_error(&error),
            }
        }
        if was_away && self.finish.is_none() {
            self.start.console.note("wandb: the service is back and has everything");
        }
    }

    // The end.

    fn end(mut self, queue: &Receiver<Message>) {
        let Some(&Finish { exit_code, deadline, .. }) = self.finish.as_ref() else { return };
        // Waits start short again: the end is near.
        self.n_faults = if self.is_away { self.start.pace.n_faults_away } else { 0 };
        let mut n_tries = 0;
        while self.start.service.is_some() && !self.is_complete {
            if self.not_before > deadline {
                break;
            }
            if n_tries > 0 || self.not_before > Instant::now() {
                let delay = jittered(self.start.pace.first_delay.saturating_mul(1 << n_tries.min(10)));
                let at = self.not_before.max(Instant::now() + if n_tries > 0 { delay } else { Duration::ZERO });
                if at > deadline {
                    break;
                }
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
            }
            n_tries += 1;
            if let Err(fault) = self.exchange(queue) {
                self.failed(fault);
            }
        }
        if self.is_complete {
            self.come_back();
        } else {
            self.write_down(exit_code);
        }
        if let Some(finish) = self.finish {
            // The run waits no longer than it said it would.
            let _ = finish.answer.send(());
        }
    }

    /// Leaves everything that the service does not have in a folder, and says how to send it.
    fn write_down(&mut self, exit_code: i32) {
        let (was_online, n_left) = (self.start.service.is_some(), self.n_pending());
        self.open_folder();
        let (summary, runtime) = (self.summary_now(), self.runtime());
        let outcome = self.folder.as_mut().map(|folder| folder.finish(&summary, exit_code, runtime));
        if let Some(Err(error)) = outcome {
            self.lose_folder(&error);
        }
        let what = if was_online { format!("{n_left} lines could not be sent in time") } else { "recorded".into() };
        match &self.folder {
            Some(folder) => {
                let dir = folder.dir().display();
                self.start.console.note(&format!("wandb: {what}; send the run with: wandb sync {dir}"));
                self.release_absorbed();
            }
            None if was_online => self.start.console.note(&format!("wandb: {what}")),
            None => {}
        }
    }
}
