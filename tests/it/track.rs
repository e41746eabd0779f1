//! Progress lines and `metrics.jsonl`.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axismapper::track::{Console, MetricsLog};
use serde_json::{Map, Value, json};

fn row(value: f64) -> Map<String, Value> {
    json!({"loss": value, "epoch": 0.5}).as_object().unwrap().clone()
}

fn steps_of(path: &Path) -> Vec<u64> {
    let rows = axismapper::fsio::read_jsonl::<Value>(path).unwrap();
    rows.iter().map(|row| row["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_resumed_log_drops_what_came_after_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out/sft/metrics.jsonl");
    let mut log = MetricsLog::open(&path, 0).unwrap();
    for step in [10, 20, 20, 30, 40] {
        log.write(step, row(f64::from(step as u32))).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("{\"step\":10,\"loss\":10.0,\"epoch\":0.5}\n"));
    drop(log);
    let mut log = MetricsLog::open(&path, 20).unwrap();
    assert_eq!(steps_of(&path), [10, 20, 20]);
    let rows = MetricsLog::rows(&path, 19).unwrap();
    assert_eq!(rows, [(10, row(10.0))]);
    assert_eq!(MetricsLog::rows(&path, 20).unwrap().len(), 3);
    assert_eq!(MetricsLog::rows(&path, 0).unwrap(), []);
    assert_eq!(MetricsLog::rows(&dir.path().join("none"), 20).unwrap(), []);
    log.write(30, row(1.0)).unwrap();
    assert_eq!(steps_of(&path), [10, 20, 20, 30]);

    let torn = std::fs::read_to_string(&path).unwrap() + "{\"step\":31,\"lo";
    std::fs::write(&path, torn).unwrap();
    MetricsLog::open(&path, 40).unwrap().write(40, row(f64::NAN)).unwrap();
    assert_eq!(steps_of(&path), [10, 20, 20, 30, 40]);
    MetricsLog::open(&path, 0).unwrap();
    assert_eq!(steps_of(&path), [0_u64; 0]);
}

fn lines_with(every: Duration) -> Vec<String> {
    let out = Arc::new(Mutex::new(Vec::<u8>::new()));
    let console = Console::plain(out.clone(), every);
    let progress = console.bar("sft", 4);
    progress.resume_at(1);
    progress.message("loss 0.5".into());
    for _ in 0..3 {
        progress.advance(1);
    }
    progress.finish();
    console.note("kept step 3");
    let text = String::from_utf8(out.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn plain_lines_come_now_and_then_and_at_the_end() {
    assert_eq!(lines_with(Duration::MAX), ["sft: 4/4 in 0 s, loss 0.5", "kept step 3"]);
    let all = lines_with(Duration::ZERO);
    assert_eq!(all.len(), 5);
    assert!(all[0].starts_with("sft: 2/4, ") && all[0].ends_with(" left, loss 0.5"), "{all:?}");
    assert!(all[2].starts_with("sft: 4/4, ") && !all[2].contains("left"), "{all:?}");
}
