//! What the data path costs, measured side by side.
//!
//! Three harnesses live here. [`Pair`] joins two engines without a system call: what the engine alone costs (`cargo bench -p
//! tandem-benches`). [`compare`] runs real daemons and their peers from outside, under the same load over NBD, in turn. [`jobs`] measures
//! what else a replicated device has to do: resync, large devices, many resources, a lost link, a dead node.
//! Read [`compare`] first, then [`load`] (the generator) and [`contenders`] (what is started, and how).

pub mod compare;
pub mod contenders;
mod disks;
mod failure;
pub mod floor;
pub mod jobs;
pub mod load;
pub mod machine;
pub mod options;
mod pair;
pub mod plots;
pub mod process;
pub mod report;
pub mod rows;
pub mod stats;

pub use failure::Failure;
pub use pair::Pair;
