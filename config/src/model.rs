//! The typed model of a configuration: what was written, where, with legacy forms mapped and statements filled in.
//!
//! Reading order: [`Config`] → [`Resource`] → [`Host`] → [`Volume`]. The inherited view of one node, with defaults
//! and durations, is [`crate::ResolvedResource`]. Source: `docs/spec/config-and-cli.md` sections 1.3, 1.8 and 3.2.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::diagnostics::{Diagnostic, SourceMap, Span};
use crate::options::{OptionSpec, Section};

/// Which generation of the language a configuration is written in (spec section 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// 0.7
    V07,
    /// 8.0 to 8.4
    V8,
    /// 9
    V9,
}

impl Dialect {
    /// `0.7`, `8` or `9`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V07 => "0.7",
            Self::V8 => "8",
            Self::V9 => "9",
        }
    }
}

/// A whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The files it came from.
    pub files: SourceMap,
    /// The generation of its language.
    pub dialect: Dialect,
    /// What `global` says.
    pub global: Options,
    /// What `common` says; `None` if there is none.
    pub common: Option<Sections>,
    /// The resources in reading order.
    pub resources: Vec<Resource>,
    /// What the person should know, in file and position order.
    pub warnings: Vec<Diagnostic>,
}

impl Config {
    /// The resource of this name.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|r| r.name == name)
    }
}

/// A value in its option's own unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number in the option's own unit.
    Number(u64),
    /// A switch or flag.
    Switch(bool),
    /// A word or text.
    Text(String),
    /// Several names.
    Names(Vec<String>),
}

/// One option that somebody wrote. Its `Debug` form does not show secrets.
#[derive(Clone, PartialEq)]
pub struct Setting {
    /// Its row in the table; legacy names are mapped already.
    pub spec: &'static OptionSpec,
    /// Its value.
    pub value: Value,
    /// Its value as it should be dumped: as written, unless the value was mapped.
    pub text: String,
    /// Where its name stands.
    pub at: Span,
    /// Where its value stands.
    pub value_at: Span,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.spec.name == "shared-secret" {
            "(secret)"
        } else {
            &self.text
        };
        write!(
            f,
            "{} {text} at {}:{}",
            self.spec.name, self.at.line, self.at.column
        )
    }
}

/// Options of one section in the order of writing, each name at most once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    settings: Vec<Setting>,
}

impl Options {
    /// The setting of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|s| s.spec.name == name)
    }

    /// Puts a setting; gives back the one of the same name that it replaces.
    pub fn put(&mut self, setting: Setting) -> Option<Setting> {
        match self
            .settings
            .iter_mut()
            .find(|s| s.spec.name == setting.spec.name)
        {
            Some(old) => Some(std::mem::replace(old, setting)),
            None => {
                self.settings.push(setting);
                None
            }
        }
    }

    /// Lays `above` over these options: what `above` says wins.
    pub fn overlay(&mut self, above: &Self) {
        for setting in &above.settings {
            self.put(setting.clone());
        }
    }

    /// The settings in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Setting> {
        self.settings.iter()
    }

    /// The settings, to be changed in place.
    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, Setting> {
        self.settings.iter_mut()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty()
    }

    /// A number that was written.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)?.value {
            Value::Number(n) => Some(n),
            _ => None,
        }
    }

    /// A switch that was written.
    #[must_use]
    pub fn switch(&self, name: &str) -> Option<bool> {
        match self.get(name)?.value {
            Value::Switch(b) => Some(b),
            _ => None,
        }
    }

    /// A text that was written.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match &self.get(name)?.value {
            Value::Text(t) => Some(t),
            _ => None,
        }
    }
}

impl<'a> IntoIterator for &'a Options {
    type Item = &'a Setting;
    type IntoIter = std::slice::Iter<'a, Setting>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The option sections of `common` or of a resource, after the mapping of legacy forms.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sections {
    /// `startup { }`
    pub startup: Options,
    /// `disk { }`
    pub disk: Options,
    /// `net { }`, with `protocol` and `fencing` wherever they were written.
    pub net: Options,
    /// `options { }`
    pub options: Options,
    /// `handlers { }`
    pub handlers: Options,
    /// `proxy { }`; read and dumped, never used.
    pub proxy: Options,
    /// The lines of `proxy { plugin { } }`, words joined by blanks; `None` if there is no such block.
    pub proxy_plugins: Option<Vec<String>>,
    /// `syncer { group N; }` of 0.7: resources of lower groups resync first.
    pub group: Option<u64>,
}

impl Sections {
    /// The options of one section.
    #[must_use]
    pub fn get(&self, section: Section) -> Option<&Options> {
        match section {
            Section::Startup => Some(&self.startup),
            Section::Disk => Some(&self.disk),
            Section::Net => Some(&self.net),
            Section::Options => Some(&self.options),
            Section::Handlers => Some(&self.handlers),
            Section::Proxy => Some(&self.proxy),
            Section::Global | Section::Syncer => None,
        }
    }

    pub(crate) fn get_mut(&mut self, section: Section) -> Option<&mut Options> {
        match section {
            Section::Startup => Some(&mut self.startup),
            Section::Disk => Some(&mut self.disk),
            Section::Net => Some(&mut self.net),
            Section::Options => Some(&mut self.options),
            Section::Handlers => Some(&mut self.handlers),
            Section::Proxy => Some(&mut self.proxy),
            Section::Global | Section::Syncer => None,
        }
    }
}

/// One resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// The word `resource`.
    pub at: Span,
    /// What the resource itself says.
    pub sections: Sections,
    /// Its hosts in order of writing, at least one.
    pub hosts: Vec<Host>,
    /// Its connections: written ones, or the implied one between two hosts.
    pub connections: Vec<Connection>,
    /// `stacked-on-top-of`: the lower resource.
    pub stacked_on: Option<String>,
    /// `template-file`: replaces `common` for this resource.
    pub template: Option<Template>,
    /// `ignore-on` names; read, warned about, without effect.
    pub ignore_on: Vec<String>,
}

impl Resource {
    /// Node ids that follow from the addresses of two hosts without written ids (spec section 1.7), in the order of
    /// `hosts`. `None` where the rule does not apply or the addresses do not decide.
    #[must_use]
    pub fn implicit_node_ids(&self) -> Option<[u8; 2]> {
        crate::evaluate::implicit_node_ids(self)
    }
}

/// The file named by `template-file`.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// The name as written.
    pub file: String,
    /// Its `common`.
    pub common: Sections,
}

/// How a host section was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// `on NAME`
    On,
    /// `floating ADDRESS`
    Floating,
    /// `stacked-on-top-of RESOURCE`
    Stacked,
}

impl HostKind {
    /// The keyword.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Floating => "floating",
            Self::Stacked => "stacked-on-top-of",
        }
    }
}

/// One host section, with the resource's own volume statements filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// How it was opened.
    pub kind: HostKind,
    /// The names after `on`; `addr:port` when floating; the hosts of the lower resource when stacked.
    pub names: Vec<String>,
    /// `node-id`, 0..31.
    pub node_id: Option<u8>,
    /// `address`; `None` only if every connection gives its own.
    pub address: Option<Address>,
    /// Its volumes by ascending number; all hosts have the same numbers.
    pub volumes: Vec<Volume>,
    /// `options { }` of the host (dialect 9).
    pub options: Options,
    /// `proxy on`; read and dumped, never used.
    pub proxy: Option<Proxy>,
    /// The opening word.
    pub at: Span,
}

impl Host {
    /// The name in messages, state output and connections: `hostA_hostB` for several names.
    #[must_use]
    pub fn name(&self) -> String {
        self.names.join("_")
    }
}

/// `proxy on NAME { inside ADDRESS; outside ADDRESS; }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// The hosts that run it.
    pub hosts: Vec<String>,
    /// Towards the own host.
    pub inside: Address,
    /// Towards the peer's proxy.
    pub outside: Address,
    /// `options { }`.
    pub options: Options,
}

/// One volume on one host.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// Its number, 0..65534.
    pub number: u16,
    /// Whether it was written without a `volume` section.
    pub implicit: bool,
    /// The device that users open.
    pub device: Device,
    /// The lower disk; `None`: diskless.
    pub disk: Option<String>,
    /// Where the metadata is.
    pub meta_disk: MetaDisk,
    /// `disk { }` of the volume.
    pub disk_options: Options,
    /// The opening word: `volume`, or that of the host.
    pub at: Span,
}

/// `device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `/dev/drbdN` or `/dev/drbd_NAME`.
    pub path: String,
    /// 0..1048575.
    pub minor: u32,
    /// The word `device`.
    pub at: Span,
}

/// `meta-disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaDisk {
    /// At the end of the lower disk.
    Internal,
    /// A slot of 128 MiB on a shared device.
    Indexed {
        /// The device.
        device: String,
        /// The slot.
        index: u32,
    },
    /// A whole device.
    Flexible {
        /// The device.
        device: String,
    },
}

/// How an address was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressFamily {
    /// TCP over IPv4.
    Ipv4,
    /// TCP over IPv6.
    Ipv6,
    /// Dolphin SuperSockets (also `sci`): plain TCP is used.
    Ssocks,
    /// InfiniBand SDP: plain TCP is used.
    Sdp,
}

impl AddressFamily {
    /// The keyword.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Ssocks => "ssocks",
            Self::Sdp => "sdp",
        }
    }
}

/// `address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Its family.
    pub family: AddressFamily,
    /// The IP address as written, with `%scope` but without brackets.
    pub ip: String,
    /// Its port, 1..65535.
    pub port: u16,
    /// Its first word.
    pub at: Span,
}

impl Address {
    /// The IP address as a value; checked when it was read.
    #[must_use]
    pub fn ip_addr(&self) -> Option<IpAddr> {
        parse_ip(&self.ip)
    }

    /// The socket address, with a numeric or unnamed scope. A scope by interface name (`%eth1`) must be looked up by
    /// the caller: see [`Address::scope`].
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        Some(match self.ip_addr()? {
            IpAddr::V4(ip) => SocketAddr::from((ip, self.port)),
            IpAddr::V6(ip) => {
                let scope = self.scope().and_then(|s| s.parse().ok()).unwrap_or(0);
                SocketAddr::V6(std::net::SocketAddrV6::new(ip, self.port, 0, scope))
            }
        })
    }

    /// What stands after `%`.
    #[must_use]
    pub fn scope(&self) -> Option<&str> {
        self.ip.split_once('%').map(|(_, scope)| scope)
    }

    /// `ADDR:PORT`, with brackets around IPv6.
    #[must_use]
    pub fn endpoint(&self) -> String {
        match self.family {
            AddressFamily::Ipv6 => format!("[{}]:{}", self.ip, self.port),
            _ => format!("{}:{}", self.ip, self.port),
        }
    }
}

impl fmt::Display for Address {
    /// `family:ip:port`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.family.keyword(), self.endpoint())
    }
}

/// An IP address as the configuration writes it: leading zeros of IPv4 groups are decimal, a scope is allowed.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let ip = text.split_once('%').map_or(text, |(ip, _)| ip);
        return ip.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let mut groups = [0u8; 4];
    let mut parts = text.split('.');
    for group in &mut groups {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *group = part.parse().ok()?;
    }
    parts.next().is_none().then(|| IpAddr::from(groups))
}

/// Where a connection was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionSource {
    /// Implied by two hosts.
    Implicit,
    /// `connection { }`
    Connection,
    /// `connection-mesh { }`
    Mesh,
}

impl ConnectionSource {
    /// The word used in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Implicit => "implicit",
            Self::Connection => "connection",
            Self::Mesh => "connection-mesh",
        }
    }
}

/// A connection between two hosts of a resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Connection {
    /// Where it was written.
    pub source: ConnectionSource,
    /// Indices into [`Resource::hosts`].
    pub hosts: [usize; 2],
    /// The pairs of addresses, in the order of `hosts`; at least one.
    pub paths: Vec<[Address; 2]>,
    /// `net { }` of the connection.
    pub net: Options,
    /// `disk { }` of the connection.
    pub disk: Options,
    /// `volume N { disk { } }` of the connection.
    pub volumes: Vec<(u16, Options)>,
    /// The opening word, or that of the resource.
    pub at: Span,
}
