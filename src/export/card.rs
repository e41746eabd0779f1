//! The model card: what a folder is, as `README.md` with the metadata that the Hub reads.
//!
//! Equal facts give an equal card (no date, no machine), so that pushing twice changes nothing.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::Result;
use crate::adapter;
use crate::fsio;
use crate::model::Config;

/// The line by which a card of this program is known. A README without it is its author's and is left alone.
pub const MARK: &str = "<!-- written by axismapper -->";

/// What a folder holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A PEFT adapter.
    Adapter { rank: i64, is_dora: bool },
    /// A whole model in Hugging Face layout.
    Model { dtype: String },
    /// GGUF files, by name.
    Gguf { files: Vec<String> },
}

/// What a card says.
#[derive(Clone, Debug)]
pub struct Card {
    /// `owner/name`.
    pub repo: String,
    pub contents: Contents,
    /// The Hub's name of the base model.
    pub base_model: Option<String>,
    /// The Hub's name of a licence.
    pub licence: Option<String>,
    /// Names of data sets on the Hub.
    pub datasets: Vec<String>,
    /// `report.json` of an evaluation.
    pub report: Option<Value>,
    /// The code release, as in `ICD-10-CM FY2026, April 1 2026`.
    pub release: String,
    /// The file beside it with the billable codes as a grammar: a regular expression, GBNF with GGUF files.
    pub grammar_file: String,
    /// `merge.json` of a merge.
    pub merge: Option<Value>,
}

/// Tells what a folder holds, and its base model where it names one.
///
/// # Errors
/// When a config in the folder cannot be read; `None` when it holds neither adapter, model nor GGUF file.
pub fn contents_of(dir: &Path) -> Result<Option<(Contents, Option<String>)>> {
    if dir.join("adapter_config.json").exists() {
        let config: Value = fsio::read_json(&dir.join("adapter_config.json"))?;
        let file = adapter::load(dir)?;
        let base = config["base_model_name_or_path"].as_str().map(str::to_owned);
        return Ok(Some((Contents::Adapter { rank: file.settings.r, is_dora: file.settings.use_dora }, base)));
    }
    if dir.join("config.json").exists() {
        Config::load(dir)?;
        let config: Value = fsio::read_json(&dir.join("config.json"))?;
        let dtype = config["dtype"].as_str().or(config["torch_dtype"].as_str()).unwrap_or("float32").to_owned();
        return Ok(Some((Contents::Model { dtype }, None)));
    }
    let entries = std::fs::read_dir(dir).map_err(fsio::Error::io("read", dir))?;
    let mut files: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    files.sort();
    Ok((!files.is_empty()).then_some((Contents::Gguf { files }, None)))
}

/// The licence of a Qwen2.5 model, by its name on the Hub.
pub fn licence_of(base_model: &str) -> Option<&'static str> {
    let name = base_model.strip_prefix("Qwen/Qwen2.5-")?;
    let size = name.split('-').find(|part| part.ends_with('B'))?;
    Some(match size {
        "3B" => "qwen-research",
        "72B" => "qwen",
        _ => "apache-2.0",
    })
}

/// The text of the card.
pub fn card(card: &Card) -> String {
    let mut text = format!("---\n{}---\n\n{MARK}\n\n", metadata(card));
    let name = card.repo.rsplit('/').next().unwrap_or(&card.repo);
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "# {name}\n\nPlain medical words to billable ICD-10-CM codes, and nothing else.\n\n```\nFell off my bike, the right \
         shin is broken, bone not through the skin.\n-> S82.201A, V18.4XXA\n```\n\n{}\n",
        what(card)
    );
    let _ = write!(text, "\n## Use\n\n{}", usage(card));
    text += &evaluation(card);
    let _ = write!(
        text,
        "\n## Intended use and limits\n\n\
         - For drafts that a trained coder reviews, and for research. **Not for clinical or billing use without that review.**\n\
         - A well-formed, billable code can still be the wrong one. Notes of real patients differ from training texts; measure on\n  \
         your own before you rely on it.\n\
         - Codes: {}. They change every October and April; a code may be billable in one release and not in the next.\n\
         - English only. It answers with codes, whatever it is asked.\n",
        card.release
    );
    text += "\nMade with AxisMapper.\n";
    text
}

fn metadata(card: &Card) -> String {
    let mut lines = Vec::new();
    let library = match card.contents {
        Contents::Adapter { .. } => "peft",
        Contents::Model { .. } => "transformers",
        Contents::Gguf { .. } => "gguf",
    };
    lines.push(format!("library_name: {library}"));
    lines.push("pipeline_tag: text-generation".into());
    lines.push("language:\n- en".into());
    match card.licence.as_deref() {
        // The Hub knows Qwen's own licences as `other` with a name.
        Some(name @ ("qwen" | "qwen-research")) => {
            lines.push(format!("license: other\nlicense_name: {name}"));
        }
        Some(name) => lines.push(format!("license: {}", quoted(name))),
        None => {}
    }
    if let Some(base) = &card.base_model {
        lines.push(format!("base_model: {}", quoted(base)));
        let relation = match card.contents {
            Contents::Adapter { .. } => "adapter",
            Contents::Model { .. } => "finetune",
            Contents::Gguf { .. } => "quantized",
        };
        lines.push(format!("base_model_relation: {relation}"));
    }
    let mut tags = vec!["icd-10-cm", "medical-coding", "qwen2"];
    match card.contents {
        Contents::Adapter { is_dora: true, .. } => tags.push("dora"),
        Contents::Adapter { is_dora: false, .. } => tags.push("lora"),
        Contents::Model { .. } => {}
        Contents::Gguf { .. } => tags.push("llama.cpp"),
    }
    lines.push(format!("tags:\n{}", list(tags.into_iter())));
    if !card.datasets.is_empty() {
        let names: Vec<String> = card.datasets.iter().map(|name| quoted(name)).collect();
        lines.push(format!("datasets:\n{}", list(names.iter().map(String::as_str))));
    }
    let metrics = metrics(card);
    if !metrics.is_empty() {
        let dataset = card.datasets.first().map_or("axismapper-test", String::as_str);
        let index = json!([{
            "name": card.repo.rsplit('/').next().unwrap_or(&card.repo),
            "results": [{
                "task": {"type": "text-generation", "name": "ICD-10-CM coding"},
                "dataset": {"type": dataset, "name": "test split", "split": "test"},
                "metrics": metrics.iter().map(|metric| {
                    let mut entry = json!({"type": metric.name, "name": metric.title(), "value": metric.value});
                    if let Some([low, high]) = metric.interval {
                        entry["args"] = json!({"confidence_interval_95": [low, high]});
                    }
                    entry
                }).collect::<Vec<_>>(),
            }],
        }]);
        // JSON is YAML.
        lines.push(format!("model-index: {index}"));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    items.map(|item| format!("- {item}")).collect::<Vec<_>>().join("\n")
}

/// A YAML scalar that is read as text whatever it holds.
fn quoted(text: &str) -> String {
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphabetic());
    if is_plain { text.to_owned() } else { Value::from(text).to_string() }
}

/// A figure of the report.
struct Metric {
    name: String,
    value: f64,
    interval: Option<[f64; 2]>,
}

impl Metric {
    fn title(&self) -> String {
        let text = self.name.replace('_', " ");
        let mut chars = text.chars();
        chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
    }
}

/// The overall figures of the report, in its order.
fn metrics(card: &Card) -> Vec<Metric> {
    let Some(overall) = card.report.as_ref().and_then(|report| report["overall"].as_object()) else {
        return Vec::new();
    };
    let interval = |name: &str| {
        let pair = overall.get("intervals")?.get(name)?;
        Some([pair[0].as_f64()?, pair[1].as_f64()?])
    };
    overall
        .iter()
        .filter(|(name, _)| *name != "n")
        .filter_map(|(name, value)| {
            Some(Metric { name: name.clone(), value: value.as_f64()?, interval: interval(name) })
        })
        .collect()
}

fn what(card: &Card) -> String {
    let base = card
        .base_model
        .as_ref()
        .map_or_else(|| "a Qwen2 model".to_owned(), |base| format!("[{base}](https://huggingface.co/{base})"));
    match &card.contents {
        Contents::Adapter { rank, is_dora } => {
            let kind = if *is_dora { "DoRA" } else { "LoRA" };
            format!("A {kind} adapter of rank {rank} on {base}, in PEFT's layout.")
        }
        Contents::Model { dtype } => format!("{base} with its adapter merged in, {dtype} weights."),
        Contents::Gguf { files } => format!("GGUF files for llama.cpp and Ollama ({}), of {base}.", files.join(", ")),
    }
}

fn usage(card: &Card) -> String {
    let repo = &card.repo;
    let base = card.base_model.as_deref().unwrap_or("BASE-MODEL");
    let own = |options: &str| {
        format!("```\naxismapper predict {options} \"Fell off my bike, the right shin is broken\"\n```\n")
    };
    let name = repo.rsplit('/').next().unwrap_or(repo);
    match &card.contents {
        Contents::Adapter { is_dora: true, .. } => format!(
            "{}\nvLLM does not serve DoRA adapters; merge this one first:\n\n```\naxismapper merge --model {base} --adapter \
             {repo} --out merged\nvllm serve merged --served-model-name {name}\n```\n{}",
            own(&format!("--model {base} --adapter {repo}")),
            constrained(card, name)
        ),
        Contents::Adapter { rank, .. } => format!(
            "{}\n```\nvllm serve {base} --enable-lora --max-lora-rank {} --lora-modules {name}={repo}\n```\n{}",
            own(&format!("--model {base} --adapter {repo}")),
            (*rank).max(8),
            constrained(card, name)
        ),
        Contents::Model { .. } => format!(
            "{}\n```\nvllm serve {repo} --served-model-name {name}\n```\n{}",
            own(&format!("--model {repo}")),
            constrained(card, name)
        ),
        Contents::Gguf { files } => format!(
            "```\nllama-server --hf-repo {repo} --hf-file {}\n```\n\n`--grammar-file {}` holds llama.cpp to billable codes. For Ollama, download the folder and run `ollama create {} \
             -f Modelfile` in it.\n",
            files.first().map_or("model.gguf", String::as_str),
            card.grammar_file,
            name.to_lowercase()
        ),
    }
}

/// The request that lets vLLM answer with billable codes only.
fn constrained(card: &Card, name: &str) -> String {
    let file = &card.grammar_file;
    format!(
        "\n`{file}` is a regular expression of the billable codes, joined by commas. With it vLLM can answer with nothing \
         else:\n\n```python\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=\"http://localhost:8000/v1\", api_key=\"none\")\n\
         answer = client.chat.completions.create(\n    model=\"{name}\",\n    temperature=0,\n    messages=[...],  # the system \
         prompt of the training records, then the text\n    extra_body={{\"structured_outputs\": {{\"regex\": \
         open(\"{file}\").read()}}}},\n)\n```\n"
    )
}

fn evaluation(card: &Card) -> String {
    let metrics = metrics(card);
    if metrics.is_empty() {
        return String::new();
    }
    let n = card.report.as_ref().and_then(|report| report["overall"]["n"].as_u64()).unwrap_or(0);
    let mut text = format!(
        "\n## Evaluation\n\n{n} test records; 95 % bootstrap intervals.\n\n| % | value | interval |\n| --- | --- | --- |\n"
    );
    for metric in &metrics {
        let interval =
            metric.interval.map_or_else(String::new, |[low, high]| format!("{:.1}-{:.1}", 100.0 * low, 100.0 * high));
        let _ = writeln!(text, "| {} | {:.1} | {interval} |", metric.title(), 100.0 * metric.value);
    }
    if let Some(answers) = card.merge.as_ref().map(|merge| &merge["answers"]).filter(|answers| answers.is_object()) {
        let _ = writeln!(
            text,
            "\nThe merged weights give the adapter model's answer to {} of {} sample prompts (`merge.json`).",
            answers["n_same"], answers["n"]
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(contents: Contents) -> Card {
        Card {
            repo: "acme/coder".into(),
            contents,
            base_model: Some("Qwen/Qwen2.5-3B-Instruct".into()),
            licence: licence_of("Qwen/Qwen2.5-3B-Instruct").map(str::to_owned),
            datasets: vec!["acme/cases: first".into()],
            report: Some(json!({"overall": {"n": 40, "exact_match": 0.75, "f1": 0.8,
                "intervals": {"exact_match": [0.7, 0.8], "f1": [0.77, 0.83]}}})),
            release: "ICD-10-CM FY2026".into(),
            grammar_file: "icd10cm.regex".into(),
            merge: None,
        }
    }

    /// The metadata, read as YAML.
    fn metadata_of(text: &str) -> Value {
        let yaml = text.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap().0;
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn the_metadata_is_yaml_that_the_hub_knows() {
        let text = card(&sample(Contents::Adapter { rank: 16, is_dora: false }));
        let metadata = metadata_of(&text);
        assert_eq!(metadata["library_name"], "peft");
        assert_eq!(metadata["base_model_relation"], "adapter");
        assert_eq!((&metadata["license"], &metadata["license_name"]), (&json!("other"), &json!("qwen-research")));
        assert_eq!(metadata["datasets"], json!(["acme/cases: first"]));
        let result = &metadata["model-index"][0]["results"][0];
        assert_eq!(result["metrics"][0]["type"], "exact_match");
        assert_eq!(result["metrics"][0]["value"], 0.75);
        assert_eq!(result["metrics"][0]["args"]["confidence_interval_95"], json!([0.7, 0.8]));
        assert!(text.contains("--max-lora-rank 16 --lora-modules coder=acme/coder"));
        assert!(text.contains("| Exact match | 75.0 | 70.0-80.0 |") && text.contains("icd10cm.regex"));
        assert!(text.contains("Not for clinical or billing use") && text.contains(MARK));
    }

    #[test]
    fn each_kind_says_how_it_is_run() {
        let dora = card(&sample(Contents::Adapter { rank: 8, is_dora: true }));
        assert!(dora.contains("merge this one first"));
        let merged = card(&sample(Contents::Model { dtype: "bfloat16".into() }));
        assert!(merged.contains("vllm serve acme/coder"));
        assert_eq!(metadata_of(&merged)["base_model_relation"], "finetune");
        let gguf = card(&sample(Contents::Gguf { files: vec!["m.q4_k_m.gguf".into()] }));
        assert!(gguf.contains("ollama create coder") && gguf.contains("--hf-file m.q4_k_m.gguf"));
        assert_eq!(metadata_of(&gguf)["base_model_relation"], "quantized");
        let bare = card(&Card {
            base_model: None,
            licence: None,
            datasets: vec![],
            report: None,
            ..sample(Contents::Model { dtype: "float32".into() })
        });
        assert!(metadata_of(&bare).get("model-index").is_none() && metadata_of(&bare).get("base_model").is_none());
    }

    #[test]
    fn licences_follow_the_size() {
        let of = |name: &str| licence_of(name);
        assert_eq!(of("Qwen/Qwen2.5-7B-Instruct"), Some("apache-2.0"));
        assert_eq!(of("Qwen/Qwen2.5-72B"), Some("qwen"));
        assert_eq!(of("acme/base"), None);
    }
}
