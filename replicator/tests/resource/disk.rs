//! A disk in memory with a volatile cache, and questions about what an engine asks of it.

use bytes::Bytes;
use tandem_metadata::{AlGeometry, ByteLen, Layout, Placement, Superblock, activity_log};
use tandem_replicator::{DiskOperation, Effect, Fua, MetaOperation};

/// Bytes of a backing device: small, with several activity-log extents.
pub const DISK_BYTES: u64 = 64 << 20;

/// A backing device. Writes are visible at once and durable after a flush, or with FUA.
#[derive(Clone)]
pub struct Disk {
    /// What reads return.
    pub current: Vec<u8>,
    /// What survives a loss of power.
    pub durable: Vec<u8>,
    unflushed: Vec<(u64, Bytes)>,
    /// Internal metadata's layout.
    pub layout: Layout,
}

impl Disk {
    /// A device with fresh internal metadata, as `create-md` leaves it.
    pub fn fresh(bytes: u64) -> Disk {
        Disk::formatted(Placement::Internal, bytes)
    }

    /// A device with nothing but fresh external metadata.
    pub fn metadata(bytes: u64) -> Disk {
        Disk::formatted(Placement::FlexibleExternal, bytes)
    }

    /// A slot of 128 MiB with fresh metadata.
    pub fn slot() -> Disk {
        Disk::formatted(Placement::Indexed(0), 128 << 20)
    }

    fn formatted(placement: Placement, bytes: u64) -> Disk {
        let layout = Layout::new(placement, ByteLen(bytes), AlGeometry::DEFAULT).unwrap();
        let mut disk = Disk::blank(bytes, layout);
        let block = activity_log::initialized_block();
        for number in 0..layout.geometry().blocks() {
            disk.put(layout.activity_log_block(number).0, &block[..]);
        }
        let bitmap = vec![0xFF; layout.bitmap_len().0 as usize];
        disk.put(layout.bitmap_offset().0, &bitmap);
        disk.set_superblock(&Superblock::fresh(&layout));
        disk
    }

    /// A device without metadata.
    pub fn without_metadata(bytes: u64) -> Disk {
        let layout = Layout::new(Placement::Internal, ByteLen(bytes), AlGeometry::DEFAULT).unwrap();
        Disk::blank(bytes, layout)
    }

    /// A device of zeroes.
    pub fn blank(bytes: u64, layout: Layout) -> Disk {
        Disk {
            current: vec![0; bytes as usize],
            durable: vec![0; bytes as usize],
            unflushed: Vec::new(),
            layout,
        }
    }

    /// It gets larger; the new end is zero.
    pub fn grow(&mut self, bytes: u64) {
        self.current.resize(bytes as usize, 0);
        self.durable.resize(bytes as usize, 0);
    }

    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        let range = offset as usize..offset as usize + bytes.len();
        self.current[range.clone()].copy_from_slice(bytes);
        self.durable[range].copy_from_slice(bytes);
    }

    /// The superblock that would be found after a loss of power.
    pub fn superblock(&self) -> Superblock {
        let at = self.layout.superblock_offset().0 as usize;
        Superblock::decode(&self.durable[at..at + 4096]).unwrap()
    }

    /// Writes a superblock, durable.
    pub fn set_superblock(&mut self, superblock: &Superblock) {
        let block = superblock.encode();
        self.put(self.layout.superblock_offset().0, &block[..]);
    }

    /// Changes the superblock, durable.
    pub fn edit_superblock(&mut self, edit: impl FnOnce(&mut Superblock)) {
        let mut superblock = self.superblock();
        edit(&mut superblock);
        self.set_superblock(&superblock);
    }

    /// The number of set bits on stable storage.
    pub fn bits_durable(&self) -> u64 {
        let bits = self.superblock().la_size.0.div_ceil(8);
        let at = self.layout.bitmap_offset().0 as usize;
        let len = self.layout.bitmap_len().0 as usize;
        tandem_metadata::bitmap::count(&self.durable[at..at + len], bits)
    }

    /// Extents that a replay of the activity log on stable storage finds.
    pub fn hot_extents(&self) -> Vec<u32> {
        let at = self.layout.activity_log_offset().0 as usize;
        let len = self.layout.activity_log_len().0 as usize;
        let ring = &self.durable[at..at + len];
        let replay = tandem_metadata::Replay::of(ring, self.layout.geometry()).unwrap();
        replay.active().into_iter().map(|extent| extent.0).collect()
    }

    pub fn write(&mut self, offset: u64, data: &Bytes, fua: Fua) {
        let range = offset as usize..offset as usize + data.len();
        self.current[range.clone()].copy_from_slice(data);
        match fua {
            Fua::Yes => {
                self.durable[range].copy_from_slice(data);
                self.supersede(offset, data);
            }
            Fua::No => self.unflushed.push((offset, data.clone())),
        }
    }

    /// What is still volatile no longer holds anything older than these bytes.
    fn supersede(&mut self, offset: u64, data: &[u8]) {
        for (at, old) in &mut self.unflushed {
            let first = offset.max(*at);
            let end = (offset + data.len() as u64).min(*at + old.len() as u64);
            if first < end {
                let mut bytes = old.to_vec();
                bytes[(first - *at) as usize..(end - *at) as usize]
                    .copy_from_slice(&data[(first - offset) as usize..(end - offset) as usize]);
                *old = bytes.into();
            }
        }
    }

    pub fn flush(&mut self) {
        for (offset, data) in std::mem::take(&mut self.unflushed) {
            let range = offset as usize..offset as usize + data.len();
            self.durable[range].copy_from_slice(&data);
        }
    }

    /// The volatile cache wrote some of it by itself: those writes, by their order, for which `keep` says so.
    pub fn keep_unflushed(&mut self, keep: impl Fn(usize) -> bool) {
        for (at, (offset, data)) in self.unflushed.iter().enumerate() {
            if keep(at) {
                let range = *offset as usize..*offset as usize + data.len();
                self.durable[range].copy_from_slice(data);
            }
        }
    }

    /// Loss of power: what was not flushed is gone.
    pub fn cut_power(&mut self) {
        for (offset, data) in std::mem::take(&mut self.unflushed) {
            let range = offset as usize..offset as usize + data.len();
            self.current[range.clone()].copy_from_slice(&self.durable[range]);
        }
    }

    pub fn read(&self, offset: u64, length: u32) -> Bytes {
        let range = offset as usize..offset as usize + length as usize;
        Bytes::copy_from_slice(&self.current[range])
    }
}

/// Whether an effect writes this superblock's block.
pub fn writes_superblock(disk: &Disk) -> impl Fn(&Effect) -> bool + use<> {
    let at = disk.layout.superblock_offset().0;
    move |effect| matches!(effect, Effect::Meta { operation: MetaOperation::Write { offset, .. }, .. } if *offset == at)
}

/// Whether an effect writes the activity log.
pub fn writes_log(disk: &Disk) -> impl Fn(&Effect) -> bool + use<> {
    let start = disk.layout.activity_log_offset().0;
    let end = start + disk.layout.activity_log_len().0;
    move |effect| {
        matches!(effect, Effect::Meta { operation: MetaOperation::Write { offset, .. }, .. }
            if (start..end).contains(offset))
    }
}

/// Whether an effect writes the bitmap.
pub fn writes_bitmap(disk: &Disk) -> impl Fn(&Effect) -> bool + use<> {
    let start = disk.layout.bitmap_offset().0;
    let end = start + disk.layout.bitmap_len().0;
    move |effect| {
        matches!(effect, Effect::Meta { operation: MetaOperation::Write { offset, .. }, .. }
            if (start..end).contains(offset))
    }
}

/// Whether an effect is a write of data.
pub fn writes_data(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Disk {
            operation: DiskOperation::Write { .. }
                | DiskOperation::Discard { .. }
                | DiskOperation::Zero { .. },
            ..
        }
    )
}

/// Whether an effect makes data durable.
pub fn flushes_data(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Disk {
            operation: DiskOperation::Flush,
            ..
        }
    )
}
