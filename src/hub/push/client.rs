//! Repositories and commits made with the crate `hf-hub`, with the patience that it lacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::{HFClient, HFClientSync, HFError};

use super::local::{Hashed, Source};
use super::{Api, Change, Committed, Error, Result, change_of};
use crate::stop::Stop;
use crate::track::{Console, Progress};

/// Tries of one commit before the push is given up.
const MAX_ATTEMPTS: u32 = 8;
const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(60);
/// A wait that the Hub asks for is kept up to this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// Makes commits in one repository.
pub struct Uploader<'a> {
    client: HFClientSync,
    api: &'a Api,
    repo: &'a str,
    console: &'a Console,
    stop: &'a Stop,
}

impl<'a> Uploader<'a> {
    /// A client for the repository.
    pub fn new(api: &'a Api, repo: &'a str, console: &'a Console, stop: &'a Stop) -> Result<Self> {
        let mut builder = HFClient::builder()
            .endpoint(&api.access.endpoint)
            .cache_dir(&api.access.cache)
            .user_agent(concat!("axismapper/", env!("CARGO_PKG_VERSION")))
            // A few quick tries inside; the waits that the Hub asks for are kept here.
            .retry_max_attempts(2)
            .retry_base_delay(Duration::from_millis(250));
        if let Some(token) = &api.access.token {
            builder = builder.token(token.reveal());
        }
        let client = builder.build_sync().map_err(|error| refused(repo, &error))?;
        Ok(Self { client, api, repo, console, stop })
    }

    /// Makes the repository; one that was made by a call whose answer was lost is taken as it is.
    pub fn create_repository(&self, is_private: bool) -> Result<()> {
        self.patiently(|| {
            let call = self.client.create_repository().repo_id(self.repo).repo_type(hf_hub::RepoTypeModel);
            call.private(is_private).exist_ok(true).send().map(|_| ())
        })
    }

    /// Commits the files that the repository does not have yet.
    pub fn commit(&self, files: &[&Hashed]) -> Result<Committed> {
        let names: Vec<String> = files.iter().map(|file| file.upload.path.clone()).collect();
        let label = match &names[..] {
            [name] => format!("pushing {name}, MB"),
            names => format!("pushing {} files, MB", names.len()),
        };
        let total: u64 = files.iter().map(|file| file.upload.size_bytes).sum();
        let meter =
            Arc::new(Meter { progress: self.console.bar(&label, total.div_ceil(1_000_000)), shown: AtomicU64::new(0) });
        let mut commit = None;
        self.patiently(|| {
            // What an earlier try brought, although its answer was lost, is not sent again.
            let head = self.api.commit_of(self.repo, "main").map_err(Outcome::Known)?;
            let remote = self.api.files(self.repo, &head).map_err(Outcome::Known)?;
            let left: Vec<&&Hashed> =
                files.iter().filter(|file| change_of(file, &remote) != Change::Unchanged).collect();
            if left.is_empty() {
                return Ok(());
            }
            let made = self.create_commit(&left, &head, &meter)?;
            commit = made;
            Ok::<(), Outcome>(())
        })?;
        if let Some(meter) = Arc::into_inner(meter) {
            meter.progress.finish();
        }
        Ok(Committed { commit, files: names })
    }

    fn create_commit(
        &self,
        files: &[&&Hashed],
        head: &str,
        meter: &Arc<Meter>,
    ) -> std::result::Result<Option<String>, HFError> {
        use hf_hub::repository::{AddSource, CommitOperation};
        let operations: Vec<CommitOperation> = files
            .iter()
            .map(|file| CommitOperation::Add {
                path_in_repo: file.upload.path.clone(),
                source: match &file.upload.source {
                    Source::File(path) => AddSource::File(path.clone()),
                    Source::Text(text) => AddSource::Bytes(text.clone().into_bytes().into()),
                },
            })
            .collect();
        let message = match files {
            [file] => format!("Upload {}", file.upload.path),
            files => format!("Upload {} files", files.len()),
        };
        let (owner, name) = self.repo.split_once('/').unwrap_or(("", self.repo));
        let repository = self.client.repository(hf_hub::RepoTypeModel, owner, name);
        let call = repository.create_commit().operations(operations).commit_message(message);
        let info = call.parent_commit(head).progress(Arc::clone(meter)).send()?;
        Ok(info.commit_oid)
    }

    /// Runs a call again as long as that may help, with the waits that the Hub asks for.
    fn patiently<E: Into<Outcome>>(&self, mut call: impl FnMut() -> std::result::Result<(), E>) -> Result<()> {
        let mut delay = FIRST_DELAY;
        for n_attempts in 1..=MAX_ATTEMPTS {
            self.stop.check("pushing")?;
            let error = match call().map_err(Into::into) {
                Ok(()) => return Ok(()),
                Err(Outcome::Known(error)) => return Err(error),
                Err(Outcome::Hub(error)) => error,
            };
            let wait = match verdict(&error) {
                Verdict::Final => return Err(refused(self.repo, &error)),
                Verdict::Now => Duration::ZERO,
                Verdict::After(asked) if asked > MAX_RETRY_AFTER => return Err(refused(self.repo, &error)),
                Verdict::After(asked) => asked.max(delay),
            };
            if n_attempts == MAX_ATTEMPTS {
                let (repo, message) = (self.repo.to_owned(), error.to_string());
                return Err(Error::Upload { repo, n_attempts, message });
            }
            if wait > Duration::from_secs(5) {
                self.console.note(&format!("the Hub is busy; trying again in {} s", wait.as_secs()));
            }
            self.wait(wait)?;
            delay = (delay * 2).min(MAX_DELAY);
        }
        Ok(())
    }

    fn wait(&self, mut left: Duration) -> Result<()> {
        while !left.is_zero() {
            self.stop.check("waiting for the Hub")?;
            let part = left.min(Duration::from_millis(100));
            std::thread::sleep(part);
            left -= part;
        }
        Ok(())
    }
}

/// How a call failed.
enum Outcome {
    /// With an error of this module, which has been through its own tries.
    Known(Error),
    Hub(HFError),
}

impl From<HFError> for Outcome {
    fn from(error: HFError) -> Self {
        Self::Hub(error)
    }
}

/// What to do about an error.
enum Verdict {
    Final,
    /// Somebody committed in between, or this program did and the answer was lost: look again at once.
    Now,
    After(Duration),
}

fn verdict(error: &HFError) -> Verdict {
    match error {
        HFError::RateLimited { retry_after, .. } => Verdict::After(retry_after.unwrap_or_default()),
        HFError::Conflict { .. } => Verdict::Now,
        HFError::Http { context } => match context.status.as_u16() {
            412 => Verdict::Now,
            408 | 425 | 429 => Verdict::After(Duration::ZERO),
            501 | 505 => Verdict::Final,
            500.. => Verdict::After(Duration::ZERO),
            _ => Verdict::Final,
        },
        HFError::Request { .. } | HFError::Xet { .. } | HFError::MalformedResponse { .. } => {
            Verdict::After(Duration::ZERO)
        }
        _ => Verdict::Final,
    }
}

/// An error of the crate in this module's terms.
fn refused(repo: &str, error: &HFError) -> Error {
    let repo = repo.to_owned();
    let context = match error {
        HFError::Http { context } | HFError::AuthRequired { context } | HFError::Forbidden { context } => Some(context),
        _ => None,
    };
    let message = context.and_then(|context| context.server_message.clone()).unwrap_or_else(|| error.to_string());
    let lower = message.to_lowercase();
    let is_quota =
        lower.contains("storage") && ["limit", "quota", "full", "exceed"].iter().any(|word| lower.contains(word));
    match error {
        _ if is_quota => Error::Quota { repo, message },
        HFError::Http { context } if context.status.as_u16() == 402 => Error::Quota { repo, message },
        HFError::AuthRequired { .. } => Error::BadToken { message },
        HFError::Forbidden { .. } => Error::Forbidden { repo, message },
        HFError::RepoNotFound { .. } => Error::NoRepo { repo, has_token: true },
        _ => Error::Rejected { repo, message },
    }
}

/// Shows the bytes of an upload as megabytes of progress.
struct Meter {
    progress: Progress,
    shown: AtomicU64,
}

impl ProgressHandler for Meter {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, .. }) = event {
            let now = bytes_completed / 1_000_000;
            let before = self.shown.fetch_max(now, Ordering::SeqCst);
            self.progress.advance(now.saturating_sub(before));
        }
    }
}
