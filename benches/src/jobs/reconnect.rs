//! A link that is lost and comes back.

use std::time::{Duration, Instant};

use super::Bench;
use super::figures::Unit;
use super::proxy::{Cable, Cut};
use crate::Failure;
use crate::contenders::nodes::{Backing, Link, Nodes, RESOURCE, Setup, Words};
use crate::process::wait_within;

/// Bytes of the device.
const DEVICE_BYTES: u64 = 64 << 20;

/// The loss of a link and its return each take less, or they have failed.
const LIMIT: Duration = Duration::from_secs(60);

/// From the moment at which both nodes know of a silent cut to its end.
const CUT_FOR: Duration = Duration::from_secs(3);

struct Case {
    name: &'static str,
    net: &'static str,
    cut: Cut,
}

const CASES: [Case; 3] = [
    Case {
        name: "sockets closed",
        net: "",
        cut: Cut::Closed,
    },
    Case {
        name: "silent cut",
        net: "",
        cut: Cut::Silent,
    },
    Case {
        name: "silent cut, ping-int 1, connect-int 1",
        net: "ping-int 1; connect-int 1;",
        cut: Cut::Silent,
    },
];

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    bench.found.note(format!(
        "an idle resource behind a TCP proxy. sockets closed: both nodes are told, and may connect again at once. silent cut: nothing \
         passes and nobody is told, dialling is refused; healed {} s after both had noticed. noticed: from the cut until neither node is \
         Connected; again: from the healing (the closing) until both are Connected and UpToDate. Defaults: ping-int 10, ping-timeout \
         0.5 s, connect-int 10",
        CUT_FOR.as_secs()
    ));
    bench.doing("starting")?;
    let link = Link::with_proxies()?;
    let cable = Cable::new(&link)?;
    let mut setup = Setup::plain(Backing::Sparse(DEVICE_BYTES))?;
    setup.links = vec![link];
    let mut nodes = bench.nodes(setup)?;
    for round in 1..=bench.rounds {
        for case in &CASES {
            bench.doing(&format!("round {round}, {}", case.name))?;
            let words = Words {
                net: case.net.to_owned(),
                disk: String::new(),
            };
            nodes.change(words, bench.stop)?;
            cut_and_heal(&nodes, &cable, case, bench)?;
        }
    }
    Ok(())
}

fn cut_and_heal(
    nodes: &Nodes,
    cable: &Cable,
    case: &Case,
    bench: &mut Bench<'_>,
) -> Result<(), Failure> {
    let mut start = Instant::now();
    cable.cut(case.cut);
    let mut lost = [false; 2];
    let noticed = || {
        for (node, lost) in nodes.nodes.iter().zip(&mut lost) {
            let volume = node.volume(RESOURCE).ok()?;
            *lost |= volume.connection != "Connected";
        }
        (lost == [true; 2]).then_some(())
    };
    let what = "the loss of the link on both nodes";
    wait_within(LIMIT, what, bench.stop, noticed, || nodes.logs())?;
    let seconds = start.elapsed().as_secs_f64();
    bench
        .found
        .add(case.name, "noticed", Unit::Seconds, seconds);
    if case.cut == Cut::Silent {
        bench.pause(CUT_FOR)?;
        start = Instant::now();
        cable.heal();
    }
    nodes.reached(RESOURCE, "UpToDate/UpToDate", LIMIT, bench.stop)?;
    let seconds = start.elapsed().as_secs_f64();
    bench.found.add(case.name, "again", Unit::Seconds, seconds);
    Ok(())
}
