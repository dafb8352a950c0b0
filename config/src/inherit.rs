//! Inheritance: `common` or template < resource < host, volume or connection (spec section 1.5), seen from one node
//! (section 1.6).

use thiserror::Error;

use crate::diagnostics::{Code, Diagnostic};
use crate::effective::{
    DiskOptions, GlobalOptions, Handlers, NetOptions, Node, PeerPath, ResolvedPeer,
    ResolvedResource, ResolvedVolume, ResourceOptions, StartupOptions, WrittenSections,
};
use crate::model::{
    Config, Connection, Dialect, Host, HostKind, Options, Resource, Sections, Value, parse_ip,
};

/// Why a node has no view of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// No such resource, or none of its hosts is this node (exit code 1 of `drbdadm`).
    #[error("'{resource}' not defined in your config (for this host)")]
    NotHere {
        /// The name asked for.
        resource: String,
        /// The host names of the resource; empty if there is no such resource.
        hosts: Vec<String>,
    },
    /// More than one host section is this node's.
    #[error(
        "{place}: resource {resource}: sections {first} and {second} both match this host {node}"
    )]
    Ambiguous {
        /// The resource.
        resource: String,
        /// `FILE:LINE:COLUMN` of the second one.
        place: String,
        /// The first section's name.
        first: String,
        /// The second section's name.
        second: String,
        /// This node.
        node: String,
    },
}

/// How a configured host name fits the name of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameMatch {
    /// The same but for case.
    Whole,
    /// Only the first labels are the same, since one of the two has no domain.
    FirstLabel,
    /// Another host.
    No,
}

/// Compares host names as dialect 9 does (spec section 1.6).
#[must_use]
pub fn match_names(configured: &str, own: &str) -> NameMatch {
    if configured.eq_ignore_ascii_case(own) {
        return NameMatch::Whole;
    }
    let label = |name: &str| name.split('.').next().unwrap_or("").to_ascii_lowercase();
    let short = !configured.contains('.') || !own.contains('.');
    if short && label(configured) == label(own) {
        NameMatch::FirstLabel
    } else {
        NameMatch::No
    }
}

fn match_host(host: &Host, node: &Node) -> NameMatch {
    if host.kind == HostKind::Floating {
        let Some(ip) = host.address.as_ref().and_then(|a| a.ip_addr()) else {
            return NameMatch::No;
        };
        let own = node.addresses.iter().any(|text| parse_ip(text) == Some(ip));
        return if own { NameMatch::Whole } else { NameMatch::No };
    }
    let matches: Vec<_> = host
        .names
        .iter()
        .map(|name| match_names(name, &node.name))
        .collect();
    let has = |wanted| matches.contains(&wanted);
    if has(NameMatch::Whole) {
        NameMatch::Whole
    } else if has(NameMatch::FirstLabel) {
        NameMatch::FirstLabel
    } else {
        NameMatch::No
    }
}

impl Config {
    /// `global`, with defaults.
    #[must_use]
    pub fn global_options(&self) -> GlobalOptions {
        GlobalOptions::from_written(&self.global)
    }

    /// One resource as `node` sees it.
    ///
    /// # Errors
    /// [`ResolveError`]: there is none of this name for this node, or two host sections match.
    pub fn resource_for(&self, name: &str, node: &Node) -> Result<ResolvedResource, ResolveError> {
        let not_here = |hosts| ResolveError::NotHere {
            resource: name.to_owned(),
            hosts,
        };
        let Some(resource) = self.resource(name) else {
            return Err(not_here(Vec::new()));
        };
        match self.own_host(resource, node)? {
            Some(own) => Ok(self.resolve(resource, own, node)),
            None => Err(not_here(resource.hosts.iter().map(Host::name).collect())),
        }
    }

    /// All resources of `node`, in file order; those without a section for it are left out.
    ///
    /// # Errors
    /// [`ResolveError::Ambiguous`].
    pub fn resources_for(&self, node: &Node) -> Result<Vec<ResolvedResource>, ResolveError> {
        let mut out = Vec::new();
        for resource in &self.resources {
            if let Some(own) = self.own_host(resource, node)? {
                out.push(self.resolve(resource, own, node));
            }
        }
        Ok(out)
    }

    /// The index of the host section that is `node`'s.
    ///
    /// # Errors
    /// [`ResolveError::Ambiguous`].
    pub fn own_host(
        &self,
        resource: &Resource,
        node: &Node,
    ) -> Result<Option<usize>, ResolveError> {
        let mut own: Option<usize> = None;
        for (index, host) in resource.hosts.iter().enumerate() {
            if match_host(host, node) == NameMatch::No {
                continue;
            }
            if let Some(first) = own {
                return Err(ResolveError::Ambiguous {
                    resource: resource.name.clone(),
                    place: self.files.place(host.at),
                    first: resource.hosts[first].name(),
                    second: host.name(),
                    node: node.name.clone(),
                });
            }
            own = Some(index);
        }
        Ok(own)
    }

    fn resolve(&self, resource: &Resource, own: usize, node: &Node) -> ResolvedResource {
        let host = &resource.hosts[own];
        let base = self.base_of(resource);
        let ids = resource.implicit_node_ids();
        let id_of = |index: usize| {
            resource.hosts[index]
                .node_id
                .or_else(|| ids.and_then(|ids| ids.get(index).copied()))
        };
        let peers: Vec<ResolvedPeer> = resource
            .connections
            .iter()
            .filter(|c| c.hosts.contains(&own))
            .map(|c| resolve_peer(resource, c, own, base, &id_of))
            .collect();
        let written = WrittenSections {
            startup: layers(&[base.map(|b| &b.startup), Some(&resource.sections.startup)]),
            options: layers(&[
                base.map(|b| &b.options),
                Some(&resource.sections.options),
                Some(&host.options),
            ]),
            handlers: layers(&[base.map(|b| &b.handlers), Some(&resource.sections.handlers)]),
        };
        let mut warnings = Vec::new();
        if match_host(host, node) == NameMatch::FirstLabel {
            let message = format!(
                "section {} is taken for this host {}: only the first labels are the same",
                host.name(),
                node.name
            );
            warnings.push(Diagnostic::warning(Code::HostShortMatch, host.at, message));
        }
        ResolvedResource {
            name: resource.name.clone(),
            at: resource.at,
            host: host.name(),
            host_index: own,
            stacked_on: (host.kind == HostKind::Stacked)
                .then(|| resource.stacked_on.clone())
                .flatten(),
            node_id: id_of(own),
            address: host.address.clone(),
            volumes: self.resolve_volumes(resource, host, base, &peers, node),
            peers,
            startup: StartupOptions::from_written(&written.startup),
            options: ResourceOptions::from_written(&written.options),
            handlers: Handlers::from_written(&written.handlers),
            written,
            warnings,
        }
    }

    /// What a resource inherits from: its template, or `common`.
    pub(crate) fn base_of<'a>(&'a self, resource: &'a Resource) -> Option<&'a Sections> {
        resource
            .template
            .as_ref()
            .map(|t| &t.common)
            .or(self.common.as_ref())
    }

    fn resolve_volumes(
        &self,
        resource: &Resource,
        host: &Host,
        base: Option<&Sections>,
        peers: &[ResolvedPeer],
        node: &Node,
    ) -> Vec<ResolvedVolume> {
        let after = self.resync_after_groups(resource, base, node);
        host.volumes
            .iter()
            .map(|volume| {
                let written = layers(&[
                    base.map(|b| &b.disk),
                    Some(&resource.sections.disk),
                    Some(&volume.disk_options),
                ]);
                // In dialect 9 resync options belong to a pair of hosts; with one peer there is one pair.
                let mut for_pair = written.clone();
                if let [peer] = peers {
                    for_pair.overlay(&peer.disk);
                    for (_, options) in peer.volumes.iter().filter(|(n, _)| *n == volume.number) {
                        for_pair.overlay(options);
                    }
                }
                let mut disk_options = DiskOptions::from_written(&for_pair);
                if disk_options.resync_after.is_empty() {
                    disk_options.resync_after.clone_from(&after);
                }
                ResolvedVolume {
                    number: volume.number,
                    implicit: volume.implicit,
                    device: volume.device.clone(),
                    disk: self
                        .lower_device(resource, host, volume.number, node)
                        .or_else(|| volume.disk.clone()),
                    meta_disk: volume.meta_disk.clone(),
                    disk_options,
                    written,
                }
            })
            .collect()
    }

    /// The device of the lower resource on this node, for a stacked one.
    fn lower_device(
        &self,
        resource: &Resource,
        host: &Host,
        number: u16,
        node: &Node,
    ) -> Option<String> {
        if host.kind != HostKind::Stacked {
            return None;
        }
        let lower = self.resource(resource.stacked_on.as_deref()?)?;
        let own = lower
            .hosts
            .iter()
            .find(|h| match_host(h, node) != NameMatch::No)?;
        own.volumes
            .iter()
            .find(|v| v.number == number)
            .map(|v| v.device.path.clone())
    }

    /// The groups of 0.7 as names to wait for: every resource of a lower group on this node (spec section 1.8).
    fn resync_after_groups(
        &self,
        resource: &Resource,
        base: Option<&Sections>,
        node: &Node,
    ) -> Vec<String> {
        if self.dialect != Dialect::V07 {
            return Vec::new();
        }
        let group = |r: &Resource, base: Option<&Sections>| {
            r.sections
                .group
                .or_else(|| base.and_then(|b| b.group))
                .unwrap_or(0)
        };
        let own = group(resource, base);
        self.resources
            .iter()
            .filter(|other| group(other, self.base_of(other)) < own)
            .filter(|other| {
                other
                    .hosts
                    .iter()
                    .any(|h| match_host(h, node) != NameMatch::No)
            })
            .map(|other| other.name.clone())
            .collect()
    }
}

fn resolve_peer(
    resource: &Resource,
    connection: &Connection,
    own: usize,
    base: Option<&Sections>,
    id_of: &dyn Fn(usize) -> Option<u8>,
) -> ResolvedPeer {
    let (near, far) = if connection.hosts[0] == own {
        (0, 1)
    } else {
        (1, 0)
    };
    let peer_index = connection.hosts[far];
    let (local, peer) = (&resource.hosts[own], &resource.hosts[peer_index]);
    let mut written = layers(&[
        base.map(|b| &b.net),
        Some(&resource.sections.net),
        Some(&connection.net),
    ]);
    for setting in written.iter_mut() {
        let Value::Text(text) = &setting.value else {
            continue;
        };
        let Some(loser) = text.strip_prefix("discard-node-") else {
            continue;
        };
        // Whose data is discarded depends on where one looks from.
        let is = |host: &Host| {
            host.names
                .iter()
                .any(|n| match_names(n, loser) != NameMatch::No)
        };
        let word = if is(local) {
            "discard-local"
        } else if is(peer) {
            "discard-remote"
        } else {
            continue;
        };
        setting.value = Value::Text(word.to_owned());
        setting.text = word.to_owned();
    }
    ResolvedPeer {
        name: peer.name(),
        host_index: peer_index,
        node_id: id_of(peer_index),
        paths: connection
            .paths
            .iter()
            .map(|p| PeerPath {
                local: p[near].clone(),
                remote: p[far].clone(),
            })
            .collect(),
        net: NetOptions::from_written(&written),
        written,
        disk: connection.disk.clone(),
        volumes: connection.volumes.clone(),
    }
}

/// Options laid over each other, the last one on top.
fn layers(sources: &[Option<&Options>]) -> Options {
    let mut out = Options::default();
    for source in sources.iter().flatten() {
        out.overlay(source);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_compare_by_first_label_only_where_one_has_no_domain() {
        assert_eq!(
            match_names("astapor.got.com", "astapor"),
            NameMatch::FirstLabel
        );
        assert_eq!(match_names("ALPHA", "alpha"), NameMatch::Whole);
        assert_eq!(match_names("a.x.org", "a.y.org"), NameMatch::No);
        assert_eq!(match_names("alpha", "alpha.x.org"), NameMatch::FirstLabel);
        assert_eq!(match_names("alpha", "beta"), NameMatch::No);
    }
}
