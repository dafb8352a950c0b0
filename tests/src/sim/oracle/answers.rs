//! What clients submit and are told, and what a node must have from then on.

use std::ops::Range;

use tandem_replicator::Protocol;
use tandem_replicator::state::word::{DiskState, State};

use super::{NEVER_WRITTEN, Oracle, Version, Write, merge, raise};
use crate::sim::node::Node;
use crate::sim::pair::peer_of;
use crate::sim::stamp::{Content, UNITS};
use crate::sim::trace::name;

impl Oracle {
    /// A client of this node submits a write (or zeroes).
    pub fn submit(&mut self, node: usize, first: u64, sectors: u64, zeroes: bool) -> u64 {
        let id = self.next_write();
        let history = self.views[node].history;
        let submitted = self.tick();
        self.writes.push(Write {
            first,
            sectors,
            submitted,
            ended: None,
            acknowledged: false,
            history,
            cache_lost: None,
            remote_only: !self.views[node].up_to_date,
            cut: None,
        });
        for sector in first..first + sectors {
            let content = if zeroes {
                Content::Zero
            } else {
                Content::Stamp(id)
            };
            let versions = self.histories[history].sectors.entry(sector).or_default();
            versions.push(Version { write: id, content });
        }
        id
    }

    /// The write that was submitted last goes out as two requests that meet at this unit of the device.
    pub fn cut(&mut self, unit: u64) {
        if let Some(write) = self.writes.last_mut() {
            write.cut = Some(unit);
        }
    }

    /// The write was answered with success by this node, which then was in this state. `peer`: the other node.
    pub fn acknowledge(
        &mut self,
        node: usize,
        id: u64,
        durable: bool,
        after: Option<State>,
        peer: &Node,
    ) {
        let tick = self.tick();
        let write = &mut self.writes[id as usize];
        write.ended = Some(tick);
        write.acknowledged = true;
        let history = write.history;
        raise(&self.writes, &mut self.histories[history].acknowledged, id);
        let Some(state) = after else { return };
        let own = state.disk == DiskState::UpToDate;
        let connected = state.conn.is_connected();
        // Frozen by suspend-io until the link was gone: without a disk of its own that has it, only the peer's can be meant.
        let thawed = !own && !connected && self.same_history();
        let peer_counts = thawed || connected && state.pdsk == DiskState::UpToDate;
        let still_has =
            self.views[peer_of(node)].still_has(&self.writes[id as usize], self.protocol);
        if peer_counts && connected && !still_has && self.protocol == Protocol::C {
            // Submitted before that node lost its power; but what suspend-io had held back was sent after its return.
            for sector in self.found(peer_of(node), peer, id) {
                let view = &mut self.views[peer_of(node)];
                view.live.insert(sector, id);
                view.kept.insert(sector, id);
            }
        }
        let peer = peer_counts && still_has;
        let writes = &self.writes;
        raise(writes, &mut self.views[node].client, id);
        if own {
            raise(writes, &mut self.views[node].live, id);
            raise(writes, &mut self.views[node].kept, id);
        } else if let Some(promise) = &mut self.views[node].promised {
            raise(writes, &mut promise.floor, id);
        }
        let other = &mut self.views[peer_of(node)];
        if peer {
            raise(writes, &mut other.live, id);
        } else if connected && state.pdsk == DiskState::Failed {
            // It may have failed after it had done the write.
            other.perhaps.push(id);
        }
        if self.protocol == Protocol::C {
            if peer {
                raise(writes, &mut other.kept, id);
            }
            if let Some(promise) = other.promised.as_mut().filter(|_| connected) {
                raise(writes, &mut promise.floor, id);
            } else if state.conn.is_resync() && other.finished {
                // The target has finished, and this node has not heard of it yet.
                raise(writes, &mut other.live, id);
                raise(writes, &mut other.kept, id);
            }
        }
        if !own && !connected {
            self.had_it_when_it_forked(peer_of(node), id);
        }
        let remote_only = self.writes[id as usize].remote_only && !own;
        if !own && !remote_only {
            self.views[node].in_doubt.push(id);
        }
        if durable {
            self.make_durable(node, id, state);
            return;
        }
        if remote_only {
            // On the peer alone: its own disk may become UpToDate with this write still in the cache.
            self.make_durable_on_peer(node, id, state);
        }
        self.views[node].unflushed.push((tick, id));
    }

    /// A write that suspend-io froze is answered after the node that had done it was promoted alone: that went its own way with it.
    fn had_it_when_it_forked(&mut self, node: usize, id: u64) {
        let write = &self.writes[id as usize];
        let (history, sectors) = (write.history, write.first..write.first + write.sectors);
        let fork = self.views[node].history;
        let Some(parent) = &self.histories[fork].parent else {
            return;
        };
        if parent.history != history {
            return;
        }
        let found = |sector: &u64| {
            let content = self.found_at_fork(fork, *sector);
            content.is_some_and(|content| self.allowed(history, *sector, content, id).is_ok())
        };
        let had = sectors.filter(found).map(|sector| (sector, id)).collect();
        if let Some(parent) = &mut self.histories[fork].parent {
            merge(&self.writes, &mut parent.floor, &had);
        }
    }

    /// The write was answered with an error, or its node died first: it may be there or not.
    pub fn leave_open(&mut self, id: u64) {
        self.open.insert(id);
    }

    /// A flush begins: give this number back to [`Oracle::flushed`].
    pub fn flush_submitted(&mut self) -> u64 {
        self.tick()
    }

    /// A flush was answered with an error.
    pub fn flush_failed(&mut self, node: usize) {
        let tick = self.tick();
        let view = &mut self.views[node];
        view.owes_error = false;
        if view.up_to_date || self.protocol == Protocol::C {
            return;
        }
        // Under A and B this tells that the peer may lack what was on its way (docs/durability.md, "When a disk fails").
        for (_, id) in std::mem::take(&mut view.unflushed) {
            let write = &mut self.writes[id as usize];
            if !write.remote_only {
                write.cache_lost.get_or_insert(tick);
            }
        }
    }

    /// A flush was answered with success.
    ///
    /// # Errors
    /// Answered writes were lost before it, and nobody was told.
    pub fn flushed(
        &mut self,
        node: usize,
        submitted: u64,
        after: Option<State>,
    ) -> Result<(), String> {
        if std::mem::take(&mut self.views[node].owes_error) {
            return Err(format!(
                "a flush on {} succeeds, but writes answered before it were lost with its disk and its peer's cache",
                name(node)
            ));
        }
        let Some(state) = after else { return Ok(()) };
        let unflushed = std::mem::take(&mut self.views[node].unflushed);
        let (covered, left): (Vec<_>, Vec<_>) =
            unflushed.into_iter().partition(|(at, _)| *at < submitted);
        self.views[node].unflushed = left;
        for (_, id) in covered {
            self.make_durable(node, id, state);
        }
        Ok(())
    }

    fn make_durable(&mut self, node: usize, id: u64, state: State) {
        let writes = &self.writes;
        let history = writes[id as usize].history;
        raise(writes, &mut self.histories[history].flushed, id);
        if state.disk == DiskState::UpToDate {
            raise(writes, &mut self.views[node].durable, id);
        } else if let Some(promise) = &mut self.views[node].promised {
            raise(writes, &mut promise.durable, id);
        }
        self.make_durable_on_peer(node, id, state);
    }

    /// What the peer is said to have durably: under C with every flush and FUA, under A and B where it alone has it (docs/durability.md,
    /// "FLUSH" and "When a disk fails").
    fn make_durable_on_peer(&mut self, node: usize, id: u64, state: State) {
        if !state.conn.is_connected() {
            return;
        }
        let writes = &self.writes;
        let other = &mut self.views[peer_of(node)];
        let same = other.history == writes[id as usize].history;
        let on_peer_alone = state.disk != DiskState::UpToDate && same;
        if self.protocol != Protocol::C && !on_peer_alone {
            return;
        }
        if state.pdsk == DiskState::UpToDate {
            raise(writes, &mut other.durable, id);
            if same {
                // Also if its node has died since it said so.
                raise(writes, &mut other.kept, id);
                raise(writes, &mut other.live, id);
            }
        }
        if self.protocol != Protocol::C {
            return;
        }
        if let Some(promise) = &mut other.promised {
            raise(writes, &mut promise.durable, id);
        } else if state.conn.is_resync() && other.finished {
            raise(writes, &mut other.durable, id);
        }
    }

    /// What a read of these sectors that is submitted now must not be older than.
    #[must_use]
    pub fn read_floor(&self, node: usize, first: u64, sectors: u64) -> Vec<u64> {
        let client = &self.views[node].client;
        (first..first + sectors)
            .map(|sector| client.get(&sector).copied().unwrap_or(NEVER_WRITTEN))
            .collect()
    }

    /// A read of these units of the device was answered, with these contents of the sectors that it touches.
    ///
    /// # Errors
    /// It shows what was never written there, or what had been overwritten before it was submitted.
    pub fn check_read(
        &self,
        node: usize,
        units: Range<u64>,
        floor: &[u64],
        contents: &[Content],
    ) -> Result<(), String> {
        let history = self.views[node].history;
        let per_sector = UNITS as u64;
        let first = units.start / per_sector;
        for (sector, (floor, content)) in (first..).zip(floor.iter().zip(contents)) {
            let from = units.start.max(sector * per_sector) - sector * per_sector;
            let to = units.end.min((sector + 1) * per_sector) - sector * per_sector;
            self.allowed_part(history, sector, from as usize..to as usize, content, *floor)
                .map_err(|why| format!("a read on {} is wrong: {why}", name(node)))?;
        }
        Ok(())
    }
}
