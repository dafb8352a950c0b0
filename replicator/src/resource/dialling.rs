//! Making a link (wire-protocol.md 1.2, 4.2): both nodes listen and dial at the same time, and the first packet on a
//! socket says what it is for.
//!
//! ```text
//!  Idle ──connect──► Searching ──two sockets──► Checking ──both survive──► Opening ──► a link (phase Linked)
//!                      ▲  ▲                        │ one closed              │ failed
//!                      │  └────────────────────────┘                        ▼
//!                      └──────────── 1 s ───────────────────────────────── Paused
//!  Linked ──lost──► Draining ──peer's I/O done──► Searching (or Paused, or Idle when disconnecting)
//! ```
//!
//! Invariants:
//! - A socket is in exactly one place here (newcomer, data, meta) or in the link; every other socket is closed.
//! - At most one dial of the current attempt is under way; what an older attempt dialled is closed when it comes.
//! - A stranger who connects can only take a place here, never in an established link: nobody is accepted then.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use tandem_protocol::Socket;
use tandem_protocol::packet::Packet;

use super::link::Stream;
use super::opening::Opening;
use super::trouble::Telling;
use super::{Pending, Resource};
use crate::effect::{CloseHow, Effect, Level};
use crate::event::{DialError, SocketId};
use crate::state::Hardness;
use crate::state::word::ConnState;
use crate::time::Time;

/// Accepted sockets whose first packet has not come: more are refused, since a peer needs two.
const NEWCOMERS_MAX: usize = 16;

/// Bytes that a peer may send on a socket before this node is ready to read them: features and authentication are
/// smaller, so that more is not our protocol.
const EARLY_BYTES_MAX: usize = 64 << 10;

/// Wait after an attempt that failed (2.11).
const FAILED_ATTEMPT_PAUSE: Duration = Duration::from_secs(1);

/// Wait between two lines of the log about strangers: whoever probes ports must not fill it.
const STRANGER_PAUSE: Duration = Duration::from_secs(60);

/// Quick new turns of one attempt (after crossed or closed sockets) before the ordinary interval is kept: a port where
/// something else accepts and closes at once is not dialled twice a second for ever.
const QUICK_TURNS_MAX: u32 = 8;

/// The longest wait before a quick turn: a long ping-timeout is patience with a link that exists, not with making one.
const QUICK_TURN_WAIT_MAX: Duration = Duration::from_secs(3);

/// Where this node is on its way to a link.
#[derive(Debug, Default)]
pub(crate) enum Phase {
    /// No connection is wanted.
    #[default]
    Idle,
    /// Looking for the peer: the next turn (which dials if a socket is missing) is at this time.
    Searching(Time),
    /// Both sockets exist; they have to survive until this time.
    Checking(Time),
    /// Features and authentication on the data socket.
    Opening(Opening),
    /// The link exists.
    Linked,
    /// The link is gone; disk I/O that it caused is still under way.
    Draining(Afterwards),
    /// An attempt failed; the next one is at this time.
    Paused(Time),
}

/// What follows the clean-up of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Afterwards {
    /// The next attempt, at once.
    Again,
    /// The next attempt after a second: this one did not get as far as Connected.
    Pause,
}

/// An accepted socket whose first packet has not come.
#[derive(Debug)]
struct Newcomer {
    stream: Stream,
    deadline: Time,
}

/// The state of making a link.
#[derive(Debug, Default)]
pub(crate) struct Dialling {
    pub(super) phase: Phase,
    /// Names the dials of one attempt.
    attempt: u64,
    /// A dial of this attempt is under way.
    dial_open: bool,
    listening: bool,
    newcomers: Vec<Newcomer>,
    pub(super) data: Option<Stream>,
    pub(super) meta: Option<Stream>,
    /// The meta socket was accepted (1.3).
    pub(super) resolve: bool,
    quick_turns: u32,
    /// A stranger was named in the log; the next one is not before this time.
    stranger_told: Option<Time>,
}

impl Resource {
    /// `connect`: the first attempt (2.10).
    pub(crate) fn receiver_starts(&mut self) {
        if self.connection.cstate == ConnState::Unconnected {
            self.begin_attempt();
        }
    }

    /// Unconnected → WFConnection: listens and dials.
    pub(super) fn begin_attempt(&mut self) {
        if self.connection.cstate == ConnState::Unconnected {
            self.change_connection(|state| state.conn = ConnState::WFConnection, Hardness::Hard);
        }
        self.measure_what_was_too_small();
        let dialling = &mut self.connection.dialling;
        dialling.attempt += 1;
        dialling.dial_open = false;
        dialling.quick_turns = 0;
        dialling.resolve = false;
        if !dialling.listening {
            dialling.listening = true;
            self.effects.push(Effect::Listen);
        }
        self.turn();
    }

    /// Gives up the attempt: closes everything that is not part of a link, accepts no more.
    pub(super) fn abandon_attempt(&mut self, how: CloseHow) {
        let dialling = &mut self.connection.dialling;
        dialling.attempt += 1;
        dialling.dial_open = false;
        let newcomers = core::mem::take(&mut dialling.newcomers);
        let mut streams: Vec<Stream> = newcomers.into_iter().map(|one| one.stream).collect();
        streams.extend(dialling.data.take());
        streams.extend(dialling.meta.take());
        self.stop_listening();
        for stream in streams {
            self.close(stream.id, how);
        }
    }

    pub(super) fn stop_listening(&mut self) {
        if core::mem::take(&mut self.connection.dialling.listening) {
            self.effects.push(Effect::Unlisten);
        }
    }

    pub(super) fn close(&mut self, socket: SocketId, how: CloseHow) {
        self.effects.push(Effect::Close { socket, how });
    }

    /// An attempt failed before there was a link: the next one follows in a second.
    pub(super) fn attempt_failed(&mut self, telling: Telling, text: &str) {
        self.note_failure(Level::Warn, telling, text);
        self.abandon_attempt(CloseHow::Linger);
        self.connection.dialling.phase = Phase::Paused(self.now + FAILED_ATTEMPT_PAUSE);
    }

    /// Logs why an attempt failed, unless the one before failed in the same way, and keeps it for the status.
    fn note_failure(&mut self, level: Level, telling: Telling, text: &str) {
        let new = self.connection.trouble.note(telling, text);
        self.status_changed = true;
        if new {
            self.log(level, None, format!("no connection to the peer: {text}"));
        }
    }

    /// Another attempt, after a pause or a clean-up.
    pub(super) fn next_attempt(&mut self, afterwards: Afterwards) {
        if self.connection.cstate == ConnState::Unconnected {
            self.change_connection(|state| state.conn = ConnState::WFConnection, Hardness::Hard);
        }
        match afterwards {
            Afterwards::Again => self.begin_attempt(),
            Afterwards::Pause => {
                self.connection.dialling.phase = Phase::Paused(self.now + FAILED_ATTEMPT_PAUSE);
            }
        }
    }

    /// Steps B and C: dials if a socket is missing.
    fn turn(&mut self) {
        if self.start_check() {
            return;
        }
        self.connection.dialling.phase = Phase::Searching(Time::NEVER);
        if !self.connection.dialling.dial_open {
            self.connection.dialling.dial_open = true;
            let attempt = self.connection.dialling.attempt;
            let token = self.token(Pending::Dial(attempt));
            self.effects.push(Effect::Dial { token });
        }
    }

    /// Both sockets exist: they have to survive for a while.
    fn start_check(&mut self) -> bool {
        let now = self.now;
        let survival = self.connection.net.as_ref().map_or(Duration::ZERO, |net| {
            if net.socket_check_timeout.is_zero() {
                net.ping_timeout
            } else {
                net.socket_check_timeout
            }
        });
        let dialling = &mut self.connection.dialling;
        let both = dialling.data.is_some() && dialling.meta.is_some();
        if both {
            dialling.phase = Phase::Checking(now + survival);
        }
        both
    }

    /// Step D: waits for the peer's turn, connect-int plus or minus a seventh.
    fn wait_for_peer(&mut self) {
        let interval = self
            .connection
            .net
            .as_ref()
            .map_or(Duration::ZERO, |net| net.connect_interval);
        let seventh = interval / 7;
        let wait = if self.draw_below(2) == 0 {
            interval - seventh
        } else {
            interval + seventh
        };
        self.connection.dialling.phase = Phase::Searching(self.now + wait);
    }

    /// Sockets crossed or were closed: the next turn comes soon, at a random time, so that two nodes do not cross again
    /// for ever.
    fn turn_soon(&mut self) {
        let timeout = self
            .connection
            .net
            .as_ref()
            .map_or(Duration::ZERO, |net| net.ping_timeout);
        let dialling = &mut self.connection.dialling;
        if dialling.dial_open {
            dialling.phase = Phase::Searching(Time::NEVER);
            return;
        }
        dialling.quick_turns += 1;
        if dialling.quick_turns > QUICK_TURNS_MAX {
            self.wait_for_peer();
            return;
        }
        let most = timeout.saturating_mul(2).min(QUICK_TURN_WAIT_MAX);
        let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        let wait = Duration::from_millis(self.draw_below(most.max(1)) + 10);
        self.connection.dialling.phase = Phase::Searching(self.now + wait);
    }

    /// A dial ended.
    pub(crate) fn on_dialled(&mut self, attempt: u64, result: Result<SocketId, DialError>) {
        let current = attempt == self.connection.dialling.attempt;
        if current {
            self.connection.dialling.dial_open = false;
        }
        let looking = matches!(
            self.connection.dialling.phase,
            Phase::Searching(_) | Phase::Checking(_)
        );
        match result {
            Ok(socket) if current && looking => self.use_dialled(socket),
            Ok(socket) => self.close(socket, CloseHow::Abort),
            Err(DialError::LocalAddress(text)) if current && looking => {
                let text = format!("{text}: correct the address in the configuration");
                self.refuse_connection(&text);
            }
            Err(DialError::Unreachable(text)) if current && looking => {
                let text = format!("{text}; trying on");
                self.note_failure(Level::Info, Telling::Passing, &text);
                self.dial_failed();
            }
            Err(_) => {}
        }
    }

    /// The peer cannot be reached: its turn is awaited. If it has come meanwhile, it can be reached now.
    fn dial_failed(&mut self) {
        let dialling = &self.connection.dialling;
        let came = dialling.data.is_some() || dialling.meta.is_some();
        match dialling.phase {
            Phase::Searching(_) if came => self.turn_soon(),
            Phase::Searching(_) => self.wait_for_peer(),
            _ => {}
        }
    }

    fn use_dialled(&mut self, socket: SocketId) {
        let dialling = &mut self.connection.dialling;
        let (kind, first) = if dialling.data.is_none() {
            (Socket::Data, Packet::InitialData)
        } else if dialling.meta.is_none() {
            dialling.resolve = false;
            (Socket::Meta, Packet::InitialMeta)
        } else {
            self.close(socket, CloseHow::Abort);
            return;
        };
        let mut stream = Stream::dialled(socket, kind, self.now);
        stream.send(self.now, first.on_connection(), &mut self.effects);
        self.place(kind, stream);
        if !self.start_check() {
            self.wait_for_peer();
        }
    }

    fn place(&mut self, kind: Socket, stream: Stream) -> Option<Stream> {
        let dialling = &mut self.connection.dialling;
        match kind {
            Socket::Data => dialling.data.replace(stream),
            Socket::Meta => dialling.meta.replace(stream),
        }
    }

    /// The listening socket could not be made: only a person can help.
    pub(crate) fn on_listen_failed(&mut self, reason: &str) {
        if !core::mem::take(&mut self.connection.dialling.listening) {
            return;
        }
        if self.connection.link.is_none() {
            self.refuse_connection(reason);
        }
    }

    /// A peer (or somebody) connected.
    pub(crate) fn on_accepted(&mut self, socket: SocketId) {
        let now = self.now;
        let looking = matches!(
            self.connection.dialling.phase,
            Phase::Searching(_) | Phase::Checking(_)
        );
        let full = self.connection.dialling.newcomers.len() >= NEWCOMERS_MAX;
        if !looking || full {
            let why = if full {
                "too many connections wait for their first packet"
            } else {
                "no connection is expected now"
            };
            self.log(
                Level::Debug,
                None,
                format!("refused an incoming connection: {why}"),
            );
            self.close(socket, CloseHow::Abort);
            return;
        }
        let deadline = now + self.opening_timeout();
        self.connection.dialling.newcomers.push(Newcomer {
            stream: Stream::accepted(socket, now),
            deadline,
        });
    }

    /// Receive limit of first packet, features and authentication.
    pub(super) fn opening_timeout(&self) -> Duration {
        self.connection
            .net
            .as_ref()
            .map_or(Duration::ZERO, |net| net.ping_timeout * 4)
    }

    /// Bytes on a socket that is not part of a link.
    pub(super) fn early_bytes(&mut self, socket: SocketId, bytes: bytes::Bytes) {
        let dialling = &mut self.connection.dialling;
        if let Some(at) = dialling
            .newcomers
            .iter()
            .position(|one| one.stream.id == socket)
        {
            dialling.newcomers[at].stream.push(bytes);
            self.first_packet(at);
            return;
        }
        let place = [&mut dialling.data, &mut dialling.meta]
            .into_iter()
            .flatten()
            .find(|stream| stream.id == socket);
        if let Some(stream) = place {
            stream.push(bytes);
            if stream.buffered() > EARLY_BYTES_MAX {
                self.close(socket, CloseHow::Abort);
                self.early_closed(socket, "the peer talks before its turn");
            } else if matches!(self.connection.dialling.phase, Phase::Opening(_)) {
                self.connection.link_work = true;
            }
        }
    }

    /// The first packet of an accepted socket, if it is there.
    fn first_packet(&mut self, at: usize) {
        let result = self.connection.dialling.newcomers[at].stream.next();
        let kind = match result {
            Ok(None) => return,
            Ok(Some(frame)) => match frame.packet {
                Packet::InitialData => Ok(Socket::Data),
                Packet::InitialMeta => Ok(Socket::Meta),
                other => Err(format!("unexpected {}", other.command())),
            },
            Err(error) => Err(error.to_string()),
        };
        let newcomer = self.connection.dialling.newcomers.remove(at);
        match kind {
            Ok(kind) => self.take_accepted(kind, newcomer.stream),
            Err(text) => {
                self.tell_of_stranger(&text);
                self.close(newcomer.stream.id, CloseHow::Abort);
            }
        }
    }

    /// Somebody on the peer's host who does not speak the protocol is named once in a while, however often he comes.
    fn tell_of_stranger(&mut self, what: &str) {
        let now = self.now;
        let until = &mut self.connection.dialling.stranger_told;
        let level = if until.is_some_and(|until| now < until) {
            Level::Debug
        } else {
            *until = Some(now + STRANGER_PAUSE);
            Level::Warn
        };
        let text = format!(
            "a connection from the peer's host was closed, it is not DRBD's protocol: {what}"
        );
        self.log(level, None, text);
    }

    /// An accepted socket beats an own one of the same kind.
    fn take_accepted(&mut self, kind: Socket, stream: Stream) {
        if kind == Socket::Meta {
            self.connection.dialling.resolve = true;
        }
        let crossed = self.place(kind, stream);
        if let Some(old) = &crossed {
            self.close(old.id, CloseHow::Abort);
            let text = format!("the {kind} sockets crossed: the accepted one is used");
            self.log(Level::Debug, None, text);
        }
        if self.start_check() {
            return;
        }
        match crossed {
            Some(_) => self.turn_soon(),
            None => self.turn(),
        }
    }

    /// A socket that is not part of a link ended.
    pub(super) fn early_closed(&mut self, socket: SocketId, reason: &str) {
        let dialling = &mut self.connection.dialling;
        dialling.newcomers.retain(|one| one.stream.id != socket);
        let is = |place: &Option<Stream>| place.as_ref().is_some_and(|stream| stream.id == socket);
        let kind = if is(&dialling.data) {
            dialling.data = None;
            Socket::Data
        } else if is(&dialling.meta) {
            dialling.meta = None;
            Socket::Meta
        } else {
            return;
        };
        if matches!(dialling.phase, Phase::Opening(_)) {
            let text = format!("the {kind} socket was closed in the handshake: {reason}");
            self.attempt_failed(Telling::Passing, &text);
        } else if matches!(dialling.phase, Phase::Searching(_) | Phase::Checking(_)) {
            self.turn_soon();
        }
    }

    /// Bytes that a socket outside a link took.
    pub(super) fn early_sent(&mut self, socket: SocketId, bytes: u64) {
        let now = self.now;
        let dialling = &mut self.connection.dialling;
        for stream in [&mut dialling.data, &mut dialling.meta]
            .into_iter()
            .flatten()
        {
            if stream.id == socket {
                stream.took(now, bytes);
            }
        }
    }

    pub(super) fn dialling_deadline(&self) -> Time {
        let dialling = &self.connection.dialling;
        let phase = match &dialling.phase {
            Phase::Searching(at) | Phase::Checking(at) | Phase::Paused(at) => *at,
            Phase::Opening(opening) => opening.deadline,
            Phase::Idle | Phase::Linked | Phase::Draining(_) => Time::NEVER,
        };
        let newcomers = dialling.newcomers.iter().map(|one| one.deadline);
        newcomers.fold(phase, Time::min)
    }

    pub(super) fn tick_dialling(&mut self) {
        let now = self.now;
        while let Some(at) = self
            .connection
            .dialling
            .newcomers
            .iter()
            .position(|one| one.deadline <= now)
        {
            let newcomer = self.connection.dialling.newcomers.remove(at);
            let text = String::from("an incoming connection sent no first packet in time");
            self.log(Level::Debug, None, text);
            self.close(newcomer.stream.id, CloseHow::Abort);
        }
        match &self.connection.dialling.phase {
            Phase::Searching(at) if *at <= now => self.turn(),
            Phase::Paused(at) if *at <= now => self.begin_attempt(),
            Phase::Checking(at) if *at <= now => self.start_opening(),
            Phase::Opening(opening) if opening.deadline <= now => {
                let text = format!("the peer did not send its {} in time", opening.awaited());
                self.attempt_failed(Telling::Passing, &text);
            }
            _ => {}
        }
    }

    /// Both sockets survived: nobody else is accepted, and the features are exchanged.
    fn start_opening(&mut self) {
        self.stop_listening();
        let newcomers = core::mem::take(&mut self.connection.dialling.newcomers);
        for newcomer in newcomers {
            self.close(newcomer.stream.id, CloseHow::Abort);
        }
        self.open();
    }
}
