//! AxisMapper turns plain words into billable ICD-10-CM codes and nothing else.
//!
//! The crate is the whole road from the official tabular list to a model that answers with codes.
//! Data flows one way, and each module uses only those above it in this table:
//!
//! | module | what it does | in → out |
//! | --- | --- | --- |
//! | [`diag`] | what an error must offer its reader: a message, a hint, an exit status | |
//! | [`stop`] | a request to stop (Ctrl-C), polled at safe points | |
//! | [`fsio`] | atomic writes, hashes, JSON Lines with line numbers | |
//! | [`http`] | requests to outside services, with limits and retries | |
//! | [`tensor`] | placement, named random generators, safetensors, memory views | files ↔ tensors |
//! | [`codes`] | the ICD-10-CM code set and its rules | tabular XML → billable codes |
//! | [`text`] | tokenizer, chat template, loss mask | messages → token ids |
//! | [`data`] | scenarios, validation, de-duplication, splits, preference pairs | codes → JSON Lines |
//! | [`quant`] | NF4 with double quantization | 16/32-bit weight ↔ 4-bit weight |
//! | [`adapter`] | LoRA and DoRA, PEFT's file layout | |
//! | [`model`] | Qwen2: blocks, KV cache, loading | token ids → hidden states, logits |
//! | [`decode`] | batched decoding, free or held to billable codes | prompts → answers |
//! | [`predict`] | codes for a user's texts, from a model here or a server | texts → codes with confidence |
//! | [`serve`] | OpenAI's interface over HTTP, and a page | requests → answers |
//! | [`config`] | stage files, resolved and checked | YAML → settings |
//! | [`track`] | progress, `metrics.jsonl`, reports to Weights & Biases | |
//! | [`train`] | SFT and ORPO by block-wise recompute | records → adapter |
//! | [`eval`] | metrics, intervals, comparisons, reports | answers → figures, a page |
//! | [`check`] | a device held to the CPU, and its speed | random weights → figures |
//! | [`export`] | the merged model, GGUF files | adapter + base → Hugging Face folder |
//! | [`hub`] | the Hugging Face Hub: fetch, push | names ↔ folders |
//! | [`pipeline`] | stages in order | |
//! | [`doctor`] | what can be known before a run is paid for | machine, services, stage → checks, estimate |
//! | [`cli`] | the `axismapper` program | |

pub mod adapter;
pub mod check;
pub mod cli;
pub mod codes;
pub mod config;
pub mod data;
pub mod decode;
pub mod diag;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod fsio;
pub mod http;
pub mod hub;
pub mod model;
pub mod pipeline;
pub mod predict;
pub mod quant;
pub mod serve;
pub mod stop;
pub mod tensor;
pub mod text;
pub mod track;
pub mod train;
