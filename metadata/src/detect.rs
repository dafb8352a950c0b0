//! What is on a device before `create-md` writes to it: `docs/spec/metadata.md` section 6.1.
//!
//! A caller reads the ranges that [`probes`] names, hands them to [`detect`], and gets what was recognised with the
//! space it uses. Nothing here reads a disk.

use alloc::vec::Vec;

use crate::codec::{be32, be64};
use crate::units::{ByteLen, ByteOffset};

/// The start of a device that is looked at (68 KiB).
pub const HEAD_LEN: ByteLen = ByteLen(69_632);
/// The end of a device that is looked at: RAID and partition tables leave marks there.
pub const TAIL_LEN: ByteLen = ByteLen(192 * 1024);
/// A label of ZFS: two stand at the start of a device, two at its end. The second half of each is a ring of uberblocks.
const ZFS_LABEL_LEN: u64 = 256 * 1024;

/// A range of a device to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Where.
    pub offset: ByteOffset,
    /// How much.
    pub len: ByteLen,
}

/// The ranges that [`detect`] wants to see, clipped to the device.
pub fn probes(device: ByteLen) -> Vec<Probe> {
    let head = ByteLen(HEAD_LEN.0.min(device.0));
    let start = device.0.saturating_sub(TAIL_LEN.0).max(head.0);
    let mut probes = alloc::vec![Probe {
        offset: ByteOffset(0),
        len: head
    }];
    if start < device.0 {
        probes.push(Probe {
            offset: ByteOffset(start),
            len: ByteLen(device.0 - start),
        });
    }
    let len = ByteLen(ZFS_LABEL_LEN / 2);
    probes.extend(zfs_rings(device).map(|offset| Probe { offset, len }));
    probes
}

/// Where the rings of uberblocks of a ZFS that has the whole device are.
fn zfs_rings(device: ByteLen) -> impl Iterator<Item = ByteOffset> {
    let labels = device.0 / ZFS_LABEL_LEN;
    let starts = match labels {
        0..4 => [None; 4],
        _ => [0, 1, labels - 2, labels - 1].map(Some),
    };
    starts
        .into_iter()
        .flatten()
        .map(|label| ByteOffset(label * ZFS_LABEL_LEN + ZFS_LABEL_LEN / 2))
}

/// A range that was read.
#[derive(Clone, Copy, Debug)]
pub struct Probed<'a> {
    /// Where it was read.
    pub offset: ByteOffset,
    /// What stands there.
    pub bytes: &'a [u8],
}

/// Kinds of data that are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// JFS.
    Jfs,
    /// ReiserFS.
    Reiserfs,
    /// Btrfs.
    Btrfs,
    /// F2FS.
    F2fs,
    /// NTFS.
    Ntfs,
    /// FAT.
    Fat,
    /// LVM2 physical volume.
    Lvm2,
    /// Swap space.
    Swap,
    /// Linux software RAID member.
    MdRaid,
    /// Member of a ZFS pool.
    Zfs,
    /// Encrypted volume.
    Luks,
    /// DOS partition table.
    PartitionsDos,
    /// GPT partition table.
    PartitionsGpt,
    /// Something that is not all zeros.
    SomeData,
}

impl Kind {
    /// How the dialogue names it, after `Found `.
    pub const fn text(self) -> &'static str {
        match self {
            // drbdmeta says "ext3" of all three, and scripts look for that line.
            Self::Ext => "ext3 filesystem",
            Self::Xfs => "xfs filesystem",
            Self::Jfs => "jfs filesystem",
            Self::Reiserfs => "reiser filesystem",
            Self::Btrfs => "btrfs filesystem",
            Self::F2fs => "f2fs filesystem",
            Self::Ntfs => "ntfs filesystem",
            Self::Fat => "fat filesystem",
            Self::Lvm2 => "LVM2 physical volume signature",
            Self::Swap => "swap space signature",
            Self::MdRaid => "md raid member signature",
            Self::Zfs => "zfs pool member signature",
            Self::Luks => "LUKS encrypted volume signature",
            Self::PartitionsDos => "DOS partition table",
            Self::PartitionsGpt => "GPT partition table",
            Self::SomeData => "some data",
        }
    }
}

/// Where the marks lie by which something was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// At the start of the device.
    Start,
    /// At its end.
    End,
    /// At both ends, several of them.
    BothEnds,
}

/// What was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub kind: Kind,
    /// How far from the start of the device it uses space; `None` if that is not known.
    pub used: Option<ByteLen>,
    /// Where its marks lie.
    pub marks: Marks,
}

impl Found {
    /// Its marks lie there.
    const fn marked(self, marks: Marks) -> Found {
        Found { marks, ..self }
    }
}

/// Recognises what is on a device of `device` bytes; `None` if everything that was read is zero. Unknown contents at
/// the end alone (a former metadata area, say) are nothing; recognised marks there count.
pub fn detect(device: ByteLen, probed: &[Probed<'_>]) -> Option<Found> {
    let view = View { device, probed };
    // A filesystem that replaced a ZFS may have left some of its labels: it comes first.
    let recognisers: [fn(&View<'_>) -> Option<Found>; 15] = [
        ext, xfs, jfs, reiserfs, btrfs, f2fs, lvm2, swap, luks, md_raid, gpt, ntfs, fat, dos, zfs,
    ];
    recognisers
        .iter()
        .find_map(|recogniser| recogniser(&view))
        .or_else(|| {
            let head = probed.iter().filter(|part| part.offset.0 < HEAD_LEN.0);
            let some_data = head.flat_map(|part| part.bytes).any(|byte| *byte != 0);
            some_data.then_some(Found {
                kind: Kind::SomeData,
                used: None,
                marks: Marks::Start,
            })
        })
}

/// The device as far as it was read.
struct View<'a> {
    device: ByteLen,
    probed: &'a [Probed<'a>],
}

impl<'a> View<'a> {
    /// `len` bytes at `offset`, if they were read in one piece.
    fn at(&self, offset: u64, len: usize) -> Option<&'a [u8]> {
        self.probed.iter().find_map(|part| {
            let start = usize::try_from(offset.checked_sub(part.offset.0)?).ok()?;
            part.bytes.get(start..start.checked_add(len)?)
        })
    }

    fn is(&self, offset: u64, magic: &[u8]) -> bool {
        self.at(offset, magic.len()) == Some(magic)
    }

    fn le16(&self, offset: u64) -> Option<u64> {
        self.le(offset, 2)
    }

    fn le32(&self, offset: u64) -> Option<u64> {
        self.le(offset, 4)
    }

    fn le64(&self, offset: u64) -> Option<u64> {
        self.le(offset, 8)
    }

    fn le(&self, offset: u64, len: usize) -> Option<u64> {
        let bytes = self.at(offset, len)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    }
}

#[expect(clippy::unnecessary_wraps, reason = "every recogniser ends with it")]
fn found(kind: Kind, used: Option<u64>) -> Option<Found> {
    Some(Found {
        kind,
        used: used.map(ByteLen),
        marks: Marks::Start,
    })
}

fn product(blocks: Option<u64>, size: Option<u64>) -> Option<u64> {
    // A superblock that claims more than 64 bits can count uses everything.
    Some(blocks?.saturating_mul(size?))
}

fn ext(view: &View<'_>) -> Option<Found> {
    const SUPER: u64 = 1024;
    const INCOMPAT_64BIT: u64 = 0x80;
    if !view.is(SUPER + 56, &[0x53, 0xEF]) {
        return None;
    }
    let low = view.le32(SUPER + 4);
    let wide = view
        .le32(SUPER + 96)
        .is_some_and(|flags| flags & INCOMPAT_64BIT != 0);
    let high = if wide {
        view.le32(SUPER + 0x150)
    } else {
        Some(0)
    };
    let blocks = low.zip(high).map(|(low, high)| high << 32 | low);
    let size = view
        .le32(SUPER + 24)
        .filter(|log| *log <= 6)
        .map(|log| 1024 << log);
    found(Kind::Ext, product(blocks, size))
}

fn xfs(view: &View<'_>) -> Option<Found> {
    if !view.is(0, b"XFSB") {
        return None;
    }
    let size = view.at(4, 4).map(|bytes| u64::from(be32(bytes, 0)));
    let blocks = view.at(8, 8).map(|bytes| be64(bytes, 0));
    found(Kind::Xfs, product(blocks, size))
}

fn jfs(view: &View<'_>) -> Option<Found> {
    const SUPER: u64 = 32_768;
    if !view.is(SUPER, b"JFS1") {
        return None;
    }
    // The size counts the device's blocks.
    found(
        Kind::Jfs,
        product(view.le64(SUPER + 8), view.le32(SUPER + 24)),
    )
}

fn reiserfs(view: &View<'_>) -> Option<Found> {
    let start = [65_536, 8192]
        .into_iter()
        .find(|start| view.is(start + 52, b"ReIsEr"))?;
    found(
        Kind::Reiserfs,
        product(view.le32(start), view.le16(start + 44)),
    )
}

fn btrfs(view: &View<'_>) -> Option<Found> {
    const SUPER: u64 = 65_536;
    if !view.is(SUPER + 64, b"_BHRfS_M") {
        return None;
    }
    // The size of this device stands in the device item at 0xC9: id, then total bytes.
    found(Kind::Btrfs, view.le64(SUPER + 0xC9 + 8))
}

fn f2fs(view: &View<'_>) -> Option<Found> {
    const SUPER: u64 = 1024;
    if view.le32(SUPER) != Some(0xF2F5_2010) {
        return None;
    }
    let size = view
        .le32(SUPER + 16)
        .filter(|log| *log <= 16)
        .map(|log| 1 << log);
    found(Kind::F2fs, product(view.le64(SUPER + 36), size))
}

fn lvm2(view: &View<'_>) -> Option<Found> {
    let label = (0..4)
        .map(|sector| sector * 512)
        .find(|at| view.is(*at, b"LABELONE") && view.is(at + 24, b"LVM2 001"))?;
    // The header of the physical volume starts with its identifier of 32 characters, then its size.
    let header = view.le32(label + 20).map(|offset| label + offset);
    let used = header
        .and_then(|header| view.le64(header + 32))
        .filter(|size| *size > 0);
    found(Kind::Lvm2, used)
}

fn swap(view: &View<'_>) -> Option<Found> {
    let pages = [4096, 8192, 16_384, 65_536];
    let marked = pages
        .into_iter()
        .any(|page: u64| view.is(page - 10, b"SWAPSPACE2") || view.is(page - 10, b"SWAP-SPACE"));
    if marked {
        found(Kind::Swap, None)
    } else {
        None
    }
}

fn luks(view: &View<'_>) -> Option<Found> {
    if view.is(0, b"LUKS\xBA\xBE") {
        found(Kind::Luks, None)
    } else {
        None
    }
}

fn md_raid(view: &View<'_>) -> Option<Found> {
    const MAGIC: u64 = 0xA92B_4EFC;
    let sectors = view.device.0 / 512;
    // Versions 1.1 and 1.2 at the start, 1.0 in the last 8 to 12 KiB, 0.90 in the last 64 to 128 KiB.
    let v1_0 = sectors.checked_sub(16).map(|sector| (sector & !7) * 512);
    let v0_90 = (view.device.0 & !0xFFFF).checked_sub(0x1_0000);
    let marked = |at: u64| view.le32(at) == Some(MAGIC);
    let marks = if [0, 4096].into_iter().any(marked) {
        Marks::Start
    } else if [v1_0, v0_90].into_iter().flatten().any(marked) {
        Marks::End
    } else {
        return None;
    };
    Some(found(Kind::MdRaid, None)?.marked(marks))
}

fn zfs(view: &View<'_>) -> Option<Found> {
    /// Of an uberblock, in the byte order of the machine that wrote it.
    const MAGIC: u64 = 0x00BA_B10C;
    /// Least size of a slot of the ring; larger ones are multiples.
    const SLOT_LEN: u64 = 1024;
    let mut slots = zfs_rings(view.device).flat_map(|ring| {
        (0..ZFS_LABEL_LEN / 2 / SLOT_LEN).map(move |slot| ring.0 + slot * SLOT_LEN)
    });
    let marked = slots.any(|at| {
        let magic = view.le64(at);
        magic == Some(MAGIC) || magic == Some(MAGIC.swap_bytes())
    });
    if !marked {
        return None;
    }
    Some(found(Kind::Zfs, None)?.marked(Marks::BothEnds))
}

fn gpt(view: &View<'_>) -> Option<Found> {
    for block in [512, 4096] {
        if view.is(block, b"EFI PART") {
            // The backup header is the last block of the table's device.
            let used = view.le64(block + 32).and_then(|last| last.checked_add(1));
            return found(Kind::PartitionsGpt, product(used, Some(block)));
        }
    }
    let backup = view
        .device
        .0
        .checked_sub(512)
        .is_some_and(|last| view.is(last, b"EFI PART"));
    if backup {
        Some(found(Kind::PartitionsGpt, Some(view.device.0))?.marked(Marks::End))
    } else {
        None
    }
}

fn ntfs(view: &View<'_>) -> Option<Found> {
    if !view.is(3, b"NTFS    ") {
        return None;
    }
    // The count leaves out the backup boot sector behind the volume.
    let sectors = view.le64(40).and_then(|count| count.checked_add(1));
    found(Kind::Ntfs, product(sectors, view.le16(11)))
}

fn fat(view: &View<'_>) -> Option<Found> {
    let marked = view.is(54, b"FAT12") || view.is(54, b"FAT16") || view.is(82, b"FAT32");
    if !marked || !view.is(510, &[0x55, 0xAA]) {
        return None;
    }
    let small = view.le16(19).filter(|count| *count > 0);
    found(
        Kind::Fat,
        product(small.or_else(|| view.le32(32)), view.le16(11)),
    )
}

fn dos(view: &View<'_>) -> Option<Found> {
    const ENTRIES_AT: u64 = 446;
    if !view.is(510, &[0x55, 0xAA]) {
        return None;
    }
    let mut end = None;
    for entry in (0..4).map(|index| ENTRIES_AT + 16 * index) {
        let [status] = *view.at(entry, 1)? else {
            return None;
        };
        let [kind] = *view.at(entry + 4, 1)? else {
            return None;
        };
        // A boot sector without a table has anything here.
        if status & 0x7F != 0 {
            return None;
        }
        if kind != 0 {
            let last = view.le32(entry + 8)?.saturating_add(view.le32(entry + 12)?);
            end = end.max(Some(last));
        }
    }
    end.and_then(|sectors: u64| found(Kind::PartitionsDos, sectors.checked_mul(512)))
}
