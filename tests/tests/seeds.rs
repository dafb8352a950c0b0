//! Random histories from seeds: no acknowledged write is lost, replicas that call themselves UpToDate are equal, and healed nodes
//! come together. A failure prints its seed, the last 200 lines of its story, and the command that replays it.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_replicator::Protocol;
use tandem_tests::sim::campaign::run_traced;
use tandem_tests::sim::{Spec, run};

/// Threads of each test: two tests run beside each other.
const THREADS: usize = 2;

/// From here on clients also ask for parts of sectors, and nodes die at an I/O of their own.
const LATER: u64 = 2000;

/// From here on disks hang and fill up, handlers fail, and persons type whatever there is to type.
const ROUGH: u64 = 3000;

/// From here on devices are small.
const SMALL: u64 = 4000;

/// From here on resyncs compare checksums, persons verify, and blocks go bad.
const DIGESTS: u64 = 1_000_000;

fn seeds(protocol: Protocol, seeds: Range<u64>) {
    let next = AtomicU64::new(seeds.start);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while failure.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(Spec::new(seed, protocol));
                    if let Err(why) = outcome {
                        failure.lock().unwrap().get_or_insert(why);
                    }
                }
            });
        }
    });
    if let Some(why) = failure.into_inner().unwrap() {
        panic!("{why}");
    }
}

#[test]
fn a_thousand_histories_of_protocol_c_lose_nothing() {
    seeds(Protocol::C, 0..1000);
}

#[test]
fn later_histories_of_protocol_c_lose_nothing() {
    seeds(Protocol::C, LATER..LATER + 400);
}

#[test]
fn rough_histories_of_protocol_c_lose_nothing() {
    seeds(Protocol::C, ROUGH..ROUGH + 300);
}

#[test]
fn histories_of_protocol_b_keep_their_promises() {
    seeds(Protocol::B, 0..60);
    seeds(Protocol::B, LATER..LATER + 100);
    seeds(Protocol::B, ROUGH..ROUGH + 100);
}

#[test]
fn histories_of_protocol_a_keep_their_promises() {
    seeds(Protocol::A, 0..60);
    seeds(Protocol::A, LATER..LATER + 100);
    seeds(Protocol::A, ROUGH..ROUGH + 100);
}

#[test]
fn histories_with_checksums_and_verifies_lose_and_miss_nothing() {
    seeds(Protocol::C, DIGESTS..DIGESTS + 200);
    seeds(Protocol::B, DIGESTS..DIGESTS + 60);
    seeds(Protocol::A, DIGESTS..DIGESTS + 60);
}

#[test]
fn the_same_seed_gives_the_same_history_under_every_protocol() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        for seed in [17, LATER + 7, ROUGH + 11, SMALL + 5, DIGESTS + 3] {
            let spec = Spec::new(seed, protocol);
            let [(first, story), (second, again)] = [run_traced(spec), run_traced(spec)];
            let differs = story
                .lines()
                .zip(again.lines())
                .find(|(one, two)| one != two);
            assert_eq!(differs, None, "seed {seed} of protocol {protocol:?}");
            assert!(story.lines().count() > 1000, "seed {seed}: {story}");
            assert_eq!(first.unwrap(), second.unwrap(), "seed {seed}");
        }
    }
}

#[test]
fn another_seed_or_protocol_gives_another_history() {
    let print = |seed, protocol| run(Spec::new(seed, protocol)).unwrap().fingerprint;
    assert_ne!(print(17, Protocol::C), print(18, Protocol::C));
    assert_ne!(print(17, Protocol::C), print(17, Protocol::A));
}
