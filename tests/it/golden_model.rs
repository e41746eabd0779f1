//! Qwen2 against transformers: hidden states of every block, logits, log-probabilities.

use axismapper::model::{self, Pass, Quantization};
use tch::{Tensor, no_grad};

use super::golden::{PLACEMENT, assert_close, fixture, packed, records, tensors, token_logprobs};

/// f32 sums of up to 90 terms in another order, through three blocks; 6.3e-7 was seen.
const TOLERANCE: f64 = 2e-6;

/// Every stage of a model, all records packed in one row, is that of transformers, which ran them one by one.
fn check(name: &str) {
    let mut model = model::load(&fixture(&format!("tiny/{name}")), PLACEMENT, Quantization::None).unwrap();
    let file = tensors(&format!("tiny/{name}.expected.safetensors"));
    let close = |key: &str, found: &Tensor| {
        assert_close(&format!("{name}: {key}"), found, &file.tensor(key).unwrap(), TOLERANCE);
    };
    let records = records(name);
    let packed = packed(&model, &records);
    no_grad(|| {
        let rotation = model.rotation(&packed.positions).unwrap();
        let mut x = model.embed(&packed.ids).unwrap();
        close("hidden.embed", &x);
        for idx in 0..model.blocks.len() {
            let pass = Pass { rotation: &rotation, packed: &packed, dropout_seed: None, wanted: None };
            x = model.run_block(idx, &x, pass).unwrap();
            close(&format!("hidden.{idx}"), &x);
        }
        close("hidden.norm", &model.final_norm(&x).unwrap());
        let logits = model.logits(&x).unwrap();
        close("logits", &logits);
        close("token_logprobs", &token_logprobs(&logits, &records));
    });
}

#[test]
fn a_tied_f32_model_computes_as_in_transformers() {
    check("tied");
}

#[test]
fn an_untied_sharded_bf16_model_computes_as_in_transformers() {
    check("untied");
}
