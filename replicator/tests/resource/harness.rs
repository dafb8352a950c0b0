//! A small world for tests: one or two engines, disks in memory with a volatile cache, and byte pipes between them.
//!
//! Everything completes at once and in order unless a test holds effects back ([`World::hold`]) or makes them fail
//! ([`World::fail`]). Time passes only in [`World::advance`] and [`World::run_until`]. Invariants of the engine are
//! checked after every event. Nothing here can hang: every wait has a limit.

mod carry;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tandem_metadata::Flags;
use tandem_replicator::state::word::{ConnState, DiskState, Role, State};
use tandem_replicator::{
    Answer, BackingInfo, CloseHow, Command, CommandId, DialError, DiskOperation, DiskOptions,
    Effect, Effects, Event, Force, Fua, IoError, Level, MetaKind, MetaOperation, NetOptions,
    Notification, OpenError, Operation, Protocol, Request, RequestError, RequestId, Resource,
    ResourceOptions, SocketId, Time, Token, VolumeNumber, VolumeOptions,
};

pub use crate::disk::{
    DISK_BYTES, Disk, flushes_data, writes_bitmap, writes_data, writes_log, writes_superblock,
};

/// The only volume of most tests.
pub const VOLUME: VolumeNumber = VolumeNumber(0);

/// Events handled in one go before a test is declared to be in a loop.
const EVENTS_MAX: usize = 200_000;

type Matcher = Box<dyn FnMut(&Effect) -> bool>;

/// One node.
pub struct Node {
    /// The engine.
    pub resource: Resource,
    /// Its disk; only the metadata device if the data have one of their own.
    pub disk: Disk,
    /// The device of the data, with external metadata.
    pub data: Option<Disk>,
    /// Answers to commands so far.
    pub answers: BTreeMap<CommandId, Answer>,
    /// Replies to requests so far.
    pub replies: BTreeMap<RequestId, Result<Bytes, RequestError>>,
    /// Lines of the log.
    pub log: Vec<String>,
    /// Handlers that ran.
    pub handlers: Vec<&'static str>,
    /// Exit code of every handler.
    pub handler_exit: i32,
    /// Whether clients are served, and with which size.
    pub served: Option<u64>,
    /// Where its metadata lie.
    pub meta_kind: MetaKind,
    /// Logical block of its disk in bytes.
    pub logical_block: u32,
    /// The backing device is open.
    pub open: bool,
    /// Every effect, for tests that look at the order.
    pub history: Vec<Effect>,
    hold: Option<Matcher>,
    fail: Option<Matcher>,
    held: Vec<Effect>,
    listening: bool,
}

struct Socket {
    node: usize,
    other: SocketId,
    paused: bool,
    waiting: Vec<Event>,
}

/// Two nodes (or one), a network, a clock.
pub struct World {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The time of the next event.
    pub now: Time,
    events: VecDeque<(usize, Event)>,
    sockets: BTreeMap<SocketId, Socket>,
    next_socket: u64,
    next_command: u64,
    next_request: u64,
    /// The network is cut: dials fail, bytes are lost.
    pub cut: bool,
    /// Bytes are lost without a word.
    pub silent: bool,
    /// No socket takes bytes any more: they are neither delivered nor reported as sent.
    pub stalled: bool,
    /// After so many bytes (in both directions together) every connection is reset, inside of whatever is being sent.
    pub cut_after: Option<usize>,
    /// Nobody announces what only a Tandem can: each node takes the other for a kernel.
    pub kernels: bool,
}

impl World {
    /// One node with a fresh disk.
    pub fn alone() -> World {
        World::new(1)
    }

    /// Two nodes with fresh disks.
    pub fn pair() -> World {
        World::new(2)
    }

    fn new(count: usize) -> World {
        World {
            nodes: (0..count)
                .map(|at| Node::new(at, DiskOptions::default()))
                .collect(),
            now: Time(1_000_000_000),
            events: VecDeque::new(),
            sockets: BTreeMap::new(),
            next_socket: 0,
            next_command: 0,
            next_request: 0,
            cut: false,
            silent: false,
            stalled: false,
            cut_after: None,
            kernels: false,
        }
    }

    /// Two nodes, attached, connected; both Secondary with fresh disks.
    pub fn connected(net: &NetOptions) -> World {
        let mut world = World::pair();
        world.make_connected(net);
        world
    }

    fn make_connected(&mut self, net: &NetOptions) {
        let world = self;
        for node in 0..2 {
            world.ok(node, Command::Attach { volume: VOLUME });
            world.connect(node, net);
        }
        world.run_until("both are connected", |world| {
            (0..2).all(|node| world.state(node).conn == ConnState::Connected)
        });
    }

    /// The same with the initial sync skipped: both UpToDate, and node 0 Primary.
    pub fn ready(net: &NetOptions) -> World {
        let mut world = World::pair();
        world.make_ready(net);
        world
    }

    /// The same with smaller disks, for tests that need many worlds.
    pub fn small(net: &NetOptions, bytes: u64) -> World {
        let mut world = World::pair();
        for node in &mut world.nodes {
            node.disk = Disk::fresh(bytes);
        }
        world.make_ready(net);
        world
    }

    pub fn make_ready(&mut self, net: &NetOptions) {
        let world = self;
        world.make_connected(net);
        world.ok(
            0,
            Command::NewCurrentUuid {
                volume: VOLUME,
                clear_bitmap: true,
            },
        );
        world.run_until("both are UpToDate", |world| {
            (0..2).all(|node| {
                let state = world.state(node);
                state.disk == DiskState::UpToDate && state.pdsk == DiskState::UpToDate
            })
        });
        world.primary(0);
    }

    /// Gives the command `connect`, which is answered at once.
    pub fn connect(&mut self, node: usize, net: &NetOptions) {
        self.ok(
            node,
            Command::Connect {
                net: net.clone(),
                discard_my_data: false,
                tentative: false,
            },
        );
    }

    /// Promotes a node.
    pub fn primary(&mut self, node: usize) {
        self.ok(
            node,
            Command::Primary {
                volume: VOLUME,
                force: Force::No,
            },
        );
        assert_eq!(self.state(node).role, Role::Primary);
    }

    /// The state of a node's volume.
    pub fn state(&self, node: usize) -> State {
        self.nodes[node].resource.status().volumes[0].state
    }

    /// Its four UUIDs.
    pub fn uuids(&self, node: usize) -> [u64; 4] {
        self.nodes[node].resource.status().volumes[0].uuids.unwrap()
    }

    /// Its KiB out of sync.
    pub fn out_of_sync(&self, node: usize) -> u64 {
        let status = self.nodes[node].resource.status();
        status.volumes[0].counters.out_of_sync_kib
    }

    /// From now on effects that match are not carried out until [`World::release`].
    pub fn hold(&mut self, node: usize, matcher: impl FnMut(&Effect) -> bool + 'static) {
        self.nodes[node].hold = Some(Box::new(matcher));
    }

    /// Effects held back.
    pub fn held(&self, node: usize) -> usize {
        self.nodes[node].held.len()
    }

    /// Changes what is held back.
    pub fn change_held(&mut self, node: usize, change: impl FnMut(&mut Effect)) {
        self.nodes[node].held.iter_mut().for_each(change);
    }

    /// Carries out what was held back, and holds back nothing any more.
    pub fn release(&mut self, node: usize) {
        self.nodes[node].hold = None;
        for effect in std::mem::take(&mut self.nodes[node].held) {
            self.perform(node, effect);
        }
        self.settle();
    }

    /// Carries out the oldest effect that was held back, and goes on holding.
    pub fn release_oldest(&mut self, node: usize) {
        let effect = self.nodes[node].held.remove(0);
        self.perform(node, effect);
        self.settle();
    }

    /// All nodes let go: everything that was held back happens at the same moment.
    pub fn release_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.nodes[node].hold = None;
            for effect in std::mem::take(&mut self.nodes[node].held) {
                self.perform(node, effect);
            }
        }
        self.settle();
    }

    /// From now on I/O effects that match fail.
    pub fn fail(&mut self, node: usize, matcher: impl FnMut(&Effect) -> bool + 'static) {
        self.nodes[node].fail = Some(Box::new(matcher));
    }

    /// Disks work again.
    pub fn heal_disk(&mut self, node: usize) {
        self.nodes[node].fail = None;
    }

    /// Gives a command and handles everything that follows at this moment.
    pub fn command(&mut self, node: usize, command: Command) -> CommandId {
        self.next_command += 1;
        let id = CommandId(self.next_command);
        let command = Box::new(command);
        self.event(node, Event::Command { id, command });
        id
    }

    /// Gives a command and waits (in the world's time) for its answer.
    pub fn answer(&mut self, node: usize, command: Command) -> Answer {
        let what = format!("{command:?} is answered");
        let id = self.command(node, command);
        self.run_until(&what, |world| world.nodes[node].answers.contains_key(&id));
        self.nodes[node].answers[&id].clone()
    }

    /// The same, which must succeed.
    pub fn ok(&mut self, node: usize, command: Command) {
        let words = format!("{command:?}");
        let answer = self.answer(node, command);
        assert_eq!(answer.exit, 0, "{words}: {answer:?}");
    }

    /// A client's request, as far as it goes at this moment.
    pub fn request(&mut self, node: usize, operation: Operation) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let request = Request {
            id,
            volume: VOLUME,
            operation,
        };
        self.event(node, Event::Request(request));
        id
    }

    /// A write of `length` bytes of `fill`.
    pub fn write(&mut self, node: usize, offset: u64, length: usize, fill: u8) -> RequestId {
        let data = Bytes::from(vec![fill; length]);
        let fua = Fua::No;
        self.request(node, Operation::Write { offset, data, fua })
    }

    /// The reply to a request, if it came.
    pub fn reply(&self, node: usize, id: RequestId) -> Option<&Result<Bytes, RequestError>> {
        self.nodes[node].replies.get(&id)
    }

    /// A write that must succeed, waited for.
    pub fn write_ok(&mut self, node: usize, offset: u64, length: usize, fill: u8) {
        let id = self.write(node, offset, length, fill);
        self.run_until("a write is answered", |world| {
            world.reply(node, id).is_some()
        });
        assert_eq!(self.reply(node, id), Some(&Ok(Bytes::new())));
    }

    /// A read that must succeed, waited for.
    pub fn read_ok(&mut self, node: usize, offset: u64, length: u32) -> Bytes {
        let id = self.request(node, Operation::Read { offset, length });
        self.run_until("a read is answered", |world| {
            world.reply(node, id).is_some()
        });
        self.reply(node, id).unwrap().clone().unwrap()
    }

    /// One event and everything that follows at this moment.
    pub fn event(&mut self, node: usize, event: Event) {
        self.events.push_back((node, event));
        self.settle();
    }

    /// Handles all events that are due now.
    pub fn settle(&mut self) {
        for _ in 0..EVENTS_MAX {
            let Some((node, event)) = self.events.pop_front() else {
                return;
            };
            self.handle(node, event);
        }
        panic!("the world does not come to rest: {:?}", self.nodes[0].log);
    }

    fn handle(&mut self, node: usize, event: Event) {
        let mut effects = Effects::new();
        let at = &mut self.nodes[node];
        let copy = event.clone(); // Printing all the bytes of every event would take most of the time.
        at.resource.handle(self.now, event, &mut effects);
        if let Err(what) = at
            .resource
            .check_structures()
            .and_then(|()| at.resource.check_invariants())
        {
            panic!("node {node}, after {copy:?}: {what}; log: {:#?}", at.log);
        }
        for effect in effects {
            let at = &mut self.nodes[node];
            at.history.push(effect.clone());
            if at.hold.as_mut().is_some_and(|hold| hold(&effect)) {
                at.held.push(effect);
            } else {
                self.perform(node, effect);
            }
        }
    }

    /// Lets time pass, with all timers on the way.
    pub fn advance(&mut self, length: Duration) {
        let end = self.now + length;
        for _ in 0..EVENTS_MAX {
            self.settle();
            let next = self.next_deadline();
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            self.timers();
        }
        panic!("timers do not come to rest");
    }

    fn next_deadline(&self) -> Time {
        let deadlines = self.nodes.iter().map(|node| node.resource.next_deadline());
        deadlines.flatten().min().unwrap_or(Time::NEVER)
    }

    fn timers(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node]
                .resource
                .next_deadline()
                .is_some_and(|at| at <= self.now)
            {
                self.events.push_back((node, Event::Timer));
            }
        }
        self.settle();
    }

    /// Handles events and timers until something holds; fails after two minutes of the world's time.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&World) -> bool) {
        let end = self.now + Duration::from_secs(120);
        for _ in 0..EVENTS_MAX {
            self.settle();
            if done(self) {
                return;
            }
            let next = self.next_deadline();
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            self.timers();
        }
        let states: Vec<String> = (0..self.nodes.len())
            .map(|at| self.state(at).dump())
            .collect();
        let logs: Vec<&Vec<String>> = self.nodes.iter().map(|node| &node.log).collect();
        panic!("not within two minutes: {what}; {states:#?}; {logs:#?}");
    }

    /// Cuts the network: both sockets end on both sides, and nothing gets through until [`World::join`].
    pub fn cut_network(&mut self) {
        self.cut = true;
        self.reset_all();
        self.settle();
    }

    /// The network works again.
    pub fn join(&mut self) {
        self.cut = false;
    }

    /// A node loses its power: its engine and what its disk did not flush are gone. It comes back unconfigured.
    pub fn crash(&mut self, node: usize) {
        let fresh = Node::new(node + 2, DiskOptions::default());
        let old = std::mem::replace(&mut self.nodes[node], fresh);
        self.nodes[node].disk = old.disk;
        self.nodes[node].disk.cut_power();
        self.nodes[node].data = old.data;
        self.nodes[node].meta_kind = old.meta_kind;
        if let Some(data) = &mut self.nodes[node].data {
            data.cut_power();
        }
        self.events.retain(|(at, _)| *at != node);
        let ends: Vec<SocketId> = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in ends {
            if let Some(socket) = self.sockets.remove(&id) {
                self.hang_up(socket.other);
            }
        }
        self.settle();
    }

    fn hang_up(&mut self, socket: SocketId) {
        if let Some(end) = self.sockets.remove(&socket) {
            let reason = String::from("end of stream");
            for event in end.waiting {
                self.events.push_back((end.node, event));
            }
            self.events
                .push_back((end.node, Event::Closed { socket, reason }));
        }
    }
}

impl Node {
    /// What is found when its devices are opened or measured.
    fn backing(&self) -> BackingInfo {
        let meta_bytes = self.disk.current.len() as u64;
        let data = self.data.as_ref();
        BackingInfo {
            data_bytes: data.map_or(meta_bytes, |data| data.current.len() as u64),
            meta_bytes,
            meta_kind: self.meta_kind,
            logical_block: self.logical_block,
            discard: true,
            discard_zeroes: true,
        }
    }

    /// Gives it external metadata of a megabyte and `bytes` for data.
    pub fn with_external_metadata(&mut self, bytes: u64) {
        self.meta_kind = MetaKind::FlexibleExternal;
        self.disk = Disk::metadata(1 << 20);
        self.data = Some(Disk::blank(bytes, self.disk.layout));
    }

    /// Gives it metadata in a slot of a shared device and `bytes` for data.
    pub fn with_metadata_in_a_slot(&mut self, bytes: u64) {
        self.meta_kind = MetaKind::Indexed;
        self.disk = Disk::slot();
        self.data = Some(Disk::blank(bytes, self.disk.layout));
    }

    /// The device of the data gets larger, as a logical volume would.
    pub fn grow_data(&mut self, bytes: u64) {
        if let Some(data) = &mut self.data {
            data.grow(bytes);
        }
    }

    fn new(seed: usize, options: DiskOptions) -> Node {
        let mut bytes = [0; 32];
        bytes[0] = seed as u8 + 1;
        let resource = Resource::new(ResourceOptions {
            name: String::from("r0"),
            volumes: vec![VolumeOptions {
                number: VOLUME,
                minor: 0,
                disk: options,
            }],
            seed: bytes,
        });
        Node {
            resource,
            disk: Disk::fresh(DISK_BYTES),
            data: None,
            answers: BTreeMap::new(),
            replies: BTreeMap::new(),
            log: Vec::new(),
            handlers: Vec::new(),
            handler_exit: 0,
            served: None,
            meta_kind: MetaKind::Internal,
            logical_block: 512,
            open: false,
            history: Vec::new(),
            hold: None,
            fail: None,
            held: Vec::new(),
            listening: false,
        }
    }
}

/// Options with a protocol.
pub fn protocol(protocol: Protocol) -> NetOptions {
    NetOptions {
        protocol,
        ..NetOptions::default()
    }
}

/// Flags of the superblock on stable storage.
pub fn durable_flags(world: &World, node: usize) -> Flags {
    world.nodes[node].disk.superblock().flags
}
