//! Plays one side of a capture: the engine stands in for one kernel, the capture for the other.
//!
//! The captured packets are walked in the order of their times. One of the other node's is fed to the engine; one of this
//! node's must be what the engine says next on that socket. When the engine has nothing to say, time passes (a little),
//! then the administrator's next action is taken.
//!
//! What may differ (each is left out of the comparison, or translated): opaque ids and epoch numbers, random generations
//! and challenges, P_UNPLUG_REMOTE, pings, the kernel's count of set bits, a repeated P_STATE, the size of resync requests, the order
//! of replies and acks of a resync or verify (and so their sequence numbers), which of P_BARRIER and P_UUIDS is first, and what a
//! node says of its queue in P_SIZES.

mod capture;
mod machine;
mod said;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tandem_metadata::{AlGeometry, ByteLen, Layout, Placement, Superblock, activity_log};
use tandem_protocol::auth::{HmacAlgorithm, SharedSecret};
use tandem_protocol::digest::DigestAlgorithm;
use tandem_protocol::packets::{BlockAck, Data, HashedRequest};
use tandem_protocol::{Frame, Framer, Packet, Socket};
use tandem_replicator::state::word::{ConnState, DiskState};
use tandem_replicator::{
    BackingInfo, Command, CommandId, DialError, DiskOperation, DiskOptions, Effect, Effects, Event,
    Fua, IoError, MetaKind, MetaOperation, NetOptions, Notification, OnIoError, Operation, Request,
    RequestId, Resource, ResourceOptions, SocketId, Time, Token, Unmap, VolumeNumber,
    VolumeOptions,
};
use tandem_tests::golden::Direction;

use capture::{Captured, captured};
pub use capture::{first_resync_payload, resynced, writes};
use machine::fresh_disk;

const VOLUME: VolumeNumber = VolumeNumber(0);
/// The backing disks of most captures.
const DISK_BYTES: u64 = 1064 << 10;
/// The flag of P_DATA.
const FUA: u32 = 16;
/// Time that may pass before the next action is taken.
const PATIENCE: Duration = Duration::from_millis(400);

/// What this node's administrator or application does.
#[derive(Clone, Debug)]
pub enum Action {
    /// A command; it need not be answered at once.
    Run(Box<Command>),
    /// The network options of the scenario, with or without discard-my-data.
    Connect { discard_my_data: bool },
    /// An application's write.
    Write {
        offset: u64,
        data: Vec<u8>,
        fua: Fua,
    },
    /// An application's discard, or its zeroes.
    Clear {
        offset: u64,
        length: u32,
        unmap: Unmap,
        zeroes: bool,
    },
    /// An application's read.
    Read { offset: u64, length: u32 },
    /// One that causes no packet: done before the other node tells the size of its disk.
    Unseen(Box<Action>),
    /// The actions that follow wait until the current link has ended.
    LinkEnds,
    /// The node dies with the link, and lives again with what is on its disk.
    Crash,
}

/// The disk of a node.
#[derive(Clone, Copy, Debug)]
pub struct Backing {
    pub bytes: u64,
    pub placement: Placement,
    /// Writes to this byte fail until the disk is opened anew.
    pub bad_byte: Option<u64>,
    /// KiB per second.
    pub resync_rate: u32,
    /// `rs-discard-granularity`.
    pub discard_granularity: u32,
}

impl Backing {
    /// That of most captures.
    pub const USUAL: Backing = Backing {
        bytes: DISK_BYTES,
        placement: Placement::Internal,
        bad_byte: None,
        resync_rate: 102_400,
        discard_granularity: 0,
    };
    /// As large, but the metadata lie elsewhere.
    pub const EXTERNAL: Backing = Backing {
        placement: Placement::FlexibleExternal,
        ..Backing::USUAL
    };
}

/// One side of a capture, with the engine in its place.
pub struct Player {
    scenario: &'static str,
    resource: Resource,
    backing: Backing,
    disk: Vec<u8>,
    /// How often the disk was opened.
    openings: u32,
    /// The metadata, where they are not on the disk.
    meta: Vec<u8>,
    /// Reads of the application that were answered, with their data.
    pub answered_reads: Vec<Bytes>,
    now: Time,
    net: NetOptions,
    actions: VecDeque<Action>,
    captured: VecDeque<Captured>,
    /// Streams to the engine, with what it said on them so far.
    sockets: BTreeMap<SocketId, Speaker>,
    link: BTreeMap<Socket, SocketId>,
    dials: VecDeque<Token>,
    next: u64,
    /// Captured values of this node, and the engine's in their place; bit 0 of generations left out.
    generations: BTreeMap<u64, u64>,
    ids: BTreeMap<[u8; 8], [u8; 8]>,
    barriers: BTreeMap<[u8; 4], [u8; 4]>,
    challenge: Option<Bytes>,
    last_state: Option<u32>,
    last_expected_state: Option<u32>,
    log: Vec<String>,
    compared: usize,
    /// Resync requests of the engine that were not answered yet, by sector, with their bytes.
    requested: BTreeMap<u64, u32>,
    /// Acks of the engine beyond those of the kernel, since it asks for smaller pieces.
    more_acks: u32,
}

struct Speaker {
    framer: Framer,
    said: VecDeque<Frame>,
}

impl Player {
    /// The engine in the place of node `side` of a capture, with `data` on its disk.
    pub fn new(
        scenario: &'static str,
        side: Direction,
        net: NetOptions,
        data: &[u8],
        actions: Vec<Action>,
    ) -> Player {
        Player::on(Backing::USUAL, scenario, side, net, data, actions)
    }

    /// The same with another kind of disk.
    pub fn on(
        backing: Backing,
        scenario: &'static str,
        side: Direction,
        net: NetOptions,
        data: &[u8],
        actions: Vec<Action>,
    ) -> Player {
        let (disk, meta) = fresh_disk(backing, data);
        let mut player = Player {
            scenario,
            resource: new_resource(backing),
            backing,
            disk,
            openings: 0,
            meta,
            answered_reads: Vec::new(),
            now: Time(1_000_000_000),
            net,
            actions: actions.into(),
            captured: captured(scenario, side),
            sockets: BTreeMap::new(),
            link: BTreeMap::new(),
            dials: VecDeque::new(),
            next: 0,
            generations: BTreeMap::new(),
            ids: BTreeMap::new(),
            barriers: BTreeMap::new(),
            challenge: None,
            last_state: None,
            last_expected_state: None,
            log: Vec::new(),
            compared: 0,
            requested: BTreeMap::new(),
            more_acks: 0,
        };
        player.attach_and_connect();
        player
    }

    fn attach_and_connect(&mut self) {
        self.run(Action::Run(Box::new(Command::Attach { volume: VOLUME })));
        self.run(Action::Connect {
            discard_my_data: false,
        });
    }

    /// Plays the whole capture; returns how many packets of this node were compared.
    pub fn play(&mut self) -> usize {
        let mut connection = 0;
        while let Some(next) = self.captured.pop_front() {
            if next.connection != connection && !self.is_of_link(&next, connection) {
                if matches!(self.actions.front(), Some(Action::Crash)) {
                    self.actions.pop_front();
                    self.live_again();
                } else {
                    self.end_link();
                    self.offline_actions();
                }
            }
            connection = connection.max(next.connection);
            if next.ours {
                self.expect(&next);
            } else {
                self.feed(&next);
            }
        }
        self.end_link();
        self.offline_actions();
        self.compared
    }

    /// What comes after the first such packet is not played.
    pub fn ends_with(&mut self, last: fn(&Packet) -> bool) {
        let at = self.captured.iter().position(|at| last(&at.frame.packet));
        self.captured.truncate(at.expect("the last packet") + 1);
    }

    /// The state of the volume, for the end of a test.
    pub fn state(&self) -> tandem_replicator::state::word::State {
        self.resource.status().volumes[0].state
    }

    /// The data on the disk.
    pub fn data(&self) -> &[u8] {
        &self.disk[..1 << 20]
    }

    /// All the data, where the metadata are elsewhere.
    pub fn whole_disk(&self) -> &[u8] {
        &self.disk
    }

    /// A link consists of two connections with neighbouring numbers.
    fn is_of_link(&self, next: &Captured, connection: u32) -> bool {
        connection != 0
            && next.connection.abs_diff(connection) == 1
            && !self.link.contains_key(&next.socket)
            || self.link.contains_key(&next.socket) && next.connection < connection
            || self.link.is_empty() && connection == 0
    }

    fn fail(&self, what: &str) -> ! {
        let left: Vec<&'static str> = self
            .captured
            .iter()
            .take(5)
            .map(|at| at.frame.packet.command().name())
            .collect();
        panic!(
            "{}: {what}\nafter {} packets; next in the capture: {left:?}\nlog:\n{}",
            self.scenario,
            self.compared,
            self.log.join("\n")
        );
    }

    // --- what the other node says ---

    fn feed(&mut self, captured: &Captured) {
        if matches!(captured.frame.packet, Packet::PingAck) {
            return; // The engine's own pings are answered at once.
        }
        if matches!(captured.frame.packet, Packet::Sizes(_))
            && matches!(self.actions.front(), Some(Action::Unseen(_)))
            && let Some(action) = self.actions.pop_front()
        {
            self.run(action);
        }
        if matches!(
            captured.frame.packet,
            Packet::InitialData | Packet::InitialMeta
        ) {
            self.refuse_dials();
            let id = self.new_socket(captured.socket, Framer::dialled(captured.socket));
            self.event(Event::Accepted { socket: id });
        }
        if let Packet::RsDataReply(reply) = &captured.frame.packet {
            self.feed_pieces(captured, reply);
            return;
        }
        if let Packet::RsIsInSync(ack) = &captured.frame.packet {
            let mut at = ack.sector;
            while at < ack.sector + u64::from(ack.blksize) / 512 {
                let Some(blksize) = self.requested.remove(&at) else {
                    self.fail(&format!("the engine did not ask for sector {at}"));
                };
                let sector = at;
                let piece = BlockAck {
                    sector,
                    blksize,
                    ..*ack
                };
                self.feed_packet(captured, Packet::RsIsInSync(piece));
                at += u64::from(blksize) / 512;
            }
            return;
        }
        let packet = self.translated(captured.frame.packet.clone());
        self.feed_packet(captured, packet);
    }

    /// A resync reply, cut as the engine had asked for it.
    fn feed_pieces(&mut self, captured: &Captured, reply: &Data) {
        let mut start = 0;
        while start < reply.payload.len() {
            let sector = reply.sector + start as u64 / 512;
            let Some(bytes) = self.requested.remove(&sector) else {
                self.fail(&format!("the engine did not ask for sector {sector}"));
            };
            let payload = reply.payload.slice(start..start + bytes as usize);
            let integrity = DigestAlgorithm::from_name(&self.net.integrity_alg);
            let digest = integrity.map_or_else(Bytes::new, |algorithm| {
                Bytes::copy_from_slice(algorithm.digest(&payload).as_ref())
            });
            let packet = Packet::RsDataReply(Data {
                sector,
                digest,
                payload,
                ..reply.clone()
            });
            self.feed_packet(captured, packet);
            start += bytes as usize;
        }
    }

    fn feed_packet(&mut self, captured: &Captured, packet: Packet) {
        let Some(id) = self.link.get(&captured.socket).copied() else {
            self.fail(&format!("no socket for {:?}", packet.command()));
        };
        // Until this node has said all it must before, the other one would not speak: let it.
        self.pass(Duration::from_millis(1));
        let bytes = encode(&Frame {
            volume: captured.frame.volume,
            packet,
        });
        self.event(Event::Bytes { socket: id, bytes });
    }

    fn translated(&mut self, packet: Packet) -> Packet {
        match packet {
            Packet::Uuids(mut uuids) => {
                uuids.current = self.own_generation(uuids.current);
                uuids.bitmap = self.own_generation(uuids.bitmap);
                uuids.history = uuids.history.map(|slot| self.own_generation(slot));
                Packet::Uuids(uuids)
            }
            Packet::SyncUuid(mut uuid) => {
                uuid.uuid = self.own_generation(uuid.uuid);
                Packet::SyncUuid(uuid)
            }
            Packet::WriteAck(mut ack) => {
                ack.block_id = self.own_id(ack.block_id);
                Packet::WriteAck(ack)
            }
            Packet::RecvAck(mut ack) => {
                ack.block_id = self.own_id(ack.block_id);
                Packet::RecvAck(ack)
            }
            Packet::NegAck(mut ack) => {
                ack.block_id = self.own_id(ack.block_id);
                Packet::NegAck(ack)
            }
            Packet::DataReply(mut reply) => {
                reply.block_id = self.own_id(reply.block_id);
                Packet::DataReply(reply)
            }
            Packet::BarrierAck(mut ack) => {
                ack.barrier = self
                    .barriers
                    .get(&ack.barrier)
                    .copied()
                    .unwrap_or(ack.barrier);
                Packet::BarrierAck(ack)
            }
            Packet::AuthResponse(_) => Packet::AuthResponse(self.answer_to_our_challenge()),
            other => other,
        }
    }

    fn own_generation(&mut self, captured: u64) -> u64 {
        let known = self
            .generations
            .get(&(captured & !1))
            .map(|own| own | captured & 1);
        // One that the other node made is taken as it is.
        known.unwrap_or_else(|| {
            self.generations.insert(captured & !1, captured & !1);
            captured
        })
    }

    fn own_id(&self, captured: [u8; 8]) -> [u8; 8] {
        self.ids.get(&captured).copied().unwrap_or(captured)
    }

    fn answer_to_our_challenge(&self) -> Bytes {
        let Some((secret, name)) = &self.net.secret else {
            self.fail("no secret")
        };
        let Some(challenge) = &self.challenge else {
            self.fail("no challenge was sent")
        };
        let algorithm = HmacAlgorithm::from_name(name).expect("a known digest");
        let wrong = self.scenario == "06-auth-wrong-secret";
        let secret = match (wrong, secret.as_slice()) {
            (true, b"golden secret") => &b"other secret"[..],
            (true, _) => &b"golden secret"[..],
            (false, secret) => secret,
        };
        algorithm
            .response(&SharedSecret::new(secret), challenge)
            .into()
    }

    // --- the link ---

    fn dial_as_captured(&mut self, socket: Socket) {
        for _ in 0..1000 {
            if let Some(token) = self.dials.pop_front() {
                let id = self.new_socket(socket, Framer::accepted());
                self.event(Event::Dialled {
                    token,
                    result: Ok(id),
                });
                return;
            }
            self.pass(Duration::from_millis(50));
        }
        self.fail("the engine does not dial");
    }

    fn refuse_dials(&mut self) {
        while let Some(token) = self.dials.pop_front() {
            let result = Err(DialError::Unreachable(String::from("connection refused")));
            self.event(Event::Dialled { token, result });
        }
    }

    fn new_socket(&mut self, socket: Socket, framer: Framer) -> SocketId {
        self.next += 1;
        let id = SocketId(self.next);
        self.sockets.insert(
            id,
            Speaker {
                framer,
                said: VecDeque::new(),
            },
        );
        self.link.insert(socket, id);
        id
    }

    fn end_link(&mut self) {
        self.pass(Duration::from_millis(1));
        let link = core::mem::take(&mut self.link);
        for id in link.into_values() {
            if self.sockets.remove(&id).is_some() {
                let reason = String::from("the peer closed it");
                self.event(Event::Closed { socket: id, reason });
            }
        }
        self.last_state = None;
        self.last_expected_state = None;
        self.pass(Duration::from_millis(1));
    }

    /// What was done while the nodes were apart.
    fn offline_actions(&mut self) {
        if !matches!(self.actions.front(), Some(Action::LinkEnds)) {
            return;
        }
        self.actions.pop_front();
        while self.may_act() {
            self.refuse_dials();
            if let Some(action) = self.actions.pop_front() {
                let connects = matches!(action, Action::Connect { .. });
                self.run(action);
                if connects {
                    return; // What follows belongs to the next link.
                }
            }
            self.pass(Duration::from_millis(200));
        }
    }
}

fn new_resource(backing: Backing) -> Resource {
    let volume = VolumeOptions {
        number: VOLUME,
        minor: 0,
        disk: DiskOptions {
            c_plan_ahead: 0,
            resync_rate: backing.resync_rate,
            rs_discard_granularity: backing.discard_granularity,
            on_io_error: OnIoError::Detach,
            ..DiskOptions::default()
        },
    };
    Resource::new(ResourceOptions {
        name: String::from("r0"),
        volumes: vec![volume],
        seed: [7; 32],
    })
}

fn is_left_out(packet: &Packet) -> bool {
    matches!(
        packet,
        Packet::Ping | Packet::PingAck | Packet::UnplugRemote
    )
}

fn encode(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    let payload = frame
        .encode_into(frame.packet.header_kind(), &mut out)
        .expect("a packet within the limits");
    out.extend_from_slice(&payload.unwrap_or_default());
    out.freeze()
}
