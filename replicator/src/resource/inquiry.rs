//! What clients may know of a volume: asked at any time, also while I/O is suspended, and without any effect.

use alloc::vec::Vec;
use core::ops::Range;

use super::Resource;
use crate::bitmap::BIT_BYTES;
use crate::bitmap::coverage::bits_touched;
use crate::event::VolumeNumber;
use crate::state::effects::writes_are_replicated;
use crate::state::word::DiskState;

/// Whether a piece of the device differs, or may differ, from the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncExtent {
    /// Bytes.
    pub length: u64,
    /// Its bits are set, or nobody knows.
    pub out_of_sync: bool,
}

impl Resource {
    /// What the bitmap says of a range in bytes inside of the device: at most `limit` extents, from its first byte on,
    /// neighbours differing. Without a disk, and until its bitmap is read, everything may differ. Empty for an unknown
    /// volume or an empty range. The work grows with the range (a word of the bitmap for 256 KiB), not with the device.
    pub fn sync_extents(
        &self,
        number: VolumeNumber,
        range: Range<u64>,
        limit: usize,
    ) -> Vec<SyncExtent> {
        let mut extents = Vec::new();
        let Some(volume) = self.volumes.get(&number) else {
            return extents;
        };
        let end = range.end.min(volume.bytes);
        if range.start >= end || limit == 0 {
            return extents;
        }
        let extent = |range: Range<u64>, out_of_sync| SyncExtent {
            length: range.end - range.start,
            out_of_sync,
        };
        // While a disk is being attached its bitmap is not whole.
        let known = volume.state.disk >= DiskState::Inconsistent;
        let Some(backing) = volume.backing.as_ref().filter(|_| known) else {
            extents.push(extent(range.start..end, true));
            return extents;
        };
        let bits = bits_touched(range.start, end - range.start, volume.bytes);
        let mut at = range.start;
        for run in backing.bitmap.set_runs(bits) {
            let from = (run.start * BIT_BYTES).max(range.start);
            let to = (run.end * BIT_BYTES).min(end);
            if at < from {
                extents.push(extent(at..from, false));
            }
            extents.push(extent(from..to, true));
            at = to;
            if extents.len() >= limit {
                extents.truncate(limit);
                return extents;
            }
        }
        if at < end {
            extents.push(extent(at..end, false));
        }
        extents
    }

    /// Whether what lies on the local disk is what clients read.
    pub fn reads_locally(&self, number: VolumeNumber) -> bool {
        self.volumes.get(&number).is_some_and(|volume| {
            volume.backing.is_some() && volume.state.disk == DiskState::UpToDate
        })
    }

    /// Whether zeroes cost the link a few bytes: nobody is there to send them to, or the peer takes a range
    /// (wire-protocol.md 3.4).
    pub fn zeroes_are_short(&self, number: VolumeNumber) -> bool {
        self.volumes.get(&number).is_some_and(|volume| {
            let replicated = self.connection.link.is_some() && writes_are_replicated(&volume.state);
            !replicated || self.sends_short_zeroes()
        })
    }
}
