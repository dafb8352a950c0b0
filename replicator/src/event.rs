//! What the engine is told. The caller (daemon, simulator) turns completions, bytes and commands into these.

use alloc::boxed::Box;
use alloc::string::String;
use bytes::Bytes;

use crate::command::Command;

/// Names one I/O, dial, handler or backing effect. Answered exactly once, also on error and at shutdown.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub struct Token(pub u64);

/// Number of a volume inside its resource, 0 to 65534.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct VolumeNumber(pub u16);

/// A byte stream to the peer. Chosen by the caller when it is accepted or dialled, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct SocketId(pub u64);

/// A client's request. Chosen by the caller, unique while the request is open.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub struct RequestId(pub u64);

/// An administrator's command. Chosen by the caller, unique while the command is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct CommandId(pub u64);

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A client asks for I/O. Answered by [`crate::Effect::Reply`] exactly once.
    Request(Request),
    /// A client opened the device of a volume (drbd: "held open by someone").
    Opened {
        /// The volume.
        volume: VolumeNumber,
    },
    /// A client closed it again.
    Released {
        /// The volume.
        volume: VolumeNumber,
    },
    /// A [`crate::Effect::Disk`] ended. Reads carry their data.
    DiskDone {
        /// Token of the effect.
        token: Token,
        /// Data of a read (exactly the length asked for), empty for all else.
        result: Result<Bytes, IoError>,
    },
    /// A [`crate::Effect::Meta`] ended. Reads carry their data.
    MetaDone {
        /// Token of the effect.
        token: Token,
        /// Data of a read (exactly the length asked for), empty for all else.
        result: Result<Bytes, IoError>,
    },
    /// [`crate::Effect::OpenBacking`] ended.
    BackingOpened {
        /// Token of the effect.
        token: Token,
        /// What was opened, or why not.
        result: Result<BackingInfo, OpenError>,
    },
    /// [`crate::Effect::CloseBacking`] ended; every I/O of the backing has been answered before.
    BackingClosed {
        /// Token of the effect.
        token: Token,
    },
    /// Bytes arrived from the peer, in order.
    Bytes {
        /// The stream.
        socket: SocketId,
        /// What arrived; empty if a part of a payload came that is told with the rest of it: the peer is alive.
        bytes: Bytes,
    },
    /// The operating system took bytes of earlier [`crate::Effect::Send`]s.
    Sent {
        /// The stream.
        socket: SocketId,
        /// How many since the last such event.
        bytes: u64,
    },
    /// A peer dialled us while [`crate::Effect::Listen`] was in force.
    Accepted {
        /// The new stream.
        socket: SocketId,
    },
    /// [`crate::Effect::Dial`] ended.
    Dialled {
        /// Token of the effect.
        token: Token,
        /// The new stream, or why there is none.
        result: Result<SocketId, DialError>,
    },
    /// The listening socket could not be made.
    ListenFailed {
        /// Words of the operating system, with the address.
        reason: String,
    },
    /// A stream ended; no further event names it. Also after [`crate::Effect::Close`].
    Closed {
        /// The stream.
        socket: SocketId,
        /// Words for the log.
        reason: String,
    },
    /// An administrator's command. Answered by [`crate::Effect::Answer`] exactly once.
    Command {
        /// Names the answer.
        id: CommandId,
        /// What is wanted; boxed, as it is much larger than all else and seldom comes.
        command: Box<Command>,
    },
    /// [`crate::Effect::RunHandler`] ended.
    HandlerDone {
        /// Token of the effect.
        token: Token,
        /// Exit code; 0 when it could not be run (state-machine.md 2.13).
        exit: i32,
    },
    /// The deadline of [`crate::Resource::next_deadline`] has come (an early one does no harm).
    Timer,
}

/// A client's request. Offsets and lengths are in bytes, inside the device, not empty: the caller checks this; the engine
/// answers [`RequestError::Invalid`] otherwise. What does not start or end on a sector of the disks costs a read of that
/// sector first.
#[derive(Clone, Debug)]
pub struct Request {
    /// Names the reply.
    pub id: RequestId,
    /// The volume.
    pub volume: VolumeNumber,
    /// What is wanted.
    pub operation: Operation,
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Read `length` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Bytes,
        /// Force unit access: durable when answered.
        fua: Fua,
    },
    /// Discard: the whole sectors inside the range read as zeroes afterwards.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
        /// Durable when answered.
        fua: Fua,
    },
    /// Write zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
        /// Durable when answered.
        fua: Fua,
        /// May the blocks be given back?
        unmap: Unmap,
    },
    /// Everything answered before this came is durable when this is answered.
    Flush,
}

/// Whether a write must be durable when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Fua {
    /// It may stay in a volatile cache.
    No,
    /// It must be durable.
    Yes,
}

/// Whether zeroed blocks may be given back to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Unmap {
    /// They must stay allocated.
    No,
    /// They may be given back.
    Allowed,
}

/// Why a request failed, as its client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Input/output error: no accessible up-to-date data, or the disk failed.
    Io,
    /// The node is not Primary: the device must not be used here.
    NotPrimary,
    /// Outside the device, or empty.
    Invalid,
    /// The resource is going down.
    ShuttingDown,
}

/// An I/O of a disk or of its metadata failed.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct IoError {
    /// Words for the log: operation, device, offset, and the operating system's error.
    pub text: String,
}

/// An opened backing device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct BackingInfo {
    /// Bytes of the data device, including internal metadata.
    pub data_bytes: u64,
    /// Bytes of the metadata device; equal to `data_bytes` for internal metadata.
    pub meta_bytes: u64,
    /// Where the metadata lies.
    pub meta_kind: MetaKind,
    /// Logical block size in bytes, 512 or 4096.
    pub logical_block: u32,
    /// The device can discard.
    pub discard: bool,
    /// Discarded blocks read as zeroes.
    pub discard_zeroes: bool,
}

/// Where the metadata lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum MetaKind {
    /// At the end of the data device.
    Internal,
    /// On a device (or file) of its own, sized to it.
    FlexibleExternal,
    /// In a slot of 128 MiB on a device that several volumes share: offsets count from its start, and `meta_bytes` is its size
    /// (metadata.md 1.3).
    Indexed,
}

/// Why a backing device could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct OpenError {
    /// Number of the failure (state-machine.md 2.7), such as 104 (cannot open the backing device).
    pub number: u16,
    /// Words for a person: what was tried on what, and the operating system's error.
    pub text: String,
}

/// Why a peer could not be dialled.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum DialError {
    /// Unreachable, refused, timed out: try again later.
    Unreachable(String),
    /// Our own address cannot be used: no point in trying again.
    LocalAddress(String),
}
