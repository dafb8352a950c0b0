//! A disk in memory, with holes: what the engine asks of it is judged and done.

use std::collections::BTreeMap;

use bytes::Bytes;
use tandem_metadata::{
    AlGeometry, ByteLen, Flags, Layout, Placement, SectorCount, Superblock, Uuids, activity_log,
};
use tandem_replicator::{DiskOperation, MetaOperation};

const PAGE: u64 = 4096;

/// Bytes of the device: several extents of the activity log, one block of bitmap.
pub(super) const DEVICE_BYTES: u64 = 64 << 20;

static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// The backing device with internal metadata.
#[derive(Debug)]
pub(super) struct Backing {
    pages: BTreeMap<u64, Vec<u8>>,
    layout: Layout,
    /// End of the data.
    data_end: u64,
}

impl Backing {
    /// A device with metadata of these generations and this many bits set; `None`: as `create-md` leaves it.
    pub(super) fn new(uuids: Option<Uuids>, dirty: u64) -> Backing {
        let layout = Layout::new(
            Placement::Internal,
            ByteLen(DEVICE_BYTES),
            AlGeometry::DEFAULT,
        )
        .unwrap();
        let data = layout
            .capacity(SectorCount(DEVICE_BYTES / 512))
            .min(layout.data_size_max());
        let mut backing = Backing {
            pages: BTreeMap::new(),
            layout,
            data_end: data.0 * 512,
        };
        let block = activity_log::initialized_block();
        for number in 0..backing.layout.geometry().blocks() {
            let at = backing.layout.activity_log_block(number).0;
            backing.write(at, &block[..]);
        }
        let mut superblock = Superblock::fresh(&backing.layout);
        let mut bitmap = vec![0; backing.layout.bitmap_len().0 as usize];
        if let Some(uuids) = uuids {
            superblock.uuids = uuids;
            superblock.la_size = data;
            superblock.flags = Flags::CONSISTENT
                .with(Flags::WAS_UP_TO_DATE)
                .with(Flags::AL_CLEAN);
            for bit in 0..dirty.min(bitmap.len() as u64 * 8) {
                // Every third block, so that there are runs and gaps.
                let at = (bit * 3 % (data.0 / 8)) as usize;
                bitmap[at / 8] |= 1 << (at % 8);
            }
        } else {
            bitmap.fill(0xFF);
        }
        backing.write(backing.layout.bitmap_offset().0, &bitmap);
        let at = backing.layout.superblock_offset().0;
        backing.write(at, &superblock.encode()[..]);
        backing
    }

    /// Sectors of data.
    pub(super) fn sectors(&self) -> u64 {
        self.data_end / 512
    }

    /// Does what the engine asks of the data.
    pub(super) fn data(&mut self, operation: &DiskOperation) -> Bytes {
        match operation {
            DiskOperation::Read { offset, length } => {
                self.judge_data(*offset, u64::from(*length));
                return self.read(*offset, *length as usize);
            }
            DiskOperation::Write { offset, data, .. } => {
                self.judge_data(*offset, data.len() as u64);
                self.write(*offset, data);
            }
            DiskOperation::Discard { offset, length, .. }
            | DiskOperation::Zero { offset, length, .. } => {
                self.judge_data(*offset, u64::from(*length));
                self.zero(*offset, u64::from(*length));
            }
            DiskOperation::Flush => {}
        }
        Bytes::new()
    }

    /// Does what the engine asks of the metadata.
    pub(super) fn meta(&mut self, operation: &MetaOperation) -> Bytes {
        match operation {
            MetaOperation::Read { offset, length } => {
                self.judge_meta(*offset, u64::from(*length));
                return self.read(*offset, *length as usize);
            }
            MetaOperation::Write { offset, data, .. } => {
                self.judge_meta(*offset, data.len() as u64);
                self.write(*offset, data);
            }
            MetaOperation::Flush => {}
        }
        Bytes::new()
    }

    fn judge_data(&self, offset: u64, length: u64) {
        assert!(
            length > 0 && offset.is_multiple_of(512) && length.is_multiple_of(512),
            "I/O on {length} bytes at {offset} is not in whole sectors"
        );
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.data_end),
            "I/O on {length} bytes at {offset} leaves the data, which ends at {}",
            self.data_end
        );
    }

    fn judge_meta(&self, offset: u64, length: u64) {
        let (start, area) = self.layout.area();
        let end = offset.checked_add(length);
        assert!(
            length > 0 && offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE),
            "metadata I/O on {length} bytes at {offset} is not in whole blocks"
        );
        assert!(
            offset >= start.0 && end.is_some_and(|end| end <= start.0 + area.0),
            "metadata I/O on {length} bytes at {offset} leaves the area of the metadata"
        );
    }

    fn read(&self, offset: u64, length: usize) -> Bytes {
        let end = offset + length as u64;
        let mut used = self
            .pages
            .range(offset / PAGE..end.div_ceil(PAGE))
            .peekable();
        if used.peek().is_none() && length <= ZEROES.len() {
            return Bytes::from_static(&ZEROES[..length]);
        }
        let mut bytes = vec![0; length];
        for (page, contents) in used {
            let start = (page * PAGE).max(offset);
            let stop = ((page + 1) * PAGE).min(end);
            let from = (start - page * PAGE) as usize..(stop - page * PAGE) as usize;
            bytes[(start - offset) as usize..(stop - offset) as usize]
                .copy_from_slice(&contents[from]);
        }
        bytes.into()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = (at % PAGE) as usize;
            let count = rest.len().min(PAGE as usize - within);
            let page = self
                .pages
                .entry(at / PAGE)
                .or_insert_with(|| vec![0; PAGE as usize]);
            page[within..within + count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            at += count as u64;
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let inside: Vec<u64> = self
            .pages
            .range(offset / PAGE..end.div_ceil(PAGE))
            .map(|(page, _)| *page)
            .collect();
        for page in inside {
            let start = (page * PAGE).max(offset);
            let stop = ((page + 1) * PAGE).min(end);
            if stop - start == PAGE {
                self.pages.remove(&page);
            } else if let Some(contents) = self.pages.get_mut(&page) {
                contents[(start - page * PAGE) as usize..(stop - page * PAGE) as usize].fill(0);
            }
        }
    }
}
