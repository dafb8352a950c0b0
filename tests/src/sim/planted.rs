//! Deliberate mistakes of the engine, each of which the simulator must find: what it cannot find there it would not find in
//! honest code either.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tandem_replicator::Protocol;
use tandem_replicator::planted::Planted;

use super::campaign::{Failure, Spec, run};

/// Histories within which a planted mistake must show.
pub const SEEDS_MAX: u64 = 300;

/// How the search for a planted mistake ended.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub name: &'static str,
    /// What is wrong.
    pub text: &'static str,
    /// The protocol of the histories.
    pub protocol: Protocol,
    /// Histories that were run.
    pub runs: u64,
    /// The seed that found it, and what the oracle said.
    pub seed: Option<(u64, Failure)>,
}

/// The protocol under which a mistake matters.
#[must_use]
pub fn protocol_of(bug: Planted) -> Protocol {
    match bug {
        Planted::EpochStaysOpen | Planted::OverlapEpochs | Planted::IgnorePeerOverlap => {
            Protocol::A
        }
        _ => Protocol::C,
    }
}

/// Runs histories from `first` on until one shows the mistake.
#[must_use]
pub fn search(
    bug: Planted,
    name: &'static str,
    text: &'static str,
    first: u64,
    count: u64,
) -> Found {
    let protocol = protocol_of(bug);
    let mut found = Found {
        name,
        text: text.trim(),
        protocol,
        runs: 0,
        seed: None,
    };
    for seed in first..first + count {
        found.runs += 1;
        let spec = Spec {
            planted: Some(bug),
            ..Spec::new(seed, protocol)
        };
        if let Err(failure) = run(spec) {
            found.seed = Some((seed, failure));
            break;
        }
    }
    found
}

/// Searches for all of them on some threads; `first` says where the histories of each begin. In the order of [`Planted::ALL`].
#[must_use]
pub fn search_all(threads: usize, count: u64, first: impl Fn(&str) -> u64 + Sync) -> Vec<Found> {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some((bug, name, text)) =
                    Planted::ALL.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let found = search(*bug, name, text, first(name), count);
                    if let Ok(mut all) = all.lock() {
                        all.push(found);
                    }
                }
            });
        }
    });
    let mut all = all
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = |name: &str| Planted::ALL.iter().position(|(_, other, _)| *other == name);
    all.sort_by_key(|found| place(found.name));
    all
}
