//! The two protocols: Ollama's `/api/chat` with `format`, and OpenAI's `/v1/chat/completions` with `response_format`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::prompt::{messages, schema};
use crate::codes::{Code, Release};
use crate::data::generate::template::Assignment;
use crate::data::record::Scenario;
use crate::data::validate::{Reason, ValidateSettings, fault};
use crate::http::{Request, Retry};

/// Characters of a text that can still be a scenario.
const LEN_CHARS: std::ops::RangeInclusive<usize> = 12..=2000;

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Ollama's own.
    Ollama,
    /// OpenAI's, which many servers speak.
    Openai,
}

/// Where a server is.
#[derive(Clone)]
pub struct Endpoint {
    pub protocol: Protocol,
    /// Without a slash at its end: `http://127.0.0.1:11434`, `https://api.openai.com/v1`.
    pub base_url: String,
    /// Never printed.
    pub api_key: Option<String>,
    /// How patiently a busy server is asked again.
    pub retry: Retry,
}

/// What is asked in one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) model: &'a str,
    pub(super) temperature: f64,
    pub(super) seed: u32,
}

/// Why an answer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadAnswer {
    /// No message in it, or an empty one.
    Empty,
    /// The model would not write the text.
    Refused,
    /// It ended at a limit of tokens.
    CutShort,
    /// Not the JSON object that was asked for.
    NotJson,
    /// Written for other codes.
    WrongCodes,
    /// Too short or too long for a scenario.
    BadLength,
    /// The text names a code.
    LeakedCode,
}

/// Tokens of a request, as the server counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt: u64,
    pub(super) completion: u64,
}

impl Protocol {
    /// Its name as in `--provider`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ollama => "ollama",
            Self::Openai => "openai",
        }
    }
}

impl Endpoint {
    /// A request that any such server answers at once; it lists the models.
    pub(super) fn list_request(&self) -> Request {
        self.signed(Request::get(match self.protocol {
            Protocol::Ollama => format!("{}/api/tags", self.base_url),
            Protocol::Openai => format!("{}/models", self.base_url),
        }))
    }

    /// The models of the server's list.
    pub(super) fn listed_models(&self, list: &Value) -> Vec<String> {
        let (key, name) = match self.protocol {
            Protocol::Ollama => ("models", "name"),
            Protocol::Openai => ("data", "id"),
        };
        let names = list[key].as_array().into_iter().flatten();
        names.filter_map(|model| model[name].as_str().map(str::to_owned)).collect()
    }

    pub(super) fn chat_request(&self, release: &Release, assignment: &Assignment, ask: Ask<'_>) -> Request {
        let path = match self.protocol {
            Protocol::Ollama => "/api/chat",
            Protocol::Openai => "/chat/completions",
        };
        self.signed(Request::post(format!("{}{path}", self.base_url)).json(&self.chat_body(release, assignment, ask)))
    }

    pub(super) fn chat_body(&self, release: &Release, assignment: &Assignment, ask: Ask<'_>) -> Value {
        let Ask { model, temperature, seed } = ask;
        let (messages, schema) = (messages(release, assignment), schema(&assignment.codes));
        match self.protocol {
            Protocol::Ollama => json!({
                "model": model,
                "messages": messages,
                "format": schema,
                "stream": false,
                "options": {"temperature": temperature, "seed": seed},
            }),
            Protocol::Openai => json!({
                "model": model,
                "messages": messages,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "scenario", "strict": true, "schema": schema},
                },
                "temperature": temperature,
                "seed": seed,
            }),
        }
    }

    fn signed(&self, request: Request) -> Request {
        match &self.api_key {
            Some(key) => request.bearer(key),
            None => request,
        }
    }

    /// The message of an answer, and its tokens.
    pub(super) fn content(&self, answer: &Value) -> (Result<String, BadAnswer>, Usage) {
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        let (message, end, usage) = match self.protocol {
            Protocol::Ollama => (
                &answer["message"],
                &answer["done_reason"],
                Usage { prompt: count(&answer["prompt_eval_count"]), completion: count(&answer["eval_count"]) },
            ),
            Protocol::Openai => (
                &answer["choices"][0]["message"],
                &answer["choices"][0]["finish_reason"],
                Usage {
                    prompt: count(&answer["usage"]["prompt_tokens"]),
                    completion: count(&answer["usage"]["completion_tokens"]),
                },
            ),
        };
        let content = match (message["content"].as_str(), end.as_str()) {
            _ if message["refusal"].is_string() => Err(BadAnswer::Refused),
            (_, Some("content_filter")) => Err(BadAnswer::Refused),
            (_, Some("length")) => Err(BadAnswer::CutShort),
            (None | Some(""), _) => Err(BadAnswer::Empty),
            (Some(content), _) => Ok(content.to_owned()),
        };
        (content, usage)
    }
}

/// The text of a message that answers for exactly `codes`.
pub(super) fn scenario_in(content: &str, codes: &[Code], release: &Release) -> Result<String, BadAnswer> {
    #[derive(Deserialize)]
    struct Answer {
        scenario: String,
        codes: Vec<String>,
    }
    // Servers that ignore the schema like to put the object into a code block.
    let object = content.find('{').zip(content.rfind('}')).and_then(|(start, end)| content.get(start..=end));
    let answer: Answer = serde_json::from_str(object.unwrap_or(content)).map_err(|_| BadAnswer::NotJson)?;
    let mut found: Vec<Code> = answer.codes.iter().filter_map(|code| Code::parse_lenient(code).ok()).collect();
    let mut wanted = codes.to_vec();
    found.sort_unstable();
    wanted.sort_unstable();
    if found != wanted || answer.codes.len() != codes.len() {
        return Err(BadAnswer::WrongCodes);
    }
    let text = answer.scenario.split_whitespace().collect::<Vec<_>>().join(" ");
    if !LEN_CHARS.contains(&text.chars().count()) {
        return Err(BadAnswer::BadLength);
    }
    let scenario = Scenario::new(text, codes.to_vec());
    match fault(&scenario, release, &ValidateSettings::default()) {
        Some((Reason::LeakedCode, _)) => Err(BadAnswer::LeakedCode),
        Some(_) => Err(BadAnswer::WrongCodes),
        None => Ok(scenario.scenario),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_or_its_fault_is_named() {
        let release = Release::builtin().unwrap();
        let codes = [Code::parse("I10").unwrap(), Code::parse("J45.909").unwrap()];
        let check = |content: &str| scenario_in(content, &codes, &release);
        let good = r#"{"scenario": "High blood pressure\n and asthma.", "codes": ["J45.909", "i10"]}"#;
        assert_eq!(check(good).as_deref(), Ok("High blood pressure and asthma."));
        assert_eq!(check(&format!("```json\n{good}\n```")).as_deref(), Ok("High blood pressure and asthma."));
        assert_eq!(check("I would be glad to"), Err(BadAnswer::NotJson));
        assert_eq!(check(r#"{"text": "High blood pressure"}"#), Err(BadAnswer::NotJson));
        assert_eq!(check(&good.replace("i10", "E11.9")), Err(BadAnswer::WrongCodes));
        assert_eq!(check(&good.replace(", \"i10\"", "")), Err(BadAnswer::WrongCodes));
        assert_eq!(check(&good.replace("\"i10\"", "\"i10\", \"flu\"")), Err(BadAnswer::WrongCodes));
        assert_eq!(check(&good.replace("High", "J45.909 is high")), Err(BadAnswer::LeakedCode));
        assert_eq!(check(r#"{"scenario": "asthma", "codes": ["J45.909", "I10"]}"#), Err(BadAnswer::BadLength));
    }

    #[test]
    fn both_protocols_say_how_an_answer_ended() {
        let endpoint =
            |protocol| Endpoint { protocol, base_url: "http://h".into(), api_key: None, retry: Retry::default() };
        let openai = |message: Value, end: &str| {
            let answer =
                json!({"choices": [{"message": message, "finish_reason": end}], "usage": {"prompt_tokens": 7}});
            endpoint(Protocol::Openai).content(&answer)
        };
        assert_eq!(openai(json!({"content": "x"}), "stop"), (Ok("x".into()), Usage { prompt: 7, completion: 0 }));
        assert_eq!(openai(json!({"content": null, "refusal": "no"}), "stop").0, Err(BadAnswer::Refused));
        assert_eq!(openai(json!({"content": "{"}), "length").0, Err(BadAnswer::CutShort));
        let ollama = |answer: Value| endpoint(Protocol::Ollama).content(&answer);
        let answer = json!({"message": {"content": "x"}, "done_reason": "stop", "eval_count": 3});
        assert_eq!(ollama(answer), (Ok("x".into()), Usage { prompt: 0, completion: 3 }));
        assert_eq!(ollama(json!({"done": true})).0, Err(BadAnswer::Empty));
    }
}
