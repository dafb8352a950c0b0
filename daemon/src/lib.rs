//! Turns the effects of the engine into system calls and completions into events.
//!
//! [`run`] is the daemon. Commands of an administrator speak to a running daemon through [`control::ControlClient`].
//!
//! ```text
//!  main thread                         one thread a resource
//!  control socket ── Message ───────►  ResourceLoop ── events ──► engine
//!  NBD handshakes ── Client ────────►    │   │   │ ◄── effects ──
//!  proc text      ◄── Published ─────  disks peer clients
//! ```

mod blackbox;
pub mod control;
mod daemon;
mod disk;
mod exports;
#[cfg(test)]
mod fake;
mod handlers;
mod memory;
mod nbd;
mod node;
mod peer;
pub mod places;
pub mod proc;
mod process;
mod recording;
mod report;
mod resource_loop;
mod settings;
mod socket;
mod strangers;
mod systemd;

pub use daemon::{DaemonError, DaemonOptions, LogTarget, run};
pub use disk::backing::lock_slot;
pub use handlers::Handlers;
pub use settings::SettingError;
