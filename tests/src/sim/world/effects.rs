//! What the engines want, carried out, and what comes of it: I/O that ends, or does not, and bytes that arrive.

use bytes::Bytes;
use tandem_replicator::state::word::State;
use tandem_replicator::{
    Answer, CommandId, DiskOperation, Effect, Effects, Event, MetaOperation, Notification, Token,
};

use super::{Counted, CrashAt, CutPlace, CutStage, What, World};
use crate::sim::network::{Host, MS, NetEvent};
use crate::sim::node::Io;
use crate::sim::pair::{pair_of, peer_of};
use crate::sim::trace::name;

/// How connections end that are meant to; and what is seen when the peer changes its mind after this node has agreed to a change, or is
/// not as quick to grow: the next connection puts it right.
const PARTINGS: [&str; 4] = [
    "only a dry run was asked for",
    "split brain is unresolved",
    "a sync UUID that is not expected now",
    "a write beyond the end of the device",
];

impl World {
    pub(super) fn set_timer(&mut self, node: usize) {
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

    pub(super) fn replies(&mut self, node: usize, effects: &Effects, after: Option<State>) {
        for effect in effects {
            let Effect::Reply { request, result } = effect else {
                continue;
            };
            if let (Err(error), Some(asked)) = (result, self.clients.asked(*request))
                && let Err(text) = self.check_error(node, asked, *error)
            {
                self.fail(text);
            }
            let peer = &self.nodes[peer_of(node)];
            let oracle = &mut self.pairs[pair_of(node)].oracle;
            let answered = (self.clients).answered(node, *request, result, after, peer, oracle);
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
        self.awaited[node] += 1;
        self.schedule(self.now + after, What::Engine(node, boot, Box::new(event)));
    }

    pub(super) fn carry_out(&mut self, node: usize, effect: Effect) {
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
            Effect::Listen
            | Effect::Unlisten
            | Effect::Dial { .. }
            | Effect::Send { .. }
            | Effect::Close { .. }
            | Effect::PauseRead { .. }
            | Effect::ResumeRead { .. } => self.carry_out_on_network(node, effect),
            Effect::Reply { .. } => {}
            Effect::Answer { command, answer } => self.answer(node, command, answer),
            Effect::PauseClients { .. } => self.nodes[node].clients_paused = true,
            Effect::ResumeClients { .. } => self.nodes[node].clients_paused = false,
            Effect::OpenBacking { token, .. } | Effect::MeasureBacking { token, .. } => {
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
            Effect::RunHandler { token, name, .. } => self.run_handler(node, token, name),
            Effect::Notify(notification) => self.note(node, notification),
        }
    }

    fn carry_out_on_network(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Send {
                socket,
                head,
                payload,
            } => {
                let payload = payload.unwrap_or_else(Bytes::new);
                self.net.send(self.now, socket, [head, payload]);
            }
            Effect::Listen => self.set_listening(node, true),
            Effect::Unlisten => self.set_listening(node, false),
            Effect::Dial { token } => {
                let boot = self.nodes[node].boot;
                self.net.dial(self.now, node, boot, token);
            }
            Effect::Close { socket, how } => self.net.close(self.now, socket, how),
            Effect::PauseRead { socket } => self.net.pause(self.now, socket, true),
            Effect::ResumeRead { socket } => self.net.pause(self.now, socket, false),
            _ => {}
        }
    }

    /// An engine answers a command.
    fn answer(&mut self, node: usize, command: CommandId, answer: Answer) {
        if self.nodes[node].open_commands.remove(&command.0).is_none() {
            self.fail(format!("command {} is answered twice", command.0));
        }
        self.nodes[node].answers.insert(command.0, answer);
        self.note_trouble(node);
        if self.connect_after[node] == Some(command.0) {
            self.connect_after[node] = None;
            let boot = self.nodes[node].boot;
            self.schedule(self.now, What::Connect(node, boot));
        }
    }

    fn run_handler(&mut self, node: usize, token: Token, handler: &'static str) {
        self.nodes[node].handlers.push(handler);
        let after = self.settings.handler_delay;
        let exit = if self.handlers_fail {
            self.handler_dice.pick(&[0, 0, 1, 3, 5, 20, 127])
        } else {
            0
        };
        self.later(node, after, Event::HandlerDone { token, exit });
    }

    /// An engine says something that a test looks at.
    fn note(&mut self, node: usize, notification: Notification) {
        match notification {
            Notification::Serve { bytes, .. } => {
                self.nodes[node].serves = bytes;
                if bytes.is_none() {
                    self.clients.opened[node] = false;
                }
            }
            Notification::Log { text, .. } if text.starts_with("uuid_compare") => {
                self.nodes[node].comparisons.push(text);
            }
            Notification::Log { text, .. } => {
                self.note_misunderstanding(node, &text);
                self.note_verify(node, &text);
            }
            _ => {}
        }
    }

    /// Two nodes of this engine never break the protocol.
    fn note_misunderstanding(&mut self, node: usize, text: &str) {
        let lost = text.strip_prefix("lost the connection to the peer: P_");
        let excused = |why: &&str| !PARTINGS.iter().any(|parting| why.ends_with(parting));
        if let Some(why) = lost.filter(excused) {
            let who = name(node);
            self.fail(format!(
                "{who} takes its peer for one that breaks the protocol: P_{why}"
            ));
        }
    }

    fn note_verify(&mut self, node: usize, text: &str) {
        if text.starts_with("online verify done") {
            self.verified[node] = true;
            self.check_verified(node);
        }
        // Two UpToDate disks never differ, unless one of them fails or went bad.
        let pair = self.pair(node);
        let excused = pair.disk_faults || pair.rotten.is_some();
        if text.starts_with("out of sync: start=") && !excused {
            let words = format!("a verify found a difference on {}: {text}", name(node));
            self.fail(words);
        }
    }

    fn set_listening(&mut self, node: usize, listening: bool) {
        let host = Host::Running { listening };
        self.nodes[node].host = host;
        self.net.hosts[node] = host;
    }

    pub(super) fn io_done(&mut self, node: usize, boot: u64, token: Token) {
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
        if self.places.is_some() {
            let place = self.cut_place(node, token);
            self.places.iter_mut().for_each(|all| all.extend(place));
        }
        if self.nodes[node].fault.is_some() {
            self.note_trouble(node);
            self.pair_mut(node).resynced = false;
        }
        let event = self.nodes[node].complete(token, &mut self.disk_dice);
        self.take_cuts(node);
        if let Some(event) = event {
            self.deliver(node, event);
        }
    }

    /// The judge is told where a disk cut sectors in two.
    pub(super) fn take_cuts(&mut self, node: usize) {
        let cuts = self.nodes[node].data.take_cuts();
        self.seen.torn_sectors += cuts.len() as u64;
        self.pair_mut(node).oracle.torn(cuts);
    }

    /// How many of so many effects the node still carries out before it dies, if it does.
    pub(super) fn dies_between(&mut self, node: usize, effects: usize) -> Option<(usize, CrashAt)> {
        let crash = self.crash_at[node].as_mut()?;
        if crash.of != Counted::Effects {
            return None;
        }
        let left = crash.left as usize;
        if effects < left {
            crash.left -= effects as u32;
            return None;
        }
        self.crash_at[node].take().map(|crash| (left, crash))
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
        let all = self.crash_at[node].is_some_and(|crash| crash.of == Counted::Writes)
            && !matches!(
                self.nodes[node].io.get(&token),
                Some(
                    Io::Data(DiskOperation::Read { .. }, _)
                        | Io::Meta(MetaOperation::Read { .. }, _)
                )
            );
        let by_io = |crash: &&mut CrashAt| crash.of != Counted::Effects && (counts || all);
        let Some(crash) = self.crash_at[node].as_mut().filter(by_io) else {
            return false;
        };
        crash.left = crash.left.saturating_sub(1);
        let crash = *crash;
        if crash.left > 0 {
            return false;
        }
        self.crash_at[node] = None;
        self.crashed_in = self.cut_place(node, token);
        if crash.completed {
            let _ = self.nodes[node].complete(token, &mut self.disk_dice);
        }
        self.crashed_with = self.nodes[node].volatile_writes();
        self.stop_keeping(node, crash.power);
        true
    }

    /// Which step of which durable sequence this I/O is.
    fn cut_place(&self, node: usize, token: Token) -> Option<CutPlace> {
        let node = &self.nodes[node];
        let end = node.engine.as_ref()?.plan_end_of(token)?;
        let layout = node.layout().ok()?;
        let stage = match node.io.get(&token)? {
            Io::Data(DiskOperation::Flush, _) => CutStage::FlushData,
            Io::Meta(MetaOperation::Flush, _) => CutStage::FlushMeta,
            Io::Meta(MetaOperation::Write { offset, .. }, _) => {
                let log = layout.activity_log_offset().0;
                let log = log..log + layout.activity_log_len().0;
                if *offset == layout.superblock_offset().0 {
                    CutStage::Superblock
                } else if log.contains(offset) {
                    CutStage::ActivityLog
                } else {
                    CutStage::Bitmap
                }
            }
            Io::Data(..) | Io::Meta(MetaOperation::Read { .. }, _) => return None,
        };
        Some(CutPlace { end, stage })
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

    pub(super) fn take_net(&mut self) {
        for (at, event) in std::mem::take(&mut self.net.out) {
            self.schedule(at, What::Net(event));
        }
    }

    pub(super) fn net_event(&mut self, event: NetEvent) {
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
                    let peer_boot = self.nodes[peer_of(node)].boot;
                    self.net.reach(self.now, node, boot, peer_boot, token);
                }
            }
            NetEvent::LingerOver { stream, end } => self.net.linger_over(self.now, stream, end),
        }
    }
}
