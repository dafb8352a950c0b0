//! The engine of a resource, driven through its one door.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod attaching;
mod detaching;
mod harness;
mod plans;
mod roles;
