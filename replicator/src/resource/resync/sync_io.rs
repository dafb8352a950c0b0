//! What a resync has on its way to and from the disk, and how much that is.

use alloc::collections::BTreeMap;

use super::end::Repeat;
use super::source::Read;
use super::target::Write;
use crate::time::Time;

/// Blocks on their way to or from the disk. They outlive the resync that asked for them: an I/O ends when it ends.
#[derive(Debug, Default)]
pub(crate) struct SyncIo {
    pub(super) reads: BTreeMap<u64, Read>,
    pub(super) read_bytes: u64,
    /// Reads that are held back for the application.
    pub(super) delayed: usize,
    pub(super) writes: BTreeMap<u64, Write>,
    /// Blocks of 4 KiB in all writes.
    pub(super) write_blocks: u32,
    /// A finished target tells a kernel again that it is done, which may have missed it (wire-protocol.md 6.6).
    pub(super) repeat: Option<Repeat>,
}

impl SyncIo {
    /// Whether anything of a resync is still on its way.
    pub(in crate::resource) fn is_busy(&self) -> bool {
        !self.reads.is_empty() || !self.writes.is_empty()
    }

    pub(super) fn insert_read(&mut self, id: u64, read: Read) {
        self.read_bytes += u64::from(read.length());
        self.delayed += usize::from(read.due().is_some());
        self.reads.insert(id, read);
    }

    pub(super) fn take_read(&mut self, id: u64) -> Option<Read> {
        let read = self.reads.remove(&id)?;
        self.read_bytes -= u64::from(read.length());
        self.delayed -= usize::from(read.due().is_some());
        Some(read)
    }

    pub(super) fn insert_write(&mut self, id: u64, write: Write) {
        self.write_blocks += write.blocks();
        self.writes.insert(id, write);
    }

    pub(super) fn take_write(&mut self, id: u64) -> Option<Write> {
        let write = self.writes.remove(&id)?;
        self.write_blocks -= write.blocks();
        Some(write)
    }

    /// When the first of the reads that are held back goes on.
    pub(super) fn next_due(&self) -> Time {
        if self.delayed == 0 {
            return Time::NEVER;
        }
        let due = self.reads.values().filter_map(Read::due).min();
        due.unwrap_or(Time::NEVER)
    }

    /// What is counted fits what is there.
    pub(super) fn fits(&self) -> bool {
        let read_bytes: u64 = self
            .reads
            .values()
            .map(|read| u64::from(read.length()))
            .sum();
        let write_blocks: u32 = self.writes.values().map(Write::blocks).sum();
        let delayed = self.reads.values().filter_map(Read::due).count();
        (read_bytes, write_blocks, delayed) == (self.read_bytes, self.write_blocks, self.delayed)
    }
}
