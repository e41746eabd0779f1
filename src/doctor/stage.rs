//! A stage before it is run: its model, its records, what it takes, and a few steps measured.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::Device;

use super::estimate::{Footprint, Rate, Tokens, footprint};
use super::machine::{Memory, check_disk};
use super::{Check, Status, size_text};
use crate::config::{BestMetric, EvalStrategy, StageConfig, Training};
use crate::fsio;
use crate::hub::{self, Access, RepoId, cached, probe};
use crate::model::{self, Config};
use crate::pipeline::{self, FileCounts, Preview, StageRequest, peak_memory, preview_stage, reset_peak, run_stage};
use crate::stop::Stop;
use crate::text::Tokenizer;
use crate::track::Console;

/// Where a stage's model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// In a folder on this machine.
    Folder(PathBuf),
    /// Not here; a name on the Hub.
    Remote(RepoId),
    /// Neither.
    Nowhere,
}

/// What was found about a stage.
#[derive(Clone, Debug)]
pub struct StageChecks {
    pub checks: Vec<Check>,
    /// Its records, counted; none without a tokenizer, or with records that cannot be used.
    pub preview: Option<Preview>,
    /// What it takes, when its model and its records are here.
    pub taken: Option<(Tokens, Footprint)>,
    /// The model's folder.
    pub base: Option<PathBuf>,
}

/// Where a model is: a folder, a folder of the Hub's cache, or on the Hub.
pub fn local_model(name: &str, access: &Access) -> Local {
    let path = Path::new(name);
    if path.is_dir() {
        return Local::Folder(path.to_owned());
    }
    match RepoId::parse(name) {
        Some(id) => match cached(access, &id) {
            Ok(fetched) => Local::Folder(fetched.dir),
            Err(_) => Local::Remote(id),
        },
        None => Local::Nowhere,
    }
}

/// Looks at a stage from all sides: model, records, memory, disk. `out` is the folder that it will write.
pub fn check_stage(
    stage: &StageConfig,
    out: &Path,
    memory: Option<Memory>,
    access: &Access,
    stop: &Stop,
) -> StageChecks {
    let name = |what: &str| format!("{}: {what}", stage.name);
    let mut checks = Vec::new();
    let mut base = None;
    let mut missing_bytes = 0;
    match local_model(&stage.model.name, access) {
        Local::Folder(dir) => {
            checks.push(check_model(&name("model"), &dir));
            base = Some(dir);
        }
        Local::Remote(id) => {
            let (check, missing) = check_remote(&name("model"), &id, access, stop);
            missing_bytes = missing;
            checks.push(check);
        }
        Local::Nowhere => checks.push(nowhere(&name("model"), "model", &stage.model.name)),
    }
    let start = stage.lora.as_ref().and_then(|lora| lora.init_adapter.as_deref());
    if let Some(start) = start {
        checks.push(check_adapter(&name("adapter"), start, access, stop));
    }
    let is_usable = checks.iter().all(|check| check.status != Status::Fatal);
    let is_usable = is_usable
        && [Some(&stage.data.train), stage.data.validation.as_ref()].into_iter().flatten().all(|path| path.exists());
    let preview = match base.as_deref().filter(|_| is_usable).map(|dir| preview_stage(stage, dir)) {
        Some(Ok(preview)) => {
            for (what, counts) in [("records", Some(&preview.train)), ("validation", preview.validation.as_ref())] {
                checks.extend(counts.map(|counts| check_counts(&name(what), counts)));
            }
            Some(preview)
        }
        Some(Err(error)) => {
            checks.push(Check::of_error(name("records"), &error));
            None
        }
        None => {
            let files = [("records", Some(&stage.data.train)), ("validation", stage.data.validation.as_ref())];
            checks.extend(files.into_iter().filter_map(|(what, path)| Some(check_lines(&name(what), path?))));
            None
        }
    };
    let shape = base.as_deref().and_then(|dir| Config::load(dir).ok());
    let taken = preview.as_ref().zip(shape.as_ref()).and_then(|(preview, shape)| {
        let tokens = Tokens::of(preview, stage);
        Some((tokens, footprint(shape, stage, tokens.largest_batch, tokens.longest).ok()?))
    });
    match (taken, memory) {
        (Some((_, footprint)), Some(memory)) => checks.push(check_room(&name("memory"), footprint.total(), memory)),
        (None, _) => {
            checks.push(Check::skipped(name("memory"), "not estimated, because the model or the records are not here"))
        }
        (_, None) => {}
    }
    let needed = taken.map(|(tokens, footprint)| disk_needed(&stage.training, tokens.steps, footprint));
    checks.push(check_disk(&name("disk"), out, needed));
    if missing_bytes > 0 {
        checks.push(check_disk(&name("cache"), &access.cache, Some(missing_bytes)));
    }
    StageChecks { checks, preview, taken, base }
}

/// What would end a stage early besides its model ([`check_model`]), looked at quickly: nothing is tokenized and nobody is
/// asked. `base` is the model's folder.
pub fn check_fatal(stage: &StageConfig, base: &Path, out: &Path, memory: Option<Memory>) -> Vec<Check> {
    let name = |what: &str| format!("{}: {what}", stage.name);
    let mut checks = Vec::new();
    let files = [("records", Some(&stage.data.train)), ("validation", stage.data.validation.as_ref())];
    checks.extend(files.into_iter().filter_map(|(what, path)| Some(check_first_line(&name(what), path?))));
    let mut needed = None;
    if let Ok(footprint) =
        Config::load(base).map_err(drop).and_then(|shape| footprint(&shape, stage, 1, 1).map_err(drop))
    {
        if let Some(memory) = memory {
            checks.push(check_room(&name("memory"), footprint.floor(), memory));
        }
        // The result and a checkpoint beside it.
        needed = Some(2 * footprint.checkpoint());
    }
    checks.push(check_disk(&name("disk"), out, needed));
    checks
}

/// Takes a few steps with the stage's own model, the longest records first, and throws the result away.
///
/// # Errors
/// As a stage's; a stop is one of them.
pub fn measure(
    stage: &StageConfig,
    (base, device): (&Path, Device),
    preview: &Preview,
    n_steps: u64,
    (console, stop): (&Console, &Stop),
) -> Result<Rate, pipeline::Error> {
    let dir = tempfile::tempdir().map_err(fsio::Error::io("make a folder in", &std::env::temp_dir()))?;
    let train = dir.path().join("measured.jsonl");
    let n_steps = n_steps.max(2);
    let batch = stage.training.per_device_train_batch_size;
    let n_records = usize::try_from(n_steps).unwrap_or(usize::MAX).saturating_mul(preview.records_per_step);
    write_sample(&preview.train.path, &sample(&preview.by_length, batch, n_records), &train)?;
    let mut stage = stage.clone();
    stage.data = crate::config::Data { train, validation: None, shuffle: false, ..stage.data };
    stage.training = Training {
        max_steps: Some(n_steps),
        eval_strategy: EvalStrategy::No,
        save_steps: None,
        logging_steps: 1,
        report_to: Vec::new(),
        load_best_model_at_end: false,
        metric_for_best_model: BestMetric::EvalLoss,
        early_stopping_patience: None,
        predict_with_generate: false,
        ..stage.training
    };
    if let Some(lora) = &mut stage.lora {
        // An adapter of an earlier stage need not be there yet; a new one of the same shape costs the same.
        lora.init_adapter = lora.init_adapter.take().filter(|dir| Path::new(dir).is_dir());
    }
    let out = dir.path().join("out");
    // Where the system does not start its count anew, the peak is that of the whole process.
    let _ = reset_peak();
    run_stage(&StageRequest { config: &stage, base, out: &out, device, resume: false, report: None }, console, stop)?;
    let rows: Vec<Value> = fsio::read_jsonl(&out.join("metrics.jsonl"))?;
    // The first step also meets cold caches.
    let mut rates: Vec<f64> = rows.iter().skip(1).filter_map(|row| row["tokens_per_second"].as_f64()).collect();
    rates.sort_by(f64::total_cmp);
    let tokens_per_second = rates.get(rates.len() / 2).copied().unwrap_or(0.0);
    // On a GPU the memory that counts is not the process's.
    let peak_bytes = peak_memory().filter(|_| device == Device::Cpu);
    Ok(Rate { tokens_per_second, steps: rates.len() as u64, peak_bytes })
}

/// The longest records for the first micro-batch, and others evenly over all lengths.
fn sample(by_length: &[usize], batch: usize, n_records: usize) -> Vec<usize> {
    let (longest, others) = by_length.split_at(batch.min(by_length.len()));
    let n_others = n_records.saturating_sub(longest.len()).min(others.len());
    let even = (0..n_others).map(|idx| others[idx * others.len() / n_others.max(1)]);
    longest.iter().copied().chain(even).collect()
}

fn write_sample(from: &Path, lines: &[usize], to: &Path) -> Result<(), fsio::Error> {
    let wanted: BTreeSet<usize> = lines.iter().copied().collect();
    let mut texts = std::collections::BTreeMap::new();
    fsio::for_each_line(from, |number, text| {
        if wanted.contains(&number) {
            texts.insert(number, text.to_owned());
        }
        Ok(())
    })?;
    fsio::write_atomic(to, |out| {
        lines.iter().filter_map(|line| texts.get(line)).try_for_each(|text| writeln!(out, "{text}"))
    })
}

/// Whether a model's folder is complete.
pub fn check_model(name: &str, dir: &Path) -> Check {
    let shape = match Config::load(dir) {
        Ok(shape) => shape,
        Err(error) => return Check::of_error(name, &error),
    };
    if let Err(error) = Tokenizer::load(dir) {
        return Check::of_error(name, &error);
    }
    let (files, missing) = weight_files(dir);
    if let Some(file) = missing {
        return Check::fatal(
            name,
            format!("`{}` lacks `{file}`", dir.display()),
            "the folder is incomplete: copy or fetch it again (axismapper pull ORG/NAME)",
        );
    }
    let size: u64 = files.iter().filter_map(|file| Some(dir.join(file).metadata().ok()?.len())).sum();
    let billions = model::count_parameters(&shape) as f64 / 1e9;
    let n_files = if files.len() == 1 { "1 file".to_owned() } else { format!("{} files", files.len()) };
    Check::ok(name, format!("{billions:.2} G parameters, {n_files} of {}, at `{}`", size_text(size), dir.display()))
}

/// The files of a model's weights, and the first of them that is missing.
fn weight_files(dir: &Path) -> (Vec<String>, Option<String>) {
    let single = "model.safetensors".to_owned();
    if dir.join(&single).is_file() {
        return (vec![single], None);
    }
    let index: Value = match fsio::read_json(&dir.join("model.safetensors.index.json")) {
        Ok(index) => index,
        Err(_) => return (Vec::new(), Some(single)),
    };
    let names = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let files: BTreeSet<String> = names.filter_map(|name| name.as_str()).map(str::to_owned).collect();
    let missing = files.iter().find(|file| !dir.join(file).is_file()).cloned();
    (files.into_iter().collect(), missing)
}

/// Whether a model that is not here can be fetched, and how much of it.
fn check_remote(name: &str, id: &RepoId, access: &Access, stop: &Stop) -> (Check, u64) {
    match probe(access, id, stop) {
        Ok(found) => {
            let commit = &found.commit[..found.commit.len().min(8)];
            let size = size_text(found.missing_bytes);
            (Check::ok(name, format!("`{id}` is on the Hub ({commit}); {size} are fetched first")), found.missing_bytes)
        }
        Err(hub::Error::Http(error)) => {
            let message = format!("`{id}` is not in the cache, and the Hub cannot be reached: {error}");
            (Check::fatal(name, message, "connect to the network, or name a local folder in model.name"), 0)
        }
        Err(error) => (Check::of_error(name, &error), 0),
    }
}

fn check_adapter(name: &str, start: &str, access: &Access, stop: &Stop) -> Check {
    match local_model(start, access) {
        Local::Folder(dir) => match crate::adapter::load(&dir) {
            Ok(_) => Check::ok(name, format!("starts from `{}`", dir.display())),
            Err(error) => Check::of_error(name, &error),
        },
        Local::Remote(id) => check_remote(name, &id, access, stop).0,
        Local::Nowhere => nowhere(name, "adapter", start),
    }
}

fn nowhere(name: &str, what: &str, given: &str) -> Check {
    let message = format!("the {what} `{given}` is neither a folder here nor a name on the Hub");
    Check::fatal(name, message, "name a folder in Hugging Face layout, or ORG/NAME on the Hub")
}

fn check_counts(name: &str, counts: &FileCounts) -> Check {
    let FileCounts { path, n_records, n_cut, n_dropped } = counts;
    let message = format!("{n_records} records in `{}`, {n_cut} cut, {n_dropped} dropped", path.display());
    if *n_dropped > 0 {
        let hint = "dropped records have no answer, two equal answers, or do not fit model.max_seq_length";
        return Check::warning(name, message, hint);
    }
    if n_cut * 10 > *n_records {
        return Check::warning(name, message, "many questions lose words: raise model.max_seq_length");
    }
    Check::ok(name, message)
}

/// That a file of records is not there, with what makes one.
fn absent(name: &str, path: &Path) -> Option<Check> {
    let is_absent = path != Path::new("-") && !path.exists();
    let hint = "`axismapper data build` makes data/train.jsonl and the others; for your own, set data.train and data.validation";
    is_absent.then(|| Check::fatal(name, format!("`{}` does not exist", path.display()), hint))
}

/// Counts a file's records without a tokenizer.
fn check_lines(name: &str, path: &Path) -> Check {
    if let Some(check) = absent(name, path) {
        return check;
    }
    let mut n_records = 0;
    let read = fsio::for_each_line(path, |_, text| {
        n_records += 1;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map(drop).map_err(|error| fsio::json_fault(&error))
    });
    match read {
        Err(error) => Check::of_error(name, &error),
        Ok(()) if n_records == 0 => Check::of_error(name, &fsio::Error::Empty { path: path.to_owned() }),
        Ok(()) => Check::ok(name, format!("{n_records} records in `{}`, not tokenized", path.display())),
    }
}

/// Whether a file of records is there and begins with one.
fn check_first_line(name: &str, path: &Path) -> Check {
    if path == Path::new("-") {
        return Check::ok(name, "from stdin");
    }
    if let Some(check) = absent(name, path) {
        return check;
    }
    let first = || -> Result<Option<String>, fsio::Error> {
        use std::io::BufRead as _;
        let lines = fsio::open(path)?.lines();
        for line in lines {
            let line = line.map_err(fsio::Error::io("read", path))?;
            if !line.trim().is_empty() {
                return Ok(Some(line));
            }
        }
        Ok(None)
    };
    match first() {
        Err(error) => Check::of_error(name, &error),
        Ok(None) => Check::of_error(name, &fsio::Error::Empty { path: path.to_owned() }),
        Ok(Some(_)) => Check::ok(name, format!("`{}` can be read", path.display())),
    }
}

fn check_room(name: &str, needed: u64, memory: Memory) -> Check {
    let (needs, has) = (size_text(needed), size_text(memory.total));
    let smaller = "use a smaller model, model.load_in_4bit: true, a smaller training.per_device_train_batch_size or a shorter model.max_seq_length";
    if needed > memory.total {
        return Check::fatal(name, format!("about {needs} are needed, there are {has}"), smaller);
    }
    let message = format!("about {needs} of {has}, {} free", size_text(memory.free));
    if needed > memory.free {
        return Check::warning(name, message, format!("end other programs, or {smaller}"));
    }
    Check::ok(name, message)
}

/// Checkpoints that are there at once, one being written, and the result.
fn disk_needed(training: &Training, steps: u64, footprint: Footprint) -> u64 {
    let n_made = training.save_steps.map_or(0, |every| steps / every.max(1));
    let n_kept = training.save_total_limit.map_or(n_made, |limit| n_made.min(limit + 1));
    (n_kept + 1) * footprint.checkpoint()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_begins_with_the_longest_and_spans_all_lengths() {
        let by_length: Vec<usize> = (0..100).collect();
        assert_eq!(sample(&by_length, 2, 6), [0, 1, 2, 26, 51, 75]);
        assert_eq!(sample(&by_length[..3], 4, 8), [0, 1, 2]);
        assert_eq!(sample(&by_length[..3], 2, 8), [0, 1, 2]);
    }

    #[test]
    fn too_little_memory_is_fatal_and_busy_memory_a_warning() {
        let memory = Memory { total: 8_000_000_000, free: 2_000_000_000, is_limited: true };
        let status = |needed| check_room("memory", needed, memory).status;
        assert_eq!(
            [status(1_000_000_000), status(3_000_000_000), status(9_000_000_000)],
            [Status::Ok, Status::Warning, Status::Fatal]
        );
    }

    #[test]
    fn a_missing_shard_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(weight_files(dir.path()).1.as_deref(), Some("model.safetensors"));
        let index =
            "{\"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"m-2.safetensors\", \"c\": \"m-1.safetensors\"}}";
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        std::fs::write(dir.path().join("m-1.safetensors"), "").unwrap();
        let (files, missing) = weight_files(dir.path());
        assert_eq!((files.len(), missing.as_deref()), (2, Some("m-2.safetensors")));
    }
}
