//! Commands of an administrator or of a cluster manager, and their answers.

use alloc::string::String;
use alloc::vec::Vec;

use crate::event::VolumeNumber;
use crate::options::{DiskOptions, NetOptions};

/// What an administrator wants. A command on all volumes is sent once for each by the caller.
#[derive(Clone, Debug, bincode::Encode, bincode::Decode)]
pub enum Command {
    /// Attach the backing device of a volume: the activity log of a crashed Primary is applied first.
    Attach {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Detach it.
    Detach {
        /// The volume.
        volume: VolumeNumber,
        /// Do not wait for the peer's consent nor for I/O in flight.
        force: Force,
    },
    /// Configure the network and connect.
    Connect {
        /// Options of the `net` section.
        net: NetOptions,
        /// Single shot: if the data has split, this node's changes are given up.
        discard_my_data: bool,
        /// Only try what would happen.
        tentative: bool,
    },
    /// Disconnect; ends StandAlone.
    Disconnect {
        /// Do not ask the peer.
        force: Force,
    },
    /// Become Primary.
    Primary {
        /// The volume.
        volume: VolumeNumber,
        /// Use data that may be old or inconsistent.
        force: Force,
    },
    /// Become Secondary.
    Secondary {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Give up this node's data: full sync from the peer.
    Invalidate {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Give up the peer's data: full sync to the peer.
    InvalidateRemote {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Mark this node's data as older than the peer's.
    Outdate {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Start a new data generation (with `clear_bitmap` on a fresh pair: skip the first sync).
    NewCurrentUuid {
        /// The volume.
        volume: VolumeNumber,
        /// Clear the bitmap.
        clear_bitmap: bool,
    },
    /// Pause a resync.
    PauseSync {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Let it go on.
    ResumeSync {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Compare the disks of both nodes while applications go on. While one runs that this node started, only its end is
    /// changed.
    Verify {
        /// The volume.
        volume: VolumeNumber,
        /// The first sector (of 512 bytes), rounded down to a block of 4 KiB; None: where the last verify stopped early.
        start: Option<u64>,
        /// The sector behind the last, rounded up; None: the end of the device.
        stop: Option<u64>,
    },
    /// End a verify that this node started, at the next block.
    VerifyStop {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Hold all I/O of applications.
    SuspendIo {
        /// The volume (the flag counts for the whole resource).
        volume: VolumeNumber,
    },
    /// Let it go on.
    ResumeIo {
        /// The volume.
        volume: VolumeNumber,
    },
    /// New options of a volume's disk.
    DiskOptions {
        /// The volume.
        volume: VolumeNumber,
        /// The options.
        options: DiskOptions,
    },
    /// Secondary, disconnect, detach all. The resource can be dropped when this is answered with success.
    Down {
        /// End in any case.
        force: Force,
    },
    /// Let the device grow to what the disks of both nodes offer now (state-machine.md 10.3).
    Resize {
        /// The volume.
        volume: VolumeNumber,
        /// Bytes that the device shall have; 0: all that both disks offer.
        size: u64,
        /// Whether the peer is believed to have room while it is not connected.
        room: PeerRoom,
        /// What happens to the new area.
        area: NewArea,
    },
}

/// Whether a peer that cannot be asked is believed to have grown, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum PeerRoom {
    /// It is asked; without a connection nothing grows.
    Asked,
    /// An administrator says so: a peer whose disk is smaller after all is refused when it comes.
    Assumed,
}

/// What a larger device does with its new area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum NewArea {
    /// It is copied from one node to the other.
    Resync,
    /// An administrator says that it is the same on both nodes.
    AssumeClean,
}

/// Whether a command insists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Force {
    /// Rules may refuse it.
    No,
    /// It insists.
    Yes,
}

/// The answer to a command, in drbdsetup's numbers (state-machine.md 2.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// State-change results (-21 to 4) or failures (above 100; 101 is success).
    pub number: i32,
    /// The message that belongs to the number, empty for success.
    pub text: String,
    /// Further lines: the kernel's "additional info", clients that hold the device open, warnings.
    pub info: Vec<String>,
    /// What would make it possible: a command to type, when there is one.
    pub hint: Option<String>,
    /// Exit code of drbdsetup: 0, 5, 10, 11, 16, 17.
    pub exit: u8,
}
