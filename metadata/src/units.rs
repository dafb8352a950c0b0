//! Quantities as types. Conversions say how they round; arithmetic that could leave the range is checked.
//!
//! Constants are those of `docs/spec/metadata.md` section 0.

use core::fmt;

/// Bytes in a sector, whatever the device's logical block size.
pub const SECTOR_SIZE: u64 = 512;
/// Bytes in a metadata block, the unit of all metadata I/O; also the data that one bitmap bit covers.
pub const BLOCK_SIZE: usize = 4096;
/// Sectors in a metadata block.
pub const BLOCK_SECTORS: u64 = 8;
/// Sectors of data that one bitmap bit covers.
pub const SECTORS_PER_BIT: u64 = 8;
/// Sectors of data in an activity-log extent (4 MiB).
pub const AL_EXTENT_SECTORS: u64 = 8192;
/// Bitmap bits in an activity-log extent.
pub const BITS_PER_AL_EXTENT: u64 = 1024;
/// Bitmap bits in a resync extent (16 MiB of data).
pub const BITS_PER_RESYNC_EXTENT: u64 = 4096;
/// Bitmap bits in a 4 KiB bitmap page (128 MiB of data).
pub const BITS_PER_PAGE: u64 = 32768;
/// Activity-log extents that one bitmap page covers.
pub const AL_EXTENTS_PER_PAGE: u64 = 32;

/// One metadata block.
pub type Block = [u8; BLOCK_SIZE];

/// A position on a device in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sector(pub u64);

/// A length in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectorCount(pub u64);

/// A position on a device in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(pub u64);

/// A length in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteLen(pub u64);

/// The number of a bitmap bit; bit b covers the data sectors 8b to 8b + 7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitNumber(pub u64);

/// The number of a 4 KiB bitmap page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(pub u64);

/// The number of a 4 MiB extent of data in the activity log. On disk `FFFFFFFF` means "free", so
/// that number is never an extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AlExtent(pub u32);

impl Sector {
    /// The byte position of this sector; `None` if it does not fit 64 bits.
    pub const fn byte_offset(self) -> Option<ByteOffset> {
        match self.0.checked_mul(SECTOR_SIZE) {
            Some(bytes) => Some(ByteOffset(bytes)),
            None => None,
        }
    }

    /// The sector `count` further on; `None` on overflow.
    pub const fn checked_add(self, count: SectorCount) -> Option<Sector> {
        match self.0.checked_add(count.0) {
            Some(sector) => Some(Sector(sector)),
            None => None,
        }
    }

    /// The bit that covers this sector.
    pub const fn bit_floor(self) -> BitNumber {
        BitNumber(self.0 / SECTORS_PER_BIT)
    }

    /// The first bit that starts at or after this sector.
    pub const fn bit_ceil(self) -> BitNumber {
        BitNumber(self.0.div_ceil(SECTORS_PER_BIT))
    }

    /// The activity-log extent that holds this sector; `None` beyond what the log can name (16 EiB / 1024).
    pub const fn al_extent(self) -> Option<AlExtent> {
        let number = self.0 / AL_EXTENT_SECTORS;
        if number < u32::MAX as u64 {
            Some(AlExtent(number as u32))
        } else {
            None
        }
    }
}

impl SectorCount {
    /// The length in bytes; `None` if it does not fit 64 bits.
    pub const fn byte_len(self) -> Option<ByteLen> {
        match self.0.checked_mul(SECTOR_SIZE) {
            Some(bytes) => Some(ByteLen(bytes)),
            None => None,
        }
    }

    /// How many bitmap bits cover a device of this size (the last may cover fewer than 8 sectors).
    pub const fn bits(self) -> u64 {
        self.0.div_ceil(SECTORS_PER_BIT)
    }
}

impl ByteOffset {
    /// The sector that holds this byte.
    pub const fn sector_floor(self) -> Sector {
        Sector(self.0 / SECTOR_SIZE)
    }

    /// The position `len` further on; `None` on overflow.
    pub const fn checked_add(self, len: ByteLen) -> Option<ByteOffset> {
        match self.0.checked_add(len.0) {
            Some(bytes) => Some(ByteOffset(bytes)),
            None => None,
        }
    }
}

impl ByteLen {
    /// Whole sectors in this length.
    pub const fn sectors_floor(self) -> SectorCount {
        SectorCount(self.0 / SECTOR_SIZE)
    }

    /// Sectors needed to hold this length.
    pub const fn sectors_ceil(self) -> SectorCount {
        SectorCount(self.0.div_ceil(SECTOR_SIZE))
    }
}

impl BitNumber {
    /// The first sector this bit covers; `None` on overflow.
    pub const fn first_sector(self) -> Option<Sector> {
        match self.0.checked_mul(SECTORS_PER_BIT) {
            Some(sector) => Some(Sector(sector)),
            None => None,
        }
    }

    /// The bitmap page that holds this bit.
    pub const fn page(self) -> PageNumber {
        PageNumber(self.0 / BITS_PER_PAGE)
    }

    /// The index of this bit within its page, 0 to 32767.
    pub const fn within_page(self) -> u16 {
        (self.0 % BITS_PER_PAGE) as u16
    }

    /// The activity-log extent that this bit belongs to; `None` beyond what the log can name.
    pub const fn al_extent(self) -> Option<AlExtent> {
        let number = self.0 / BITS_PER_AL_EXTENT;
        if number < u32::MAX as u64 {
            Some(AlExtent(number as u32))
        } else {
            None
        }
    }
}

impl PageNumber {
    /// The first bit of this page; `None` on overflow.
    pub const fn first_bit(self) -> Option<BitNumber> {
        match self.0.checked_mul(BITS_PER_PAGE) {
            Some(bit) => Some(BitNumber(bit)),
            None => None,
        }
    }
}

impl AlExtent {
    /// The number that means "free" on disk.
    pub const FREE: u32 = u32::MAX;

    /// The extent with this on-disk number; `None` for the number that means "free".
    pub const fn from_disk(number: u32) -> Option<AlExtent> {
        if number == Self::FREE {
            None
        } else {
            Some(AlExtent(number))
        }
    }

    /// The on-disk number of a slot's content.
    pub const fn to_disk(slot: Option<AlExtent>) -> u32 {
        match slot {
            Some(extent) => extent.0,
            None => Self::FREE,
        }
    }

    /// The first data sector of the extent.
    pub const fn first_sector(self) -> Sector {
        Sector(self.0 as u64 * AL_EXTENT_SECTORS)
    }

    /// The first of the extent's 1024 bits.
    pub const fn first_bit(self) -> BitNumber {
        BitNumber(self.0 as u64 * BITS_PER_AL_EXTENT)
    }

    /// The bitmap page that holds all of the extent's bits.
    pub const fn page(self) -> PageNumber {
        PageNumber(self.0 as u64 / AL_EXTENTS_PER_PAGE)
    }
}

macro_rules! display_with_unit {
    ($($name:ident => $text:literal),* $(,)?) => {
        $(impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $text, self.0)
            }
        })*
    };
}

display_with_unit! {
    Sector => "sector {}",
    SectorCount => "{} sectors",
    ByteOffset => "byte {}",
    ByteLen => "{} bytes",
    BitNumber => "bit {}",
    PageNumber => "bitmap page {}",
    AlExtent => "extent {}",
}
