//! NBD as a state machine: bytes in, requests and reply pieces out. Pure.
//!
//! This crate knows the protocol (`docs/spec/nbd.md`) and nothing else: no sockets, no clock, no disks and no
//! idea of what an export is backed by. Read [`Session`] first (its documentation says in which order to call
//! what), then [`Event`] and [`ExportInfo`].
//!
//! ```text
//!   socket ── bytes ──► Session::feed ──► next_event ──► Query    ── answer ──┐
//!                                                        Selected             │
//!                                                        Request  ── reply ───┤
//!                                                        Ended                │
//!   socket ◄─ pieces ── Session::take_output ◄────────────────────────────────┘
//! ```
//!
//! What is served: the fixed newstyle handshake with every option of the baseline, metadata contexts, simple and
//! structured replies, READ (with DF), WRITE, FLUSH, TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS, and FUA everywhere. What
//! is refused by name: TLS, extended headers and RESIZE.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod contexts;
#[cfg(feature = "std")]
pub mod device;
mod error;
mod export;
mod handshake;
mod in_flight;
mod input;
mod output;
mod request;
mod session;
mod transmission;
pub mod wire;

pub use error::{End, ErrorCode, Misuse, NbdError, ProtocolError};
pub use export::{
    Access, BlockSizeError, BlockSizes, Directory, ExportInfo, Features, ListedExport, Refusal,
    RefusalKind, Unaligned,
};
pub use request::{Data, Extent, Handle, PayloadWanted, Request, RequestKind};
pub use session::{Answer, Counters, Event, Limits, Phase, Purpose, Query, Session};

/// TCP port registered for NBD (spec section 1).
pub const TCP_PORT: u16 = 10809;

/// Seconds that the caller should grant a client between connecting and the end of the handshake (spec 3.2).
/// The session has no clock: the caller closes the connection when this runs out and
/// [`Session::phase`] still is [`Phase::Handshake`].
pub const HANDSHAKE_SECONDS_MAX: u64 = 10;

/// Options that one client may send before the connection is closed (spec 3.2): real clients need fewer than ten.
pub const OPTIONS_MAX: u32 = 64;

/// Bytes of option data that are looked at; up to [`OPTION_DRAIN_MAX`] they are skipped and answered TOO_BIG.
pub const OPTION_DATA_MAX: u32 = 64 * 1024;

/// Bytes of option data above which the connection is closed instead of skipping them (spec 3.2).
pub const OPTION_DRAIN_MAX: u32 = 32 * 1024 * 1024;

/// Bytes of a name or text on the wire (spec, head of the document).
pub const STRING_MAX: usize = 4096;

/// Largest payload of one READ or WRITE in bytes (spec 6.1).
pub const PAYLOAD_MAX: u32 = 32 * 1024 * 1024;

/// Write payloads up to this many bytes are cut out of the bytes that were fed; longer ones can be received
/// straight into the caller's block ([`Session::payload_wanted`]). One copy of 16 KiB is cheaper than a system call.
pub const PAYLOAD_COALESCED_MAX: u32 = 16 * 1024;

/// Requests in flight on one connection: Linux uses a queue depth of 128 (spec 6.2).
pub const REQUESTS_IN_FLIGHT_MAX: usize = 128;

/// Bytes of payload in flight on one connection, reads and writes together (spec 6.2).
pub const BYTES_IN_FLIGHT_MAX: u64 = 64 * 1024 * 1024;

/// Reply bytes waiting in the caller's send queue above which it should stop calling [`Session::next_event`]:
/// a client that asks and never reads would otherwise grow that queue without end.
pub const UNSENT_BYTES_MAX: usize = 64 * 1024 * 1024;
