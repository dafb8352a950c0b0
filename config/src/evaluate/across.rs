//! Checks between resources: minors, addresses, disks, the order of resyncs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checker, Parts, volume_numbers_of};
use crate::diagnostics::{Code, Diagnostic, Span};
use crate::model::{ConnectionSource, Dialect, Host, HostKind, MetaDisk, Resource, Value};

impl Checker<'_> {
    /// Rule 8: minors are unique on a host.
    pub(super) fn minors(&mut self, resources: &[Resource]) {
        let mut seen: BTreeMap<(String, u32), Span> = BTreeMap::new();
        for host in resources.iter().flat_map(|r| &r.hosts) {
            for volume in &host.volumes {
                for name in machine_names(host) {
                    let minor = volume.device.minor;
                    let key = (name.to_ascii_lowercase(), minor);
                    let Some(first) = seen.insert(key, volume.device.at) else {
                        continue;
                    };
                    let expected = [format!("unused minor on host {name}")];
                    let at = volume.device.at;
                    let error =
                        Diagnostic::expected(Code::Duplicate, at, expected, minor.to_string());
                    self.errors.push(error.relating(first));
                }
            }
        }
    }

    /// Rule 7: an address and port belong to one resource. Loopback addresses are not compared.
    pub(super) fn addresses(&mut self, resources: &[Resource]) {
        let mut seen: BTreeMap<(String, u16), (usize, Span)> = BTreeMap::new();
        for (index, resource) in resources.iter().enumerate() {
            let own = resource.hosts.iter().filter_map(|h| h.address.as_ref());
            let written = resource
                .connections
                .iter()
                .filter(|c| c.source != ConnectionSource::Implicit);
            let paths = written.flat_map(|c| &c.paths).flatten();
            for address in own.chain(paths) {
                if address.ip_addr().is_some_and(|ip| ip.is_loopback()) {
                    continue;
                }
                let key = (address.ip.to_ascii_lowercase(), address.port);
                let known = seen.get(&key).copied();
                seen.entry(key).or_insert((index, address.at));
                let Some((other, first)) = known else {
                    continue;
                };
                let shared = other == index && (self.dialect == Dialect::V9 || first == address.at);
                if !shared {
                    let expected = ["unused address and port"];
                    let error = Diagnostic::expected(
                        Code::Duplicate,
                        address.at,
                        expected,
                        address.endpoint(),
                    );
                    self.errors.push(error.relating(first));
                }
            }
        }
    }

    /// One lower disk or metadata slot under two volumes destroys data; upstream does not notice, we warn.
    pub(super) fn disks(&mut self) {
        let mut seen: BTreeMap<(String, String), Span> = BTreeMap::new();
        let raw = self.raw;
        for (resource, host) in raw
            .iter()
            .flat_map(|(r, _)| r.hosts.iter().map(move |h| (r, h)))
        {
            let names: Vec<String> = match host.kind {
                HostKind::Stacked => continue,
                HostKind::On => host
                    .names
                    .iter()
                    .map(|n| n.value.to_ascii_lowercase())
                    .collect(),
                HostKind::Floating => host.address.iter().map(|a| a.ip.clone()).collect(),
            };
            for number in volume_numbers_of(resource, host) {
                let parts = Parts::of(resource, host, number);
                let disk = parts.first(|v| v.disk.as_ref());
                let disk = disk.and_then(|d| d.value.clone().map(|path| (path, d.at)));
                let meta = parts
                    .first(|v| v.meta_disk.as_ref())
                    .and_then(|m| match &m.value {
                        MetaDisk::Internal => None,
                        MetaDisk::Indexed { device, index } => {
                            Some((format!("{device}[{index}]"), m.at))
                        }
                        MetaDisk::Flexible { device } => Some((device.clone(), m.at)),
                    });
                for ((path, at), name) in disk
                    .into_iter()
                    .chain(meta)
                    .flat_map(|d| names.iter().map(move |n| (d.clone(), n)))
                {
                    let Some(first) = seen.insert((name.clone(), path.clone()), at) else {
                        continue;
                    };
                    let message = format!(
                        "{path} is used twice on host {name}: the two volumes would destroy each other"
                    );
                    self.warnings
                        .push(Diagnostic::warning(Code::SharedDisk, at, message).relating(first));
                }
            }
        }
    }

    /// `resync-after`: unknown names are a warning, loops are refused.
    pub(super) fn resync_after(&mut self, resources: &[Resource]) {
        let mut edges: BTreeMap<&str, Vec<(&str, Span)>> = BTreeMap::new();
        for resource in resources {
            let volumes = resource
                .hosts
                .iter()
                .flat_map(|h| &h.volumes)
                .map(|v| &v.disk_options);
            for options in std::iter::once(&resource.sections.disk).chain(volumes) {
                let Some(setting) = options.get("resync-after") else {
                    continue;
                };
                let Value::Text(text) = &setting.value else {
                    continue;
                };
                let name = text.split('/').next().unwrap_or("");
                if name.is_empty() || (name == resource.name && text.contains('/')) {
                    continue;
                }
                let minor = name.bytes().all(|b| b.is_ascii_digit());
                if let Some(target) = resources.iter().find(|r| r.name == name) {
                    edges
                        .entry(&resource.name)
                        .or_default()
                        .push((&target.name, setting.value_at));
                } else if !minor {
                    let message = format!(
                        "resync-after {text}: there is no resource {name}; it is not waited for"
                    );
                    self.warnings.push(Diagnostic::warning(
                        Code::ResyncAfter,
                        setting.value_at,
                        message,
                    ));
                }
            }
        }
        for (&start, targets) in &edges {
            for &(target, at) in targets {
                if reaches(&edges, target, start) {
                    let message =
                        format!("resync-after of {start} and {target} wait for each other");
                    let error = Diagnostic::expected(Code::Ref, at, [""; 0], target);
                    self.errors
                        .push(error.saying(message).hinting("remove one of the two lines"));
                }
            }
        }
    }
}

/// Whether `to` is reached from `from`.
fn reaches(edges: &BTreeMap<&str, Vec<(&str, Span)>>, from: &str, to: &str) -> bool {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut open = vec![from];
    while let Some(name) = open.pop() {
        if name == to {
            return true;
        }
        if done.insert(name) {
            open.extend(edges.get(name).into_iter().flatten().map(|(next, _)| *next));
        }
    }
    false
}

/// The names under which a host section stands for machines.
fn machine_names(host: &Host) -> Vec<String> {
    match host.kind {
        HostKind::Floating => host.address.iter().map(|a| a.ip.clone()).collect(),
        _ => host.names.clone(),
    }
}
