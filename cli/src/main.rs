//! The binary `tandem`; called as `drbdadm`, `tandemadm` or `tandemd` it takes the shorter way.

use std::process::ExitCode;

fn main() -> ExitCode {
    tandem_cli::run(std::env::args_os().collect())
}
