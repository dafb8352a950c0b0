//! Commands that change the state of a running resource, through the daemon.

use std::time::Duration;

use tandem_config::ResolvedResource;
use tandem_daemon::control::ControlClient;
use tandem_daemon::control::messages::{
    Call, CommandAnswer, DEADLINE_MAX, ResourceReport, VolumeReport,
};

use super::Run;
use crate::backend;
use crate::configuration::Target;
use crate::failure::{CONFIGURATION, Failure, Outcome, USAGE};
use crate::invocation::quoted;
use crate::output::{err, grouped};
use crate::words::Action;
use crate::{daemon, definition};

/// How long `secondary` waits for clients to let go of the device: a dying process needs a moment
/// (docs/spec/config-and-cli.md 7.4).
const SECONDARY_WAIT_MS: u64 = 3000;

/// Least time that the daemon gets to answer something trivial.
pub(super) const ANSWER_MIN: Duration = Duration::from_secs(1);

/// "Unknown resource": nobody brought it up.
const UNKNOWN_RESOURCE: i32 = 158;

/// "Can not open backing device": the first of the failures that are about the disks themselves.
const OPEN_DISK_FAILED: i32 = 104;

/// "No valid meta-data signature found."
const NO_METADATA: i32 = 119;

/// "Meta device too small": the last of them.
const META_TOO_SMALL: i32 = 112;

/// Numbers above are failures of the configuration kind, those up to it results of a state change.
const STATE_CHANGE_MAX: i32 = 100;

/// Runs one command on one target.
pub(super) fn run(run: &Run<'_>, target: &Target) -> Outcome {
    let action = run.word.action;
    let Some(mut client) = daemon::running(run.invocation)? else {
        return without_daemon(run, target);
    };
    if !matches!(action, Action::WaitConnect | Action::WaitSync) {
        awake(run, &mut client)?;
    }
    match action {
        Action::Attach => attach(run, &mut client, target),
        Action::Connect => connect(run, &mut client, target),
        Action::Outdate => outdate(run, &mut client, target),
        Action::Invalidate => invalidate(run, &mut client, target),
        Action::WaitConnect | Action::WaitSync => super::waiting::wait(run, &mut client, target),
        Action::ShBPri => become_primary(run, &mut client, target),
        Action::DiskOptions | Action::NetOptions | Action::ResourceOptions => {
            super::options::run(run, &mut client, target)
        }
        Action::Resize => super::resize::resize(run, &mut client, target),
        Action::Verify => verify(run, &mut client, target),
        _ => {
            let call = call_of(run, target)?;
            command(run, &mut client, target, call)
        }
    }
}

/// Without a module drbdsetup finds nothing to stop, and cannot do anything else (docs/spec/config-and-cli.md 4.7).
fn without_daemon(run: &Run<'_>, target: &Target) -> Outcome {
    match run.word.action {
        Action::Down | Action::Secondary | Action::Disconnect | Action::Detach => Ok(()),
        Action::Outdate => super::metadata::outdate(run, target),
        Action::Invalidate => super::metadata::invalidate(run, target),
        _ => daemon::connect(run.invocation).map(|_| ()),
    }
}

/// The call of a command that is one call.
pub(super) fn call_of(run: &Run<'_>, target: &Target) -> Result<Call, Failure> {
    let resource = target.view.name.clone();
    let volume = target.volume;
    let force = backend::force_given(run.arguments);
    Ok(match run.word.action {
        Action::Down => Call::Down { resource, force },
        Action::Detach => Call::Detach {
            resource,
            volume,
            force,
        },
        Action::Disconnect => Call::Disconnect { resource, force },
        Action::Primary => Call::Primary {
            resource,
            volume,
            force,
        },
        Action::Secondary if force => {
            return Err(Failure::new(
                USAGE,
                "'secondary --force' is not supported yet",
            ));
        }
        Action::Secondary => Call::Secondary {
            resource,
            volume,
            wait_ms: SECONDARY_WAIT_MS,
        },
        Action::InvalidateRemote => Call::InvalidateRemote { resource, volume },
        Action::PauseSync => Call::PauseSync { resource, volume },
        Action::ResumeSync => Call::ResumeSync { resource, volume },
        Action::Verify => Call::Verify {
            resource,
            volume,
            start: sectors(run, "start")?,
            stop: sectors(run, "stop")?,
        },
        Action::VerifyStop => Call::VerifyStop { resource, volume },
        Action::SuspendIo => Call::SuspendIo { resource, volume },
        Action::ResumeIo => Call::ResumeIo { resource, volume },
        Action::NewCurrentUuid => Call::NewCurrentUuid {
            resource,
            volume,
            clear_bitmap: run.arguments.has("clear-bitmap"),
        },
        Action::Handler => Call::RunHandler {
            resource,
            volume,
            handler: run.word.name.to_owned(),
        },
        other => {
            let line = format!("'{}' ({other:?}) is not supported yet", run.word.name);
            return Err(Failure::new(USAGE, line));
        }
    })
}

/// A position on the device in sectors of 512 bytes, as drbdsetup takes it: a number, with `s` (sectors) or a power of 1024
/// bytes behind it.
pub(super) fn sectors(run: &Run<'_>, option: &str) -> Result<Option<u64>, Failure> {
    let Some(text) = run.arguments.value(option) else {
        return Ok(None);
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: Option<u64> = match &text[digits.len()..] {
        "" | "s" => Some(1),
        "k" | "K" => Some(2),
        "m" | "M" => Some(2 << 10),
        "g" | "G" => Some(2 << 20),
        "t" | "T" => Some(2 << 30),
        _ => None,
    };
    let number = digits.parse::<u64>().ok();
    let value = number
        .zip(factor)
        .and_then(|(number, factor)| number.checked_mul(factor));
    value.map(Some).ok_or_else(|| {
        let line = format!(
            "--{option}={text}: expected a number of sectors, or one with s, K, M, G or T behind it"
        );
        Failure::new(USAGE, line)
    })
}

/// `verify`: one that would begin behind the end of the device is a mistake, not nothing to do.
fn verify(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Outcome {
    let start = sectors(run, "start")?.unwrap_or(0);
    let report = report(run, client, &target.view.name)?;
    for volume in target.volumes() {
        let bytes = volume_of(report.as_ref(), volume.number).map_or(0, |volume| volume.bytes);
        let end = bytes / 512;
        if bytes > 0 && start >= end {
            let (name, number) = (&target.view.name, volume.number);
            let line = format!(
                "{name}/{number}: --start={start}: the device has {end} sectors of 512 bytes, the last one is {}. Nothing was begun.",
                end - 1
            );
            let next = run.invocation.adm(&format!("verify {}", target.name()));
            return Err(Failure::new(USAGE, line).next(next));
        }
    }
    let call = call_of(run, target)?;
    command(run, client, target, call)
}

/// Sends a command and prints what has to be said about its answer.
fn command(run: &Run<'_>, client: &mut ControlClient, target: &Target, call: Call) -> Outcome {
    let answer = ask(run, client, call)?;
    judge(run, target, answer)
}

/// Before a command that may take long: a daemon that does not answer at all is told of soon, and the command not given to it.
pub(super) fn awake(run: &Run<'_>, client: &mut ControlClient) -> Outcome {
    let short = run.configuration.config.global_options().cmd_timeout_short;
    let short = short.max(ANSWER_MIN);
    if deadline(run) <= short {
        return Ok(());
    }
    client
        .call(Call::Ping, Some(short))
        .map(|_| ())
        .map_err(|error| daemon::failed(run.invocation, &error))
}

/// How long the daemon may work on a command. A promotion may run a fence-peer handler, and a handler may take its whole time.
fn deadline(run: &Run<'_>) -> Duration {
    let global = run.configuration.config.global_options();
    match run.word.action {
        Action::Primary | Action::ShBPri | Action::Handler => {
            global.cmd_timeout_long.unwrap_or(DEADLINE_MAX)
        }
        _ => global.cmd_timeout_medium,
    }
}

pub(super) fn ask(
    run: &Run<'_>,
    client: &mut ControlClient,
    call: Call,
) -> Result<CommandAnswer, Failure> {
    client
        .command(call, Some(deadline(run)))
        .map_err(|error| daemon::failed(run.invocation, &error))
}

/// An answer as drbdsetup and drbdadm print it (docs/spec/state-machine.md 2.7).
pub(super) fn judge(run: &Run<'_>, target: &Target, answer: CommandAnswer) -> Outcome {
    if answer.is_success() {
        for line in &answer.info {
            err(&format!("{}: {line}", target.view.name));
        }
        if run.word.action == Action::Verify && !answer.info.is_empty() {
            let status = run.invocation.tandem("status");
            err(&format!(
                "next: {status}   # how far it is; at its end how many blocks differ, and what to type then"
            ));
        }
        return Ok(());
    }
    if run.word.action == Action::Handler {
        return Err(Failure {
            exit: answer.exit,
            lines: answer.info,
            next: None,
        });
    }
    let what = kind_of_failure(answer.number);
    let mut failure = Failure::new(
        answer.exit.max(1),
        format!(
            "{}: {what}: {}{}",
            label(run, target, &answer),
            numbered(answer.number),
            answer.text
        ),
    );
    if answer.number == UNKNOWN_RESOURCE {
        failure = failure.line(format!(
            "{} is in the configuration, but it is not up.",
            target.view.name
        ));
    } else if !answer.info.is_empty() {
        failure = failure.line("additional info:");
        for line in grouped(&answer.info) {
            failure = failure.line(line);
        }
    }
    let quiet = matches!(run.word.action, Action::Invalidate | Action::Outdate);
    if failure.exit >= CONFIGURATION && !quiet {
        let step = failed_step(run, target, answer.volume);
        let exit = failure.exit;
        failure = failure.line(format!("Command '{step}' terminated with exit code {exit}"));
    }
    failure.next = match &answer.hint {
        // The daemon does not know what is on record of the disk.
        Some(_) if has_left_its_metadata(run, target, &answer) => next_of(run, target, &answer),
        Some(hint) => Some(run.invocation.hint(hint)),
        None => next_of(run, target, &answer),
    };
    Err(failure)
}

/// How drbdsetup begins to tell of a failure with this number.
pub(super) fn kind_of_failure(number: i32) -> &'static str {
    if number <= STATE_CHANGE_MAX {
        "State change failed"
    } else {
        "Failure"
    }
}

/// `(-12) `; of what drbdsetup has no number for, nothing.
pub(super) fn numbered(number: i32) -> String {
    match number {
        0 => String::new(),
        number => format!("({number}) "),
    }
}

/// What a step was about: the minor, the resource, or `??` where the connection is named by its addresses. Of a resource
/// that is not up there are neither minors nor addresses.
fn label(run: &Run<'_>, target: &Target, answer: &CommandAnswer) -> String {
    match run.word.action {
        _ if answer.number == UNKNOWN_RESOURCE => target.view.name.clone(),
        Action::Disconnect => "??".to_owned(),
        Action::Connect | Action::Down => target.view.name.clone(),
        _ => {
            let number = answer.volume.or(target.volume);
            let volume = match number {
                Some(number) => target.view.volumes.iter().find(|v| v.number == number),
                None => target.view.volumes.first(),
            };
            volume.map_or_else(
                || target.view.name.clone(),
                |volume| volume.device.minor.to_string(),
            )
        }
    }
}

fn failed_step(run: &Run<'_>, target: &Target, volume: Option<u16>) -> String {
    let mut one = target.clone();
    one.volume = volume.or(target.volume);
    let steps = super::dry_run::steps(run, &one)
        .unwrap_or_else(|_| backend::steps(run.word, &one, run.arguments));
    // Of an attach the second step is the daemon's.
    let at = usize::from(run.word.action == Action::Attach && steps.len() > 1);
    steps
        .get(at)
        .cloned()
        .unwrap_or_else(|| format!("drbdsetup {}", run.word.name))
}

/// An attach found no metadata, on a disk that is larger than it was.
fn has_left_its_metadata(run: &Run<'_>, target: &Target, answer: &CommandAnswer) -> bool {
    run.word.action == Action::Attach
        && answer.number == NO_METADATA
        && target
            .volumes()
            .any(|volume| super::resize::has_left_metadata(run, volume))
}

/// What helps in most cases, where the daemon knew nothing better. A remark after `#` does not hinder typing it as is.
fn next_of(run: &Run<'_>, target: &Target, answer: &CommandAnswer) -> Option<String> {
    let name = target.name();
    let resource = &target.view.name;
    let adm = |rest: String, remark: &str| {
        let command = run.invocation.adm(&rest);
        Some(format!("{command}   # {remark}"))
    };
    match (run.word.action, answer.number) {
        (_, UNKNOWN_RESOURCE) => Some(run.invocation.adm(&format!("up {resource}"))),
        (Action::Primary, -1) => adm(
            format!("secondary {resource}"),
            "there must be one Primary only: type this on the peer first",
        ),
        (Action::Primary, -2) => adm(
            format!("primary --force {name}"),
            "only if the data of this node are to be kept: the peer's are overwritten",
        ),
        (Action::Connect, 123) => adm(
            format!("secondary {resource}"),
            "a Primary cannot give its data up",
        ),
        (Action::Attach, 119) if has_left_its_metadata(run, target, answer) => adm(
            format!("check-resize {name}"),
            "the disk has grown: this moves its metadata to the new end",
        ),
        (Action::Attach, 119) => adm(
            format!("create-md {name}"),
            "asks before it makes new metadata; then the whole disk is copied from the peer. If the peer does not have the data, \
             keep a copy of the metadata first",
        ),
        (Action::Attach, OPEN_DISK_FAILED..=META_TOO_SMALL) => {
            let volume = answer.volume.or(target.volume);
            let mut volumes = target.volumes();
            let volume = volumes.find(|one| volume.is_none_or(|number| one.number == number))?;
            let disk = volume.disk.as_deref()?;
            let (meta, _) = backend::metadata_place(volume);
            let both = if meta == disk {
                quoted(disk)
            } else {
                format!("{} {}", quoted(disk), quoted(&meta))
            };
            Some(format!("ls -l {both}"))
        }
        (Action::Disconnect, 162) => Some(run.invocation.tandem("status")),
        _ => Some(run.invocation.tandem("status")),
    }
}

/// Status of one resource, `None` if the daemon does not know it.
pub(super) fn report(
    run: &Run<'_>,
    client: &mut ControlClient,
    resource: &str,
) -> Result<Option<ResourceReport>, Failure> {
    let status = client
        .status(Some(resource))
        .map_err(|error| daemon::failed(run.invocation, &error))?;
    Ok(status
        .ok()
        .and_then(|report| report.resources.into_iter().next()))
}

/// Tells the daemon what the configuration says now.
pub(super) fn configure(
    run: &Run<'_>,
    client: &mut ControlClient,
    view: &ResolvedResource,
) -> Outcome {
    let file = run.invocation.config_path();
    let stdin = run.invocation.config_file.as_deref() == Some("-");
    let mut definition = definition::of(view, (!stdin).then_some(file.as_path()))?;
    let global = run.configuration.config.global_options();
    let limit = global.cmd_timeout_long;
    definition.handler_seconds = Some(limit.map_or(0, |limit| limit.as_secs()));
    let call = Call::Configure {
        definition: Box::new(definition),
    };
    let answer = client
        .command(call, Some(global.cmd_timeout_medium))
        .map_err(|error| daemon::failed(run.invocation, &error))?;
    if answer.is_success() {
        // What the configuration knows to be without effect was named already, with its place in the file.
        let issues = view.support_issues();
        let named = |line: &str| {
            line.contains("has no effect")
                && issues
                    .iter()
                    .any(|issue| line.split(' ').any(|word| word == issue.option))
        };
        for line in answer.info.iter().filter(|line| !named(line)) {
            err(&format!("{}: {line}", view.name));
        }
        return Ok(());
    }
    let mut failure = Failure::new(
        answer.exit.max(1),
        format!(
            "{}: Failure: {}{}",
            view.name,
            numbered(answer.number),
            answer.text
        ),
    );
    for line in &answer.info {
        failure = failure.line(line.clone());
    }
    failure.next = answer.hint.as_deref().map(|hint| run.invocation.hint(hint));
    Err(failure)
}

pub(super) fn volume_of(report: Option<&ResourceReport>, number: u16) -> Option<&VolumeReport> {
    report?
        .volumes
        .iter()
        .find(|volume| volume.number == number)
}

/// A stage of `up` fails like the command that does only this stage.
pub(super) fn as_if<T>(
    run: &Run<'_>,
    name: &str,
    act: impl FnOnce(&Run<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    match crate::words::find(name) {
        Some((word, _)) => act(&Run { word, ..*run }),
        None => act(run),
    }
}

pub(super) fn attach(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Outcome {
    crate::slots::check(run.invocation, run.configuration, &target.view)?;
    let report = report(run, client, &target.view.name)?;
    for volume in target.volumes() {
        let attached = volume_of(report.as_ref(), volume.number)
            .is_some_and(|volume| volume.disk != "Diskless");
        if attached {
            // As the activity-log step of drbdadm, which comes first, refuses it.
            let step = backend::drbdmeta(volume, "apply-al");
            return Err(Failure::new(
                crate::failure::CANNOT_RUN,
                format!("Device '{}' is configured!", volume.device.minor),
            )
            .line(format!("Command '{step}' terminated with exit code 20"))
            .next(run.invocation.tandem("status")));
        }
    }
    if report.is_some() {
        configure(run, client, &target.view)?;
    }
    for volume in target.volumes() {
        super::resize::remember_if_there(run, volume);
    }
    let call = Call::Attach {
        resource: target.view.name.clone(),
        volume: target.volume,
    };
    command(run, client, target, call)
}

pub(super) fn connect_call(run: &Run<'_>, target: &Target) -> Call {
    Call::Connect {
        resource: target.view.name.clone(),
        discard_my_data: run.arguments.has("discard-my-data"),
        tentative: run.arguments.has("tentative"),
    }
}

fn connect(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Outcome {
    run.configuration.check_address(&target.view)?;
    let report = report(run, client, &target.view.name)?;
    // Options of the file count from the next connection on; a running one is not touched.
    if report.is_some_and(|report| report.connection == "StandAlone") {
        configure(run, client, &target.view)?;
    }
    let call = connect_call(run, target);
    command(run, client, target, call)
}

/// `outdate`, with drbdadm's fall-back to the metadata of a disk that is not attached. A configured one that is worse
/// than Outdated keeps exit 5.
fn outdate(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Outcome {
    let report = report(run, client, &target.view.name)?;
    let attached =
        |number| volume_of(report.as_ref(), number).is_some_and(|volume| volume.disk != "Diskless");
    if !target.volumes().any(|volume| attached(volume.number)) {
        return super::metadata::outdate(run, target);
    }
    let call = Call::Outdate {
        resource: target.view.name.clone(),
        volume: target.volume,
    };
    command(run, client, target, call)?;
    let now = self::report(run, client, &target.view.name)?;
    let unchanged = target
        .volumes()
        .filter_map(|volume| volume_of(now.as_ref(), volume.number))
        .any(|volume| volume.connection == "Connected" && volume.disk == "UpToDate");
    if unchanged {
        err(&format!(
            "{}: connected: nothing was changed",
            target.view.name
        ));
    }
    Ok(())
}

/// `invalidate`, with drbdadm's fall-back to the metadata of a disk that is not attached.
fn invalidate(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Outcome {
    let report = report(run, client, &target.view.name)?;
    let attached =
        |number| volume_of(report.as_ref(), number).is_some_and(|volume| volume.disk != "Diskless");
    if !target.volumes().any(|volume| attached(volume.number)) {
        return super::metadata::invalidate(run, target);
    }
    let call = Call::Invalidate {
        resource: target.view.name.clone(),
        volume: target.volume,
    };
    command(run, client, target, call)
}

/// `sh-b-pri`: promotes if `become-primary-on` names this host.
fn become_primary(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Outcome {
    let named = target.view.startup.become_primary_on.iter().any(|host| {
        host == "both"
            || tandem_config::match_names(host, &target.view.host) != tandem_config::NameMatch::No
    });
    if !named {
        return Ok(());
    }
    let call = Call::Primary {
        resource: target.view.name.clone(),
        volume: None,
        force: false,
    };
    as_if(run, "primary", |run| command(run, client, target, call))
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn an_answer_without_a_number_of_drbdsetup_s_shows_none() {
        assert_eq!(numbered(0), "");
        assert_eq!(numbered(-12), "(-12) ");
    }
}
