//! `disk-options`, `net-options`, `resource-options` and their relatives: the options of one section as the configuration has them
//! now, and those of the command line over them until the next `adjust`, for what runs (docs/spec/config-and-cli.md 4.4).

use tandem_config::{Options, ResolvedResource, Section};
use tandem_daemon::control::ControlClient;
use tandem_daemon::control::messages::{Call, ResourceDefinition};

use super::{Run, state};
use crate::arguments::{Arguments, Given};
use crate::configuration::Target;
use crate::failure::{CONFIGURATION, Failure, Outcome};
use crate::output::err;
use crate::words::Action;
use crate::{daemon, definition};

/// The section that a command is about.
pub(super) fn section_of(action: Action) -> Option<Section> {
    match action {
        Action::DiskOptions => Some(Section::Disk),
        Action::NetOptions => Some(Section::Net),
        Action::ResourceOptions => Some(Section::Options),
        _ => None,
    }
}

/// Whether an option of the command line is one of the configuration's that this command takes.
pub(super) fn takes(action: Action, option: &str) -> bool {
    section_of(action)
        .is_some_and(|section| tandem_config::options::find(section, option).is_some())
}

/// Runs the command on one target.
pub(super) fn run(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Outcome {
    let given = given(run.arguments, run.word.action)?;
    let wanted = wanted(run, target, &given)?;
    let answer = client
        .definition(&target.view.name)
        .map_err(|error| daemon::failed(run.invocation, &error))?;
    let running = match answer {
        Ok(running) => running,
        Err(refusal) => return state::judge(run, target, refusal),
    };
    match run.word.action {
        Action::DiskOptions => disk(run, client, target, &running, wanted),
        Action::NetOptions => {
            let differs = running.net != wanted.net;
            let net = wanted.net;
            configure(run, client, target, ResourceDefinition { net, ..running })?;
            if differs {
                next_connect(run, client, target)?;
            }
            Ok(())
        }
        _ => {
            let options = wanted.options;
            configure(
                run,
                client,
                target,
                ResourceDefinition { options, ..running },
            )
        }
    }
}

/// The definition that the configuration asks for, with the options of the command line.
fn wanted(run: &Run<'_>, target: &Target, given: &Options) -> Result<ResourceDefinition, Failure> {
    definition::of(&overlaid(run, target, given), None)
}

/// The configuration of a target with the options of the command line over those of the section that the command is about.
pub(super) fn overlaid(run: &Run<'_>, target: &Target, given: &Options) -> ResolvedResource {
    let mut view = target.view.clone();
    match run.word.action {
        Action::DiskOptions => {
            for volume in &mut view.volumes {
                volume.written.overlay(given);
            }
            for peer in &mut view.peers {
                peer.disk.overlay(given);
                peer.volumes
                    .iter_mut()
                    .for_each(|(_, options)| options.overlay(given));
            }
        }
        Action::NetOptions => view
            .peers
            .iter_mut()
            .for_each(|peer| peer.written.overlay(given)),
        Action::ResourceOptions => view.written.options.overlay(given),
        _ => {}
    }
    view
}

fn disk(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
    running: &ResourceDefinition,
    wanted: ResourceDefinition,
) -> Outcome {
    for volume in target.volumes() {
        let number = volume.number;
        let options = |definition: &ResourceDefinition| {
            let mut volumes = definition.volumes.iter();
            volumes
                .find(|one| one.number == number)
                .map(|one| one.options.clone())
        };
        let (Some(before), Some(after)) = (options(running), options(&wanted)) else {
            return Err(Failure::new(
                CONFIGURATION,
                format!(
                    "{}/{number}: the running resource has no such volume",
                    target.view.name
                ),
            )
            .next(run.invocation.adm(&format!("adjust {}", target.view.name))));
        };
        let resizes = before.get("size") != after.get("size");
        let mut one = target.clone();
        one.volume = Some(number);
        let call = Call::DiskOptions {
            resource: target.view.name.clone(),
            volume: one.volume,
            options: after,
        };
        let answer = state::ask(run, client, call)?;
        state::judge(run, &one, answer)?;
        if resizes {
            err(&format!(
                "{}: another size of the device is taken over by: {}",
                one.name(),
                run.invocation.adm(&format!("resize {}", one.name()))
            ));
        }
    }
    Ok(())
}

fn configure(
    run: &Run<'_>,
    client: &mut ControlClient,
    target: &Target,
    definition: ResourceDefinition,
) -> Outcome {
    let call = Call::Configure {
        definition: Box::new(definition),
    };
    let answer = state::ask(run, client, call)?;
    state::judge(run, target, answer)
}

/// Says what it takes for new options of the connection to count.
fn next_connect(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Outcome {
    let name = &target.view.name;
    let report = state::report(run, client, name)?;
    if report.is_some_and(|report| report.outdated_net.is_some()) {
        err(&format!(
            "{name}: new net options take effect with the next connect"
        ));
        let disconnect = run.invocation.adm(&format!("disconnect {name}"));
        let connect = run.invocation.adm(&format!("connect {name}"));
        err(&format!(
            "next: {disconnect} && {connect}   # what is written meanwhile is resynced"
        ));
    }
    Ok(())
}

/// The options of the command line, checked as those of a file are.
pub(super) fn given(arguments: &Arguments, action: Action) -> Result<Options, Failure> {
    let Some(section) = section_of(action) else {
        return Ok(Options::default());
    };
    let lines: Vec<String> = arguments
        .options
        .iter()
        .filter(|given| takes(action, given.name))
        .map(line)
        .collect();
    if lines.is_empty() {
        return Ok(Options::default());
    }
    let text = format!(
        "common {{ {} {{\n{}\n}} }}\n",
        section.keyword(),
        lines.join("\n")
    );
    let directory = std::path::Path::new(".");
    let config =
        tandem_config::load_text("command line", text.as_bytes(), directory).map_err(|error| {
            Failure::new(CONFIGURATION, error.to_string()).line("Nothing was changed.")
        })?;
    let common = config.common.unwrap_or_default();
    Ok(match section {
        Section::Disk => common.disk,
        Section::Net => common.net,
        _ => common.options,
    })
}

fn line(given: &Given) -> String {
    let name = given.name;
    match &given.value {
        None => format!("{name};"),
        Some(value) => {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            format!("{name} \"{escaped}\";")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Arguments {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Arguments::parse(&words).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn taken(line: &str, action: Action) -> Vec<(String, String)> {
        let options = given(&parsed(line), action).unwrap_or_else(|failure| panic!("{failure:?}"));
        let plain = definition::plain(&options);
        plain.into_iter().collect()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn options_of_the_command_line_are_read_as_those_of_a_file() {
        assert_eq!(
            taken(
                "disk-options --resync-rate=10M --al-updates=no r0",
                Action::DiskOptions
            ),
            [pair("al-updates", "no"), pair("resync-rate", "10240")]
        );
        assert_eq!(
            taken("net-options r0 --timeout 90 --use-rle", Action::NetOptions),
            [pair("timeout", "90"), pair("use-rle", "yes")]
        );
        assert_eq!(taken("disk-options r0", Action::DiskOptions), []);
    }

    #[test]
    fn values_out_of_range_are_refused_with_their_place() {
        let refused =
            given(&parsed("net-options --timeout=9999 r0"), Action::NetOptions).unwrap_err();
        assert_eq!(refused.exit, CONFIGURATION);
        assert!(refused.lines[0].contains("command line:2"), "{refused:?}");
        let quoted = given(
            &parsed("net-options --verify-alg=\"x;}\" r0"),
            Action::NetOptions,
        );
        assert!(quoted.is_ok(), "a value stays a value: {quoted:?}");
    }

    #[test]
    fn each_command_takes_the_options_of_its_section_only() {
        assert!(takes(Action::DiskOptions, "resync-rate"));
        assert!(!takes(Action::NetOptions, "resync-rate"));
        assert!(takes(Action::NetOptions, "ping-int"));
        assert!(!takes(Action::Primary, "ping-int"));
    }
}
