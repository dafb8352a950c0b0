//! What a person does after something went wrong: by the words of the runbook, looking only at what the nodes say.

use std::time::{Duration, Instant};

use crate::e2e::node::FileLimit;
use crate::e2e::proxy::{Flow, Passage};

use super::ledger::{Floor, Order};
use super::load::End;
use super::world::{Fate, Promotion, World};

/// How long anything may take that a person waits for.
pub(super) const PERSON_LIMIT: Duration = Duration::from_secs(240);

/// A person does not type the same command again and again.
const PATIENCE: Duration = Duration::from_secs(3);

impl World<'_> {
    /// The daemon runs again, and its resource is up.
    pub(super) fn revive(&mut self, node: usize) {
        if self.node(node).pid().is_some() {
            return;
        }
        // A command may have started another daemon.
        self.node_mut(node).kill();
        self.node_mut(node).start_limitable();
        self.adm(node, &["up", "r0"]);
    }

    /// The node that served serves again: alone if its disk has everything, otherwise with its peer's help.
    pub(super) fn serve_again(&mut self) {
        let start = Instant::now();
        let holder = self.holder;
        if !self.has_everything(holder) {
            self.note("the disk of the node that serves may lack something: its peer first");
            self.heal_link();
            self.repair_nodes_only();
        }
        loop {
            let words = self.words(holder);
            let good = words.dstate.starts_with("UpToDate/") || words.dstate.ends_with("/UpToDate");
            let alone_is_enough = self.has_everything(holder);
            let may = alone_is_enough || super::evidence::is_connected(&words.cstate);
            if words.role.starts_with("Primary/") && may {
                break;
            }
            if good && may && self.adm(holder, &["primary", "r0"]) == Some(0) {
                break;
            }
            assert!(
                start.elapsed() < PERSON_LIMIT,
                "{} cannot be promoted again within {PERSON_LIMIT:?}: {:?}, its peer {:?}",
                self.node(holder).name,
                words,
                self.words(1 - holder)
            );
            if start.elapsed() > PERSON_LIMIT / 24 {
                self.heal_link();
                self.repair_nodes_only();
            }
            self.help(1 - holder);
            self.help(holder);
            World::pause(400);
        }
        self.promoted(holder, Floor::Everything, Promotion::Again);
    }

    /// The link carries everything at once.
    pub(super) fn heal_link(&self) {
        for proxy in self.pair.proxies.as_ref().expect("a proxied pair") {
            for flow in [Flow::In, Flow::Out] {
                proxy.block(flow, Passage::Free);
            }
            proxy.delay(Duration::ZERO);
            proxy.throttle(0);
            proxy.heal();
        }
    }

    /// Everybody lives, and there is room on the disks.
    fn repair_nodes_only(&mut self) {
        for node in 0..2 {
            self.thaw(node);
            self.revive(node);
            self.node(node).limit_files(FileLimit::None);
        }
    }

    /// Everybody lives, somebody serves.
    pub(super) fn repair_nodes(&mut self) {
        self.repair_nodes_only();
        for node in 0..2 {
            if self.node(node).word("dstate").starts_with("Diskless/") {
                self.tally.detached += 1;
                self.adm(node, &["attach", "r0"]);
            }
        }
        if !self.is_loaded() {
            self.serve_again();
        }
    }

    /// Both are connected with good data, by whatever commands that takes.
    pub(super) fn repair_everything(&mut self) {
        self.heal_link();
        self.repair_nodes();
        let start = Instant::now();
        let mut typed = [None; 2];
        loop {
            let mark = self.mark();
            if self.is_synced() {
                self.note("both are connected with good data");
                return self.synced_at(mark);
            }
            assert!(
                start.elapsed() < PERSON_LIMIT,
                "the nodes do not come together within {PERSON_LIMIT:?}: alpha {:?}, bravo {:?}; alpha says\n{}bravo says\n{}",
                self.words(0),
                self.words(1),
                self.pair.alpha.explained(),
                self.pair.bravo.explained()
            );
            for node in [1 - self.holder, self.holder] {
                let rested = typed[node].is_none_or(|at: Instant| at.elapsed() > PATIENCE);
                if rested && self.help(node) {
                    typed[node] = Some(Instant::now());
                }
            }
            World::pause(100);
        }
    }

    /// Types what a node's state asks for; false: nothing.
    fn help(&mut self, node: usize) -> bool {
        let serves = node == self.holder;
        let words = self.words(node);
        if words.cstate == "Unconfigured" || words.cstate.is_empty() {
            self.adm(node, &["up", "r0"]);
        } else if !serves && words.role.starts_with("Primary/") {
            self.adm(node, &["secondary", "r0"]);
        } else if words.dstate.starts_with("Diskless/") {
            self.adm(node, &["attach", "r0"]);
        } else if words.cstate.starts_with("PausedSync") {
            self.adm(node, &["resume-sync", "r0"]);
        } else if words.cstate == "StandAlone" {
            if serves || !self.is_any_split() {
                self.adm(node, &["connect", "r0"]);
            } else {
                self.discard(node);
            }
        } else if !serves && self.is_any_split() && words.cstate == "WFConnection" {
            self.adm(node, &["disconnect", "r0"]);
            self.discard(node);
        } else {
            return false;
        }
        true
    }

    fn is_any_split(&self) -> bool {
        self.is_split(0) || self.is_split(1)
    }

    fn discard(&self, node: usize) {
        self.adm(node, &["connect", "--discard-my-data", "r0"]);
    }

    /// The load ends, and both disks must become equal.
    pub(super) fn stop_and_compare(&mut self) {
        self.end_load(End::Orderly, Fate::Alive);
        self.repair_everything_but_load();
        self.compare();
        let found = self
            .read(self.holder, Promotion::Again)
            .expect("a node that was not just promoted alone");
        let judgement = self.ledger().judge(&found, Floor::Everything, Order::Free);
        assert!(
            judgement.faults.is_empty(),
            "after repair, {} shows what it must not: {:#?}",
            self.node(self.holder).name,
            judgement.faults
        );
        self.ledger().settle(&found);
    }

    /// The load may have ended with errors of a link that broke again: once more.
    fn repair_everything_but_load(&mut self) {
        let start = Instant::now();
        while !self.is_synced() {
            assert!(
                start.elapsed() < PERSON_LIMIT,
                "healed nodes do not stay together: alpha {:?}, bravo {:?}",
                self.words(0),
                self.words(1)
            );
            World::pause(100);
        }
    }

    /// Everything is repaired, compared, taken down and compared again.
    pub fn finish(&mut self) {
        self.repair_everything();
        self.stop_and_compare();
        let holder = self.holder;
        assert_eq!(self.adm(holder, &["secondary", "r0"]), Some(0));
        self.pair.down();
        let bytes = self.pair.device_bytes();
        self.pair.compare_disks(0, bytes);
    }
}
