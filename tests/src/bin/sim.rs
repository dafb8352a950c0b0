//! Runs the simulator: one seed, a range of seeds, or fresh seeds for some minutes.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use tandem_replicator::Protocol;
use tandem_replicator::planted::{Plant, Planted};
use tandem_tests::sim::black_box::{Verdict, replay as replay_box};
use tandem_tests::sim::campaign::{commit, replay};
use tandem_tests::sim::crash::{self, Depth, Point, STORIES, search};
use tandem_tests::sim::planted::{By, Found, SEEDS_MAX, hint, search_all};
use tandem_tests::sim::shrink::shrink;
use tandem_tests::sim::typed::FORMS;
use tandem_tests::sim::world::Seen;
use tandem_tests::sim::{Cuts, Outcome, Spec, run, run_cut};

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
    /// Protocol A, B or C; `mixed`: each seed draws its own.
    #[arg(long, default_value = "C", value_parser = which_protocol)]
    protocol: Which,
    /// Print everything that happens (with --seed).
    #[arg(long)]
    trace: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Go on after a failure, and list the seeds at the end.
    #[arg(long)]
    keep_going: bool,
    /// Plant this mistake in both engines.
    #[arg(long, value_parser = planted)]
    plant: Option<Planted>,
    /// Search for every planted mistake (crash points, then the histories of --seeds 0..N, else 300) and print a table.
    #[arg(long, conflicts_with_all = ["seed", "swarm", "plant"])]
    planted: bool,
    /// Cut every durable sequence at every I/O: `quick`, or `complete` for every subset of up to ten writes (with --plant: until
    /// that mistake shows).
    #[arg(long, value_parser = depth, conflicts_with_all = ["seed", "seeds", "swarm", "planted"])]
    crash_points: Option<Depth>,
    /// Cut only the stories whose name contains this (with --crash-points).
    #[arg(long, default_value = "")]
    story: String,
    /// One cut of the first such story, as a failure prints it, with everything that happens (with --story).
    #[arg(long, conflicts_with_all = ["seed", "seeds", "swarm", "planted", "crash_points"])]
    cut: Option<Point>,
    /// Leave out faults, commands and requests as long as it goes wrong in the same way (with --seed).
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// Replay a daemon's black box: compare its effects, print the last 200 lines (all with --trace).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seeds", "swarm", "planted", "crash_points"])]
    black_box: Option<std::path::PathBuf>,
    /// Leave out the faults and commands at these places (with --seed; as --shrink prints them).
    #[arg(long, requires = "seed", value_delimiter = ',')]
    without_actions: Vec<u32>,
    /// Leave out these turns of the clients, FROM..TO (with --seed; as --shrink prints them).
    #[arg(long, requires = "seed", value_delimiter = ',', value_parser = range)]
    without_turns: Vec<(u64, u64)>,
}

/// The protocol of a history.
#[derive(Clone, Copy)]
enum Which {
    One(Protocol),
    Mixed,
}

impl Which {
    /// That of a seed: mostly C, whose promises are the strongest.
    fn of(self, seed: u64) -> Protocol {
        match self {
            Which::One(protocol) => protocol,
            Which::Mixed => match seed % 8 {
                3 => Protocol::A,
                5 => Protocol::B,
                _ => Protocol::C,
            },
        }
    }
}

fn which_protocol(word: &str) -> Result<Which, String> {
    match word {
        "A" | "a" => Ok(Which::One(Protocol::A)),
        "B" | "b" => Ok(Which::One(Protocol::B)),
        "C" | "c" => Ok(Which::One(Protocol::C)),
        "mixed" => Ok(Which::Mixed),
        _ => Err("A, B, C or mixed".to_owned()),
    }
}

fn planted(word: &str) -> Result<Planted, String> {
    let bug = Planted::ALL.iter().find(|(_, name, _)| *name == word);
    let names = || {
        let names: Vec<_> = Planted::ALL.iter().map(|(_, name, _)| *name).collect();
        format!("one of {}", names.join(", "))
    };
    bug.map(|(bug, ..)| *bug).ok_or_else(names)
}

fn depth(word: &str) -> Result<Depth, String> {
    match word {
        "quick" => Ok(Depth::Quick),
        "complete" => Ok(Depth::Complete),
        _ => Err("quick or complete".to_owned()),
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
    if let Some(file) = &arguments.black_box {
        return black_box(file, arguments.plant, arguments.trace);
    }
    if let Some(seed) = arguments.seed {
        let protocol = arguments.protocol.of(seed);
        let spec = Spec {
            live: arguments.trace && !arguments.shrink,
            planted: arguments.plant,
            ..Spec::new(seed, protocol)
        };
        if arguments.shrink {
            return shorten(spec);
        }
        let turns = arguments.without_turns.iter();
        let mut cuts = Cuts::default();
        cuts.actions = arguments.without_actions.iter().copied().collect();
        cuts.turns = turns.map(|(from, to)| *from..*to).collect();
        return one(spec, &cuts);
    }
    if let Some(point) = arguments.cut {
        return one_cut(point, arguments.plant, &arguments.story);
    }
    if let Some(depth) = arguments.crash_points {
        return crash_points(depth, arguments.plant, &arguments.story);
    }
    if arguments.planted {
        std::panic::set_hook(Box::new(|_| {}));
        let (_, to) = arguments.seeds.unwrap_or((0, SEEDS_MAX));
        return table(&search_all(arguments.jobs, to, |_| true, hint));
    }
    let minutes = arguments.swarm;
    let (from, to) = match (arguments.seeds, minutes) {
        (Some(seeds), _) => seeds,
        (None, Some(_)) => {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let first = since.map_or(0, |since| since.as_nanos() as u64 & 0xffff_ffff_f000);
            (first, u64::MAX)
        }
        (None, None) => (0, 100),
    };
    if minutes.is_some() {
        // Before the first one runs: whoever is stopped, or hangs, knows where it began.
        println!("fresh seeds from {from} on, of commit {}", commit());
    }
    let end = minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    many(&arguments, from, to, end)
}

fn one(spec: Spec, cuts: &Cuts) -> ExitCode {
    let whole = cuts.actions.is_empty() && cuts.turns.is_empty();
    let outcome = if whole {
        run(spec)
    } else {
        run_cut(spec, cuts)
    };
    match outcome {
        Ok(report) => {
            println!("seed {}: {report:?}", spec.seed);
            println!("  commit: {}", commit());
            println!("  replay: {}", replay(spec, cuts));
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Replays a black box. Exit 0: the same effects, or nothing to compare.
fn black_box(file: &std::path::Path, plant: Option<Planted>, live: bool) -> ExitCode {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("cannot read {}: {error}", file.display());
            return ExitCode::from(2);
        }
    };
    let replayed = match replay_box(&bytes, Plant::of(plant), live) {
        Ok(replayed) => replayed,
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            return ExitCode::from(2);
        }
    };
    if !live {
        println!("{}\n", replayed.story);
    }
    println!("{}", replayed.about);
    println!("replayed by commit {}", commit());
    if let Some(end) = &replayed.end {
        println!("it ends early: {end}");
    }
    println!(
        "{} events, {} effects compared: {}",
        replayed.events, replayed.effects, replayed.verdict
    );
    match replayed.verdict {
        Verdict::Same | Verdict::TailOnly => ExitCode::SUCCESS,
        Verdict::Differs { .. } | Verdict::Invariant { .. } | Verdict::FailsAsRecorded { .. } => {
            ExitCode::FAILURE
        }
    }
}

/// Cuts every story everywhere.
fn crash_points(depth: Depth, plant: Option<Planted>, which: &str) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for story in STORIES.iter().filter(|story| story.name.contains(which)) {
        let began = Instant::now();
        match search(story, plant, depth) {
            Ok(searched) => println!(
                "{}: {} I/Os, {} histories, at most {} writes at stake, {:.1} s",
                story.name,
                searched.points,
                searched.runs,
                searched.at_stake,
                began.elapsed().as_secs_f64()
            ),
            Err((point, why)) => {
                let plant = plant.map_or(String::new(), |bug| format!(" --plant {bug:?}"));
                println!(
                    "{why}\n{}: {point:?}\n  commit: {}\n  replay: cargo run -p tandem-tests --bin sim -- --story '{}' --cut {point}{plant}",
                    story.name,
                    commit(),
                    story.name
                );
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// Replays one cut.
fn one_cut(point: Point, plant: Option<Planted>, which: &str) -> ExitCode {
    let Some(story) = STORIES.iter().find(|story| story.name.contains(which)) else {
        println!("no story has {which:?} in its name");
        return ExitCode::FAILURE;
    };
    match crash::run(story, plant, point, true) {
        Ok(ended) => {
            println!("{}: {point:?} goes right: {ended:?}", story.name);
            ExitCode::SUCCESS
        }
        Err(why) => {
            let why = why.lines().last().unwrap_or_default();
            println!("{}: {point:?}: {why}", story.name);
            ExitCode::FAILURE
        }
    }
}

/// The shortest history found that still goes wrong.
fn shorten(spec: Spec) -> ExitCode {
    let Some(shrunk) = shrink(spec) else {
        println!("seed {} goes right: there is nothing to shrink", spec.seed);
        return ExitCode::SUCCESS;
    };
    let failure = shrunk.failure;
    println!("{failure}\n");
    println!(
        "shrunk in {} runs: {} faults and commands are left, {} turns of the clients are left out of {}",
        shrunk.runs,
        failure.actions.len(),
        shrunk
            .cuts
            .turns
            .iter()
            .map(|turns| turns.end - turns.start)
            .sum::<u64>(),
        failure.turns
    );
    for (place, words) in &failure.actions {
        println!("  {place}: {words}");
    }
    ExitCode::FAILURE
}

/// The table of planted mistakes.
fn table(all: &[Found]) -> ExitCode {
    let mut missed = 0;
    for found in all {
        let Found { name, text, .. } = found;
        match &found.by {
            Some(By::Seed(seed, failure)) => println!(
                "| {name} | {text} | seed {seed} of {:?} | {} |",
                found.protocol, failure.why
            ),
            Some(By::Crash(story, point, why)) => println!(
                "| {name} | {text} | {story}, I/O {}, {:?} | {why} |",
                point.io, point.after
            ),
            None => {
                missed += 1;
                println!("| {name} | {text} | NOT FOUND | {} histories |", found.runs);
            }
        }
    }
    println!("{} planted mistakes, {missed} not found", all.len());
    if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A campaign says after so many seeds how far it is.
const PROGRESS_SEEDS: u64 = 10_000;

/// What all threads have found.
#[derive(Default)]
struct Total {
    runs: u64,
    requests: u64,
    actions: u64,
    split_brains: u64,
    nudges: u64,
    seconds: u64,
    events: u64,
    seen: Seen,
    /// In how many histories each command was typed.
    commands: BTreeMap<&'static str, u64>,
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
                        planted: arguments.plant,
                        ..Spec::new(seed, arguments.protocol.of(seed))
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
    let seconds = began.elapsed().as_secs_f64();
    let commands = FORMS
        .iter()
        .map(|name| format!("{name}: {}", total.commands.get(name).unwrap_or(&0)));
    println!(
        "histories with each command: {}",
        commands.collect::<Vec<_>>().join(", ")
    );
    let seen = total
        .seen
        .list()
        .map(|(name, count)| format!("{name}: {count}"));
    println!("seen: {}", seen.join(", "));
    println!(
        "{} seeds from {from}: {} failures; {} events, {} requests, {} faults and commands, {} split brains, {} nudges, {} virtual \
         hours; {seconds:.0} s, {:.1} seeds and {:.0} events a second",
        total.runs,
        total.failures.len(),
        total.events,
        total.requests,
        total.actions,
        total.split_brains,
        total.nudges,
        total.seconds / 3600,
        total.runs as f64 / seconds,
        total.events as f64 / seconds,
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
    if total.runs.is_multiple_of(PROGRESS_SEEDS) {
        let failures = total.failures.len();
        let _ = writeln!(
            std::io::stderr(),
            "{} seeds so far, {failures} failures",
            total.runs
        );
    }
    match outcome {
        Ok(report) => {
            total.requests += report.requests.0;
            total.actions += u64::from(report.actions);
            total.split_brains += u64::from(report.split_brains);
            total.seen.add(report.seen);
            total.nudges += u64::from(report.nudges);
            total.seconds += report.seconds;
            total.events += report.lines;
            for name in report.commands {
                *total.commands.entry(name).or_default() += 1;
            }
            false
        }
        Err(why) => {
            // Whoever ends a campaign early knows what it has found so far: the first with its story, each with its words.
            let line = why.why.clone();
            let told = if total.failures.is_empty() {
                format!("{why}\n")
            } else {
                format!("seed {seed} fails, too: {line}")
            };
            let _ = writeln!(std::io::stdout(), "{told}");
            total.failures.push((seed, line));
            true
        }
    }
}
