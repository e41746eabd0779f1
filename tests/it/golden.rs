//! What the reference libraries computed (`tests/fixtures/README.md`), read for the `golden_*` tests, and how it is compared:
//! whole tensors, the largest difference over the largest expected value.

use std::path::{Path, PathBuf};

use axismapper::adapter;
use axismapper::model::{self, Packed, Parameter, Quantization, Qwen2, Segment};
use axismapper::tensor::{Checkpoint, Placement};
use axismapper::text::Tokens;
use axismapper::train::Gradients;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

/// The reference computes in f32 on the CPU.
pub const PLACEMENT: Placement = Placement { device: Device::Cpu, dtype: Kind::Float };

/// A record of `tiny/*.records.json`.
#[derive(Deserialize)]
pub struct Record {
    pub input_ids: Vec<u32>,
    /// 1 marks a target.
    pub loss_mask: Vec<u8>,
}

/// A path below `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// Makes a folder of a tiny model that the fixture tokenizer goes with: its embedding is widened to 710 rows, its positions
/// to 1024. Gives its tensors.
pub fn with_tokenizer(model: &str, dir: &Path) -> Vec<(String, Tensor)> {
    const N_ROWS: i64 = 710;
    std::fs::create_dir_all(dir).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("tokenizer").join(name), dir.join(name)).unwrap();
    }
    let mut config: serde_json::Value = figures(&format!("{model}/config.json"));
    config["vocab_size"] = N_ROWS.into();
    config["max_position_embeddings"] = 1024.into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let source = Checkpoint::open_dir(&fixture(model)).unwrap();
    let tensors: Vec<(String, Tensor)> = source
        .names()
        .map(|name| {
            let tensor = source.tensor(name).unwrap();
            let has_vocab = name.contains("embed_tokens") || name.starts_with("lm_head");
            let repeats = N_ROWS / tensor.size()[0] + 1;
            let wide = if has_vocab { tensor.repeat([repeats, 1]).narrow(0, 0, N_ROWS).contiguous() } else { tensor };
            (name.to_owned(), wide)
        })
        .collect();
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    axismapper::tensor::save(&dir.join("model.safetensors"), named, None).unwrap();
    tensors
}

/// The tensors of a fixture.
pub fn tensors(path: &str) -> Checkpoint {
    Checkpoint::open_file(&fixture(path)).unwrap()
}

/// The figures of a fixture.
pub fn figures<T: DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(path)).unwrap()).unwrap()
}

/// The records of a tiny model.
pub fn records(name: &str) -> Vec<Record> {
    #[derive(Deserialize)]
    struct File {
        records: Vec<Record>,
    }
    figures::<File>(&format!("tiny/{name}.records.json")).records
}

/// Records in a row, each on its own.
pub fn packed(model: &Qwen2, records: &[Record]) -> Packed {
    let ids: Vec<i64> = records.iter().flat_map(|record| &record.input_ids).map(|&id| i64::from(id)).collect();
    let segments: Vec<Segment> = records.iter().map(|record| Segment::plain(record.input_ids.len())).collect();
    Packed::new(&ids, &segments, model.config.vocab_size, Device::Cpu).unwrap()
}

/// The tied model in NF4 with an adapter of `FOLDER/{adapter_config.json,adapter_model.safetensors}`.
pub fn adapted(folder: &str) -> Qwen2 {
    adapted_in(PLACEMENT, folder)
}

/// As [`adapted`], computing in another type.
pub fn adapted_in(placement: Placement, folder: &str) -> Qwen2 {
    let mut model = model::load(&fixture("tiny/tied"), placement, Quantization::Nf4).unwrap();
    model::attach_adapter(&mut model, adapter::load(&fixture(folder)).unwrap()).unwrap();
    model
}

/// Log-probabilities of every token but a record's first, from the logits of records in a row `[tokens, vocab]`.
pub fn token_logprobs(logits: &Tensor, records: &[Record]) -> Tensor {
    let logprobs = logits.log_softmax(-1, Kind::Float);
    let mut start = 0;
    let mut parts = Vec::new();
    for record in records {
        let ids: Vec<i64> = record.input_ids.iter().map(|&id| i64::from(id)).collect();
        let next = Tensor::from_slice(&ids[1..]).unsqueeze(1);
        parts.push(logprobs.narrow(0, start, ids.len() as i64 - 1).gather(1, &next, false).squeeze_dim(1));
        start += ids.len() as i64;
    }
    Tensor::cat(&parts, 0)
}

/// The largest difference.
pub fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    (found.detach() - expected).abs().max().double_value(&[])
}

/// Fails when shapes differ, anything is not finite, or the largest difference exceeds `tolerance` times the largest
/// expected value.
pub fn assert_close(name: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "`{name}`");
    let scale = expected.abs().max().double_value(&[]);
    let difference = difference(found, expected);
    assert!(scale > 0.0, "`{name}` is expected to be zero everywhere: it tests nothing");
    assert!(
        difference <= tolerance * scale,
        "`{name}` is off by {difference:e}, {:e} of its scale",
        difference / scale
    );
}

/// Fails when a figure is off by more than `tolerance` times it (times 1, when it is smaller).
pub fn assert_near(name: &str, found: f64, expected: f64, tolerance: f64) {
    let difference = (found - expected).abs();
    assert!(difference <= tolerance * expected.abs().max(1.0), "`{name}` is {found}, expected {expected}");
}

/// Records as training takes them.
pub fn targets(records: &[Record]) -> Vec<Tokens> {
    let is_target = |record: &Record| record.loss_mask.iter().map(|&mask| mask == 1).collect();
    records.iter().map(|record| Tokens::new(record.input_ids.clone(), is_target(record))).collect()
}

/// Every parameter has a gradient, and it is the one of the file; the file holds no other. `key` gives a parameter's name
/// in the file.
pub fn assert_gradients(
    name: &str,
    parameters: &[Parameter],
    gradients: &Gradients,
    key: impl Fn(&str) -> String,
    file: &Checkpoint,
    tolerance: f64,
) {
    for (parameter, gradient) in parameters.iter().zip(&gradients.tensors) {
        let key = key(&parameter.name);
        let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{name}: `{key}` has no gradient"));
        assert_close(&format!("{name}: {key}"), gradient, &file.tensor(&key).unwrap(), tolerance);
    }
    let prefix = key("");
    assert_eq!(file.names().filter(|key| key.starts_with(&prefix)).count(), parameters.len(), "{name}");
}
