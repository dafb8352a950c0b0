//! What can be wrong with bytes from a peer, and with a packet that we were asked to send.

use alloc::string::String;

use crate::command::{Command, Socket};
use crate::header::HeaderKind;

/// Why a byte stream is not DRBD's protocol, or a packet cannot be put on the wire.
///
/// Every variant but the last group is the peer's fault: the answer is to drop the connection
/// (wire 1.5, "ProtocolError"). Variants carry facts; their text names command and numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The first bytes of a header are not the magic of the agreed header.
    #[error("bad magic {magic:#010x} where a {expected} header was expected")]
    BadMagic {
        /// First four bytes of the header, big-endian.
        magic: u32,
        /// The header that belongs here.
        expected: HeaderKind,
    },
    /// The pad field of a 16-byte header is not zero.
    #[error("header pad is {pad:#010x}, it must be 0")]
    HeaderPad {
        /// What it holds.
        pad: u32,
    },
    /// A command number that no version 100 or 101 node sends.
    #[error("unknown command {number:#06x}")]
    UnknownCommand {
        /// The number.
        number: u16,
    },
    /// A known command on the socket that it does not belong to.
    #[error("{command} does not belong on the {socket} socket")]
    WrongSocket {
        /// The command.
        command: Command,
        /// Where it came.
        socket: Socket,
    },
    /// A known command at a moment when it cannot be sent (first packets, features).
    #[error("unexpected {command}: {expected} was expected")]
    Unexpected {
        /// The command.
        command: Command,
        /// What belongs there, in words.
        expected: &'static str,
    },
    /// The length of a packet is outside of what its command allows.
    #[error("{command} of {length} bytes, allowed are {min} to {max}")]
    BadLength {
        /// The command.
        command: Command,
        /// Bytes after the header.
        length: u64,
        /// Least bytes.
        min: u64,
        /// Most bytes.
        max: u64,
    },
    /// P_SIZES has the length of the other set of agreed features (wire 2.2).
    #[error("P_SIZES of {length} bytes, agreed features demand {expected}")]
    SizesLength {
        /// Bytes after the header.
        length: u64,
        /// Bytes that the agreed features demand.
        expected: u64,
    },
    /// A data size or range is empty, too large, not a multiple of 512, or beyond any device.
    #[error("{command} for {bytes} bytes at sector {sector} is no valid range")]
    BadRange {
        /// The command.
        command: Command,
        /// First sector.
        sector: u64,
        /// Bytes.
        bytes: u64,
    },
    /// An algorithm's name is not NUL-terminated, too long or not text.
    #[error("{command} carries a malformed algorithm name")]
    BadName {
        /// The command.
        command: Command,
    },
    /// The peer protects its data by an algorithm that we do not know.
    #[error("data-integrity algorithm '{name}' is not known")]
    UnknownDigest {
        /// Its name.
        name: String,
    },
    /// The versions of the two nodes do not overlap, or only below what we speak (wire 4.3).
    #[error("peer speaks protocol {peer_min} to {peer_max}, this node {own_min} to {own_max}")]
    NoCommonVersion {
        /// Peer's lowest.
        peer_min: u32,
        /// Peer's highest.
        peer_max: u32,
        /// Our lowest.
        own_min: u32,
        /// Our highest.
        own_max: u32,
    },
    /// The peer sent back our own challenge (wire 4.4).
    #[error("peer reflected our own challenge")]
    ReflectedChallenge,
    /// A plain bitmap chunk does not have the one size that it may have (wire 6.3).
    #[error("P_BITMAP of {length} bytes, {expected} were due at word {word}")]
    BitmapChunk {
        /// Its bytes.
        length: u64,
        /// The bytes that are due.
        expected: u64,
        /// The word it starts at.
        word: u64,
    },
    /// A plain bitmap ended, or a packet came, where the transfer is not at its end.
    #[error("bitmap ended after {bit} of {bits} bits")]
    BitmapEndsEarly {
        /// Bits covered.
        bit: u64,
        /// Bits of the bitmap.
        bits: u64,
    },
    /// A bitmap packet after the transfer was complete.
    #[error("bitmap packet after the end of the bitmap")]
    BitmapAfterEnd,
    /// A run, or a bit of the last word, lies past the end of the bitmap.
    #[error("bitmap of {bits} bits is overrun at bit {bit}")]
    BitmapOverrun {
        /// Where.
        bit: u64,
        /// Bits of the bitmap.
        bits: u64,
    },
    /// The code of a P_COMPRESSED_BITMAP is not 2, the only one.
    #[error("bitmap code {code} is not known")]
    BitmapCode {
        /// Low four bits of the encoding byte.
        code: u8,
    },
    /// The code bytes of a P_COMPRESSED_BITMAP do not end with the end of a code word.
    #[error("bitmap code is cut inside of a code word")]
    BitmapCodeCut,
    /// A line of the control socket is longer than its limit.
    #[error("control message longer than {limit} bytes")]
    LineTooLong {
        /// The limit, bytes.
        limit: usize,
    },
    /// A line of the control socket is not the JSON it should be.
    #[error("control message is malformed: {reason}")]
    BadLine {
        /// What the JSON parser says.
        reason: String,
    },
    /// Our bug: a packet that cannot be sent as it is (too long for its command or header).
    #[error("cannot send {command} of {length} bytes under a {header} header")]
    Unsendable {
        /// The command.
        command: Command,
        /// Bytes after the header.
        length: u64,
        /// The header.
        header: HeaderKind,
    },
    /// Our bug: [`crate::Framer`] was used out of order.
    #[error("framer misused: {what}")]
    Misuse {
        /// What was done.
        what: &'static str,
    },
}
