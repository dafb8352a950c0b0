//! Histories: when one begins, who takes over that of another, and whether anything acknowledged is lost by that.

use tandem_replicator::Protocol;
use tandem_replicator::state::word::{ConnState, DiskState, Role, State};

use super::{Floor, History, NEVER_WRITTEN, Oracle, Parent, Promise, Version, View, Write, merge};
use crate::sim::node::Node;
use crate::sim::pair::peer_of;
use crate::sim::stamp::SECTOR;
use crate::sim::trace::name;

impl Oracle {
    /// Does this node have everything that was acknowledged in the youngest history?
    #[must_use]
    pub fn is_current(&self, node: usize) -> bool {
        let view = &self.views[node];
        let other = &self.views[peer_of(node)];
        // The other node's history may not go on where this one's ended.
        let same = view.history == other.history || self.descends(view.history, other.history);
        let acknowledged = &self.histories[view.history].acknowledged;
        same && self
            .dominates(&view.live, acknowledged, view.history)
            .is_ok()
    }

    /// Are the two nodes of one history, as far as acknowledged writes go?
    #[must_use]
    pub fn same_history(&self) -> bool {
        let [one, other] = self.views.both();
        one.history == other.history
    }

    /// Does this node lack something that was acknowledged and that the other one has?
    #[must_use]
    pub fn lacks(&self, node: usize) -> bool {
        let (own, other) = (&self.views[node], &self.views[peer_of(node)]);
        self.dominates(&own.live, &other.live, own.history).is_err()
    }

    fn descends(&self, young: usize, old: usize) -> bool {
        let mut at = young;
        while let Some(parent) = &self.histories[at].parent {
            at = parent.history;
            if at == old {
                return true;
            }
        }
        false
    }

    fn dominates(&self, have: &Floor, need: &Floor, history: usize) -> Result<(), String> {
        for (sector, need) in need {
            let have = have.get(sector).copied().unwrap_or(NEVER_WRITTEN);
            if self.is_before(have, *need, history) {
                return Err(format!(
                    "sector {sector}: has {}, lacks {}",
                    self.describe(have),
                    self.describe(*need)
                ));
            }
        }
        Ok(())
    }

    /// A node's state changed.
    ///
    /// # Errors
    /// What must never be, or a node that takes over data which it must not have lost.
    pub fn state_changed(
        &mut self,
        node: usize,
        old: State,
        new: State,
        nodes: &[Node],
    ) -> Result<(), String> {
        let tick = self.tick();
        if old.role == Role::Primary && new.role != Role::Primary {
            self.demoted(node, new);
        }
        let view = &mut self.views[node];
        view.up_to_date = new.disk == DiskState::UpToDate;
        // A disk of its own that has everything makes good what the peer lost; a demotion ends what it told its clients.
        view.owes_error &= !view.up_to_date && new.role == Role::Primary;
        let failed = old.disk >= DiskState::Inconsistent && new.disk <= DiskState::Failed;
        view.failed = new.disk <= DiskState::Failed;
        view.failed_as_primary |= failed && new.role == Role::Primary;
        if failed && self.protocol != Protocol::C {
            // What its process had received and not written yet never reaches this disk.
            view.live = view.kept.clone();
            self.forget_what_it_only_received(node, &nodes[node]);
        }
        if failed && new.role == Role::Primary && old.conn.is_connected() {
            self.fail_after_the_peer(node, nodes);
        }
        let attaching = matches!(old.disk, DiskState::Attaching | DiskState::Negotiating);
        if attaching && new.disk >= DiskState::Inconsistent && new.disk != DiskState::Negotiating {
            let resync = new.conn.is_connected() && new.disk != DiskState::UpToDate;
            if !resync {
                self.return_to_its_disk(node);
            }
            let failed = std::mem::take(&mut self.views[node].failed_as_primary);
            if failed && new.role == Role::Secondary {
                // The generation of its promotion need not have reached the disk before that failed.
                self.forget_empty_history(node, &nodes[node]);
            }
            self.find_at_attach(node, &nodes[node]);
            // An attach flushes what was found.
            let view = &mut self.views[node];
            view.durable = view.live.clone();
            view.left_in_cache.clear();
        }
        if new.role == Role::Primary && new.conn.is_connected() && new.peer == Role::Primary {
            return Err(format!("{} is Primary and sees a Primary", name(node)));
        }
        let cut = old.conn.is_connected() && !new.conn.is_connected();
        let view = &mut self.views[node];
        view.linked = new.conn.is_connected();
        if cut && old.role == Role::Primary {
            view.parted = tick;
        } else if new.role != Role::Primary && old.role == Role::Primary && !cut && view.linked {
            // The peer has it durably (docs/durability.md, "Order on disk", 12).
            view.parted = 0;
        }
        if cut && new.disk != DiskState::UpToDate && self.protocol == Protocol::A {
            self.lose_what_was_on_its_way(node, &nodes[peer_of(node)]);
        }
        self.views[node].primary = new.role == Role::Primary;
        let becomes_source = |state: State| {
            matches!(
                state.conn,
                ConnState::WFBitMapS
                    | ConnState::StartingSyncS
                    | ConnState::SyncSource
                    | ConnState::PausedSyncS
            )
        };
        if becomes_source(new) && !becomes_source(old) {
            self.promise(node);
        }
        // A node without its disk, or with one that is half resynced, has shown nothing of what it had.
        let without_resync = old.conn == ConnState::WFReportParams
            && new.conn == ConnState::Connected
            && new.disk == DiskState::UpToDate;
        if without_resync || becomes_source(new) {
            // Its data were wanted after all: what a person gave up is for the connection that was meant.
            self.views[node].discard = false;
        }
        let forced = old.disk < DiskState::UpToDate && new.disk == DiskState::UpToDate;
        if new.role == Role::Primary && old.role != Role::Primary {
            return self.promoted(node, new, forced, tick, nodes);
        }
        let was_target = matches!(
            old.conn,
            ConnState::SyncTarget | ConnState::PausedSyncT | ConnState::WFSyncUUID
        );
        if forced && was_target {
            return self.adopted(node, new.role, &nodes[node]);
        }
        Ok(())
    }

    /// The disk of a Primary failed before it saw that its peer had lost power, or its disk, too: the same two failures in the other order.
    fn fail_after_the_peer(&mut self, node: usize, nodes: &[Node]) {
        let peer = peer_of(node);
        if self.views[peer].lost_power {
            self.lose_the_last_copy(peer, &nodes[peer]);
        }
        if self.views[peer].failed {
            self.forget_what_it_only_received(peer, &nodes[peer]);
        }
    }

    /// A disk that failed after it had done a write, and before that was answered, has it all the same: what an attach finds there must
    /// not be lost from then on.
    fn find_at_attach(&mut self, node: usize, on: &Node) {
        for id in std::mem::take(&mut self.views[node].in_doubt) {
            for sector in self.found(node, on, id) {
                let view = &mut self.views[node];
                view.live.insert(sector, id);
                view.kept.insert(sector, id);
            }
        }
        for id in std::mem::take(&mut self.views[node].perhaps) {
            for sector in self.found(node, on, id) {
                self.views[node].live.insert(sector, id);
            }
        }
    }

    /// Sectors of a write that are newer on this disk than what it was known to have.
    pub(super) fn found(&self, node: usize, on: &Node, id: u64) -> Vec<u64> {
        let view = &self.views[node];
        let write = &self.writes[id as usize];
        let newer = |sector: &u64| {
            let has = view.live.get(sector).copied().unwrap_or(NEVER_WRITTEN);
            let content = on.data.content(*sector);
            self.is_before(has, id, view.history)
                && self.allowed(view.history, *sector, content, id).is_ok()
        };
        let sectors = write.first..write.first + write.sectors;
        sectors.filter(newer).collect()
    }

    /// This node begins to be the source of a resync.
    fn promise(&mut self, node: usize) {
        let made = self.tick();
        let view = &self.views[node];
        let excused = view.lost_power;
        let promise = Promise {
            made,
            history: view.history,
            floor: view.live.clone(),
            durable: view.durable.clone(),
            excused,
            alone: view.alone,
        };
        self.views[peer_of(node)].promised = Some(promise);
        self.views[peer_of(node)].finished = false;
    }

    /// A resync has ended on its target: it has what its source had.
    fn adopted(&mut self, node: usize, role: Role, on: &Node) -> Result<(), String> {
        let Some(promise) = self.views[node].promised.take() else {
            return Err(format!(
                "{} says that a resync has ended, but its peer never was a source",
                name(node)
            ));
        };
        self.may_adopt(node, &promise, on).map_err(|why| {
            format!(
                "{} became target of a resync that costs acknowledged writes: {why}",
                name(node)
            )
        })?;
        let source = &mut self.views[peer_of(node)];
        source.alone &= !promise.alone;
        if promise.excused && source.history == promise.history {
            // What a crashed Primary had not flushed is gone for good, and legally so.
            let once = source.went_dark < promise.made;
            source.lost_power &= !once;
            self.histories[promise.history].acknowledged = promise.floor.clone();
            for write in &mut self.writes {
                let lost = write.cache_lost.is_some_and(|at| once || at < promise.made);
                if write.history == promise.history && lost {
                    // On both disks now: it may be missing beside whatever its cache has kept.
                    write.cache_lost = Some(0);
                }
            }
        }
        let discard = self.views[node].discard;
        let source = &self.views[peer_of(node)];
        if discard && source.history == promise.history {
            // What only this node had acknowledged was given up by a person, also what came before it went its own way.
            self.histories[promise.history].acknowledged = source.live.clone();
            self.histories[promise.history].flushed = source.durable.clone();
        }
        if discard || promise.alone {
            self.give_up_what_is_missing(promise.history, on);
        }
        let view = &mut self.views[node];
        view.history = promise.history;
        view.on_disk = None;
        view.live = promise.floor.clone();
        view.kept = promise.floor.clone();
        view.durable = promise.durable;
        view.in_doubt.clear();
        view.perhaps.clear();
        let client = std::mem::replace(&mut view.client, promise.floor);
        if role == Role::Primary {
            // It goes on where its clients are.
            merge(&self.writes, &mut view.client, &client);
        }
        view.lost_power = false;
        view.alone = false;
        view.wrote = role == Role::Primary;
        view.discard = false;
        view.finished = true;
        Ok(())
    }

    /// A node that lacked writes of this history has legally become its only copy: on this disk, its target's, is what goes on.
    fn give_up_what_is_missing(&mut self, history: usize, on: &Node) {
        let busy = on.sectors_in_flight();
        let mut missing = Vec::new();
        for (sector, versions) in &self.histories[history].sectors {
            if busy.iter().any(|range| range.contains(sector)) {
                continue;
            }
            let content = on.data.content(*sector);
            let written = versions.iter().map(|version| version.write);
            missing.extend(written.filter(|id| self.shows_older(history, *sector, content, *id)));
        }
        for id in missing {
            self.writes[id as usize].cache_lost = Some(0);
        }
    }

    /// The process of a target died after the end of its resync was on its disk, and before it said so.
    ///
    /// # Errors
    /// As for an end that it said.
    pub fn stored_the_end(&mut self, node: usize, role: Role, on: &Node) -> Result<(), String> {
        if self.views[node].promised.is_none() {
            return Ok(());
        }
        self.adopted(node, role, on)
    }

    /// What a resync within one history must leave on its target: what that had been told to be written. A source that lost power has
    /// lost what it had not flushed; never what was flushed, and never over a target that has it.
    fn survives(&self, node: usize, promise: &Promise, on: &Node) -> Result<(), String> {
        let view = &self.views[node];
        let flushed = &self.histories[view.history].flushed;
        let need = if promise.excused { flushed } else { &view.kept };
        let busy = on.sectors_in_flight();
        for (sector, id) in need {
            let durable = view.durable.get(sector).copied().unwrap_or(NEVER_WRITTEN);
            let had_not = promise.excused && self.is_before(durable, *id, view.history);
            let lost = self.writes[*id as usize].cache_lost.is_some();
            if had_not || lost || busy.iter().any(|range| range.contains(sector)) {
                continue;
            }
            self.allowed(view.history, *sector, on.data.content(*sector), *id)?;
        }
        Ok(())
    }

    /// What this node had been told to be written and does not show, now that it is the target: what it shows is not lost, though its source
    /// is not known to have it (it may have found more on its disk, after a loss of power, than was known).
    fn not_shown(&self, node: usize, on: &Node) -> Floor {
        let view = &self.views[node];
        let mut kept = view.kept.clone();
        kept.retain(|sector, id| {
            let content = on.data.content(*sector);
            self.allowed(view.history, *sector, content, *id).is_err()
        });
        kept
    }

    fn may_adopt(&self, node: usize, promise: &Promise, on: &Node) -> Result<(), String> {
        let view = &self.views[node];
        if view.discard {
            return Ok(());
        }
        if view.history == promise.history {
            if promise.alone {
                return Ok(());
            }
            if !promise.excused && self.protocol == Protocol::C {
                self.dominates(&promise.floor, &self.not_shown(node, on), view.history)?;
            }
            return self.survives(node, promise, on);
        }
        let mut at = promise.history;
        while let Some(parent) = &self.histories[at].parent {
            if parent.history == view.history {
                let since = self.histories[at].forked;
                let lost = view.live.values().find(|id| {
                    let write = &self.writes[**id as usize];
                    let counts = write.acknowledged && !self.was_on_its_way(write, view);
                    write.submitted > since && counts && write.history == view.history
                });
                if let Some(lost) = lost {
                    return Err(format!(
                        "{} was acknowledged here after the other node had gone its own way",
                        self.describe(*lost)
                    ));
                }
                if parent.excused {
                    return Ok(());
                }
                return self.dominates(&parent.floor, &self.not_shown(node, on), view.history);
            }
            at = parent.history;
        }
        Err(format!(
            "its history {} is no ancestor of the source's {}",
            view.history, promise.history
        ))
    }

    /// Under A: answered by this node before it saw that the link was gone, when the other one had been promoted already. If its disk fails,
    /// or it dies, before a generation of its own is durable, nothing tells of it: as of what it loses with its disk.
    fn was_on_its_way(&self, write: &Write, view: &View) -> bool {
        self.protocol == Protocol::A && write.ended.is_some_and(|at| at <= view.parted)
    }

    /// A node became Primary.
    fn promoted(
        &mut self,
        node: usize,
        state: State,
        forced: bool,
        tick: u64,
        nodes: &[Node],
    ) -> Result<(), String> {
        self.views[node].unflushed.clear();
        self.views[node].failed_as_primary = false;
        let wrote = std::mem::replace(&mut self.views[node].wrote, true);
        if state.conn.is_connected() {
            let peer = peer_of(node);
            if state.disk == DiskState::UpToDate && state.pdsk == DiskState::UpToDate && !forced {
                if self.views[node].history != self.views[peer].history {
                    return Err(format!(
                        "{} is promoted, but the two nodes have different histories",
                        name(node)
                    ));
                }
                let history = self.views[node].history;
                self.views[node].client = self.histories[history].acknowledged.clone();
            } else if state.disk == DiskState::UpToDate {
                if state.pdsk < DiskState::Inconsistent {
                    self.take_over_without_what_was_on_its_way(peer, &nodes[node]);
                }
                self.views[node].client = self.views[node].live.clone();
                if self.views[peer].discard && self.same_history() {
                    // What only the peer has is given up before this node writes.
                    self.give_up_what_is_missing(self.views[node].history, &nodes[node]);
                }
            } else {
                let peers = self.views[peer].history;
                let own = std::mem::replace(&mut self.views[node].history, peers);
                if own != peers {
                    self.views[node].on_disk.get_or_insert(own);
                }
                self.take_over_without_what_was_on_its_way(node, &nodes[peer]);
                self.views[node].client = self.views[peer].live.clone();
            }
            return Ok(());
        }
        if !forced {
            if !nodes[node].sectors_in_flight().is_empty() {
                return Err(format!(
                    "{} was promoted alone while writes that it had received were under way to its disk",
                    name(node)
                ));
            }
            self.check_disk(node, &nodes[node])
                .map_err(|why| format!("{} was promoted alone: {why}", name(node)))?;
            let own_cache = wrote && self.views[node].lost_power;
            if self.protocol != Protocol::C && !own_cache {
                self.check_order(node, &nodes[node])
                    .map_err(|why| format!("{} was promoted alone: {why}", name(node)))?;
            }
        }
        self.fork(node, tick, forced, &nodes[node]);
        Ok(())
    }

    /// A new history begins with what this node's disk holds.
    fn fork(&mut self, node: usize, tick: u64, forced: bool, on: &Node) {
        let view = &self.views[node];
        let old = &self.histories[view.history];
        let busy = on.sectors_in_flight();
        let base = self.writes.len() as u64;
        let mut sectors = old.sectors.clone();
        let mut floor = view.live.clone();
        for (sector, versions) in &mut sectors {
            if busy.iter().any(|range| range.contains(sector)) {
                continue;
            }
            let content = on.data.content(*sector).clone();
            versions.push(Version {
                write: base,
                content,
            });
            floor.insert(*sector, base);
        }
        if forced {
            // Half resynced, it also holds what only the history of that source has.
            let end = on.status.as_ref().map_or(0, |status| status.bytes / SECTOR);
            for sector in on.data.used(end) {
                let known = sectors.contains_key(&sector);
                if !known && !busy.iter().any(|range| range.contains(&sector)) {
                    let content = on.data.content(sector).clone();
                    let found = Version {
                        write: base,
                        content,
                    };
                    sectors.insert(sector, vec![found]);
                    floor.insert(sector, base);
                }
            }
        }
        let parent = Parent {
            history: view.history,
            floor: view.live.clone(),
            excused: view.lost_power || forced || self.protocol != Protocol::C,
            lost_power: view.lost_power,
        };
        let history = self.histories.len();
        self.histories.push(History {
            parent: Some(parent),
            forked: tick,
            forced,
            sectors,
            acknowledged: floor.clone(),
            flushed: Floor::new(),
        });
        self.writes.push(Write::found(tick, history));
        let view = &mut self.views[node];
        view.history = history;
        view.live = floor.clone();
        view.kept = floor.clone();
        view.client = floor;
        view.lost_power = false;
        view.alone = false;
    }
}
