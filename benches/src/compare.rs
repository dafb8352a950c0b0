//! The run: on each medium all contenders are started, then every round runs every row on each of them in turn, so that what the machine
//! does beside it hits all of them alike.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Failure;
use crate::contenders::{self, Class, Contender, Medium, Running, Site};
use crate::disks::{self, Tail};
use crate::floor::{self, Floor};
use crate::load::{self, Durations, Edge, Measured};
use crate::machine::{self, Machine};
use crate::options::{Options, Placement};
use crate::process::{Stop, Usage};
use crate::report::{Line, Report, Round, Stage};
use crate::rows::{DEVICE_BYTES, Row, Span};

/// How long each figure of the machine itself is measured at most.
const FLOOR_TIME_MAX: Duration = Duration::from_secs(1);

/// Runs the comparison; what is being done is told to `progress`.
///
/// # Errors
/// When nothing could be compared, and when the run is given up. A contender or a row that fails is in the report instead.
pub fn run(
    options: &Options,
    stop: &Stop,
    mut progress: impl FnMut(&str),
) -> Result<Report, Failure> {
    let mut report = Report {
        schema: 1,
        machine: Machine::here(),
        rounds: options.rounds(),
        seconds_per_row: options.durations().measured.as_secs_f64(),
        stages: Vec::new(),
        load_average_at_end: String::new(),
    };
    let rows = options.chosen_rows();
    if rows.is_empty() || options.chosen_contenders().is_empty() {
        let text = String::from("no row or no contender has such a name; next: compare --list");
        return Err(Failure::Unexpected(text));
    }
    place(options.placement)?;
    for medium in options.media() {
        let site = Site {
            medium,
            directory: directory(options.directory.as_deref(), medium)?,
            client: options.client(),
            tandem: options.tandem.clone(),
            device_bytes: DEVICE_BYTES,
        };
        let stage = run_stage(options, &site, &rows, stop, &mut progress)?;
        report.stages.push(stage);
    }
    report.load_average_at_end = machine::load_average();
    for stage in &mut report.stages {
        stage.conclude();
    }
    Ok(report)
}

/// Where the backing files of a medium go.
pub(crate) fn directory(chosen: Option<&Path>, medium: Medium) -> Result<PathBuf, Failure> {
    match (medium, chosen) {
        (Medium::Tmpfs, _) => Ok(PathBuf::from("/dev/shm")),
        (Medium::Disk, Some(directory)) => Ok(directory.to_owned()),
        (Medium::Disk, None) => {
            let own = std::env::current_exe().map_err(Failure::system("find this program"))?;
            Ok(own.parent().map_or_else(std::env::temp_dir, PathBuf::from))
        }
    }
}

/// What this thread starts inherits its CPUs.
fn place(placement: Placement) -> Result<(), Failure> {
    if placement == Placement::Free {
        return Ok(());
    }
    let failed = |error: rustix::io::Errno| Failure::system("choose a CPU")(error.into());
    let allowed = sched_getaffinity(None).map_err(failed)?;
    let mut one = CpuSet::new();
    if let Some(first) = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)) {
        one.set(first);
    }
    sched_setaffinity(None, &one).map_err(failed)
}

fn run_stage(
    options: &Options,
    site: &Site,
    rows: &[Row],
    stop: &Stop,
    progress: &mut impl FnMut(&str),
) -> Result<Stage, Failure> {
    let mut stage = Stage {
        medium: site.medium,
        filesystem: machine::filesystem(&site.directory),
        placement: options.placement,
        client: site.client,
        floors: Vec::new(),
        lines: Vec::new(),
        absent: Vec::new(),
    };
    let durations = options.durations();
    progress(&format!("{:?}: the machine itself", site.medium));
    measure_floors(&mut stage, site, rows, durations, stop)?;
    let mut running = Vec::new();
    for contender in options.chosen_contenders() {
        progress(&format!("{:?}: starting {}", site.medium, contender.name()));
        match contender.start(site, stop) {
            Ok(started) => running.push(started),
            Err(Failure::Interrupted) => return Err(Failure::Interrupted),
            Err(failure) => stage
                .absent
                .push(format!("{}: {failure}", contender.name())),
        }
    }
    for row in rows {
        for contender in &running {
            let line = Line::new(*row, contender.contender, contender.notes.clone());
            stage.lines.push(line);
        }
    }
    for round in 0..options.rounds() as usize {
        for (at, row) in rows.iter().enumerate() {
            let words = format!("{:?}: round {}, {}", site.medium, round + 1, row.name);
            progress(&words);
            for turn in 0..running.len() {
                // Another one begins each time: what comes first may meet a machine in another state.
                let which = (turn + round + at) % running.len();
                let line = &mut stage.lines[at * running.len() + which];
                if line.failure.is_some() {
                    continue;
                }
                match measure(&running[which], row, durations, stop) {
                    Ok(figures) => line.rounds.push(figures),
                    Err(Failure::Interrupted) => return Err(Failure::Interrupted),
                    Err(failure) => {
                        let text = format!("{failure}\n{}", running[which].logs());
                        line.failure = Some(text.trim().to_owned());
                    }
                }
            }
        }
    }
    Ok(stage)
}

/// One row of one contender in one round.
fn measure(
    running: &Running,
    row: &Row,
    durations: Durations,
    stop: &Stop,
) -> Result<Round, Failure> {
    let usage = || -> Vec<Usage> {
        let servers = running.servers.iter();
        servers.map(crate::process::Server::usage).collect()
    };
    let (mut at_start, mut at_end) = (Vec::new(), Vec::new());
    let whole = (usage(), machine::loopback_bytes(), running.counters());
    let measured = load::run(&running.endpoint, row, durations, stop, |edge| match edge {
        Edge::Start => at_start = usage(),
        Edge::End => at_end = usage(),
    })?;
    let link = machine::loopback_bytes().saturating_sub(whole.1);
    let metadata = running.counters().metadata_writes;
    let written: u64 = usage()
        .iter()
        .zip(&whole.0)
        .map(|(now, before)| now.written_bytes.saturating_sub(before.written_bytes))
        .sum();
    if measured.operations == 0 {
        let text = format!("no request was answered within {:?}", durations.measured);
        return Err(Failure::Unexpected(text));
    }
    let each = 1.0 / measured.operations as f64;
    let each_of_all = 1.0 / measured.operations_in_all as f64;
    let servers = running.servers.iter().zip(at_end.iter().zip(&at_start));
    let cpu_us: Vec<(String, f64)> = servers
        .map(|(server, (end, start))| (server.role.to_owned(), end.cpu_us_since(start) * each))
        .collect();
    Ok(Round {
        per_second: measured.per_second(),
        mb_per_second: measured.per_second() * f64::from(row.block_bytes) / 1e6,
        p50_us: measured.latency_us(50.0),
        p99_us: measured.latency_us(99.0),
        p999_us: measured.latency_us(99.9),
        cpu_us: cpu_us.iter().map(|(_, spent)| spent).sum(),
        cpu_us_of_each: cpu_us,
        load_cpu_us: measured.own_cpu_us * each,
        loopback_bytes: link as f64 * each_of_all,
        written_bytes: written as f64 * each_of_all,
        metadata_writes: metadata.saturating_sub(whole.2.metadata_writes) as f64 * each_of_all,
        flushes: measured.flushes,
    })
}

/// The file and the loopback interface without any server.
fn measure_floors(
    stage: &mut Stage,
    site: &Site,
    rows: &[Row],
    durations: Durations,
    stop: &Stop,
) -> Result<(), Failure> {
    let time = durations.measured.min(FLOOR_TIME_MAX);
    stage.floors.push(floor::ping_pong(time, stop)?);
    stage.floors.push(floor::stream(time, stop)?);
    let dir = contenders::temporary_directory(&site.directory)?;
    let file = dir.path().join("floor.img");
    disks::make(&file, DEVICE_BYTES, Tail::None)?;
    for row in rows {
        // One job writes to a file: connections and extents make no difference there.
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::Interrupted);
        }
        if row.connections > 1 || row.span == Span::Scattered {
            continue;
        }
        match floor::file(&file, row, time) {
            Ok(floor) => stage.floors.push(floor),
            Err(failure) => {
                stage
                    .absent
                    .push(format!("the file without a server: {failure}"));
                break;
            }
        }
    }
    Ok(())
}

/// Rounds of the check of the load.
const CHECK_ROUNDS: u32 = 3;

/// Runs the generator and fio's nbd engine on one nbdkit in memory, in turn; the best round of both.
///
/// # Errors
/// When fio, its engine or nbdkit is missing.
pub fn check_load(stop: &Stop) -> Result<Vec<(String, Floor, Floor)>, Failure> {
    let site = Site {
        medium: Medium::Tmpfs,
        directory: PathBuf::from("/dev/shm"),
        client: contenders::Client::Unix,
        tandem: None,
        device_bytes: DEVICE_BYTES,
    };
    let running = Contender::Nbdkit.start(&site, stop)?;
    let time = Duration::from_secs(1);
    let durations = Durations {
        warm_up: time / 10,
        measured: time,
    };
    let mut found = Vec::new();
    for name in [
        "write-4k-d1",
        "write-4k-d32",
        "read-4k-d32",
        "write-128k-d8",
    ] {
        let Some(row) = crate::rows::ROWS.iter().find(|row| row.name == name) else {
            continue;
        };
        let (mut ours, mut theirs) = (None, None);
        for _ in 0..CHECK_ROUNDS {
            let measured = load::run(&running.endpoint, row, durations, stop, |_| {})?;
            ours = better(ours, as_floor(&measured, row));
            let job = fio_over_nbd(&running, row, time)?;
            theirs = better(theirs, floor::from_fio("fio", &job, row.block_bytes));
        }
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            found.push((name.to_owned(), ours, theirs));
        }
    }
    Ok(found)
}

fn better(best: Option<Floor>, new: Floor) -> Option<Floor> {
    match best {
        Some(best) if best.per_second >= new.per_second => Some(best),
        _ => Some(new),
    }
}

fn fio_over_nbd(
    running: &Running,
    row: &Row,
    time: Duration,
) -> Result<serde_json::Value, Failure> {
    let pattern = match (row.kind, row.span) {
        (crate::rows::Kind::Read, _) => "randread",
        (_, Span::Sequential) => "write",
        _ => "randwrite",
    };
    let mut command = std::process::Command::new("fio");
    command
        .args(["--name=check", "--output-format=json", "--ioengine=nbd"])
        .args(["--time_based", "--norandommap", "--rwmixread=70"])
        .arg(format!("--uri={}", running.endpoint))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bs={}", row.block_bytes))
        .arg(format!("--iodepth={}", row.depth))
        .arg(format!("--size={}", crate::rows::HOT_BYTES))
        .arg(format!("--runtime={}ms", time.as_millis()));
    floor::fio(&mut command)
}

fn as_floor(measured: &Measured, row: &Row) -> Floor {
    Floor {
        name: String::from("own"),
        per_second: measured.per_second(),
        mb_per_second: measured.per_second() * f64::from(row.block_bytes) / 1e6,
        p50_us: measured.latency_us(50.0),
        p99_us: measured.latency_us(99.0),
    }
}

/// Whether a contender is one that Tandem is measured against.
pub(crate) fn replicates(contender: Contender) -> bool {
    contender.class() == Class::Peer
}
