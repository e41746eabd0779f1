//! Decoding speed of a model folder, NF4, one line of JSON for `scripts/bench_decode.py`.
//!
//!     cargo bench --bench decode -- DIR [N_NEW] [BATCH] [base|dora]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use axismapper::adapter::{Settings, TargetModules};
use axismapper::model::{self, KvCache, Packed, Quantization, Segment};
use axismapper::tensor::{Placement, threads};
use tch::{Device, Kind, Tensor};

const N_PROMPT: usize = 32;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let Some(dir) = args.first() else {
        println!("decode: name a model folder to measure it");
        return;
    };
    let number = |idx: usize, default: usize| args.get(idx).map_or(default, |text| text.parse().unwrap());
    let (n_new, batch) = (number(1, 64), number(2, 1));
    let placement = Placement { device: Device::Cpu, dtype: Kind::BFloat16 };
    threads::join_pool().unwrap();
    let started = Instant::now();
    let mut model = model::load(Path::new(dir), placement, Quantization::Nf4).unwrap();
    let load_seconds = started.elapsed().as_secs_f64();
    if args.get(3).is_some_and(|kind| kind == "dora") {
        let settings = Settings {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            use_dora: true,
            use_rslora: false,
            target_modules: TargetModules::Pattern("all-linear".into()),
            rank_pattern: Default::default(),
            alpha_pattern: Default::default(),
        };
        model::new_adapter(&mut model, &settings, 1).unwrap();
    }
    let ids: Vec<i64> = (0..batch * N_PROMPT).map(|idx| (idx as i64 * 7919) % model.config.vocab_size).collect();
    let segments: Vec<Segment> = (0..batch).map(|_| Segment::plain(N_PROMPT)).collect();
    let packed = Packed::new(&ids, &segments, model.config.vocab_size, Device::Cpu).unwrap();
    let lens = vec![N_PROMPT as i64; batch];
    let max_len = (N_PROMPT + n_new + 1) as i64;
    let (mut step_seconds, mut step_cpu_seconds) = (Vec::new(), Vec::new());
    let mut prefill_seconds = f64::INFINITY;
    for _ in 0..3 {
        let mut cache = KvCache::new(&model.config, placement, batch as i64, max_len).unwrap();
        let started = Instant::now();
        let mut logits = model.prefill(&packed, &lens, &mut cache).unwrap();
        prefill_seconds = started.elapsed().as_secs_f64().min(prefill_seconds);
        let (started, cpu_started) = (Instant::now(), cpu_seconds());
        for _ in 0..n_new {
            let next: Tensor = logits.argmax(-1, false);
            logits = model.decode(&next, &mut cache).unwrap();
        }
        step_seconds.push(started.elapsed().as_secs_f64() / n_new as f64);
        step_cpu_seconds.push((cpu_seconds() - cpu_started) / n_new as f64);
    }
    step_seconds.sort_by(f64::total_cmp);
    step_cpu_seconds.sort_by(f64::total_cmp);
    println!(
        "{{\"load_seconds\": {load_seconds:.2}, \"prefill_ms\": {:.1}, \"step_ms\": {:.2}, \"step_cpu_ms\": {:.2}, \"tokens_per_second\": {:.1}}}",
        1e3 * prefill_seconds,
        1e3 * step_seconds[1],
        1e3 * step_cpu_seconds[1],
        batch as f64 / step_seconds[1]
    );
}

/// Processor time of this process so far, all threads, which compares on a busy machine. Linux counts it in hundredths.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap_or(0.0) / 100.0).sum()
}
