//! The activity log in the life of a write: its extents are on disk before the write is.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::{Logged, Stage, WriteId};
use crate::activity_log::{Begin, Released, Shortage, Ticket, extents_of};
use crate::event::{IoError, RequestError, VolumeNumber};
use crate::planted::Planted;
use crate::resource::Resource;
use crate::resource::attach::Attach;
use crate::resource::plan::Then;
use crate::resource::volume::Volume;

impl Resource {
    /// Has the extents of a write (a client's, or a diskless peer's) in the activity log, now or later, then starts it.
    pub(crate) fn log_write(&mut self, id: WriteId) {
        if let Some(write) = self.requests.writes.get_mut(&id) {
            write.stage = Stage::Log;
        }
        let Some((number, ..)) = self.logged_range(id) else {
            return;
        };
        let behind = self
            .requests
            .log_waiters
            .get(&number)
            .is_some_and(|waiters| !waiters.is_empty());
        if behind {
            // Those before it wait for room: a cold write is not starved by hot ones.
            self.wait_for_log(number, id);
            return;
        }
        match self.begin_log(id) {
            LogAnswer::Go => self.start_logged(id),
            LogAnswer::Ticket => {
                self.write_log(number);
                if self.planted(Planted::StartBeforeLog)
                    && let Some(logged) = self.logged_mut(id)
                {
                    logged.ticket = None;
                    self.start_logged(id);
                }
            }
            LogAnswer::Wait => {
                self.wait_for_log(number, id);
                self.write_log(number);
                // References come back with barrier acks: have the peer send them.
                self.close_epoch();
            }
        }
    }

    fn logged_range(&self, id: WriteId) -> Option<(VolumeNumber, u64, u32)> {
        match (self.requests.writes.get(&id), self.peer_io.writes.get(&id)) {
            (Some(write), _) => Some((write.volume, write.offset, write.length)),
            (None, Some(write)) => Some((write.volume, write.offset, write.length)),
            (None, None) => None,
        }
    }

    fn logged_mut(&mut self, id: WriteId) -> Option<&mut Logged> {
        match (
            self.requests.writes.get_mut(&id),
            self.peer_io.writes.get_mut(&id),
        ) {
            (Some(write), _) => Some(&mut write.logged),
            (None, Some(write)) => Some(&mut write.logged),
            (None, None) => None,
        }
    }

    fn start_logged(&mut self, id: WriteId) {
        if self.requests.writes.contains_key(&id) {
            self.start_write(id);
        } else {
            self.start_peer_write(id);
        }
    }

    /// Whether this write has to wait until the disk says that its data are old; then it is started later.
    pub(crate) fn waits_for_the_disk_to_say_it(
        &mut self,
        number: VolumeNumber,
        id: WriteId,
    ) -> bool {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return false;
        };
        if !volume.says_too_much() {
            return false;
        }
        self.wait_for_the_superblock(number, id);
        true
    }

    /// Whether this write of a peer without a disk has to wait until the disk says that its activity log counts; then it is started
    /// later. The bit of such a write is in memory, and its extent may have been in the log before.
    pub(crate) fn waits_for_the_primary_mark(&mut self, number: VolumeNumber, id: WriteId) -> bool {
        let lacks = Volume::lacks_primary_mark;
        let waits = self.volumes.get(&number).is_some_and(lacks);
        if waits {
            self.wait_for_the_superblock(number, id);
        }
        waits
    }

    fn wait_for_the_superblock(&mut self, number: VolumeNumber, id: WriteId) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        volume.unsaid.push(id);
        if !volume.plans.will_write_superblock() {
            self.write_dirty_superblock(number);
        }
    }

    /// What the disk says of its data has changed, or it is gone: writes that waited for that look again.
    pub(crate) fn start_unsaid(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        for id in core::mem::take(&mut volume.unsaid) {
            self.start_logged(id);
        }
    }

    fn begin_log(&mut self, id: WriteId) -> LogAnswer {
        let Some((number, offset, length)) = self.logged_range(id) else {
            return LogAnswer::Go;
        };
        let skip = self.planted(Planted::SkipActivityLog);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return LogAnswer::Go;
        };
        if !volume.writes_locally() || skip {
            return LogAnswer::Go;
        }
        let Some(backing) = volume.backing.as_mut() else {
            return LogAnswer::Go;
        };
        let Some(extents) = extents_of(offset, u64::from(length)) else {
            return LogAnswer::Go;
        };
        let (answer, ticket) = match backing.activity_log.begin(extents.clone()) {
            Begin::Hot => (LogAnswer::Go, None),
            Begin::Pending(ticket) => (LogAnswer::Ticket, Some(ticket)),
            Begin::Full(Shortage::Slots | Shortage::Updates) => return LogAnswer::Wait,
            // A part touches at most two extents, which every log can hold; a failed log's disk is on its way out.
            Begin::TooWide { .. } | Begin::Failed => return LogAnswer::Go,
        };
        if let Some(logged) = self.logged_mut(id) {
            *logged = Logged {
                extents: Some(extents),
                ticket,
            };
        }
        answer
    }

    fn wait_for_log(&mut self, number: VolumeNumber, id: WriteId) {
        self.requests
            .log_waiters
            .entry(number)
            .or_default()
            .push_back(id);
    }

    /// Writes the transaction that is due, if none is in flight. While a disk is attached whose log has not become bits, none is.
    pub(crate) fn write_log(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if volume.attach.as_ref().is_some_and(Attach::needs_the_log) {
            return;
        }
        let Some(backing) = volume.backing.as_mut() else {
            return;
        };
        if let Some(batch) = backing.activity_log.next_transaction() {
            self.start_log_plan(number, &batch, Then::LogWritten);
        }
    }

    /// A transaction is on disk, or the disk failed: those that waited for it go on.
    pub(crate) fn log_written(&mut self, number: VolumeNumber, result: Result<(), IoError>) {
        let ticket = match (self.volumes.get_mut(&number), result) {
            (Some(volume), Ok(())) => {
                volume.counters.al_writes += 1;
                volume
                    .backing
                    .as_mut()
                    .and_then(|backing| backing.activity_log.commit())
            }
            (Some(volume), Err(_)) => {
                if let Some(backing) = volume.backing.as_mut() {
                    backing.activity_log.fail();
                }
                // The failed disk is detached; `log_gone` lets the writes go on without it.
                return;
            }
            (None, _) => return,
        };
        if let Some(ticket) = ticket {
            self.start_committed(number, ticket);
        }
        self.retry_log_waiters(number);
        self.write_log(number);
    }

    /// Every ticket up to `through` is committed.
    pub(crate) fn start_committed(&mut self, number: VolumeNumber, through: Ticket) {
        for id in self.writes_at_log(number) {
            let Some(logged) = self.logged_mut(id) else {
                continue;
            };
            if logged.ticket.is_some_and(|ticket| ticket <= through) {
                logged.ticket = None;
                self.start_logged(id);
            }
        }
    }

    /// Writes that wait for a transaction, in the order of their arrival.
    fn writes_at_log(&self, number: VolumeNumber) -> Vec<WriteId> {
        let own = self.requests.writes.iter();
        let own = own.filter(|(_, write)| write.volume == number && write.logged.ticket.is_some());
        let peer = self.peer_io.writes.iter();
        let peer =
            peer.filter(|(_, write)| write.volume == number && write.logged.ticket.is_some());
        own.map(|(id, _)| id)
            .chain(peer.map(|(id, _)| id))
            .collect()
    }

    fn retry_log_waiters(&mut self, number: VolumeNumber) {
        while let Some(id) = self.next_log_waiter(number) {
            match self.begin_log(id) {
                LogAnswer::Go => {
                    self.pop_log_waiter(number);
                    self.start_logged(id);
                }
                LogAnswer::Ticket => self.pop_log_waiter(number),
                LogAnswer::Wait => break,
            }
        }
    }

    /// A write that waited for room is given up.
    pub(crate) fn forget_log_waiter(&mut self, number: VolumeNumber, id: WriteId) {
        if let Some(waiters) = self.requests.log_waiters.get_mut(&number) {
            waiters.retain(|waiter| *waiter != id);
        }
    }

    fn next_log_waiter(&self, number: VolumeNumber) -> Option<WriteId> {
        self.requests
            .log_waiters
            .get(&number)
            .and_then(|waiters| waiters.front().copied())
    }

    fn pop_log_waiter(&mut self, number: VolumeNumber) {
        if let Some(waiters) = self.requests.log_waiters.get_mut(&number) {
            waiters.pop_front();
        }
    }

    /// A write is over: its extents may leave the log, and others may come in.
    pub(crate) fn release_extents(&mut self, number: VolumeNumber, extents: RangeInclusive<u32>) {
        let released = self
            .volumes
            .get_mut(&number)
            .and_then(|volume| volume.backing.as_mut())
            .map(|backing| backing.activity_log.release(extents));
        if released == Some(Released::Idle) {
            self.retry_log_waiters(number);
            self.write_log(number);
            self.extents_idle(number);
        }
    }

    /// The disk is gone, and with it its log: writes that waited for it go on without it.
    pub(crate) fn log_gone(&mut self, number: VolumeNumber) {
        let mut waiting = self.writes_at_log(number);
        waiting.extend(
            self.requests
                .log_waiters
                .remove(&number)
                .unwrap_or_default(),
        );
        for write in self
            .requests
            .writes
            .values_mut()
            .filter(|write| write.volume == number)
        {
            write.logged = Logged::default();
        }
        for write in self
            .peer_io
            .writes
            .values_mut()
            .filter(|write| write.volume == number)
        {
            write.logged = Logged::default();
        }
        for id in waiting {
            self.start_logged(id);
        }
    }

    /// Fails every write of a volume that did not start yet, as when the resource goes down by force.
    pub(crate) fn refuse_unstarted(&mut self, number: VolumeNumber, error: RequestError) {
        let unstarted: Vec<WriteId> = self
            .requests
            .writes
            .iter()
            .filter(|(_, write)| {
                write.volume == number
                    && matches!(write.stage, Stage::Interval | Stage::Edges | Stage::Log)
            })
            .map(|(id, _)| id)
            .collect();
        for id in unstarted {
            self.finish_write(id, Err(error));
        }
    }
}

/// What the activity log said.
enum LogAnswer {
    /// Covered, or nothing to cover.
    Go,
    /// Covered when a transaction is on disk.
    Ticket,
    /// No room yet.
    Wait,
}
