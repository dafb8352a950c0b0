//! The one place where fixed packet parts meet bincode: big-endian, fixed-size integers, bounded.
//!
//! Only integers, arrays and structs of them pass through here: never `Vec`, `Option` or enums,
//! which bincode would prefix with bytes that the wire does not have.

use bincode::config::{self, BigEndian, Configuration, Fixint, Limit};
use bytes::BytesMut;

/// Bytes that one fixed part may have; the longest (P_SYNC_PARAM89) has 148.
const FIXED_BYTES_MAX: usize = 256;

type Wire = Configuration<BigEndian, Fixint, Limit<FIXED_BYTES_MAX>>;
const WIRE: Wire = config::standard()
    .with_big_endian()
    .with_fixed_int_encoding()
    .with_limit::<FIXED_BYTES_MAX>();

/// A packet's fixed part: what stands at the same offset in each packet of its kind.
pub(crate) trait Fixed: bincode::Encode + bincode::Decode<()> {
    /// Bytes on the wire.
    const LEN: usize;
}

/// Declares the wire length of fixed parts.
macro_rules! fixed {
    ($($name:ty => $len:expr),* $(,)?) => {
        $(impl crate::codec::Fixed for $name { const LEN: usize = $len; })*
    };
}
pub(crate) use fixed;

/// Appends the fixed part. `false`: it does not have its declared length, which is our bug.
#[must_use]
pub(crate) fn put<T: Fixed>(part: &T, out: &mut BytesMut) -> bool {
    let start = out.len();
    out.resize(start + T::LEN, 0);
    write(part, &mut out[start..])
}

/// Writes the fixed part over `out`. `false`: they have not the same length, which is our bug.
#[must_use]
pub(crate) fn write<T: Fixed>(part: &T, out: &mut [u8]) -> bool {
    let len = out.len();
    len == T::LEN && matches!(bincode::encode_into_slice(part, out, WIRE), Ok(used) if used == len)
}

/// Reads the fixed part from the start of `bytes`; `None` if they are too few.
pub(crate) fn get<T: Fixed>(bytes: &[u8]) -> Option<T> {
    match bincode::decode_from_slice(bytes.get(..T::LEN)?, WIRE) {
        Ok((part, used)) if used == T::LEN => Some(part),
        _ => None,
    }
}
