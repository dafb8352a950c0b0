//! Both disks after a power cut, in the simulator: two engines attach them, connect, and are in sync in the end.

use super::ledger::{Floor, Ledger};
use crate::sim::disk::Disk;
use crate::sim::lab;
use crate::sim::network::MS;
use crate::sim::node::DiskPlan;
use crate::sim::trace::state_words;
use crate::sim::{Settings, World};
use tandem_replicator::MetaKind;
use tandem_replicator::state::word::DiskState;

/// Virtual time in which the pair comes together.
const LIMIT: u64 = 120_000 * MS;

/// What must not be lost in the end.
#[derive(Clone, Copy, Debug)]
pub struct Promise<'a> {
    /// Youngest write of each sector that must be there.
    pub floor: &'a Floor,
    /// The youngest write that was issued.
    pub issued: u64,
}

/// Attaches and connects the disks, and compares them with each other and with the ledger.
///
/// # Errors
/// What is wrong.
pub fn reunite(
    seed: u64,
    disks: [&Disk; 2],
    sectors: u64,
    ledger: &Ledger,
    promise: Promise<'_>,
) -> Result<(), String> {
    let mut world = world_of(seed, disks);
    for node in [lab::A, lab::B] {
        world.up(node);
    }
    let together = world.run_until(LIMIT, |world| world.is_in_sync() && world.is_idle());
    if let Err(why) = together {
        let states: Vec<_> = world
            .nodes
            .iter()
            .map(|node| node.state().map(state_words))
            .collect();
        return Err(format!(
            "{}\nthe nodes do not come together: {why}: {states:?}",
            world.trace.tail()
        ));
    }
    if world.nodes.iter().any(|node| {
        node.state()
            .is_none_or(|state| state.disk != DiskState::UpToDate)
    }) {
        return Err("a node is not UpToDate".to_owned());
    }
    let [a, b] = [&world.nodes[0].data, &world.nodes[1].data];
    let differing = super::judge::differing(a, b, sectors);
    if !differing.is_empty() {
        return Err(format!(
            "{}\nin sync, and these blocks differ: {differing:?}",
            world.trace.tail()
        ));
    }
    check(a, sectors, ledger, promise)
}

/// Every sector of a disk in sync is one that the promise allows.
///
/// # Errors
/// The first that is not.
pub fn check(
    disk: &Disk,
    sectors: u64,
    ledger: &Ledger,
    promise: Promise<'_>,
) -> Result<(), String> {
    let mut all: std::collections::BTreeSet<u64> = disk.used(sectors).collect();
    all.extend(promise.floor.keys());
    for sector in all {
        let floor = promise.floor.get(&sector).copied().unwrap_or(0);
        let content = disk.content(sector);
        ledger
            .allowed(sector, content, floor, promise.issued)
            .map_err(|why| format!("after the resync {why}"))?;
    }
    Ok(())
}

fn world_of(seed: u64, disks: [&Disk; 2]) -> World {
    let mut settings: Settings = lab::settings();
    settings.seed = seed;
    settings.disk = DiskPlan {
        bytes: disks[0].bytes(),
        meta: MetaKind::Internal,
        discard: true,
    };
    settings.disk_options.resync_rate = 400_000;
    settings.disk_options.al_extents = 67;
    settings.disk_delay = (1000, 1000);
    settings.net.delay = (MS / 10, MS / 10);
    let mut world = World::new(settings);
    world.trace.keep(200);
    for (node, disk) in world.nodes.iter_mut().zip(disks) {
        node.data = disk.clone();
        let mark = node.data.mark();
        node.data.flush(mark);
    }
    world
}
