//! The control socket: JSON lines between commands of an administrator and the daemon.

pub mod client;
mod idle;
pub mod messages;
mod outdated_net;
pub(crate) mod server;

pub use client::{Asked, ControlClient, ControlError, Watch, WatchItem};
