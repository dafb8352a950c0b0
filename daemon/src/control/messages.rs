//! The words of the control socket: one JSON object a line, requests one way, responses the other.
//!
//! ```text
//! > {"id":1,"deadline_ms":30000,"call":{"verb":"primary","resource":"r0"}}
//! < {"id":1,"body":{"kind":"answer","number":1,"text":"","info":[],"hint":null,"exit":0,"volume":null}}
//! ```
//!
//! Every request gets exactly one response with its `id`; only `watch` gets many, until the client hangs up. The first
//! line that the daemon cannot read is answered with a `malformed` answer and the connection is closed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use super::outdated_net::OutdatedNet;

/// Version of every JSON document in this module. It grows when a field changes its meaning or goes away; new fields
/// do not change it.
pub const SCHEMA: u32 = 1;

/// Longest line in bytes that either side accepts: a configuration with a thousand volumes fits ten times over.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// How long the daemon works on a request that names no deadline.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);

/// Longest deadline that the daemon accepts; longer ones are cut to it (a fence-peer handler may take 600 s, and a
/// promotion runs it up to four times).
pub const DEADLINE_MAX: Duration = Duration::from_secs(3600);

/// One line from a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Chosen by the client, repeated in the response.
    pub id: u64,
    /// Milliseconds until the daemon gives up and answers with a timeout; absent: [`DEADLINE_DEFAULT`]. A `wait` without
    /// deadline waits for ever, as `wfc-timeout 0` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// What is wanted.
    pub call: Call,
}

/// What a client wants. `volume: None` means every volume of the resource, in ascending order; the first refusal ends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Call {
    /// Is anybody there? Answered with [`Body::Version`].
    Ping,
    /// Versions and places. Answered with [`Body::Version`].
    Version,
    /// Create a resource (StandAlone, Diskless, Secondary), or bring the options of an existing one up to date. Answered with an
    /// answer whose `info` holds the warnings: options that have no effect, changes that need a detach or a reconnect.
    Configure {
        /// The resource as it shall be.
        definition: Box<ResourceDefinition>,
    },
    /// The definition in force. Answered with [`Body::Definition`].
    Show {
        /// The resource.
        resource: String,
    },
    /// Attach backing devices.
    Attach {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
    },
    /// Detach them.
    Detach {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
        /// Do not wait for the peer's consent nor for I/O in flight.
        #[serde(default)]
        force: bool,
    },
    /// Connect with the net options of the definition.
    Connect {
        /// The resource.
        resource: String,
        /// If the data has split, give up this node's changes.
        #[serde(default)]
        discard_my_data: bool,
        /// Only try what would happen.
        #[serde(default)]
        tentative: bool,
    },
    /// Disconnect; ends StandAlone.
    Disconnect {
        /// The resource.
        resource: String,
        /// Do not ask the peer.
        #[serde(default)]
        force: bool,
    },
    /// Become Primary.
    Primary {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
        /// Use data that may be old or inconsistent.
        #[serde(default)]
        force: bool,
    },
    /// Become Secondary. While clients are attached it is tried again until `wait_ms` has passed: a dying process needs a moment to
    /// let go.
    Secondary {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
        /// Milliseconds to wait for clients to leave; 0: refuse at once.
        #[serde(default)]
        wait_ms: u64,
    },
    /// Give up this node's data: full sync from the peer.
    Invalidate {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
    },
    /// Give up the peer's data: full sync to the peer.
    InvalidateRemote {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
    },
    /// Mark this node's data as older than the peer's.
    Outdate {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
    },
    /// Start a new data generation.
    NewCurrentUuid {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
        /// Clear the bitmap (on a fresh pair: skip the first sync).
        #[serde(default)]
        clear_bitmap: bool,
    },
    /// Pause a resync.
    PauseSync {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
    },
    /// Let it go on.
    ResumeSync {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
    },
    /// Compare the disks of both nodes while applications go on.
    Verify {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
        /// The first sector; none: where the last verify stopped early.
        #[serde(default)]
        start: Option<u64>,
        /// The sector behind the last; none: the end of the device.
        #[serde(default)]
        stop: Option<u64>,
    },
    /// End a verify that this node started.
    VerifyStop {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
    },
    /// Hold all I/O of applications.
    SuspendIo {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
    },
    /// Let it go on.
    ResumeIo {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
    },
    /// New options of a volume's disk, replacing those of the definition.
    DiskOptions {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
        /// The whole new `disk` section.
        options: Options,
    },
    /// Secondary, disconnect, detach all, forget the resource.
    Down {
        /// The resource. One that is not known is success, as in drbdsetup.
        resource: String,
        /// End in any case.
        #[serde(default)]
        force: bool,
    },
    /// Let the device grow to what the disks of both nodes offer now.
    Resize {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
        /// Bytes that the device shall have; 0: all that both disks offer.
        #[serde(default)]
        bytes: u64,
        /// Without a connection: believe that the peer has room.
        #[serde(default)]
        assume_peer_has_space: bool,
        /// Do not copy the new area: it is the same on both nodes.
        #[serde(default)]
        assume_clean: bool,
    },
    /// The status of one resource or of all. Answered with [`Body::Status`].
    Status {
        /// One resource, or all.
        #[serde(default)]
        resource: Option<String>,
    },
    /// Wait until a condition holds. Answered with success, or after the deadline with an answer whose exit code is 5.
    Wait {
        /// The resource.
        resource: String,
        /// The volume, or all.
        #[serde(default)]
        volume: Option<u16>,
        /// The condition.
        until: WaitFor,
        /// What a node that does not try to connect means.
        #[serde(default)]
        stand_alone: StandAlone,
    },
    /// The status now and after every change, as a stream of [`Body::Status`] and [`Body::Handler`].
    Watch {
        /// One resource, or all.
        #[serde(default)]
        resource: Option<String>,
    },
    /// Run a handler of the configuration now (`drbdadm fence-peer RES`); answered with its exit code in `exit`.
    RunHandler {
        /// The resource.
        resource: String,
        /// The volume, for handlers of volumes.
        #[serde(default)]
        volume: Option<u16>,
        /// Its name, such as `fence-peer`.
        handler: String,
    },
    /// Write the last events and effects of a resource to a file, for a replay in the simulator: no user data, no secrets. Answered
    /// with where and how much in `info`.
    BlackBox {
        /// The resource.
        resource: String,
        /// A new file, as an absolute path; absent: one in the directory of black boxes.
        #[serde(default)]
        file: Option<std::path::PathBuf>,
    },
    /// Take all resources down and end the daemon.
    Shutdown,
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitFor {
    /// The connection is established (`wait-connect`). StandAlone ends it at once with exit 5.
    Connected,
    /// Connected, and no resync or verify is running or pending (`wait-sync`).
    Synced,
}

/// What a wait does with a node that does not try to connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StandAlone {
    /// It ends, with exit 5.
    #[default]
    Ends,
    /// It goes on (`wait-after-sb`): until somebody has solved the split brain.
    WaitsOn,
}

/// One line from the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// `id` of the request; 0 if it could not be read.
    pub id: u64,
    /// What is said.
    pub body: Body,
}

/// What the daemon says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Body {
    /// The result of a command, good or bad.
    Answer(CommandAnswer),
    /// Versions and places.
    Version(VersionReport),
    /// The definition in force.
    Definition(Box<ResourceDefinition>),
    /// Status.
    Status(StatusReport),
    /// A handler begins or ended (only in a watch).
    Handler(HandlerReport),
}

/// The result of a command, in drbdsetup's numbers (docs/spec/state-machine.md 2.7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandAnswer {
    /// State-change results (-21 to 4) or failures (above 100; 101 is success).
    pub number: i32,
    /// The message that belongs to the number, empty for success.
    pub text: String,
    /// Further lines: additional info, clients that hold the device open, warnings.
    #[serde(default)]
    pub info: Vec<String>,
    /// What would make it possible: a command to type.
    #[serde(default)]
    pub hint: Option<String>,
    /// Exit code of drbdsetup: 0, 5, 10, 11, 16, 17.
    pub exit: u8,
    /// The volume that refused, when the command was for several.
    #[serde(default)]
    pub volume: Option<u16>,
}

impl CommandAnswer {
    /// Success without further words (101).
    pub fn success() -> CommandAnswer {
        CommandAnswer {
            number: 101,
            text: String::new(),
            info: Vec::new(),
            hint: None,
            exit: 0,
            volume: None,
        }
    }

    /// A refusal: `number` and `text` as drbdsetup prints them.
    pub fn failure(number: i32, text: impl Into<String>, exit: u8) -> CommandAnswer {
        CommandAnswer {
            number,
            text: text.into(),
            info: Vec::new(),
            hint: None,
            exit,
            volume: None,
        }
    }

    /// With one more line of information.
    pub fn with_info(mut self, line: impl Into<String>) -> CommandAnswer {
        self.info.push(line.into());
        self
    }

    /// With a command to type.
    pub fn with_hint(mut self, hint: impl Into<String>) -> CommandAnswer {
        self.hint = Some(hint.into());
        self
    }

    /// Whether it did what was wanted.
    pub fn is_success(&self) -> bool {
        self.exit == 0
    }
}

/// Versions and places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReport {
    /// [`SCHEMA`] of the daemon.
    pub schema: u32,
    /// Version of the software.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// The run directory.
    pub run_dir: String,
    /// The NBD sockets that clients may use, as URIs without export name.
    pub nbd: Vec<String>,
}

/// A handler begins or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerReport {
    /// The resource.
    pub resource: String,
    /// The volume, for handlers of volumes.
    pub volume: Option<u16>,
    /// Its name.
    pub handler: String,
    /// Its exit code, when it has ended.
    pub exit: Option<i32>,
}

/// Options of one section, by their names in drbd.conf. Values are texts in the option's own unit: `"C"`, `"60"`, `"yes"`, as
/// docs/spec/config-and-cli.md section 2 has them after conversion of unit letters. What is absent has its default.
pub type Options = BTreeMap<String, String>;

/// A resource as this node shall run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceDefinition {
    /// Its name.
    pub name: String,
    /// The configuration file, for handlers (`DRBD_CONF`).
    #[serde(default)]
    pub config_file: Option<String>,
    /// Its volumes.
    pub volumes: Vec<VolumeDefinition>,
    /// How to reach the peer; absent: no network.
    #[serde(default)]
    pub connection: Option<ConnectionDefinition>,
    /// Options of the `net` section, `protocol` included.
    #[serde(default)]
    pub net: Options,
    /// Options of the `options` section, such as `on-no-data-accessible`.
    #[serde(default)]
    pub options: Options,
    /// Commands of the `handlers` section, by name.
    #[serde(default)]
    pub handlers: Options,
    /// Time limit of a handler in seconds (`cmd-timeout-long`, config-and-cli.md 2.1); 0: none; absent: 600.
    #[serde(default)]
    pub handler_seconds: Option<u64>,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeDefinition {
    /// Number in the resource.
    pub number: u16,
    /// Minor number on this node.
    pub minor: u32,
    /// Path of the device in the configuration, such as `/dev/drbd0`.
    #[serde(default)]
    pub device: String,
    /// The backing device or file; absent: diskless.
    #[serde(default)]
    pub disk: Option<String>,
    /// Where the metadata lies.
    #[serde(default)]
    pub meta_disk: MetaDisk,
    /// Options of the `disk` section.
    #[serde(default)]
    pub options: Options,
}

/// Where the metadata of a volume lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MetaDisk {
    /// At the end of the backing device.
    #[default]
    Internal,
    /// A device or file of its own (`flexible-meta-disk`).
    External {
        /// The device or file.
        path: String,
    },
    /// Slot `index` of 128 MiB on a device that several volumes share.
    Indexed {
        /// The device or file.
        path: String,
        /// The slot, from 0.
        index: u32,
    },
}

/// How to reach the peer. Addresses are `a.b.c.d:port` or `[v6]:port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionDefinition {
    /// This node's name in the configuration.
    pub my_name: String,
    /// The peer's name in the configuration.
    pub peer_name: String,
    /// Where this node listens, and from where it dials.
    pub my_address: std::net::SocketAddr,
    /// Where the peer listens.
    pub peer_address: std::net::SocketAddr,
    /// Node ids of this node and of the peer, if the configuration has them (for handlers).
    #[serde(default)]
    pub node_ids: Option<(u32, u32)>,
}

/// The status of some resources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The resources, by name.
    pub resources: Vec<ResourceReport>,
}

/// The status of one resource. States are words of docs/spec/config-and-cli.md section 5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceReport {
    /// Its name.
    pub name: String,
    /// Whether its loop runs; if not, why not.
    #[serde(default)]
    pub failed: Option<String>,
    /// `Primary` if any volume is.
    pub role: String,
    /// The peer's role, `Unknown` while not connected.
    pub peer_role: String,
    /// Connection state of 8.4, such as `Connected` or `SyncSource`.
    pub connection: String,
    /// The agreed protocol version, while connected.
    pub version: Option<u32>,
    /// Lowest and highest protocol version that the peer speaks, while connected.
    #[serde(default)]
    pub peer_versions: Option<[u32; 2]>,
    /// Protocol letter, unless there is no network configuration.
    pub protocol: Option<String>,
    /// Why the last connection ended or the last attempt failed.
    pub last_error: Option<String>,
    /// This node's and the peer's name and address.
    pub peer: Option<ConnectionDefinition>,
    /// Set while the connection, or the attempt at one, goes by an older definition of the network than the last one.
    #[serde(default)]
    pub outdated_net: Option<OutdatedNet>,
    /// Its volumes.
    pub volumes: Vec<VolumeReport>,
}

/// The status of one volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Number in the resource.
    pub number: u16,
    /// Minor number.
    pub minor: u32,
    /// Path of the device in the configuration.
    pub device: String,
    /// The backing device, if it has one.
    pub backing: Option<String>,
    /// `Primary` or `Secondary`.
    pub role: String,
    /// The peer's role.
    pub peer_role: String,
    /// Connection state of this volume.
    pub connection: String,
    /// State of the own disk.
    pub disk: String,
    /// State of the peer's disk.
    pub peer_disk: String,
    /// I/O suspended by the administrator.
    pub suspended_user: bool,
    /// I/O suspended for want of data.
    pub suspended_no_data: bool,
    /// I/O suspended until the peer is fenced.
    pub suspended_fencing: bool,
    /// Resync paused because of resync-after.
    pub paused_dependency: bool,
    /// Resync paused by the peer.
    pub paused_peer: bool,
    /// Resync paused by the administrator here.
    pub paused_user: bool,
    /// Activity-log updates are suspended.
    pub al_suspended: bool,
    /// This node was Primary and alone when it went down, the last time before the disk was attached.
    #[serde(default)]
    pub was_degraded: bool,
    /// Size of the device in bytes, 0 while unknown.
    pub bytes: u64,
    /// Why there is no disk, or why it is Inconsistent, if that was an error.
    #[serde(default)]
    pub disk_error: Option<String>,
    /// Current, bitmap and two history generations as 16 hexadecimal digits each, while attached.
    pub uuids: Option<[String; 4]>,
    /// Write ordering: `f` flush, `d` drain, `n` none.
    pub write_order: char,
    /// Counters of `/proc/drbd`.
    pub counters: CounterReport,
    /// Progress of a resync or verify.
    pub resync: Option<ResyncReport>,
    /// What came of the last verify since the volume was made.
    #[serde(default)]
    pub verified: Option<VerifiedReport>,
    /// Clients that hold it open: `pid 812 (qemu-img)` or an address.
    pub clients: Vec<String>,
    /// NBD URIs under which it is served now (empty unless Primary).
    pub nbd: Vec<String>,
}

/// Counters since the volume was made, named as in `/proc/drbd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterReport {
    /// KiB sent to the peer.
    pub ns: u64,
    /// KiB received.
    pub nr: u64,
    /// KiB written to the disk.
    pub dw: u64,
    /// KiB read from the disk.
    pub dr: u64,
    /// Writes of the activity log.
    pub al: u64,
    /// Writes of the bitmap.
    pub bm: u64,
    /// Open local I/O.
    pub lo: u32,
    /// Requests sent and not answered by the peer.
    pub pe: u32,
    /// Requests of the peer not answered yet.
    pub ua: u32,
    /// Application requests not answered yet.
    pub ap: u32,
    /// Epochs.
    pub ep: u32,
    /// KiB out of sync.
    pub oos: u64,
}

/// What came of an online verify, in blocks of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedReport {
    /// Blocks that were looked at.
    pub compared: u64,
    /// Blocks among them that differ.
    pub different: u64,
    /// Blocks among them that the peer did not read: nothing is known of them.
    pub skipped: u64,
    /// The sector that the next verify starts at, if it did not reach the end of the device.
    pub next_sector: Option<u64>,
}

/// Progress of a resync or verify, in blocks of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResyncReport {
    /// Blocks at its start.
    pub total: u64,
    /// Blocks left.
    pub left: u64,
    /// Blocks that failed.
    pub failed: u64,
    /// Blocks that were not sent, since their checksums were equal (`csums-alg`).
    #[serde(default)]
    pub same: u64,
    /// Percent done, two decimals.
    pub percent: f64,
    /// Milliseconds since its start, pauses excluded.
    pub elapsed_ms: u64,
    /// Current rate in KiB/s.
    pub rate_kib: u64,
    /// Rate that the controller wants, in KiB/s.
    pub want_kib: u64,
    /// Seconds to go, if it moves.
    pub seconds_left: Option<u64>,
}
