//! The server: addresses, limits, and the way of a request to the engine and back.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response, sse};
use axum::routing::{get, post};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio_stream::wrappers::ReceiverStream;

use super::Error;
use super::answer::{Assembly, extension, finish_reason, spelled};
use super::engine::{self, Engine, Job, Queue, Update, retry_after};
use super::metrics::Metrics;
use super::openai::{ApiError, Ask, Kind, Prompt, Reply, Spelled, Usage, model_list, parse_chat, parse_text};
use super::page::page;
use super::routing::{Decision, Routes, Voters};
use crate::codes::Release;
use crate::decode::{self, Answer, Constraint, Form};
use crate::model::Qwen2;
use crate::stop::Stop;
use crate::text::Tokenizer;

/// The model name that is routed by chapter.
const AUTO: &str = "auto";
/// How long a client may take to send its request.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a request to stop is looked for.
const POLL: Duration = Duration::from_millis(50);

/// Everything that a server is made of.
pub struct Setup {
    /// With all adapters on it.
    pub model: Qwen2,
    pub tokenizer: Tokenizer,
    pub release: Arc<Release>,
    pub constraint: Arc<Constraint>,
    /// Whether answers are held to codes where a request does not say.
    pub constrain: bool,
    /// The names that clients may ask for, each with the adapter it stands for; none is the base. The first answers
    /// requests without a name.
    pub models: Vec<(String, Option<String>)>,
    /// How `auto` is decided, and what for.
    pub routes: Routes,
    pub voters: Voters,
    pub limits: Limits,
    pub access: Access,
    pub log: Log,
}

/// What a server takes upon itself.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests decoded together.
    pub batch_size: usize,
    /// Requests that may wait beside them.
    pub max_waiting: usize,
    pub max_body_bytes: usize,
    /// New tokens of a free answer.
    pub max_new_tokens: usize,
    /// For a whole answer.
    pub timeout: Duration,
    /// For what is under way when the server is asked to stop.
    pub drain: Duration,
}

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Hashes of the keys; without any everybody may.
    keys: Vec<[u8; 32]>,
}

impl Access {
    /// Everybody who has one of these keys; everybody when there are none.
    pub fn keys<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self { keys: keys.into_iter().map(|key| Sha256::digest(key).into()).collect() }
    }

    /// Hashes are compared, so that the time taken tells nothing about a key.
    fn allows(&self, headers: &HeaderMap) -> bool {
        let key = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let hash = key.map(|key| -> [u8; 32] { Sha256::digest(key.trim()).into() });
        self.keys.is_empty() || hash.is_some_and(|hash| self.keys.contains(&hash))
    }
}

/// Where lines about requests go.
#[derive(Clone)]
pub struct Log {
    /// Takes a line.
    pub write: Arc<dyn Fn(&str) + Send + Sync>,
    /// Whether lines have what was asked and answered. It may be about patients.
    pub with_text: bool,
}

/// What requests share.
struct App {
    tokenizer: Tokenizer,
    /// The bytes of every token.
    spelling: Vec<Option<Vec<u8>>>,
    release: Arc<Release>,
    constraint: Arc<Constraint>,
    constrain: bool,
    names: Vec<String>,
    routes: Routes,
    voters: Voters,
    limits: Limits,
    access: Access,
    log: Log,
    queue: Queue,
    metrics: Arc<Metrics>,
    max_positions: usize,
    stop: Stop,
    created: u64,
    n_requests: AtomicU64,
}

/// A request that the engine has taken.
struct Admitted {
    reply: Reply,
    updates: UnboundedReceiver<Update>,
    ask: Ask,
    n_prompt: usize,
    decision: Option<Decision>,
    started: Instant,
}

/// Serves until `stop` is raised and what is under way is finished. `ready` gets the address once clients can connect.
///
/// # Errors
/// [`Error`] when the address cannot be had, or requests are left when the time to finish them is over.
pub fn serve(setup: Setup, listener: TcpListener, stop: &Stop, ready: impl FnOnce(SocketAddr)) -> Result<(), Error> {
    listener.set_nonblocking(true).map_err(Error::Start)?;
    let address = listener.local_addr().map_err(Error::Start)?;
    let (queue, jobs) = Queue::new(setup.limits.batch_size + setup.limits.max_waiting);
    let metrics = Arc::new(Metrics::new());
    let (names, adapters): (Vec<String>, Vec<Option<String>>) = setup.models.into_iter().unzip();
    let app = Arc::new(App {
        spelling: setup.tokenizer.token_bytes(),
        max_positions: setup.model.config.max_position_embeddings as usize,
        names,
        tokenizer: setup.tokenizer,
        release: setup.release,
        constraint: Arc::clone(&setup.constraint),
        constrain: setup.constrain,
        routes: setup.routes,
        voters: setup.voters,
        limits: setup.limits,
        access: setup.access,
        log: setup.log,
        queue: queue.clone(),
        metrics: Arc::clone(&metrics),
        stop: stop.clone(),
        created: unix_seconds(),
        n_requests: AtomicU64::new(0),
    });
    let engine = Engine {
        model: setup.model,
        adapters,
        batch_size: setup.limits.batch_size,
        end_tokens: app.tokenizer.stop_ids(),
        constraint: setup.constraint,
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(Error::Start)?;
    let thread = std::thread::Builder::new().name("engine".into());
    let thread = thread.spawn(move || engine::run(engine, &jobs, &metrics)).map_err(Error::Start)?;
    let drain = setup.limits.drain;
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(Error::Start)?;
        ready(address);
        let serving = axum::serve(listener, router(app)).with_graceful_shutdown(stopped(stop.clone()));
        tokio::select! {
            served = serving.into_future() => served.map_err(|source| Error::Serve { address, source }),
            () = async { stopped(stop.clone()).await; tokio::time::sleep(drain).await; } => {
                Err(Error::NotDrained { n_left: queue.n_taken(), seconds: drain.as_secs() })
            }
        }
    });
    // Drops every task, and with the tasks the last ways to the engine, whose thread then ends.
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(queue);
    served.and_then(|()| thread.join().map_err(|_| Error::EngineGone))
}

async fn stopped(stop: Stop) {
    while !stop.is_requested() {
        tokio::time::sleep(POLL).await;
    }
}

fn router(app: Arc<App>) -> Router {
    let with_key = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(text_completions))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&app), require_key));
    Router::new()
        .merge(with_key)
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(async |State(app): State<Arc<App>>, request: Request| {
            app.refuse(&ApiError::not_found(request.uri().path()))
        })
        .method_not_allowed_fallback(async |State(app): State<Arc<App>>| app.refuse(&ApiError::wrong_method()))
        .with_state(app)
}

async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.access.allows(request.headers()) { next.run(request).await } else { app.refuse(&ApiError::unauthorized()) }
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let status = if app.stop.is_requested() { "stopping" } else { "ok" };
    let n_codes = app.release.len();
    json_response(
        StatusCode::OK,
        &json!({"status": status, "models": app.all_names(), "release": app.release.name(), "n_codes": n_codes}),
    )
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render()).into_response()
}

async fn models(State(app): State<Arc<App>>) -> Response {
    app.metrics.response(200);
    json_response(StatusCode::OK, &model_list(&app.all_names(), app.created))
}

async fn model(State(app): State<Arc<App>>, axum::extract::Path(name): axum::extract::Path<String>) -> Response {
    let names = app.all_names();
    if !names.contains(&name) {
        return app.refuse(&ApiError::no_model(&name, &names));
    }
    app.metrics.response(200);
    json_response(StatusCode::OK, &model_list(&[name], app.created)["data"][0])
}

async fn chat_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    complete(app, Kind::Chat, request).await
}

async fn text_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    complete(app, Kind::Text, request).await
}

async fn complete(app: Arc<App>, kind: Kind, request: Request) -> Response {
    let admitted = match app.admit(kind, request).await {
        Ok(admitted) => admitted,
        Err(error) => return app.refuse(&error),
    };
    if admitted.ask.stream {
        app.metrics.response(200);
        return stream(app, admitted);
    }
    match whole(&app, admitted).await {
        Ok(body) => {
            app.metrics.response(200);
            json_response(StatusCode::OK, &body)
        }
        Err(error) => app.refuse(&error),
    }
}

/// Waits for the whole answer.
async fn whole(app: &App, mut admitted: Admitted) -> Result<Value, ApiError> {
    let mut assembly = Assembly::new(std::mem::take(&mut admitted.ask.stops));
    let mut tokens: Vec<Spelled> = Vec::new();
    let answer = loop {
        let (_, token, answer) = app.next(&mut admitted, &mut assembly).await?;
        tokens.extend(token);
        if assembly.is_stopped || answer.is_some() {
            break answer;
        }
    };
    assembly.finish();
    let usage = Usage { prompt_tokens: admitted.n_prompt, completion_tokens: assembly.n_tokens };
    app.finished(&admitted, &assembly);
    let listed = admitted.ask.log_probs.then_some(tokens.as_slice());
    let extension = extension(&app.release, answer.as_ref(), admitted.decision.as_ref());
    Ok(admitted.reply.whole(&assembly.text, finish_reason(answer.as_ref()), listed, usage, extension))
}

/// Answers token by token. The task ends, and the engine drops the request, as soon as the client is gone.
fn stream(app: Arc<App>, mut admitted: Admitted) -> Response {
    let (chunks, receiver) = mpsc::channel::<Result<sse::Event, Infallible>>(16);
    tokio::spawn(async move {
        let send = async |text: String| chunks.send(Ok(sse::Event::default().data(text))).await.is_ok();
        let mut assembly = Assembly::new(std::mem::take(&mut admitted.ask.stops));
        if let Some(opening) = admitted.reply.opening()
            && !send(opening.to_string()).await
        {
            return;
        }
        let answer = loop {
            let offset = assembly.text.chars().count();
            let next = tokio::select! {
                next = app.next(&mut admitted, &mut assembly) => next,
                () = chunks.closed() => return,
            };
            let (text, token, answer) = match next {
                Ok(next) => next,
                Err(error) => {
                    send(error.body().to_string()).await;
                    return;
                }
            };
            let is_over = assembly.is_stopped || answer.is_some();
            let text = if is_over { text + &assembly.finish() } else { text };
            let listed = token.as_slice();
            let has_tokens = admitted.ask.log_probs && !listed.is_empty();
            if !text.is_empty() || has_tokens {
                let chunk = admitted.reply.chunk(&text, has_tokens.then_some(listed), offset);
                if !send(chunk.to_string()).await {
                    return;
                }
            }
            if is_over {
                break answer;
            }
        };
        app.finished(&admitted, &assembly);
        let extension = extension(&app.release, answer.as_ref(), admitted.decision.as_ref());
        let mut last = vec![admitted.reply.closing(finish_reason(answer.as_ref()), extension).to_string()];
        if admitted.ask.include_usage {
            let usage = Usage { prompt_tokens: admitted.n_prompt, completion_tokens: assembly.n_tokens };
            last.push(admitted.reply.usage(usage).to_string());
        }
        last.push("[DONE]".to_owned());
        for text in last {
            if !send(text).await {
                return;
            }
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response()
}

impl App {
    /// Reads and checks a request and hands it to the engine.
    async fn admit(&self, kind: Kind, request: Request) -> Result<Admitted, ApiError> {
        let started = Instant::now();
        if self.stop.is_requested() {
            return Err(ApiError::stopping());
        }
        let body = self.body_of(request).await?;
        let ask = match kind {
            Kind::Chat => parse_chat(&body)?,
            Kind::Text => parse_text(&body)?,
        };
        let (adapter, decision) = self.resolve(&ask)?;
        let n_taken = self.queue.n_taken();
        let wait = || retry_after(n_taken, self.limits.batch_size, self.metrics.mean_latency());
        let place = self.queue.place().ok_or_else(|| ApiError::busy(wait()))?;
        let ids = self.encode(&ask.prompt)?;
        let request = self.request_of(&ask, ids)?;
        let n_prompt = request.prompt.len();
        let (updates, receiver) = mpsc::unbounded_channel();
        let deadline = started + self.limits.timeout;
        if !self.queue.send(Job { adapter, request, updates, deadline, place }) {
            return Err(ApiError::internal("the engine has stopped"));
        }
        self.metrics.prompt(n_prompt);
        let number = self.n_requests.fetch_add(1, Ordering::Relaxed);
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{prefix}-{:x}-{number:x}", self.created);
        let model = self.names.get(adapter).cloned().unwrap_or_default();
        let reply = Reply { kind, id, created: unix_seconds(), model };
        Ok(Admitted { reply, updates: receiver, ask, n_prompt, decision, started })
    }

    async fn body_of(&self, request: Request) -> Result<Bytes, ApiError> {
        let headers = request.headers();
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        // Also what keeps other sites' pages out: without this type they may post here unasked.
        if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
            return Err(ApiError::not_json());
        }
        let limit = self.limits.max_body_bytes;
        let reading = axum::body::to_bytes(request.into_body(), limit);
        match tokio::time::timeout(BODY_TIMEOUT, reading).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) if error.to_string().contains("length limit") => Err(ApiError::too_large(limit)),
            Ok(Err(error)) => Err(ApiError::bad_request(format!("the body cannot be read: {error}"))),
            Err(_) => Err(ApiError::bad_request(format!("the body did not arrive within {BODY_TIMEOUT:?}"))),
        }
    }

    /// The model that answers, by number, and how it was found where it was `auto`.
    fn resolve(&self, ask: &Ask) -> Result<(usize, Option<Decision>), ApiError> {
        let Some(name) = &ask.model else { return Ok((0, None)) };
        if let Some(number) = self.names.iter().position(|known| known == name) {
            return Ok((number, None));
        }
        if name != AUTO {
            return Err(ApiError::no_model(name, &self.all_names()));
        }
        let found = (self.voters)(ask.prompt.question());
        let found = found.map_err(|error| ApiError::internal(error.to_string()))?;
        let (number, decision) = self.routes.choose(&self.release, &found, &self.names);
        Ok((number, Some(decision)))
    }

    fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, ApiError> {
        let ids = match prompt {
            Prompt::Chat(messages) => self.tokenizer.encode_prompt(messages).map(|tokens| tokens.ids),
            Prompt::Text(text) => self.tokenizer.encode(text),
        };
        ids.map_err(|error| ApiError::bad_request(error.to_string()))
    }

    fn request_of(&self, ask: &Ask, prompt: Vec<u32>) -> Result<decode::Request, ApiError> {
        let is_constrained = ask.constrain.unwrap_or(self.constrain);
        let most = if is_constrained { self.constraint.max_tokens() } else { self.limits.max_new_tokens };
        let least = if is_constrained { self.constraint.min_tokens() } else { 1 };
        let room = self.max_positions.saturating_sub(prompt.len());
        if room < least {
            let (limit, n_prompt) = (self.max_positions, prompt.len());
            return Err(ApiError::too_long(format!(
                "the prompt has {n_prompt} tokens; with the answer that is more than the model's limit of {limit}"
            )));
        }
        if ask.max_tokens.is_some_and(|n| n < least) {
            return Err(ApiError::bad(
                "max_tokens",
                format!("an answer of codes needs `max_tokens` of {least} or more, or `constrain: false`"),
            ));
        }
        Ok(decode::Request {
            prompt,
            max_new_tokens: ask.max_tokens.unwrap_or(most).min(most).min(room),
            sampling: ask.sampling,
            form: if is_constrained { Form::Codes } else { Form::Free },
            log_probs: ask.log_probs,
            n_top: ask.n_top,
        })
    }

    /// The next piece of an answer: text to show, its token, and the whole answer when it is finished.
    async fn next(
        &self,
        admitted: &mut Admitted,
        assembly: &mut Assembly,
    ) -> Result<(String, Option<Spelled>, Option<Answer>), ApiError> {
        let event = match admitted.updates.recv().await {
            Some(Update::Event(event)) => event,
            Some(Update::TimedOut) => return Err(ApiError::timed_out(self.limits.timeout)),
            Some(Update::Failed { message, is_request: true }) => return Err(ApiError::bad_request(message)),
            Some(Update::Failed { message, is_request: false }) => return Err(ApiError::internal(message)),
            None => return Err(ApiError::internal("the engine has stopped")),
        };
        if assembly.n_tokens == 0 {
            self.metrics.first_token(admitted.started.elapsed());
        }
        let Some(token) = event.token else { return Ok((String::new(), None, event.answer)) };
        let spelled = spelled(&token, &self.spelling);
        Ok((assembly.push(&spelled.bytes), Some(spelled), event.answer))
    }

    fn finished(&self, admitted: &Admitted, assembly: &Assembly) {
        let elapsed = admitted.started.elapsed();
        self.metrics.finished(elapsed);
        let Admitted { reply, n_prompt, .. } = admitted;
        let mut line = format!(
            "{} {}: {n_prompt} tokens in, {} out, {:.3} s",
            reply.id,
            reply.model,
            assembly.n_tokens,
            elapsed.as_secs_f64()
        );
        if self.log.with_text {
            line += &format!(": {:?} -> {:?}", admitted.ask.prompt.question(), assembly.text);
        }
        (self.log.write)(&line);
    }

    fn refuse(&self, error: &ApiError) -> Response {
        self.metrics.response(error.status);
        (self.log.write)(&format!("refused with {}", error.status));
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_response(status, &error.body());
        if let Some(wait) = error.retry_after {
            let seconds = HeaderValue::from(wait.as_secs_f64().ceil() as u64);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }

    fn all_names(&self) -> Vec<String> {
        self.names.iter().cloned().chain(std::iter::once(AUTO.to_owned())).collect()
    }
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], Body::from(body.to_string())).into_response()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
