//! Checks that need more than one statement, and facts derived from a whole resource: statements to the typed model.

mod across;

use std::collections::{BTreeMap, BTreeSet};

use crate::ast::{RawConnection, RawEnd, RawHost, RawResource, RawVolume, Spanned};
use crate::diagnostics::{Code, Diagnostic, ERRORS_MAX, Report, Span};
use crate::load::Loaded;
use crate::model::{
    Address, Config, Connection, ConnectionSource, Dialect, Host, HostKind, MetaDisk, Options,
    Resource, Template, Value, Volume,
};

/// Hosts of a mesh: there are that many node ids.
const MESH_HOSTS_MAX: usize = 32;

/// Greatest `size` in sectors.
const SIZE_SECTORS_MAX: u64 = 1 << 41;

/// The typed model, or everything that is wrong.
pub(crate) fn build(mut loaded: Loaded) -> Result<Config, Report> {
    let dialect = match loaded.marks {
        marks if marks.v07 => Dialect::V07,
        marks if marks.v9 => Dialect::V9,
        _ => Dialect::V8,
    };
    if dialect == Dialect::V07 {
        sizes_in_kib(&mut loaded);
    }
    let mut check = Checker {
        dialect,
        raw: &loaded.resources,
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    let resources: Vec<Resource> = loaded
        .resources
        .iter()
        .map(|(raw, template)| check.resource(raw, template.as_ref()))
        .collect();
    if check.errors.is_empty() {
        check.minors(&resources);
        check.addresses(&resources);
        check.disks();
        check.resync_after(&resources);
    }
    let (mut errors, mut warnings) = (check.errors, check.warnings);
    errors.append(&mut loaded.errors);
    warnings.append(&mut loaded.warnings);
    warnings.sort_by_key(|w| w.span);
    if !errors.is_empty() {
        errors.sort_by_key(|e| e.span);
        errors.truncate(ERRORS_MAX);
        return Err(Report {
            files: loaded.sources,
            errors,
            warnings,
        });
    }
    Ok(Config {
        files: loaded.sources,
        dialect,
        global: loaded
            .global
            .map(|(_, options)| options)
            .unwrap_or_default(),
        common: loaded.common.map(|(_, sections)| sections),
        resources,
        warnings,
    })
}

/// In 0.7 a plain `size` counts KiB; from here on it is sectors (spec section 1.8).
fn sizes_in_kib(loaded: &mut Loaded) {
    let (warnings, errors) = (&mut loaded.warnings, &mut loaded.errors);
    let mut convert = |options: &mut Options| {
        for setting in options.iter_mut().filter(|s| s.spec.name == "size") {
            let Value::Number(kib) = setting.value else {
                continue;
            };
            if kib == 0 || !setting.text.ends_with(|c: char| c.is_ascii_digit()) {
                continue;
            }
            let sectors = kib.saturating_mul(2);
            if sectors > SIZE_SECTORS_MAX {
                let expected = [format!("0..{}", SIZE_SECTORS_MAX / 2)];
                errors.push(Diagnostic::expected(
                    Code::Range,
                    setting.value_at,
                    expected,
                    &setting.text,
                ));
            }
            let message = format!("size {kib} is taken as KiB, as in 0.7: {sectors} sectors");
            warnings.push(Diagnostic::warning(
                Code::LegacySizeUnit,
                setting.value_at,
                message,
            ));
            setting.value = Value::Number(sectors);
            setting.text = format!("{sectors}s");
        }
    };
    if let Some((_, common)) = &mut loaded.common {
        convert(&mut common.disk);
    }
    for (raw, template) in &mut loaded.resources {
        convert(&mut raw.sections.disk);
        if let Some(template) = template {
            convert(&mut template.common.disk);
        }
        let hosts = raw.hosts.iter_mut().map(|h| &mut h.volumes);
        for volumes in std::iter::once(&mut raw.volumes).chain(hosts) {
            let numbered = volumes.numbered.iter_mut().map(|(_, v)| v);
            for volume in std::iter::once(&mut volumes.bare).chain(numbered) {
                if let Some(options) = &mut volume.disk_options {
                    convert(&mut options.value);
                }
            }
        }
    }
}

type Loading<'a> = &'a [(RawResource, Option<Template>)];

struct Checker<'a> {
    dialect: Dialect,
    raw: Loading<'a>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl Checker<'_> {
    fn error(&mut self, code: Code, at: Span, expected: &str, found: impl Into<String>) {
        self.errors
            .push(Diagnostic::expected(code, at, [expected], found));
    }

    fn resource(&mut self, raw: &RawResource, template: Option<&Template>) -> Resource {
        if raw.hosts.is_empty() {
            self.error(Code::Missing, raw.at, "host sections", "nothing");
        }
        self.volume_mix(raw);
        self.host_names(raw);
        let hosts: Vec<Host> = raw.hosts.iter().map(|host| self.host(raw, host)).collect();
        self.volume_numbers(raw);
        let connections = self.connections(raw, &hosts);
        self.node_ids(raw);
        let stacked = raw.hosts.iter().find(|h| h.kind == HostKind::Stacked);
        Resource {
            name: raw.name.value.clone(),
            at: raw.at,
            sections: raw.sections.clone(),
            hosts,
            connections,
            stacked_on: stacked
                .and_then(|h| h.names.first())
                .map(|n| n.value.clone()),
            template: template.cloned(),
            ignore_on: raw.ignore_on.clone(),
        }
    }

    /// Rule 3: bare statements and `volume` sections do not mix.
    fn volume_mix(&mut self, raw: &RawResource) {
        let all = || std::iter::once(&raw.volumes).chain(raw.hosts.iter().map(|h| &h.volumes));
        let bare = all().filter_map(|v| v.bare_at).min();
        let numbered = all()
            .flat_map(|v| v.numbered.iter().map(|(_, v)| v.at))
            .min();
        if let (Some(bare), Some(numbered)) = (bare, numbered) {
            let expected = ["either volume sections or bare device, disk and meta-disk"];
            let at = bare.max(numbered);
            let error = Diagnostic::expected(Code::VolumeMix, at, expected, "both");
            self.errors.push(
                error
                    .relating(bare.min(numbered))
                    .hinting("put the bare statements into volume 0 { }"),
            );
        }
    }

    fn host_names(&mut self, raw: &RawResource) {
        let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
        for name in raw
            .hosts
            .iter()
            .filter(|h| h.kind == HostKind::On)
            .flat_map(|h| &h.names)
        {
            if let Some(first) = seen.insert(&name.value, name.at) {
                let error = Diagnostic::expected(
                    Code::Duplicate,
                    name.at,
                    ["unique host name"],
                    &name.value,
                );
                self.errors.push(error.relating(first));
            }
        }
    }

    fn host(&mut self, raw: &RawResource, host: &RawHost) -> Host {
        let lower = (host.kind == HostKind::Stacked)
            .then(|| self.lower_of(raw, host))
            .flatten();
        let names = match host.kind {
            HostKind::On => host.names.iter().map(|n| n.value.clone()).collect(),
            HostKind::Floating => host.address.iter().map(floating_name).collect(),
            HostKind::Stacked => lower
                .iter()
                .flat_map(|l| &l.hosts)
                .map(raw_host_name)
                .collect(),
        };
        if host.address.is_none() && raw.connections.is_empty() {
            self.error(Code::Missing, host.at, "address", "nothing");
        }
        let numbers = volume_numbers_of(raw, host);
        let volumes = numbers
            .iter()
            .filter_map(|&n| self.volume(raw, host, lower, n))
            .collect();
        Host {
            kind: host.kind,
            names,
            node_id: host.node_id.as_ref().map(|id| id.value),
            address: host.address.clone(),
            volumes,
            options: host
                .options
                .as_ref()
                .map(|o| o.value.clone())
                .unwrap_or_default(),
            proxy: host.proxy.as_ref().map(|p| p.value.clone()),
            at: host.at,
        }
    }

    /// The lower resource of a stacked host section.
    fn lower_of<'b>(&mut self, raw: &RawResource, host: &RawHost) -> Option<&'b RawResource>
    where
        Self: 'b,
    {
        let name = host.names.first()?;
        let found = self
            .raw
            .iter()
            .map(|(r, _)| r)
            .find(|r| r.name.value == name.value);
        let stacked = |r: &RawResource| r.hosts.iter().any(|h| h.kind == HostKind::Stacked);
        let found = found.filter(|r| r.name.value != raw.name.value && !stacked(r));
        if found.is_none() {
            self.error(
                Code::Ref,
                host.at,
                "name of a defined resource",
                &name.value,
            );
        }
        found
    }

    fn volume(
        &mut self,
        raw: &RawResource,
        host: &RawHost,
        lower: Option<&RawResource>,
        number: u16,
    ) -> Option<Volume> {
        let parts = Parts::of(raw, host, number);
        let at = parts.at;
        let device = parts.first(|v| v.device.as_ref());
        if device.is_none() {
            self.error(Code::Missing, at, "device", "nothing");
        }
        let written = parts.first(|v| v.disk.as_ref());
        let disk = match (host.kind, written) {
            (HostKind::Stacked, _) => self.lower_disk(host, lower, number),
            (_, Some(disk)) if disk.value.is_some() || self.dialect == Dialect::V9 => {
                disk.value.clone()
            }
            (_, Some(none)) => {
                self.errors.push(
                    Diagnostic::expected(
                        Code::Missing,
                        none.at,
                        ["path of the lower disk"],
                        "none",
                    )
                    .hinting("diskless nodes are known from dialect 9 on"),
                );
                None
            }
            (_, None) if self.dialect == Dialect::V9 => None,
            (_, None) => {
                self.error(Code::Missing, at, "disk", "nothing");
                None
            }
        };
        let meta_disk = match host.kind {
            HostKind::Stacked => MetaDisk::Internal,
            _ => parts
                .first(|v| v.meta_disk.as_ref())
                .map_or(MetaDisk::Internal, |m| m.value.clone()),
        };
        Some(Volume {
            number,
            implicit: !has_numbered(raw),
            device: device?.clone(),
            disk,
            meta_disk,
            disk_options: parts.disk_options(),
            at,
        })
    }

    fn lower_disk(
        &mut self,
        host: &RawHost,
        lower: Option<&RawResource>,
        number: u16,
    ) -> Option<String> {
        let lower = lower?;
        let on = lower.hosts.first()?;
        let device = Parts::of(lower, on, number)
            .first(|v| v.device.as_ref())
            .map(|d| d.path.clone());
        if device.is_none() || !volume_numbers_of(lower, on).contains(&number) {
            let expected = format!("volume {number} in resource {}", lower.name.value);
            self.error(Code::Ref, host.at, &expected, number.to_string());
            return None;
        }
        device
    }

    /// Rule 3: all hosts have the same numbers.
    fn volume_numbers(&mut self, raw: &RawResource) {
        let Some(first) = raw.hosts.first().map(|h| volume_numbers_of(raw, h)) else {
            return;
        };
        for host in raw.hosts.iter().skip(1) {
            let own = volume_numbers_of(raw, host);
            let odd = own
                .difference(&first)
                .next()
                .or_else(|| first.difference(&own).next());
            if let Some(odd) = odd {
                let expected = "the same volume numbers on all hosts";
                self.error(Code::VolumeMismatch, host.at, expected, odd.to_string());
            }
        }
    }

    /// Rule 13.
    fn node_ids(&mut self, raw: &RawResource) {
        let mut seen: BTreeMap<u8, Span> = BTreeMap::new();
        for id in raw.hosts.iter().filter_map(|h| h.node_id.as_ref()) {
            if let Some(first) = seen.insert(id.value, id.at) {
                let found = id.value.to_string();
                let error = Diagnostic::expected(Code::Duplicate, id.at, ["unique node-id"], found);
                self.errors.push(error.relating(first));
            }
        }
        let implied = raw.hosts.len() <= 2 && raw.connections.is_empty() && seen.is_empty();
        let undecided = raw.hosts.len() > 2 && raw.connections.is_empty();
        if implied || undecided {
            return;
        }
        for host in raw.hosts.iter().filter(|h| h.node_id.is_none()) {
            self.error(Code::Missing, host.at, "node-id", "nothing");
        }
    }

    /// Rule 14.
    fn connections(&mut self, raw: &RawResource, hosts: &[Host]) -> Vec<Connection> {
        if raw.connections.is_empty() {
            if let Some(third) = raw.hosts.get(2) {
                let expected = "connection or connection-mesh section";
                self.error(Code::Connections, third.at, expected, "third host");
            }
            return match hosts {
                [a, b] => implicit_connection(raw.at, a, b).into_iter().collect(),
                _ => Vec::new(),
            };
        }
        let mut out: Vec<Connection> = Vec::new();
        for connection in &raw.connections {
            let made = if connection.mesh {
                self.mesh(connection, hosts)
            } else {
                self.connection(connection, hosts).into_iter().collect()
            };
            for new in made {
                let pair = |c: &Connection| BTreeSet::from(c.hosts);
                if let Some(first) = out.iter().find(|c| pair(c) == pair(&new)) {
                    let found = format!(
                        "{} and {}",
                        hosts[new.hosts[0]].name(),
                        hosts[new.hosts[1]].name()
                    );
                    let expected = ["one connection for each pair of hosts"];
                    let error = Diagnostic::expected(Code::Duplicate, new.at, expected, found);
                    self.errors.push(error.relating(first.at));
                    continue;
                }
                out.push(new);
            }
        }
        out
    }

    fn mesh(&mut self, raw: &RawConnection, hosts: &[Host]) -> Vec<Connection> {
        if raw.mesh_hosts.len() > MESH_HOSTS_MAX {
            let expected = format!("at most {MESH_HOSTS_MAX} hosts");
            self.error(
                Code::Connections,
                raw.at,
                &expected,
                raw.mesh_hosts.len().to_string(),
            );
            return Vec::new();
        }
        let mut ends: Vec<(usize, Span)> = Vec::new();
        for name in &raw.mesh_hosts {
            if let Some(index) = self.host_index(name, hosts)
                && ends.iter().all(|(known, _)| *known != index)
            {
                ends.push((index, name.at));
            }
        }
        if raw.mesh_hosts.len() < 2 {
            self.error(
                Code::Connections,
                raw.at,
                "two or more hosts",
                raw.mesh_hosts.len().to_string(),
            );
        }
        let mut out = Vec::new();
        for (i, &(a, _)) in ends.iter().enumerate() {
            for &(b, at) in &ends[i + 1..] {
                let (from, to) = (hosts[a].address.clone(), hosts[b].address.clone());
                let (Some(from), Some(to)) = (from, to) else {
                    let lacking = if hosts[a].address.is_none() { a } else { b };
                    let expected = format!("address in the section of {}", hosts[lacking].name());
                    self.error(Code::Missing, at, &expected, "nothing");
                    continue;
                };
                out.push(Connection {
                    source: ConnectionSource::Mesh,
                    hosts: [a, b],
                    paths: vec![[from, to]],
                    net: raw
                        .net
                        .as_ref()
                        .map(|n| n.value.clone())
                        .unwrap_or_default(),
                    disk: Options::default(),
                    volumes: Vec::new(),
                    at: raw.at,
                });
            }
        }
        out
    }

    fn connection(&mut self, raw: &RawConnection, hosts: &[Host]) -> Option<Connection> {
        let mut groups: Vec<(Span, &[RawEnd])> = raw
            .paths
            .iter()
            .map(|(at, e)| (*at, e.as_slice()))
            .collect();
        if groups.is_empty() || !raw.ends.is_empty() {
            groups.insert(0, (raw.at, raw.ends.as_slice()));
        }
        let mut pair: Option<[usize; 2]> = None;
        let mut paths = Vec::new();
        for (at, ends) in groups {
            let [a, b] = ends else {
                self.error(Code::Connections, at, "two hosts", ends.len().to_string());
                return None;
            };
            let (ia, ib) = (
                self.host_index(&a.name, hosts),
                self.host_index(&b.name, hosts),
            );
            let (ia, ib) = (ia?, ib?);
            let known = *pair.get_or_insert([ia, ib]);
            if ia == ib || BTreeSet::from(known) != BTreeSet::from([ia, ib]) {
                self.error(
                    Code::Connections,
                    at,
                    "the same two hosts on every path",
                    &b.name.value,
                );
                return None;
            }
            let (from, to) = (
                self.end_address(a, &hosts[ia]),
                self.end_address(b, &hosts[ib]),
            );
            let (from, to) = (from?, to?);
            paths.push(if known[0] == ia {
                [from, to]
            } else {
                [to, from]
            });
        }
        Some(Connection {
            source: ConnectionSource::Connection,
            hosts: pair?,
            paths,
            net: raw
                .net
                .as_ref()
                .map(|n| n.value.clone())
                .unwrap_or_default(),
            disk: raw
                .disk
                .as_ref()
                .map(|d| d.value.clone())
                .unwrap_or_default(),
            volumes: raw.volumes.clone(),
            at: raw.at,
        })
    }

    fn end_address(&mut self, end: &RawEnd, host: &Host) -> Option<Address> {
        let Some(address) = end.address.as_ref().or(host.address.as_ref()) else {
            self.error(Code::Missing, end.name.at, "address", "nothing");
            return None;
        };
        Some(Address {
            port: end.port.unwrap_or(address.port),
            ..address.clone()
        })
    }

    fn host_index(&mut self, name: &Spanned<String>, hosts: &[Host]) -> Option<usize> {
        let found = hosts
            .iter()
            .position(|h| h.names.contains(&name.value) || h.name() == name.value);
        if found.is_none() {
            let expected = "a host with an on section in this resource";
            self.error(Code::Ref, name.at, expected, &name.value);
        }
        found
    }
}

/// The statements about one volume of one host, most specific first.
struct Parts<'a> {
    at: Span,
    layers: Vec<&'a RawVolume>,
}

impl<'a> Parts<'a> {
    fn of(raw: &'a RawResource, host: &'a RawHost, number: u16) -> Self {
        let numbered = |volumes: &'a [(u16, RawVolume)]| {
            volumes
                .iter()
                .find(|(n, _)| *n == number)
                .map(|(_, volume)| volume)
        };
        let own = numbered(&host.volumes.numbered);
        let mut layers: Vec<&RawVolume> = own.into_iter().chain([&host.volumes.bare]).collect();
        layers.extend(numbered(&raw.volumes.numbered));
        layers.push(&raw.volumes.bare);
        Self {
            at: own.map_or(host.at, |v| v.at),
            layers,
        }
    }

    fn first<T>(&self, get: impl Fn(&'a RawVolume) -> Option<&'a T>) -> Option<&'a T> {
        self.layers.iter().find_map(|volume| get(volume))
    }

    fn disk_options(&self) -> Options {
        let mut out = Options::default();
        for volume in self.layers.iter().rev() {
            if let Some(options) = &volume.disk_options {
                out.overlay(&options.value);
            }
        }
        out
    }
}

fn has_numbered(raw: &RawResource) -> bool {
    !raw.volumes.numbered.is_empty() || raw.hosts.iter().any(|h| !h.volumes.numbered.is_empty())
}

fn volume_numbers_of(raw: &RawResource, host: &RawHost) -> BTreeSet<u16> {
    if !has_numbered(raw) {
        return BTreeSet::from([0]);
    }
    raw.volumes
        .numbered
        .iter()
        .chain(&host.volumes.numbered)
        .map(|(number, _)| *number)
        .collect()
}

fn floating_name(address: &Address) -> String {
    match address.family {
        crate::model::AddressFamily::Ipv6 => format!("ipv6 {}", address.endpoint()),
        _ => address.endpoint(),
    }
}

fn raw_host_name(host: &RawHost) -> String {
    match host.kind {
        HostKind::Floating => host.address.as_ref().map(floating_name).unwrap_or_default(),
        _ => host
            .names
            .iter()
            .map(|n| n.value.as_str())
            .collect::<Vec<_>>()
            .join("_"),
    }
}

fn implicit_connection(at: Span, a: &Host, b: &Host) -> Option<Connection> {
    let path = [a.address.clone()?, b.address.clone()?];
    Some(Connection {
        source: ConnectionSource::Implicit,
        hosts: [0, 1],
        paths: vec![path],
        net: Options::default(),
        disk: Options::default(),
        volumes: Vec::new(),
        at,
    })
}

/// See [`Resource::implicit_node_ids`].
pub(crate) fn implicit_node_ids(resource: &Resource) -> Option<[u8; 2]> {
    let [a, b] = resource.hosts.as_slice() else {
        return None;
    };
    let written = resource
        .connections
        .iter()
        .any(|c| c.source != ConnectionSource::Implicit);
    if written || a.node_id.is_some() || b.node_id.is_some() {
        return None;
    }
    let sum = |text: &str| address_checksum(text.as_bytes());
    let (a, b) = (sum(&a.address.as_ref()?.ip), sum(&b.address.as_ref()?.ip));
    match a.cmp(&b) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some([0, 1]),
        std::cmp::Ordering::Less => Some([1, 0]),
    }
}

/// CRC-32C of an address text, as the signed number that decides over node ids (spec section 1.7).
fn address_checksum(text: &[u8]) -> i32 {
    const START: u32 = 0x1a65_6f21;
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = START;
    for &byte in text {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ POLYNOMIAL
            } else {
                crc >> 1
            };
        }
    }
    crc.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_signed_checksum_gets_id_zero() {
        let first = [
            ("192.168.180.20", "192.168.180.10", false),
            ("172.17.18.191", "172.17.18.192", true),
            ("10.1.1.1", "10.1.1.2", false),
            ("10.0.0.3", "10.0.0.4", true),
            ("fd00:1::abcd", "fd00:2::9", false),
        ];
        for (a, b, a_is_zero) in first {
            assert_eq!(
                address_checksum(a.as_bytes()) > address_checksum(b.as_bytes()),
                a_is_zero,
                "{a} {b}"
            );
        }
    }
}
