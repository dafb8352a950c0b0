//! Epochs of the writes that this node sends: when they are closed, their barriers and the peer's acknowledgements
//! (state-machine.md 7.6, DESIGN.md "Durability").
//!
//! In protocols A and B every completion closes the epoch it belongs to, since a later write may depend on it. In C a
//! completed write is already on the peer's disk; an epoch is closed by a flush, by its size, by idleness, or when the
//! activity log needs an extent back.
//!
//! The barrier of a closed epoch leaves with the next packet that it has to come before: one wake-up of the peer for both, and one back
//! for what it says to both. A flush and whatever else needs its acknowledgement sends it at once, idleness after a moment.

use alloc::vec::Vec;
use core::time::Duration;

use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{Barrier, BarrierAck};

use super::Resource;
use super::change::Deferred;
use super::liveness::request_limit;
use crate::event::VolumeNumber;
use crate::intervals::IntervalKind;
use crate::options::Protocol;
use crate::planted::Planted;
use crate::state::word::ConnState;
use crate::time::Time;
use crate::transfer_log::Epoch;

/// An epoch that got no write for this long is closed, and its barrier sent, so that its extents leave the activity log.
const IDLE: Duration = Duration::from_millis(100);

impl Resource {
    /// The epoch of the write that is sent next. Barriers of closed epochs go before it.
    pub(super) fn epoch_for_write(&mut self) -> Epoch {
        self.send_barrier_if_closed();
        let epoch = self.connection.send_epochs.assign();
        self.connection.send_epochs.sent(epoch);
        self.connection.last_write_sent = self.now;
        epoch
    }

    /// A full epoch was closed by its last write: its barrier follows at once.
    pub(super) fn close_full_epoch(&mut self) {
        self.send_barrier_if_closed();
    }

    /// Sends the barriers that are due.
    pub(super) fn send_barrier_if_closed(&mut self) {
        if self.connection.link.is_none() {
            return;
        }
        while let Some(epoch) = self.connection.send_epochs.barrier_due() {
            let barrier = Barrier {
                barrier: epoch.wire().to_be_bytes(),
                pad: 0,
            };
            self.send(None, Packet::Barrier(barrier));
            self.connection.send_epochs.barrier_sent(epoch);
        }
    }

    /// Closes the current epoch, if it has writes, and sends its barrier.
    pub(super) fn close_epoch(&mut self) {
        self.connection.send_epochs.close();
        self.send_barrier_if_closed();
    }

    /// A write of `epoch` was answered to its client.
    pub(super) fn write_answered(&mut self, epoch: Option<Epoch>) {
        if self.planted(Planted::EpochStaysOpen) {
            return;
        }
        let protocol = self
            .connection
            .net
            .as_ref()
            .map_or(Protocol::C, |net| net.protocol);
        if let (Some(epoch), Protocol::A | Protocol::B) = (epoch, protocol) {
            self.connection.send_epochs.close_if_current(epoch);
        }
    }

    /// "Writes are replicated" changed on a volume: what was sent before is closed (2.8 no. 2).
    pub(super) fn replication_changed(&mut self) {
        self.close_epoch();
    }

    pub(super) fn idle_epoch_deadline(&self) -> Time {
        let epochs = &self.connection.send_epochs;
        let waits = epochs.current_writes() > 0 || epochs.barrier_due().is_some();
        if self.connection.link.is_some() && waits {
            self.connection.last_write_sent + self.idle_wait()
        } else {
            Time::NEVER
        }
    }

    /// The time in which the peer has to confirm a write counts from the write on.
    fn idle_wait(&self) -> Duration {
        let limit = self.connection.net.as_ref().and_then(request_limit);
        limit.map_or(IDLE, |limit| IDLE.min(limit / 4))
    }

    pub(super) fn close_idle_epoch(&mut self) {
        if self.idle_epoch_deadline() <= self.now {
            self.close_epoch();
        }
    }

    /// P_BARRIER_ACK. One that fits no epoch is a protocol error.
    pub(super) fn on_barrier_ack(&mut self, ack: &BarrierAck) {
        let number = u32::from_be_bytes(ack.barrier);
        match self
            .connection
            .send_epochs
            .barrier_ack(number, ack.set_size)
        {
            Ok(epoch) => {
                self.retire_epoch(epoch);
                self.recheck_flushes();
            }
            Err(mismatch) => {
                self.link_lost(ConnState::ProtocolError, &alloc::format!("{mismatch}"));
            }
        }
    }

    pub(super) fn epochs_connection_lost(&mut self) {
        self.connection.send_epochs.connection_lost();
    }

    /// Returns an interval of a volume; whoever waited for it goes on once this step is done: a long row of waiting requests, each
    /// of which ends at once, would otherwise be as deep on the stack.
    pub(crate) fn release_interval(&mut self, number: VolumeNumber, id: u64) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let ready = volume.intervals.remove(id);
        if !ready.is_empty() {
            self.deferred
                .push_back(Deferred::IntervalsReady(number, ready));
        }
    }

    /// What waited for an interval has its own now.
    pub(super) fn intervals_ready(&mut self, number: VolumeNumber, ready: Vec<u64>) {
        for next in ready {
            let kind = self
                .volumes
                .get(&number)
                .and_then(|volume| volume.intervals.get(next))
                .map(|(_, kind)| kind);
            match kind {
                Some(IntervalKind::Application) => self.write_interval_ready(next),
                Some(IntervalKind::Peer) => self.peer_interval_ready(number, next),
                Some(IntervalKind::Resync) => self.resync_interval_ready(number, next),
                None => {}
            }
        }
    }
}
