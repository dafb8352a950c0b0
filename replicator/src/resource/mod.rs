//! A resource: its volumes, its connection to the peer, and the one door through which everything enters.
//!
//! ```text
//!  event ──► handle ──► requests   (clients)        request/
//!                  ├──► completions by token         each owner's `*_done`
//!                  ├──► link: bytes → packets        link, handshake, peer_io, resync/, bitmap_exchange
//!                  ├──► commands                     commands/
//!                  └──► timers                       `tick` of each owner
//!  every state change goes through `change`, every durable sequence through `plan`
//! ```
//!
//! Invariants (tested by [`Resource::check_invariants`] after every simulated event):
//! - A token is in `pending` from its effect to its completion, and nowhere else.
//! - A volume has a `backing` exactly while its disk state is above Diskless, or while its attach or detach is
//!   under way.
//! - No write is answered to a client before all that must be durable for it is (see `request`).
//! - When `handle` returns, `deferred` is empty.

use alloc::collections::BTreeMap;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::effect::{Effect, Effects, Level, Notification};
use crate::event::{Event, IoError, OpenError, Token, VolumeNumber};
use crate::numbered::Numbered;
use crate::options::ResourceOptions;
use crate::planted::{Plant, Planted};
use crate::random::Random;
use crate::tape::{Fit, Tape};
use crate::time::Time;

pub(crate) mod attach;
pub(crate) mod bitmap_exchange;
pub(crate) mod change;
pub(crate) mod commands;
pub(crate) mod connection;
pub(crate) mod detach;
pub(crate) mod dialling;
pub(crate) mod effects;
pub(crate) mod epoch;
pub(crate) mod flush;
pub(crate) mod generation;
pub(crate) mod handlers;
pub(crate) mod handshake;
pub mod inquiry;
pub(crate) mod integrity;
pub(crate) mod invariants;
pub(crate) mod link;
pub(crate) mod liveness;
pub(crate) mod lost_disk;
pub(crate) mod opening;
pub(crate) mod peer_io;
pub(crate) mod plan;
pub(crate) mod reads;
pub(crate) mod remote_change;
pub(crate) mod request;
pub(crate) mod resync;
pub(crate) mod size;
pub(crate) mod split;
mod trouble;
pub(crate) mod verify;
pub(crate) mod view;
pub(crate) mod volume;

use connection::Connection;
use volume::Volume;

/// What a token waits for. Each owner has its own enum; `handle` only routes.
#[derive(Debug)]
pub(crate) enum Pending {
    /// A step of an attach.
    Attach(VolumeNumber, attach::Io),
    /// Closing the backing.
    Close(VolumeNumber),
    /// The backing is measured again.
    Measure(VolumeNumber),
    /// A metadata or data I/O of a plan.
    Plan(VolumeNumber, plan::PlanIo),
    /// The local leg of a client's request.
    Request(VolumeNumber, request::Io),
    /// A local flush of client's or peer's writes.
    Flush(VolumeNumber, flush::Io),
    /// I/O done for the peer: its writes and its reads.
    Peer(VolumeNumber, peer_io::Io),
    /// I/O of a resync, as source or as target.
    Resync(VolumeNumber, resync::Io),
    /// A block of an online verify is read.
    Verify(VolumeNumber, u64),
    /// A dial of an attempt to connect.
    Dial(u64),
    /// The handler that is running.
    Handler,
}

impl Pending {
    /// The volume whose backing an I/O uses.
    pub(crate) fn disk_of(&self) -> Option<VolumeNumber> {
        match self {
            Pending::Measure(volume)
            | Pending::Attach(volume, _)
            | Pending::Plan(volume, _)
            | Pending::Request(volume, _)
            | Pending::Flush(volume, _)
            | Pending::Peer(volume, _)
            | Pending::Resync(volume, _)
            | Pending::Verify(volume, _) => Some(*volume),
            Pending::Close(_) | Pending::Dial(_) | Pending::Handler => None,
        }
    }
}

/// The engine of one resource. See the crate's documentation for the order of calls.
#[derive(Debug)]
pub struct Resource {
    pub(crate) name: String,
    pub(crate) volumes: BTreeMap<VolumeNumber, Volume>,
    /// The keys of `volumes`.
    numbers: Arc<[VolumeNumber]>,
    pub(crate) connection: Connection,
    pub(crate) requests: request::Requests,
    /// Open flushes of clients.
    pub(crate) flushes: flush::Flushes,
    /// What is in flight for the peer.
    pub(crate) peer_io: peer_io::PeerIo,
    pub(crate) commands: commands::Commands,
    /// State changes that wait: for the peer's consent, or for the end of a transient state.
    pub(crate) state_requests: Vec<change::StateRequest>,
    pub(crate) handlers: handlers::Handlers,
    pub(crate) random: Random,
    /// Through it goes what a recording does not hold.
    pub(crate) tape: Tape,
    pub(crate) pending: Numbered<Token, Pending>,
    next_token: u64,
    /// Time of the event being handled.
    pub(crate) now: Time,
    /// Effects of the event being handled.
    pub(crate) effects: Effects,
    /// Work that must run after the current function returns, in order, still inside this `handle` (2.9: the
    /// "worker"). Keeps deferred effects of a state change out of the change itself.
    pub(crate) deferred: VecDeque<change::Deferred>,
    /// A state changed since state requests that wait were looked at.
    pub(crate) state_changed: bool,
    pub(crate) status_changed: bool,
    /// A deliberate mistake, in tests.
    plant: Plant,
}

/// Goes through the numbers of the volumes while the volumes change. Asked for several times in every event, hence without allocation.
pub(crate) struct VolumeNumbers {
    all: Arc<[VolumeNumber]>,
    next: usize,
}

impl Iterator for VolumeNumbers {
    type Item = VolumeNumber;

    fn next(&mut self) -> Option<VolumeNumber> {
        let number = self.all.get(self.next).copied();
        self.next += 1;
        number
    }
}

/// Rounds of deferred work after one event: each round is caused by the one before, so that more mean a loop of ours.
const SETTLE_ROUNDS_MAX: u32 = 1000;

impl Resource {
    /// A resource as configured: StandAlone, Secondary, no disk attached.
    pub fn new(options: ResourceOptions) -> Resource {
        let volumes: BTreeMap<VolumeNumber, Volume> = options
            .volumes
            .into_iter()
            .map(|volume| (volume.number, Volume::new(volume)))
            .collect();
        Resource {
            name: options.name,
            numbers: volumes.keys().copied().collect(),
            volumes,
            connection: Connection::new(),
            requests: request::Requests::default(),
            flushes: flush::Flushes::default(),
            peer_io: peer_io::PeerIo::default(),
            commands: commands::Commands::default(),
            state_requests: Vec::new(),
            handlers: handlers::Handlers::default(),
            random: Random::from_seed(options.seed),
            tape: Tape::default(),
            pending: Numbered::default(),
            next_token: 0,
            now: Time::default(),
            effects: Effects::new(),
            deferred: VecDeque::new(),
            state_changed: false,
            status_changed: false,
            plant: Plant::default(),
        }
    }

    /// Plants a mistake, before the first event.
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, plant: Plant) {
        self.plant = plant;
    }

    /// Before the first event: from now on random numbers and verdicts are noted (see [`crate::black_box`]).
    pub fn record(&mut self) {
        self.tape.record();
    }

    /// Moves what was noted since the last call to the end of `notes`.
    pub fn take_tape(&mut self, notes: &mut Vec<u8>) {
        self.tape.take(notes);
    }

    /// Before each event of a replay: what was noted while it was handled.
    pub fn play_tape(&mut self, notes: &[u8]) {
        self.tape.play(notes);
    }

    /// How what was given to [`Resource::play_tape`] fitted.
    pub fn tape_fit(&self) -> Fit {
        self.tape.fit()
    }

    /// A random number.
    pub(crate) fn draw(&mut self) -> u64 {
        let random = &mut self.random;
        self.tape.number(|| random.next_u64())
    }

    /// A random number below `bound`, 0 if that is 0.
    pub(crate) fn draw_below(&mut self, bound: u64) -> u64 {
        let random = &mut self.random;
        self.tape.number(|| random.below(bound))
    }

    /// Whether this mistake is planted.
    pub(crate) const fn planted(&self, bug: Planted) -> bool {
        self.plant.has(bug)
    }

    /// Takes one event at time `now` (never earlier than before) and appends what has to be done.
    pub fn handle(&mut self, now: Time, event: Event, effects: &mut Effects) {
        self.now = self.now.max(now);
        core::mem::swap(&mut self.effects, effects);
        self.dispatch(event);
        self.settle();
        if core::mem::take(&mut self.status_changed) {
            self.effects
                .push(Effect::Notify(Notification::StatusChanged));
        }
        core::mem::swap(&mut self.effects, effects);
    }

    /// When [`Event::Timer`] is wanted next, at the latest. None: only after another event.
    pub fn next_deadline(&self) -> Option<Time> {
        let deadlines = [
            self.superblock_deadline(),
            self.commands_deadline(),
            self.next_link_deadline(),
            self.data_deadline(),
            self.resync_deadline(),
            self.verify_deadline(),
        ];
        deadlines
            .into_iter()
            .min()
            .filter(|deadline| *deadline < Time::NEVER)
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Request(request) => self.on_request(request),
            Event::Opened { volume } => self.opened(volume),
            Event::Released { volume } => self.released(volume),
            Event::DiskDone { token, result } | Event::MetaDone { token, result } => {
                self.io_done(token, result);
            }
            Event::BackingOpened { token, result } => self.backing_opened(token, result),
            Event::BackingClosed { token } => self.backing_closed(token),
            Event::Bytes { socket, bytes } => self.on_bytes(socket, bytes),
            Event::Sent { socket, bytes } => self.on_sent(socket, bytes),
            Event::Accepted { socket } => self.on_accepted(socket),
            Event::Dialled { token, result } => {
                if let Some(Pending::Dial(attempt)) = self.pending.remove(&token) {
                    self.on_dialled(attempt, result);
                }
            }
            Event::ListenFailed { reason } => self.on_listen_failed(&reason),
            Event::Closed { socket, reason } => self.on_closed(socket, &reason),
            Event::Command { id, command } => self.on_command(id, *command),
            Event::HandlerDone { token, exit } => {
                if let Some(Pending::Handler) = self.pending.remove(&token) {
                    self.handler_done(exit);
                }
            }
            Event::Timer => self.tick(),
        }
    }

    fn io_done(&mut self, token: Token, result: Result<Bytes, IoError>) {
        match self.pending.remove(&token) {
            Some(Pending::Attach(volume, io)) => self.attach_io_done(volume, io, result),
            Some(Pending::Plan(volume, io)) => {
                self.plan_io_done(volume, io, result.map(|_| ()));
            }
            Some(Pending::Request(volume, io)) => self.request_io_done(volume, io, result),
            Some(Pending::Flush(volume, io)) => {
                self.flush_io_done(volume, io, result.map(|_| ()));
            }
            Some(Pending::Peer(volume, io)) => self.peer_io_done(volume, io, result),
            Some(Pending::Resync(volume, io)) => self.resync_io_done(volume, io, result),
            Some(Pending::Verify(volume, id)) => self.verify_io_done(volume, id, result),
            Some(other) => {
                self.pending.insert(token, other);
            }
            None => self.log(
                Level::Error,
                None,
                alloc::format!("a completion of an unknown I/O ({}) is ignored", token.0),
            ),
        }
    }

    fn backing_opened(
        &mut self,
        token: Token,
        result: Result<crate::event::BackingInfo, OpenError>,
    ) {
        match self.pending.remove(&token) {
            Some(Pending::Attach(volume, attach::Io::Open)) => self.attach_opened(volume, result),
            Some(Pending::Measure(volume)) => self.backing_measured(volume, result),
            _ => {}
        }
    }

    fn backing_closed(&mut self, token: Token) {
        if let Some(Pending::Close(volume)) = self.pending.remove(&token) {
            self.backing_is_closed(volume);
        }
    }

    fn opened(&mut self, volume: VolumeNumber) {
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.open_count = volume.open_count.saturating_add(1);
            self.status_changed = true;
        }
    }

    fn released(&mut self, volume: VolumeNumber) {
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.open_count = volume.open_count.saturating_sub(1);
            self.status_changed = true;
        }
    }

    fn tick(&mut self) {
        self.tick_superblocks();
        self.tick_commands();
        self.tick_link();
        self.tick_data();
        self.tick_resync();
        self.tick_verify();
    }

    /// Carries out deferred work, and whatever that allows to go on, until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..SETTLE_ROUNDS_MAX {
            self.run_deferred();
            self.step_link();
            self.step_detaches();
            self.step_resync();
            self.step_verify();
            self.step_commands();
            if core::mem::take(&mut self.state_changed) {
                self.retry_state_requests();
                self.retry_attaches();
            }
            if self.is_settled() {
                self.release_held();
            }
            if self.is_settled() {
                return;
            }
        }
        self.log(
            Level::Error,
            None,
            String::from("the engine does not come to rest: this is a bug, please report it"),
        );
    }

    fn is_settled(&self) -> bool {
        self.deferred.is_empty() && !self.state_changed && !self.link_has_work()
    }

    /// A fresh token that waits for `what`.
    pub(crate) fn token(&mut self, what: Pending) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.pending.insert(token, what);
        token
    }

    /// A line for the log.
    pub(crate) fn log(&mut self, level: Level, volume: Option<VolumeNumber>, text: String) {
        self.effects.push(Effect::Notify(Notification::Log {
            level,
            volume,
            text,
        }));
    }

    /// The numbers of the volumes with which something is to do, ascending. After most events there is none, and nothing is allocated.
    pub(crate) fn volumes_where(&self, wanted: impl Fn(&Volume) -> bool) -> Vec<VolumeNumber> {
        let wanted = self.volumes.iter().filter(|(_, volume)| wanted(volume));
        wanted.map(|(number, _)| *number).collect()
    }

    /// The numbers of the volumes, ascending. They stay what they were in the beginning.
    pub(crate) fn volume_numbers(&self) -> VolumeNumbers {
        VolumeNumbers {
            all: Arc::clone(&self.numbers),
            next: 0,
        }
    }
}
