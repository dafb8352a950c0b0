//! Disks after a power cut, in the simulator: one engine attaches one alone, and finds what its metadata promise; two engines attach
//! both, connect, and are in sync in the end.

use super::judge::{BLOCK_SECTORS, Facts, differing};
use super::ledger::{Floor, Ledger};
use crate::sim::disk::Disk;
use crate::sim::lab;
use crate::sim::network::MS;
use crate::sim::node::{DiskPlan, VOLUME};
use crate::sim::stamp::SECTOR;
use crate::sim::trace::state_words;
use crate::sim::{Settings, World};
use tandem_replicator::state::word::DiskState;
use tandem_replicator::{Command, MetaKind};

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

/// Attaches a disk without its peer: it becomes what its flags say, its bitmap has what the metadata cover, and no data change.
///
/// # Errors
/// What is wrong.
pub fn attach_alone(seed: u64, disk: &Disk, facts: &Facts) -> Result<(), String> {
    let mut world = world_of(seed, [disk, disk]);
    let node = lab::A;
    world.start(node);
    let volume = VOLUME;
    world.command(node, Command::Attach { volume });
    let is_answered = |world: &mut World| world.nodes[node].open_commands.is_empty();
    world
        .run_until(LIMIT, is_answered)
        .map_err(|why| format!("{}\nno end of an attach: {why}", world.trace.tail()))?;
    let found = world.nodes[node].state().map(|state| state.disk);
    let expected = match (facts.is_up_to_date(), facts.is_consistent()) {
        (true, _) => DiskState::UpToDate,
        (false, true) => DiskState::Outdated,
        (false, false) => DiskState::Inconsistent,
    };
    if found != Some(expected) {
        return Err(format!(
            "{}\nattached alone as {found:?}, the disk says {expected}",
            world.trace.tail()
        ));
    }
    let blocks = facts.data_sectors.div_ceil(BLOCK_SECTORS);
    let marked = |block: u64| {
        let engine = world.nodes[node].engine.as_ref();
        engine.and_then(|engine| engine.is_out_of_sync(volume, block * BLOCK_SECTORS * SECTOR))
    };
    let wrong = (0..blocks).find(|block| marked(*block) != Some(facts.covers(*block)));
    if let Some(block) = wrong {
        return Err(format!(
            "attached alone, block {block} has the bit {:?}; covered by bitmap or activity log: {}",
            marked(block),
            facts.covers(block)
        ));
    }
    let changed = differing(&world.nodes[node].data, disk, facts.data_sectors);
    if !changed.is_empty() {
        return Err(format!("an attach changed data in blocks {changed:?}"));
    }
    Ok(())
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
    let differing = differing(a, b, sectors);
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
