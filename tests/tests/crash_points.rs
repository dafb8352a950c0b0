//! Every durable sequence of the engine, cut at every I/O, with choices of what a volatile cache kept (sim::crash); and the stories
//! that are cut leave none of these sequences out, neither of the engine's own list nor of what random histories do.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tandem_replicator::Protocol;
use tandem_replicator::planted::PlanEnd;
use tandem_tests::sim::Spec;
use tandem_tests::sim::campaign::run_watched;
use tandem_tests::sim::crash::{Depth, STORIES, search};
use tandem_tests::sim::world::{CutPlace, CutStage};

/// Seeds of each kind of history whose durable sequences must be among those that are cut.
const KINDS: [u64; 9] = [
    0, 2000, 3000, 4000, 1_000_000, 2_000_000, 3_000_000, 5_000_000, 6_000_000,
];

/// Histories of each kind.
const HISTORIES: u64 = 25;

/// Sequences that no story cuts, and why.
const NOT_CUT: &[(PlanEnd, &str)] = &[];

/// Steps of random histories that no story cuts, and why.
const NOT_CUT_THERE: &[(PlanEnd, CutStage, &str)] = &[];

/// Cuts every story; gives the steps of durable sequences that were cut.
fn cut_all_stories() -> BTreeSet<CutPlace> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let places = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(story) = STORIES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match search(story, None, Depth::Quick) {
                        Ok(searched) => {
                            println!("{}: {searched:?}", story.name);
                            assert!(searched.points > 2, "{}: nothing is written", story.name);
                            places.lock().unwrap().extend(searched.places);
                        }
                        Err((point, why)) => {
                            let text = format!("{why}\n{}: {point:?}", story.name);
                            failures.lock().unwrap().push(text);
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    places.into_inner().unwrap()
}

/// What random histories write in durable sequences.
fn random_places() -> BTreeSet<CutPlace> {
    let seeds = KINDS.into_iter().flat_map(|from| from..from + HISTORIES);
    let mut all = BTreeSet::new();
    for seed in seeds {
        let (outcome, places) = run_watched(Spec::new(seed, Protocol::C));
        if let Err(why) = outcome {
            panic!("{why}");
        }
        all.extend(places);
    }
    all
}

#[test]
fn no_crash_point_of_any_durable_sequence_loses_anything() {
    let cut = cut_all_stories();
    let ends: BTreeSet<PlanEnd> = cut.iter().map(|place| place.end).collect();
    for end in PlanEnd::ALL {
        let excused = NOT_CUT.iter().any(|(other, _)| other == end);
        let is_cut = ends.contains(end);
        assert!(is_cut || excused, "no story cuts {end:?}");
        assert!(!is_cut || !excused, "{end:?} is cut: it needs no excuse");
    }
    for stage in CutStage::ALL {
        let is_cut = cut.iter().any(|place| place.stage == stage);
        assert!(is_cut, "no story cuts {stage:?}");
    }
    let random = random_places();
    assert!(random.len() > 10, "{random:?}");
    let missed: Vec<_> = random
        .difference(&cut)
        .filter(|place| {
            let known = |(end, stage, _): &&_| (*end, *stage) == (place.end, place.stage);
            NOT_CUT_THERE.iter().find(known).is_none()
        })
        .collect();
    assert!(
        missed.is_empty(),
        "random histories do what no story cuts: {missed:?}"
    );
}
