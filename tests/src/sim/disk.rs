//! A disk with a volatile cache, in memory.
//!
//! - What is written is visible at once and volatile until a flush that was submitted after its completion has ended,
//!   or until it was written with FUA.
//! - A process that dies takes nothing along. At power loss every sector goes its own way: what was flushed, what was
//!   written last, or anything written in between.
//! - A request that was not finished by then did any part of its sectors, or none.
//! - If asked to ([`Disk::tear_sectors`]), a sector may be half written as well, but a superblock's: its format has no checksum
//!   (docs/spec/metadata.md), and relies on disks that write a sector whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tandem_metadata::Superblock;

use super::dice::Dice;
use super::stamp::{Content, SECTOR, Stamper, UNIT, UNITS};

/// A sector that is not all zeroes on the medium and in the cache.
#[derive(Clone, Debug)]
struct Cell {
    stable: Content,
    /// What the cache holds, oldest first, with the number of the write.
    volatile: Vec<(u64, Content)>,
}

impl Cell {
    fn visible(&self) -> &Content {
        self.volatile
            .last()
            .map_or(&self.stable, |(_, content)| content)
    }
}

/// One device.
#[derive(Clone, Debug)]
pub struct Disk {
    stamper: Stamper,
    bytes: u64,
    cells: BTreeMap<u64, Cell>,
    dirty: BTreeSet<u64>,
    writes: u64,
    /// First number of each write that may be volatile, ascending.
    operations: Vec<u64>,
    /// Sectors may be half written.
    tears_sectors: bool,
    /// Where sectors were cut: sector, unit.
    cuts: Vec<(u64, usize)>,
}

impl Disk {
    /// An empty device of so many bytes.
    #[must_use]
    pub fn new(stamper: Stamper, bytes: u64) -> Disk {
        Disk {
            stamper,
            bytes,
            cells: BTreeMap::new(),
            dirty: BTreeSet::new(),
            writes: 0,
            operations: Vec::new(),
            tears_sectors: false,
            cuts: Vec::new(),
        }
    }

    /// Where sectors have been cut since this was asked last: sector, unit.
    pub fn take_cuts(&mut self) -> Vec<(u64, usize)> {
        std::mem::take(&mut self.cuts)
    }

    /// From now on what cuts a write short may cut it inside a sector.
    pub fn tear_sectors(&mut self) {
        self.tears_sectors = true;
    }

    /// Size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The device gets longer by so many bytes, which are zero.
    pub fn grow(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Does a request lie on the device, in whole sectors?
    #[must_use]
    pub fn holds(&self, offset: u64, length: u64) -> bool {
        offset.is_multiple_of(SECTOR)
            && length.is_multiple_of(SECTOR)
            && length > 0
            && offset
                .checked_add(length)
                .is_some_and(|end| end <= self.bytes)
    }

    /// Contents as a reader sees them.
    #[must_use]
    pub fn content(&self, sector: u64) -> &Content {
        self.cells
            .get(&sector)
            .map_or(&Content::Zero, Cell::visible)
    }

    /// Sectors that may hold something else than zeroes, below `end`.
    pub fn used(&self, end: u64) -> impl Iterator<Item = u64> + '_ {
        self.cells.range(..end).map(|(sector, _)| *sector)
    }

    /// Reads.
    #[must_use]
    pub fn read(&self, offset: u64, length: u64) -> Bytes {
        let mut bytes = vec![0; length as usize];
        let first = offset / SECTOR;
        for (sector, cell) in self.cells.range(first..first + length / SECTOR) {
            let at = ((sector - first) * SECTOR) as usize;
            self.stamper
                .put(cell.visible(), *sector, &mut bytes[at..at + 512]);
        }
        bytes.into()
    }

    /// Writes; the request has ended.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) {
        self.begin(fua);
        for (index, chunk) in data.chunks_exact(512).enumerate() {
            let sector = offset / SECTOR + index as u64;
            let content = self.stamper.get(sector, chunk);
            self.set(sector, content, fua);
        }
    }

    /// Writes zeroes; the request has ended.
    pub fn zero(&mut self, offset: u64, length: u64, fua: bool) {
        self.begin(fua);
        for sector in offset / SECTOR..(offset + length) / SECTOR {
            self.set(sector, Content::Zero, fua);
        }
    }

    fn begin(&mut self, fua: bool) {
        if !fua {
            self.operations.push(self.writes + 1);
        }
    }

    /// Writes that a power loss may take back, oldest first.
    #[must_use]
    pub fn volatile_operations(&self) -> Vec<u64> {
        let numbers: BTreeSet<u64> = self
            .dirty
            .iter()
            .filter_map(|sector| self.cells.get(sector))
            .flat_map(|cell| cell.volatile.iter().map(|(number, _)| *number))
            .filter_map(|number| self.operation_of(number))
            .collect();
        numbers.into_iter().collect()
    }

    fn operation_of(&self, number: u64) -> Option<u64> {
        let after = self.operations.partition_point(|first| *first <= number);
        self.operations.get(after.checked_sub(1)?).copied()
    }

    /// The power fails: of what the cache held these writes are kept.
    pub fn lose_power_keeping(&mut self, kept: &BTreeSet<u64>) {
        for sector in std::mem::take(&mut self.dirty) {
            let Some(mut cell) = self.cells.remove(&sector) else {
                continue;
            };
            for (number, content) in std::mem::take(&mut cell.volatile) {
                if self
                    .operation_of(number)
                    .is_some_and(|operation| kept.contains(&operation))
                {
                    cell.stable = content;
                }
            }
            if cell.stable != Content::Zero {
                self.cells.insert(sector, cell);
            }
        }
        self.operations.clear();
    }

    /// One sector.
    pub fn set(&mut self, sector: u64, content: Content, fua: bool) {
        self.writes += 1;
        if fua {
            self.dirty.remove(&sector);
            if content == Content::Zero {
                self.cells.remove(&sector);
            } else {
                let volatile = Vec::new();
                let stable = content;
                self.cells.insert(sector, Cell { stable, volatile });
            }
            return;
        }
        let absent = !self.cells.contains_key(&sector);
        if absent && content == Content::Zero {
            return;
        }
        let cell = self.cells.entry(sector).or_insert(Cell {
            stable: Content::Zero,
            volatile: Vec::new(),
        });
        if cell.volatile.is_empty() && cell.stable == content {
            return;
        }
        cell.volatile.push((self.writes, content));
        self.dirty.insert(sector);
    }

    /// What a flush that is submitted now has to cover.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.writes
    }

    /// A flush has ended that was submitted at `mark`.
    pub fn flush(&mut self, mark: u64) {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            self.operations.clear();
        }
        for sector in dirty {
            let Some(cell) = self.cells.get_mut(&sector) else {
                continue;
            };
            while cell.volatile.first().is_some_and(|(at, _)| *at <= mark) {
                cell.stable = cell.volatile.remove(0).1;
            }
            if !cell.volatile.is_empty() {
                self.dirty.insert(sector);
            } else if cell.stable == Content::Zero {
                self.cells.remove(&sector);
            }
        }
    }

    /// The power fails: every sector of the cache keeps, loses or half keeps what it held.
    pub fn lose_power(&mut self, dice: &mut Dice) {
        let dirty = std::mem::take(&mut self.dirty);
        // A cache that loses all, one that keeps all, and one that is torn are all common.
        let manner = dice.below(4);
        let (stamper, tears) = (self.stamper, self.tears_sectors);
        for sector in dirty {
            let Some(cell) = self.cells.get_mut(&sector) else {
                continue;
            };
            let volatile = std::mem::take(&mut cell.volatile);
            let kept = match manner {
                0 => 0,
                1 => volatile.len(),
                _ if dice.chance(1, 2) => dice.below(volatile.len() as u64 + 1) as usize,
                _ => dice.pick(&[0, volatile.len()]),
            };
            if let Some((_, content)) = kept.checked_sub(1).and_then(|at| volatile.get(at)) {
                cell.stable = content.clone();
            }
            if let Some((_, next)) = volatile.get(kept).filter(|_| tears && manner > 1)
                && dice.chance(1, 3)
            {
                let (torn, cut) = half_written(stamper, sector, [&cell.stable, next], dice);
                cell.stable = torn;
                self.cuts.extend(cut.map(|cut| (sector, cut)));
            }
            if cell.stable == Content::Zero {
                self.cells.remove(&sector);
            }
        }
    }

    /// A write that was cut short: each sector was written or not, or in part.
    pub fn tear(&mut self, offset: u64, length: u64, data: Option<&[u8]>, dice: &mut Dice) {
        let manner = dice.below(3);
        for index in 0..length / SECTOR {
            let done = match manner {
                0 => false,
                1 => true,
                _ => dice.chance(1, 2),
            };
            let in_part = manner == 2 && self.tears_sectors && dice.chance(1, 4);
            if !done && !in_part {
                continue;
            }
            let sector = offset / SECTOR + index;
            let at = (index * SECTOR) as usize;
            let mut content = data.map_or(Content::Zero, |data| {
                self.stamper.get(sector, &data[at..at + 512])
            });
            if in_part {
                let parts = [self.content(sector), &content];
                let (torn, cut) = half_written(self.stamper, sector, parts, dice);
                content = torn;
                self.cuts.extend(cut.map(|cut| (sector, cut)));
            }
            self.set(sector, content, false);
        }
    }
}

/// A sector of which a first or a last part was overwritten, and the unit between them; all or nothing if it is a superblock's.
fn half_written(
    stamper: Stamper,
    sector: u64,
    [old, new]: [&Content; 2],
    dice: &mut Dice,
) -> (Content, Option<usize>) {
    let mut bytes = [[0; 512]; 2];
    for (content, bytes) in [old, new].into_iter().zip(&mut bytes) {
        stamper.put(content, sector, bytes);
    }
    if bytes.iter().any(is_superblock) {
        let whole = if dice.chance(1, 2) { old } else { new };
        return (whole.clone(), None);
    }
    let [mut torn, new] = bytes;
    let cut = dice.between(1, UNITS as u64 - 1) as usize;
    let at = cut * UNIT as usize;
    let written = if dice.chance(1, 2) {
        0..at
    } else {
        at..torn.len()
    };
    torn[written.clone()].copy_from_slice(&new[written]);
    (stamper.get(sector, &torn), Some(cut))
}

fn is_superblock(sector: &[u8; 512]) -> bool {
    let mut block = [0; 4096];
    block[..512].copy_from_slice(sector);
    Superblock::decode(&block).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (Disk, Stamper) {
        let stamper = Stamper::new(7);
        (Disk::new(stamper, 1 << 20), stamper)
    }

    #[test]
    fn a_flush_covers_what_was_completed_before_it_was_submitted() {
        let (mut disk, stamper) = disk();
        disk.write(0, &stamper.payload(1, 0, 1), false);
        let mark = disk.mark();
        disk.write(512, &stamper.payload(2, 1, 1), false);
        disk.flush(mark);
        for _ in 0..64 {
            let mut lost = disk.clone();
            lost.lose_power(&mut Dice::new(0, "loses"));
            assert_eq!(*lost.content(0), Content::Stamp(1));
        }
        let survivors: BTreeSet<_> = (0..64)
            .map(|seed| {
                let mut lost = disk.clone();
                lost.lose_power(&mut Dice::new(seed, "disk"));
                format!("{:?}", lost.content(1))
            })
            .collect();
        assert_eq!(survivors.len(), 2, "an unflushed sector is kept or lost");
    }

    #[test]
    fn a_sector_is_half_written_only_if_that_was_asked_for() {
        let (mut disk, stamper) = disk();
        disk.write(0, &stamper.payload(1, 0, 1), true);
        disk.write(0, &stamper.payload(2, 0, 1), false);
        let torn = |disk: &Disk| {
            let after_a_loss = |seed| {
                let mut lost = disk.clone();
                lost.lose_power(&mut Dice::new(seed, "tears"));
                lost.tear(
                    512,
                    512,
                    Some(&stamper.payload(3, 1, 1)),
                    &mut Dice::new(seed, "cut"),
                );
                [0, 1].map(|sector| matches!(lost.content(sector), Content::Mixed(_)))
            };
            (0..256).fold([false; 2], |[a, b], seed| {
                let [c, d] = after_a_loss(seed);
                [a || c, b || d]
            })
        };
        assert_eq!(torn(&disk), [false; 2]);
        disk.tear_sectors();
        assert_eq!(torn(&disk), [true; 2]);
    }

    #[test]
    fn fua_is_durable_and_a_moved_sector_is_foreign() {
        let (mut disk, stamper) = disk();
        disk.write(4096, &stamper.payload(3, 8, 2), true);
        disk.lose_power(&mut Dice::new(1, "disk"));
        assert_eq!(*disk.content(9), Content::Stamp(3));
        let moved = disk.read(4096, 512);
        disk.write(0, &moved, false);
        assert!(matches!(disk.content(0), Content::Raw(_)));
    }
}
