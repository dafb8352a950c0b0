//! Resync (state-machine.md 6).
// filled in by sync

use bytes::Bytes;
use tandem_protocol::packets::{BlockAck, BlockDesc, BlockRequest, Data, HashedRequest};

use super::Resource;
use crate::event::{IoError, VolumeNumber};
use crate::status::ResyncStatus;
use crate::time::Time;

/// A resync of a volume.
#[derive(Debug)]
pub(crate) struct Resync {}

/// What an I/O of a resync was for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Io {}

/// What follows a durable sequence of a resync or of a bitmap exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterPlan {}

/// What follows a handler of a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterHandler {}

impl Resource {
    /// An I/O of a resync ended.
    pub(crate) fn resync_io_done(
        &mut self,
        _volume: VolumeNumber,
        io: Io,
        _result: Result<Bytes, IoError>,
    ) {
        match io {}
    }

    /// A plan ended.
    pub(crate) fn resync_plan_done(
        &mut self,
        _volume: VolumeNumber,
        step: AfterPlan,
        _result: Result<(), IoError>,
    ) {
        match step {}
    }

    /// A handler ended.
    pub(crate) fn resync_handler_done(
        &mut self,
        _volume: VolumeNumber,
        step: AfterHandler,
        _exit: i32,
    ) {
        match step {}
    }

    /// SyncSource or PausedSyncS was reached: sync UUID generated, durable, sent (3.4).
    pub(crate) fn send_sync_uuid(&mut self, _volume: VolumeNumber) {}

    /// StartingSyncS or StartingSyncT was reached: all bits set and written, then on (2.9 no. 19).
    pub(crate) fn start_full_sync(&mut self, _volume: VolumeNumber) {}

    /// The device grew while detached: resync of the new area (10.4).
    pub(crate) fn resync_grown_area(&mut self, _volume: VolumeNumber) {}

    /// The pause ended (2.8 no. 5).
    pub(crate) fn resync_resumed(&mut self, _volume: VolumeNumber) {}

    /// A pause began.
    pub(crate) fn resync_paused(&mut self, _volume: VolumeNumber) {}

    /// The peer's disk appeared: counters start anew.
    pub(crate) fn resync_reset_counters(&mut self, _volume: VolumeNumber) {}

    /// The local disk is gone: its I/O for the resync is given up.
    pub(crate) fn resync_disk_gone(&mut self, _volume: VolumeNumber) {}

    /// The link is lost.
    pub(crate) fn resync_connection_lost(&mut self, _volume: VolumeNumber) {}

    /// An interval of a resync block is free (request/epoch hands it over).
    pub(crate) fn resync_interval_ready(&mut self, _volume: VolumeNumber, _id: u64) {}

    /// Extents of the activity log lost their last reference: resync may enter.
    pub(crate) fn extents_idle(&mut self, _volume: VolumeNumber) {}

    /// Bits were cleared by acknowledged writes: a resync may be over.
    pub(crate) fn bits_cleared(&mut self, _volume: VolumeNumber) {}

    /// Progress, for people.
    pub(crate) fn resync_status(&self, _volume: VolumeNumber) -> Option<ResyncStatus> {
        None
    }

    /// Timers of resyncs.
    pub(crate) fn tick_resync(&mut self) {}

    /// When they want to be called.
    pub(crate) fn resync_deadline(&self) -> Time {
        Time::NEVER
    }

    // Packets, called by `link`. Errors are protocol errors.

    /// P_RS_WRITE_ACK of a resync block.
    pub(crate) fn on_resync_ack(
        &mut self,
        _volume: VolumeNumber,
        _ack: &BlockAck,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_NEG_ACK of a resync block.
    pub(crate) fn on_resync_neg_ack(
        &mut self,
        _volume: VolumeNumber,
        _ack: &BlockAck,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_NEG_RS_DREPLY.
    pub(crate) fn on_resync_refused(
        &mut self,
        _volume: VolumeNumber,
        _ack: &BlockAck,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_RS_IS_IN_SYNC.
    pub(crate) fn on_resync_in_sync(
        &mut self,
        _volume: VolumeNumber,
        _ack: &BlockAck,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_RS_CANCEL.
    pub(crate) fn on_resync_cancelled(
        &mut self,
        _volume: VolumeNumber,
        _ack: &BlockAck,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_SYNC_UUID.
    pub(crate) fn on_sync_uuid(
        &mut self,
        _volume: VolumeNumber,
        _uuid: u64,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_RS_DATA_REQUEST.
    pub(crate) fn on_resync_request(
        &mut self,
        _volume: VolumeNumber,
        _request: BlockRequest,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_RS_THIN_REQ.
    pub(crate) fn on_resync_thin_request(
        &mut self,
        _volume: VolumeNumber,
        _request: BlockRequest,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_CSUM_RS_REQUEST.
    pub(crate) fn on_resync_csum_request(
        &mut self,
        _volume: VolumeNumber,
        _request: HashedRequest,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_RS_DATA_REPLY.
    pub(crate) fn on_resync_reply(
        &mut self,
        _volume: VolumeNumber,
        _reply: Data,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_RS_DEALLOCATED.
    pub(crate) fn on_resync_deallocated(
        &mut self,
        _volume: VolumeNumber,
        _range: BlockDesc,
    ) -> Result<(), &'static str> {
        Ok(())
    }

    /// P_STATE says that the peer, the target, is done (own conn SyncSource or above, peer's disk UpToDate, peer's conn
    /// Connected): the resync ends here too if no more bits are set than failed (wire-protocol.md 4.6 step 3).
    pub(crate) fn resync_target_finished(&mut self, _volume: VolumeNumber) {}

    /// A ping was answered: see `pings_answered` (liveness.rs). What the peer sent on the meta socket before is handled.
    pub(crate) fn resync_ping_answered(&mut self) {}
}
