//! What happens when training has ended, well or not: a push, a command of the user's, the rented machine stopped.

use std::path::Path;
use std::process::Command;

use clap::{Args as ClapArgs, ValueEnum};

use crate::diag::{Diagnostic, Failure};
use crate::http::{Client, Request, Settings};
use crate::stop::Stop;
use crate::track::Console;

/// RunPod's REST interface; `RUNPOD_REST_URL` names another.
const RUNPOD: &str = "https://rest.runpod.io/v1";

/// What is done at the end.
#[derive(Clone, Debug, ClapArgs)]
pub struct FinishArgs {
    /// Push the last stage's result to this repository of the Hub
    #[arg(long, value_name = "ORG/NAME")]
    pub push: Option<String>,
    /// Run this command in a shell at the end, also after a failure; AXISMAPPER_STATUS is ok, failed or stopped,
    /// AXISMAPPER_OUT the folder of the results
    #[arg(long, value_name = "CMD")]
    on_finish: Option<String>,
    /// Stop the RunPod machine that this runs on, also after a failure; with `pushed` only after a successful --push.
    /// RUNPOD_API_KEY and RUNPOD_POD_ID say which
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_missing_value = "always", require_equals = true)]
    stop_pod: Option<When>,
}

/// `--stop-pod`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum When {
    Always,
    Pushed,
}

/// How the work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Done,
    /// Done, and the result is on the Hub.
    Pushed,
    Failed,
    /// Ctrl-C, or a signal.
    Stopped,
}

/// What is done at the end, checked before the work is paid for.
#[derive(Debug)]
pub struct Finish {
    on_finish: Option<String>,
    pod: Option<(Pod, When)>,
}

/// A rented machine.
#[derive(Debug)]
struct Pod {
    id: String,
    key: String,
    url: String,
}

impl FinishArgs {
    /// Checks that all is there that the end will need.
    ///
    /// # Errors
    /// When `--stop-pod` lacks its variables, or waits for a push that nobody asked for.
    pub fn prepare(&self) -> Result<Finish, Failure> {
        let Some(when) = self.stop_pod else { return Ok(Finish { on_finish: self.on_finish.clone(), pod: None }) };
        if when == When::Pushed && self.push.is_none() {
            return Err(Fault::NoPush.into());
        }
        let var = |name: &'static str| {
            std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or(Fault::NoVariable { name })
        };
        let url = std::env::var("RUNPOD_REST_URL").unwrap_or_else(|_| RUNPOD.to_owned());
        let pod = Pod { id: var("RUNPOD_POD_ID")?, key: var("RUNPOD_API_KEY")?, url };
        Ok(Finish { on_finish: self.on_finish.clone(), pod: Some((pod, when)) })
    }
}

impl Finish {
    /// Does what was asked for. A machine that its user interrupted goes on running: he is there.
    ///
    /// # Errors
    /// When the command fails or the machine cannot be stopped.
    pub fn run(&self, ending: Ending, out: &Path, console: &Console) -> Result<(), Failure> {
        let command = self.on_finish.as_deref().map_or(Ok(()), |command| run_command(command, ending, out));
        let Some((pod, when)) = &self.pod else { return command };
        let stops = match when {
            When::Always => ending != Ending::Stopped,
            When::Pushed => ending == Ending::Pushed,
        };
        if !stops {
            console.note(&format!("the machine `{}` goes on running", pod.id));
            return command;
        }
        // The machine costs money: it is stopped whatever the command did.
        let stopped = pod.stop();
        if stopped.is_ok() {
            console.note(&format!("the machine `{}` is being stopped", pod.id));
        }
        stopped.and(command)
    }
}

fn run_command(command: &str, ending: Ending, out: &Path) -> Result<(), Failure> {
    let status = match ending {
        Ending::Done | Ending::Pushed => "ok",
        Ending::Failed => "failed",
        Ending::Stopped => "stopped",
    };
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).env("AXISMAPPER_STATUS", status).env("AXISMAPPER_OUT", out);
    match shell.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Fault::Command { status: status.to_string() }.into()),
        Err(source) => Err(Fault::NoShell { source }.into()),
    }
}

impl Pod {
    fn stop(&self) -> Result<(), Failure> {
        // A stop request ended the training; it must not keep the machine running.
        let client = Client::new(Settings::default(), &Stop::default())?;
        let url = format!("{}/pods/{}/stop", self.url.trim_end_matches('/'), self.id);
        client.send(&Request::post(url).bearer(&self.key))?;
        Ok(())
    }
}

/// The end cannot be as asked for.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("`--stop-pod` needs the variable {name}, which is not set")]
    NoVariable { name: &'static str },
    #[error("`--stop-pod=pushed` waits for a push, and none is asked for")]
    NoPush,
    #[error("the `--on-finish` command ended with {status}")]
    Command { status: String },
    #[error("cannot start a shell for the `--on-finish` command")]
    NoShell { source: std::io::Error },
}

impl Diagnostic for Fault {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoVariable { name: "RUNPOD_API_KEY" } => Some("make a key in RunPod's settings and export it".into()),
            Self::NoVariable { .. } => {
                Some("RunPod sets it on its machines; elsewhere there is nothing to stop".into())
            }
            Self::NoPush => Some("add --push ORG/NAME, or use --stop-pod".into()),
            Self::Command { .. } | Self::NoShell { .. } => None,
        }
    }

    fn is_usage(&self) -> bool {
        matches!(self, Self::NoVariable { .. } | Self::NoPush)
    }
}
