//! From the configuration's view of a resource to the definition that the daemon is given.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use tandem_config::{Address, MetaDisk, Options, ResolvedResource, ResolvedVolume, Setting, Value};
use tandem_daemon::control::messages as control;

use crate::failure::{CONFIGURATION, Failure};

/// The definition of a resource. `config_file` is what handlers get to see as `DRBD_CONF`.
pub(crate) fn of(
    view: &ResolvedResource,
    config_file: Option<&Path>,
) -> Result<control::ResourceDefinition, Failure> {
    let refusals = view.refusals();
    if let Some(first) = refusals.first() {
        let mut failure = Failure::new(CONFIGURATION, format!("{}: {first}", view.name));
        for more in &refusals[1..] {
            failure = failure.line(format!("{}: {more}", view.name));
        }
        return Err(failure.line("Nothing was changed."));
    }
    let net = view.peers.first().map(|peer| plain(&peer.written));
    Ok(control::ResourceDefinition {
        name: view.name.clone(),
        config_file: config_file
            .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
            .map(|path| path.to_string_lossy().into_owned()),
        volumes: view.volumes.iter().map(|v| volume(view, v)).collect(),
        connection: connection(view)?,
        net: net.unwrap_or_default(),
        options: plain(&view.written.options),
        handlers: plain(&view.written.handlers),
        handler_seconds: None,
    })
}

/// Options with their values in the option's own unit.
pub(crate) fn plain(options: &Options) -> control::Options {
    options
        .iter()
        .map(|setting| (setting.spec.name.to_owned(), text(setting)))
        .collect()
}

fn text(setting: &Setting) -> String {
    match &setting.value {
        Value::Number(number) => number.to_string(),
        Value::Switch(true) => "yes".to_owned(),
        Value::Switch(false) => "no".to_owned(),
        Value::Text(text) => text.clone(),
        Value::Names(names) => names.join(" "),
    }
}

fn volume(view: &ResolvedResource, volume: &ResolvedVolume) -> control::VolumeDefinition {
    let mut written = volume.written.clone();
    if let [peer] = view.peers.as_slice() {
        written.overlay(&peer.disk);
        for (_, options) in peer.volumes.iter().filter(|(n, _)| *n == volume.number) {
            written.overlay(options);
        }
    }
    let mut options = plain(&written);
    // Its home is the net section; the daemon wants it in one place.
    options.remove("fencing");
    let after = &volume.disk_options.resync_after;
    if !after.is_empty() {
        options.insert("resync-after".to_owned(), after.join(" "));
    }
    control::VolumeDefinition {
        number: volume.number,
        minor: volume.device.minor,
        device: volume.device.path.clone(),
        disk: volume.disk.as_deref().map(absolute),
        meta_disk: match &volume.meta_disk {
            MetaDisk::Internal => control::MetaDisk::Internal,
            MetaDisk::Flexible { device } => control::MetaDisk::External {
                path: absolute(device),
            },
            MetaDisk::Indexed { device, index } => control::MetaDisk::Indexed {
                path: absolute(device),
                index: *index,
            },
        },
        options,
    }
}

/// The daemon has another working directory.
fn absolute(path: &str) -> String {
    std::path::absolute(path)
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_else(|_| path.to_owned())
}

fn connection(view: &ResolvedResource) -> Result<Option<control::ConnectionDefinition>, Failure> {
    let Some(peer) = view.peers.first() else {
        return Ok(None);
    };
    let Some(path) = peer.paths.first() else {
        return Ok(None);
    };
    Ok(Some(control::ConnectionDefinition {
        my_name: view.host.clone(),
        peer_name: peer.name.clone(),
        my_address: socket_address(view, &path.local)?,
        peer_address: socket_address(view, &path.remote)?,
        node_ids: view
            .node_id
            .zip(peer.node_id)
            .map(|(own, peer)| (u32::from(own), u32::from(peer))),
    }))
}

/// A socket address; the scope of a link-local one may be the name of an interface.
fn socket_address(view: &ResolvedResource, address: &Address) -> Result<SocketAddr, Failure> {
    let bad = |why: &str| {
        Failure::new(
            CONFIGURATION,
            format!("{}: address {address}: {why}", view.name),
        )
    };
    let mut socket = address
        .socket_addr()
        .ok_or_else(|| bad("not an IP address"))?;
    if let (SocketAddr::V6(v6), Some(scope)) = (&mut socket, address.scope())
        && v6.scope_id() == 0
        && IpAddr::V6(*v6.ip()) != IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)
    {
        let file = format!("/sys/class/net/{scope}/ifindex");
        let index = std::fs::read_to_string(file)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        v6.set_scope_id(index.ok_or_else(|| bad("no network interface of this name"))?);
    }
    Ok(socket)
}
