//! What connected resources cost that nobody uses.

use std::time::Duration;

use super::Bench;
use super::figures::Unit;
use crate::Failure;
use crate::contenders::nodes::{Backing, Link, Setup};
use crate::process::Usage;

const RESOURCES: usize = 40;

/// Bytes of each device.
const DEVICE_BYTES: u64 = 64 << 20;

/// From UpToDate everywhere to the first look.
const SETTLING: Duration = Duration::from_secs(5);

/// What counts.
const MEASURED: Duration = Duration::from_secs(10);

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    bench.found.note(format!(
        "{RESOURCES} resources of {} MiB with default options in two daemons; {} s after all were connected, for {} s",
        DEVICE_BYTES >> 20,
        SETTLING.as_secs(),
        MEASURED.as_secs()
    ));
    bench.doing(&format!("bringing up {RESOURCES} resources"))?;
    let mut setup = Setup::plain(Backing::Sparse(DEVICE_BYTES))?;
    let links = (0..RESOURCES).map(|_| Link::direct());
    setup.links = links.collect::<Result<_, _>>()?;
    let nodes = bench.nodes(setup)?;
    bench.pause(SETTLING)?;
    let case = format!("{RESOURCES} resources");
    for round in 1..=bench.rounds {
        bench.doing(&format!("round {round}, doing nothing"))?;
        let usage = || -> Result<Vec<Usage>, Failure> {
            (0..2)
                .map(|which| nodes.server(which).map(|server| server.usage()))
                .collect()
        };
        let before = usage()?;
        let seconds = bench.pause(MEASURED)?;
        let after = usage()?;
        for which in 0..2 {
            let server = nodes.server(which)?;
            let spent_us = after[which].cpu_us_since(&before[which]);
            let percent = spent_us / 1e4 / seconds;
            let what = format!("CPU of {}", server.role);
            bench.found.add(&case, &what, Unit::CpuPercent, percent);
            if let Some(mib) = server.resident_mib() {
                let what = format!("memory of {}", server.role);
                bench.found.add(&case, &what, Unit::Mib, mib);
            }
        }
    }
    Ok(())
}
