//! The inherited view of one node: options with defaults, units and durations applied.
//!
//! Source: `docs/spec/config-and-cli.md` sections 1.5, 1.6 and 2.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::diagnostics::{Diagnostic, Span};
use crate::model::{Address, Device, MetaDisk, Options};
use crate::options::{self, DefaultValue, Section, Support};

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// `uname -n`, or what the caller was told to be.
    pub name: String,
    /// The IP addresses of this node, as text; they decide which `floating` section is its own.
    pub addresses: Vec<String>,
}

impl Node {
    /// A node known by its name only.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            addresses: Vec::new(),
        }
    }
}

/// One resource as one node sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedResource {
    /// Its name.
    pub name: String,
    /// Where it was defined.
    pub at: Span,
    /// The own host section's name: `hostA_hostB` for a stacked one.
    pub host: String,
    /// The index of the own host in [`crate::Resource::hosts`].
    pub host_index: usize,
    /// The lower resource, if stacked.
    pub stacked_on: Option<String>,
    /// The own node id: written, or implied by the addresses.
    pub node_id: Option<u8>,
    /// The own address; `None` only if every connection gives its own.
    pub address: Option<Address>,
    /// The volumes by ascending number.
    pub volumes: Vec<ResolvedVolume>,
    /// The peers in order of writing.
    pub peers: Vec<ResolvedPeer>,
    /// Waiting at boot.
    pub startup: StartupOptions,
    /// Resource-wide behaviour.
    pub options: ResourceOptions,
    /// The commands to run.
    pub handlers: Handlers,
    /// What was written for `startup`, `options` and `handlers`, inherited; no defaults.
    pub written: WrittenSections,
    /// Warnings of this node's view (own host found by its first label only).
    pub warnings: Vec<Diagnostic>,
}

/// What somebody wrote, inherited, without defaults.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WrittenSections {
    /// `startup`
    pub startup: Options,
    /// `options`
    pub options: Options,
    /// `handlers`
    pub handlers: Options,
}

/// One volume as one node sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedVolume {
    /// Its number.
    pub number: u16,
    /// Whether it was written without a `volume` section.
    pub implicit: bool,
    /// The device that users open.
    pub device: Device,
    /// The lower disk; `None`: diskless.
    pub disk: Option<String>,
    /// Where the metadata is.
    pub meta_disk: MetaDisk,
    /// Its options with defaults.
    pub disk_options: DiskOptions,
    /// What was written, inherited; no defaults.
    pub written: Options,
}

/// One peer as one node sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedPeer {
    /// Its host name.
    pub name: String,
    /// Its index in [`crate::Resource::hosts`].
    pub host_index: usize,
    /// Its node id: written, or implied by the addresses.
    pub node_id: Option<u8>,
    /// Address pairs, own first; at least one. Tandem uses the first.
    pub paths: Vec<PeerPath>,
    /// The options of the connection with defaults.
    pub net: NetOptions,
    /// What was written, inherited; no defaults.
    pub written: Options,
    /// `disk { }` of the connection (dialect 9).
    pub disk: Options,
    /// `volume N { disk { } }` of the connection (dialect 9).
    pub volumes: Vec<(u16, Options)>,
}

/// A pair of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPath {
    /// Of this node.
    pub local: Address,
    /// Of the peer.
    pub remote: Address,
}

/// A written value that Tandem does not fully honour.
#[derive(Debug, Clone, PartialEq)]
pub struct SupportIssue {
    /// Its section.
    pub section: Section,
    /// Its option.
    pub option: &'static str,
    /// Its value as written.
    pub value: String,
    /// Where.
    pub at: Span,
    /// Refused, or without effect, and why. Never `Supported`.
    pub support: Support,
}

impl SupportIssue {
    /// Whether the resource must not be brought up.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self.support, Support::Refused(_))
    }

    /// One sentence that names the option.
    #[must_use]
    pub fn text(&self) -> String {
        let Self {
            section,
            option,
            value,
            support,
            ..
        } = self;
        let what = format!("{} {{ {option} {value}; }}", section.keyword());
        match support {
            Support::Refused(why) => format!("{what} is refused: {why}"),
            Support::NoEffect(why) => format!("{what} has no effect: {why}"),
            Support::Supported => format!("{what} is honoured"),
        }
    }
}

impl ResolvedResource {
    /// Every written value that Tandem refuses or that has no effect, each setting once. `up` and `adjust` print all
    /// and stop if one is a refusal.
    #[must_use]
    pub fn support_issues(&self) -> Vec<SupportIssue> {
        let mut issues: Vec<SupportIssue> = Vec::new();
        let disk = self.volumes.iter().map(|v| &v.written);
        let net = self.peers.iter().map(|p| &p.written);
        let rest = [
            &self.written.startup,
            &self.written.options,
            &self.written.handlers,
        ];
        for setting in disk.chain(net).chain(rest).flatten() {
            let support = setting.spec.support_of(&setting.value);
            let known = issues
                .iter()
                .any(|i| i.at == setting.at && i.option == setting.spec.name);
            if support != Support::Supported && !known {
                issues.push(SupportIssue {
                    section: setting.spec.section,
                    option: setting.spec.name,
                    value: setting.text.clone(),
                    at: setting.at,
                    support,
                });
            }
        }
        issues.sort_by_key(|i| i.at);
        issues
    }

    /// Things about the resource as a whole that this version refuses (one peer, no stacking), as sentences.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(lower) = &self.stacked_on {
            out.push(format!(
                "stacked-on-top-of {lower} is refused: stacked resources are not supported"
            ));
        }
        if self.peers.len() > 1 {
            out.push(format!(
                "{} peers are refused: a resource of this version has one peer; keep two hosts",
                self.peers.len()
            ));
        }
        let issues = self.support_issues();
        out.extend(
            issues
                .iter()
                .filter(|i| i.is_refusal())
                .map(SupportIssue::text),
        );
        out
    }

    /// Combinations that work but hardly as meant (spec section 2, cross checks), as sentences.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        let mut out = Vec::new();
        for ResolvedPeer { name, net, .. } in &self.peers {
            if net.timeout >= net.connect_int {
                out.push(format!("peer {name}: timeout should be below connect-int"));
            }
            if net.timeout >= net.ping_int {
                out.push(format!("peer {name}: timeout should be below ping-int"));
            }
            if net.shared_secret.is_some() && net.cram_hmac_alg.is_none() {
                out.push(format!(
                    "peer {name}: shared-secret has no effect without cram-hmac-alg"
                ));
            }
            if net.cram_hmac_alg.is_some() && net.shared_secret.is_none() {
                out.push(format!("peer {name}: cram-hmac-alg needs a shared-secret"));
            }
            let both = self.startup.become_primary_on.iter().any(|h| h == "both");
            if both && !net.allow_two_primaries {
                out.push(format!(
                    "peer {name}: become-primary-on both needs allow-two-primaries"
                ));
            }
        }
        out
    }
}

/// Replication protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Complete at local disk and send buffer.
    A,
    /// Complete at the peer's memory.
    B,
    /// Complete at the peer's disk.
    C,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// The word in the configuration.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn of(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words! {
    /// `on-io-error`: what a failed request to the lower disk does.
    OnIoError {
        /// Report it to the client, go on.
        PassOn = "pass_on",
        /// Run the handler `local-io-error`.
        CallLocalIoError = "call-local-io-error",
        /// Go on without the lower disk.
        Detach = "detach",
    }
}
words! {
    /// `fencing`.
    Fencing {
        /// None.
        DontCare = "dont-care",
        /// Call the handler.
        ResourceOnly = "resource-only",
        /// Freeze I/O and call the handler.
        ResourceAndStonith = "resource-and-stonith",
    }
}
words! {
    /// `after-sb-0pri`; `discard-node-NAME` is mapped to local or remote.
    AfterSb0Pri {
        /// Disconnect.
        Disconnect = "disconnect",
        /// The younger Primary loses.
        DiscardYoungerPrimary = "discard-younger-primary",
        /// The older Primary loses.
        DiscardOlderPrimary = "discard-older-primary",
        /// Who changed nothing loses.
        DiscardZeroChanges = "discard-zero-changes",
        /// Who changed less loses.
        DiscardLeastChanges = "discard-least-changes",
        /// This node loses.
        DiscardLocal = "discard-local",
        /// The peer loses.
        DiscardRemote = "discard-remote",
    }
}
words! {
    /// `after-sb-1pri`.
    AfterSb1Pri {
        /// Disconnect.
        Disconnect = "disconnect",
        /// As 0pri if that hits the Secondary, else disconnect.
        Consensus = "consensus",
        /// As 0pri whoever it hits.
        ViolentlyAs0p = "violently-as0p",
        /// The Secondary loses.
        DiscardSecondary = "discard-secondary",
        /// As 0pri; run the handler where the Primary loses.
        CallPriLostAfterSb = "call-pri-lost-after-sb",
    }
}
words! {
    /// `after-sb-2pri`.
    AfterSb2Pri {
        /// Disconnect.
        Disconnect = "disconnect",
        /// As 0pri whoever it hits.
        ViolentlyAs0p = "violently-as0p",
        /// As 0pri; run the handler where the Primary loses.
        CallPriLostAfterSb = "call-pri-lost-after-sb",
    }
}
words! {
    /// `rr-conflict`.
    RrConflict {
        /// Disconnect.
        Disconnect = "disconnect",
        /// Overwrite the Primary.
        Violently = "violently",
        /// Run the handler `pri-lost`.
        CallPriLost = "call-pri-lost",
        /// Try again (9).
        RetryConnect = "retry-connect",
        /// Discard (9).
        AutoDiscard = "auto-discard",
    }
}
words! {
    /// `on-no-data-accessible`, `on-no-quorum`.
    OnNoData {
        /// Fail requests.
        IoError = "io-error",
        /// Hold requests.
        SuspendIo = "suspend-io",
    }
}
words! {
    /// `on-congestion`.
    OnCongestion {
        /// Wait.
        Block = "block",
        /// Go ahead of the peer.
        PullAhead = "pull-ahead",
        /// Disconnect (9).
        Disconnect = "disconnect",
    }
}

/// `net`, with defaults. Its `Debug` form is short and does not show the secret.
#[derive(Clone, PartialEq)]
pub struct NetOptions {
    /// `protocol`
    pub protocol: Protocol,
    /// `timeout`
    pub timeout: Duration,
    /// `connect-int`
    pub connect_int: Duration,
    /// `ping-int`
    pub ping_int: Duration,
    /// `ping-timeout`
    pub ping_timeout: Duration,
    /// `socket-check-timeout`; `ping_timeout` where it is 0.
    pub socket_check_timeout: Duration,
    /// `sndbuf-size` in bytes; `None`: automatic.
    pub sndbuf_size: Option<u32>,
    /// `rcvbuf-size` in bytes; `None`: automatic.
    pub rcvbuf_size: Option<u32>,
    /// `max-buffers` in pages of 4 KiB.
    pub max_buffers: u32,
    /// `max-epoch-size` in requests.
    pub max_epoch_size: u32,
    /// `ko-count` in timeouts; 0: off.
    pub ko_count: u32,
    /// `cram-hmac-alg`; `None`: no authentication.
    pub cram_hmac_alg: Option<String>,
    /// `shared-secret`; never to be logged.
    pub shared_secret: Option<String>,
    /// `fencing`
    pub fencing: Fencing,
    /// `after-sb-0pri`
    pub after_sb_0pri: AfterSb0Pri,
    /// `after-sb-1pri`
    pub after_sb_1pri: AfterSb1Pri,
    /// `after-sb-2pri`
    pub after_sb_2pri: AfterSb2Pri,
    /// `always-asbp`
    pub always_asbp: bool,
    /// `rr-conflict`
    pub rr_conflict: RrConflict,
    /// `allow-two-primaries`
    pub allow_two_primaries: bool,
    /// `data-integrity-alg`
    pub data_integrity_alg: Option<String>,
    /// `csums-alg`
    pub csums_alg: Option<String>,
    /// `verify-alg`
    pub verify_alg: Option<String>,
    /// `tcp-cork`
    pub tcp_cork: bool,
    /// `use-rle`
    pub use_rle: bool,
    /// `on-congestion`
    pub on_congestion: OnCongestion,
    /// `congestion-fill` in sectors; 0: off.
    pub congestion_fill_sectors: u64,
    /// `congestion-extents`
    pub congestion_extents: u32,
}

impl fmt::Debug for NetOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetOptions")
            .field("protocol", &self.protocol)
            .field("timeout", &self.timeout)
            .field("connect_int", &self.connect_int)
            .field("ping_int", &self.ping_int)
            .field("ping_timeout", &self.ping_timeout)
            .field("cram_hmac_alg", &self.cram_hmac_alg)
            .field(
                "shared_secret",
                &self.shared_secret.as_ref().map(|_| "(secret)"),
            )
            .finish_non_exhaustive()
    }
}

impl NetOptions {
    /// From what was written; unset ones get the defaults of the table.
    #[must_use]
    pub fn from_written(written: &Options) -> Self {
        let o = Reader {
            section: Section::Net,
            written,
        };
        let ping_timeout = o.deciseconds("ping-timeout");
        let check = o.deciseconds("socket-check-timeout");
        Self {
            protocol: match o.word("protocol") {
                "A" => Protocol::A,
                "B" => Protocol::B,
                _ => Protocol::C,
            },
            timeout: o.deciseconds("timeout"),
            connect_int: o.seconds("connect-int"),
            ping_int: o.seconds("ping-int"),
            ping_timeout,
            socket_check_timeout: if check.is_zero() { ping_timeout } else { check },
            sndbuf_size: Some(o.small("sndbuf-size")).filter(|n| *n > 0),
            rcvbuf_size: Some(o.small("rcvbuf-size")).filter(|n| *n > 0),
            max_buffers: o.small("max-buffers"),
            max_epoch_size: o.small("max-epoch-size"),
            ko_count: o.small("ko-count"),
            cram_hmac_alg: o.text("cram-hmac-alg"),
            shared_secret: o.text("shared-secret"),
            fencing: Fencing::of(o.word("fencing")).unwrap_or(Fencing::DontCare),
            after_sb_0pri: AfterSb0Pri::of(o.word("after-sb-0pri"))
                .unwrap_or(AfterSb0Pri::Disconnect),
            after_sb_1pri: AfterSb1Pri::of(o.word("after-sb-1pri"))
                .unwrap_or(AfterSb1Pri::Disconnect),
            after_sb_2pri: AfterSb2Pri::of(o.word("after-sb-2pri"))
                .unwrap_or(AfterSb2Pri::Disconnect),
            always_asbp: o.switch("always-asbp"),
            rr_conflict: RrConflict::of(o.word("rr-conflict")).unwrap_or(RrConflict::Disconnect),
            allow_two_primaries: o.switch("allow-two-primaries"),
            data_integrity_alg: o.text("data-integrity-alg"),
            csums_alg: o.text("csums-alg"),
            verify_alg: o.text("verify-alg"),
            tcp_cork: o.switch("tcp-cork"),
            use_rle: o.switch("use-rle"),
            on_congestion: OnCongestion::of(o.word("on-congestion")).unwrap_or(OnCongestion::Block),
            congestion_fill_sectors: o.number("congestion-fill"),
            congestion_extents: o.small("congestion-extents"),
        }
    }
}

/// `disk`, with defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskOptions {
    /// `on-io-error`
    pub on_io_error: OnIoError,
    /// `size` in sectors; `None`: all of the lower disk.
    pub size_sectors: Option<u64>,
    /// `disk-barrier`
    pub disk_barrier: bool,
    /// `disk-flushes`
    pub disk_flushes: bool,
    /// `disk-drain`
    pub disk_drain: bool,
    /// `md-flushes`
    pub md_flushes: bool,
    /// `al-extents`, 67..65534.
    pub al_extents: u32,
    /// `al-updates`
    pub al_updates: bool,
    /// `disk-timeout`; `None`: off.
    pub disk_timeout: Option<Duration>,
    /// `resync-rate` in KiB/s.
    pub resync_rate_kib: u32,
    /// Resources (with `/volume` where written) that must finish their resync first: `resync-after`, or every
    /// resource of a lower 0.7 group.
    pub resync_after: Vec<String>,
    /// `c-plan-ahead`; `None`: the fixed rate is used.
    pub c_plan_ahead: Option<Duration>,
    /// `c-delay-target`
    pub c_delay_target: Duration,
    /// `c-fill-target` in sectors.
    pub c_fill_target_sectors: u32,
    /// `c-max-rate` in KiB/s.
    pub c_max_rate_kib: u32,
    /// `c-min-rate` in KiB/s; 0: never throttle.
    pub c_min_rate_kib: u32,
}

impl DiskOptions {
    /// From what was written; unset ones get the defaults of the table.
    #[must_use]
    pub fn from_written(written: &Options) -> Self {
        let o = Reader {
            section: Section::Disk,
            written,
        };
        Self {
            on_io_error: OnIoError::of(o.word("on-io-error")).unwrap_or(OnIoError::Detach),
            size_sectors: Some(o.number("size")).filter(|n| *n > 0),
            disk_barrier: o.switch("disk-barrier"),
            disk_flushes: o.switch("disk-flushes"),
            disk_drain: o.switch("disk-drain"),
            md_flushes: o.switch("md-flushes"),
            al_extents: o.small("al-extents"),
            al_updates: o.switch("al-updates"),
            disk_timeout: Some(o.deciseconds("disk-timeout")).filter(|d| !d.is_zero()),
            resync_rate_kib: o.small("resync-rate"),
            resync_after: o.text("resync-after").into_iter().collect(),
            c_plan_ahead: Some(o.deciseconds("c-plan-ahead")).filter(|d| !d.is_zero()),
            c_delay_target: o.deciseconds("c-delay-target"),
            c_fill_target_sectors: o.small("c-fill-target"),
            c_max_rate_kib: o.small("c-max-rate"),
            c_min_rate_kib: o.small("c-min-rate"),
        }
    }
}

/// `startup`, with defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct StartupOptions {
    /// `wfc-timeout`; `None`: for ever.
    pub wfc_timeout: Option<Duration>,
    /// `degr-wfc-timeout`; `None`: for ever. Never above a limited `wfc_timeout`.
    pub degr_wfc_timeout: Option<Duration>,
    /// `outdated-wfc-timeout`; `None`: for ever. Never above a limited `degr_wfc_timeout`.
    pub outdated_wfc_timeout: Option<Duration>,
    /// `wait-after-sb`
    pub wait_after_sb: bool,
    /// `become-primary-on`: host names, or `both`.
    pub become_primary_on: Vec<String>,
}

impl StartupOptions {
    /// From what was written; unset ones get the defaults of the table.
    #[must_use]
    pub fn from_written(written: &Options) -> Self {
        let o = Reader {
            section: Section::Startup,
            written,
        };
        let limit = |name| Some(o.seconds(name)).filter(|d| !d.is_zero());
        // A longer wait than the one above it is cut down to it; 0 stays "for ever" only where it was meant.
        let cut = |own: Option<Duration>, above: Option<Duration>| match (own, above) {
            (Some(own), Some(above)) => Some(own.min(above)),
            (own, _) => own,
        };
        let wfc_timeout = limit("wfc-timeout");
        let degr_wfc_timeout = cut(limit("degr-wfc-timeout"), wfc_timeout);
        Self {
            wfc_timeout,
            degr_wfc_timeout,
            outdated_wfc_timeout: cut(limit("outdated-wfc-timeout"), degr_wfc_timeout),
            wait_after_sb: o.switch("wait-after-sb"),
            become_primary_on: match written.get("become-primary-on").map(|s| &s.value) {
                Some(crate::Value::Names(names)) => names.clone(),
                _ => Vec::new(),
            },
        }
    }
}

/// `options`, with defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceOptions {
    /// `on-no-data-accessible`
    pub on_no_data_accessible: OnNoData,
}

impl ResourceOptions {
    /// From what was written; unset ones get the defaults of the table.
    #[must_use]
    pub fn from_written(written: &Options) -> Self {
        let o = Reader {
            section: Section::Options,
            written,
        };
        Self {
            on_no_data_accessible: OnNoData::of(o.word("on-no-data-accessible"))
                .unwrap_or(OnNoData::IoError),
        }
    }
}

/// `handlers`: shell commands by name. An empty command switches a handler off and is not kept.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Handlers {
    commands: BTreeMap<String, String>,
}

impl Handlers {
    /// From what was written.
    #[must_use]
    pub fn from_written(written: &Options) -> Self {
        let commands = written
            .iter()
            .filter_map(|s| {
                Some((
                    s.spec.name.to_owned(),
                    written.text(s.spec.name)?.to_owned(),
                ))
            })
            .filter(|(_, command)| !command.is_empty())
            .collect();
        Self { commands }
    }

    /// The command of this handler.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.commands.get(name).map(String::as_str)
    }

    /// All commands by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.commands.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// `global`, with defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobalOptions {
    /// `dialog-refresh`; `None`: never redraw.
    pub dialog_refresh: Option<Duration>,
    /// `disable-ip-verification`
    pub disable_ip_verification: bool,
    /// `udev-always-use-vnr`
    pub udev_always_use_vnr: bool,
    /// `cmd-timeout-short`
    pub cmd_timeout_short: Duration,
    /// `cmd-timeout-medium`
    pub cmd_timeout_medium: Duration,
    /// `cmd-timeout-long`; `None`: none.
    pub cmd_timeout_long: Option<Duration>,
}

impl GlobalOptions {
    /// From what was written; unset ones get the defaults of the table.
    #[must_use]
    pub fn from_written(written: &Options) -> Self {
        let o = Reader {
            section: Section::Global,
            written,
        };
        Self {
            dialog_refresh: Some(o.seconds("dialog-refresh")).filter(|d| !d.is_zero()),
            disable_ip_verification: o.switch("disable-ip-verification"),
            udev_always_use_vnr: o.switch("udev-always-use-vnr"),
            cmd_timeout_short: o.seconds("cmd-timeout-short"),
            cmd_timeout_medium: o.seconds("cmd-timeout-medium"),
            cmd_timeout_long: Some(o.seconds("cmd-timeout-long")).filter(|d| !d.is_zero()),
        }
    }
}

/// Reads options with the defaults of the table behind them.
struct Reader<'a> {
    section: Section,
    written: &'a Options,
}

impl<'a> Reader<'a> {
    fn default(&self, name: &str) -> DefaultValue {
        options::find(self.section, name).map_or(DefaultValue::Unset, |spec| spec.default)
    }

    fn number(&self, name: &str) -> u64 {
        match (self.written.number(name), self.default(name)) {
            (Some(n), _) | (None, DefaultValue::Number(n)) => n,
            _ => 0,
        }
    }

    /// A number whose range in the table is below 2^32.
    fn small(&self, name: &str) -> u32 {
        u32::try_from(self.number(name)).unwrap_or(u32::MAX)
    }

    fn seconds(&self, name: &str) -> Duration {
        Duration::from_secs(self.number(name))
    }

    fn deciseconds(&self, name: &str) -> Duration {
        Duration::from_millis(self.number(name).saturating_mul(100))
    }

    fn switch(&self, name: &str) -> bool {
        match (self.written.switch(name), self.default(name)) {
            (Some(b), _) | (None, DefaultValue::Switch(b)) => b,
            _ => false,
        }
    }

    fn word(&self, name: &str) -> &'a str {
        match (self.written.text(name), self.default(name)) {
            (Some(word), _) => word,
            (None, DefaultValue::Text(word)) => word,
            _ => "",
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        self.written
            .text(name)
            .filter(|t| !t.is_empty())
            .map(ToOwned::to_owned)
    }
}
