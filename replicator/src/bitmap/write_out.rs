//! The bitmap and the disk: reading pages at attach, which pages must be written, and writes in flight
//! (spec/metadata.md 4.4).

use alloc::vec;
use alloc::vec::Vec;

use super::page::{Content, PAGE_BITS, PAGE_BYTES, PAGE_WORDS};
use super::{Bitmap, BitmapError, Urgency};

/// A write of a page that was started and not yet answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    generation: u64,
    /// The mark that the page had when the write was started; it comes back if the write fails.
    change: Urgency,
}

/// How a page in memory relates to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageChange {
    /// Equal to what was last written, and that write is finished.
    None,
    /// Changed; no write in flight.
    Changed(Urgency),
    /// Being written, unchanged since; the urgency is that of the change being written.
    Writing(Urgency),
    /// Being written, and changed again since the write was started: it must be written once more.
    WritingAndChanged(Urgency),
}

/// Which pages to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteSelection {
    /// Pages with changes that must be on disk before an eviction.
    Urgent,
    /// Every changed page.
    Changed,
    /// Every page, changed or not: the metadata moved.
    All,
}

/// One page to write, as it is now: little-endian words, zeros past the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageWrite {
    /// Number of the page: it belongs at byte `4096 * page` of the bitmap area.
    pub page: u32,
    /// To be given to [`Bitmap::finish_write`].
    pub generation: u64,
    /// 4096 bytes.
    pub bytes: Vec<u8>,
}

impl Bitmap {
    /// Whether every page that holds bits of the range has been read from disk.
    pub fn is_read(&self, range: core::ops::Range<u64>) -> bool {
        self.unread_pages == 0
            || self
                .parts(range)
                .all(|(index, _)| !self.pages[index].unread)
    }

    /// Pages not yet read from disk.
    pub fn unread_pages(&self) -> u32 {
        self.unread_pages
    }

    /// Takes the bits of a page from disk. Bits set in memory before stay set; bits past the end are ignored (drbdmeta
    /// and the kernel leave garbage there). A page that was read before is left alone: memory is newer than the disk.
    ///
    /// # Errors
    /// [`BitmapError::NoSuchPage`], [`BitmapError::PageLength`].
    pub fn load_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), BitmapError> {
        let index = self.index(page)?;
        if bytes.len() != PAGE_BYTES {
            return Err(BitmapError::PageLength {
                page,
                got: bytes.len(),
            });
        }
        if !core::mem::take(&mut self.pages[index].unread) {
            return Ok(());
        }
        self.unread_pages -= 1;
        if *bytes == [0; PAGE_BYTES] {
            return Ok(());
        }
        let valid = self.valid(index);
        let content = &mut self.pages[index].content;
        let before = content.count(valid);
        let mut words = content.words(valid);
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            *word |= u64::from_le_bytes(value);
        }
        *content = Content::of_words(words, valid);
        self.count += u64::from(content.count(valid) - before);
        Ok(())
    }

    /// As [`Bitmap::load_page`] with pages of zeros, cut at the end: a hole of a sparse file.
    pub fn load_hole(&mut self, pages: core::ops::Range<u32>) {
        let end = pages.end.min(self.page_count());
        for page in &mut self.pages[pages.start.min(end) as usize..end as usize] {
            self.unread_pages -= u32::from(core::mem::take(&mut page.unread));
        }
    }

    /// The bytes of a page as they belong on disk.
    ///
    /// # Errors
    /// [`BitmapError::NoSuchPage`], [`BitmapError::PageLength`].
    pub fn page_bytes(&self, page: u32, out: &mut [u8]) -> Result<(), BitmapError> {
        let index = self.index(page)?;
        if out.len() != PAGE_BYTES {
            return Err(BitmapError::PageLength {
                page,
                got: out.len(),
            });
        }
        let valid = self.valid(index);
        let words = self.pages[index].content.words(valid);
        for (out, word) in out.chunks_exact_mut(8).zip(words) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        Ok(())
    }

    /// Number of pages changed since their last write was started.
    pub fn changed_pages(&self) -> u32 {
        self.changed_pages
    }

    /// Whether writes of pages are in flight.
    pub fn writes_in_flight(&self) -> usize {
        self.writes.len()
    }

    /// How a page relates to the disk. A page that does not exist has no change.
    pub fn page_change(&self, page: u32) -> PageChange {
        let change = self.pages.get(page as usize).and_then(|page| page.change);
        match (self.writes.get(&page), change) {
            (None, None) => PageChange::None,
            (None, Some(urgency)) => PageChange::Changed(urgency),
            (Some(write), None) => PageChange::Writing(write.change),
            (Some(_), Some(urgency)) => PageChange::WritingAndChanged(urgency),
        }
    }

    /// Whether the page must be written, or a write of it finished, before an activity-log block evicts an extent
    /// that it covers. Lazy changes do not count.
    pub fn blocks_eviction(&self, page: u32) -> bool {
        match self.page_change(page) {
            PageChange::None => false,
            PageChange::Changed(urgency) | PageChange::Writing(urgency) => {
                urgency == Urgency::BeforeEviction
            }
            PageChange::WritingAndChanged(urgency) => {
                let written = self.writes.get(&page).map(|write| write.change);
                written.max(Some(urgency)) == Some(Urgency::BeforeEviction)
            }
        }
    }

    /// Marks a page as changed: what the disk holds is not to be trusted.
    ///
    /// # Errors
    /// [`BitmapError::NoSuchPage`].
    pub fn mark_page(&mut self, page: u32, urgency: Urgency) -> Result<(), BitmapError> {
        let index = self.index(page)?;
        self.mark(index, urgency);
        Ok(())
    }

    /// Up to `max` pages to write at or after page `from`, ascending. Pages with a write in flight are left out (start
    /// them again when it is finished), and so are pages that were not read yet, since writing would lose their bits.
    pub fn pages_to_write(&self, selection: WriteSelection, from: u32, max: usize) -> Vec<u32> {
        if selection != WriteSelection::All && self.changed_pages == 0 {
            return Vec::new();
        }
        (from..self.page_count())
            .filter(|number| {
                let page = &self.pages[*number as usize];
                let wanted = match selection {
                    WriteSelection::Urgent => page.change == Some(Urgency::BeforeEviction),
                    WriteSelection::Changed => page.change.is_some(),
                    WriteSelection::All => true,
                };
                wanted && !page.unread && !self.writes.contains_key(number)
            })
            .take(max)
            .collect()
    }

    /// Starts the write of a page: gives its bytes and removes its mark. None if the page does not exist, has a write
    /// in flight, or was not read yet.
    pub fn start_write(&mut self, page: u32) -> Option<PageWrite> {
        let index = self.index(page).ok()?;
        if self.pages[index].unread || self.writes.contains_key(&page) {
            return None;
        }
        let mut bytes = vec![0; PAGE_BYTES];
        self.page_bytes(page, &mut bytes).ok()?;
        let change = self.pages[index].change.take();
        self.changed_pages -= u32::from(change.is_some());
        self.write_generation += 1;
        let generation = self.write_generation;
        // A page written without a mark (WriteSelection::All) is wanted on disk as urgently as any other.
        let change = change.unwrap_or(Urgency::BeforeEviction);
        self.writes.insert(page, InFlight { generation, change });
        Some(PageWrite {
            page,
            generation,
            bytes,
        })
    }

    /// The answer to a write. A failed one marks the page again. Answers of writes that were started before the page
    /// was dropped by a shrink are ignored.
    pub fn finish_write(
        &mut self,
        page: u32,
        generation: u64,
        outcome: WriteOutcome,
    ) -> PageChange {
        let started = self.writes.get(&page).copied();
        if let Some(write) = started.filter(|write| write.generation == generation) {
            self.writes.remove(&page);
            if outcome == WriteOutcome::Failed {
                self.mark(page as usize, write.change);
            }
        }
        self.page_change(page)
    }

    /// The pages that hold the bits of a range.
    pub fn pages_of(&self, range: core::ops::Range<u64>) -> core::ops::Range<u32> {
        let end = range.end.min(self.bits);
        if range.start >= end {
            return 0..0;
        }
        let page = |bit: u64| u32::try_from(bit / PAGE_BITS).unwrap_or(u32::MAX);
        page(range.start)..page(end - 1) + 1
    }

    fn index(&self, page: u32) -> Result<usize, BitmapError> {
        let index = page as usize;
        if index < self.pages.len() {
            Ok(index)
        } else {
            Err(BitmapError::NoSuchPage {
                page,
                pages: self.page_count(),
            })
        }
    }
}

/// How a write of a page ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The device has it (not necessarily on stable storage: the flush of the next log block makes it so).
    Written,
    /// The write failed.
    Failed,
}

const _: () = assert!(PAGE_WORDS * 8 == PAGE_BYTES && PAGE_WORDS as u64 * 64 == PAGE_BITS);
