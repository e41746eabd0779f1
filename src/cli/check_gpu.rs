//! `axismapper check-gpu`: whether a GPU computes what the CPU computes, and how fast it trains and decodes.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args as ClapArgs;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use serde_json::{Value, json};
use tch::Device;

use super::device::{self, Wanted};
use super::{write_json, write_line};
use crate::check::{self, Case, Finding, Limits, Shape, Speed};
use crate::diag::{Diagnostic, Failure};
use crate::fsio;
use crate::quant::cuda;
use crate::stop::Stop;
use crate::track::Console;

/// Check that a GPU computes what the CPU computes, and measure it on the Qwen2.5-7B shape
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// cuda or cuda:N; cpu compares the CPU with itself
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Write everything found here as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Compare only, measure nothing
    #[arg(long)]
    no_speed: bool,
    /// The model whose speed is measured; its weights are random
    #[arg(long, value_parser = one_of(Shape::ALL, Shape::name), default_value = Shape::Qwen7b.name())]
    shape: Shape,
    /// Records of a training step
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Tokens of a record
    #[arg(long, default_value_t = 512)]
    len: usize,
    /// Measure each case about so long
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// A Python with torch, transformers and PEFT, to measure the same there
    #[arg(long, value_name = "PYTHON")]
    peer: Option<PathBuf>,
    /// What that Python runs
    #[arg(long, value_name = "FILE", default_value = "scripts/check_gpu_peer.py", requires = "peer")]
    peer_script: PathBuf,
    /// Measure one case in this process and print it as JSON
    #[arg(long, value_parser = one_of(Case::ALL, Case::name), hide = true)]
    only: Option<Case>,
    /// Change a weight on the device first: the comparison must not pass
    #[arg(long, hide = true)]
    disturb: bool,
}

/// Reads one of some values by its name.
fn one_of<T, const N: usize>(all: [T; N], name: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.map(name))
        .try_map(move |given| all.into_iter().find(|value| name(*value) == given).ok_or("not one of the names"))
}

/// A check that came out badly.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{n} of {total} comparisons with the CPU failed: {names}")]
    Differs { n: usize, total: usize, names: String },
    #[error("measuring `{case}` failed: {message}")]
    Case { case: &'static str, message: String },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Differs { .. } => Some("train and answer on the CPU (--device cpu) until this is found".into()),
            Self::Case { .. } => Some("when memory is short, a smaller --batch or --len may do".into()),
        }
    }
}

/// One row of the table of speeds.
#[derive(Debug, Serialize)]
struct Row {
    ours: Speed,
    /// Of the peak of bf16 products, or for decoding of the memory's bandwidth.
    share: f64,
    peer: Option<Value>,
    peer_error: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When there is no GPU, it differs from the CPU, or a measurement fails.
pub fn run(args: &Args, console: &Console, stop: &Stop, out: &mut dyn Write) -> Result<(), Failure> {
    let wanted = match device::parse(&args.device)? {
        // What is to be checked must be there.
        Wanted::Auto => Wanted::Cuda(0),
        wanted => wanted,
    };
    let device = device::open(wanted, console)?;
    let kernels = cuda::of(device)?;
    let gpu = kernels.as_ref().and_then(|kernels| kernels.gpu());
    let limits = Limits { batch: args.batch.max(1), len: args.len.max(4), seconds: args.seconds };
    if let Some(only) = args.only {
        return write_json(out, &check::measure(args.shape, only, limits, device, gpu)?);
    }
    let card = match gpu {
        Some(gpu) => {
            let total = gpu.memory().map_err(crate::tensor::Error::from)?.1;
            json!({"name": gpu.name, "capability": gpu.capability, "memory_bytes": total})
        }
        None => json!({"name": "CPU"}),
    };
    write_line(out, &format!("device: {}", card["name"].as_str().unwrap_or_default()))?;
    let findings = check::compare(device, args.disturb)?;
    for finding in &findings {
        let verdict = if finding.is_fine() { "ok    " } else { "FAILED" };
        let Finding { name, error, limit } = finding;
        write_line(out, &format!("{verdict} {name}: {error:.1e}, at most {limit:.1e}"))?;
    }
    stop.check("checking the GPU")?;
    let mut report = json!({"device": card, "parity": findings});
    if !args.no_speed {
        let speeds = measure_all(args, limits, device, console, stop, out)?;
        if let (Value::Object(report), Value::Object(speeds)) = (&mut report, speeds) {
            report.extend(speeds);
        }
    }
    if let Some(path) = &args.out {
        fsio::write_json(path, &report)?;
    }
    let failed: Vec<&str> =
        findings.iter().filter(|finding| !finding.is_fine()).map(|finding| finding.name.as_str()).collect();
    match failed.as_slice() {
        [] => Ok(()),
        names => Err(Error::Differs { n: names.len(), total: findings.len(), names: names.join("; ") }.into()),
    }
}

/// Measures every case, each in a process of its own, so that the memory of one is not counted to another.
fn measure_all(
    args: &Args,
    limits: Limits,
    device: Device,
    console: &Console,
    stop: &Stop,
    out: &mut dyn Write,
) -> Result<Value, Failure> {
    let (peak, bandwidth) = (check::peak_flops(device)?, check::bandwidth(device)?);
    write_line(out, &format!("bf16 products: {:.1} TFLOP/s; copies: {:.0} GB/s", peak / 1e12, bandwidth / 1e9))?;
    write_line(out, "| case | tokens/s | share | peak GB | peer tokens/s | peer GB | ratio |")?;
    write_line(out, "| --- | --- | --- | --- | --- | --- | --- |")?;
    let program = std::env::current_exe().map_err(fsio::Error::io("find", "axismapper".as_ref()))?;
    let progress = console.bar("measuring", Case::ALL.len() as u64);
    let mut rows = Vec::new();
    for case in Case::ALL {
        stop.check("checking the GPU")?;
        let shape = args.shape.name();
        let sizes = [("--batch", limits.batch.to_string()), ("--len", limits.len.to_string())];
        let sizes: Vec<String> = sizes.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        let seconds = limits.seconds.to_string();
        let mut ours = Command::new(&program);
        ours.args(["--quiet", "check-gpu", "--device", &args.device, "--only", case.name()]);
        ours.args(["--shape", shape, "--seconds", &seconds]).args(&sizes);
        let failed = |message| Error::Case { case: case.name(), message };
        let ours: Speed =
            serde_json::from_value(json_of(&mut ours).map_err(failed)?).map_err(|error| failed(error.to_string()))?;
        let peer = args.peer.as_ref().map(|python| {
            let mut peer = Command::new(python);
            peer.arg(&args.peer_script).args(["--case", case.name(), "--shape", shape, "--seconds", &seconds]);
            json_of(peer.args(&sizes).args(["--device", &args.device]))
        });
        let share = match case {
            Case::Decode => ours.tokens_per_second * ours.bytes_a_token / bandwidth,
            _ => ours.tokens_per_second * ours.flops_a_token / peak,
        };
        let (peer, peer_error) = match peer {
            Some(Ok(peer)) => (Some(peer), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let row = Row { ours, share, peer, peer_error };
        write_line(out, &line_of(&row))?;
        if let Some(error) = &row.peer_error {
            console.note(&format!("the peer failed at {}: {error}", case.name()));
        }
        rows.push(row);
        progress.advance(1);
    }
    progress.finish();
    let (batch, len) = (limits.batch, limits.len);
    let shape = args.shape.name();
    Ok(json!({
        "shape": shape, "batch": batch, "len": len, "bf16_flops": peak, "bandwidth": bandwidth, "speed": rows,
    }))
}

fn line_of(row: &Row) -> String {
    let Row { ours, share, peer, .. } = row;
    let gigabytes = |bytes: Option<f64>| bytes.map_or("-".into(), |bytes| format!("{:.2}", bytes / 1e9));
    let of_peer = |key: &str| peer.as_ref().and_then(|peer| peer[key].as_f64());
    let theirs = of_peer("tokens_per_second");
    format!(
        "| {} | {:.0} | {:.0} % of {} | {} | {} | {} | {} |",
        ours.case.name(),
        ours.tokens_per_second,
        100.0 * share,
        if ours.case == Case::Decode { "bandwidth" } else { "bf16 peak" },
        gigabytes(ours.peak_bytes.map(|bytes| bytes as f64)),
        theirs.map_or("-".into(), |rate| format!("{rate:.0}")),
        gigabytes(of_peer("peak_bytes")),
        theirs.map_or("-".into(), |rate| format!("{:.2}", ours.tokens_per_second / rate)),
    )
}

/// Runs a program and reads the last line of what it prints.
fn json_of(command: &mut Command) -> Result<Value, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let last = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().lines().last().unwrap_or_default().to_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let error = stderr.lines().rfind(|line| line.starts_with("error: ")).map(str::to_owned);
        return Err(error.unwrap_or_else(|| last(&output.stderr)));
    }
    serde_json::from_str(&last(&output.stdout)).map_err(|error| error.to_string())
}
