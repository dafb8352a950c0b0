//! Random histories from seeds: no acknowledged write is lost, replicas that call themselves UpToDate are equal, and healed nodes
//! come together. A failure prints its seed, the last 200 lines of its story, and the command that replays it.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_replicator::Protocol;
use tandem_tests::sim::campaign::{ACTIONS, run_traced};
use tandem_tests::sim::typed::FORMS;
use tandem_tests::sim::world::Seen;
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

/// From here on half of the histories have `on-io-error pass_on`.
const PASS_ON: u64 = 2_000_000;

/// From here on disks grow, persons type `resize`, and the target of a resync may ask for holes.
const RESIZE: u64 = 3_000_000;

/// From here on persons type what only a node that is StandAlone takes.
const ALONE: u64 = 5_000_000;

/// From here on nodes die between two effects of one event, and sectors are half written.
const TORN: u64 = 6_000_000;

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
fn histories_with_failed_disks_that_stay_lose_nothing() {
    seeds(Protocol::C, PASS_ON..PASS_ON + 100);
    seeds(Protocol::B, PASS_ON..PASS_ON + 40);
    seeds(Protocol::A, PASS_ON..PASS_ON + 40);
}

#[test]
fn histories_with_disks_that_grow_lose_nothing() {
    for from in [RESIZE, ALONE, TORN] {
        seeds(Protocol::C, from..from + 100);
        seeds(Protocol::B, from..from + 40);
        seeds(Protocol::A, from..from + 40);
    }
}

/// Faults of rough and later histories, beside those of [`ACTIONS`].
const ROUGH_FAULTS: [&str; 12] = [
    "a disk hangs",
    "a disk is full",
    "closed ports",
    "handlers fail",
    "a death after a promotion",
    "a peer lost without a disk",
    "two failures, and a takeover",
    "resize",
    "blocks go bad",
    "invalidate, alone",
    "invalidate-remote, alone",
    "new-current-uuid, alone",
];

#[test]
fn random_histories_have_every_fault_and_every_command_of_the_engine() {
    let faults = ACTIONS.iter().map(|(_, name, _)| *name);
    let mut faults: BTreeSet<&str> = faults.chain(ROUGH_FAULTS).collect();
    let mut commands: BTreeSet<&str> = FORMS.iter().copied().collect();
    let mut seen = Seen::default();
    for seed in TORN..TORN + 300 {
        let report = run(Spec::new(seed, Protocol::C)).unwrap();
        seen.add(report.seen);
        for name in &report.kinds {
            faults.remove(name);
        }
        commands = &commands - &report.commands;
        let all = seen.list().iter().all(|(_, count)| *count > 0);
        if faults.is_empty() && commands.is_empty() && all {
            return;
        }
    }
    panic!("never seen: {faults:?}, {commands:?}, or {seen:?}");
}

#[test]
fn the_same_seed_gives_the_same_history_under_every_protocol() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        for seed in [
            17,
            LATER + 7,
            ROUGH + 11,
            SMALL + 5,
            DIGESTS + 3,
            PASS_ON + 3,
            RESIZE + 5,
            ALONE + 1,
            TORN + 1,
        ] {
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
