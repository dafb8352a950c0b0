//! The backend steps of each command as upstream's 8.4 tools would type them: printed by `-d` and `-v`, and named when
//! a step fails (docs/spec/config-and-cli.md 4.9 and 4.10).

use tandem_config::{MetaDisk, Options, ResolvedResource, ResolvedVolume, Value};

use crate::arguments::Arguments;
use crate::configuration::Target;
use crate::invocation::quoted;
use crate::words::{Action, Word};

/// The steps of a command on one target, with the options of the command line that go to them.
pub(crate) fn steps(word: &Word, target: &Target, arguments: &Arguments) -> Vec<String> {
    let mut steps = bare(word, target, arguments);
    let tail = tail(word, target, arguments);
    steps.iter_mut().for_each(|step| step.push_str(&tail));
    steps
}

/// Options of the command line as they stand behind each step. Where the step has them already: nothing.
fn tail(word: &Word, target: &Target, arguments: &Arguments) -> String {
    let own = |name: &str| match word.action {
        Action::Down
        | Action::Disconnect
        | Action::Resize
        | Action::Verify
        | Action::Invalidate
        | Action::InvalidateRemote
        | Action::CreateMd
        | Action::DumpMd
        | Action::WipeMd
        | Action::ApplyAl
        | Action::SetGi
        | Action::WaitConnect
        | Action::WaitSync => word.options.contains(&name),
        _ => false,
    };
    let mut settings: Vec<(&str, Option<&str>)> = Vec::new();
    if matches!(word.action, Action::WaitConnect | Action::WaitSync) {
        let written = target.view.written.startup.iter();
        let limits = written.filter(|setting| own(setting.spec.name));
        settings.extend(limits.filter_map(|setting| match setting.value {
            Value::Switch(false) => None,
            Value::Switch(true) => Some((setting.spec.name, None)),
            _ => Some((setting.spec.name, Some(setting.text.as_str()))),
        }));
    }
    for given in arguments.options.iter().filter(|given| own(given.name)) {
        // The last one counts.
        settings.retain(|(name, _)| *name != given.name);
        settings.push((given.name, given.value.as_deref()));
    }
    let text = |(name, value): (&str, Option<&str>)| match value {
        Some(value) => format!(" --{name}={}", quoted(value)),
        None => format!(" --{name}"),
    };
    settings.into_iter().map(text).collect()
}

fn bare(word: &Word, target: &Target, arguments: &Arguments) -> Vec<String> {
    let view = &target.view;
    let each = |verb: &str| -> Vec<String> {
        target
            .volumes()
            .map(|volume| format!("drbdsetup {verb} {}", volume.device.minor))
            .collect()
    };
    let metadata = |command: &str| -> Vec<String> {
        target
            .volumes()
            .map(|volume| drbdmeta(volume, command))
            .collect()
    };
    let force = force_given(arguments);
    match word.action {
        Action::Up => {
            let mut steps = objects(view);
            steps.extend(target.volumes().flat_map(attach));
            steps.extend(connect(view, arguments));
            steps
        }
        Action::Adjust => {
            let mut steps = objects(view);
            if !arguments.has("skip-disk") {
                steps.extend(target.volumes().flat_map(attach));
            }
            if !arguments.has("skip-net") {
                steps.extend(connect(view, arguments));
            }
            steps
        }
        Action::NewResource => objects(view),
        Action::Attach => target.volumes().flat_map(attach).collect(),
        Action::Connect => connect(view, arguments).into_iter().collect(),
        Action::Disconnect => disconnect(view).into_iter().collect(),
        Action::Down => vec![format!("drbdsetup down {}", quoted(&view.name))],
        Action::Primary => each(if force { "primary --force" } else { "primary" }),
        Action::Secondary => each("secondary"),
        Action::Detach => each(if force { "detach --force" } else { "detach" }),
        Action::NewCurrentUuid => each(if arguments.has("clear-bitmap") {
            "new-current-uuid --clear-bitmap"
        } else {
            "new-current-uuid"
        }),
        Action::CreateMd => metadata("create-md"),
        Action::DumpMd => metadata("dump-md"),
        Action::WipeMd => metadata("wipe-md"),
        Action::ApplyAl => metadata("apply-al"),
        Action::SetGi => metadata("set-gi"),
        Action::DiskOptions => target.volumes().map(disk_options).collect(),
        Action::NetOptions => net_options(view).into_iter().collect(),
        Action::ResourceOptions => vec![format!(
            "drbdsetup resource-options {} --set-defaults{}",
            quoted(&view.name),
            options(&view.written.options)
        )],
        Action::CheckResize => metadata("check-resize"),
        Action::WaitConnect => each("wait-connect"),
        Action::WaitSync => each("wait-sync"),
        Action::Resize => target
            .volumes()
            .map(|volume| resize(volume, arguments))
            .collect(),
        _ => each(word.name),
    }
}

/// Whether any of the old or new words for force was given.
pub(crate) fn force_given(arguments: &Arguments) -> bool {
    ["force", "overwrite-data-of-peer", "do-what-I-say"]
        .iter()
        .any(|name| arguments.has(name))
}

/// `resize`, with the size of the configuration if the command line has none.
fn resize(volume: &ResolvedVolume, arguments: &Arguments) -> String {
    let minor = volume.device.minor;
    match volume.disk_options.size_sectors {
        Some(sectors) if !arguments.has("size") => {
            format!("drbdsetup resize {minor} --size={sectors}s")
        }
        _ => format!("drbdsetup resize {minor}"),
    }
}

fn objects(view: &ResolvedResource) -> Vec<String> {
    let name = quoted(&view.name);
    let mut steps = vec![format!(
        "drbdsetup new-resource {name}{}",
        options(&view.written.options)
    )];
    for volume in &view.volumes {
        steps.push(format!(
            "drbdsetup new-minor {name} {} {}",
            volume.device.minor, volume.number
        ));
    }
    steps
}

/// The two steps of an attach; none for a volume without a disk.
pub(crate) fn attach(volume: &ResolvedVolume) -> Vec<String> {
    let Some(disk) = &volume.disk else {
        return Vec::new();
    };
    let (device, index) = match &volume.meta_disk {
        MetaDisk::Internal => (disk.clone(), "internal".to_owned()),
        MetaDisk::Flexible { device } => (device.clone(), "flexible".to_owned()),
        MetaDisk::Indexed { device, index } => (device.clone(), index.to_string()),
    };
    vec![
        drbdmeta(volume, "apply-al"),
        format!(
            "drbdsetup attach {} {} {} {index}{}",
            volume.device.minor,
            quoted(disk),
            quoted(&device),
            options(&volume.written)
        ),
    ]
}

/// New options of an attached disk.
pub(crate) fn disk_options(volume: &ResolvedVolume) -> String {
    format!(
        "drbdsetup disk-options {} --set-defaults{}",
        volume.device.minor,
        options(&volume.written)
    )
}

/// New options of a connection.
fn net_options(view: &ResolvedResource) -> Option<String> {
    let peer = view.peers.first()?;
    let path = peer.paths.first()?;
    Some(format!(
        "drbdsetup net-options {} {} --set-defaults{}",
        path.local,
        path.remote,
        options(&peer.written)
    ))
}

/// The connect step; none without a peer.
pub(crate) fn connect(view: &ResolvedResource, arguments: &Arguments) -> Option<String> {
    let peer = view.peers.first()?;
    let path = peer.paths.first()?;
    let mut step = format!(
        "drbdsetup connect {} {} {}{}",
        quoted(&view.name),
        path.local,
        path.remote,
        options(&peer.written)
    );
    for flag in ["tentative", "discard-my-data"] {
        if arguments.has(flag) {
            step.push_str(&format!(" --{flag}"));
        }
    }
    Some(step)
}

pub(crate) fn disconnect(view: &ResolvedResource) -> Option<String> {
    let path = view.peers.first()?.paths.first()?;
    Some(format!(
        "drbdsetup disconnect {} {}",
        path.local, path.remote
    ))
}

/// A metadata step.
pub(crate) fn drbdmeta(volume: &ResolvedVolume, command: &str) -> String {
    let (device, kind) = metadata_place(volume);
    format!(
        "drbdmeta {} v08 {} {kind} {command}",
        volume.device.minor,
        quoted(&device)
    )
}

/// The device that holds the metadata, and the word for the way it holds them.
pub(crate) fn metadata_place(volume: &ResolvedVolume) -> (String, String) {
    match &volume.meta_disk {
        MetaDisk::Internal => (
            volume.disk.clone().unwrap_or_else(|| "none".to_owned()),
            "internal".to_owned(),
        ),
        MetaDisk::Flexible { device } => (device.clone(), "flex-external".to_owned()),
        MetaDisk::Indexed { device, index } => (device.clone(), index.to_string()),
    }
}

/// Options as on a command line, the last one written first as in 8.4. A secret must not stand in a list of processes,
/// nor in a terminal's history.
fn options(options: &Options) -> String {
    let mut settings: Vec<_> = options.iter().collect();
    settings.reverse();
    let mut text = String::new();
    for setting in settings {
        let name = setting.spec.name;
        let value = match (&setting.value, name) {
            (_, "shared-secret") => "***".to_owned(),
            (Value::Switch(true), _) => "yes".to_owned(),
            (Value::Switch(false), _) => "no".to_owned(),
            _ => quoted(&setting.text),
        };
        text.push_str(&format!(" --{name}={value}"));
    }
    text
}
