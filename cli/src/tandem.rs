//! The top level: which program is meant by the name it was called by, and the words of `tandem` itself.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use tandem_daemon::{DaemonOptions, Handlers, LogTarget};

use crate::failure::{CANNOT_RUN, Failure, Outcome, USAGE};
use crate::invocation::{Invocation, quoted};
use crate::output::err;
use crate::status::human::View;
use crate::{adm, black_box, demo, probe, status};

/// A replicated block device in userspace: every write goes to two nodes, and when one dies the other has it.
#[derive(Debug, Parser)]
#[command(
    name = "tandem",
    version,
    disable_help_subcommand = true,
    after_help = "Try it: tandem demo\nThe words of drbdadm: tandem adm help"
)]
struct Tandem {
    /// Another node's root: its etc, run and var (default: /).
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The configuration file (default: etc/drbd.conf below the root).
    #[arg(short, long, value_name = "FILE")]
    config_file: Option<String>,
    #[command(subcommand)]
    command: Words,
}

#[derive(Debug, Subcommand)]
enum Words {
    /// The words of drbdadm: up, down, primary, status... (`tandem adm help` lists them).
    #[command(disable_help_flag = true)]
    Adm {
        /// As drbdadm takes them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run the node's daemon in the foreground.
    Daemon {
        /// Serve NBD on this TCP address, too: anybody who can reach it can read and write.
        #[arg(long, value_name = "ADDRESS:PORT")]
        nbd_tcp: Option<std::net::SocketAddr>,
        /// Which log lines, such as info or tandem_daemon=debug (default: RUST_LOG, else info).
        #[arg(long, value_name = "FILTER")]
        log: Option<String>,
        /// Append log lines to this file instead of standard error.
        #[arg(long, value_name = "FILE")]
        log_file: Option<PathBuf>,
        /// Run no handlers of the configuration.
        #[arg(long)]
        no_handlers: bool,
        /// Record everything that happens to every resource in this directory, from its creation on, for a replay in the simulator: no
        /// user data, no secrets; a busy resource fills some MiB a second, at most 1 GiB each.
        #[arg(long, value_name = "DIR")]
        record: Option<PathBuf>,
        /// Leave the terminal: a session of its own.
        #[arg(long, hide = true)]
        detached: bool,
        /// End when the process that started it ends.
        #[arg(long, hide = true)]
        with_parent: bool,
    },
    /// All resources of this node, in words, and what to type next where something is wrong.
    Status {
        /// One resource (default: all).
        resource: Option<String>,
        /// As a JSON document with a schema number.
        #[arg(long, conflicts_with = "watch")]
        json: bool,
        /// Keep showing it.
        #[arg(long)]
        watch: bool,
    },
    /// Connect to an export as a client would: size, flags, block sizes, contexts, one read; or what is wrong, in words.
    Probe {
        /// nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, or RESOURCE[/VOLUME] on this node.
        target: String,
    },
    /// Write the last events and effects of a resource to a file, for a report of a bug: no user data, no secrets.
    BlackBox {
        /// The resource.
        resource: String,
        /// A new file (default: one in var/lib/tandem/crash below the root).
        file: Option<PathBuf>,
    },
    /// Two nodes on this machine: a crash, a failover and a resync, every acknowledged write compared.
    Demo(demo::Options),
}

/// Runs the program and returns its exit code.
pub(crate) fn run(arguments: Vec<OsString>) -> u8 {
    let program = arguments.first().map_or_else(
        || "tandem".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    let invocation = Invocation::of(&program);
    let name = program.rsplit('/').next().unwrap_or("tandem");
    let rest = arguments.get(1..).unwrap_or_default();
    match name {
        "drbdadm" | "tandemadm" => return adm_words(invocation, rest),
        "tandemd" => {
            let mut words = vec![OsString::from("tandem"), OsString::from("daemon")];
            words.extend(rest.iter().cloned());
            return top_level(invocation, words);
        }
        _ => {}
    }
    // drbdadm's syntax is not clap's: nothing of it may be taken apart twice.
    if rest.first().is_some_and(|word| word == "adm") {
        return adm_words(invocation, &rest[1..]);
    }
    top_level(invocation, arguments)
}

fn adm_words(invocation: Invocation, words: &[OsString]) -> u8 {
    let mut texts = Vec::new();
    for word in words {
        match word.to_str() {
            Some(text) => texts.push(text.to_owned()),
            None => {
                err(&format!("{} is not UTF-8", word.to_string_lossy()));
                return USAGE;
            }
        }
    }
    adm::run(invocation, &texts)
}

fn top_level(mut invocation: Invocation, arguments: Vec<OsString>) -> u8 {
    let parsed = match Tandem::try_parse_from(&arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            if error.kind() == ErrorKind::InvalidSubcommand
                && let Some(failure) = meant_of_adm(&invocation, &arguments)
            {
                failure.print();
                return failure.exit;
            }
            // Help and version go to standard output and are no errors. Nobody to tell: nothing to do.
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { 0 };
        }
    };
    invocation.root = parsed.root;
    invocation.config_file = parsed.config_file;
    let done = match parsed.command {
        Words::Adm { arguments } => return adm_words(invocation, &arguments),
        Words::Status {
            resource,
            json,
            watch,
        } => {
            let view = match (json, watch) {
                (true, _) => View::Json,
                (_, true) => View::Watch,
                _ => View::Text,
            };
            status::human::run(&invocation, resource.as_deref(), view)
        }
        Words::Daemon {
            nbd_tcp,
            log,
            log_file,
            no_handlers,
            record,
            detached,
            with_parent,
        } => leave(detached, with_parent).and_then(|()| {
            daemon(DaemonOptions {
                root: invocation.root_dir().to_owned(),
                log: log_file.map_or(LogTarget::Stderr, LogTarget::File),
                log_filter: log,
                nbd_tcp,
                record,
                handlers: if no_handlers {
                    Handlers::LogOnly
                } else {
                    Handlers::Run
                },
            })
        }),
        Words::BlackBox { resource, file } => {
            black_box::run(&invocation, &resource, file.as_deref())
        }
        Words::Probe { target } => probe::run(&invocation, &target),
        Words::Demo(options) => return demo::run(&invocation, &options),
    };
    match done {
        Ok(()) => 0,
        Err(failure) => {
            failure.print();
            failure.exit
        }
    }
}

/// A word of drbdadm's without `adm` before it.
fn meant_of_adm(invocation: &Invocation, arguments: &[OsString]) -> Option<Failure> {
    let words: Vec<&str> = arguments
        .get(1..)?
        .iter()
        .map(|word| word.to_str())
        .collect::<Option<_>>()?;
    // The value of an option, such as a directory, is not the word.
    let mut word = None;
    let mut of_option = false;
    for text in &words {
        if !text.starts_with('-') && !of_option {
            word = Some(*text);
            break;
        }
        of_option = matches!(*text, "--root" | "-c" | "--config-file");
    }
    let word = word?;
    crate::words::find(word)?;
    let line = format!("Unknown command '{word}'");
    let meant = format!("Did you mean '{} {word}'?", invocation.adm);
    let typed: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    Some(Failure::new(USAGE, line).line(meant).next(format!(
        "{} {}",
        invocation.adm,
        typed.join(" ")
    )))
}

/// Runs the daemon until it is told to end.
fn daemon(options: DaemonOptions) -> Outcome {
    tandem_daemon::run(options).map_err(|error| Failure::new(CANNOT_RUN, error.to_string()))
}

/// Takes a daemon out of the session of the command that started it, or ties it to that command's life.
fn leave(detached: bool, with_parent: bool) -> Outcome {
    let cannot = |what: &str, error: rustix::io::Errno| {
        Failure::new(CANNOT_RUN, format!("cannot {what}: {error}"))
    };
    if detached {
        rustix::process::setsid().map_err(|error| cannot("leave the session", error))?;
    }
    if with_parent {
        let parent = rustix::process::getppid();
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(|error| cannot("be tied to the parent", error))?;
        // It may have died before.
        if parent != rustix::process::getppid() {
            return Err(Failure::new(CANNOT_RUN, "the parent is gone"));
        }
    }
    Ok(())
}
