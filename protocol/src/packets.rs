//! One struct for each shape of packet body (wire 3.2 to 3.4).
//!
//! Integers are big-endian. [`BlockId`] and barrier numbers are opaque: they belong to the node that
//! made them, and go back as the same bytes. Pads are carried over, since kernels send garbage in
//! some; send 0.

use alloc::string::String;
use core::fmt;

use bytes::Bytes;

use crate::codec::fixed;
use crate::features::Features;
use crate::limits::NAME_BYTES_MAX;
use crate::state_word::WireState;

/// Names a block's request to the node that made it; never interpreted by the other (wire 0).
pub type BlockId = [u8; 8];

/// The block id of all resync and verify traffic (wire 10.2).
pub const BLOCK_ID_SYNCER: BlockId = [0xff; 8];
/// The block id of a [`crate::Command::OvResult`] that says "in sync": 4711.
pub const BLOCK_ID_IN_SYNC: BlockId = 4711_u64.to_be_bytes();
/// The block id of a [`crate::Command::OvResult`] that says "out of sync": 4712.
pub const BLOCK_ID_OUT_OF_SYNC: BlockId = 4712_u64.to_be_bytes();

/// P_CONNECTION_FEATURES, 72 bytes. Note the order: min, flags, max.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ConnectionFeatures {
    /// Lowest protocol version.
    pub protocol_min: u32,
    /// Features of the sender.
    pub feature_flags: Features,
    /// Highest protocol version; 0 means "same as min".
    pub protocol_max: u32,
    /// 0.
    pub pad: u32,
    /// 0 from a kernel; see [`crate::features::Capabilities`].
    pub reserved: [u64; 7],
}

/// Fixed part of P_PROTOCOL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) struct ProtocolFixed {
    pub(crate) protocol: u32,
    pub(crate) after_sb_0p: u32,
    pub(crate) after_sb_1p: u32,
    pub(crate) after_sb_2p: u32,
    pub(crate) conn_flags: u32,
    pub(crate) two_primaries: u32,
}

/// P_PROTOCOL and P_PROTOCOL_UPDATE: 24 bytes and a NUL-terminated name (wire 3.3, 4.5).
///
/// Numbers are as they came: comparing them with one's own, in the order of wire 4.5, is the
/// engine's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// 1 = A, 2 = B, 3 = C.
    pub protocol: u32,
    /// Policy number, wire 10.8.
    pub after_sb_0p: u32,
    /// Policy number, wire 10.8.
    pub after_sb_1p: u32,
    /// Policy number, wire 10.8.
    pub after_sb_2p: u32,
    /// [`Protocol::DISCARD_MY_DATA`], [`Protocol::DRY_RUN`].
    pub conn_flags: u32,
    /// 0 or 1.
    pub two_primaries: u32,
    /// Name of the data-integrity algorithm; empty: none.
    pub integrity_alg: String,
}

impl Protocol {
    /// `conn_flags`: the sender wants its changes discarded.
    pub const DISCARD_MY_DATA: u32 = 1;
    /// `conn_flags`: only find out what a connection would do.
    pub const DRY_RUN: u32 = 2;
}

/// A 64-byte field with a NUL-terminated, zero-filled algorithm name.
#[derive(Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct NameField(pub [u8; NAME_BYTES_MAX]);

impl NameField {
    /// No algorithm.
    pub const NONE: Self = Self([0; NAME_BYTES_MAX]);

    /// A field that holds `name`; `None` when it does not fit with its NUL, or holds one.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let bytes = name.as_bytes();
        if bytes.len() >= NAME_BYTES_MAX || bytes.contains(&0) {
            return None;
        }
        let mut field = [0; NAME_BYTES_MAX];
        field[..bytes.len()].copy_from_slice(bytes);
        Some(Self(field))
    }

    /// The name up to its NUL, empty for none; `None` when it has no NUL or is not text.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        let end = self.0.iter().position(|&byte| byte == 0)?;
        core::str::from_utf8(&self.0[..end]).ok()
    }
}

impl fmt::Debug for NameField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name())
    }
}

/// P_SYNC_PARAM89, always 148 bytes (wire 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct SyncParam89 {
    /// KiB/s, kernel default 250.
    pub resync_rate: u32,
    /// Hash of online verify.
    pub verify_alg: NameField,
    /// Hash of checksum-based resync.
    pub csums_alg: NameField,
    /// Tenths of a second, kernel default 20.
    pub c_plan_ahead: u32,
    /// Tenths of a second, kernel default 10.
    pub c_delay_target: u32,
    /// Sectors, kernel default 100.
    pub c_fill_target: u32,
    /// KiB/s, kernel default 102400. 0 would stop a kernel's resync.
    pub c_max_rate: u32,
}

/// Fixed part of P_SIZES that every P_SIZES has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) struct SizesFixed {
    pub(crate) d_size: u64,
    pub(crate) u_size: u64,
    pub(crate) c_size: u64,
    pub(crate) max_bio_size: u32,
    pub(crate) queue_order_type: u16,
    pub(crate) dds_flags: u16,
}

/// P_SIZES: 32 bytes, or 56 with queue limits when feature WSAME is agreed (wire 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Sectors of the sender's backing device without metadata; 0 = no disk.
    pub d_size: u64,
    /// Sectors that the administrator configured; 0 = none.
    pub u_size: u64,
    /// Sectors of the sender's device now; 0 = "please answer".
    pub c_size: u64,
    /// Bytes of the largest request.
    pub max_bio_size: u32,
    /// 0.
    pub queue_order_type: u16,
    /// [`Sizes::DDS_FORCED`], [`Sizes::DDS_NO_RESYNC`].
    pub dds_flags: u16,
    /// Present exactly when feature WSAME is agreed.
    pub limits: Option<QueueLimits>,
}

impl Sizes {
    /// `dds_flags`: forced.
    pub const DDS_FORCED: u16 = 1;
    /// `dds_flags`: no resync of new space.
    pub const DDS_NO_RESYNC: u16 = 2;
}

/// The queue limits of P_SIZES, 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct QueueLimits {
    /// Bytes.
    pub physical_block_size: u32,
    /// Bytes.
    pub logical_block_size: u32,
    /// Bytes.
    pub alignment_offset: u32,
    /// Bytes.
    pub io_min: u32,
    /// Bytes.
    pub io_opt: u32,
    /// 0 or 1.
    pub discard_enabled: u8,
    /// 0 or 1.
    pub discard_zeroes_data: u8,
    /// 0 or 1; send 0, so that no P_WSAME can arrive.
    pub write_same_capable: u8,
    /// 0.
    pub pad: u8,
}

/// P_UUIDS, 48 bytes (wire 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Uuids {
    /// Current; bit 0: the sender is Primary.
    pub current: u64,
    /// Bitmap.
    pub bitmap: u64,
    /// History, newest first.
    pub history: [u64; 2],
    /// Bits set in the sender's bitmap. Only feeds policies: do not check it.
    pub dirty_bits: u64,
    /// [`Uuids::DISCARD_MY_DATA`] and so on.
    pub flags: u64,
}

impl Uuids {
    /// The sender was started with discard-my-data.
    pub const DISCARD_MY_DATA: u64 = 1;
    /// The sender is a crashed Primary.
    pub const CRASHED_PRIMARY: u64 = 2;
    /// The disk that the sender is attaching is Inconsistent.
    pub const INCONSISTENT: u64 = 4;
    /// Skip the initial sync.
    pub const SKIP_INITIAL_SYNC: u64 = 8;
}

/// P_STATE_CHG_REQ and P_CONN_ST_CHG_REQ, 8 bytes, from the sender's point of view (wire 9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct StateChange {
    /// The parts to change.
    pub mask: WireState,
    /// Their new values.
    pub value: WireState,
}

/// P_STATE_CHG_REPLY and P_CONN_ST_CHG_REPLY, 4 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct StateChangeReply {
    /// At least 1: agreed and applied; else why not (wire 10.7).
    pub code: i32,
}

/// P_SYNC_UUID, 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct SyncUuid {
    /// What the sync target takes as its current UUID; bit 0 means nothing.
    pub uuid: u64,
}

/// P_STATE, 4 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct State {
    /// The sender's view.
    pub state: WireState,
}

/// Flags of a write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct DpFlags(pub u32);

impl DpFlags {
    /// None.
    pub const NONE: Self = Self(0);
    /// Obsolete, ignored.
    pub const HARDBARRIER: Self = Self(1);
    /// Synchronous write, a hint.
    pub const RW_SYNC: Self = Self(2);
    /// The receiver may clear the bits after writing (wire 5.6).
    pub const MAY_SET_IN_SYNC: Self = Self(4);
    /// A hint.
    pub const UNPLUG: Self = Self(8);
    /// Durable when completed.
    pub const FUA: Self = Self(16);
    /// Flush the device before this write.
    pub const FLUSH: Self = Self(32);
    /// P_TRIM: always. P_ZEROES: may deallocate.
    pub const DISCARD: Self = Self(64);
    /// Send P_RECV_ACK (protocol B).
    pub const SEND_RECEIVE_ACK: Self = Self(128);
    /// Send P_WRITE_ACK or P_RS_WRITE_ACK (protocol C, or resync).
    pub const SEND_WRITE_ACK: Self = Self(256);
    /// P_WSAME.
    pub const WSAME: Self = Self(512);
    /// P_ZEROES: always.
    pub const ZEROES: Self = Self(1024);

    /// Whether all flags of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With the flags of `other` as well.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Fixed part of data packets, 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(crate) struct DataFixed {
    pub(crate) sector: u64,
    pub(crate) block_id: BlockId,
    pub(crate) seq_num: u32,
    pub(crate) dp_flags: DpFlags,
}

/// P_DATA, P_DATA_REPLY and P_RS_DATA_REPLY: 24 bytes, digest, data (wire 3.4).
#[derive(Clone, PartialEq, Eq)]
pub struct Data {
    /// First sector.
    pub sector: u64,
    /// The sender's name of the write, or the request's.
    pub block_id: BlockId,
    /// Wire 5.7; 0 in replies.
    pub seq_num: u32,
    /// 0 in replies.
    pub dp_flags: DpFlags,
    /// Digest over the payload by the data-integrity algorithm; empty: none.
    pub digest: Bytes,
    /// The data: 512 bytes to 1 MiB, a multiple of 512.
    pub payload: Bytes,
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No user data in logs: its size only.
        f.debug_struct("Data")
            .field("sector", &self.sector)
            .field("block_id", &self.block_id)
            .field("seq_num", &self.seq_num)
            .field("dp_flags", &self.dp_flags)
            .field("digest", &self.digest)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// P_TRIM and P_ZEROES, 28 bytes: no digest, no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Trim {
    /// First sector.
    pub sector: u64,
    /// The sender's name of the request.
    pub block_id: BlockId,
    /// Wire 5.7.
    pub seq_num: u32,
    /// DISCARD; ZEROES with or without DISCARD.
    pub dp_flags: DpFlags,
    /// Bytes, up to 128 MiB, a multiple of 512.
    pub size: u32,
}

/// P_WSAME: 28 bytes, digest, one logical block that is to be repeated over `size`.
#[derive(Clone, PartialEq, Eq)]
pub struct Wsame {
    /// Where, and how far.
    pub range: Trim,
    /// Digest over the block; empty: none.
    pub digest: Bytes,
    /// One logical block.
    pub payload: Bytes,
}

impl fmt::Debug for Wsame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wsame")
            .field("range", &self.range)
            .field("digest", &self.digest)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// P_DATA_REQUEST, P_RS_DATA_REQUEST, P_RS_THIN_REQ, P_OV_REQUEST: 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct BlockRequest {
    /// First sector.
    pub sector: u64,
    /// Comes back in the answer; [`BLOCK_ID_SYNCER`] for resync and verify.
    pub block_id: BlockId,
    /// Bytes: 512 to 1 MiB, a multiple of 512.
    pub blksize: u32,
    /// Garbage from a kernel; send 0.
    pub pad: u32,
}

/// P_CSUM_RS_REQUEST and P_OV_REPLY: a request and the hash of the sender's block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashedRequest {
    /// Which block.
    pub request: BlockRequest,
    /// Its hash by csums-alg or verify-alg. That its length is the algorithm's is for the engine.
    pub digest: Bytes,
}

/// P_OUT_OF_SYNC and P_RS_DEALLOCATED, 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct BlockDesc {
    /// First sector.
    pub sector: u64,
    /// Bytes, a multiple of 512.
    pub blksize: u32,
    /// Garbage from a kernel; send 0.
    pub pad: u32,
}

/// P_BARRIER, 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Barrier {
    /// The epoch's number in the sender's byte order: opaque.
    pub barrier: [u8; 4],
    /// 0.
    pub pad: u32,
}

/// P_BARRIER_ACK, 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct BarrierAck {
    /// As it came in P_BARRIER.
    pub barrier: [u8; 4],
    /// Writes in the epoch, over all volumes (wire 5.5).
    pub set_size: u32,
}

/// The 24 bytes of all block acknowledgements: P_RECV_ACK to P_NEG_RS_DREPLY, P_OV_RESULT,
/// P_RS_IS_IN_SYNC, P_RS_CANCEL, P_RETRY_WRITE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct BlockAck {
    /// As in the acknowledged packet.
    pub sector: u64,
    /// As in the acknowledged packet; P_OV_RESULT: the verdict.
    pub block_id: BlockId,
    /// Bytes. From a kernel without a disk, a P_NEG_ACK for a P_TRIM may say 0 or garbage (wire 11.18).
    pub blksize: u32,
    /// Wire 5.7.
    pub seq_num: u32,
}

/// P_DELAY_PROBE, 8 bytes: skip it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct DelayProbe {
    /// Number.
    pub seq_num: u32,
    /// Microseconds.
    pub offset_us: u32,
}

fixed! {
    ConnectionFeatures => 72,
    ProtocolFixed => 24,
    SyncParam89 => 148,
    SizesFixed => 32,
    QueueLimits => 24,
    Uuids => 48,
    StateChange => 8,
    StateChangeReply => 4,
    SyncUuid => 8,
    State => 4,
    DataFixed => 24,
    Trim => 28,
    BlockRequest => 24,
    BlockDesc => 16,
    Barrier => 8,
    BarrierAck => 8,
    BlockAck => 24,
    DelayProbe => 8,
}
