//! The simulated world: pairs of nodes, their network, their clients, one clock, one queue. Everything that happens is taken from the
//! queue in the order of its time; nothing else moves. What is known of one pair alone is in [`Pair`].

mod agreement;
mod checks;
mod effects;
mod persons;

use std::collections::{BTreeMap, BTreeSet};

use tandem_replicator::planted::{PlanEnd, Plant};
use tandem_replicator::state::word::{DiskState, Role, State};
use tandem_replicator::{DiskOptions, Effects, Event, NetOptions, Time, Token};

pub use agreement::Seen;

use super::clients::{Clients, Habits};
use super::dice::Dice;
use super::disk::Disk;
use super::network::{MS, NetEvent, NetSettings, Network};
use super::node::{DiskPlan, Keep, Node};
use super::oracle::Oracle;
use super::pair::{PAIRS_MAX, nodes_of, pair_of};
use super::stamp::{Content, Stamper};
use super::trace::{Trace, name};

/// Timers without progress of the clock that one engine may ask for before it is taken for a loop.
const TIMERS_IN_PLACE_MAX: u32 = 200;

/// Things that happen in one run, at most: far above the longest history that is drawn.
const STEPS_MAX: u64 = 6_000_000;

/// After this time a Secondary that lost its peer has begun to flush what it received.
const REST: u64 = 1000 * MS;

/// Something that will happen.
#[derive(Debug)]
enum What {
    Engine(usize, u64, Box<Event>),
    IoDone(usize, u64, Token),
    Timer(usize, u64),
    Net(NetEvent),
    Client,
    Connect(usize, u64),
    Person,
}

/// How a world is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The seed.
    pub seed: u64,
    /// Pairs of nodes.
    pub pairs: usize,
    /// The devices of all nodes.
    pub disk: DiskPlan,
    /// Options of all nodes' disks.
    pub disk_options: DiskOptions,
    /// Options of the connections.
    pub net_options: NetOptions,
    /// The links.
    pub net: NetSettings,
    /// Shortest and longest disk I/O in nanoseconds.
    pub disk_delay: (u64, u64),
    /// Time of a handler.
    pub handler_delay: u64,
    /// What clients do.
    pub habits: Habits,
    /// Print everything.
    pub live: bool,
    /// A deliberate mistake of all engines.
    pub plant: Plant,
    /// What cuts a write short may cut it inside a sector.
    pub tears_sectors: bool,
}

/// The world.
pub struct World {
    /// How it was made.
    pub settings: Settings,
    /// The clock.
    pub now: u64,
    /// Node A and node B, and more pairs after them.
    pub nodes: Vec<Node>,
    /// What is known of each pair.
    pub pairs: Vec<Pair>,
    /// The links.
    pub net: Network,
    /// The clients.
    pub clients: Clients,
    /// The story.
    pub trace: Trace,
    /// A step of the person at the keyboard is due (taken by the campaign).
    pub person_due: bool,
    /// Faults of disks, in dice.
    pub dice: Dice,
    disk_dice: Dice,
    handler_dice: Dice,
    /// Handlers end with any exit code.
    pub handlers_fail: bool,
    queue: BTreeMap<(u64, u64), What>,
    next: u64,
    steps: u64,
    next_command: u64,
    /// `up` connects when this command is answered.
    connect_after: Vec<Option<u64>>,
    timers_in_place: Vec<(u64, u32)>,
    effects: Effects,
    failure: Option<String>,
    client_scheduled: bool,
    /// Since when a Secondary has been without its peer.
    alone_since: Vec<Option<u64>>,
    /// A node dies at an I/O of its own.
    pub crash_at: Vec<Option<CrashAt>>,
    /// Writes that the last of these crashes could keep or lose.
    pub crashed_with: u32,
    /// What the last of these crashes cut, if that was a durable sequence.
    pub crashed_in: Option<CutPlace>,
    /// The I/Os of durable sequences that ended, if they are watched.
    pub places: Option<BTreeSet<CutPlace>>,
    /// Since when writes of this Primary, answered before, may have been lost with its disk and its link: a flush may say so, once.
    owes_error: Vec<Option<u64>>,
    /// Nodes on which a verify came to its end since this was cleared.
    pub verified: Vec<bool>,
    /// Answers of handlers and of backing devices that are under way, of each node.
    awaited: Vec<u32>,
    /// What has happened so far.
    pub seen: Seen,
}

/// What is known of one pair: its judge, and what the rules of two nodes have to remember.
#[derive(Debug)]
pub struct Pair {
    /// The judge.
    pub oracle: Oracle,
    /// Commands that were given to a node that runs, by name.
    pub typed: BTreeSet<&'static str>,
    /// A disk has failed since the last verify began: a block that cannot be read counts as different in it.
    pub disk_faults: bool,
    /// What went bad behind the engines' backs.
    pub rotten: Option<Rotten>,
    /// Changes of state, and deaths, so far.
    state_changes: u64,
    /// What there was when the nodes were last compared.
    compared: Option<[u64; 4]>,
    /// When something last happened that may fail a request (see `World::check_error`).
    trouble: u64,
    /// The last resync ended well, and nothing has changed since but what belongs to its end.
    resynced: bool,
}

impl Pair {
    fn new(oracle: Oracle) -> Pair {
        Pair {
            oracle,
            typed: BTreeSet::new(),
            disk_faults: false,
            rotten: None,
            state_changes: 0,
            compared: None,
            trouble: 0,
            resynced: false,
        }
    }
}

/// Sectors of a node that hold garbage until something is written there.
#[derive(Clone, Debug)]
pub struct Rotten {
    /// The node.
    pub node: usize,
    /// What they hold.
    pub garbage: Content,
    /// The sectors.
    pub places: BTreeSet<u64>,
    /// No bit was set on either node when they went bad: a verify may mark nothing else.
    pub alone: bool,
}

/// A node dies in the middle of something.
#[derive(Clone, Copy, Debug)]
pub struct CrashAt {
    /// It dies at so manieth of [`CrashAt::of`].
    pub left: u32,
    /// What is counted.
    pub of: Counted,
    /// Its power fails, else it is killed.
    pub power: Option<Keep>,
    /// The last I/O was completed, and its node did not hear of it.
    pub completed: bool,
}

/// What brings a node nearer to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Flushes, and writes of metadata, when they end.
    Durable,
    /// Those, and writes of data.
    Writes,
    /// Effects of its engine: it dies when this one is carried out, and what the same event wants after it never happens.
    Effects,
}

/// An I/O of a durable sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CutPlace {
    /// What follows the sequence.
    pub end: PlanEnd,
    /// What is done.
    pub stage: CutStage,
}

/// What an I/O of a durable sequence does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CutStage {
    /// Writes the superblock.
    Superblock,
    /// Writes a block of the activity log.
    ActivityLog,
    /// Writes pages of the bitmap.
    Bitmap,
    /// Flushes metadata.
    FlushMeta,
    /// Flushes data.
    FlushData,
}

impl CutStage {
    /// All of them.
    pub const ALL: [CutStage; 5] = [
        CutStage::Superblock,
        CutStage::ActivityLog,
        CutStage::Bitmap,
        CutStage::FlushMeta,
        CutStage::FlushData,
    ];
}

impl World {
    /// Nodes with blank devices, no process.
    ///
    /// # Panics
    /// There are no pairs, or more than [`PAIRS_MAX`].
    #[must_use]
    pub fn new(settings: Settings) -> World {
        let (seed, pairs) = (settings.seed, settings.pairs);
        assert!((1..=PAIRS_MAX).contains(&pairs), "{pairs} pairs");
        let nodes = 2 * pairs;
        let stampers: Vec<_> = (0..pairs)
            .map(|pair| Stamper::of_pair(seed, pair))
            .collect();
        let node = |index| {
            let mut node = Node::new(index, settings.disk, stampers[pair_of(index)]);
            if settings.tears_sectors {
                node.data.tear_sectors();
                node.meta.iter_mut().for_each(Disk::tear_sectors);
            }
            node
        };
        let pair = |pair| Pair::new(Oracle::new(settings.net_options.protocol, pair));
        World {
            now: 1000 * MS,
            nodes: (0..nodes).map(node).collect(),
            pairs: (0..pairs).map(pair).collect(),
            net: Network::new(settings.net.clone(), nodes, Dice::new(seed, "network")),
            clients: Clients::new(settings.habits.clone(), stampers, seed),
            trace: Trace::new(settings.live),
            person_due: false,
            dice: Dice::new(seed, "faults"),
            disk_dice: Dice::new(seed, "disks"),
            handler_dice: Dice::new(seed, "handlers"),
            handlers_fail: false,
            queue: BTreeMap::new(),
            next: 0,
            steps: 0,
            next_command: 0,
            connect_after: vec![None; nodes],
            timers_in_place: vec![(0, 0); nodes],
            effects: Effects::new(),
            failure: None,
            client_scheduled: false,
            alone_since: vec![None; nodes],
            crash_at: vec![None; nodes],
            crashed_with: 0,
            crashed_in: None,
            places: None,
            owes_error: vec![None; nodes],
            verified: vec![false; nodes],
            awaited: vec![0; nodes],
            seen: Seen::default(),
            settings,
        }
    }

    /// The clock, as the engine has it.
    #[must_use]
    pub fn time(&self) -> Time {
        Time(self.now)
    }

    /// What is known of the pair of this node.
    #[must_use]
    pub fn pair(&self, node: usize) -> &Pair {
        &self.pairs[pair_of(node)]
    }

    /// The same, to change it.
    pub fn pair_mut(&mut self, node: usize) -> &mut Pair {
        &mut self.pairs[pair_of(node)]
    }

    /// The judge of the pair of this node.
    #[must_use]
    pub fn oracle(&self, node: usize) -> &Oracle {
        &self.pair(node).oracle
    }

    /// The nodes of a pair.
    fn nodes_of_pair(&self, pair: usize) -> [&Node; 2] {
        nodes_of(pair).map(|node| &self.nodes[node])
    }

    /// A line of the story.
    pub fn say(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.trace.text(Time(self.now), text);
    }

    /// Ends the run: something is wrong.
    pub fn fail(&mut self, text: impl Into<String>) {
        if self.failure.is_none() {
            let text = text.into();
            self.trace.text(Time(self.now), format!("FAILED: {text}"));
            self.failure = Some(text);
        }
    }

    /// What is wrong, if anything.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    fn schedule(&mut self, at: u64, what: What) {
        self.next += 1;
        self.queue.insert((at.max(self.now), self.next), what);
    }

    /// The person looks again after this time.
    pub fn wake_person(&mut self, after: u64) {
        self.schedule(self.now + after, What::Person);
    }

    /// Clients go on (or begin).
    pub fn wake_clients(&mut self) {
        if !self.client_scheduled {
            self.client_scheduled = true;
            let after = self.clients.pause();
            self.schedule(self.now + after, What::Client);
        }
    }

    /// Takes the next thing that happens. False: nothing is left, or something is wrong.
    pub fn step(&mut self) -> bool {
        if self.failure.is_some() {
            return false;
        }
        let Some(((at, _), what)) = self.queue.pop_first() else {
            return false;
        };
        self.now = at;
        self.steps += 1;
        if self.steps > STEPS_MAX {
            self.fail("too much happens: the run does not end");
            return false;
        }
        match what {
            What::Engine(node, boot, event) => {
                if self.nodes[node].boot == boot {
                    self.awaited[node] = self.awaited[node].saturating_sub(1);
                    self.deliver(node, *event);
                }
            }
            What::IoDone(node, boot, token) => self.io_done(node, boot, token),
            What::Timer(node, boot) => self.timer(node, boot),
            What::Net(event) => self.net_event(event),
            What::Client => self.client_step(),
            What::Connect(node, boot) => {
                if self.nodes[node].boot == boot {
                    self.connect(node, false);
                }
            }
            What::Person => self.person_due = true,
        }
        self.take_net();
        true
    }

    /// Runs until a condition holds.
    ///
    /// # Errors
    /// Something is wrong, or the time is over first.
    pub fn run_until(
        &mut self,
        limit: u64,
        mut done: impl FnMut(&mut World) -> bool,
    ) -> Result<(), String> {
        let end = self.now + limit;
        loop {
            if let Some(failure) = &self.failure {
                return Err(failure.clone());
            }
            if done(self) {
                return Ok(());
            }
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            match next {
                Some(at) if at <= end => {
                    self.step();
                }
                _ => {
                    self.now = end;
                    if done(self) {
                        return Ok(());
                    }
                    return Err(format!(
                        "nothing more happened within {} s",
                        limit / 1000 / MS
                    ));
                }
            }
        }
    }

    /// Runs for a time.
    ///
    /// # Errors
    /// Something is wrong.
    pub fn run_for(&mut self, time: u64) -> Result<(), String> {
        let end = self.now + time;
        while let Some(((at, _), _)) = self.queue.first_key_value() {
            if *at > end || self.failure.is_some() {
                break;
            }
            self.step();
        }
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None => {
                self.now = end;
                Ok(())
            }
        }
    }

    fn timer(&mut self, node: usize, boot: u64) {
        if self.nodes[node].boot != boot || !self.nodes[node].is_running() {
            return;
        }
        if self.nodes[node].timer.is_none_or(|at| at.0 > self.now) {
            return;
        }
        self.nodes[node].timer = None;
        let (at, count) = self.timers_in_place[node];
        let count = if at == self.now { count + 1 } else { 0 };
        self.timers_in_place[node] = (self.now, count);
        if count > TIMERS_IN_PLACE_MAX {
            self.fail(format!(
                "the engine of {} asks for the same deadline again and again",
                name(node)
            ));
            return;
        }
        self.deliver(node, Event::Timer);
    }

    /// Hands an event to an engine and carries out what it wants.
    pub fn deliver(&mut self, node: usize, event: Event) {
        if !self.nodes[node].is_running() || self.failure.is_some() {
            return;
        }
        let now = Time(self.now);
        self.trace.event(now, node, &event);
        let old = self.nodes[node].state();
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        let outcome = self.nodes[node].handle(now, event, &mut effects);
        for effect in &effects {
            self.trace.effect(now, node, effect);
        }
        if let Err(text) = outcome {
            self.fail(text);
        }
        let new = self.nodes[node].state();
        if old != new {
            self.note_trouble(node);
        }
        if let (Some(old), Some(new)) = (old, new) {
            self.note_debt(node, old, new);
        }
        let cut = self.dies_between(node, effects.len());
        if let Some((done, _)) = cut {
            effects.truncate(done);
        }
        // What clients were told comes first: a promotion in the same event does not change its truth.
        self.check_suspended(node, old, new, &effects);
        self.replies(node, &effects, new);
        if let (Some(old), Some(new)) = (old, new)
            && old != new
        {
            self.trace.state(now, node, old, new);
            let pair = &mut self.pairs[pair_of(node)];
            pair.state_changes += 1;
            if let Err(text) = pair.oracle.state_changed(node, old, new, &self.nodes) {
                self.fail(text);
            }
            self.two_primaries(pair_of(node));
            self.note_solitude(node, old, new);
            self.note_resync(node, old, new);
            self.check_becomes_up_to_date(node, old, new);
            self.note_verify_begins(node, old, new);
        }
        for effect in effects.drain(..) {
            self.carry_out(node, effect);
        }
        self.effects = effects;
        match cut {
            Some((done, crash)) if self.nodes[node].is_running() => {
                self.seen.cut_events += u64::from(done > 0);
                self.say(format!("{} dies after {done} effects", name(node)));
                self.stop_keeping(node, crash.power);
            }
            _ => self.set_timer(node),
        }
        self.check_pair(pair_of(node));
        self.take_net();
    }

    fn note_solitude(&mut self, node: usize, old: State, new: State) {
        let usable = matches!(
            new.disk,
            DiskState::Outdated | DiskState::Consistent | DiskState::UpToDate
        );
        if !usable || new.role == Role::Primary || new.conn.is_connected() {
            self.alone_since[node] = None;
        } else if old.conn.is_connected() && old.role == Role::Secondary {
            self.alone_since[node] = Some(self.now);
        }
    }

    /// A Secondary that lost its peer some time ago, and whose disks do nothing any more.
    fn is_at_rest(&self, node: usize) -> bool {
        self.alone_since[node].is_some_and(|since| since + REST <= self.now)
            && self.nodes[node].io.is_empty()
    }
}
