//! What can be wrong with metadata, with the facts.

use alloc::string::String;

use crate::units::{ByteLen, SectorCount};

/// Any failure of this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The device cannot hold the metadata at the configured place.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The superblock is missing, foreign, unclean or damaged.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The activity log cannot be read or built.
    #[error(transparent)]
    ActivityLog(#[from] ActivityLogError),
}

/// Why the metadata do not fit, `docs/spec/metadata.md` section 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The word in the configuration names no placement.
    #[error(
        "'{word}' is no metadata placement: expected internal, flex-external or a slot number 0 to 255"
    )]
    UnknownWord {
        /// What was given.
        word: String,
    },
    /// The device is smaller than the least this placement needs.
    #[error("the metadata device has only {device}, and this placement needs at least {needed}")]
    TooSmall {
        /// Size of the device that carries the metadata.
        device: ByteLen,
        /// Least size.
        needed: ByteLen,
    },
    /// The device is larger than the 1 PiB that the format and its tools can describe.
    #[error("the device has {device}, more than the {largest} that metadata v08 can describe")]
    TooLarge {
        /// Size of the device that carries the metadata.
        device: ByteLen,
        /// Largest size.
        largest: ByteLen,
    },
    /// The size of a flexible external metadata device is not a multiple of 4096 bytes: the last bitmap page
    /// would reach past its end (section 8, P14).
    #[error("the metadata device has {device}, which is not a multiple of 4096")]
    Misaligned {
        /// Size of the device that carries the metadata.
        device: ByteLen,
    },
    /// The activity log's stripe settings are outside what the format allows.
    #[error(
        "{stripes} activity-log stripes of {stripe_size_4k} blocks of 4 KiB: the product must be 8 to 8192 blocks (32 KiB to 32 MiB)"
    )]
    StripesOutOfRange {
        /// Number of stripes.
        stripes: u32,
        /// Blocks of 4 KiB in each stripe.
        stripe_size_4k: u32,
    },
    /// Indexed slots have room for the default activity log only (section 1.3).
    #[error(
        "indexed metadata takes 1 activity-log stripe of 8 blocks only, not {stripes} of {stripe_size_4k}"
    )]
    StripesInSlot {
        /// Number of stripes.
        stripes: u32,
        /// Blocks of 4 KiB in each stripe.
        stripe_size_4k: u32,
    },
}

/// Why a superblock cannot be used, `docs/spec/metadata.md` sections 2.2, 2.3 and 2.5.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Fewer bytes than a block were given.
    #[error("a superblock has 4096 bytes, only {got} were read")]
    Short {
        /// Bytes given.
        got: usize,
    },
    /// There is no metadata of any known version here.
    #[error("no DRBD metadata found (magic {magic:08X})")]
    NotFound {
        /// What stands where the magic should be.
        magic: u32,
    },
    /// Metadata of an older format (v06, v07).
    #[error(
        "metadata of the old format {version}, which is not supported: create v08 metadata and resync"
    )]
    OldVersion {
        /// Name of the format.
        version: &'static str,
    },
    /// Metadata of a newer format (v09 of DRBD 9).
    #[error("metadata of the newer format {version} (DRBD 9), which is not supported")]
    FutureVersion {
        /// Name of the format.
        version: &'static str,
    },
    /// The activity log has to be replayed first (magic `8374026C`, or flag AL_CLEAN not set).
    #[error("the metadata are unclean: the activity log must be applied first (apply-al)")]
    Unclean,
    /// A field contradicts the format, the device or the configured placement.
    #[error(
        "the metadata are damaged or belong to another device size or placement: {what} is {got}, expected {expected}"
    )]
    Damaged {
        /// The field, by its name in section 2.1.
        what: &'static str,
        /// What it had to be (for a limit: the limit).
        expected: i64,
        /// What is on disk.
        got: i64,
    },
    /// The device cannot hold the metadata at the configured place.
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

impl SuperblockError {
    /// DRBD's error number for a failed attach (section 2.5).
    pub const fn drbd_code(&self) -> u32 {
        match self {
            Self::Short { .. } => 118,
            Self::Unclean => 165,
            Self::Placement(PlacementError::TooSmall { .. }) => 112,
            _ => 119,
        }
    }
}

/// What is wrong with the activity log, `docs/spec/metadata.md` section 3.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActivityLogError {
    /// Fewer bytes than expected.
    #[error("the activity log has {expected} bytes, {got} were given")]
    Short {
        /// Bytes expected.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A block does not start with the log's magic.
    #[error("an activity-log block has magic {got:08X}")]
    BadMagic {
        /// What stands there.
        got: u32,
    },
    /// A block's checksum does not fit its content: a torn write.
    #[error("an activity-log block has checksum {stored:08X} and its content {computed:08X}")]
    BadChecksum {
        /// The stored checksum.
        stored: u32,
        /// The checksum of what is there.
        computed: u32,
    },
    /// More than 64 updates for one transaction.
    #[error("{got} updates in one activity-log transaction, at most 64 fit")]
    TooManyUpdates {
        /// How many were given.
        got: usize,
    },
    /// A slot number beyond the number of slots, or twice in a transaction.
    #[error(
        "slot {slot} in an activity-log transaction of {slots} slots is out of range or named twice"
    )]
    BadSlot {
        /// The slot.
        slot: u16,
        /// Number of slots.
        slots: u16,
    },
    /// The number of extents is outside what this ring can describe (section 3.2).
    #[error(
        "al-extents {got} is outside {min} to {max}, which an activity log of {blocks} blocks can describe"
    )]
    BadSlotCount {
        /// What was asked for.
        got: u32,
        /// Least value.
        min: u32,
        /// Largest value for this ring.
        max: u32,
        /// Blocks in the ring.
        blocks: u32,
    },
    /// The transaction number would wrap where the ring position would jump: initialise the ring first (3.5).
    #[error(
        "the activity log's transaction numbers are used up: the ring must be initialised again"
    )]
    NumbersUsedUp,
    /// No block of the ring is valid (E1 of section 3.9).
    #[error("no usable activity log found: none of its {blocks} blocks is valid")]
    NothingUsable {
        /// Blocks in the ring.
        blocks: u32,
    },
    /// Valid blocks, but no update, and more than the very first block is invalid (E2 of section 3.9).
    #[error("the activity log has no update and {invalid} of its {blocks} blocks are invalid")]
    Indeterminate {
        /// Invalid blocks.
        invalid: u32,
        /// Blocks in the ring.
        blocks: u32,
    },
    /// An activity log from before 8.4 (section 3.10).
    #[error(
        "the activity log has the format from before DRBD 8.4: run apply-al with drbdmeta of drbd-utils once"
    )]
    OldFormat,
    /// An activity log of DRBD 9 in persistent memory.
    #[error("the activity log has the persistent-memory format of DRBD 9, which is not supported")]
    PersistentMemory,
}

/// The size that a metadata area can describe is exceeded; used where a caller clips (section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clipped {
    /// The size on disk.
    pub stored: SectorCount,
    /// The size used instead.
    pub used: SectorCount,
}
