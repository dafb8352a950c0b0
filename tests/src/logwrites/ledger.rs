//! What clients wrote and were told, with everything known about both nodes at every mark of the log. At a mark nothing is under
//! way: every request was answered before the mark was made.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::disk::Disk;
use crate::sim::stamp::Content;

/// Youngest write by sector.
pub type Floor = BTreeMap<u64, u64>;

/// What the node in the machine is, as its administrator knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestDisk {
    /// Its disk is attached and good.
    Good,
    /// It is the target of a resync that is under way.
    Target,
    /// Its disk is detached, or the node is down or alone as Secondary: what others write it does not get.
    Absent,
}

/// The role of the node in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRole {
    /// Primary, with or without a disk.
    Primary,
    /// Secondary, or down after it was.
    Secondary,
}

/// What the step before a mark may have done to the states of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Only clients did something.
    Steady,
    /// A role, a connection, a disk or a resync changed.
    Transition,
}

/// A moment between two steps.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Names the step that ended here.
    pub name: String,
    /// The youngest write that was issued.
    pub issued: u64,
    /// What the step was.
    pub pace: Pace,
    /// The node in the machine.
    pub role: GuestRole,
    /// Its disk.
    pub disk: GuestDisk,
    /// Youngest answered write of each sector.
    pub acknowledged: Floor,
    /// Youngest write of each sector that a flush or FUA made durable, on whichever disks were good.
    pub durable: Floor,
    /// Of these, what was promised to be on the disk in the machine.
    pub guest_durable: Floor,
    /// Sectors that the step wrote.
    pub written: BTreeSet<u64>,
    /// The disk of the node on this host.
    pub peer: Disk,
}

/// Everything.
#[derive(Debug, Default)]
pub struct Ledger {
    /// All writes of each sector, oldest first.
    pub versions: BTreeMap<u64, Vec<(u64, Content)>>,
    /// All marks, in the order of the log.
    pub marks: Vec<Mark>,
}

impl Ledger {
    /// Whether a sector may hold this: a write not older than `floor` and not younger than `issued`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn allowed(
        &self,
        sector: u64,
        content: &Content,
        floor: u64,
        issued: u64,
    ) -> Result<(), String> {
        let blank = (0, Content::Zero);
        let versions = self.versions.get(&sector);
        let all = std::iter::once(&blank).chain(versions.into_iter().flatten());
        let mut found = None;
        for (write, _) in all.filter(|(_, written)| written == content) {
            if (floor..=issued).contains(write) {
                return Ok(());
            }
            found = Some(*write);
        }
        Err(match found {
            Some(write) if write < floor => {
                format!(
                    "sector {sector} holds {content:?} (write {write}), but write {floor} was promised to be durable there"
                )
            }
            Some(write) => format!(
                "sector {sector} holds write {write}, which was issued later (so far {issued})"
            ),
            None => format!("sector {sector} holds {content:?}, which was never written there"),
        })
    }

    /// A write was issued.
    pub fn issue(&mut self, write: u64, sector: u64, content: Content) {
        self.versions
            .entry(sector)
            .or_default()
            .push((write, content));
    }
}

/// Raises a floor.
pub fn raise(floor: &mut Floor, sectors: std::ops::Range<u64>, write: u64) {
    for sector in sectors {
        let at = floor.entry(sector).or_insert(0);
        *at = write.max(*at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_a_future_and_a_foreign_value_are_told_apart() {
        let mut ledger = Ledger::default();
        ledger.issue(3, 8, Content::Stamp(3));
        ledger.issue(5, 8, Content::Zero);
        ledger.issue(7, 8, Content::Stamp(7));
        assert_eq!(ledger.allowed(8, &Content::Stamp(3), 0, 9), Ok(()));
        assert_eq!(ledger.allowed(8, &Content::Zero, 4, 9), Ok(()));
        let lost = ledger.allowed(8, &Content::Stamp(3), 5, 9).unwrap_err();
        assert!(lost.contains("write 5 was promised"), "{lost}");
        let future = ledger.allowed(8, &Content::Stamp(7), 0, 6).unwrap_err();
        assert!(future.contains("issued later"), "{future}");
        let foreign = ledger.allowed(8, &Content::Stamp(4), 0, 9).unwrap_err();
        assert!(foreign.contains("never written"), "{foreign}");
        assert_eq!(ledger.allowed(9, &Content::Zero, 0, 9), Ok(()));
        assert!(ledger.allowed(9, &Content::Zero, 1, 9).is_err());
    }
}
