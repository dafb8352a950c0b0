//! Faults and commands of the safety phase.

use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{Command, Force};

use super::plan::Action;
use super::{Campaign, FIRST_SHARP_SEED, FIRST_TORN_SEED, Undo};
use crate::sim::network::MS;
use crate::sim::node::{IoFault, Keep, Node, VOLUME};
use crate::sim::pair::{ONLY_PAIR, peer_of};
use crate::sim::trace::name;
use crate::sim::world::{Counted, CrashAt};

impl Campaign {
    /// Now and then a node dies in the middle of what this action makes it write, at an I/O and not at a time.
    pub(super) fn sharpen(&mut self, action: Action) {
        if self.world.settings.seed < FIRST_SHARP_SEED {
            return;
        }
        let writes = matches!(
            action,
            Action::Switchover
                | Action::Detach
                | Action::Disconnect
                | Action::CutStreams
                | Action::CutOneStream
                | Action::Invalidate
                | Action::Down
                | Action::Quiet
        );
        if writes && self.sharp.chance(1, 3) {
            let (node, power) = (self.sharp.below(2) as usize, self.sharp.chance(3, 4));
            self.arm(node, power);
        }
    }

    fn arm(&mut self, node: usize, power: bool) {
        let mut crash = CrashAt {
            left: self.sharp.between(1, 12) as u32,
            of: Counted::Durable,
            power: power.then_some(Keep::Dice),
            completed: self.sharp.chance(1, 2),
        };
        if self.world.settings.seed >= FIRST_TORN_SEED && self.sharp.chance(1, 2) {
            crash.of = Counted::Effects;
            crash.left = self.sharp.pick(&[6, 30, 150]);
            crash.left = self.sharp.between(0, u64::from(crash.left)) as u32;
        }
        self.world.crash_at[node] = Some(crash);
        let down = self.sharp.between(200, 6000) * MS;
        self.person.start_at[node] = Some(self.world.now + down);
    }

    pub(super) fn act(&mut self, action: Action) -> bool {
        let primary = self.primary();
        let secondary = peer_of(primary);
        match action {
            Action::CutStreams => self.world.reset_streams(ONLY_PAIR, false),
            Action::CutOneStream => self.world.reset_streams(ONLY_PAIR, true),
            Action::Partition => {
                self.world.block(ONLY_PAIR, [true; 2]);
                self.undo_in(100, 9000, Undo::Unblock);
            }
            Action::HalfOpen => {
                let from = self.dice.below(2) as usize;
                self.world.block(ONLY_PAIR, [from == 0, from == 1]);
                self.undo_in(100, 9000, Undo::Unblock);
            }
            Action::SlowNetwork => {
                self.world.say("the network is slow");
                self.world.net.settings.delay = (MS, 60 * MS);
                self.undo_in(500, 6000, Undo::Faster);
            }
            Action::SlowDisk => {
                self.world.say("the disks are slow");
                self.world.settings.disk_delay = (MS, 80 * MS);
                self.undo_in(500, 6000, Undo::Faster);
            }
            Action::KillPrimary => self.stop_primary(primary, false),
            Action::PowerPrimary => self.stop_primary(primary, true),
            Action::KillSecondary => self.stop(secondary, false),
            Action::PowerSecondary => self.stop(secondary, true),
            Action::PowerBoth | Action::KillBoth => {
                let power = action == Action::PowerBoth;
                self.stop(0, power);
                if self.dice.chance(1, 2) {
                    let gap = self.dice.below(300) * MS;
                    if self.live(gap).is_err() {
                        return true;
                    }
                }
                self.stop(1, power);
            }
            Action::DiskError => self.disk_error(),
            Action::Switchover => self.person.switching = true,
            Action::SplitBrain => return self.split_brain(primary),
            Action::Quiet => {
                self.world.clients.quiet = true;
                self.undo_in(500, 3000, Undo::Loud);
            }
            _ => return self.operate(action, primary, secondary),
        }
        true
    }

    /// Commands of a person that are not about who is Primary.
    fn operate(&mut self, action: Action, primary: usize, secondary: usize) -> bool {
        let node = self.dice.below(2) as usize;
        let volume = VOLUME;
        let force = self.dice.pick(&[Force::No, Force::No, Force::Yes]);
        let state = |node: usize| self.world.nodes[node].state();
        let (Some(own), Some(peer)) = (state(primary), state(secondary)) else {
            return false;
        };
        match action {
            Action::Disconnect => {
                self.world.command(node, Command::Disconnect { force });
            }
            Action::Detach => {
                let both = own.disk == DiskState::UpToDate && peer.disk == DiskState::UpToDate;
                if !both || own.conn != ConnState::Connected {
                    return false;
                }
                self.world.command(node, Command::Detach { volume, force });
            }
            Action::Down => {
                if peer.role == Role::Primary {
                    return false;
                }
                self.take_down(secondary);
            }
            Action::Invalidate => {
                let fit = own.disk == DiskState::UpToDate
                    && own.conn == ConnState::Connected
                    && peer.conn == ConnState::Connected;
                if !fit {
                    return false;
                }
                self.world.discard(secondary);
                if self.dice.chance(1, 2) {
                    let command = Command::Invalidate { volume };
                    self.world.command(secondary, command);
                } else {
                    let command = Command::InvalidateRemote { volume };
                    self.world.command(primary, command);
                }
            }
            Action::PauseSync => {
                self.world.command(node, Command::PauseSync { volume });
                let after = self.dice.between(200, 6000) * MS;
                self.person.resume_at[node] = Some(self.world.now + after);
            }
            Action::SuspendIo => {
                self.world.command(primary, Command::SuspendIo { volume });
                let after = self.dice.between(200, 6000) * MS;
                self.person.resume_at[primary] = Some(self.world.now + after);
            }
            Action::Outdate => {
                if peer.conn.is_connected() || peer.role == Role::Primary {
                    return false;
                }
                self.world.command(secondary, Command::Outdate { volume });
            }
            Action::Verify => self.verify(node),
            _ => return false,
        }
        true
    }

    /// All of the device, what was left over, or a part; now and then stopped soon.
    fn verify(&mut self, node: usize) {
        let volume = VOLUME;
        let start = self.dice.pick(&[None, Some(0), Some(37)]);
        let stop = self.dice.pick(&[None, None, Some(99)]);
        let command = Command::Verify {
            volume,
            start,
            stop,
        };
        self.world.command(node, command);
        if self.dice.chance(1, 4) {
            let wait = self.dice.below(300) * MS;
            if self.live(wait).is_ok() {
                self.world.command(node, Command::VerifyStop { volume });
            }
        }
    }

    fn take_down(&mut self, node: usize) {
        let force = Force::No;
        self.world.command(node, Command::Down { force });
        let wait = self.dice.between(200, 1500) * MS;
        if self.live(wait).is_ok() {
            self.stop(node, false);
        }
    }

    pub(super) fn stop(&mut self, node: usize, power: bool) {
        if !self.world.nodes[node].is_running() {
            return;
        }
        if self.world.settings.seed >= FIRST_SHARP_SEED && self.sharp.chance(1, 4) {
            self.arm(node, power);
            return;
        }
        self.world.stop(node, power);
        let down = self.dice.between(200, 6000) * MS;
        self.person.start_at[node] = Some(self.world.now + down);
    }

    /// The Primary dies; now and then the person makes the other node Primary.
    fn stop_primary(&mut self, primary: usize, power: bool) {
        self.stop(primary, power);
        if self.dice.chance(1, 2) {
            self.person.wanted = peer_of(primary);
            self.person.switching = false;
            if self.dice.chance(1, 2) {
                self.person.start_at[primary] =
                    Some(self.world.now + self.dice.between(3000, 9000) * MS);
            }
        }
    }

    fn disk_error(&mut self) {
        let node = self.dice.below(2) as usize;
        let both = self.world.is_in_sync();
        if !both {
            return;
        }
        let kind = self
            .dice
            .pick(&[IoFault::DataRead, IoFault::DataWrite, IoFault::Meta]);
        let count = self.dice.between(1, 3) as u32;
        self.world
            .say(format!("{}: the next {count} {kind:?} fail", name(node)));
        self.world.pair_mut(node).disk_faults = true;
        self.world.nodes[node].fault = Some((kind, count));
    }

    /// The person promotes the other node although the Primary lives.
    fn split_brain(&mut self, primary: usize) -> bool {
        let other = peer_of(primary);
        if !self.world.nodes.iter().all(Node::is_running) || !self.world.nodes[primary].is_primary()
        {
            return false;
        }
        self.world.block(ONLY_PAIR, [true; 2]);
        self.undo_in(4000, 9000, Undo::Unblock);
        let gone = self.live(3500 * MS);
        if gone.is_err() || self.world.nodes[other].is_connected() {
            return true;
        }
        if self.world.nodes[other].is_up_to_date() {
            self.world.promote(other, Force::No);
        }
        true
    }
}
