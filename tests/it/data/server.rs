//! A server that speaks Ollama's and OpenAI's protocol, and fails when told to.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What the server does instead of answering well.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// 429 with `Retry-After: 0`.
    Busy,
    /// 500.
    Broken,
    /// The connection ends in the middle of the answer.
    Cut,
    /// A body that is no JSON.
    NoJson,
    /// A message that is no JSON object.
    Chatter,
    /// A text for other codes.
    WrongCodes,
    /// A text that names its first code.
    Leak,
    /// A good answer, late.
    Slow(Duration),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
}

#[derive(Default)]
struct State {
    faults: VecDeque<Fault>,
    /// Met by every request for an answer once `faults` is used up.
    always: Option<Fault>,
    seen: Vec<Seen>,
}

/// The server; it serves until the test ends.
#[derive(Clone)]
pub struct Server {
    pub address: String,
    state: Arc<Mutex<State>>,
    api_key: Option<&'static str>,
}

impl Server {
    /// Starts a server that has the model `llama3.2`. With a key it refuses requests without it.
    pub fn start(faults: &[Fault], always: Option<Fault>, api_key: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = State { faults: faults.iter().copied().collect(), always, seen: Vec::new() };
        let server = Self { address, state: Arc::new(Mutex::new(state)), api_key };
        let shared = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = shared.clone();
                // A client that was killed closes its end: nothing to report.
                std::thread::spawn(move || drop(server.serve(stream)));
            }
        });
        server
    }

    /// The requests for an answer so far.
    pub fn asked(&self) -> Vec<Seen> {
        let is_chat = |seen: &&Seen| seen.path.contains("chat");
        self.state.lock().unwrap().seen.iter().filter(is_chat).cloned().collect()
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut len, mut authorization) = (0, None);
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            match name.to_lowercase().as_str() {
                "content-length" => len = value.trim().parse().unwrap(),
                "authorization" => authorization = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; len];
        reader.read_exact(&mut body)?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let is_allowed = self.api_key.is_none_or(|key| authorization == Some(format!("Bearer {key}")));
        let seen = Seen { path: path.clone(), authorization, body: body.clone() };
        let fault = {
            let mut state = self.state.lock().unwrap();
            state.seen.push(seen);
            if path.contains("chat") { state.faults.pop_front().or(state.always) } else { None }
        };
        let mut out = stream;
        if !is_allowed {
            return respond(&mut out, "401 Unauthorized", "", "{\"error\":{\"message\":\"no such key\"}}");
        }
        match path.as_str() {
            "/api/tags" => respond(&mut out, "200 OK", "", "{\"models\":[{\"name\":\"llama3.2:latest\"}]}"),
            "/v1/models" => respond(&mut out, "200 OK", "", "{\"data\":[{\"id\":\"small\"}]}"),
            "/api/chat" | "/v1/chat/completions" => chat(&mut out, &path, &body, fault),
            _ => respond(&mut out, "404 Not Found", "", "{\"error\":\"no such page\"}"),
        }
    }
}

fn respond(out: &mut TcpStream, status: &str, headers: &str, body: &str) -> std::io::Result<()> {
    let len = body.len();
    write!(out, "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n{headers}\r\n{body}")
}

fn chat(out: &mut TcpStream, path: &str, body: &Value, fault: Option<Fault>) -> std::io::Result<()> {
    let is_ollama = path == "/api/chat";
    let schema = if is_ollama { &body["format"] } else { &body["response_format"]["json_schema"]["schema"] };
    let codes = schema["properties"]["codes"]["items"]["enum"].clone();
    let (mut text, mut answered) =
        (format!("Somebody tells at length what happened, story {}.", seed(body)), codes.clone());
    match fault {
        Some(Fault::Busy) => {
            return respond(out, "429 Too Many Requests", "Retry-After: 0\r\n", "{\"error\":\"busy\"}");
        }
        Some(Fault::Broken) => return respond(out, "500 Internal Server Error", "", "{\"error\":\"out of memory\"}"),
        Some(Fault::Cut) => return write!(out, "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{{\"message\":"),
        Some(Fault::NoJson) => return respond(out, "200 OK", "", "<html>gateway</html>"),
        Some(Fault::Chatter) => return respond(out, "200 OK", "", &message(is_ollama, "Sure, here is a story.")),
        Some(Fault::WrongCodes) => answered = json!(["A00.0"]),
        Some(Fault::Leak) => text = format!("Somebody has {} again.", codes[0].as_str().unwrap_or_default()),
        Some(Fault::Slow(time)) => std::thread::sleep(time),
        None => {}
    }
    let content = json!({"scenario": text, "codes": answered}).to_string();
    respond(out, "200 OK", "", &message(is_ollama, &content))
}

fn seed(body: &Value) -> u64 {
    body["seed"].as_u64().or(body["options"]["seed"].as_u64()).unwrap_or(0)
}

fn message(is_ollama: bool, content: &str) -> String {
    let message = json!({"role": "assistant", "content": content});
    let body = if is_ollama {
        json!({"model": "llama3.2", "message": message, "done": true, "done_reason": "stop", "prompt_eval_count": 100, "eval_count": 20})
    } else {
        json!({
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20},
        })
    };
    body.to_string()
}
