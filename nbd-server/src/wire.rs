//! Numbers and layouts of the NBD protocol (spec sections 2 to 6). All integers are big-endian and unsigned.

/// First eight bytes from the server ("NBDMAGIC").
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes from the server, and the head of every option ("IHAVEOPT").
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Head of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Head of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Head of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Head of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag of both sides: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag of both sides: no 124 zero bytes after EXPORT_NAME.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;
/// Zero bytes after the answer to EXPORT_NAME, unless both sides set [`FLAG_NO_ZEROES`].
pub const EXPORT_NAME_ZEROES: usize = 124;

/// Length of an option's head: magic, option, length.
pub const OPTION_HEADER_LEN: usize = 16;
/// Length of a compact request without payload.
pub const REQUEST_LEN: usize = 28;

/// Option numbers (spec 3.3).
pub mod opt {
    /// Choose an export and enter transmission, without any way to report an error.
    pub const EXPORT_NAME: u32 = 1;
    /// End the handshake politely.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Withdrawn from the protocol.
    pub const PEEK_EXPORT: u32 = 4;
    /// Switch to TLS.
    pub const STARTTLS: u32 = 5;
    /// Facts about an export.
    pub const INFO: u32 = 6;
    /// Facts about an export, then transmission.
    pub const GO: u32 = 7;
    /// Replies in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Requests and replies with 64-bit lengths.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies (spec 3.4).
pub mod rep {
    /// The option succeeded.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One fact about an export.
    pub const INFO: u32 = 3;
    /// One metadata context: id and name.
    pub const META_CONTEXT: u32 = 4;
    /// Unknown or unsupported option.
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    /// Forbidden by the server's policy.
    pub const ERR_POLICY: u32 = 0x8000_0002;
    /// Malformed or out of place.
    pub const ERR_INVALID: u32 = 0x8000_0003;
    /// Not possible on this platform or in this build.
    pub const ERR_PLATFORM: u32 = 0x8000_0004;
    /// No export of that name.
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    /// The server is stopping.
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// Types of information in an INFO reply (spec 3.4).
pub mod info {
    /// Size and transmission flags; mandatory.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export (spec section 4).
pub mod export_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes fail.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is served.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag is honoured.
    pub const SEND_FUA: u16 = 1 << 3;
    /// The backing device rotates.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM is served.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES and NO_HOLE are served.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// READ may ask for one chunk.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see one another's completed writes and flushes.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is served.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// WRITE_ZEROES may ask to fail instead of being slow.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Command numbers (spec section 6).
pub mod cmd {
    /// Read a range.
    pub const READ: u16 = 0;
    /// Write a range; the only command with a payload.
    pub const WRITE: u16 = 1;
    /// End the session; gets no reply.
    pub const DISC: u16 = 2;
    /// Make durable what was completed.
    pub const FLUSH: u16 = 3;
    /// The range's content is no longer needed.
    pub const TRIM: u16 = 4;
    /// Read ahead.
    pub const CACHE: u16 = 5;
    /// Fill a range with zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask for the metadata of a range.
    pub const BLOCK_STATUS: u16 = 7;
    /// Experimental.
    pub const RESIZE: u16 = 8;
}

/// Command flags (spec section 6).
pub mod cmd_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES must allocate.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ in one chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS with one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES only when fast.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Flags of an extent of `base:allocation` (spec section 9).
pub mod allocation {
    /// Nothing is allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
}

/// Structured reply chunks (spec section 5).
pub mod chunk {
    /// Flag of the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Context id and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// Error code and text.
    pub const ERROR: u16 = 0x8001;
}

/// A compact request as it stands on the wire, not judged yet.
///
/// | offset | size | meaning |
/// | --- | --- | --- |
/// | 0 | 4 | [`REQUEST_MAGIC`] |
/// | 4 | 2 | command flags |
/// | 6 | 2 | command |
/// | 8 | 8 | cookie, returned bit for bit |
/// | 16 | 8 | offset in bytes |
/// | 24 | 4 | length in bytes |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Bits of [`cmd_flag`].
    pub flags: u16,
    /// One of [`cmd`].
    pub command: u16,
    /// The client's own number.
    pub cookie: u64,
    /// Start of the range in bytes.
    pub offset: u64,
    /// Length of the range in bytes.
    pub length: u32,
}

impl RequestHeader {
    /// Decodes a request; the error is the magic that was found instead.
    pub fn decode(raw: &[u8; REQUEST_LEN]) -> Result<RequestHeader, u32> {
        use bytes::Buf;
        let mut rest = &raw[..];
        let magic = rest.get_u32();
        if magic != REQUEST_MAGIC {
            return Err(magic);
        }
        Ok(RequestHeader {
            flags: rest.get_u16(),
            command: rest.get_u16(),
            cookie: rest.get_u64(),
            offset: rest.get_u64(),
            length: rest.get_u32(),
        })
    }

    /// The bytes of this request, for clients and tests.
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        use bytes::BufMut;
        let mut raw = [0; REQUEST_LEN];
        let mut rest = &mut raw[..];
        rest.put_u32(REQUEST_MAGIC);
        rest.put_u16(self.flags);
        rest.put_u16(self.command);
        rest.put_u64(self.cookie);
        rest.put_u64(self.offset);
        rest.put_u32(self.length);
        raw
    }
}

/// The word for a command in messages.
pub fn command_name(command: u16) -> &'static str {
    match command {
        cmd::READ => "READ",
        cmd::WRITE => "WRITE",
        cmd::DISC => "DISC",
        cmd::FLUSH => "FLUSH",
        cmd::TRIM => "TRIM",
        cmd::CACHE => "CACHE",
        cmd::WRITE_ZEROES => "WRITE_ZEROES",
        cmd::BLOCK_STATUS => "BLOCK_STATUS",
        cmd::RESIZE => "RESIZE",
        _ => "unknown command",
    }
}

/// The word for an option in messages.
pub fn option_name(option: u32) -> &'static str {
    match option {
        opt::EXPORT_NAME => "EXPORT_NAME",
        opt::ABORT => "ABORT",
        opt::LIST => "LIST",
        opt::PEEK_EXPORT => "PEEK_EXPORT",
        opt::STARTTLS => "STARTTLS",
        opt::INFO => "INFO",
        opt::GO => "GO",
        opt::STRUCTURED_REPLY => "STRUCTURED_REPLY",
        opt::LIST_META_CONTEXT => "LIST_META_CONTEXT",
        opt::SET_META_CONTEXT => "SET_META_CONTEXT",
        opt::EXTENDED_HEADERS => "EXTENDED_HEADERS",
        _ => "unknown option",
    }
}
