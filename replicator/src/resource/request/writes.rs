//! The life of a write: from its admission to the answer.

use alloc::vec::Vec;
use bytes::Bytes;

use super::{Body, Io, Local, Logged, Remote, Stage, Write, WriteId};
use crate::bitmap::Urgency;
use crate::bitmap::coverage::bits_touched;
use crate::effect::DiskOperation;
use crate::event::{Fua, IoError, RequestError, RequestId, VolumeNumber};
use crate::intervals::{Admission, IntervalKind};
use crate::options::Protocol;
use crate::planted::Planted;
use crate::resource::change::DiskFault;
use crate::resource::volume::{IoHold, Volume};
use crate::resource::{Pending, Resource};
use crate::state::word::{ConnState, DiskState};

impl Resource {
    pub(super) fn admit_write(
        &mut self,
        client: RequestId,
        volume: VolumeNumber,
        offset: u64,
        length: u32,
        body: Body,
        fua: Fua,
    ) {
        let id = self.requests.next_id();
        let ((offset, length), body, edges) = self.widen(volume, (offset, length), body);
        let ignore = self.ignores_interval(edges.is_some());
        let write = Write {
            client,
            volume,
            offset,
            length,
            body,
            edges,
            fua,
            stage: Stage::Interval,
            logged: Logged::default(),
            local: Local::None,
            remote: Remote::None,
            epoch: None,
            peer_counts: false,
            peer_only: false,
            sent_at: self.now,
            bits_stay: false,
        };
        self.requests.writes.insert(id, write);
        self.requests.bytes_in_flight += u64::from(length);
        let range = offset..offset + u64::from(length);
        let Some(at) = self.volumes.get_mut(&volume) else {
            return;
        };
        if at.intervals.insert(id, range, IntervalKind::Application) == Admission::Ready || ignore {
            self.hold_interval(id);
        }
    }

    /// Everything that overlapped the write and came before it has been answered.
    pub(crate) fn write_interval_ready(&mut self, id: WriteId) {
        let write = self.requests.writes.get(&id);
        if write.is_some_and(|write| write.stage == Stage::Interval) {
            self.hold_interval(id);
        }
    }

    fn ignores_interval(&self, is_odd: bool) -> bool {
        self.planted(Planted::IgnoreOverlap) || is_odd && self.planted(Planted::MergeWithoutLock)
    }

    /// The write has its interval: nobody else changes its sectors until it is answered.
    fn hold_interval(&mut self, id: WriteId) {
        let odd = self.requests.writes.get(&id);
        if odd.is_some_and(|write| write.edges.is_some()) {
            self.read_edges(id);
        } else {
            self.log_write(id);
        }
    }

    /// Both what this node has and what the peer has decide whether a write can be taken at all (7.1).
    fn data_accessible(&self, volume: VolumeNumber) -> bool {
        self.volumes.get(&volume).is_some_and(|volume| {
            volume.state.disk == DiskState::UpToDate || volume.state.pdsk == DiskState::UpToDate
        })
    }

    /// The disk has failed, and the peer is told once the handler local-io-error has ended.
    fn failure_is_untold(&self, volume: VolumeNumber) -> bool {
        self.volumes
            .get(&volume)
            .is_some_and(|volume| volume.stalled.is_some())
    }

    /// The peer's copy alone is no reason to answer: the peer is not told of the loss of this disk, or has not confirmed it.
    fn loss_is_open(&self, volume: VolumeNumber) -> bool {
        self.failure_is_untold(volume) || self.loss_is_unconfirmed(volume)
    }

    /// The peer was told that the disk has failed: writes that it alone has are marked there from here on.
    pub(crate) fn failure_told(&mut self, number: VolumeNumber) {
        self.loss_is_told(number);
        for id in core::mem::take(&mut self.requests.untold) {
            if self.requests.writes.contains_key(&id) {
                self.start_write(id);
            }
        }
        self.recheck_writes(number);
    }

    /// The activity log covers the write: both legs start.
    pub(super) fn start_write(&mut self, id: WriteId) {
        let Some(volume) = self.requests.writes.get(&id).map(|write| write.volume) else {
            return;
        };
        if self.failure_is_untold(volume) {
            // The peer would take it for a write that this disk has, too.
            self.requests.untold.push(id);
            return;
        }
        if self.waits_for_the_disk_to_say_it(volume, id) {
            return;
        }
        if !self.data_accessible(volume) {
            self.fail_or_freeze(id, RequestError::Io);
            return;
        }
        if let Some(write) = self.requests.writes.get_mut(&id) {
            write.stage = Stage::Started;
        }
        self.start_remote(id);
        self.start_local(id);
        self.check_write(id);
    }

    fn start_local(&mut self, id: WriteId) {
        let Some(write) = self.requests.writes.get(&id) else {
            return;
        };
        let volume = write.volume;
        let Some(at) = self.volumes.get_mut(&volume) else {
            return;
        };
        if !at.writes_locally() {
            return;
        }
        at.counters.disk_written_kib += u64::from(write.length) / 1024;
        let (offset, length, fua) = (write.offset, write.length, write.fua);
        let operation = match &write.body {
            Body::Data(data) => DiskOperation::Write {
                offset,
                data: data.clone(),
                fua,
            },
            Body::Discard => DiskOperation::Discard {
                offset,
                length,
                fua,
            },
            Body::Zeroes(unmap) => DiskOperation::Zero {
                offset,
                length,
                unmap: *unmap,
                fua,
            },
        };
        if let Some(write) = self.requests.writes.get_mut(&id) {
            write.local = Local::Pending;
        }
        self.disk(volume, Pending::Request(volume, Io::Write(id)), operation);
    }

    pub(super) fn write_local_done(
        &mut self,
        volume: VolumeNumber,
        id: WriteId,
        result: Result<(), IoError>,
    ) {
        let Some(write) = self.requests.writes.get_mut(&id) else {
            return;
        };
        match result {
            Ok(()) if write.local == Local::Pending => write.local = Local::Done,
            Ok(()) => {}
            Err(error) => {
                write.local = Local::Failed;
                self.local_io_error(volume, DiskFault::Write, error);
            }
        }
        self.check_write(id);
    }

    /// Whether the remote leg is no longer waited for (7.4).
    fn remote_settled(&self, write: &Write) -> bool {
        let protocol = self
            .connection
            .net
            .as_ref()
            .map_or(Protocol::C, |net| net.protocol);
        // Without a good local copy the peer's disk must have it, whatever the protocol. A disk that is lost has none, whatever it did.
        let lost = |volume: &Volume| volume.state.disk <= DiskState::Failed;
        let no_copy = matches!(write.local, Local::None | Local::Failed)
            || self.volumes.get(&write.volume).is_some_and(lost);
        let peer_only = (write.peer_only || no_copy) && !self.planted(Planted::AnswerOnItsWay);
        match write.remote {
            Remote::None | Remote::Written | Remote::Failed => true,
            Remote::Sent { .. } => self.planted(Planted::AnswerBeforePeer),
            Remote::Handed => protocol == Protocol::A && !peer_only,
            Remote::Received => protocol != Protocol::C && !peer_only,
            Remote::Refused => self.refusal_explained(write.volume),
        }
    }

    /// A peer that refuses a write tells its disk's state right after; until then the write is not answered, so that
    /// the new data generation, which marks the peer's copy as old, comes first.
    pub(super) fn refusal_explained(&self, volume: VolumeNumber) -> bool {
        self.volumes.get(&volume).is_none_or(|volume| {
            volume.state.conn < ConnState::Connected || volume.state.pdsk != DiskState::UpToDate
        })
    }

    /// Answers the write if both legs are settled and nothing forbids it.
    pub(crate) fn check_write(&mut self, id: WriteId) {
        let Some(write) = self.requests.writes.get(&id) else {
            return;
        };
        if write.stage != Stage::Started
            || (write.local == Local::Pending && !self.planted(Planted::AnswerBeforeDisk))
            || !self.remote_settled(write)
            || !self.may_answer_writes(write.volume)
            || (write.local != Local::Done && self.loss_is_open(write.volume))
        {
            return;
        }
        let result = self.verdict(write);
        let (number, elsewhere) = (write.volume, write.local != Local::Done && result.is_ok());
        if let Some(volume) = self.volumes.get_mut(&number).filter(|volume| {
            // A disk that takes part again has the write's bit from its peer.
            elsewhere && volume.state.disk < DiskState::Inconsistent
        }) {
            volume.wrote_without_disk = true;
        }
        self.mark_if_missed(id);
        self.finish_write(id, result);
    }

    /// Refuses the writes and flushes of a volume that only its suspension keeps from being answered: it goes down.
    pub(crate) fn refuse_frozen(&mut self, volume: VolumeNumber, error: RequestError) {
        let suspended = |volume: &Volume| volume.state.is_suspended();
        if !self.volumes.get(&volume).is_some_and(suspended) {
            return;
        }
        let settled = |write: &Write| write.local != Local::Pending && self.remote_settled(write);
        let frozen: Vec<WriteId> = self
            .requests
            .writes
            .iter()
            .filter(|(_, write)| write.volume == volume && write.stage == Stage::Started)
            .filter(|(_, write)| settled(write))
            .map(|(id, _)| id)
            .collect();
        for id in frozen {
            self.mark_if_missed(id);
            self.finish_write(id, Err(error));
        }
        for id in self.take_frozen(volume) {
            self.finish_write(id, Err(error));
        }
        self.refuse_settled_flushes(volume, error);
    }

    /// Success needs a copy on a disk whose data counts: an Inconsistent sync target's alone does not.
    fn verdict(&self, write: &Write) -> Result<(), RequestError> {
        let Some(volume) = self.volumes.get(&write.volume) else {
            return Err(RequestError::Io);
        };
        let good =
            volume.state.disk == DiskState::UpToDate || self.planted(Planted::CountStaleCopy);
        let local = write.local == Local::Done && good;
        // The peer had good data when the write was sent, and may have been told since to throw it away.
        let invalidated = volume.state.conn.is_connected()
            && volume.state.pdsk < DiskState::Consistent
            && volume.state.pdsk >= DiskState::Inconsistent;
        // Under `pass_on` this disk, which lacks the write, goes on: the next resync would overwrite a copy of it on a peer that is left.
        let peer_is_good =
            volume.state.conn.is_connected() && volume.state.pdsk == DiskState::UpToDate;
        let left_behind = write.local == Local::Failed && good && !peer_is_good;
        let remote = matches!(
            write.remote,
            Remote::Handed | Remote::Received | Remote::Written
        ) && write.peer_counts
            && !invalidated
            && !left_behind;
        if local || remote {
            Ok(())
        } else {
            Err(RequestError::Io)
        }
    }

    /// A write that the own disk has failed is on its way to the peer's, or there, and not answered.
    pub(crate) fn peer_gets_what_failed_here(&self, volume: VolumeNumber) -> bool {
        self.requests.writes.values().any(|write| {
            write.volume == volume
                && write.stage == Stage::Started
                && write.local == Local::Failed
                && !matches!(
                    write.remote,
                    Remote::None | Remote::Failed | Remote::Refused
                )
        })
    }

    /// Whether writes of a volume may be answered: not while I/O is suspended, nor before the generation that protects
    /// them is durable.
    pub(crate) fn may_answer_writes(&self, volume: VolumeNumber) -> bool {
        let early = self.planted(Planted::AnswerBeforeGeneration);
        let frozen = !self.planted(Planted::AnswerWhileSuspended);
        self.volumes.get(&volume).is_none_or(|volume| {
            (!volume.generation_pending || early) && !(volume.state.is_suspended() && frozen)
        })
    }

    /// Looks again at every write of a volume that is not answered: a state, a generation or a suspension changed.
    pub(crate) fn recheck_writes(&mut self, volume: VolumeNumber) {
        let open: Vec<WriteId> = self
            .requests
            .writes
            .iter()
            .filter(|(_, write)| write.volume == volume && write.stage == Stage::Started)
            .map(|(id, _)| id)
            .collect();
        for id in open {
            self.check_write(id);
        }
        let waits = |volume: &Volume| {
            volume.state.is_suspended() || volume.io_holds.contains(&IoHold::Attach)
        };
        if !self.volumes.get(&volume).is_some_and(waits) {
            self.thaw(volume);
        }
    }

    /// A write that did not start cannot: it fails, but waits while I/O is suspended; a disk or the peer may come back meanwhile.
    pub(super) fn fail_or_freeze(&mut self, id: WriteId, error: RequestError) {
        let volume = self.requests.writes.get(&id).map(|write| write.volume);
        let volume = volume.and_then(|number| self.volumes.get(&number));
        if volume.is_some_and(|volume| volume.state.is_suspended()) {
            self.requests.frozen.push(id);
        } else {
            self.finish_write(id, Err(error));
        }
    }

    /// I/O is not suspended any more: what could not start tries again.
    fn thaw(&mut self, volume: VolumeNumber) {
        for id in self.take_frozen(volume) {
            let Some(write) = self.requests.writes.get(&id) else {
                continue;
            };
            if !self.is_whole(write) {
                // A disk with larger sectors was attached meanwhile, and the write has not locked what it would have to merge with.
                self.finish_write(id, Err(RequestError::Io));
            } else if write.edges.is_some() {
                self.read_edges(id);
            } else if write.logged.extents.is_some() {
                self.start_write(id);
            } else {
                // Its disk was lost, and with it the activity log that named its extents.
                self.log_write(id);
            }
        }
    }

    fn take_frozen(&mut self, volume: VolumeNumber) -> Vec<WriteId> {
        let writes = &self.requests.writes;
        self.requests.frozen.retain(|id| writes.contains_key(id));
        let of_it = |id: &mut WriteId| writes.get(id).is_some_and(|at| at.volume == volume);
        self.requests.frozen.extract_if(.., of_it).collect()
    }

    /// Sets the bits of a write that one of the disks lacks, before it is answered (7.5).
    fn mark_if_missed(&mut self, id: WriteId) {
        let Some(write) = self.requests.writes.get(&id) else {
            return;
        };
        // What the peer failed or refused was marked then. Under suspension a resync may have copied it since.
        if write.local != Local::Done || write.remote == Remote::None {
            let (volume, offset, length) = (write.volume, write.offset, write.length);
            self.overwritten_on_one_disk(id);
            self.mark_out_of_sync(volume, offset, length);
        }
    }

    /// Sets the bits of a range; returns how many were newly set.
    pub(crate) fn mark_out_of_sync(
        &mut self,
        volume: VolumeNumber,
        offset: u64,
        length: u32,
    ) -> u64 {
        if self.planted(Planted::ForgetMissedWrite) {
            return 0;
        }
        self.differs_since(volume, offset, length);
        let Some(volume) = self.volumes.get_mut(&volume) else {
            return 0;
        };
        let bytes = volume.bytes;
        match volume.backing.as_mut() {
            Some(backing) => {
                let bits = bits_touched(offset, u64::from(length), bytes);
                if let Some(resync) = volume.resync.as_mut() {
                    resync.bits_marked(&bits);
                }
                backing.bitmap.set(bits, Urgency::BeforeEviction)
            }
            None => 0,
        }
    }

    /// The answer. What the peer still has to confirm keeps the write in the transfer log.
    pub(super) fn finish_write(&mut self, id: WriteId, result: Result<(), RequestError>) {
        let Some(write) = self.requests.writes.get_mut(&id) else {
            return;
        };
        let (volume, client, epoch) = (write.volume, write.client, write.epoch);
        write.stage = Stage::Answered;
        write.body = Body::Discard; // The payload is not needed any more: give its memory back.
        write.edges = None;
        self.requests.bytes_in_flight -= u64::from(write.length);
        self.write_answered(epoch);
        self.release_interval(volume, id);
        self.part_done(client, 0, result.map(|()| Bytes::new()));
        if epoch.is_none() {
            self.retire_write(id);
        }
    }
}
