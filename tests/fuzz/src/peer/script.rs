//! An input as a script: a cursor that never fails, and the grammar of packets.
//!
//! Numbers come from small sets that mean something to the engine more often than from all there are: an input gets past the
//! first check, and a changed byte is another packet and not another refusal.

use bytes::Bytes;
use tandem_protocol::features::{Features, TANDEM_CAPABILITIES};
use tandem_protocol::packet::{Frame, Packet};
use tandem_protocol::packets::{
    BLOCK_ID_IN_SYNC, BLOCK_ID_OUT_OF_SYNC, BLOCK_ID_SYNCER, Barrier, BarrierAck, BlockAck,
    BlockDesc, BlockId, BlockRequest, ConnectionFeatures, Data, DelayProbe, DpFlags, HashedRequest,
    NameField, Protocol, QueueLimits, Sizes, State, StateChange, StateChangeReply, SyncParam89,
    SyncUuid, Trim, Uuids, Wsame,
};
use tandem_protocol::{Command, WireState};

/// What the grammar takes from the world.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Sectors of the device.
    pub(super) sectors: u64,
    /// Block ids that the engine used last.
    pub(super) block_ids: Vec<BlockId>,
    /// Barrier numbers that the engine used last.
    pub(super) barriers: Vec<[u8; 4]>,
    /// The engine's generations.
    pub(super) uuids: [u64; 4],
    /// The engine's own P_PROTOCOL.
    pub(super) protocol: Option<Protocol>,
    /// The digest of data packets is this long.
    pub(super) digest: Option<tandem_protocol::digest::DigestAlgorithm>,
}

/// The rest of an input. Past its end everything is 0.
#[derive(Debug)]
pub(super) struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    pub(super) fn new(input: &'a [u8]) -> Script<'a> {
        Script { rest: input }
    }

    pub(super) fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn take(&mut self, count: usize) -> &'a [u8] {
        let (now, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        now
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Whether one of `in_how_many` bytes comes: 0 never comes by itself at the end of an input.
    pub(super) fn one_in(&mut self, in_how_many: u8) -> bool {
        self.byte() % in_how_many == in_how_many - 1
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = usize::from(self.byte());
        (!from.is_empty()).then(|| from[at % from.len()])
    }

    /// A sector, most often on the device and at the start of a block.
    pub(super) fn sector(&mut self, sectors: u64) -> u64 {
        match self.byte() % 8 {
            0..=2 => u64::from(self.byte()) * 8,
            3 => u64::from(self.byte()),
            // Extents of the activity log.
            4 => u64::from(self.byte()) * 8192,
            5 => u64::from(self.u16()) * 8,
            6 => (sectors + 8).saturating_sub(u64::from(self.byte())),
            _ => self.u64(),
        }
    }

    /// Bytes of a request.
    pub(super) fn size(&mut self) -> u32 {
        match self.byte() % 8 {
            0..=2 => 4096,
            3 => u32::from(self.byte()) * 512,
            4 => u32::from(self.byte()) * 4096,
            5 => 1 << 20,
            6 => 1 << 27,
            _ => self.u32(),
        }
    }

    fn block_id(&mut self, facts: &Facts) -> BlockId {
        match self.byte() % 8 {
            0 | 1 => BLOCK_ID_SYNCER,
            2..=5 => self.pick(&facts.block_ids).unwrap_or(BLOCK_ID_SYNCER),
            6 => self
                .pick(&[BLOCK_ID_IN_SYNC, BLOCK_ID_OUT_OF_SYNC])
                .unwrap_or_default(),
            _ => self.u64().to_be_bytes(),
        }
    }

    fn uuid(&mut self, facts: &Facts) -> u64 {
        match self.byte() % 8 {
            0..=2 => self.pick(&facts.uuids).unwrap_or_default() ^ u64::from(self.byte() & 1),
            3 => 0,
            // Just created.
            4 => 4,
            5 => 0x2000 + u64::from(self.byte()),
            6 => super::GENERATION + u64::from(self.byte()),
            _ => self.u64(),
        }
    }

    fn flags(&mut self) -> DpFlags {
        let usual = [
            DpFlags::SEND_WRITE_ACK,
            DpFlags::SEND_RECEIVE_ACK,
            DpFlags::SEND_WRITE_ACK.with(DpFlags::FUA),
            DpFlags::SEND_WRITE_ACK.with(DpFlags::FLUSH),
            DpFlags::SEND_WRITE_ACK.with(DpFlags::MAY_SET_IN_SYNC),
            DpFlags::SEND_WRITE_ACK.with(DpFlags::DISCARD),
            DpFlags::NONE,
        ];
        match self.byte() % 8 {
            at @ 0..=6 => usual[usize::from(at)],
            _ => DpFlags(self.u32()),
        }
    }

    /// A state word whose numbers mean something, or any.
    pub(super) fn state(&mut self) -> WireState {
        if self.one_in(16) {
            return WireState(self.u32());
        }
        WireState::default()
            .with_role(self.byte() % 3)
            .with_peer(self.byte() % 3)
            .with_conn(self.byte() % 24)
            .with_disk(self.byte() % 9)
            .with_pdsk(self.byte() % 9)
            .with_peer_isp(u8::from(self.one_in(8)))
            .with_user_isp(u8::from(self.one_in(8)))
            .with_aftr_isp(u8::from(self.one_in(8)))
    }

    /// A request to change a state: one part of the word, or any.
    fn change(&mut self) -> StateChange {
        let (mask, value) = (WireState::default(), WireState::default());
        let (mask, value) = match self.byte() % 8 {
            0 => (mask.with_role(3), value.with_role(self.byte() % 3)),
            1 | 2 => (mask.with_conn(31), value.with_conn(self.byte() % 24)),
            3 => (mask.with_disk(15), value.with_disk(self.byte() % 9)),
            4 => (mask.with_pdsk(15), value.with_pdsk(self.byte() % 9)),
            5 => (
                mask.with_conn(31).with_disk(15),
                value.with_conn(self.byte() % 24).with_disk(self.byte() % 9),
            ),
            6 => (
                mask.with_conn(31).with_pdsk(15),
                value.with_conn(self.byte() % 24).with_pdsk(self.byte() % 9),
            ),
            _ => (WireState(self.u32()), WireState(self.u32())),
        };
        StateChange { mask, value }
    }

    fn name(&mut self) -> &'static str {
        self.pick(&["", "crc32c", "sha1", "md5", "unknown"])
            .unwrap_or_default()
    }

    fn digest(&mut self, facts: &Facts, payload: &[u8]) -> Bytes {
        match facts.digest {
            Some(algorithm) if !self.one_in(16) => {
                Bytes::copy_from_slice(algorithm.digest(payload).as_ref())
            }
            _ if self.one_in(16) => Bytes::copy_from_slice(self.take(4)),
            _ => Bytes::new(),
        }
    }

    fn data(&mut self, facts: &Facts) -> Data {
        let length = self.size().min(1 << 20) as usize;
        let payload = Bytes::from(vec![self.byte(); length]);
        Data {
            sector: self.sector(facts.sectors),
            block_id: self.block_id(facts),
            seq_num: u32::from(self.byte()),
            dp_flags: self.flags(),
            digest: self.digest(facts, &payload),
            payload,
        }
    }

    fn trim(&mut self, facts: &Facts) -> Trim {
        Trim {
            sector: self.sector(facts.sectors),
            block_id: self.block_id(facts),
            seq_num: u32::from(self.byte()),
            dp_flags: self.flags(),
            size: self.size(),
        }
    }

    fn request(&mut self, facts: &Facts) -> BlockRequest {
        BlockRequest {
            sector: self.sector(facts.sectors),
            block_id: self.block_id(facts),
            blksize: self.size(),
            pad: 0,
        }
    }

    fn hashed(&mut self, facts: &Facts) -> HashedRequest {
        let request = self.request(facts);
        let length = usize::from(self.pick(&[4_u8, 16, 20, 1, 64]).unwrap_or(4));
        HashedRequest {
            request,
            digest: Bytes::from(vec![self.byte(); length]),
        }
    }

    fn ack(&mut self, facts: &Facts) -> BlockAck {
        BlockAck {
            sector: self.sector(facts.sectors),
            block_id: self.block_id(facts),
            blksize: self.size(),
            seq_num: u32::from(self.byte()),
        }
    }

    fn desc(&mut self, facts: &Facts) -> BlockDesc {
        BlockDesc {
            sector: self.sector(facts.sectors),
            blksize: self.size(),
            pad: 0,
        }
    }

    fn barrier(&mut self, facts: &Facts) -> [u8; 4] {
        let own = self.u16();
        let heard = if self.one_in(4) {
            None
        } else {
            self.pick(&facts.barriers)
        };
        heard.unwrap_or(u32::from(own).to_be_bytes())
    }

    fn protocol(&mut self, facts: &Facts) -> Protocol {
        let mut protocol = facts.protocol.clone().unwrap_or(Protocol {
            protocol: 3,
            after_sb_0p: 0,
            after_sb_1p: 0,
            after_sb_2p: 0,
            conn_flags: 0,
            two_primaries: 0,
            integrity_alg: String::new(),
        });
        match self.byte() % 8 {
            0 => protocol.protocol = u32::from(self.byte() % 5),
            1 => protocol.after_sb_0p = u32::from(self.byte()),
            2 => protocol.after_sb_1p = u32::from(self.byte()),
            3 => protocol.conn_flags = u32::from(self.byte()),
            4 => protocol.two_primaries = u32::from(self.byte()),
            5 => protocol.integrity_alg = self.name().to_owned(),
            _ => {}
        }
        protocol
    }

    fn features(&mut self) -> ConnectionFeatures {
        let features = Features(u32::from(self.byte()));
        let mut packet = ConnectionFeatures::own(features, TANDEM_CAPABILITIES);
        match self.byte() % 4 {
            0 => packet.reserved[1] = self.u64(),
            1 => packet.reserved[0] = self.u64(),
            2 => {
                packet.protocol_min = u32::from(self.byte());
                packet.protocol_max = u32::from(self.byte());
            }
            _ => {}
        }
        packet
    }

    fn sync_param(&mut self) -> SyncParam89 {
        let mut name = || NameField::new(self.name()).unwrap_or(NameField::NONE);
        let (verify_alg, csums_alg) = (name(), name());
        SyncParam89 {
            resync_rate: self.u32(),
            verify_alg,
            csums_alg,
            c_plan_ahead: u32::from(self.u16()),
            c_delay_target: u32::from(self.u16()),
            c_fill_target: u32::from(self.u16()),
            c_max_rate: self.u32(),
        }
    }

    fn device_size(&mut self, sectors: u64) -> u64 {
        match self.byte() % 8 {
            0..=3 => sectors,
            4 => 0,
            5 => sectors.saturating_sub(u64::from(self.byte()) * 8),
            6 => sectors + u64::from(self.byte()) * 8,
            _ => self.u64(),
        }
    }

    fn sizes(&mut self, facts: &Facts) -> Sizes {
        let limits = QueueLimits {
            physical_block_size: 4096,
            logical_block_size: 512,
            alignment_offset: 0,
            io_min: 4096,
            io_opt: 0,
            discard_enabled: 1,
            discard_zeroes_data: 1,
            write_same_capable: 0,
            pad: 0,
        };
        Sizes {
            d_size: self.device_size(facts.sectors),
            u_size: if self.one_in(4) {
                self.device_size(facts.sectors)
            } else {
                0
            },
            c_size: self.device_size(facts.sectors),
            max_bio_size: 1 << 20,
            queue_order_type: 0,
            dds_flags: u16::from(self.byte() % 4),
            limits: (!self.one_in(8)).then_some(limits),
        }
    }

    fn uuids(&mut self, facts: &Facts) -> Uuids {
        Uuids {
            current: self.uuid(facts),
            bitmap: self.uuid(facts),
            history: [self.uuid(facts), self.uuid(facts)],
            dirty_bits: u64::from(self.byte()),
            flags: u64::from(self.byte() & 15),
        }
    }

    fn bytes(&mut self) -> Bytes {
        let length = usize::from(self.byte());
        Bytes::copy_from_slice(self.take(length))
    }

    /// Any packet, for the volume most often.
    pub(super) fn frame(&mut self, facts: &Facts) -> Frame {
        let command = self.pick(Command::ALL).unwrap_or(Command::Ping);
        let volume = if self.one_in(32) {
            u16::from(self.byte())
        } else {
            0
        };
        Frame {
            volume: if command.is_connection_level() {
                0
            } else {
                volume
            },
            packet: self.packet(command, facts),
        }
    }

    fn packet(&mut self, command: Command, facts: &Facts) -> Packet {
        match command {
            Command::InitialData => Packet::InitialData,
            Command::InitialMeta => Packet::InitialMeta,
            Command::ConnectionFeatures => Packet::ConnectionFeatures(self.features()),
            Command::AuthChallenge => Packet::AuthChallenge(self.bytes()),
            Command::AuthResponse => Packet::AuthResponse(self.bytes()),
            Command::Protocol => Packet::Protocol(self.protocol(facts)),
            Command::ProtocolUpdate => Packet::ProtocolUpdate(self.protocol(facts)),
            Command::SyncParam89 => Packet::SyncParam89(self.sync_param()),
            Command::Sizes => Packet::Sizes(self.sizes(facts)),
            Command::Uuids => Packet::Uuids(self.uuids(facts)),
            Command::State => Packet::State(State {
                state: self.state(),
            }),
            Command::SyncUuid => Packet::SyncUuid(SyncUuid {
                uuid: self.uuid(facts),
            }),
            Command::StateChgReq => Packet::StateChgReq(self.change()),
            Command::ConnStChgReq => Packet::ConnStChgReq(self.change()),
            Command::StateChgReply => Packet::StateChgReply(self.reply()),
            Command::ConnStChgReply => Packet::ConnStChgReply(self.reply()),
            Command::Data => Packet::Data(self.data(facts)),
            Command::DataReply => Packet::DataReply(self.data(facts)),
            Command::RsDataReply => Packet::RsDataReply(self.data(facts)),
            Command::Trim => Packet::Trim(self.trim(facts)),
            Command::Zeroes => Packet::Zeroes(self.trim(facts)),
            Command::Wsame => Packet::Wsame(self.wsame(facts)),
            Command::Barrier => Packet::Barrier(Barrier {
                barrier: self.barrier(facts),
                pad: 0,
            }),
            Command::UnplugRemote => Packet::UnplugRemote,
            Command::DataRequest => Packet::DataRequest(self.request(facts)),
            Command::RsDataRequest => Packet::RsDataRequest(self.request(facts)),
            Command::RsThinReq => Packet::RsThinReq(self.request(facts)),
            Command::CsumRsRequest => Packet::CsumRsRequest(self.hashed(facts)),
            Command::OvRequest => Packet::OvRequest(self.request(facts)),
            Command::OvReply => Packet::OvReply(self.hashed(facts)),
            Command::OutOfSync => Packet::OutOfSync(self.desc(facts)),
            Command::RsDeallocated => Packet::RsDeallocated(self.desc(facts)),
            Command::Bitmap => Packet::Bitmap(self.bytes()),
            Command::CompressedBitmap => Packet::CompressedBitmap(self.bytes()),
            Command::DelayProbe => Packet::DelayProbe(DelayProbe {
                seq_num: 0,
                offset_us: 0,
            }),
            _ => self.answer(command, facts),
        }
    }

    /// A packet of the meta socket.
    fn answer(&mut self, command: Command, facts: &Facts) -> Packet {
        match command {
            Command::Ping => Packet::Ping,
            Command::BarrierAck => Packet::BarrierAck(BarrierAck {
                barrier: self.barrier(facts),
                set_size: u32::from(self.byte()),
            }),
            Command::RecvAck => Packet::RecvAck(self.ack(facts)),
            Command::WriteAck => Packet::WriteAck(self.ack(facts)),
            Command::RsWriteAck => Packet::RsWriteAck(self.ack(facts)),
            Command::Superseded => Packet::Superseded(self.ack(facts)),
            Command::RetryWrite => Packet::RetryWrite(self.ack(facts)),
            Command::NegAck => Packet::NegAck(self.ack(facts)),
            Command::NegDreply => Packet::NegDreply(self.ack(facts)),
            Command::NegRsDreply => Packet::NegRsDreply(self.ack(facts)),
            Command::OvResult => Packet::OvResult(self.ack(facts)),
            Command::RsIsInSync => Packet::RsIsInSync(self.ack(facts)),
            Command::RsCancel => Packet::RsCancel(self.ack(facts)),
            _ => Packet::PingAck,
        }
    }

    fn reply(&mut self) -> StateChangeReply {
        StateChangeReply {
            code: i32::from(self.byte() as i8),
        }
    }

    fn wsame(&mut self, facts: &Facts) -> Wsame {
        let range = self.trim(facts);
        let payload = Bytes::from(vec![self.byte(); 512]);
        Wsame {
            range,
            digest: self.digest(facts, &payload),
            payload,
        }
    }
}
