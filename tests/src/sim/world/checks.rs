//! What is looked at between events: whether nothing is under way, and what must be true of the disks then.

use tandem_replicator::RequestError;
use tandem_replicator::state::word::{ConnState, DiskState, Role, State};

use super::World;
use crate::sim::clients::Asked;
use crate::sim::node::{Node, VOLUME};
use crate::sim::pair::{nodes_of, pair_of, peer_of};
use crate::sim::stamp::SECTOR;
use crate::sim::trace::name;

/// The current UUID of metadata that were never used.
const JUST_CREATED: u64 = 4;

impl World {
    pub(super) fn two_primaries(&mut self, pair: usize) {
        let serves = |node: &Node| node.is_primary() && node.is_connected();
        if self.nodes_of_pair(pair).into_iter().all(serves) {
            self.fail("two Primaries are connected");
        }
    }

    /// Nothing is under way: no I/O, no bytes, no request.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        (0..self.pairs.len()).all(|pair| self.is_pair_idle(pair))
    }

    /// The same of one pair.
    #[must_use]
    pub fn is_pair_idle(&self, pair: usize) -> bool {
        nodes_of(pair)
            .into_iter()
            .all(|node| self.nodes[node].io.is_empty() && self.clients.in_flight(node) == 0)
            && self.net.is_quiet(pair)
    }

    /// All nodes are connected, UpToDate, and not in a resync.
    #[must_use]
    pub fn is_in_sync(&self) -> bool {
        (0..self.pairs.len()).all(|pair| self.is_pair_in_sync(pair))
    }

    /// The same of one pair.
    #[must_use]
    pub fn is_pair_in_sync(&self, pair: usize) -> bool {
        self.nodes_of_pair(pair).into_iter().all(|node| {
            node.state().is_some_and(|state| {
                state.conn == ConnState::Connected
                    && state.disk == DiskState::UpToDate
                    && state.pdsk == DiskState::UpToDate
            })
        })
    }

    /// If both nodes of a pair run with their disks, are apart and idle: each block that differs has its bit on one of them
    /// (docs/spec/state-machine.md 12.1 no. 19). True if that was looked at.
    pub fn check_bits_if_apart(&mut self, pair: usize) -> bool {
        let nodes = self.nodes_of_pair(pair);
        let apart = nodes.iter().all(|node| {
            node.status.as_ref().is_some_and(|status| {
                status.state.disk >= DiskState::Inconsistent
                    && !status.state.conn.is_connected()
                    && status
                        .uuids
                        .is_some_and(|[current, ..]| current & !1 != JUST_CREATED)
            })
        });
        if !apart || !self.is_pair_idle(pair) {
            return false;
        }
        let bytes = nodes.iter().filter_map(|node| node.status.as_ref());
        let end = bytes.map(|status| status.bytes / SECTOR).min().unwrap_or(0);
        let mut used: Vec<u64> = nodes[0].data.used(end).collect();
        used.extend(nodes[1].data.used(end));
        let missed = used.into_iter().find(|sector| {
            let [a, b] = nodes.map(|node| node.data.content(*sector));
            let is_marked = |node: &&Node| {
                let engine = node.engine.as_ref();
                engine.and_then(|engine| engine.is_out_of_sync(VOLUME, sector * SECTOR))
                    == Some(true)
            };
            a != b && !nodes.iter().any(is_marked)
        });
        if let Some(sector) = missed {
            let [a, b] = nodes.map(|node| format!("{:?}", node.data.content(sector)));
            let [one, other] = nodes_of(pair).map(name);
            self.fail(format!(
                "sector {sector} is {a} on {one} and {b} on {other}, and no bit says so"
            ));
        }
        true
    }

    /// A verify begins on the first of the two nodes: what failed before has no part in it. Two UpToDate disks are equal.
    pub(super) fn note_verify_begins(&mut self, node: usize, old: State, new: State) {
        let verifies = |state: State| matches!(state.conn, ConnState::VerifyS | ConnState::VerifyT);
        let other = self.nodes[peer_of(node)].state();
        if verifies(new) && !verifies(old) && !other.is_some_and(verifies) {
            self.pair_mut(node).disk_faults = !self.are_disks_well(pair_of(node));
        }
    }

    fn are_disks_well(&self, pair: usize) -> bool {
        let well = |node: &Node| node.fault.is_none() && node.is_up_to_date();
        self.nodes_of_pair(pair).into_iter().all(well)
    }

    /// Something happened that may fail requests: a state changed, a node died, a command was given, a disk failed.
    pub(super) fn note_trouble(&mut self, node: usize) {
        self.pair_mut(node).trouble = self.now;
    }

    /// A Primary that loses its disk or, without a good one, its link, may lose what was answered before: its next flush may say so.
    pub(super) fn note_debt(&mut self, node: usize, old: State, new: State) {
        let cut = old.conn.is_connected() && !new.conn.is_connected();
        let gone = old.disk == DiskState::UpToDate && new.disk != DiskState::UpToDate;
        let lost = gone || cut && new.disk != DiskState::UpToDate;
        if new.role != Role::Primary {
            self.owes_error[node] = None;
        } else if lost {
            self.owes_error[node] = Some(self.now);
        }
    }

    /// A request of a node was answered with an error.
    ///
    /// # Errors
    /// Since it was submitted nothing happened that could fail it: this node is Primary, connected, and one of the two disks is
    /// UpToDate; nothing is suspended, no state changed, no command was given, no disk failed.
    pub(super) fn check_error(
        &mut self,
        node: usize,
        asked: Asked,
        error: RequestError,
    ) -> Result<(), String> {
        // One that was under way when that happened fails for itself.
        if asked.flush
            && self.owes_error[node]
                .take_if(|at| *at <= asked.since)
                .is_some()
        {
            return Ok(());
        }
        let served = |state: State| {
            state.conn.is_connected()
                && !state.is_suspended()
                && (state.disk == DiskState::UpToDate || state.pdsk == DiskState::UpToDate)
        };
        let pair = self.nodes_of_pair(pair_of(node));
        let calm = pair.iter().all(|node| {
            node.state().is_some_and(served)
                && node.fault.is_none()
                && node.open_commands.is_empty()
        });
        // A peer whose handler local-io-error runs has not told yet that its disk is gone.
        let own = |state: State| state.disk == DiskState::UpToDate;
        let good = pair.iter().any(|node| node.state().is_some_and(own));
        let trouble = self.pair(node).trouble;
        if asked.since <= trouble || !calm || !good || !self.nodes[node].is_primary() {
            return Ok(());
        }
        Err(format!(
            "a {} on {} is answered with {error:?}, and there was no reason for that since it was submitted",
            if asked.flush { "flush" } else { "request" },
            name(node)
        ))
    }

    /// A verify of the whole device has ended on a node: each block that still holds garbage has its bit, and no block has one that
    /// never held any.
    pub(super) fn check_verified(&mut self, node: usize) {
        let Some(rotten) = &self.pair(node).rotten else {
            return;
        };
        let bad = &self.nodes[rotten.node].data;
        let engine = self.nodes[node].engine.as_ref();
        let is_marked = |sector: u64| {
            engine.and_then(|engine| engine.is_out_of_sync(VOLUME, sector * SECTOR)) == Some(true)
        };
        let missed = rotten
            .places
            .iter()
            .find(|sector| *bad.content(**sector) == rotten.garbage && !is_marked(**sector));
        if let Some(sector) = missed {
            let words = format!(
                "sector {sector} of {} is bad, and after a verify no bit of {} says so",
                name(rotten.node),
                name(node)
            );
            self.fail(words);
            return;
        }
        let end = self.nodes[node]
            .status
            .as_ref()
            .map_or(0, |at| at.bytes / SECTOR);
        let is_bad = |block: u64| rotten.places.range(block * 8..(block + 1) * 8).count() > 0;
        let wrong = (0..end.div_ceil(8)).find(|block| is_marked(block * 8) && !is_bad(*block));
        if let Some(block) = wrong.filter(|_| rotten.alone) {
            let words = format!(
                "after a verify {} has the bit of block {block}, where nothing differs",
                name(node)
            );
            self.fail(words);
        }
    }

    /// The nodes of each pair that is in sync and idle are compared. True if all were.
    pub fn compare_if_idle(&mut self) -> bool {
        let mut all = true;
        for pair in 0..self.pairs.len() {
            all &= self.compare_pair_if_idle(pair);
        }
        all
    }

    /// The same of one pair.
    pub fn compare_pair_if_idle(&mut self, pair: usize) -> bool {
        if !self.is_pair_in_sync(pair) || !self.is_pair_idle(pair) {
            return false;
        }
        let nodes = self.nodes_of_pair(pair);
        let [a, b] = nodes.map(|node| node.data.mark());
        let status = nodes[0].status.as_ref();
        let sectors = status.map_or(0, |status| status.bytes / 512);
        let known = &mut self.pairs[pair];
        let now = Some([a, b, known.state_changes, known.oracle.now()]);
        if known.compared == now {
            return true;
        }
        known.compared = now;
        if let Err(text) = known.oracle.check_equal(&self.nodes, sectors) {
            self.fail(text);
        }
        self.check_resynced(pair);
        true
    }
}
