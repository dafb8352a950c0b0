//! `tandem demo`: two real daemons on this machine, a crash in the middle of writes, a failover and a resync. Every
//! acknowledged write is compared; the exit code is 0 only if all were right.

mod nbd_client;
mod pair;
mod screen;
mod stamps;
mod story;
mod writers;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::{CANNOT_RUN, Failure};
use crate::invocation::Invocation;
use crate::output::err;

/// Exit code of a demo whose data were wrong.
const WRONG_DATA: u8 = 3;

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Options of the demo.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave the pair running at the end.
    #[arg(long)]
    keep: bool,
    /// Where the two nodes live (default: a new directory for temporary files).
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How long the clients write before the crash.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Size of each node's disk in MiB.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(32..=16384))]
    size: u64,
}

/// Set by Ctrl-C; every wait of the demo looks at it.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for SIGINT and SIGTERM on a thread of its own.
    fn listen() -> Result<Interrupt, Failure> {
        let flag = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&flag);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(CANNOT_RUN, format!("cannot take signals: {error}")))?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let Ok(mut terminate) = signal(SignalKind::terminate()) else {
                    return;
                };
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
                seen.store(true, Ordering::Relaxed);
            });
        });
        Ok(Interrupt(flag))
    }

    /// Fails once a signal has come.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.0.load(Ordering::Relaxed) {
            Err(Failure::new(
                INTERRUPTED,
                "interrupted; the pair was stopped",
            ))
        } else {
            Ok(())
        }
    }
}

/// Runs the demo and returns its exit code.
pub(crate) fn run(invocation: &Invocation, options: &Options) -> u8 {
    let done =
        Interrupt::listen().and_then(|interrupt| story::tell(invocation, options, &interrupt));
    match done {
        Ok(()) => 0,
        Err(failure) => {
            err("");
            failure.print();
            failure.exit
        }
    }
}
