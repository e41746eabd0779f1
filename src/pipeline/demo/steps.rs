//! The work of each step.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Tensor;

use super::DemoRequest;
use crate::adapter;
use crate::codes::Release;
use crate::config::Dtype;
use crate::data::build::{BuildSettings, Step, Tick, build};
use crate::data::corpus::{self, CorpusSettings};
use crate::data::generate::provider::Environment;
use crate::data::generate::template::TemplateSettings;
use crate::data::preference::PairSettings;
use crate::data::record::{ChatRecord, SYSTEM_PROMPT, Text};
use crate::data::split::SplitSettings;
use crate::eval::{Answer, answers, read_answers};
use crate::export::{Divergence, MergeRequest, Onto, divergence, merge};
use crate::fsio;
use crate::model::{self, Packed, Quantization, Qwen2, Segment};
use crate::pipeline::Error;
use crate::pipeline::confidence::confidences;
use crate::pipeline::records::load_questions;
use crate::pipeline::stage::{StageRequest, placement, run_stage};
use crate::stop::Stop;
use crate::text::{Tokenizer, train_bpe};
use crate::track::Console;

/// The official list that the demo parses, as published.
const TABULAR: &[u8] = include_bytes!("../../../assets/icd10cm/icd10cm-tabular-April-1-2026.xml.gz");
const TABULAR_NAME: &str = "icd10cm-tabular-April-1-2026.xml.gz";

/// Billable codes of that release.
const N_BILLABLE: usize = 74_719;

/// Prompts answered together.
const BATCH_SIZE: usize = 64;

/// Test prompts on which the logits of adapter model and merged model are compared.
const N_COMPARED: usize = 32;

/// What the merge step found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeCheck {
    /// Test answers of the reloaded merged model that equal the adapter model's.
    pub n_same: usize,
    pub n: usize,
    /// Logits of the merged model against the adapter model's: merged into the weights that were never quantized.
    pub original: Divergence,
    /// The same, merged into what NF4 made of them.
    pub quantized: Divergence,
}

/// The steps, with what they share.
pub struct Steps<'a> {
    pub request: &'a DemoRequest<'a>,
    pub console: &'a Console,
    pub stop: &'a Stop,
}

impl Steps<'_> {
    fn path(&self, below: &str) -> PathBuf {
        self.request.out.join(below)
    }

    /// Parses the official XML; the count must be exact.
    pub fn codes(&self) -> Result<Release, Error> {
        let path = self.path(TABULAR_NAME);
        fsio::write_atomic(&path, |out| out.write_all(TABULAR))?;
        let release = Release::load(&path)?;
        if release.len() != N_BILLABLE {
            return Err(Error::CodeCount { found: release.len(), expected: N_BILLABLE });
        }
        self.console.note(&format!("codes: {} billable codes read from {TABULAR_NAME}", release.len()));
        Ok(release)
    }

    /// Makes the data set: scenarios, validated, without duplicates, split, and paired.
    pub fn data(&self, release: &Release) -> Result<Value, Error> {
        let settings = self.request.settings;
        let build_settings = BuildSettings {
            generate: TemplateSettings {
                n_records: settings.n_scenarios,
                seed: settings.seed,
                ..TemplateSettings::demo()
            },
            split: SplitSettings { seed: settings.seed, ..SplitSettings::default() },
            pairs: PairSettings { seed: settings.seed, ..PairSettings::default() },
            ..BuildSettings::default()
        };
        let progress = self.console.bar("scenarios", settings.n_scenarios as u64);
        let count = |tick: Tick| progress.advance(if tick.step == Step::Generate { tick.n } else { 0 });
        let report = build(release, &build_settings, &Environment::default(), &self.path("data"), self.stop, count)?;
        progress.finish();
        self.console.note(&format!(
            "data: {} scenarios, {} invalid, {} duplicates; {} to train on, {} to validate, {} to test in {} wording families of their own",
            report.validate.n_read,
            report.validate.n_read - report.validate.n_kept,
            report.dedup.n_read - report.dedup.n_kept,
            report.split.n_train,
            report.split.n_val,
            report.split.n_test,
            report.split.held_out_families.len()
        ));
        Ok(json!({"n_train": report.split.n_train, "n_val": report.split.n_val, "n_test": report.split.n_test}))
    }

    /// Makes the base model: texts about codes, a tokenizer for them, random weights, full training.
    pub fn base(&self, release: &Release) -> Result<Value, Error> {
        let settings = self.request.settings;
        let families: BTreeSet<String> = fsio::read_jsonl::<ChatRecord>(&self.path("data/train.jsonl"))?
            .into_iter()
            .map(|record| record.family)
            .collect();
        let corpus_settings = CorpusSettings {
            codes: TemplateSettings::demo().codes,
            n_records: settings.n_texts,
            seed: settings.seed,
            families: families.into_iter().collect(),
            ..CorpusSettings::default()
        };
        let mut texts: Vec<Text> = Vec::with_capacity(settings.n_texts);
        corpus::generate::<Error>(release, &corpus_settings, |text| {
            texts.push(text);
            Ok(self.stop.check("writing texts about codes")?)
        })?;
        fsio::write_jsonl(&self.path("base/corpus.jsonl"), &texts)?;
        // The instruction of every record is worth tokens of its own.
        let instructions = std::iter::repeat_n(SYSTEM_PROMPT, texts.len() / 100);
        let tokenizer =
            train_bpe(texts.iter().map(|text| text.text.as_str()).chain(instructions), settings.vocab_size)?;
        let shape = settings.shape(tokenizer.vocab_size());
        let blank = model::init(shape, settings.seed, placement(Dtype::Float32, self.request.device))?;
        let init = self.path("base/init");
        model::save(&blank, &init, tokenizer.eos_id(), tokenizer.pad_id())?;
        tokenizer.save(&init)?;
        let n_parameters: usize = blank.dense_weights().iter().map(|(_, tensor)| tensor.numel()).sum();
        drop(blank);
        self.console.note(&format!("base: {:.1} M parameters, from random weights", n_parameters as f64 / 1e6));
        self.train("base")
    }

    /// Runs a training stage from its file, which is kept for `axismapper train`.
    pub fn train(&self, name: &str) -> Result<Value, Error> {
        let settings = self.request.settings;
        let text = settings.stage_file(name, self.request.out);
        fsio::write_atomic(&self.path(&format!("configs/{name}.yaml")), |out| out.write_all(text.as_bytes()))?;
        let config = settings.stage(name, self.request.out)?;
        let out = self.path(name);
        let base = Path::new(&config.model.name);
        let device = self.request.device;
        let request = StageRequest { config: &config, base, out: &out, device, resume: true, report: None };
        let outcome = run_stage(&request, self.console, self.stop)?.training;
        Ok(
            json!({"loss": outcome.loss, "eval_loss": outcome.eval_loss, "n_tokens": outcome.n_tokens, "seconds": outcome.seconds}),
        )
    }

    /// The model of a stage as it was trained: NF4, with the adapter of the named stage.
    fn load(&self, adapter_of: Option<&str>) -> Result<(Qwen2, Tokenizer), Error> {
        let dir = self.path("base/final");
        let tokenizer = Tokenizer::load(&dir)?;
        let mut model = model::load(&dir, placement(Dtype::Float32, self.request.device), Quantization::Nf4)?;
        if let Some(stage) = adapter_of {
            model::attach_adapter(&mut model, adapter::load(&self.path(stage).join("final"))?)?;
        }
        Ok((model, tokenizer))
    }

    /// Answers the test questions and stores the answers under `name`.
    pub fn answer(&self, name: &str, adapter_of: Option<&str>) -> Result<Value, Error> {
        let (model, tokenizer) = self.load(adapter_of)?;
        self.answer_with(name, model, &tokenizer)?;
        Ok(Value::Null)
    }

    fn answer_with(&self, name: &str, mut model: Qwen2, tokenizer: &Tokenizer) -> Result<Vec<Answer>, Error> {
        let questions = load_questions(&self.path("data/test.jsonl"))?;
        let prompts: Vec<_> = questions.iter().map(|question| question.prompt.clone()).collect();
        let progress = self.console.bar(&format!("testing {name}"), prompts.len() as u64);
        let outputs = answers(&mut model, tokenizer, &prompts, BATCH_SIZE, self.stop, |n| progress.advance(n))?;
        progress.finish();
        let confidences = confidences(&mut model, tokenizer, &prompts, &outputs, self.stop, |_| ())?;
        let answered: Vec<Answer> = questions
            .into_iter()
            .zip(outputs.into_iter().zip(confidences))
            .map(|(question, (output, confidence))| question.answered(output, confidence))
            .collect();
        fsio::write_jsonl(&self.answers_file(name), &answered)?;
        Ok(answered)
    }

    fn answers_file(&self, name: &str) -> PathBuf {
        self.path(&format!("eval/{name}/predictions.jsonl"))
    }

    /// The answers that a finished step stored.
    pub fn stored_answers(&self, name: &str) -> Result<Vec<Answer>, Error> {
        Ok(read_answers(&self.answers_file(name))?)
    }

    /// Merges the last adapter, reloads the merged folder, and compares it with the adapter model.
    pub fn merge(&self) -> Result<MergeCheck, Error> {
        let (mut model, tokenizer) = self.load(Some("orpo"))?;
        let out = self.path("merged");
        let request = MergeRequest {
            base: &self.path("base/final"),
            adapter: &self.path("orpo/final"),
            out: &out,
            onto: Onto::Original,
            dtype: tch::Kind::Float,
            max_shard_bytes: 5_000_000_000,
            end_token: tokenizer.eos_id(),
            pad_token: tokenizer.pad_id(),
        };
        merge(&request, self.stop, |_| ())?;

        let reference = self.logits(&mut model, &tokenizer)?;
        model::merge_in_place(&mut model)?;
        let quantized = divergence(&reference, &self.logits(&mut model, &tokenizer)?)?;
        drop(model);
        let tokenizer = Tokenizer::load(&out)?;
        let mut merged = model::load(&out, placement(Dtype::Float32, self.request.device), Quantization::None)?;
        let original = divergence(&reference, &self.logits(&mut merged, &tokenizer)?)?;
        let from_merged = self.answer_with("merged", merged, &tokenizer)?;
        let from_adapter = self.stored_answers("orpo")?;
        let n_same = from_merged.iter().zip(&from_adapter).filter(|(a, b)| a.output == b.output).count();
        let check = MergeCheck { n_same, n: from_merged.len(), original, quantized };
        fsio::write_json(&out.join("merge.json"), &check)?;
        Ok(check)
    }

    /// Logits after every token of the first test prompts, `[tokens, vocab]`.
    fn logits(&self, model: &mut Qwen2, tokenizer: &Tokenizer) -> Result<Tensor, Error> {
        let (mut ids, mut segments) = (Vec::new(), Vec::new());
        for question in load_questions(&self.path("data/test.jsonl"))?.iter().take(N_COMPARED) {
            let tokens = tokenizer.encode_prompt(&question.prompt)?;
            ids.extend(tokens.ids.iter().map(|&id| i64::from(id)));
            segments.push(Segment::plain(tokens.len()));
        }
        let packed = Packed::new(&ids, &segments, model.config.vocab_size, model.placement.device)?;
        let hidden = model.hidden_states(&packed)?;
        Ok(model.logits(&hidden)?)
    }
}
