//! The one binary: `tandem adm`, `tandem daemon`, `tandem status`, `tandem probe`, `tandem demo`.
//!
//! Reading order: [`run`] chooses by the name it was called by; `words` lists what `adm` knows, `arguments` reads
//! drbdadm's odd syntax, `adm` does the work. The daemon is spoken to through its control socket only; metadata of disks
//! that are not attached are read and written here, through the pure crate `metadata`.

mod adm;
mod arguments;
mod backend;
mod black_box;
mod configuration;
mod daemon;
mod definition;
mod demo;
mod device;
mod failure;
mod invocation;
mod output;
mod place;
mod probe;
mod slots;
mod status;
mod tandem;
mod words;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program with its whole command line, its own name first.
#[must_use]
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    ExitCode::from(tandem::run(arguments))
}
