//! The engine of a resource, driven through its one door.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
#![allow(
    unreachable_pub,
    reason = "the harness is shared by the modules of this test"
)]

mod attaching;
mod checksums;
mod crashes;
mod detaching;
mod disk;
mod failovers;
mod harness;
mod holes;
mod inquiry;
mod integrity;
mod linking;
mod liveness;
mod odd;
mod pairs;
mod plans;
mod replication;
mod resizing;
mod resyncing;
mod roles;
mod splitting;
mod strangers;
mod traces;
mod verifying;
