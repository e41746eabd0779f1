//! NF4 and double quantization against bitsandbytes, bit for bit.

use axismapper::model::{self, Quantization, Weight, WriteRequest};
use axismapper::quant::{Absmax, DoubleQuantized, NF4_CODE, Nf4, dynamic_code};
use axismapper::stop::Stop;
use axismapper::tensor::as_slice;
use serde_json::Value;
use tch::{Kind, Tensor};

use super::golden::{PLACEMENT, assert_close, figures, fixture, packed, records, tensors};

fn double(weight: &Nf4) -> &DoubleQuantized {
    match &weight.absmax {
        Absmax::Double(double) => double,
        Absmax::Single(_) => panic!("the scales are not quantized"),
    }
}

/// Every part of a quantized weight and both of its expansions are those of bitsandbytes.
fn check(case: &str) {
    let file = tensors("nf4/cases.safetensors");
    let part = |name: &str| file.tensor(&format!("{case}.{name}")).unwrap();
    let weight = Nf4::quantize(&part("source")).unwrap();
    assert_eq!(weight.packed, part("packed").flatten(0, -1), "{case}: nibbles");
    let absmax = double(&weight);
    assert_eq!(absmax.nested_absmax, part("nested_absmax"), "{case}: nested absmax");
    assert_eq!(f64::from(absmax.offset), part("offset").double_value(&[]), "{case}: offset");
    assert_eq!(absmax.codes, part("absmax"), "{case}: absmax");
    for (kind, name) in [(Kind::Float, "float32"), (Kind::BFloat16, "bfloat16")] {
        let (found, expected): (Tensor, Tensor) = (weight.dequantize(kind).unwrap(), part(name));
        assert_eq!((found.size(), found.kind()), (expected.size(), kind), "{case}: {name}");
        assert!(found == expected, "{case}: {name} differs by {}", super::golden::difference(&found, &expected));
    }
}

#[test]
fn weights_quantize_and_expand_as_in_bitsandbytes() {
    let file = tensors("nf4/cases.safetensors");
    let cases: Vec<&str> = file.names().filter_map(|name| name.strip_suffix(".source")).collect();
    assert!(cases.len() >= 10, "{cases:?}");
    cases.into_iter().for_each(check);
}

#[test]
fn both_codes_are_those_of_bitsandbytes() {
    let file = tensors("nf4/cases.safetensors");
    assert_eq!(Tensor::from_slice(&NF4_CODE), file.tensor("quant_map").unwrap());
    assert_eq!(Tensor::from_slice(&dynamic_code()), file.tensor("nested_quant_map").unwrap());
}

#[test]
fn a_whole_model_quantizes_as_in_bitsandbytes() {
    let model = model::load(&fixture("tiny/tied"), PLACEMENT, Quantization::Nf4).unwrap();
    let file = tensors("nf4/quantized/model.safetensors");
    for (idx, block) in model.blocks.iter().enumerate() {
        for projection in &block.projections {
            let Weight::Nf4(weight) = &projection.weight else { panic!("a dense projection") };
            let name = format!("model.layers.{idx}.{}.weight", projection.name);
            assert_eq!(weight.packed, file.tensor(&name).unwrap().flatten(0, -1), "{name}");
            let absmax = double(weight);
            assert_eq!(absmax.codes, file.tensor(&format!("{name}.absmax")).unwrap(), "{name}");
            assert_eq!(absmax.nested_absmax, file.tensor(&format!("{name}.nested_absmax")).unwrap(), "{name}");
            let state = file.tensor(&format!("{name}.quant_state.bitsandbytes__nf4")).unwrap();
            let state: Value = serde_json::from_slice(as_slice(&state).unwrap()).unwrap();
            assert_eq!(state["nested_offset"].as_f64(), Some(f64::from(absmax.offset)), "{name}");
            assert_eq!(serde_json::from_value::<[i64; 2]>(state["shape"].clone()).unwrap(), weight.shape(), "{name}");
        }
    }
}

/// A folder in bitsandbytes' layout is taken as it is, and answers as its weights do when bitsandbytes expands them.
fn check_stored(name: &str, is_double: bool) {
    let mut model = model::load(&fixture(&format!("nf4/{name}")), PLACEMENT, Quantization::None).unwrap();
    for projection in model.blocks.iter().flat_map(|block| &block.projections) {
        let Weight::Nf4(weight) = &projection.weight else { panic!("{name}: {} is dense", projection.name) };
        assert_eq!((weight.dtype(), matches!(weight.absmax, Absmax::Double(_))), (Kind::BFloat16, is_double), "{name}");
    }
    let packed = packed(&model, &records("untied"));
    let hidden = model.hidden_states(&packed).unwrap();
    let expected = tensors("nf4/logits.safetensors").tensor(&format!("{name}.logits")).unwrap();
    // As in `golden_model`: f32 sums in another order.
    assert_close(name, &model.logits(&hidden).unwrap(), &expected, 2e-6);
}

#[test]
fn a_stored_checkpoint_answers_as_in_bitsandbytes() {
    check_stored("quantized_bf16", true);
}

#[test]
fn a_checkpoint_without_double_quantization_answers_as_in_bitsandbytes() {
    check_stored("quantized_single", false);
}

#[test]
fn a_written_checkpoint_has_the_bytes_of_one_saved_by_transformers() {
    for (base, stored) in [("tiny/tied", "nf4/quantized"), ("tiny/untied", "nf4/quantized_bf16")] {
        let out = tempfile::tempdir().unwrap();
        let request = WriteRequest { out: out.path(), dtype: None, nf4: true, max_shard_bytes: 1 << 30 };
        let mut n_done = 0;
        model::quantize_folder(&fixture(base), &request, &Stop::default(), |n| n_done += n).unwrap();
        assert_eq!(n_done, model::count_weights(&model::Config::load(&fixture(base)).unwrap()));
        let read = |path: &std::path::Path| std::fs::read(path).unwrap();
        let (found, expected) = (out.path().join("model.safetensors"), fixture(stored).join("model.safetensors"));
        assert!(read(&found) == read(&expected), "{base}");
        let found: Value = serde_json::from_slice(&read(&out.path().join("config.json"))).unwrap();
        let expected: Value = figures(&format!("{stored}/config.json"));
        for key in ["quantization_config", "hidden_size", "head_dim", "tie_word_embeddings", "eos_token_id"] {
            assert_eq!(found[key], expected[key], "{base}: {key}");
        }
    }
}
