//! Which size the device gets: `docs/spec/metadata.md` section 1.6.

use crate::units::SectorCount;

/// What the agreed size is computed from. 0 means "none" in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeFacts {
    /// Own largest capacity; 0 if diskless.
    pub own: SectorCount,
    /// The peer's last announced disk size; 0 if never connected since start, or the peer is diskless.
    pub peer: SectorCount,
    /// `la_size_sect` of the superblock.
    pub last_agreed: SectorCount,
    /// Configured `disk-size`.
    pub configured: SectorCount,
}

/// The agreed size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgreedSize {
    /// Both sides are diskless and nothing was ever agreed: an error of the caller's.
    Nothing,
    /// The size.
    Size(SectorCount),
    /// The size, and the configured `disk-size` was larger and is ignored: to be logged as an error.
    ConfiguredTooLarge(SectorCount),
}

impl AgreedSize {
    /// The size, 0 if there is none.
    pub const fn sectors(self) -> SectorCount {
        match self {
            Self::Nothing => SectorCount(0),
            Self::Size(size) | Self::ConfiguredTooLarge(size) => size,
        }
    }
}

impl SizeFacts {
    /// The agreed size of these facts.
    pub fn agree(self) -> AgreedSize {
        let (own, peer, last) = (self.own.0, self.peer.0, self.last_agreed.0);
        let lowered_to = |size: u64, limit: u64| if limit > 0 { size.min(limit) } else { size };
        let size = if own > 0 && peer > 0 {
            own.min(peer)
        } else if last > 0 {
            lowered_to(lowered_to(last, own), peer)
        } else {
            own.max(peer)
        };
        match self.configured.0 {
            _ if size == 0 => AgreedSize::Nothing,
            0 => AgreedSize::Size(SectorCount(size)),
            configured if configured > size => AgreedSize::ConfiguredTooLarge(SectorCount(size)),
            configured => AgreedSize::Size(SectorCount(configured)),
        }
    }
}
