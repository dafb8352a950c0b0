//! The packed state word of P_STATE and of state-change requests (wire 10.6).

use core::fmt;

/// The state word as it is on the wire: one node's own view of one volume.
///
/// | bits | field | bits | field |
/// | --- | --- | --- | --- |
/// | 0-1 | role | 17 | susp |
/// | 2-3 | peer (role) | 18 | aftr_isp |
/// | 4-8 | conn | 19 | peer_isp |
/// | 9-12 | disk | 20 | user_isp |
/// | 13-16 | pdsk | 21 | susp_nod |
/// | 23-31 | 0 | 22 | susp_fen |
///
/// Numbers of roles, disk and connection states: wire 10.3 and 10.4.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub struct WireState(pub u32);

/// Mask of the role.
pub const MASK_ROLE: u32 = 0x3;
/// Mask of the peer's role.
pub const MASK_PEER: u32 = 0xc;
/// Mask of the connection state.
pub const MASK_CONN: u32 = 0x1f0;
/// Mask of the own disk state.
pub const MASK_DISK: u32 = 0x1e00;
/// Mask of the peer's disk state.
pub const MASK_PDSK: u32 = 0x1_e000;

macro_rules! parts {
    ($($(#[$doc:meta])* $get:ident, $with:ident: $shift:literal, $mask:expr;)*) => {
        impl WireState {
            $(
                $(#[$doc])*
                #[must_use]
                pub const fn $get(self) -> u8 {
                    ((self.0 & $mask) >> $shift) as u8
                }

                /// The word with this field replaced; bits that do not fit are dropped.
                #[must_use]
                pub const fn $with(self, value: u8) -> Self {
                    Self(self.0 & !$mask | ((value as u32) << $shift) & $mask)
                }
            )*
        }
    };
}

parts! {
    /// Own role: 0 Unknown, 1 Primary, 2 Secondary.
    role, with_role: 0, MASK_ROLE;
    /// Peer's role.
    peer, with_peer: 2, MASK_PEER;
    /// Connection state, 0 StandAlone to 23 Behind.
    conn, with_conn: 4, MASK_CONN;
    /// Own disk state, 0 Diskless to 8 UpToDate.
    disk, with_disk: 9, MASK_DISK;
    /// Peer's disk state.
    pdsk, with_pdsk: 13, MASK_PDSK;
    /// I/O suspended by the administrator, 0 or 1.
    susp, with_susp: 17, 0x2_0000;
    /// Resync paused because another device goes first, 0 or 1.
    aftr_isp, with_aftr_isp: 18, 0x4_0000;
    /// Resync paused by the peer, 0 or 1.
    peer_isp, with_peer_isp: 19, 0x8_0000;
    /// Resync paused by the administrator, 0 or 1.
    user_isp, with_user_isp: 20, 0x10_0000;
    /// I/O suspended for want of data, 0 or 1.
    susp_nod, with_susp_nod: 21, 0x20_0000;
    /// I/O suspended by the fencing policy, 0 or 1.
    susp_fen, with_susp_fen: 22, 0x40_0000;
}

impl fmt::Debug for WireState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "WireState({:#010x}: role {} peer {} conn {} disk {} pdsk {})",
            self.0,
            self.role(),
            self.peer(),
            self.conn(),
            self.disk(),
            self.pdsk()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_of_the_specification_are_read_as_they_say() {
        // Secondary, peer Primary, PausedSyncT (user_isp), Inconsistent / UpToDate (wire 12).
        let word = WireState(0x0011_0956);
        assert_eq!((word.role(), word.peer(), word.conn()), (2, 1, 21));
        assert_eq!((word.disk(), word.pdsk(), word.user_isp()), (4, 8, 1));
        let built = WireState::default().with_role(1).with_peer(2).with_conn(10);
        assert_eq!(built.with_disk(8).with_pdsk(8), WireState(0x0001_10a9));
    }

    #[test]
    fn replacing_a_field_leaves_the_others() {
        let all = WireState(u32::MAX);
        assert_eq!(all.with_conn(0).0, !MASK_CONN);
        assert_eq!(WireState(0).with_conn(0xff).0, MASK_CONN);
        assert_eq!(WireState(0).with_susp_fen(1).0, 1 << 22);
    }
}
