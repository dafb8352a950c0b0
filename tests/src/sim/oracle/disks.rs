//! What lies on the disks: alone after a promotion, and on both when they are in sync.

use std::collections::BTreeSet;

use super::{NEVER_WRITTEN, Oracle, Version, Write, merge};
use crate::sim::node::Node;
use crate::sim::stamp::Content;
use crate::sim::trace::name;

impl Oracle {
    /// Everything that this node must not have lost is on its disk.
    ///
    /// # Errors
    /// The first sector that is wrong.
    pub fn check_disk(&self, node: usize, on: &Node) -> Result<(), String> {
        let view = &self.views[node];
        let busy = on.sectors_in_flight();
        for sector in self.histories[view.history].sectors.keys() {
            if busy.iter().any(|range| range.contains(sector)) {
                continue;
            }
            let floor = view.live.get(sector).copied().unwrap_or(NEVER_WRITTEN);
            self.allowed(view.history, *sector, on.data.content(*sector), floor)?;
        }
        Ok(())
    }

    /// No write is missing that was completed before another, present one was submitted.
    pub(super) fn check_order(&self, node: usize, on: &Node) -> Result<(), String> {
        let history = self.views[node].history;
        let busy = on.sectors_in_flight();
        let sectors = &self.histories[history].sectors;
        let present = sectors
            .keys()
            .filter_map(|sector| match on.data.content(*sector) {
                Content::Stamp(write) if (*write as usize) < self.writes.len() => Some(*write),
                _ => None,
            });
        let Some(youngest) = present.max_by_key(|id| self.writes[*id as usize].submitted) else {
            return Ok(());
        };
        let since = self.writes[youngest as usize].submitted;
        for (sector, versions) in sectors {
            if busy.iter().any(|range| range.contains(sector)) {
                continue;
            }
            let content = on.data.content(*sector);
            let missing = versions.iter().map(|version| version.write).filter(|id| {
                let write = &self.writes[*id as usize];
                let excused = write.cache_lost.is_some_and(|tick| tick < since);
                write.acknowledged && !excused && self.is_before(*id, youngest, history)
            });
            for missing in missing {
                if self.shows_older(history, *sector, content, missing) {
                    return Err(format!(
                        "reordered: {} is there, but sector {sector} holds {content:?} and lacks {}",
                        self.describe(youngest),
                        self.describe(missing)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Both nodes are UpToDate and connected, and nothing is under way: they must be equal, and right.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_equal(&mut self, nodes: &[Node], sectors: u64) -> Result<(), String> {
        let pair = self.views.nodes();
        let disks = pair.map(|node| &nodes[node].data);
        let [one, other] = pair.map(name);
        let mut used: BTreeSet<u64> = disks[0].used(sectors).collect();
        used.extend(disks[1].used(sectors));
        for sector in &used {
            let [a, b] = disks.map(|disk| disk.content(*sector));
            if a != b {
                return Err(format!(
                    "both are UpToDate, connected and idle, but sector {sector} is {a:?} on {one} and {b:?} on {other}"
                ));
            }
        }
        let [a, b] = self.views.both();
        if a.history != b.history {
            return Err(format!(
                "both are UpToDate and connected, but {one} has history {} and {other} {}, without a resync",
                a.history, b.history
            ));
        }
        let history = a.history;
        let mut floor = a.live.clone();
        merge(&self.writes, &mut floor, &b.live);
        for sector in used.iter().chain(floor.keys()) {
            let floor = floor.get(sector).copied().unwrap_or(NEVER_WRITTEN);
            self.allowed(history, *sector, disks[0].content(*sector), floor)
                .map_err(|why| format!("both are UpToDate, connected and idle: {why}"))?;
        }
        for view in self.views.both_mut() {
            view.live = floor.clone();
            view.kept = floor.clone();
            view.lost_power = false;
            view.alone = false;
            view.promised = None;
            view.discard = false;
            view.parted = 0;
        }
        self.settle_open(history, nodes);
        Ok(())
    }

    /// Writes that nobody answered are over: what is there now stays.
    fn settle_open(&mut self, history: usize, nodes: &[Node]) {
        let open: Vec<u64> = self
            .open
            .iter()
            .copied()
            .filter(|id| self.writes[*id as usize].history == history)
            .collect();
        if open.is_empty() {
            return;
        }
        let tick = self.tick();
        let base = self.writes.len() as u64;
        self.writes.push(Write::found(tick, history));
        let pair = self.views.nodes();
        for node in pair.into_iter().filter(|node| nodes[*node].is_primary()) {
            // It is in the cache of the Primary as any answered write: no flush has covered it so far.
            self.views[node].unflushed.push((tick, base));
        }
        for id in open {
            self.open.remove(&id);
            let write = &mut self.writes[id as usize];
            write.ended = Some(tick - 1);
            for sector in write.first..write.first + write.sectors {
                let content = nodes[pair[0]].data.content(sector).clone();
                let versions = self.histories[history].sectors.entry(sector).or_default();
                versions.push(Version {
                    write: base,
                    content,
                });
                for view in self.views.both_mut() {
                    view.live.insert(sector, base);
                    view.kept.insert(sector, base);
                    view.client.insert(sector, base);
                }
            }
        }
    }
}
