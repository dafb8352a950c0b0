//! The CPU cost of the engine on both nodes together, for each protocol: `cargo bench -p tandem-benches`.
#![allow(missing_docs)] // The macros of the harness make functions without documentation.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tandem_benches::Pair;
use tandem_replicator::Protocol;

/// Hot working set in 4 KiB blocks: 16 MiB, four extents of the activity log.
const HOT_BLOCKS: u64 = 4096;

fn writes(criterion: &mut Criterion) {
    let data = Bytes::from(vec![7; 4096]);
    let mut group = criterion.benchmark_group("replicated 4 KiB write, depth 1");
    group.throughput(Throughput::Elements(1));
    for (name, protocol) in [("A", Protocol::A), ("B", Protocol::B), ("C", Protocol::C)] {
        let mut pair = Pair::new(protocol);
        let mut block = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                block = (block + 1031) % HOT_BLOCKS;
                pair.write(black_box(block * 4096), data.clone());
            });
        });
    }
    group.finish();
}

/// What the black boxes of both nodes cost: the difference to "C" above.
fn black_boxes(criterion: &mut Criterion) {
    let data = Bytes::from(vec![7; 4096]);
    let mut group = criterion.benchmark_group("events of replicated 4 KiB writes, protocol C");
    for (name, mut pair) in [
        ("without black boxes", Pair::new(Protocol::C)),
        ("with black boxes", Pair::recorded(Protocol::C)),
    ] {
        let before = pair.events_handled();
        pair.write(4096, data.clone());
        group.throughput(Throughput::Elements(pair.events_handled() - before));
        let mut block = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                block = (block + 1031) % HOT_BLOCKS;
                pair.write(black_box(block * 4096), data.clone());
            });
        });
    }
    group.finish();
}

fn cold_writes(criterion: &mut Criterion) {
    let data = Bytes::from(vec![7; 4096]);
    let mut pair = Pair::new(Protocol::C);
    let mut extent = 0;
    criterion.bench_function(
        "replicated 4 KiB write that walks over 60 extents",
        |bencher| {
            bencher.iter(|| {
                extent = (extent + 1) % 60;
                pair.write(black_box(extent << 22), data.clone());
            });
        },
    );
}

fn reads_and_flushes(criterion: &mut Criterion) {
    let mut pair = Pair::new(Protocol::C);
    let data = Bytes::from(vec![7; 4096]);
    criterion.bench_function("local 4 KiB read", |bencher| {
        bencher.iter(|| pair.read(black_box(8192), 4096));
    });
    criterion.bench_function("replicated 4 KiB write and flush, protocol C", |bencher| {
        bencher.iter(|| {
            pair.write(black_box(8192), data.clone());
            pair.flush();
        });
    });
}

criterion_group!(benches, writes, black_boxes, cold_writes, reads_and_flushes);
criterion_main!(benches);
