//! Progress for people: a bar with rate and time left on a terminal, a plain line now and then elsewhere.
//!
//! Everything goes to stderr and has no colour. Nothing is reported to the caller when stderr cannot be written to.

use std::fmt;
use std::io::{IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressFinish, ProgressState, ProgressStyle};

/// Time between two plain lines of one piece of work.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Where progress and remarks go. Cloning shares it.
#[derive(Clone)]
pub struct Console {
    output: Output,
    listener: Option<Listener>,
}

/// Hears every remark.
type Listener = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Clone)]
enum Output {
    Quiet,
    Plain { out: Arc<Mutex<dyn Write + Send>>, every: Duration },
    Terminal(MultiProgress),
}

impl fmt::Debug for Console {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self.output {
            Output::Quiet => "Console(quiet)",
            Output::Plain { .. } => "Console(plain)",
            Output::Terminal(_) => "Console(terminal)",
        })
    }
}

impl Console {
    /// Writes to stderr: bars when it is a terminal that can draw them, else plain lines; nothing when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let can_draw = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let output = match (quiet, can_draw) {
            (true, _) => Output::Quiet,
            (false, true) => Output::Terminal(MultiProgress::new()),
            (false, false) => Output::Plain { out: Arc::new(Mutex::new(std::io::stderr())), every: PLAIN_EVERY },
        };
        Self { output, listener: None }
    }

    /// Writes plain lines to `out`, for one piece of work at most one in `every`, and a last one when it is done.
    pub fn plain(out: Arc<Mutex<dyn Write + Send>>, every: Duration) -> Self {
        Self { output: Output::Plain { out, every }, listener: None }
    }

    /// The same console, whose remarks `listener` hears too, also when it is quiet.
    #[must_use]
    pub fn heard_by(&self, listener: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { output: self.output.clone(), listener: Some(Arc::new(listener)) }
    }

    /// Starts to show a piece of work of `total` parts; 0 where the number is not known.
    pub fn bar(&self, label: &str, total: u64) -> Progress {
        self.show(label, total, ProgressFinish::Abandon)
    }

    /// As [`Console::bar`], for work in the course of other work whose bar goes on: it is below that bar, and is gone when the
    /// work ends. As plain lines it has none of its own when it ends.
    pub fn passing_bar(&self, label: &str, total: u64) -> Progress {
        self.show(label, total, ProgressFinish::AndClear)
    }

    fn show(&self, label: &str, total: u64, at_end: ProgressFinish) -> Progress {
        let view = match &self.output {
            Output::Quiet => View::Quiet,
            Output::Plain { out, every } => View::Plain(Plain {
                out: Arc::clone(out),
                every: *every,
                label: label.to_owned(),
                total,
                is_passing: matches!(at_end, ProgressFinish::AndClear),
                state: Mutex::new(PlainState::new()),
            }),
            Output::Terminal(bars) => {
                let n_before = Arc::new(AtomicU64::new(0));
                let bar = ProgressBar::new(total).with_style(style(total > 0, &n_before));
                let bar = bars.add(bar.with_prefix(label.to_owned()).with_finish(at_end));
                bar.enable_steady_tick(Duration::from_millis(200));
                View::Bar { bar, n_before }
            }
        };
        Progress(view)
    }

    /// One line that is not progress.
    pub fn note(&self, text: &str) {
        if let Some(listener) = &self.listener {
            listener(text);
        }
        match &self.output {
            Output::Quiet => {}
            Output::Plain { out, .. } => write_line(out, text),
            Output::Terminal(bars) => drop(bars.println(text)),
        }
    }
}

/// A piece of work under way. Shareable between threads.
pub struct Progress(View);

enum View {
    Quiet,
    Plain(Plain),
    Bar { bar: ProgressBar, n_before: Arc<AtomicU64> },
}

struct Plain {
    out: Arc<Mutex<dyn Write + Send>>,
    every: Duration,
    label: String,
    total: u64,
    /// Whether nothing is said when it is done.
    is_passing: bool,
    state: Mutex<PlainState>,
}

struct PlainState {
    /// Parts done before this run, which say nothing about its rate.
    n_before: u64,
    n_done: u64,
    message: String,
    started: Instant,
    last_line: Instant,
}

impl PlainState {
    fn new() -> Self {
        let now = Instant::now();
        Self { n_before: 0, n_done: 0, message: String::new(), started: now, last_line: now }
    }
}

impl Progress {
    /// Takes up work of which `n_done` parts were finished by an earlier run.
    pub fn resume_at(&self, n_done: u64) {
        match &self.0 {
            View::Quiet => {}
            View::Plain(plain) => {
                *lock(&plain.state) = PlainState { n_before: n_done, n_done, ..PlainState::new() };
            }
            View::Bar { bar, n_before } => {
                n_before.store(n_done, Ordering::Relaxed);
                bar.set_position(n_done);
                bar.reset_elapsed();
            }
        }
    }

    /// `n` more parts are done.
    pub fn advance(&self, n: u64) {
        match &self.0 {
            View::Quiet => {}
            View::Plain(plain) => {
                let mut state = lock(&plain.state);
                state.n_done += n;
                if state.last_line.elapsed() >= plain.every {
                    state.last_line = Instant::now();
                    write_line(&plain.out, &plain.line(&state, false));
                }
            }
            View::Bar { bar, .. } => bar.inc(n),
        }
    }

    /// Shows figures beside the progress, as in `loss 0.1234`.
    pub fn message(&self, text: String) {
        match &self.0 {
            View::Quiet => {}
            View::Plain(plain) => lock(&plain.state).message = text,
            View::Bar { bar, .. } => bar.set_message(text),
        }
    }

    /// The work is done; its last line stays, except that of a passing bar.
    pub fn finish(self) {
        match &self.0 {
            View::Quiet => {}
            View::Plain(plain) if plain.is_passing => {}
            View::Plain(plain) => write_line(&plain.out, &plain.line(&lock(&plain.state), true)),
            View::Bar { bar, .. } => bar.finish_using_style(),
        }
    }
}

impl Plain {
    fn line(&self, state: &PlainState, is_done: bool) -> String {
        let elapsed = state.started.elapsed();
        let per_second = (state.n_done - state.n_before) as f64 / elapsed.as_secs_f64().max(1e-9);
        let of = if self.total > 0 { format!("/{}", self.total) } else { String::new() };
        let mut line = format!("{}: {}{of}", self.label, state.n_done);
        if is_done {
            line += &format!(" in {}", duration_text(elapsed));
        } else {
            line += &format!(", {}", rate_text(per_second));
            if let Some(left) = time_left(self.total.saturating_sub(state.n_done), per_second) {
                line += &format!(", {} left", duration_text(left));
            }
        }
        if !state.message.is_empty() {
            line += &format!(", {}", state.message);
        }
        line
    }
}

fn style(has_total: bool, n_before: &Arc<AtomicU64>) -> ProgressStyle {
    let template = if has_total {
        "{prefix} [{bar:30}] {pos}/{len} {rate} {left} {msg}"
    } else {
        "{prefix} {spinner} {pos} {rate} {msg}"
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    // The bar's own rate counts what an earlier run did.
    let per_second = |state: &ProgressState, n_before: &AtomicU64| {
        let n_done = state.pos().saturating_sub(n_before.load(Ordering::Relaxed));
        n_done as f64 / state.elapsed().as_secs_f64().max(1e-9)
    };
    let (for_rate, for_left) = (Arc::clone(n_before), Arc::clone(n_before));
    style
        .progress_chars("=> ")
        .with_key("rate", move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&rate_text(per_second(state, &for_rate)));
        })
        .with_key("left", move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let n_left = state.len().unwrap_or(0).saturating_sub(state.pos());
            let _ = match (state.is_finished(), time_left(n_left, per_second(state, &for_left))) {
                (true, _) => write!(out, "in {}", duration_text(state.elapsed())),
                (false, Some(left)) => write!(out, "{} left", duration_text(left)),
                (false, None) => Ok(()),
            };
        })
}

fn time_left(n_left: u64, per_second: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(n_left as f64 / per_second).ok().filter(|_| n_left > 0)
}

/// `250/s`, `2.5/s`, or `4.0 s each` for slow work.
fn rate_text(per_second: f64) -> String {
    match per_second {
        rate if rate >= 10.0 => format!("{rate:.0}/s"),
        rate if rate >= 1.0 => format!("{rate:.1}/s"),
        rate if rate > 0.0 => format!("{:.1} s each", 1.0 / rate),
        _ => "-/s".into(),
    }
}

/// `8 s`, `3 min 20 s`, `1 h 02 min`.
fn duration_text(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A thread that panicked while it held the lock left plain counters behind, which are still good.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_line(out: &Mutex<dyn Write + Send>, text: &str) {
    let mut out = lock(out);
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_times_read_well() {
        assert_eq!([250.4, 2.54, 0.25, 0.0].map(rate_text), ["250/s", "2.5/s", "4.0 s each", "-/s"]);
        let text = |seconds| duration_text(Duration::from_secs(seconds));
        assert_eq!([text(8), text(200), text(3725)], ["8 s", "3 min 20 s", "1 h 02 min"]);
        assert_eq!(time_left(10, 0.0), None);
        assert_eq!(time_left(10, 2.0), Some(Duration::from_secs(5)));
    }

    #[test]
    fn work_in_the_course_of_other_work_tells_how_far_it_is_and_leaves_no_last_line() {
        let out = Arc::new(Mutex::new(Vec::new()));
        let console = Console::plain(out.clone(), Duration::ZERO);
        let training = console.bar("sft", 4);
        training.advance(1);
        let evaluation = console.passing_bar("sft evaluation", 6);
        evaluation.advance(2);
        evaluation.finish();
        training.advance(3);
        training.finish();
        let text = String::from_utf8(lock(&out).clone()).unwrap();
        let begins: Vec<&str> =
            text.lines().filter_map(|line| line.split([',', ' ']).find(|word| word.contains('/'))).collect();
        // Two lines on the way, one of them the evaluation's, then training's last two.
        assert_eq!(begins, ["1/4", "2/6", "4/4", "4/4"], "{text}");
    }
}
