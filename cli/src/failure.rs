//! How a command fails: an exit code of drbdadm's, what happened, and what to type next.

use crate::output::err;

/// Exit code of usage errors, unknown names and questions answered with no.
pub(crate) const USAGE: u8 = 1;
/// Exit code of a wait that timed out.
pub(crate) const TIMED_OUT: u8 = 5;
/// Exit code of an invalid configuration, and of refused configuration steps.
pub(crate) const CONFIGURATION: u8 = 10;
/// Exit code of what cannot run at all: no daemon, unreadable files, busy devices.
pub(crate) const CANNOT_RUN: u8 = 20;

/// The result of a command or of one of its steps.
pub(crate) type Outcome = Result<(), Failure>;

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code (docs/spec/config-and-cli.md 4.3).
    pub(crate) exit: u8,
    /// What happened, for standard error.
    pub(crate) lines: Vec<String>,
    /// What can be typed next.
    pub(crate) next: Option<String>,
}

impl Failure {
    /// A failure with one line.
    pub(crate) fn new(exit: u8, line: impl Into<String>) -> Failure {
        Failure {
            exit,
            lines: vec![line.into()],
            next: None,
        }
    }

    /// With a further line.
    pub(crate) fn line(mut self, line: impl Into<String>) -> Failure {
        self.lines.push(line.into());
        self
    }

    /// With what to type next.
    pub(crate) fn next(mut self, command: impl Into<String>) -> Failure {
        self.next = Some(command.into());
        self
    }

    /// Says all of it on standard error.
    pub(crate) fn print(&self) {
        for line in &self.lines {
            err(line);
        }
        if let Some(next) = &self.next {
            err(&format!("next: {next}"));
        }
    }
}
