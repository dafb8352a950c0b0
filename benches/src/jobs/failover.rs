//! A node whose daemon dies under load, and how soon the other one has taken over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Bench;
use super::figures::Unit;
use super::resync::{RESYNC_LIMIT, UNLIMITED};
use crate::Failure;
use crate::contenders::nodes::{Backing, Nodes, RESOURCE, Setup, Words};
use crate::load::{self, Durations};
use crate::process::{Stop, wait_for};
use crate::rows::{DEVICE_BYTES, WRITE_4K_D32};

/// Under load before the kill.
const LOADED: Duration = Duration::from_secs(1);

/// Each part of a failover takes less, or it has failed.
const LIMIT: Duration = Duration::from_secs(60);

const CASE: &str = "SIGKILL of the daemon";

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let words = Words {
        net: String::new(),
        disk: UNLIMITED.to_owned(),
    };
    bench.found.note(format!(
        "load: {}; killed after {} s of it. noticed: the other node is not Connected any more; promoted: 'primary' has succeeded; first \
         write: 4 KiB by a client that connects then. A dead process closes its sockets; a dead machine does not: 'reconnect' says \
         how soon a silent link is noticed. Options: {}",
        WRITE_4K_D32.words(),
        LOADED.as_secs(),
        words.in_words()
    ));
    bench.doing("starting")?;
    let mut setup = Setup::plain(Backing::Filled(DEVICE_BYTES))?;
    setup.words = words;
    let mut nodes = bench.nodes(setup)?;
    for round in 1..=bench.rounds {
        bench.doing(&format!("round {round}"))?;
        // The survivor of a round is the Primary of the next one.
        let primary = (round as usize + 1) % 2;
        if round == 1 {
            nodes.nodes[primary].must(&["primary", RESOURCE])?;
        }
        fail_over(&mut nodes, primary, bench)?;
        nodes.start(primary, bench.stop)?;
        nodes.nodes[primary].must(&["up", RESOURCE])?;
        nodes.reached(RESOURCE, "UpToDate/UpToDate", RESYNC_LIMIT, bench.stop)?;
    }
    Ok(())
}

/// Kills the Primary's daemon and lets the other node take over.
fn fail_over(nodes: &mut Nodes, primary: usize, bench: &mut Bench<'_>) -> Result<(), Failure> {
    let survivor = nodes.nodes[1 - primary].clone();
    let load = Load::start(nodes, primary, bench)?;
    bench.pause(LOADED)?;
    let Some(mut server) = nodes.servers[primary].take() else {
        let text = String::from("the Primary's daemon does not run");
        return Err(Failure::Unexpected(text));
    };
    let start = Instant::now();
    server.kill();
    let lost = "the loss of the connection";
    nodes.until(&survivor, RESOURCE, LIMIT, lost, bench.stop, |volume| {
        volume.connection != "Connected"
    })?;
    let noticed = start.elapsed();
    survivor.must(&["primary", RESOURCE])?;
    let promoted = start.elapsed();
    let endpoint = survivor.endpoint(RESOURCE);
    let written = || {
        let written = load::write_at(&endpoint, std::iter::once(0), LIMIT, bench.stop);
        written.is_ok_and(|count| count == 1).then_some(())
    };
    wait_for("the first write", bench.stop, written, || nodes.logs())?;
    let first = start.elapsed();
    drop(server);
    if !load.end() {
        let text = String::from("no write was answered before the kill");
        return Err(Failure::Unexpected(text));
    }
    let seconds = |time: Duration| time.as_secs_f64();
    let found = &mut bench.found;
    found.add(CASE, "noticed", Unit::Seconds, seconds(noticed));
    let took = seconds(promoted - noticed);
    found.add(CASE, "promoted after another", Unit::Seconds, took);
    let took = seconds(first - promoted);
    found.add(CASE, "first write after another", Unit::Seconds, took);
    found.add(CASE, "in all", Unit::Seconds, seconds(first));
    Ok(())
}

/// Writers in a thread of their own, until their server dies.
struct Load {
    thread: JoinHandle<()>,
    stop: Stop,
    answered: Arc<AtomicBool>,
}

impl Load {
    fn start(nodes: &Nodes, primary: usize, bench: &Bench<'_>) -> Result<Load, Failure> {
        let endpoint = nodes.nodes[primary].endpoint(RESOURCE);
        let served = || endpoint.probe().ok();
        wait_for("the export", bench.stop, served, || nodes.logs())?;
        let (stop, answered) = (Stop::default(), Arc::new(AtomicBool::new(false)));
        let (inner, seen) = (stop.clone(), Arc::clone(&answered));
        let durations = Durations {
            warm_up: LOADED / 4,
            measured: LIMIT,
        };
        let thread = std::thread::spawn(move || {
            // Up to the first edge writes were answered.
            let at_edge = |_| seen.store(true, Ordering::Relaxed);
            // Its error is the death of its server.
            load::run(&endpoint, &WRITE_4K_D32, durations, &inner, at_edge).ok();
        });
        Ok(Load {
            thread,
            stop,
            answered,
        })
    }

    /// Ends it; whether there was any load.
    fn end(self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().is_ok() && self.answered.load(Ordering::Relaxed)
    }
}
