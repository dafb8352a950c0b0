//! What each fuzz target does with an input, without the fuzzer.
//!
//! `fuzz/` runs these functions under libFuzzer, with inputs made from coverage; the test `corpus` of this crate runs them
//! over the inputs that were kept (`fuzz/corpus`), on any toolchain. A target panics when something is wrong and returns
//! otherwise, also for inputs that are refused.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A failed assumption is a finding.

pub mod black_box;
pub mod config;
pub mod disk;
pub mod nbd_session;
pub mod nbd_transmission;
pub mod peer;
pub mod wire;

/// A target: what is done with one input.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its program in `fuzz/fuzz_targets` and of its folder in `fuzz/corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    ("activity_log", disk::activity_log),
    ("auth", wire::auth),
    ("bitmap_code", wire::bitmap_code),
    ("black_box", black_box::black_box),
    ("config", config::config),
    ("control", wire::control),
    ("detect", disk::detect),
    ("dump_text", disk::dump_text),
    ("framing_data", wire::framing_data),
    ("framing_meta", wire::framing_meta),
    ("nbd_session", nbd_session::nbd_session),
    ("nbd_transmission", nbd_transmission::nbd_transmission),
    ("peer_stream", peer::peer_stream),
    ("superblock", disk::superblock),
];
