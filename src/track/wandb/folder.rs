//! A run's folder on disk, `wandb/offline-run-TIME-ID/`, as wandb's own client leaves it and `wandb sync` sends it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use prost::Message as _;

use super::identity::Identity;
use super::line::{Line, folder_time};
use super::log_file::{LogWriter, records};
use super::record::{Exit, Header, Items, Metric, MetricOptions, Record, RunRecord, Update, VersionInfo, items_of};
use crate::fsio::{self, Error};

/// The oldest client that can read the records, as wandb 0.31.0 writes it.
const MIN_CONSUMER: &str = "0.70.0";

/// An open folder that takes a run's records.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    file: PathBuf,
    log: LogWriter,
    n_records: i64,
}

impl Folder {
    /// Makes the folder and writes what identifies the run. `may_have_lines`: the service, or an earlier folder, may
    /// have lines of this run already, and what follows comes behind them.
    pub(super) fn create(root: &Path, identity: &Identity, may_have_lines: bool) -> Result<Self, Error> {
        let wandb = root.join("wandb");
        let name = format!("offline-run-{}-{}", folder_time(SystemTime::now()), identity.run_id);
        // Two folders of one second get different names.
        let free = |n: &u32| match n {
            0 => Some(wandb.join(&name)),
            n => Some(wandb.join(format!("{name}-{n}"))),
        };
        let dir = (0..1000).filter_map(|n| free(&n)).find(|dir| !dir.exists()).unwrap_or_else(|| wandb.join(&name));
        fsio::make_dir(&dir.join("files"))?;
        let file = dir.join(format!("run-{}.wandb", identity.run_id));
        let log = LogWriter::create(&file).map_err(Error::io("create", &file))?;
        let mut folder = Self { dir, file, log, n_records: 0 };
        let version_info = VersionInfo {
            producer: concat!("axismapper ", env!("CARGO_PKG_VERSION")).into(),
            min_consumer: MIN_CONSUMER.into(),
        };
        folder.append(Record { header: Some(Header { version_info: Some(version_info) }), ..Record::default() })?;
        folder.append(Record { run: Some(run_record(identity, may_have_lines)), ..Record::default() })?;
        folder.append(Record { environment: Some(identity.environment.clone()), ..Record::default() })?;
        for metric in metrics() {
            folder.append(Record { metric: Some(metric), ..Record::default() })?;
        }
        Ok(folder)
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Appends a line, which is in the file when this returns.
    pub(super) fn write(&mut self, line: &Line) -> Result<(), Error> {
        self.append(line.to_record())
    }

    /// Writes the last figures and the exit code: the run is over.
    pub(super) fn finish(&mut self, summary: &Items, exit_code: i32, runtime: Duration) -> Result<(), Error> {
        let update = Some(Update { update: items_of(summary) });
        self.append(Record { summary: update, ..Record::default() })?;
        let exit = Exit { exit_code, runtime: i32::try_from(runtime.as_secs()).unwrap_or(i32::MAX) };
        self.append(Record { exit: Some(exit), ..Record::default() })?;
        self.log.sync().map_err(Error::io("write", &self.file))
    }

    /// Removes the folder: all that it holds is elsewhere.
    pub(super) fn remove(self) -> Result<(), Error> {
        std::fs::remove_dir_all(&self.dir).map_err(Error::io("remove", &self.dir))
    }

    fn append(&mut self, record: Record) -> Result<(), Error> {
        self.n_records += 1;
        let bytes = Record { num: self.n_records, ..record }.encode_to_vec();
        self.log.append(&bytes).map_err(Error::io("write", &self.file))
    }
}

fn run_record(identity: &Identity, resume: bool) -> RunRecord {
    let config: Items = identity.config.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
    RunRecord {
        run_id: identity.run_id.clone(),
        entity: identity.entity.clone().unwrap_or_default(),
        project: identity.project.clone(),
        config: Some(Update { update: items_of(&config) }),
        run_group: identity.group.clone().unwrap_or_default(),
        job_type: identity.job_type.clone(),
        display_name: identity.display_name.clone(),
        notes: identity.notes.clone().unwrap_or_default(),
        tags: identity.tags.clone(),
        host: identity.environment.host.clone(),
        start_time: Some(identity.started.into()),
        resume,
    }
}

/// All figures are drawn against the optimizer step, as transformers' `WandbCallback` asks for.
fn metrics() -> [Metric; 2] {
    let options = |step_sync| Some(MetricOptions { step_sync, defined: true });
    let step = "train/global_step";
    [
        Metric { name: step.into(), options: options(false), ..Metric::default() },
        Metric { glob_name: "*".into(), step_metric: step.into(), options: options(true), ..Metric::default() },
    ]
}

/// The `.wandb` file of a folder.
fn file_in(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|ext| ext == "wandb"))
}

/// The lines of a folder that was left behind; of a torn file those in front of the tear. `None` when the folder is
/// gone or was sent.
pub(super) fn lines_in(dir: &Path) -> Result<Option<Vec<Line>>, Error> {
    let Some(file) = file_in(dir).filter(|file| !mark_of(file).exists()) else { return Ok(None) };
    let bytes = std::fs::read(&file).map_err(Error::io("read", &file))?;
    let decode = |bytes: Vec<u8>| Record::decode(bytes.as_slice()).ok();
    Ok(Some(records(&bytes).into_iter().map_while(decode).filter_map(|record| Line::of_record(&record)).collect()))
}

/// Marks a folder as sent, in the way of `wandb sync`, which then passes over it.
pub(super) fn mark_as_sent(dir: &Path) -> Result<(), Error> {
    let Some(file) = file_in(dir) else { return Ok(()) };
    let mark = mark_of(&file);
    File::create(&mark).map(drop).map_err(Error::io("create", &mark))
}

fn mark_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".synced");
    name.into()
}
