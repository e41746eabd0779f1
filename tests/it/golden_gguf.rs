//! GGUF: the packed bytes are llama.cpp's own, and a whole file holds the model under llama.cpp's names.

use std::collections::BTreeMap;

use axismapper::export::{GgufRequest, GgufType, Storage, export_gguf};
use axismapper::stop::Stop;
use axismapper::tensor::as_slice;
use axismapper::text::Tokenizer;
use half::f16;
use tch::Kind;

use crate::golden::{fixture, tensors, with_tokenizer};

#[test]
fn every_format_packs_to_the_bytes_of_llama_cpp() {
    let file = tensors("gguf/blocks.safetensors");
    let values = file.tensor("values").unwrap();
    let values = as_slice::<f32>(&values).unwrap();
    let formats = [
        ("q5_0", Storage::Q5_0),
        ("q5_1", Storage::Q5_1),
        ("q8_0", Storage::Q8_0),
        ("q4_k", Storage::Q4K),
        ("q5_k", Storage::Q5K),
        ("q6_k", Storage::Q6K),
    ];
    for (name, storage) in formats {
        let expected = file.tensor(name).unwrap();
        let expected = as_slice::<u8>(&expected).unwrap();
        let found = storage.pack(values);
        assert_eq!(found.len(), expected.len(), "{name}");
        let wrong: Vec<usize> = (0..found.len()).filter(|&idx| found[idx] != expected[idx]).collect();
        assert!(wrong.is_empty(), "{name}: {} of {} bytes differ, first {:?}", wrong.len(), found.len(), &wrong[..1]);
    }
}

/// The parts of a GGUF file, read back as the specification says.
struct Read {
    bytes: Vec<u8>,
    at: usize,
}

impl Read {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        self.at += N;
        self.bytes[self.at - N..self.at].try_into().unwrap()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        self.at += len;
        String::from_utf8(self.bytes[self.at - len..self.at].to_vec()).unwrap()
    }

    /// A value as text; of an array, its length and its first and last element.
    fn value(&mut self, kind: u32) -> String {
        match kind {
            4 => self.u32().to_string(),
            5 => i32::from_le_bytes(self.take()).to_string(),
            6 => f32::from_le_bytes(self.take()).to_string(),
            7 => (self.take::<1>()[0] == 1).to_string(),
            8 => self.text(),
            9 => {
                let (kind, n) = (self.u32(), self.u64());
                let elements: Vec<String> = (0..n).map(|_| self.value(kind)).collect();
                format!("{n}: {} ... {}", elements[0], elements[elements.len() - 1])
            }
            other => panic!("type {other}"),
        }
    }
}

#[test]
fn a_file_holds_the_whole_model_and_its_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::load(&fixture("tokenizer")).unwrap();
    let widened = with_tokenizer("tiny/untied", dir.path());
    let out = dir.path().join("model.gguf");
    let request = GgufRequest { model: dir.path(), out: &out, kind: GgufType::F16, name: "tiny" };
    let exported = export_gguf(&request, &tokenizer, &Stop::default(), |_| ()).unwrap();
    let mut file = Read { bytes: std::fs::read(&out).unwrap(), at: 0 };
    assert_eq!(exported.size_bytes, file.bytes.len() as u64);
    assert_eq!((&file.take::<4>(), file.u32()), (b"GGUF", 3));
    let (n_tensors, n_values) = (file.u64(), file.u64());
    let metadata: BTreeMap<String, String> = (0..n_values)
        .map(|_| {
            let (key, kind) = (file.text(), file.u32());
            (key, file.value(kind))
        })
        .collect();
    let expected = [
        ("general.architecture", "qwen2"),
        ("general.file_type", "1"),
        ("qwen2.attention.head_count", "3"),
        ("qwen2.attention.head_count_kv", "1"),
        ("tokenizer.ggml.pre", "qwen2"),
        ("tokenizer.ggml.tokens", "710: ! ... [PAD709]"),
        ("tokenizer.ggml.token_type", "710: 1 ... 5"),
        ("tokenizer.ggml.merges", "441: \u{120} o ... "),
        ("tokenizer.ggml.eos_token_id", "699"),
        ("tokenizer.ggml.add_bos_token", "false"),
    ];
    for (key, value) in expected {
        assert!(metadata[key].starts_with(value), "`{key}` is `{}`", metadata[key]);
    }
    assert_eq!(Some(metadata["tokenizer.chat_template"].as_str()), tokenizer.template_source());

    let mut infos = BTreeMap::new();
    for _ in 0..n_tensors {
        let (name, n_dims) = (file.text(), file.u32());
        let dims: Vec<u64> = (0..n_dims).map(|_| file.u64()).collect();
        infos.insert(name, (dims, file.u32(), file.u64()));
    }
    let data = file.at.next_multiple_of(32);
    assert_eq!(exported.n_tensors, widened.len());
    for (ours, theirs) in [
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.1.self_attn.v_proj.bias", "blk.1.attn_v.bias"),
        ("lm_head.weight", "output.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
    ] {
        let (dims, kind, offset) = &infos[theirs];
        let tensor = &widened.iter().find(|(name, _)| name == ours).unwrap().1;
        let reversed: Vec<u64> = tensor.size().iter().rev().map(|&size| size as u64).collect();
        assert_eq!(*dims, reversed, "{theirs}");
        let start = data + *offset as usize;
        let read: Vec<f32> = match kind {
            0 => file.bytes[start..]
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .take(tensor.numel())
                .collect(),
            1 => file.bytes[start..]
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32())
                .take(tensor.numel())
                .collect(),
            other => panic!("type {other}"),
        };
        let expected = tensor.to_kind(Kind::Float).contiguous();
        let expected: Vec<f32> = as_slice::<f32>(&expected)
            .unwrap()
            .iter()
            .map(|&v| if *kind == 0 { v } else { f16::from_f32(v).to_f32() })
            .collect();
        assert_eq!(read, expected, "{theirs}");
        assert_eq!(*kind == 0, tensor.dim() == 1, "{theirs}");
    }
}
