//! A black box: what an engine was told and what it wanted, without user data and without secrets, so that its history can be
//! played again somewhere else.
//!
//! An engine is a function of its options, its events, and its tape (random numbers and verdicts about contents that are not
//! recorded). A box holds all three. [`Recorder`] writes it, [`Reader`] reads it; [`crate::Resource::play_tape`] gives an
//! engine its tape back.
//!
//! # What is not in a box
//!
//! | left out | in its place |
//! | --- | --- |
//! | data of writes, of reads, of packets | their length; zeroes when played |
//! | digests of data on the wire | their length; the verdict is on the tape |
//! | shared secret | an empty one, if there was one |
//! | challenges and answers of the authentication | their lengths; the verdict is on the tape |
//! | seed of the random numbers | the numbers drawn, but those of challenges |
//!
//! Metadata (superblock, activity log, bitmap) are recorded: they say which blocks differ, not what is in them. So are error
//! texts, names and options.
//!
//! # Layout
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 8 | `tandembb` |
//! | 2 | version of the format, little-endian |
//! | 2 + n | the program that wrote it, for people: length, text |
//! | 4 + n | [`Head`]: length, bincode (little-endian, variable integers) |
//! | rest | entries: length (7 bits a byte, lowest first), one byte kind, bincode |
//!
//! Entries: 0 time and event, 1 tape and marks of the effects, 2 tape and message of a failed assertion, 3 why the recording
//! ends early.

mod contents;
mod marks;
mod past;
mod reader;
mod recorder;

use alloc::string::String;
use alloc::vec::Vec;

pub use marks::{Mark, MarkKind, mark};
pub use reader::{BlackBoxError, Entry, Reader};
pub use recorder::{Recorder, Streaming};

use crate::options::VolumeOptions;

/// The first bytes of every box.
pub const MAGIC: [u8; 8] = *b"tandembb";

/// Version of the format. It grows with every change of what an entry looks like, also of an event's or a command's fields: a test
/// keeps the bytes of one.
pub const FORMAT_VERSION: u16 = 3;

/// Bytes of entries kept in memory: a hundred thousand events of a busy resource, all of a quiet one's day.
pub const RING_BYTES_MAX: usize = 4 << 20;

/// Bytes that wait to be written to a recording's file before the recording is given up: a disk that hangs must not cost memory.
pub const STREAM_BYTES_MAX: usize = 16 << 20;

/// Bytes of one entry that are read: metadata of one I/O, many times over.
pub(crate) const ENTRY_BYTES_MAX: usize = 16 << 20;

/// Bytes of contents that one event may have: the largest request of a client.
pub(crate) const CONTENTS_BYTES_MAX: usize = 32 << 20;

/// How entries and heads are encoded.
pub(crate) const FORM: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<ENTRY_BYTES_MAX>,
> = bincode::config::standard().with_limit::<ENTRY_BYTES_MAX>();

/// Kinds of entries.
pub(crate) const HAPPENED: u8 = 0;
pub(crate) const DONE: u8 = 1;
pub(crate) const FAILED: u8 = 2;
pub(crate) const CUT: u8 = 3;

/// What a box says of itself.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Head {
    /// Name of the resource.
    pub resource: String,
    /// Its volumes as it was created.
    pub volumes: Vec<VolumeOptions>,
    /// What it holds.
    pub extent: Extent,
    /// Why it was written, for people.
    pub why: String,
    /// Seconds since 1970 when it was written (a recording: when it began).
    pub unix_seconds: u64,
}

/// How much of the history a box holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Extent {
    /// Everything since the resource was created: it can be replayed.
    Whole,
    /// Only the last events; so many before them are lost. It can be read, not replayed.
    Tail {
        /// Events before the first.
        lost: u64,
    },
    /// Written to a file from the creation on: it can be replayed up to where it ends.
    Recording,
}

impl core::fmt::Display for Extent {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Extent::Whole => f.write_str("whole: everything since the resource was created"),
            Extent::Tail { lost } => write!(
                f,
                "tail: the last events; {lost} before them are lost, so that it can be read but not replayed"
            ),
            Extent::Recording => {
                f.write_str("recording: everything since the resource was created")
            }
        }
    }
}

/// Appends a length, 7 bits a byte, lowest first.
pub(crate) fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// Takes a length from the start of `bytes`; `None` if it is not complete, or absurd.
pub(crate) fn take_length(bytes: &mut &[u8]) -> Option<usize> {
    let mut length = 0usize;
    for shift in [0, 7, 14, 21, 28] {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        length |= usize::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(length);
        }
    }
    None
}
