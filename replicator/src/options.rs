//! Options of a resource, already checked and in plain units. Defaults are those of docs/spec/config-and-cli.md.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// When a write is complete (wire-protocol.md 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Protocol {
    /// Local disk and local send buffer.
    A,
    /// Local disk and the peer's memory.
    B,
    /// Both disks.
    C,
}

/// Options of the `net` section that the engine obeys.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct NetOptions {
    /// Protocol A, B or C.
    pub protocol: Protocol,
    /// Shared secret and the name of its digest (`sha1`, `sha256`, ...), if peers authenticate.
    pub secret: Option<(Vec<u8>, String)>,
    /// `timeout`: the peer must answer within this. Default 6 s.
    pub timeout: Duration,
    /// `ping-int`: idle time before a ping. Default 10 s.
    pub ping_interval: Duration,
    /// `ping-timeout`: time for its answer. Default 0.5 s.
    pub ping_timeout: Duration,
    /// `connect-int`: time between attempts to connect. Default 10 s.
    pub connect_interval: Duration,
    /// `socket-check-timeout`; zero: as `ping-timeout`.
    pub socket_check_timeout: Duration,
    /// `ko-count`: timeouts without progress before the peer is given up; 0: never. Default 7.
    pub ko_count: u32,
    /// `max-buffers`. Default 2048.
    pub max_buffers: u32,
    /// `max-epoch-size`. Default 2048.
    pub max_epoch_size: u32,
    /// `after-sb-0pri`, by its wire number (state-machine.md 5.2).
    pub after_sb_0pri: u32,
    /// `after-sb-1pri` (5.3).
    pub after_sb_1pri: u32,
    /// `after-sb-2pri` (5.4).
    pub after_sb_2pri: u32,
    /// `rr-conflict` (5.5).
    pub rr_conflict: u32,
    /// `always-asbp`.
    pub always_asbp: bool,
    /// `use-rle`: send compressed bitmaps. Default yes.
    pub use_rle: bool,
    /// `data-integrity-alg`, empty if none (must agree with the peer's).
    pub integrity_alg: String,
    /// `verify-alg`, empty if none (must agree with the peer's).
    pub verify_alg: String,
    /// `csums-alg`, empty if none (must agree with the peer's).
    pub csums_alg: String,
    /// `csums-after-crash-only`: compare checksums only after this node crashed as Primary. Default no.
    pub csums_after_crash_only: bool,
}

impl Default for NetOptions {
    fn default() -> NetOptions {
        NetOptions {
            protocol: Protocol::C,
            secret: None,
            timeout: Duration::from_secs(6),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_millis(500),
            connect_interval: Duration::from_secs(10),
            socket_check_timeout: Duration::ZERO,
            ko_count: 7,
            max_buffers: 2048,
            max_epoch_size: 2048,
            after_sb_0pri: 0,
            after_sb_1pri: 0,
            after_sb_2pri: 0,
            rr_conflict: 0,
            always_asbp: false,
            use_rle: true,
            integrity_alg: String::new(),
            verify_alg: String::new(),
            csums_alg: String::new(),
            csums_after_crash_only: false,
        }
    }
}

/// What a failed I/O of the local disk does (`on-io-error`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum OnIoError {
    /// The request is answered with the error, or by the peer; the disk stays, unless it now lacks a write that the peer's good disk has.
    PassOn,
    /// Run the handler, then detach.
    CallLocalIoError,
    /// Detach.
    Detach,
}

/// Options of the `disk` section that the engine obeys.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct DiskOptions {
    /// `on-io-error`. Default detach.
    pub on_io_error: OnIoError,
    /// `size` in bytes; 0: the whole backing device.
    pub size: u64,
    /// `al-extents`. Default 1237.
    pub al_extents: u32,
    /// `al-updates`. Default yes.
    pub al_updates: bool,
    /// `disk-flushes`: make epochs durable. Default yes.
    pub disk_flushes: bool,
    /// `md-flushes`: make metadata durable. Default yes.
    pub md_flushes: bool,
    /// `resync-rate` in KiB/s. Default 250.
    pub resync_rate: u32,
    /// `c-plan-ahead` in 0.1 s. Default 20.
    pub c_plan_ahead: u32,
    /// `c-delay-target` in 0.1 s. Default 10.
    pub c_delay_target: u32,
    /// `c-fill-target` in sectors. Default 100.
    pub c_fill_target: u32,
    /// `c-max-rate` in KiB/s. Default 102400.
    pub c_max_rate: u32,
    /// `c-min-rate` in KiB/s. Default 250.
    pub c_min_rate: u32,
    /// `rs-discard-granularity` in bytes: as the target of a resync, blocks of this size are asked for in a way that lets the source
    /// answer "all zero". Default 0: none.
    pub rs_discard_granularity: u32,
}

impl Default for DiskOptions {
    fn default() -> DiskOptions {
        DiskOptions {
            on_io_error: OnIoError::Detach,
            size: 0,
            al_extents: 1237,
            al_updates: true,
            disk_flushes: true,
            md_flushes: true,
            resync_rate: 250,
            c_plan_ahead: 20,
            c_delay_target: 10,
            c_fill_target: 100,
            c_max_rate: 102_400,
            c_min_rate: 250,
            rs_discard_granularity: 0,
        }
    }
}

/// A resource as it is created: no disk attached, StandAlone, Secondary.
#[derive(Clone, Debug)]
pub struct ResourceOptions {
    /// Its name, for log lines.
    pub name: String,
    /// Its volumes in ascending order of their numbers, with their minors and options.
    pub volumes: Vec<VolumeOptions>,
    /// Seed of the generator of data generations and challenges.
    pub seed: [u8; 32],
}

/// A volume as it is created.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct VolumeOptions {
    /// Its number in the resource.
    pub number: crate::event::VolumeNumber,
    /// Its minor number on this node, for log lines.
    pub minor: u32,
    /// Options of its disk.
    pub disk: DiskOptions,
}
