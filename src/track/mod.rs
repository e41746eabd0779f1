//! What a run tells while it runs: progress on stderr, figures in `metrics.jsonl`, and a report to Weights & Biases.

mod console;
mod metrics_log;
pub mod wandb;

pub use console::{Console, Progress};
pub use metrics_log::{MetricsLog, Row};
