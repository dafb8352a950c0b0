//! Clients of a Primary: they keep some requests in flight, write stamps over each other, and remember what they were told.

use std::collections::BTreeMap;
use std::ops::Range;

use tandem_replicator::state::word::State;
use tandem_replicator::{Fua, Operation, Request, RequestError, RequestId, Unmap};

use super::dice::Dice;
use super::node::VOLUME;
use super::oracle::Oracle;
use super::stamp::{Content, SECTOR, Stamper};

/// What a request was, for its answer.
#[derive(Clone, Debug)]
enum Asked {
    Write { id: u64, durable: bool },
    Read { first: u64, floor: Vec<u64> },
    Flush { since: u64 },
}

#[derive(Clone, Debug)]
struct Open {
    node: usize,
    asked: Asked,
    since: u64,
}

/// What the clients like to do.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Requests in flight at most.
    pub depth: usize,
    /// Nanoseconds between two requests, on average.
    pub pause: u64,
    /// Sectors of a request at most.
    pub sectors_max: u64,
    /// Requests go to the first sectors only, if not 0: writes overlap.
    pub hot: u64,
    /// Weights: read, write, FUA write, flush, discard, zeroes.
    pub mix: [u32; 6],
}

/// Counters for a summary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Answered with success.
    pub done: u64,
    /// Answered with an error.
    pub failed: u64,
    /// Their node died.
    pub lost: u64,
}

/// All clients of both nodes.
#[derive(Debug)]
pub struct Clients {
    /// What they like to do; may be changed at any time.
    pub habits: Habits,
    /// They ask for nothing new.
    pub quiet: bool,
    /// Those of this node ask for nothing new.
    pub resting: [bool; 2],
    /// Counters.
    pub counts: Counts,
    /// They hold the device of a node open.
    pub opened: [bool; 2],
    /// Errors that clients were told, by kind, for worked traces.
    pub errors: Vec<RequestError>,
    /// Turns so far.
    pub turns: u64,
    /// Turns in which they do nothing.
    pub muted: Vec<Range<u64>>,
    open: BTreeMap<u64, Open>,
    next: u64,
    dice: Dice,
    stamper: Stamper,
}

impl Clients {
    /// Clients that have not begun.
    #[must_use]
    pub fn new(habits: Habits, stamper: Stamper, dice: Dice) -> Clients {
        Clients {
            habits,
            quiet: true,
            resting: [false; 2],
            counts: Counts::default(),
            opened: [false; 2],
            errors: Vec::new(),
            turns: 0,
            muted: Vec::new(),
            open: BTreeMap::new(),
            next: 0,
            dice,
            stamper,
        }
    }

    /// Whether they do nothing in this turn.
    #[must_use]
    pub fn is_muted(&self) -> bool {
        self.muted.iter().any(|turns| turns.contains(&self.turns))
    }

    /// Requests of a node without an answer.
    #[must_use]
    pub fn in_flight(&self, node: usize) -> usize {
        self.open.values().filter(|open| open.node == node).count()
    }

    /// The oldest request of a node without an answer: its number and when it was submitted.
    #[must_use]
    pub fn oldest(&self, node: usize) -> Option<(u64, u64)> {
        self.open
            .iter()
            .find(|(_, open)| open.node == node)
            .map(|(id, open)| (*id, open.since))
    }

    /// Time until the next request.
    pub fn pause(&mut self) -> u64 {
        // Requests come in bursts, so that some are in flight together.
        if self.dice.chance(3, 4) {
            return self.dice.below(self.habits.pause / 16 + 1) + 1;
        }
        self.dice.spread(3 * self.habits.pause).max(1)
    }

    /// A request for a device of so many bytes, if the clients want one now.
    pub fn ask(
        &mut self,
        now: u64,
        node: usize,
        bytes: u64,
        oracle: &mut Oracle,
    ) -> Option<Request> {
        if self.quiet || self.resting[node] || self.in_flight(node) >= self.habits.depth {
            return None;
        }
        let sectors = bytes / SECTOR;
        let kind = self.dice.weighted(&self.habits.mix.clone());
        let mut length = self.dice.between(1, self.habits.sectors_max);
        if self.dice.chance(1, 2) {
            length = length.next_multiple_of(8);
        }
        length = length.min(sectors);
        let room = if self.habits.hot > 0 && self.dice.chance(3, 4) {
            self.habits.hot.max(length).min(sectors)
        } else {
            sectors
        };
        let mut first = self.dice.below(room - length + 1);
        if self.dice.chance(2, 3) {
            first -= first % 8;
        }
        Some(self.request(now, node, kind, first, length, oracle))
    }

    /// A request of a kind (order of [`Habits::mix`]) on these sectors.
    pub fn request(
        &mut self,
        now: u64,
        node: usize,
        kind: usize,
        first: u64,
        sectors: u64,
        oracle: &mut Oracle,
    ) -> Request {
        let offset = first * SECTOR;
        let length = (sectors * SECTOR) as u32;
        let fua = |durable: bool| if durable { Fua::Yes } else { Fua::No };
        let (operation, asked) = match kind {
            0 => {
                let floor = oracle.read_floor(node, first, sectors);
                (
                    Operation::Read { offset, length },
                    Asked::Read { first, floor },
                )
            }
            3 => {
                let since = oracle.flush_submitted();
                (Operation::Flush, Asked::Flush { since })
            }
            1 | 2 => {
                let durable = kind == 2;
                let id = oracle.submit(node, first, sectors, false);
                let data = self.stamper.payload(id, first, sectors);
                let fua = fua(durable);
                (
                    Operation::Write { offset, data, fua },
                    Asked::Write { id, durable },
                )
            }
            _ => {
                let durable = self.dice.chance(1, 6);
                let id = oracle.submit(node, first, sectors, true);
                let fua = fua(durable);
                let operation = if kind == 4 {
                    Operation::Discard {
                        offset,
                        length,
                        fua,
                    }
                } else {
                    let unmap = self.dice.pick(&[Unmap::No, Unmap::Allowed]);
                    Operation::WriteZeroes {
                        offset,
                        length,
                        fua,
                        unmap,
                    }
                };
                (operation, Asked::Write { id, durable })
            }
        };
        self.next += 1;
        let open = Open {
            node,
            asked,
            since: now,
        };
        self.open.insert(self.next, open);
        Request {
            id: RequestId(self.next),
            volume: VOLUME,
            operation,
        }
    }

    /// An answer. `after`: the state of the node that gave it.
    ///
    /// # Errors
    /// It is wrong, or nobody asked.
    pub fn answered(
        &mut self,
        node: usize,
        request: RequestId,
        result: &Result<bytes::Bytes, RequestError>,
        after: Option<State>,
        oracle: &mut Oracle,
    ) -> Result<(), String> {
        let Some(open) = self.open.remove(&request.0) else {
            return Err(format!(
                "request {} is answered, but nobody asked or it was answered before",
                request.0
            ));
        };
        if open.node != node {
            return Err(format!(
                "request {} is answered by the other node",
                request.0
            ));
        }
        match (&open.asked, result) {
            (Asked::Write { id, durable }, Ok(_)) => {
                oracle.acknowledge(node, *id, *durable, after);
                self.counts.done += 1;
            }
            (Asked::Write { id, .. }, Err(error)) => {
                oracle.leave_open(*id);
                self.errors.push(*error);
                self.counts.failed += 1;
            }
            (Asked::Flush { since }, Ok(_)) => {
                oracle.flushed(node, *since, after)?;
                self.counts.done += 1;
            }
            (Asked::Read { first, floor }, Ok(bytes)) => {
                if bytes.len() as u64 != floor.len() as u64 * SECTOR {
                    return Err(format!(
                        "read {} is answered with {} bytes",
                        request.0,
                        bytes.len()
                    ));
                }
                let contents: Vec<Content> = bytes
                    .chunks_exact(512)
                    .enumerate()
                    .map(|(index, sector)| self.stamper.get(first + index as u64, sector))
                    .collect();
                oracle.check_read(node, *first, floor, &contents)?;
                self.counts.done += 1;
            }
            (asked, Err(error)) => {
                if matches!(asked, Asked::Flush { .. }) {
                    oracle.flush_failed(node);
                }
                self.errors.push(*error);
                self.counts.failed += 1;
            }
        }
        Ok(())
    }

    /// The process of a node is gone: its requests are never answered.
    pub fn node_died(&mut self, node: usize, oracle: &mut Oracle) {
        self.opened[node] = false;
        let open = std::mem::take(&mut self.open);
        for (request, open) in open {
            if open.node != node {
                self.open.insert(request, open);
                continue;
            }
            self.counts.lost += 1;
            if let Asked::Write { id, .. } = open.asked {
                oracle.leave_open(id);
            }
        }
    }
}
