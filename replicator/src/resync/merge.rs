//! Which blocks to ask for next (spec/state-machine.md 6.3): adjacent set bits become one request.

use crate::bitmap::{BIT_BYTES, Bitmap, bits_of_device};

use super::extents::EXTENT_BITS;

/// Largest resync request in bytes, whatever the device could do.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// What a request may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Largest request in bytes; at least one block of 4 KiB is taken, at most 1 MiB.
    pub bytes_max: u32,
    /// Size of the device in bytes; the last request is cut there.
    pub device_bytes: u64,
    /// `rs-discard-granularity` in bytes if thin resync was agreed: requests of exactly this size ask "thin", and none
    /// is larger.
    pub discard_granularity: Option<u32>,
}

/// How a request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// For data.
    Data,
    /// For data, or the word that all of it is zero.
    Thin,
}

/// One request of the resync target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResyncRequest {
    /// First bit; the cursor goes on at `bit + bits`.
    pub bit: u64,
    /// Bits that it covers, all of them set.
    pub bits: u32,
    /// Bytes; fewer than `bits * 4096` only at the device end.
    pub len: u32,
    /// How it asks.
    pub kind: RequestKind,
}

impl ResyncRequest {
    /// First byte.
    pub fn offset(&self) -> u64 {
        self.bit * BIT_BYTES
    }

    /// The resync extent that it lies in.
    pub fn extent(&self) -> u32 {
        u32::try_from(self.bit / EXTENT_BITS).unwrap_or(u32::MAX)
    }

    /// The bit after it.
    pub fn end(&self) -> u64 {
        self.bit + u64::from(self.bits)
    }
}

/// The next request at or after bit `cursor`; none if no further bit is set. It is aligned to its size rounded up to a
/// power of two and does not cross a resync extent of 16 MiB.
pub fn next_request(bitmap: &Bitmap, cursor: u64, limits: &RequestLimits) -> Option<ResyncRequest> {
    let end = bits_of_device(limits.device_bytes).min(bitmap.bits());
    let bit = bitmap.next_set(cursor).filter(|bit| *bit < end)?;
    let thin = limits
        .discard_granularity
        .filter(|granularity| *granularity > 0);
    let bytes_max = limits
        .bytes_max
        .min(REQUEST_BYTES_MAX)
        .min(thin.unwrap_or(u32::MAX));
    let most = u64::from(bytes_max) / BIT_BYTES;
    let extent_end = (bit / EXTENT_BITS + 1) * EXTENT_BITS;
    let run_end = bitmap
        .next_clear(bit)
        .unwrap_or(end)
        .min(end)
        .min(extent_end);
    let mut bits = 1;
    while bits < most && bit + bits < run_end && bit % (bits + 1).next_power_of_two() == 0 {
        bits += 1;
    }
    let len = (bits * BIT_BYTES).min(limits.device_bytes - bit * BIT_BYTES);
    let (bits, len) = (bits as u32, len as u32);
    let kind = if thin == Some(len) {
        RequestKind::Thin
    } else {
        RequestKind::Data
    };
    Some(ResyncRequest {
        bit,
        bits,
        len,
        kind,
    })
}
