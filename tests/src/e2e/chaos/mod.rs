//! Real daemons die, hang, lose their link and their disks at random, under load, while a person does what a runbook says; a
//! ledger of every write judges what is found ([`ledger`] says how its rules map to those of the simulator's oracle).
//!
//! [`script`] draws what happens from a seed. [`world`] knows what the harness knows: which node serves, what is on which node,
//! what was disturbed. [`steps`] does it, [`person`] repairs it. Checked: each read of each client, all that a promoted node shows, that
//! no answered write is given up without a split brain being told, that healed nodes come together by the commands of the runbook,
//! and that both disks are equal then.

pub mod evidence;
pub mod ledger;
pub mod load;
pub mod person;
pub mod script;
pub mod steps;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use script::Script;
use world::World;

/// One round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Draws the script and the load.
    pub seed: u64,
    /// `A`, `B` or `C`.
    pub protocol: char,
    /// Steps of the script.
    pub steps: u64,
}

impl Round {
    /// What a person types to repeat it.
    #[must_use]
    pub fn command(&self) -> String {
        format!(
            "cargo run --release -p tandem-tests --bin chaos -- --seed {} --rounds 1 --steps {} --protocol {}",
            self.seed, self.steps, self.protocol
        )
    }
}

/// What happened, for figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Daemons killed.
    pub kills: u64,
    /// Daemons stopped for a while.
    pub stops: u64,
    /// Links cut, at once or after a byte.
    pub cuts: u64,
    /// Links blocked in a direction, delayed or throttled.
    pub slow_links: u64,
    /// Disks that took no more.
    pub full_disks: u64,
    /// Disks that were let go because of that, or by command.
    pub detached: u64,
    /// Administrator's commands, repairs not counted.
    pub commands: u64,
    /// Promotions that were judged.
    pub promotions: u64,
    /// Of these, of the other node without its peer.
    pub takeovers: u64,
    /// Split brains, resolved by discarding one side.
    pub splits: u64,
    /// Both disks compared.
    pub comparisons: u64,
    /// Writes whose success was told.
    pub told: u64,
    /// Of these, missing after a takeover although nobody had to give them up: always 0 in a passed round.
    pub lost: u64,
    /// Of these, missing as the protocol and the person's choice allow.
    pub given_up: u64,
    /// Requests answered with an error, while the disks were failing.
    pub errors: u64,
}

impl Tally {
    /// The sum of two.
    pub fn add(&mut self, other: &Tally) {
        self.kills += other.kills;
        self.stops += other.stops;
        self.cuts += other.cuts;
        self.slow_links += other.slow_links;
        self.full_disks += other.full_disks;
        self.detached += other.detached;
        self.commands += other.commands;
        self.promotions += other.promotions;
        self.takeovers += other.takeovers;
        self.splits += other.splits;
        self.comparisons += other.comparisons;
        self.told += other.told;
        self.lost += other.lost;
        self.given_up += other.given_up;
        self.errors += other.errors;
    }
}

/// What the harness did, with times, for the report of a failure.
#[derive(Debug)]
pub struct Story {
    start: Instant,
    lines: Mutex<Vec<String>>,
}

/// Lines of a story that a failure shows.
const LINES_SHOWN: usize = 60;

impl Story {
    fn new() -> Story {
        Story {
            start: Instant::now(),
            lines: Mutex::default(),
        }
    }

    /// Notes what is done.
    pub fn note(&self, text: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(format!(
            "{:8.3} s  {text}",
            self.start.elapsed().as_secs_f64()
        ));
    }

    /// The last lines.
    pub fn end(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }
}

/// Runs a round below `base`.
///
/// # Errors
/// What went wrong, with the story, both logs and the command that repeats it; the files of the nodes are kept.
pub fn run(round: &Round, base: &Path) -> Result<Tally, String> {
    let story = Story::new();
    let script = Script::draw(round.seed, round.steps);
    let mut world = None;
    let played = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(round, &script, base, &story));
        world.begin();
        for (number, step) in script.steps.iter().enumerate() {
            story.note(&format!("step {}: {step:?}", number + 1));
            world.step(step);
        }
        story.note("the end");
        world.finish();
    }));
    match (played, world) {
        (Ok(()), Some(world)) => Ok(world.tally()),
        (Ok(()), None) => Err(String::from("a round without a world")),
        (Err(panic), world) => Err(report(round, &script, &story, panic.as_ref(), world)),
    }
}

fn report(
    round: &Round,
    script: &Script,
    story: &Story,
    panic: &(dyn std::any::Any + Send),
    world: Option<World<'_>>,
) -> String {
    let why = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default();
    let (logs, kept) = world.map_or_else(Default::default, World::abandon);
    format!(
        "{round:?}\n{:?} bytes, external metadata: {}, {} {}\n{}\nWRONG: {why}\n{logs}files kept in {kept}\nrepeat: {}",
        script.disk_bytes,
        script.external_metadata,
        script.resync_rate,
        script.net,
        story.end(),
        round.command()
    )
}
