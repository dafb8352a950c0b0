//! The simulated world: two nodes, their network, their clients, one clock, one queue. Everything that happens is taken from the
//! queue in the order of its time; nothing else moves.

use std::collections::BTreeMap;

use bytes::Bytes;
use tandem_replicator::planted::Plant;
use tandem_replicator::state::word::{ConnState, DiskState, Role, State};
use tandem_replicator::{
    CloseHow, Command, CommandId, DiskOperation, DiskOptions, Effect, Effects, Event, Force,
    MetaOperation, NetOptions, Notification, SocketId, Time, Token,
};

use super::clients::{Clients, Habits};
use super::dice::Dice;
use super::network::{Host, MS, NetEvent, NetSettings, Network};
use super::node::{DiskPlan, Io, Keep, Node, VOLUME};
use super::oracle::Oracle;
use super::stamp::{SECTOR, Stamper};
use super::trace::{Trace, name};

/// Timers without progress of the clock that one engine may ask for before it is taken for a loop.
const TIMERS_IN_PLACE_MAX: u32 = 200;

/// Things that happen in one run, at most: far above the longest history that is drawn.
const STEPS_MAX: u64 = 6_000_000;

/// After this time a Secondary that lost its peer has begun to flush what it received.
const REST: u64 = 1000 * MS;

/// The current UUID of metadata that were never used.
const JUST_CREATED: u64 = 4;

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
}

/// A node dies when it writes.
#[derive(Clone, Copy, Debug)]
pub struct CrashAt {
    /// I/O that still ends well, less one: writes of metadata and flushes; with `all` also writes of data.
    pub left: u32,
    /// Writes of data count as well.
    pub all: bool,
    /// Its power fails, else it is killed.
    pub power: Option<Keep>,
    /// The last one was completed, and its node did not hear of it.
    pub completed: bool,
}

impl World {
    /// Two nodes with blank devices, no process.
    #[must_use]
    pub fn new(settings: Settings) -> World {
        let seed = settings.seed;
        let stamper = Stamper::new(seed);
        let node = |index| Node::new(index, settings.disk, stamper);
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
        // What clients were told comes first: a promotion in the same event does not change its truth.
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
        }
        for effect in effects.drain(..) {
            self.carry_out(node, effect);
        }
        self.effects = effects;
        self.set_timer(node);
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

    fn two_primaries(&mut self) {
        let both = self
            .nodes
            .iter()
            .all(|node| node.is_primary() && node.is_connected());
        if both {
            self.fail("two Primaries are connected");
        }
    }

    fn set_timer(&mut self, node: usize) {
        let Some(engine) = &self.nodes[node].engine else {
            return;
        };
        let Some(deadline) = engine.next_deadline() else {
            return;
        };
        if self.nodes[node].timer.is_none_or(|at| deadline < at) {
            self.nodes[node].timer = Some(deadline);
            let boot = self.nodes[node].boot;
            self.schedule(deadline.0, What::Timer(node, boot));
        }
    }

    fn replies(&mut self, node: usize, effects: &Effects, after: Option<State>) {
        for effect in effects {
            let Effect::Reply { request, result } = effect else {
                continue;
            };
            let answered = self
                .clients
                .answered(node, *request, result, after, &mut self.oracle);
            if let Err(text) = answered {
                self.fail(text);
            }
        }
    }

    fn disk_delay(&mut self) -> u64 {
        let (least, most) = self.settings.disk_delay;
        let delay = self.disk_dice.between(least, most);
        if least != most && self.disk_dice.chance(1, 50) {
            delay * 20
        } else {
            delay
        }
    }

    fn submit(&mut self, node: usize, token: Token, io: Io, slow: u64) {
        if let Err(text) = self.nodes[node].submit(token, io) {
            self.fail(text);
        }
        let at = self.now + self.disk_delay() * slow;
        let boot = self.nodes[node].boot;
        self.schedule(at, What::IoDone(node, boot, token));
    }

    fn later(&mut self, node: usize, after: u64, event: Event) {
        let boot = self.nodes[node].boot;
        self.schedule(self.now + after, What::Engine(node, boot, Box::new(event)));
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        let boot = self.nodes[node].boot;
        match effect {
            Effect::Disk {
                token, operation, ..
            } => {
                let slow = if matches!(operation, DiskOperation::Flush) {
                    3
                } else {
                    1
                };
                let mark = self.nodes[node].data.mark();
                self.submit(node, token, Io::Data(operation, mark), slow);
            }
            Effect::Meta {
                token, operation, ..
            } => {
                let mark = self.nodes[node].meta_disk().mark();
                self.submit(node, token, Io::Meta(operation, mark), 1);
            }
            Effect::Send {
                socket,
                head,
                payload,
            } => self
                .net
                .send(self.now, socket, [head, payload.unwrap_or_else(Bytes::new)]),
            Effect::Reply { .. } => {}
            Effect::Answer { command, answer } => {
                if self.nodes[node].open_commands.remove(&command.0).is_none() {
                    self.fail(format!("command {} is answered twice", command.0));
                }
                self.nodes[node].answers.insert(command.0, answer);
                if self.connect_after[node] == Some(command.0) {
                    self.connect_after[node] = None;
                    self.schedule(self.now, What::Connect(node, boot));
                }
            }
            Effect::Listen => self.set_listening(node, true),
            Effect::Unlisten => self.set_listening(node, false),
            Effect::Dial { token } => self.net.dial(self.now, node, boot, token),
            Effect::Close { socket, how } => self.net.close(self.now, socket, how),
            Effect::PauseRead { socket } => self.net.pause(self.now, socket, true),
            Effect::ResumeRead { socket } => self.net.pause(self.now, socket, false),
            Effect::PauseClients { .. } => self.nodes[node].clients_paused = true,
            Effect::ResumeClients { .. } => self.nodes[node].clients_paused = false,
            Effect::OpenBacking { token, .. } => {
                let result = Ok(self.nodes[node].backing());
                self.later(node, MS, Event::BackingOpened { token, result });
            }
            Effect::CloseBacking { token, .. } => {
                if let Some(token) = self.nodes[node].io.keys().next() {
                    let text = format!("a backing is closed while I/O #{} is in flight", token.0);
                    self.fail(text);
                }
                self.later(node, MS, Event::BackingClosed { token });
            }
            Effect::RunHandler {
                token,
                name: handler,
                ..
            } => {
                self.nodes[node].handlers.push(handler);
                let after = self.settings.handler_delay;
                let exit = if self.handlers_fail {
                    self.handler_dice.pick(&[0, 0, 1, 3, 5, 20, 127])
                } else {
                    0
                };
                self.later(node, after, Event::HandlerDone { token, exit });
            }
            Effect::Notify(Notification::Serve { bytes, .. }) => {
                self.nodes[node].serves = bytes;
                if bytes.is_none() {
                    self.clients.opened[node] = false;
                }
            }
            Effect::Notify(Notification::Log { text, .. }) if text.starts_with("uuid_compare") => {
                self.nodes[node].comparisons.push(text);
            }
            Effect::Notify(_) => {}
        }
    }

    fn set_listening(&mut self, node: usize, listening: bool) {
        let host = Host::Running { listening };
        self.nodes[node].host = host;
        self.net.hosts[node] = host;
    }

    fn io_done(&mut self, node: usize, boot: u64, token: Token) {
        if self.nodes[node].boot != boot || !self.nodes[node].is_running() {
            return;
        }
        let is_data_write = matches!(
            self.nodes[node].io.get(&token),
            Some(Io::Data(DiskOperation::Write { .. }, _))
        );
        if is_data_write && let Some(left) = self.nodes[node].hold_data_writes {
            if left == 0 {
                self.nodes[node].held.push(token);
                return;
            }
            self.nodes[node].hold_data_writes = Some(left - 1);
        }
        if self.nodes[node].hangs(token) || self.dies_at(node, token) {
            return;
        }
        if let Some(event) = self.nodes[node].complete(token, &mut self.disk_dice) {
            self.deliver(node, event);
        }
    }

    /// Whether the node dies at this I/O.
    fn dies_at(&mut self, node: usize, token: Token) -> bool {
        let counts = matches!(
            self.nodes[node].io.get(&token),
            Some(
                Io::Data(DiskOperation::Flush, _)
                    | Io::Meta(MetaOperation::Write { .. } | MetaOperation::Flush, _)
            )
        );
        let all = self.crash_at[node].is_some_and(|crash| crash.all)
            && !matches!(
                self.nodes[node].io.get(&token),
                Some(
                    Io::Data(DiskOperation::Read { .. }, _)
                        | Io::Meta(MetaOperation::Read { .. }, _)
                )
            );
        let Some(crash) = self.crash_at[node].as_mut().filter(|_| counts || all) else {
            return false;
        };
        crash.left = crash.left.saturating_sub(1);
        let crash = *crash;
        if crash.left > 0 {
            return false;
        }
        self.crash_at[node] = None;
        if crash.completed {
            let _ = self.nodes[node].complete(token, &mut self.disk_dice);
        }
        self.crashed_with = self.nodes[node].volatile_writes();
        self.stop_keeping(node, crash.power);
        true
    }

    /// Data writes that were held go on.
    pub fn release_writes(&mut self, node: usize) {
        self.nodes[node].hold_data_writes = None;
        self.let_go(node);
    }

    /// The disk does not hang any more.
    pub fn let_go(&mut self, node: usize) {
        self.nodes[node].hang = None;
        let boot = self.nodes[node].boot;
        for token in std::mem::take(&mut self.nodes[node].held) {
            self.schedule(self.now, What::IoDone(node, boot, token));
        }
    }

    fn take_net(&mut self) {
        for (at, event) in std::mem::take(&mut self.net.out) {
            self.schedule(at, What::Net(event));
        }
    }

    fn net_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::Engine { node, boot, event } => {
                if self.nodes[node].boot != boot || !self.nodes[node].is_running() {
                    return;
                }
                if let Event::Accepted { socket } = *event
                    && self.nodes[node].host != (Host::Running { listening: true })
                {
                    self.net.refuse(self.now, socket);
                    return;
                }
                self.deliver(node, *event);
            }
            NetEvent::Pump { stream, from } => self.net.pump(self.now, stream, from),
            NetEvent::Arrive { stream, from } => {
                if let Some((node, boot, event)) = self.net.arrive(self.now, stream, from)
                    && self.nodes[node].boot == boot
                {
                    self.deliver(node, event);
                }
            }
            NetEvent::Reach { node, boot, token } => {
                if self.nodes[node].boot == boot && self.nodes[node].is_running() {
                    let boots = [self.nodes[0].boot, self.nodes[1].boot];
                    self.net.reach(self.now, node, boot, boots, token);
                }
            }
            NetEvent::LingerOver { stream, end } => self.net.linger_over(self.now, stream, end),
        }
    }

    fn client_step(&mut self) {
        self.client_scheduled = false;
        if self.clients.quiet {
            return;
        }
        self.clients.turns += 1;
        if self.clients.is_muted() {
            self.wake_clients();
            return;
        }
        for node in 0..2 {
            let Some(bytes) = self.nodes[node].serves else {
                continue;
            };
            if !self.nodes[node].is_primary() || self.nodes[node].clients_paused || bytes == 0 {
                continue;
            }
            self.open_device(node);
            for request in self.clients.ask(self.now, node, bytes, &mut self.oracle) {
                self.deliver(node, Event::Request(request));
            }
        }
        self.wake_clients();
    }

    fn open_device(&mut self, node: usize) {
        if !self.clients.opened[node] {
            self.clients.opened[node] = true;
            self.deliver(node, Event::Opened { volume: VOLUME });
        }
    }

    /// Clients let go of the device of a node.
    pub fn release_device(&mut self, node: usize) {
        if std::mem::take(&mut self.clients.opened[node]) {
            self.deliver(node, Event::Released { volume: VOLUME });
        }
    }

    /// One request of a client now, in the order of [`Habits::mix`].
    pub fn request(&mut self, node: usize, kind: usize, first: u64, sectors: u64) {
        let request = self
            .clients
            .request(self.now, node, kind, first, sectors, &mut self.oracle);
        self.deliver(node, Event::Request(request));
    }

    /// Gives a command to a node: its number, for the answer.
    pub fn command(&mut self, node: usize, command: Command) -> u64 {
        self.next_command += 1;
        let id = self.next_command;
        if !self.nodes[node].is_running() {
            return id;
        }
        self.nodes[node]
            .open_commands
            .insert(id, format!("{command:?}"));
        let command = Event::Command {
            id: CommandId(id),
            command,
        };
        self.deliver(node, command);
        id
    }

    /// `connect`.
    pub fn connect(&mut self, node: usize, discard_my_data: bool) -> u64 {
        let net = self.settings.net_options.clone();
        let command = Command::Connect {
            net,
            discard_my_data,
            tentative: false,
        };
        self.command(node, command)
    }

    /// Starts the process of a node, without a command.
    pub fn start(&mut self, node: usize) {
        self.say(format!("{} starts", name(node)));
        let (seed, options) = (self.settings.seed, self.settings.disk_options.clone());
        self.nodes[node].start(seed, &options, self.settings.plant);
        self.net.hosts[node] = self.nodes[node].host;
        self.net.wake(self.now);
        self.take_net();
    }

    /// The process of a node dies, or its power fails.
    pub fn stop(&mut self, node: usize, power: bool) {
        self.stop_keeping(node, power.then_some(Keep::Dice));
    }

    /// The same; what is kept at a power failure is chosen.
    pub fn stop_keeping(&mut self, node: usize, keep: Option<Keep>) {
        let power = keep.is_some_and(|keep| keep != Keep::Killed);
        let how = if power { "loses power" } else { "is killed" };
        self.say(format!("{} {how}", name(node)));
        self.state_changes += 1;
        if self.is_at_rest(node) {
            self.oracle.rested(node);
        }
        self.alone_since[node] = None;
        self.nodes[node].stop(&mut self.disk_dice, keep);
        self.net.hosts[node] = self.nodes[node].host;
        self.net.process_gone(self.now, node, power);
        self.clients.node_died(node, &mut self.oracle);
        self.oracle.died(node, power, &self.nodes[node]);
        self.take_net();
    }

    /// `up`: attach, and connect once that is answered.
    pub fn up(&mut self, node: usize) {
        self.start(node);
        let attach = self.command(node, Command::Attach { volume: VOLUME });
        self.connect_after[node] = Some(attach);
    }

    /// `primary`.
    pub fn promote(&mut self, node: usize, force: Force) -> u64 {
        self.command(
            node,
            Command::Primary {
                volume: VOLUME,
                force,
            },
        )
    }

    /// Holds back (or lets go) what the nodes send: from A, from B.
    pub fn block(&mut self, blocked: [bool; 2]) {
        self.say(format!(
            "network blocked: from A {}, from B {}",
            blocked[0], blocked[1]
        ));
        self.net.blocked = blocked;
        if blocked != [true; 2] {
            self.net.wake(self.now);
        }
        self.take_net();
    }

    /// Cuts the streams.
    pub fn reset_streams(&mut self, only_one: bool) {
        self.say(if only_one {
            "one stream is cut"
        } else {
            "all streams are cut"
        });
        self.net.reset(self.now, only_one);
        self.take_net();
    }

    /// Closes one socket of a test by its number.
    pub fn close_socket(&mut self, socket: u64) {
        self.net.close(self.now, SocketId(socket), CloseHow::Abort);
        self.take_net();
    }

    /// Nothing is under way: no I/O, no bytes, no request.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.nodes.iter().all(|node| node.io.is_empty())
            && self.net.is_quiet()
            && (0..2).all(|node| self.clients.in_flight(node) == 0)
    }

    /// Both nodes are connected, UpToDate, and not in a resync.
    #[must_use]
    pub fn is_in_sync(&self) -> bool {
        self.nodes.iter().all(|node| {
            node.state().is_some_and(|state| {
                state.conn == ConnState::Connected
                    && state.disk == DiskState::UpToDate
                    && state.pdsk == DiskState::UpToDate
            })
        })
    }

    /// If both run with their disks, are apart and idle: each block that differs has its bit on one of them
    /// (docs/spec/state-machine.md 12.1 no. 19). True if that was looked at.
    pub fn check_bits_if_apart(&mut self) -> bool {
        let apart = self.nodes.iter().all(|node| {
            node.status.as_ref().is_some_and(|status| {
                status.state.disk >= DiskState::Inconsistent
                    && !status.state.conn.is_connected()
                    && status
                        .uuids
                        .is_some_and(|[current, ..]| current & !1 != JUST_CREATED)
            })
        });
        if !apart || !self.is_idle() {
            return false;
        }
        let bytes = self.nodes.iter().filter_map(|node| node.status.as_ref());
        let end = bytes.map(|status| status.bytes / SECTOR).min().unwrap_or(0);
        let mut used: Vec<u64> = self.nodes[0].data.used(end).collect();
        used.extend(self.nodes[1].data.used(end));
        let missed = used.into_iter().find(|sector| {
            let [a, b] = [0, 1].map(|node| self.nodes[node].data.content(*sector));
            let is_marked = |node: &Node| {
                let engine = node.engine.as_ref();
                engine.and_then(|engine| engine.is_out_of_sync(VOLUME, sector * SECTOR))
                    == Some(true)
            };
            a != b && !self.nodes.iter().any(is_marked)
        });
        if let Some(sector) = missed {
            let [a, b] = [0, 1].map(|node| format!("{:?}", self.nodes[node].data.content(sector)));
            self.fail(format!(
                "sector {sector} is {a} on A and {b} on B, and no bit says so"
            ));
        }
        true
    }

    /// If both are in sync and idle, they are compared. True if they were.
    pub fn compare_if_idle(&mut self) -> bool {
        if !self.is_in_sync() || !self.is_idle() {
            return false;
        }
        let [a, b] = [0, 1].map(|node| self.nodes[node].data.mark());
        let now = Some([a, b, self.state_changes, self.oracle.now()]);
        if self.compared == now {
            return true;
        }
        self.compared = now;
        let sectors = self.nodes[0]
            .status
            .as_ref()
            .map_or(0, |status| status.bytes / 512);
        if let Err(text) = self.oracle.check_equal(&self.nodes, sectors) {
            self.fail(text);
        }
        true
    }
}
