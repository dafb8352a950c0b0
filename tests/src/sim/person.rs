//! The person at the keyboard of the two nodes of the first pair: starts what is down, connects what is StandAlone, attaches what is Diskless, keeps one
//! Primary, and decides a split brain when there is one. It looks a few times a second and does what a runbook says.

use tandem_replicator::state::word::{ConnState, DiskState, Role, State};
use tandem_replicator::{Command, Force, OnIoError, Protocol};

use super::campaign::FIRST_ROUGH_SEED;
use super::dice::Dice;
use super::network::MS;
use super::node::VOLUME;
use super::pair::peer_of;
use super::trace::name;
use super::world::World;

/// Steps of deciding a split brain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Demote,
    Disconnect,
    Connect,
    /// No generation is left in common: the loser gets new metadata, and everything is copied.
    Recreate,
}

/// What the person has in mind.
#[derive(Debug)]
pub struct Person {
    /// The node that clients should be served by.
    pub wanted: usize,
    /// When a node that is down is started again.
    pub start_at: [Option<u64>; 2],
    /// When a node that is StandAlone or Diskless is looked after.
    mend_at: [Option<u64>; 2],
    /// The wanted node is demoted first: the other one takes over.
    pub switching: bool,
    /// Suspended I/O or a paused resync is let go at this time.
    pub resume_at: [Option<u64>; 2],
    /// Nodes that must stay as they are for now.
    pub hands_off: [bool; 2],
    /// Everything must come right now.
    pub healing: bool,
    /// A split brain was seen; who loses.
    split: Option<(usize, Decision)>,
    /// The two nodes have no generation in common any more.
    unrelated: bool,
    /// Split brains that were decided.
    pub decided: u32,
    handlers_seen: [usize; 2],
    /// Attempts in a row to give a node its disk or its link back.
    attempts: [u32; 2],
    asked_primary: [u64; 2],
    dice: Dice,
}

impl Person {
    /// Wants node A to be Primary.
    #[must_use]
    pub fn new(dice: Dice) -> Person {
        Person {
            wanted: 0,
            start_at: [None; 2],
            mend_at: [None; 2],
            switching: false,
            resume_at: [None; 2],
            hands_off: [false; 2],
            healing: false,
            split: None,
            unrelated: false,
            decided: 0,
            handlers_seen: [0; 2],
            attempts: [0; 2],
            asked_primary: [0; 2],
            dice,
        }
    }

    /// Is a split brain waiting for a decision?
    #[must_use]
    pub fn sees_split(&self) -> bool {
        self.split.is_some()
    }

    /// Looks at both nodes and does the next thing.
    pub fn look(&mut self, world: &mut World) {
        for node in 0..2 {
            self.notice_split(world, node);
            self.look_after(world, node);
            self.notice_empty_primary(world, node);
        }
        self.notice_unrelated(world);
        if self.split.is_some() {
            self.decide(world);
        } else if self.switching {
            self.switch(world);
        } else {
            self.keep_primary(world);
        }
        let again = self.dice.between(50, 400) * MS;
        world.wake_person(again);
    }

    fn notice_split(&mut self, world: &mut World, node: usize) {
        let handlers = &world.nodes[node].handlers;
        let new = handlers.get(self.handlers_seen[node]..).unwrap_or(&[]);
        let split = new.contains(&"split-brain");
        self.handlers_seen[node] = handlers.len();
        if split && self.split.is_none() {
            let victim = self.victim(world);
            world.say(format!(
                "a person sees the split brain: {} will lose its changes",
                name(victim)
            ));
            self.split = Some((victim, Decision::Demote));
            self.unrelated = false;
            self.wanted = peer_of(victim);
            self.switching = false;
        }
    }

    /// Resyncs after a split brain that were cut short again and again push the common generation out of the history.
    fn notice_unrelated(&mut self, world: &mut World) {
        let told = (0..2).all(|node| {
            let engine = world.nodes[node].engine.as_ref();
            let why = engine.and_then(|engine| engine.status().last_error);
            let state = world.nodes[node].state();
            state.is_some_and(|state| state.conn == ConnState::StandAlone)
                && why.is_some_and(|why| why.contains("unrelated"))
        });
        if told && self.split.is_none() {
            let victim = self.victim(world);
            world.say(format!(
                "a person sees unrelated data: {} will lose its own",
                name(victim)
            ));
            self.split = Some((victim, Decision::Demote));
            self.unrelated = true;
            self.wanted = peer_of(victim);
            self.switching = false;
        }
    }

    /// A Primary that has neither good data nor a link serves nobody. When its peer was promoted, or when its disk and its link
    /// cannot be brought back, it is demoted.
    fn notice_empty_primary(&mut self, world: &World, node: usize) {
        let [Some(state), Some(other)] =
            [node, peer_of(node)].map(|node| world.nodes[node].state())
        else {
            return;
        };
        let engine = world.nodes[node].engine.as_ref();
        let told = engine.and_then(|engine| engine.status().last_error);
        // Its application has seen data that nobody has any more.
        let refused =
            told.is_some_and(|told| told.contains("no good disk and its application saw"));
        let stuck = other.role == Role::Primary || self.attempts[node] > 4 || refused;
        let primary = state.role == Role::Primary;
        let empty = state.disk != DiskState::UpToDate && state.conn == ConnState::StandAlone;
        // Both copies were lost, one after the other: its own disk is taken back as it is, once nobody uses it.
        let lost = state.disk == DiskState::Diskless
            && other.disk == DiskState::Inconsistent
            && self.attempts[node] > 4;
        if primary && (lost || stuck && empty && other.disk == DiskState::UpToDate) {
            self.wanted = node;
            self.switching = true;
        }
    }

    /// Who loses: a node without data, or one that lacks what the other has, or by lot.
    fn victim(&mut self, world: &World) -> usize {
        let usable = |node: usize| world.nodes[node].is_up_to_date();
        let lacks = |node: usize| world.lacks(node);
        match (usable(0), usable(1)) {
            (true, false) => return 1,
            (false, true) => return 0,
            _ => {}
        }
        match (lacks(0), lacks(1)) {
            (true, false) => 0,
            (false, true) => 1,
            _ => self.dice.below(2) as usize,
        }
    }

    fn due(&mut self, at: &mut Option<u64>, now: u64) -> bool {
        match *at {
            None => {
                let wait = if self.healing { 500 } else { 6000 };
                *at = Some(now + self.dice.between(200, wait) * MS);
                false
            }
            Some(then) if then <= now => {
                *at = None;
                true
            }
            Some(_) => false,
        }
    }

    fn look_after(&mut self, world: &mut World, node: usize) {
        let now = world.now;
        if !world.nodes[node].is_running() {
            if self.start_at[node].is_none() {
                self.start_at[node] = Some(now);
            }
            if self.start_at[node].is_some_and(|at| at <= now) {
                self.start_at[node] = None;
                self.mend_at[node] = None;
                self.handlers_seen[node] = world.nodes[node].handlers.len();
                world.up(node);
            }
            return;
        }
        let Some(state) = world.nodes[node].state() else {
            return;
        };
        if !world.nodes[node].open_commands.is_empty() {
            return;
        }
        let resume = self.healing || self.resume_at[node].is_some_and(|at| at <= now);
        if resume {
            self.resume_at[node] = None;
            if state.user_isp {
                world.command(node, Command::ResumeSync { volume: VOLUME });
            }
            if state.susp {
                world.command(node, Command::ResumeIo { volume: VOLUME });
            }
        }
        if self.hands_off[node] {
            return;
        }
        let alone = state.conn == ConnState::StandAlone && self.split.is_none();
        let diskless = state.disk == DiskState::Diskless;
        let mut at = self.mend_at[node];
        if !alone && !diskless {
            self.attempts[node] = 0;
            if !self.look_after_failed_disk(world, node, &state) {
                return;
            }
        }
        if (alone || diskless) && self.due(&mut at, now) {
            self.attempts[node] += 1;
            // A disk that is refused, since the application saw newer data on the peer, is taken once that peer is there again.
            let rough = world.settings.seed >= FIRST_ROUGH_SEED;
            let peer_first = rough && alone && self.attempts[node].is_multiple_of(2);
            if diskless && state.conn.is_connected() && told_to_create_metadata(world, node) {
                recreate(world, node);
                world.command(node, Command::Attach { volume: VOLUME });
            } else if diskless && !peer_first {
                world.command(node, Command::Attach { volume: VOLUME });
            } else {
                world.connect(node, false);
            }
        }
        self.mend_at[node] = if alone || diskless { at } else { None };
    }

    /// Under `on-io-error pass_on` the target of a resync stays Inconsistent when it could not write a block: it is detached (and attached
    /// again, which syncs it). Where there is no good disk any more, it is taken back as it is by the node that lacks nothing. False: there is something to do, now or soon.
    fn look_after_failed_disk(&mut self, world: &mut World, node: usize, state: &State) -> bool {
        let other = world.nodes[peer_of(node)].state();
        let passes_on = world.settings.disk_options.on_io_error == OnIoError::PassOn;
        if !passes_on || state.disk != DiskState::Inconsistent || state.conn.is_resync() {
            return true;
        }
        let synced = state.conn == ConnState::Connected && state.pdsk == DiskState::UpToDate;
        let nobody_has = other.is_some_and(|other| {
            (other.disk == DiskState::Inconsistent || other.disk == DiskState::Diskless)
                && other.role != Role::Primary
                && !other.conn.is_resync()
        });
        let fits = !world.lacks(node) || node == 0 && world.lacks(1);
        let taken_back = nobody_has && (fits || state.role == Role::Primary);
        let mut at = self.mend_at[node];
        if (synced || taken_back) && self.due(&mut at, world.now) {
            let (volume, force) = (VOLUME, Force::Yes);
            if synced {
                let force = Force::No;
                world.command(node, Command::Detach { volume, force });
            } else if state.role == Role::Primary {
                // Its clients got errors from it: nobody uses it any more.
                self.wanted = node;
                self.switching = true;
            } else {
                world.say(format!(
                    "{} takes its failed disk back as it is",
                    name(node)
                ));
                // Both have failed: what only the other one has is given up.
                world.discard(peer_of(node));
                world.command(node, Command::Primary { volume, force });
            }
        }
        self.mend_at[node] = if synced || taken_back { at } else { None };
        !(synced || taken_back)
    }

    /// Promotes the wanted node when that costs nothing.
    fn keep_primary(&mut self, world: &mut World) {
        let node = self.wanted;
        let Some(state) = world.nodes[node].state() else {
            return;
        };
        let other = world.nodes[peer_of(node)].state();
        let idle = world.nodes[node].open_commands.is_empty();
        let other_is_primary = other.is_some_and(|other| other.role == Role::Primary);
        if state.role == Role::Primary || !idle || other_is_primary {
            return;
        }
        let usable = state.disk == DiskState::UpToDate
            || (state.conn.is_connected() && state.pdsk == DiskState::UpToDate);
        let safe = state.conn.is_connected() || self.may_go_alone(world, node);
        if usable && safe && self.asked_primary[node] + 500 * MS < world.now {
            self.asked_primary[node] = world.now;
            world.promote(node, Force::No);
        }
    }

    /// A node may be promoted alone if it has everything, as far as its protocol promises.
    #[must_use]
    pub fn may_go_alone(&self, world: &World, node: usize) -> bool {
        let oracle = world.oracle(node);
        match world.settings.net_options.protocol {
            Protocol::C => oracle.is_current(node),
            Protocol::A | Protocol::B => oracle.same_history() || oracle.is_current(node),
        }
    }

    /// Demotes the wanted node; the other one is wanted afterwards.
    fn switch(&mut self, world: &mut World) {
        let node = self.wanted;
        let Some(state) = world.nodes[node].state() else {
            self.switching = false;
            return;
        };
        if state.role != Role::Primary {
            self.switching = false;
            self.wanted = peer_of(node);
            return;
        }
        self.demote(world, node);
    }

    /// Stops its clients, waits for their answers, and demotes it. True when it is Secondary.
    fn demote(&mut self, world: &mut World, node: usize) -> bool {
        let Some(state) = world.nodes[node].state() else {
            return true;
        };
        if state.role != Role::Primary {
            return true;
        }
        world.clients.resting[node] = true;
        if world.clients.in_flight(node) == 0 && world.nodes[node].open_commands.is_empty() {
            world.release_device(node);
            world.command(node, Command::Secondary { volume: VOLUME });
        }
        false
    }

    fn decide(&mut self, world: &mut World) {
        let Some((victim, step)) = self.split else {
            return;
        };
        let survivor = peer_of(victim);
        let both = world.nodes.iter().all(super::node::Node::is_running);
        let idle = world.nodes.iter().all(|node| node.open_commands.is_empty());
        if !both || !idle {
            return;
        }
        match step {
            Decision::Demote => {
                if self.demote(world, victim) {
                    self.split = Some((victim, Decision::Disconnect));
                }
            }
            Decision::Disconnect => {
                let mut alone = true;
                for node in 0..2 {
                    let state = world.nodes[node].state();
                    if state.is_some_and(|state| state.conn != ConnState::StandAlone) {
                        alone = false;
                        let force = Force::Yes;
                        world.command(node, Command::Disconnect { force });
                    }
                }
                if alone {
                    let next = if self.unrelated {
                        Decision::Recreate
                    } else {
                        Decision::Connect
                    };
                    self.split = Some((victim, next));
                }
            }
            Decision::Recreate => {
                world.stop(victim, false);
                recreate(world, victim);
                world.connect(survivor, false);
                self.split = None;
                self.attempts = [0; 2];
                self.decided += 1;
                world.clients.resting.fill(false);
            }
            Decision::Connect => {
                world.say(format!("{} gives up its data", name(victim)));
                world.discard(victim);
                world.connect(victim, true);
                world.connect(survivor, false);
                self.split = None;
                self.decided += 1;
                world.clients.resting.fill(false);
            }
        }
    }
}

/// Whether the node says that its disk can only be attached with new metadata.
fn told_to_create_metadata(world: &World, node: usize) -> bool {
    let status = world.nodes[node].status.as_ref();
    let error = status.and_then(|status| status.disk_error.as_ref());
    error.is_some_and(|error| error.contains("create-md"))
}

/// What is on the disk of this node is given up.
fn recreate(world: &mut World, node: usize) {
    world.say(format!("{} gets new metadata", name(node)));
    world.discard(node);
    if let Err(why) = world.nodes[node].create_metadata() {
        world.fail(why);
    }
}
