//! Goal: a Tandem node and a node with the kernel's DRBD 8.4 are an ordinary pair, in every role.
//! Method: the real kernel in a virtual machine (`tests/lab`), commands on both sides, both disks compared byte by byte,
//! and the kernel's own messages judged.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod congestion;
mod connect;
mod crash;
mod data;
mod disks;
mod extensions;
mod integrity;
mod interrupted;
mod log_writes;
mod refuse;
mod replace;
mod resync;
mod roles;
mod soak;
mod switch;
mod verify;
mod volumes;
