//! A W&B service for tests: it takes runs as the real one does, notes everything that a client does wrong, and fails
//! when it is told to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http_server::{Received, Reply, Server};

/// 40 characters, as a key has.
pub const KEY: &str = "0123456789abcdef0123456789abcdef01234567";
/// `api:KEY` in Base64.
const BASIC: &str = "Basic YXBpOjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc=";

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// An answer of this status instead of the work.
    Status(u16),
    /// Status 429, and how many seconds to wait.
    Busy(&'static str),
    /// No work and no answer.
    DroppedBefore,
    /// The work is done, the answer is lost.
    DroppedAfter,
    /// The work is done, half of the answer is lost.
    Cut,
    /// The work is done, the answer comes too late.
    Late(Duration),
}

/// A run as the service has it.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub upserts: Vec<Value>,
    pub streams: BTreeMap<String, Vec<String>>,
    pub summary: Value,
    pub files: BTreeMap<String, String>,
    pub uploaded: Vec<String>,
    pub exit_code: Option<i64>,
    pub is_stopped: bool,
    pub n_posts: usize,
    pub anomalies: Vec<String>,
}

impl Run {
    pub fn history(&self) -> Vec<Value> {
        self.rows("wandb-history.jsonl")
    }

    pub fn events(&self) -> Vec<Value> {
        self.rows("wandb-events.jsonl")
    }

    pub fn output(&self) -> Vec<String> {
        self.streams.get("output.log").cloned().unwrap_or_default()
    }

    fn rows(&self, name: &str) -> Vec<Value> {
        let lines = self.streams.get(name).cloned().unwrap_or_default();
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn post(&mut self, body: &Value) {
        self.n_posts += 1;
        let mut faults = Vec::new();
        if self.exit_code.is_some() {
            faults.push(format!("a post after the run was complete: {body}"));
        }
        for (name, part) in body["files"].as_object().into_iter().flatten() {
            let offset = part["offset"].as_u64().unwrap() as usize;
            let content: Vec<String> =
                part["content"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect();
            if name == "wandb-summary.json" {
                assert_eq!((offset, content.len()), (0, 1));
                self.summary = serde_json::from_str(&content[0]).unwrap();
                continue;
            }
            let lines = self.streams.entry(name.clone()).or_default();
            if offset != lines.len() {
                faults.push(format!("{name}: {} lines at {offset}, {} are there", content.len(), lines.len()));
            }
            lines.truncate(offset);
            lines.extend(content);
        }
        let steps: Vec<u64> = self.history().iter().map(|row| row["_step"].as_u64().unwrap()).collect();
        if steps.windows(2).any(|pair| pair[0] >= pair[1]) {
            faults.push(format!("steps {steps:?}"));
        }
        if self.history().iter().any(|row| !row["_timestamp"].is_number() || !row["_runtime"].is_number()) {
            faults.push("a row without a time".into());
        }
        self.uploaded.extend(body["uploaded"].as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()));
        if body["complete"] == json!(true) {
            self.exit_code = Some(body["exitcode"].as_i64().expect("an exit code"));
        }
        self.anomalies.extend(faults);
    }

    fn bucket(&self, name: &str) -> Value {
        let count = |stream: &str| self.streams.get(stream).map_or(0, Vec::len);
        let tail: Vec<&String> =
            self.streams.get("wandb-history.jsonl").and_then(|rows| rows.last()).into_iter().collect();
        json!({
            "id": format!("id-of-{name}"),
            "name": name,
            "displayName": "shown",
            "state": match self.exit_code { None => "running", Some(0) => "finished", Some(_) => "failed" },
            "historyLineCount": count("wandb-history.jsonl"),
            "eventsLineCount": count("wandb-events.jsonl"),
            "logLineCount": count("output.log"),
            "historyTail": serde_json::to_string(&tail).unwrap(),
            "project": {"name": "proj", "entity": {"name": "team"}},
        })
    }
}

/// The running service.
pub struct Service {
    pub server: Server,
    runs: Arc<Mutex<BTreeMap<String, Run>>>,
}

impl Service {
    /// Starts a service; `fault` is told the number of the request and its operation, as in `UpsertBucket`,
    /// `file_stream` or `PUT`.
    pub fn start(fault: impl Fn(usize, &str) -> Fault + Send + Sync + 'static) -> Self {
        let runs = Arc::new(Mutex::new(BTreeMap::new()));
        let state = Arc::clone(&runs);
        let server = Server::start(move |idx, request| {
            let operation = operation_of(request);
            match fault(idx, &operation) {
                Fault::Status(status) => Reply::json(status, &json!({"error": "injected"})),
                Fault::Busy(seconds) => Reply::new(429, "").with("retry-after", seconds),
                Fault::DroppedBefore => Reply::hang_up(),
                Fault::None => handle(&state, request, &operation),
                Fault::DroppedAfter => {
                    handle(&state, request, &operation);
                    Reply::hang_up()
                }
                Fault::Cut => {
                    let reply = handle(&state, request, &operation);
                    let half = reply.body.len() / 2;
                    reply.cut_after(half)
                }
                Fault::Late(delay) => handle(&state, request, &operation).after(delay),
            }
        });
        Self { server, runs }
    }

    /// The runs that it has, by ID.
    pub fn runs(&self) -> BTreeMap<String, Run> {
        self.runs.lock().unwrap().clone()
    }

    /// The only run, in which nothing went wrong.
    pub fn run(&self) -> Run {
        let runs = self.runs();
        assert_eq!(runs.len(), 1, "{:?}", runs.keys());
        let run = runs.into_values().next().unwrap();
        assert_eq!(run.anomalies, Vec::<String>::new());
        run
    }

    /// Changes a run, as somebody at the web page would.
    pub fn change(&self, change: impl Fn(&mut Run)) {
        self.runs.lock().unwrap().values_mut().for_each(change);
    }
}

fn operation_of(request: &Received) -> String {
    if request.target == "/graphql" {
        return request.json()["operationName"].as_str().unwrap().to_owned();
    }
    if request.target.ends_with("/file_stream") { "file_stream".into() } else { request.method.clone() }
}

fn handle(runs: &Mutex<BTreeMap<String, Run>>, request: &Received, operation: &str) -> Reply {
    let mut runs = runs.lock().unwrap();
    let parts: Vec<&str> = request.target.split('/').collect();
    if operation == "PUT" {
        let [_, "storage", id, file] = parts[..] else { return Reply::new(404, "") };
        assert_eq!(request.header("authorization"), None, "a key was sent to the storage");
        let text = String::from_utf8(request.body.clone()).unwrap();
        runs.get_mut(id).unwrap().files.insert(file.to_owned(), text);
        return Reply::new(200, "");
    }
    if request.header("authorization") != Some(BASIC) {
        return Reply::json(401, &json!({"errors": [{"message": "Invalid API key"}]}));
    }
    let body = request.json();
    let variables = &body["variables"];
    let data = match operation {
        "file_stream" => {
            let [_, "files", "team", "proj", id, "file_stream"] = parts[..] else { return Reply::new(404, "") };
            let Some(run) = runs.get_mut(id) else { return Reply::new(404, "") };
            run.post(&body);
            return Reply::json(200, &json!({"stopped": run.is_stopped}));
        }
        "Viewer" => json!({"viewer": {"username": "alice", "entity": "team"}}),
        "RunResumeStatus" => {
            let name = variables["name"].as_str().unwrap();
            json!({"model": {"bucket": runs.get(name).map(|run| run.bucket(name))}})
        }
        "UpsertBucket" => {
            let id = variables["id"].as_str().and_then(|id| id.strip_prefix("id-of-"));
            let name = id.or(variables["name"].as_str()).unwrap().to_owned();
            let run = runs.entry(name.clone()).or_default();
            run.upserts.push(variables.clone());
            // A run that is taken up again is under way again.
            run.exit_code = None;
            json!({"upsertBucket": {"bucket": run.bucket(&name)}})
        }
        "CreateRunFiles" => {
            let (id, file) = (variables["run"].as_str().unwrap(), variables["files"][0].as_str().unwrap());
            assert!(runs.contains_key(id));
            let url = format!("http://{}/storage/{id}/{file}", request.header("host").unwrap());
            json!({"createRunFiles": {"uploadHeaders": [], "files": [{"name": file, "uploadUrl": url}]}})
        }
        other => panic!("unknown operation {other}"),
    };
    Reply::json(200, &json!({"data": data}))
}
