//! [`Packet`]: every packet of versions 100 and 101, typed; and [`Frame`]: a packet for a volume.

use alloc::string::String;

use bytes::{Bytes, BytesMut};

use crate::codec::{self, Fixed};
use crate::command::Command;
use crate::error::ProtocolError;
use crate::header::{Header, HeaderKind};
use crate::limits::{
    BITMAP_BYTES_MAX, CHALLENGE_BYTES, CHALLENGE_BYTES_MAX, DATA_BYTES_MAX, DIGEST_BYTES_MAX,
    NAME_BYTES_MAX, RANGE_BYTES_MAX, SECTOR_BYTES, SECTORS_MAX,
};
use crate::packets::{
    Barrier, BarrierAck, BlockAck, BlockDesc, BlockRequest, ConnectionFeatures, Data, DataFixed,
    DelayProbe, HashedRequest, Protocol, ProtocolFixed, QueueLimits, Sizes, SizesFixed, State,
    StateChange, StateChangeReply, SyncParam89, SyncUuid, Trim, Uuids, Wsame,
};

/// One packet and the volume it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Volume; 0 and without meaning for packets of the whole connection (wire 2.1).
    pub volume: u16,
    /// The packet.
    pub packet: Packet,
}

/// A frame as bytes: the head, and a payload that was not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Header, fixed part, digest and every small variable part.
    pub head: Bytes,
    /// The data, to be sent right after the head.
    pub payload: Option<Bytes>,
}

/// Every packet that a version 100 or 101 node sends. What came from a [`crate::Framer`] is well
/// formed: sizes and ranges are within the protocol's limits (the device's end is the engine's to check).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// First packet of the data socket.
    InitialData,
    /// First packet of the meta socket.
    InitialMeta,
    /// Versions and features.
    ConnectionFeatures(ConnectionFeatures),
    /// Challenge, 64 to 128 bytes.
    AuthChallenge(Bytes),
    /// HMAC of the other's challenge.
    AuthResponse(Bytes),
    /// Network parameters.
    Protocol(Protocol),
    /// Network parameters changed on a live connection.
    ProtocolUpdate(Protocol),
    /// Resync parameters.
    SyncParam89(SyncParam89),
    /// Sizes and queue limits.
    Sizes(Sizes),
    /// Data generation identifiers.
    Uuids(Uuids),
    /// State word.
    State(State),
    /// Starts the sync target.
    SyncUuid(SyncUuid),
    /// State change of one volume.
    StateChgReq(StateChange),
    /// State change of the connection.
    ConnStChgReq(StateChange),
    /// Answer to [`Packet::StateChgReq`].
    StateChgReply(StateChangeReply),
    /// Answer to [`Packet::ConnStChgReq`].
    ConnStChgReply(StateChangeReply),
    /// Replicated write.
    Data(Data),
    /// Answer to [`Packet::DataRequest`].
    DataReply(Data),
    /// Answer to a resync request.
    RsDataReply(Data),
    /// Replicated discard.
    Trim(Trim),
    /// Replicated zero-out.
    Zeroes(Trim),
    /// Write same.
    Wsame(Wsame),
    /// Closes a write epoch.
    Barrier(Barrier),
    /// Epoch complete.
    BarrierAck(BarrierAck),
    /// Hint.
    UnplugRemote,
    /// Application read.
    DataRequest(BlockRequest),
    /// Resync request.
    RsDataRequest(BlockRequest),
    /// Resync request that may be answered by [`Packet::RsDeallocated`].
    RsThinReq(BlockRequest),
    /// Checksum resync request.
    CsumRsRequest(HashedRequest),
    /// Verify: hash this block.
    OvRequest(BlockRequest),
    /// Verify: the hash.
    OvReply(HashedRequest),
    /// Verify: the verdict, in the block id.
    OvResult(BlockAck),
    /// Mark a range dirty.
    OutOfSync(BlockDesc),
    /// The block is all zero on the sync source.
    RsDeallocated(BlockDesc),
    /// Plain bitmap chunk, at most 4080 bytes; empty: the end.
    Bitmap(Bytes),
    /// Coded bitmap chunk with its encoding byte, 2 to 4080 bytes.
    CompressedBitmap(Bytes),
    /// Received (protocol B).
    RecvAck(BlockAck),
    /// Written.
    WriteAck(BlockAck),
    /// Written, and the bits cleared.
    RsWriteAck(BlockAck),
    /// Discarded, count it as done.
    Superseded(BlockAck),
    /// Issue it again.
    RetryWrite(BlockAck),
    /// Write failed.
    NegAck(BlockAck),
    /// Read failed.
    NegDreply(BlockAck),
    /// Resync or verify request failed.
    NegRsDreply(BlockAck),
    /// Checksum resync: equal.
    RsIsInSync(BlockAck),
    /// Resync request dropped.
    RsCancel(BlockAck),
    /// Are you there?
    Ping,
    /// I am here.
    PingAck,
    /// To be skipped.
    DelayProbe(DelayProbe),
}

impl Packet {
    /// Its command.
    #[must_use]
    pub const fn command(&self) -> Command {
        match self {
            Self::InitialData => Command::InitialData,
            Self::InitialMeta => Command::InitialMeta,
            Self::ConnectionFeatures(_) => Command::ConnectionFeatures,
            Self::AuthChallenge(_) => Command::AuthChallenge,
            Self::AuthResponse(_) => Command::AuthResponse,
            Self::Protocol(_) => Command::Protocol,
            Self::ProtocolUpdate(_) => Command::ProtocolUpdate,
            Self::SyncParam89(_) => Command::SyncParam89,
            Self::Sizes(_) => Command::Sizes,
            Self::Uuids(_) => Command::Uuids,
            Self::State(_) => Command::State,
            Self::SyncUuid(_) => Command::SyncUuid,
            Self::StateChgReq(_) => Command::StateChgReq,
            Self::ConnStChgReq(_) => Command::ConnStChgReq,
            Self::StateChgReply(_) => Command::StateChgReply,
            Self::ConnStChgReply(_) => Command::ConnStChgReply,
            Self::Data(_) => Command::Data,
            Self::DataReply(_) => Command::DataReply,
            Self::RsDataReply(_) => Command::RsDataReply,
            Self::Trim(_) => Command::Trim,
            Self::Zeroes(_) => Command::Zeroes,
            Self::Wsame(_) => Command::Wsame,
            Self::Barrier(_) => Command::Barrier,
            Self::BarrierAck(_) => Command::BarrierAck,
            Self::UnplugRemote => Command::UnplugRemote,
            Self::DataRequest(_) => Command::DataRequest,
            Self::RsDataRequest(_) => Command::RsDataRequest,
            Self::RsThinReq(_) => Command::RsThinReq,
            Self::CsumRsRequest(_) => Command::CsumRsRequest,
            Self::OvRequest(_) => Command::OvRequest,
            Self::OvReply(_) => Command::OvReply,
            Self::OvResult(_) => Command::OvResult,
            Self::OutOfSync(_) => Command::OutOfSync,
            Self::RsDeallocated(_) => Command::RsDeallocated,
            Self::Bitmap(_) => Command::Bitmap,
            Self::CompressedBitmap(_) => Command::CompressedBitmap,
            Self::RecvAck(_) => Command::RecvAck,
            Self::WriteAck(_) => Command::WriteAck,
            Self::RsWriteAck(_) => Command::RsWriteAck,
            Self::Superseded(_) => Command::Superseded,
            Self::RetryWrite(_) => Command::RetryWrite,
            Self::NegAck(_) => Command::NegAck,
            Self::NegDreply(_) => Command::NegDreply,
            Self::NegRsDreply(_) => Command::NegRsDreply,
            Self::RsIsInSync(_) => Command::RsIsInSync,
            Self::RsCancel(_) => Command::RsCancel,
            Self::Ping => Command::Ping,
            Self::PingAck => Command::PingAck,
            Self::DelayProbe(_) => Command::DelayProbe,
        }
    }

    /// The payload that is sent after the head without a copy, and its digest.
    #[must_use]
    pub const fn payload(&self) -> Option<&Bytes> {
        match self {
            Self::Data(data) | Self::DataReply(data) | Self::RsDataReply(data) => {
                Some(&data.payload)
            }
            Self::Wsame(wsame) => Some(&wsame.payload),
            _ => None,
        }
    }

    /// The digest that protects [`Packet::payload`]; empty: none.
    #[must_use]
    pub const fn payload_digest(&self) -> Option<&Bytes> {
        match self {
            Self::Data(data) | Self::DataReply(data) | Self::RsDataReply(data) => {
                Some(&data.digest)
            }
            Self::Wsame(wsame) => Some(&wsame.digest),
            _ => None,
        }
    }

    /// The header it is sent under towards a node that agreed on version 100 or 101 (wire 2.1).
    #[must_use]
    pub const fn header_kind(&self) -> HeaderKind {
        match self {
            Self::InitialData | Self::InitialMeta | Self::ConnectionFeatures(_) => HeaderKind::H80,
            _ => HeaderKind::H100,
        }
    }

    /// This packet for volume 0: for packets of the whole connection.
    #[must_use]
    pub const fn on_connection(self) -> Frame {
        Frame {
            volume: 0,
            packet: self,
        }
    }

    /// This packet for a volume.
    #[must_use]
    pub const fn on_volume(self, volume: u16) -> Frame {
        Frame {
            volume,
            packet: self,
        }
    }
}

impl Frame {
    /// The frame as bytes, payload apart.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::Unsendable`] when it is too long for its command or for the header, or names a
    /// volume under a header without one.
    pub fn encode(&self, kind: HeaderKind) -> Result<Encoded, ProtocolError> {
        let mut out = BytesMut::with_capacity(192);
        let payload = self.encode_into(kind, &mut out)?;
        Ok(Encoded {
            head: out.freeze(),
            payload,
        })
    }

    /// Appends the head to `out` and returns the payload that belongs right after it.
    ///
    /// # Errors
    ///
    /// As [`Frame::encode`]; `out` is then as it was.
    pub fn encode_into(
        &self,
        kind: HeaderKind,
        out: &mut BytesMut,
    ) -> Result<Option<Bytes>, ProtocolError> {
        let start = out.len();
        let command = self.packet.command();
        out.resize(start + kind.len(), 0);
        let sound = put_body(&self.packet, out);
        let payload = self
            .packet
            .payload()
            .filter(|payload| !payload.is_empty())
            .cloned();
        let body = out.len() - start - kind.len();
        let length = (body + payload.as_ref().map_or(0, Bytes::len)) as u64;
        let (min, max) = length_bounds(command, digest_len(&self.packet));
        let sendable = sound
            && (min..=max).contains(&length)
            && u32::try_from(length).is_ok_and(|length| {
                let command = command.number();
                let header = &mut out[start..start + kind.len()];
                Header {
                    volume: self.volume,
                    command,
                    length,
                }
                .write(kind, header)
            });
        if !sendable {
            out.truncate(start);
            return Err(ProtocolError::Unsendable {
                command,
                length,
                header: kind,
            });
        }
        Ok(payload)
    }
}

/// Bytes of the digest between the fixed part and the payload.
fn digest_len(packet: &Packet) -> usize {
    packet.payload_digest().map_or(0, Bytes::len)
}

/// Least and most bytes after the header (wire 2.2, 3.1), with `digest` bytes of integrity digest.
pub(crate) fn length_bounds(command: Command, digest: usize) -> (u64, u64) {
    let digest = digest as u64;
    let exactly = |length: usize| (length as u64, length as u64);
    let between = |min: usize, max: usize| (min as u64, max as u64);
    match command {
        Command::InitialData
        | Command::InitialMeta
        | Command::UnplugRemote
        | Command::Ping
        | Command::PingAck => exactly(0),
        Command::ConnectionFeatures => exactly(ConnectionFeatures::LEN),
        Command::AuthChallenge => between(CHALLENGE_BYTES, CHALLENGE_BYTES_MAX),
        Command::AuthResponse => between(1, DIGEST_BYTES_MAX),
        Command::Protocol | Command::ProtocolUpdate => {
            between(ProtocolFixed::LEN + 1, ProtocolFixed::LEN + NAME_BYTES_MAX)
        }
        Command::SyncParam89 => exactly(SyncParam89::LEN),
        Command::Sizes => between(SizesFixed::LEN, SizesFixed::LEN + QueueLimits::LEN),
        Command::Uuids => exactly(Uuids::LEN),
        Command::State => exactly(State::LEN),
        Command::SyncUuid => exactly(SyncUuid::LEN),
        Command::StateChgReq | Command::ConnStChgReq => exactly(StateChange::LEN),
        Command::StateChgReply | Command::ConnStChgReply => exactly(StateChangeReply::LEN),
        Command::Data | Command::DataReply | Command::RsDataReply => {
            let head = DataFixed::LEN as u64 + digest;
            (head + SECTOR_BYTES, head + DATA_BYTES_MAX as u64)
        }
        Command::Wsame => {
            let head = Trim::LEN as u64 + digest;
            (head + SECTOR_BYTES, head + DATA_BYTES_MAX as u64)
        }
        Command::Trim | Command::Zeroes => exactly(Trim::LEN),
        Command::Barrier => exactly(Barrier::LEN),
        Command::BarrierAck => exactly(BarrierAck::LEN),
        Command::DataRequest | Command::RsDataRequest | Command::RsThinReq | Command::OvRequest => {
            exactly(BlockRequest::LEN)
        }
        Command::CsumRsRequest | Command::OvReply => {
            between(BlockRequest::LEN + 1, BlockRequest::LEN + DIGEST_BYTES_MAX)
        }
        Command::OutOfSync | Command::RsDeallocated => exactly(BlockDesc::LEN),
        Command::Bitmap => between(0, BITMAP_BYTES_MAX),
        Command::CompressedBitmap => between(2, BITMAP_BYTES_MAX),
        Command::RecvAck
        | Command::WriteAck
        | Command::RsWriteAck
        | Command::Superseded
        | Command::RetryWrite
        | Command::NegAck
        | Command::NegDreply
        | Command::NegRsDreply
        | Command::OvResult
        | Command::RsIsInSync
        | Command::RsCancel => exactly(BlockAck::LEN),
        Command::DelayProbe => exactly(DelayProbe::LEN),
    }
}

/// Bytes after the header that come before the payload: everything, where there is none.
pub(crate) fn head_len(command: Command, length: usize, digest: usize) -> usize {
    match command {
        Command::Data | Command::DataReply | Command::RsDataReply => DataFixed::LEN + digest,
        Command::Wsame => Trim::LEN + digest,
        _ => length,
    }
}

/// Appends everything but header and payload. `false`: our bug, see [`codec::put`].
fn put_body(packet: &Packet, out: &mut BytesMut) -> bool {
    match packet {
        Packet::InitialData
        | Packet::InitialMeta
        | Packet::UnplugRemote
        | Packet::Ping
        | Packet::PingAck => true,
        Packet::ConnectionFeatures(body) => codec::put(body, out),
        Packet::AuthChallenge(bytes)
        | Packet::AuthResponse(bytes)
        | Packet::Bitmap(bytes)
        | Packet::CompressedBitmap(bytes) => {
            out.extend_from_slice(bytes);
            true
        }
        Packet::Protocol(body) | Packet::ProtocolUpdate(body) => put_protocol(body, out),
        Packet::SyncParam89(body) => codec::put(body, out),
        Packet::Sizes(body) => put_sizes(body, out),
        Packet::Uuids(body) => codec::put(body, out),
        Packet::State(body) => codec::put(body, out),
        Packet::SyncUuid(body) => codec::put(body, out),
        Packet::StateChgReq(body) | Packet::ConnStChgReq(body) => codec::put(body, out),
        Packet::StateChgReply(body) | Packet::ConnStChgReply(body) => codec::put(body, out),
        Packet::Data(body) | Packet::DataReply(body) | Packet::RsDataReply(body) => {
            let (sector, block_id) = (body.sector, body.block_id);
            let (seq_num, dp_flags) = (body.seq_num, body.dp_flags);
            let fixed = DataFixed {
                sector,
                block_id,
                seq_num,
                dp_flags,
            };
            let sound = codec::put(&fixed, out);
            out.extend_from_slice(&body.digest);
            sound && sound_payload(&body.payload, &body.digest)
        }
        Packet::Trim(body) | Packet::Zeroes(body) => codec::put(body, out),
        Packet::Wsame(body) => {
            let sound = codec::put(&body.range, out);
            out.extend_from_slice(&body.digest);
            sound && sound_payload(&body.payload, &body.digest)
        }
        Packet::Barrier(body) => codec::put(body, out),
        Packet::BarrierAck(body) => codec::put(body, out),
        Packet::DataRequest(body)
        | Packet::RsDataRequest(body)
        | Packet::RsThinReq(body)
        | Packet::OvRequest(body) => codec::put(body, out),
        Packet::CsumRsRequest(body) | Packet::OvReply(body) => {
            let sound = codec::put(&body.request, out);
            out.extend_from_slice(&body.digest);
            sound
        }
        Packet::OutOfSync(body) | Packet::RsDeallocated(body) => codec::put(body, out),
        Packet::RecvAck(body)
        | Packet::WriteAck(body)
        | Packet::RsWriteAck(body)
        | Packet::Superseded(body)
        | Packet::RetryWrite(body)
        | Packet::NegAck(body)
        | Packet::NegDreply(body)
        | Packet::NegRsDreply(body)
        | Packet::OvResult(body)
        | Packet::RsIsInSync(body)
        | Packet::RsCancel(body) => codec::put(body, out),
        Packet::DelayProbe(body) => codec::put(body, out),
    }
}

fn sound_payload(payload: &Bytes, digest: &Bytes) -> bool {
    digest.len() <= DIGEST_BYTES_MAX && (payload.len() as u64).is_multiple_of(SECTOR_BYTES)
}

fn put_protocol(body: &Protocol, out: &mut BytesMut) -> bool {
    let fixed = ProtocolFixed {
        protocol: body.protocol,
        after_sb_0p: body.after_sb_0p,
        after_sb_1p: body.after_sb_1p,
        after_sb_2p: body.after_sb_2p,
        conn_flags: body.conn_flags,
        two_primaries: body.two_primaries,
    };
    let sound = codec::put(&fixed, out) && !body.integrity_alg.contains('\0');
    out.extend_from_slice(body.integrity_alg.as_bytes());
    out.extend_from_slice(&[0]);
    sound
}

fn put_sizes(body: &Sizes, out: &mut BytesMut) -> bool {
    let fixed = SizesFixed {
        d_size: body.d_size,
        u_size: body.u_size,
        c_size: body.c_size,
        max_bio_size: body.max_bio_size,
        queue_order_type: body.queue_order_type,
        dds_flags: body.dds_flags,
    };
    let sound = codec::put(&fixed, out);
    sound
        && body
            .limits
            .as_ref()
            .is_none_or(|limits| codec::put(limits, out))
}

/// Reads a packet of which `head` holds everything but the payload (which is still to come, and is
/// `payload` bytes long). `head` has the length that [`length_bounds`] and [`head_len`] allow.
pub(crate) fn decode(
    command: Command,
    head: &Bytes,
    payload: usize,
) -> Result<Packet, ProtocolError> {
    let packet = match command {
        Command::InitialData => Packet::InitialData,
        Command::InitialMeta => Packet::InitialMeta,
        Command::UnplugRemote => Packet::UnplugRemote,
        Command::Ping => Packet::Ping,
        Command::PingAck => Packet::PingAck,
        Command::ConnectionFeatures => Packet::ConnectionFeatures(fixed(command, head)?),
        Command::AuthChallenge => Packet::AuthChallenge(head.clone()),
        Command::AuthResponse => Packet::AuthResponse(head.clone()),
        Command::Bitmap => Packet::Bitmap(head.clone()),
        Command::CompressedBitmap => Packet::CompressedBitmap(head.clone()),
        Command::Protocol => Packet::Protocol(decode_protocol(command, head)?),
        Command::ProtocolUpdate => Packet::ProtocolUpdate(decode_protocol(command, head)?),
        Command::SyncParam89 => Packet::SyncParam89(fixed(command, head)?),
        Command::Sizes => Packet::Sizes(decode_sizes(command, head)?),
        Command::Uuids => Packet::Uuids(fixed(command, head)?),
        Command::State => Packet::State(fixed(command, head)?),
        Command::SyncUuid => Packet::SyncUuid(fixed(command, head)?),
        Command::StateChgReq => Packet::StateChgReq(fixed(command, head)?),
        Command::ConnStChgReq => Packet::ConnStChgReq(fixed(command, head)?),
        Command::StateChgReply => Packet::StateChgReply(fixed(command, head)?),
        Command::ConnStChgReply => Packet::ConnStChgReply(fixed(command, head)?),
        Command::Data => Packet::Data(decode_data(command, head, payload)?),
        Command::DataReply => Packet::DataReply(decode_data(command, head, payload)?),
        Command::RsDataReply => Packet::RsDataReply(decode_data(command, head, payload)?),
        Command::Trim => Packet::Trim(decode_trim(command, head)?),
        Command::Zeroes => Packet::Zeroes(decode_trim(command, head)?),
        Command::Wsame => {
            let range = decode_trim(command, head)?;
            check_range(command, range.sector, payload as u64, DATA_BYTES_MAX as u64)?;
            let digest = head.slice(Trim::LEN..);
            Packet::Wsame(Wsame {
                range,
                digest,
                payload: Bytes::new(),
            })
        }
        Command::Barrier => Packet::Barrier(fixed(command, head)?),
        Command::BarrierAck => Packet::BarrierAck(fixed(command, head)?),
        Command::DataRequest => Packet::DataRequest(decode_request(command, head)?),
        Command::RsDataRequest => Packet::RsDataRequest(decode_request(command, head)?),
        Command::RsThinReq => Packet::RsThinReq(decode_request(command, head)?),
        Command::OvRequest => Packet::OvRequest(decode_request(command, head)?),
        Command::CsumRsRequest => Packet::CsumRsRequest(decode_hashed(command, head)?),
        Command::OvReply => Packet::OvReply(decode_hashed(command, head)?),
        Command::OutOfSync => Packet::OutOfSync(decode_desc(command, head)?),
        Command::RsDeallocated => Packet::RsDeallocated(decode_desc(command, head)?),
        Command::RecvAck => Packet::RecvAck(fixed(command, head)?),
        Command::WriteAck => Packet::WriteAck(fixed(command, head)?),
        Command::RsWriteAck => Packet::RsWriteAck(fixed(command, head)?),
        Command::Superseded => Packet::Superseded(fixed(command, head)?),
        Command::RetryWrite => Packet::RetryWrite(fixed(command, head)?),
        Command::NegAck => Packet::NegAck(fixed(command, head)?),
        Command::NegDreply => Packet::NegDreply(fixed(command, head)?),
        Command::NegRsDreply => Packet::NegRsDreply(fixed(command, head)?),
        Command::OvResult => Packet::OvResult(fixed(command, head)?),
        Command::RsIsInSync => Packet::RsIsInSync(fixed(command, head)?),
        Command::RsCancel => Packet::RsCancel(fixed(command, head)?),
        Command::DelayProbe => Packet::DelayProbe(fixed(command, head)?),
    };
    Ok(packet)
}

/// Puts the payload into a packet that [`decode`] made.
pub(crate) fn set_payload(packet: &mut Packet, bytes: Bytes) {
    match packet {
        Packet::Data(data) | Packet::DataReply(data) | Packet::RsDataReply(data) => {
            data.payload = bytes;
        }
        Packet::Wsame(wsame) => wsame.payload = bytes,
        _ => {}
    }
}

fn fixed<T: Fixed>(command: Command, head: &Bytes) -> Result<T, ProtocolError> {
    let (length, bytes) = (head.len() as u64, T::LEN as u64);
    let short = ProtocolError::BadLength {
        command,
        length,
        min: bytes,
        max: bytes,
    };
    codec::get(head).ok_or(short)
}

fn check_range(command: Command, sector: u64, bytes: u64, max: u64) -> Result<(), ProtocolError> {
    let sectors = bytes / SECTOR_BYTES;
    let ends = sector.checked_add(sectors);
    let valid = bytes > 0
        && bytes <= max
        && bytes.is_multiple_of(SECTOR_BYTES)
        && ends.is_some_and(|end| end <= SECTORS_MAX);
    if valid {
        Ok(())
    } else {
        Err(ProtocolError::BadRange {
            command,
            sector,
            bytes,
        })
    }
}

fn decode_protocol(command: Command, head: &Bytes) -> Result<Protocol, ProtocolError> {
    let f: ProtocolFixed = fixed(command, head)?;
    let name = match head[ProtocolFixed::LEN..].split_last() {
        Some((0, name)) if !name.contains(&0) => core::str::from_utf8(name).ok(),
        _ => None,
    };
    let name = name.ok_or(ProtocolError::BadName { command })?;
    Ok(Protocol {
        protocol: f.protocol,
        after_sb_0p: f.after_sb_0p,
        after_sb_1p: f.after_sb_1p,
        after_sb_2p: f.after_sb_2p,
        conn_flags: f.conn_flags,
        two_primaries: f.two_primaries,
        integrity_alg: String::from(name),
    })
}

fn decode_sizes(command: Command, head: &Bytes) -> Result<Sizes, ProtocolError> {
    let f: SizesFixed = fixed(command, head)?;
    let rest = head.slice(SizesFixed::LEN..);
    let limits = match rest.len() {
        0 => None,
        QueueLimits::LEN => Some(fixed(command, &rest)?),
        _ => {
            let (length, max) = (
                head.len() as u64,
                (SizesFixed::LEN + QueueLimits::LEN) as u64,
            );
            let min = SizesFixed::LEN as u64;
            return Err(ProtocolError::BadLength {
                command,
                length,
                min,
                max,
            });
        }
    };
    Ok(Sizes {
        d_size: f.d_size,
        u_size: f.u_size,
        c_size: f.c_size,
        max_bio_size: f.max_bio_size,
        queue_order_type: f.queue_order_type,
        dds_flags: f.dds_flags,
        limits,
    })
}

fn decode_data(command: Command, head: &Bytes, payload: usize) -> Result<Data, ProtocolError> {
    let f: DataFixed = fixed(command, head)?;
    check_range(command, f.sector, payload as u64, DATA_BYTES_MAX as u64)?;
    Ok(Data {
        sector: f.sector,
        block_id: f.block_id,
        seq_num: f.seq_num,
        dp_flags: f.dp_flags,
        digest: head.slice(DataFixed::LEN..),
        payload: Bytes::new(),
    })
}

fn decode_trim(command: Command, head: &Bytes) -> Result<Trim, ProtocolError> {
    let trim: Trim = fixed(command, head)?;
    check_range(
        command,
        trim.sector,
        u64::from(trim.size),
        u64::from(RANGE_BYTES_MAX),
    )?;
    Ok(trim)
}

fn decode_request(command: Command, head: &Bytes) -> Result<BlockRequest, ProtocolError> {
    let request: BlockRequest = fixed(command, head)?;
    let bytes = u64::from(request.blksize);
    check_range(command, request.sector, bytes, DATA_BYTES_MAX as u64)?;
    Ok(request)
}

fn decode_hashed(command: Command, head: &Bytes) -> Result<HashedRequest, ProtocolError> {
    let request = decode_request(command, head)?;
    Ok(HashedRequest {
        request,
        digest: head.slice(BlockRequest::LEN..),
    })
}

fn decode_desc(command: Command, head: &Bytes) -> Result<BlockDesc, ProtocolError> {
    let desc: BlockDesc = fixed(command, head)?;
    check_range(
        command,
        desc.sector,
        u64::from(desc.blksize),
        u64::from(RANGE_BYTES_MAX),
    )?;
    Ok(desc)
}
