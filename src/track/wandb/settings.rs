//! Where a run is reported, from the environment variables that wandb's own client reads and from `.netrc`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::netrc;
use crate::diag::Diagnostic;

/// Characters that W&B does not take in the name of a project or the ID of a run.
const FORBIDDEN: &[char] = &['/', '\\', '#', '?', '%', ':'];
const MAX_NAME_CHARS: usize = 128;

/// An environment variable that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`WANDB_MODE` is one of `online`, `offline`, `disabled`, found `{found}`")]
    Mode { found: String },
    #[error("`WANDB_BASE_URL` is the address of a W&B service, found `{found}`")]
    BaseUrl { found: String },
    #[error("`{variable}` has at most {MAX_NAME_CHARS} characters and none of `/\\#?%:`, found `{found}`")]
    Name { variable: &'static str, found: String },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Mode { .. } => "unset it, or set `training.report_to: none` to report to nobody".into(),
            Self::BaseUrl { .. } => "it looks like https://api.wandb.ai; unset it to use that one".into(),
            Self::Name { variable, .. } => format!("set another {variable}, or unset it"),
        })
    }

    fn is_usage(&self) -> bool {
        true
    }
}

/// An API key, which is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key that is more than blanks.
    pub fn parse(text: &str) -> Option<Self> {
        Some(text.trim()).filter(|text| !text.is_empty()).map(|text| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("...")
    }
}

/// What becomes of a run's figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are sent while the run goes on.
    Online(ApiKey),
    /// They are written to a folder that `wandb sync` sends later.
    Offline,
    /// Nothing is recorded.
    Disabled,
}

/// How often things happen, and how long they may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Between two posts.
    pub post_every: Duration,
    /// Between two signs of life when there is nothing to post.
    pub heartbeat_every: Duration,
    /// Between two samples of the system metrics.
    pub sample_every: Duration,
    /// The wait after a first fault; it doubles from fault to fault, with jitter.
    pub first_delay: Duration,
    /// The longest wait of our own between two tries. What the service asks for may be longer.
    pub max_delay: Duration,
    /// Limit on one request.
    pub request_timeout: Duration,
    /// Faults in a row after which the service counts as away.
    pub n_faults_away: u32,
    /// How long the end of a run waits for the last post; a sixth of it when the service is away already.
    pub finish_within: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            post_every: Duration::from_secs(15),
            heartbeat_every: Duration::from_secs(30),
            sample_every: Duration::from_secs(15),
            first_delay: Duration::from_secs(2),
            max_delay: Duration::from_secs(60),
            request_timeout: Duration::from_secs(20),
            n_faults_away: 3,
            finish_within: Duration::from_secs(60),
        }
    }
}

/// Everything that the environment says about reporting.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub mode: Mode,
    /// The service, without a slash at its end.
    pub base_url: String,
    /// The key's own entity when not set.
    pub entity: Option<String>,
    pub project: String,
    /// Shown instead of a name made from the stage.
    pub name: Option<String>,
    /// Chosen at random when not set.
    pub run_id: Option<String>,
    pub group: Option<String>,
    pub job_type: Option<String>,
    pub notes: Option<String>,
    pub tags: Vec<String>,
    /// Where the folder `wandb` is made.
    pub dir: PathBuf,
    /// What the run was started with: the program and its arguments.
    pub command: Vec<String>,
    pub pace: Pace,
}

impl Settings {
    /// Reads the settings: `get` gives the value of an environment variable. Empty values count as not set. Without a
    /// key the mode is offline.
    ///
    /// # Errors
    /// [`Error`] when a value cannot be used.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let base_url = get("WANDB_BASE_URL").unwrap_or_else(|| "https://api.wandb.ai".into());
        let base_url = base_url.trim_end_matches('/').to_owned();
        let host = host_of(&base_url)?;
        let mode = match get("WANDB_MODE").map(|mode| mode.to_lowercase()).as_deref() {
            _ if get("WANDB_DISABLED").is_some_and(|value| ["true", "1", "yes"].contains(&&*value.to_lowercase())) => {
                Mode::Disabled
            }
            Some("offline" | "dryrun") => Mode::Offline,
            Some("disabled") => Mode::Disabled,
            None | Some("online" | "run" | "shared") => {
                let key = get("WANDB_API_KEY").or_else(|| key_in_netrc(&get, &host));
                key.as_deref().and_then(ApiKey::parse).map_or(Mode::Offline, Mode::Online)
            }
            Some(found) => return Err(Error::Mode { found: found.to_owned() }),
        };
        let named = |variable| get(variable).map(|value| checked(variable, value)).transpose();
        let tags = get("WANDB_TAGS").unwrap_or_default();
        Ok(Self {
            mode,
            base_url,
            entity: get("WANDB_ENTITY"),
            project: named("WANDB_PROJECT")?.unwrap_or_else(|| "axismapper".into()),
            name: get("WANDB_NAME"),
            run_id: named("WANDB_RUN_ID")?,
            group: get("WANDB_RUN_GROUP"),
            job_type: get("WANDB_JOB_TYPE"),
            notes: get("WANDB_NOTES"),
            tags: tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect(),
            dir: get("WANDB_DIR").map_or_else(|| ".".into(), PathBuf::from),
            command: Vec::new(),
            pace: Pace::default(),
        })
    }

    /// The settings of one of several stages that run under one environment: a run ID or name that was given for all
    /// of them gets the stage's name at its end, so that each stage is a run of its own.
    #[must_use]
    pub fn for_stage(&self, stage: &str) -> Self {
        let with_stage = |text: &Option<String>| text.as_ref().map(|text| format!("{text}-{stage}"));
        Self { name: with_stage(&self.name), run_id: with_stage(&self.run_id), ..self.clone() }
    }
}

fn host_of(base_url: &str) -> Result<String, Error> {
    let url = reqwest::Url::parse(base_url).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
    let host = url.as_ref().and_then(|url| url.host_str()).map(str::to_owned);
    host.ok_or_else(|| {
        // What was found may hold a password.
        let has_secret = base_url.contains('@');
        Error::BaseUrl { found: if has_secret { "...".into() } else { base_url.to_owned() } }
    })
}

fn checked(variable: &'static str, value: String) -> Result<String, Error> {
    match value.contains(FORBIDDEN) || value.chars().count() > MAX_NAME_CHARS {
        true => Err(Error::Name { variable, found: value }),
        false => Ok(value),
    }
}

/// The key in the file that `NETRC` names, `~/.netrc` or `~/_netrc`. A file that cannot be read has none.
fn key_in_netrc(get: &impl Fn(&str) -> Option<String>, host: &str) -> Option<String> {
    let home = get("HOME").map(PathBuf::from);
    let in_home = |name: &str| home.as_deref().map(|home| home.join(name));
    let named = get("NETRC").map(PathBuf::from);
    let paths = if named.is_some() { [named, None] } else { [in_home(".netrc"), in_home("_netrc")] };
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    paths.iter().flatten().filter_map(|path| read(path)).find_map(|text| netrc::password(&text, host))
}
