//! What a node that dies, or loses its power, may have lost.

use super::{NEVER_WRITTEN, Oracle};
use crate::sim::node::Node;

impl Oracle {
    /// The only good copy of what the other node's clients wrote was in the cache of this node, which lost power, since the
    /// other node's own disk failed after it had answered: two failures, of which its next flush tells.
    fn lose_the_last_copy(&mut self, node: usize, on: &Node) {
        let kept = self.views[node].durable.clone();
        let other = &self.views[1 - node];
        if other.up_to_date {
            return;
        }
        let is_lost = other.unflushed.iter().any(|(_, id)| {
            let write = &self.writes[*id as usize];
            (write.first..write.first + write.sectors).any(|sector| {
                other.client.get(&sector).is_some_and(|seen| seen == id)
                    && self
                        .allowed(other.history, sector, on.data.content(sector), *id)
                        .is_err()
            })
        });
        let other = &mut self.views[1 - node];
        other.owes_error |= is_lost;
        for (_, id) in &other.unflushed {
            let write = &self.writes[*id as usize];
            for sector in write.first..write.first + write.sectors {
                if other.client.get(&sector).is_some_and(|seen| seen == id) {
                    let floor = kept.get(&sector).copied().unwrap_or(NEVER_WRITTEN);
                    other.client.insert(sector, floor);
                }
            }
        }
    }

    /// A promotion that was cut short, or under which nobody wrote, leaves no trace that counts.
    fn forget_empty_history(&mut self, node: usize) {
        let history = self.views[node].history;
        let Some(parent) = self.histories[history].parent.clone() else {
            return;
        };
        let written = self
            .writes
            .iter()
            .any(|write| write.history == history && write.sectors > 0);
        let goes_on = self.histories.iter().any(|young| {
            let parent = young.parent.as_ref();
            parent.is_some_and(|parent| parent.history == history)
        });
        if written || goes_on || self.views[1 - node].history == history {
            return;
        }
        let view = &mut self.views[node];
        view.history = parent.history;
        view.live = parent.floor.clone();
        view.kept = parent.floor;
        view.lost_power |= parent.lost_power;
    }

    /// The process of a node died, or its host lost power.
    pub fn died(&mut self, node: usize, power: bool, on: &Node) {
        let tick = self.tick();
        if power {
            self.lose_the_last_copy(node, on);
        }
        self.forget_empty_history(node);
        if power {
            for (_, id) in &self.views[node].unflushed {
                self.writes[*id as usize].cache_lost = Some(tick);
            }
        }
        let view = &mut self.views[node];
        if power {
            view.kept = view.durable.clone();
            view.lost_power = true;
        }
        view.live = view.kept.clone();
        view.unflushed.clear();
        view.promised = None;
        view.up_to_date = false;
        view.finished = false;
        view.owes_error = false;
    }
}
