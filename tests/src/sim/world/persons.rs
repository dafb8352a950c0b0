//! What clients and persons do to the nodes: requests, commands, power, cables.

use tandem_replicator::{CloseHow, Command, CommandId, Event, Force, SocketId};

use super::World;
use crate::sim::node::{Keep, VOLUME};
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
        for node in 0..2 {
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
        self.note_trouble();
        if !self.nodes[node].is_running() {
            return id;
        }
        self.typed.insert(typed::form(&command));
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
        self.note_trouble();
        self.owes_error[node] = None;
        if self.is_at_rest(node) {
            self.oracle.rested(node);
        }
        self.alone_since[node] = None;
        let role = self.nodes[node].state().map(|state| state.role);
        self.nodes[node].stop(&mut self.disk_dice, keep);
        self.take_cuts(node);
        if let Some(role) = role.filter(|_| self.has_stored_the_end(node)) {
            let judged = self.oracle.stored_the_end(node, role, &self.nodes[node]);
            if let Err(why) = judged {
                self.fail(why);
            }
        }
        self.net.hosts[node] = self.nodes[node].host;
        self.net.process_gone(self.now, node, power);
        self.clients.node_died(node, &mut self.oracle);
        self.oracle.died(node, power, &self.nodes[node]);
        self.take_net();
    }

    /// The disk of a target that has just died says that the resync from its peer has ended: it took over the current generation, and
    /// remembers the sync UUID.
    fn has_stored_the_end(&mut self, node: usize) -> bool {
        let source = self.nodes[1 - node].status.as_ref();
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
}
