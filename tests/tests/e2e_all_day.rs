//! A short day of two daemons with forty resources each: links are lost and come back, clients come and go, roles change places, disks are
//! detached, and SIGTERM ends both in order. `scripts/all-day` is the long one.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use tandem_tests::e2e::day::{Plan, connects, run};

#[test]
fn forty_resources_in_one_daemon_are_used_disturbed_and_ended_in_order() {
    let plan = Plan {
        resources: 40,
        length: Duration::from_secs(4),
        // Fewer than it takes to judge the growth of memory, which a few seconds cannot show.
        looks: 1,
        connects: 1,
        pause: Duration::from_millis(5),
        seed: 1,
        base: std::env::temp_dir(),
    };
    let day = run(&plan, |look| println!("{}", look.line()));
    println!(
        "{:?}, {} links lost and back, {:?}",
        day.tally,
        connects(&day.tally),
        day.ending
    );
    assert!(day.faults.is_empty(), "{:#?}", day.faults);
    assert!(day.writes > 100, "{} writes", day.writes);
    // All that is at rest is the same as before the first deed.
    let [first, last] = day.looks.as_slice() else {
        panic!("{} looks", day.looks.len());
    };
    for node in 0..2 {
        let (before, after) = (first.held[node].descriptors, last.held[node].descriptors);
        assert_eq!(before, after, "descriptors of node {node}");
    }
}
