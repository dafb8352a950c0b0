//! Versions, features and Tandem's own capabilities (wire 3.2, 4.3).

use crate::error::ProtocolError;
use crate::packets::ConnectionFeatures;

/// Lowest protocol version that we speak.
pub const PROTOCOL_MIN: u32 = 100;
/// Highest protocol version that we speak.
pub const PROTOCOL_MAX: u32 = 101;

/// Feature flags of P_CONNECTION_FEATURES.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct Features(pub u32);

impl Features {
    /// P_TRIM may be used.
    pub const TRIM: Self = Self(1);
    /// P_RS_THIN_REQ and P_RS_DEALLOCATED may be used.
    pub const THIN_RESYNC: Self = Self(2);
    /// P_WSAME may be used; P_SIZES carries queue limits; discards go up to 128 MiB; rule 41 of wire 4.7.
    pub const WSAME: Self = Self(4);
    /// P_ZEROES may be used, and P_TRIM really means discard.
    pub const WZEROES: Self = Self(8);
    /// What kernel 8.4.11 announces, and what we announce.
    pub const KERNEL_8_4: Self = Self(0xf);

    /// Whether all flags of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags that both have.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// What only another Tandem understands, announced in the reserved words of the features packet.
///
/// A kernel sends these words as zero and ignores ours. Reserved word 0 holds
/// [`CAPABILITY_MAGIC`], word 1 the bits; words 2 to 6 stay zero for later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(pub u64);

/// Reserved word 0 of a node that announces capabilities: "TANDEM" and the layout's number, 1.
pub const CAPABILITY_MAGIC: u64 = 0x5441_4e44_454d_0001;

impl Capabilities {
    /// Nothing: a kernel.
    pub const NONE: Self = Self(0);
    /// This node may start writes of the next epoch while a barrier's flush is running, and the
    /// sender need not fear for it: barrier acks stay in order, and each comes after its flush.
    pub const PIPELINED_EPOCHS: Self = Self(1);
    /// A P_BARRIER_ACK of this node means durable, not only completed (wire 5.5).
    pub const DURABLE_BARRIER_ACK: Self = Self(2);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What this version of Tandem announces.
pub const TANDEM_CAPABILITIES: Capabilities =
    Capabilities(Capabilities::PIPELINED_EPOCHS.0 | Capabilities::DURABLE_BARRIER_ACK.0);

/// The protocol versions that a node speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The lowest.
    pub min: u32,
    /// The highest.
    pub max: u32,
}

/// What two nodes agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Protocol version, 100 or 101.
    pub version: u32,
    /// What the peer said that it speaks.
    pub peer_versions: Versions,
    /// Features that both announced.
    pub features: Features,
    /// Capabilities that both announced; none towards a kernel.
    pub capabilities: Capabilities,
}

impl ConnectionFeatures {
    /// What this node sends.
    #[must_use]
    pub const fn own(features: Features, capabilities: Capabilities) -> Self {
        let reserved = if capabilities.0 == 0 {
            [0; 7]
        } else {
            [CAPABILITY_MAGIC, capabilities.0, 0, 0, 0, 0, 0]
        };
        Self {
            protocol_min: PROTOCOL_MIN,
            feature_flags: features,
            protocol_max: PROTOCOL_MAX,
            pad: 0,
            reserved,
        }
    }

    /// The capabilities that the sender announced; none when it is no Tandem.
    #[must_use]
    pub const fn capabilities(&self) -> Capabilities {
        if self.reserved[0] == CAPABILITY_MAGIC {
            Capabilities(self.reserved[1])
        } else {
            Capabilities::NONE
        }
    }

    /// Agrees with the peer: `self` is what we sent, `peer` what came (wire 3.2).
    ///
    /// # Errors
    ///
    /// [`ProtocolError::NoCommonVersion`] when the ranges do not overlap.
    pub fn agree(&self, peer: &Self) -> Result<Agreed, ProtocolError> {
        let peer_max = match peer.protocol_max {
            0 => peer.protocol_min,
            max => max,
        };
        let version = self.protocol_max.min(peer_max);
        if version < self.protocol_min.max(peer.protocol_min) {
            return Err(ProtocolError::NoCommonVersion {
                peer_min: peer.protocol_min,
                peer_max,
                own_min: self.protocol_min,
                own_max: self.protocol_max,
            });
        }
        Ok(Agreed {
            version,
            peer_versions: Versions {
                min: peer.protocol_min,
                max: peer_max,
            },
            features: self.feature_flags.and(peer.feature_flags),
            capabilities: Capabilities(self.capabilities().0 & peer.capabilities().0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(protocol_min: u32, protocol_max: u32) -> ConnectionFeatures {
        ConnectionFeatures {
            protocol_min,
            feature_flags: Features(0xd),
            protocol_max,
            pad: 0,
            reserved: [0; 7],
        }
    }

    #[test]
    fn a_kernel_agrees_to_101_without_capabilities() {
        let own = ConnectionFeatures::own(Features::KERNEL_8_4, TANDEM_CAPABILITIES);
        let agreed = own.agree(&kernel(86, 101)).unwrap();
        assert_eq!(agreed.version, 101);
        assert_eq!(agreed.features, Features(0xd));
        assert_eq!(agreed.capabilities, Capabilities::NONE);
        assert_eq!(own.agree(&kernel(100, 0)).unwrap().version, 100);
        assert_eq!(own.agree(&kernel(86, 117)).unwrap().version, 101);
    }

    #[test]
    fn older_and_newer_nodes_are_refused() {
        let own = ConnectionFeatures::own(Features::KERNEL_8_4, Capabilities::NONE);
        for (min, max) in [(86, 99), (86, 0), (102, 117), (0, 0)] {
            let refused = own.agree(&kernel(min, max));
            assert!(matches!(
                refused,
                Err(ProtocolError::NoCommonVersion { .. })
            ));
        }
    }

    #[test]
    fn two_tandems_agree_on_capabilities() {
        let own = ConnectionFeatures::own(Features::KERNEL_8_4, TANDEM_CAPABILITIES);
        let older = ConnectionFeatures::own(Features(0), Capabilities::PIPELINED_EPOCHS);
        let agreed = own.agree(&older).unwrap();
        assert_eq!(agreed.capabilities, Capabilities::PIPELINED_EPOCHS);
    }
}
