//! What an application feels of a resync.

use std::time::{Duration, Instant};

use super::Bench;
use super::figures::Unit;
use super::resync::{DEVICE_BYTES, RESYNC_LIMIT};
use crate::Failure;
use crate::contenders::nodes::{Backing, Nodes, RESOURCE, Setup, Words};
use crate::load::{self, Durations};
use crate::process::{READY_LIMIT, wait_for};
use crate::rows::{READ_4K_D1, Row, WRITE_4K_D1};

const DURATIONS: Durations = Durations {
    warm_up: Duration::from_millis(200),
    measured: Duration::from_secs(2),
};

/// From the beginning of the resync to the first request: the controller needs some turns to find its speed.
const RAMP: Duration = Duration::from_secs(1);

const WITHOUT: &str = "without";

/// A resync beside the application: how the case is called, and its options of the section `disk`.
struct Case {
    name: &'static str,
    disk: &'static str,
}

const CASES: [Case; 2] = [
    Case {
        name: "during, default options",
        disk: "",
    },
    Case {
        name: "during, c-min-rate 0",
        disk: "c-min-rate 0;",
    },
];

/// The rows, with the name of their percentiles.
const ROWS: [(Row, &str); 2] = [(READ_4K_D1, "read"), (WRITE_4K_D1, "write")];

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    bench.found.note(format!(
        "{} MiB; the application runs on the source of a full resync, each row for {} s: {}, reads likewise. With default options the \
         resync yields to an application as long as it has been faster than c-min-rate (250 KiB/s) of late; with c-min-rate 0 it never \
         does, and c-max-rate (100 MiB/s) is its only limit",
        DEVICE_BYTES >> 20,
        DURATIONS.measured.as_secs(),
        WRITE_4K_D1.words()
    ));
    bench.doing("filling two files")?;
    let mut nodes = bench.nodes(Setup::plain(Backing::Filled(DEVICE_BYTES))?)?;
    nodes.nodes[0].must(&["primary", RESOURCE])?;
    let endpoint = nodes.nodes[0].endpoint(RESOURCE);
    let served = || endpoint.probe().ok();
    wait_for("the export", bench.stop, served, || nodes.logs())?;
    for round in 1..=bench.rounds {
        bench.doing(&format!("round {round}, {WITHOUT}"))?;
        for (row, what) in ROWS {
            measure(&nodes, &row, what, WITHOUT, bench)?;
        }
        for case in &CASES {
            bench.doing(&format!("round {round}, {}", case.name))?;
            let words = Words {
                net: String::new(),
                disk: case.disk.to_owned(),
            };
            nodes.change(words, bench.stop)?;
            beside_a_resync(&nodes, case.name, bench)?;
        }
    }
    for case in &CASES {
        for (_, what) in ROWS {
            for percentile in ["p50", "p99"] {
                let figure = format!("{what} {percentile}");
                let name = format!("{figure}, {} : {WITHOUT}", case.name);
                let (one, other) = ((case.name, figure.as_str()), (WITHOUT, figure.as_str()));
                bench.found.compare(&name, one, other, None);
            }
        }
    }
    Ok(())
}

/// Both rows while a full resync runs; then it comes to its end.
fn beside_a_resync(nodes: &Nodes, case: &str, bench: &mut Bench<'_>) -> Result<(), Failure> {
    let target = &nodes.nodes[1];
    target.must(&["invalidate", RESOURCE])?;
    let runs = "a running resync";
    nodes.until(target, RESOURCE, READY_LIMIT, runs, bench.stop, |volume| {
        volume.connection == "SyncTarget"
    })?;
    bench.pause(RAMP)?;
    for (row, what) in ROWS {
        during(nodes, &row, what, case, bench)?;
    }
    nodes.reached(RESOURCE, "UpToDate/UpToDate", RESYNC_LIMIT, bench.stop)
}

fn measure(
    nodes: &Nodes,
    row: &Row,
    what: &str,
    case: &str,
    bench: &mut Bench<'_>,
) -> Result<(), Failure> {
    let endpoint = nodes.nodes[0].endpoint(RESOURCE);
    let measured = load::run(&endpoint, row, DURATIONS, bench.stop, |_| {})?;
    for percentile in [50.0, 99.0] {
        let figure = format!("{what} p{percentile:.0}");
        let latency = measured.latency_us(percentile);
        bench.found.add(case, &figure, Unit::Microseconds, latency);
    }
    Ok(())
}

/// As [`measure`], and how fast the resync was meanwhile: figures of a resync that ended before are none.
fn during(
    nodes: &Nodes,
    row: &Row,
    what: &str,
    case: &str,
    bench: &mut Bench<'_>,
) -> Result<(), Failure> {
    let before = nodes.nodes[0].volume(RESOURCE)?;
    let start = Instant::now();
    let kept = bench.found.clone();
    measure(nodes, row, what, case, bench)?;
    let after = nodes.nodes[0].volume(RESOURCE)?;
    if after.connection != "SyncSource" {
        bench.found = kept;
        let text = format!("{what}s {case}: the resync ended before the {what}s did");
        bench.found.absent(text);
        return Ok(());
    }
    let kib = before.counters.oos.saturating_sub(after.counters.oos);
    let speed = kib as f64 * 1024.0 / 1e6 / start.elapsed().as_secs_f64();
    let figure = format!("resync during the {what}s");
    bench.found.add(case, &figure, Unit::MbPerSecond, speed);
    Ok(())
}
