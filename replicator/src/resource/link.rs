//! The link: framing, routing of packets, and what is sent.
// filled in by link

use bytes::Bytes;
use tandem_protocol::packet::Packet;

use super::Resource;
use crate::event::{DialError, IoError, SocketId, VolumeNumber};
use crate::state::word::{ConnState, State};
use crate::time::Time;

/// The two sockets of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    /// Data socket.
    pub(crate) data: SocketId,
    /// Meta socket.
    pub(crate) meta: SocketId,
}

/// What follows a durable sequence of the link's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterPlan {}

/// What follows a handler of the link's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterHandler {}

impl Resource {
    /// Sends a packet on the socket that its kind belongs to. Returns the count of bytes on that socket behind it.
    pub(crate) fn send(&mut self, _volume: Option<VolumeNumber>, _packet: Packet) -> u64 {
        0
    }

    /// P_STATE with the current state of a volume.
    pub(crate) fn send_state(&mut self, _volume: VolumeNumber) {}

    /// P_STATE with the state after a particular change.
    pub(crate) fn send_state_snapshot(&mut self, _volume: VolumeNumber, _state: &State) {}

    /// P_UUIDS.
    pub(crate) fn send_uuids(&mut self, _volume: VolumeNumber) {}

    /// P_UUIDS with the flag "skip the initial sync" (3.10).
    pub(crate) fn send_uuids_skip_initial_sync(&mut self, _volume: VolumeNumber) {}

    /// A peer's request ended: paused reading of the data socket may go on, if `may_receive_data` says so.
    pub(crate) fn receiving_may_go_on(&mut self) {}

    /// A disk was attached while connected: P_SIZES, P_UUIDS, P_STATE.
    pub(crate) fn start_late_attach(&mut self, _volume: VolumeNumber) {}

    /// The link is lost: `reason` is the failure state, `text` the words for the log.
    pub(crate) fn link_lost(&mut self, _reason: ConnState, _text: &str) {}

    /// StandAlone → Unconnected happened: listen and dial.
    pub(crate) fn receiver_starts(&mut self) {}

    /// Disconnecting or StandAlone was reached: close everything and end StandAlone. May be called again.
    pub(crate) fn receiver_stops(&mut self) {}

    /// A failure state was reached: clean up (2.11) and connect again. May be called again.
    pub(crate) fn receiver_restarts(&mut self) {}

    /// Bytes from the peer.
    pub(crate) fn on_bytes(&mut self, _socket: SocketId, _bytes: Bytes) {}

    /// The system took bytes.
    pub(crate) fn on_sent(&mut self, _socket: SocketId, _bytes: u64) {}

    /// A stream came in.
    pub(crate) fn on_accepted(&mut self, _socket: SocketId) {}

    /// A dial ended.
    pub(crate) fn on_dialled(&mut self, _result: Result<SocketId, DialError>) {}

    /// The listening socket could not be made.
    pub(crate) fn on_listen_failed(&mut self, _reason: &str) {}

    /// A stream ended.
    pub(crate) fn on_closed(&mut self, _socket: SocketId, _reason: &str) {}

    /// A ping soon, to find a dead peer early (9.1).
    pub(crate) fn ping_now(&mut self) {}

    /// Timers of dialling and liveness.
    pub(crate) fn tick_link(&mut self) {}

    /// When they want to be called.
    pub(crate) fn next_link_deadline(&self) -> Time {
        Time::NEVER
    }

    /// A plan of the link's ended.
    pub(crate) fn link_plan_done(
        &mut self,
        _volume: VolumeNumber,
        step: AfterPlan,
        _result: Result<(), IoError>,
    ) {
        match step {}
    }

    /// A handler of the link's ended.
    pub(crate) fn link_handler_done(
        &mut self,
        _volume: VolumeNumber,
        step: AfterHandler,
        _exit: i32,
    ) {
        match step {}
    }
}
