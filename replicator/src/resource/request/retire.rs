//! The end of a write: its barrier ack, or the end of the link or of the disk.

use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use super::{Local, Remote, Requests, Stage, Write, WriteId};
use crate::bitmap::coverage::{BIT_BYTES, bits_covered, bits_touched};
use crate::event::VolumeNumber;
use crate::planted::Planted;
use crate::resource::Resource;
use crate::state::word::{ConnState, DiskState};
use crate::time::Time;
use crate::transfer_log::Epoch;

impl Write {
    /// Whether a bit of the bitmap stands for bytes of both, the write and the range.
    fn shares_a_block(&self, number: VolumeNumber, offset: u64, length: u32) -> bool {
        let blocks = |offset: u64, length: u32| {
            let end = offset + u64::from(length);
            offset / BIT_BYTES..end.div_ceil(BIT_BYTES)
        };
        let (own, other) = (blocks(self.offset, self.length), blocks(offset, length));
        self.volume == number && own.start < other.end && other.start < own.end
    }
}

impl Resource {
    /// Every write of `epoch` is on the peer's disk, as durable as the peer makes it.
    pub(crate) fn retire_epoch(&mut self, epoch: Epoch) {
        let ids = self.requests.epochs.remove(&epoch).unwrap_or_default();
        for id in ids {
            let Some(write) = self.requests.writes.get_mut(&id) else {
                continue;
            };
            write.epoch = None;
            if matches!(
                write.remote,
                Remote::Sent { .. } | Remote::Handed | Remote::Received
            ) {
                write.remote = Remote::Written;
            }
            if write.stage == Stage::Answered {
                self.retire_write(id);
            } else {
                self.check_write(id);
            }
        }
        self.resync_writes_confirmed();
        self.verify_writes_confirmed();
    }

    /// The peer is no Tandem.
    pub(crate) fn peer_is_kernel(&self) -> bool {
        self.connection.agreed.is_some_and(|agreed| !agreed.tandem)
    }

    /// Whether a write of this node that was answered may still be on its way to the disk of a kernel, which reads a block for a
    /// resync or verify without looking for it: an extent is in use until the barrier ack (wire-protocol.md 6.5). Another
    /// Tandem waits for the write itself. If so, a kernel that lacks the barrier behind it gets that now.
    pub(crate) fn is_unconfirmed_at_kernel(
        &mut self,
        number: VolumeNumber,
        range: &Range<u64>,
    ) -> bool {
        let on_its_way = |write: &Write| {
            write.epoch.is_some()
                && matches!(
                    write.remote,
                    Remote::Sent { .. } | Remote::Handed | Remote::Received
                )
        };
        let found = self.peer_is_kernel()
            && self.requests.writes.values().any(|write| {
                let end = write.offset + u64::from(write.length);
                on_its_way(write)
                    && write.volume == number
                    && write.offset < range.end
                    && range.start < end
            });
        if found {
            self.send_barrier_if_closed();
        }
        found
    }

    /// Forgets an answered write that nobody confirms any more: its extents are released. Bits of what one disk lacks were set
    /// before the answer, or when the link was lost; set again here they could be those of a block that a resync has copied since.
    pub(super) fn retire_write(&mut self, id: WriteId) {
        let in_sync = self.requests.in_sync.remove(&id);
        let Some(write) = self.requests.writes.remove(&id) else {
            return;
        };
        if write.local == Local::None
            && write.remote == Remote::None
            && write.logged.extents.is_none()
        {
            return; // It never started: nothing was written anywhere.
        }
        let both = write.local == Local::Done && write.remote == Remote::Written;
        if both && in_sync {
            self.clear_in_sync(write.volume, write.offset, write.length);
        }
        if let Some(extents) = write.logged.extents {
            self.release_extents(write.volume, extents);
        }
    }

    /// One of the disks is gone. What both had, also what the peer still confirms, says nothing of the disk that is attached next: its bits
    /// are those of its metadata.
    fn keep_bits(&mut self, number: VolumeNumber) {
        let Requests {
            writes, in_sync, ..
        } = &mut self.requests;
        for write in writes.values_mut() {
            write.bits_stay |= write.volume == number && write.remote != Remote::None;
        }
        in_sync.retain(|id| writes.get(id).is_some_and(|write| !write.bits_stay));
    }

    /// A later write, or a block of a resync, has failed in this range on one of the nodes: an earlier write that both have, and that waits
    /// for its barrier ack, clears no bit there any more.
    pub(crate) fn differs_since(&mut self, number: VolumeNumber, offset: u64, length: u32) {
        let Requests {
            writes, in_sync, ..
        } = &mut self.requests;
        let overlaps = |write: &Write| write.shares_a_block(number, offset, length);
        in_sync.retain(|id| !writes.get(id).is_some_and(overlaps));
    }

    /// Only one of the disks has the write `id`: those before it in its blocks clear no bit there, also if the peer confirms them later.
    pub(super) fn overwritten_on_one_disk(&mut self, id: WriteId) {
        let Requests { writes, epochs, .. } = &mut self.requests;
        let Some(write) = writes.get(&id) else {
            return;
        };
        let (number, offset, length) = (write.volume, write.offset, write.length);
        // Without a disk there are no bits, and without a link nobody confirms anything: this costs nothing then.
        let volume = self.volumes.get(&number);
        if volume.is_none_or(|volume| volume.backing.is_none()) {
            return;
        }
        for sent in epochs.values().flatten().filter(|sent| **sent < id) {
            if let Some(write) = writes.get_mut(sent) {
                write.bits_stay |= write.shares_a_block(number, offset, length);
            }
        }
    }

    /// Clears the bits that a range covers completely: both disks have it. Returns how many were set.
    pub(crate) fn clear_in_sync(&mut self, number: VolumeNumber, offset: u64, length: u32) -> u64 {
        let part = self.planted(Planted::ClearPartOfBlock);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return 0;
        };
        if matches!(
            volume.state.conn,
            ConnState::StartingSyncT | ConnState::WFBitMapT | ConnState::WFSyncUUID
        ) {
            // The source has these bits, too, or is told of them: it would wait for blocks that this target never asks for.
            return 0;
        }
        let bits = if part {
            bits_touched(offset, u64::from(length), volume.bytes)
        } else {
            bits_covered(offset, u64::from(length), volume.bytes)
        };
        let cleared = volume
            .backing
            .as_mut()
            .map_or(0, |backing| backing.bitmap.clear(bits));
        if cleared > 0 {
            self.bits_cleared(number);
        }
        cleared
    }

    /// The link is lost: every write without barrier ack, answered or not, counts as missed by the peer (7.6).
    pub(crate) fn requests_connection_lost(&mut self) {
        self.epochs_connection_lost();
        self.requests.epochs.clear();
        self.requests.unsent.clear();
        let ids: Vec<WriteId> = self
            .requests
            .writes
            .iter()
            .filter(|(_, write)| write.epoch.is_some())
            .map(|(id, _)| id)
            .collect();
        for id in ids {
            self.note_unflushed(id);
            self.fail_remote(id);
        }
        let unconfirmed = self.losses_without_peer();
        self.fail_unconfirmed(&unconfirmed);
        self.reads_connection_lost();
        self.flushes_connection_lost(&unconfirmed);
        self.settle_refusals();
        let volumes: Vec<VolumeNumber> = self.volumes.keys().copied().collect();
        for volume in volumes {
            self.recheck_writes(volume);
        }
    }

    /// A write that was answered as one of two copies, was never flushed at the peer, and now has its only good copy
    /// there: a power failure of the peer costs it, so the application's next flush must not succeed.
    fn note_unflushed(&mut self, id: WriteId) {
        let Some(write) = self.requests.writes.get(&id) else {
            return;
        };
        if write.stage != Stage::Answered || write.peer_only {
            return;
        }
        if let Some(volume) = self.volumes.get_mut(&write.volume)
            && volume.state.disk != DiskState::UpToDate
        {
            volume.unflushed_lost = true;
        }
    }

    fn fail_remote(&mut self, id: WriteId) {
        let Some(write) = self.requests.writes.get_mut(&id) else {
            return;
        };
        write.epoch = None;
        write.remote = Remote::Failed;
        let (volume, offset, length) = (write.volume, write.offset, write.length);
        let answered = write.stage == Stage::Answered;
        if !self.planted(Planted::ForgetUnconfirmedWrite) {
            self.mark_out_of_sync(volume, offset, length);
        }
        if answered {
            self.retire_write(id);
        }
    }

    /// The peer has what these writes left on its disk, or will, and may not know that it is the only one.
    pub(crate) fn fail_unconfirmed(&mut self, volumes: &[VolumeNumber]) {
        let open = self.requests.writes.iter_mut().filter(|(_, write)| {
            volumes.contains(&write.volume)
                && write.stage == Stage::Started
                && write.local != Local::Done
        });
        let mut written = Vec::new();
        for (id, write) in open {
            // Its answer may come later, on the other socket.
            write.peer_counts = false;
            if write.remote == Remote::Written {
                written.push(id);
            }
        }
        for id in written {
            self.fail_remote(id);
        }
    }

    /// The peer's disk state changed: refused writes may be answered, and what it will never confirm is settled.
    pub(crate) fn peer_disk_changed(&mut self, volume: VolumeNumber) {
        let at = self.volumes.get(&volume);
        if at.is_some_and(|at| at.state.pdsk < DiskState::Inconsistent) {
            self.keep_bits(volume);
        }
        self.settle_refusals();
        self.recheck_writes(volume);
        self.recheck_flushes();
    }

    /// Refused writes whose reason is known are missed by the peer, whatever its disk is like when they are answered: under suspension
    /// that may be after its return.
    fn settle_refusals(&mut self) {
        for id in core::mem::take(&mut self.requests.refused) {
            let open = self.requests.writes.get(&id);
            let Some(write) = open.filter(|write| write.remote == Remote::Refused) else {
                continue;
            };
            if !self.refusal_explained(write.volume) {
                self.requests.refused.insert(id);
            } else if let Some(write) = self.requests.writes.get_mut(&id) {
                write.remote = Remote::Failed;
            }
        }
    }

    /// The local disk is gone (Failed or Diskless): nothing waits for it any more, whether or not it ever answers. Its
    /// copy is old from now on, and its activity log, still on disk, tells where.
    pub(crate) fn disk_gone(&mut self, volume: VolumeNumber) {
        for write in self.requests.writes.values_mut() {
            if write.volume == volume && write.local == Local::Pending {
                write.local = Local::Failed;
            }
        }
        self.keep_bits(volume);
        self.log_gone(volume);
        self.start_unsaid(volume);
        self.reads_disk_gone(volume);
        self.flushes_disk_gone(volume);
        self.recheck_writes(volume);
    }

    /// A generation is durable (or never will be: the disk is gone): what waited for it is looked at again.
    pub(crate) fn generation_durable(&mut self, volume: VolumeNumber) {
        self.peer_generation_durable(volume);
        self.recheck_writes(volume);
        self.recheck_flushes();
    }

    /// When the oldest write was sent that the peer has not acknowledged at all; the request timeout counts from it.
    pub(crate) fn oldest_unanswered_request(&self) -> Option<Time> {
        let writes = self.requests.writes.values().filter(|write| {
            matches!(write.remote, Remote::Sent { .. } | Remote::Refused)
                || (write.epoch.is_some() && matches!(write.remote, Remote::Handed))
        });
        let writes = writes.map(|write| write.sent_at).min();
        let reads = self.oldest_remote_read();
        match (writes, reads) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Whether a write of this volume was sent and is not acknowledged.
    pub(crate) fn pending_at_peer(&self, volume: VolumeNumber) -> u32 {
        let pending = |write: &&Write| {
            write.volume == volume && matches!(write.remote, Remote::Sent { .. } | Remote::Handed)
        };
        self.requests.writes.values().filter(pending).count() as u32
    }

    /// How long a refused write may wait for its explanation before the link is given up.
    pub(super) fn refusal_deadline(&self) -> Time {
        const PATIENCE: Duration = Duration::from_secs(6);
        let writes = &self.requests.writes;
        let refused = self.requests.refused.iter();
        let refused = refused
            .filter_map(|id| writes.get(id))
            .filter(|write| write.remote == Remote::Refused && write.stage != Stage::Answered);
        refused
            .map(|write| write.sent_at + PATIENCE)
            .min()
            .unwrap_or(Time::NEVER)
    }

    /// Next time that this part wants to be woken.
    pub(crate) fn data_deadline(&self) -> Time {
        self.idle_epoch_deadline()
            .min(self.refusal_deadline())
            .min(self.loss_deadline())
    }

    /// Idle epochs are closed; refusals that nobody explains end the link.
    pub(crate) fn tick_data(&mut self) {
        self.close_idle_epoch();
        self.tick_losses();
        if self.refusal_deadline() <= self.now {
            self.link_lost(
                ConnState::NetworkFailure,
                "the peer refused a write and did not tell why in time",
            );
        }
    }
}
