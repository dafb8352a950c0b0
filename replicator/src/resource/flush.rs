//! Flushes: everything answered before a flush came is durable when it is answered (DESIGN.md, "Durability").
//!
//! One flush of the local disk serves all that wait for it when it starts; those that come later share the next one.
//! Under protocol C a flush also waits for the barrier ack of every epoch that holds a write answered before it; without a
//! local disk that is UpToDate it does so under every protocol.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;

use super::detach::Detach;
use super::{Pending, Resource};
use crate::effect::{DiskOperation, Level};
use crate::event::{IoError, RequestError, RequestId, VolumeNumber};
use crate::options::Protocol;
use crate::planted::Planted;
use crate::resource::change::DiskFault;
use crate::state::word::DiskState;
use crate::transfer_log::Epoch;

/// What a completed local flush belongs to: the running flush of its volume.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Io {
    /// The flush that is running.
    Running,
}

/// Who waits for a local flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A client's flush.
    Client(RequestId),
    /// The barriers of the peer's epochs, on the connection with this count: a flush that began before the next one's writes says nothing
    /// of them.
    PeerEpochs(u64),
    /// A peer's write that asked for a flush before it.
    PeerWrite(u64),
}

/// The local flushes of a volume.
#[derive(Debug, Default)]
pub(crate) struct LocalFlushes {
    /// Those of the flush that is in flight; those that the disk was lost for wait no longer.
    running: Option<Vec<Waiter>>,
    next: Vec<Waiter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LocalPart {
    /// No disk to flush.
    None,
    Waits,
    Done,
    Failed,
}

/// A client's flush.
#[derive(Debug)]
pub(crate) struct Flush {
    volume: VolumeNumber,
    local: LocalPart,
    /// Newest epoch that the peer has to acknowledge.
    epoch: Option<Epoch>,
    /// It waits for the peer: that its disk has everything counts.
    covers_peer: bool,
    /// The link was lost before it did.
    remote_failed: bool,
}

/// Open flushes of clients.
pub(crate) type Flushes = BTreeMap<RequestId, Flush>;

impl Resource {
    pub(super) fn admit_flush(&mut self, id: RequestId, number: VolumeNumber) {
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        let local = volume.writes_locally();
        // The disk of a sync target takes part, and does not count: the good one is the peer's.
        let counts = local
            && (volume.state.disk == DiskState::UpToDate
                || self.planted(Planted::TrustTargetsFlush));
        let accessible =
            volume.state.disk == DiskState::UpToDate || volume.state.pdsk == DiskState::UpToDate;
        self.open_client(id, number, 1);
        // Also where no flush could succeed: once is enough.
        let lost = self.take_unflushed_lost(number);
        if lost || !accessible {
            self.part_done(id, 0, Err(RequestError::Io));
            return;
        }
        let epoch = self.epoch_to_flush(counts);
        let covers_peer = !counts || self.peer_is_durable();
        let flush = Flush {
            volume: number,
            local: if local && self.planted(Planted::FlushWithoutDisk) {
                LocalPart::Done
            } else if local {
                LocalPart::Waits
            } else {
                LocalPart::None
            },
            epoch,
            covers_peer,
            remote_failed: false,
        };
        self.flushes.insert(id, flush);
        if local && !self.planted(Planted::FlushWithoutDisk) {
            self.flush_local(number, Waiter::Client(id));
        }
        self.check_flush(id);
    }

    /// Whether answered writes may have been lost that no flush had covered; told once.
    fn take_unflushed_lost(&mut self, number: VolumeNumber) -> bool {
        let lost = self
            .volumes
            .get_mut(&number)
            .is_some_and(|volume| core::mem::take(&mut volume.unflushed_lost));
        if lost && self.planted(Planted::ForgetLostFlush) {
            return false;
        }
        if lost {
            self.log(
                Level::Error,
                Some(number),
                "a flush is answered with an error: the local disk failed or was detached, and the peer was lost before it had \
                 flushed the writes answered before"
                    .into(),
            );
        }
        lost
    }

    /// Closes what the peer must make durable; never a barrier for an empty epoch.
    fn epoch_to_flush(&mut self, disk_counts: bool) -> Option<Epoch> {
        let protocol = self
            .connection
            .net
            .as_ref()
            .map_or(Protocol::C, |net| net.protocol);
        self.close_epoch();
        if (protocol == Protocol::C && !self.planted(Planted::FlushWithoutPeer)) || !disk_counts {
            self.connection.send_epochs.newest_unacknowledged()
        } else {
            None
        }
    }

    /// Has the local disk flushed for `waiter`.
    pub(super) fn flush_local(&mut self, number: VolumeNumber, waiter: Waiter) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        volume.flushes.next.push(waiter);
        self.start_local_flush(number);
    }

    fn start_local_flush(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.flushes.running.is_some() || volume.flushes.next.is_empty() {
            return;
        }
        if !volume.flushes_locally() {
            let waiters = core::mem::take(&mut volume.flushes.next);
            self.tell_flush_waiters(number, waiters, LocalPart::Failed);
            return;
        }
        volume.flushes.running = Some(core::mem::take(&mut volume.flushes.next));
        self.disk(
            number,
            Pending::Flush(number, Io::Running),
            DiskOperation::Flush,
        );
    }

    pub(super) fn flush_io_done(
        &mut self,
        number: VolumeNumber,
        Io::Running: Io,
        result: Result<(), IoError>,
    ) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let waiters = volume.flushes.running.take().unwrap_or_default();
        let ok = result.is_ok();
        if let Err(error) = result {
            self.local_io_error(number, DiskFault::Write, error);
        }
        let outcome = if ok {
            LocalPart::Done
        } else {
            LocalPart::Failed
        };
        self.tell_flush_waiters(number, waiters, outcome);
        self.start_local_flush(number);
    }

    fn tell_flush_waiters(
        &mut self,
        number: VolumeNumber,
        waiters: Vec<Waiter>,
        outcome: LocalPart,
    ) {
        let ok = outcome == LocalPart::Done;
        for waiter in waiters {
            match waiter {
                Waiter::Client(id) => {
                    if let Some(flush) = self.flushes.get_mut(&id) {
                        flush.local = outcome;
                    }
                    self.check_flush(id);
                }
                Waiter::PeerEpochs(link) if link == self.connection.count => {
                    self.peer_epochs_flushed(number, ok);
                }
                Waiter::PeerEpochs(_) => {}
                Waiter::PeerWrite(id) => self.peer_write_flushed(number, id, ok),
            }
        }
    }

    /// The local disk is gone: flushes that wait for it do not get it any more. The peer's epochs still do where it is only detached:
    /// it works, and its peer need not lose the connection.
    pub(super) fn flushes_disk_gone(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let agreed = (volume.detach.as_ref()).is_some_and(Detach::is_agreed);
        let stays = |waiter: &mut Waiter| agreed && matches!(waiter, Waiter::PeerEpochs(_));
        let mut gone = Vec::new();
        let LocalFlushes { running, next } = &mut volume.flushes;
        for waiters in running.iter_mut().chain([next]) {
            let kept: Vec<Waiter> = waiters.extract_if(.., stays).collect();
            gone.append(waiters);
            *waiters = kept;
        }
        self.tell_flush_waiters(number, gone, LocalPart::Failed);
    }

    /// The link is lost: what the peer did not confirm it may lack; the local disk alone decides.
    /// In `unconfirmed` volumes the peer may not know that this disk is gone, and may give up its data for that.
    pub(super) fn flushes_connection_lost(&mut self, unconfirmed: &[VolumeNumber]) {
        for flush in self.flushes.values_mut() {
            flush.remote_failed |= flush.epoch.take().is_some();
        }
        self.fail_unconfirmed_flushes(unconfirmed);
        self.recheck_flushes();
    }

    /// The peer may not know that the disk of these volumes is gone: flushes without that disk have nothing to rest on.
    pub(super) fn fail_unconfirmed_flushes(&mut self, volumes: &[VolumeNumber]) {
        for flush in self.flushes.values_mut() {
            flush.remote_failed |=
                flush.local != LocalPart::Done && volumes.contains(&flush.volume);
        }
    }

    /// An epoch was acknowledged, or a generation became durable.
    pub(super) fn recheck_flushes(&mut self) {
        let open: Vec<RequestId> = self.flushes.keys().copied().collect();
        for id in open {
            self.check_flush(id);
        }
    }

    fn check_flush(&mut self, id: RequestId) {
        let Some(flush) = self.flushes.get_mut(&id) else {
            return;
        };
        if flush
            .epoch
            .is_some_and(|epoch| self.connection.send_epochs.is_acknowledged(epoch))
        {
            flush.epoch = None;
        }
        if flush.local == LocalPart::Waits || flush.epoch.is_some() {
            return;
        }
        let (volume, local, remote_failed) = (flush.volume, flush.local, flush.remote_failed);
        let covers_peer = flush.covers_peer;
        let unconfirmed = local != LocalPart::Done && self.loss_is_unconfirmed(volume);
        if !self.may_answer_writes(volume) || unconfirmed {
            return;
        }
        let durable_here = local == LocalPart::Done
            && self
                .volumes
                .get(&volume)
                .is_some_and(|at| at.state.disk == DiskState::UpToDate);
        let durable_there = !remote_failed
            && self
                .volumes
                .get(&volume)
                .is_some_and(|at| at.state.pdsk == DiskState::UpToDate)
            && covers_peer;
        self.flushes.remove(&id);
        let result = if durable_here || durable_there {
            Ok(Bytes::new())
        } else {
            Err(RequestError::Io)
        };
        self.part_done(id, 0, result);
    }

    /// Refuses the flushes of a volume that wait for nothing but the end of its suspension.
    pub(crate) fn refuse_settled_flushes(&mut self, number: VolumeNumber, error: RequestError) {
        let settled: Vec<RequestId> = self
            .flushes
            .iter()
            .filter(|(_, flush)| flush.volume == number)
            .filter(|(_, flush)| flush.local != LocalPart::Waits && flush.epoch.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in settled {
            self.flushes.remove(&id);
            self.part_done(id, 0, Err(error));
        }
    }

    /// Whether the peer has made durable what was written: only protocol C waits for its barrier acks.
    fn peer_is_durable(&self) -> bool {
        self.connection
            .net
            .as_ref()
            .is_some_and(|net| net.protocol == Protocol::C)
    }
}
