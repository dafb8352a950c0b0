//! What only rough histories have, beside their faults and commands: disks that hang or are full, closed ports, handlers that fail,
//! two faults in the worst order, and commands that a person types for no good reason.

use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{Command, DiskOptions, Force, NewArea, OnIoError, PeerRoom};

use super::{Campaign, FIRST_ALONE_SEED, FIRST_PASS_ON_SEED, FIRST_RESIZE_SEED, FIRST_ROUGH_SEED};
use crate::sim::dice::Dice;
use crate::sim::network::MS;
use crate::sim::node::{IoFault, Keep, VOLUME};
use crate::sim::pair::{ONLY_PAIR, peer_of};
use crate::sim::trace::name;
use crate::sim::world::{Counted, CrashAt};

/// Something rough to be taken back later.
#[derive(Clone, Copy, Debug)]
pub(super) enum Undo {
    /// The disk of this node goes on.
    LetGo(usize),
    /// The disk of this node hangs until its power is switched off.
    SwitchOff(usize),
    /// There is room again.
    Room(usize),
    /// Ports are open.
    Open,
    /// Handlers end well.
    Handlers,
}

/// `on-io-error` of rough histories.
pub(super) fn draw_policy(options: DiskOptions, seed: u64) -> DiskOptions {
    if seed < FIRST_ROUGH_SEED {
        return options;
    }
    let on_io_error = Dice::new(seed, "policy").pick(&[
        OnIoError::Detach,
        OnIoError::Detach,
        OnIoError::CallLocalIoError,
    ]);
    let on_io_error = match Dice::new(seed, "pass on").chance(1, 2) {
        true if seed >= FIRST_PASS_ON_SEED => OnIoError::PassOn,
        _ => on_io_error,
    };
    let thin = Dice::new(seed, "thin").pick(&[0, 4096, 16_384, 65_536]);
    DiskOptions {
        on_io_error,
        rs_discard_granularity: if seed < FIRST_RESIZE_SEED { 0 } else { thin },
        ..options
    }
}

impl Campaign {
    /// Now and then something rough happens, beside what the plan says: its name.
    pub(super) fn roughen(&mut self) -> Option<&'static str> {
        if self.world.settings.seed < FIRST_ROUGH_SEED || !self.rough.chance(1, 2) {
            return None;
        }
        if self.world.settings.seed >= FIRST_ALONE_SEED && self.rough.chance(1, 6) {
            return self.type_alone();
        }
        if self.world.settings.seed >= FIRST_RESIZE_SEED && self.rough.chance(1, 3) {
            return Some(self.type_resize());
        }
        match self.rough.below(9) {
            0 => self.hang(),
            1 => self.fill(),
            2 => self.close_ports(),
            3 => self.fail_handlers(),
            4 => self.die_after_a_promotion(),
            5 => self.lose_the_peer_without_a_disk(),
            6 => self.take_over_after_two_failures(),
            _ => self.type_something(),
        }
    }

    fn later(&mut self, least_ms: u64, most_ms: u64, undo: Undo) {
        let at = self.world.now + self.rough.between(least_ms, most_ms) * MS;
        self.undo.push((at, super::Undo::Rough(undo)));
    }

    pub(super) fn take_back_rough(&mut self, undo: Undo) {
        match undo {
            Undo::LetGo(node) => {
                self.world
                    .say(format!("the disk of {} goes on", name(node)));
                self.world.let_go(node);
            }
            Undo::SwitchOff(node) => self.stop(node, true),
            Undo::Room(node) => {
                let full = |fault: &(IoFault, u32)| fault.0 == IoFault::Full;
                let fault = self.world.nodes[node].fault;
                self.world.nodes[node].fault = fault.filter(|fault| !full(fault));
            }
            Undo::Open => self.world.net.closed.fill(false),
            Undo::Handlers => self.world.handlers_fail = false,
        }
    }

    /// Everything is smooth again.
    pub(super) fn smooth(&mut self) {
        for node in 0..2 {
            self.world.let_go(node);
        }
        self.world.net.closed.fill(false);
        self.world.handlers_fail = false;
    }

    fn hang(&mut self) -> Option<&'static str> {
        let node = self.rough.below(2) as usize;
        let kind = self.rough.pick(&[
            IoFault::DataRead,
            IoFault::DataWrite,
            IoFault::Meta,
            IoFault::All,
        ]);
        let count = self.rough.pick(&[1, 3, u32::MAX]);
        self.world
            .say(format!("the disk of {} hangs: {kind:?}", name(node)));
        self.world.nodes[node].hang = Some((kind, count));
        if self.rough.chance(1, 4) {
            self.later(200, 9000, Undo::SwitchOff(node));
        } else {
            self.later(50, 9000, Undo::LetGo(node));
        }
        Some("a disk hangs")
    }

    fn fill(&mut self) -> Option<&'static str> {
        let node = self.rough.below(2) as usize;
        if !self.world.is_in_sync() {
            return None;
        }
        self.world
            .say(format!("the disk of {} is full", name(node)));
        self.world.pair_mut(node).disk_faults = true;
        self.world.nodes[node].fault = Some((IoFault::Full, u32::MAX));
        self.later(50, 3000, Undo::Room(node));
        Some("a disk is full")
    }

    /// One of the nodes, or both, cannot be dialled.
    fn close_ports(&mut self) -> Option<&'static str> {
        let closed = self
            .rough
            .pick(&[[true, false], [false, true], [true, true]]);
        self.world.say(format!(
            "dials are refused: to A {}, to B {}",
            closed[0], closed[1]
        ));
        self.world.net.closed = closed.to_vec();
        self.later(500, 9000, Undo::Open);
        if self.rough.chance(2, 3) {
            let one = self.rough.chance(1, 2);
            self.world.reset_streams(ONLY_PAIR, one);
        }
        Some("closed ports")
    }

    fn fail_handlers(&mut self) -> Option<&'static str> {
        self.world.say("handlers fail");
        self.world.handlers_fail = true;
        self.later(2000, 20_000, Undo::Handlers);
        Some("handlers fail")
    }

    /// The power of the new Primary fails while it is promoted, or at its first writes.
    fn die_after_a_promotion(&mut self) -> Option<&'static str> {
        let next = peer_of(self.primary());
        if !self.world.is_in_sync() {
            return None;
        }
        self.person.switching = true;
        let crash = CrashAt {
            left: self.rough.between(1, 9) as u32,
            of: self.rough.pick(&[Counted::Writes, Counted::Durable]),
            power: self.rough.chance(3, 4).then_some(Keep::Dice),
            completed: self.rough.chance(1, 2),
        };
        self.world.crash_at[next] = Some(crash);
        if self.rough.chance(1, 2) {
            self.world.nodes[next].hang = Some((IoFault::Meta, 1));
            self.later(1, 300, Undo::LetGo(next));
        }
        let down = self.rough.between(200, 6000) * MS;
        self.person.start_at[next] = Some(self.world.now + down);
        Some("a death after a promotion")
    }

    /// The Primary is detached; soon after that it loses its peer.
    fn lose_the_peer_without_a_disk(&mut self) -> Option<&'static str> {
        let primary = self.primary();
        if !self.world.is_in_sync() || !self.world.nodes[primary].is_primary() {
            return None;
        }
        let force = self.rough.pick(&[Force::No, Force::Yes]);
        let volume = VOLUME;
        self.world
            .command(primary, Command::Detach { volume, force });
        let wait = self.rough.spread(1500 * MS);
        if self.live(wait).is_err() {
            return None;
        }
        match self.rough.below(4) {
            0 => self.stop(peer_of(primary), true),
            1 => self.stop(peer_of(primary), false),
            2 => self.world.reset_streams(ONLY_PAIR, false),
            _ => {
                self.world.block(ONLY_PAIR, [true; 2]);
                self.undo_in(100, 9000, super::Undo::Unblock);
            }
        }
        Some("a peer lost without a disk")
    }

    /// The Secondary, then the Primary lose their power; the one that comes back is promoted.
    fn take_over_after_two_failures(&mut self) -> Option<&'static str> {
        let primary = self.primary();
        if !self.world.is_in_sync() {
            return None;
        }
        let secondary = peer_of(primary);
        let gap = self.rough.pick(&[0, 0, 20, 300, 3000]) * MS;
        let (first, second) = match self.rough.below(3) {
            0 => (primary, secondary),
            _ => (secondary, primary),
        };
        self.world.stop(first, true);
        if gap > 0 && self.live(gap).is_err() {
            return None;
        }
        if self.world.nodes[second].is_running() {
            let power = self.rough.chance(3, 4);
            self.world.stop(second, power);
        }
        self.person.wanted = secondary;
        self.person.switching = false;
        let back = self.rough.between(100, 2000) * MS;
        self.person.start_at[secondary] = Some(self.world.now + back);
        let late = self.rough.between(2500, 9000) * MS;
        self.person.start_at[primary] = Some(self.world.now + late);
        Some("two failures, and a takeover")
    }

    /// Any command that the engine knows, to either node; what is refused changes nothing. Commands that give data up are left to
    /// the actions of the plan, which tell the oracle.
    fn type_something(&mut self) -> Option<&'static str> {
        let node = self.rough.below(2) as usize;
        let volume = VOLUME;
        let force = self.rough.pick(&[Force::No, Force::No, Force::Yes]);
        let (Some(own), Some(peer)) = (
            self.world.nodes[node].state(),
            self.world.nodes[peer_of(node)].state(),
        ) else {
            return None;
        };
        let connected = own.conn.is_connected() && peer.conn.is_connected();
        let (words, command) = match self.rough.below(15) {
            0 => ("attach", Command::Attach { volume }),
            1 | 2 => return self.type_connect(node),
            3 => ("disconnect", Command::Disconnect { force }),
            4 if connected => {
                let force = Force::No;
                ("primary", Command::Primary { volume, force })
            }
            5 if self.world.is_in_sync() => {
                let force = Force::Yes;
                ("primary --force", Command::Primary { volume, force })
            }
            6 => ("secondary", Command::Secondary { volume }),
            7 => ("resume-sync", Command::ResumeSync { volume }),
            8 => ("resume-io", Command::ResumeIo { volume }),
            9 => {
                let options = self.draw_options();
                ("disk-options", Command::DiskOptions { volume, options })
            }
            10 if own.conn == ConnState::StandAlone && own.role == Role::Primary => {
                let clear_bitmap = false;
                let command = Command::NewCurrentUuid {
                    volume,
                    clear_bitmap,
                };
                ("new-current-uuid", command)
            }
            11 if own.conn == ConnState::StandAlone && own.role == Role::Primary => {
                ("invalidate-remote", Command::InvalidateRemote { volume })
            }
            12 if own.role == Role::Secondary && peer.disk == DiskState::UpToDate => {
                return self.type_down(node);
            }
            13 => {
                self.resume_later(node);
                ("pause-sync", Command::PauseSync { volume })
            }
            14 => {
                self.resume_later(node);
                ("suspend-io", Command::SuspendIo { volume })
            }
            _ => return None,
        };
        self.world
            .say(format!("{words} is typed on {}", name(node)));
        self.world.command(node, command);
        Some(words)
    }

    /// Disks with external metadata may have become larger before. The new area is zero on both: it may as well be left out of a resync.
    fn type_resize(&mut self) -> &'static str {
        let primary = (0..2).find(|&node| {
            self.world.nodes[node]
                .state()
                .is_some_and(|state| state.role == Role::Primary)
        });
        let node = match self.rough.chance(3, 4) {
            true => primary.unwrap_or(0),
            false => self.rough.below(2) as usize,
        };
        let more = self.rough.pick(&[4096, 20_480, 131_072]);
        let grown = self.rough.pick(&[
            [true, true],
            [true, true],
            [true, false],
            [false, true],
            [false, false],
        ]);
        for (node, grows) in grown.into_iter().enumerate() {
            if grows && self.world.nodes[node].meta.is_some() {
                self.world
                    .say(format!("the disk of {} grows by {more} bytes", name(node)));
                self.world.nodes[node].data.grow(more);
            }
        }
        let [own, peer] = [node, peer_of(node)].map(|node| self.world.nodes[node].data.bytes());
        let room = match self
            .rough
            .pick(&[PeerRoom::Asked, PeerRoom::Asked, PeerRoom::Assumed])
        {
            PeerRoom::Assumed if peer >= own => PeerRoom::Assumed,
            _ => PeerRoom::Asked,
        };
        let area = self
            .rough
            .pick(&[NewArea::Resync, NewArea::Resync, NewArea::AssumeClean]);
        let (volume, size) = (VOLUME, 0);
        let command = Command::Resize {
            volume,
            size,
            room,
            area,
        };
        self.world.say(format!("resize is typed on {}", name(node)));
        self.world.command(node, command);
        "resize"
    }

    /// A node is disconnected, and while it is StandAlone a person types what is meant for that.
    fn type_alone(&mut self) -> Option<&'static str> {
        let primary = self.primary();
        if !self.world.is_in_sync() || !self.world.nodes[primary].is_primary() {
            return None;
        }
        let volume = VOLUME;
        let clear_bitmap = false;
        let new_current = Command::NewCurrentUuid {
            volume,
            clear_bitmap,
        };
        let (node, words, command) = match self.rough.below(4) {
            0 => (
                peer_of(primary),
                "invalidate, alone",
                Command::Invalidate { volume },
            ),
            1 => (
                primary,
                "invalidate-remote, alone",
                Command::InvalidateRemote { volume },
            ),
            _ => (primary, "new-current-uuid, alone", new_current),
        };
        let force = self.rough.pick(&[Force::No, Force::Yes]);
        self.world.command(node, Command::Disconnect { force });
        let wait = self.rough.between(20, 1500) * MS;
        if self.live(wait).is_err() {
            return None;
        }
        let state = self.world.nodes[node].state()?;
        if state.conn != ConnState::StandAlone {
            return None;
        }
        if matches!(command, Command::Invalidate { .. }) {
            if state.role == Role::Primary {
                return None;
            }
            self.world.discard(node);
        } else if state.role != Role::Primary || state.disk != DiskState::UpToDate {
            return None;
        }
        self.world
            .say(format!("{words}, is typed on {}", name(node)));
        self.world.command(node, command);
        Some(words)
    }

    fn resume_later(&mut self, node: usize) {
        let after = self.rough.between(200, 6000) * MS;
        self.person.resume_at[node] = Some(self.world.now + after);
    }

    /// `connect`, in earnest or only to see what would happen.
    fn type_connect(&mut self, node: usize) -> Option<&'static str> {
        let net = self.world.settings.net_options.clone();
        let tentative = self.rough.chance(1, 2);
        let words = if tentative {
            "connect --tentative"
        } else {
            "connect"
        };
        self.world
            .say(format!("{words} is typed on {}", name(node)));
        let command = Command::Connect {
            net,
            discard_my_data: false,
            tentative,
        };
        self.world.command(node, command);
        Some(words)
    }

    fn type_down(&mut self, node: usize) -> Option<&'static str> {
        let force = Force::Yes;
        self.world.command(node, Command::Down { force });
        let wait = self.rough.between(200, 1500) * MS;
        if self.live(wait).is_err() {
            return None;
        }
        self.stop(node, false);
        Some("down --force")
    }

    fn draw_options(&mut self) -> DiskOptions {
        let old = self.world.settings.disk_options.clone();
        DiskOptions {
            al_extents: self.rough.pick(&[7, 67, 127, 1237]),
            resync_rate: self.rough.pick(&[1000, 10_000, 100_000]),
            c_plan_ahead: self.rough.pick(&[0, 5, 20]),
            c_fill_target: self.rough.pick(&[0, 100, 1000]),
            c_min_rate: self.rough.pick(&[0, 250, 10_000]),
            ..old
        }
    }
}
