//! What a merge is worth: the adapter model and the merged model side by side on a sample, and the hashes of all files.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tch::{Tensor, no_grad};

use super::{Divergence, Merged, Onto, Result, divergence};
use crate::adapter;
use crate::decode::{Limits, generate};
use crate::fsio;
use crate::model::{self, Packed, Quantization, Qwen2, Segment};
use crate::stop::Stop;
use crate::tensor::Placement;

/// A comparison to be made.
#[derive(Debug)]
pub struct CompareRequest<'a> {
    pub base: &'a Path,
    pub adapter: &'a Path,
    pub merged: &'a Path,
    /// How the base is held under the adapter: as in its training.
    pub quantization: Quantization,
    pub placement: Placement,
    /// Token ids of the sample's prompts.
    pub prompts: &'a [Vec<u32>],
    pub limits: Limits,
}

/// The merged model beside the adapter model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// How the base was held under the adapter.
    pub adapter_model: &'static str,
    /// Of the logits that decide each token of the adapter model's answers.
    pub logits: Divergence,
    pub answers: Answers,
}

/// Greedy answers beside each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answers {
    pub n: usize,
    /// Answers that are the same, token for token.
    pub n_same: usize,
    /// Tokens of the adapter model's answers, the ends included.
    pub n_tokens: usize,
}

/// What `merge.json` says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Certificate {
    /// The base as its user named it, and as the adapter names it.
    pub base_model: Option<String>,
    pub onto: Onto,
    pub dtype: &'static str,
    pub n_merged: usize,
    pub size_bytes: u64,
    /// Whether `--max-divergence` refused the merge; the weights are then not there.
    pub is_refused: bool,
    /// SHA-256 of each file of weights and config that went in, under `base/` and `adapter/`.
    pub inputs: BTreeMap<String, String>,
    /// SHA-256 of each file that came out.
    pub outputs: BTreeMap<String, String>,
    #[serde(flatten)]
    pub comparison: Option<Comparison>,
}

/// Runs the adapter model, then the merged one, over the sample. One of the two is in memory at a time. `done` is called
/// with the number of prompts answered.
///
/// # Errors
/// When a model cannot be loaded or run, or a stop is requested.
pub fn compare(request: &CompareRequest<'_>, stop: &Stop, mut done: impl FnMut(u64)) -> Result<Comparison> {
    let mut model = model::load(request.base, request.placement, request.quantization)?;
    model::attach_adapter(&mut model, adapter::load(request.adapter)?)?;
    let answers = generate(&mut model, request.prompts, &request.limits, stop, &mut done)?;
    let reference = answer_logits(&mut model, request.prompts, &answers)?;
    drop(model);
    let mut model = model::load(request.merged, request.placement, Quantization::None)?;
    let from_merged = generate(&mut model, request.prompts, &request.limits, stop, &mut done)?;
    let logits = divergence(&reference, &answer_logits(&mut model, request.prompts, &answers)?)?;
    let answers = Answers {
        n: answers.len(),
        n_same: answers.iter().zip(&from_merged).filter(|(a, b)| a == b).count(),
        n_tokens: answers.iter().map(|answer| answer.len() + 1).sum(),
    };
    let adapter_model = match request.quantization {
        Quantization::Nf4 => "nf4",
        Quantization::None => "none",
    };
    Ok(Comparison { adapter_model, logits, answers })
}

/// The logits that decide each token of the answers and the token after, `[tokens, vocab]`.
fn answer_logits(model: &mut Qwen2, prompts: &[Vec<u32>], answers: &[Vec<u32>]) -> Result<Tensor> {
    no_grad(|| {
        let (mut ids, mut segments, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (prompt, answer) in prompts.iter().zip(answers) {
            let start = ids.len() as i64 + prompt.len() as i64 - 1;
            rows.extend(start..=start + answer.len() as i64);
            ids.extend(prompt.iter().chain(answer).map(|&id| i64::from(id)));
            segments.push(Segment::plain(prompt.len() + answer.len()));
        }
        let device = model.placement.device;
        let packed = Packed::new(&ids, &segments, model.config.vocab_size, device)?;
        let hidden = model.hidden_states(&packed)?;
        let rows = Tensor::f_from_slice(&rows)?.f_to_device(device)?;
        Ok(model.logits(&hidden.f_index_select(0, &rows)?)?)
    })
}

/// SHA-256 of the files of a folder that decide what a model is, each under `prefix`.
///
/// # Errors
/// When a file cannot be read or a stop is requested.
pub fn file_hashes(dir: &Path, prefix: &str, stop: &Stop) -> Result<BTreeMap<String, String>> {
    let mut hashes = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(fsio::Error::io("read", dir))? {
        let path = entry.map_err(fsio::Error::io("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let counts = [".safetensors", ".json", ".jinja", ".txt"].iter().any(|ending| name.ends_with(ending));
        if counts && !name.starts_with('.') && name != "merge.json" && path.is_file() {
            stop.check("hashing the files of the merge")?;
            hashes.insert(format!("{prefix}{name}"), fsio::sha256_file(&path)?);
        }
    }
    Ok(hashes)
}

/// Removes the weights of a refused merge, so that nobody takes them for good.
///
/// # Errors
/// When a file cannot be removed.
pub fn discard(merged: &Merged, out: &Path) -> Result<()> {
    let index = out.join("model.safetensors.index.json");
    for path in merged.shards.iter().chain(index.exists().then_some(&index)) {
        std::fs::remove_file(path).map_err(fsio::Error::io("remove", path))?;
    }
    Ok(())
}
