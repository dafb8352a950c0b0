//! The 4 KiB superblock: `docs/spec/metadata.md` section 2. All integers are big-endian; there is no checksum.
//!
//! | byte | size | field | allowed |
//! |---|---|---|---|
//! | 0 | u64 | la_size_sect | 0 = never attached |
//! | 8 | u64 | uuid current | 4 = just created |
//! | 16 | u64 | uuid bitmap | 0 = not tracking |
//! | 24, 32 | u64 | uuid history, younger and older | |
//! | 40 | u64 | device_uuid | 0 until written |
//! | 48 | u64 | reserved | 0 |
//! | 56 | u32 | flags | [`Flags`] |
//! | 60 | u32 | magic | [`Magic`] |
//! | 64 | u32 | md_size_sect | as [`Layout`] computes it |
//! | 68 | s32 | al_offset | 8, or minus the log's sectors |
//! | 72 | u32 | al_nr_extents | slots of the writer; informational |
//! | 76 | s32 | bm_offset | as [`Layout`] computes it |
//! | 80 | u32 | bm_bytes_per_bit | 4096 |
//! | 84 | u32 | la_peer_max_bio_size | |
//! | 88 | u32 | al_stripes | see [`AlGeometry`] |
//! | 92 | u32 | al_stripe_size_4k | see [`AlGeometry`] |
//! | 96 | 4000 | reserved | 0, ignored on read |

use core::fmt;
use core::ops::{BitAnd, BitOr};

use crate::activity_log::AlGeometry;
use crate::codec::{be32, be64, put32, put64, zeroed};
use crate::error::{Clipped, SuperblockError};
use crate::placement::{Layout, Placement};
use crate::units::{BLOCK_SIZE, Block, ByteLen, SectorCount};

/// Magic of v06 metadata (a file, never on a device of ours).
const MAGIC_V06: u32 = 0x8374_0269;
/// Magic of v07 metadata.
const MAGIC_V07: u32 = 0x8374_026A;
/// Magic of v08 metadata as the tools write it.
const MAGIC_V08: u32 = 0x8374_026B;
/// Magic of v08 metadata as an attached node writes it.
const MAGIC_V08_UNCLEAN: u32 = 0x8374_026C;
/// Magic of v09 metadata (DRBD 9).
const MAGIC_V09: u32 = 0x8374_026D;
/// The only bitmap granularity of v08.
const BYTES_PER_BIT: u32 = 4096;
/// Data sectors that one sector of bitmap covers.
const BITMAP_SECTOR_DATA: u64 = 32_768;
/// Slots that `create-md` and `restore-md` note; informational for 8.4 logs.
pub const AL_EXTENTS_CREATED: u32 = 257;

/// The two forms of v08 metadata (section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Magic {
    /// `8374026B`: written by tools; attachable if AL_CLEAN is set too.
    Clean,
    /// `8374026C`: written by a node while attached; the activity log must be applied first.
    Unclean,
}

/// What stands where a superblock is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// v06 of DRBD 0.6.
    V06,
    /// v07 of DRBD 0.7.
    V07,
    /// v08 of DRBD 8, ours.
    V08(Magic),
    /// v09 of DRBD 9.
    V09,
}

impl Version {
    /// Recognises metadata by the magic at byte 60 (v07: byte 28, as drbdmeta 9.22 writes it); `None` if there
    /// are none.
    pub fn of(block: &[u8]) -> Option<Self> {
        if block.len() < 64 {
            return None;
        }
        match be32(block, 60) {
            MAGIC_V06 => Some(Self::V06),
            MAGIC_V08 => Some(Self::V08(Magic::Clean)),
            MAGIC_V08_UNCLEAN => Some(Self::V08(Magic::Unclean)),
            MAGIC_V09 => Some(Self::V09),
            _ if be32(block, 28) == MAGIC_V07 => Some(Self::V07),
            _ => None,
        }
    }

    /// The format's name, as on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V06 => "v06",
            Self::V07 => "v07",
            Self::V08(_) => "v08",
            Self::V09 => "v09",
        }
    }
}

/// The superblock's flags (section 2.4). Unknown bits are kept.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flags(pub u32);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The data are a usable point in time.
    pub const CONSISTENT: Self = Self(0x001);
    /// Writes may have been in flight: apply-al must mark the hot extents.
    pub const PRIMARY_IND: Self = Self(0x002);
    /// Was connected.
    pub const CONNECTED_IND: Self = Self(0x004);
    /// The bitmap on disk must not be trusted: treat all bits as set.
    pub const FULL_SYNC: Self = Self(0x008);
    /// Was not outdated.
    pub const WAS_UP_TO_DATE: Self = Self(0x010);
    /// The peer is known to be Outdated or Inconsistent.
    pub const PEER_OUT_DATED: Self = Self(0x020);
    /// Crashed as Primary, and both sides have not been seen UpToDate since.
    pub const CRASHED_PRIMARY: Self = Self(0x040);
    /// The activity log needs no replay. Never set while attached.
    pub const AL_CLEAN: Self = Self(0x080);
    /// The activity log was not maintained: after the crash of a Primary everything is suspect.
    pub const AL_DISABLED: Self = Self(0x100);

    /// Whether all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These flags with `flags` added.
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// These flags with `flags` removed.
    #[must_use]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl BitAnd for Flags {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({:#010X})", self.0)
    }
}

/// The data generations (section 2.7). Bit 0 of each is role information and is ignored in comparisons.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuids {
    /// The current generation.
    pub current: u64,
    /// The generation since which the bitmap records changes; 0 = not tracking.
    pub bitmap: u64,
    /// Younger and older history.
    pub history: [u64; 2],
}

impl Uuids {
    /// The reserved current generation of fresh metadata.
    pub const JUST_CREATED: u64 = 4;

    /// The generations of fresh metadata.
    pub const FRESH: Self = Self {
        current: Self::JUST_CREATED,
        bitmap: 0,
        history: [0, 0],
    };
}

impl fmt::Debug for Uuids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [younger, older] = self.history;
        write!(
            f,
            "{:016X}:{:016X}:{younger:016X}:{older:016X}",
            self.current, self.bitmap
        )
    }
}

/// A decoded superblock. Reserved bytes are not kept: they are written as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Size of the exported device when the block was written; 0 = never attached.
    pub la_size: SectorCount,
    /// The data generations.
    pub uuids: Uuids,
    /// Random number that identifies the device for the user tools; 0 until written.
    pub device_uuid: u64,
    /// The flags.
    pub flags: Flags,
    /// Which of the two v08 magics.
    pub magic: Magic,
    /// Size of the whole metadata area in sectors.
    pub md_size_sect: u32,
    /// Sectors from the superblock to the activity log.
    pub al_offset: i32,
    /// Slots of the writer (`al-extents`); informational.
    pub al_extents: u32,
    /// Sectors from the superblock to the bitmap.
    pub bm_offset: i32,
    /// Data bytes per bitmap bit as stored; [`Superblock::check`] demands 4096.
    pub bm_bytes_per_bit: u32,
    /// Largest request the peer could take, in bytes.
    pub la_peer_max_bio_size: u32,
    /// Stripes of the activity log as stored; use [`Superblock::geometry`].
    pub al_stripes: u32,
    /// Blocks in a stripe as stored; use [`Superblock::geometry`].
    pub al_stripe_size_4k: u32,
}

impl Superblock {
    /// What `create-md` writes: clean, never attached, generation "just created" (section 6.1).
    pub fn fresh(layout: &Layout) -> Self {
        let mut superblock = Self {
            la_size: SectorCount(0),
            uuids: Uuids::FRESH,
            device_uuid: 0,
            flags: Flags::AL_CLEAN,
            magic: Magic::Clean,
            md_size_sect: 0,
            al_offset: 0,
            al_extents: AL_EXTENTS_CREATED,
            bm_offset: 0,
            bm_bytes_per_bit: BYTES_PER_BIT,
            la_peer_max_bio_size: 0,
            al_stripes: 0,
            al_stripe_size_4k: 0,
        };
        superblock.place(layout);
        superblock
    }

    /// Takes over the offsets, sizes and stripes of `layout`.
    pub fn place(&mut self, layout: &Layout) {
        self.md_size_sect = layout.md_size_sect();
        self.al_offset = layout.al_offset();
        self.bm_offset = layout.bm_offset();
        self.al_stripes = layout.geometry().stripes();
        self.al_stripe_size_4k = layout.geometry().stripe_size_4k();
    }

    /// Decodes a block that has one of the two v08 magics. Field values are not judged: see [`Superblock::check`].
    ///
    /// # Errors
    /// [`SuperblockError`]: short, no metadata, or another version's.
    pub fn decode(block: &[u8]) -> Result<Self, SuperblockError> {
        if block.len() < BLOCK_SIZE {
            return Err(SuperblockError::Short { got: block.len() });
        }
        let magic = match Version::of(block) {
            None => {
                return Err(SuperblockError::NotFound {
                    magic: be32(block, 60),
                });
            }
            Some(version @ (Version::V06 | Version::V07)) => {
                return Err(SuperblockError::OldVersion {
                    version: version.name(),
                });
            }
            Some(version @ Version::V09) => {
                return Err(SuperblockError::FutureVersion {
                    version: version.name(),
                });
            }
            Some(Version::V08(magic)) => magic,
        };
        Ok(Self {
            la_size: SectorCount(be64(block, 0)),
            uuids: Uuids {
                current: be64(block, 8),
                bitmap: be64(block, 16),
                history: [be64(block, 24), be64(block, 32)],
            },
            device_uuid: be64(block, 40),
            flags: Flags(be32(block, 56)),
            magic,
            md_size_sect: be32(block, 64),
            al_offset: be32(block, 68).cast_signed(),
            al_extents: be32(block, 72),
            bm_offset: be32(block, 76).cast_signed(),
            bm_bytes_per_bit: be32(block, 80),
            la_peer_max_bio_size: be32(block, 84),
            al_stripes: be32(block, 88),
            al_stripe_size_4k: be32(block, 92),
        })
    }

    /// Encodes the block; everything reserved is zero.
    pub fn encode(&self) -> Block {
        let mut block = zeroed();
        put64(&mut block, 0, self.la_size.0);
        put64(&mut block, 8, self.uuids.current);
        put64(&mut block, 16, self.uuids.bitmap);
        put64(&mut block, 24, self.uuids.history[0]);
        put64(&mut block, 32, self.uuids.history[1]);
        put64(&mut block, 40, self.device_uuid);
        put32(&mut block, 56, self.flags.0);
        let magic = match self.magic {
            Magic::Clean => MAGIC_V08,
            Magic::Unclean => MAGIC_V08_UNCLEAN,
        };
        put32(&mut block, 60, magic);
        put32(&mut block, 64, self.md_size_sect);
        put32(&mut block, 68, self.al_offset.cast_unsigned());
        put32(&mut block, 72, self.al_extents);
        put32(&mut block, 76, self.bm_offset.cast_unsigned());
        put32(&mut block, 80, self.bm_bytes_per_bit);
        put32(&mut block, 84, self.la_peer_max_bio_size);
        put32(&mut block, 88, self.al_stripes);
        put32(&mut block, 92, self.al_stripe_size_4k);
        block
    }

    /// Decodes the block read from [`Placement::superblock_sector`], computes the areas with its stripes and the
    /// present device size, and checks one against the other. Unclean metadata are returned too: ask
    /// [`Superblock::needs_replay`].
    ///
    /// # Errors
    /// [`SuperblockError`]; after growth of the device internal metadata are simply not found (section 8, P8):
    /// look at the last known size before saying so.
    pub fn open(
        placement: Placement,
        device: ByteLen,
        block: &[u8],
    ) -> Result<(Self, Layout), SuperblockError> {
        let superblock = Self::decode(block)?;
        let layout = Layout::new(placement, device, superblock.geometry()?)?;
        superblock.check(&layout)?;
        Ok((superblock, layout))
    }

    /// The activity log's stripes; both fields 0 means the default (section 2.1).
    ///
    /// # Errors
    /// [`SuperblockError::Damaged`] if exactly one is 0 or the product is outside 8 to 8192 blocks.
    pub fn geometry(&self) -> Result<AlGeometry, SuperblockError> {
        AlGeometry::from_disk(self.al_stripes, self.al_stripe_size_4k).map_err(|_| {
            SuperblockError::Damaged {
                what: "al_stripes x al_stripe_size_4k",
                expected: i64::from(AlGeometry::BLOCKS_MIN),
                got: i64::from(self.al_stripes).saturating_mul(i64::from(self.al_stripe_size_4k)),
            }
        })
    }

    /// Checks the fixed relations of section 2.3, those of the driver and those of drbdmeta, except the size:
    /// see [`Superblock::check_size`].
    ///
    /// # Errors
    /// [`SuperblockError::Damaged`] naming the first field that is wrong.
    pub fn check(&self, layout: &Layout) -> Result<(), SuperblockError> {
        let must = |what, got: i64, expected: i64| {
            if got == expected {
                Ok(())
            } else {
                Err(SuperblockError::Damaged {
                    what,
                    expected,
                    got,
                })
            }
        };
        must(
            "bm_bytes_per_bit",
            i64::from(self.bm_bytes_per_bit),
            i64::from(BYTES_PER_BIT),
        )?;
        let geometry = self.geometry()?;
        must(
            "activity log blocks",
            i64::from(geometry.blocks()),
            i64::from(layout.geometry().blocks()),
        )?;
        must(
            "al_offset",
            i64::from(self.al_offset),
            i64::from(layout.al_offset()),
        )?;
        must(
            "bm_offset",
            i64::from(self.bm_offset),
            i64::from(layout.bm_offset()),
        )?;
        let size = i64::from(self.md_size_sect);
        let expected = i64::from(layout.md_size_sect());
        match layout.placement() {
            // The device may have grown since; the bitmap's room is what was there at creation.
            Placement::FlexibleExternal if size > i64::from(self.bm_offset) && size <= expected => {
                Ok(())
            }
            _ => must("md_size_sect", size, expected),
        }
    }

    /// Checks that the bitmap area has a bit for each 4 KiB of `la_size`, and that the format can describe it.
    ///
    /// # Errors
    /// [`SuperblockError::Damaged`] for `la_size_sect`.
    pub fn check_size(&self, layout: &Layout) -> Result<(), SuperblockError> {
        match self.clip(layout) {
            None => Ok(()),
            Some(Clipped { stored, used }) => Err(SuperblockError::Damaged {
                what: "la_size_sect",
                expected: i64::try_from(used.0).unwrap_or(i64::MAX),
                got: i64::try_from(stored.0).unwrap_or(i64::MAX),
            }),
        }
    }

    /// The smaller size that tools use if `la_size` is more than the metadata can hold (section 2.3).
    pub fn clip(&self, layout: &Layout) -> Option<Clipped> {
        let mut used = layout.data_size_max();
        if layout.placement() == Placement::FlexibleExternal {
            // The device may have grown: beyond the area of that time there is no bitmap.
            let sectors = i64::from(self.md_size_sect) - i64::from(self.bm_offset);
            let held = u64::try_from(sectors).unwrap_or(0) * BITMAP_SECTOR_DATA;
            used = used.min(SectorCount(held));
        }
        (self.la_size > used).then_some(Clipped {
            stored: self.la_size,
            used,
        })
    }

    /// Whether the activity log must be applied before these metadata may be attached (section 2.2).
    pub const fn needs_replay(&self) -> bool {
        matches!(self.magic, Magic::Unclean) || !self.flags.contains(Flags::AL_CLEAN)
    }

    /// The check of the driver at attach.
    ///
    /// # Errors
    /// [`SuperblockError::Unclean`].
    pub const fn check_clean(&self) -> Result<(), SuperblockError> {
        if self.needs_replay() {
            Err(SuperblockError::Unclean)
        } else {
            Ok(())
        }
    }

    /// This block as it must be on disk before the first application write after attach: unclean magic,
    /// AL_CLEAN clear (section 2.2).
    #[must_use]
    pub fn in_use(mut self) -> Self {
        self.magic = Magic::Unclean;
        self.flags = self.flags.without(Flags::AL_CLEAN);
        self
    }

    /// This block as it may be written once every changed bitmap page is on disk and the whole activity log was
    /// initialised again, both flushed; never before (section 8, P4).
    #[must_use]
    pub fn released(mut self) -> Self {
        self.magic = Magic::Clean;
        self.flags = self.flags.with(Flags::AL_CLEAN);
        self
    }
}
