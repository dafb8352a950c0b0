//! The packets of a capture, as one side sees them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tandem_protocol::{Frame, Framer, Packet, Socket};
use tandem_replicator::Fua;
use tandem_tests::golden::{self, Direction, Stream};

use super::Action;

/// A packet of the capture.
pub(super) struct Captured {
    pub(super) connection: u32,
    pub(super) socket: Socket,
    pub(super) ours: bool,
    pub(super) frame: Frame,
}

/// The packets of a capture in the order of time, as one side sees them.
pub(super) fn captured(scenario: &str, side: Direction) -> VecDeque<Captured> {
    let streams = golden::streams(scenario).expect("the capture's streams");
    let mut frames: BTreeMap<(u32, Direction), (Socket, VecDeque<Frame>)> = BTreeMap::new();
    for stream in &streams {
        frames.insert(
            (stream.connection, stream.direction),
            (stream.socket, decode(stream)),
        );
    }
    let mut all = VecDeque::new();
    for line in golden::listing(scenario).expect("the capture's listing") {
        let Some((socket, queue)) = frames.get_mut(&(line.connection, line.direction)) else {
            continue;
        };
        if let Some(frame) = queue.pop_front() {
            all.push_back(Captured {
                connection: line.connection,
                socket: *socket,
                ours: line.direction == side,
                frame,
            });
        }
    }
    all
}

fn decode(stream: &Stream) -> VecDeque<Frame> {
    let starts_with_first_packet =
        stream.bytes.get(4) == Some(&0xff) && matches!(stream.bytes.get(5), Some(0xf1 | 0xf2));
    let mut framer = if starts_with_first_packet {
        Framer::accepted()
    } else {
        Framer::dialled(stream.socket)
    };
    framer.push(Bytes::copy_from_slice(&stream.bytes));
    let mut frames = VecDeque::new();
    while let Some(frame) = framer.next().expect("a captured stream") {
        frames.push_back(frame);
    }
    frames
}

/// The payload of the first P_RS_DATA_REPLY of a capture.
pub fn first_resync_payload(scenario: &str) -> Vec<u8> {
    let all = captured(scenario, Direction::AToB);
    all.into_iter()
        .find_map(|at| match at.frame.packet {
            Packet::RsDataReply(data) => Some(data.payload.to_vec()),
            _ => None,
        })
        .unwrap_or_default()
}

/// The application's writes of a capture, as the kernel sent them.
pub fn writes(scenario: &str) -> Vec<Action> {
    let all = captured(scenario, Direction::AToB);
    let write = |at: Captured| match at.frame.packet {
        Packet::Data(data) => Some(Action::Write {
            offset: data.sector * 512,
            data: data.payload.to_vec(),
            fua: if data.dp_flags.0 & 16 != 0 {
                Fua::Yes
            } else {
                Fua::No
            },
        }),
        _ => None,
    };
    all.into_iter().filter_map(write).collect()
}

/// What node a sent in all resyncs of a capture, each part in its place; the rest is zero.
pub fn resynced(scenario: &str) -> Vec<u8> {
    let mut disk = Vec::new();
    for at in captured(scenario, Direction::AToB) {
        let Packet::RsDataReply(data) = at.frame.packet else {
            continue;
        };
        if at.ours {
            let start = data.sector as usize * 512;
            disk.resize(disk.len().max(start + data.payload.len()), 0);
            disk[start..start + data.payload.len()].copy_from_slice(&data.payload);
        }
    }
    disk
}
