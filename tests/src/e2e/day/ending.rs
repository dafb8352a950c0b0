//! The end of a day: SIGTERM while clients write, the return, and SIGTERM again; then disks and metadata are judged.

use std::time::{Duration, Instant};

use super::fleet::{Fleet, Side, name};
use super::person::Ward;
use super::{Fault, Matter};
use crate::e2e::node::STATE_LIMIT;
use crate::e2e::wait;

/// How long an end may take; a resource waits for its disk and its peer at most some seconds.
pub(super) const END_LIMIT: Duration = Duration::from_secs(30);

/// Turns that the clients of the other node must have after the first one has gone.
const TURNS: u64 = 10;

/// How long the daemons took to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Alpha, with clients in the middle of their writes.
    pub busy: Duration,
    /// Both at the same time, at rest.
    pub both: Duration,
}

/// Ends the daemons; what is not as it should be is added to `faults`.
pub(super) fn end(fleet: &mut Fleet, wards: &mut [Ward], faults: &mut Vec<Fault>) -> Ending {
    let busy = first_end(fleet, wards, faults);
    fleet.alpha.start();
    fleet.alpha.must(&["up", "all"]);
    fleet.settle_all();
    for ward in wards.iter_mut().filter(|ward| ward.primary == Side::Bravo) {
        let trouble = ward.close();
        let of = |words| format!("a client of {}: {words}", name(ward.number));
        faults.extend(trouble.map(|words| Matter::Trouble.fault(of(words))));
    }
    let start = Instant::now();
    fleet.alpha.signal("TERM");
    fleet.bravo.signal("TERM");
    for side in [Side::Alpha, Side::Bravo] {
        ended(fleet, side, faults);
    }
    let both = start.elapsed();
    if both > END_LIMIT {
        faults.push(Matter::Ends.fault(format!("of both took {both:?}")));
    }
    disks(fleet, wards, faults);
    logs(fleet, faults);
    Ending { busy, both }
}

/// SIGTERM to alpha while clients write: its own clients lose their connections, those of bravo notice nothing.
fn first_end(fleet: &mut Fleet, wards: &mut [Ward], faults: &mut Vec<Fault>) -> Duration {
    let turns = |wards: &[Ward]| -> Vec<u64> { wards.iter().filter_map(Ward::turns).collect() };
    let begun = || {
        turns(wards)
            .iter()
            .all(|turns| *turns >= TURNS)
            .then_some(())
    };
    wait::until("the clients' first writes", STATE_LIMIT, begun, || {
        fleet.logs()
    });
    let start = Instant::now();
    fleet.alpha.signal("TERM");
    ended(fleet, Side::Alpha, faults);
    let busy = start.elapsed();
    if busy > END_LIMIT {
        faults.push(Matter::Ends.fault(format!("with clients took {busy:?}")));
    }
    for ward in wards.iter_mut().filter(|ward| ward.primary == Side::Alpha) {
        if ward.turns().is_some() && ward.close().is_none() {
            let words = format!("a client of {} did not notice", name(ward.number));
            faults.push(Matter::Ends.fault(words));
        }
    }
    // Those that are left are bravo's.
    let before = turns(wards);
    let go_on = || {
        let moved = turns(wards)
            .iter()
            .zip(&before)
            .all(|(now, then)| *now >= then + TURNS);
        moved.then_some(())
    };
    wait::until("further writes on bravo", STATE_LIMIT, go_on, || {
        fleet.logs()
    });
    busy
}

/// Waits for the end of a daemon, and looks at what it leaves behind.
fn ended(fleet: &mut Fleet, side: Side, faults: &mut Vec<Fault>) {
    let code = fleet.node_mut(side).wait_for_end();
    if code != Some(0) {
        faults.push(Matter::Ends.fault(format!("{side:?} ended with {code:?}")));
    }
    if fleet.node(side).control_socket().exists() {
        let words = format!("{side:?} left its control socket behind");
        faults.push(Matter::Ends.fault(words));
    }
    let disorder = (0..fleet.resources()).flat_map(|number| fleet.disorder(side, number));
    faults.extend(disorder.map(|words| Matter::Ends.fault(words)));
}

fn disks(fleet: &Fleet, wards: &[Ward], faults: &mut Vec<Fault>) {
    for ward in wards {
        let (alpha, bravo) = (
            fleet.data(Side::Alpha, ward.number),
            fleet.data(Side::Bravo, ward.number),
        );
        if alpha != bravo {
            let words = format!("the disks of {} differ", name(ward.number));
            faults.push(Matter::Disks.fault(words));
        }
        let lost = ward.faults(&alpha).into_iter();
        faults.extend(lost.map(|words| Matter::Disks.fault(words)));
    }
}

fn logs(fleet: &Fleet, faults: &mut Vec<Fault>) {
    for node in [&fleet.alpha, &fleet.bravo] {
        let log = node.whole_log();
        let bad = |line: &&str| line.contains(" ERROR ") || line.contains("panicked at");
        let lines = log.lines().filter(bad).take(10);
        let words = |line| format!("log of {}: {line}", node.name);
        faults.extend(lines.map(|line| Matter::Trouble.fault(words(line))));
        if std::fs::read_dir(node.root.join("var/lib/tandem/crash"))
            .is_ok_and(|mut dir| dir.next().is_some())
        {
            let words = format!("{} left a black box of a failure", node.name);
            faults.push(Matter::Trouble.fault(words));
        }
    }
}
