//! Answers of a server with OpenAI's chat interface: vLLM and its kin, or `axismapper serve`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use serde_json::{Value, json};

use super::{Error, Prediction};
use crate::http::{self, Client, Request};
use crate::stop::Stop;
use crate::text::Message;

/// Refusals of one question, as too long; other refusals are of all.
const REFUSED: [u16; 3] = [400, 413, 422];

/// A server and how it is asked.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The API's address, as `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The model's name there; none for the first that the server lists.
    pub model: Option<String>,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// Requests under way at once.
    pub concurrency: usize,
    /// The most new tokens of an answer.
    pub max_tokens: usize,
    /// A regular expression that answers match, sent as vLLM takes it (`structured_outputs`).
    pub regex: Option<String>,
}

/// Asks every prompt. `done` gets the index of a prompt and its answer as soon as it is there. A prompt that the server
/// refuses has a [`Prediction::error`]; the confidence of an answer is the product of its tokens' probabilities, where
/// the server tells them.
///
/// # Errors
/// When the server cannot be reached or refuses everything, or a stop is requested. No further prompt is then asked;
/// answers that were on their way still reach `done`.
pub fn ask(
    endpoint: &Endpoint,
    client: &Client,
    prompts: &[Vec<Message>],
    stop: &Stop,
    mut done: impl FnMut(usize, Prediction),
) -> Result<(), Error> {
    if prompts.is_empty() {
        return Ok(());
    }
    let model = match &endpoint.model {
        Some(model) => model.clone(),
        None => first_model(endpoint, client)?,
    };
    let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (answers, arriving) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..endpoint.concurrency.clamp(1, prompts.len()) {
            let (answers, model, next, is_over) = (answers.clone(), &model, &next, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) && !stop.is_requested() {
                    let idx = next.fetch_add(1, Ordering::Relaxed);
                    let Some(prompt) = prompts.get(idx) else { break };
                    let answer = ask_one(endpoint, client, model, prompt);
                    is_over.fetch_or(answer.is_err(), Ordering::Relaxed);
                    // The receiver lives as long as this scope.
                    let _ = answers.send((idx, answer));
                }
            });
        }
        drop(answers);
        let mut first_error = None;
        for (idx, answer) in arriving {
            match answer {
                Ok(prediction) => done(idx, prediction),
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => Ok(stop.check("asking the server").map_err(http::Error::from)?),
        }
    })
}

fn ask_one(endpoint: &Endpoint, client: &Client, model: &str, prompt: &[Message]) -> Result<Prediction, Error> {
    let mut body = json!({
        "model": model,
        "messages": prompt,
        "temperature": 0,
        "max_tokens": endpoint.max_tokens,
        "logprobs": true,
    });
    if let Some(regex) = &endpoint.regex {
        body["structured_outputs"] = json!({"regex": regex});
    }
    let request = endpoint.request(Request::post(endpoint.address("chat/completions"))).json(&body);
    let answer = match client.send(&request) {
        Ok(answer) => answer,
        Err(error) if error.status().is_some_and(|status| REFUSED.contains(&status)) => {
            return Ok(Prediction { error: Some(error.to_string()), ..Prediction::default() });
        }
        Err(error) => return Err(error.into()),
    };
    let value: Value = answer.json()?;
    let choice = &value["choices"][0];
    let content = choice["message"]["content"].as_str();
    let content = content.ok_or_else(|| Error::NoAnswer { url: answer.url.clone() })?;
    let log_probs = choice["logprobs"]["content"].as_array();
    let total = log_probs.map(|tokens| tokens.iter().filter_map(|token| token["logprob"].as_f64()).sum::<f64>());
    Ok(Prediction { confidence: total.map(f64::exp), ..Prediction::of_text(content.trim().to_owned()) })
}

fn first_model(endpoint: &Endpoint, client: &Client) -> Result<String, Error> {
    let answer = client.send(&endpoint.request(Request::get(endpoint.address("models"))))?;
    let value: Value = answer.json()?;
    let name = value["data"][0]["id"].as_str();
    name.map(str::to_owned).ok_or(Error::NoAnswer { url: answer.url })
}

impl Endpoint {
    /// The address of a part of the API; `/v1` is added to a server's bare address.
    fn address(&self, part: &str) -> String {
        let base = self.url.trim_end_matches('/').trim_end_matches("/chat/completions");
        let is_bare = base.split_once("://").is_some_and(|(_, rest)| !rest.contains('/'));
        format!("{base}{}/{part}", if is_bare { "/v1" } else { "" })
    }

    fn request(&self, request: Request) -> Request {
        match &self.api_key {
            Some(key) => request.bearer(key),
            None => request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_the_api_is_understood_in_all_its_forms() {
        let address = |url: &str| {
            let endpoint =
                Endpoint { url: url.into(), model: None, api_key: None, concurrency: 1, max_tokens: 1, regex: None };
            endpoint.address("models")
        };
        for url in ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/chat/completions"] {
            assert_eq!(address(url), "http://h:8000/v1/models");
        }
        assert_eq!(address("https://gateway/llm/openai"), "https://gateway/llm/openai/models");
    }
}
