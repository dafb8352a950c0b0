//! The comparison of two sets of UUIDs (docs/spec/state-machine.md section 4.3): rules 10 to 100, first match decides.
//!
//! Both nodes run it on mirrored inputs and reach mirrored results.

use super::{JUST_CREATED, SYNC_UUID_STEP, Uuids, masked};
use crate::state::word::Role;

/// hg: nothing to do.
pub const NO_SYNC: i32 = 0;
/// hg: both diverged from a known generation.
pub const SPLIT_BRAIN: i32 = 100;
/// hg: both diverged, and the bitmaps may not describe how.
pub const SPLIT_BRAIN_UNKNOWN: i32 = -100;
/// hg: nothing in common.
pub const UNRELATED: i32 = -1000;

/// The rule that a kernel does not have: what it takes for unrelated data has a common ancestor, the generation from which one of the
/// bitmaps counts. The bitmaps do not cover the difference.
pub const COMMON_BITMAP: u8 = 101;

/// Rules that a kernel does not have: the generations are the same, both bitmaps count, and only the peer has not stored the end of the
/// resync that it was the source of. Its bitmap has nothing to count; the own one does.
pub const BOTH_COUNT_SOURCE: u8 = 38;

/// The mirror of [`BOTH_COUNT_SOURCE`].
pub const BOTH_COUNT_TARGET: u8 = 39;
/// hg: one of the nodes is too old for what would have to be done (protocol 91).
pub const NEEDS_PROTOCOL_91: i32 = -1091;
/// hg: rule 41 needs the WRITE_SAME feature, which came with that rule.
pub const NEEDS_FEATURE: i32 = -(0x10000 + 101 + 0x400);

/// Which of the two nodes yields when there is nothing else to tell them apart: exactly one holds the flag (section 0.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveConflicts {
    /// This node holds it.
    Here,
    /// The peer holds it.
    There,
}

/// One side of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// Its slots.
    pub uuids: Uuids,
    /// It crashed as Primary (section 3.7; flag 2 of P_UUIDS).
    pub crashed_primary: bool,
    /// Its role now.
    pub role: Role,
}

/// What the connection adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Agreed protocol version.
    pub protocol: u32,
    /// The feature WRITE_SAME was agreed.
    pub write_same: bool,
    /// Who yields.
    pub resolve_conflicts: ResolveConflicts,
    /// The peer is a Tandem, too: rules count that a kernel does not have.
    pub tandem: bool,
}

/// A set that turned out to lag behind what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correction {
    /// The own slots are these from now on (superblock dirty).
    Own(Uuids),
    /// The stored copy of the peer's slots is this from now on.
    Peer(Uuids),
}

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The number that the log shows: ±1 bitmap, ±2 full, positive as source; 0, ±100, -1000 and versions as in the constants.
    pub hg: i32,
    /// The rule that decided; `None` if the protocol is too old to name one.
    pub rule: Option<u8>,
    /// What one of the nodes has missed.
    pub correction: Option<Correction>,
}

impl Comparison {
    const fn of(hg: i32, rule: u8) -> Comparison {
        Comparison {
            hg,
            rule: Some(rule),
            correction: None,
        }
    }

    /// Rule 42: the device grows with this connection while the generations are the same. Without a resync nobody would copy the new
    /// area: from the Primary, else from the node that resolves conflicts.
    pub(crate) fn of_grown(self, roles: [Role; 2], resolves: ResolveConflicts) -> Comparison {
        let source = match roles {
            [Role::Primary, peer] if peer != Role::Primary => true,
            [own, Role::Primary] if own != Role::Primary => false,
            _ => resolves == ResolveConflicts::Here,
        };
        match self.hg {
            NO_SYNC => Comparison::of(if source { 1 } else { -1 }, 42),
            _ => self,
        }
    }

    /// The kernel's log line: `uuid_compare()=-1 by rule 50`.
    pub fn log(&self) -> alloc::string::String {
        alloc::format!(
            "uuid_compare()={} by rule {}",
            self.hg,
            self.rule.unwrap_or(0)
        )
    }
}

/// Who has the newer data.
pub fn compare(own: &Party, peer: &Party, link: &Link) -> Comparison {
    let (s, p) = (&own.uuids, &peer.uuids);
    let (s_current, p_current) = (masked(s.current), masked(p.current));
    let empty = |current| current == JUST_CREATED || current == 0;
    if s_current == JUST_CREATED && p_current == JUST_CREATED {
        return Comparison::of(NO_SYNC, 10);
    }
    if empty(s_current) && p_current != JUST_CREATED {
        return Comparison::of(-2, 20);
    }
    if s_current != JUST_CREATED && empty(p_current) {
        return Comparison::of(2, 30);
    }
    if s_current == p_current {
        same_generation(own, peer, link)
    } else {
        diverged(s, p, link)
    }
}

/// Rules 34 to 41.
fn same_generation(own: &Party, peer: &Party, link: &Link) -> Comparison {
    let (s, p) = (&own.uuids, &peer.uuids);
    if (s.bitmap == 0) != (p.bitmap == 0) && link.protocol < 91 {
        return Comparison {
            hg: NEEDS_PROTOCOL_91,
            rule: None,
            correction: None,
        };
    }
    if p.bitmap == 0 && s.bitmap != 0 {
        return if missed_end_of_resync(s, p) {
            corrected(1, 34, Correction::Own(s.with_resync_finished()))
        } else {
            Comparison::of(1, 36)
        };
    }
    if s.bitmap == 0 && p.bitmap != 0 {
        return if missed_end_of_resync(p, s) {
            corrected(-1, 35, Correction::Peer(p.with_resync_finished()))
        } else {
            Comparison::of(-1, 37)
        };
    }
    if link.tandem && p.bitmap != 0 {
        match (missed_end_of_resync(p, s), missed_end_of_resync(s, p)) {
            (true, false) => {
                return corrected(
                    1,
                    BOTH_COUNT_SOURCE,
                    Correction::Peer(p.with_resync_finished()),
                );
            }
            (false, true) => {
                return corrected(
                    -1,
                    BOTH_COUNT_TARGET,
                    Correction::Own(s.with_resync_finished()),
                );
            }
            _ => {}
        }
    }
    let own_primary = own.role == Role::Primary;
    let peer_primary = peer.role == Role::Primary;
    match (own.crashed_primary, peer.crashed_primary) {
        (false, false) => Comparison::of(NO_SYNC, 40),
        _ if own_primary || peer_primary => crashed_beside_primary(own_primary, peer_primary, link),
        (true, false) => Comparison::of(1, 40),
        (false, true) => Comparison::of(-1, 40),
        (true, true) => match link.resolve_conflicts {
            ResolveConflicts::Here => Comparison::of(-1, 40),
            ResolveConflicts::There => Comparison::of(1, 40),
        },
    }
}

/// Rule 41: somebody crashed, and somebody is Primary now.
fn crashed_beside_primary(own_primary: bool, peer_primary: bool, link: &Link) -> Comparison {
    let hg = match (own_primary, peer_primary) {
        _ if !link.write_same => NEEDS_FEATURE,
        (true, true) => SPLIT_BRAIN_UNKNOWN,
        (true, false) => 1,
        _ => -1,
    };
    Comparison::of(hg, 41)
}

/// `source` still has the bitmap UUID that `target` keeps in its history: the resync between them was finished there.
fn missed_end_of_resync(source: &Uuids, target: &Uuids) -> bool {
    masked(source.bitmap) == masked(target.history[0])
        && masked(source.history[0]) == masked(target.history[1])
}

/// Rules 50 to 100.
fn diverged(s: &Uuids, p: &Uuids, link: &Link) -> Comparison {
    if masked(s.current) == masked(p.bitmap) {
        return Comparison::of(-1, 50);
    }
    if lost_sync_uuid(s, p, link) {
        return sync_uuid_lost(-1, 51, Correction::Peer(p.with_sync_uuid_undone()), link);
    }
    if in_history(s.current, p) {
        return Comparison::of(-2, 60);
    }
    if masked(s.bitmap) == masked(p.current) {
        return Comparison::of(1, 70);
    }
    if lost_sync_uuid(p, s, link) {
        return sync_uuid_lost(1, 71, Correction::Own(s.with_sync_uuid_undone()), link);
    }
    if in_history(p.current, s) {
        return Comparison::of(2, 80);
    }
    if masked(s.bitmap) == masked(p.bitmap) && masked(s.bitmap) != 0 {
        return Comparison::of(SPLIT_BRAIN, 90);
    }
    // Two empty slots count as equal, as they do in the kernel: refusing more here would let the nodes disagree.
    if s.history.iter().any(|old| in_history(*old, p)) {
        return Comparison::of(SPLIT_BRAIN_UNKNOWN, 100);
    }
    // A kernel refuses it as unrelated, whatever a person decides here: the advice has to fit.
    if link.tandem && (knows_bitmap_of(s, p) || knows_bitmap_of(p, s)) {
        return Comparison::of(SPLIT_BRAIN_UNKNOWN, COMMON_BITMAP);
    }
    Comparison::of(UNRELATED, 100)
}

/// The generation from which the other node's bitmap counts is in the history of this one.
fn knows_bitmap_of(other: &Uuids, set: &Uuids) -> bool {
    ![0, JUST_CREATED].contains(&masked(other.bitmap)) && in_history(other.bitmap, set)
}

/// The source rotated its bitmap UUID, and the target never stored the sync UUID that was sent for it.
fn lost_sync_uuid(target: &Uuids, source: &Uuids, link: &Link) -> bool {
    let moved = if link.protocol >= 96 {
        masked(source.history[0].wrapping_add(SYNC_UUID_STEP)) == masked(source.bitmap)
    } else {
        masked(target.history[0]) == masked(source.history[1])
    };
    masked(target.current) == masked(source.history[0]) && moved
}

fn sync_uuid_lost(hg: i32, rule: u8, correction: Correction, link: &Link) -> Comparison {
    if link.protocol < 91 {
        return Comparison::of(NEEDS_PROTOCOL_91, rule);
    }
    corrected(hg, rule, correction)
}

fn corrected(hg: i32, rule: u8, correction: Correction) -> Comparison {
    Comparison {
        hg,
        rule: Some(rule),
        correction: Some(correction),
    }
}

fn in_history(uuid: u64, of: &Uuids) -> bool {
    of.history.iter().any(|old| masked(*old) == masked(uuid))
}
