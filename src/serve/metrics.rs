//! Counters in the text format of Prometheus. Nothing of what is asked or answered is in them.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets of times, in seconds.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Upper bounds of the buckets of batch sizes.
const SIZES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// All counters of a server. Shareable between threads.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By status code.
    responses: [(AtomicU64, u16); 12],
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    left: AtomicU64,
    running: AtomicUsize,
    waiting: AtomicUsize,
    first_token: Histogram<14>,
    latency: Histogram<14>,
    step: Histogram<14>,
    batch: Histogram<9>,
}

#[derive(Debug)]
struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [AtomicU64; N],
    n: AtomicU64,
    /// In millionths.
    sum: AtomicU64,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let statuses = [200, 400, 401, 404, 405, 408, 413, 415, 429, 500, 503, 504];
        Self { responses: statuses.map(|status| (AtomicU64::new(0), status)), ..Self::default() }
    }

    /// A request was answered with this status.
    pub fn response(&self, status: u16) {
        // Every status that is sent is in the list; another would be a bug that shows as a missing count.
        if let Some((count, _)) = self.responses.iter().find(|(_, known)| *known == status) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// A prompt was read.
    pub fn prompt(&self, n_tokens: usize) {
        self.prompt_tokens.fetch_add(n_tokens as u64, Relaxed);
    }

    /// The first token of an answer came after this time.
    pub fn first_token(&self, elapsed: Duration) {
        self.first_token.record(elapsed.as_secs_f64());
    }

    /// An answer was finished after this time.
    pub fn finished(&self, elapsed: Duration) {
        self.latency.record(elapsed.as_secs_f64());
    }

    /// A decoding step of the engine.
    pub fn step(&self, n_running: usize, n_tokens: usize, elapsed: Duration) {
        self.step.record(elapsed.as_secs_f64());
        self.batch.record(n_running.max(n_tokens) as f64);
        self.generated_tokens.fetch_add(n_tokens as u64, Relaxed);
    }

    /// The state of the queue.
    pub fn queue(&self, n_running: usize, n_waiting: usize) {
        self.running.store(n_running, Relaxed);
        self.waiting.store(n_waiting, Relaxed);
    }

    /// A client left before its answer was finished.
    pub fn client_left(&self) {
        self.left.fetch_add(1, Relaxed);
    }

    /// The mean time of finished answers; a second where there are none.
    pub fn mean_latency(&self) -> Duration {
        match self.latency.n.load(Relaxed) {
            0 => Duration::from_secs(1),
            n => Duration::from_micros(self.latency.sum.load(Relaxed) / n),
        }
    }

    /// Everything as text.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP axismapper_{name} {help}\n# TYPE axismapper_{name} {kind}");
        };
        head(&mut out, "requests_total", "counter", "Requests answered, by status code.");
        for (count, status) in &self.responses {
            let _ = writeln!(out, "axismapper_requests_total{{status=\"{status}\"}} {}", count.load(Relaxed));
        }
        for (name, value, help) in [
            ("prompt_tokens_total", &self.prompt_tokens, "Tokens of prompts."),
            ("generated_tokens_total", &self.generated_tokens, "Tokens generated, end tokens included."),
            ("clients_left_total", &self.left, "Requests dropped because their client left."),
        ] {
            head(&mut out, name, "counter", help);
            let _ = writeln!(out, "axismapper_{name} {}", value.load(Relaxed));
        }
        for (name, value, help) in [
            ("requests_running", &self.running, "Requests being decoded."),
            ("requests_waiting", &self.waiting, "Requests that wait for a place in a batch."),
        ] {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "axismapper_{name} {}", value.load(Relaxed));
        }
        head(&mut out, "time_to_first_token_seconds", "histogram", "From a request to its first token.");
        self.first_token.render("time_to_first_token_seconds", &mut out);
        head(&mut out, "request_seconds", "histogram", "From a request to the end of its answer.");
        self.latency.render("request_seconds", &mut out);
        head(&mut out, "step_seconds", "histogram", "One decoding step of the engine.");
        self.step.render("step_seconds", &mut out);
        head(&mut out, "batch_size", "histogram", "Sequences in a decoding step.");
        self.batch.render("batch_size", &mut out);
        out
    }
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: [f64; N]) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { bounds, counts, n: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    fn record(&self, value: f64) {
        if let Some(idx) = self.bounds.iter().position(|bound| value <= *bound) {
            self.counts[idx].fetch_add(1, Relaxed);
        }
        self.n.fetch_add(1, Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Relaxed);
    }

    fn render(&self, name: &str, out: &mut String) {
        let mut total = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            total += count.load(Relaxed);
            let _ = writeln!(out, "axismapper_{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let n = self.n.load(Relaxed);
        let sum = self.sum.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "axismapper_{name}_bucket{{le=\"+Inf\"}} {n}");
        let _ = writeln!(out, "axismapper_{name}_sum {sum}\naxismapper_{name}_count {n}");
    }
}

impl Default for Histogram<14> {
    fn default() -> Self {
        Self::new(SECONDS)
    }
}

impl Default for Histogram<9> {
    fn default() -> Self {
        Self::new(SIZES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let metrics = Metrics::new();
        metrics.response(200);
        metrics.response(429);
        [3, 30, 700, 500_000].iter().for_each(|ms| metrics.finished(Duration::from_millis(*ms)));
        let text = metrics.render();
        for line in [
            "axismapper_requests_total{status=\"200\"} 1",
            "axismapper_request_seconds_bucket{le=\"0.005\"} 1",
            "axismapper_request_seconds_bucket{le=\"0.05\"} 2",
            "axismapper_request_seconds_bucket{le=\"1\"} 3",
            "axismapper_request_seconds_bucket{le=\"120\"} 3",
            "axismapper_request_seconds_bucket{le=\"+Inf\"} 4",
            "axismapper_request_seconds_count 4",
            "axismapper_request_seconds_sum 500.733",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
