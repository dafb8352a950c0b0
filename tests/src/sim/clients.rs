//! Clients of a Primary: they keep some requests in flight, write stamps over each other, and remember what they were told.

use std::collections::BTreeMap;
use std::ops::Range;

use tandem_replicator::state::word::State;
use tandem_replicator::{Fua, Operation, Request, RequestError, RequestId, Unmap};

use super::dice::Dice;
use super::node::{Node, VOLUME};
use super::oracle::Oracle;
use super::pair::pair_of;
use super::stamp::{Content, SECTOR, Stamper, UNIT, UNITS};

/// What the judge of errors has to know of a request.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// When it was submitted.
    pub since: u64,
    /// It is a flush.
    pub flush: bool,
    /// It is a read.
    pub read: bool,
}

/// What a request was, for its answer.
#[derive(Clone, Debug)]
enum Question {
    Write {
        id: u64,
        durable: bool,
    },
    /// One of the two requests of a write that is cut inside a sector.
    Part {
        id: u64,
        durable: bool,
    },
    /// Of these units of the device.
    Read {
        units: Range<u64>,
        floor: Vec<u64>,
    },
    Flush {
        since: u64,
    },
}

#[derive(Clone, Debug)]
struct Open {
    node: usize,
    asked: Question,
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
    /// So many of 16 reads and writes do not start or end on a sector.
    pub odd: u64,
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

/// All clients of all nodes.
#[derive(Debug)]
pub struct Clients {
    /// What they like to do; may be changed at any time.
    pub habits: Habits,
    /// They ask for nothing new.
    pub quiet: bool,
    /// Those of this node ask for nothing new.
    pub resting: Vec<bool>,
    /// Counters.
    pub counts: Counts,
    /// They hold the device of a node open.
    pub opened: Vec<bool>,
    /// Errors that clients were told, by kind, for worked traces.
    pub errors: Vec<RequestError>,
    /// Turns so far.
    pub turns: u64,
    /// Turns in which they do nothing.
    pub muted: Vec<Range<u64>>,
    open: BTreeMap<u64, Open>,
    /// Writes in two requests, by pair and number: how many are answered, and whether all with success.
    halves: BTreeMap<(usize, u64), (u32, bool)>,
    next: u64,
    dice: Dice,
    odd_dice: Dice,
    /// Of each pair.
    stampers: Vec<Stamper>,
}

impl Clients {
    /// Clients of pairs with these stamps; they have not begun.
    #[must_use]
    pub fn new(habits: Habits, stampers: Vec<Stamper>, seed: u64) -> Clients {
        let nodes = 2 * stampers.len();
        Clients {
            habits,
            quiet: true,
            resting: vec![false; nodes],
            counts: Counts::default(),
            opened: vec![false; nodes],
            errors: Vec::new(),
            turns: 0,
            muted: Vec::new(),
            open: BTreeMap::new(),
            halves: BTreeMap::new(),
            next: 0,
            dice: Dice::new(seed, "clients"),
            odd_dice: Dice::new(seed, "odd requests"),
            stampers,
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

    /// A request without an answer.
    #[must_use]
    pub fn asked(&self, request: RequestId) -> Option<Asked> {
        let open = self.open.get(&request.0)?;
        Some(Asked {
            since: open.since,
            flush: matches!(open.asked, Question::Flush { .. }),
            read: matches!(open.asked, Question::Read { .. }),
        })
    }

    /// Time until the next request.
    pub fn pause(&mut self) -> u64 {
        // Requests come in bursts, so that some are in flight together.
        if self.dice.chance(3, 4) {
            return self.dice.below(self.habits.pause / 16 + 1) + 1;
        }
        self.dice.spread(3 * self.habits.pause).max(1)
    }

    /// Requests for a device of so many bytes, if the clients want any now: one, or the two parts of a write.
    pub fn ask(&mut self, now: u64, node: usize, bytes: u64, oracle: &mut Oracle) -> Vec<Request> {
        if self.quiet || self.resting[node] || self.in_flight(node) >= self.habits.depth {
            return Vec::new();
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
        let is_odd = self.habits.odd > 0 && self.odd_dice.chance(self.habits.odd, 16);
        match kind {
            0 if is_odd => vec![self.odd_read(now, node, first, length, oracle)],
            1 | 2 | 5 if is_odd => self.odd_write(now, node, kind, first, length, oracle),
            _ => vec![self.request(now, node, kind, first, length, oracle)],
        }
    }

    fn open(&mut self, now: u64, node: usize, operation: Operation, asked: Question) -> Request {
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

    /// A read of a part of these sectors.
    fn odd_read(
        &mut self,
        now: u64,
        node: usize,
        first: u64,
        sectors: u64,
        oracle: &mut Oracle,
    ) -> Request {
        let (begin, end) = (first * UNITS as u64, (first + sectors) * UNITS as u64);
        let from = begin + self.odd_dice.below(UNITS as u64);
        let to = (end - self.odd_dice.below(UNITS as u64)).max(from + 1);
        let floor = oracle.read_floor(node, first, sectors);
        let operation = Operation::Read {
            offset: from * UNIT,
            length: ((to - from) * UNIT) as u32,
        };
        let units = from..to;
        self.open(now, node, operation, Question::Read { units, floor })
    }

    /// A write of these sectors in two requests that meet inside one of them, in any order.
    fn odd_write(
        &mut self,
        now: u64,
        node: usize,
        kind: usize,
        first: u64,
        sectors: u64,
        oracle: &mut Oracle,
    ) -> Vec<Request> {
        let (begin, end) = (first * UNITS as u64, (first + sectors) * UNITS as u64);
        let cut = self.odd_dice.between(begin + 1, end - 1);
        let durable = kind == 2 || self.odd_dice.chance(1, 6);
        let fua = if durable { Fua::Yes } else { Fua::No };
        let id = oracle.submit(node, first, sectors, kind == 5);
        oracle.cut(cut);
        self.halves.insert((pair_of(node), id), (0, true));
        let mut parts = [begin..cut, cut..end];
        if self.odd_dice.chance(1, 2) {
            parts.reverse();
        }
        let stamper = self.stampers[pair_of(node)];
        let operation = |units: Range<u64>| {
            let offset = units.start * UNIT;
            if kind == 5 {
                Operation::WriteZeroes {
                    offset,
                    length: ((units.end - units.start) * UNIT) as u32,
                    fua,
                    unmap: Unmap::Allowed,
                }
            } else {
                let data = stamper.part(id, units);
                Operation::Write { offset, data, fua }
            }
        };
        let operations = parts.map(operation);
        let asked = Question::Part { id, durable };
        operations
            .into_iter()
            .map(|operation| self.open(now, node, operation, asked.clone()))
            .collect()
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
                    Question::Read {
                        units: first * UNITS as u64..(first + sectors) * UNITS as u64,
                        floor,
                    },
                )
            }
            3 => {
                let since = oracle.flush_submitted();
                (Operation::Flush, Question::Flush { since })
            }
            1 | 2 => {
                let durable = kind == 2;
                let id = oracle.submit(node, first, sectors, false);
                let data = self.stampers[pair_of(node)].payload(id, first, sectors);
                let fua = fua(durable);
                (
                    Operation::Write { offset, data, fua },
                    Question::Write { id, durable },
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
                (operation, Question::Write { id, durable })
            }
        };
        self.open(now, node, operation, asked)
    }

    /// An answer. `after`: the state of the node that gave it; `peer`: the other one.
    ///
    /// # Errors
    /// It is wrong, or nobody asked.
    pub fn answered(
        &mut self,
        node: usize,
        request: RequestId,
        result: &Result<bytes::Bytes, RequestError>,
        after: Option<State>,
        peer: &Node,
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
            (Question::Write { id, durable }, Ok(_)) => {
                oracle.acknowledge(node, *id, *durable, after, peer);
                self.counts.done += 1;
            }
            (Question::Write { id, .. }, Err(error)) => {
                oracle.leave_open(*id);
                self.errors.push(*error);
                self.counts.failed += 1;
            }
            (Question::Flush { since }, Ok(_)) => {
                oracle.flushed(node, *since, after)?;
                self.counts.done += 1;
            }
            (Question::Part { id, durable }, result) => {
                if let Err(error) = result {
                    self.errors.push(*error);
                    self.counts.failed += 1;
                    oracle.leave_open(*id);
                } else {
                    self.counts.done += 1;
                }
                let half = self.halves.entry((pair_of(node), *id)).or_default();
                half.0 += 1;
                half.1 &= result.is_ok();
                if *half == (2, true) {
                    oracle.acknowledge(node, *id, *durable, after, peer);
                }
            }
            (Question::Read { units, floor }, Ok(bytes)) => {
                let stamper = self.stampers[pair_of(node)];
                let contents = sectors_read(stamper, units, bytes).ok_or_else(|| {
                    let length = bytes.len();
                    format!("read {} is answered with {length} bytes", request.0)
                })?;
                oracle.check_read(node, units.clone(), floor, &contents)?;
                self.counts.done += 1;
            }
            (asked, Err(error)) => {
                if matches!(asked, Question::Flush { .. }) {
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
            if let Question::Write { id, .. } | Question::Part { id, .. } = open.asked {
                oracle.leave_open(id);
            }
        }
    }
}

/// The sectors that a read of these units touches; `None` if there are not so many bytes.
fn sectors_read(stamper: Stamper, units: &Range<u64>, bytes: &[u8]) -> Option<Vec<Content>> {
    if bytes.len() as u64 != (units.end - units.start) * UNIT {
        return None;
    }
    let per_sector = UNITS as u64;
    let mut contents = Vec::new();
    let mut at = units.start;
    while at < units.end {
        let sector = at / per_sector;
        let to = ((sector + 1) * per_sector).min(units.end);
        let place = |unit: u64| ((unit - units.start) * UNIT) as usize;
        let part = bytes.get(place(at)..place(to))?;
        let first = (at % per_sector) as usize;
        contents.push(stamper.get_part(sector, first, part));
        at = to;
    }
    Some(contents)
}
