//! The code set: loading, looking up, checking and searching. Run with `cargo bench --bench codes`.
#![allow(clippy::unwrap_used, reason = "a bench stops at the first fault")]

use std::hint::black_box;
use std::path::Path;

use axismapper::codes::{Code, Release, SearchIndex, check};
use axismapper::fsio;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

const XML_GZ: &str = "assets/icd10cm/icd10cm-tabular-April-1-2026.xml.gz";

fn loading(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let xml = dir.path().join("tabular.xml");
    std::fs::write(&xml, fsio::read_text(&root.join(XML_GZ)).unwrap()).unwrap();
    let mut group = c.benchmark_group("load");
    group.sample_size(20);
    // What is loaded is dropped outside the measured time.
    group.bench_function("built-in release", |b| b.iter_with_large_drop(|| Release::builtin().unwrap()));
    group.bench_function("XML", |b| b.iter_with_large_drop(|| Release::load(&xml).unwrap()));
    group.bench_function("XML, gzip", |b| b.iter_with_large_drop(|| Release::load(&root.join(XML_GZ)).unwrap()));
    group.finish();
}

fn looking_up(c: &mut Criterion) {
    let release = Release::builtin().unwrap();
    let codes: Vec<Code> = release.billable().iter().step_by(73).map(|billable| billable.code).collect();
    let texts: Vec<String> = codes.iter().map(Code::to_string).collect();
    let mut next = (0..codes.len()).cycle();
    c.bench_function("look-up of a code", |b| {
        b.iter_batched(
            || codes[next.next().unwrap()],
            |code| black_box(release.get(code)).is_some(),
            BatchSize::SmallInput,
        );
    });
    c.bench_function("look-up of a text", |b| {
        let text = |idx: usize| texts[idx].as_str();
        b.iter_batched(
            || text(next.next().unwrap()),
            |text| Code::parse_lenient(text).is_ok_and(|code| release.is_billable(code)),
            BatchSize::SmallInput,
        );
    });
    // The notes are read once, at the first question.
    let _ = release.excludes1(codes[0], codes[1]);
    c.bench_function("check of a set of three", |b| {
        b.iter(|| black_box(check(&release, &["S82.201A", "E11.9", "V18.4XXA"])).claimable);
    });
    c.bench_function("check of an unknown code", |b| b.iter(|| black_box(check(&release, &["S82.2O1A"])).claimable));
}

fn searching(c: &mut Criterion) {
    let release = Release::builtin().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let index = SearchIndex::open(&release, cache.path()).unwrap();
    let mut group = c.benchmark_group("search");
    group.sample_size(20);
    group.bench_function("index made", |b| b.iter_with_large_drop(|| SearchIndex::of(&release).unwrap()));
    group.bench_function("kept index opened", |b| {
        b.iter_with_large_drop(|| SearchIndex::open(&release, cache.path()).unwrap());
    });
    for text in
        ["high blood pressure", "broken shin bone left", "hart atack", "fra", "unspecified fracture of left tibia"]
    {
        group.bench_function(text, |b| b.iter(|| index.search(black_box(text), 10).unwrap().len()));
    }
    group.finish();
}

criterion_group!(benches, loading, looking_up, searching);
criterion_main!(benches);
