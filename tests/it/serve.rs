//! `axismapper serve` over HTTP, on a small model with random weights.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axismapper::codes::{Code, Release};
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};

use super::small_model::{write_adapter, write_folder};

/// A running server; it is killed when dropped.
struct Served {
    child: Child,
    url: String,
    client: Client,
}

impl Served {
    fn start(dir: &Path, args: &[&str]) -> Self {
        Self::start_with(dir, args, |_| ())
    }

    fn start_with(dir: &Path, args: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
        change(&mut command);
        let mut child = command
            .current_dir(dir)
            // The search index is made once for all tests.
            .env("AXISMAPPER_CACHE", env!("CARGO_TARGET_TMPDIR"))
            .args(["serve", "--model", "m", "--port", "0"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        if url.is_empty() {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("the server did not start: {stderr}");
        }
        let client = Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { child, url: url.trim().to_owned(), client }
    }

    fn post(&self, path: &str, body: &Value) -> Response {
        self.client.post(format!("{}{path}", self.url)).json(body).send().unwrap()
    }

    fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().unwrap()
    }

    fn chat(&self, text: &str, more: &Value) -> Value {
        let response = self.post("/v1/chat/completions", &question(text, more));
        let status = response.status();
        let body: Value = response.json().unwrap();
        assert!(status.is_success(), "{status} {body}");
        body
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text().unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("axismapper_{name} "))).unwrap().to_owned();
        line.split(' ').next_back().unwrap().parse().unwrap()
    }

    fn terminate(&self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
    }

    /// Waits for the end; gives whether it was in order, and everything logged.
    fn end(mut self) -> (bool, String) {
        let status = self.child.wait().unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (status.success(), stderr)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn question(text: &str, more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": text}]});
    body.as_object_mut().unwrap().extend(more.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    body
}

fn content(body: &Value) -> &str {
    body["choices"][0]["message"]["content"].as_str().unwrap()
}

fn assert_codes(release: &Release, text: &str) {
    let codes: BTreeSet<Code> = text.split(", ").map(|part| Code::parse(part).unwrap()).collect();
    assert!(codes.iter().all(|code| release.is_billable(*code)) && codes.len() == text.split(", ").count(), "{text}");
}

/// The data of a stream's events, the last of which is `[DONE]`.
fn events(response: Response) -> Vec<Value> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().unwrap();
    let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// OpenMP's spinning threads would take the cores from the program's own loops.
#[cfg(target_os = "linux")]
#[test]
fn waiting_threads_sleep_unless_somebody_has_decided_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("m"), 1);
    for (set, expected) in [
        (None, Some("passive")),
        (Some(("OMP_WAIT_POLICY", "active")), Some("active")),
        (Some(("GOMP_SPINCOUNT", "9")), None),
    ] {
        let server = Served::start_with(dir.path(), &[], |command| {
            command.env_remove("OMP_WAIT_POLICY").envs(set);
        });
        let environ = std::fs::read(format!("/proc/{}/environ", server.child.id())).unwrap();
        let environ = String::from_utf8_lossy(&environ).into_owned();
        let found = environ.split('\0').find_map(|one| one.strip_prefix("OMP_WAIT_POLICY="));
        assert_eq!(found, expected, "{set:?}");
        server.get("/health");
    }
}

#[test]
fn the_server_speaks_the_language_of_openai() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("m"), 1);
    let server = Served::start(dir.path(), &["--max-body-bytes", "20000", "--base-name", "coder"]);
    let release = Release::builtin().unwrap();
    let text = "secret patient story: it hurts a lot";

    let models: Value = server.get("/v1/models").json().unwrap();
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["coder", "auto"]);
    let model: Value = server.get("/v1/models/coder").json().unwrap();
    assert_eq!((&model["id"], &model["object"]), (&json!("coder"), &json!("model")));

    let body = server.chat(text, &json!({"model": "coder", "logprobs": true, "top_logprobs": 2}));
    let answer = content(&body).to_owned();
    assert_codes(&release, &answer);
    assert_eq!((&body["object"], &body["choices"][0]["finish_reason"]), (&json!("chat.completion"), &json!("stop")));
    let codes: Vec<&str> =
        body["axismapper"]["codes"].as_array().unwrap().iter().map(|code| code["code"].as_str().unwrap()).collect();
    assert_eq!(codes.join(", "), answer);
    let tokens = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len() as u64, body["usage"]["completion_tokens"].as_u64().unwrap());
    let spelled: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(spelled, answer);
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert!(
            (1..=2).contains(&top.len()) && top[0]["logprob"] == token["logprob"],
            "greedy is the likeliest: {token}"
        );
    }
    let total: f64 = tokens.iter().map(|token| token["logprob"].as_f64().unwrap()).sum();
    assert!(body["axismapper"]["confidence"].as_f64().unwrap() <= total.exp() * 1.0001, "the end token counts too");
    let command = Command::new(env!("CARGO_BIN_EXE_axismapper"))
        .current_dir(dir.path())
        .args(["--quiet", "predict", "--model", "m", text])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(command.stdout).unwrap().trim_end(), answer);

    let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = events(server.post("/v1/chat/completions", &question(text, &streamed)));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let pieces: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, answer);
    let (last, closing) = (&chunks[chunks.len() - 1], &chunks[chunks.len() - 2]);
    assert_eq!((&last["usage"], &last["choices"]), (&body["usage"], &json!([])));
    assert_eq!(closing["choices"][0]["finish_reason"], "stop");
    assert_eq!(closing["axismapper"]["codes"], body["axismapper"]["codes"]);

    let stopped = server.chat(text, &json!({"stop": [".", "never"]}));
    assert_eq!(content(&stopped), answer.split('.').next().unwrap());
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let free = server.chat(text, &json!({"constrain": false, "max_tokens": 7}));
    assert_eq!(
        (&free["choices"][0]["finish_reason"], &free["usage"]["completion_tokens"]),
        (&json!("length"), &json!(7))
    );
    let draw =
        |seed: u64| content(&server.chat(text, &json!({"temperature": 1.5, "top_p": 0.9, "seed": seed}))).to_owned();
    assert_eq!(draw(5), draw(5));
    assert!((0..8).map(draw).collect::<BTreeSet<_>>().len() > 3);

    let response = server.post("/v1/completions", &json!({"prompt": text, "logprobs": 1, "max_tokens": 60}));
    let body: Value = response.json().unwrap();
    assert_codes(&release, body["choices"][0]["text"].as_str().unwrap());
    assert_eq!(body["choices"][0]["logprobs"]["text_offset"][0], 0);

    let refused = |path: &str, body: &Value, status: u16, code: Value, param: Value| {
        let response = server.post(path, body);
        assert_eq!(response.status().as_u16(), status, "{body}");
        let error = response.json::<Value>().unwrap()["error"].clone();
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        assert_eq!((&error["code"], &error["param"]), (&code, &param), "{error}");
    };
    let chat = "/v1/chat/completions";
    refused(chat, &question(text, &json!({"model": "gpt-4"})), 404, json!("model_not_found"), json!("model"));
    refused(chat, &question(text, &json!({"max_tokens": 3})), 400, Value::Null, json!("max_tokens"));
    refused(chat, &json!({"messages": 3}), 400, Value::Null, Value::Null);
    refused(
        chat,
        &question(&"long ".repeat(900), &json!({})),
        400,
        json!("context_length_exceeded"),
        json!("messages"),
    );
    refused(chat, &question(&"long ".repeat(4200), &json!({})), 413, Value::Null, Value::Null);
    refused("/v1/chat", &json!({}), 404, json!("unknown_url"), Value::Null);
    refused("/v1/models", &json!({}), 405, Value::Null, Value::Null);
    let plain = server.client.post(format!("{}{chat}", server.url)).body(question(text, &json!({})).to_string());
    assert_eq!(plain.send().unwrap().status().as_u16(), 415);

    let page = server.get("/");
    assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let page = page.text().unwrap();
    assert!(page.contains("<title>AxisMapper") && !page.contains("http://") && !page.contains("https://"));
    let health: Value = server.get("/health").json().unwrap();
    assert_eq!((&health["status"], &health["n_codes"]), (&json!("ok"), &json!(74_719)));
    assert!(server.metric("requests_total{status=\"200\"}") > 10.0);
    assert!(server.metric("generated_tokens_total") > 100.0);
    server.terminate();
    let (is_in_order, log) = server.end();
    assert!(is_in_order && !log.contains("secret") && log.contains("tokens in"), "{log}");
}

#[test]
fn many_clients_and_adapters_get_the_answers_of_one() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("m"), 1);
    write_adapter(&dir.path().join("a"), 2);
    write_adapter(&dir.path().join("b"), 3);
    let args = [
        "--adapter",
        "general=a",
        "--adapter",
        "injuries=b",
        "--route",
        "injuries=19,20",
        "--batch-size",
        "5",
        "--log-text",
    ];
    let server = Served::start(dir.path(), &args);
    let asked: Vec<(String, &str)> = (0..24)
        .map(|n| (format!("story {n} of {}", "pain ".repeat(n % 7 + 1)), ["general", "injuries", "base"][n % 3]))
        .collect();
    let ask = |(text, model): &(String, &str)| content(&server.chat(text, &json!({"model": model}))).to_owned();
    let alone: Vec<String> = asked.iter().map(ask).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = asked.iter().map(|one| scope.spawn(move || ask(one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    let of = |model: &str| ask(&("the same story".to_owned(), if model.is_empty() { "general" } else { model }));
    assert_eq!(["general", "injuries", "base"].map(of).iter().collect::<BTreeSet<_>>().len(), 3);

    let routed = server.chat("fracture of shaft of right tibia", &json!({"model": "auto"}));
    assert_eq!((&routed["model"], &routed["axismapper"]["route"]["chapter"]), (&json!("injuries"), &json!(19)));
    let other = server.chat("essential hypertension", &json!({"model": "auto"}));
    assert_eq!(other["model"], "general");
    assert_eq!(server.chat("no model named", &json!({}))["model"], "general");
    server.terminate();
    let (is_in_order, log) = server.end();
    assert!(is_in_order && log.contains("no model named"), "{log}");
}

/// A request whose answer takes a while: free, as long as it may be.
fn long_question() -> Value {
    question("go on", &json!({"constrain": false, "max_tokens": 450, "logit_bias": {}}))
}

#[test]
fn a_full_queue_a_client_that_leaves_and_the_end_are_handled() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("m"), 1);
    std::fs::write(dir.path().join("keys"), "first-key\n\nsecond-key\n").unwrap();
    let args = [
        "--batch-size",
        "1",
        "--max-waiting",
        "1",
        "--max-new-tokens",
        "450",
        "--api-key",
        "keys",
        "--timeout-seconds",
        "50",
    ];
    let server = Served::start(dir.path(), &args);
    let post = |key: &str| {
        let url = format!("{}/v1/chat/completions", server.url);
        server.client.post(url).bearer_auth(key).json(&long_question()).send().unwrap()
    };
    assert_eq!(post("wrong").status().as_u16(), 401);
    assert_eq!(server.get("/v1/models").status().as_u16(), 401);
    assert_eq!(server.get("/health").status().as_u16(), 200);

    // A client that leaves while it waits for its answer.
    let body = long_question().to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer first-key\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    wait_until(|| server.metric("requests_running") == 1.0);
    drop(stream);
    wait_until(|| server.metric("clients_left_total") == 1.0);

    // All at once, however late a thread starts.
    let start = std::sync::Barrier::new(6);
    let statuses: Vec<(u16, bool)> = std::thread::scope(|scope| {
        let ask = || {
            start.wait();
            let response = post("second-key");
            let status = response.status().as_u16();
            let has_wait = response.headers().contains_key("retry-after");
            let body: Value = response.json().unwrap();
            assert!(status == 200 || body["error"]["code"] == "rate_limit_exceeded", "{body}");
            (status, has_wait)
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let n_answered = statuses.iter().filter(|(status, _)| *status == 200).count();
    assert!((2..6).contains(&n_answered), "{statuses:?}");
    assert!(statuses.iter().all(|(status, has_wait)| [200, 429].contains(status) && (*status == 429) == *has_wait));

    // What is under way at the end is finished; nobody else is let in.
    let url = server.url.clone();
    std::thread::scope(|scope| {
        let last = scope.spawn(|| post("first-key").status().as_u16());
        wait_until(|| server.metric("requests_running") == 1.0);
        server.terminate();
        assert_eq!(last.join().unwrap(), 200);
    });
    let (is_in_order, log) = server.end();
    assert!(is_in_order, "{log}");
    assert!(TcpStream::connect(url.trim_start_matches("http://")).is_err());
}

fn wait_until(is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(30), "it does not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    std::fs::write(dir.path().join("empty"), "\n").unwrap();
    for (args, status, part) in [
        (vec!["--port", &port], 1, "--port"),
        (vec!["--port", "0"], 2, "`none` is not a folder"),
        (vec!["--port", "0", "--route", "x=1"], 2, "`x`"),
        (vec!["--port", "0", "--adapter", "auto=a"], 2, "`auto`"),
        (vec!["--port", "0", "--route", "base=23"], 2, "no chapter 23"),
        (vec!["--port", "0", "--api-key", "empty"], 1, "no records"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_axismapper"))
            .current_dir(dir.path())
            .args(["serve", "--model", "none"])
            .args(&args)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
        assert!(stderr.contains(part) && output.stdout.is_empty(), "{args:?}: {stderr}");
    }
}
