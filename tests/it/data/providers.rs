//! Scenarios worded by a language model: both protocols, every fault, and what is left after an interruption.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use axismapper::codes::Release;
use axismapper::data::generate::Selection;
use axismapper::data::generate::llm::{BadAnswer, Endpoint, LlmReport, LlmSettings, Protocol, write_scenarios};
use axismapper::data::generate::template::TemplateSettings;
use axismapper::data::record::Scenario;
use axismapper::fsio;
use axismapper::http::Retry;
use axismapper::stop::Stop;

use super::server::{Fault, Server};

/// The server, patient enough for three faults of its own in a row.
fn endpoint(server: &Server, protocol: Protocol) -> Endpoint {
    let below = if protocol == Protocol::Openai { "/v1" } else { "" };
    let retry = Retry {
        n_attempts: 4,
        first_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(5),
        ..Retry::default()
    };
    Endpoint { protocol, base_url: format!("http://{}{below}", server.address), api_key: None, retry }
}

fn settings() -> LlmSettings {
    LlmSettings { model: "llama3.2".into(), concurrency: 3, attempts: 5, temperature: 0.5, timeout_seconds: 20 }
}

fn cases(n_records: usize) -> TemplateSettings {
    let codes = Selection { prefixes: vec!["S82.2".into(), "W10".into(), "J45".into()], ..Selection::default() };
    TemplateSettings { codes, n_records, ..TemplateSettings::default() }
}

/// Asks for `n` scenarios and checks that those in the file are sound.
fn check(
    endpoint: &Endpoint,
    settings: &LlmSettings,
    n: usize,
    path: &Path,
) -> Result<(LlmReport, Vec<Scenario>), axismapper::data::Error> {
    let release = Release::builtin().unwrap();
    let mut n_told = 0;
    let report = write_scenarios(&release, &cases(n), endpoint, settings, path, &Stop::default(), |k| n_told += k)?;
    let records: Vec<Scenario> = fsio::read_jsonl(path).unwrap();
    assert_eq!((report.n_records, report.n_records + report.n_missing), (records.len(), n), "{report:?}");
    assert_eq!(n_told as usize, records.len());
    let numbers: Vec<u64> = records.iter().map(|record| record.extra["assignment"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    for record in &records {
        assert!(record.codes.iter().all(|code| release.is_billable(*code)) && record.scenario.contains("story"));
        assert!(["clinician", "patient", "triage"].contains(&record.extra["register"].as_str().unwrap()));
    }
    Ok((report, records))
}

#[test]
fn both_protocols_get_over_every_fault() {
    let slow = Fault::Slow(Duration::from_millis(60));
    let faults =
        [Fault::Busy, Fault::Broken, Fault::Cut, Fault::NoJson, Fault::Chatter, Fault::WrongCodes, Fault::Leak, slow];
    for protocol in [Protocol::Ollama, Protocol::Openai] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(&faults, None, None);
        let path = dir.path().join("raw.jsonl");
        let (report, records) = check(&endpoint(&server, protocol), &settings(), 24, &path).unwrap();
        assert_eq!((records.len(), report.n_missing), (24, 0));
        let bad = [(BadAnswer::NotJson, 2), (BadAnswer::WrongCodes, 1), (BadAnswer::LeakedCode, 1)];
        assert_eq!(report.bad_answers, bad.into());
        // 24 good answers, a further request for each fault but the slow one.
        let asked = server.asked();
        assert_eq!(asked.len(), 24 + 7);
        // Tokens of all answers with usage: not those of a refusal, a cut connection and a page that is no JSON.
        assert_eq!((report.n_prompt_tokens, report.n_completion_tokens), (27 * 100, 27 * 20));
        for seen in &asked {
            assert_eq!(seen.body["model"], "llama3.2");
            let said = seen.body["messages"][1]["content"].as_str().unwrap();
            assert!(said.contains("exactly") && said.contains("not to be mistaken for"), "{said}");
            let schema = match protocol {
                Protocol::Ollama => &seen.body["format"],
                Protocol::Openai => {
                    assert_eq!(seen.body["response_format"]["type"], "json_schema");
                    assert_eq!(seen.body["response_format"]["json_schema"]["strict"], true);
                    &seen.body["response_format"]["json_schema"]["schema"]
                }
            };
            assert_eq!(schema["required"], serde_json::json!(["scenario", "codes"]));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the result is left");
    }
}

#[test]
fn what_a_run_leaves_out_is_counted_and_the_next_asks_for_that_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw.jsonl");
    // One request at a time: the first scenario gets no good answer in three, the second meets a broken server.
    let one = LlmSettings { concurrency: 1, attempts: 3, ..settings() };
    let broken = Fault::Broken;
    let faults = [Fault::Chatter, Fault::Chatter, Fault::Leak, broken, broken, broken, broken];
    let server = Server::start(&faults, None, None);
    let (report, first) = check(&endpoint(&server, Protocol::Ollama), &one, 10, &path).unwrap();
    assert_eq!((first.len(), report.n_missing), (8, 2));
    let missing = [("leaked_code".to_owned(), 1), ("http_500".to_owned(), 1)];
    assert_eq!(report.missing, missing.into());
    let server = Server::start(&[], None, None);
    let (report, second) = check(&endpoint(&server, Protocol::Ollama), &one, 12, &path).unwrap();
    assert_eq!((report.n_before, report.n_missing, second.len()), (8, 0, 12));
    assert_eq!(server.asked().len(), 4);
    assert!(first.iter().all(|record| second.contains(record)));
    // Nothing is missing: nothing is asked, and no server is needed.
    let nowhere = Endpoint { base_url: "http://127.0.0.1:1".into(), ..endpoint(&server, Protocol::Ollama) };
    assert_eq!(check(&nowhere, &one, 12, &path).unwrap().1, second);
}

#[test]
fn a_server_that_fails_for_good_ends_the_run_and_keeps_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw.jsonl");
    let slow = Fault::Slow(Duration::ZERO);
    let server = Server::start(&[slow, slow, slow, slow, slow], Some(Fault::Broken), None);
    let one = LlmSettings { concurrency: 1, ..settings() };
    let error = check(&endpoint(&server, Protocol::Ollama), &one, 1000, &path).unwrap_err();
    use axismapper::diag::Diagnostic;
    assert!(error.hint().unwrap().contains("5 scenarios are kept"), "{:?}", error.hint());
    assert!(server.asked().len() < 40, "it did not give up: {}", server.asked().len());
    assert_eq!(fsio::read_jsonl::<Scenario>(&dir.path().join("raw.jsonl.partial")).unwrap().len(), 5);
    let server = Server::start(&[], None, None);
    let (report, _) = check(&endpoint(&server, Protocol::Ollama), &one, 9, &path).unwrap();
    assert_eq!((report.n_before, server.asked().len()), (5, 4));
}

fn command(dir: &Path, args: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_axismapper"));
    for name in ["OLLAMA_HOST", "OPENAI_BASE_URL", "OPENAI_API_KEY"] {
        command.env_remove(name);
    }
    command.current_dir(dir).args(args.split(' ')).envs(environment.iter().copied());
    command
}

/// Arguments, environment, exit status, and what has to be told.
type Refused<'a> = (&'a str, &'a [(&'a str, &'a str)], i32, &'a [&'a str]);

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_servers_models_and_keys_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&[], None, Some("secret-key"));
    let open = Server::start(&[], None, None);
    let v1 = format!("http://{}/v1", server.address);
    let ollama = "data generate -n 3 --prefix J45 --out x.jsonl --provider ollama";
    let openai = "data generate -n 3 --prefix J45 --out x.jsonl --provider openai --model small";
    let cases: &[Refused] = &[
        (ollama, &[("OLLAMA_HOST", "127.0.0.1:1")], 1, &["http://127.0.0.1:1", "ollama serve"]),
        (
            "data generate -n 3 --prefix J45 --out x.jsonl --provider ollama --model qwen2.5",
            &[("OLLAMA_HOST", &open.address)],
            1,
            &["`qwen2.5`", "llama3.2:latest", "`ollama pull qwen2.5`"],
        ),
        (openai, &[("OPENAI_BASE_URL", &v1)], 1, &["without a key", "OPENAI_API_KEY"]),
        (openai, &[("OPENAI_BASE_URL", &v1), ("OPENAI_API_KEY", "other-key")], 1, &["with this key"]),
        ("data generate -n 3 --out x.jsonl --provider openai", &[], 2, &["name of a model", "--model"]),
    ];
    for (args, environment, status, parts) in cases {
        let output = command(dir.path(), args, environment).output().unwrap();
        let told = told(&output);
        assert_eq!(output.status.code(), Some(*status), "{args}: {told}");
        assert!(parts.iter().all(|part| told.contains(part)), "{args}: {told}");
        assert!(!told.contains("other-key"), "{told}");
    }
    let output =
        command(dir.path(), openai, &[("OPENAI_BASE_URL", &v1), ("OPENAI_API_KEY", "secret-key")]).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(server.asked().last().unwrap().authorization.as_deref(), Some("Bearer secret-key"));
    let manifest = std::fs::read_to_string(dir.path().join("x.jsonl.manifest.json")).unwrap();
    assert!(manifest.contains("small") && !manifest.contains("secret-key"), "{manifest}");

    // Records of another model are not overwritten.
    let output = command(dir.path(), ollama, &[("OLLAMA_HOST", &open.address)]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    assert!(told(&output).contains("--restart"), "{}", told(&output));
    let again = format!("{ollama} --restart");
    assert!(command(dir.path(), &again, &[("OLLAMA_HOST", &open.address)]).status().unwrap().success());
}

#[test]
fn a_killed_run_asks_only_for_what_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    // Thirty answers, then none for longer than the test lasts.
    let server = Server::start(&[Fault::Slow(Duration::ZERO); 30], Some(Fault::Slow(Duration::from_secs(600))), None);
    let args = "-q data generate -n 60 --prefix J45 --prefix I --out raw.jsonl --provider ollama --concurrency 4";
    let environment = [("OLLAMA_HOST", server.address.as_str())];
    let mut child = command(dir, args, &environment).stdout(Stdio::null()).spawn().unwrap();
    let partial = dir.join("raw.jsonl.partial");
    let n_lines = || std::fs::read_to_string(&partial).map_or(0, |text| text.matches('\n').count());
    let started = Instant::now();
    while n_lines() < 12 && started.elapsed() < Duration::from_secs(300) {
        std::thread::sleep(Duration::from_millis(2));
    }
    // SIGKILL on Unix.
    child.kill().unwrap();
    child.wait().unwrap();
    let (n_kept, n_asked) = (n_lines(), server.asked().len());
    assert!((12..=30).contains(&n_kept), "{n_kept}");
    // Each of four threads holds one answer at most, and one is being written.
    assert!(n_asked <= n_kept + 5, "answers were not on the disk: {n_asked} asked for, {n_kept} kept");
    let mut torn = std::fs::OpenOptions::new().append(true).open(&partial).unwrap();
    std::io::Write::write_all(&mut torn, b"{\"scenario\":\"cut off in the mid").unwrap();

    let server = Server::start(&[], None, None);
    let environment = [("OLLAMA_HOST", server.address.as_str())];
    let output = command(dir, &format!("{args} --json"), &environment).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    let report: LlmReport = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.n_records, report.n_before, report.n_missing), (60, n_kept, 0));
    assert_eq!(server.asked().len(), 60 - n_kept);
    assert!(!partial.exists());
}
