//! The interval set against a slow oracle that compares every pair.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::ops::Range;

use proptest::prelude::*;
use tandem_replicator::intervals::*;

fn range() -> impl Strategy<Value = Range<u64>> {
    prop_oneof![
        (0_u64..200, 1_u64..9).prop_map(|(at, len)| at..at + len),
        (0_u64..200, 1_u64..300).prop_map(|(at, len)| at..at + len),
        (0_u64..200).prop_map(|at| at..at),
        Just(0..u64::MAX),
        Just(u64::MAX - 5..u64::MAX),
    ]
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
}

proptest! {
    #[test]
    fn readiness_agrees_with_comparing_every_pair(
        steps in prop::collection::vec((range(), 0_u8..3, any::<prop::sample::Index>()), 1..120),
    ) {
        let mut set = Intervals::new();
        // In the order of insertion.
        let mut all: Vec<(u64, Range<u64>)> = Vec::new();
        for (id, (range, what, pick)) in steps.into_iter().enumerate() {
            let is_ready = |all: &[(u64, Range<u64>)], id: u64| {
                let at = all.iter().position(|entry| entry.0 == id).unwrap();
                !all[..at].iter().any(|other| overlap(&other.1, &all[at].1))
            };
            if what > 0 || all.is_empty() {
                let id = id as u64;
                all.push((id, range.clone()));
                let answer = set.insert(id, range, IntervalKind::Application);
                prop_assert_eq!(answer == Admission::Ready, is_ready(&all, id));
            } else {
                let at = pick.index(all.len());
                let before: BTreeSet<u64> = all.iter().map(|entry| entry.0).filter(|id| is_ready(&all, *id)).collect();
                let (gone, _) = all.remove(at);
                let now: Vec<u64> = all
                    .iter()
                    .map(|entry| entry.0)
                    .filter(|id| is_ready(&all, *id) && !before.contains(id))
                    .collect();
                // The oracle's order is that of insertion.
                prop_assert_eq!(set.remove(gone), now);
            }
            prop_assert_eq!(set.len(), all.len());
            prop_assert_eq!(set.waiting(), all.iter().filter(|entry| !is_ready(&all, entry.0)).count());
            for (id, range) in &all {
                prop_assert_eq!(set.is_ready(*id), is_ready(&all, *id));
                let found: BTreeSet<u64> = set.overlapping(range.clone()).map(|entry| entry.0).collect();
                let wanted: BTreeSet<u64> =
                    all.iter().filter(|other| overlap(&other.1, range)).map(|other| other.0).collect();
                prop_assert_eq!(found, wanted);
            }
        }
    }
}

#[test]
fn a_later_interval_does_not_overtake_one_that_waits() {
    let mut set = Intervals::new();
    assert_eq!(
        set.insert(1, 0..4096, IntervalKind::Application),
        Admission::Ready
    );
    assert_eq!(
        set.insert(2, 0..1 << 30, IntervalKind::Resync),
        Admission::Waits
    );
    assert_eq!(
        set.insert(3, 8192..12288, IntervalKind::Application),
        Admission::Waits
    );
    assert_eq!(set.remove(1), vec![2]);
    assert_eq!(set.remove(2), vec![3]);
    assert_eq!(set.remove(3), Vec::<u64>::new());
    assert!(set.is_empty());
}

#[test]
fn huge_intervals_do_not_slow_small_ones_down() {
    let mut set = Intervals::new();
    set.insert(0, 1 << 40..1 << 41, IntervalKind::Application);
    for id in 1..100_000_u64 {
        assert_eq!(
            set.insert(id, id * 4096..id * 4096 + 4096, IntervalKind::Application),
            Admission::Ready
        );
    }
    for id in 1..100_000_u64 {
        assert_eq!(set.remove(id), Vec::<u64>::new());
    }
    assert_eq!(set.len(), 1);
}
