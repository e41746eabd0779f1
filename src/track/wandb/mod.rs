//! Weights & Biases: a run's figures, system metrics, configuration, console lines and exit code, online or in a folder
//! that `wandb sync` sends.
//!
//! A run is reported under the names that transformers' trainer uses there, `train/loss` and `eval/loss` over
//! `train/global_step`, so that runs of both can share a project. [`Run`] is the training loop's side: it only puts
//! lines into a bounded queue. `Sender` is the thread behind it, `Service` the protocol, `Folder` the files on disk.
//! Whatever fails there is a remark on the console; training goes on, and `metrics.jsonl` has every figure anyway.
//!
//! Not done here: artifacts, media, sweeps and alerts.

mod folder;
mod identity;
mod line;
mod log_file;
mod netrc;
mod record;
mod run;
mod sender;
mod service;
mod settings;
mod system;
mod viewer;

pub use run::{Run, RunRequest};
pub use settings::{ApiKey, Error, Mode, Pace, Settings};
pub use viewer::{Viewer, viewer};
