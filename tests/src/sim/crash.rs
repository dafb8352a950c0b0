//! Crash points, completely: every durable sequence of the engine is cut at every one of its I/Os, with every choice of what a
//! volatile cache kept, and the node comes back.
//!
//! A [`Story`] brings two nodes of a lab somewhere ([`Story::set_up`]), then lets something happen ([`Story::act`]). While it
//! happens, the power of the victim fails when its k-th I/O would end: the writes that were not flushed (that one and others in
//! flight included) are kept or lost, each by itself. Then the pair goes on in one of the ways of [`After`], and the oracle
//! judges: nothing acknowledged is lost, replicas that call themselves UpToDate are equal.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tandem_replicator::planted::{Plant, Planted};
use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{Command, Force, Protocol};

use super::lab::{A, B, Lab};
use super::network::MS;
use super::node::{Keep, Part, VOLUME};
use super::pair::{ONLY_PAIR, peer_of};
pub use super::stories::STORIES;
use super::world::{Counted, CrashAt, CutPlace};
use super::{Settings, World};

/// Up to so many writes at stake every subset of them is tried: the bound of a complete search.
pub const SUBSETS_OF: u32 = 10;

/// Where more are at stake than all of whose subsets are tried, so many of them are tried alone.
const EACH_MAX: u32 = 6;

/// Time for what happens in a story.
pub(super) const ACT: u64 = 6000 * MS;

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
    /// Its protocol.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        (self.settings)().net_options.protocol
    }

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

impl std::fmt::Display for Point {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keep = match self.keep {
            Keep::Dice => "dice".to_owned(),
            Keep::Killed => "killed".to_owned(),
            Keep::These(kept) => kept.to_string(),
            Keep::Torn(kept, unit, part) => format!("{kept}/{unit}/{part:?}"),
        };
        write!(formatter, "{}:{keep}:{:?}", self.io, self.after)
    }
}

impl std::str::FromStr for Point {
    type Err = String;

    /// `IO:KEEP:AFTER`, as it is printed.
    fn from_str(words: &str) -> Result<Point, String> {
        let wrong = || "IO:KEEP:AFTER, such as 5:0:Rejoin or 5:killed:Alone".to_owned();
        let mut parts = words.split(':');
        let mut part = || parts.next().ok_or_else(wrong);
        let io = part()?.parse().map_err(|_| wrong())?;
        let keep = keep_of(part()?).ok_or_else(wrong)?;
        let after = part()?;
        let after = AFTERS.iter().find(|known| format!("{known:?}") == after);
        let after = *after.ok_or_else(wrong)?;
        Ok(Point { io, keep, after })
    }
}

fn keep_of(words: &str) -> Option<Keep> {
    if words == "killed" {
        return Some(Keep::Killed);
    }
    let mut numbers = words.split('/');
    let kept = numbers.next()?.parse().ok()?;
    let Some(unit) = numbers.next() else {
        return Some(Keep::These(kept));
    };
    let part = match numbers.next()? {
        "FirstHalf" => Part::FirstHalf,
        "SecondHalf" => Part::SecondHalf,
        _ => return None,
    };
    Some(Keep::Torn(kept, unit.parse().ok()?, part))
}

/// How a cut ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The step of a durable sequence that was cut; `None` where the I/O was part of none.
    pub place: Option<CutPlace>,
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
#[derive(Clone, Debug, Default)]
pub struct Searched {
    /// Steps of durable sequences that were cut.
    pub places: BTreeSet<CutPlace>,
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
            searched.places.extend(first.place);
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
    let outcome = catch_unwind(AssertUnwindSafe(|| run(story, planted, point, false)));
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

/// Runs one cut; with `live` everything that happens is printed.
///
/// # Errors
/// What is wrong, with the end of the story.
pub fn run(
    story: &Story,
    planted: Option<Planted>,
    point: Point,
    live: bool,
) -> Result<Ended, String> {
    let mut settings = (story.settings)();
    settings.live = live;
    settings.plant = Plant::of(planted);
    let mut lab = (story.set_up)(settings);
    lab.world.crash_at[story.victim] = Some(CrashAt {
        left: point.io,
        of: Counted::Writes,
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
    let ended = Ended {
        place: lab.world.crashed_in.filter(|_| !over),
        over,
        at_stake,
    };
    match go_on(&mut lab, story.victim, point.after) {
        Ok(()) => Ok(ended),
        Err(why) => {
            let why = lab.world.failure().map_or(why, str::to_owned);
            Err(format!("{}\n{why}", lab.world.trace.tail()))
        }
    }
}

fn go_on(lab: &mut Lab, victim: usize, after: After) -> Result<(), String> {
    let peer = peer_of(victim);
    let world = &mut lab.world;
    world.block(ONLY_PAIR, [false; 2]);
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
    come_together(world)?;
    if after == After::Again {
        world.stop(victim, true);
        world.run_for(500 * MS)?;
        come_together(world)?;
    }
    read_all(world)
}

/// The node serves without its peer, if a person would let it: it has everything.
fn serve_alone(world: &mut World, node: usize, knows: Knows) -> Result<(), String> {
    let fit = world.nodes[node].is_running()
        && world.nodes[node].is_up_to_date()
        && (knows == Knows::No || world.oracle(node).is_current(node));
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
fn come_together(world: &mut World) -> Result<(), String> {
    for _ in 0..60 {
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
    let loser = if world.lacks(A) { A } else { B };
    if world.nodes[loser].is_primary() {
        world.command(loser, Command::Secondary { volume: VOLUME });
    }
    for node in [A, B] {
        let force = Force::Yes;
        world.command(node, Command::Disconnect { force });
        world.nodes[node].handlers.clear();
    }
    world.run_for(500 * MS)?;
    world.discard(loser);
    world.connect(loser, true);
    world.connect(peer_of(loser), false);
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
        // All of it, if the device has got its other half (`resize`).
        let blocks = world.nodes[node].serves.unwrap_or(0) / 4096;
        for block in 0..blocks.min(8) {
            world.request(node, 0, block * 8, 8);
        }
        world.run_for(300 * MS)?;
        world.command(node, Command::Secondary { volume: VOLUME });
        world.run_for(1000 * MS)?;
        world.promote(peer_of(node), Force::No);
        world.run_for(300 * MS)?;
        if !world.nodes[peer_of(node)].is_primary() {
            return Err("a switchover fails".to_owned());
        }
    }
    Ok(())
}

/// The first story and cut that shows a planted mistake.
#[must_use]
pub fn find(planted: Planted, depth: Depth) -> Option<(&'static str, Point, String)> {
    STORIES.iter().find_map(|story| {
        let (point, why) = search(story, Some(planted), depth).err()?;
        Some((story.name, point, why))
    })
}
