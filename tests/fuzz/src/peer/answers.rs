//! What a sound peer would answer to what the engine says.

use bytes::Bytes;
use tandem_protocol::auth::{HmacAlgorithm, SharedSecret};
use tandem_protocol::bitmap_code::{BitSource, BitmapSender, Compression};
use tandem_protocol::digest::DigestAlgorithm;
use tandem_protocol::features::{Capabilities, Features, TANDEM_CAPABILITIES};
use tandem_protocol::packet::{Frame, Packet};
use tandem_protocol::packets::{
    BarrierAck, BlockAck, BlockDesc, BlockId, BlockRequest, ConnectionFeatures, Data, DpFlags,
    State as StatePacket, StateChangeReply, SyncUuid, Trim, Uuids,
};
use tandem_protocol::{Socket, WireState};
use tandem_replicator::SocketId;
use tandem_replicator::state::word::{ConnState, DiskState, Role, State};

use super::{GENERATION, Stage, World};

/// The secret of both nodes.
pub(super) const SECRET: &[u8] = b"the secret of both";

/// Packets of the engine that are remembered.
const HEARD_MAX: usize = 256;

/// What the peer remembers.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// Writes of the epoch that is open.
    epoch: u32,
    /// It sent its bitmap on this connection.
    bitmap_sent: bool,
}

/// How an answer is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// As asked.
    Sound,
    /// A refusal, where there is one.
    Refusal,
}

/// Every n-th bit of a bitmap.
struct Sparse {
    bits: u64,
    every: u64,
}

impl BitSource for Sparse {
    fn bits(&self) -> u64 {
        self.bits
    }

    fn next_set(&self, from: u64) -> Option<u64> {
        Some(from.next_multiple_of(self.every)).filter(|bit| *bit < self.bits)
    }

    fn next_clear(&self, from: u64) -> Option<u64> {
        (from..self.bits).find(|bit| !bit.is_multiple_of(self.every))
    }

    fn word(&self, index: u64) -> u64 {
        let set = (0..64).filter(|bit| {
            let at = index * 64 + bit;
            at < self.bits && at.is_multiple_of(self.every)
        });
        set.fold(0, |word, bit| word | 1 << bit)
    }
}

impl World {
    /// The engine said something.
    pub(super) fn hear(&mut self, socket: SocketId, kind: Option<Socket>, frame: Frame) {
        match kind {
            Some(Socket::Data) => self.data = Some(socket),
            Some(Socket::Meta) => self.meta = Some(socket),
            None => {}
        }
        self.learn(&frame.packet);
        if matches!(frame.packet, Packet::InitialData | Packet::InitialMeta) {
            return;
        }
        if self.heard.len() == HEARD_MAX {
            self.heard.pop_front();
        }
        self.heard.push_back(frame);
    }

    /// What the grammar may repeat.
    fn learn(&mut self, packet: &Packet) {
        let id = match packet {
            Packet::ConnectionFeatures(_) => {
                self.peer = Peer::default();
                None
            }
            Packet::Protocol(protocol) => {
                self.facts.digest = DigestAlgorithm::from_name(&protocol.integrity_alg);
                self.facts.protocol = Some(protocol.clone());
                None
            }
            Packet::Uuids(set) => {
                self.facts.uuids = [set.current, set.bitmap, set.history[0], set.history[1]];
                None
            }
            Packet::Barrier(barrier) => {
                remember(&mut self.facts.barriers, barrier.barrier);
                None
            }
            Packet::Data(data) => {
                self.peer.epoch += 1;
                Some(data.block_id)
            }
            Packet::Trim(trim) | Packet::Zeroes(trim) => {
                self.peer.epoch += 1;
                Some(trim.block_id)
            }
            Packet::DataRequest(request) => Some(request.block_id),
            _ => None,
        };
        if let Some(id) = id {
            remember(&mut self.facts.block_ids, id);
        }
    }

    /// Answers one of the packets that were heard; false: there is none.
    pub(super) fn answer(&mut self, at: usize, manner: Manner) -> bool {
        let Some(frame) = at
            .checked_rem(self.heard.len())
            .and_then(|at| self.heard.remove(at))
        else {
            return false;
        };
        for packet in self.answers_to(&frame.packet, manner) {
            self.say(Frame {
                volume: frame.volume,
                packet,
            });
        }
        true
    }

    /// Answers what belongs to handshake and bitmaps until the engine is silent.
    pub(super) fn answer_handshake(&mut self) {
        for _ in 0..64 {
            let at = self
                .heard
                .iter()
                .position(|frame| of_handshake(&frame.packet));
            let Some(at) = at else {
                break;
            };
            self.answer(at, Manner::Sound);
            self.settle();
        }
    }

    fn answers_to(&mut self, packet: &Packet, manner: Manner) -> Vec<Packet> {
        match packet {
            Packet::ConnectionFeatures(_) => vec![self.features()],
            Packet::AuthChallenge(challenge) => {
                let secret = SharedSecret::new(SECRET);
                let response = HmacAlgorithm::Sha1.response(&secret, challenge);
                vec![
                    Packet::AuthChallenge(Bytes::from_static(&[0x5A; 64])),
                    Packet::AuthResponse(Bytes::copy_from_slice(response.as_ref())),
                ]
            }
            Packet::Protocol(_) | Packet::SyncParam89(_) => vec![packet.clone()],
            Packet::Sizes(sizes) => {
                let mut sizes = *sizes;
                if self.setting.stage == Stage::PeerDiskless {
                    (sizes.d_size, sizes.u_size) = (0, 0);
                }
                vec![Packet::Sizes(sizes)]
            }
            Packet::Uuids(_) if self.setting.stage == Stage::PeerDiskless => Vec::new(),
            Packet::Uuids(_) => vec![Packet::Uuids(self.uuids())],
            Packet::State(state) => vec![Packet::State(StatePacket {
                state: self.mirrored(state.state),
            })],
            Packet::Bitmap(_) | Packet::CompressedBitmap(_) => {
                self.peer.bitmap_sent = true;
                vec![packet.clone()]
            }
            Packet::StateChgReq(_) => vec![Packet::StateChgReply(reply(manner))],
            Packet::ConnStChgReq(_) => vec![Packet::ConnStChgReply(reply(manner))],
            Packet::Ping => vec![Packet::PingAck],
            _ => self.answers_to_io(packet, manner),
        }
    }

    fn answers_to_io(&mut self, packet: &Packet, manner: Manner) -> Vec<Packet> {
        let refused = manner == Manner::Refusal;
        match packet {
            Packet::Data(data) => {
                let ack = ack(data.sector, data.block_id, data.payload.len() as u32);
                write_answer(data.dp_flags, ack, refused)
            }
            Packet::Trim(trim) | Packet::Zeroes(trim) => {
                write_answer(trim.dp_flags, trim_ack(trim), refused)
            }
            Packet::Barrier(barrier) => {
                let set_size = std::mem::take(&mut self.peer.epoch);
                vec![Packet::BarrierAck(BarrierAck {
                    barrier: barrier.barrier,
                    set_size,
                })]
            }
            Packet::DataRequest(request) if refused => {
                vec![Packet::NegDreply(request_ack(request))]
            }
            Packet::DataRequest(request) => vec![Packet::DataReply(self.block(request))],
            Packet::RsDataRequest(request) | Packet::RsThinReq(request) if refused => {
                vec![Packet::NegRsDreply(request_ack(request))]
            }
            Packet::RsDataRequest(request) => vec![Packet::RsDataReply(self.block(request))],
            Packet::RsThinReq(request) => vec![Packet::RsDeallocated(BlockDesc {
                sector: request.sector,
                blksize: request.blksize,
                pad: 0,
            })],
            Packet::CsumRsRequest(hashed) if refused => {
                vec![Packet::RsDataReply(self.block(&hashed.request))]
            }
            Packet::CsumRsRequest(hashed) => {
                vec![Packet::RsIsInSync(request_ack(&hashed.request))]
            }
            Packet::RsDataReply(data) => {
                let ack = ack(data.sector, data.block_id, data.payload.len() as u32);
                vec![if refused {
                    Packet::NegAck(ack)
                } else {
                    Packet::RsWriteAck(ack)
                }]
            }
            Packet::RsDeallocated(range) => {
                let ack = ack(range.sector, [0xFF; 8], range.blksize);
                vec![if refused {
                    Packet::NegAck(ack)
                } else {
                    Packet::RsWriteAck(ack)
                }]
            }
            _ => Vec::new(),
        }
    }

    fn features(&self) -> Packet {
        let capabilities = if self.setting.kernel {
            Capabilities::NONE
        } else {
            TANDEM_CAPABILITIES
        };
        let mut features = ConnectionFeatures::own(Features::KERNEL_8_4, capabilities);
        features.protocol_max = self.setting.version;
        Packet::ConnectionFeatures(features)
    }

    fn uuids(&self) -> Uuids {
        let (current, bitmap) = match self.setting.stage {
            Stage::Target => (0x2000, GENERATION),
            _ => (GENERATION, 0),
        };
        Uuids {
            current,
            bitmap,
            history: [0x800, 0x400],
            dirty_bits: 0,
            flags: 0,
        }
    }

    /// The engine's state from the other side.
    fn mirrored(&self, word: WireState) -> WireState {
        let Ok(seen) = State::unpack(word.0) else {
            return word;
        };
        let conn = match seen.conn {
            ConnState::SyncSource => ConnState::SyncTarget,
            ConnState::SyncTarget => ConnState::SyncSource,
            ConnState::PausedSyncS => ConnState::PausedSyncT,
            ConnState::PausedSyncT => ConnState::PausedSyncS,
            ConnState::WFBitMapS => ConnState::WFBitMapT,
            ConnState::WFBitMapT => ConnState::WFBitMapS,
            ConnState::WFConnection => ConnState::WFReportParams,
            other => other,
        };
        let disk = match seen.pdsk {
            DiskState::DUnknown if self.setting.stage == Stage::PeerDiskless => DiskState::Diskless,
            DiskState::DUnknown => DiskState::UpToDate,
            known => known,
        };
        let role = if seen.peer == Role::Unknown {
            Role::Secondary
        } else {
            seen.peer
        };
        let state = State {
            role,
            peer: seen.role,
            conn,
            disk,
            pdsk: seen.disk,
            ..seen
        };
        WireState(state.pack_volume())
    }

    /// What a read or a resync asks for.
    fn block(&self, request: &BlockRequest) -> Data {
        let payload = Bytes::from(vec![0xA5; request.blksize as usize]);
        let digest = self.facts.digest.map_or_else(Bytes::new, |algorithm| {
            Bytes::copy_from_slice(algorithm.digest(&payload).as_ref())
        });
        Data {
            sector: request.sector,
            block_id: request.block_id,
            seq_num: 0,
            dp_flags: DpFlags::NONE,
            digest,
            payload,
        }
    }

    /// The peer sends its bitmap.
    pub(super) fn send_bitmap(&mut self, every: u64, compression: Compression) {
        let source = Sparse {
            bits: self.status().bytes.div_ceil(4096),
            every: every.max(1),
        };
        let mut sender = BitmapSender::new(source.bits, compression);
        while let Some(packet) = sender.next_packet(&source) {
            self.say(packet.on_volume(0));
        }
        self.settle();
    }

    /// The engine waits for a bitmap first, or for the word that its resync may start.
    pub(super) fn bring_to_resync(&mut self) {
        if self.status().state.conn == ConnState::WFBitMapT && !self.peer.bitmap_sent {
            self.peer.bitmap_sent = true;
            self.send_bitmap(700, Compression::RunLength);
            self.answer_handshake();
        }
        let uuid = self.uuids().current;
        if self.status().state.conn == ConnState::WFSyncUUID {
            self.say(Packet::SyncUuid(SyncUuid { uuid }).on_volume(0));
            self.settle();
        }
    }
}

fn of_handshake(packet: &Packet) -> bool {
    matches!(
        packet,
        Packet::ConnectionFeatures(_)
            | Packet::AuthChallenge(_)
            | Packet::AuthResponse(_)
            | Packet::Protocol(_)
            | Packet::SyncParam89(_)
            | Packet::Sizes(_)
            | Packet::Uuids(_)
            | Packet::State(_)
            | Packet::StateChgReq(_)
            | Packet::Bitmap(_)
            | Packet::CompressedBitmap(_)
            | Packet::Ping
    )
}

fn remember<T: PartialEq>(kept: &mut Vec<T>, new: T) {
    if kept.len() == 16 {
        kept.remove(0);
    }
    kept.push(new);
}

fn reply(manner: Manner) -> StateChangeReply {
    let code = if manner == Manner::Refusal { -1 } else { 1 };
    StateChangeReply { code }
}

fn ack(sector: u64, block_id: BlockId, blksize: u32) -> BlockAck {
    BlockAck {
        sector,
        block_id,
        blksize,
        seq_num: 0,
    }
}

fn trim_ack(trim: &Trim) -> BlockAck {
    ack(trim.sector, trim.block_id, trim.size)
}

fn request_ack(request: &BlockRequest) -> BlockAck {
    ack(request.sector, request.block_id, request.blksize)
}

fn write_answer(flags: DpFlags, ack: BlockAck, refused: bool) -> Vec<Packet> {
    if refused {
        vec![Packet::NegAck(ack)]
    } else if flags.contains(DpFlags::SEND_WRITE_ACK) {
        vec![Packet::WriteAck(ack)]
    } else if flags.contains(DpFlags::SEND_RECEIVE_ACK) {
        vec![Packet::RecvAck(ack)]
    } else {
        Vec::new()
    }
}
