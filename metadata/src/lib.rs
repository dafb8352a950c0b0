//! The on-disk formats of DRBD 8.4 (v08): superblock, activity log, bitmap and their placement, as bytes.
//!
//! This crate opens no file and knows no clock: a caller reads blocks, hands them in, and gets back values,
//! texts, or lists of writes. Sources: `docs/spec/metadata.md`, whose section numbers the comments give.
//!
//! Read [`Layout`] (where things are) and [`Superblock`] (what they say) first; then
//! [`activity_log`] (what was being written at a crash) and [`bitmap`] (what differs from the peer).
//!
//! | to do this | look at |
//! |---|---|
//! | attach after a crash | [`ApplyAl`] |
//! | write the activity log | [`LogWriter`] |
//! | `create-md`, `wipe-md` | [`create`], [`detect`], [`review`] |
//! | `dump-md`, `restore-md` | [`dump`], [`restore`] |
//! | `show-gi`, `get-gi`, `set-gi`, `dstate`, `outdate`, `invalidate` | [`gi`] |
//! | a device that has grown | [`relocate`], [`size`] |

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod activity_log;
pub mod apply;
pub mod bitmap;
mod codec;
pub mod create;
pub mod detect;
pub mod dump;
mod error;
pub mod gi;
pub mod placement;
pub mod relocate;
pub mod replay;
pub mod restore;
pub mod review;
pub mod size;
pub mod superblock;
pub mod units;

pub use activity_log::{AlGeometry, LogBlock, LogWriter, PendingBlock, SlotUpdate, Transaction};
pub use apply::{ApplyAl, Marking};
pub use create::{Content, Step, Write};
pub use error::{ActivityLogError, Clipped, Error, PlacementError, SuperblockError};
pub use placement::{Layout, Placement};
pub use replay::{Coverage, Replay, Replayed};
pub use superblock::{Flags, Magic, Superblock, Uuids, Version};
pub use units::{
    AL_EXTENT_SECTORS, AlExtent, BITS_PER_AL_EXTENT, BITS_PER_PAGE, BLOCK_SECTORS, BLOCK_SIZE,
    BitNumber, Block, ByteLen, ByteOffset, PageNumber, SECTOR_SIZE, SECTORS_PER_BIT, Sector,
    SectorCount,
};
