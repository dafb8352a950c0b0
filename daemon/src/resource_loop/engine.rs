//! What a loop asks of an engine.

use std::ops::Range;

use tandem_protocol::framing::PendingPayload;
use tandem_replicator::status::ResourceStatus;
use tandem_replicator::{
    Effects, Event, ResourceOptions, SocketId, SyncExtent, Time, VolumeNumber,
};

/// What drives a resource. The engine is [`tandem_replicator::Resource`]; tests have their own.
pub(crate) trait Engine: Sized {
    /// A resource without disks and connection.
    fn new(options: ResourceOptions) -> Self;
    /// Handles one event and appends effects.
    fn handle(&mut self, now: Time, event: Event, effects: &mut Effects);
    /// When it wants to be woken.
    fn next_deadline(&self) -> Time;
    /// A copy of its status.
    fn status(&self) -> ResourceStatus;
    /// Before the first event: from now on notes what a replay needs besides events.
    fn record(&mut self) {}
    /// Appends what was noted since the last call.
    fn take_tape(&mut self, _notes: &mut Vec<u8>) {}
    /// What differs from the peer, at most `limit` extents.
    fn sync_extents(
        &self,
        volume: VolumeNumber,
        range: Range<u64>,
        limit: usize,
    ) -> Vec<SyncExtent>;
    /// Whether what lies on the local disk is what clients read.
    fn reads_locally(&self, volume: VolumeNumber) -> bool;
    /// Whether zeroes cost the link a few bytes only.
    fn zeroes_are_short(&self, volume: VolumeNumber) -> bool;
    /// The payload that a stream is in the middle of.
    fn pending_payload(&self, _socket: SocketId) -> Option<PendingPayload> {
        None
    }
}

impl Engine for tandem_replicator::Resource {
    fn new(options: ResourceOptions) -> Self {
        Self::new(options)
    }

    fn handle(&mut self, now: Time, event: Event, effects: &mut Effects) {
        Self::handle(self, now, event, effects);
    }

    fn next_deadline(&self) -> Time {
        Self::next_deadline(self).unwrap_or(Time::NEVER)
    }

    fn status(&self) -> ResourceStatus {
        Self::status(self)
    }

    fn record(&mut self) {
        Self::record(self);
    }

    fn take_tape(&mut self, notes: &mut Vec<u8>) {
        Self::take_tape(self, notes);
    }

    fn sync_extents(
        &self,
        volume: VolumeNumber,
        range: Range<u64>,
        limit: usize,
    ) -> Vec<SyncExtent> {
        Self::sync_extents(self, volume, range, limit)
    }

    fn reads_locally(&self, volume: VolumeNumber) -> bool {
        Self::reads_locally(self, volume)
    }

    fn zeroes_are_short(&self, volume: VolumeNumber) -> bool {
        Self::zeroes_are_short(self, volume)
    }

    fn pending_payload(&self, socket: SocketId) -> Option<PendingPayload> {
        Self::pending_payload(self, socket)
    }
}
