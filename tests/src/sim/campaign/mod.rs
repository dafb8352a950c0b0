//! One seed, one history: sizes, options and a mix of faults are drawn, a safety phase runs under faults, then everything is healed
//! and the two nodes must come together again.

mod actions;
mod phases;
mod plan;
mod report;
mod rough;

use std::collections::BTreeSet;
use std::ops::Range;

use tandem_replicator::Protocol;
use tandem_replicator::planted::Planted;

use super::black_box::Boxes;
use super::dice::Dice;
use super::network::MS;
use super::pair::ONLY_PAIR;
use super::person::Person;
use super::world::{CutPlace, World};
pub use plan::ACTIONS;
use plan::{Plan, draw};
pub use report::{Failure, Report, commit, kind, replay};

/// Histories before this one are those that found the first mistakes: they stay what they were, and nodes die at a time. From
/// this one on they die at an I/O as well.
const FIRST_SHARP_SEED: u64 = 2000;

/// From this seed on devices are small: blocks meet more often, and a resync does not take most of the time.
const FIRST_SMALL_SEED: u64 = 4000;

/// From this one on disks hang and fill up, ports are closed, handlers fail, and persons type whatever there is to type.
pub(super) const FIRST_ROUGH_SEED: u64 = 3000;

/// From this one on a resync may compare checksums first, persons verify, and at the end blocks go bad on the Secondary.
pub(super) const FIRST_DIGEST_SEED: u64 = 1_000_000;

/// From this one on a disk that fails may stay (`on-io-error pass_on`).
pub(super) const FIRST_PASS_ON_SEED: u64 = 2_000_000;

/// From this one on disks grow, persons type `resize`, and the target of a resync may ask for holes.
pub(super) const FIRST_RESIZE_SEED: u64 = 3_000_000;

/// From this one on persons type what only a node that is StandAlone takes: before, that hardly ever met one.
pub(super) const FIRST_ALONE_SEED: u64 = 5_000_000;

/// From this one on nodes also die between two effects of one event, and a power loss tears sectors.
pub(super) const FIRST_TORN_SEED: u64 = 6_000_000;

/// What is asked of a run.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// The seed.
    pub seed: u64,
    /// The protocol.
    pub protocol: Protocol,
    /// Print everything while it happens.
    pub live: bool,
    /// A mistake of both engines.
    pub planted: Option<Planted>,
}

impl Spec {
    /// A silent run of the engine as it is.
    #[must_use]
    pub const fn new(seed: u64, protocol: Protocol) -> Spec {
        Spec {
            seed,
            protocol,
            live: false,
            planted: None,
        }
    }
}

/// How a run ended.
pub type Outcome = Result<Report, Failure>;

/// What is left of a history: see [`crate::sim::shrink`].
#[derive(Clone, Debug, Default)]
pub struct Cuts {
    /// Places of the faults and commands that are left out.
    pub actions: BTreeSet<u32>,
    /// Turns of the clients in which they do nothing.
    pub turns: Vec<Range<u64>>,
    /// The dice of each place as the whole history had them, so that those that are left do what they did.
    dice: Vec<Dice>,
}

/// Runs one campaign.
///
/// # Errors
/// What is wrong, with the last lines of the trace and the command that replays it.
pub fn run(spec: Spec) -> Outcome {
    Campaign::new(spec, Cuts::default()).play(spec)
}

/// As [`run`], with a black box of every process of both nodes.
///
/// # Errors
/// As of [`run`].
pub fn run_recorded(spec: Spec) -> (Outcome, Vec<Vec<u8>>) {
    let mut campaign = Campaign::new(spec, Cuts::default());
    for node in &mut campaign.world.nodes {
        node.boxes = Some(Boxes::default());
    }
    let outcome = campaign.play(spec);
    let nodes = campaign.world.nodes.iter_mut();
    let boxes = nodes.filter_map(|node| node.boxes.as_mut());
    (outcome, boxes.flat_map(Boxes::take).collect())
}

/// As [`run`], with everything that happened, in words.
///
/// # Errors
/// As of [`run`].
pub fn run_traced(spec: Spec) -> (Outcome, String) {
    let mut campaign = Campaign::new(spec, Cuts::default());
    campaign.world.trace.keep(usize::MAX);
    let outcome = campaign.play(spec);
    (outcome, campaign.world.trace.tail())
}

/// As [`run`], with the steps of durable sequences that either node took.
///
/// # Errors
/// As of [`run`].
pub fn run_watched(spec: Spec) -> (Outcome, BTreeSet<CutPlace>) {
    let mut campaign = Campaign::new(spec, Cuts::default());
    campaign.world.places = Some(BTreeSet::new());
    let outcome = campaign.play(spec);
    (outcome, campaign.world.places.take().unwrap_or_default())
}

/// Runs what is left of a campaign.
///
/// # Errors
/// As of [`run`].
pub fn run_cut(spec: Spec, cuts: &Cuts) -> Outcome {
    let whole = Spec {
        live: false,
        ..spec
    };
    let mut campaign = Campaign::new(whole, Cuts::default());
    // How it ends is known: only its dice are wanted.
    let _ = campaign.play(whole);
    let cuts = Cuts {
        dice: campaign.dice_at,
        ..cuts.clone()
    };
    Campaign::new(spec, cuts).play(spec)
}

/// Something to be taken back later.
enum Undo {
    Unblock,
    Faster,
    Loud,
    Rough(rough::Undo),
}

struct Campaign {
    world: World,
    person: Person,
    plan: Plan,
    dice: Dice,
    report: Report,
    undo: Vec<(u64, Undo)>,
    /// For crashes at an I/O: a stream of its own, so that histories found before it stay what they were.
    sharp: Dice,
    /// For what only rough histories have.
    rough: Dice,
    /// Faults and commands so far, by place.
    done: Vec<(u32, &'static str)>,
    /// The dice at each place.
    dice_at: Vec<Dice>,
    cuts: Cuts,
}

impl Campaign {
    fn new(spec: Spec, cuts: Cuts) -> Campaign {
        let plan = draw(spec);
        let mut campaign = Campaign {
            world: World::new(plan.settings.clone()),
            person: Person::new(Dice::new(spec.seed, "person")),
            plan,
            dice: Dice::new(spec.seed, "campaign"),
            sharp: Dice::new(spec.seed, "sharp"),
            rough: Dice::new(spec.seed, "rough"),
            report: Report::default(),
            done: Vec::new(),
            undo: Vec::new(),
            dice_at: Vec::new(),
            cuts,
        };
        campaign.world.clients.muted = campaign.cuts.turns.clone();
        campaign
    }

    fn play(&mut self, spec: Spec) -> Outcome {
        match self.run() {
            Ok(()) => Ok(self.finish()),
            Err(why) => Err(self.explain(spec, &why)),
        }
    }

    fn run(&mut self) -> Result<(), String> {
        self.set_up()?;
        self.safety()?;
        self.heal()?;
        self.final_reading()?;
        self.rot()
    }

    /// Runs for a time, with the person looking now and then.
    fn live(&mut self, time: u64) -> Result<(), String> {
        let end = self.world.now + time;
        while self.world.now < end {
            let left = end - self.world.now;
            let woken = self.world.run_until(left, |world| world.person_due);
            if let Some(failure) = self.world.failure() {
                return Err(failure.to_owned());
            }
            self.take_back();
            if woken.is_ok() {
                self.world.person_due = false;
                self.person.look(&mut self.world);
            }
            self.let_clients_on();
        }
        Ok(())
    }

    /// Clients of a node that is no longer being demoted go on.
    fn let_clients_on(&mut self) {
        if !self.person.switching && !self.person.sees_split() {
            self.world.clients.resting.fill(false);
        }
    }

    fn take_back(&mut self) {
        let now = self.world.now;
        let due: Vec<_> = self.undo.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, undo) in due {
            self.take_back_one(&undo);
        }
    }

    fn take_back_one(&mut self, undo: &Undo) {
        match undo {
            Undo::Unblock => self.world.block(ONLY_PAIR, [false; 2]),
            Undo::Faster => {
                self.world.say("network and disks are as fast as before");
                self.world.net.settings.delay = self.plan.settings.net.delay;
                self.world.settings.disk_delay = self.plan.settings.disk_delay;
            }
            Undo::Loud => {
                self.world.clients.quiet = false;
                self.world.wake_clients();
            }
            Undo::Rough(undo) => self.take_back_rough(*undo),
        }
    }

    fn undo_in(&mut self, least_ms: u64, most_ms: u64, undo: Undo) {
        let at = self.world.now + self.dice.between(least_ms, most_ms) * MS;
        self.undo.push((at, undo));
    }

    /// Who serves clients, and who does not.
    fn primary(&self) -> usize {
        let is_primary = |node: usize| self.world.nodes[node].is_primary();
        match (is_primary(0), is_primary(1)) {
            (true, false) => 0,
            (false, true) => 1,
            _ => self.person.wanted,
        }
    }
}
