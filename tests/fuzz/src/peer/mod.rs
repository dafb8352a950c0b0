//! A whole engine and a peer that may say anything, on both sockets, at any moment.
//!
//! The input begins with a setting (how far the two got, options, what fails) and goes on with actions: packets with sound
//! headers and fields from small sets ([`script`]), packets cut, split or with a byte changed, raw bytes, what a sound peer
//! would answer ([`answers`]), ends of sockets, completions and failures of the disk, time, commands and clients' requests.
//!
//! What must hold, whatever the peer says:
//! - The engine does not panic, comes to rest, reports no bug of its own, and its invariants hold after every event.
//! - It asks for nothing outside of its device, and for no data inside of its metadata.
//! - What it keeps for the peer is bounded: bytes that the disk works on, bytes that the peer does not take.
//! - What it sends is understood by a framer.
//! - Every command and every request is answered once, and in the end it can be taken down.

mod actions;
mod answers;
mod backing;
mod script;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tandem_metadata::Uuids;
use tandem_protocol::packet::Frame;
use tandem_protocol::{Framer, Socket};
use tandem_replicator::status::VolumeStatus;
use tandem_replicator::{
    BackingInfo, CloseHow, Command, CommandId, DialError, DiskOperation, DiskOptions, Effect,
    Effects, Event, Force, IoError, MetaKind, MetaOperation, NetOptions, Notification, Protocol,
    RequestId, Resource, ResourceOptions, SocketId, Time, Token, VolumeNumber, VolumeOptions,
};

use answers::Peer;
use backing::{Backing, DEVICE_BYTES};
use script::{Facts, Script};

/// The generation that both nodes had.
const GENERATION: u64 = 0x1000;

const VOLUME: VolumeNumber = VolumeNumber(0);

/// Actions of one input.
const ACTIONS_MAX: usize = 400;

/// Events that one action may cause. More are a loop.
const EVENTS_MAX: usize = 50_000;

/// Bytes of reads and writes that may be asked of the disk at one time: the engine's own bounds for writes of the peer, its
/// reads, its resync and clients, and a few packets.
const DISK_BYTES_MAX: u64 = (32 + 32 + 32 + 64 + 16) << 20;

/// Bytes that may wait for the peer to take them, on the data socket and on the meta socket.
const UNSENT_BYTES_MAX: [u64; 2] = [(128 + 32 + 32 + 64 + 16) << 20, 16 << 20];

/// The peer byte stream: whatever a peer says, the engine is sound, bounded, and can be taken down.
pub fn peer_stream(input: &[u8]) {
    let mut script = Script::new(input);
    let mut world = World::new(&mut script);
    world.prelude(&mut script);
    for _ in 0..ACTIONS_MAX {
        if script.is_over() {
            break;
        }
        world.act(&mut script);
        world.judge_bounds();
    }
    world.wind_down();
}

/// How far the two nodes got before the script begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The engine waits for its peer.
    Alone,
    /// Both sockets are there.
    Sockets,
    /// Features and authentication are through.
    Link,
    /// Connected, with equal data.
    Connected,
    /// The peer has newer data.
    Target,
    /// The engine has newer data.
    Source,
    /// The engine has a fresh disk.
    Fresh,
    /// The peer has no disk.
    PeerDiskless,
}

/// What the first bytes of an input choose.
#[derive(Clone, Copy, Debug)]
struct Setting {
    stage: Stage,
    /// The engine becomes Primary before the script.
    primary: bool,
    /// A resync gets to the point where blocks are asked for.
    deep: bool,
    protocol: Protocol,
    digest: bool,
    authentication: bool,
    /// Digests of the resync.
    checksums: bool,
    /// The peer is a kernel: no capabilities.
    kernel: bool,
    version: u32,
    /// Dials get through.
    reachable: bool,
    /// Exit code of handlers.
    handler_exit: i32,
}

impl Setting {
    fn new(script: &mut Script) -> Setting {
        let stage = match script.byte() % 8 {
            0 => Stage::Connected,
            1 => Stage::Target,
            2 => Stage::Source,
            3 => Stage::Fresh,
            4 => Stage::PeerDiskless,
            5 => Stage::Link,
            6 => Stage::Sockets,
            _ => Stage::Alone,
        };
        let bits = script.byte();
        let more = script.byte();
        Setting {
            stage,
            primary: bits & 1 != 0,
            deep: bits & 2 == 0,
            kernel: bits & 4 != 0,
            reachable: bits & 8 != 0,
            digest: bits & 16 != 0,
            authentication: bits & 32 != 0,
            checksums: bits & 64 != 0,
            version: if bits & 128 == 0 { 101 } else { 100 },
            protocol: [Protocol::C, Protocol::B, Protocol::A][usize::from(more % 3)],
            handler_exit: if more & 128 == 0 { 0 } else { 7 },
        }
    }

    /// The engine's generations; `None`: a fresh disk.
    fn own_uuids(&self) -> Option<Uuids> {
        let history = [0x800, 0x400];
        let (current, bitmap) = match self.stage {
            Stage::Fresh => return None,
            Stage::Source => (0x2000, GENERATION),
            _ => (GENERATION, 0),
        };
        Some(Uuids {
            current,
            bitmap,
            history,
        })
    }

    fn net(&self) -> NetOptions {
        let name = |on: bool, name: &str| if on { name.to_owned() } else { String::new() };
        NetOptions {
            protocol: self.protocol,
            secret: self
                .authentication
                .then(|| (answers::SECRET.to_vec(), "sha1".to_owned())),
            integrity_alg: name(self.digest, "crc32c"),
            csums_alg: name(self.checksums, "crc32c"),
            ..NetOptions::default()
        }
    }
}

/// An I/O between its effect and its completion.
#[derive(Debug)]
enum Io {
    Data(DiskOperation),
    Meta(MetaOperation),
}

/// One stream, as the peer sees it.
#[derive(Debug)]
struct Stream {
    /// What the engine says on it.
    framer: Framer,
    /// The engine does not read.
    paused: bool,
    /// What the peer sent meanwhile.
    waiting: VecDeque<Bytes>,
    /// The peer closed it meanwhile.
    closed: bool,
    /// Bytes that the engine sent and nobody took.
    unsent: VecDeque<Bytes>,
    unsent_bytes: u64,
}

/// The engine and everything around it.
struct World {
    setting: Setting,
    engine: Resource,
    now: Time,
    backing: Backing,
    open: bool,
    io: VecDeque<(Token, Io)>,
    /// Disk I/O is completed only by actions.
    hold_disk: bool,
    /// The peer takes nothing.
    deaf: bool,
    streams: BTreeMap<SocketId, Stream>,
    listening: bool,
    next_socket: u64,
    /// The peer's ends of the two sockets.
    data: Option<SocketId>,
    meta: Option<SocketId>,
    events: VecDeque<Event>,
    commands: BTreeSet<CommandId>,
    answered: u64,
    last_exit: u8,
    next_command: u64,
    requests: BTreeSet<RequestId>,
    next_request: u64,
    tokens: BTreeSet<Token>,
    /// What the engine said and the peer did not answer, oldest first.
    heard: VecDeque<Frame>,
    facts: Facts,
    peer: Peer,
    log: VecDeque<String>,
}

impl World {
    fn new(script: &mut Script) -> World {
        let setting = Setting::new(script);
        let dirty = u64::from(script.byte());
        let disk = DiskOptions {
            al_extents: 7,
            ..DiskOptions::default()
        };
        let engine = Resource::new(ResourceOptions {
            name: "r0".to_owned(),
            volumes: vec![VolumeOptions {
                number: VOLUME,
                minor: 0,
                disk,
            }],
            seed: [7; 32],
        });
        let backing = Backing::new(setting.own_uuids(), dirty);
        let facts = Facts {
            sectors: backing.sectors(),
            ..Facts::default()
        };
        World {
            setting,
            engine,
            now: Time(1_000_000_000),
            backing,
            open: false,
            io: VecDeque::new(),
            hold_disk: false,
            deaf: false,
            streams: BTreeMap::new(),
            listening: false,
            next_socket: 0,
            data: None,
            meta: None,
            events: VecDeque::new(),
            commands: BTreeSet::new(),
            answered: 0,
            last_exit: 0,
            next_command: 0,
            requests: BTreeSet::new(),
            next_request: 0,
            tokens: BTreeSet::new(),
            heard: VecDeque::new(),
            facts,
            peer: Peer::default(),
            log: VecDeque::new(),
        }
    }

    fn status(&self) -> VolumeStatus {
        self.engine.status().volumes.remove(0)
    }

    /// An event, and everything that follows at this moment.
    fn event(&mut self, event: Event) {
        self.events.push_back(event);
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..EVENTS_MAX {
            if let Some(event) = self.events.pop_front() {
                self.handle(event);
            } else if self.hold_disk || !self.complete(0, Ok(())) {
                return;
            }
        }
        panic!("no rest: {} {:#?}", self.status().state.dump(), self.log);
    }

    fn handle(&mut self, event: Event) {
        let mut effects = Effects::new();
        self.engine.handle(self.now, event, &mut effects);
        for effect in effects {
            self.perform(effect);
        }
        if let Err(what) = self.engine.check_invariants() {
            panic!("{what}; log: {:#?}", self.log);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Disk {
                token, operation, ..
            } => self.submit(token, Io::Data(operation)),
            Effect::Meta {
                token, operation, ..
            } => self.submit(token, Io::Meta(operation)),
            Effect::OpenBacking { token, .. } => self.open_backing(token),
            Effect::MeasureBacking { token, .. } => self.measured(token),
            Effect::CloseBacking { token, .. } => {
                assert!(
                    self.open && self.io.is_empty(),
                    "closed with I/O in flight: {:?}",
                    self.io
                );
                self.open = false;
                self.events.push_back(Event::BackingClosed { token });
            }
            Effect::RunHandler { token, .. } => {
                let exit = self.setting.handler_exit;
                self.events.push_back(Event::HandlerDone { token, exit });
            }
            Effect::Reply { request, .. } => {
                assert!(
                    self.requests.remove(&request),
                    "{request:?} was answered twice"
                );
            }
            Effect::Answer { command, answer } => {
                assert!(
                    self.commands.remove(&command),
                    "{command:?} was answered twice"
                );
                self.answered = command.0;
                self.last_exit = answer.exit;
            }
            Effect::Notify(notification) => self.notified(notification),
            Effect::PauseClients { .. } | Effect::ResumeClients { .. } => {}
            network => self.network(network),
        }
    }

    fn submit(&mut self, token: Token, io: Io) {
        assert!(self.open, "I/O on a closed device: {io:?}");
        assert!(self.tokens.insert(token), "{token:?} was used twice");
        self.io.push_back((token, io));
    }

    fn open_backing(&mut self, token: Token) {
        assert!(!self.open, "the device is opened twice");
        self.open = true;
        self.measured(token);
    }

    fn measured(&mut self, token: Token) {
        let info = BackingInfo {
            data_bytes: DEVICE_BYTES,
            meta_bytes: DEVICE_BYTES,
            meta_kind: MetaKind::Internal,
            logical_block: 512,
            discard: true,
            discard_zeroes: true,
        };
        self.events.push_back(Event::BackingOpened {
            token,
            result: Ok(info),
        });
    }

    /// Completes one of the I/Os in flight; false: there is none.
    fn complete(&mut self, at: usize, outcome: Result<(), IoError>) -> bool {
        let Some(at) = at.checked_rem(self.io.len()) else {
            return false;
        };
        let Some((token, io)) = self.io.remove(at) else {
            return false;
        };
        let event = match io {
            Io::Data(operation) => {
                let result = outcome.map(|()| self.backing.data(&operation));
                Event::DiskDone { token, result }
            }
            Io::Meta(operation) => {
                let result = outcome.map(|()| self.backing.meta(&operation));
                Event::MetaDone { token, result }
            }
        };
        self.events.push_back(event);
        true
    }

    fn notified(&mut self, notification: Notification) {
        let Notification::Log { text, .. } = notification else {
            return;
        };
        assert!(
            !text.contains("this is a bug"),
            "{text}; log: {:#?}",
            self.log
        );
        if self.log.len() == 20 {
            self.log.pop_front();
        }
        self.log.push_back(text);
    }

    fn network(&mut self, effect: Effect) {
        match effect {
            Effect::Listen => self.listening = true,
            Effect::Unlisten => self.listening = false,
            Effect::Dial { token } => self.dialled(token),
            Effect::Send {
                socket,
                head,
                payload,
            } => {
                for bytes in [Some(head), payload].into_iter().flatten() {
                    self.sent(socket, bytes);
                }
            }
            Effect::Close { socket, how } => self.engine_closes(socket, how),
            Effect::PauseRead { socket } => {
                if let Some(stream) = self.streams.get_mut(&socket) {
                    stream.paused = true;
                }
            }
            Effect::ResumeRead { socket } => self.resume(socket),
            other => panic!("{other:?} is no effect of the network"),
        }
    }

    fn dialled(&mut self, token: Token) {
        let result = if self.setting.reachable {
            Ok(self.new_stream(Framer::accepted()))
        } else {
            Err(DialError::Unreachable("connection refused".to_owned()))
        };
        self.events.push_back(Event::Dialled { token, result });
    }

    fn new_stream(&mut self, framer: Framer) -> SocketId {
        self.next_socket += 1;
        let socket = SocketId(self.next_socket);
        let stream = Stream {
            framer,
            paused: false,
            waiting: VecDeque::new(),
            closed: false,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
        };
        self.streams.insert(socket, stream);
        socket
    }

    /// The engine sent bytes: the peer takes them at once, or never.
    fn sent(&mut self, socket: SocketId, bytes: Bytes) {
        let Some(stream) = self.streams.get_mut(&socket) else {
            return;
        };
        stream.unsent_bytes += bytes.len() as u64;
        stream.unsent.push_back(bytes);
        if !self.deaf {
            self.take_sent(socket);
        }
    }

    fn take_sent(&mut self, socket: SocketId) {
        let Some(stream) = self.streams.get_mut(&socket) else {
            return;
        };
        let bytes = std::mem::take(&mut stream.unsent_bytes);
        if bytes == 0 {
            return;
        }
        for piece in stream.unsent.drain(..) {
            stream.framer.push(piece);
        }
        let mut frames = Vec::new();
        loop {
            match stream.framer.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => panic!("the engine's own bytes are refused: {error}"),
            }
        }
        let kind = stream.framer.socket();
        self.events.push_back(Event::Sent { socket, bytes });
        for frame in frames {
            self.hear(socket, kind, frame);
        }
    }

    fn engine_closes(&mut self, socket: SocketId, _how: CloseHow) {
        if self.streams.remove(&socket).is_some() {
            self.forget(socket);
            let reason = "closed by this node".to_owned();
            self.events.push_back(Event::Closed { socket, reason });
        }
    }

    fn forget(&mut self, socket: SocketId) {
        for end in [&mut self.data, &mut self.meta] {
            if *end == Some(socket) {
                *end = None;
            }
        }
    }

    fn resume(&mut self, socket: SocketId) {
        let Some(stream) = self.streams.get_mut(&socket) else {
            return;
        };
        stream.paused = false;
        for bytes in stream.waiting.drain(..) {
            self.events.push_back(Event::Bytes { socket, bytes });
        }
        if stream.closed {
            self.peer_closes(socket);
        }
    }

    /// The peer closes a socket, after what it sent.
    fn peer_closes(&mut self, socket: SocketId) {
        let Some(stream) = self.streams.get_mut(&socket) else {
            return;
        };
        if stream.paused {
            stream.closed = true;
            return;
        }
        self.streams.remove(&socket);
        self.forget(socket);
        let reason = "end of stream".to_owned();
        self.events.push_back(Event::Closed { socket, reason });
    }

    /// The peer sends bytes.
    fn deliver(&mut self, socket: SocketId, bytes: Bytes) {
        let Some(stream) = self.streams.get_mut(&socket) else {
            return;
        };
        if bytes.is_empty() || stream.closed {
        } else if stream.paused {
            stream.waiting.push_back(bytes);
        } else {
            self.events.push_back(Event::Bytes { socket, bytes });
        }
    }

    /// The peer dials, if it is listened to.
    fn dial_in(&mut self, kind: Socket) {
        if !self.listening {
            return;
        }
        let socket = self.new_stream(Framer::dialled(kind));
        match kind {
            Socket::Data => self.data = Some(socket),
            Socket::Meta => self.meta = Some(socket),
        }
        self.event(Event::Accepted { socket });
    }

    fn command(&mut self, command: Command) {
        self.next_command += 1;
        let id = CommandId(self.next_command);
        self.commands.insert(id);
        let command = Box::new(command);
        self.event(Event::Command { id, command });
    }

    fn connect(&mut self) {
        let net = self.setting.net();
        self.command(Command::Connect {
            net,
            discard_my_data: false,
            tentative: false,
        });
    }

    /// Time passes, up to the next deadline of the engine at most.
    fn advance(&mut self, length: Duration) {
        let end = self.now + length;
        match self.engine.next_deadline() {
            Some(at) if at <= end => {
                self.now = self.now.max(at);
                self.event(Event::Timer);
            }
            _ => self.now = end,
        }
    }

    fn judge_bounds(&self) {
        let bytes = self.io.iter().map(|(_, io)| match io {
            Io::Data(DiskOperation::Read { length, .. }) => u64::from(*length),
            Io::Data(DiskOperation::Write { data, .. }) => data.len() as u64,
            _ => 0,
        });
        let bytes: u64 = bytes.sum();
        assert!(
            bytes <= DISK_BYTES_MAX,
            "{bytes} bytes are asked of the disk at one time"
        );
        for stream in self.streams.values() {
            let at = usize::from(stream.framer.socket() == Some(Socket::Meta));
            let (unsent, most) = (stream.unsent_bytes, UNSENT_BYTES_MAX[at]);
            assert!(
                unsent <= most,
                "{unsent} bytes wait to be taken by the peer"
            );
        }
    }

    /// The peer goes away for good, the disk works: the engine is taken down.
    fn wind_down(&mut self) {
        self.deaf = false;
        self.hold_disk = false;
        self.setting.reachable = false;
        for socket in self.streams.keys().copied().collect::<Vec<_>>() {
            if let Some(stream) = self.streams.get_mut(&socket) {
                stream.paused = false;
            }
            self.resume(socket);
            self.peer_closes(socket);
        }
        self.settle();
        self.command(Command::Down { force: Force::Yes });
        let down = self.next_command;
        for _ in 0..200 {
            if self.commands.is_empty() && self.requests.is_empty() {
                break;
            }
            self.advance(Duration::from_secs(60));
        }
        let state = self.status().state.dump();
        assert!(
            self.answered == down && self.last_exit == 0,
            "it cannot be taken down: {state} {:#?}",
            self.log
        );
        assert!(
            self.commands.is_empty(),
            "commands without an answer: {state} {:#?}",
            self.log
        );
        assert!(
            self.requests.is_empty(),
            "requests without an answer: {state} {:#?}",
            self.log
        );
        assert!(
            self.io.is_empty() && !self.open,
            "the disk is still used: {state}"
        );
    }
}
