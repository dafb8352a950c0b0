//! The size of the device (state-machine.md 10.1).

use alloc::format;

use tandem_metadata::SectorCount;
use tandem_metadata::size::SizeFacts;

use super::Resource;
use super::plan::{self, Then};
use super::volume::Volume;
use crate::bitmap::{NewBits, bits_of_device};
use crate::effect::{Effect, Level, Notification};
use crate::event::VolumeNumber;
use crate::state::word::{ConnState, DiskState, Role};

/// What a new agreement on the size did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SizeChange {
    /// As before.
    Same,
    /// The device is larger now.
    Grew,
    /// The device is smaller now.
    Shrank,
}

impl Volume {
    /// Bytes that this node's disk could offer; 0 without a disk.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.backing.as_ref().map_or(0, |backing| {
            let data = SectorCount(backing.info.data_bytes / 512);
            backing.layout.capacity(data).0 * 512
        })
    }

    /// The size by the facts known now: own disk, the peer's last announcement, what was agreed last.
    pub(crate) fn agreed_bytes(&self, capacity: u64, last: u64) -> u64 {
        let sectors = |bytes: u64| SectorCount(bytes / 512);
        let facts = SizeFacts {
            own: sectors(capacity),
            peer: sectors(self.peer.disk_bytes),
            last_agreed: sectors(last),
            configured: sectors(self.options.size),
        };
        facts.agree().sectors().0 * 512
    }
}

impl Resource {
    /// Gives the device a size of `bytes`: bitmap and superblock follow, and clients once both are on disk.
    pub(crate) fn apply_size(
        &mut self,
        number: VolumeNumber,
        bytes: u64,
        new_bits: NewBits,
    ) -> SizeChange {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return SizeChange::Same;
        };
        let old = volume.bytes;
        if bytes == old {
            return SizeChange::Same;
        }
        // A disk on its way out keeps the size that it had.
        let has_disk = volume.backing.is_some() && volume.state.disk > DiskState::Failed;
        if let Some(backing) = volume.backing.as_mut().filter(|_| has_disk) {
            let resized = backing.bitmap.resize(bits_of_device(bytes), new_bits);
            if let Err(error) = resized {
                let text = format!("the size stays {old} bytes: {error}");
                self.log(Level::Error, Some(number), text);
                return SizeChange::Same;
            }
        }
        volume.bytes = bytes;
        self.status_changed = true;
        self.log(
            Level::Info,
            Some(number),
            format!("the device has {bytes} bytes (had {old})"),
        );
        if has_disk {
            // Bits beyond the old end are not on disk yet: a crash before they are means a full sync.
            self.start_plan(number, plan::rewrite_bitmap(), Then::Sized);
        } else {
            self.serve_size(number);
        }
        if bytes > old {
            SizeChange::Grew
        } else {
            SizeChange::Shrank
        }
    }

    /// The peer's disk offers too little for this device (10.5). It may have grown without its node knowing, which measures it
    /// when it sees the size of this device: the connection is tried once more, then it takes a person.
    pub(crate) fn peer_is_too_small(&mut self, number: VolumeNumber, offered: u64) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let (have, disk) = (volume.bytes, volume.peer.disk_bytes);
        let connecting = volume.state.conn == ConnState::WFReportParams;
        let again = connecting && volume.peer.too_small_bytes != disk;
        volume.peer.too_small_bytes = if again { disk } else { 0 };
        let text = format!(
            "the peer's disk is too small: both nodes together offer {offered} bytes, the device of volume {} has {have}",
            number.0
        );
        if again {
            let text = format!("{text}; the peer measures its disk, then they connect again");
            self.link_lost(ConnState::NetworkFailure, &text);
            return;
        }
        self.refuse_connection(&format!("{text}: let the peer's disk grow"));
    }

    /// Before the next attempt: measures the disks that were too small for the peer's device.
    pub(crate) fn measure_what_was_too_small(&mut self) {
        for number in self.volume_numbers() {
            let Some(volume) = self.volumes.get_mut(&number) else {
                continue;
            };
            if core::mem::take(&mut volume.measure_again) && volume.backing.is_some() {
                self.measure_backing(number);
            }
        }
    }

    /// The disk was measured since the peer's device is larger than what it offered: a person may have to let it grow.
    pub(crate) fn tell_of_room(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        let (capacity, wanted) = (volume.capacity_bytes(), volume.peer.current_bytes);
        if wanted == 0 {
            return;
        }
        if capacity >= wanted {
            let text =
                format!("the disk offers {capacity} bytes now, the peer's device has {wanted}");
            self.log(Level::Info, Some(number), text);
            return;
        }
        let name = &self.name;
        let text = format!(
            "the peer's device has {wanted} bytes, this disk offers only {capacity}: let it grow (internal metadata then has to be \
             moved: tandem adm detach {name} && tandem adm check-resize {name} && tandem adm attach {name}); then type on the peer: \
             tandem adm connect {name}"
        );
        self.log(Level::Warn, Some(number), text);
    }

    /// Clients of a Primary get to know the size of the device.
    pub(crate) fn serve_size(&mut self, number: VolumeNumber) {
        let primary = |volume: &&Volume| volume.state.role == Role::Primary;
        if let Some(volume) = self.volumes.get(&number).filter(primary) {
            self.effects.push(Effect::Notify(Notification::Serve {
                volume: number,
                bytes: Some(volume.bytes),
            }));
        }
    }
}
