//! Where superblock, activity log and bitmap are: `docs/spec/metadata.md` section 1.
//!
//! ```text
//! internal:  [ data ... ][ bitmap ][ activity log ][ superblock 4 KiB ][ 0..7 spare sectors ]
//! external:  [ superblock 4 KiB ][ activity log ][ bitmap ... ]
//! ```

use alloc::string::ToString;
use core::fmt;
use core::str::FromStr;

use crate::activity_log::AlGeometry;
use crate::error::PlacementError;
use crate::units::{
    AlExtent, BLOCK_SECTORS, BLOCK_SIZE, ByteLen, ByteOffset, PageNumber, SECTOR_SIZE, Sector,
    SectorCount,
};

/// Sectors of a fixed external slot (128 MiB).
pub const SLOT_SECTORS: u64 = 262_144;
/// Data sectors that one sector of bitmap covers.
const DATA_PER_BITMAP_SECTOR: u64 = 32_768;
/// Largest device with internal or flexible metadata: 1 PiB, the limit of the tools and of `disk-size`.
pub const CAPACITY_SECTORS_MAX: u64 = 1 << 41;
/// Largest data device of an indexed slot (4 TiB minus 1152 MiB).
pub const INDEXED_DATA_SECTORS_MAX: u64 = (SLOT_SECTORS - 72) * DATA_PER_BITMAP_SECTOR;
/// The least device that `create-md` accepts (68 KiB).
pub const DEVICE_BYTES_MIN: u64 = 69_632;
/// The least metadata device that the driver attaches (1 MiB).
pub const ATTACH_SECTORS_MIN: u64 = 2048;

/// Where the configuration says that the metadata are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Placement {
    /// At the end of the data device.
    Internal,
    /// A whole device of their own.
    FlexibleExternal,
    /// A 128 MiB slot of a device that several data devices share.
    Indexed(u8),
}

impl FromStr for Placement {
    type Err = PlacementError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "internal" | "flex-internal" => Ok(Self::Internal),
            "flex-external" => Ok(Self::FlexibleExternal),
            _ => word
                .parse::<u8>()
                .map(Self::Indexed)
                .map_err(|_| PlacementError::UnknownWord {
                    word: word.to_string(),
                }),
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal => f.write_str("internal"),
            Self::FlexibleExternal => f.write_str("flex-external"),
            Self::Indexed(slot) => write!(f, "{slot}"),
        }
    }
}

impl Placement {
    /// How `drbdmeta` names this kind of metadata in its dialogues.
    pub const fn style(self) -> &'static str {
        match self {
            Self::Internal => "flexible-size internal",
            Self::FlexibleExternal => "flexible-size external",
            Self::Indexed(_) => "fixed-size",
        }
    }

    /// The sector of the superblock on a device of this size: all that is needed to look for metadata.
    ///
    /// # Errors
    /// [`PlacementError::TooSmall`] if the block would not lie on the device.
    pub fn superblock_sector(self, device: ByteLen) -> Result<Sector, PlacementError> {
        let capacity = device.sectors_floor().0;
        let sector = match self {
            Self::Internal => (capacity / BLOCK_SECTORS)
                .checked_sub(1)
                .map(|b| b * BLOCK_SECTORS),
            Self::FlexibleExternal => Some(0),
            Self::Indexed(slot) => Some(SLOT_SECTORS * u64::from(slot)),
        };
        sector
            .filter(|sector| sector + BLOCK_SECTORS <= capacity)
            .map(Sector)
            .ok_or(PlacementError::TooSmall {
                device,
                needed: self.least_device(),
            })
    }

    /// The least device that can carry these metadata with the default activity log.
    pub const fn least_device(self) -> ByteLen {
        match self {
            Self::Internal | Self::FlexibleExternal => ByteLen(DEVICE_BYTES_MIN),
            Self::Indexed(slot) => ByteLen(SLOT_SECTORS * (slot as u64 + 1) * SECTOR_SIZE),
        }
    }
}

/// The metadata areas of one device, computed from its present size.
///
/// Invariants: the areas are disjoint and within the device; superblock, activity log and bitmap start at
/// multiples of 4096 bytes from the superblock; offsets and sizes fit the superblock's 32-bit fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    placement: Placement,
    device: ByteLen,
    geometry: AlGeometry,
    superblock: u64,
    al_offset: i32,
    bm_offset: i32,
    bitmap_sectors: u64,
    md_size_sect: u32,
}

impl Layout {
    /// Computes the areas for a metadata device of `device` bytes (for internal metadata: the whole backing device).
    ///
    /// # Errors
    /// The device is too small or too large, or the stripes do not fit the placement.
    pub fn new(
        placement: Placement,
        device: ByteLen,
        geometry: AlGeometry,
    ) -> Result<Self, PlacementError> {
        let capacity = device.sectors_floor().0;
        if capacity > CAPACITY_SECTORS_MAX {
            let largest = ByteLen(CAPACITY_SECTORS_MAX * SECTOR_SIZE);
            return Err(PlacementError::TooLarge { device, largest });
        }
        if device.0 < DEVICE_BYTES_MIN {
            return Err(PlacementError::TooSmall {
                device,
                needed: ByteLen(DEVICE_BYTES_MIN),
            });
        }
        match placement {
            Placement::Internal => Self::internal(device, capacity, geometry),
            Placement::FlexibleExternal => Self::flexible(device, capacity, geometry),
            Placement::Indexed(slot) => Self::indexed(slot, device, capacity, geometry),
        }
    }

    /// Section 1.1.
    fn internal(
        device: ByteLen,
        capacity: u64,
        geometry: AlGeometry,
    ) -> Result<Self, PlacementError> {
        let log = geometry.sectors().0;
        let superblock = Placement::Internal.superblock_sector(device)?.0;
        let bitmap_sectors = BLOCK_SECTORS * capacity.div_ceil(SLOT_SECTORS);
        let metadata = bitmap_sectors + log + BLOCK_SECTORS;
        if superblock <= log + bitmap_sectors {
            let needed = ByteLen((metadata + BLOCK_SECTORS) * SECTOR_SIZE);
            return Err(PlacementError::TooSmall { device, needed });
        }
        Ok(Self {
            placement: Placement::Internal,
            device,
            geometry,
            superblock,
            // At most 2^26 + 2^16 sectors of bitmap and log: they fit 32 bits.
            al_offset: -(log as i32),
            bm_offset: -((log + bitmap_sectors) as i32),
            bitmap_sectors,
            md_size_sect: metadata as u32,
        })
    }

    /// Section 1.2.
    fn flexible(
        device: ByteLen,
        capacity: u64,
        geometry: AlGeometry,
    ) -> Result<Self, PlacementError> {
        let bm_offset = BLOCK_SECTORS + geometry.sectors().0;
        let Some(bitmap_sectors) = capacity
            .checked_sub(bm_offset)
            .filter(|sectors| *sectors > 0)
        else {
            let needed = ByteLen((bm_offset + BLOCK_SECTORS) * SECTOR_SIZE);
            return Err(PlacementError::TooSmall { device, needed });
        };
        let Ok(md_size_sect) = u32::try_from(capacity) else {
            let largest = ByteLen(u64::from(u32::MAX) * SECTOR_SIZE);
            return Err(PlacementError::TooLarge { device, largest });
        };
        Ok(Self {
            placement: Placement::FlexibleExternal,
            device,
            geometry,
            superblock: 0,
            al_offset: BLOCK_SECTORS as i32,
            bm_offset: bm_offset as i32,
            bitmap_sectors,
            md_size_sect,
        })
    }

    /// Section 1.3.
    fn indexed(
        slot: u8,
        device: ByteLen,
        capacity: u64,
        geometry: AlGeometry,
    ) -> Result<Self, PlacementError> {
        if geometry != AlGeometry::DEFAULT {
            return Err(PlacementError::StripesInSlot {
                stripes: geometry.stripes(),
                stripe_size_4k: geometry.stripe_size_4k(),
            });
        }
        let superblock = SLOT_SECTORS * u64::from(slot);
        if capacity < superblock + SLOT_SECTORS {
            let needed = Placement::Indexed(slot).least_device();
            return Err(PlacementError::TooSmall { device, needed });
        }
        Ok(Self {
            placement: Placement::Indexed(slot),
            device,
            geometry,
            superblock,
            al_offset: 8,
            bm_offset: 72,
            bitmap_sectors: SLOT_SECTORS - 72,
            md_size_sect: SLOT_SECTORS as u32,
        })
    }

    /// The placement this layout was computed for.
    pub const fn placement(&self) -> Placement {
        self.placement
    }

    /// The size of the metadata device this layout was computed for.
    pub const fn device(&self) -> ByteLen {
        self.device
    }

    /// The activity log's stripes.
    pub const fn geometry(&self) -> AlGeometry {
        self.geometry
    }

    /// The superblock's sector.
    pub const fn superblock(&self) -> Sector {
        Sector(self.superblock)
    }

    /// The superblock's byte position.
    pub const fn superblock_offset(&self) -> ByteOffset {
        ByteOffset(self.superblock * SECTOR_SIZE)
    }

    /// First sector of the activity log.
    pub const fn activity_log(&self) -> Sector {
        Sector(self.superblock.wrapping_add_signed(self.al_offset as i64))
    }

    /// Byte position of the activity log.
    pub const fn activity_log_offset(&self) -> ByteOffset {
        ByteOffset(self.activity_log().0 * SECTOR_SIZE)
    }

    /// Length of the activity log.
    pub const fn activity_log_len(&self) -> ByteLen {
        ByteLen(self.geometry.blocks() as u64 * BLOCK_SIZE as u64)
    }

    /// Byte position of a block of the activity log, counted in disk order.
    pub const fn activity_log_block(&self, block: u32) -> ByteOffset {
        ByteOffset(self.activity_log_offset().0 + block as u64 * BLOCK_SIZE as u64)
    }

    /// First sector of the bitmap.
    pub const fn bitmap(&self) -> Sector {
        Sector(self.superblock.wrapping_add_signed(self.bm_offset as i64))
    }

    /// Byte position of the bitmap.
    pub const fn bitmap_offset(&self) -> ByteOffset {
        ByteOffset(self.bitmap().0 * SECTOR_SIZE)
    }

    /// Room for the bitmap.
    pub const fn bitmap_len(&self) -> ByteLen {
        ByteLen(self.bitmap_sectors * SECTOR_SIZE)
    }

    /// Byte position and length of a bitmap page. The last page of an oddly sized external device is shorter
    /// than 4096 bytes; `None` past the end of the area.
    pub fn bitmap_page(&self, page: PageNumber) -> Option<(ByteOffset, ByteLen)> {
        let start = page.0.checked_mul(BLOCK_SIZE as u64)?;
        let left = self
            .bitmap_len()
            .0
            .checked_sub(start)
            .filter(|left| *left > 0)?;
        let offset = ByteOffset(self.bitmap_offset().0 + start);
        Some((offset, ByteLen(left.min(BLOCK_SIZE as u64))))
    }

    /// The superblock's field `al_offset`.
    pub const fn al_offset(&self) -> i32 {
        self.al_offset
    }

    /// The superblock's field `bm_offset`.
    pub const fn bm_offset(&self) -> i32 {
        self.bm_offset
    }

    /// The superblock's field `md_size_sect`.
    pub const fn md_size_sect(&self) -> u32 {
        self.md_size_sect
    }

    /// Start and length of everything that belongs to the metadata.
    pub const fn area(&self) -> (ByteOffset, ByteLen) {
        let start = match self.placement {
            Placement::Internal => self.bitmap_offset(),
            Placement::FlexibleExternal | Placement::Indexed(_) => self.superblock_offset(),
        };
        (start, ByteLen(self.md_size_sect as u64 * SECTOR_SIZE))
    }

    /// The largest data size these metadata can describe, whatever the data device (section 1.5). For internal
    /// metadata this is the usable size of the device.
    pub fn data_size_max(&self) -> SectorCount {
        SectorCount(match self.placement {
            Placement::Internal => self.bitmap().0.min(CAPACITY_SECTORS_MAX),
            Placement::FlexibleExternal => {
                (self.bitmap_sectors * DATA_PER_BITMAP_SECTOR).min(CAPACITY_SECTORS_MAX)
            }
            Placement::Indexed(_) => INDEXED_DATA_SECTORS_MAX,
        })
    }

    /// The size this node offers its peer ("max capacity", section 1.5). `data_device` is the size of the
    /// data device, which for internal metadata is the metadata device too and is not looked at.
    pub fn capacity(&self, data_device: SectorCount) -> SectorCount {
        match self.placement {
            Placement::Internal => self.data_size_max(),
            Placement::FlexibleExternal | Placement::Indexed(_) => {
                self.data_size_max().min(data_device)
            }
        }
    }

    /// Whether the device is large enough for a kernel node to attach it, and therefore for us.
    ///
    /// # Errors
    /// [`PlacementError::TooSmall`] with the driver's least size (section 1.4).
    pub fn check_attach_size(&self) -> Result<(), PlacementError> {
        if self.device.sectors_floor().0 < ATTACH_SECTORS_MIN {
            let needed = ByteLen(ATTACH_SECTORS_MIN * SECTOR_SIZE);
            return Err(PlacementError::TooSmall {
                device: self.device,
                needed,
            });
        }
        Ok(())
    }

    /// Whether new metadata may be created here: stricter than what is accepted when reading.
    ///
    /// # Errors
    /// [`PlacementError::Misaligned`] for a flexible external device whose size is not a multiple of 4096 bytes.
    pub fn check_create(&self) -> Result<(), PlacementError> {
        let aligned = self.device.0.is_multiple_of(BLOCK_SIZE as u64);
        if self.placement == Placement::FlexibleExternal && !aligned {
            return Err(PlacementError::Misaligned {
                device: self.device,
            });
        }
        Ok(())
    }

    /// Whether an extent's bits lie within the bitmap of a device of `la_size` sectors, rounded up to whole
    /// pages: extents beyond are ignored by replay (section 3.9 step 7).
    pub const fn covers(la_size: SectorCount, extent: AlExtent) -> bool {
        extent.first_bit().0 / 8 < crate::bitmap::dump_len(la_size).0
    }
}

/// The least flexible external metadata device for `data` sectors, as a device that the driver attaches (section 1.2).
pub fn external_size_for(data: SectorCount, geometry: AlGeometry) -> SectorCount {
    let bitmap = data.0.div_ceil(DATA_PER_BITMAP_SECTOR);
    let sectors = (BLOCK_SECTORS + geometry.sectors().0 + bitmap).next_multiple_of(BLOCK_SECTORS);
    SectorCount(sectors.max(ATTACH_SECTORS_MIN))
}
