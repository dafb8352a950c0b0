//! Runs the simulator: one seed, a range of seeds, or fresh seeds for some minutes.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use tandem_replicator::Protocol;
use tandem_tests::sim::{Outcome, Spec, run};

/// Two engines over simulated disks, network and clock, with faults drawn from a seed.
#[derive(Parser)]
struct Arguments {
    /// One seed.
    #[arg(long, conflicts_with_all = ["seeds", "swarm"])]
    seed: Option<u64>,
    /// Seeds FROM..TO (TO is not run).
    #[arg(long, value_parser = range)]
    seeds: Option<(u64, u64)>,
    /// Fresh seeds for so many minutes.
    #[arg(long)]
    swarm: Option<f64>,
    /// Protocol A, B or C.
    #[arg(long, default_value = "C", value_parser = protocol)]
    protocol: Protocol,
    /// Print everything that happens (with --seed).
    #[arg(long)]
    trace: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Go on after a failure, and list the seeds at the end.
    #[arg(long)]
    keep_going: bool,
}

fn protocol(word: &str) -> Result<Protocol, String> {
    match word {
        "A" | "a" => Ok(Protocol::A),
        "B" | "b" => Ok(Protocol::B),
        "C" | "c" => Ok(Protocol::C),
        _ => Err("A, B or C".to_owned()),
    }
}

fn range(words: &str) -> Result<(u64, u64), String> {
    let wrong = || "FROM..TO, such as 0..1000".to_owned();
    let (from, to) = words.split_once("..").ok_or_else(wrong)?;
    let number = |word: &str| word.parse().map_err(|_| wrong());
    Ok((number(from)?, number(to)?))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
    }));
    let protocol = arguments.protocol;
    if let Some(seed) = arguments.seed {
        let live = arguments.trace;
        return one(Spec {
            seed,
            protocol,
            live,
        });
    }
    let minutes = arguments.swarm;
    let (from, to) = match (arguments.seeds, minutes) {
        (Some(seeds), _) => seeds,
        (None, Some(_)) => {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            (
                since.map_or(0, |since| since.as_nanos() as u64 & 0xffff_ffff_f000),
                u64::MAX,
            )
        }
        (None, None) => (0, 100),
    };
    let end = minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    many(&arguments, from, to, end)
}

fn one(spec: Spec) -> ExitCode {
    match run(spec) {
        Ok(report) => {
            println!("seed {}: {report:?}", spec.seed);
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// What all threads have found.
#[derive(Default)]
struct Total {
    runs: u64,
    requests: u64,
    actions: u64,
    split_brains: u64,
    nudges: u64,
    seconds: u64,
    failures: Vec<(u64, String)>,
}

fn many(arguments: &Arguments, from: u64, to: u64, end: Option<Instant>) -> ExitCode {
    let next = AtomicU64::new(from);
    let total = Mutex::new(Total::default());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let over = end.is_some_and(|end| Instant::now() >= end);
                    if seed >= to || over {
                        return;
                    }
                    let outcome = run(Spec {
                        seed,
                        protocol: arguments.protocol,
                        live: false,
                    });
                    if note(&total, seed, outcome) && !arguments.keep_going {
                        next.store(to, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
    let total = total
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    println!(
        "{} seeds from {from}, {} requests, {} faults and commands, {} split brains, {} nudges, {} virtual hours, {:.1} s",
        total.runs,
        total.requests,
        total.actions,
        total.split_brains,
        total.nudges,
        total.seconds / 3600,
        began.elapsed().as_secs_f64()
    );
    for (seed, why) in &total.failures {
        println!("seed {seed}: {why}");
    }
    if total.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// True: a failure.
fn note(total: &Mutex<Total>, seed: u64, outcome: Outcome) -> bool {
    let mut total = total
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    total.runs += 1;
    match outcome {
        Ok(report) => {
            total.requests += report.requests.0;
            total.actions += u64::from(report.actions);
            total.split_brains += u64::from(report.split_brains);
            total.nudges += u64::from(report.nudges);
            total.seconds += report.seconds;
            false
        }
        Err(why) => {
            let start = format!("seed {seed} of protocol");
            let line = why.lines().find(|line| line.starts_with(&start));
            let line = line.unwrap_or("?").to_owned();
            if total.failures.is_empty() {
                let _ = writeln!(std::io::stdout(), "{why}\n");
            }
            total.failures.push((seed, line));
            true
        }
    }
}
