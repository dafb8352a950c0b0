//! `tandem-benches compare`: Tandem beside its peers; `tandem-benches jobs`: what else it does. Under the first word `tandem` it is the
//! program `tandem` itself, so that the daemons that it measures are always of its own build.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use tandem_benches::Failure;
use tandem_benches::compare;
use tandem_benches::contenders::{CONTENDERS, INNER_WORD};
use tandem_benches::jobs::{self, JOBS};
use tandem_benches::options::{Arguments, Check, Options, Words};
use tandem_benches::plots;
use tandem_benches::process::Stop;
use tandem_benches::rows::ROWS;

/// As of a shell for a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == INNER_WORD) {
        return tandem_cli::run(std::env::args_os().skip(1).collect());
    }
    let words = Arguments::parse().words;
    let word = match &words {
        Words::Compare { .. } => "compare",
        Words::Jobs(_) => "jobs",
    };
    let stop: Stop = Arc::new(AtomicBool::new(false));
    let result = catch_signals(&stop).and_then(|()| match words {
        Words::Compare {
            check: Some(Check::CheckLoad),
            ..
        } => check_load(&stop),
        Words::Compare { options, .. } if options.list => {
            list();
            Ok(())
        }
        Words::Compare { options, .. } => compare(&options, &stop),
        Words::Jobs(options) if options.list => {
            for job in JOBS {
                say(&format!("{:<20} {}\n", job.name, job.words));
            }
            Ok(())
        }
        Words::Jobs(options) => do_jobs(&options, &stop),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Interrupted) => {
            complain("interrupted; everything that was started is ended and removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(failure) => {
            complain(&format!("{word}: {failure}"));
            ExitCode::FAILURE
        }
    }
}

fn catch_signals(stop: &Stop) -> Result<(), Failure> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(stop))
            .map_err(Failure::system("catch Ctrl-C"))?;
    }
    Ok(())
}

fn compare(options: &Options, stop: &Stop) -> Result<(), Failure> {
    let report = with_progress(|progress| compare::run(options, stop, progress))?;
    say(&report.words());
    if let Some(path) = &options.json {
        write_json(path, report.json())?;
    }
    if let Some(dir) = &options.plots {
        let drawn = plots::draw(&report, dir)?;
        say(&drawn.words());
    }
    Ok(())
}

fn do_jobs(options: &jobs::options::Options, stop: &Stop) -> Result<(), Failure> {
    let report = with_progress(|progress| jobs::run(options, stop, progress))?;
    say(&report.words());
    match &options.json {
        Some(path) => write_json(path, report.json()),
        None => Ok(()),
    }
}

/// Shows on a terminal what is being done; nothing of it stays there.
fn with_progress<T>(work: impl FnOnce(&mut dyn FnMut(&str)) -> T) -> T {
    let terminal = std::io::stderr().is_terminal();
    let done = work(&mut |doing| {
        if terminal {
            // Nobody to tell: nothing to do.
            let _ = write!(std::io::stderr(), "\r\x1b[K{doing}");
        }
    });
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    done
}

fn write_json(path: &Path, text: Result<String, serde_json::Error>) -> Result<(), Failure> {
    let text = text.map_err(|error| Failure::Unexpected(format!("write the figures: {error}")))?;
    std::fs::write(path, text).map_err(Failure::system(format!("write {}", path.display())))
}

fn list() {
    for row in ROWS {
        let quick = if row.quick { " (quick)" } else { "" };
        say(&format!("{:<20} {}{quick}\n", row.name, row.words()));
    }
    for contender in CONTENDERS {
        say(&format!(
            "{:<20} {:?}\n",
            contender.name(),
            contender.class()
        ));
    }
}

fn check_load(stop: &Stop) -> Result<(), Failure> {
    for (row, ours, fio) in compare::check_load(stop)? {
        say(&format!(
            "{row:<16} own {:>8.0} op/s, p50 {:>6.1} µs, p99 {:>6.1} µs   fio {:>8.0} op/s, p50 {:>6.1} µs, p99 {:>6.1} µs\n",
            ours.per_second, ours.p50_us, ours.p99_us, fio.per_second, fio.p50_us, fio.p99_us
        ));
    }
    Ok(())
}

fn say(text: &str) {
    // A reader who went away needs no more.
    let _ = write!(std::io::stdout(), "{text}");
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
