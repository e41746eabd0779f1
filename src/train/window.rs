//! What is summed up between two lines of the log.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Figures under the names that are logged.
pub type Named = Vec<(String, f64)>;

/// Sums since the last line of the log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    figures: Named,
    loss: f64,
    n_steps: u64,
    n_records: u64,
    n_tokens: u64,
    seconds: f64,
    /// When the part of this process began.
    #[serde(skip)]
    started: Option<Instant>,
}

impl Window {
    /// Starts the clock.
    pub fn resume(&mut self) {
        self.started = Some(Instant::now());
    }

    /// Brings the time up to now.
    pub fn pause(&mut self) {
        self.seconds += self.started.take().map_or(0.0, |started| started.elapsed().as_secs_f64());
    }

    /// Adds an optimizer step.
    pub fn add(&mut self, loss: f64, figures: Named, n_records: u64, n_tokens: u64) {
        self.loss += loss;
        self.n_steps += 1;
        self.n_records += n_records;
        self.n_tokens += n_tokens;
        if self.figures.is_empty() {
            self.figures = figures;
        } else {
            self.figures.iter_mut().zip(figures).for_each(|(sum, (_, value))| sum.1 += value);
        }
    }

    /// Mean loss of the steps.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.n_steps.max(1) as f64
    }

    /// Tokens a second, prompts included.
    pub fn tokens_per_second(&self) -> f64 {
        self.n_tokens as f64 / self.seconds.max(1e-9)
    }

    /// Records a second.
    pub fn samples_per_second(&self) -> f64 {
        self.n_records as f64 / self.seconds.max(1e-9)
    }

    /// The other figures' means, under the names that they were given with.
    pub fn means(&self) -> Map<String, Value> {
        let mean = |sum: f64| json!(sum / self.n_steps.max(1) as f64);
        self.figures.iter().map(|(name, sum)| (name.clone(), mean(*sum))).collect()
    }
}
