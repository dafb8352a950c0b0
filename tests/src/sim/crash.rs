//! Crash points, completely: every durable sequence of the engine is cut at every one of its I/Os, with every choice of what a
//! volatile cache kept, and the node comes back.
//!
//! A [`Story`] brings two nodes of a lab somewhere ([`Story::set_up`]), then lets something happen ([`Story::act`]). While it
//! happens, the power of the victim fails when its k-th I/O would end: the writes that were not flushed (that one and others in
//! flight included) are kept or lost, each by itself. Then the pair goes on in one of the ways of [`After`], and the oracle
//! judges: nothing acknowledged is lost, replicas that call themselves UpToDate are equal.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tandem_replicator::planted::{Plant, Planted};
use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{Command, Force, MetaKind};

use super::lab::{A, B, Lab, primary, settings};
use super::network::MS;
use super::node::{DiskPlan, Keep, Part, VOLUME};
use super::world::CrashAt;
use super::{Settings, World};

/// Up to so many writes at stake every subset of them is tried: the bound of a complete search.
pub const SUBSETS_OF: u32 = 10;

/// Where more are at stake than all of whose subsets are tried, so many of them are tried alone.
const EACH_MAX: u32 = 6;

/// Time for what happens in a story.
const ACT: u64 = 6000 * MS;

/// What is cut.
pub struct Story {
    /// Its name.
    pub name: &'static str,
    /// The node whose power fails.
    pub victim: usize,
    /// The lab.
    pub settings: fn() -> Settings,
    /// Before anything may fail.
    pub set_up: fn(Settings) -> Lab,
    /// What is cut: it must not rely on anything.
    pub act: fn(&mut Lab),
}

impl Story {
    /// Its pair takes long to come together: quick searches go on in one way only.
    fn is_heavy(&self) -> bool {
        (self.settings)().disk.bytes > 64 << 20
    }
}

/// How it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The victim comes back to its peer.
    Rejoin,
    /// Its peer is killed, too: the victim comes back alone, and serves if it has everything.
    Alone,
    /// Its peer serves meanwhile, then the victim comes back.
    Takeover,
    /// Its peer serves meanwhile although it may lack something: the person does not know. That is a split brain, never a silent loss.
    Usurped,
    /// The victim comes back to its peer and loses its power once more when they are in sync.
    Again,
}

/// All of them.
pub const AFTERS: [After; 5] = [
    After::Rejoin,
    After::Alone,
    After::Takeover,
    After::Usurped,
    After::Again,
];

/// One cut.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// The power fails when this I/O of the victim would end, from 1 on.
    pub io: u32,
    /// What is kept.
    pub keep: Keep,
    /// How it goes on.
    pub after: After,
}

/// How a cut ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The story was over before: the power failed at its end.
    pub over: bool,
    /// Writes that could be kept or lost.
    pub at_stake: u32,
}

/// How thoroughly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Every I/O; of the writes at stake none, all, each alone and all but each, rotating through the ways to go on.
    Quick,
    /// Every I/O, every subset of up to [`SUBSETS_OF`] writes, torn writes, every way to go on.
    Complete,
}

/// What was searched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Searched {
    /// I/Os that were cut.
    pub points: u32,
    /// Histories.
    pub runs: u32,
    /// Most writes that were at stake at one moment.
    pub at_stake: u32,
}

/// Cuts a story everywhere.
///
/// # Errors
/// The first cut after which something is wrong, and what.
pub fn search(
    story: &Story,
    planted: Option<Planted>,
    depth: Depth,
) -> Result<Searched, (Point, String)> {
    let mut searched = Searched::default();
    for io in 1.. {
        let mut over = false;
        let mut at_stake = 0;
        let heavy = depth == Depth::Quick && story.is_heavy();
        let afters = if heavy { &AFTERS[..1] } else { &AFTERS[..] };
        for (index, after) in afters.iter().enumerate() {
            // What is at stake is known after the first run.
            let first = cut(story, planted, Keep::These(0), io, *after)?;
            searched.runs += 1;
            (over, at_stake) = (first.over, first.at_stake);
            let keeps = choices(story, at_stake, depth);
            for (number, keep) in keeps.into_iter().enumerate() {
                let turn = number % afters.len() == index;
                if depth == Depth::Complete || turn {
                    cut(story, planted, keep, io, *after)?;
                    searched.runs += 1;
                }
            }
        }
        searched.points += 1;
        searched.at_stake = searched.at_stake.max(at_stake);
        if over {
            break;
        }
    }
    Ok(searched)
}

/// Choices of what is kept, but nothing at all.
fn choices(story: &Story, at_stake: u32, depth: Depth) -> Vec<Keep> {
    let all = 1_u64.checked_shl(at_stake).unwrap_or(0).wrapping_sub(1);
    if depth == Depth::Quick && story.is_heavy() {
        return vec![Keep::These(all)];
    }
    let complete = match depth {
        Depth::Quick => 2,
        Depth::Complete => SUBSETS_OF,
    };
    let mut keeps: Vec<Keep> = if at_stake <= complete {
        (1..=all).map(Keep::These).collect()
    } else {
        let step = at_stake.min(63).div_ceil(EACH_MAX).max(1) as usize;
        let each = (0..at_stake.min(63)).step_by(step);
        let each = each.flat_map(|unit| [1 << unit, all & !(1 << unit)]);
        std::iter::once(all).chain(each).map(Keep::These).collect()
    };
    if depth == Depth::Complete {
        for unit in 0..at_stake.min(16) {
            for part in [Part::FirstHalf, Part::SecondHalf] {
                keeps.push(Keep::Torn(0, unit, part));
                keeps.push(Keep::Torn(all & !(1 << unit), unit, part));
            }
        }
    }
    keeps.push(Keep::Killed);
    keeps
}

fn cut(
    story: &Story,
    planted: Option<Planted>,
    keep: Keep,
    io: u32,
    after: After,
) -> Result<Ended, (Point, String)> {
    let point = Point { io, keep, after };
    let outcome = catch_unwind(AssertUnwindSafe(|| run(story, planted, point)));
    match outcome {
        Ok(Ok(ended)) => Ok(ended),
        Ok(Err(why)) => Err((point, why)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err((point, text.unwrap_or_default()))
        }
    }
}

/// Runs one cut.
///
/// # Errors
/// What is wrong, with the end of the story.
pub fn run(story: &Story, planted: Option<Planted>, point: Point) -> Result<Ended, String> {
    let mut settings = (story.settings)();
    settings.plant = Plant::of(planted);
    let mut lab = (story.set_up)(settings);
    lab.world.crash_at[story.victim] = Some(CrashAt {
        left: point.io,
        all: true,
        power: Some(point.keep),
        completed: false,
    });
    (story.act)(&mut lab);
    let over = lab.world.crash_at[story.victim].take().is_some();
    if over && lab.world.nodes[story.victim].is_running() {
        lab.world.crashed_with = lab.world.nodes[story.victim].volatile_writes();
        lab.world.stop_keeping(story.victim, Some(point.keep));
    }
    let at_stake = lab.world.crashed_with;
    let ended = Ended { over, at_stake };
    match go_on(&mut lab, story.victim, point.after) {
        Ok(()) => Ok(ended),
        Err(why) => {
            let why = lab.world.failure().map_or(why, str::to_owned);
            Err(format!("{}\n{why}", lab.world.trace.tail()))
        }
    }
}

fn go_on(lab: &mut Lab, victim: usize, after: After) -> Result<(), String> {
    let peer = 1 - victim;
    let world = &mut lab.world;
    world.block([false; 2]);
    world.settings.habits.depth = 1;
    world.run_for(2000 * MS)?;
    match after {
        After::Rejoin | After::Again => {}
        After::Alone => {
            world.stop(peer, false);
            world.up(victim);
            world.run_for(500 * MS)?;
            serve_alone(world, victim, Knows::No)?;
        }
        After::Takeover => serve_alone(world, peer, Knows::Yes)?,
        After::Usurped => serve_alone(world, peer, Knows::No)?,
    }
    let knows = match after {
        After::Alone | After::Usurped => Knows::No,
        After::Rejoin | After::Takeover | After::Again => Knows::Yes,
    };
    come_together(world, knows)?;
    if after == After::Again {
        world.stop(victim, true);
        world.run_for(500 * MS)?;
        come_together(world, knows)?;
    }
    read_all(world)
}

/// The node serves without its peer, if a person would let it: it has everything.
fn serve_alone(world: &mut World, node: usize, knows: Knows) -> Result<(), String> {
    let fit = world.nodes[node].is_running()
        && world.nodes[node].is_up_to_date()
        && (knows == Knows::No || world.oracle.is_current(node));
    if fit && !world.nodes[node].is_primary() {
        world.promote(node, Force::No);
        world.run_for(200 * MS)?;
    }
    if world.nodes[node].is_primary() {
        world.request(node, 1, 56, 8);
        world.run_for(200 * MS)?;
    }
    Ok(())
}

/// Whether the person knows what a node lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knows {
    Yes,
    No,
}

/// What a person does until both are in sync: starts what is down, attaches, connects, decides a split brain.
fn come_together(world: &mut World, knows: Knows) -> Result<(), String> {
    for round in 0..60 {
        for node in [A, B] {
            if !world.nodes[node].is_running() {
                world.up(node);
                continue;
            }
            let idle = world.nodes[node].open_commands.is_empty();
            let Some(state) = world.nodes[node].state().filter(|_| idle) else {
                continue;
            };
            let alone = state.conn == ConnState::StandAlone;
            if alone && state.role == Role::Primary && state.disk != DiskState::UpToDate {
                // It serves nobody: its peer has the data, or will.
                world.command(node, Command::Secondary { volume: VOLUME });
            } else if state.disk == DiskState::Diskless {
                world.command(node, Command::Attach { volume: VOLUME });
            } else if alone && state.role == Role::Primary && knows == Knows::No && round == 20 {
                // A source that missed the end of its resync starts no generation when it is promoted alone (12.3, T43): it is
                // refused as a Primary that would be target. Its message says so, and the person gives up what it wrote.
                world.oracle.discard(node);
                world.command(node, Command::Secondary { volume: VOLUME });
            } else if alone {
                decide_split(world, node)?;
            } else if node == A
                && [state.disk, state.pdsk] == [DiskState::Inconsistent; 2]
                && state.conn == ConnState::Connected
            {
                // Nobody ever wrote: the initial sync is skipped once more.
                let clear_bitmap = true;
                let volume = VOLUME;
                world.command(
                    node,
                    Command::NewCurrentUuid {
                        volume,
                        clear_bitmap,
                    },
                );
            }
        }
        world.run_for(1000 * MS)?;
        if world.is_in_sync() {
            world.run_for(1000 * MS)?;
            if world.compare_if_idle() {
                return world.run_for(0);
            }
        }
    }
    let states: Vec<_> = world
        .nodes
        .iter()
        .map(|node| node.state().map(super::trace::state_words))
        .collect();
    Err(format!("the nodes do not come together: {states:?}"))
}

/// Two nodes that are apart are connected; in a split brain the one that lacks something gives up its data.
fn decide_split(world: &mut World, node: usize) -> Result<(), String> {
    let split = [A, B].map(|node| world.nodes[node].handlers.last() == Some(&"split-brain"));
    if split == [false; 2] {
        world.connect(node, false);
        return Ok(());
    }
    let loser = if world.oracle.lacks(A) { A } else { B };
    if world.nodes[loser].is_primary() {
        world.command(loser, Command::Secondary { volume: VOLUME });
    }
    for node in [A, B] {
        let force = Force::Yes;
        world.command(node, Command::Disconnect { force });
        world.nodes[node].handlers.clear();
    }
    world.run_for(500 * MS)?;
    world.oracle.discard(loser);
    world.connect(loser, true);
    world.connect(1 - loser, false);
    Ok(())
}

/// Every block is read on a Primary, then a switchover, once more.
fn read_all(world: &mut World) -> Result<(), String> {
    for _ in 0..2 {
        let node = if world.nodes[B].is_primary() { B } else { A };
        if !world.nodes[node].is_primary() {
            world.promote(node, Force::No);
            world.run_for(200 * MS)?;
        }
        for block in 0..8 {
            world.request(node, 0, block * 8, 8);
        }
        world.run_for(300 * MS)?;
        world.command(node, Command::Secondary { volume: VOLUME });
        world.run_for(1000 * MS)?;
        world.promote(1 - node, Force::No);
        world.run_for(300 * MS)?;
        if !world.nodes[1 - node].is_primary() {
            return Err("a switchover fails".to_owned());
        }
    }
    Ok(())
}

fn small() -> Settings {
    let mut settings = settings();
    settings.disk_options.resync_rate = 400;
    settings
}

fn external() -> Settings {
    small()
}

fn internal() -> Settings {
    let mut settings = small();
    settings.disk = DiskPlan {
        bytes: (1 << 20) + (32 << 10),
        meta: MetaKind::Internal,
        discard: false,
    };
    settings
}

/// More extents than the activity log has slots.
fn large() -> Settings {
    let mut settings = small();
    settings.disk.bytes = 72 * (4 << 20);
    settings.disk_options.al_extents = 67;
    settings.disk_options.resync_rate = 100_000;
    settings
}

fn start(settings: Settings) -> Lab {
    let mut lab = Lab::pair_of(settings);
    lab.ok(A, primary(Force::No));
    lab
}

/// A wrote and was answered; all of it has left the epochs and is on both disks.
fn busy(settings: Settings) -> Lab {
    let mut lab = start(settings);
    lab.write(A, &[0, 1]);
    lab
}

fn busy_and_idle(settings: Settings) -> Lab {
    let mut lab = busy(settings);
    wait(&mut lab, 500 * MS);
    lab
}

/// A writes without its peer.
fn degraded(settings: Settings) -> Lab {
    let mut lab = busy(settings);
    lab.cut();
    lab.write(A, &[2, 5]);
    lab
}

fn crashed(settings: Settings) -> Lab {
    let mut lab = busy(settings);
    lab.power_off(A);
    lab
}

fn crashed_alone(settings: Settings) -> Lab {
    let mut lab = degraded(settings);
    lab.world.stop(A, false);
    lab
}

fn diskless(settings: Settings) -> Lab {
    let mut lab = busy_and_idle(settings);
    let force = Force::No;
    lab.ok(
        A,
        Command::Detach {
            volume: VOLUME,
            force,
        },
    );
    lab
}

fn both_wrote(settings: Settings) -> Lab {
    let mut lab = degraded(settings);
    lab.ok(B, primary(Force::No));
    lab.write(B, &[6]);
    lab.plug();
    lab.split();
    lab.ok(B, Command::Secondary { volume: VOLUME });
    lab.world.oracle.discard(B);
    lab
}

fn fresh(settings: Settings) -> Lab {
    let mut lab = Lab::blank_of(settings);
    lab.world.up(A);
    lab.world.up(B);
    lab.wait("both are connected", |world| {
        world.nodes.iter().all(super::node::Node::is_connected)
    });
    lab
}

/// Every slot of the activity log is taken, without the peer: the bits of all extents are in memory.
fn full_log(settings: Settings) -> Lab {
    let mut lab = start(settings);
    lab.cut();
    let blocks: Vec<u64> = (0..67).map(|extent| extent * 1024).collect();
    lab.write(A, &blocks);
    lab
}

fn wait(lab: &mut Lab, time: u64) {
    // What is wrong is found afterwards.
    let _ = lab.world.run_for(time);
}

fn ask(lab: &mut Lab, node: usize, command: Command) {
    lab.world.command(node, command);
}

fn write(lab: &mut Lab, node: usize, blocks: &[u64]) {
    for block in blocks {
        if lab.world.nodes[node].is_primary() && lab.world.nodes[node].serves.is_some() {
            lab.world.request(node, 1, block * 8, 8);
        }
    }
}

fn flush(lab: &mut Lab, node: usize) {
    if lab.world.nodes[node].is_primary() && lab.world.nodes[node].serves.is_some() {
        lab.world.request(node, 3, 0, 8);
    }
}

fn write_and_flush(lab: &mut Lab) {
    write(lab, A, &[1, 3]);
    wait(lab, 3 * MS);
    write(lab, A, &[1]);
    flush(lab, A);
    wait(lab, 20 * MS);
    write(lab, A, &[4]);
    wait(lab, ACT);
}

fn switch_over(lab: &mut Lab) {
    write(lab, A, &[3]);
    wait(lab, 5 * MS);
    ask(lab, A, Command::Secondary { volume: VOLUME });
    wait(lab, 500 * MS);
    if lab.world.nodes[B].is_running() && lab.world.nodes[B].is_connected() {
        ask(lab, B, primary(Force::No));
        wait(lab, MS);
        write(lab, B, &[4]);
    }
    wait(lab, ACT);
}

fn promote(lab: &mut Lab) {
    ask(lab, A, primary(Force::No));
    let mut left = 3;
    for _ in 0..400 {
        wait(lab, MS / 20);
        let serves = lab.world.nodes[A].serves.is_some();
        if left > 0 && serves && lab.world.clients.in_flight(A) == 0 {
            left -= 1;
            write(lab, A, &[3]);
        }
    }
    wait(lab, ACT);
}

fn promote_alone(lab: &mut Lab) {
    lab.world.block([true; 2]);
    wait(lab, 10_000 * MS);
    promote(lab);
}

fn demote(lab: &mut Lab) {
    ask(lab, A, Command::Secondary { volume: VOLUME });
    wait(lab, ACT);
}

/// A write is on its way to the peer when the link is lost.
fn lose_link(lab: &mut Lab) {
    write(lab, A, &[2]);
    wait(lab, 20 * MS);
    lab.world.block([true; 2]);
    write(lab, A, &[3]);
    wait(lab, 10_000 * MS);
    write(lab, A, &[4]);
    wait(lab, ACT);
}

fn reconnect(lab: &mut Lab) {
    lab.plug();
    wait(lab, 4000 * MS);
    write(lab, A, &[5]);
    wait(lab, ACT);
}

fn reconnect_under_load(lab: &mut Lab) {
    lab.plug();
    for round in 0..40_u64 {
        wait(lab, 100 * MS);
        if lab.world.clients.in_flight(A) == 0 {
            write(lab, A, &[round % 7]);
        }
    }
    wait(lab, ACT);
}

fn discard_and_connect(lab: &mut Lab) {
    lab.world.connect(B, true);
    lab.world.connect(A, false);
    wait(lab, 2 * ACT);
}

fn attach(lab: &mut Lab) {
    lab.world.up(A);
    wait(lab, ACT);
}

fn detach(lab: &mut Lab, node: usize) {
    write(lab, A, &[3]);
    wait(lab, 5 * MS);
    let force = Force::No;
    ask(
        lab,
        node,
        Command::Detach {
            volume: VOLUME,
            force,
        },
    );
    wait(lab, 300 * MS);
    write(lab, A, &[4]);
    wait(lab, ACT);
}

fn invalidate(lab: &mut Lab) {
    lab.world.oracle.discard(B);
    ask(lab, B, Command::Invalidate { volume: VOLUME });
    wait(lab, 30 * MS);
    write(lab, A, &[4]);
    wait(lab, ACT);
}

fn new_generation(lab: &mut Lab) {
    let clear_bitmap = true;
    ask(
        lab,
        A,
        Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap,
        },
    );
    wait(lab, 300 * MS);
    ask(lab, A, primary(Force::No));
    wait(lab, 300 * MS);
    write(lab, A, &[4]);
    wait(lab, ACT);
}

fn evict(lab: &mut Lab) {
    write(lab, A, &[67 * 1024]);
    wait(lab, ACT);
}

/// The only good copy of what was answered is in the cache of B.
fn lose_disk_and_peer(lab: &mut Lab) {
    write(lab, A, &[2]);
    wait(lab, 3 * MS);
    let force = Force::Yes;
    ask(
        lab,
        A,
        Command::Detach {
            volume: VOLUME,
            force,
        },
    );
    wait(lab, 2 * ACT);
    flush(lab, A);
    wait(lab, 500 * MS);
}

/// What A shows its application is on the disk of B only.
fn write_without_disk(lab: &mut Lab) {
    write(lab, A, &[2, 3]);
    wait(lab, 400 * MS);
    write(lab, A, &[2]);
    wait(lab, 400 * MS);
    ask(lab, A, Command::Attach { volume: VOLUME });
    wait(lab, ACT);
}

macro_rules! stories {
    ($($name:literal: $victim:ident, $settings:ident, $set_up:ident, $act:expr;)+) => {
        &[$(Story {
            name: $name,
            victim: $victim,
            settings: $settings,
            set_up: $set_up,
            act: $act,
        }),+]
    };
}

/// All of them: every kind of durable sequence, on both sides.
pub const STORIES: &[Story] = stories! {
    "the first writes of a Primary": A, external, start, write_and_flush;
    "the first writes of a Primary, internal metadata": A, internal, start, write_and_flush;
    "the writes of a peer": B, external, start, write_and_flush;
    "an attach after a crash": A, external, crashed, attach;
    "an attach after a process was killed alone": A, external, crashed_alone, attach;
    "a switchover, the old Primary": A, external, busy, switch_over;
    "a switchover, the new Primary": B, external, busy, switch_over;
    "a promotion": A, external, pair, promote;
    "a promotion alone": A, external, pair, promote_alone;
    "a demotion alone": A, external, degraded, demote;
    "a demotion alone, internal metadata": A, internal, degraded, demote;
    "a lost link, the Primary": A, external, start, lose_link;
    "a lost link, the Secondary": B, external, start, lose_link;
    "a resync, the source": A, external, degraded, reconnect;
    "a resync, the target": B, external, degraded, reconnect;
    "a resync under load, the source": A, external, degraded, reconnect_under_load;
    "a resync under load, the target": B, external, degraded, reconnect_under_load;
    "a decided split brain, the target": B, external, both_wrote, discard_and_connect;
    "a decided split brain, the source": A, external, both_wrote, discard_and_connect;
    "a detach of the Primary": A, external, busy, |lab| detach(lab, A);
    "a detach of the Secondary": B, external, busy, |lab| detach(lab, B);
    "writes without a disk, the peer": B, external, diskless, write_without_disk;
    "writes without a disk, the Primary": A, external, diskless, write_without_disk;
    "a disk and its peer are lost": B, external, start, lose_disk_and_peer;
    "an invalidate, the target": B, external, busy_and_idle, invalidate;
    "an invalidate, the source": A, external, busy_and_idle, invalidate;
    "a skipped initial sync": A, external, fresh, new_generation;
    "a skipped initial sync, the peer": B, external, fresh, new_generation;
    "an eviction from the activity log": A, large, full_log, evict;
};

fn pair(settings: Settings) -> Lab {
    Lab::pair_of(settings)
}

/// The first story and cut that shows a planted mistake.
#[must_use]
pub fn find(planted: Planted, depth: Depth) -> Option<(&'static str, Point, String)> {
    STORIES.iter().find_map(|story| {
        let (point, why) = search(story, Some(planted), depth).err()?;
        Some((story.name, point, why))
    })
}
