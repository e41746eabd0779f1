//! The GGUF container, version 3: typed key-value metadata, tensor descriptions, aligned tensor data. Little-endian.
//!
//! Layout as in the specification (`docs/gguf.md` of ggml). Sizes are known before data is written, so tensors stream
//! through one at a time.

use std::io::{self, Write};

/// Tensor data starts at multiples of this, the default of the specification.
const ALIGNMENT: u64 = 32;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

impl Value {
    /// The type's number in the specification; of an array, that of its elements.
    fn type_id(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::I32s(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) | Self::Texts(_) => 8,
        }
    }
}

const ARRAY: u32 = 9;

/// A tensor's place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// Row-major shape, `[rows, columns]` or `[n]`; the file holds it reversed.
    pub shape: Vec<u64>,
    /// ggml's number of the storage type.
    pub type_id: u32,
    pub size_bytes: u64,
}

/// Writes everything before the tensor data, padded to where the data starts.
///
/// # Errors
/// Those of `out`.
pub fn write_header(out: &mut dyn Write, metadata: &[(String, Value)], tensors: &[TensorInfo]) -> io::Result<()> {
    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        push_text(&mut header, key);
        push_value(&mut header, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        push_text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|size| header.extend(size.to_le_bytes()));
        header.extend(tensor.type_id.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += tensor.size_bytes.next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    out.write_all(&header)
}

/// Writes one tensor's bytes and the padding behind them.
///
/// # Errors
/// Those of `out`.
pub fn write_tensor(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    let padding = bytes.len().next_multiple_of(ALIGNMENT as usize) - bytes.len();
    out.write_all(&[0; ALIGNMENT as usize][..padding])
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn push_value(out: &mut Vec<u8>, value: &Value) {
    if let Value::Texts(_) | Value::I32s(_) = value {
        out.extend(ARRAY.to_le_bytes());
    }
    out.extend(value.type_id().to_le_bytes());
    match value {
        Value::U32(number) => out.extend(number.to_le_bytes()),
        Value::F32(number) => out.extend(number.to_le_bytes()),
        Value::Bool(truth) => out.push(u8::from(*truth)),
        Value::Text(text) => push_text(out, text),
        Value::Texts(texts) => {
            out.extend((texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|text| push_text(out, text));
        }
        Value::I32s(numbers) => {
            out.extend((numbers.len() as u64).to_le_bytes());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_laid_out_as_specified() {
        let metadata = [("a".to_owned(), Value::U32(7)), ("b".to_owned(), Value::Texts(vec!["x".into()]))];
        let info = |name: &str, size_bytes| TensorInfo { name: name.into(), shape: vec![2, 5], type_id: 0, size_bytes };
        let mut out = Vec::new();
        write_header(&mut out, &metadata, &[info("t", 40), info("u", 40)]).unwrap();
        write_tensor(&mut out, &[1; 40]).unwrap();
        let mut expected = b"GGUF\x03\0\0\0".to_vec();
        let u64s = |numbers: &[u64]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        expected.extend(u64s(&[2, 2, 1]));
        expected.extend(b"a\x04\0\0\0\x07\0\0\0");
        expected.extend(u64s(&[1]));
        expected.extend(b"b\x09\0\0\0\x08\0\0\0");
        expected.extend(u64s(&[1, 1]));
        expected.extend(b"x");
        for (name, offset) in [(b"t", 0), (b"u", 64)] {
            expected.extend(u64s(&[1]));
            expected.extend(name);
            expected.extend(2u32.to_le_bytes());
            expected.extend(u64s(&[5, 2]));
            expected.extend(0u32.to_le_bytes());
            expected.extend(u64s(&[offset]));
        }
        expected.resize(expected.len().next_multiple_of(32), 0);
        expected.extend([1; 40]);
        expected.extend([0; 24]);
        assert_eq!(out, expected);
    }
}
