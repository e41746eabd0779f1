//! bitsandbytes' 4-bit file layout: a packed weight `X` and beside it `X.absmax`, `X.quant_map`, the nested scales and
//! `X.quant_state.bitsandbytes__nf4`, a JSON text in a tensor of bytes.

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::absmax::NESTED_BLOCK;
use super::nf4::BLOCK;
use super::{Absmax, DoubleQuantized, Error, NF4_CODE, Nf4, Result};
use crate::tensor::{Checkpoint, as_bytes, as_slice, dtype_name};

/// The suffix of the tensor that says how a weight was quantized.
pub const QUANT_STATE: &str = "quant_state.bitsandbytes__nf4";

/// The JSON text of a quantized weight.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<i64>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// Whether the weight of this name is stored in NF4.
pub fn is_stored(checkpoint: &Checkpoint, name: &str) -> bool {
    checkpoint.contains(&format!("{name}.{QUANT_STATE}"))
}

/// Reads the NF4 weight of this name, with or without double quantization. It expands to the type it was quantized from,
/// as in bitsandbytes.
///
/// # Errors
/// [`Error::Stored`] when a part is missing, malformed or of another size than `shape` says.
pub fn load(checkpoint: &Checkpoint, name: &str, shape: [i64; 2]) -> Result<Nf4> {
    let bad = |part: &str, message: String| Error::Stored { name: format!("{name}.{part}"), message };
    let bytes = |part: &str| -> Result<Tensor> {
        let tensor = checkpoint.tensor(part)?;
        // `bnb_4bit_quant_storage` lets the bytes be stored under another type.
        match tensor.f_kind()? {
            Kind::Uint8 => Ok(tensor.f_view(-1)?),
            _ => Ok(Tensor::f_from_slice(as_bytes(&tensor)?)?),
        }
    };
    let text = bytes(&format!("{name}.{QUANT_STATE}"))?;
    let state: State = serde_json::from_slice(as_slice(&text)?).map_err(|error| bad(QUANT_STATE, error.to_string()))?;
    if state.quant_type != "nf4" || state.blocksize != BLOCK {
        let found = format!("`{}` in blocks of {}", state.quant_type, state.blocksize);
        return Err(bad(QUANT_STATE, format!("{found}, expected `nf4` in blocks of {BLOCK}")));
    }
    if state.shape != shape {
        return Err(bad(QUANT_STATE, format!("a weight of shape {:?}, expected {shape:?}", state.shape)));
    }
    let dtype = match state.dtype.as_str() {
        "float32" => Kind::Float,
        "bfloat16" => Kind::BFloat16,
        "float16" => Kind::Half,
        other => return Err(bad(QUANT_STATE, format!("`dtype` is `{other}`, expected float32, bfloat16 or float16"))),
    };
    let floats = |part: &str| -> Result<Tensor> {
        Ok(checkpoint.tensor(&format!("{name}.{part}"))?.f_to_kind(Kind::Float)?.f_view(-1)?)
    };
    let quant_map = floats("quant_map")?;
    let is_near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
    if quant_map.numel() != 16 || !as_slice::<f32>(&quant_map)?.iter().zip(&NF4_CODE).all(is_near) {
        return Err(bad("quant_map", "not the NF4 code".into()));
    }
    let absmax = match (state.nested_blocksize, state.nested_offset) {
        (None, None) => Absmax::Single(floats("absmax")?),
        (Some(NESTED_BLOCK), Some(offset)) if (offset as f32).is_finite() => {
            let map = floats("nested_quant_map")?;
            let map = as_slice::<f32>(&map)?;
            let code: [f32; 256] =
                map.try_into().map_err(|_| bad("nested_quant_map", format!("{} values, expected 256", map.len())))?;
            if code.iter().any(|value| !value.is_finite()) {
                return Err(bad("nested_quant_map", "values that are not finite".into()));
            }
            Absmax::Double(DoubleQuantized {
                codes: bytes(&format!("{name}.absmax"))?,
                nested_absmax: floats("nested_absmax")?,
                offset: offset as f32,
                code: Box::new(code),
            })
        }
        _ => return Err(bad(QUANT_STATE, format!("nested scales other than in blocks of {NESTED_BLOCK}"))),
    };
    Nf4::from_parts(name, bytes(name)?, absmax, shape, dtype)
}

/// The tensors of a weight as bitsandbytes stores them, by name.
///
/// # Errors
/// When memory is short.
pub fn stored_tensors(name: &str, weight: &Nf4) -> Result<Vec<(String, Tensor)>> {
    let dtype = dtype_name(weight.dtype());
    let mut state = format!(
        r#"{{"quant_type": "nf4", "blocksize": {BLOCK}, "dtype": "{dtype}", "shape": [{}, {}]"#,
        weight.shape()[0],
        weight.shape()[1]
    );
    let mut tensors = vec![
        (name.to_owned(), weight.packed.f_view([-1, 1])?),
        (format!("{name}.quant_map"), Tensor::f_from_slice(&NF4_CODE)?),
    ];
    match &weight.absmax {
        Absmax::Single(absmax) => tensors.push((format!("{name}.absmax"), absmax.shallow_clone())),
        Absmax::Double(double) => {
            state += &format!(
                r#", "nested_blocksize": {NESTED_BLOCK}, "nested_dtype": "float32", "nested_offset": {}"#,
                python_float(f64::from(double.offset))
            );
            tensors.push((format!("{name}.absmax"), double.codes.shallow_clone()));
            tensors.push((format!("{name}.nested_absmax"), double.nested_absmax.shallow_clone()));
            tensors.push((format!("{name}.nested_quant_map"), Tensor::f_from_slice(&double.code[..])?));
        }
    }
    state.push('}');
    tensors.push((format!("{name}.{QUANT_STATE}"), Tensor::f_from_slice(state.as_bytes())?.f_to_device(Device::Cpu)?));
    Ok(tensors)
}

/// `quantization_config` of a `config.json`, as transformers 5.23 writes it.
pub fn quantization_config(compute_dtype: Kind) -> Value {
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": dtype_name(compute_dtype),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": true,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes"
    })
}

/// Fails when a `config.json` asks for a quantization that is not read here (GPTQ, AWQ, FP4, 8 bits, ...).
///
/// # Errors
/// [`Error::Scheme`], which names it.
pub fn refuse_other_schemes(config: &Value) -> Result<()> {
    let Some(scheme) = config.get("quantization_config").filter(|scheme| !scheme.is_null()) else { return Ok(()) };
    let text = |key: &str| scheme[key].as_str();
    let is = |key: &str| scheme[key].as_bool().unwrap_or(false);
    let method = text("quant_method").unwrap_or(if is("load_in_4bit") { "bitsandbytes" } else { "none" });
    let found = match text("bnb_4bit_quant_type") {
        _ if method != "bitsandbytes" => format!("`{method}`"),
        _ if is("load_in_8bit") => "bitsandbytes 8 bits".into(),
        Some(kind) if kind != "nf4" => format!("bitsandbytes `{kind}`"),
        _ => return Ok(()),
    };
    Err(Error::Scheme { found })
}

/// A number as Python's `repr` writes it: the shortest digits, an exponent of two digits below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        exponent if (-4..16).contains(&exponent) => format!("{value:?}"),
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tensor::{Rng, save};

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        // Python: [repr(x) for x in ...]
        for (value, text) in [
            (0.3774045705795288, "0.3774045705795288"),
            (0.0001, "0.0001"),
            (0.00001234, "1.234e-05"),
            (2.5e-12, "2.5e-12"),
            (0.0, "0.0"),
            (3.0, "3.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (-2e-5, "-2e-05"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    fn write(path: &Path, tensors: &[(String, Tensor)]) -> Checkpoint {
        save(path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), None).unwrap();
        Checkpoint::open_file(path).unwrap()
    }

    #[test]
    fn a_weight_comes_back_as_it_was_stored_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let source = Rng::named(4, "bnb").normal(&[70, 130], 0.05).unwrap();
        let weight = Nf4::quantize(&source).unwrap().with_dtype(Kind::BFloat16);
        let stored = stored_tensors("w", &weight).unwrap();
        let read = write(&path, &stored);
        assert!(is_stored(&read, "w") && !is_stored(&read, "v"));
        let back = load(&read, "w", [70, 130]).unwrap();
        assert_eq!(back.dequantize(Kind::Float).unwrap(), weight.dequantize(Kind::Float).unwrap());
        assert!(load(&read, "w", [130, 70]).unwrap_err().to_string().contains("[70, 130], expected [130, 70]"));

        // Scales in f32, as without double quantization: the same weight to the last bit when they are the same scales.
        let mut scales = vec![0f32; 143];
        weight.absmax.view().unwrap().fill(0, &mut scales);
        let single = Absmax::Single(Tensor::from_slice(&scales));
        let single = Nf4::from_parts("w", weight.packed.shallow_clone(), single, [70, 130], Kind::BFloat16).unwrap();
        let read = write(&path, &stored_tensors("w", &single).unwrap());
        assert_eq!(
            load(&read, "w", [70, 130]).unwrap().dequantize(Kind::Float).unwrap(),
            weight.dequantize(Kind::Float).unwrap()
        );

        let damage: [(&str, Tensor, &str); 6] = [
            ("w", Tensor::from_slice(&[1u8; 10]), "10 bytes, expected 4550"),
            ("w.absmax", Tensor::from_slice(&[1u8; 7]), "7 values, expected 143"),
            ("w.nested_absmax", Tensor::from_slice(&[f32::NAN]), "NaN"),
            ("w.quant_map", Tensor::from_slice(&[0f32; 16]), "not the NF4 code"),
            ("w.nested_quant_map", Tensor::from_slice(&[0f32; 16]), "16 values, expected 256"),
            ("w.quant_state.bitsandbytes__nf4", Tensor::from_slice(b"{\"quant_type\""), "EOF"),
        ];
        for (name, broken, message) in damage {
            let tensors: Vec<(String, Tensor)> = stored
                .iter()
                .map(|(n, t)| (n.clone(), if n == name { broken.shallow_clone() } else { t.shallow_clone() }))
                .collect();
            let error = load(&write(&path, &tensors), "w", [70, 130]).unwrap_err().to_string();
            assert!(error.contains(message), "{name}: {error}");
        }
    }

    #[test]
    fn other_schemes_are_refused_by_name() {
        let refused = |scheme: Value| refuse_other_schemes(&json!({"quantization_config": scheme}));
        assert!(refuse_other_schemes(&json!({})).is_ok());
        assert!(refused(quantization_config(Kind::BFloat16)).is_ok());
        assert!(refused(json!({"quant_method": "gptq"})).unwrap_err().to_string().contains("`gptq`"));
        let fp4 = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "fp4"});
        assert!(refused(fp4).unwrap_err().to_string().contains("`fp4`"));
        let int8 = json!({"quant_method": "bitsandbytes", "load_in_8bit": true, "bnb_4bit_quant_type": "nf4"});
        assert!(refused(int8).unwrap_err().to_string().contains("8 bits"));
    }
}
