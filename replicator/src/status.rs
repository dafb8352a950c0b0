//! What a person sees of a resource: a plain copy, made on demand.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use tandem_protocol::features::Versions;

use crate::event::VolumeNumber;
use crate::options::Protocol;
use crate::state::word::{ConnState, State};

/// A resource.
#[derive(Clone, Debug)]
pub struct ResourceStatus {
    /// Its name.
    pub name: String,
    /// State of the connection as a whole (while connected: that of its least advanced volume).
    pub connection: ConnState,
    /// The agreed protocol version, while connected.
    pub version: Option<u32>,
    /// The versions that the peer speaks, while connected.
    pub peer_versions: Option<Versions>,
    /// The configured protocol letter, unless there is no network configuration.
    pub protocol: Option<Protocol>,
    /// Why the last connection ended or the last attempt failed, in words.
    pub last_error: Option<String>,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
}

/// A volume. Counters are those of `/proc/drbd` (config-and-cli.md), sizes in KiB unless said otherwise.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// Its number.
    pub number: VolumeNumber,
    /// Its minor.
    pub minor: u32,
    /// All its states.
    pub state: State,
    /// Activity-log updates are suspended.
    pub al_suspended: bool,
    /// Size of the device in bytes, 0 while unknown.
    pub bytes: u64,
    /// This node was Primary and alone when it went down, the last time before this disk was attached (config-and-cli.md 7.5).
    pub was_degraded: bool,
    /// Why there is no disk, or why it is Inconsistent, if that was an error.
    pub disk_error: Option<String>,
    /// Current, bitmap and two history generations, while attached.
    pub uuids: Option<[u64; 4]>,
    /// Clients that hold it open.
    pub open_count: u32,
    /// Write ordering: `f` flush, `d` drain, `n` none.
    pub write_order: char,
    /// Counters.
    pub counters: Counters,
    /// Progress of a resync or verify.
    pub resync: Option<ResyncStatus>,
    /// What came of the last verify since the volume was made.
    pub verified: Option<VerifiedStatus>,
}

/// Counters since the volume was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// ns: KiB sent to the peer.
    pub sent_kib: u64,
    /// nr: KiB received.
    pub received_kib: u64,
    /// dw: KiB written to the disk.
    pub disk_written_kib: u64,
    /// dr: KiB read from the disk.
    pub disk_read_kib: u64,
    /// al: writes of the activity log.
    pub al_writes: u64,
    /// bm: writes of the bitmap.
    pub bm_writes: u64,
    /// lo: open local I/O.
    pub local_count: u32,
    /// pe: requests sent and not answered by the peer.
    pub pending: u32,
    /// ua: requests of the peer not answered yet.
    pub unacked: u32,
    /// ap: application requests not answered yet.
    pub application: u32,
    /// ep: epochs.
    pub epochs: u32,
    /// oos: KiB out of sync.
    pub out_of_sync_kib: u64,
}

/// What came of an online verify (state-machine.md 6.10), in blocks of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedStatus {
    /// Blocks that were looked at.
    pub compared: u64,
    /// Blocks among them that differ.
    pub different: u64,
    /// Blocks among them that the peer did not read: nothing is known of them.
    pub skipped: u64,
    /// The sector that the next verify starts at, if it did not reach the end of the device.
    pub next_sector: Option<u64>,
}

/// Progress of a resync or verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResyncStatus {
    /// 4 KiB blocks at its start.
    pub total: u64,
    /// 4 KiB blocks left.
    pub left: u64,
    /// Blocks that failed.
    pub failed: u64,
    /// Blocks that were not sent, since their checksums were equal (`csums-alg`).
    pub same: u64,
    /// Since its start, pauses excluded.
    pub elapsed: Duration,
    /// Current rate in KiB/s.
    pub rate_kib: u64,
    /// Rate that the controller wants, in KiB/s.
    pub want_kib: u64,
}
