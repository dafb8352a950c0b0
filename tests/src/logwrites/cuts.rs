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

/// Builds the image of every cut and shows it.
///
/// `first` and `issued` belong to the ledger: the name of mark 0, and the youngest write at each mark.
///
/// # Errors
/// The first that `look` finds wrong, or a log without its marks.
pub fn replay(
    log: &[Entry],
    (disk_bytes, stamper): (u64, Stamper),
    issued: &[u64],
    thoroughness: Thoroughness,
    dice: &mut Dice,
    mut look: impl FnMut(&Image<'_>) -> Result<(), String>,
) -> Result<Counts, String> {
    let mut counts = Counts::default();
    let mut disk = Disk::new(stamper, disk_bytes);
    let mut mark = None;
    for (index, entry) in log.iter().enumerate() {
        counts.entries += 1;
        let mut at_mark = false;
        match entry {
            Entry::Flush => counts.flushes += 1,
            Entry::Write { fua: true, .. } => counts.fua += 1,
            Entry::Mark(name) => {
                counts.marks += 1;
                if let Some(number) = number_of(name) {
                    if number != mark.map_or(0, |mark| mark + 1) || number >= issued.len() {
                        return Err(format!("mark {name} comes after mark {mark:?}"));
                    }
                    mark = Some(number);
                    at_mark = true;
                }
            }
            Entry::Write { .. } | Entry::Discard { .. } => {}
        }
        if let (Some(mark), Entry::Write { offset, data, fua: true }) = (mark, entry)
            && dice.chance(1, thoroughness.torn_of)
        {
            let mut torn = disk.clone();
            torn.tear(*offset, data.len() as u64, Some(data), dice);
            show(&mut counts, &mut look, Cut::Torn, index, mark, &torn)?;
        }
        apply(&mut disk, entry);
        let Some(mark) = mark else { continue };
        if !entry.is_durable() {
            continue;
        }
        let image = Image { cut: Cut::After, entries: index + 1, mark, at_mark, disk: &disk };
        counts.images += 1;
        look(&image).map_err(|why| explain(&image, log, &why))?;
        let covered = covered(&log[index + 1..]);
        if at_mark {
            let mut kept = disk.clone();
            for entry in covered.iter().copied().filter(|entry| is_issued(entry, stamper, issued[mark])) {
                keep_some(&mut kept, entry, dice);
            }
            let image = Image { cut: Cut::Issued, entries: index + 1, mark, at_mark, disk: &kept };
            counts.images += 1;
            look(&image).map_err(|why| explain(&image, log, &why))?;
        }
        // The writes stand right before their flush: this is the last durable entry before it.
        if !covered.is_empty() && covered.len() == run_length(&log[index + 1..]) {
            for turn in 0..thoroughness.subsets + 1 {
                let mut kept = disk.clone();
                for entry in &covered {
                    match turn {
                        0 => apply(&mut kept, entry),
                        _ => keep_some(&mut kept, entry, dice),
                    }
                }
                let cut = if turn == 0 { Cut::BeforeFlush } else { Cut::Subset };
                show(&mut counts, &mut look, cut, index + 1, mark, &kept).map_err(|why| format!("{why} (of {} unflushed writes)", covered.len()))?;
            }
        }
    }
    if mark.is_none_or(|mark| mark + 1 != issued.len()) {
        return Err(format!("the log ends at mark {mark:?} of {}", issued.len()));
    }
    Ok(counts)
}

fn show(
    counts: &mut Counts,
    look: &mut impl FnMut(&Image<'_>) -> Result<(), String>,
    cut: Cut,
    entries: usize,
    mark: usize,
    disk: &Disk,
) -> Result<(), String> {
    counts.images += 1;
    let image = Image { cut, entries, mark, at_mark: false, disk };
    look(&image).map_err(|why| format!("cut {cut:?} after {entries} entries, after mark {mark}: {why}"))
}

fn explain(image: &Image<'_>, log: &[Entry], why: &str) -> String {
    let last: Vec<String> = log[image.entries.saturating_sub(8)..image.entries].iter().map(words).collect();
    format!(
        "cut {:?} after {} entries, after mark {}: {why}\n  the last entries: {}",
        image.cut,
        image.entries,
        image.mark,
        last.join("; ")
    )
}

/// An entry in a few words.
#[must_use]
pub fn words(entry: &Entry) -> String {
    match entry {
        Entry::Write { offset, data, fua } => {
            format!("write {offset}+{}{}", data.len(), if *fua { " FUA" } else { "" })
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
    name.trim_end_matches('\0').strip_prefix("step-")?.parse().ok()
}

/// An entry happens.
pub fn apply(disk: &mut Disk, entry: &Entry) {
    match entry {
        Entry::Write { offset, data, .. } => disk.write(*offset, data, true),
        Entry::Discard { offset, length } => disk.zero(*offset, *length, true),
        Entry::Flush | Entry::Mark(_) => {}
    }
}

/// It happens, or not, or in some of its sectors.
fn keep_some(disk: &mut Disk, entry: &Entry, dice: &mut Dice) {
    let (offset, length, data) = match entry {
        Entry::Write { offset, data, .. } => (*offset, data.len() as u64, Some(&data[..])),
        Entry::Discard { offset, length } => (*offset, *length, None),
        Entry::Flush | Entry::Mark(_) => return,
    };
    match dice.below(8) {
        0..3 => {}
        3..7 => apply(disk, entry),
        _ => disk.tear(offset, length, data, dice),
    }
}

/// The writes that the next flush covers.
fn covered(rest: &[Entry]) -> Vec<&Entry> {
    rest.iter().take_while(|entry| **entry != Entry::Flush).filter(|entry| !entry.is_durable()).collect()
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
        Entry::Write { offset: sector * SECTOR, data: stamper().payload(id, sector, 1), fua }
    }

    fn mark(number: usize) -> Entry {
        Entry::Mark(mark_name(number))
    }

    fn images(log: &[Entry], issued: &[u64]) -> Vec<(Cut, usize, Vec<Content>)> {
        let mut seen = Vec::new();
        let thoroughness = Thoroughness { subsets: 40, torn_of: 1 };
        let mut dice = Dice::new(1, "cuts");
        replay(log, (4096, stamper()), issued, thoroughness, &mut dice, |image| {
            let sectors = (0..3).map(|sector| image.disk.content(sector).clone()).collect();
            seen.push((image.cut, image.entries, sectors));
            Ok(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn what_a_flush_or_fua_covered_is_in_every_later_image_and_the_rest_in_some() {
        let log = [mark(0), write(1, 0, true), write(2, 1, false), write(3, 2, false), Entry::Flush, mark(1)];
        let seen = images(&log, &[0, 3]);
        let of = |cut: Cut| seen.iter().filter(move |(found, ..)| *found == cut);
        assert!(seen.iter().filter(|(_, entries, _)| *entries >= 2).all(|(.., on)| on[0] == Content::Stamp(1)));
        assert!(seen.iter().filter(|(_, entries, _)| *entries >= 5).all(|(.., on)| on[2] == Content::Stamp(3)));
        let mut subsets: Vec<_> = of(Cut::Subset).map(|(.., on)| format!("{on:?}")).collect();
        subsets.sort();
        subsets.dedup();
        assert_eq!(subsets.len(), 4, "none, each and both: {subsets:?}");
        assert_eq!(of(Cut::BeforeFlush).count(), 1);
        assert!(of(Cut::Torn).count() == 1);
    }

    #[test]
    fn at_a_mark_only_what_was_issued_may_be_there() {
        let log = [mark(0), mark(1), write(1, 0, false), write(2, 1, false), Entry::Flush, mark(2)];
        let seen = images(&log, &[0, 1, 2]);
        let later = seen.iter().filter(|(cut, entries, _)| *cut == Cut::Issued && *entries == 2);
        assert!(later.clone().count() == 1);
        assert!(later.into_iter().all(|(.., on)| on[1] == Content::Zero));
    }

    #[test]
    fn a_log_without_a_mark_of_the_ledger_is_an_error() {
        let thoroughness = Thoroughness { subsets: 0, torn_of: 1 };
        let run = |log: &[Entry], issued: &[u64]| {
            replay(log, (4096, stamper()), issued, thoroughness, &mut Dice::new(1, "cuts"), |_| Ok(()))
        };
        assert!(run(&[mark(0), mark(2)], &[0, 0, 0]).is_err());
        assert!(run(&[mark(0)], &[0, 0]).is_err());
        assert_eq!(run(&[mark(0), mark(1)], &[0, 0]).unwrap().marks, 2);
    }
}
