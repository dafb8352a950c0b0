//! What a person sees: a copy of the engine's state, made on demand.

use super::Resource;
use super::volume::Volume;
use crate::activity_log::LogMode;
use crate::bitmap::BIT_BYTES;
use crate::event::VolumeNumber;
use crate::status::{Counters, ResourceStatus, VolumeStatus};

impl Resource {
    /// The status of the resource and of its volumes.
    pub fn status(&self) -> ResourceStatus {
        let least = self.volumes.values().map(|volume| volume.state.conn).min();
        let cstate = self.connection.cstate;
        let agreed = self.connection.link.as_ref();
        let agreed = agreed.and(self.connection.agreed);
        ResourceStatus {
            name: self.name.clone(),
            connection: least.map_or(cstate, |least| least.max(cstate)),
            version: agreed.map(|agreed| agreed.version),
            peer_versions: agreed.map(|agreed| agreed.peer_versions),
            protocol: self.connection.net.as_ref().map(|net| net.protocol),
            last_error: self.connection.trouble.text(),
            volumes: self
                .volumes
                .values()
                .map(|volume| self.volume_status(volume))
                .collect(),
        }
    }

    /// Whether this node is the one that resolves conflicts of the connection (wire-protocol.md 1.3); `None` without one.
    pub fn resolves_conflicts(&self) -> Option<bool> {
        let connection = &self.connection;
        connection
            .link
            .as_ref()
            .map(|_| connection.resolve_conflicts)
    }

    /// Whether the bitmap says that the block at this byte may differ from the peer's; `None` without a disk.
    pub fn is_out_of_sync(&self, volume: VolumeNumber, offset: u64) -> Option<bool> {
        let backing = self.volumes.get(&volume)?.backing.as_ref()?;
        Some(backing.bitmap.get(offset / BIT_BYTES))
    }

    fn volume_status(&self, volume: &Volume) -> VolumeStatus {
        let number = volume.number;
        let local = |pending: &&super::Pending| pending.disk_of() == Some(number);
        let counters = Counters {
            local_count: count(self.pending.values().filter(local).count()),
            pending: self.pending_at_peer(number),
            unacked: self.unacked_of_peer(number),
            application: self.applications_open(number),
            epochs: self.epochs_open(),
            out_of_sync_kib: volume.bits_set() * 4,
            ..volume.counters
        };
        VolumeStatus {
            number,
            minor: volume.minor,
            state: volume.state,
            al_suspended: volume
                .backing
                .as_ref()
                .is_some_and(|backing| backing.activity_log.mode() == LogMode::Suspended),
            bytes: volume.bytes,
            was_degraded: volume.was_degraded,
            disk_error: volume.disk_error.clone(),
            uuids: volume
                .backing
                .as_ref()
                .map(|_| volume.generations.uuids.slots()),
            open_count: volume.open_count,
            write_order: if volume.options.disk_flushes {
                'f'
            } else {
                'd'
            },
            counters,
            resync: self
                .resync_status(number)
                .or_else(|| self.verify_status(number)),
            verified: volume.verified,
        }
    }

    fn epochs_open(&self) -> u32 {
        let open = self.connection.receive_epochs.as_ref();
        open.map_or(1, |epochs| count(epochs.waiting()).saturating_add(1))
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
