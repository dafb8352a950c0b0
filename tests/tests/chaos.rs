//! Short rounds with fixed seeds of what `cargo run --release -p tandem-tests --bin chaos` does for hours: daemons die, hang, lose their
//! link and their disks at random under load, and every write is judged.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use tandem_tests::e2e::chaos::{Round, run};

fn round(seed: u64, protocol: char) {
    let round = Round {
        seed,
        protocol,
        steps: 4,
    };
    let tally = run(&round, &std::env::temp_dir()).unwrap_or_else(|report| panic!("{report}"));
    assert!(tally.told > 100, "{round:?}: hardly anything was written");
    assert!(tally.comparisons > 0, "{round:?}: nothing was compared");
}

#[test]
fn protocol_c_survives_a_random_round() {
    round(2, 'C');
}

#[test]
fn protocol_b_survives_a_random_round() {
    round(3, 'B');
}

#[test]
fn protocol_a_survives_a_random_round() {
    round(5, 'A');
}
