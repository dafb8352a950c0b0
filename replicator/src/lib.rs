//! The engine of a replicated block device: it decides everything and does nothing.
//!
//! One [`Resource`] is driven through one door: [`Resource::handle`] takes the time and an [`Event`] and appends
//! [`Effect`]s; [`Resource::next_deadline`] says when it wants an [`Event::Timer`]. The caller carries the effects
//! out and reports each completion as an event, exactly once for every token. Sends on one socket keep their
//! order; everything else may complete in any order.
//!
//! The engine does no I/O, reads no clock and draws its random numbers from a generator seeded by the caller, so
//! that a whole history can be replayed from a seed.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod activity_log;
pub mod bitmap;
pub mod black_box;
pub mod command;
pub mod effect;
pub mod event;
pub mod generations;
pub mod intervals;
mod numbered;
pub mod options;
pub mod planted;
pub mod random;
pub mod receive_epochs;
pub mod resource;
pub mod resync;
pub mod state;
pub mod status;
mod tape;
pub mod time;
pub mod transfer_log;

pub use command::{Answer, Command, Force, NewArea, PeerRoom};
pub use effect::{CloseHow, DiskOperation, Effect, Effects, Level, MetaOperation, Notification};
pub use event::{
    BackingInfo, CommandId, DialError, Event, Fua, IoError, MetaKind, OpenError, Operation,
    Request, RequestError, RequestId, SocketId, Token, Unmap, VolumeNumber,
};
pub use options::{DiskOptions, NetOptions, OnIoError, Protocol, ResourceOptions, VolumeOptions};
pub use resource::Resource;
pub use resource::inquiry::SyncExtent;
pub use status::{Counters, ResourceStatus, ResyncStatus, VerifiedStatus, VolumeStatus};
pub use tape::Fit;
pub use time::Time;
