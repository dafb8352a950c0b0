//! Random histories from seeds: no acknowledged write is lost, replicas that call themselves UpToDate are equal, and healed nodes
//! come together. A failure prints its seed, the last 200 lines of its story, and the command that replays it.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_replicator::Protocol;
use tandem_tests::sim::{Spec, run};

/// Threads of each test: two tests run beside each other.
const THREADS: usize = 2;

/// From here on clients also ask for parts of sectors, and nodes die at an I/O of their own.
const LATER: u64 = 2000;

/// From here on disks hang and fill up, handlers fail, and persons type whatever there is to type.
const ROUGH: u64 = 3000;

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
fn the_same_seed_gives_the_same_history() {
    for seed in [3, 17, 40, LATER + 1, LATER + 7] {
        let spec = Spec::new(seed, Protocol::C);
        let [first, second] = [run(spec).unwrap(), run(spec).unwrap()];
        assert_eq!(first.fingerprint, second.fingerprint, "seed {seed}");
        assert_eq!(first.lines, second.lines, "seed {seed}");
    }
}
