//! Resync and online verify (spec/state-machine.md section 6): how fast, in which regions, and which blocks next.

pub mod controller;
pub mod extents;
pub mod merge;
