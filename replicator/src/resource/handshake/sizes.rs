//! P_SIZES: how large the disks are, what an administrator wants, and what the device has then (wire-protocol.md 3.3; state-machine.md 10.2).

use alloc::format;
use alloc::string::String;

use tandem_protocol::features::Features;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{QueueLimits, Sizes};

use super::REQUEST_BYTES_MAX;
use crate::bitmap::NewBits;
use crate::command::NewArea;
use crate::event::VolumeNumber;
use crate::resource::Resource;
use crate::resource::size::SizeChange;
use crate::state::word::{ConnState, DiskState, Role, State};

/// Whether P_SIZES tells the size of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Current {
    /// It does.
    Told,
    /// 0 instead: the peer shall answer.
    Asked,
}

impl Resource {
    /// P_SIZES.
    pub(super) fn send_sizes(&mut self, number: VolumeNumber, dds_flags: u16, current: Current) {
        let agreed = self.connection.agreed;
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        let info = volume
            .backing
            .as_ref()
            .filter(|_| volume.state.disk >= DiskState::Negotiating)
            .map(|backing| backing.info);
        let block = info.map_or(512, |info| info.logical_block);
        let limits = QueueLimits {
            physical_block_size: block.max(4096),
            logical_block_size: block,
            alignment_offset: 0,
            io_min: block.max(4096),
            io_opt: 0,
            discard_enabled: u8::from(info.is_some_and(|info| info.discard)),
            discard_zeroes_data: u8::from(info.is_some_and(|info| info.discard_zeroes)),
            write_same_capable: 0,
            pad: 0,
        };
        let with_limits = agreed.is_some_and(|agreed| agreed.features.contains(Features::WSAME));
        let packet = Sizes {
            d_size: if info.is_some() {
                volume.capacity_bytes() / 512
            } else {
                0
            },
            u_size: volume.options.size / 512,
            c_size: match current {
                Current::Told => volume.bytes / 512,
                Current::Asked => 0,
            },
            max_bio_size: REQUEST_BYTES_MAX,
            queue_order_type: 0,
            dds_flags,
            limits: with_limits.then_some(limits),
        };
        self.send(Some(number), Packet::Sizes(packet));
    }

    /// P_SIZES (10.2).
    pub(crate) fn on_sizes(&mut self, number: VolumeNumber, peer: &Sizes) -> Result<(), String> {
        let bytes = |sectors: u64| sectors.checked_mul(512).ok_or("a size beyond every device");
        let (disk, user, current) = (
            bytes(peer.d_size)?,
            bytes(peer.u_size)?,
            bytes(peer.c_size)?,
        );
        let Some(volume) = self.volumes.get_mut(&number) else {
            return Ok(());
        };
        volume.peer.disk_bytes = disk;
        volume.peer.current_bytes = current;
        volume.peer.max_request = REQUEST_BYTES_MAX;
        if let (Some(limits), true) = (&peer.limits, disk > 0) {
            volume.peer.logical_block = limits.logical_block_size;
        }
        let asks = current == 0 && disk > 0 && volume.state.conn == ConnState::Connected;
        if asks && volume.state.disk >= DiskState::Inconsistent && volume.backing.is_some() {
            // A resize on the peer: this disk may have grown, too.
            if volume.peer.sizes_asked.replace(*peer).is_none() {
                self.measure_backing(number);
            }
        } else if volume.state.disk >= DiskState::Negotiating && volume.backing.is_some() {
            self.sizes_with_disk(number, peer, user, current);
        } else {
            self.sizes_without_disk(number, disk, user, current);
        }
        Ok(())
    }

    /// A resize asks the peer for its sizes: with a current size of 0 it answers in any case (wire-protocol.md 3.3).
    pub(crate) fn ask_for_sizes(&mut self, number: VolumeNumber, area: NewArea) {
        let dds_flags = match area {
            NewArea::Resync => 0,
            NewArea::AssumeClean => Sizes::DDS_NO_RESYNC,
        };
        self.send_sizes(number, dds_flags, Current::Asked);
    }

    /// What this device has now, for a peer that may have crossed an older answer.
    pub(crate) fn tell_sizes(&mut self, number: VolumeNumber) {
        self.send_sizes(number, 0, Current::Told);
    }

    /// The own disk was measured for a peer that asked: it is answered, unless the link is gone.
    pub(crate) fn answer_sizes(&mut self, number: VolumeNumber, peer: &Sizes) {
        let ready = |volume: &&crate::resource::volume::Volume| {
            volume.state.conn >= ConnState::Connected
                && volume.state.disk >= DiskState::Negotiating
                && volume.backing.is_some()
        };
        if self.volumes.get(&number).filter(ready).is_some() {
            self.sizes_with_disk(number, peer, peer.u_size.saturating_mul(512), 0);
        }
    }

    fn sizes_with_disk(&mut self, number: VolumeNumber, peer: &Sizes, user: u64, current: u64) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let state = volume.state;
        let connecting = state.conn == ConnState::WFReportParams;
        let own = volume.options.size;
        let wanted = match (own, user) {
            (own, user) if connecting && own != 0 && user != 0 => own.min(user),
            (own, user) if connecting => own.max(user),
            (_, user) => user,
        };
        volume.options.size = wanted;
        let size = volume.agreed_bytes(volume.capacity_bytes(), volume.bytes);
        let unknown = state.conn < ConnState::Connected || state.pdsk == DiskState::Diskless;
        if size < volume.bytes && state.disk >= DiskState::Outdated && unknown {
            volume.options.size = own;
            self.peer_is_too_small(number, size);
            return;
        }
        volume.peer.too_small_bytes = 0;
        // Then the peer gives up this connection. The disk may have grown since it was attached.
        volume.measure_again = connecting && current > volume.capacity_bytes();
        let smaller = volume.bytes.min(current);
        volume.grew_with_peer = connecting && smaller != 0 && size > smaller;
        let new_bits = match peer.dds_flags & Sizes::DDS_NO_RESYNC {
            0 => NewBits::Set,
            _ => NewBits::Clear,
        };
        let change = if size > 0 {
            self.apply_size(number, size, new_bits)
        } else {
            SizeChange::Same
        };
        if state.conn > ConnState::WFReportParams {
            let bytes = self.volumes.get(&number).map_or(0, |volume| volume.bytes);
            if bytes != current {
                self.send_sizes(number, peer.dds_flags, Current::Told);
            }
        }
        let pending = self
            .volumes
            .get_mut(&number)
            .is_some_and(|volume| core::mem::take(&mut volume.resize_pending));
        let grew = change == SizeChange::Grew || pending;
        if grew && state.conn >= ConnState::Connected {
            self.grew(number, &state, peer.dds_flags);
        }
        self.resize_answered(number);
    }

    /// The device grew while connected: the new area is synchronised (10.2 step 6).
    fn grew(&mut self, number: VolumeNumber, state: &State, dds_flags: u16) {
        let usable = state.disk >= DiskState::Inconsistent && state.pdsk >= DiskState::Inconsistent;
        if !usable {
            if let Some(volume) = self.volumes.get_mut(&number) {
                volume.grew_while_detached = true;
            }
        } else if state.conn == ConnState::Connected && dds_flags & Sizes::DDS_NO_RESYNC == 0 {
            self.resync_grown_area(number);
        }
    }

    fn sizes_without_disk(&mut self, number: VolumeNumber, disk: u64, user: u64, current: u64) {
        let tandem = !self.peer_is_kernel();
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if current == 0 && tandem && volume.state.conn == ConnState::Connected {
            // A resize that asks what this disk offers, and has crossed its loss: the peer hears of that, and tells what its device has.
            return;
        }
        let offered = [current, user, disk].into_iter().find(|bytes| *bytes != 0);
        if let (Some(attach), Some(bytes), true) = (
            volume.attach.as_mut(),
            offered,
            volume.backing.is_some() && disk != 0,
        ) {
            // The disk is being read by the size that it had; once it takes part, both agree anew.
            attach.device_has(bytes);
            return;
        }
        let Some(offered) = offered.filter(|bytes| *bytes != volume.bytes) else {
            return;
        };
        if volume.bytes != 0 && disk == 0 {
            return;
        }
        if offered < volume.bytes && volume.state.role == Role::Primary {
            let text = format!(
                "the peer's device has {offered} bytes, this Primary without a disk has {}",
                volume.bytes
            );
            self.refuse_connection(&text);
            return;
        }
        self.apply_size(number, offered, NewBits::Set);
    }
}
