//! The table of every option: section, name, type, range, default, unit, era, and what Tandem does with it.
//!
//! Source: `docs/spec/config-and-cli.md` sections 1.8 and 2. Where the limits of 8.4 and 9 differ the wider one stands
//! here; there is one set of defaults for all dialects.

use crate::model::Value;

/// A section that holds options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// `global { }`
    Global,
    /// `startup { }`
    Startup,
    /// `disk { }`
    Disk,
    /// `net { }`
    Net,
    /// `options { }`
    Options,
    /// `handlers { }`
    Handlers,
    /// `proxy { }`
    Proxy,
    /// `syncer { }`, written until 8.3; every option of it is mapped elsewhere.
    Syncer,
}

impl Section {
    /// The keyword that opens the section.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Startup => "startup",
            Self::Disk => "disk",
            Self::Net => "net",
            Self::Options => "options",
            Self::Handlers => "handlers",
            Self::Proxy => "proxy",
            Self::Syncer => "syncer",
        }
    }
}

/// The unit in which a plain number is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Pieces: devices, requests, pages, extents.
    Count,
    /// Seconds.
    Seconds,
    /// Tenths of a second.
    Deciseconds,
    /// Thousandths of a second.
    Milliseconds,
    /// Bytes.
    Bytes,
    /// KiB, or KiB per second.
    Kibibytes,
    /// Blocks of 512 bytes.
    Sectors,
}

impl Unit {
    /// Words for messages: what a plain number counts.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Count => "pieces",
            Self::Seconds => "seconds",
            Self::Deciseconds => "tenths of a second",
            Self::Milliseconds => "milliseconds",
            Self::Bytes => "bytes",
            Self::Kibibytes => "KiB",
            Self::Sectors => "sectors of 512 bytes",
        }
    }
}

/// What values an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An integer with an optional unit letter.
    Number {
        /// Unit of a plain number and of the stored value.
        unit: Unit,
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// An integer that is brought into its range with a warning instead of being refused.
    Clamped {
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// `yes`, `no`, bare (yes), or with the prefix `no-`.
    Switch,
    /// Present or not.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `protocol`: A, B or C in either case.
    Protocol,
    /// `after-sb-0pri`: the words, or `discard-node-NAME`.
    AfterSplitBrain0(&'static [&'static str]),
    /// `off`, `majority`, `all` or 1..32.
    Votes,
    /// Text of at most so many characters.
    Text {
        /// Greatest length in characters.
        max: usize,
    },
    /// One or more names.
    Names,
}

/// What an unset option means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultValue {
    /// Nothing: off, or decided elsewhere.
    Unset,
    /// A number in the option's own unit.
    Number(u64),
    /// A switch.
    Switch(bool),
    /// A word.
    Text(&'static str),
}

/// What Tandem does with a value other than the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Honoured.
    Supported,
    /// Accepted, but changes nothing; the reason is for the person.
    NoEffect(&'static str),
    /// `up` and `adjust` refuse a resource that sets it; the reason is for the person.
    Refused(&'static str),
}

/// Which warning reading a value other than the default gives (spec section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadWarning {
    /// None.
    Silent,
    /// `W_IGNORED_OPTION`.
    Ignored,
    /// `W_NOT_SUPPORTED`.
    NotSupported,
    /// An error, `E_UNSUPPORTED`.
    Refused,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// Where it is written.
    pub section: Section,
    /// Its name.
    pub name: &'static str,
    /// Its values.
    pub kind: Kind,
    /// Its default.
    pub default: DefaultValue,
    /// Eras in which it existed: 7 (0.7), 80, 83, 84, 8 (all of 8.x), 9, 9+ (later 9.x tools).
    pub eras: &'static str,
    /// What Tandem does with it.
    pub support: Support,
    /// What reading it says.
    pub load_warning: LoadWarning,
}

impl OptionSpec {
    const fn new(
        section: Section,
        name: &'static str,
        kind: Kind,
        default: DefaultValue,
        eras: &'static str,
    ) -> Self {
        Self {
            section,
            name,
            kind,
            default,
            eras,
            support: Support::Supported,
            load_warning: LoadWarning::Silent,
        }
    }

    /// No effect, and reading says so.
    const fn ignored(mut self, reason: &'static str) -> Self {
        self.support = Support::NoEffect(reason);
        self.load_warning = LoadWarning::Ignored;
        self
    }

    /// Honoured as far as Tandem has a use for it; reading warns, as the golden files demand.
    const fn limited(mut self) -> Self {
        self.load_warning = LoadWarning::Ignored;
        self
    }

    /// No effect; only `up`, `adjust` and `config check` say so.
    const fn no_effect(mut self, reason: &'static str) -> Self {
        self.support = Support::NoEffect(reason);
        self
    }

    /// Refused at `up` and `adjust`.
    const fn refused(mut self, reason: &'static str) -> Self {
        self.support = Support::Refused(reason);
        self
    }

    const fn warns(mut self, warning: LoadWarning) -> Self {
        self.load_warning = warning;
        self
    }

    /// Whether `value` is what an unset option means.
    #[must_use]
    pub fn is_default(&self, value: &Value) -> bool {
        match (self.default, value) {
            (DefaultValue::Number(d), Value::Number(v)) => d == *v,
            (DefaultValue::Switch(d), Value::Switch(v)) => d == *v,
            (DefaultValue::Text(d), Value::Text(v)) => d == v,
            (DefaultValue::Unset, Value::Switch(v)) => !v,
            (DefaultValue::Unset, Value::Text(v)) => v.is_empty(),
            (DefaultValue::Unset, Value::Names(v)) => v.is_empty(),
            _ => false,
        }
    }

    /// What Tandem does with this very value: some options are supported only for some values.
    #[must_use]
    pub fn support_of(&self, value: &Value) -> Support {
        if self.is_default(value) {
            return Support::Supported;
        }
        match (self.section, self.name, value) {
            (Section::Net, "cram-hmac-alg", Value::Text(name))
                if !CRAM_HMAC_ALGORITHMS.contains(&name.as_str()) =>
            {
                Support::Refused(
                    "only sha1, sha256 and md5 are known for the authentication of peers",
                )
            }
            (Section::Net, "rr-conflict", Value::Text(word))
                if matches!(word.as_str(), "retry-connect" | "auto-discard") =>
            {
                Support::Refused(
                    "it is a policy of DRBD 9; write disconnect, violently or call-pri-lost",
                )
            }
            (Section::Net, "transport", Value::Text(name)) if name.is_empty() => Support::Supported,
            _ => self.support,
        }
    }
}

/// Algorithms accepted for `cram-hmac-alg`.
pub const CRAM_HMAC_ALGORITHMS: &[&str] = &["sha1", "sha256", "md5"];

/// The row of `name` in `section`.
#[must_use]
pub fn find(section: Section, name: &str) -> Option<&'static OptionSpec> {
    OPTIONS
        .iter()
        .find(|spec| spec.section == section && spec.name == name)
}

/// Where an option of the old `syncer` section lives now (spec section 1.8).
#[must_use]
pub fn syncer_home(name: &str) -> Option<(Section, &'static str)> {
    Some(match name {
        "rate" => (Section::Disk, "resync-rate"),
        "after" => (Section::Disk, "resync-after"),
        "al-extents" => (Section::Disk, "al-extents"),
        "c-plan-ahead" => (Section::Disk, "c-plan-ahead"),
        "c-delay-target" => (Section::Disk, "c-delay-target"),
        "c-fill-target" => (Section::Disk, "c-fill-target"),
        "c-max-rate" => (Section::Disk, "c-max-rate"),
        "c-min-rate" => (Section::Disk, "c-min-rate"),
        "verify-alg" => (Section::Net, "verify-alg"),
        "csums-alg" => (Section::Net, "csums-alg"),
        "use-rle" => (Section::Net, "use-rle"),
        "cpu-mask" => (Section::Options, "cpu-mask"),
        "on-no-data-accessible" => (Section::Options, "on-no-data-accessible"),
        _ => return None,
    })
}

/// Every name that may stand in `section`, for hints; old spellings included.
pub fn names_in(section: Section) -> impl Iterator<Item = &'static str> {
    const SYNCER: &[&str] = &[
        "rate",
        "after",
        "al-extents",
        "c-plan-ahead",
        "c-delay-target",
        "c-fill-target",
        "c-max-rate",
        "c-min-rate",
        "verify-alg",
        "csums-alg",
        "use-rle",
        "cpu-mask",
        "on-no-data-accessible",
    ];
    let old: &[&str] = match section {
        Section::Syncer => SYNCER,
        Section::Disk => &["fencing"],
        Section::Handlers => &["outdate-peer"],
        _ => &[],
    };
    OPTIONS
        .iter()
        .filter(move |s| s.section == section)
        .map(|s| s.name)
        .chain(old.iter().copied())
}

use DefaultValue as D;
use Section::{Disk, Global, Handlers, Net, Options, Proxy, Startup, Syncer};
use Unit::{Bytes, Count, Deciseconds, Kibibytes, Milliseconds, Seconds, Sectors};

const fn num(
    section: Section,
    name: &'static str,
    unit: Unit,
    (min, max): (u64, u64),
    default: u64,
    eras: &'static str,
) -> OptionSpec {
    OptionSpec::new(
        section,
        name,
        Kind::Number { unit, min, max },
        D::Number(default),
        eras,
    )
}

const fn switch(
    section: Section,
    name: &'static str,
    default: bool,
    eras: &'static str,
) -> OptionSpec {
    OptionSpec::new(section, name, Kind::Switch, D::Switch(default), eras)
}

const fn flag(section: Section, name: &'static str, eras: &'static str) -> OptionSpec {
    OptionSpec::new(section, name, Kind::Flag, D::Switch(false), eras)
}

const fn choice(
    section: Section,
    name: &'static str,
    words: &'static [&'static str],
    default: &'static str,
    eras: &'static str,
) -> OptionSpec {
    OptionSpec::new(section, name, Kind::Choice(words), D::Text(default), eras)
}

const fn text(section: Section, name: &'static str, max: usize, eras: &'static str) -> OptionSpec {
    OptionSpec::new(section, name, Kind::Text { max }, D::Unset, eras)
}

const fn handler(name: &'static str, eras: &'static str) -> OptionSpec {
    text(Handlers, name, 255, eras)
}

const fn proxy(name: &'static str, unit: Unit) -> OptionSpec {
    OptionSpec::new(
        Proxy,
        name,
        Kind::Number {
            unit,
            min: 0,
            max: u64::MAX,
        },
        D::Unset,
        "84 9",
    )
    .no_effect(NO_PROXY)
}

const NO_MODULE: &str = "there is no kernel module to hand it to";
const NO_SHAPE: &str = "it shapes kernel requests, and there are none";
const NO_PROXY: &str = "the WAN proxy is not supported; the connection is made directly";
const NO_CONGESTION: &str = "congestion policies are not supported: a full link blocks";
const NO_RDMA: &str = "there is no RDMA transport";
const NO_TLS: &str = "TLS on the link is not supported";
const NO_QUORUM: &str = "quorum needs three nodes; resources of this version have two";
const NO_MULTI: &str = "it serves resources with several peers; those of this version have one";

/// Values of `after-sb-0pri`.
const AFTER_SB_0PRI: &[&str] = &[
    "disconnect",
    "discard-younger-primary",
    "discard-older-primary",
    "discard-zero-changes",
    "discard-least-changes",
    "discard-local",
    "discard-remote",
];
const AFTER_SB_1PRI: &[&str] = &[
    "disconnect",
    "consensus",
    "violently-as0p",
    "discard-secondary",
    "call-pri-lost-after-sb",
];
const AFTER_SB_2PRI: &[&str] = &["disconnect", "violently-as0p", "call-pri-lost-after-sb"];
const FENCING: &[&str] = &["dont-care", "resource-only", "resource-and-stonith"];
const READ_BALANCING: &[&str] = &[
    "prefer-local",
    "prefer-remote",
    "round-robin",
    "least-pending",
    "when-congested-remote",
    "32K-striping",
    "64K-striping",
    "128K-striping",
    "256K-striping",
    "512K-striping",
    "1M-striping",
];
const IO_ERROR: &[&str] = &["pass_on", "call-local-io-error", "detach"];
const NO_DATA: &[&str] = &["io-error", "suspend-io"];

/// Every option.
pub static OPTIONS: &[OptionSpec] = &[
    // 2.1 global
    num(Global, "minor-count", Count, (1, 255), 32, "7 8 9").ignored(NO_MODULE),
    num(Global, "dialog-refresh", Seconds, (0, 600), 1, "7 8 9"),
    flag(Global, "disable-ip-verification", "7 8 9"),
    flag(Global, "disable-io-hints", "7").ignored(NO_SHAPE),
    choice(Global, "usage-count", &["yes", "no", "ask"], "ask", "8 9"),
    flag(Global, "udev-always-use-vnr", "84 9"),
    num(Global, "cmd-timeout-short", Seconds, (0, 900), 5, "84 9"),
    num(Global, "cmd-timeout-medium", Seconds, (0, 900), 121, "84 9"),
    num(Global, "cmd-timeout-long", Seconds, (0, 900), 600, "84 9"),
    // 2.3 startup
    num(Startup, "wfc-timeout", Seconds, (0, 300_000), 0, "7 8 9"),
    num(
        Startup,
        "degr-wfc-timeout",
        Seconds,
        (0, 300_000),
        0,
        "7 8 9",
    ),
    num(
        Startup,
        "outdated-wfc-timeout",
        Seconds,
        (0, 300_000),
        0,
        "83 84 9",
    ),
    switch(Startup, "wait-after-sb", false, "83 84 9"),
    OptionSpec::new(
        Startup,
        "become-primary-on",
        Kind::Names,
        D::Unset,
        "83 84 9",
    ),
    switch(Startup, "stacked-timeouts", false, "83 84 9")
        .ignored("stacked resources are not supported"),
    // 2.4 disk
    choice(Disk, "on-io-error", IO_ERROR, "detach", "7 8 9"),
    num(Disk, "size", Sectors, (0, 1 << 41), 0, "7 8 9"),
    num(Disk, "disk-size", Sectors, (0, 1 << 41), 0, "06")
        .refused("this is the spelling of 0.6; write size instead")
        .warns(LoadWarning::Refused),
    switch(Disk, "disk-barrier", false, "83 84 9")
        .ignored("order is kept by draining and flushing; there are no barrier requests"),
    switch(Disk, "disk-flushes", true, "83 84 9"),
    switch(Disk, "disk-drain", true, "83 84 9"),
    switch(Disk, "md-flushes", true, "83 84 9"),
    OptionSpec::new(
        Disk,
        "al-extents",
        Kind::Clamped {
            min: 67,
            max: 65534,
        },
        D::Number(1237),
        "7 8 9",
    ),
    switch(Disk, "al-updates", true, "84 9"),
    num(Disk, "disk-timeout", Deciseconds, (0, 6000), 0, "83 84 9")
        .no_effect("a lower device that hangs is waited for"),
    num(Disk, "resync-rate", Kibibytes, (1, 8_388_608), 250, "84 9"),
    text(Disk, "resync-after", 255, "84 9"),
    num(Disk, "c-plan-ahead", Deciseconds, (0, 300), 20, "83 84 9"),
    num(Disk, "c-delay-target", Deciseconds, (1, 100), 10, "83 84 9").limited(),
    num(
        Disk,
        "c-fill-target",
        Sectors,
        (0, 1_048_576),
        100,
        "83 84 9",
    )
    .limited(),
    num(
        Disk,
        "c-max-rate",
        Kibibytes,
        (0, 4_194_304),
        102_400,
        "83 84 9",
    ),
    num(
        Disk,
        "c-min-rate",
        Kibibytes,
        (0, 4_194_304),
        250,
        "83 84 9",
    ),
    switch(Disk, "discard-zeroes-if-aligned", true, "84 9")
        .ignored("discards are only passed on where they read back as zero"),
    switch(Disk, "disable-write-same", false, "84 9").ignored("write-same is never offered"),
    num(
        Disk,
        "rs-discard-granularity",
        Bytes,
        (0, 1_048_576),
        0,
        "84 9",
    )
    .no_effect("runs of zero in a resync are sent as data"),
    num(Disk, "max-bio-bvecs", Count, (0, 128), 0, "83 84").ignored(NO_SHAPE),
    choice(
        Disk,
        "read-balancing",
        READ_BALANCING,
        "prefer-local",
        "84 9",
    )
    .ignored("reads are served by the local disk while it is good"),
    flag(Disk, "use-bmbv", "8").ignored(NO_SHAPE),
    switch(Disk, "bitmap", true, "9").ignored(NO_MULTI),
    num(
        Disk,
        "max-bio-size",
        Bytes,
        (512, 1_048_576),
        1_048_576,
        "9",
    )
    .ignored(NO_SHAPE),
    num(Disk, "block-size", Bytes, (512, 4096), 512, "9+")
        .ignored("clients are told the block size by NBD"),
    OptionSpec::new(
        Disk,
        "discard-granularity",
        Kind::Number {
            unit: Bytes,
            min: 0,
            max: 134_217_728,
        },
        D::Unset,
        "9+",
    )
    .ignored("clients are told the granularity by NBD"),
    // 2.5 net
    OptionSpec::new(Net, "protocol", Kind::Protocol, D::Text("C"), "7 8 9"),
    num(Net, "timeout", Deciseconds, (1, 600), 60, "7 8 9"),
    num(Net, "connect-int", Seconds, (1, 120), 10, "7 8 9"),
    num(Net, "ping-int", Seconds, (1, 120), 10, "7 8 9"),
    num(Net, "ping-timeout", Deciseconds, (1, 300), 5, "8 9"),
    num(
        Net,
        "socket-check-timeout",
        Deciseconds,
        (0, 300),
        0,
        "84 9",
    )
    .limited(),
    num(Net, "sndbuf-size", Bytes, (0, 134_217_728), 0, "7 8 9"),
    num(Net, "rcvbuf-size", Bytes, (0, 134_217_728), 0, "83 84 9"),
    num(Net, "max-buffers", Count, (32, 131_072), 2048, "7 8 9"),
    num(Net, "max-epoch-size", Count, (1, 20_000), 2048, "7 8 9"),
    num(Net, "unplug-watermark", Count, (1, 131_072), 128, "8")
        .ignored("there is no kernel queue to kick"),
    num(Net, "ko-count", Count, (0, 200), 7, "7 8 9"),
    choice(
        Net,
        "on-disconnect",
        &["reconnect", "stand_alone", "freeze_io"],
        "reconnect",
        "7",
    )
    .ignored("a lost connection is always dialled again"),
    switch(Net, "allow-two-primaries", false, "8 9")
        .refused("only one node can be Primary at a time")
        .warns(LoadWarning::NotSupported),
    text(Net, "cram-hmac-alg", 63, "8 9"),
    text(Net, "shared-secret", 63, "8 9"),
    choice(Net, "fencing", FENCING, "dont-care", "8 9")
        .refused("fencing policies are not supported; let the cluster manager fence"),
    OptionSpec::new(
        Net,
        "after-sb-0pri",
        Kind::AfterSplitBrain0(AFTER_SB_0PRI),
        D::Text("disconnect"),
        "8 9",
    ),
    choice(Net, "after-sb-1pri", AFTER_SB_1PRI, "disconnect", "8 9"),
    choice(Net, "after-sb-2pri", AFTER_SB_2PRI, "disconnect", "8 9"),
    switch(Net, "always-asbp", false, "8 9").limited(),
    flag(Net, "discard-my-data", "8")
        .ignored("it belongs on the command line: tandem adm connect --discard-my-data"),
    choice(
        Net,
        "rr-conflict",
        &[
            "disconnect",
            "violently",
            "call-pri-lost",
            "retry-connect",
            "auto-discard",
        ],
        "disconnect",
        "8 9",
    ),
    text(Net, "data-integrity-alg", 63, "83 84 9"),
    text(Net, "csums-alg", 63, "84 9"),
    switch(Net, "csums-after-crash-only", false, "84 9"),
    text(Net, "verify-alg", 63, "84 9"),
    switch(Net, "tcp-cork", true, "83 84 9").limited(),
    switch(Net, "use-rle", true, "84 9"),
    choice(
        Net,
        "on-congestion",
        &["block", "pull-ahead", "disconnect"],
        "block",
        "83 84 9",
    )
    .refused(NO_CONGESTION)
    .warns(LoadWarning::Ignored),
    num(
        Net,
        "congestion-fill",
        Sectors,
        (0, 20_971_520),
        0,
        "83 84 9",
    )
    .ignored(NO_CONGESTION),
    num(
        Net,
        "congestion-extents",
        Count,
        (67, 65534),
        1237,
        "83 84 9",
    )
    .ignored(NO_CONGESTION),
    OptionSpec::new(
        Net,
        "transport",
        Kind::Text { max: 63 },
        D::Text("tcp"),
        "9",
    )
    .refused("only tcp is there")
    .warns(LoadWarning::Ignored),
    switch(Net, "allow-remote-read", true, "9")
        .no_effect("a node without good data reads from its peer"),
    switch(Net, "tls", false, "9+")
        .refused(NO_TLS)
        .warns(LoadWarning::Refused),
    num(Net, "tls-keyring", Count, (0, u64::MAX), 0, "9+").ignored(NO_TLS),
    num(Net, "tls-privkey", Count, (0, u64::MAX), 0, "9+").ignored(NO_TLS),
    num(Net, "tls-certificate", Count, (0, u64::MAX), 0, "9+").ignored(NO_TLS),
    num(Net, "rdma-ctrl-rcvbuf-size", Bytes, (0, 10_485_760), 0, "9").ignored(NO_RDMA),
    num(Net, "rdma-ctrl-sndbuf-size", Bytes, (0, 10_485_760), 0, "9").ignored(NO_RDMA),
    switch(Net, "load-balance-paths", false, "9+").ignored("a connection has one path"),
    switch(Net, "resync-without-replication", true, "9+")
        .ignored("a resync always goes with replication"),
    switch(Net, "peer-tiebreaker", true, "9+").ignored(NO_QUORUM),
    // 2.6 options
    text(Options, "cpu-mask", 255, "83 84 9").ignored("threads are left to the scheduler"),
    choice(
        Options,
        "on-no-data-accessible",
        NO_DATA,
        "io-error",
        "83 84 9",
    )
    .refused("suspended I/O without data is not supported"),
    switch(Options, "auto-promote", false, "9")
        .no_effect("a node is promoted by the primary command alone, never by opening the device"),
    num(
        Options,
        "auto-promote-timeout",
        Deciseconds,
        (0, 600),
        20,
        "9",
    )
    .ignored("devices are never promoted by opening"),
    OptionSpec::new(Options, "quorum", Kind::Votes, D::Text("off"), "9").refused(NO_QUORUM),
    OptionSpec::new(
        Options,
        "quorum-minimum-redundancy",
        Kind::Votes,
        D::Text("off"),
        "9",
    )
    .refused(NO_QUORUM),
    choice(Options, "on-no-quorum", NO_DATA, "suspend-io", "9").no_effect(NO_QUORUM),
    choice(
        Options,
        "on-suspended-primary-outdated",
        &["disconnect", "force-secondary"],
        "disconnect",
        "9",
    )
    .ignored(NO_QUORUM),
    num(
        Options,
        "peer-ack-window",
        Sectors,
        (2048, 204_800),
        4096,
        "9",
    )
    .ignored(NO_MULTI),
    num(
        Options,
        "peer-ack-delay",
        Milliseconds,
        (1, 10_000),
        100,
        "9",
    )
    .ignored(NO_MULTI),
    num(Options, "twopc-timeout", Deciseconds, (50, 600), 300, "9").ignored(NO_MULTI),
    num(Options, "twopc-retry-timeout", Deciseconds, (1, 50), 1, "9").ignored(NO_MULTI),
    num(
        Options,
        "max-io-depth",
        Count,
        (4, 4_294_967_295),
        8000,
        "9",
    )
    .ignored("max-buffers bounds requests"),
    switch(Options, "drbd8-api-compatibility", false, "9+")
        .ignored("the 8.4 interface is the only one"),
    // 2.7 handlers
    handler("pri-on-incon-degr", "8 9"),
    handler("pri-lost-after-sb", "8 9"),
    handler("pri-lost", "8 9"),
    handler("initial-split-brain", "83 84 9"),
    handler("split-brain", "83 84 9"),
    handler("fence-peer", "83 84 9"),
    handler("unfence-peer", "84 9"),
    handler("local-io-error", "8 9"),
    handler("before-resync-target", "83 84 9"),
    handler("after-resync-target", "83 84 9"),
    handler("before-resync-source", "83 84 9"),
    handler("out-of-sync", "83 84 9"),
    handler("quorum-lost", "9").no_effect(NO_QUORUM),
    handler("disconnected", "9"),
    // 2.8 proxy: the section itself is warned about, so its options are silent.
    proxy("memlimit", Bytes),
    proxy("read-loops", Count),
    OptionSpec::new(
        Proxy,
        "compression",
        Kind::Switch,
        D::Switch(false),
        "83 84 9",
    )
    .no_effect(NO_PROXY),
    proxy("bwlimit", Count),
    proxy("sndbuf-size", Bytes),
    proxy("rcvbuf-size", Bytes),
    proxy("ping-timeout", Deciseconds),
    // 2.9 syncer: only what has no home elsewhere; see `syncer_home`.
    num(Syncer, "group", Count, (0, 1000), 0, "7"),
    flag(Syncer, "skip-sync", "7")
        .refused("a resync cannot be skipped: the copies would differ")
        .warns(LoadWarning::Refused),
    flag(Syncer, "use-csums", "7").ignored("it never worked; csums-alg is its successor"),
    num(Syncer, "delay-probe-volume", Count, (0, u64::MAX), 0, "83").ignored(DEAD),
    num(
        Syncer,
        "delay-probe-interval",
        Count,
        (0, u64::MAX),
        0,
        "83",
    )
    .ignored(DEAD),
    num(Syncer, "throttle-threshold", Count, (0, u64::MAX), 0, "83").ignored(DEAD),
    num(Syncer, "hold-off-threshold", Count, (0, u64::MAX), 0, "83").ignored(DEAD),
];

const DEAD: &str =
    "it steered an early resync controller that is gone; use c-plan-ahead and its relatives";
