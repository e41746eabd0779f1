//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use serde_json::{Value, json};

/// A request that gets no answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// What is wrong, and what to do about it.
    pub message: String,
    /// The field of the request that is wrong.
    pub param: Option<&'static str>,
    code: Option<&'static str>,
    /// When to ask again.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: u16, message: impl Into<String>, code: Option<&'static str>) -> Self {
        Self { status, message: message.into(), param: None, code, retry_after: None }
    }

    /// A field of the request is wrong.
    pub fn bad(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::new(400, message, None) }
    }

    /// The request as a whole is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message, None)
    }

    /// The prompt and the answer do not fit the model.
    pub fn too_long(message: impl Into<String>) -> Self {
        Self { param: Some("messages"), ..Self::new(400, message, Some("context_length_exceeded")) }
    }

    /// No such model.
    pub fn no_model(name: &str, known: &[String]) -> Self {
        let message = format!("the model `{name}` does not exist; there are {}", known.join(", "));
        Self { param: Some("model"), ..Self::new(404, message, Some("model_not_found")) }
    }

    /// The key is missing or wrong.
    pub fn unauthorized() -> Self {
        Self::new(401, "an API key is needed: `Authorization: Bearer KEY`", Some("invalid_api_key"))
    }

    /// No such address.
    pub fn not_found(path: &str) -> Self {
        Self::new(404, format!("there is no `{path}` here"), Some("unknown_url"))
    }

    /// The address takes another method.
    pub fn wrong_method() -> Self {
        Self::new(405, "this address takes another method", None)
    }

    /// The body is not JSON by its header.
    pub fn not_json() -> Self {
        Self::new(415, "the body must be JSON, with `Content-Type: application/json`", None)
    }

    /// The body is too large.
    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(413, format!("the body has more than {limit_bytes} bytes"), None)
    }

    /// The queue is full.
    pub fn busy(retry_after: Duration) -> Self {
        let message = format!("the queue is full; try again in {} s", retry_after.as_secs().max(1));
        Self { retry_after: Some(retry_after), ..Self::new(429, message, Some("rate_limit_exceeded")) }
    }

    /// The server stops.
    pub fn stopping() -> Self {
        Self { retry_after: Some(Duration::from_secs(10)), ..Self::new(503, "the server is shutting down", None) }
    }

    /// The time is over.
    pub fn timed_out(limit: Duration) -> Self {
        Self::new(504, format!("no answer within {} s", limit.as_secs_f64()), Some("timeout"))
    }

    /// The fault is the server's.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, message, None)
    }

    /// The body of the answer.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}
