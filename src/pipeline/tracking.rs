//! A stage's report to Weights & Biases, around the work of the stage.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Error, StageData, StageRequest};
use crate::diag::Diagnostic as _;
use crate::stop::Stop;
use crate::track::wandb::{Run, RunRequest};
use crate::track::{Console, MetricsLog};
use crate::train::{Observe, checkpoint};

/// Does the work of a stage. When the stage is to be reported, the report begins before it and ends with its exit code,
/// hears what the console is told and, through the observer that the work is given, every line of the log.
///
/// # Errors
/// Those of the work. A report that cannot be made is a remark on the console.
pub(super) fn reported<T>(
    request: &StageRequest<'_>,
    data: &StageData,
    (console, stop): (&Console, &Stop),
    work: impl FnOnce(&Console, Option<&Observe<'_>>) -> Result<T, Error>,
) -> Result<T, Error> {
    let Some(run) = start(request, data, console, stop)? else { return work(console, None) };
    let heard = {
        let run = Arc::clone(&run);
        console.heard_by(move |text| run.output(text))
    };
    let observe = |step: u64, values: &Map<String, Value>| run.log(step, values);
    let outcome = work(&heard, Some(&observe));
    if let Err(error) = &outcome {
        run.output(&error.to_string());
    }
    // The exit status that the program ends with.
    run.finish(outcome.as_ref().map_or_else(|error| if error.is_usage() { 2 } else { 1 }, |_| 0));
    outcome
}

fn start(
    request: &StageRequest<'_>,
    data: &StageData,
    console: &Console,
    stop: &Stop,
) -> Result<Option<Arc<Run>>, Error> {
    let Some(settings) = request.report else { return Ok(None) };
    let step = if request.resume { checkpoint::newest_step(request.out)? } else { None };
    let rows = MetricsLog::rows(&request.out.join("metrics.jsonl"), step.unwrap_or(0))?;
    let mut config = match serde_json::to_value(request.config) {
        Ok(Value::Object(config)) => config,
        _ => Map::new(),
    };
    let of_validation = data.validation.as_ref().map(|counts| counts.n_records);
    config.insert("records".into(), json!({"train": data.train.n_records, "validation": of_validation}));
    config.insert("axismapper_version".into(), env!("CARGO_PKG_VERSION").into());
    let run = RunRequest {
        stage: &request.config.name,
        job_type: if request.config.orpo.is_some() { "orpo" } else { "sft" },
        config,
        kept_file: &request.out.join("wandb.json"),
        resume: request.resume,
        rows,
    };
    Ok(Run::start(settings, run, console, stop))
}
