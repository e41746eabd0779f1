//! The demo end to end, at sizes that run in seconds: every step, going on after a stop, and the same bytes either way.

use std::path::{Path, PathBuf};

use axismapper::diag::Diagnostic;
use axismapper::pipeline::{DemoReport, DemoRequest, DemoSettings, Error, run_demo};
use axismapper::stop::Stop;
use axismapper::track::Console;
use tch::Device;

fn run(out: &Path, stop: &Stop) -> Result<DemoReport, Error> {
    let settings = DemoSettings::tiny();
    run_demo(&DemoRequest { out, settings: &settings, device: Device::Cpu }, &Console::new(true), stop)
}

/// Every result file but those with times in them.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with("checkpoint-") {
            files(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "safetensors") || name == "predictions.jsonl" {
            found.push(path);
        }
    }
}

#[test]
fn every_step_leaves_its_results_and_a_second_run_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let report = run(dir.path(), &Stop::default()).unwrap();
    let names: Vec<&str> = report.stages.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["base", "sft", "orpo", "merged"]);
    // A model that has learned nothing must not meet the targets.
    assert!(!report.meets_targets());
    assert!(report.to_text().contains("MISSED"));
    // Merged into the weights that the adapter was trained on, the model is the same but for rounding.
    assert!(report.merge.quantized.max_abs < 1e-3, "{:?}", report.merge);
    assert!(report.merge.original.max_abs > report.merge.quantized.max_abs);
    for file in [
        "data/train.jsonl",
        "data/orpo_train.jsonl",
        "configs/sft.yaml",
        "base/final/model.safetensors",
        "sft/metrics.jsonl",
        "sft/config.yaml",
        "sft/final/adapter_model.safetensors",
        "orpo/final/adapter_config.json",
        "merged/model.safetensors",
        "merged/tokenizer.json",
        "merged/generation_config.json",
        "merged/merge.json",
        "report.json",
        "report.html",
    ] {
        assert!(dir.path().join(file).is_file(), "{file}");
    }
    let modified = |file: &str| std::fs::metadata(dir.path().join(file)).unwrap().modified().unwrap();
    let before = modified("sft/final/adapter_model.safetensors");
    run(dir.path(), &Stop::default()).unwrap();
    assert_eq!(modified("sft/final/adapter_model.safetensors"), before);
}

#[test]
fn a_stopped_demo_goes_on_and_ends_with_the_same_bytes() {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(whole.path(), &Stop::default()).unwrap();

    let stop = Stop::default();
    stop.request();
    let stopped = run(cut.path(), &stop).unwrap_err();
    assert!(stopped.to_string().contains("stopped on request"), "{stopped}");
    assert!(stopped.hint().unwrap().contains("run the same command again"));
    run(cut.path(), &Stop::default()).unwrap();

    let mut paths = Vec::new();
    files(whole.path(), &mut paths);
    assert!(paths.len() > 6, "{paths:?}");
    for path in paths {
        let twin = cut.path().join(path.strip_prefix(whole.path()).unwrap());
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&twin).unwrap(), "{} differs", path.display());
    }
}

#[test]
fn another_seed_is_another_demo() {
    let dir = tempfile::tempdir().unwrap();
    let settings = DemoSettings::tiny();
    let request = DemoRequest { out: dir.path(), settings: &settings, device: Device::Cpu };
    let stop = Stop::default();
    run_demo(&request, &Console::new(true), &stop).unwrap();
    let other = DemoSettings { seed: settings.seed + 1, ..settings };
    let request = DemoRequest { settings: &other, ..request };
    assert!(matches!(run_demo(&request, &Console::new(true), &stop), Err(Error::OtherDemo { .. })));
}
