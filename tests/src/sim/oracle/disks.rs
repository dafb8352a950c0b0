//! What lies on the disks: alone after a promotion, and on both when they are in sync.

use std::collections::BTreeSet;

use super::{NEVER_WRITTEN, Oracle, Version, Write, merge};
use crate::sim::node::Node;
use crate::sim::stamp::Content;

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
    pub fn check_equal(&mut self, nodes: &[Node; 2], sectors: u64) -> Result<(), String> {
        let mut used: BTreeSet<u64> = nodes[0].data.used(sectors).collect();
        used.extend(nodes[1].data.used(sectors));
        for sector in &used {
            let [a, b] = [0, 1].map(|node| nodes[node].data.content(*sector));
            if a != b {
                return Err(format!(
                    "both are UpToDate, connected and idle, but sector {sector} is {a:?} on A and {b:?} on B"
                ));
            }
        }
        if self.views[0].history != self.views[1].history {
            return Err(format!(
                "both are UpToDate and connected, but A has history {} and B {}, without a resync",
                self.views[0].history, self.views[1].history
            ));
        }
        let history = self.views[0].history;
        let mut floor = self.views[0].live.clone();
        merge(&self.writes, &mut floor, &self.views[1].live);
        for sector in used.iter().chain(floor.keys()) {
            let floor = floor.get(sector).copied().unwrap_or(NEVER_WRITTEN);
            self.allowed(history, *sector, nodes[0].data.content(*sector), floor)
                .map_err(|why| format!("both are UpToDate, connected and idle: {why}"))?;
        }
        for view in &mut self.views {
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
    fn settle_open(&mut self, history: usize, nodes: &[Node; 2]) {
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
        for (node, view) in nodes.iter().zip(&mut self.views) {
            if node.is_primary() {
                // It is in the cache of the Primary as any answered write: no flush has covered it so far.
                view.unflushed.push((tick, base));
            }
        }
        for id in open {
            self.open.remove(&id);
            let write = &mut self.writes[id as usize];
            write.ended = Some(tick - 1);
            for sector in write.first..write.first + write.sectors {
                let content = nodes[0].data.content(sector).clone();
                let versions = self.histories[history].sectors.entry(sector).or_default();
                versions.push(Version {
                    write: base,
                    content,
                });
                for view in &mut self.views {
                    view.live.insert(sector, base);
                    view.kept.insert(sector, base);
                    view.client.insert(sector, base);
                }
            }
        }
    }
}
