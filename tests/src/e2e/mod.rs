//! Real daemons on loopback, driven as an administrator and an application would: commands, NBD clients, signals,
//! cut links.
//!
//! Every wait has a deadline ([`wait::until`]), every process that is started is ended by its id, and every test has
//! loopback addresses and a directory of its own, so that tests run side by side.

pub mod address;
pub mod chaos;
pub mod client;
pub mod day;
pub mod failover;
pub mod history;
pub mod hung;
pub mod load;
pub mod node;
pub mod pair;
pub mod pings;
pub mod process;
pub mod proxy;
pub mod record;
pub mod tool;
pub mod verdict;
pub mod wait;
