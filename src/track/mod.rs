//! What a run tells while it runs: progress on stderr, and figures in `metrics.jsonl`.

mod console;
mod metrics_log;

pub use console::{Console, Progress};
pub use metrics_log::MetricsLog;
