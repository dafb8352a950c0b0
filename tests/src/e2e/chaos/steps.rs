//! Carries out the steps of a script.

use std::time::Duration;

use crate::e2e::node::FileLimit;
use crate::e2e::proxy::{Flow, Passage};
use crate::e2e::wait;

use super::ledger::Floor;
use super::load::End;
use super::person::PERSON_LIMIT;
use super::script::{Action, DiskFault, Heir, LinkFault, Order, Proxies, Repair, Step, Who};
use super::world::{Fate, Promotion, World};

impl World<'_> {
    /// One step.
    pub fn step(&mut self, step: &Step) {
        World::pause(step.before_ms);
        if let Some(link) = step.link {
            self.disturb_link(link);
        }
        if let Some(disk) = step.disk {
            self.fill_disk(disk);
        }
        World::pause(step.between_ms);
        self.act(step.action, step.hold_ms);
        self.count_cuts();
        match step.repair {
            Repair::Hasty => self.repair_nodes(),
            Repair::Whole => self.repair_everything(),
            Repair::Compared => {
                self.repair_everything();
                self.stop_and_compare();
                self.start_load();
            }
        }
    }

    fn proxies(&self, which: Proxies) -> Vec<usize> {
        match which {
            Proxies::One(proxy) => vec![proxy],
            Proxies::Both => vec![0, 1],
        }
    }

    fn disturb_link(&mut self, fault: LinkFault) {
        let proxies = self.pair.proxies.as_ref().expect("a proxied pair");
        match fault {
            LinkFault::Slow { ms } => {
                for proxy in proxies {
                    proxy.delay(Duration::from_millis(ms));
                }
                self.tally.slow_links += 1;
            }
            LinkFault::Narrow { bytes_per_second } => {
                for proxy in proxies {
                    proxy.throttle(bytes_per_second);
                }
                self.tally.slow_links += 1;
            }
            LinkFault::Block {
                proxies: which,
                towards,
            } => {
                for index in self.proxies(which) {
                    // The first one stands before bravo.
                    let is_before = (index == 0) == (towards == 1);
                    let flow = if is_before { Flow::In } else { Flow::Out };
                    proxies[index].block(flow, Passage::Blocked);
                }
                self.tally.slow_links += 1;
            }
            LinkFault::CutAfter {
                proxies: which,
                flow,
                bytes,
            } => {
                for index in self.proxies(which) {
                    proxies[index].cut_after(flow, bytes);
                }
            }
            LinkFault::Cut { proxies: which } => {
                for index in self.proxies(which) {
                    proxies[index].cut();
                }
            }
        }
    }

    fn count_cuts(&mut self) {
        let proxies = self.pair.proxies.as_ref().expect("a proxied pair");
        let cut = proxies.iter().filter(|proxy| proxy.is_cut()).count();
        self.tally.cuts += cut as u64;
    }

    fn fill_disk(&mut self, fault: DiskFault) {
        let node = self.which(fault.who);
        let bytes = self.pair.settings.disk_bytes / 1000 * fault.beyond;
        self.node(node).limit_files(FileLimit::Bytes(bytes));
        self.tally.full_disks += 1;
    }

    fn act(&mut self, action: Action, hold_ms: u64) {
        match action {
            Action::Nothing => World::pause(hold_ms),
            Action::KillPrimary { heir, cut } => self.kill_primary(heir, cut, hold_ms),
            Action::KillSecondary => {
                self.kill_secondary();
                World::pause(hold_ms);
            }
            Action::KillBoth { heir } => self.kill_both(heir, hold_ms),
            Action::Freeze { who, ms } => {
                let node = self.which(who);
                self.freeze(node);
                World::pause(ms);
                self.thaw(node);
                World::pause(hold_ms);
            }
            Action::FreezeAndKill { heir } => {
                self.freeze(self.holder);
                World::pause(hold_ms);
                self.kill_holder();
                self.succeed(heir);
            }
            Action::Usurp => self.usurp(hold_ms),
            Action::Order(order) => self.order(order, hold_ms),
            Action::KillDuring { who, order, ms } => self.kill_during(who, order, ms),
        }
    }

    pub(super) fn freeze(&mut self, node: usize) {
        self.node(node).signal("STOP");
        self.frozen[node] = true;
        self.tally.stops += 1;
    }

    pub(super) fn thaw(&mut self, node: usize) {
        if std::mem::take(&mut self.frozen[node]) {
            self.node(node).signal("CONT");
        }
    }

    fn kill(&mut self, node: usize) {
        self.node_mut(node).kill();
        self.frozen[node] = false;
        self.tally.kills += 1;
        self.note(&format!("{} is dead", self.node(node).name));
    }

    fn kill_holder(&mut self) {
        self.kill(self.holder);
        self.end_load(End::Orderly, Fate::Killed);
        self.note_break();
    }

    fn kill_secondary(&mut self) {
        self.note_secondary_break();
        self.kill(1 - self.holder);
    }

    fn kill_primary(&mut self, heir: Heir, cut: bool, hold_ms: u64) {
        let mut proxies_cut = Vec::new();
        if cut {
            let proxies = self.pair.proxies.as_ref().expect("a proxied pair");
            proxies_cut = proxies.iter().map(|proxy| !proxy.is_cut()).collect();
            self.pair.cut();
        }
        self.kill_holder();
        self.count_cuts();
        if let Some(proxies) = &self.pair.proxies {
            for (proxy, cut) in proxies.iter().zip(proxies_cut) {
                if cut {
                    proxy.heal();
                }
            }
        }
        World::pause(hold_ms);
        self.succeed(heir);
    }

    fn kill_both(&mut self, heir: Heir, hold_ms: u64) {
        self.kill_secondary();
        self.kill_holder();
        World::pause(hold_ms);
        if heir != Heir::Same {
            self.revive(1 - self.holder);
        }
        self.succeed(heir);
    }

    fn usurp(&mut self, hold_ms: u64) {
        self.freeze(self.holder);
        self.end_load(End::Broken, Fate::Killed);
        self.note_break();
        let old = self.holder;
        if !self.promote_survivor(Heir::SurvivorAnyway) {
            self.thaw(old);
            return;
        }
        World::pause(hold_ms);
        self.thaw(old);
    }

    /// Somebody serves after the Primary's end.
    fn succeed(&mut self, heir: Heir) {
        if heir != Heir::Same && self.promote_survivor(heir) {
            return;
        }
        self.revive(self.holder);
        self.serve_again();
    }

    /// Promotes the node that does not serve, its peer being silent. False: it may not, or does not.
    fn promote_survivor(&mut self, heir: Heir) -> bool {
        let survivor = 1 - self.holder;
        let has_noticed = || {
            let cstate = self.node(survivor).word("cstate");
            (!super::evidence::is_connected(&cstate)).then_some(())
        };
        wait::until(
            "the survivor to notice that its peer is gone",
            PERSON_LIMIT,
            has_noticed,
            String::new,
        );
        let complete = self.has_everything(survivor);
        let Some(floor) = self.floor(survivor) else {
            return false;
        };
        if !complete && heir != Heir::SurvivorAnyway {
            self.note("the survivor may lack something: not promoted");
            return false;
        }
        let words = self.words(survivor);
        let code = self.adm(survivor, &["primary", "r0"]);
        let refused = code != Some(0);
        assert!(
            !(refused && complete && words.dstate.starts_with("UpToDate/")),
            "{} is UpToDate and has everything, but was not promoted: {words:?}",
            self.node(survivor).name
        );
        if refused {
            return false;
        }
        if self.promoted(survivor, floor, Promotion::Alone) {
            return true;
        }
        self.note("the survivor's disk failed: demoted again");
        self.adm(survivor, &["secondary", "r0"]);
        false
    }

    fn order(&mut self, order: Order, hold_ms: u64) {
        self.tally.commands += 1;
        let (who, first, second) = match order {
            Order::Disconnect(who) => (who, "disconnect", "connect"),
            Order::DownUp => (Who::Secondary, "down", "up"),
            Order::Detach(who) => (who, "detach", "attach"),
            Order::PauseSync(who) => (who, "pause-sync", "resume-sync"),
            Order::Invalidate => return self.invalidate(1 - self.holder, "invalidate", hold_ms),
            Order::InvalidateRemote => {
                return self.invalidate(self.holder, "invalidate-remote", hold_ms);
            }
            Order::Adjust(who) => {
                self.adm(self.which(who), &["adjust", "r0"]);
                return World::pause(hold_ms);
            }
            Order::Switchover => return self.switch_over(),
            Order::DemoteAndPromote => return self.demote_and_promote(),
        };
        let node = self.which(who);
        self.adm(node, &[first, "r0"]);
        World::pause(hold_ms);
        self.adm(node, &[second, "r0"]);
    }

    /// The copy of the node that does not serve is given up.
    fn invalidate(&mut self, node: usize, word: &str, hold_ms: u64) {
        self.forgive();
        self.adm(node, &[word, "r0"]);
        World::pause(hold_ms);
    }

    fn demote(&mut self) -> bool {
        self.end_load(End::Orderly, Fate::Alive);
        self.adm(self.holder, &["secondary", "r0"]) == Some(0)
    }

    fn switch_over(&mut self) {
        let (old, new) = (self.holder, 1 - self.holder);
        if !self.demote() || !self.sees_peer(new) {
            return self.serve_again();
        }
        if self.adm(new, &["primary", "r0"]) != Some(0) {
            return self.serve_again();
        }
        assert!(
            self.node(old).word("role") != "Primary/Primary",
            "both are Primary"
        );
        self.promoted(new, Floor::Everything, Promotion::Switched);
    }

    /// Connected, and the last word of the peer has arrived: the peer is not Primary any more.
    fn sees_peer(&self, node: usize) -> bool {
        let words = self.words(node);
        super::evidence::is_connected(&words.cstate) && words.role == "Secondary/Secondary"
    }

    fn demote_and_promote(&mut self) {
        self.demote();
        self.serve_again();
    }

    /// A node is killed while a command of its own runs.
    fn kill_during(&mut self, who: Who, order: Order, ms: u64) {
        let node = self.which(who);
        let word = match order {
            Order::Disconnect(_) => "disconnect",
            Order::DownUp => "down",
            Order::Detach(_) => "detach",
            Order::PauseSync(_) => "pause-sync",
            Order::Adjust(_) => "adjust",
            Order::InvalidateRemote if who == Who::Primary => {
                self.forgive();
                "invalidate-remote"
            }
            Order::Invalidate if who == Who::Secondary => {
                self.forgive();
                "invalidate"
            }
            // A Primary is not made to give up its data.
            Order::Invalidate | Order::InvalidateRemote => "disconnect",
            Order::Switchover | Order::DemoteAndPromote if who == Who::Primary => {
                self.end_load(End::Orderly, Fate::Alive);
                "secondary"
            }
            Order::Switchover | Order::DemoteAndPromote => {
                if !self.demote() {
                    return self.serve_again();
                }
                "primary"
            }
        };
        self.tally.commands += 1;
        self.note(&format!("{}: {word}, and its end", self.node(node).name));
        let mut command = self.node(node).adm_begun(&[word, "r0"]);
        World::pause(ms);
        if who == Who::Primary {
            self.kill_holder();
        } else {
            self.kill_secondary();
        }
        self.end_command(&mut command);
        if who == Who::Primary || !self.is_loaded() {
            // A node that took a part of a promotion with it is no heir.
            self.revive(self.holder);
            self.serve_again();
        }
    }

    /// A command whose daemon died ends soon, with an error.
    fn end_command(&self, command: &mut std::process::Child) {
        let ended = || command.try_wait().expect("wait for a command");
        wait::until("the end of the command", PERSON_LIMIT, ended, String::new);
    }
}
