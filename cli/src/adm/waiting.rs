//! `wait-connect`, `wait-sync` and `wait-con-int`: which limit counts depends on what is known of the peer and of this node's past
//! (docs/spec/config-and-cli.md 7.5).

use std::time::{Duration, Instant};

use tandem_config::StartupOptions;
use tandem_daemon::control::messages::{Call, ResourceReport, StandAlone, VolumeReport, WaitFor};
use tandem_daemon::control::{ControlClient, ControlError};

use super::{Run, state};
use crate::arguments::Arguments;
use crate::configuration::Target;
use crate::daemon;
use crate::failure::{Failure, Outcome, TIMED_OUT, USAGE};
use crate::output::err;
use crate::words::Action;

/// Least time of a wait: what holds already needs a moment to be seen.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// Time that an answer gets to arrive when a wait has ended.
const SLACK: Duration = Duration::from_secs(1);

/// How long `wait-sync` waits for a resync that is about to begin: after `primary --force` or `attach` the nodes have to agree on
/// it first. A resync that never comes must not hold a script for long.
const BEGIN_MAX: Duration = Duration::from_secs(3);

/// How often the states are looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long is waited, and why so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Patience {
    /// `None`: for ever.
    limit: Option<Duration>,
    option: &'static str,
    reason: &'static str,
}

/// The limits of one run: those of the command line, else those of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    normal: Option<Duration>,
    degraded: Option<Duration>,
    outdated: Option<Duration>,
}

impl Limits {
    fn of(arguments: &Arguments, startup: &StartupOptions) -> Result<Limits, Failure> {
        let normal = limit(arguments, "wfc-timeout", startup.wfc_timeout)?;
        let degraded = limit(arguments, "degr-wfc-timeout", startup.degr_wfc_timeout)?;
        let outdated = limit(
            arguments,
            "outdated-wfc-timeout",
            startup.outdated_wfc_timeout,
        )?;
        // A wait that has an end is never longer than the one above it (section 2, cross checks).
        let cut = |own: Option<Duration>, above: Option<Duration>| match (own, above) {
            (Some(own), Some(above)) => Some(own.min(above)),
            (own, _) => own,
        };
        let degraded = cut(degraded, normal);
        Ok(Limits {
            normal,
            degraded,
            outdated: cut(outdated, degraded),
        })
    }

    /// The one that counts.
    fn patience(self, report: Option<&ResourceReport>) -> Patience {
        let any = |of: fn(&tandem_daemon::control::messages::VolumeReport) -> bool| {
            report.is_some_and(|report| report.volumes.iter().any(of))
        };
        if any(|volume| volume.peer_disk == "Outdated") {
            Patience {
                limit: self.outdated,
                option: "outdated-wfc-timeout",
                reason: "the peer is known to be outdated",
            }
        } else if any(|volume| volume.was_degraded) {
            Patience {
                limit: self.degraded,
                option: "degr-wfc-timeout",
                reason: "this node was Primary without its peer when it went down",
            }
        } else {
            Patience {
                limit: self.normal,
                option: "wfc-timeout",
                reason: "this node was not alone when it went down",
            }
        }
    }
}

/// The limit of a wait: the option on the command line, else that of the configuration; `None` is for ever.
fn limit(
    arguments: &Arguments,
    option: &str,
    configured: Option<Duration>,
) -> Result<Option<Duration>, Failure> {
    let Some(text) = arguments.value(option) else {
        return Ok(configured);
    };
    let seconds: u64 = text.parse().map_err(|_| {
        Failure::new(
            USAGE,
            format!("--{option}={text}: a number of seconds is expected, 0 is for ever"),
        )
    })?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

/// Refuses limits that are no numbers.
pub(super) fn check_options(run: &Run<'_>, target: &Target) -> Outcome {
    Limits::of(run.arguments, &target.view.startup).map(|_| ())
}

/// `wait-connect`, `wait-sync`.
pub(super) fn wait(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Outcome {
    let begun = Instant::now();
    let limits = Limits::of(run.arguments, &target.view.startup)?;
    let report = report(run, client, target, limits.normal)?;
    let patience = limits.patience(report.as_ref());
    loop {
        let mut now = patience;
        now.limit = patience.limit.map(|limit| rest(limit, begun));
        wait_so_long(run, client, target, now)?;
        if run.word.action != Action::WaitSync || !has_begun(run, client, target)? {
            return Ok(());
        }
    }
}

/// Whether a resync that was still to come when the wait ended is on its way now, so that there is something to wait for.
fn has_begun(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Result<bool, Failure> {
    let begun = Instant::now();
    while begun.elapsed() < BEGIN_MAX {
        client.give_up_at(Some(Instant::now() + 2 * SLACK));
        let report = state::report(run, client, &target.view.name)?;
        let volumes: Vec<VolumeReport> = report
            .into_iter()
            .flat_map(|report| report.volumes)
            .filter(|one| target.volumes().any(|volume| volume.number == one.number))
            .collect();
        if !volumes.iter().any(is_about_to_sync) {
            return Ok(volumes
                .iter()
                .any(|volume| volume.connection != "Connected"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(false)
}

/// A disk that is being attached, or one good disk beside one that is not: they will be compared.
fn is_about_to_sync(volume: &VolumeReport) -> bool {
    let disks = [volume.disk.as_str(), volume.peer_disk.as_str()];
    let comes = |disk| matches!(disk, "Attaching" | "Negotiating");
    volume.connection == "Connected"
        && (disks.into_iter().any(comes)
            || disks.contains(&"UpToDate") && disks.contains(&"Inconsistent"))
}

/// What is left of a limit.
fn rest(limit: Duration, begun: Instant) -> Duration {
    limit.saturating_sub(begun.elapsed()).max(WAIT_MIN)
}

/// The status of the resource. Which limit counts depends on it, and none is longer than the first one, `limit`: a daemon that
/// says nothing until then makes it a wait in vain (exit 5).
fn report(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
    limit: Option<Duration>,
) -> Result<Option<ResourceReport>, Failure> {
    let until = limit.map(|limit| Instant::now() + limit);
    client.give_up_at(until);
    let mut told = false;
    loop {
        let error = match client.status(Some(&target.view.name)) {
            Ok(status) => {
                let resources = status.map(|report| report.resources);
                return Ok(resources.unwrap_or_default().into_iter().next());
            }
            Err(error) => error,
        };
        let failure = daemon::failed(run.invocation, &error);
        match (until, &error) {
            (Some(until), ControlError::Timeout { .. }) if until <= Instant::now() => {
                return Err(in_vain(target, failure));
            }
            (Some(_), ControlError::Timeout { .. }) => {
                if !std::mem::replace(&mut told, true) {
                    failure.print();
                }
            }
            _ => return Err(failure),
        }
    }
}

/// The time of a wait is up, and the daemon has not answered.
fn in_vain(target: &Target, silence: Failure) -> Failure {
    let failure = Failure::new(TIMED_OUT, format!("{}: gave up waiting", target.view.name));
    Failure {
        next: silence.next,
        ..silence.lines.into_iter().fold(failure, Failure::line)
    }
}

fn wait_so_long(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
    patience: Patience,
) -> Outcome {
    let until = if run.word.action == Action::WaitSync {
        WaitFor::Synced
    } else {
        WaitFor::Connected
    };
    let after_split = target.view.startup.wait_after_sb || run.arguments.has("wait-after-sb");
    let call = Call::Wait {
        resource: target.view.name.clone(),
        volume: target.volume,
        until,
        stand_alone: match after_split {
            true => StandAlone::WaitsOn,
            false => StandAlone::Ends,
        },
    };
    client.give_up_at(patience.limit.map(|limit| Instant::now() + limit + SLACK));
    let answer = client.command(call, patience.limit).map_err(|error| {
        let failure = daemon::failed(run.invocation, &error);
        match (patience.limit, &error) {
            (Some(_), ControlError::Timeout { .. }) => in_vain(target, failure),
            _ => failure,
        }
    })?;
    client.give_up_at(Some(Instant::now() + 2 * SLACK));
    if answer.is_success() {
        return Ok(());
    }
    if answer.exit == TIMED_OUT {
        let mut failure = Failure::new(TIMED_OUT, format!("{}: gave up waiting", target.view.name));
        for line in answer.info {
            failure = failure.line(line);
        }
        if answer.number == 0 && answer.text != "StandAlone" {
            // A daemon that has fallen silent since does not change that the time is up.
            for line in state_of(run, client, target).unwrap_or_default() {
                failure = failure.line(line);
            }
            failure = failure.line(format!("{}: {}", patience.option, patience.reason));
        }
        return Err(failure.next(run.invocation.tandem("status")));
    }
    state::judge(run, target, answer)
}

/// What is still missing: the connection, or the rest of a resync.
fn state_of(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
) -> Result<Vec<String>, Failure> {
    let name = &target.view.name;
    let Some(report) = state::report(run, client, name)? else {
        return Ok(vec![format!("{name}: is not up any more")]);
    };
    let wanted = |number| target.volumes().any(|volume| volume.number == number);
    let volumes = report.volumes.iter().filter(|one| wanted(one.number));
    Ok(volumes
        .map(|volume| {
            let (number, connection) = (volume.number, &volume.connection);
            match volume.resync.as_ref() {
                Some(resync) => {
                    let progress = crate::status::human::progress(volume, resync);
                    format!("{name}/{number}: {connection}: {}", progress.trim())
                }
                None => format!(
                    "{name}/{number}: {connection}, disks {}/{}",
                    volume.disk, volume.peer_disk
                ),
            }
        })
        .collect())
}

/// `wait-con-int`: waits for every resource of this node that is up, each with its own limit, all from now on. Boot
/// scripts expect 0 of it, whatever comes: a failure becomes a warning where it is printed.
pub(super) fn wait_con_int(run: &Run<'_>) -> Result<u8, Failure> {
    let begun = Instant::now();
    for view in run.configuration.resources()? {
        let target = Target { view, volume: None };
        let name = &target.view.name;
        let Some(mut client) = daemon::running(run.invocation)? else {
            err("tandemd is not running: nothing to wait for");
            return Ok(0);
        };
        let limits = Limits::of(run.arguments, &target.view.startup)?;
        let longest = limits.normal.map(|limit| rest(limit, begun));
        let Some(report) = report(run, &mut client, &target, longest)? else {
            err(&format!("{name}: is not up: not waited for"));
            continue;
        };
        let mut patience = limits.patience(Some(&report));
        match patience.limit {
            None if report.connection == "WFConnection" => err(&format!(
                "{name}: waiting for the peer for ever, as {} 0 says: {}",
                patience.option, patience.reason
            )),
            None => {}
            Some(limit) => {
                patience.limit = Some(rest(limit, begun));
            }
        }
        if let Err(failure) = wait_so_long(run, &mut client, &target, patience) {
            failure.print();
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::adm::tests::resource;

    const LIMITS: Limits = Limits {
        normal: None,
        degraded: Some(Duration::from_secs(120)),
        outdated: Some(Duration::from_secs(5)),
    };

    #[test]
    fn a_node_that_was_alone_and_one_that_knows_its_peer_to_be_old_have_limits_of_their_own() {
        let mut report = resource();
        assert_eq!(LIMITS.patience(Some(&report)).option, "wfc-timeout");
        assert_eq!(LIMITS.patience(None).limit, None);
        report.volumes[0].was_degraded = true;
        let degraded = LIMITS.patience(Some(&report));
        assert_eq!(
            (degraded.option, degraded.limit),
            ("degr-wfc-timeout", Some(Duration::from_secs(120)))
        );
        report.volumes[0].peer_disk = "Outdated".to_owned();
        let outdated = LIMITS.patience(Some(&report));
        assert_eq!(
            (outdated.option, outdated.limit),
            ("outdated-wfc-timeout", Some(Duration::from_secs(5)))
        );
    }

    #[test]
    fn limits_of_the_command_line_count_first_and_none_is_longer_than_the_one_above_it() {
        let startup = StartupOptions {
            wfc_timeout: Some(Duration::from_secs(60)),
            degr_wfc_timeout: Some(Duration::from_secs(30)),
            outdated_wfc_timeout: None,
            wait_after_sb: false,
            become_primary_on: Vec::new(),
        };
        let limits = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            Limits::of(&Arguments::parse(&words).unwrap(), &startup)
        };
        let seconds = |number| Some(Duration::from_secs(number));
        let given = limits("wait-connect r0 --wfc-timeout=10 --outdated-wfc-timeout=20").unwrap();
        assert_eq!(given.normal, seconds(10));
        assert_eq!((given.degraded, given.outdated), (seconds(10), seconds(10)));
        let given = limits("wait-connect r0 --degr-wfc-timeout=0").unwrap();
        assert_eq!((given.normal, given.degraded), (seconds(60), None));
        assert!(limits("wait-connect r0 --wfc-timeout=soon").is_err());
    }
}
