//! The other jobs of a replicated device: resync, large devices, many resources, a lost link, a dead node. Each is done with real
//! daemons, started as `compare` starts them; each makes and ends its own.
//!
//! Read [`figures`] first, then one of the jobs.

mod failover;
pub mod figures;
mod idle;
pub mod options;
mod proxy;
mod reconnect;
pub mod report;
mod resync;
mod sizes;
mod under_resync;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Failure;
use crate::compare;
use crate::contenders::nodes::{Nodes, Setup};
use crate::contenders::{Client, Site, temporary_directory};
use crate::machine::{self, Machine};
use crate::process::Stop;
use figures::Figures;
use options::Options;
use report::{Done, Report};

/// One thing to do and to measure.
#[derive(Debug)]
pub struct Job {
    /// As `--only` takes it.
    pub name: &'static str,
    /// In words.
    pub words: &'static str,
    run: fn(&mut Bench<'_>) -> Result<(), Failure>,
}

/// All jobs, in the order of the report.
pub const JOBS: &[Job] = &[
    Job {
        name: "resync-full",
        words: "a full resync of a filled device after 'invalidate', beside nbdcopy between two qemu-nbd",
        run: resync::full,
    },
    Job {
        name: "resync-scattered",
        words: "a resync of one block of 4 KiB in every 64 KiB, written while the nodes were disconnected",
        run: resync::scattered,
    },
    Job {
        name: "sizes",
        words: "attach, connect, promote and memory of sparse devices from 1 GiB to 64 TiB",
        run: sizes::run,
    },
    Job {
        name: "idle",
        words: "CPU and memory of two daemons with 40 connected resources that nobody uses",
        run: idle::run,
    },
    Job {
        name: "reconnect",
        words: "from a healed link to Connected on both nodes",
        run: reconnect::run,
    },
    Job {
        name: "failover",
        words: "from SIGKILL of the Primary's daemon under a write load to the first write that is acknowledged on the other node",
        run: failover::run,
    },
    Job {
        name: "under-resync",
        words: "latency of 4 KiB reads and writes at depth 1 without and during a full resync",
        run: under_resync::run,
    },
];

/// What a job works with.
pub(crate) struct Bench<'a> {
    /// Where the files lie, and which program is measured.
    site: &'a Site,
    rounds: u32,
    stop: &'a Stop,
    /// What it found so far: kept when it fails.
    found: Figures,
    /// Told what is being done.
    progress: &'a mut dyn FnMut(&str),
}

impl Bench<'_> {
    /// A directory for files, which goes when it is dropped.
    fn directory(&self) -> Result<TempDir, Failure> {
        temporary_directory(&self.site.directory)
    }

    /// Two nodes that are connected and UpToDate.
    fn nodes(&self, setup: Setup) -> Result<Nodes, Failure> {
        let program = self.site.tandem.as_ref();
        Nodes::running(setup, program, self.directory()?, self.stop)
    }

    /// Tells what is being done; here a run that is given up ends.
    fn doing(&mut self, what: &str) -> Result<(), Failure> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Failure::Interrupted);
        }
        (self.progress)(what);
        Ok(())
    }

    /// Does nothing for a while; how many seconds it was.
    fn pause(&self, time: Duration) -> Result<f64, Failure> {
        const TICK: Duration = Duration::from_millis(50);
        let start = Instant::now();
        while let Some(left) = time.checked_sub(start.elapsed()) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Failure::Interrupted);
            }
            std::thread::sleep(left.min(TICK));
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Seconds of something that is done.
fn timed<T>(doing: impl FnOnce() -> Result<T, Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    doing()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Does the chosen jobs; what is being done is told to `progress`.
///
/// # Errors
/// When no job is chosen, and when the run is given up. A job that fails is in the report instead.
pub fn run(
    options: &Options,
    stop: &Stop,
    mut progress: impl FnMut(&str),
) -> Result<Report, Failure> {
    let chosen = options.chosen();
    if chosen.is_empty() {
        let text = String::from("no job has such a name; next: jobs --list");
        return Err(Failure::Unexpected(text));
    }
    let medium = options.medium();
    let site = Site {
        medium,
        directory: compare::directory(options.directory.as_deref(), medium)?,
        client: Client::Unix,
        tandem: options.tandem.clone(),
        device_bytes: resync::DEVICE_BYTES,
    };
    let mut report = Report {
        schema: 1,
        machine: Machine::here(),
        medium,
        filesystem: machine::filesystem(&site.directory),
        rounds: options.rounds,
        jobs: Vec::new(),
        load_average_at_end: String::new(),
    };
    for job in chosen {
        let start = Instant::now();
        let mut told = |what: &str| progress(&format!("{}: {what}", job.name));
        let mut bench = Bench {
            site: &site,
            rounds: options.rounds,
            stop,
            found: Figures::default(),
            progress: &mut told,
        };
        let result = (job.run)(&mut bench);
        let mut found = bench.found;
        found.conclude();
        let failure = match result {
            // A command that Ctrl-C ended, too, is no failure of a job.
            _ if stop.load(Ordering::Relaxed) => return Err(Failure::Interrupted),
            Ok(()) => None,
            Err(failure) => Some(failure.to_string().trim().to_owned()),
        };
        report.jobs.push(Done {
            name: job.name,
            words: job.words,
            found,
            failure,
            seconds: start.elapsed().as_secs_f64(),
        });
    }
    report.load_average_at_end = machine::load_average();
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = JOBS.iter().map(|job| job.name).collect();
        assert_eq!(names.len(), JOBS.len());
    }
}
