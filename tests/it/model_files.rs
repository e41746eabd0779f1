//! Model and adapter files that are wrong: each is refused with one error that names what is wrong, before much is read.

use std::path::Path;

use axismapper::adapter;
use axismapper::diag::Failure;
use axismapper::model::{self, Quantization, Weight};
use axismapper::tensor::{Checkpoint, save};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::golden::{PLACEMENT, fixture};

/// A copy of a tiny model's folder.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

/// Loading a folder fails, dense and quantized, with one line that holds all `parts`, and a hint.
fn check_refused(dir: &Path, parts: &[&str]) {
    for quantization in [Quantization::None, Quantization::Nf4] {
        let error = model::load(dir, PLACEMENT, quantization).unwrap_err();
        check_message(error.into(), parts);
    }
}

fn check_message(failure: Failure, parts: &[&str]) {
    let text = failure.render();
    parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` is not in: {text}"));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("error: ") && lines[1].starts_with("  hint: "), "{text}");
}

/// Rewrites the weights of a folder in one file.
fn rewrite(dir: &Path, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
    let read = Checkpoint::open_dir(dir).unwrap();
    let mut tensors: Vec<(String, Tensor)> =
        read.names().map(|name| (name.to_owned(), read.tensor(name).unwrap())).collect();
    change(&mut tensors);
    save(&dir.join("model.safetensors"), tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), None).unwrap();
}

fn find<'a>(tensors: &'a mut [(String, Tensor)], name: &str) -> &'a mut Tensor {
    &mut tensors.iter_mut().find(|(found, _)| found == name).unwrap().1
}

#[test]
fn weights_stored_in_f16_are_read_as_they_are() {
    let loaded = |kinds: &[Kind]| {
        let dir = copy("tiny/tied");
        rewrite(dir.path(), |tensors| {
            for (_, tensor) in tensors {
                *tensor = kinds.iter().fold(tensor.shallow_clone(), |tensor, &kind| tensor.to_kind(kind));
            }
        });
        [Quantization::None, Quantization::Nf4]
            .map(|quantization| model::load(dir.path(), PLACEMENT, quantization).unwrap())
    };
    let (found, expected) = (loaded(&[Kind::Half]), loaded(&[Kind::Half, Kind::Float]));
    for (found, expected) in found.iter().zip(&expected) {
        for ((name, found), (_, expected)) in found.dense_weights().iter().zip(expected.dense_weights()) {
            assert!(found.kind() == Kind::Float && *found == expected, "{name}");
        }
        for (found, expected) in found.blocks.iter().zip(&expected.blocks) {
            for (found, expected) in found.projections.iter().zip(&expected.projections) {
                if let (Weight::Nf4(found), Weight::Nf4(expected)) = (&found.weight, &expected.weight) {
                    assert_eq!(found.packed, expected.packed);
                }
            }
        }
    }
}

#[test]
fn a_torn_file_of_weights_is_refused_wherever_it_is_cut() {
    let dir = copy("tiny/tied");
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for keep in [0, 4, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        check_refused(dir.path(), &["model.safetensors", "not a complete safetensors file", "download"]);
    }
}

#[test]
fn a_header_is_not_believed() {
    let dir = copy("tiny/tied");
    let path = dir.path().join("model.safetensors");
    let with_header = |header: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 64]);
        std::fs::write(&path, bytes).unwrap();
    };
    for len in [u64::MAX, 1 << 40, 1 << 27] {
        std::fs::write(&path, [len.to_le_bytes().as_slice(), b"{}"].concat()).unwrap();
        check_refused(dir.path(), &["model.safetensors", "not a complete safetensors file"]);
    }
    // Sizes whose product overflows, data beyond the end of the file, a size that is not that of the data.
    for (shape, offsets) in
        [("[4294967296, 4294967296, 4294967296]", "[0, 64]"), ("[16]", "[0, 9000000000]"), ("[99]", "[0, 64]")]
    {
        with_header(&format!(
            r#"{{"model.embed_tokens.weight":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#
        ));
        check_refused(dir.path(), &["model.safetensors", "not a complete safetensors file"]);
    }
    with_header("not json");
    check_refused(dir.path(), &["model.safetensors", "not a complete safetensors file"]);
}

#[test]
fn weights_and_config_have_to_fit() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let dir = copy("tiny/tied");
    rewrite(dir.path(), |tensors| tensors.retain(|(found, _)| found != name));
    check_refused(dir.path(), &[name, "is not in", "two models"]);

    let dir = copy("tiny/tied");
    rewrite(dir.path(), |tensors| {
        let weight = find(tensors, name);
        *weight = weight.transpose(0, 1).contiguous();
    });
    check_refused(dir.path(), &[name, "[48, 76], expected [76, 48]"]);

    let dir = copy("tiny/untied");
    std::fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    check_refused(dir.path(), &["model-00002-of-00002.safetensors", "No such file"]);
}

#[test]
fn nan_and_infinity_are_found_in_every_kind_of_weight() {
    for name in ["model.layers.2.self_attn.k_proj.weight", "model.layers.0.self_attn.q_proj.bias", "model.norm.weight"]
    {
        for value in [f64::NAN, f64::NEG_INFINITY] {
            let dir = copy("tiny/tied");
            rewrite(dir.path(), |tensors| drop(find(tensors, name).view(-1).get(5).fill_(value)));
            check_refused(dir.path(), &[name, "NaN or infinite"]);
        }
    }
}

#[test]
fn a_config_is_refused_by_the_name_of_what_it_asks_for() {
    let refused = |change: &dyn Fn(&mut Value), parts: &[&str]| {
        let dir = copy("tiny/tied");
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
        check_refused(dir.path(), parts);
    };
    refused(&|config| config["architectures"] = json!(["LlamaForCausalLM"]), &["LlamaForCausalLM", "Qwen2.5"]);
    refused(
        &|config| config["quantization_config"] = json!({"quant_method": "gptq"}),
        &["`gptq`", "axismapper quantize"],
    );
    // As many layers as fit into no memory: the first one that is not there ends it.
    refused(&|config| config["num_hidden_layers"] = json!(4096), &["model.layers.3.self_attn.q_proj.weight"]);
    refused(
        &|config| config["vocab_size"] = json!(1 << 24),
        &["model.embed_tokens.weight", "[211, 48], expected [16777216, 48]"],
    );
}

#[test]
fn an_adapter_for_another_base_is_refused_and_leaves_the_model_as_it_was() {
    let settings = |name: &str| fixture(&format!("adapters/{name}"));
    let mut other = model::load(&fixture("tiny/untied"), PLACEMENT, Quantization::Nf4).unwrap();
    let error = model::attach_adapter(&mut other, adapter::load(&settings("dora")).unwrap()).unwrap_err();
    check_message(
        error.into(),
        &["model.layers.0.self_attn.q_proj.lora_A.weight", "[4, 48]", "[4, 72]", "another base"],
    );
    assert_eq!(other.adapter_names(), Vec::<&str>::new());

    let tied = || model::load(&fixture("tiny/tied"), PLACEMENT, Quantization::Nf4).unwrap();
    let refused = |change: &dyn Fn(&mut adapter::AdapterFile), parts: &[&str]| {
        let mut file = adapter::load(&settings("dora")).unwrap();
        change(&mut file);
        let mut model = tied();
        check_message(model::attach_adapter(&mut model, file).unwrap_err().into(), parts);
        assert!(model.adapter_names().is_empty() && model.parameters().is_empty());
    };
    let name = "model.layers.1.mlp.up_proj.lora_B.weight";
    refused(&|file| drop(file.tensors.remove(name)), &[name, "has no tensor"]);
    let far = "model.layers.9.mlp.up_proj.lora_B.weight";
    refused(&|file| drop(file.tensors.insert(far.into(), Tensor::ones([76, 4], (Kind::Float, Device::Cpu)))), &[far]);
    refused(&|file| drop(file.tensors[name].view(-1).get(3).fill_(f64::NAN)), &[name, "NaN or infinite"]);
}
