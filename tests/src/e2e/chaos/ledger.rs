//! What every sector may show now, given what clients wrote and were told: the pure part of the judge of a chaos run.
//!
//! It is the rule of the simulator's oracle (`crate::sim::oracle`), as far as real processes allow to know it:
//!
//! - The oracle counts ticks, this ledger microseconds of the system's clock: the logs of the daemons carry the same clock. A write
//!   that ran while a link was being lost is told *before* or *after* it; [`SLACK`] decides for "after", which demands less.
//! - A *line* is what the oracle calls a history: promoting a node alone begins a new one, from what that node shows at that moment
//!   ([`Ledger::settle`]); nothing that the old line still writes may ever be seen in the new one.
//! - The oracle's floor of a node is a moment here: everything told before it must be there ([`Floor`]). SIGKILL is no power
//!   failure, so `kept` and `durable` of the oracle are one: what reached the page cache stays. What no flush covered is never
//!   excused, and flushes are not judged.
//! - A write without an answer may be there or not; once a younger one of its sector was seen or told, it must not come back.
//! - Under A and B the node that takes over may lack only an end: no write that was told before a present one was issued.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::stamp::Content;

/// Microseconds since 1970.
pub type Micros = u64;

/// A loss of the link is logged a little after it counts.
pub const SLACK: Micros = 50_000;

/// The present moment.
pub fn now() -> Micros {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}

/// Up to when a node must have everything that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Floor {
    /// What was told before this moment.
    Until(Micros),
    /// All of it.
    Everything,
}

impl Floor {
    fn covers(self, told: Micros) -> bool {
        match self {
            Floor::Until(moment) => told <= moment,
            Floor::Everything => true,
        }
    }
}

/// Whether a disk must also have its writes in the order of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Yes: protocols A and B, the node that takes over.
    Kept,
    /// No.
    Free,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    issued: Micros,
    told: Option<Micros>,
}

#[derive(Clone, Copy, Debug)]
enum Origin {
    /// This write.
    Write(u64),
    /// It was found there at this moment, when a line began: as if it had been told then.
    Found(Micros),
}

#[derive(Clone, Debug)]
struct Version {
    origin: Origin,
    content: Content,
}

impl Version {
    fn write(&self) -> Option<u64> {
        match self.origin {
            Origin::Write(id) => Some(id),
            Origin::Found(_) => None,
        }
    }
}

/// What a judgement came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Writes that were told and are missing, legally or not.
    pub missing: BTreeSet<u64>,
    /// Sectors that break a rule, in words; the first few.
    pub faults: Vec<String>,
}

/// Faults that are told in words.
const FAULTS_MAX: usize = 8;

/// The writes of a run and what each sector went through.
#[derive(Debug, Default)]
pub struct Ledger {
    writes: Vec<Write>,
    sectors: BTreeMap<u64, Vec<Version>>,
    told: u64,
}

impl Ledger {
    /// A write of stamps or zeroes is about to be sent; sectors of one writer, one write at a time.
    pub fn issue(&mut self, first: u64, sectors: u64, content: impl Fn(u64) -> Content) -> u64 {
        let id = self.writes.len() as u64;
        self.writes.push(Write {
            issued: now(),
            told: None,
        });
        let version = Version {
            origin: Origin::Write(id),
            content: content(id),
        };
        for sector in first..first + sectors {
            let versions = self.sectors.entry(sector).or_default();
            versions.push(version.clone());
        }
        id
    }

    /// The write's success was told.
    pub fn tell(&mut self, id: u64) {
        if let Some(write) = self.writes.get_mut(id as usize) {
            write.told = Some(now());
            self.told += 1;
        }
    }

    /// Writes whose success was told.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// Whether nothing was told after this floor.
    pub fn nothing_after(&self, floor: Floor) -> bool {
        let last = self.writes.iter().filter_map(|write| write.told).max();
        last.is_none_or(|told| floor.covers(told))
    }

    fn is_covered(&self, version: &Version, floor: Floor) -> bool {
        let told = match version.origin {
            Origin::Write(id) => self.writes.get(id as usize).and_then(|write| write.told),
            Origin::Found(moment) => Some(moment),
        };
        told.is_some_and(|told| floor.covers(told))
    }

    /// The youngest version that shows this content, counting from 1; 0 is "never written".
    fn place(versions: &[Version], content: &Content) -> Option<usize> {
        let written = versions
            .iter()
            .rposition(|version| version.content == *content);
        let blank = (*content == Content::Zero).then_some(0);
        written.map(|index| index + 1).or(blank)
    }

    /// The oldest place that a sector may show.
    fn least(&self, versions: &[Version], floor: Floor) -> usize {
        let covered = versions
            .iter()
            .rposition(|version| self.is_covered(version, floor));
        covered.map_or(0, |index| index + 1)
    }

    /// What is wrong with a sector that shows this, if everything up to `floor` must be there.
    pub fn contradiction(&self, sector: u64, content: &Content, floor: Floor) -> Option<String> {
        let none = Vec::new();
        let versions = self.sectors.get(&sector).unwrap_or(&none);
        let least = self.least(versions, floor);
        match Ledger::place(versions, content) {
            Some(place) if place >= least => None,
            Some(place) => Some(format!(
                "sector {sector} shows {content:?} (version {place}), but {} must not be lost",
                self.describe(versions, least)
            )),
            None => Some(format!(
                "sector {sector} shows {content:?}, which was never written there"
            )),
        }
    }

    fn describe(&self, versions: &[Version], place: usize) -> String {
        let Some(version) = place.checked_sub(1).and_then(|index| versions.get(index)) else {
            return String::from("what was there first");
        };
        let id = match version.origin {
            Origin::Write(id) => id,
            Origin::Found(moment) => {
                return format!(
                    "version {place} ({:?}, found at {moment} when its line began)",
                    version.content
                );
            }
        };
        let write = self.writes.get(id as usize);
        let times = write.map(|write| (write.issued, write.told));
        format!("version {place} (write {id}, issued and told at {times:?})")
    }

    /// Judges what a node shows.
    pub fn judge(&self, found: &BTreeMap<u64, Content>, floor: Floor, order: Order) -> Judgement {
        let mut judgement = Judgement::default();
        let mut present: Option<Write> = None;
        let mut lacking: Vec<(u64, u64)> = Vec::new();
        for (sector, versions) in &self.sectors {
            let Some(content) = found.get(sector) else {
                continue;
            };
            if let Some(fault) = self.contradiction(*sector, content, floor) {
                judgement.faults.push(fault);
            }
            let place = Ledger::place(versions, content).unwrap_or(0);
            // Zeroes may be older than the youngest zeroes: they prove only the oldest ones.
            let is_blank = *content == Content::Zero;
            let seen = versions.iter().find(|version| version.content == *content);
            let seen = seen.filter(|_| !is_blank).and_then(Version::write);
            if let Some(write) = seen.and_then(|id| self.writes.get(id as usize))
                && present.is_none_or(|young| young.issued < write.issued)
            {
                present = Some(*write);
            }
            let younger = versions[place..].iter().filter_map(Version::write);
            lacking.extend(younger.map(|id| (*sector, id)));
        }
        for (sector, id) in lacking {
            let Some(told) = self.writes.get(id as usize).and_then(|write| write.told) else {
                continue;
            };
            judgement.missing.insert(id);
            let is_hole = present.is_some_and(|young| told < young.issued);
            if order == Order::Kept && is_hole {
                judgement.faults.push(format!(
                    "sector {sector} lacks write {id}, told at {told}, but a write issued at {:?} is there",
                    present.map(|young| young.issued)
                ));
            }
        }
        judgement.faults.truncate(FAULTS_MAX);
        judgement
    }

    /// From now on every sector shows what was found: writes without an answer are over, and what is missing is gone.
    pub fn settle(&mut self, found: &BTreeMap<u64, Content>) {
        let origin = Origin::Found(now());
        for (sector, versions) in &mut self.sectors {
            let Some(content) = found.get(sector) else {
                continue;
            };
            if versions.last().map(|version| &version.content) != Some(content) {
                versions.push(Version {
                    origin,
                    content: content.clone(),
                });
            } else if let Some(last) = versions.last_mut() {
                // Shown as it is; also where nobody was told, it stays.
                let told = last
                    .write()
                    .and_then(|id| self.writes.get(id as usize))
                    .and_then(|write| write.told);
                if told.is_none() {
                    last.origin = origin;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sector 8 went through writes 0 (told), 1 (told) and 2 (never told); sector 9 through write 3 (told).
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        for (sector, told) in [(8, Some(20)), (8, Some(40)), (8, None), (9, Some(60))] {
            let id = ledger.issue(sector, 1, Content::Stamp);
            ledger.writes[id as usize] = Write {
                issued: 10 + 20 * id,
                told,
            };
        }
        ledger
    }

    fn found(eight: Content, nine: Content) -> BTreeMap<u64, Content> {
        BTreeMap::from([(8, eight), (9, nine)])
    }

    #[test]
    fn what_was_told_must_be_there_and_what_was_not_may_be() {
        let ledger = ledger();
        for young in [1, 2] {
            let all = found(Content::Stamp(young), Content::Stamp(3));
            let judgement = ledger.judge(&all, Floor::Everything, Order::Free);
            assert_eq!(judgement, Judgement::default(), "write {young}");
        }
        let old = found(Content::Stamp(0), Content::Stamp(3));
        let judgement = ledger.judge(&old, Floor::Everything, Order::Free);
        assert_eq!(
            (judgement.faults.len(), judgement.missing),
            (1, BTreeSet::from([1]))
        );
        let moved = found(Content::Stamp(1), Content::Stamp(1));
        assert_eq!(
            ledger
                .judge(&moved, Floor::Until(0), Order::Free)
                .faults
                .len(),
            1
        );
    }

    #[test]
    fn a_floor_excuses_what_was_told_later_and_nothing_else() {
        let ledger = ledger();
        let end = found(Content::Stamp(1), Content::Zero);
        let judgement = ledger.judge(&end, Floor::Until(40), Order::Kept);
        assert_eq!(
            (judgement.faults.len(), judgement.missing.len()),
            (0, 1),
            "{judgement:?}"
        );
        let earlier = found(Content::Stamp(0), Content::Zero);
        assert_eq!(
            ledger
                .judge(&earlier, Floor::Until(40), Order::Free)
                .faults
                .len(),
            1
        );
    }

    #[test]
    fn a_hole_is_found_even_without_a_floor_where_order_is_kept() {
        let ledger = ledger();
        let hole = found(Content::Stamp(0), Content::Stamp(3));
        assert_eq!(
            ledger
                .judge(&hole, Floor::Until(0), Order::Free)
                .faults
                .len(),
            0
        );
        assert_eq!(
            ledger
                .judge(&hole, Floor::Until(0), Order::Kept)
                .faults
                .len(),
            1
        );
    }

    #[test]
    fn zeroes_prove_no_young_write() {
        let mut ledger = ledger();
        let id = ledger.issue(9, 1, |_| Content::Zero);
        ledger.writes[id as usize] = Write {
            issued: 90,
            told: None,
        };
        let blank = found(Content::Stamp(0), Content::Zero);
        let judgement = ledger.judge(&blank, Floor::Until(0), Order::Kept);
        assert_eq!(judgement.faults, Vec::<String>::new());
    }

    #[test]
    fn a_write_that_was_settled_as_absent_must_not_come_back() {
        let mut ledger = ledger();
        ledger.settle(&found(Content::Stamp(1), Content::Stamp(3)));
        let back = found(Content::Stamp(2), Content::Stamp(3));
        assert_eq!(
            ledger
                .judge(&back, Floor::Everything, Order::Free)
                .faults
                .len(),
            1
        );
        let mut ledger = self::ledger();
        ledger.settle(&found(Content::Stamp(2), Content::Stamp(3)));
        let gone = found(Content::Stamp(1), Content::Stamp(3));
        assert_eq!(
            ledger
                .judge(&gone, Floor::Everything, Order::Free)
                .faults
                .len(),
            1
        );
    }
    #[test]
    fn what_was_found_on_one_node_does_not_bind_the_other_one_that_was_parted_before() {
        let mut ledger = ledger();
        ledger.settle(&found(Content::Stamp(2), Content::Stamp(3)));
        let other = found(Content::Stamp(1), Content::Stamp(3));
        let judgement = ledger.judge(&other, Floor::Until(70), Order::Free);
        assert_eq!(judgement.faults, Vec::<String>::new());
    }
}
