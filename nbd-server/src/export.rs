//! What a caller tells a session about its exports (spec sections 3.3, 3.4, 4 and 6.1).

use alloc::string::String;
use alloc::vec::Vec;

use crate::session::Purpose;
use crate::wire::export_flag;

/// Whether clients may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads and writes.
    ReadWrite,
    /// Reads only: write commands fail with EPERM.
    ReadOnly,
}

/// What happens to requests that are not multiples of the minimum block size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unaligned {
    /// They are handed to the caller, unless the client asked for the block sizes and so promised to keep them
    /// (spec 6.1: partition probes and file copies read odd ranges).
    Served,
    /// They fail with EINVAL for every client.
    Refused,
}

/// Capabilities of an export. All nodes that may serve it should compute the same set: Linux does not read the flags
/// again when it reconnects (spec section 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// FLUSH is served. Without it Linux believes that there is no volatile cache.
    pub flush: bool,
    /// FUA is honoured on every command.
    pub fua: bool,
    /// TRIM is served.
    pub trim: bool,
    /// WRITE_ZEROES is served, with NO_HOLE.
    pub write_zeroes: bool,
    /// WRITE_ZEROES knows FAST_ZERO; only with `write_zeroes`.
    pub fast_zero: bool,
    /// Completed writes and flushes of one connection hold for all (spec section 7).
    pub multi_conn: bool,
    /// CACHE is served.
    pub cache: bool,
    /// The backing device rotates.
    pub rotational: bool,
}

impl Features {
    /// Everything that a writable export with one engine behind all connections can promise, except
    /// FAST_ZERO and ROTATIONAL.
    pub const fn all() -> Features {
        Features {
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            fast_zero: false,
            multi_conn: true,
            cache: true,
            rotational: false,
        }
    }
}

/// Block sizes that hold together (spec 6.1): the minimum is a power of two up to 65536, the preferred one a power of
/// two not below it nor below 512, the maximum not below the preferred one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

/// Block sizes that break the protocol's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "block sizes minimum {minimum}, preferred {preferred}, maximum {maximum} break the rules of NBD"
)]
pub struct BlockSizeError {
    /// Bytes.
    pub minimum: u32,
    /// Bytes.
    pub preferred: u32,
    /// Bytes.
    pub maximum: u32,
}

impl BlockSizes {
    /// Sectors of 512 bytes, 4 KiB preferred, requests up to [`crate::PAYLOAD_MAX`].
    pub const SECTORS: BlockSizes = BlockSizes {
        minimum: 512,
        preferred: 4096,
        maximum: crate::PAYLOAD_MAX,
    };

    /// Checks and keeps three sizes in bytes. The maximum is that of a payload, from 1 MiB to [`crate::PAYLOAD_MAX`].
    pub fn new(minimum: u32, preferred: u32, maximum: u32) -> Result<BlockSizes, BlockSizeError> {
        let sound = minimum.is_power_of_two()
            && minimum <= 65536
            && preferred.is_power_of_two()
            && preferred >= minimum.max(512)
            && maximum >= preferred
            && (1 << 20..=crate::PAYLOAD_MAX).contains(&maximum)
            && maximum.is_multiple_of(minimum);
        if sound {
            Ok(BlockSizes {
                minimum,
                preferred,
                maximum,
            })
        } else {
            Err(BlockSizeError {
                minimum,
                preferred,
                maximum,
            })
        }
    }

    /// Every offset and length should be a multiple of this many bytes.
    pub const fn minimum(self) -> u32 {
        self.minimum
    }

    /// The best unit in bytes.
    pub const fn preferred(self) -> u32 {
        self.preferred
    }

    /// Longest payload in bytes.
    pub const fn maximum(self) -> u32 {
        self.maximum
    }
}

/// Facts about one export, frozen for the life of a session (spec section 12: no in-band resize).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Canonical name; it may differ from the one that the client asked for (alias, empty name).
    pub name: String,
    /// Text for people.
    pub description: String,
    /// Size in bytes. What is left over of a whole number of minimum blocks is not exported.
    pub size: u64,
    /// Reads only, or writes too.
    pub access: Access,
    /// Capabilities.
    pub features: Features,
    /// Block sizes.
    pub block_sizes: BlockSizes,
    /// What becomes of odd requests.
    pub unaligned: Unaligned,
    /// Names of the metadata contexts that clients may select, such as `base:allocation` (spec section 9).
    pub contexts: Vec<String>,
}

impl ExportInfo {
    /// Bytes that clients see: the size rounded down to whole minimum blocks (spec section 13, unaligned tails).
    pub fn exported_size(&self) -> u64 {
        self.size - self.size % u64::from(self.block_sizes.minimum)
    }

    /// The flags on the wire (spec section 4). A read-only export promises nothing about writes.
    pub(crate) fn flags(&self, structured: bool) -> u16 {
        use export_flag as f;
        let set = |on: bool, bit: u16| if on { bit } else { 0 };
        let writable = self.access == Access::ReadWrite;
        let has = &self.features;
        f::HAS_FLAGS
            | set(!writable, f::READ_ONLY)
            | set(writable && has.flush, f::SEND_FLUSH)
            | set(writable && has.fua, f::SEND_FUA)
            | set(has.rotational, f::ROTATIONAL)
            | set(writable && has.trim, f::SEND_TRIM)
            | set(writable && has.write_zeroes, f::SEND_WRITE_ZEROES)
            | set(structured, f::SEND_DF)
            | set(has.multi_conn, f::CAN_MULTI_CONN)
            | set(has.cache, f::SEND_CACHE)
            | set(
                writable && has.write_zeroes && has.fast_zero,
                f::SEND_FAST_ZERO,
            )
    }
}

/// One line of the answer to LIST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedExport {
    /// Name to ask for.
    pub name: String,
    /// Text for people, may be empty.
    pub description: String,
}

/// Why an export or a list is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// No export of that name.
    Unknown,
    /// Not now, or not to this client (for example: this node is not the one that serves it).
    Policy,
    /// The server is stopping.
    Shutdown,
    /// Not possible on this machine.
    Platform,
}

/// A refusal with the text that the person at the client reads: say what is the matter and where to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What the client's program sees.
    pub kind: RefusalKind,
    /// What the person sees.
    pub text: String,
}

impl Refusal {
    /// A refusal with its text.
    pub fn new(kind: RefusalKind, text: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            text: text.into(),
        }
    }

    /// No export of that name.
    pub fn unknown(text: impl Into<String>) -> Refusal {
        Refusal::new(RefusalKind::Unknown, text)
    }

    /// Not now, or not here.
    pub fn policy(text: impl Into<String>) -> Refusal {
        Refusal::new(RefusalKind::Policy, text)
    }
}

/// A table of exports that can be asked on the spot ([`crate::Session::answer_from`]). Callers whose facts live
/// elsewhere take [`crate::Event::Query`] and answer when they can.
pub trait Directory {
    /// The exports that may be listed.
    fn list(&self) -> Result<Vec<ListedExport>, Refusal>;

    /// The export that a client means by `name`.
    fn find(&self, name: &str, purpose: Purpose) -> Result<ExportInfo, Refusal>;
}
