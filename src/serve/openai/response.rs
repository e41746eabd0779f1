//! What a client gets: whole completions and the chunks of streamed ones, for chats and for texts.
//!
//! Beside OpenAI's fields an answer has `axismapper`: the codes with descriptions and probabilities, the confidence of
//! the whole answer, conflicts between its codes, and how `model: auto` was decided.

use serde_json::{Value, json};

/// Which of the two interfaces is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Chat,
    Text,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub kind: Kind,
    /// Unique in this server.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
}

/// A token as clients see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spelled {
    pub text: String,
    pub bytes: Vec<u8>,
    pub log_prob: f32,
    /// The likeliest tokens in its place, best first.
    pub top: Vec<(String, Vec<u8>, f32)>,
}

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
}

impl Usage {
    fn body(self) -> Value {
        let total = self.prompt_tokens + self.completion_tokens;
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        })
    }
}

impl Reply {
    /// A whole completion. `tokens` are listed when log-probabilities were asked for.
    pub fn whole(&self, text: &str, finish: &str, tokens: Option<&[Spelled]>, usage: Usage, extension: Value) -> Value {
        let log_probs = self.log_probs(tokens, 0);
        let choice = match self.kind {
            Kind::Chat => json!({
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": log_probs,
                "finish_reason": finish,
            }),
            Kind::Text => json!({"index": 0, "text": text, "logprobs": log_probs, "finish_reason": finish}),
        };
        let mut body = self.head("chat.completion");
        body["choices"] = json!([choice]);
        body["usage"] = usage.body();
        body["axismapper"] = extension;
        body
    }

    /// The first chunk of a streamed chat, which names the role; text completions have none.
    pub fn opening(&self) -> Option<Value> {
        (self.kind == Kind::Chat).then(|| self.chunk_of(json!({"role": "assistant", "content": ""}), "", Value::Null))
    }

    /// A chunk with new text, which starts `offset` characters into the answer.
    pub fn chunk(&self, text: &str, tokens: Option<&[Spelled]>, offset: usize) -> Value {
        self.chunk_of(json!({"content": text}), text, self.log_probs(tokens, offset))
    }

    /// The last chunk with a choice.
    pub fn closing(&self, finish: &str, extension: Value) -> Value {
        let mut body = self.chunk_of(json!({}), "", Value::Null);
        body["choices"][0]["finish_reason"] = finish.into();
        body["axismapper"] = extension;
        body
    }

    /// The chunk after it with the numbers of tokens.
    pub fn usage(&self, usage: Usage) -> Value {
        let mut body = self.head("chat.completion.chunk");
        body["choices"] = json!([]);
        body["usage"] = usage.body();
        body
    }

    fn chunk_of(&self, delta: Value, text: &str, log_probs: Value) -> Value {
        let mut body = self.head("chat.completion.chunk");
        body["choices"] = match self.kind {
            Kind::Chat => json!([{"index": 0, "delta": delta, "logprobs": log_probs, "finish_reason": null}]),
            Kind::Text => json!([{"index": 0, "text": text, "logprobs": log_probs, "finish_reason": null}]),
        };
        body
    }

    fn head(&self, object: &str) -> Value {
        let object = if self.kind == Kind::Text { "text_completion" } else { object };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model})
    }

    fn log_probs(&self, tokens: Option<&[Spelled]>, offset: usize) -> Value {
        let Some(tokens) = tokens else { return Value::Null };
        let one = |text: &str, bytes: &[u8], log_prob: f32| json!({"token": text, "logprob": log_prob, "bytes": bytes});
        if self.kind == Kind::Chat {
            let content = tokens.iter().map(|token| {
                let mut entry = one(&token.text, &token.bytes, token.log_prob);
                let top = token.top.iter().map(|(text, bytes, log_prob)| one(text, bytes, *log_prob));
                entry["top_logprobs"] = top.collect();
                entry
            });
            return json!({"content": content.collect::<Vec<Value>>(), "refusal": null});
        }
        let top = tokens.iter().map(|token| {
            let pairs = token.top.iter().map(|(text, _, log_prob)| (text.clone(), json!(log_prob)));
            Value::Object(pairs.collect())
        });
        let offsets = tokens.iter().scan(offset, |at, token| {
            let start = *at;
            *at += token.text.chars().count();
            Some(start)
        });
        json!({
            "tokens": tokens.iter().map(|token| token.text.as_str()).collect::<Vec<&str>>(),
            "token_logprobs": tokens.iter().map(|token| token.log_prob).collect::<Vec<f32>>(),
            "top_logprobs": top.collect::<Vec<Value>>(),
            "text_offset": offsets.collect::<Vec<usize>>(),
        })
    }
}

/// The body of `/v1/models`.
pub fn model_list(names: &[String], created: u64) -> Value {
    let entry = |name: &String| json!({"id": name, "object": "model", "created": created, "owned_by": "axismapper"});
    json!({"object": "list", "data": names.iter().map(entry).collect::<Vec<Value>>()})
}
