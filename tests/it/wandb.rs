//! Reports to W&B: online with faults, resumed, stopped, and in folders.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use axismapper::stop::Stop;
use axismapper::track::Console;
use axismapper::track::wandb::{ApiKey, Mode, Pace, Run, RunRequest, Settings};
use serde_json::{Map, Value, json};

use crate::wandb_server::{Fault, KEY, Service};

/// Everything happens soon, so that tests are short.
fn pace() -> Pace {
    let ms = Duration::from_millis;
    Pace {
        post_every: ms(10),
        heartbeat_every: ms(50),
        sample_every: ms(30),
        first_delay: ms(2),
        max_delay: ms(20),
        // No answer is late by chance on a busy machine.
        request_timeout: Duration::from_secs(20),
        n_faults_away: 3,
        finish_within: Duration::from_secs(60),
    }
}

fn figures(step: u64) -> Map<String, Value> {
    // In binary it has an end, so that every reader of JSON gives the same number.
    let loss = 3.0 + step as f64 / 64.0;
    json!({"epoch": step as f64 / 10.0, "loss": loss, "learning_rate": 1e-4}).as_object().unwrap().clone()
}

/// A folder with a run's files, and what the console said.
struct Place {
    dir: tempfile::TempDir,
    text: Arc<Mutex<Vec<u8>>>,
    console: Console,
    stop: Stop,
    settings: Settings,
}

impl Place {
    fn new(mode: Mode, url: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = Arc::new(Mutex::new(Vec::new()));
        let console = Console::plain(text.clone(), Duration::MAX);
        let settings = Settings {
            mode,
            base_url: url.to_owned(),
            dir: dir.path().to_owned(),
            pace: pace(),
            ..Settings::from_env(|_| None).unwrap()
        };
        Self { dir, text, console, stop: Stop::default(), settings }
    }

    fn online(service: &Service) -> Self {
        Self::new(Mode::Online(ApiKey::parse(KEY).unwrap()), &service.server.url)
    }

    fn start(&self, resume: bool, rows: std::ops::Range<u64>) -> Arc<Run> {
        let request = RunRequest {
            stage: "dora",
            job_type: "sft",
            config: json!({"lora": {"r": 16}, "seed": 3}).as_object().unwrap().clone(),
            kept_file: &self.dir.path().join("wandb.json"),
            resume,
            rows: rows.map(|step| (step, figures(step))).collect(),
        };
        Run::start(&self.settings, request, &self.console, &self.stop).unwrap()
    }

    /// What the console said; a key is never in it.
    fn said(&self) -> String {
        let text = String::from_utf8(self.text.lock().unwrap().clone()).unwrap();
        assert!(!text.contains(KEY), "{text}");
        text
    }

    /// Folders that `wandb sync` would send.
    fn folders(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("wandb")) else { return Vec::new() };
        let dirs = entries.map(|entry| entry.unwrap().path());
        let is_sent = |dir: &Path| {
            std::fs::read_dir(dir).unwrap().any(|file| file.unwrap().path().extension().is_some_and(|e| e == "synced"))
        };
        let mut found: Vec<PathBuf> = dirs.filter(|dir| !is_sent(dir)).collect();
        found.sort();
        found
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..12_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it never came to this: {what}");
}

/// Rows arrived once each, in order, with their figures.
fn check_rows(history: &[Value], steps: std::ops::Range<u64>) {
    let found: Vec<u64> = history.iter().map(|row| row["train/global_step"].as_u64().unwrap()).collect();
    assert_eq!(found, steps.clone().collect::<Vec<_>>());
    for (idx, (row, step)) in history.iter().zip(steps).enumerate() {
        assert_eq!(row["_step"], idx);
        assert_eq!(row["train/loss"], figures(step)["loss"]);
    }
}

#[test]
fn a_run_arrives_whole() {
    let service = Service::start(|_, _| Fault::None);
    let mut place = Place::online(&service);
    place.settings.tags = vec!["a".into()];
    place.settings.group = Some("g".into());
    let run = place.start(false, 0..0);
    let heard = {
        let run = Arc::clone(&run);
        place.console.heard_by(move |text| run.output(text))
    };
    heard.note("12 records could not be used");
    (0..30).for_each(|step| run.log(step, &figures(step)));
    run.finish(0);

    let found = service.run();
    check_rows(&found.history(), 0..30);
    assert_eq!(found.exit_code, Some(0));
    assert_eq!(found.summary["train/loss"], figures(29)["loss"]);
    assert_eq!((&found.summary["_step"], &found.summary["train/global_step"]), (&json!(29), &json!(29)));
    let event = &found.events()[0];
    for key in ["system.cpu", "system.memory_percent", "system.proc.memory.rssMB", "system.disk./.usagePercent"] {
        assert!(event[key].as_f64().is_some_and(|value| value >= 0.0), "{key}: {event}");
    }
    assert!(event["system.proc.memory.rssMB"].as_f64().unwrap() > 1.0 && event["_runtime"].is_number(), "{event}");
    let output = found.output();
    assert_eq!(output.len(), 31);
    assert!(output[0].ends_with(" 12 records could not be used") && output[0].as_bytes()[10] == b'T', "{}", output[0]);
    assert!(output[1].contains(" step 0: epoch 0, loss 3, learning_rate 1.000e-4"), "{}", output[1]);

    let upsert = &found.upserts[0];
    assert_eq!((&upsert["project"], &upsert["jobType"]), (&json!("axismapper"), &json!("sft")));
    assert_eq!((&upsert["tags"], &upsert["groupName"]), (&json!(["a"]), &json!("g")));
    let config: Value = serde_json::from_str(upsert["config"].as_str().unwrap()).unwrap();
    assert_eq!(config["lora"], json!({"value": {"r": 16}}));
    assert_eq!(config["_wandb"]["value"]["m"][1]["5"], 1);
    let metadata: Value = serde_json::from_str(&found.files["wandb-metadata.json"]).unwrap();
    assert!(metadata["cpu_count_logical"].as_u64().unwrap() > 0);
    assert_eq!(found.uploaded, ["wandb-metadata.json"]);
    assert_eq!(place.folders(), Vec::<PathBuf>::new());
    let mut said: Vec<String> = place.said().lines().map(str::to_owned).collect();
    said.sort();
    let at = format!("wandb: run `shown` at {}/team/proj/runs/{}", service.server.url, run_id(&place));
    assert_eq!(said, ["12 records could not be used".to_owned(), at]);
}

fn run_id(place: &Place) -> String {
    let kept: Value = axismapper::fsio::read_json(&place.dir.path().join("wandb.json")).unwrap();
    kept["run_id"].as_str().unwrap().to_owned()
}

/// Logs 60 rows against a service with these faults; all must be there once.
fn check_survives(name: &str, fault: impl Fn(usize, &str) -> Fault + Send + Sync + 'static) {
    check_survives_at(pace(), name, fault);
}

fn check_survives_at(pace: Pace, name: &str, fault: impl Fn(usize, &str) -> Fault + Send + Sync + 'static) {
    let service = Service::start(fault);
    let mut place = Place::online(&service);
    place.settings.pace = pace;
    let run = place.start(false, 0..0);
    for step in 0..60 {
        run.log(step, &figures(step));
        std::thread::sleep(Duration::from_millis(2));
    }
    run.finish(3);
    let found = service.run();
    assert_eq!(found.exit_code, Some(3), "{name}: {}", place.said());
    check_rows(&found.history(), 0..60);
    assert_eq!(found.output().len(), 60, "{name}");
    assert_eq!(place.folders(), Vec::<PathBuf>::new(), "{name}");
}

#[test]
fn nothing_is_lost_or_doubled_whatever_goes_wrong() {
    check_survives("500 to the first calls", |idx, _| if idx < 5 { Fault::Status(500) } else { Fault::None });
    check_survives("409 is tried again", |idx, _| if idx < 2 { Fault::Status(409) } else { Fault::None });
    check_survives("502 now and then", |idx, _| if idx % 3 == 2 { Fault::Status(502) } else { Fault::None });
    check_survives("429", |idx, _| if idx % 4 == 3 { Fault::Busy("0.05") } else { Fault::None });
    check_survives("no connection", |idx, _| if idx % 3 == 1 { Fault::DroppedBefore } else { Fault::None });
    let impatient = Pace { request_timeout: Duration::from_millis(700), ..pace() };
    let late = |idx, _: &str| if idx == 5 { Fault::Late(Duration::from_millis(1200)) } else { Fault::None };
    check_survives_at(impatient, "late", late);
    for fault in [Fault::DroppedAfter, Fault::Cut] {
        check_survives("answers are lost", move |idx, operation| match operation {
            "file_stream" if idx % 2 == 0 => fault,
            "UpsertBucket" if idx < 2 => fault,
            // The question what became of it goes wrong too.
            "RunResumeStatus" if idx % 3 == 0 => Fault::Status(500),
            _ => Fault::None,
        });
    }
}

#[test]
fn nothing_is_lost_or_doubled_when_all_of_it_goes_wrong_at_random() {
    for seed in 0..4_u64 {
        check_survives("random", move |idx, _| {
            let random = xxhash_rust::xxh3::xxh3_64_with_seed(&(idx as u64).to_le_bytes(), seed);
            match random % 11 {
                0 => Fault::Status(500),
                1 => Fault::Status(503),
                2 => Fault::Busy("0.01"),
                3 => Fault::DroppedBefore,
                4 => Fault::DroppedAfter,
                5 => Fault::Cut,
                _ => Fault::None,
            }
        });
    }
}

#[test]
fn an_outage_is_told_once_and_made_up_for() {
    let is_away = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_away);
    let service =
        Service::start(move |_, _| if flag.load(Ordering::SeqCst) { Fault::Status(503) } else { Fault::None });
    let place = Place::online(&service);
    let run = place.start(false, 0..0);
    for outage in 0..2 {
        run.log(2 * outage, &figures(2 * outage));
        wait_until("the row is there", || {
            service.runs().values().any(|run| run.history().len() as u64 == 2 * outage + 1)
        });
        is_away.store(true, Ordering::SeqCst);
        run.log(2 * outage + 1, &figures(2 * outage + 1));
        wait_until("there is a folder", || place.folders().len() == 1);
        is_away.store(false, Ordering::SeqCst);
        wait_until("the service has everything", || place.folders().is_empty());
    }
    run.finish(0);
    check_rows(&service.run().history(), 0..4);
    let said = place.said();
    assert_eq!(
        said.matches("answered 503 Service Unavailable: injected; figures are recorded in").count(),
        1,
        "{said}"
    );
    assert!(said.contains("wandb: the service is back and has everything"), "{said}");
}

#[test]
fn a_resumed_run_goes_on_where_the_service_stands() {
    let service = Service::start(|_, _| Fault::None);
    let place = Place::online(&service);
    let run = place.start(false, 0..0);
    (0..20).for_each(|step| run.log(step, &figures(step)));
    run.finish(1);
    let id = run_id(&place);
    // The checkpoint is of an earlier step: rows come again.
    let run = place.start(true, 0..12);
    (12..25).for_each(|step| run.log(step, &figures(step)));
    run.finish(1);
    // The last rows before a kill were logged but not sent.
    let run = place.start(true, 0..31);
    (31..40).for_each(|step| run.log(step, &figures(step)));
    run.finish(0);
    let found = service.run();
    check_rows(&found.history(), 0..40);
    assert_eq!((found.exit_code, run_id(&place)), (Some(0), id.clone()));
    let known: Vec<&Value> = found.upserts.iter().map(|upsert| &upsert["id"]).collect();
    let name = json!(format!("id-of-{id}"));
    assert_eq!(known, [&Value::Null, &name, &name]);
    assert_eq!(found.output().len(), 20 + 13 + 9);
}

#[test]
fn a_given_id_of_another_run_is_not_overwritten() {
    let service = Service::start(|_, _| Fault::None);
    for _ in 0..2 {
        let mut place = Place::online(&service);
        place.settings.run_id = Some("mine".into());
        let run = place.start(false, 0..0);
        (0..3).for_each(|step| run.log(step, &figures(step)));
        run.finish(0);
    }
    let runs = service.runs();
    assert_eq!(runs.len(), 2);
    for (id, run) in runs {
        assert!(id == "mine" || (id.starts_with("mine-") && id.len() == 9), "{id}");
        check_rows(&run.history(), 0..3);
    }
}

#[test]
fn what_could_not_be_sent_is_in_a_folder_and_is_sent_by_the_run_that_goes_on() {
    let service = Service::start(|_, _| Fault::None);
    let mut place = Place::online(&service);
    place.settings.pace.finish_within = Duration::from_millis(100);
    let nobody = Service::start(|_, _| Fault::None).server.url.clone();
    let url = std::mem::replace(&mut place.settings.base_url, nobody);
    let run = place.start(false, 0..0);
    (0..10).for_each(|step| run.log(step, &figures(step)));
    wait_until("the service is away", || place.said().contains("figures are recorded in"));
    run.log(10, &figures(10));
    run.finish(1);
    let folders = place.folders();
    assert_eq!(folders.len(), 1);
    let said = place.said();
    let hint = format!("could not be sent in time; send the run with: wandb sync {}", folders[0].display());
    assert!(said.contains(&hint), "{said}");
    assert_eq!(said.matches("figures are recorded in").count(), 1, "{said}");

    place.settings.base_url = url;
    let run = place.start(true, 0..7);
    (7..15).for_each(|step| run.log(step, &figures(step)));
    run.finish(0);
    let found = service.run();
    check_rows(&found.history(), 0..15);
    assert_eq!(found.output().len(), 11 + 8);
    assert_eq!(place.folders(), Vec::<PathBuf>::new(), "the folder is still to be sent");
}

#[test]
fn an_offline_run_goes_on_in_a_second_folder() {
    let place = Place::new(Mode::Offline, "http://127.0.0.1:9");
    let run = place.start(false, 0..0);
    (0..10).for_each(|step| run.log(step, &figures(step)));
    run.finish(1);
    let run = place.start(true, 0..6);
    (6..12).for_each(|step| run.log(step, &figures(step)));
    run.finish(0);
    let folders = place.folders();
    assert_eq!(folders.len(), 2);
    let said = place.said();
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(
        said.contains(&format!("wandb: recorded; send the run with: wandb sync {}", folders[0].display())),
        "{said}"
    );
    // Online later: both are sent, each row once.
    let service = Service::start(|_, _| Fault::None);
    let online =
        Place { settings: Settings { dir: place.settings.dir.clone(), ..Place::online(&service).settings }, ..place };
    let run = online.start(true, 0..12);
    (12..14).for_each(|step| run.log(step, &figures(step)));
    run.finish(0);
    check_rows(&service.run().history(), 0..14);
    assert_eq!(online.folders(), Vec::<PathBuf>::new());
}

#[test]
fn a_refused_key_is_told_with_a_remedy_and_the_figures_are_kept() {
    let service = Service::start(|_, _| Fault::None);
    let mut place = Place::online(&service);
    let wrong = "f".repeat(40);
    place.settings.mode = Mode::Online(ApiKey::parse(&wrong).unwrap());
    let run = place.start(false, 0..0);
    (0..3).for_each(|step| run.log(step, &figures(step)));
    run.finish(0);
    let said = place.said();
    assert!(said.contains("answered 401 Unauthorized: Invalid API key; figures are recorded in"), "{said}");
    assert!(said.contains("hint: check WANDB_API_KEY") && !said.contains(&wrong), "{said}");
    assert_eq!((service.server.received().len(), place.folders().len()), (1, 1));
    assert!(!format!("{:?}", place.settings).contains(&wrong));
}

#[test]
fn a_service_that_hangs_holds_up_neither_the_work_nor_its_end() {
    let gate = Arc::new(Barrier::new(2));
    let at_gate = Arc::clone(&gate);
    let service = Service::start(move |idx, _| {
        if idx == 0 {
            at_gate.wait();
        }
        Fault::Late(Duration::from_secs(2))
    });
    let mut place = Place::online(&service);
    place.settings.pace.finish_within = Duration::from_millis(300);
    place.settings.pace.request_timeout = Duration::from_millis(400);
    let run = place.start(false, 0..0);
    wait_until("the service was asked", || service.server.received().len() == 1);
    // The service answers only after all of these.
    (0..5000).for_each(|step| run.log(step, &figures(step)));
    run.finish(0);
    gate.wait();
    assert_eq!(place.folders().len(), 1);
    assert!(place.said().contains("could not be sent in time"), "{}", place.said());
}

#[test]
fn a_stop_on_the_page_stops_the_run() {
    let service = Service::start(|_, _| Fault::None);
    let place = Place::online(&service);
    let run = place.start(false, 0..0);
    run.log(0, &figures(0));
    wait_until("the run is there", || service.runs().values().any(|run| run.n_posts > 0));
    assert!(!place.stop.is_requested());
    service.change(|run| run.is_stopped = true);
    wait_until("the run is asked to stop", || place.stop.is_requested());
    run.finish(1);
    assert_eq!(service.run().exit_code, Some(1));
}

#[test]
fn signs_of_life_are_sent_when_there_is_nothing_else() {
    let service = Service::start(|_, _| Fault::None);
    let mut place = Place::online(&service);
    place.settings.pace.sample_every = Duration::from_secs(3600);
    let run = place.start(false, 0..0);
    wait_until("three posts", || service.runs().values().any(|run| run.n_posts >= 3));
    run.finish(0);
    let posts = service.server.received();
    let empty = posts.iter().filter(|post| post.target.ends_with("file_stream") && post.json() == json!({})).count();
    assert!(empty >= 1, "no heartbeat");
}

#[test]
fn a_disabled_run_leaves_nothing() {
    let place = Place::new(Mode::Disabled, "http://127.0.0.1:9");
    let kept = place.dir.path().join("wandb.json");
    let request = RunRequest {
        stage: "s",
        job_type: "sft",
        config: Map::new(),
        kept_file: &kept,
        resume: false,
        rows: Vec::new(),
    };
    assert!(Run::start(&place.settings, request, &place.console, &place.stop).is_none());
    assert_eq!((std::fs::read_dir(place.dir.path()).unwrap().count(), place.said()), (0, String::new()));
}

#[test]
fn the_environment_is_read_as_wandbs_client_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let netrc = dir.path().join(".netrc");
    std::fs::write(&netrc, format!("machine wandb.example.org\n  login user\n  password {KEY}\n")).unwrap();
    let home = dir.path().to_str().unwrap();
    let read = |values: &[(&str, &str)]| {
        let values: HashMap<String, String> = values.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        Settings::from_env(|name| values.get(name).cloned())
    };
    let online = |settings: &Settings| matches!(settings.mode, Mode::Online(_));

    let settings = read(&[("HOME", home)]).unwrap();
    assert_eq!((settings.mode, settings.base_url.as_str()), (Mode::Offline, "https://api.wandb.ai"));
    assert_eq!(settings.project, "axismapper");
    let there = ("WANDB_BASE_URL", "https://wandb.example.org/");
    assert_eq!(read(&[("HOME", home), there]).unwrap().mode, Mode::Online(ApiKey::parse(KEY).unwrap()));
    let named = dir.path().join("other");
    std::fs::rename(&netrc, &named).unwrap();
    assert!(!online(&read(&[("HOME", home), there]).unwrap()));
    assert!(online(&read(&[("HOME", home), there, ("NETRC", named.to_str().unwrap())]).unwrap()));

    let key = ("WANDB_API_KEY", KEY);
    assert!(online(&read(&[key]).unwrap()) && online(&read(&[key, ("WANDB_MODE", "online")]).unwrap()));
    assert_eq!(read(&[key, ("WANDB_MODE", "Offline")]).unwrap().mode, Mode::Offline);
    assert_eq!(read(&[key, ("WANDB_MODE", "disabled")]).unwrap().mode, Mode::Disabled);
    assert_eq!(read(&[key, ("WANDB_DISABLED", "true")]).unwrap().mode, Mode::Disabled);
    assert_eq!(read(&[("WANDB_API_KEY", " ")]).unwrap().mode, Mode::Offline);

    let settings = read(&[
        key,
        ("WANDB_PROJECT", "p"),
        ("WANDB_ENTITY", "e"),
        ("WANDB_NAME", "n"),
        ("WANDB_RUN_ID", "r1"),
        ("WANDB_RUN_GROUP", "g"),
        ("WANDB_TAGS", "a, b,"),
        ("WANDB_DIR", "/d"),
    ])
    .unwrap();
    let texts = (settings.project.as_str(), settings.entity.as_deref(), settings.group.as_deref());
    assert_eq!(texts, ("p", Some("e"), Some("g")));
    assert_eq!((settings.tags.clone(), settings.dir.clone()), (vec!["a".to_owned(), "b".to_owned()], "/d".into()));
    let stage = settings.for_stage("orpo");
    assert_eq!((stage.name.as_deref(), stage.run_id.as_deref()), (Some("n-orpo"), Some("r1-orpo")));

    let faults = [("WANDB_MODE", "onlin"), ("WANDB_BASE_URL", "api.wandb.ai"), ("WANDB_RUN_ID", "a/b")];
    for (name, value) in faults {
        let error = read(&[(name, value)]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(value), "{error}");
    }
    let error = read(&[("WANDB_BASE_URL", "ftp://user:secret@host")]).unwrap_err().to_string();
    assert!(!error.contains("secret"), "{error}");
}
