//! The exchange of bitmaps before a resync (wire-protocol.md 6).
// filled in by sync

use super::Resource;
use crate::event::VolumeNumber;

impl Resource {
    /// WFBitMapS was reached: send the bitmap, with application writes held off meanwhile.
    pub(crate) fn send_bitmap(&mut self, _volume: VolumeNumber) {}
}
