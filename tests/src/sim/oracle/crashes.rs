//! What a node that dies, or loses its power, may have lost.

use tandem_replicator::Protocol;
use tandem_replicator::state::word::{DiskState, State};

use super::{NEVER_WRITTEN, Oracle, Write, merge};
use crate::sim::node::Node;
use crate::sim::pair::peer_of;
use crate::sim::stamp::Content;

impl Oracle {
    /// The only good copy of what the other node's clients wrote was in the cache of this node, which lost power, since the
    /// other node's own disk failed after it had answered: two failures, of which its next flush tells. What survived by
    /// chance is durable from here on; no later flush makes durable what is lost.
    pub(super) fn lose_the_last_copy(&mut self, node: usize, on: &Node) {
        // A node that was promoted alone has gone its own way: what the other one's clients see there from then on is refused.
        if self.views[peer_of(node)].up_to_date || !self.same_history() {
            return;
        }
        let dark = self.views[node].went_dark;
        let (lost, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.views[peer_of(node)].unflushed)
                .into_iter()
                .partition(|(_, id)| self.writes[*id as usize].submitted < dark);
        self.views[peer_of(node)].unflushed = later;
        let tick = self.tick();
        for (_, id) in lost {
            let write = &self.writes[id as usize];
            for sector in write.first..write.first + write.sectors {
                let other = &self.views[peer_of(node)];
                if self.shows_older(other.history, sector, on.data.content(sector), id) {
                    // What is written from now on may be there without it.
                    self.writes[id as usize].cache_lost.get_or_insert(tick);
                }
                let other = &self.views[peer_of(node)];
                if other.client.get(&sector).is_none_or(|seen| *seen != id) {
                    continue;
                }
                let content = on.data.content(sector);
                if self.allowed(other.history, sector, content, id).is_ok() {
                    let view = &mut self.views[node];
                    for floor in [&mut view.live, &mut view.kept, &mut view.durable] {
                        floor.insert(sector, id);
                    }
                    continue;
                }
                let durable = &self.views[node].durable;
                let floor = durable.get(&sector).copied().unwrap_or(NEVER_WRITTEN);
                let other = &mut self.views[peer_of(node)];
                other.owes_error = true;
                other.client.insert(sector, floor);
            }
        }
    }

    /// This node has no good disk of its own and loses its peer, or the link to it: under A and B the answers to what it wrote before its
    /// disk was lost promised no more than that (docs/durability.md, "When a disk fails"). What it wrote without a disk is on the peer's.
    /// A demoted node has nothing on its way any more, and who went his own way does not lose what another history had.
    pub(super) fn lose_what_was_on_its_way(&mut self, node: usize, peer: &Node) {
        if !self.views[node].primary || !self.same_history() {
            return;
        }
        let tick = self.tick();
        let history = self.views[node].history;
        let mut client = std::mem::take(&mut self.views[node].client);
        for (sector, id) in &mut client {
            let kept = self.views[peer_of(node)].kept.get(sector).copied();
            let floor = kept.unwrap_or(NEVER_WRITTEN);
            let lost = &self.writes[*id as usize];
            if lost.remote_only || self.writes[floor as usize].submitted >= lost.submitted {
                continue;
            }
            // Whoever is Primary next has no more either, and no more has to be there for what is written from now on.
            let acknowledged = &mut self.histories[history].acknowledged;
            if acknowledged.get(sector) == Some(id) {
                acknowledged.insert(*sector, floor);
            }
            self.histories[history].flushed.remove(sector);
            // Its own disk, which is not the good one any more, may have it.
            let view = &mut self.views[node];
            for own in [&mut view.live, &mut view.kept, &mut view.durable] {
                let has = own.get(sector).copied().unwrap_or(NEVER_WRITTEN);
                // What the peer has flushed may still be in the cache of its own disk.
                if self.writes[has as usize].submitted > self.writes[floor as usize].submitted {
                    own.insert(*sector, floor);
                }
            }
            for gone in self.missing(history, *sector, floor, peer) {
                self.writes[gone as usize].cache_lost.get_or_insert(tick);
            }
            *id = floor;
        }
        self.views[node].client = client;
    }

    /// Under A and B: the process, or the disk, of this node is gone, and with it what had been received and not written yet. Its peer, if that
    /// is a Primary without a good disk, has lost what was on its way, and owes an error.
    pub(super) fn forget_what_it_only_received(&mut self, node: usize, on: &Node) {
        if self.protocol == Protocol::C || self.views[peer_of(node)].up_to_date {
            return;
        }
        let view = &self.views[peer_of(node)];
        let is_lost = view.primary
            && self.same_history()
            && view.client.iter().any(|(sector, id)| {
                let content = on.data.content(*sector);
                !self.writes[*id as usize].remote_only
                    && self.allowed(view.history, *sector, content, *id).is_err()
            });
        self.views[peer_of(node)].owes_error |= is_lost;
        self.lose_what_was_on_its_way(peer_of(node), on);
    }

    /// The node `former` died as Primary, or was parted from its peer, and has no good disk when one of the two is promoted: clients go on
    /// with what the other one, `keeper`, has on its disk, as if that had been promoted alone. Under A and B it need not have what was on
    /// its way then.
    pub(super) fn take_over_without_what_was_on_its_way(&mut self, former: usize, keeper: &Node) {
        let parted = std::mem::take(&mut self.views[former].parted);
        if self.protocol == Protocol::C || parted == 0 || !self.same_history() {
            return;
        }
        let tick = self.tick();
        let history = self.views[former].history;
        let on_its_way = |write: &Write| {
            write.acknowledged && !write.remote_only && write.ended.is_some_and(|at| at <= parted)
        };
        for (sector, id) in self.histories[history].acknowledged.clone() {
            let has = self.views[peer_of(former)].live.get(&sector).copied();
            let floor = has.unwrap_or(NEVER_WRITTEN);
            if !on_its_way(&self.writes[id as usize]) || !self.is_before(floor, id, history) {
                continue;
            }
            self.histories[history].acknowledged.insert(sector, floor);
            self.histories[history].flushed.remove(&sector);
            let view = &mut self.views[former];
            for own in [&mut view.live, &mut view.kept, &mut view.durable] {
                let has = own.get(&sector).copied().unwrap_or(NEVER_WRITTEN);
                if self.writes[has as usize].submitted > self.writes[floor as usize].submitted {
                    own.insert(sector, floor);
                }
            }
            for gone in self.missing(history, sector, floor, keeper) {
                if on_its_way(&self.writes[gone as usize]) {
                    self.writes[gone as usize].cache_lost.get_or_insert(tick);
                }
            }
        }
    }

    /// This node is Primary no longer. What it was told to be written is on its own disk, which is good; else its peer has confirmed it
    /// (docs/durability.md, "Order on disk", 12): nothing is on its way.
    pub(super) fn demoted(&mut self, node: usize, state: State) {
        let on_peer_alone = state.disk != DiskState::UpToDate
            && state.conn.is_connected()
            && state.pdsk == DiskState::UpToDate
            && self.same_history();
        if !on_peer_alone {
            return;
        }
        self.views[node].unflushed.clear();
        let client = self.views[node].client.clone();
        let peer = &mut self.views[peer_of(node)];
        for floor in [&mut peer.live, &mut peer.kept, &mut peer.durable] {
            merge(&self.writes, floor, &client);
        }
    }

    /// Answered writes of this sector, younger than this one, that the disk of this node lacks.
    fn missing(&self, history: usize, sector: u64, than: u64, on: &Node) -> Vec<u64> {
        let versions = self.histories[history].sectors.get(&sector);
        let content = on.data.content(sector);
        let since = self.writes[than as usize].submitted;
        let younger = versions.into_iter().flatten().map(|version| version.write);
        let missing = younger.filter(|id| {
            let write = &self.writes[*id as usize];
            let counts = write.acknowledged && !write.remote_only && write.submitted > since;
            counts && self.shows_older(history, sector, content, *id)
        });
        missing.collect()
    }

    /// From here on this node has what its own disk holds, and not what it wrote, as a Primary without it, on its peer's.
    pub(super) fn return_to_its_disk(&mut self, node: usize) {
        let view = &mut self.views[node];
        if let Some(history) = view.on_disk.take() {
            view.history = history;
        }
    }

    /// A promotion that was cut short, or under which nobody wrote, leaves no trace that counts.
    pub(super) fn forget_empty_history(&mut self, node: usize, on: &Node) {
        let history = self.views[node].history;
        let Some(parent) = self.histories[history].parent.clone() else {
            return;
        };
        // Without a disk and a peer nothing was written, whatever was submitted, unless it was held back until a disk came.
        let is_there = |id: usize| {
            let write = &self.writes[id];
            (write.first..write.first + write.sectors).any(|sector| {
                let content = on.data.content(sector);
                let found = self
                    .found_at_fork(history, sector)
                    .unwrap_or(&Content::Zero);
                let versions = self.histories[history].sectors.get(&sector);
                let mut versions = versions.into_iter().flatten();
                // Zeroes may be older.
                content != found
                    && versions
                        .any(|version| version.write == id as u64 && version.content == *content)
            })
        };
        let written = (self.writes.iter().enumerate()).any(|(id, write)| {
            let counts = write.acknowledged || !write.remote_only || is_there(id);
            write.history == history && write.sectors > 0 && counts
        });
        let goes_on = self.histories.iter().any(|young| {
            let parent = young.parent.as_ref();
            parent.is_some_and(|parent| parent.history == history)
        });
        let forced = self.histories[history].forced;
        if written || goes_on || forced || self.views[peer_of(node)].history == history {
            return;
        }
        let view = &mut self.views[node];
        view.history = parent.history;
        // What it began with is what its parent has.
        view.durable.retain(|sector, id| {
            let forgotten = self.writes[*id as usize].history == history;
            match parent.floor.get(sector) {
                Some(before) if forgotten => *id = *before,
                _ => return !forgotten,
            }
            true
        });
        view.live = parent.floor.clone();
        view.kept = parent.floor;
        view.lost_power |= parent.lost_power;
        view.alone |= parent.excused;
    }

    /// The process of a node died, or its host lost power.
    pub fn died(&mut self, node: usize, power: bool, on: &Node) {
        let tick = self.tick();
        if power {
            self.views[node].went_dark = tick;
            self.lose_the_last_copy(node, on);
        }
        self.forget_what_it_only_received(node, on);
        self.return_to_its_disk(node);
        self.forget_empty_history(node, on);
        let view = &mut self.views[node];
        let unflushed = std::mem::take(&mut view.unflushed);
        view.left_in_cache
            .extend(unflushed.into_iter().map(|(_, id)| id));
        if power {
            for id in std::mem::take(&mut view.left_in_cache) {
                self.writes[id as usize].cache_lost.get_or_insert(tick);
            }
        }
        let view = &mut self.views[node];
        view.died = tick;
        if view.primary && view.linked {
            view.parted = tick;
        }
        view.linked = false;
        view.client.clear();
        if power {
            view.kept = view.durable.clone();
            view.lost_power = true;
        }
        view.live = view.kept.clone();
        view.promised = None;
        view.primary = false;
        view.up_to_date = false;
        view.finished = false;
        view.owes_error = false;
    }
}
