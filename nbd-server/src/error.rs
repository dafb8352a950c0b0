//! What can go wrong, grouped by fault: an error for the client ([`NbdError`]), a client that broke the protocol
//! ([`ProtocolError`]), and our own caller's mistakes ([`Misuse`]).

use alloc::borrow::Cow;
use alloc::string::String;

use crate::wire::{command_name, option_name};

/// The closed list of errors that NBD knows (spec section 6). The numbers are fixed by the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum ErrorCode {
    /// EPERM: the export is read-only.
    Perm = 1,
    /// EIO: the request failed.
    Io = 5,
    /// EINVAL: the request makes no sense here.
    Inval = 22,
    /// ENOSPC: a write beyond the end, or no space left.
    NoSpc = 28,
    /// EOVERFLOW: a structured read that is too long.
    Overflow = 75,
    /// ENOTSUP: FAST_ZERO would have been slow.
    NotSup = 95,
    /// ESHUTDOWN: the server is stopping.
    Shutdown = 108,
}

impl ErrorCode {
    /// The number on the wire.
    pub const fn wire(self) -> u32 {
        self as u32
    }

    /// Maps a Linux errno to the nearest error that NBD knows (spec section 6): never send a raw errno.
    pub const fn from_errno(errno: i32) -> ErrorCode {
        match errno {
            1 | 13 | 30 => ErrorCode::Perm,    // EPERM, EACCES, EROFS
            22 => ErrorCode::Inval,            // EINVAL
            27 | 28 | 122 => ErrorCode::NoSpc, // EFBIG, ENOSPC, EDQUOT
            95 => ErrorCode::NotSup,           // EOPNOTSUPP
            108 => ErrorCode::Shutdown,        // ESHUTDOWN
            _ => ErrorCode::Io,
        }
    }
}

/// The failure of one request, with a text for people: structured replies carry it to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {text}")]
pub struct NbdError {
    /// What the client's program sees.
    pub code: ErrorCode,
    /// What the person sees; at most [`crate::STRING_MAX`] bytes are sent.
    pub text: Cow<'static, str>,
}

impl NbdError {
    /// An error with its text.
    pub fn new(code: ErrorCode, text: impl Into<Cow<'static, str>>) -> NbdError {
        NbdError {
            code,
            text: text.into(),
        }
    }

    /// EIO with a text.
    pub fn io(text: impl Into<Cow<'static, str>>) -> NbdError {
        NbdError::new(ErrorCode::Io, text)
    }

    pub(crate) fn inval(text: impl Into<Cow<'static, str>>) -> NbdError {
        NbdError::new(ErrorCode::Inval, text)
    }
}

/// How a client broke the protocol so that the stream cannot be followed any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The client set handshake flags that were not offered.
    #[error("client flags {flags:#010x} contain bits that this server did not offer")]
    ClientFlags {
        /// All flags that it sent.
        flags: u32,
    },
    /// An option did not start with IHAVEOPT.
    #[error("expected an NBD option, got magic {magic:#018x}")]
    OptionMagic {
        /// What stood in its place.
        magic: u64,
    },
    /// An option with more data than is worth skipping.
    #[error(
        "option {} ({option}) announces {length} bytes of data, more than {} can be skipped",
        option_name(*option),
        crate::OPTION_DRAIN_MAX
    )]
    OptionTooLong {
        /// Its number.
        option: u32,
        /// The announced length in bytes.
        length: u32,
    },
    /// A client that never finishes haggling.
    #[error("the client sent more than {} options", crate::OPTIONS_MAX)]
    TooManyOptions,
    /// A client without FIXED_NEWSTYLE may only send EXPORT_NAME: it understands no option reply.
    #[error(
        "option {} ({option}) from a client that did not set FIXED_NEWSTYLE",
        option_name(*option)
    )]
    NotFixedNewstyle {
        /// Its number.
        option: u32,
    },
    /// EXPORT_NAME cannot report errors, so a name that cannot be served ends the connection.
    #[error("export name refused: {text}")]
    ExportName {
        /// Why.
        text: String,
    },
    /// A request did not start with the request magic.
    #[error("expected an NBD request, got magic {magic:#010x}")]
    RequestMagic {
        /// What stood in its place.
        magic: u32,
    },
    /// The connection ended inside a message.
    #[error("the connection ended {missing} bytes before the end of {inside}")]
    Truncated {
        /// What was being received.
        inside: &'static str,
        /// Bytes that were still to come.
        missing: u64,
    },
}

/// Why a session takes no more input. In-flight requests are still to be answered ([`crate::Session::reply`]).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The client said DISC: finish what is in flight, then close.
    #[error("the client disconnected")]
    Disconnected,
    /// The client gave up the handshake with ABORT.
    #[error("the client aborted the handshake")]
    Aborted,
    /// The connection ended between two messages without DISC. Not an error: in-flight writes complete.
    #[error("the client closed the connection without saying so")]
    Closed,
    /// The client broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// A mistake of the caller: the session stays usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// [`crate::Session::answer`] without a query, or with the answer to another one.
    #[error("no query waits for this answer")]
    NoQuery,
    /// [`crate::Session::reply`] with a handle that is not in flight: answered already, or of another session.
    #[error("no request with this handle is in flight")]
    UnknownHandle,
    /// The data is not what the request asked for; the client was sent EIO instead.
    #[error("{} of {expected} bytes was answered with {got} bytes; the client was sent EIO", command_name(*command))]
    WrongData {
        /// The command.
        command: u16,
        /// Bytes that the reply should hold.
        expected: u64,
        /// Bytes that it held.
        got: u64,
    },
    /// [`crate::Session::take_payload_prefix`] or [`crate::Session::supply_payload`] while no large payload is due,
    /// or with a block of the wrong length.
    #[error("no payload of {got} bytes is due (wanted: {wanted})")]
    NoPayload {
        /// Bytes that are due, 0 if none.
        wanted: u64,
        /// Bytes that were given.
        got: u64,
    },
}
