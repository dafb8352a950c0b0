//! [`Pair`] joins two engines by byte pipes, with disks that complete at once and hold nothing: what is left is the cost of
//! the engine, the framing and the bookkeeping. No system call is made.

#![allow(clippy::expect_used)] // A bench that cannot be set up has nothing to measure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tandem_metadata::{AlGeometry, ByteLen, Layout, Placement, Superblock, activity_log};
use tandem_replicator::black_box::Recorder;
use tandem_replicator::state::word::{ConnState, DiskState};
use tandem_replicator::{
    BackingInfo, Command, CommandId, DiskOperation, DiskOptions, Effect, Effects, Event, Force,
    Fua, MetaKind, MetaOperation, NetOptions, Operation, Protocol, Request, RequestId, Resource,
    ResourceOptions, SocketId, Time, VolumeNumber, VolumeOptions,
};

const VOLUME: VolumeNumber = VolumeNumber(0);
/// Bytes of the backing devices.
const DISK_BYTES: u64 = 256 << 20;

/// Two connected nodes, the first one Primary, both UpToDate.
pub struct Pair {
    nodes: [Resource; 2],
    /// Metadata blocks that were written, by offset.
    meta: [BTreeMap<u64, Bytes>; 2],
    now: Time,
    events: VecDeque<(usize, Event)>,
    /// Each stream's other end.
    pipes: BTreeMap<SocketId, (usize, SocketId)>,
    effects: Effects,
    next: u64,
    replies: u64,
    /// Events handled by both nodes.
    events_handled: u64,
    boxes: Option<[Recorder; 2]>,
    tape: Vec<u8>,
}

impl Pair {
    /// Makes, connects and promotes.
    ///
    /// # Panics
    /// When the nodes do not get there.
    pub fn new(protocol: Protocol) -> Pair {
        Pair::with(protocol, None)
    }

    /// As [`Pair::new`], with what the daemon does for the black boxes of both.
    ///
    /// # Panics
    /// When the nodes do not get there.
    pub fn recorded(protocol: Protocol) -> Pair {
        let boxes = [Recorder::new(&options(1)), Recorder::new(&options(2))];
        Pair::with(protocol, Some(boxes))
    }

    fn with(protocol: Protocol, boxes: Option<[Recorder; 2]>) -> Pair {
        let mut nodes = [Resource::new(options(1)), Resource::new(options(2))];
        if boxes.is_some() {
            nodes.iter_mut().for_each(Resource::record);
        }
        let mut pair = Pair {
            nodes,
            events_handled: 0,
            boxes,
            tape: Vec::new(),
            meta: [fresh_metadata(), fresh_metadata()],
            now: Time(1),
            events: VecDeque::new(),
            pipes: BTreeMap::new(),
            effects: Effects::new(),
            next: 0,
            replies: 0,
        };
        let net = NetOptions {
            protocol,
            ..NetOptions::default()
        };
        for node in 0..2 {
            pair.command(node, Command::Attach { volume: VOLUME });
        }
        for node in 0..2 {
            let net = net.clone();
            pair.command(
                node,
                Command::Connect {
                    net,
                    discard_my_data: false,
                    tentative: false,
                },
            );
        }
        pair.until(|pair| {
            pair.state(0).conn == ConnState::Connected && pair.state(1).conn == ConnState::Connected
        });
        pair.command(
            0,
            Command::NewCurrentUuid {
                volume: VOLUME,
                clear_bitmap: true,
            },
        );
        pair.until(|pair| pair.state(1).disk == DiskState::UpToDate);
        pair.command(
            0,
            Command::Primary {
                volume: VOLUME,
                force: Force::No,
            },
        );
        pair.until(|pair| {
            pair.nodes[0].status().volumes[0].state.role
                == tandem_replicator::state::word::Role::Primary
        });
        pair
    }

    /// Writes `data` at `offset` on the Primary and handles everything until it is answered.
    ///
    /// # Panics
    /// When it is never answered.
    pub fn write(&mut self, offset: u64, data: Bytes) {
        let operation = Operation::Write {
            offset,
            data,
            fua: Fua::No,
        };
        self.request(operation);
    }

    /// Reads on the Primary.
    ///
    /// # Panics
    /// When it is never answered.
    pub fn read(&mut self, offset: u64, length: u32) {
        self.request(Operation::Read { offset, length });
    }

    /// Flushes on the Primary.
    ///
    /// # Panics
    /// When it is never answered.
    pub fn flush(&mut self) {
        self.request(Operation::Flush);
    }

    /// Events that both nodes have handled so far.
    pub const fn events_handled(&self) -> u64 {
        self.events_handled
    }

    fn request(&mut self, operation: Operation) {
        self.next += 1;
        let (id, before) = (RequestId(self.next), self.replies);
        self.events.push_back((
            0,
            Event::Request(Request {
                id,
                volume: VOLUME,
                operation,
            }),
        ));
        self.settle();
        if self.replies == before {
            self.until(|pair| pair.replies > before);
        }
    }

    fn command(&mut self, node: usize, command: Command) {
        self.next += 1;
        self.events.push_back((
            node,
            Event::Command {
                id: CommandId(self.next),
                command: Box::new(command),
            },
        ));
        self.settle();
    }

    fn state(&self, node: usize) -> tandem_replicator::state::word::State {
        self.nodes[node].status().volumes[0].state
    }

    fn until(&mut self, done: impl Fn(&Pair) -> bool) {
        for _ in 0..10_000 {
            self.settle();
            if done(self) {
                return;
            }
            self.now = self.now + Duration::from_millis(10);
            for node in 0..2 {
                self.events.push_back((node, Event::Timer));
            }
        }
        panic!(
            "the pair does not get there: {} / {}",
            self.state(0).dump(),
            self.state(1).dump()
        );
    }

    fn settle(&mut self) {
        while let Some((node, event)) = self.events.pop_front() {
            self.now = self.now + Duration::from_nanos(100);
            let mut effects = core::mem::take(&mut self.effects);
            self.events_handled += 1;
            if let Some(boxes) = &mut self.boxes {
                boxes[node].happened(self.now, &event);
            }
            self.nodes[node].handle(self.now, event, &mut effects);
            if let Some(boxes) = &mut self.boxes {
                self.tape.clear();
                self.nodes[node].take_tape(&mut self.tape);
                boxes[node].done(&self.tape, &effects);
            }
            for effect in effects.drain(..) {
                self.perform(node, effect);
            }
            self.effects = effects;
        }
    }

    fn perform(&mut self, node: usize, effect: Effect) {
        let event = match effect {
            Effect::Disk {
                token, operation, ..
            } => {
                let data = match operation {
                    DiskOperation::Read { length, .. } => Bytes::from(vec![0; length as usize]),
                    _ => Bytes::new(),
                };
                Event::DiskDone {
                    token,
                    result: Ok(data),
                }
            }
            Effect::Meta {
                token, operation, ..
            } => {
                let data = self.meta_operation(node, operation);
                Event::MetaDone {
                    token,
                    result: Ok(data),
                }
            }
            Effect::Send {
                socket,
                head,
                payload,
            } => {
                self.deliver(node, socket, head, payload);
                return;
            }
            Effect::Reply { .. } => {
                self.replies += 1;
                return;
            }
            Effect::Dial { token } => {
                let (own, other) = (SocketId(self.next + 1), SocketId(self.next + 2));
                self.next += 2;
                self.pipes.insert(own, (1 - node, other));
                self.pipes.insert(other, (node, own));
                self.events
                    .push_back((1 - node, Event::Accepted { socket: other }));
                Event::Dialled {
                    token,
                    result: Ok(own),
                }
            }
            Effect::Close { socket, .. } => {
                if let Some((peer, other)) = self.pipes.remove(&socket) {
                    self.pipes.remove(&other);
                    let reason = String::from("closed by the peer");
                    self.events.push_back((
                        peer,
                        Event::Closed {
                            socket: other,
                            reason,
                        },
                    ));
                }
                Event::Closed {
                    socket,
                    reason: String::from("closed here"),
                }
            }
            Effect::OpenBacking { token, .. } | Effect::MeasureBacking { token, .. } => {
                let result = Ok(BackingInfo {
                    data_bytes: DISK_BYTES,
                    meta_bytes: DISK_BYTES,
                    meta_kind: MetaKind::Internal,
                    logical_block: 512,
                    discard: true,
                    discard_zeroes: true,
                });
                Event::BackingOpened { token, result }
            }
            Effect::CloseBacking { token, .. } => Event::BackingClosed { token },
            Effect::RunHandler { token, .. } => Event::HandlerDone { token, exit: 0 },
            _ => return,
        };
        self.events.push_back((node, event));
    }

    fn deliver(&mut self, node: usize, socket: SocketId, head: Bytes, payload: Option<Bytes>) {
        let bytes = head.len() as u64 + payload.as_ref().map_or(0, |payload| payload.len() as u64);
        if let Some((peer, other)) = self.pipes.get(&socket).copied() {
            self.events.push_back((
                peer,
                Event::Bytes {
                    socket: other,
                    bytes: head,
                },
            ));
            if let Some(payload) = payload {
                self.events.push_back((
                    peer,
                    Event::Bytes {
                        socket: other,
                        bytes: payload,
                    },
                ));
            }
        }
        self.events.push_back((node, Event::Sent { socket, bytes }));
    }

    fn meta_operation(&mut self, node: usize, operation: MetaOperation) -> Bytes {
        match operation {
            MetaOperation::Read { offset, length } => {
                let mut data = Vec::with_capacity(length as usize);
                for block in (offset..offset + u64::from(length)).step_by(4096) {
                    match self.meta[node].get(&block) {
                        Some(bytes) => data.extend_from_slice(bytes),
                        None => data.extend_from_slice(&[0; 4096]),
                    }
                }
                Bytes::from(data)
            }
            MetaOperation::Write { offset, data, .. } => {
                for start in (0..data.len()).step_by(4096) {
                    let block = data.slice(start..start + 4096);
                    self.meta[node].insert(offset + start as u64, block);
                }
                Bytes::new()
            }
            MetaOperation::Flush => Bytes::new(),
        }
    }
}

fn options(seed: u8) -> ResourceOptions {
    let volume = VolumeOptions {
        number: VOLUME,
        minor: 0,
        disk: DiskOptions::default(),
    };
    ResourceOptions {
        name: String::from("bench"),
        volumes: vec![volume],
        seed: [seed; 32],
    }
}

fn fresh_metadata() -> BTreeMap<u64, Bytes> {
    let layout = Layout::new(
        Placement::Internal,
        ByteLen(DISK_BYTES),
        AlGeometry::DEFAULT,
    )
    .expect("a device of this size has a layout");
    let mut blocks = BTreeMap::new();
    let log = activity_log::initialized_block();
    for number in 0..layout.geometry().blocks() {
        blocks.insert(
            layout.activity_log_block(number).0,
            Bytes::copy_from_slice(&log[..]),
        );
    }
    let bitmap = layout.bitmap_offset().0;
    for block in (bitmap..bitmap + layout.bitmap_len().0).step_by(4096) {
        blocks.insert(block, Bytes::from_static(&[0xFF; 4096]));
    }
    let superblock = Superblock::fresh(&layout).encode();
    blocks.insert(
        layout.superblock_offset().0,
        Bytes::copy_from_slice(&superblock[..]),
    );
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_of_each_protocol_writes_flushes_and_reads() {
        for protocol in [Protocol::A, Protocol::B, Protocol::C] {
            let mut pair = Pair::new(protocol);
            pair.write(0, Bytes::from_static(&[1; 4096]));
            pair.flush();
            pair.read(0, 4096);
            assert_eq!(pair.replies, 3);
        }
    }
}
