//! What `up`, `adjust` and `new-resource` would do: their dry run. It prints the steps that are still to be done, and as
//! remarks what a running resource takes over later only.

use tandem_daemon::control::ControlClient;
use tandem_daemon::control::messages::{OutdatedNet, ResourceDefinition, ResourceReport};

use super::{Run, state, up};
use crate::configuration::Target;
use crate::failure::Failure;
use crate::words::Action;
use crate::{backend, daemon, definition};

/// The steps of one target, given what the daemon has already; all of them without a daemon.
///
/// What would be refused is refused here, too: nobody should learn it only after the other node was taken down.
pub(super) fn steps(run: &Run<'_>, target: &Target) -> Result<Vec<String>, Failure> {
    definition::of(&target.view, None)?;
    let Some(mut client) = daemon::running(run.invocation)? else {
        return Ok(backend::steps(run.word, target, run.arguments));
    };
    let name = &target.view.name;
    let report = state::report(run, &mut client, name)?.filter(|report| report.failed.is_none());
    let Some(report) = report else {
        return Ok(backend::steps(run.word, target, run.arguments));
    };
    let mut steps = differences(run, &mut client, target, &report)?;
    if run.word.action == Action::NewResource {
        return Ok(steps);
    }
    if !run.arguments.has("skip-disk") {
        let missing = target
            .volumes()
            .filter(|volume| !up::has_disk(&report, volume.number));
        steps.extend(missing.flat_map(backend::attach));
    }
    if !run.arguments.has("skip-net") {
        steps.extend(match report.connection.as_str() {
            "StandAlone" => backend::connect(&target.view, run.arguments)
                .into_iter()
                .collect(),
            _ => reconnect(run, &mut client, target, &report)?,
        });
    }
    Ok(steps)
}

/// Options that the file has and the running resource has not.
fn differences(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
    report: &ResourceReport,
) -> Result<Vec<String>, Failure> {
    let view = &target.view;
    let wanted = definition::of(view, None)?;
    let answer = client
        .definition(&view.name)
        .map_err(|error| daemon::failed(run.invocation, &error))?;
    let Ok(running) = answer else {
        // It went down meanwhile.
        return Ok(backend::steps(run.word, target, run.arguments));
    };
    let mut steps = Vec::new();
    if shape(&running) != shape(&wanted) {
        steps.push(String::from(
            "# its volumes have changed: down and up are needed, 'adjust' refuses it while it is up",
        ));
        return Ok(steps);
    }
    for ((before, after), volume) in running
        .volumes
        .iter()
        .zip(&wanted.volumes)
        .zip(&view.volumes)
    {
        if !up::has_disk(report, after.number) {
            continue;
        }
        if before.options != after.options {
            steps.push(backend::disk_options(volume));
        }
        if (&before.disk, &before.meta_disk) != (&after.disk, &after.meta_disk) {
            steps.push(format!(
                "# volume {}: the new disk is used with the next attach",
                after.number
            ));
        }
    }
    Ok(steps)
}

/// The steps for a connection that goes by an older definition than the file's.
fn reconnect(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
    report: &ResourceReport,
) -> Result<Vec<String>, Failure> {
    let view = &target.view;
    let wanted = definition::of(view, None)?;
    let answer = client
        .definition(&view.name)
        .map_err(|error| daemon::failed(run.invocation, &error))?;
    let outdated = answer
        .ok()
        .and_then(|running| OutdatedNet::between(&running, &wanted))
        .or_else(|| report.outdated_net.clone());
    let Some(outdated) = outdated else {
        return Ok(Vec::new());
    };
    if !up::reconnects(run, report, &outdated) {
        return Ok(vec![format!("# {}", up::counts_later(&outdated))]);
    }
    let steps = backend::disconnect(view).into_iter();
    Ok(steps.chain(backend::connect(view, run.arguments)).collect())
}

fn shape(definition: &ResourceDefinition) -> Vec<(u16, u32)> {
    definition
        .volumes
        .iter()
        .map(|volume| (volume.number, volume.minor))
        .collect()
}
