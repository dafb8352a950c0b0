//! What the engine wants done. The caller carries effects out in the order given for one socket; everything else
//! may complete in any order.

use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::command::Answer;
use crate::event::{CommandId, Fua, RequestError, RequestId, SocketId, Token, Unmap, VolumeNumber};

/// Something to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// I/O on the data of a backing device. Ends with [`crate::Event::DiskDone`].
    Disk {
        /// Names the completion.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
        /// What to do.
        operation: DiskOperation,
    },
    /// I/O on the metadata of a backing device. Offsets are in bytes on the metadata device. Ends with
    /// [`crate::Event::MetaDone`].
    Meta {
        /// Names the completion.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
        /// What to do.
        operation: MetaOperation,
    },
    /// Bytes for the peer. Order on one socket is kept.
    Send {
        /// The stream.
        socket: SocketId,
        /// Header and fixed part.
        head: Bytes,
        /// Data that follows, not copied.
        payload: Option<Bytes>,
    },
    /// The answer to a client's request: data of a read, empty for all else.
    Reply {
        /// The request.
        request: RequestId,
        /// Its result.
        result: Result<Bytes, RequestError>,
    },
    /// The answer to an administrator's command.
    Answer {
        /// The command.
        command: CommandId,
        /// Its result.
        answer: Answer,
    },
    /// Accept the peer's streams from now on ([`crate::Event::Accepted`]).
    Listen,
    /// Accept no more.
    Unlisten,
    /// Open a stream to the peer. Ends with [`crate::Event::Dialled`] within the connect timeout.
    Dial {
        /// Names the completion.
        token: Token,
    },
    /// End a stream. Ends with [`crate::Event::Closed`].
    Close {
        /// The stream.
        socket: SocketId,
        /// Whether what was sent still has to arrive.
        how: CloseHow,
    },
    /// Stop reading from a stream until [`Effect::ResumeRead`].
    PauseRead {
        /// The stream.
        socket: SocketId,
    },
    /// Go on reading.
    ResumeRead {
        /// The stream.
        socket: SocketId,
    },
    /// Take no more requests of this volume's clients (bounds are reached) until [`Effect::ResumeClients`].
    PauseClients {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Go on taking requests.
    ResumeClients {
        /// The volume.
        volume: VolumeNumber,
    },
    /// Open and lock the backing device. Ends with [`crate::Event::BackingOpened`].
    OpenBacking {
        /// Names the completion.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
    },
    /// Measure the open backing device again: it may have grown. Ends with [`crate::Event::BackingOpened`].
    MeasureBacking {
        /// Names the completion.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
    },
    /// Close it. No I/O of it is in flight. Ends with [`crate::Event::BackingClosed`].
    CloseBacking {
        /// Names the completion.
        token: Token,
        /// The volume.
        volume: VolumeNumber,
    },
    /// Run a handler of the configuration. Ends with [`crate::Event::HandlerDone`].
    RunHandler {
        /// Names the completion.
        token: Token,
        /// Its name (state-machine.md 2.13), such as `before-resync-target`.
        name: &'static str,
        /// The volume, for handlers that are called per volume.
        volume: Option<VolumeNumber>,
    },
    /// Something a person or a watcher wants to know.
    Notify(Notification),
}

/// I/O on data. Offsets and lengths in bytes.
#[derive(Clone, Debug)]
pub enum DiskOperation {
    /// Read.
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
        /// Durable when completed.
        fua: Fua,
    },
    /// Give the blocks back; they read as zeroes afterwards (the caller writes zeroes where the device cannot promise it).
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
        /// Durable when completed.
        fua: Fua,
    },
    /// Write zeroes.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
        /// May the blocks be given back?
        unmap: Unmap,
        /// Durable when completed.
        fua: Fua,
    },
    /// Make every completed write durable.
    Flush,
}

/// I/O on metadata. Offsets in bytes on the metadata device, multiples of 4096 like the lengths.
#[derive(Clone, Debug)]
pub enum MetaOperation {
    /// Read. Where there is nothing but a hole of a sparse file, the answer may be no bytes at all: they are zeroes.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Write, durable when completed if `fua` says so.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Bytes,
        /// Durable when completed.
        fua: Fua,
    },
    /// Make every completed metadata write durable.
    Flush,
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseHow {
    /// At once; what was not sent is dropped.
    Abort,
    /// After what was sent has been taken by the peer, for a bounded time.
    Linger,
    /// As `Linger`, but our end follows the peer's, or a few seconds: the meta socket of a link. Its end must not
    /// reach the peer before that of the data socket, where the reason is: a kernel that sees it first only says
    /// "meta connection shut down by peer" and dials again (seen on 8.4.11, which itself ends data first).
    LingerLast,
}

/// What watchers are told.
#[derive(Clone, Debug)]
pub enum Notification {
    /// A line for the log, without user data or secrets.
    Log {
        /// How grave.
        level: Level,
        /// The volume it is about.
        volume: Option<VolumeNumber>,
        /// The line, in the words of the field.
        text: String,
    },
    /// The status changed: [`crate::Resource::status`] tells the new one.
    StatusChanged,
    /// A volume may (or may no longer) be used by clients, with this size in bytes.
    Serve {
        /// The volume.
        volume: VolumeNumber,
        /// `None`: not Primary any more (clients have been answered).
        bytes: Option<u64>,
    },
}

/// Gravity of a log line (house style 21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Someone must act.
    Error,
    /// Redundancy is lost.
    Warn,
    /// A state changed.
    Info,
    /// One connection.
    Debug,
    /// One packet.
    Trace,
}

/// Effects of one or more events; owned and reused by the caller.
pub type Effects = Vec<Effect>;
