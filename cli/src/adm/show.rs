//! Commands whose purpose is output: role, cstate, dstate, dump, and the `sh-*` words of scripts.

use tandem_config::dump::{Expansion, config_text, resource_text};
use tandem_config::{Dialect, MetaDisk};
use tandem_daemon::control::messages::{ResourceReport, VolumeReport};

use super::{Run, state};
use crate::configuration::Target;
use crate::daemon;
use crate::failure::{CONFIGURATION, Failure, Outcome};
use crate::invocation::Invocation;
use crate::output::{err, out, out_line};
use crate::words::Action;

/// Minors that the module of old had to prepare for: at least, and at most (docs/spec/config-and-cli.md 4.4).
const MINOR_COUNT: (u32, u32) = (32, 255);

/// Outputs that need the configuration only; `None`: another command.
pub(super) fn run(run: &Run<'_>, targets: &[Target]) -> Option<Outcome> {
    let each = |print: &dyn Fn(&Target)| -> Option<Outcome> {
        targets.iter().for_each(print);
        Some(Ok(()))
    };
    match run.word.action {
        Action::ShNop => Some(Ok(())),
        Action::Dump => Some(dump(run)),
        Action::ShResources => Some(resources(run)),
        Action::ShResource => each(&|target| out_line(&target.view.name)),
        Action::ShDev => each(&|target| {
            target
                .volumes()
                .for_each(|volume| out_line(&volume.device.path));
        }),
        Action::ShMinor => each(&|target| {
            target
                .volumes()
                .for_each(|volume| out_line(&volume.device.minor.to_string()));
        }),
        Action::ShLlDev => each(&|target| {
            target
                .volumes()
                .for_each(|volume| out_line(volume.disk.as_deref().unwrap_or("none")));
        }),
        Action::ShMdDev => each(&|target| {
            target
                .volumes()
                .for_each(|volume| out_line(&crate::backend::metadata_place(volume).0));
        }),
        Action::ShMdIdx => each(&|target| {
            target.volumes().for_each(|volume| {
                out_line(&match &volume.meta_disk {
                    MetaDisk::Internal => "internal".to_owned(),
                    MetaDisk::Flexible { .. } => "flexible".to_owned(),
                    MetaDisk::Indexed { index, .. } => index.to_string(),
                });
            });
        }),
        Action::ShIp => each(&|target| {
            let path = target
                .view
                .peers
                .first()
                .and_then(|peer| peer.paths.first());
            let address = path
                .map(|path| &path.local)
                .or(target.view.address.as_ref());
            let ip = address.map_or("", |address| address.ip.as_str());
            target.volumes().for_each(|_| out_line(ip));
        }),
        Action::ShModParms => Some(module_parameters(run)),
        Action::ShStatus => Some(sh_status(run, targets)),
        _ => None,
    }
}

fn dump(run: &Run<'_>) -> Outcome {
    let configuration = run.configuration;
    let expansion = if run.arguments.has("dry-run") || run.arguments.has("verbose") {
        Expansion::Expanded
    } else {
        Expansion::AsWritten
    };
    for view in configuration.resources()? {
        if let Err(failure) = configuration.check_address(&view) {
            // A service address may not be up yet, and `dump` changes nothing.
            for line in failure.lines {
                err(&format!("warning: {line}"));
            }
        }
    }
    let names: Vec<&String> = run.arguments.targets.iter().collect();
    if names.is_empty() || names.iter().any(|name| *name == "all") {
        if configuration.config.resources.is_empty() {
            err("no resources defined!");
        }
        out(&config_text(
            &configuration.config,
            &configuration.node,
            expansion,
        ));
        return Ok(());
    }
    for name in names {
        let name = name.split(['/', ':']).next().unwrap_or(name);
        // Also of resources that are not this host's.
        match configuration.config.resource(name) {
            Some(resource) => out(&resource_text(
                &configuration.config,
                resource,
                &configuration.node,
                expansion,
            )),
            None => return configuration.resource(run.invocation, name).map(|_| ()),
        }
    }
    Ok(())
}

fn nine(run: &Run<'_>) -> bool {
    match run.arguments.value("compat") {
        Some("9") => true,
        Some(_) => false,
        None => run.configuration.config.dialect == Dialect::V9,
    }
}

fn resources(run: &Run<'_>) -> Outcome {
    let views = run.configuration.resources()?;
    let names: Vec<&str> = views.iter().map(|view| view.name.as_str()).collect();
    if names.is_empty() {
        err("no resources defined for this host!");
        return Ok(());
    }
    out_line(&names.join(if nine(run) { "\n" } else { " " }));
    Ok(())
}

fn module_parameters(run: &Run<'_>) -> Outcome {
    let views = run.configuration.resources()?;
    let minors = views.iter().map(|view| view.volumes.len()).sum::<usize>();
    let wanted = u32::try_from(minors).unwrap_or(u32::MAX).saturating_add(3);
    let count = wanted.clamp(MINOR_COUNT.0, MINOR_COUNT.1);
    out_line(&format!("minor_count={count}"));
    Ok(())
}

/// The text of /proc/drbd as it is now; the daemon's file may be a moment old.
pub(super) fn proc(invocation: &Invocation) -> Outcome {
    let status = daemon::connect(invocation)?
        .status(None)
        .map_err(|error| daemon::failed(invocation, &error))?;
    let resources = status.map_or_else(|_| Vec::new(), |report| report.resources);
    out(&tandem_daemon::proc::text(&resources));
    Ok(())
}

/// `role`, `cstate`, `dstate` (docs/spec/config-and-cli.md 4.6).
pub(super) fn state(run: &Run<'_>, target: &Target) -> Outcome {
    let report = match daemon::running(run.invocation)? {
        Some(mut client) => state::report(run, &mut client, &target.view.name)?,
        None => None,
    };
    let Some(report) = report else {
        return unconfigured(run, target);
    };
    if let Some(failed) = &report.failed {
        let line = format!("{}: its loop does not run: {failed}", target.view.name);
        return Err(Failure::new(crate::failure::CANNOT_RUN, line)
            .next(run.invocation.adm(&format!("down {}", target.view.name))));
    }
    if nine(run) && run.word.action != Action::Dstate {
        out_line(match run.word.action {
            Action::Role => &report.role,
            _ => connection_of_nine(&report.connection),
        });
        return Ok(());
    }
    for volume in target.volumes() {
        let shown = report.volumes.iter().find(|v| v.number == volume.number);
        out_line(&match (shown, run.word.action) {
            (None, _) => "Unconfigured".to_owned(),
            (Some(v), Action::Role) => format!("{}/{}", v.role, v.peer_role),
            (Some(v), Action::Cstate) => v.connection.clone(),
            (Some(v), _) => format!("{}/{}", v.disk, v.peer_disk),
        });
    }
    Ok(())
}

fn unconfigured(run: &Run<'_>, target: &Target) -> Outcome {
    if run.word.action == Action::Dstate {
        return super::metadata::dstate(run, target);
    }
    if nine(run) {
        let line = format!("{}: No such resource", target.view.name);
        return Err(Failure::new(CONFIGURATION, line)
            .next(run.invocation.adm(&format!("up {}", target.view.name))));
    }
    target.volumes().for_each(|_| out_line("Unconfigured"));
    Ok(())
}

/// The connection state of 9, where the replication state is a word of its own.
pub(crate) fn connection_of_nine(connection: &str) -> &str {
    match connection {
        "StandAlone" | "Disconnecting" | "Unconnected" | "Timeout" | "BrokenPipe"
        | "NetworkFailure" | "ProtocolError" | "TearDown" => connection,
        "WFConnection" | "WFReportParams" => "Connecting",
        _ => "Connected",
    }
}

/// The replication state of 9.
pub(crate) fn replication_of_nine(connection: &str) -> &str {
    match connection {
        "Connected" => "Established",
        other if connection_of_nine(other) == "Connected" => other,
        _ => "Off",
    }
}

/// `sh-status`: shell assignments for the 8.x half of the cluster agent (docs/spec/config-and-cli.md 5.7).
fn sh_status(run: &Run<'_>, targets: &[Target]) -> Outcome {
    let chosen: Vec<Target> = if targets.is_empty() {
        let views = run.configuration.resources()?;
        views
            .into_iter()
            .map(|view| Target { view, volume: None })
            .collect()
    } else {
        targets.to_vec()
    };
    let quote = crate::invocation::quoted;
    out_line(&format!("_drbd_version={}", env!("CARGO_PKG_VERSION")));
    out_line("_drbd_api=1");
    out_line(&format!(
        "_config_file={}\n\n",
        quote(&run.invocation.config_path().to_string_lossy())
    ));
    let mut client = daemon::running(run.invocation)?;
    for target in &chosen {
        let report = match &mut client {
            Some(client) => state::report(run, client, &target.view.name)?,
            None => None,
        };
        out_line(&format!(
            "_conf_res_name={}\n_conf_file_line={}:{}\n",
            quote(&target.view.name),
            quote(run.configuration.config.files.name(target.view.at.file)),
            target.view.at.line
        ));
        out_line("_stacked_on=\n_stacked_on_device=\n_stacked_on_minor=");
        for volume in target.volumes() {
            out_line(&format!("_conf_volume={}", volume.number));
            let shown = report
                .as_ref()
                .and_then(|report| report.volumes.iter().find(|v| v.number == volume.number));
            out(&sh_status_volume(
                &target.view.name,
                volume.number,
                volume.device.minor,
                report.as_ref().zip(shown),
            ));
        }
    }
    Ok(())
}

fn sh_status_volume(
    name: &str,
    number: u16,
    minor: u32,
    shown: Option<(&ResourceReport, &VolumeReport)>,
) -> String {
    let flag = |on: bool| if on { "1" } else { "" };
    let known = if shown.is_some() {
        "Configured"
    } else {
        "Unconfigured"
    };
    let mut text = format!(
        "_minor={minor}\n_res_name={}\n_volume={number}\n_known={known}\n\n",
        crate::invocation::quoted(name)
    );
    let Some((_, volume)) = shown else {
        text.push_str(
            "_cstate=Unconfigured\n_role=\n_peer=\n_disk=\n_pdsk=\n_flags_susp=\n_flags_aftr_isp=\n\
             _flags_peer_isp=\n_flags_user_isp=\n\n_resynced_percent=\n\n_sh_status_process\n\n\n",
        );
        return text;
    };
    let suspended = volume.suspended_user || volume.suspended_no_data || volume.suspended_fencing;
    text.push_str(&format!(
        "_cstate={}\n_role={}\n_peer={}\n_disk={}\n_pdsk={}\n",
        volume.connection, volume.role, volume.peer_role, volume.disk, volume.peer_disk
    ));
    text.push_str(&format!(
        "_flags_susp={}\n_flags_aftr_isp={}\n_flags_peer_isp={}\n_flags_user_isp={}\n\n",
        flag(suspended),
        flag(volume.paused_dependency),
        flag(volume.paused_peer),
        flag(volume.paused_user)
    ));
    let percent = volume
        .resync
        .map_or_else(String::new, |resync| format!("{:.1}", resync.percent));
    text.push_str(&format!(
        "_resynced_percent={percent}\n\n_sh_status_process\n\n\n"
    ));
    text
}
