//! `up`, `adjust` and `new-resource`: what is there already is left alone.

use tandem_config::ResolvedResource;
use tandem_daemon::control::ControlClient;
use tandem_daemon::control::messages::{Call, OutdatedNet, ResourceReport, StandAlone, WaitFor};

use super::Run;
use super::state::{as_if, ask, awake, configure, connect_call, judge, report, volume_of};
use crate::configuration::Target;
use crate::failure::{Failure, Outcome};
use crate::output::{err, out_line};
use crate::words::Action;
use crate::{daemon, definition};

/// "Device is attached to a disk (use detach first)".
const ATTACHED_ALREADY: i32 = 124;

/// "Local address(port) already in use": also of a resource that is connecting already.
const ADDRESS_IN_USE: i32 = 102;

/// "Can only attach to the data we lost last": the peer has what this disk lacks.
const DATA_NOT_CURRENT: i32 = 150;

/// `up`, `adjust` and `new-resource`: the steps of all targets, stage by stage. What is there already is left alone.
pub(super) fn up(run: &Run<'_>, targets: &[Target]) -> Result<u8, Failure> {
    let mut alive: Vec<&Target> = Vec::new();
    let mut highest = 0;
    for target in targets {
        match prepare(run, &target.view) {
            Ok(()) => alive.push(target),
            Err(failure) => {
                failure.print();
                highest = highest.max(failure.exit);
            }
        }
    }
    if alive.is_empty() {
        return Ok(highest);
    }
    let mut client = daemon::start(run.invocation)?;
    awake(run, &mut client)?;
    type Stage = fn(&Run<'_>, &mut ControlClient, &Target) -> Result<Step, Failure>;
    let mut stages: Vec<(&str, Stage)> = vec![("adjust res", |run, client, target| {
        configure(run, client, &target.view).map(|()| Step::Done)
    })];
    if run.word.action != Action::NewResource {
        if !run.arguments.has("skip-disk") {
            stages.push(("adjust disk", attach_missing));
        }
        if !run.arguments.has("skip-net") {
            stages.push(("attempt to connect", connect_missing));
        }
    }
    let tell = |line: &str| {
        if run.word.name == crate::words::WITH_PROGRESS {
            out_line(line);
        }
    };
    tell("[");
    let mut later = Vec::new();
    for (label, stage) in stages {
        let mut kept = Vec::new();
        let mut line = format!("  {label}:");
        for target in alive {
            line.push_str(&format!(" {}", target.view.name));
            match stage(run, &mut client, target) {
                Ok(Step::Done) => kept.push(target),
                Ok(Step::AfterConnect(refusal)) => {
                    kept.push(target);
                    later.push((target, refusal));
                }
                Err(failure) => {
                    failure.print();
                    line.push_str(&format!("({})", failure.exit));
                    highest = highest.max(failure.exit);
                }
            }
        }
        tell(&line);
        alive = kept;
    }
    for (target, refusal) in later {
        if let Err(failure) = attach_after_connect(run, &mut client, target, refusal) {
            failure.print();
            highest = highest.max(failure.exit);
        }
    }
    tell("]");
    Ok(highest)
}

/// What came of a stage of `up`.
enum Step {
    Done,
    /// The disk lacks what its peer has: it is attached when they are connected. Until then it was refused like this.
    AfterConnect(Failure),
}

/// The second attempt to attach a disk that lacks what its peer has.
fn attach_after_connect(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
    refusal: Failure,
) -> Outcome {
    let name = &target.view.name;
    let patience = run.patience();
    err(&format!(
        "{name}: the disk lacks what was written since it was lost: it is attached once the peer is connected, which may take up to {} s",
        patience.as_secs()
    ));
    let call = Call::Wait {
        resource: name.clone(),
        volume: None,
        until: WaitFor::Connected,
        stand_alone: StandAlone::Ends,
    };
    let waited = client
        .command(call, Some(patience))
        .map_err(|error| daemon::failed(run.invocation, &error))?;
    if !waited.is_success() {
        return Err(refusal.line(format!(
            "{name}: the peer was not connected, so the disk stays as it is"
        )));
    }
    match attach_missing(run, client, target)? {
        Step::Done => Ok(()),
        Step::AfterConnect(refusal) => Err(refusal),
    }
}

/// What can be refused or has to be said before anything is started.
fn prepare(run: &Run<'_>, view: &ResolvedResource) -> Outcome {
    run.configuration.check_address(view)?;
    crate::slots::check(run.invocation, run.configuration, view)?;
    for issue in view
        .support_issues()
        .iter()
        .filter(|issue| !issue.is_refusal())
    {
        let place = run.configuration.config.files.place(issue.at);
        err(&format!("{place}: warning: {}", issue.text()));
    }
    for advice in view.advice() {
        err(&format!("{}: warning: {advice}", view.name));
    }
    // Refused ones are named by the definition.
    definition::of(view, None).map(|_| ())
}

/// Whether a volume has its disk.
pub(super) fn has_disk(report: &ResourceReport, number: u16) -> bool {
    volume_of(Some(report), number).is_some_and(|volume| volume.disk != "Diskless")
}

fn attach_missing(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
) -> Result<Step, Failure> {
    let connects = !run.arguments.has("skip-net") && !target.view.peers.is_empty();
    let report = report(run, client, &target.view.name)?;
    for volume in target.volumes().filter(|volume| volume.disk.is_some()) {
        let diskless = volume_of(report.as_ref(), volume.number)
            .is_none_or(|volume| volume.disk == "Diskless");
        if !diskless {
            continue;
        }
        super::resize::remember_if_there(run, volume);
        let mut one = target.clone();
        one.volume = Some(volume.number);
        let call = Call::Attach {
            resource: target.view.name.clone(),
            volume: Some(volume.number),
        };
        let step = as_if(run, "attach", |run| {
            let answer = ask(run, client, call)?;
            if answer.number == ATTACHED_ALREADY {
                // Another `up` at the same time was faster.
                let now = self::report(run, client, &target.view.name)?;
                if volume_of(now.as_ref(), volume.number).is_some_and(|now| now.disk != "Diskless")
                {
                    return Ok(Step::Done);
                }
            }
            let lacks = answer.number == DATA_NOT_CURRENT;
            match judge(run, &one, answer) {
                Err(refusal) if lacks && connects => Ok(Step::AfterConnect(refusal)),
                judged => judged.map(|()| Step::Done),
            }
        })?;
        if matches!(step, Step::AfterConnect(_)) {
            return Ok(step);
        }
    }
    Ok(Step::Done)
}

fn connect_missing(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
) -> Result<Step, Failure> {
    let report = report(run, client, &target.view.name)?;
    if let Some(report) = &report
        && let Some(outdated) = &report.outdated_net
    {
        return reconnect(run, client, target, report, outdated);
    }
    let standalone = report.is_none_or(|report| report.connection == "StandAlone");
    if target.view.peers.is_empty() || !standalone {
        return Ok(Step::Done);
    }
    connect(run, client, target)
}

/// Whether `up` or `adjust` makes a connection anew whose definition has changed. An attempt loses nothing by that. What both nodes have to
/// agree about would part them until the other one follows, and `up` interrupts nothing.
pub(super) fn reconnects(run: &Run<'_>, report: &ResourceReport, outdated: &OutdatedNet) -> bool {
    let established = report.version.is_some();
    !established || (run.word.action == Action::Adjust && !outdated.concerns_both)
}

/// What has changed of a connection since it was begun, and that it counts later.
pub(super) fn counts_later(outdated: &OutdatedNet) -> String {
    let both = if outdated.concerns_both {
        ", which has to be done on both nodes"
    } else {
        ""
    };
    format!(
        "what has changed of the connection ({}) takes effect with the next connect{both}",
        outdated.changed.join(", ")
    )
}

fn reconnect(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
    report: &ResourceReport,
    outdated: &OutdatedNet,
) -> Result<Step, Failure> {
    let name = &target.view.name;
    let call = Call::Disconnect {
        resource: name.clone(),
        force: false,
    };
    if reconnects(run, report, outdated) {
        let answer = ask(run, client, call)?;
        if answer.is_success() {
            err(&format!(
                "{name}: connects anew, by what has changed: {}",
                outdated.changed.join(", ")
            ));
            return connect(run, client, target);
        }
        // A Primary that has its data from the peer alone, say: it goes on as it was.
        err(&format!(
            "{name}: cannot be disconnected now: {}",
            answer.text
        ));
    }
    err(&format!("{name}: {}", counts_later(outdated)));
    let disconnect = run.invocation.adm(&format!("disconnect {name}"));
    let connect = run.invocation.adm(&format!("connect {name}"));
    err(&format!(
        "next: {disconnect} && {connect}   # what is written meanwhile is resynced"
    ));
    Ok(Step::Done)
}

fn connect(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Result<Step, Failure> {
    let call = connect_call(run, target);
    as_if(run, "connect", |run| {
        let answer = ask(run, client, call)?;
        if answer.number == ADDRESS_IN_USE {
            // Another `up` at the same time was faster.
            let now = self::report(run, client, &target.view.name)?;
            if now.is_some_and(|now| now.connection != "StandAlone") {
                return Ok(Step::Done);
            }
        }
        judge(run, target, answer).map(|()| Step::Done)
    })
}
