//! Resources that are up, but were removed from the configuration or renamed in it: `down` takes them down by their exact name, and
//! `down all` says that they are there.

use std::time::Instant;

use tandem_daemon::control::messages::Call;

use super::{Run, state};
use crate::arguments::Arguments;
use crate::configuration::Configuration;
use crate::daemon;
use crate::failure::{CANNOT_RUN, Failure, Outcome};
use crate::invocation::{Invocation, quoted};
use crate::output::{err, out_line};
use crate::words::Action;

/// What the daemon has up and the configuration does not have for this host.
fn all(invocation: &Invocation, configuration: &Configuration) -> Result<Vec<String>, Failure> {
    let known = configuration.resources()?;
    let Some(mut client) = daemon::running(invocation)? else {
        return Ok(Vec::new());
    };
    let short = configuration.config.global_options().cmd_timeout_short;
    client.give_up_at(Some(Instant::now() + short.max(state::ANSWER_MIN)));
    let status = client
        .status(None)
        .map_err(|error| daemon::failed(invocation, &error))?;
    let up = status.map(|report| report.resources).unwrap_or_default();
    let names = up.into_iter().map(|resource| resource.name);
    Ok(names
        .filter(|name| !known.iter().any(|view| &view.name == name))
        .collect())
}

/// Takes the names of strays out of the targets of `down`. The daemon is asked only if a name is not in the configuration.
pub(super) fn take(
    invocation: &Invocation,
    configuration: &Configuration,
    action: Action,
    arguments: &mut Arguments,
) -> Result<Vec<String>, Failure> {
    let unknown =
        |name: &String| name != "all" && configuration.resource(invocation, name).is_err();
    if action != Action::Down || !arguments.targets.iter().any(unknown) {
        return Ok(Vec::new());
    }
    let strays = all(invocation, configuration)?;
    let (mut taken, kept): (Vec<String>, Vec<String>) = std::mem::take(&mut arguments.targets)
        .into_iter()
        .partition(|name| strays.contains(name));
    arguments.targets = kept;
    taken.dedup();
    Ok(taken)
}

/// Prints the steps for strays, as a dry run does.
pub(super) fn steps(run: &Run<'_>, strays: &[String]) {
    let force = if crate::backend::force_given(run.arguments) {
        " --force"
    } else {
        ""
    };
    for name in strays {
        out_line(&format!("drbdsetup down {}{force}", quoted(name)));
        out_line(&format!("# {}", not_there(run.invocation, name)));
    }
}

fn not_there(invocation: &Invocation, name: &str) -> String {
    let path = invocation.config_path();
    format!("{name} is up, but not in {} any more", path.display())
}

/// Takes strays down; the highest exit code.
pub(super) fn down(run: &Run<'_>, strays: &[String]) -> u8 {
    let mut highest = 0;
    for name in strays {
        err(&format!(
            "{}: taking it down",
            not_there(run.invocation, name)
        ));
        if let Err(failure) = down_one(run, name) {
            failure.print();
            highest = highest.max(failure.exit);
            if failure.exit >= CANNOT_RUN {
                break;
            }
        }
    }
    highest
}

fn down_one(run: &Run<'_>, name: &str) -> Outcome {
    let mut client = daemon::connect(run.invocation)?;
    state::awake(run, &mut client)?;
    let call = Call::Down {
        resource: name.to_owned(),
        force: crate::backend::force_given(run.arguments),
    };
    let answer = state::ask(run, &mut client, call)?;
    if answer.is_success() {
        for line in &answer.info {
            err(&format!("{name}: {line}"));
        }
        return Ok(());
    }
    let what = state::kind_of_failure(answer.number);
    let number = state::numbered(answer.number);
    let line = format!("{name}: {what}: {number}{}", answer.text);
    let failure = Failure::new(answer.exit.max(1), line);
    let failure = answer.info.into_iter().fold(failure, Failure::line);
    Err(failure.next(match &answer.hint {
        Some(hint) => run.invocation.hint(hint),
        None => run.invocation.tandem("status"),
    }))
}

/// After `down all`: says which resources it has left up, since `all` are those of the configuration.
pub(super) fn name_left(run: &Run<'_>) {
    let Run {
        invocation,
        arguments,
        ..
    } = *run;
    let all_given = arguments.targets.iter().any(|name| name == "all");
    if run.word.action != Action::Down || !all_given {
        return;
    }
    // What went wrong with the daemon or the file was said by the command itself.
    for name in all(invocation, run.configuration).unwrap_or_default() {
        let next = invocation.adm(&format!("down {}", quoted(&name)));
        let line = not_there(invocation, &name);
        if arguments.has("dry-run") {
            out_line(&format!("# {line}: it would be left up; {next}"));
        } else {
            err(&format!("{line}: 'all' has left it up"));
            err(&format!("next: {next}"));
        }
    }
}
