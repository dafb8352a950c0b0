//! The exchange of bitmaps before a resync (wire-protocol.md 6).
// filled in by sync

use bytes::Bytes;

use super::Resource;
use crate::event::VolumeNumber;

impl Resource {
    /// WFBitMapS was reached: send the bitmap, with application writes held off meanwhile.
    pub(crate) fn send_bitmap(&mut self, _volume: VolumeNumber) {}

    /// P_BITMAP, called by `link`. Errors are protocol errors.
    pub(crate) fn on_bitmap(
        &mut self,
        _volume: VolumeNumber,
        _chunk: Bytes,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_COMPRESSED_BITMAP, called by `link`. Errors are protocol errors.
    pub(crate) fn on_compressed_bitmap(
        &mut self,
        _volume: VolumeNumber,
        _chunk: Bytes,
    ) -> Result<(), &'static str> {
        Ok(())
    }
}
