//! `tandem adm`: drbdadm's command line.

mod adjust;
mod dry_run;
mod help;
mod metadata;
mod options;
mod resize;
mod show;
mod state;
mod strays;
mod up;
mod version;
mod waiting;

pub(crate) use show::{connection_of_nine, replication_of_nine};

use std::path::PathBuf;
use std::time::Duration;

use crate::arguments::{ArgumentError, Arguments, GENERAL, Given};
use crate::configuration::{Configuration, OptionWarnings, Target};
use crate::failure::{CANNOT_RUN, Failure, Outcome, USAGE};
use crate::invocation::Invocation;
use crate::output::err;
use crate::words::{self, Action, Scope, Word};

/// One run of a command.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) invocation: &'a Invocation,
    pub(crate) word: &'static Word,
    pub(crate) arguments: &'a Arguments,
    pub(crate) configuration: &'a Configuration,
}

impl Run<'_> {
    /// How long one step of a command may take (`cmd-timeout-medium`).
    pub(crate) fn patience(&self) -> Duration {
        self.configuration
            .config
            .global_options()
            .cmd_timeout_medium
    }
}

/// Runs drbdadm's command line (without the program's name) and returns its exit code.
pub(crate) fn run(mut invocation: Invocation, words: &[String]) -> u8 {
    let mut arguments = match Arguments::parse(words) {
        Ok(arguments) => arguments,
        Err(error) => return refuse_option(&invocation, &error, None),
    };
    if let Some(root) = arguments.value("root") {
        invocation.root = Some(PathBuf::from(root));
    }
    if let Some(file) = arguments.value("config-file") {
        invocation.config_file = Some(file.to_owned());
    }
    if arguments.has("version") {
        help::version();
        return 0;
    }
    let Some(command) = arguments.command.clone() else {
        return help::without_command(&invocation, &arguments);
    };
    let Some((word, notice)) = words::find(&command) else {
        return help::unknown(&invocation, &command);
    };
    if let Some(notice) = notice {
        err(&notice);
    }
    if arguments.has("help") {
        help::of_word(&invocation, word);
        return 0;
    }
    let checked = take_backend_words(word, &mut arguments)
        .and_then(|()| check_options(word, &arguments))
        .and_then(|()| check_general(&invocation, word, &arguments));
    let done = checked.and_then(|()| dispatch(&invocation, word, &arguments));
    match done {
        Ok(exit) => exit,
        Err(failure) => {
            failure.print();
            if word.action == Action::WaitConInt && failure.exit != USAGE {
                err(
                    "warning: the peers are not waited for; the exit code is 0 all the same, so that a boot goes on",
                );
                return 0;
            }
            failure.exit
        }
    }
}

fn refuse_option(invocation: &Invocation, error: &ArgumentError, word: Option<&Word>) -> u8 {
    option_failure(invocation, error, word).print();
    USAGE
}

fn option_failure(invocation: &Invocation, error: &ArgumentError, word: Option<&Word>) -> Failure {
    let mut failure = Failure::new(USAGE, error.to_string());
    if let ArgumentError::Unrecognized {
        meant: Some(meant), ..
    } = error
    {
        failure = failure.line(format!("Did you mean --{meant}?"));
    }
    let help = word.map_or_else(|| "help".to_owned(), |word| format!("help {}", word.name));
    failure.next(invocation.adm(&help))
}

/// Old-style words for the backend (docs/spec/config-and-cli.md 4.5): known ones become options, unknown ones are
/// refused, since a forgotten one changes what the command means.
fn take_backend_words(word: &Word, arguments: &mut Arguments) -> Outcome {
    for text in std::mem::take(&mut arguments.backend) {
        let bare = text.trim_start_matches('-');
        let name = bare.split_once('=').map_or(bare, |(name, _)| name);
        let known = match (word.action, name) {
            (Action::Connect | Action::Adjust, "dry-run" | "tentative") => Some("tentative"),
            (Action::Primary, "o" | "overwrite-data-of-peer") => Some("overwrite-data-of-peer"),
            (Action::Primary, "f" | "force") => Some("force"),
            _ => word
                .options
                .iter()
                .copied()
                .find(|option| *option == name)
                .or_else(|| {
                    let section = options::section_of(word.action)?;
                    tandem_config::options::find(section, name).map(|spec| spec.name)
                }),
        };
        let value = bare.split_once('=').map(|(_, value)| value.to_owned());
        let Some(name) = known else {
            return Err(Failure::new(
                USAGE,
                format!("'{}' does not know the backend option '{text}'", word.name),
            )
            .line("Nothing was done: leaving it out would change what the command means."));
        };
        arguments.options.push(Given { name, value });
    }
    Ok(())
}

fn check_options(word: &Word, arguments: &Arguments) -> Outcome {
    for given in &arguments.options {
        let known = GENERAL.contains(&given.name)
            || word.options.contains(&given.name)
            || options::takes(word.action, given.name);
        if !known {
            return Err(
                Failure::new(USAGE, format!("unrecognized option '--{}'", given.name)).line(
                    match word.options {
                        [] if options::section_of(word.action).is_some() => format!(
                            "'{}' takes the options of its section in drbd.conf.",
                            word.name
                        ),
                        [] => format!("'{}' has no options of its own.", word.name),
                        options => format!("'{}' knows --{}.", word.name, options.join(", --")),
                    },
                ),
            );
        }
    }
    Ok(())
}

/// General options that go with some commands only, and those that are not there yet.
fn check_general(invocation: &Invocation, word: &Word, arguments: &Arguments) -> Outcome {
    if arguments.has("config-to-test") && !matches!(word.action, Action::Dump | Action::ShNop) {
        return Err(Failure::new(
            USAGE,
            "-t, --config-to-test goes with 'dump' and 'sh-nop' only",
        ));
    }
    if arguments.has("config-to-exclude") {
        return Err(Failure::new(
            USAGE,
            "-E, --config-to-exclude is not supported yet",
        ));
    }
    if arguments.has("stacked") {
        return Err(
            Failure::new(USAGE, "-S: stacked resources are not supported yet")
                .line("Nothing was done."),
        );
    }
    if word.action == Action::NotYet {
        return Err(Failure::new(
            USAGE,
            format!(
                "'{}' is a command of drbdadm that is not supported yet",
                word.name
            ),
        )
        .line("Nothing was done.")
        .next(invocation.adm("help")));
    }
    if let Some(compat) = arguments.value("compat")
        && !matches!(compat, "8" | "9")
    {
        return Err(Failure::new(
            USAGE,
            format!("--compat={compat}: the forms of 8 and of 9 are known"),
        ));
    }
    Ok(())
}

/// Commands that need no configuration, or get along without one; `None`: another one.
fn without_configuration(
    invocation: &Invocation,
    word: &'static Word,
    arguments: &Arguments,
) -> Option<Result<u8, Failure>> {
    Some(match word.action {
        Action::Help => Ok(match arguments.targets.first() {
            None => help::all(invocation),
            Some(name) => match words::find(name) {
                Some((word, _)) => help::of_word(invocation, word),
                None => help::unknown(invocation, name),
            },
        }),
        Action::HiddenCommands => Ok(help::hidden()),
        Action::Status => crate::status::adm::run(invocation, arguments),
        Action::Events => crate::status::events::run(invocation, arguments),
        Action::Version if !arguments.targets.is_empty() => {
            let line = format!("'{}' takes no resource", word.name);
            Err(Failure::new(USAGE, line).next(invocation.adm(word.name)))
        }
        Action::Version => version::run(invocation).map(|()| 0),
        Action::Proc => show::proc(invocation).map(|()| 0),
        Action::Probe => match &arguments.targets[..] {
            [target] => crate::probe::run(invocation, target).map(|()| 0),
            _ => {
                help::of_word(invocation, word);
                Ok(USAGE)
            }
        },
        _ => return None,
    })
}

fn dispatch(
    invocation: &Invocation,
    word: &'static Word,
    arguments: &Arguments,
) -> Result<u8, Failure> {
    if let Some(done) = without_configuration(invocation, word, arguments) {
        return done;
    }
    let configuration = Configuration::load(invocation, arguments)?;
    if !asks_only(word.action) {
        configuration.print_warnings(match word.action {
            Action::Up | Action::Adjust | Action::NewResource => OptionWarnings::Later,
            _ => OptionWarnings::Print,
        });
    }
    let mut arguments = arguments.clone();
    let set_gi = (word.action == Action::SetGi && arguments.targets.len() > 1)
        .then(|| arguments.targets.remove(0));
    let needs_target = !matches!(word.scope, Scope::None | Scope::Any);
    if needs_target && arguments.targets.is_empty() {
        help::of_word(invocation, word);
        return Ok(USAGE);
    }
    if word.scope == Scope::None && !arguments.targets.is_empty() {
        return Err(Failure::new(
            USAGE,
            format!("'{}' takes no resource", word.name),
        ));
    }
    let strays = strays::take(invocation, &configuration, word.action, &mut arguments)?;
    let run = Run {
        invocation,
        word,
        arguments: &arguments,
        configuration: &configuration,
    };
    let targets = match word.action {
        // It also shows what is not this host's.
        Action::Dump => Ok(Vec::new()),
        _ => configuration.targets(invocation, word, &arguments),
    };
    let done = targets.and_then(|targets| carry_out(&run, &targets, &strays, set_gi.as_deref()));
    let exit = done
        .as_ref()
        .map_or_else(|failure| failure.exit, |exit| *exit);
    if exit < CANNOT_RUN {
        strays::name_left(&run);
    }
    done
}

/// Does what a command is for, or prints its steps.
fn carry_out(
    run: &Run<'_>,
    targets: &[Target],
    strays: &[String],
    set_gi: Option<&str>,
) -> Result<u8, Failure> {
    if let Some(done) = show::run(run, targets) {
        return done.map(|()| 0);
    }
    let dry = run.arguments.has("dry-run");
    if dry || run.arguments.has("verbose") {
        strays::steps(run, strays);
        dry_run::print(run, targets, set_gi)?;
    }
    if dry {
        for target in targets {
            dry_run::look(run, target, set_gi);
        }
        return Ok(0);
    }
    match run.word.action {
        Action::Up | Action::Adjust | Action::NewResource => up::up(run, targets),
        Action::WaitConInt => waiting::wait_con_int(run),
        _ => {
            let highest = strays::down(run, strays);
            Ok(highest.max(each(targets, |target| one(run, target, set_gi))))
        }
    }
}

/// Questions of scripts and of `watch`, asked every second: warnings about the configuration would only bury the answer.
fn asks_only(action: Action) -> bool {
    matches!(
        action,
        Action::Role
            | Action::Cstate
            | Action::Dstate
            | Action::GetGi
            | Action::ShowGi
            | Action::ShResources
            | Action::ShResource
            | Action::ShDev
            | Action::ShMinor
            | Action::ShLlDev
            | Action::ShMdDev
            | Action::ShMdIdx
            | Action::ShIp
            | Action::ShModParms
            | Action::ShStatus
            | Action::WaitConnect
            | Action::WaitSync
            | Action::Handler
    )
}

/// Does something on each target; the highest exit code counts, and one of 20 or more ends it.
pub(crate) fn each(targets: &[Target], mut act: impl FnMut(&Target) -> Outcome) -> u8 {
    let mut highest = 0;
    for target in targets {
        if let Err(failure) = act(target) {
            failure.print();
            highest = highest.max(failure.exit);
            if failure.exit >= CANNOT_RUN {
                break;
            }
        }
    }
    highest
}

fn one(run: &Run<'_>, target: &Target, set_gi: Option<&str>) -> Outcome {
    match run.word.action {
        Action::CreateMd => metadata::create(run, target),
        Action::DumpMd => metadata::dump(run, target),
        Action::WipeMd => metadata::wipe(run, target),
        Action::ApplyAl => metadata::apply_al(run, target),
        Action::CheckResize => resize::check_resize(run, target),
        Action::ShowGi => metadata::show_gi(run, target),
        Action::GetGi => metadata::get_gi(run, target),
        Action::SetGi => metadata::set_gi(run, target, set_gi),
        Action::Role | Action::Cstate | Action::Dstate => show::state(run, target),
        _ => state::run(run, target),
    }
}
