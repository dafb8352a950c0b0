//! From the engine's status to what watchers and clients are told.

use std::collections::BTreeMap;

use tandem_replicator::state::word::Role;
use tandem_replicator::status::{
    Counters, ResourceStatus, ResyncStatus, VerifiedStatus, VolumeStatus,
};
use tandem_replicator::{Protocol, VolumeNumber};

use crate::control::messages::{
    CounterReport, ResourceDefinition, ResourceReport, ResyncReport, VerifiedReport, VolumeReport,
};

/// What NBD clients need to know of a volume that is served now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExportFacts {
    pub(crate) bytes: u64,
    pub(crate) logical_block: u32,
    pub(crate) discard: bool,
}

/// What a loop makes public.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Published {
    pub(crate) report: ResourceReport,
    /// Volumes that clients may use.
    pub(crate) exports: BTreeMap<u16, ExportFacts>,
}

impl Published {
    /// A resource whose loop does not run (any more, or yet).
    pub(crate) fn failed(definition: &ResourceDefinition, failed: Option<String>) -> Published {
        Published {
            report: ResourceReport {
                name: definition.name.clone(),
                failed,
                role: "Secondary".to_owned(),
                peer_role: "Unknown".to_owned(),
                connection: "StandAlone".to_owned(),
                version: None,
                peer_versions: None,
                protocol: None,
                last_error: None,
                peer: definition.connection.clone(),
                outdated_net: None,
                volumes: Vec::new(),
            },
            exports: BTreeMap::new(),
        }
    }
}

/// The report of a resource. `clients` tells who holds a volume open, `uris` where it is served.
pub(crate) fn resource_report(
    status: &ResourceStatus,
    definition: &ResourceDefinition,
    clients: impl Fn(VolumeNumber) -> Vec<String>,
    uris: impl Fn(VolumeNumber) -> Vec<String>,
) -> ResourceReport {
    let volumes: Vec<VolumeReport> = status
        .volumes
        .iter()
        .map(|volume| {
            let mut report = volume_report(volume, definition);
            report.clients = clients(volume.number);
            report.nbd = uris(volume.number);
            report
        })
        .collect();
    let any = |role: &str, of: fn(&VolumeReport) -> &str| volumes.iter().any(|v| of(v) == role);
    let role = if any("Primary", |v| &v.role) {
        "Primary"
    } else {
        "Secondary"
    };
    let peer_role = ["Primary", "Secondary"]
        .into_iter()
        .find(|role| any(role, |v| &v.peer_role))
        .unwrap_or("Unknown");
    ResourceReport {
        name: status.name.clone(),
        failed: None,
        role: role.to_owned(),
        peer_role: peer_role.to_owned(),
        connection: status.connection.name().to_owned(),
        version: status.version,
        peer_versions: status
            .peer_versions
            .map(|versions| [versions.min, versions.max]),
        protocol: status.protocol.map(|protocol| {
            match protocol {
                Protocol::A => "A",
                Protocol::B => "B",
                Protocol::C => "C",
            }
            .to_owned()
        }),
        last_error: status.last_error.clone(),
        peer: definition.connection.clone(),
        outdated_net: None,
        volumes,
    }
}

fn volume_report(status: &VolumeStatus, definition: &ResourceDefinition) -> VolumeReport {
    let configured = definition
        .volumes
        .iter()
        .find(|candidate| candidate.number == status.number.0);
    let state = &status.state;
    let role = |role: Role| role.name().to_owned();
    VolumeReport {
        number: status.number.0,
        minor: status.minor,
        device: configured
            .map(|volume| volume.device.clone())
            .unwrap_or_default(),
        backing: configured.and_then(|volume| volume.disk.clone()),
        role: role(state.role),
        peer_role: role(state.peer),
        connection: state.conn.name().to_owned(),
        disk: state.disk.name().to_owned(),
        peer_disk: state.pdsk.name().to_owned(),
        suspended_user: state.susp,
        suspended_no_data: state.susp_nod,
        suspended_fencing: state.susp_fen,
        paused_dependency: state.aftr_isp,
        paused_peer: state.peer_isp,
        paused_user: state.user_isp,
        al_suspended: status.al_suspended,
        bytes: status.bytes,
        was_degraded: status.was_degraded,
        disk_error: status.disk_error.clone(),
        uuids: status
            .uuids
            .map(|uuids| uuids.map(|uuid| format!("{uuid:016X}"))),
        write_order: status.write_order,
        counters: counter_report(&status.counters),
        resync: status.resync.as_ref().map(resync_report),
        verified: status.verified.as_ref().map(verified_report),
        clients: Vec::new(),
        nbd: Vec::new(),
    }
}

fn counter_report(counters: &Counters) -> CounterReport {
    CounterReport {
        ns: counters.sent_kib,
        nr: counters.received_kib,
        dw: counters.disk_written_kib,
        dr: counters.disk_read_kib,
        al: counters.al_writes,
        bm: counters.bm_writes,
        lo: counters.local_count,
        pe: counters.pending,
        ua: counters.unacked,
        ap: counters.application,
        ep: counters.epochs,
        oos: counters.out_of_sync_kib,
    }
}

fn verified_report(verified: &VerifiedStatus) -> VerifiedReport {
    VerifiedReport {
        compared: verified.compared,
        different: verified.different,
        skipped: verified.skipped,
        next_sector: verified.next_sector,
    }
}

fn resync_report(resync: &ResyncStatus) -> ResyncReport {
    let done = resync.total.saturating_sub(resync.left);
    // Two decimals, rounded down: 100.00 means done.
    let hundredths = if resync.total == 0 {
        10_000
    } else {
        u64::try_from(u128::from(done) * 10_000 / u128::from(resync.total)).unwrap_or(10_000)
    };
    ResyncReport {
        total: resync.total,
        left: resync.left,
        failed: resync.failed,
        same: resync.same,
        percent: hundredths as f64 / 100.0,
        elapsed_ms: u64::try_from(resync.elapsed.as_millis()).unwrap_or(u64::MAX),
        rate_kib: resync.rate_kib,
        want_kib: resync.want_kib,
        seconds_left: (resync.left * 4).checked_div(resync.rate_kib),
    }
}
