//! The sizes that bound what a peer may send (wire 2.2, 10.1).

/// Bytes of one sector on the wire.
pub const SECTOR_BYTES: u64 = 512;
/// Most bytes of data in one packet, and of one read or resync request (wire 2.2).
pub const DATA_BYTES_MAX: usize = 1 << 20;
/// Most bytes that one P_TRIM, P_ZEROES or P_WSAME covers (wire 2.2).
pub const RANGE_BYTES_MAX: u32 = 128 << 20;
/// Most bytes of payload of a bitmap packet under a 16-byte header (wire 2.2).
pub const BITMAP_BYTES_MAX: usize = 4080;
/// Most 64-bit words in one P_BITMAP (wire 6.3).
pub const BITMAP_WORDS_MAX: u64 = (BITMAP_BYTES_MAX / 8) as u64;
/// Most bytes of code in one P_COMPRESSED_BITMAP, after its encoding byte (wire 6.3).
pub const BITMAP_CODE_BYTES_MAX: usize = BITMAP_BYTES_MAX - 1;
/// Bytes of an algorithm's name with its NUL, and of the field that holds one (wire 10.1).
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of the challenge that a node sends, and least bytes of one it takes (wire 4.4).
pub const CHALLENGE_BYTES: usize = 64;
/// Most bytes of a challenge that a node takes (wire 4.4).
pub const CHALLENGE_BYTES_MAX: usize = 128;
/// Most bytes of any digest or HMAC: SHA-512, the longest we know.
pub const DIGEST_BYTES_MAX: usize = 64;
/// Most bytes of a shared secret: the field has 64 with the NUL (wire 4.4).
pub const SECRET_BYTES_MAX: usize = 63;
/// First sector number whose offset in bytes does not fit 64 bits; no device reaches it.
pub const SECTORS_MAX: u64 = 1 << 55;
