//! The whole pipeline on this machine with nothing downloaded: codes, data, a small base model, SFT, ORPO, evaluation
//! before and after each, a merged model.
//!
//! Only the base model is a stand-in, trained here on texts about the codes. The stages are run by the code and the
//! stage files that a real model is trained with. Every finished step is noted in `demo.json`; started again with the
//! same settings, the demo goes on after it.

mod ledger;
mod report;
mod settings;
mod steps;

pub use report::DemoReport;
pub use settings::DemoSettings;

use std::path::Path;

use tch::Device;

use super::Error;
use crate::data;
use crate::decode;
use crate::eval;
use crate::export;
use crate::fsio;
use crate::stop::{Stop, Stopped};
use crate::track::Console;
use crate::train;

use ledger::Ledger;

/// A demo to be run.
#[derive(Debug)]
pub struct DemoRequest<'a> {
    pub out: &'a Path,
    pub settings: &'a DemoSettings,
    pub device: Device,
}

/// Runs the demo, or what is left of it, and writes `report.json` and `report.html`.
///
/// # Errors
/// When a step fails or a stop is requested; finished steps are kept.
pub fn run_demo(request: &DemoRequest<'_>, console: &Console, stop: &Stop) -> Result<DemoReport, Error> {
    run_steps(request, console, stop).map_err(with_way_on)
}

/// A stop anywhere in the demo is mended alike: the ledger and the stages' checkpoints know where to go on.
fn with_way_on(error: Error) -> Error {
    match error {
        Error::Stopped(stopped)
        | Error::Data(data::Error::Stopped(stopped))
        | Error::Train(train::Error::Stopped(stopped))
        | Error::Export(export::Error::Stopped(stopped))
        | Error::Eval(eval::Error::Decode(decode::Error::Stopped(stopped))) => {
            let resume = "what is finished is kept; run the same command again to go on".to_owned();
            Error::Stopped(Stopped { resume: Some(resume), ..stopped })
        }
        other => other,
    }
}

fn run_steps(request: &DemoRequest<'_>, console: &Console, stop: &Stop) -> Result<DemoReport, Error> {
    let mut ledger = Ledger::open(request.out, request.settings)?;
    let stage = steps::Steps { request, console, stop };
    let release = ledger.timed("codes", || stage.codes())?;
    ledger.once("data", || stage.data(&release))?;
    ledger.once("base", || stage.base(&release))?;
    ledger.once("sft", || stage.train("sft"))?;
    ledger.once("orpo", || stage.train("orpo"))?;
    let mut answers = Vec::new();
    for (name, adapter) in [("base", None), ("sft", Some("sft")), ("orpo", Some("orpo"))] {
        ledger.once(&format!("eval {name}"), || stage.answer(name, adapter))?;
        answers.push((name, stage.stored_answers(name)?));
    }
    let merge = ledger.once("merge", || stage.merge())?;
    answers.push(("merged", stage.stored_answers("merged")?));
    let evaluation = report::evaluation(&answers, &release, request.settings)?;
    evaluation.write_html(&request.out.join("report.html"), &release)?;
    let report = report::make(&evaluation, &answers, merge, &ledger);
    fsio::write_json(&request.out.join("report.json"), &report)?;
    Ok(report)
}
