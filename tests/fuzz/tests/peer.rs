//! A peer that follows no protocol: scripts of dice for a whole engine, on any toolchain.
//! The dice are seeded; a failure prints the seed of its script. Coverage-guided scripts are what `fuzz/` is for.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use tandem_fuzz_targets::peer::peer_stream;

const SCRIPTS: u64 = 2000;

/// A script of up to 600 bytes, by SplitMix64.
fn script(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = state;
        bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ bits >> 31
    };
    let length = next() % 600;
    (0..length).map(|_| next() as u8).collect()
}

#[test]
fn no_script_of_dice_breaks_the_engine() {
    let first = std::env::var("TANDEM_FUZZ_SEED").map_or(0, |seed| seed.parse().unwrap());
    for seed in first..first + SCRIPTS {
        let input = script(seed);
        let outcome = catch_unwind(AssertUnwindSafe(|| peer_stream(&input)));
        assert!(
            outcome.is_ok(),
            "seed {seed}: TANDEM_FUZZ_SEED={seed} shows it again"
        );
    }
}
