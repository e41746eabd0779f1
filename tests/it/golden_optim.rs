//! The 8-bit optimizer against bitsandbytes' AdamW8bit: parameters after every step, and the state that it ends with.

use axismapper::config::Optim;
use axismapper::model::Parameter;
use axismapper::tensor::{as_bytes, as_slice};
use axismapper::train::{AdamW, Gradients};
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::golden::{assert_close, figures, tensors};

#[derive(Deserialize)]
struct Settings {
    lr: f64,
    weight_decay: f64,
    n_steps: u64,
}

#[test]
fn eight_bit_adamw_steps_as_that_of_bitsandbytes() {
    let Settings { lr, weight_decay, n_steps } = figures("optim/adamw_8bit.json");
    let file = tensors("optim/adamw_8bit.safetensors");
    let names = ["long", "short"];
    let parameters: Vec<Parameter> = names
        .iter()
        .map(|name| Parameter {
            name: (*name).to_owned(),
            tensor: file.tensor(&format!("start.{name}")).unwrap().copy().set_requires_grad(true),
            block: None,
        })
        .collect();
    let mut gradients = Gradients::new(&parameters).unwrap();
    let mut optimizer = AdamW::new(&parameters, Optim::Adamw8bit, weight_decay).unwrap();
    for step in 1..=n_steps {
        gradients.tensors =
            names.iter().map(|name| Some(file.tensor(&format!("gradient.{step}.{name}")).unwrap().copy())).collect();
        optimizer.step(&parameters, &gradients, lr).unwrap();
        for parameter in &parameters {
            let name = format!("after.{step}.{}", parameter.name);
            // The same f32 operations; where the reference contracts a product and a sum, one rounding less.
            assert_close(&name, &parameter.tensor, &file.tensor(&name).unwrap(), 2e-7);
        }
    }

    let state = optimizer.named_state(&parameters);
    assert_eq!(state.len(), 6, "four tensors in 8 bits, two of the short parameter in 32");
    for (name, found) in &state {
        let expected = file.tensor(name).unwrap();
        if found.kind() == Kind::Uint8 {
            let (found, expected) = (as_bytes(found).unwrap(), flat(&expected));
            let n_other = found.iter().zip(as_bytes(&expected).unwrap()).filter(|(a, b)| a != b).count();
            assert_eq!(n_other, 0, "`{name}`: {n_other} of {} codes differ", found.len());
        } else {
            assert_close(name, &found.flatten(0, -1), &flat(&expected), 2e-7);
        }
    }
    let (codes, _) = (as_slice::<u8>(state[0].1).unwrap(), state[0].1);
    assert!(codes.iter().any(|&code| code < 100) && codes.iter().any(|&code| code > 150), "the codes say nothing");
}

fn flat(tensor: &Tensor) -> Tensor {
    tensor.flatten(0, -1).contiguous()
}

#[test]
fn small_parameters_and_the_plain_optimizer_keep_32_bits() {
    let parameter = |n: i64| Parameter {
        name: format!("p{n}"),
        tensor: Tensor::zeros([n], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true),
        block: None,
    };
    let parameters = [parameter(4095), parameter(4096)];
    let kinds = |optim| -> Vec<Kind> {
        let optimizer = AdamW::new(&parameters, optim, 0.0).unwrap();
        optimizer.named_state(&parameters).iter().map(|(_, tensor)| tensor.kind()).collect()
    };
    assert_eq!(kinds(Optim::AdamwTorch), [Kind::Float; 4]);
    for optim in [Optim::Adamw8bit, Optim::PagedAdamw8bit] {
        assert_eq!(kinds(optim), [Kind::Float, Kind::Float, Kind::Uint8, Kind::Uint8, Kind::Float, Kind::Float]);
    }
}
