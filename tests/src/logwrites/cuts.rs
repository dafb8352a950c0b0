//! The moments at which the power is cut, and what the medium holds then.
//!
//! Between two flushes the log has first what became durable at once (FUA) and marks, in the order of time, then the writes that
//! the second flush covered. So at a cut
//!
//! - everything up to a durable entry is there;
//! - just before the next flush ended, any subset of the writes that it covered may be there too, each whole or in some of its
//!   sectors;
//! - of a write with FUA that was next, some sectors may be there;
//! - at a mark, of the writes that the next flush covered those may be there that clients had issued by then (a stamp says so).

use std::collections::BTreeSet;

use crate::sim::dice::Dice;
use crate::sim::disk::Disk;
use crate::sim::stamp::{Content, Stamper};

use super::log::{Entry, SECTOR};

/// How many random subsets are tried at each place.
#[derive(Clone, Copy, Debug)]
pub struct Thoroughness {
    /// Subsets of the unflushed writes before each flush, besides none and all.
    pub subsets: u64,
    /// One of so many writes with FUA is torn.
    pub torn_of: u64,
}

/// A power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// After this entry, with nothing of what the next flush covers.
    After,
    /// With all that the next flush covers and the flush not yet ended.
    BeforeFlush,
    /// With some of that.
    Subset,
    /// At a mark, with some of what clients had issued.
    Issued,
    /// In the middle of a write with FUA.
    Torn,
}

/// Something to look at.
#[derive(Debug)]
pub struct Image<'a> {
    /// What was cut.
    pub cut: Cut,
    /// Entries of the log that are there completely.
    pub entries: usize,
    /// Number of the last mark before.
    pub mark: usize,
    /// The cut is at that mark itself: nothing was under way.
    pub at_mark: bool,
    /// The disk.
    pub disk: &'a Disk,
}

/// Counts of what was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries of the log.
    pub entries: usize,
    /// Flushes.
    pub flushes: usize,
    /// Writes with FUA.
    pub fua: usize,
    /// Marks.
    pub marks: usize,
    /// Images.
    pub images: usize,
}

/// A medium under replay.
///
/// dm-log-writes logs a write with FUA when it ends, and one without when the next flush ends: a write that was overtaken on
/// its sectors by a younger one with FUA stands behind it in the log. What clients write tells its age by its stamp.
#[derive(Clone, Debug)]
pub struct Medium {
    /// What it holds.
    pub disk: Disk,
    stamper: Stamper,
    /// Sectors written with FUA since the last flush.
    fua: BTreeSet<u64>,
}

impl Medium {
    /// A blank one.
    #[must_use]
    pub fn new(stamper: Stamper, bytes: u64) -> Medium {
        Medium {
            disk: Disk::new(stamper, bytes),
            stamper,
            fua: BTreeSet::new(),
        }
    }

    /// An entry happens.
    ///
    /// # Errors
    /// Nobody can tell which of two writes is the younger one.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), String> {
        self.apply_some(entry, || true)
    }

    /// It happens in the sectors that are chosen.
    fn apply_some(
        &mut self,
        entry: &Entry,
        mut chosen: impl FnMut() -> bool,
    ) -> Result<(), String> {
        match entry {
            Entry::Write { offset, data, fua } => {
                for (sector, bytes) in (offset / SECTOR..).zip(data.chunks_exact(SECTOR as usize)) {
                    let content = self.stamper.get(sector, bytes);
                    if !chosen() || !*fua && self.is_overtaken(sector, &content)? {
                        continue;
                    }
                    self.disk.set(sector, content, true);
                    if *fua {
                        self.fua.insert(sector);
                    }
                }
            }
            Entry::Discard { offset, length } => {
                for sector in offset / SECTOR..(offset + length) / SECTOR {
                    if chosen() {
                        self.disk.set(sector, Content::Zero, true);
                    }
                }
            }
            Entry::Flush => self.fua.clear(),
            Entry::Mark(_) => {}
        }
        Ok(())
    }

    /// It happens, or not, or in some of its sectors.
    fn apply_perhaps(&mut self, entry: &Entry, dice: &mut Dice) -> Result<(), String> {
        match dice.below(8) {
            0..3 => Ok(()),
            3..7 => self.apply(entry),
            _ => self.apply_some(entry, || dice.chance(1, 2)),
        }
    }

    fn is_overtaken(&self, sector: u64, content: &Content) -> Result<bool, String> {
        if !self.fua.contains(&sector) {
            return Ok(false);
        }
        match (self.disk.content(sector), content) {
            (there, new) if there == new => Ok(false),
            (Content::Stamp(there), Content::Stamp(new)) => Ok(new < there),
            // Clients flush after zeroes (stage): these are younger than what was written with FUA since the flush before.
            (Content::Stamp(_), Content::Zero) => Ok(false),
            (there, new) => Err(format!(
                "sector {sector}: which of {there:?} (FUA) and {new:?} is the younger?"
            )),
        }
    }
}

/// What is replayed.
#[derive(Debug)]
pub struct Script<'a> {
    /// The log.
    pub log: &'a [Entry],
    /// Bytes of the device.
    pub disk_bytes: u64,
    /// The stamps of the clients.
    pub stamper: Stamper,
    /// The youngest write that was issued, at each mark.
    pub issued: &'a [u64],
    /// How much is tried.
    pub thoroughness: Thoroughness,
    /// Chooses.
    pub dice: Dice,
}

/// A replay under way.
struct Replay<'a, 's, L> {
    script: &'a mut Script<'s>,
    look: L,
    counts: Counts,
    mark: Option<usize>,
}

/// Builds the image of every cut after mark 0 and shows it; the counts, and the disk at the end of the log.
///
/// # Errors
/// The first that `look` finds wrong, or a log without its marks.
pub fn replay(
    script: &mut Script<'_>,
    look: impl FnMut(&Image<'_>) -> Result<(), String>,
) -> Result<(Counts, Disk), String> {
    let mut medium = Medium::new(script.stamper, script.disk_bytes);
    let counts = Counts::default();
    let mut replay = Replay {
        script,
        look,
        counts,
        mark: None,
    };
    for index in 0..replay.script.log.len() {
        replay.step(index, &mut medium)?;
    }
    let (mark, marks) = (replay.mark, replay.script.issued.len());
    if mark.is_none_or(|mark| mark + 1 != marks) {
        return Err(format!("the log ends at mark {mark:?} of {marks}"));
    }
    Ok((replay.counts, medium.disk))
}

impl<L: FnMut(&Image<'_>) -> Result<(), String>> Replay<'_, '_, L> {
    fn step(&mut self, index: usize, medium: &mut Medium) -> Result<(), String> {
        let log = self.script.log;
        let entry = &log[index];
        self.counts.entries += 1;
        let at_mark = self.count(entry)?;
        if let Entry::Write { fua: true, .. } = entry
            && self.script.dice.chance(1, self.script.thoroughness.torn_of)
        {
            let mut torn = medium.clone();
            let dice = &mut self.script.dice;
            torn.apply_some(entry, || dice.chance(1, 2))?;
            self.show(Cut::Torn, index, false, &torn)?;
        }
        medium
            .apply(entry)
            .map_err(|why| format!("entry {index}: {why}"))?;
        if !entry.is_durable() {
            return Ok(());
        }
        self.show(Cut::After, index + 1, at_mark, medium)?;
        let rest = &log[index + 1..];
        let covered = covered(rest);
        if let Some(mark) = self.mark.filter(|_| at_mark) {
            let issued = self.script.issued[mark];
            let mut kept = medium.clone();
            for entry in covered
                .iter()
                .filter(|entry| is_issued(entry, medium.stamper, issued))
            {
                kept.apply_perhaps(entry, &mut self.script.dice)?;
            }
            self.show(Cut::Issued, index + 1, true, &kept)?;
        }
        // The writes stand right before their flush: this is the last durable entry before it.
        if covered.is_empty() || covered.len() != run_length(rest) {
            return Ok(());
        }
        let mut all = medium.clone();
        covered.iter().try_for_each(|entry| all.apply(entry))?;
        self.show(Cut::BeforeFlush, index + 1, false, &all)?;
        for _ in 0..self.script.thoroughness.subsets {
            let mut kept = medium.clone();
            for entry in &covered {
                kept.apply_perhaps(entry, &mut self.script.dice)?;
            }
            self.show(Cut::Subset, index + 1, false, &kept)?;
        }
        Ok(())
    }

    /// Counts an entry. True: it is a mark of the ledger.
    fn count(&mut self, entry: &Entry) -> Result<bool, String> {
        match entry {
            Entry::Flush => self.counts.flushes += 1,
            Entry::Write { fua: true, .. } => self.counts.fua += 1,
            Entry::Write { .. } | Entry::Discard { .. } => {}
            Entry::Mark(name) => {
                self.counts.marks += 1;
                let Some(number) = number_of(name) else {
                    return Ok(false);
                };
                let expected = self.mark.map_or(0, |mark| mark + 1);
                if number != expected || number >= self.script.issued.len() {
                    return Err(format!("mark {name} comes where {expected} is expected"));
                }
                self.mark = Some(number);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn show(
        &mut self,
        cut: Cut,
        entries: usize,
        at_mark: bool,
        medium: &Medium,
    ) -> Result<(), String> {
        let Some(mark) = self.mark else { return Ok(()) };
        self.counts.images += 1;
        let image = Image {
            cut,
            entries,
            mark,
            at_mark,
            disk: &medium.disk,
        };
        (self.look)(&image).map_err(|why| {
            let log = self.script.log;
            let around = entries.saturating_sub(8)..(entries + 12).min(log.len());
            let words: Vec<String> = around
                .map(|index| format!("{index}: {}", words(&log[index])))
                .collect();
            format!(
                "cut {cut:?} after {entries} entries, after mark {mark}: {why}\n  entries: {}",
                words.join("; ")
            )
        })
    }
}

/// An entry in a few words.
#[must_use]
pub fn words(entry: &Entry) -> String {
    match entry {
        Entry::Write { offset, data, fua } => {
            format!(
                "write {offset}+{}{}",
                data.len(),
                if *fua { " FUA" } else { "" }
            )
        }
        Entry::Discard { offset, length } => format!("discard {offset}+{length}"),
        Entry::Flush => "flush".to_owned(),
        Entry::Mark(name) => format!("mark {name}"),
    }
}

/// The name of a mark in the log.
#[must_use]
pub fn mark_name(number: usize) -> String {
    format!("step-{number}")
}

fn number_of(name: &str) -> Option<usize> {
    name.trim_end_matches('\0')
        .strip_prefix("step-")?
        .parse()
        .ok()
}

/// The writes that the next flush covers.
fn covered(rest: &[Entry]) -> Vec<&Entry> {
    rest.iter()
        .take_while(|entry| **entry != Entry::Flush)
        .filter(|entry| !entry.is_durable())
        .collect()
}

/// Entries until the next durable one.
fn run_length(rest: &[Entry]) -> usize {
    rest.iter().take_while(|entry| !entry.is_durable()).count()
}

/// A write of clients that was issued by then.
fn is_issued(entry: &Entry, stamper: Stamper, issued: u64) -> bool {
    let Entry::Write { offset, data, .. } = entry else {
        return false;
    };
    (offset / SECTOR..).zip(data.chunks_exact(SECTOR as usize)).all(|(sector, bytes)| {
        matches!(stamper.get(sector, bytes), Content::Stamp(write) if write <= issued)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamper() -> Stamper {
        Stamper::new(5)
    }

    fn write(id: u64, sector: u64, fua: bool) -> Entry {
        Entry::Write {
            offset: sector * SECTOR,
            data: stamper().payload(id, sector, 1),
            fua,
        }
    }

    fn mark(number: usize) -> Entry {
        Entry::Mark(mark_name(number))
    }

    fn script<'a>(log: &'a [Entry], issued: &'a [u64]) -> Script<'a> {
        let thoroughness = Thoroughness {
            subsets: 40,
            torn_of: 1,
        };
        let dice = Dice::new(1, "cuts");
        Script {
            log,
            disk_bytes: 4096,
            stamper: stamper(),
            issued,
            thoroughness,
            dice,
        }
    }

    fn images(log: &[Entry], issued: &[u64]) -> Vec<(Cut, usize, Vec<Content>)> {
        let mut seen = Vec::new();
        replay(&mut script(log, issued), |image| {
            let sectors = (0..3)
                .map(|sector| image.disk.content(sector).clone())
                .collect();
            seen.push((image.cut, image.entries, sectors));
            Ok(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn what_a_flush_or_fua_covered_is_in_every_later_image_and_the_rest_in_some() {
        let log = [
            mark(0),
            write(1, 0, true),
            write(2, 1, false),
            write(3, 2, false),
            Entry::Flush,
            mark(1),
        ];
        let seen = images(&log, &[0, 3]);
        let of = |cut: Cut| seen.iter().filter(move |(found, ..)| *found == cut);
        assert!(
            seen.iter()
                .filter(|(_, entries, _)| *entries >= 2)
                .all(|(.., on)| on[0] == Content::Stamp(1))
        );
        assert!(
            seen.iter()
                .filter(|(_, entries, _)| *entries >= 5)
                .all(|(.., on)| on[2] == Content::Stamp(3))
        );
        let mut subsets: Vec<_> = of(Cut::Subset).map(|(.., on)| format!("{on:?}")).collect();
        subsets.sort();
        subsets.dedup();
        assert_eq!(subsets.len(), 4, "none, each and both: {subsets:?}");
        assert_eq!(of(Cut::BeforeFlush).count(), 1);
        assert!(of(Cut::Torn).count() == 1);
    }

    #[test]
    fn at_a_mark_only_what_was_issued_may_be_there() {
        let log = [
            mark(0),
            mark(1),
            write(1, 0, false),
            write(2, 1, false),
            Entry::Flush,
            mark(2),
        ];
        let seen = images(&log, &[0, 1, 2]);
        let later = seen
            .iter()
            .filter(|(cut, entries, _)| *cut == Cut::Issued && *entries == 2);
        assert!(later.clone().count() == 1);
        assert!(later.into_iter().all(|(.., on)| on[1] == Content::Zero));
    }

    #[test]
    fn a_write_that_was_overtaken_by_one_with_fua_does_not_come_back() {
        let log = [
            mark(0),
            write(2, 0, true),
            write(1, 0, false),
            write(3, 1, false),
            Entry::Flush,
            write(4, 0, false),
            Entry::Flush,
            mark(1),
        ];
        let seen = images(&log, &[0, 4]);
        let late = seen
            .iter()
            .filter(|(_, entries, _)| (2..5).contains(entries));
        assert!(late.clone().count() > 40);
        assert!(
            late.into_iter().all(|(.., on)| on[0] == Content::Stamp(2)),
            "{seen:?}"
        );
        assert_eq!(
            seen.last().unwrap().2[..2],
            [Content::Stamp(4), Content::Stamp(3)]
        );
    }

    #[test]
    fn two_writes_whose_order_nobody_knows_are_an_error() {
        let raw = Entry::Write {
            offset: 0,
            data: vec![9; 512].into(),
            fua: false,
        };
        let log = [mark(0), write(2, 0, true), raw, Entry::Flush];
        let why = replay(&mut script(&log, &[0]), |_| Ok(())).unwrap_err();
        assert!(why.contains("the younger"), "{why}");
    }

    #[test]
    fn a_log_without_a_mark_of_the_ledger_is_an_error() {
        let run = |log: &[Entry], issued: &[u64]| {
            replay(&mut script(log, issued), |_| Ok(())).map(|(counts, _)| counts.marks)
        };
        assert!(run(&[mark(0), mark(2)], &[0, 0, 0]).is_err());
        assert!(run(&[mark(0)], &[0, 0]).is_err());
        assert_eq!(run(&[mark(0), mark(1)], &[0, 0]), Ok(2));
    }
}
