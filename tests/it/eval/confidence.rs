//! The confidence of an answer against its tokens taken one by one.

use axismapper::model::{self, Config, Packed, Qwen2, Segment};
use axismapper::pipeline::confidences;
use axismapper::stop::Stop;
use axismapper::tensor::{Placement, Rng};
use axismapper::text::{Message, Tokenizer};
use tch::{Device, Kind};

use crate::golden::fixture;

/// A small model with the weights of noise, so that some tokens are far likelier than others.
fn model(vocab_size: usize) -> Qwen2 {
    let config = Config {
        vocab_size: vocab_size as i64,
        hidden_size: 24,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        max_position_embeddings: 512,
    };
    let model = model::init(config, 5, Placement { device: Device::Cpu, dtype: Kind::Float }).unwrap();
    let mut rng = Rng::named(5, "noise");
    for (_, tensor) in model.dense_weights() {
        let noise = rng.normal(&tensor.size(), 0.4).unwrap();
        let _ = tch::no_grad(|| tensor.shallow_clone().f_add_(&noise).unwrap());
    }
    model
}

/// The sum of the log-probabilities of `answer` after `prompt`, a run of the model for every token.
fn slow(model: &mut Qwen2, prompt: &[u32], answer: &[u32]) -> f64 {
    let mut ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
    let mut sum = 0.0;
    for &id in answer {
        let packed = Packed::new(&ids, &[Segment::plain(ids.len())], model.config.vocab_size, Device::Cpu).unwrap();
        let hidden = model.hidden_states(&packed).unwrap();
        let logits = model.logits(&hidden.narrow(0, ids.len() as i64 - 1, 1)).unwrap();
        sum += logits.log_softmax(-1, Kind::Double).double_value(&[0, i64::from(id)]);
        ids.push(i64::from(id));
    }
    sum
}

#[test]
fn a_confidence_is_the_probability_of_the_whole_answer() {
    let tokenizer = Tokenizer::load(&fixture("tokenizer")).unwrap();
    let mut model = model(tokenizer.vocab_size());
    let asked = ["It hurts.", "I fell off a ladder and broke my left leg, and now I cannot walk.", "Sugar", ""];
    let outputs: Vec<String> = ["R52", "S82.202A, W11.XXXA", "", "no idea"].map(String::from).to_vec();
    let prompts: Vec<Vec<Message>> =
        asked.iter().map(|text| vec![Message::system("Codes only."), Message::user(*text)]).collect();
    let mut n_done = 0;
    let found = confidences(&mut model, &tokenizer, &prompts, &outputs, &Stop::default(), |n| n_done += n).unwrap();
    assert_eq!(n_done, 4);
    for ((prompt, output), found) in prompts.iter().zip(&outputs).zip(found) {
        let mut answer = tokenizer.encode(output).unwrap();
        answer.push(tokenizer.eos_id());
        let expected = slow(&mut model, &tokenizer.encode_prompt(prompt).unwrap().ids, &answer);
        let found = found.unwrap().ln();
        assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{output}: {found}, expected {expected}");
    }

    let stop = Stop::default();
    stop.request();
    assert!(confidences(&mut model, &tokenizer, &prompts, &outputs, &stop, |_| ()).is_err());
}
