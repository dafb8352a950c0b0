//! From byte ranges of the device to bits (spec/metadata.md 4.3): any partial touch sets a bit, only complete coverage
//! clears one.

use core::ops::Range;

/// Bytes of data that one bit describes.
pub const BIT_BYTES: u64 = 4096;

/// Number of bits of a device of `device_bytes` bytes; the last one may describe fewer than 4096 bytes.
pub const fn bits_of_device(device_bytes: u64) -> u64 {
    device_bytes.div_ceil(BIT_BYTES)
}

/// Bits of which at least one byte lies in `[offset, offset + len)`: those to set when the range is out of sync.
/// What lies beyond the device end is cut off.
pub fn bits_touched(offset: u64, len: u64, device_bytes: u64) -> Range<u64> {
    let end = offset.saturating_add(len).min(device_bytes);
    if len == 0 || offset >= end {
        return 0..0;
    }
    offset / BIT_BYTES..end.div_ceil(BIT_BYTES)
}

/// Bits whose bytes all lie in `[offset, offset + len)`: those that may be cleared when the range is in sync. The last,
/// partial block of the device counts as covered when the range reaches the device end.
pub fn bits_covered(offset: u64, len: u64, device_bytes: u64) -> Range<u64> {
    let end = offset.saturating_add(len).min(device_bytes);
    if len == 0 || offset >= end {
        return 0..0;
    }
    let first = offset.div_ceil(BIT_BYTES);
    let last = if end == device_bytes {
        end.div_ceil(BIT_BYTES)
    } else {
        end / BIT_BYTES
    };
    if first >= last { 0..0 } else { first..last }
}

/// The bytes that the bits `bits` describe, cut at the device end: `(offset, len)`.
pub fn bytes_of_bits(bits: Range<u64>, device_bytes: u64) -> (u64, u64) {
    let offset = bits.start.saturating_mul(BIT_BYTES).min(device_bytes);
    let end = bits.end.saturating_mul(BIT_BYTES).min(device_bytes);
    (offset, end.saturating_sub(offset))
}
