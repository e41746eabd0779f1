//! Greedy decoding against transformers' `generate`.

use std::collections::BTreeMap;

use axismapper::decode::{Limits, generate};
use axismapper::model::{self, Quantization, Qwen2};
use axismapper::stop::Stop;
use serde::Deserialize;
use serde_json::Value;

use super::golden::{self, PLACEMENT, fixture};

#[derive(Deserialize)]
struct Continuation {
    input_ids: Vec<u32>,
    end_id: Option<u32>,
    output_ids: Vec<u32>,
}

/// All prompts in one batch continue as each did alone in transformers, with and without an end token.
fn check(mut model: Qwen2, name: &str) {
    let file: BTreeMap<String, Value> = golden::figures("generate/greedy.json");
    let max_new_tokens = file["max_new_tokens"].as_u64().unwrap() as usize;
    for key in [name.to_owned(), format!("{name}.end")] {
        let expected: Vec<Continuation> = serde_json::from_value(file[&key].clone()).unwrap();
        let prompts: Vec<Vec<u32>> = expected.iter().map(|case| case.input_ids.clone()).collect();
        let end_tokens: Vec<u32> = expected[0].end_id.into_iter().collect();
        let limits = Limits { max_new_tokens, batch_size: prompts.len(), end_tokens };
        let answers = generate(&mut model, &prompts, &limits, &Stop::default(), |_| ()).unwrap();
        for (answer, case) in answers.iter().zip(&expected) {
            // transformers keeps the end token.
            let n_kept = case.output_ids.len() - usize::from(case.output_ids.last().copied() == case.end_id);
            assert_eq!(answer, &case.output_ids[..n_kept], "{key}: after {:?}", case.input_ids);
        }
    }
}

#[test]
fn a_model_continues_as_in_transformers() {
    check(model::load(&fixture("tiny/tied"), PLACEMENT, Quantization::None).unwrap(), "tied");
}

#[test]
fn an_adapted_nf4_model_continues_as_in_transformers() {
    check(golden::adapted("adapters/dora"), "dora");
}
