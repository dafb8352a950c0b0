//! Power cuts on a real block layer: a Tandem node runs in a virtual machine of `tests/lab` on dm-log-writes, which writes down what
//! reached the medium, and in which order relative to flushes. From that log the disk is built as every power cut could have
//! left it, and each image is judged.
//!
//! ```text
//!  Stage ── a node in the machine on dm-log-writes, its peer on this host, clients of both
//!    ├──► Log      what the medium saw, with a mark after every step
//!    └──► Ledger   what clients wrote and were told, and the peer's disk, at every mark
//!  Log ──► cuts ──► images ──► judge (metadata, values, coverage) ──► engine (both disks in the simulator until they are in sync)
//!                                                                └──► daemons (the same with two real daemons)
//! ```
//!
//! The format of the log and what dm-log-writes promises about its order are in the kernel's documentation
//! (`admin-guide/device-mapper/log-writes`): a write is logged when the next flush that was submitted after its completion has
//! ended, a write with FUA when it has ended, a mark at once.

pub mod cuts;
pub mod engine;
pub mod judge;
pub mod ledger;
pub mod log;
pub mod stage;
pub mod trial;

pub use stage::{Burst, Side, Stage};
