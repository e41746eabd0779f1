//! The HTTP client against a server with faults.

use std::time::{Duration, Instant};

use axismapper::diag::Diagnostic as _;
use axismapper::http::{Client, Error, Request, Retry, Settings};
use axismapper::stop::Stop;
use serde_json::json;

use crate::http_server::{Reply, Server};

fn settings() -> Settings {
    let fast = Duration::from_millis(1);
    let retry = Retry { n_attempts: 4, first_delay: fast, max_delay: fast, max_retry_after: Duration::from_secs(5) };
    Settings { timeout: Duration::from_millis(300), retry, max_body_bytes: 1000, ..Settings::default() }
}

fn client() -> Client {
    Client::new(settings(), &Stop::default()).unwrap()
}

#[test]
fn a_busy_service_is_asked_again_and_a_refusal_is_not() {
    let server = Server::start(|idx, request| match (request.target.as_str(), idx) {
        ("/busy", 0) => Reply::new(503, "wait"),
        ("/busy", 1) => Reply::hang_up(),
        ("/busy", 2) => Reply::json(200, &json!({"torn": "answer"})).cut_after(4),
        ("/busy", _) => Reply::json(200, &json!({"echo": request.json()})),
        _ => Reply::json(400, &json!({"error": {"message": "no such model"}})),
    });
    let request = Request::post(format!("{}/busy", server.url)).bearer("key").json(&json!([1, 2]));
    let answer = client().send(&request).unwrap();
    assert_eq!(answer.json::<serde_json::Value>().unwrap(), json!({"echo": [1, 2]}));
    let received = server.received();
    assert_eq!(received.len(), 4);
    assert_eq!(received[3].header("authorization"), Some("Bearer key"));

    let error = client().send(&Request::get(format!("{}/bad?key=secret", server.url))).unwrap_err();
    assert_eq!(error.to_string(), format!("`{}/bad` answered 400 Bad Request: no such model", server.url));
    assert_eq!((error.status(), server.received().len()), (Some(400), 5));
}

#[test]
fn retry_after_is_obeyed_up_to_a_limit() {
    let server = Server::start(|idx, _| match idx {
        0 => Reply::new(429, "").with("retry-after", "0.25"),
        1 => Reply::new(200, "ok"),
        _ => Reply::new(429, "come back tomorrow").with("retry-after", "86400"),
    });
    let started = Instant::now();
    assert_eq!(client().send(&Request::get(&server.url)).unwrap().text(), "ok");
    assert!(started.elapsed() >= Duration::from_millis(250));
    let error = client().send(&Request::get(&server.url)).unwrap_err();
    assert_eq!((error.status(), server.received().len()), (Some(429), 3));
    assert!(error.to_string().contains("come back tomorrow"), "{error}");
}

#[test]
fn the_last_fault_is_told_when_the_tries_are_used_up() {
    let server = Server::start(|_, request| match request.target.as_str() {
        "/slow" => Reply::new(200, "late").after(Duration::from_millis(800)),
        "/large" => Reply::new(200, vec![b'x'; 1001]),
        "/text" => Reply::new(200, "not JSON"),
        _ => Reply::new(500, "boom"),
    });
    let get = |path: &str| Request::get(format!("{}{path}", server.url));
    let error = client().send(&get("/")).unwrap_err();
    assert!(error.to_string().ends_with("answered 500 Internal Server Error (4 attempts): boom"), "{error}");
    let once =
        Client::new(Settings { retry: Retry { n_attempts: 1, ..settings().retry }, ..settings() }, &Stop::default());
    assert!(matches!(once.unwrap().send(&get("/slow")), Err(Error::Timeout { n_attempts: 1, .. })));
    assert!(matches!(client().send(&get("/large")), Err(Error::TooLarge { limit_bytes: 1000, .. })));
    let answer = client().send(&get("/text")).unwrap();
    assert!(matches!(answer.json::<u32>(), Err(Error::BadBody { .. })));
    let nobody = { Server::start(|_, _| Reply::new(200, "")).url.clone() };
    let error = client().send(&Request::get(nobody)).unwrap_err();
    assert!(matches!(error, Error::Unreachable { n_attempts: 4, .. }), "{error}");
    let error = client().send(&Request::get("localhost:11434")).unwrap_err();
    assert!(matches!(error, Error::BadUrl { .. }) && error.is_usage(), "{error}");
}

#[test]
fn a_download_appears_whole_or_not_at_all() {
    let body: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8).collect();
    let whole = body.clone();
    let server = Server::start(move |idx, request| match (request.target.as_str(), idx) {
        ("/file", 0) => Reply::new(200, whole.clone()).cut_after(70_000),
        ("/file", _) => Reply::new(200, whole.clone()).with("etag", "abc"),
        _ => Reply::new(404, "nothing here"),
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.bin");
    let mut last = 0;
    let headers = client().download(&Request::get(format!("{}/file", server.url)), &path, |n| last = n).unwrap();
    assert_eq!((headers["etag"].to_str().unwrap(), last), ("abc", 100_000));
    assert_eq!(std::fs::read(&path).unwrap(), body);
    let missing = dir.path().join("missing.bin");
    let error = client().download(&Request::get(format!("{}/none", server.url)), &missing, |_| ()).unwrap_err();
    assert_eq!(error.status(), Some(404));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
}

#[test]
fn a_stop_request_ends_the_wait() {
    let server = Server::start(|_, _| Reply::new(503, "").with("retry-after", "4"));
    let stop = Stop::default();
    let client = Client::new(settings(), &stop).unwrap();
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| client.send(&Request::get(&server.url)));
        while server.received().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.request();
        assert!(matches!(sent.join().unwrap(), Err(Error::Stopped(_))));
    });
}
