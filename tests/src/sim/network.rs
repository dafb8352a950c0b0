//! Byte streams between the two nodes of each pair: each direction has its own delay, its own window and its own end.
//!
//! - Bytes that the engine sends wait until the simulated kernel takes them ([`Event::Sent`], in parts), fly, and arrive in
//!   pieces that do not respect packets.
//! - A blocked direction holds everything back, like a cable that was pulled: TCP goes on when it is plugged in again.
//! - A reset cuts both directions at any byte. A killed process leaves what its kernel has taken. A node without power leaves
//!   nothing, and its peer learns of it only after the reboot, or by its own pings.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tandem_replicator::{CloseHow, DialError, Event, SocketId, Token};

use super::dice::Dice;
use super::pair::{pair_of, peer_of};

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;

/// Something that the network wants done later.
#[derive(Debug)]
pub enum NetEvent {
    /// For the engine of a node, if it still is the same process.
    Engine {
        /// The node.
        node: usize,
        /// Its process.
        boot: u64,
        /// What it is told.
        event: Box<Event>,
    },
    /// The kernel takes bytes of a direction.
    Pump {
        /// The stream.
        stream: u64,
        /// The sending end.
        from: usize,
    },
    /// Bytes of a direction may have arrived.
    Arrive {
        /// The stream.
        stream: u64,
        /// The sending end.
        from: usize,
    },
    /// A dial reaches the other host.
    Reach {
        /// Who dials.
        node: usize,
        /// Its process.
        boot: u64,
        /// The dial.
        token: Token,
    },
    /// A lingering close has waited long enough.
    LingerOver {
        /// The stream.
        stream: u64,
        /// The closing end.
        end: usize,
    },
}

/// Properties of the links.
#[derive(Clone, Debug)]
pub struct NetSettings {
    /// Shortest and longest delay of a piece in nanoseconds.
    pub delay: (u64, u64),
    /// Bytes that the kernels hold for one direction.
    pub window: u64,
    /// Pieces are cut and joined at random.
    pub pieces: bool,
    /// How long a dial to a silent host takes.
    pub dial_timeout: u64,
}

/// What a host is doing, seen from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The process runs and accepts, or not.
    Running {
        /// Accepts.
        listening: bool,
    },
    /// No process: dials are refused.
    NoProcess,
    /// No power: dials time out.
    Off,
}

#[derive(Debug, Default)]
struct End {
    node: usize,
    boot: u64,
    socket: u64,
    /// The engine still may hear of it.
    open: bool,
    /// The engine asked for the end.
    closing: bool,
    /// The engine asked to stop reading.
    paused: bool,
    /// The process or the host is gone.
    dead: bool,
    /// Not taken by the kernel.
    unsent: VecDeque<Bytes>,
    unsent_bytes: u64,
    /// On their way, with the time of arrival.
    flight: VecDeque<(u64, Bytes)>,
    flight_bytes: u64,
    /// Arrived at the other end, not delivered.
    inbox: VecDeque<Bytes>,
    inbox_bytes: u64,
    last_arrival: u64,
    /// Nothing follows what is in flight; the other end is told so at this time.
    fin: Option<u64>,
}

/// What the kernel took of what an engine sent.
#[derive(Default)]
struct Taken {
    bytes: u64,
    /// When each piece of it arrives.
    arrivals: Vec<u64>,
    /// A part of a piece was taken: the rest follows at once.
    again: bool,
}

impl End {
    /// The kernel takes what fits.
    fn take(&mut self, now: u64, settings: &NetSettings, dice: &mut Dice) -> Taken {
        let mut taken = Taken::default();
        while let Some(mut piece) = self.unsent.pop_front() {
            let room = (settings.window).saturating_sub(self.flight_bytes + self.inbox_bytes);
            if room == 0 {
                self.unsent.push_front(piece);
                break;
            }
            let mut length = room.min(piece.len() as u64);
            if settings.pieces && length > 1 && dice.chance(1, 4) {
                length = dice.between(1, length);
            }
            let rest = piece.split_off(length as usize);
            if !rest.is_empty() {
                self.unsent.push_front(rest);
                taken.again = true;
            }
            self.unsent_bytes -= length;
            self.flight_bytes += length;
            taken.bytes += length;
            let delay = dice.between(settings.delay.0, settings.delay.1);
            let at = self.last_arrival.max(now + delay);
            self.last_arrival = at;
            self.flight.push_back((at, piece));
            taken.arrivals.push(at);
            if taken.again {
                break;
            }
        }
        taken
    }
}

/// All streams.
#[derive(Debug)]
pub struct Network {
    /// Properties; may be changed at any time.
    pub settings: NetSettings,
    /// Directions that are held back, by the node that sends.
    pub blocked: Vec<bool>,
    /// Dials to this host are refused, whatever it does: a firewall.
    pub closed: Vec<bool>,
    /// What the hosts do; kept by the world.
    pub hosts: Vec<Host>,
    streams: BTreeMap<u64, [End; 2]>,
    /// Stream and end of a socket.
    sockets: BTreeMap<u64, (u64, usize)>,
    next_stream: u64,
    next_socket: u64,
    dice: Dice,
    /// What has to happen, and when.
    pub out: Vec<(u64, NetEvent)>,
}

impl Network {
    /// No stream yet between so many nodes.
    #[must_use]
    pub fn new(settings: NetSettings, nodes: usize, dice: Dice) -> Network {
        Network {
            settings,
            blocked: vec![false; nodes],
            closed: vec![false; nodes],
            hosts: vec![Host::NoProcess; nodes],
            streams: BTreeMap::new(),
            sockets: BTreeMap::new(),
            next_stream: 0,
            next_socket: 0,
            dice,
            out: Vec::new(),
        }
    }

    fn delay(&mut self) -> u64 {
        let (least, most) = self.settings.delay;
        self.dice.between(least, most)
    }

    /// An engine sends.
    pub fn send(&mut self, now: u64, socket: SocketId, pieces: impl IntoIterator<Item = Bytes>) {
        let Some(&(stream, end)) = self.sockets.get(&socket.0) else {
            return;
        };
        let Some(ends) = self.streams.get_mut(&stream) else {
            return;
        };
        let own = &mut ends[end];
        if own.closing || !own.open {
            return;
        }
        for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
            own.unsent_bytes += piece.len() as u64;
            own.unsent.push_back(piece);
        }
        let at = now + self.dice.below(20_000) + 1000;
        self.out.push((at, NetEvent::Pump { stream, from: end }));
    }

    /// The streams of a pair.
    fn streams_of(&self, pair: usize) -> Vec<u64> {
        let of_pair = self.streams.iter().filter(|(_, ends)| is_of(ends, pair));
        of_pair.map(|(stream, _)| *stream).collect()
    }

    /// No bytes wait or fly on any stream of a pair, and no end has still to hear that its stream was cut.
    #[must_use]
    pub fn is_quiet(&self, pair: usize) -> bool {
        let untold = |[a, b]: &[End; 2]| a.fin.is_some() && b.open || b.fin.is_some() && a.open;
        let quiet = |end: &End| {
            end.dead || (end.unsent_bytes == 0 && end.flight_bytes == 0 && end.inbox_bytes == 0)
        };
        let mut of_pair = self.streams.values().filter(|ends| is_of(ends, pair));
        of_pair.all(|ends| ends.iter().all(quiet) && !untold(ends))
    }

    /// The kernel takes what fits.
    pub fn pump(&mut self, now: u64, stream: u64, from: usize) {
        let Some(ends) = self.streams.get_mut(&stream) else {
            return;
        };
        let (peer_dead, peer_node) = (ends[1 - from].dead, ends[1 - from].node);
        let own = &mut ends[from];
        if own.dead || own.fin.is_some() {
            return;
        }
        let taken = own.take(now, &self.settings, &mut self.dice);
        let arrive = |at| (at, NetEvent::Arrive { stream, from });
        self.out.extend(taken.arrivals.into_iter().map(arrive));
        if taken.bytes > 0 && own.open {
            let (node, boot) = (own.node, own.boot);
            let event = Box::new(Event::Sent {
                socket: SocketId(own.socket),
                bytes: taken.bytes,
            });
            self.out.push((now, NetEvent::Engine { node, boot, event }));
        }
        if own.closing && own.unsent.is_empty() {
            let at = own.last_arrival.max(now + self.settings.delay.0);
            own.fin = Some(at);
            self.out.push(arrive(at));
        }
        // The host of the other end was rebooted and knows nothing of this stream: it answers with a reset.
        let is_unknown = peer_dead
            && own.flight_bytes > 0
            && self.hosts[peer_node] != Host::Off
            && !(self.blocked[own.node] || self.blocked[peer_node]);
        if is_unknown {
            let at = now + self.delay();
            self.end_closed(at, stream, from, "connection reset by peer");
        }
        if taken.again {
            let at = now + self.dice.below(100_000) + 1;
            self.out.push((at, NetEvent::Pump { stream, from }));
        }
    }

    /// Delivers what has arrived by now: the bytes for an engine, if any.
    pub fn arrive(&mut self, now: u64, stream: u64, from: usize) -> Option<(usize, u64, Event)> {
        let ends = self.streams.get_mut(&stream)?;
        let sender_node = ends[from].node;
        if self.blocked[sender_node] || ends[1 - from].dead {
            return None;
        }
        let (reader_open, reader_paused, node, boot, socket) = {
            let reader = &ends[1 - from];
            let open = reader.open && !reader.closing && !reader.dead;
            (open, reader.paused, reader.node, reader.boot, reader.socket)
        };
        let own = &mut ends[from];
        while own.flight.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, piece)) = own.flight.pop_front() {
                own.flight_bytes -= piece.len() as u64;
                own.inbox_bytes += piece.len() as u64;
                own.inbox.push_back(piece);
            }
        }
        if !reader_open {
            own.inbox.clear();
            own.inbox_bytes = 0;
        }
        if reader_paused {
            return None;
        }
        let mut result = None;
        if let Some(mut piece) = own.inbox.pop_front() {
            if self.settings.pieces && piece.len() > 1 && self.dice.chance(1, 5) {
                let rest = piece.split_off(self.dice.between(1, piece.len() as u64 - 1) as usize);
                own.inbox.push_front(rest);
            } else if self.settings.pieces && self.dice.chance(1, 2) {
                // Several pieces are read at once.
                let mut joined = piece.to_vec();
                while joined.len() < 65_536 {
                    let Some(next) = own.inbox.pop_front() else {
                        break;
                    };
                    joined.extend_from_slice(&next);
                }
                piece = joined.into();
            }
            own.inbox_bytes -= piece.len() as u64;
            let event = Event::Bytes {
                socket: SocketId(socket),
                bytes: piece,
            };
            result = Some((node, boot, event));
            self.out.push((now + 1, NetEvent::Pump { stream, from }));
        }
        if !own.inbox.is_empty() {
            let later = if self.settings.pieces {
                self.dice.below(50_000)
            } else {
                0
            };
            self.out
                .push((now + 1 + later, NetEvent::Arrive { stream, from }));
        } else if own.flight.is_empty() && own.fin.is_some_and(|at| at <= now) && result.is_none() {
            self.end_closed(now, stream, 1 - from, "closed by peer");
        } else if own.fin.is_some() && own.flight.is_empty() {
            let at = own.fin.unwrap_or(now).max(now + 1);
            self.out.push((at, NetEvent::Arrive { stream, from }));
        }
        result
    }

    /// One end of a stream is over: its engine is told, once.
    fn end_closed(&mut self, at: u64, stream: u64, end: usize, reason: &str) {
        let Some(ends) = self.streams.get_mut(&stream) else {
            return;
        };
        let own = &mut ends[end];
        if own.open && !own.dead {
            own.open = false;
            let event = Event::Closed {
                socket: SocketId(own.socket),
                reason: reason.to_owned(),
            };
            let (node, boot) = (own.node, own.boot);
            self.out.push((
                at,
                NetEvent::Engine {
                    node,
                    boot,
                    event: Box::new(event),
                },
            ));
        }
        own.open = false;
        own.unsent.clear();
        own.unsent_bytes = 0;
        if own.fin.is_none() {
            own.fin = Some(own.last_arrival.max(at));
            let at = own.fin.unwrap_or(at);
            self.out.push((at, NetEvent::Arrive { stream, from: end }));
        }
        self.forget(stream);
    }

    /// Drops streams of which no engine will hear again.
    fn forget(&mut self, stream: u64) {
        let Some(ends) = self.streams.get(&stream) else {
            return;
        };
        if ends.iter().all(|end| !end.open || end.dead) {
            for socket in [ends[0].socket, ends[1].socket] {
                self.sockets.remove(&socket);
            }
            self.streams.remove(&stream);
        }
    }

    /// An engine closes a stream.
    pub fn close(&mut self, now: u64, socket: SocketId, how: CloseHow) {
        let Some(&(stream, end)) = self.sockets.get(&socket.0) else {
            return;
        };
        let Some(ends) = self.streams.get_mut(&stream) else {
            return;
        };
        let own = &mut ends[end];
        if !own.open || own.closing {
            return;
        }
        own.closing = true;
        if how == CloseHow::Abort {
            own.unsent.clear();
            own.unsent_bytes = 0;
        }
        let at = now + self.dice.below(50_000);
        self.out.push((at, NetEvent::Pump { stream, from: end }));
        let over = if how == CloseHow::Abort {
            at
        } else {
            now + 1000 * MS
        };
        self.out.push((over, NetEvent::LingerOver { stream, end }));
    }

    /// The engine of an end that it closed is told that it is over.
    pub fn linger_over(&mut self, now: u64, stream: u64, end: usize) {
        self.end_closed(now, stream, end, "closed");
    }

    /// An engine stops or goes on reading.
    pub fn pause(&mut self, now: u64, socket: SocketId, paused: bool) {
        let Some(&(stream, end)) = self.sockets.get(&socket.0) else {
            return;
        };
        if let Some(ends) = self.streams.get_mut(&stream) {
            ends[end].paused = paused;
            let from = 1 - end;
            self.out.push((now, NetEvent::Arrive { stream, from }));
        }
    }

    /// An engine dials.
    pub fn dial(&mut self, now: u64, node: usize, boot: u64, token: Token) {
        let at = now + self.delay();
        self.out.push((at, NetEvent::Reach { node, boot, token }));
    }

    /// A dial arrives, or not. `boot` and `peer_boot`: the processes of who dials, and of its peer.
    pub fn reach(&mut self, now: u64, node: usize, boot: u64, peer_boot: u64, token: Token) {
        let peer = peer_of(node);
        let fail = |reason: &str| Event::Dialled {
            token,
            result: Err(DialError::Unreachable(reason.to_owned())),
        };
        let silent = self.blocked[node] || self.blocked[peer];
        let (after, event) = match self.hosts[peer] {
            _ if silent => (self.settings.dial_timeout, fail("timed out")),
            Host::Off => (self.settings.dial_timeout, fail("no route to host")),
            _ if self.closed[peer] => (self.delay(), fail("connection refused")),
            Host::NoProcess | Host::Running { listening: false } => {
                (self.delay(), fail("connection refused"))
            }
            Host::Running { listening: true } => {
                let sockets = [self.next_socket + 1, self.next_socket + 2];
                self.next_socket += 2;
                self.next_stream += 1;
                let end = |node: usize, boot: u64, socket: u64| End {
                    node,
                    boot,
                    socket,
                    open: true,
                    last_arrival: now,
                    ..End::default()
                };
                let stream = self.next_stream;
                let ends = [
                    end(node, boot, sockets[0]),
                    end(peer, peer_boot, sockets[1]),
                ];
                self.streams.insert(stream, ends);
                self.sockets.insert(sockets[0], (stream, 0));
                self.sockets.insert(sockets[1], (stream, 1));
                let event = Event::Accepted {
                    socket: SocketId(sockets[1]),
                };
                let accepted = NetEvent::Engine {
                    node: peer,
                    boot: peer_boot,
                    event: Box::new(event),
                };
                self.out.push((now, accepted));
                let event = Event::Dialled {
                    token,
                    result: Ok(SocketId(sockets[0])),
                };
                let after = self.delay();
                // Nothing may be delivered to the dialler before it knows the stream.
                if let Some(ends) = self.streams.get_mut(&stream) {
                    ends[1].last_arrival = now + after + 1;
                }
                (after, event)
            }
        };
        self.out.push((
            now + after,
            NetEvent::Engine {
                node,
                boot,
                event: Box::new(event),
            },
        ));
    }

    /// A stream that reached a node which no longer listens is reset.
    pub fn refuse(&mut self, now: u64, socket: SocketId) {
        let Some(&(stream, end)) = self.sockets.get(&socket.0) else {
            return;
        };
        if let Some(ends) = self.streams.get_mut(&stream) {
            ends[end].dead = true;
            ends[end].open = false;
        }
        let at = now + 2 * self.settings.delay.1 + 2;
        self.end_closed(at, stream, 1 - end, "connection reset by peer");
    }

    /// Cuts every stream of a pair at any byte; `only_one`: just one of them.
    pub fn reset(&mut self, now: u64, pair: usize, only_one: bool) {
        let streams = self.streams_of(pair);
        let chosen = self.dice.below(streams.len() as u64) as usize;
        for (index, stream) in streams.into_iter().enumerate() {
            if only_one && index != chosen {
                continue;
            }
            for from in 0..2 {
                let last = self.settings.delay.1;
                let Some(ends) = self.streams.get_mut(&stream) else {
                    break;
                };
                let own = &mut ends[from];
                own.unsent.clear();
                own.unsent_bytes = 0;
                let keep = self.dice.below(own.flight_bytes + 1);
                truncate(own, keep);
                if own.fin.is_none() {
                    own.fin = Some(own.last_arrival.max(now + self.dice.below(last + 1)));
                }
                let at = own.fin.unwrap_or(now);
                self.out.push((at, NetEvent::Arrive { stream, from }));
            }
        }
    }

    /// The process of a node died. With its host (`power`) nothing of it remains; else its kernel still delivers.
    pub fn process_gone(&mut self, now: u64, node: usize, power: bool) {
        for stream in self.streams_of(pair_of(node)) {
            let Some(ends) = self.streams.get_mut(&stream) else {
                continue;
            };
            let from = usize::from(ends[1].node == node);
            let own = &mut ends[from];
            own.open = false;
            own.unsent.clear();
            own.unsent_bytes = 0;
            if power {
                own.dead = true;
                let keep = self.dice.below(own.flight_bytes + 1);
                truncate(own, keep);
            } else if own.fin.is_none() {
                own.fin = Some(own.last_arrival.max(now + self.settings.delay.0));
                let at = own.fin.unwrap_or(now);
                self.out.push((at, NetEvent::Arrive { stream, from }));
            }
            self.forget(stream);
        }
    }

    /// After a block was lifted or a host came back: everything that was held between the nodes of this pair goes on.
    pub fn wake(&mut self, now: u64, pair: usize) {
        for stream in self.streams_of(pair) {
            for from in 0..2 {
                let at = now + self.delay();
                self.out.push((at, NetEvent::Arrive { stream, from }));
                self.out.push((at, NetEvent::Pump { stream, from }));
            }
        }
    }
}

/// Whether this is a stream between the nodes of this pair.
fn is_of(ends: &[End; 2], pair: usize) -> bool {
    pair_of(ends[0].node) == pair
}

/// Keeps only the first bytes of what is in flight.
fn truncate(end: &mut End, keep: u64) {
    let mut left = keep;
    let mut kept = VecDeque::new();
    for (at, mut piece) in std::mem::take(&mut end.flight) {
        if left == 0 {
            break;
        }
        piece.truncate(left as usize);
        left -= piece.len() as u64;
        kept.push_back((at, piece));
    }
    end.flight = kept;
    end.flight_bytes = keep;
}
