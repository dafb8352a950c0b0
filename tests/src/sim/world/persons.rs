//! What clients and persons do to the nodes: requests, commands, power, cables.

use tandem_replicator::{CloseHow, Command, CommandId, Event, Force, SocketId};

use super::World;
use crate::sim::node::{Keep, VOLUME};
use crate::sim::pair::{nodes_of, pair_of, peer_of};
use crate::sim::trace::name;
use crate::sim::typed;

impl World {
    pub(super) fn client_step(&mut self) {
        self.client_scheduled = false;
        if self.clients.quiet {
            return;
        }
        self.clients.turns += 1;
        if self.clients.is_muted() {
            self.wake_clients();
            return;
        }
        for node in 0..self.nodes.len() {
            let Some(bytes) = self.nodes[node].serves else {
                continue;
            };
            if !self.nodes[node].is_primary() || self.nodes[node].clients_paused || bytes == 0 {
                continue;
            }
            self.open_device(node);
            if !self.nodes[node].is_running() {
                continue;
            }
            let oracle = &mut self.pairs[pair_of(node)].oracle;
            for request in self.clients.ask(self.now, node, bytes, oracle) {
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
        let oracle = &mut self.pairs[pair_of(node)].oracle;
        let request = (self.clients).request(self.now, node, kind, first, sectors, oracle);
        self.deliver(node, Event::Request(request));
    }

    /// Gives a command to a node: its number, for the answer.
    pub fn command(&mut self, node: usize, command: Command) -> u64 {
        self.next_command += 1;
        let id = self.next_command;
        self.note_trouble(node);
        if !self.nodes[node].is_running() {
            return id;
        }
        self.pair_mut(node).typed.insert(typed::form(&command));
        self.nodes[node]
            .open_commands
            .insert(id, format!("{command:?}"));
        let command = Event::Command {
            id: CommandId(id),
            command: Box::new(command),
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
        self.awaited[node] = 0;
        self.net.hosts[node] = self.nodes[node].host;
        self.net.wake(self.now, pair_of(node));
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
        self.pair_mut(node).state_changes += 1;
        self.note_trouble(node);
        self.owes_error[node] = None;
        if self.is_at_rest(node) {
            self.pair_mut(node).oracle.rested(node);
        }
        self.alone_since[node] = None;
        let role = self.nodes[node].state().map(|state| state.role);
        self.nodes[node].stop(&mut self.disk_dice, keep);
        self.take_cuts(node);
        if let Some(role) = role.filter(|_| self.has_stored_the_end(node)) {
            let oracle = &mut self.pairs[pair_of(node)].oracle;
            let judged = oracle.stored_the_end(node, role, &self.nodes[node]);
            if let Err(why) = judged {
                self.fail(why);
            }
        }
        self.net.hosts[node] = self.nodes[node].host;
        self.net.process_gone(self.now, node, power);
        let oracle = &mut self.pairs[pair_of(node)].oracle;
        self.clients.node_died(node, oracle);
        oracle.died(node, power, &self.nodes[node]);
        self.take_net();
    }

    /// The disk of a target that has just died says that the resync from its peer has ended: it took over the current generation, and
    /// remembers the sync UUID.
    fn has_stored_the_end(&mut self, node: usize) -> bool {
        let source = self.nodes[peer_of(node)].status.as_ref();
        let Some([current, sync, ..]) = source.and_then(|status| status.uuids) else {
            return false;
        };
        let Some([own, _, newer, _]) = self.nodes[node].uuids_on_disk() else {
            return false;
        };
        let same = |one: u64, other: u64| one & !1 == other & !1;
        sync != 0 && same(own, current) && same(newer, sync) && self.nodes[node].is_good_on_disk()
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

    /// Does this node lack something that was acknowledged and that the other one has, as the judge knows?
    #[must_use]
    pub fn lacks(&self, node: usize) -> bool {
        self.oracle(node).lacks(node)
    }

    /// A person gives up this node's data: the judge is told.
    pub fn discard(&mut self, node: usize) {
        self.pair_mut(node).oracle.discard(node);
    }

    /// Holds back (or lets go) what the nodes of a pair send: the first, the second one of them.
    pub fn block(&mut self, pair: usize, blocked: [bool; 2]) {
        let nodes = nodes_of(pair);
        let [a, b] = nodes.map(name);
        self.say(format!(
            "network blocked: from {a} {}, from {b} {}",
            blocked[0], blocked[1]
        ));
        for (node, blocked) in nodes.into_iter().zip(blocked) {
            self.net.blocked[node] = blocked;
        }
        if blocked != [true; 2] {
            self.net.wake(self.now, pair);
        }
        self.take_net();
    }

    /// Cuts the streams of a pair.
    pub fn reset_streams(&mut self, pair: usize, only_one: bool) {
        self.say(if only_one {
            "one stream is cut"
        } else {
            "all streams are cut"
        });
        self.net.reset(self.now, pair, only_one);
        self.take_net();
    }

    /// Closes one socket of a test by its number.
    pub fn close_socket(&mut self, socket: u64) {
        self.net.close(self.now, SocketId(socket), CloseHow::Abort);
        self.take_net();
    }
}
