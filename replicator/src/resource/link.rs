//! The two sockets of a link: what is sent, what arrives, and how a link ends (wire-protocol.md 1.1, 1.5;
//! state-machine.md 2.11).
//!
//! Invariants:
//! - A frame is handled only while the link is up: after [`Resource::link_lost`] nothing that still arrives counts.
//! - The meta socket is read before the data socket, so that acknowledgements and pings never wait behind data; what
//!   the peer sent on the data socket before it closed it is handled all the same.
//! - A new connection begins only when no disk I/O that an earlier one caused is under way.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use bytes::Bytes;
use tandem_protocol::Socket;
use tandem_protocol::command::SocketUse;
use tandem_protocol::digest::DigestAlgorithm;
use tandem_protocol::framing::PendingPayload;
use tandem_protocol::packet::{Frame, Packet};

use super::Resource;
use super::dialling::{Afterwards, Phase};
use super::split::Waiting;
use super::trouble::Telling;
use crate::effect::{CloseHow, Effect, Level};
use crate::event::{IoError, SocketId, VolumeNumber};
use crate::planted::Planted;
use crate::state::Hardness;
use crate::state::word::{ConnState, DiskState, Role};
use crate::time::Time;

mod routes;
mod stream;

pub(crate) use stream::Stream;

/// Bytes of the data socket that wait to be handled before it is not read any more: two packets of the largest size.
const DATA_BUFFERED_MAX: usize = 2 << 20;

/// An established link: features and authentication are through.
#[derive(Debug)]
pub(crate) struct Link {
    pub(super) data: Stream,
    pub(super) meta: Stream,
    /// The peer's P_PROTOCOL came and agrees with our options.
    pub(super) protocol_known: bool,
    /// The algorithm of the digests in what the peer sends; None: there are none.
    pub(super) peer_integrity: Option<DigestAlgorithm>,
    /// A handshake that waits for a write of the whole bitmap: the data socket is not read meanwhile.
    pub(super) waiting: Option<Waiting>,
    /// A volume got as far as Connected.
    pub(super) was_connected: bool,
    /// One socket ended, and the end of the other (or an answer on it) is awaited until then.
    closing: Option<Closing>,
}

#[derive(Debug)]
struct Closing {
    until: Time,
    failure: ConnState,
    text: String,
}

/// What follows a plan of this part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterPlan {
    /// The handshake decided on a full sync; all bits are written.
    FullSync,
}

impl Link {
    pub(super) fn new(data: Stream, meta: Stream) -> Link {
        Link {
            data,
            meta,
            protocol_known: false,
            peer_integrity: None,
            waiting: None,
            was_connected: false,
            closing: None,
        }
    }

    fn stream(&mut self, socket: SocketId) -> Option<(Socket, &mut Stream)> {
        if self.data.id == socket {
            Some((Socket::Data, &mut self.data))
        } else if self.meta.id == socket {
            Some((Socket::Meta, &mut self.meta))
        } else {
            None
        }
    }

    pub(super) fn closing_deadline(&self) -> Time {
        self.closing
            .as_ref()
            .map_or(Time::NEVER, |closing| closing.until)
    }
}

impl Resource {
    /// Sends a packet to the peer on the socket where it belongs; without a link it is dropped. Returns the count of bytes
    /// handed to that socket so far: [`Resource::writes_sent`] is told when the data socket has taken as many.
    pub(crate) fn send(&mut self, volume: Option<VolumeNumber>, packet: Packet) -> u64 {
        let now = self.now;
        let Some(link) = self.connection.link.as_mut() else {
            return 0;
        };
        let stream = match packet.command().socket() {
            SocketUse::Only(Socket::Meta) => &mut link.meta,
            SocketUse::Only(Socket::Data) | SocketUse::Both => &mut link.data,
        };
        let frame = Frame {
            volume: volume.map_or(0, |number| number.0),
            packet,
        };
        let error = stream.send(now, frame, &mut self.effects);
        let queued = stream.queued;
        if let Some(error) = error {
            let text = format!("{error}: this is a bug, please report it");
            self.log(Level::Error, volume, text);
        }
        queued
    }

    /// Bytes arrived.
    pub(crate) fn on_bytes(&mut self, socket: SocketId, bytes: Bytes) {
        let now = self.now;
        match self
            .connection
            .link
            .as_mut()
            .and_then(|link| link.stream(socket))
        {
            Some((_, stream)) => {
                stream.push(bytes);
                self.connection.liveness.received = now;
                self.connection.link_work = true;
            }
            None => self.early_bytes(socket, bytes),
        }
    }

    /// The payload that a stream of the link is in the middle of, for a caller that receives it without a seam. It is true while
    /// everything that was read has been given to [`Resource::handle`].
    pub fn pending_payload(&self, socket: SocketId) -> Option<PendingPayload> {
        let link = self.connection.link.as_ref()?;
        let mut streams = [&link.data, &link.meta].into_iter();
        let stream = streams.find(|stream| stream.id == socket)?;
        stream.framer.pending_payload()
    }

    /// The operating system took bytes that were sent.
    pub(crate) fn on_sent(&mut self, socket: SocketId, bytes: u64) {
        let now = self.now;
        match self
            .connection
            .link
            .as_mut()
            .and_then(|link| link.stream(socket))
        {
            Some((kind, stream)) => {
                stream.took(now, bytes);
                let taken = stream.taken;
                let paused = stream.paused;
                if kind == Socket::Data {
                    self.connection.link_work |= paused;
                    self.writes_sent(taken);
                }
            }
            None => self.early_sent(socket, bytes),
        }
    }

    /// A socket ended.
    pub(crate) fn on_closed(&mut self, socket: SocketId, reason: &str) {
        match self
            .connection
            .link
            .as_mut()
            .and_then(|link| link.stream(socket))
        {
            Some((_, stream)) => {
                stream.ended = Some(String::from(reason));
                self.connection.link_work = true;
            }
            None => self.early_closed(socket, reason),
        }
    }

    /// Disconnecting or StandAlone was reached: [`Resource::step_link`] looks at the state and ends the connection.
    pub(crate) fn receiver_stops(&mut self) {
        self.connection.link_work = true;
    }

    /// A failure state was reached: [`Resource::step_link`] looks at the state and cleans up.
    pub(crate) fn receiver_restarts(&mut self) {
        self.connection.link_work = true;
    }

    /// The data path can take data again.
    pub(crate) fn receiving_may_go_on(&mut self) {
        self.connection.link_work = true;
    }

    /// Whether [`Resource::step_link`] has something to do.
    pub(crate) fn link_has_work(&self) -> bool {
        self.connection.link_work
    }

    /// Handles what arrived, and carries on the clean-up of a link that was lost.
    pub(crate) fn step_link(&mut self) {
        if core::mem::take(&mut self.connection.link_work) {
            self.step_opening();
            while let Some((socket, frame)) = self.next_frame() {
                match socket {
                    Socket::Meta => self.on_meta_frame(frame),
                    Socket::Data => self.on_data_frame(frame),
                }
                self.run_deferred();
            }
        }
        let gone = self.connection.cstate.is_failure()
            || self.connection.cstate == ConnState::Disconnecting;
        if gone {
            // What follows the change of state comes first, as the data generation that protects a missed write (2.11).
            self.run_deferred();
            self.clean_up();
        }
    }

    /// The link is up and not being torn down.
    fn is_reading(&self) -> bool {
        self.connection.link.is_some() && self.connection.cstate == ConnState::WFReportParams
    }

    fn next_frame(&mut self) -> Option<(Socket, Frame)> {
        if !self.is_reading() {
            return None;
        }
        match self.connection.link.as_mut()?.meta.next() {
            Ok(Some(frame)) => return Some((Socket::Meta, frame)),
            Ok(None) => {}
            Err(error) => {
                self.link_lost(ConnState::ProtocolError, &format!("meta socket: {error}"));
                return None;
            }
        }
        if !self.data_may_be_read() {
            return None;
        }
        match self.connection.link.as_mut()?.data.next() {
            Ok(Some(frame)) => return Some((Socket::Data, frame)),
            Ok(None) => self.judge_ends(),
            Err(error) => {
                self.link_lost(ConnState::ProtocolError, &format!("data socket: {error}"))
            }
        }
        None
    }

    /// Whether the next packet of the data socket may be handled; pauses or resumes reading.
    fn data_may_be_read(&mut self) -> bool {
        let allowed = self.may_receive_data();
        let Some(link) = self.connection.link.as_mut() else {
            return false;
        };
        let goes_on = allowed && link.waiting.is_none();
        let stream = &mut link.data;
        let socket = stream.id;
        if goes_on && core::mem::take(&mut stream.paused) {
            self.effects.push(Effect::ResumeRead { socket });
        } else if !goes_on && !stream.paused && stream.buffered() >= DATA_BUFFERED_MAX {
            stream.paused = true;
            self.effects.push(Effect::PauseRead { socket });
        }
        goes_on
    }

    /// Everything that came is handled: sockets that ended count now.
    ///
    /// The peer closes both: while a disconnect was asked for, its answer may still be on its way on the other socket,
    /// and in a handshake its reason may be (the data socket ends after what was sent on it). Both get ping-timeout.
    fn judge_ends(&mut self) {
        let timeout = self
            .connection
            .net
            .as_ref()
            .map(|net| net.ping_timeout)
            .unwrap_or_default();
        let until = self.now + timeout;
        let asked = self.awaits_disconnect();
        let handshake = self.connection.state_sent;
        let Some(link) = self.connection.link.as_mut() else {
            return;
        };
        let (failure, text, waits) = match (&link.data.ended, &link.meta.ended) {
            (None, None) => return,
            (Some(data), Some(_)) => (ConnState::BrokenPipe, format!("data socket: {data}"), false),
            (Some(data), None) => (ConnState::BrokenPipe, format!("data socket: {data}"), asked),
            (None, Some(meta)) => (
                ConnState::NetworkFailure,
                format!("meta socket: {meta}"),
                handshake,
            ),
        };
        if !waits {
            self.link_lost(failure, &text);
        } else if link.closing.is_none() {
            link.closing = Some(Closing {
                until,
                failure,
                text,
            });
        }
    }

    /// The other socket had its time.
    pub(super) fn tick_closing(&mut self) {
        let now = self.now;
        let due = self
            .connection
            .link
            .as_mut()
            .and_then(|link| link.closing.take_if(|closing| closing.until <= now));
        if let Some(closing) = due {
            self.link_lost(closing.failure, &closing.text);
        }
    }

    /// The peer was asked to agree to a disconnect.
    fn awaits_disconnect(&self) -> bool {
        self.state_requests
            .iter()
            .any(|request| request.asked.is_some() && request.volume.is_none())
    }

    /// The link cannot be used any more: `failure` is one of Timeout to ProtocolError, `text` says why. The clean-up
    /// follows before `handle` returns, then the next connection is made.
    pub(crate) fn link_lost(&mut self, failure: ConnState, text: &str) {
        if !self.is_reading() {
            return;
        }
        let link = self.connection.link.as_ref();
        let connected = link.is_some_and(|link| link.was_connected);
        let telling = match failure {
            ConnState::ProtocolError => Telling::Reason,
            _ => Telling::Passing,
        };
        // A handshake that fails again and again in the same way is told once.
        let again = !self.connection.trouble.note(telling, text) && !connected;
        let level = if again { Level::Debug } else { Level::Warn };
        let line = format!("lost the connection to the peer: {text}");
        self.log(level, None, line);
        let forgets = self.planted(Planted::ForgetOutdated);
        self.change_connection(
            |state| {
                if forgets && state.disk == DiskState::Outdated {
                    state.disk = DiskState::UpToDate;
                }
                state.conn = failure;
            },
            Hardness::Hard,
        );
    }

    /// Ends the connection for good (StandAlone) because trying again cannot help: a person has to act.
    pub(crate) fn refuse_connection(&mut self, text: &str) {
        if self.connection.cstate <= ConnState::Disconnecting {
            return;
        }
        self.connection.trouble.note(Telling::Reason, text);
        let name = &self.name;
        let connect = format!("type: tandem adm connect {name}");
        let then = if text.ends_with(&connect) {
            String::new()
        } else {
            format!("; then {connect}")
        };
        let line = format!("gave up the connection to the peer: {text}{then}");
        self.log(Level::Error, None, line);
        self.change_connection(
            |state| state.conn = ConnState::Disconnecting,
            Hardness::Hard,
        );
    }

    /// 2.11, in its order; what waits for disk I/O goes on with every call.
    fn clean_up(&mut self) {
        if !matches!(self.connection.dialling.phase, Phase::Draining(_)) {
            let link = self.connection.link.take();
            if self.connection.cstate == ConnState::TearDown {
                let text = "the peer disconnected by command";
                self.connection.trouble.note(Telling::Reason, text);
            }
            self.abandon_attempt(CloseHow::Linger);
            let again = link.as_ref().is_some_and(|link| link.was_connected);
            let afterwards = if again {
                Afterwards::Again
            } else {
                Afterwards::Pause
            };
            self.connection.dialling.phase = Phase::Draining(afterwards);
            if let Some(link) = link {
                // What was sent last (an answer, a reason) still has to arrive.
                self.close(link.data.id, CloseHow::Linger);
                self.close(link.meta.id, CloseHow::LingerLast);
                self.forget_link();
            }
        }
        if self.peer_io_in_flight() {
            self.connection.late_writes = true;
            return;
        }
        if core::mem::take(&mut self.connection.late_writes) {
            self.flush_late_writes();
        }
        let Phase::Draining(afterwards) = self.connection.dialling.phase else {
            return;
        };
        self.connection.dialling.phase = Phase::Idle;
        if self.connection.cstate == ConnState::Disconnecting {
            self.connection.trouble.stopped();
            self.change_connection(|state| state.conn = ConnState::StandAlone, Hardness::Hard);
            return;
        }
        self.change_connection(|state| state.conn = ConnState::Unconnected, Hardness::Hard);
        self.next_attempt(afterwards);
    }

    fn forget_link(&mut self) {
        self.connection.state_sent = false;
        self.state_requests_connection_lost();
        for number in self.volume_numbers() {
            self.resync_connection_lost(number);
            if let Some(volume) = self.volumes.get_mut(&number) {
                volume.peer.uuids = None;
                volume.peer.discard_armed = false;
                volume.generation_untold = false;
                volume.write_failed = false;
            }
        }
        self.requests_connection_lost();
        self.peer_io_connection_lost();
        for number in self.volume_numbers() {
            self.write_after_link_loss(number);
        }
    }

    /// Superblock and bitmap after a loss (2.11 step 3): the bits of what the peer misses.
    fn write_after_link_loss(&mut self, number: VolumeNumber) {
        use super::plan::{Pages, Stage, Then};
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        let Some(backing) = volume.backing.as_ref() else {
            return;
        };
        let mut stages = vec![];
        // A Secondary may now be the only one that has what its peer wrote: no later power failure takes it back.
        let late = self.planted(Planted::NoFlushAtLinkLoss);
        if !late && (backing.bitmap.changed_pages() > 0 || volume.state.role == Role::Secondary) {
            stages.push(Stage::FlushData);
        }
        if backing.bitmap.changed_pages() > 0 {
            stages.push(Stage::BitmapPages(Pages::AllChanged));
        }
        if volume.is_superblock_dirty() {
            stages.push(Stage::Superblock);
        }
        if !stages.is_empty() {
            self.start_plan(number, stages, Then::Nothing);
        }
    }

    /// The flush at the loss of the link came too early for writes that had been received (protocol B: answered) but had not ended.
    fn flush_late_writes(&mut self) {
        use super::plan::{Stage, Then};
        for number in self.volume_numbers() {
            let disk = self
                .volumes
                .get(&number)
                .is_some_and(|volume| volume.backing.is_some());
            if disk && !self.planted(Planted::NoFlushAtLinkLoss) {
                self.start_plan(number, vec![Stage::FlushData], Then::Nothing);
            }
        }
    }

    /// A plan of this part ended.
    pub(crate) fn link_plan_done(
        &mut self,
        number: VolumeNumber,
        step: AfterPlan,
        result: Result<(), IoError>,
    ) {
        match step {
            AfterPlan::FullSync => self.all_bits_are_set(number, result),
        }
    }
}
