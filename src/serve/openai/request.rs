//! What a client asks: the body of a chat or text completion, checked. Fields not named here are ignored, as OpenAI's
//! clients send ever more of them; fields that would change an answer and cannot be honoured are refused.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ApiError;
use crate::data::SYSTEM_PROMPT;
use crate::decode::Sampling;
use crate::text::{Message, Role};

const MAX_TOP_LOGPROBS: u32 = 20;
const MAX_STOPS: usize = 16;

/// A checked request.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// None for the server's first model.
    pub model: Option<String>,
    pub prompt: Prompt,
    /// The end token counts; none for the server's limit.
    pub max_tokens: Option<usize>,
    pub sampling: Sampling,
    /// Texts that end the answer, none of them empty.
    pub stops: Vec<String>,
    pub stream: bool,
    /// Whether a stream ends with the numbers of tokens.
    pub include_usage: bool,
    pub log_probs: bool,
    pub n_top: usize,
    /// Whether the answer is held to codes; none for the server's way.
    pub constrain: Option<bool>,
}

/// What is to be answered or continued.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Chat(Vec<Message>),
    Text(String),
}

impl Prompt {
    /// The words that say what the question is about: the last turn of the user, or the text.
    pub fn question(&self) -> &str {
        match self {
            Self::Chat(messages) => {
                let of_user = messages.iter().rev().find(|message| message.role == Role::User);
                of_user.map_or("", |message| &message.content)
            }
            Self::Text(text) => text,
        }
    }
}

/// What both kinds of completions have.
#[derive(Debug, Deserialize)]
struct Shared {
    model: Option<String>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany<String>>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u64>,
    best_of: Option<u64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    constrain: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Debug, Deserialize)]
struct ChatBody {
    messages: Vec<Turn>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    tools: Option<Vec<Value>>,
    #[serde(flatten)]
    shared: Shared,
}

#[derive(Debug, Deserialize)]
struct Turn {
    role: String,
    content: Option<OneOrMany<Part>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Part {
    Text(String),
    Typed { r#type: String, text: Option<String> },
}

#[derive(Debug, Deserialize)]
struct TextBody {
    prompt: OneOrMany<String>,
    logprobs: Option<u32>,
    #[serde(default)]
    echo: Option<bool>,
    suffix: Option<String>,
    #[serde(flatten)]
    shared: Shared,
}

/// Reads the body of `/v1/chat/completions`. A chat without a system turn gets the one that models are trained with.
///
/// # Errors
/// [`ApiError`] with status 400.
pub fn parse_chat(body: &[u8]) -> Result<Ask, ApiError> {
    let ChatBody { messages, logprobs, top_logprobs, tools, shared } = read(body)?;
    if tools.is_some_and(|tools| !tools.is_empty()) {
        return Err(ApiError::bad("tools", "tools are not supported: answers are codes"));
    }
    let mut turns = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if !turns.iter().any(|turn| turn.role == Role::User) {
        return Err(ApiError::bad("messages", "expected at least one message of the role `user`"));
    }
    if turns.iter().all(|turn| turn.role != Role::System) {
        turns.insert(0, Message::system(SYSTEM_PROMPT));
    }
    let n_top = top_logprobs.unwrap_or(0);
    if n_top > 0 && logprobs != Some(true) {
        return Err(ApiError::bad("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    shared.ask(Prompt::Chat(turns), logprobs == Some(true), n_top, "top_logprobs")
}

/// Reads the body of `/v1/completions`.
///
/// # Errors
/// [`ApiError`] with status 400.
pub fn parse_text(body: &[u8]) -> Result<Ask, ApiError> {
    let TextBody { prompt, logprobs, echo, suffix, shared } = read(body)?;
    if echo == Some(true) {
        return Err(ApiError::bad("echo", "`echo` is not supported"));
    }
    if suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::bad("suffix", "`suffix` is not supported"));
    }
    let prompt = match prompt {
        OneOrMany::One(prompt) => prompt,
        OneOrMany::Many(mut prompts) if prompts.len() == 1 => prompts.remove(0),
        OneOrMany::Many(_) => return Err(ApiError::bad("prompt", "expected one prompt; send one request for each")),
    };
    if prompt.is_empty() {
        return Err(ApiError::bad("prompt", "the prompt is empty"));
    }
    shared.ask(Prompt::Text(prompt), logprobs.is_some(), logprobs.unwrap_or(0), "logprobs")
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("the body cannot be read: {error}")))
}

fn message(turn: Turn) -> Result<Message, ApiError> {
    let role = match turn.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => return Err(ApiError::bad("messages", format!("the role `{other}` is not known"))),
    };
    let parts = match turn.content {
        None => Vec::new(),
        Some(OneOrMany::One(part)) => vec![part],
        Some(OneOrMany::Many(parts)) => parts,
    };
    let mut content = String::new();
    for part in parts {
        match part {
            Part::Text(text) => content += &text,
            Part::Typed { r#type, text: Some(text) } if r#type == "text" => content += &text,
            Part::Typed { r#type, .. } => {
                return Err(ApiError::bad("messages", format!("content of the type `{type}` is not supported")));
            }
        }
    }
    Ok(Message::new(role, content))
}

impl Shared {
    fn ask(self, prompt: Prompt, log_probs: bool, n_top: u32, top_name: &'static str) -> Result<Ask, ApiError> {
        if n_top > MAX_TOP_LOGPROBS {
            return Err(ApiError::bad(top_name, format!("at most {MAX_TOP_LOGPROBS} alternatives are listed")));
        }
        if self.n.is_some_and(|n| n != 1) || self.best_of.is_some_and(|n| n != 1) {
            return Err(ApiError::bad("n", "only one answer is given to a request"));
        }
        for (param, penalty) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if penalty.is_some_and(|penalty| penalty != 0.0) {
                return Err(ApiError::bad(param, "penalties are not supported: they forbid the digits of codes"));
            }
        }
        // Greedy unless told otherwise: the likeliest codes are wanted, not a sample of them.
        let temperature = self.temperature.unwrap_or(0.0);
        if !(0.0..=2.0).contains(&temperature) {
            return Err(ApiError::bad("temperature", "expected a number from 0 to 2"));
        }
        let top_p = self.top_p.unwrap_or(1.0);
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(ApiError::bad("top_p", "expected a number above 0 and up to 1"));
        }
        let max_tokens = match self.max_completion_tokens.or(self.max_tokens) {
            None => None,
            Some(n) if n >= 1 => Some(n as usize),
            Some(_) => return Err(ApiError::bad("max_tokens", "expected 1 or more")),
        };
        let stops = match self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        if stops.len() > MAX_STOPS || stops.iter().any(String::is_empty) {
            return Err(ApiError::bad("stop", format!("expected at most {MAX_STOPS} texts, none of them empty")));
        }
        Ok(Ask {
            model: self.model.filter(|model| !model.is_empty()),
            prompt,
            max_tokens,
            sampling: Sampling { temperature, top_p, seed: self.seed.unwrap_or(0) as u64 },
            stops,
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.is_some_and(|options| options.include_usage),
            log_probs,
            n_top: n_top as usize,
            constrain: self.constrain,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_with_its_defaults() {
        let ask = parse_chat(br#"{"model": "m", "messages": [{"role": "user", "content": "it hurts"}], "user": "x"}"#);
        let ask = ask.unwrap();
        assert_eq!(ask.prompt, Prompt::Chat(crate::data::record::prompt("it hurts")));
        assert_eq!(ask.prompt.question(), "it hurts");
        assert_eq!((ask.sampling, ask.max_tokens, ask.stream), (Sampling::default(), None, false));
        let parts = r#"{"messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [
            {"type": "text", "text": "it "}, {"type": "text", "text": "hurts"}]}], "stop": [",", "x"], "seed": -1,
            "temperature": 0.5, "max_completion_tokens": 30, "stream": true, "stream_options": {"include_usage": true}}"#;
        let ask = parse_chat(parts.as_bytes()).unwrap();
        assert_eq!(ask.prompt, Prompt::Chat(vec![Message::system("be brief"), Message::user("it hurts")]));
        assert_eq!((ask.max_tokens, ask.stops.len(), ask.stream, ask.include_usage), (Some(30), 2, true, true));
        let ask = parse_text(br#"{"prompt": ["it hurts"], "logprobs": 3}"#).unwrap();
        assert_eq!((ask.prompt.question(), ask.log_probs, ask.n_top), ("it hurts", true, 3));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let with = |field: &str| {
            let body = format!(r#"{{"messages": [{{"role": "user", "content": "x"}}], {field}}}"#);
            parse_chat(body.as_bytes()).unwrap_err()
        };
        for (field, param) in [
            (r#""n": 2"#, "n"),
            (r#""temperature": 3"#, "temperature"),
            (r#""top_p": 0"#, "top_p"),
            (r#""max_tokens": 0"#, "max_tokens"),
            (r#""stop": [""]"#, "stop"),
            (r#""top_logprobs": 2"#, "top_logprobs"),
            (r#""logprobs": true, "top_logprobs": 21"#, "top_logprobs"),
            (r#""frequency_penalty": 1"#, "frequency_penalty"),
            (r#""tools": [{}]"#, "tools"),
        ] {
            let error = with(field);
            assert_eq!((error.status, error.param), (400, Some(param)), "{field}");
        }
        for body in [
            "{",
            r#"{"messages": []}"#,
            r#"{"messages": [{"role": "judge", "content": "x"}]}"#,
            r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#,
            r#"{"messages": "x"}"#,
        ] {
            assert_eq!(parse_chat(body.as_bytes()).unwrap_err().status, 400, "{body}");
        }
        assert_eq!(parse_text(br#"{"prompt": ""}"#).unwrap_err().param, Some("prompt"));
        assert_eq!(parse_text(br#"{"prompt": ["a", "b"]}"#).unwrap_err().param, Some("prompt"));
    }
}
