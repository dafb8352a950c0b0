//! The simulated world: two nodes, their network, their clients, one clock, one queue. Everything that happens is taken from the
//! queue in the order of its time; nothing else moves.

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
    /// The devices of both nodes.
    pub disk: DiskPlan,
    /// Options of both nodes' disks.
    pub disk_options: DiskOptions,
    /// Options of the connection.
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
    /// A deliberate mistake of both engines.
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
    /// Node A and node B.
    pub nodes: [Node; 2],
    /// The links.
    pub net: Network,
    /// The clients.
    pub clients: Clients,
    /// The judge.
    pub oracle: Oracle,
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
    /// Commands that were given to a node that runs, by name.
    pub typed: BTreeSet<&'static str>,
    /// `up` connects when this command is answered.
    connect_after: [Option<u64>; 2],
    timers_in_place: [(u64, u32); 2],
    effects: Effects,
    failure: Option<String>,
    /// Changes of state, and deaths, so far.
    state_changes: u64,
    /// What there was when the nodes were last compared.
    compared: Option<[u64; 4]>,
    client_scheduled: bool,
    /// Since when a Secondary has been without its peer.
    alone_since: [Option<u64>; 2],
    /// A node dies at an I/O of its own.
    pub crash_at: [Option<CrashAt>; 2],
    /// Writes that the last of these crashes could keep or lose.
    pub crashed_with: u32,
    /// What the last of these crashes cut, if that was a durable sequence.
    pub crashed_in: Option<CutPlace>,
    /// The I/Os of durable sequences that ended, if they are watched.
    pub places: Option<BTreeSet<CutPlace>>,
    /// A disk has failed since the last verify began: a block that cannot be read counts as different in it.
    pub disk_faults: bool,
    /// When something last happened that may fail a request (see `World::check_error`).
    trouble: u64,
    /// Since when writes of this Primary, answered before, may have been lost with its disk and its link: a flush may say so, once.
    owes_error: [Option<u64>; 2],
    /// What went bad behind the engines' backs.
    pub rotten: Option<Rotten>,
    /// Nodes on which a verify came to its end since this was cleared.
    pub verified: [bool; 2],
    /// Answers of handlers and of backing devices that are under way, of each node.
    awaited: [u32; 2],
    /// The last resync ended well, and nothing has changed since but what belongs to its end.
    resynced: bool,
    /// What has happened so far.
    pub seen: Seen,
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
    /// Two nodes with blank devices, no process.
    #[must_use]
    pub fn new(settings: Settings) -> World {
        let seed = settings.seed;
        let stamper = Stamper::new(seed);
        let node = |index| {
            let mut node = Node::new(index, settings.disk, stamper);
            if settings.tears_sectors {
                node.data.tear_sectors();
                node.meta.iter_mut().for_each(Disk::tear_sectors);
            }
            node
        };
        World {
            now: 1000 * MS,
            nodes: [node(0), node(1)],
            net: Network::new(settings.net.clone(), Dice::new(seed, "network")),
            clients: Clients::new(settings.habits.clone(), stamper, seed),
            oracle: Oracle::new(settings.net_options.protocol),
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
            typed: BTreeSet::new(),
            connect_after: [None; 2],
            timers_in_place: [(0, 0); 2],
            effects: Effects::new(),
            failure: None,
            state_changes: 0,
            compared: None,
            client_scheduled: false,
            alone_since: [None; 2],
            crash_at: [None; 2],
            crashed_with: 0,
            crashed_in: None,
            places: None,
            disk_faults: false,
            trouble: 0,
            owes_error: [None; 2],
            rotten: None,
            verified: [false; 2],
            awaited: [0; 2],
            resynced: false,
            seen: Seen::default(),
            settings,
        }
    }

    /// The clock, as the engine has it.
    #[must_use]
    pub fn time(&self) -> Time {
        Time(self.now)
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
            self.note_trouble();
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
            self.state_changes += 1;
            if let Err(text) = self.oracle.state_changed(node, old, new, &self.nodes) {
                self.fail(text);
            }
            self.two_primaries();
            self.note_solitude(node, old, new);
            self.note_resync(old, new);
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
        self.check_pair();
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
