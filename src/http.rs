//! Requests to outside services: one blocking client with time limits, retries and the service's `Retry-After`.
//!
//! A request is tried again when the service could not be reached, took too long, cut its answer short or said that it
//! is busy (408, 425, 429, 5xx but 501 and 505). The wait doubles from try to try, with jitter, and is never shorter
//! than what the service asked for. A stop request ends the wait. URLs in errors carry no query and no credentials.
//!
//! The client is for plain threads: it must not be made, used or dropped inside an async task.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use reqwest::blocking::{Client as Inner, Response};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::diag::Diagnostic;
use crate::fsio;
use crate::stop::{Stop, Stopped};

/// How long a stop request may go unnoticed during a wait.
const POLL: Duration = Duration::from_millis(50);
/// What of a refusal's body is shown.
const EXCERPT_CHARS: usize = 300;

/// A request that got no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{url}` is not a URL of a web service")]
    BadUrl { url: String },
    #[error("a header or the body of the request to `{url}` cannot be sent: {message}")]
    BadRequest { url: String, message: String },
    #[error("cannot set up the HTTP client")]
    Setup(#[source] reqwest::Error),
    #[error("cannot reach `{url}`{}", tries(*n_attempts))]
    Unreachable { url: String, n_attempts: u32, source: reqwest::Error },
    #[error("`{url}` gave no answer within {seconds} s{}", tries(*n_attempts))]
    Timeout { url: String, seconds: u64, n_attempts: u32 },
    #[error("the answer of `{url}` ended too early{}", tries(*n_attempts))]
    Cut { url: String, n_attempts: u32, source: io::Error },
    #[error("`{url}` answered {status}{}{}", tries(*n_attempts), colon(excerpt))]
    Status { url: String, status: StatusCode, excerpt: String, retry_after: Option<Duration>, n_attempts: u32 },
    #[error("the answer of `{url}` is larger than {limit_bytes} bytes")]
    TooLarge { url: String, limit_bytes: u64 },
    #[error("the answer of `{url}` is not what was expected: {message}")]
    BadBody { url: String, message: String },
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    File(#[from] fsio::Error),
}

impl Error {
    /// The status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }

    fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Cut { .. } => true,
            Self::Status { status, .. } => is_busy(*status),
            _ => false,
        }
    }

    fn with_attempts(mut self, n: u32) -> Self {
        match &mut self {
            Self::Unreachable { n_attempts, .. }
            | Self::Timeout { n_attempts, .. }
            | Self::Cut { n_attempts, .. }
            | Self::Status { n_attempts, .. } => *n_attempts = n,
            _ => {}
        }
        self
    }
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::BadUrl { .. } => Some("a URL starts with http:// or https://".into()),
            Self::Unreachable { .. } => {
                Some("is the service running, and are the network and HTTPS_PROXY as they should be?".into())
            }
            Self::Timeout { .. } => Some("the service may be overloaded: ask for less at a time, or later".into()),
            Self::Status { status, .. } => match status.as_u16() {
                401 | 403 => Some("check the key or token and what it may do".into()),
                404 => Some("check the address".into()),
                429 => Some("the service limits requests: ask for less at a time, or later".into()),
                500.. => Some("the fault is the service's: try again later".into()),
                _ => None,
            },
            Self::File(error) => error.hint(),
            Self::Stopped(stopped) => stopped.hint(),
            _ => None,
        }
    }

    fn is_usage(&self) -> bool {
        matches!(self, Self::BadUrl { .. })
    }
}

fn tries(n_attempts: u32) -> String {
    if n_attempts > 1 { format!(" ({n_attempts} attempts)") } else { String::new() }
}

fn colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// How often and how fast a request is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Tries in all; 1 never tries again.
    pub n_attempts: u32,
    /// The wait before the second try; it doubles from there.
    pub first_delay: Duration,
    /// The longest wait between two tries.
    pub max_delay: Duration,
    /// A service that asks for a longer wait than this is given up.
    pub max_retry_after: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            n_attempts: 5,
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            max_retry_after: Duration::from_secs(300),
        }
    }
}

/// Limits of a client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Limit on the connection.
    pub connect_timeout: Duration,
    /// Limit on the wait for an answer, and on each wait for more of it.
    pub timeout: Duration,
    /// The largest answer held in memory. Downloads have no such limit.
    pub max_body_bytes: u64,
    pub retry: Retry,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(60),
            max_body_bytes: 64 << 20,
            retry: Retry::default(),
        }
    }
}

impl Settings {
    /// For a question that nothing depends on yet: asked once, and not waited for long.
    pub fn impatient() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(15),
            retry: Retry { n_attempts: 1, ..Retry::default() },
            ..Self::default()
        }
    }
}

/// A request. Built step by step; a fault in a part is reported when it is sent.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    url: String,
    headers: Vec<(String, Secret)>,
    body: Result<Vec<u8>, String>,
}

/// A header's value, which may be a key: never printed.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("...")
    }
}

impl Request {
    /// A request with any method.
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self { method, url: url.into(), headers: Vec::new(), body: Ok(Vec::new()) }
    }

    /// A GET request.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::GET, url)
    }

    /// A POST request.
    pub fn post(url: impl Into<String>) -> Self {
        Self::new(Method::POST, url)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), Secret(value.to_owned())));
        self
    }

    /// Adds `Authorization: Bearer TOKEN`.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// Sets the body to a value as JSON.
    #[must_use]
    pub fn json(mut self, value: &impl Serialize) -> Self {
        self.body = serde_json::to_vec(value).map_err(|error| error.to_string());
        self.header("content-type", "application/json")
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, content_type: &str, bytes: Vec<u8>) -> Self {
        self.body = Ok(bytes);
        self.header("content-type", content_type)
    }

    /// The URL as errors show it: without query, fragment and credentials.
    pub fn shown_url(&self) -> String {
        let Ok(mut url) = Url::parse(&self.url) else { return self.url.clone() };
        url.set_query(None);
        url.set_fragment(None);
        // These fail on URLs that cannot have credentials.
        let _ = url.set_password(None);
        let _ = url.set_username("");
        url.to_string()
    }

    fn header_map(&self) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        for (name, Secret(value)) in &self.headers {
            let bad = |message: String| Error::BadRequest { url: self.shown_url(), message };
            let key = HeaderName::try_from(name.as_str()).map_err(|_| bad(format!("`{name}` is no header")))?;
            let mut value = HeaderValue::try_from(value.as_str())
                .map_err(|_| bad(format!("the value of `{name}` has characters that a header cannot carry")))?;
            value.set_sensitive(true);
            headers.insert(key, value);
        }
        Ok(headers)
    }
}

/// An answer held in memory.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The request's URL, as errors show it.
    pub url: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body read as JSON.
    ///
    /// # Errors
    /// [`Error::BadBody`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::BadBody { url: self.url.clone(), message: error.to_string() })
    }

    /// The wait that the service asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.headers)
    }
}

/// A client, shared by threads. Cloning shares its connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Inner,
    settings: Settings,
    stop: Stop,
}

impl Client {
    /// A client whose waits end when `stop` is raised.
    ///
    /// # Errors
    /// [`Error::Setup`] when TLS cannot be set up.
    pub fn new(settings: Settings, stop: &Stop) -> Result<Self, Error> {
        let builder = Inner::builder()
            .user_agent(concat!("axismapper/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.timeout);
        let inner = builder.build().map_err(Error::Setup)?;
        Ok(Self { inner, settings, stop: stop.clone() })
    }

    /// Sends a request, again where that may help, and gives an answer of status 2xx.
    ///
    /// # Errors
    /// [`Error`]; the last one met when the tries are used up.
    pub fn send(&self, request: &Request) -> Result<Answer, Error> {
        self.retried(|| {
            let answer = self.send_once(request)?;
            if answer.status.is_success() {
                return Ok(answer);
            }
            let retry_after = answer.retry_after();
            Err(refusal(request, answer.status, retry_after, &answer.body))
        })
    }

    /// Sends a request once and gives the answer whatever its status.
    ///
    /// # Errors
    /// [`Error`] when there is no whole answer.
    pub fn send_once(&self, request: &Request) -> Result<Answer, Error> {
        let mut response = self.exchange(request)?;
        let limit_bytes = self.settings.max_body_bytes;
        let too_large = || Error::TooLarge { url: request.shown_url(), limit_bytes };
        if response.content_length().is_some_and(|len| len > limit_bytes) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        let read = response.by_ref().take(limit_bytes + 1).read_to_end(&mut body);
        read.map_err(|source| self.broken(request, source))?;
        if body.len() as u64 > limit_bytes {
            return Err(too_large());
        }
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { url: request.shown_url(), status, headers, body })
    }

    /// Downloads into `path`, which appears whole or not at all; gives the answer's headers. `on_bytes` is told the
    /// bytes that have arrived, anew from 0 in every try.
    ///
    /// # Errors
    /// [`Error`]; nothing is left behind.
    pub fn download(&self, request: &Request, path: &Path, mut on_bytes: impl FnMut(u64)) -> Result<HeaderMap, Error> {
        self.retried(|| {
            let mut response = self.exchange(request)?;
            if !response.status().is_success() {
                return Err(refused(request, &mut response));
            }
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut partial = tempfile::NamedTempFile::new_in(dir).map_err(fsio::Error::io("create a file in", dir))?;
            self.copy(request, &mut response, partial.as_file_mut(), path, &mut on_bytes)?;
            partial.as_file().sync_all().map_err(fsio::Error::io("write", path))?;
            partial.persist(path).map_err(|error| fsio::Error::io("write", path)(error.error))?;
            Ok(response.headers().clone())
        })
    }

    fn copy(
        &self,
        request: &Request,
        response: &mut Response,
        file: &mut File,
        path: &Path,
        on_bytes: &mut impl FnMut(u64),
    ) -> Result<(), Error> {
        let mut buffer = vec![0; 1 << 16];
        let mut n_bytes = 0;
        on_bytes(0);
        loop {
            self.stop.check(&format!("downloading `{}`", request.shown_url()))?;
            let n = response.read(&mut buffer).map_err(|source| self.broken(request, source))?;
            if n == 0 {
                return Ok(());
            }
            file.write_all(&buffer[..n]).map_err(fsio::Error::io("write", path))?;
            n_bytes += n as u64;
            on_bytes(n_bytes);
        }
    }

    fn exchange(&self, request: &Request) -> Result<Response, Error> {
        let shown = request.shown_url();
        let url = Url::parse(&request.url).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
        let url = url.ok_or_else(|| Error::BadUrl { url: shown.clone() })?;
        let body = request.body.clone().map_err(|message| Error::BadRequest { url: shown.clone(), message })?;
        let mut builder = self.inner.request(request.method.clone(), url).headers(request.header_map()?);
        if !body.is_empty() || request.method == Method::POST || request.method == Method::PUT {
            builder = builder.body(body);
        }
        builder.send().map_err(|error| {
            if error.is_timeout() && !error.is_connect() {
                return self.timed_out(request);
            }
            Error::Unreachable { url: shown, n_attempts: 1, source: error.without_url() }
        })
    }

    /// The error of a body that could not be read to its end.
    fn broken(&self, request: &Request, source: io::Error) -> Error {
        let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<reqwest::Error>());
        if source.kind() == io::ErrorKind::TimedOut || inner.is_some_and(reqwest::Error::is_timeout) {
            return self.timed_out(request);
        }
        Error::Cut { url: request.shown_url(), n_attempts: 1, source }
    }

    fn timed_out(&self, request: &Request) -> Error {
        Error::Timeout { url: request.shown_url(), seconds: self.settings.timeout.as_secs(), n_attempts: 1 }
    }

    /// Sends a request once and hands the body of a 2xx answer to `take` as it arrives, with the status, until `take`
    /// says no more is wanted.
    ///
    /// # Errors
    /// [`Error`]; what `take` was given stays given.
    pub fn stream_once(&self, request: &Request, mut take: impl FnMut(StatusCode, &[u8]) -> bool) -> Result<(), Error> {
        let mut response = self.exchange(request)?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(request, &mut response));
        }
        let mut buffer = vec![0; 1 << 16];
        loop {
            self.stop.check(&format!("downloading `{}`", request.shown_url()))?;
            let n = response.read(&mut buffer).map_err(|source| self.broken(request, source))?;
            if n == 0 || !take(status, &buffer[..n]) {
                return Ok(());
            }
        }
    }

    /// Calls `attempt` again where its error may pass, with the waits of this client's settings.
    ///
    /// # Errors
    /// The last error met.
    pub fn retried<T>(&self, mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        let retry = self.settings.retry;
        let mut delay = retry.first_delay;
        for n in 1.. {
            self.stop.check("talking to a service")?;
            let error = match attempt() {
                Ok(done) => return Ok(done),
                Err(error) => error.with_attempts(n),
            };
            let asked = match &error {
                Error::Status { retry_after, .. } => *retry_after,
                _ => None,
            };
            let is_too_long = asked.is_some_and(|asked| asked > retry.max_retry_after);
            if n >= retry.n_attempts || !error.is_transient() || is_too_long {
                return Err(error);
            }
            self.wait(asked.unwrap_or_default().max(jittered(delay)))?;
            delay = (delay * 2).min(retry.max_delay);
        }
        // The loop above ends by returning.
        Err(Stopped { doing: "talking to a service".into(), resume: None }.into())
    }

    fn wait(&self, mut left: Duration) -> Result<(), Error> {
        while !left.is_zero() {
            self.stop.check("waiting for a service")?;
            let part = left.min(POLL);
            std::thread::sleep(part);
            left -= part;
        }
        Ok(())
    }
}

/// The refusal that a response is.
fn refused(request: &Request, response: &mut Response) -> Error {
    let mut body = Vec::new();
    // The excerpt of a refusal is a courtesy: what could be read of it is shown.
    let _ = response.by_ref().take(1 << 16).read_to_end(&mut body);
    let retry_after = retry_after(response.headers());
    refusal(request, response.status(), retry_after, &body)
}

fn refusal(request: &Request, status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Error {
    Error::Status { url: request.shown_url(), status, excerpt: excerpt(body), retry_after, n_attempts: 1 }
}

fn is_busy(status: StatusCode) -> bool {
    match status.as_u16() {
        408 | 425 | 429 => true,
        501 | 505 => false,
        code => code >= 500,
    }
}

/// A service's own words: the message of a JSON error where there is one, else the beginning of the text.
fn excerpt(body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = json.as_ref().and_then(|json| {
        let error = json.get("error").unwrap_or(json);
        error.as_str().or_else(|| error.get("message")?.as_str())
    });
    let text = message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = words.char_indices().nth(EXCERPT_CHARS) {
        words.truncate(end);
        words += " ...";
    }
    words
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Between half of `delay` and all of it, so that clients that failed together do not come back together.
pub(crate) fn jittered(delay: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    delay.mul_f64(0.5 + 0.5 * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_secrets() {
        let request = Request::get("https://user:pass@example.org/a?key=1#b").bearer("hf_secret");
        assert_eq!(request.shown_url(), "https://example.org/a");
        assert!(!format!("{request:?}").contains("hf_secret"));
    }

    #[test]
    fn a_refusal_is_told_in_the_services_words() {
        assert_eq!(excerpt(br#"{"error":{"message":"no such\n model"}}"#), "no such model");
        assert_eq!(excerpt(br#"{"error":"model 'x' not found"}"#), "model 'x' not found");
        assert_eq!(excerpt(b"<html>\n oops"), "<html> oops");
        assert_eq!(excerpt("\u{e9}".repeat(400).as_bytes()), format!("{} ...", "\u{e9}".repeat(300)));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(value).unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("2"), Some(Duration::from_secs(2)));
        assert_eq!(of("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let later = of(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100))).unwrap();
        assert!((98..=100).contains(&later.as_secs()));
        assert_eq!(of("soon"), None);
    }
}
