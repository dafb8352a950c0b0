//! Short rounds of the failover that `cargo run -p tandem-tests --bin failover` repeats for hours: the Primary is killed under load, and
//! every acknowledged write is looked for on the node that takes over.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use tandem_tests::e2e::failover::{Round, run};

fn round(protocol: char, seed: u64) {
    let round = Round {
        protocol,
        length: Duration::from_secs(4),
        seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
    };
    let verdict = run(&round, &std::env::temp_dir());
    assert!(verdict.acknowledged > 0, "{round:?}: nothing was written");
    assert!(verdict.faults.is_empty(), "{round:?}: {verdict:?}");
}

#[test]
fn nothing_acknowledged_in_protocol_c_is_lost_when_the_primary_dies() {
    for seed in 1..=3 {
        round('C', seed);
    }
}

#[test]
fn protocol_a_loses_only_the_end_when_primary_and_link_die() {
    round('A', 4);
}

#[test]
fn nothing_acknowledged_in_protocol_b_is_lost_when_the_primary_dies() {
    round('B', 5);
}
