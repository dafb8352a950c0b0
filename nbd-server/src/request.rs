//! Requests as the caller sees them (spec section 6).

use alloc::vec::Vec;

use bytes::Bytes;

/// Names one request in flight within its session; used once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    pub(crate) slot: u32,
    /// Counts the uses of the slot, so that a second reply is noticed.
    pub(crate) generation: u32,
}

impl Handle {
    /// The handle as a number that is unique within its session, for logs and for tables of the caller.
    pub const fn as_u64(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }
}

/// A request that passed every check: its range lies within the export, its flags are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// For [`crate::Session::reply`].
    pub handle: Handle,
    /// What to do.
    pub kind: RequestKind,
}

/// What a client wants. Offsets and lengths are bytes; lengths are never 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestKind {
    /// Read a range; answer with exactly `length` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// At most the maximum block size.
        length: u32,
    },
    /// Write a range.
    Write {
        /// First byte.
        offset: u64,
        /// What to write. Up to [`crate::PAYLOAD_COALESCED_MAX`] it may be a slice of the bytes that were fed, and so
        /// keeps that buffer alive.
        payload: Bytes,
        /// Durable on every replica that counts before the reply.
        fua: bool,
    },
    /// Make durable every write that was replied to before.
    Flush,
    /// The range will be read soon. A hint: success at once is always right.
    Cache {
        /// First byte.
        offset: u64,
        /// Up to 4 GiB - 1.
        length: u32,
    },
    /// Tell what is known of a range; answer with [`Data::Status`].
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Up to 4 GiB - 1. The answer may cover less of it, but something.
        length: u32,
        /// The client takes the first extent only.
        one: bool,
        /// The contexts that it selected: places in [`crate::ExportInfo::contexts`], ascending.
        contexts: Vec<u32>,
    },
    /// The range's content is no longer needed.
    Trim {
        /// First byte.
        offset: u64,
        /// Up to 4 GiB - 1.
        length: u32,
        /// Durable before the reply.
        fua: bool,
    },
    /// Fill a range with zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Up to 4 GiB - 1, regardless of the maximum block size.
        length: u32,
        /// Durable before the reply.
        fua: bool,
        /// The range must stay allocated.
        no_hole: bool,
        /// Fail with [`crate::ErrorCode::NotSup`] and without any change rather than be as slow as writing.
        fast_zero: bool,
    },
}

/// What a successful request yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Nothing: everything but READ and BLOCK_STATUS.
    None,
    /// The data of a READ.
    Bytes(Bytes),
    /// The data of a READ in several pieces, in order.
    Pieces(Vec<Bytes>),
    /// The answer to a BLOCK_STATUS: for each context of the request, in its order, extents from the request's first
    /// byte on, at least one that is not empty. The session joins equal neighbours and cuts what is too much.
    Status(Vec<Vec<Extent>>),
}

/// What holds for a piece of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub length: u64,
    /// Bits with the meaning of the context.
    pub flags: u32,
}

impl Data {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Data::None | Data::Status(_) => 0,
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Pieces(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
        }
    }
}

/// A large write payload that is due ([`crate::Session::payload_wanted`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadWanted {
    /// Length of the whole payload in bytes.
    pub length: u32,
    /// How many of them were fed already.
    pub buffered: u32,
}
