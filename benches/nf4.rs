//! NF4 loops by instruction set, and the products of a training step, on the up projection of Qwen2.5-0.5B (4864 x 896):
//! `cargo bench --bench nf4`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use axismapper::quant::{Backward, Change, Forward, Isa, Nf4};
use axismapper::tensor::Rng;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tch::Kind;

const ROWS: i64 = 4864;
const COLUMNS: i64 = 896;

fn loops(criterion: &mut Criterion) {
    let mut rng = Rng::named(1, "bench");
    let source = rng.normal(&[ROWS, COLUMNS], 0.02).unwrap().to_kind(Kind::BFloat16);
    let mut group = criterion.benchmark_group("nf4");
    group.sample_size(20).throughput(Throughput::Elements((ROWS * COLUMNS) as u64));
    for isa in Isa::available() {
        let weight = Nf4::quantize(&source).unwrap().with_dtype(Kind::BFloat16).with_isa(isa);
        for kind in [Kind::Float, Kind::BFloat16] {
            let mut out = weight.dequantize(kind).unwrap();
            group.bench_function(format!("expand to {kind:?}, {isa:?}"), |bencher| {
                bencher.iter(|| weight.dequantize_into(&mut out).unwrap());
            });
        }
        for n in [1, 4, 8] {
            let x = rng.normal(&[n, COLUMNS], 1.0).unwrap().to_kind(Kind::BFloat16);
            group.bench_function(format!("multiply {n} rows, {isa:?}"), |bencher| {
                bencher.iter(|| weight.multiply(&x).unwrap());
            });
        }
    }
    let wide = Nf4::quantize(&source).unwrap().dequantize(Kind::BFloat16).unwrap();
    for n in [1, 4, 8] {
        let x = rng.normal(&[n, COLUMNS], 1.0).unwrap().to_kind(Kind::BFloat16);
        group.bench_function(format!("multiply {n} rows, libtorch bf16"), |bencher| {
            bencher.iter(|| x.f_linear(&wide, None::<&tch::Tensor>).unwrap());
        });
    }
    group.finish();
}

/// Products of many rows with the weight as it is, beside expanding it and multiplying by libtorch.
fn products(criterion: &mut Criterion) {
    let mut rng = Rng::named(2, "bench");
    let source = rng.normal(&[ROWS, COLUMNS], 0.02).unwrap().to_kind(Kind::BFloat16);
    let weight = Nf4::quantize(&source).unwrap().with_dtype(Kind::BFloat16);
    let mut wide = weight.dequantize(Kind::BFloat16).unwrap();
    for n in [128, 360, 720] {
        let mut group = criterion.benchmark_group(format!("product with {n} rows"));
        group.sample_size(20).throughput(Throughput::Elements((2 * n * ROWS * COLUMNS) as u64));
        let mut draw = |width| rng.normal(&[n, width], 1.0).unwrap().to_kind(Kind::BFloat16);
        let (x, dy) = (draw(COLUMNS), draw(ROWS));
        let forward = Forward::plain(&x);
        let backward = Backward { dy: &dy, scale: None, low_rank: None, before: None, mask: None };
        for isa in [Isa::Avx512Bf16, Isa::Amx] {
            let weight = Nf4::quantize(&source).unwrap().with_dtype(Kind::BFloat16).with_isa(isa);
            if weight.can_multiply_many() {
                let name = |direction: &str| format!("{direction}, as it is, {isa:?}");
                group.bench_function(name("forward"), |bencher| bencher.iter(|| weight.outputs(&forward).unwrap()));
                group.bench_function(name("backward"), |bencher| bencher.iter(|| weight.gradients(&backward).unwrap()));
            }
        }
        group.bench_function("forward, expanded", |bencher| {
            bencher.iter(|| {
                weight.dequantize_into(&mut wide).unwrap();
                x.f_linear(&wide, None::<&tch::Tensor>).unwrap()
            });
        });
        group.bench_function("backward, expanded", |bencher| {
            bencher.iter(|| {
                weight.dequantize_into(&mut wide).unwrap();
                dy.f_matmul(&wide).unwrap()
            });
        });
        group.finish();
    }
}

/// The products of DoRA with dropout, which are made of fewer where few elements are dropped, on both sides of the weight.
fn dropped_products(criterion: &mut Criterion) {
    const N: i64 = 360;
    let mut rng = Rng::named(3, "bench");
    for (rows, columns) in [(ROWS, COLUMNS), (COLUMNS, ROWS)] {
        let source = rng.normal(&[rows, columns], 0.02).unwrap().to_kind(Kind::BFloat16);
        let mut group = criterion.benchmark_group(format!("DoRA, {N} rows, {rows} x {columns}"));
        group.sample_size(20).throughput(Throughput::Elements((2 * N * ROWS * COLUMNS) as u64));
        let mut draw = |size: [i64; 2]| rng.normal(&size, 1.0).unwrap().to_kind(Kind::BFloat16);
        let (x, dy, z) = (draw([N, columns]), draw([N, rows]), draw([N, 16]));
        let (a, b, factors) =
            (draw([16, columns]), draw([rows, 16]), draw([1, rows]).view([rows]).to_kind(Kind::Float));
        let masks = [0.05, 0.3].map(|p| rng.dropout_mask(&[N, columns], p, Kind::BFloat16).unwrap());
        for isa in [Isa::Avx512Bf16, Isa::Amx] {
            let weight = Nf4::quantize(&source).unwrap().with_dtype(Kind::BFloat16).with_isa(isa);
            if !weight.can_multiply_many() {
                continue;
            }
            let plain = Forward { low_rank: Some((&z, &b)), ..Forward::plain(&x) };
            let low_rank = Some((&z, &a));
            let plain_back = Backward { dy: &dy, scale: None, low_rank, before: Some(&x), mask: None };
            group.bench_function(format!("forward, no dropout, {isa:?}"), |bencher| {
                bencher.iter(|| weight.outputs(&plain).unwrap());
            });
            group.bench_function(format!("backward, no dropout, {isa:?}"), |bencher| {
                bencher.iter(|| weight.gradients(&plain_back).unwrap());
            });
            for (mask, share) in masks.iter().zip(["0.05", "0.3"]) {
                let dropped = &x * mask;
                let change = Some(Change { factors: &factors, mask, dropped: &dropped });
                let forward = Forward { change, ..plain };
                let backward = Backward { scale: Some(&factors), mask: Some(mask), ..plain_back };
                group.bench_function(format!("forward, dropout {share}, {isa:?}"), |bencher| {
                    bencher.iter(|| weight.outputs(&forward).unwrap());
                });
                group.bench_function(format!("backward, dropout {share}, {isa:?}"), |bencher| {
                    bencher.iter(|| weight.gradients(&backward).unwrap());
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, loops, products, dropped_products);
criterion_main!(benches);
