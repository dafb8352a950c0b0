//! The deterministic simulator: pairs of engines (one, as a rule) over simulated disks, network and clock, random faults from a seed, and a judge that
//! knows every write.
//!
//! ```text
//!  campaign / worked trace ──► World ──► Node (engine, disks) ×2 for each pair
//!                                │  └──► Network, Clients
//!                                └──► Oracle for each pair, Trace
//! ```
//!
//! A run is a function of its seed: `cargo run -p tandem-tests --bin sim -- --seed N --trace` replays one.

// The simulator is a test: its arithmetic is on sizes that it has chosen itself.
#![allow(clippy::missing_panics_doc)]

pub mod black_box;
pub mod campaign;
pub mod clients;
pub mod crash;
pub mod dice;
pub mod disk;
pub mod lab;
pub mod network;
pub mod node;
pub mod oracle;
pub mod pair;
pub mod person;
pub mod planted;
pub mod shrink;
pub mod stamp;
pub mod stories;
pub mod trace;
pub mod typed;
pub mod worked;
pub mod world;

pub use campaign::{Cuts, Failure, Outcome, Report, Spec, run, run_cut};
pub use world::{Settings, World};
