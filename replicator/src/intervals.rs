//! Intervals of the device in flight (DESIGN.md, "The life of a write"): overlapping writes are serialised, since two disks
//! may order them differently, and a resync write must not overtake an application's.
//!
//! # Invariants
//!
//! * An interval is *ready* once every interval that overlaps it and was inserted earlier has been removed; it waits also
//!   for those that still wait themselves, so nothing is overtaken for ever.
//! * Two ready intervals never overlap.
//!
//! Intervals are kept by length class (powers of two) and start. Those that can overlap a range of length `l` start,
//! in the class of lengths up to `c`, less than `c` before it: a huge discard costs the small writes beside it nothing.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use crate::numbered::Numbered;

/// Names an interval; the caller's own number, unique among those in flight.
pub type IntervalId = u64;

/// Who occupies an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IntervalKind {
    /// A write of this node's application.
    Application,
    /// A write received from the peer.
    Peer,
    /// A block of a resync or verify.
    Resync,
}

/// The answer to an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nothing in flight overlaps: go on.
    Ready,
    /// Wait until a removal names this interval.
    Waits,
}

#[derive(Clone, Debug)]
struct Interval {
    range: Range<u64>,
    kind: IntervalKind,
    /// Earlier overlapping intervals still in the set.
    blockers: usize,
    /// Later overlapping intervals.
    dependents: Vec<IntervalId>,
}

/// The set of intervals in flight. The unit of the ranges is the caller's (bytes or sectors).
#[derive(Clone, Debug, Default)]
pub struct Intervals {
    entries: Numbered<IntervalId, Interval>,
    /// Length class (log2 of the length, rounded up) → (start, id) → end.
    classes: BTreeMap<u32, BTreeMap<(u64, IntervalId), u64>>,
    waiting: usize,
}

impl Intervals {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Intervals in the set, ready and waiting.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Intervals that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Adds an interval. An empty range overlaps nothing.
    ///
    /// # Panics
    /// If `id` is already in the set: the caller's numbers are unique.
    pub fn insert(&mut self, id: IntervalId, range: Range<u64>, kind: IntervalKind) -> Admission {
        assert!(
            !self.entries.contains_key(&id),
            "interval {id} is already in flight"
        );
        let earlier: Vec<IntervalId> = self
            .overlapping(range.clone())
            .map(|(other, _, _)| other)
            .collect();
        for other in &earlier {
            if let Some(other) = self.entries.get_mut(other) {
                other.dependents.push(id);
            }
        }
        if !range.is_empty() {
            self.classes
                .entry(class_of(&range))
                .or_default()
                .insert((range.start, id), range.end);
        }
        let blockers = earlier.len();
        self.entries.insert(
            id,
            Interval {
                range,
                kind,
                blockers,
                dependents: Vec::new(),
            },
        );
        if blockers == 0 {
            Admission::Ready
        } else {
            self.waiting += 1;
            Admission::Waits
        }
    }

    /// Removes an interval, ready or still waiting; returns those that became ready, in the order of their insertion.
    /// An unknown number is ignored.
    pub fn remove(&mut self, id: IntervalId) -> Vec<IntervalId> {
        let Some(gone) = self.entries.remove(&id) else {
            return Vec::new();
        };
        if gone.blockers > 0 {
            self.waiting -= 1;
            for other in self
                .overlapping(gone.range.clone())
                .map(|(other, _, _)| other)
                .collect::<Vec<_>>()
            {
                if let Some(other) = self.entries.get_mut(&other) {
                    other.dependents.retain(|dependent| *dependent != id);
                }
            }
        }
        if !gone.range.is_empty() {
            let class = class_of(&gone.range);
            if let Some(starts) = self.classes.get_mut(&class) {
                starts.remove(&(gone.range.start, id));
                if starts.is_empty() {
                    self.classes.remove(&class);
                }
            }
        }
        let mut ready = Vec::new();
        for dependent in gone.dependents {
            if let Some(entry) = self.entries.get_mut(&dependent) {
                entry.blockers -= 1;
                if entry.blockers == 0 {
                    self.waiting -= 1;
                    ready.push(dependent);
                }
            }
        }
        ready
    }

    /// Whether an interval is in the set and waits for nothing.
    pub fn is_ready(&self, id: IntervalId) -> bool {
        self.entries
            .get(&id)
            .is_some_and(|entry| entry.blockers == 0)
    }

    /// The range and kind of an interval.
    pub fn get(&self, id: IntervalId) -> Option<(Range<u64>, IntervalKind)> {
        self.entries
            .get(&id)
            .map(|entry| (entry.range.clone(), entry.kind))
    }

    /// The intervals that overlap a range, ready and waiting, in no particular order.
    pub fn overlapping(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = (IntervalId, Range<u64>, IntervalKind)> + '_ {
        let empty = range.is_empty();
        self.classes
            .iter()
            .filter(move |_| !empty)
            .flat_map(move |(class, starts)| {
                let reach = 1_u64.checked_shl(*class).unwrap_or(u64::MAX);
                let range = range.clone();
                starts
                    .range((range.start.saturating_sub(reach), 0)..(range.end, 0))
                    .filter(move |(_, end)| **end > range.start)
                    .filter_map(|((_, id), _)| {
                        self.entries
                            .get(id)
                            .map(|entry| (*id, entry.range.clone(), entry.kind))
                    })
            })
    }

    /// Every interval in the set, by number.
    pub fn iter(&self) -> impl Iterator<Item = (IntervalId, Range<u64>, IntervalKind)> + '_ {
        self.entries
            .iter()
            .map(|(id, entry)| (id, entry.range.clone(), entry.kind))
    }
}

/// The smallest `c` with `len <= 2^c`.
fn class_of(range: &Range<u64>) -> u32 {
    let len = range.end - range.start;
    u64::BITS - (len - 1).leading_zeros()
}
