//! `tandem adm status`: the text of the 8.4 and 9 tools, and their JSON (docs/spec/config-and-cli.md 5.2 and 5.3).

use std::io::IsTerminal;

use serde_json::{Value, json};
use tandem_config::Dialect;
use tandem_daemon::control::messages::{ResourceReport, StatusReport, VolumeReport};

use crate::adm::{connection_of_nine, replication_of_nine};
use crate::arguments::Arguments;
use crate::configuration::Configuration;
use crate::daemon;
use crate::failure::Failure;
use crate::invocation::Invocation;
use crate::output::{out, out_line};

/// Which generation's text is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Eight,
    Nine,
}

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Detail {
    form: Form,
    verbose: bool,
    statistics: bool,
    to_terminal: bool,
}

/// Runs the command. The configuration only tells which form is wanted: a broken one must not hide the status.
pub(crate) fn run(invocation: &Invocation, arguments: &Arguments) -> Result<u8, Failure> {
    let names: Vec<&String> = arguments
        .targets
        .iter()
        .filter(|name| *name != "all")
        .collect();
    let configuration = Configuration::load(invocation, arguments).ok();
    let form = match (arguments.value("compat"), &configuration) {
        (Some("9"), _) => Form::Nine,
        (None, Some(known)) if known.config.dialect == Dialect::V9 => Form::Nine,
        _ => Form::Eight,
    };
    let mut resources = all(invocation)?.resources;
    if !names.is_empty() {
        for name in &names {
            if !resources.iter().any(|resource| &resource.name == *name) {
                return Err(Configuration::not_up(
                    invocation,
                    configuration.as_ref(),
                    name,
                ));
            }
        }
        resources.retain(|resource| names.contains(&&resource.name));
    }
    if arguments.has("json") {
        out_line(&json_text(&resources));
        return Ok(0);
    }
    if resources.is_empty() {
        out_line("# No currently configured DRBD found.");
        return Ok(0);
    }
    let detail = Detail {
        form,
        verbose: arguments.has("verbose"),
        statistics: arguments.has("statistics"),
        to_terminal: std::io::stdout().is_terminal(),
    };
    for resource in &resources {
        out(&text(resource, detail));
    }
    Ok(0)
}

/// The status of everything; nothing if no daemon runs.
fn all(invocation: &Invocation) -> Result<StatusReport, Failure> {
    let nothing = StatusReport {
        schema: tandem_daemon::control::messages::SCHEMA,
        resources: Vec::new(),
    };
    let Some(mut client) = daemon::running(invocation)? else {
        return Ok(nothing);
    };
    let status = client
        .status(None)
        .map_err(|error| daemon::failed(invocation, &error))?;
    Ok(status.unwrap_or(nothing))
}

pub(super) fn yes(on: bool) -> &'static str {
    if on { "yes" } else { "no" }
}

/// Why I/O is suspended, in upstream's order; empty if it is not.
pub(super) fn suspended(resource: &ResourceReport) -> String {
    let any = |of: fn(&VolumeReport) -> bool| resource.volumes.iter().any(of);
    let reasons = [
        (any(|v| v.suspended_user), "user"),
        (any(|v| v.suspended_no_data), "no-data"),
        (any(|v| v.suspended_fencing), "fencing"),
    ];
    let words: Vec<&str> = reasons
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, word)| *word)
        .collect();
    words.join(",")
}

pub(super) fn resync_suspended(volume: &VolumeReport) -> String {
    let reasons = [
        (volume.paused_user, "user"),
        (volume.paused_peer, "peer"),
        (volume.paused_dependency, "dependency"),
    ];
    let words: Vec<&str> = reasons
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, word)| *word)
        .collect();
    words.join(",")
}

fn peer_name(resource: &ResourceReport, form: Form) -> &str {
    match (form, &resource.peer) {
        (Form::Nine, Some(peer)) => &peer.peer_name,
        _ => "peer",
    }
}

/// One block of text, an empty line behind it.
fn text(resource: &ResourceReport, detail: Detail) -> String {
    let mut text = format!("{} role:{}", resource.name, resource.role);
    let suspended = suspended(resource);
    if !suspended.is_empty() {
        text.push_str(&format!(" suspended:{suspended}"));
    } else if detail.verbose {
        text.push_str(" suspended:no");
    }
    text.push('\n');
    let numbered = detail.verbose || resource.volumes.len() != 1 || resource.volumes[0].number != 0;
    for volume in &resource.volumes {
        text.push_str(&device_line(volume, detail, numbered));
    }
    if resource.peer.is_some() {
        text.push_str(&peer_lines(resource, detail, numbered));
    }
    text.push('\n');
    text
}

fn device_line(volume: &VolumeReport, detail: Detail, numbered: bool) -> String {
    let mut parts = Vec::new();
    if numbered {
        parts.push(format!("volume:{}", volume.number));
    }
    if detail.verbose {
        parts.push(format!("minor:{}", volume.minor));
    }
    parts.push(format!("disk:{}", volume.disk));
    if volume.disk == "Diskless" && (detail.verbose || !detail.to_terminal) {
        parts.push("client:no".to_owned());
    }
    if detail.verbose {
        let backing = volume.backing.as_deref().unwrap_or("none");
        parts.push(format!("backing_dev:{backing}"));
    }
    if detail.verbose || detail.form == Form::Nine {
        parts.push(format!("open:{}", yes(!volume.clients.is_empty())));
    }
    let mut text = format!("  {}\n", parts.join(" "));
    if detail.statistics {
        let counters = &volume.counters;
        text.push_str(&format!(
            "      size:{} read:{} written:{} al-writes:{} bm-writes:{} upper-pending:{}\n      \
             lower-pending:{} al-suspended:{} blocked:no\n",
            volume.bytes / 1024,
            counters.dr,
            counters.dw,
            counters.al,
            counters.bm,
            counters.ap,
            counters.lo,
            yes(volume.al_suspended)
        ));
    }
    text
}

fn peer_lines(resource: &ResourceReport, detail: Detail, numbered: bool) -> String {
    let connection = connection_of_nine(&resource.connection);
    let mut text = format!("  {}", peer_name(resource, detail.form));
    if connection != "Connected" || detail.verbose {
        text.push_str(&format!(" connection:{connection}"));
    }
    if connection != "Connected" {
        text.push('\n');
        return text;
    }
    text.push_str(&format!(" role:{}\n", resource.peer_role));
    for volume in &resource.volumes {
        let mut parts = Vec::new();
        if numbered {
            parts.push(format!("volume:{}", volume.number));
        }
        let replication = replication_of_nine(&volume.connection);
        if detail.form == Form::Eight || detail.verbose || replication != "Established" {
            parts.push(format!("replication:{replication}"));
        }
        parts.push(format!("peer-disk:{}", volume.peer_disk));
        if let Some(resync) = &volume.resync {
            parts.push(format!("done:{:.2}", resync.percent));
        }
        let paused = resync_suspended(volume);
        if !paused.is_empty() {
            parts.push(format!("resync-suspended:{paused}"));
        } else if detail.verbose {
            parts.push("resync-suspended:no".to_owned());
        }
        text.push_str(&format!("    {}\n", parts.join(" ")));
        if detail.statistics {
            let counters = &volume.counters;
            text.push_str(&format!(
                "        received:{} sent:{} out-of-sync:{} pending:{} unacked:{}\n",
                counters.nr, counters.ns, counters.oos, counters.pe, counters.ua
            ));
        }
    }
    text
}

/// The array, one object for each resource.
fn json_text(resources: &[ResourceReport]) -> String {
    let objects: Vec<String> = resources
        .iter()
        .map(|resource| format!("{:#}", json_resource(resource)))
        .collect();
    format!("[\n{}\n]", objects.join(",\n"))
}

fn json_resource(resource: &ResourceReport) -> Value {
    let any = |of: fn(&VolumeReport) -> bool| resource.volumes.iter().any(of);
    let ids = resource.peer.as_ref().and_then(|peer| peer.node_ids);
    let own_id = ids.map_or(-1, |(own, _)| i64::from(own));
    let order = match resource.volumes.first().map(|volume| volume.write_order) {
        Some('f') => "flush",
        Some('d') => "drain",
        Some('b') => "barrier",
        _ => "none",
    };
    let connections: Vec<Value> = resource
        .peer
        .iter()
        .map(|_| json_connection(resource))
        .collect();
    json!({
        "name": resource.name,
        "node-id": own_id,
        "role": resource.role,
        "suspended": !suspended(resource).is_empty(),
        "suspended-user": any(|v| v.suspended_user),
        "suspended-no-data": any(|v| v.suspended_no_data),
        "suspended-fencing": any(|v| v.suspended_fencing),
        "suspended-quorum": false,
        "force-io-failures": false,
        "write-ordering": order,
        "devices": resource.volumes.iter().map(json_device).collect::<Vec<_>>(),
        "connections": connections,
    })
}

fn json_device(volume: &VolumeReport) -> Value {
    let counters = &volume.counters;
    json!({
        "volume": volume.number,
        "minor": volume.minor,
        "disk-state": volume.disk,
        "client": false,
        "open": !volume.clients.is_empty(),
        "quorum": true,
        "size": volume.bytes / 1024,
        "read": counters.dr,
        "written": counters.dw,
        "al-writes": counters.al,
        "bm-writes": counters.bm,
        "upper-pending": counters.ap,
        "lower-pending": counters.lo,
    })
}

fn json_connection(resource: &ResourceReport) -> Value {
    let Some(peer) = &resource.peer else {
        return Value::Null;
    };
    let connection = connection_of_nine(&resource.connection);
    let end = |address: std::net::SocketAddr| {
        json!({
            "address": address.ip().to_string(),
            "port": address.port(),
            "family": if address.is_ipv4() { "ipv4" } else { "ipv6" },
        })
    };
    json!({
        "peer-node-id": peer.node_ids.map_or(-1, |(_, id)| i64::from(id)),
        "name": peer.peer_name,
        "connection-state": connection,
        "congested": false,
        "peer-role": resource.peer_role,
        "tls": false,
        "paths": [{
            "this_host": end(peer.my_address),
            "remote_host": end(peer.peer_address),
            "established": connection == "Connected",
        }],
        "peer_devices": resource.volumes.iter().map(json_peer_device).collect::<Vec<_>>(),
    })
}

fn json_peer_device(volume: &VolumeReport) -> Value {
    let counters = &volume.counters;
    let kib = volume.bytes / 1024;
    // Counts of a device fit the 52 bits of a float.
    #[expect(clippy::cast_precision_loss, reason = "for a percentage")]
    let in_sync = if kib == 0 {
        0.0
    } else {
        kib.saturating_sub(counters.oos) as f64 * 100.0 / kib as f64
    };
    let paused = resync_suspended(volume);
    let verify = matches!(volume.connection.as_str(), "VerifyS" | "VerifyT");
    let mut value = json!({
        "volume": volume.number,
        "replication-state": replication_of_nine(&volume.connection),
        "peer-disk-state": volume.peer_disk,
        "peer-client": false,
        "resync-suspended": if paused.is_empty() { "no".to_owned() } else { paused },
        "received": counters.nr,
        "sent": counters.ns,
        "out-of-sync": counters.oos,
        "pending": counters.pe,
        "unacked": counters.ua,
        "has-sync-details": volume.resync.is_some(),
        "has-online-verify-details": verify,
        "percent-in-sync": (in_sync * 100.0).round() / 100.0,
    });
    if let (Some(resync), Some(map)) = (&volume.resync, value.as_object_mut()) {
        // Sectors, as the tools count them; a block is 8.
        let mut details = vec![
            ("rs-total", json!(resync.total * 8)),
            ("rs-dt-start-ms", json!(resync.elapsed_ms)),
            ("want", json!(resync.want_kib)),
            ("percent-resync-done", json!(resync.percent)),
            (
                "estimated-seconds-to-finish",
                json!(resync.seconds_left.unwrap_or(0)),
            ),
        ];
        details.extend(if verify {
            [
                ("ov-left", json!(resync.left * 8)),
                ("ov-skipped", json!(resync.failed * 8)),
            ]
        } else {
            [
                ("rs-failed", json!(resync.failed * 8)),
                ("rs-same-csum", json!(resync.same * 8)),
            ]
        });
        for (key, detail) in details {
            map.insert(key.to_owned(), detail);
        }
    }
    value
}

#[cfg(test)]
pub(crate) mod tests {
    use tandem_daemon::control::messages::{ConnectionDefinition, CounterReport, ResyncReport};

    use super::*;

    pub(crate) fn volume(number: u16) -> VolumeReport {
        VolumeReport {
            number,
            minor: u32::from(number),
            device: format!("/dev/drbd{number}"),
            backing: Some("/dev/vdb".to_owned()),
            role: "Primary".to_owned(),
            peer_role: "Secondary".to_owned(),
            connection: "Connected".to_owned(),
            disk: "UpToDate".to_owned(),
            peer_disk: "UpToDate".to_owned(),
            suspended_user: false,
            suspended_no_data: false,
            suspended_fencing: false,
            paused_dependency: false,
            paused_peer: false,
            paused_user: false,
            al_suspended: false,
            bytes: 1 << 20,
            was_degraded: false,
            disk_error: None,
            uuids: None,
            write_order: 'f',
            counters: CounterReport {
                oos: 256,
                ..CounterReport::default()
            },
            resync: None,
            verified: None,
            clients: Vec::new(),
            nbd: Vec::new(),
        }
    }

    pub(crate) fn resource() -> ResourceReport {
        ResourceReport {
            name: "r0".to_owned(),
            failed: None,
            role: "Primary".to_owned(),
            peer_role: "Secondary".to_owned(),
            connection: "Connected".to_owned(),
            version: Some(101),
            peer_versions: Some([100, 101]),
            protocol: Some("C".to_owned()),
            last_error: None,
            outdated_net: None,
            peer: Some(ConnectionDefinition {
                my_name: "alpha".to_owned(),
                peer_name: "bravo".to_owned(),
                my_address: "10.1.1.1:7788".parse().unwrap(),
                peer_address: "10.1.1.2:7788".parse().unwrap(),
                node_ids: Some((1, 0)),
            }),
            volumes: vec![volume(0)],
        }
    }

    const DETAIL: Detail = Detail {
        form: Form::Eight,
        verbose: false,
        statistics: false,
        to_terminal: true,
    };

    #[test]
    fn text_is_that_of_the_tools() {
        assert_eq!(
            text(&resource(), DETAIL),
            "r0 role:Primary\n  disk:UpToDate\n  peer role:Secondary\n    replication:Established peer-disk:UpToDate\n\n"
        );
        let nine = Detail {
            form: Form::Nine,
            ..DETAIL
        };
        assert_eq!(
            text(&resource(), nine),
            "r0 role:Primary\n  disk:UpToDate open:no\n  bravo role:Secondary\n    peer-disk:UpToDate\n\n"
        );
    }

    #[test]
    fn a_lost_connection_hides_what_is_not_known() {
        let mut lost = resource();
        lost.connection = "WFConnection".to_owned();
        assert_eq!(
            text(&lost, DETAIL),
            "r0 role:Primary\n  disk:UpToDate\n  peer connection:Connecting\n\n"
        );
    }

    #[test]
    fn several_volumes_are_numbered_and_a_resync_shows_its_progress() {
        let mut two = resource();
        two.volumes.push(volume(1));
        two.volumes[0].connection = "SyncTarget".to_owned();
        two.volumes[0].resync = Some(ResyncReport {
            total: 100,
            left: 50,
            failed: 0,
            same: 0,
            percent: 50.0,
            elapsed_ms: 1,
            rate_kib: 0,
            want_kib: 0,
            seconds_left: None,
        });
        let nine = Detail {
            form: Form::Nine,
            ..DETAIL
        };
        let shown = text(&two, nine);
        assert!(
            shown.contains("volume:0 replication:SyncTarget peer-disk:UpToDate done:50.00"),
            "{shown}"
        );
        assert!(
            shown.contains("    volume:1 peer-disk:UpToDate\n"),
            "{shown}"
        );
    }

    #[test]
    fn json_has_the_keys_of_the_tools() {
        let value = json_resource(&resource());
        assert_eq!(value["node-id"], 1);
        assert_eq!(value["devices"][0]["disk-state"], "UpToDate");
        let connection = &value["connections"][0];
        assert_eq!(connection["connection-state"], "Connected");
        assert_eq!(connection["paths"][0]["this_host"]["port"], 7788);
        assert_eq!(connection["peer_devices"][0]["percent-in-sync"], 75.0);
        assert!(json_text(&[resource(), resource()]).starts_with("[\n{"));
    }
}
