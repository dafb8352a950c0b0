//! Data generations: which node's data is newer, and what they have in common (docs/spec/state-machine.md section 3).
//!
//! Invariants (sections 3.1 and 12.1):
//!
//! * bit 0 of *current* is set while this node is Primary; it is copied along into *bitmap*;
//! * a non-zero *bitmap* UUID is the generation since which the bitmap collects what the peer misses;
//! * a new *current* is on stable storage before any request that waited for the lost peer completes (the caller writes the
//!   superblock where an operation says so);
//! * random UUIDs are never 0 and never 4.

pub mod compare;
pub mod decide;

use crate::state::word::{ConnState, DiskState, Role, State};

pub use compare::{Comparison, Correction, Link, Party, ResolveConflicts, compare};
pub use decide::{
    Action, Decision, Demotion, Handler, Method, Policies, Reason, RefusalOutcome, Standing,
    decide, refusal_outcome,
};

/// *current* of fresh metadata.
pub const JUST_CREATED: u64 = 4;

/// The distance between two sync UUIDs of one bitmap UUID (δ in the specification).
pub const SYNC_UUID_STEP: u64 = 0x0001_0000_0000_0000;

/// The role bit.
pub const ROLE_BIT: u64 = 1;

/// P_UUIDS flag: this node gives up its changes.
pub const UUID_FLAG_DISCARD_MY_DATA: u64 = 1;
/// P_UUIDS flag: this node crashed as Primary.
pub const UUID_FLAG_CRASHED_PRIMARY: u64 = 2;
/// P_UUIDS flag: the disk that is being attached would be Inconsistent.
pub const UUID_FLAG_INCONSISTENT: u64 = 4;
/// P_UUIDS flag: skip the initial sync.
pub const UUID_FLAG_SKIP_INITIAL_SYNC: u64 = 8;

/// A UUID without its role bit: how every comparison of section 4 sees it.
pub const fn masked(uuid: u64) -> u64 {
    uuid & !ROLE_BIT
}

/// The four slots of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuids {
    /// The generation of the data.
    pub current: u64,
    /// The generation that the peer is known to have, while it misses something; else 0.
    pub bitmap: u64,
    /// Older generations, the youngest first.
    pub history: [u64; 2],
}

impl Uuids {
    /// Fresh metadata.
    pub const FRESH: Uuids = Uuids {
        current: JUST_CREATED,
        bitmap: 0,
        history: [0, 0],
    };

    /// From the four slots in their order.
    pub const fn from_slots(slots: [u64; 4]) -> Uuids {
        let [current, bitmap, newer, older] = slots;
        Uuids {
            current,
            bitmap,
            history: [newer, older],
        }
    }

    /// The four slots in their order.
    pub const fn slots(&self) -> [u64; 4] {
        [self.current, self.bitmap, self.history[0], self.history[1]]
    }

    /// Moves a value that leaves a slot into the history; zero leaves no trace.
    fn remember(&mut self, old: u64) {
        if old != 0 {
            self.history = [old, self.history[0]];
        }
    }

    /// `close-bitmap`: the peer has everything.
    pub fn close_bitmap(&mut self) {
        self.remember(self.bitmap);
        self.bitmap = 0;
    }

    /// `rotate-set` of the bitmap slot.
    pub fn rotate_bitmap(&mut self, value: u64) {
        self.remember(self.bitmap);
        self.bitmap = value;
    }

    /// The correction of rules 34 and 35: the end of a resync that one node missed.
    pub fn with_resync_finished(self) -> Uuids {
        Uuids {
            bitmap: 0,
            history: [self.bitmap, self.history[0]],
            ..self
        }
    }

    /// The correction of rules 51 and 71: a sync UUID that was lost. The older history slot stays.
    pub fn with_sync_uuid_undone(self) -> Uuids {
        Uuids {
            bitmap: self.history[0],
            history: [self.history[1], self.history[1]],
            ..self
        }
    }

    /// The line of the kernel's log: `FA68..:0E4A..:0000..:0000.. bits:120 flags:0`.
    pub fn log(&self, bits: u64, flags: u64) -> alloc::string::String {
        let [current, bitmap, newer, older] = self.slots();
        alloc::format!(
            "{current:016X}:{bitmap:016X}:{newer:016X}:{older:016X} bits:{bits} flags:{flags:X}"
        )
    }
}

/// A random number as a UUID: never 0 and never 4 when its role bit is ignored (invariant 17).
pub const fn usable(random: u64) -> u64 {
    match masked(random) {
        0 | JUST_CREATED => !random,
        _ => random,
    }
}

/// 16 bits of a generation that branches off another, which tell from which.
const fn sibling_tag(uuid: u64) -> u64 {
    masked(uuid).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48
}

/// The generations of one volume: its slots, and the generation that its application has seen last (section 3.6).
///
/// Methods that change slots leave the superblock dirty. Those that say so have to be on stable storage before anything else
/// happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    /// The slots of the metadata (all zero without a disk).
    pub uuids: Uuids,
    /// The exposed-data UUID.
    pub exposed: u64,
    /// The application has seen it on the peer's disk, and not on the own one.
    pub exposed_by_peer: bool,
    /// The generation before `exposed`, while that one was begun here and is not known to be on the disk. Nothing was answered in it: with
    /// either, the own disk has all that the application knows of.
    predecessor: Option<u64>,
    /// A correction of the slots that waits for its resync ([`Generations::correct`]).
    pending: Option<Pending>,
}

/// The slots before and after a correction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    before: Uuids,
    after: Uuids,
}

impl Generations {
    /// The generations of a disk that was just attached; what the application saw is kept.
    pub fn attached(uuids: Uuids, exposed: u64) -> Generations {
        Generations {
            uuids,
            exposed,
            exposed_by_peer: false,
            predecessor: None,
            pending: None,
        }
    }

    /// The same of another disk, which is attached now.
    #[must_use]
    pub fn with_disk(&self, uuids: Uuids) -> Generations {
        Generations {
            exposed_by_peer: self.exposed_by_peer,
            predecessor: self.predecessor,
            ..Generations::attached(uuids, self.exposed)
        }
    }

    /// The correction of rules 34, 39 and 71 belongs to the resync that follows it, and reaches the disk with that one's sync UUID (or
    /// with the next generation): the bits say what the resync has to copy, and two disks that were equal without it would never copy
    /// them (section 4.3).
    pub fn correct(&mut self, after: Uuids) {
        let before = self.slots_on_disk();
        self.uuids = after;
        self.pending = Some(Pending { before, after });
    }

    /// The correction is taken back, if its resync did not begin: the next handshake finds what this one found.
    pub fn take_back_correction(&mut self) {
        self.uuids = self.slots_on_disk();
        self.pending = None;
    }

    /// The slots as they belong into the superblock.
    pub fn slots_on_disk(&self) -> Uuids {
        let current = self.uuids.current;
        match self.pending {
            Some(Pending { before, after }) if self.uuids == (Uuids { current, ..after }) => {
                Uuids { current, ..before }
            }
            _ => self.uuids,
        }
    }

    /// `set(current, value)`: the role bit follows the role, and the data counts as seen.
    pub fn set_current(&mut self, value: u64, role: Role) {
        self.uuids.current = with_role_bit(value, role);
        self.expose_own();
    }

    /// A generation begins here. Its predecessor counts as what the application has seen, too, until it is on the disk
    /// ([`Generations::begun_on_disk`]).
    fn begin(&mut self, value: u64, role: Role) {
        let predecessor = self.predecessor.unwrap_or(self.uuids.current);
        self.set_current(value, role);
        self.predecessor = Some(predecessor);
    }

    /// The generation that was begun last is on the disk: from here on the application may know of data that a disk of the one before lacks.
    pub fn begun_on_disk(&mut self) {
        self.predecessor = None;
    }

    /// Sets or clears the role bit of *current* in place: after a change of role and at attach. What the application has
    /// seen keeps its own bit.
    pub fn mark_role(&mut self, role: Role) {
        self.uuids.current = with_role_bit(self.uuids.current, role);
    }

    /// `new-current`: a new generation starts here, and the bitmap collects what the peer misses of it. Write the superblock
    /// before any request that waits for the peer completes. Returns the bitmap UUID that was lost, if there was one: the
    /// log has to say so.
    pub fn new_current(&mut self, random: u64, role: Role) -> Option<u64> {
        let lost = self.uuids.bitmap;
        self.uuids.bitmap = self.uuids.current;
        self.begin(usable(random), role);
        (lost != 0).then_some(lost)
    }

    /// A new generation that branches off the current one, which goes into the history; the bitmap still counts from where it did. For
    /// what is written while another node may have the current one: it shows it to its application (T42), or its disk has it (T43).
    ///
    /// A current one that is itself a branch, from which no resync has started since, is in nobody's slots: it is replaced, and leaves
    /// the history to older ones.
    pub fn branch(&mut self, random: u64, role: Role) {
        let newer = self.uuids.history[0];
        if newer == 0 || self.uuids.current >> 1 & 0xffff != sibling_tag(newer) {
            self.uuids.remember(self.uuids.current);
        }
        let tag = sibling_tag(self.uuids.history[0]) << 1;
        self.begin(usable(random & !(0xffff << 1) | tag), role);
    }

    /// The administrator's `new-current-uuid` (section 3.10): in StandAlone the bitmap UUID stays set; to skip the initial
    /// sync of a connected pair it is cleared. Write the superblock.
    pub fn new_current_by_command(&mut self, random: u64, role: Role, case: NewCurrentCase) {
        self.uuids.rotate_bitmap(0);
        self.new_current(random, role);
        if case == NewCurrentCase::SkipInitialSync {
            self.uuids.bitmap = 0;
        }
    }

    /// Start of a resync as source (section 3.4). Write the superblock, then send the returned value in P_SYNC_UUID.
    pub fn start_as_source(&mut self, random: u64) -> u64 {
        let value = match self.uuids.bitmap {
            0 | JUST_CREATED => usable(random),
            bitmap => bitmap.wrapping_add(SYNC_UUID_STEP),
        };
        self.uuids.rotate_bitmap(value);
        value
    }

    /// P_SYNC_UUID on the target (section 3.4), in WFSyncUUID or Behind with a disk: its former current UUID is forgotten.
    pub fn start_as_target(&mut self, sync_uuid: u64, role: Role) {
        self.set_current(sync_uuid, role);
        self.uuids.bitmap = 0;
    }

    /// End of a resync without failed blocks on the target (section 3.5). `peer` are the slots of the
    /// last P_UUIDS, as a rule from before the source stored the sync UUID. Two offers of disks that crossed (2.9 no. 14) may have brought
    /// them once more after the comparison that took a lost sync UUID out of them (rule 51): it is taken out here, then.
    pub fn finish_as_target(&mut self, peer: &Uuids, role: Role) {
        let has_sync_uuid = masked(peer.bitmap) == masked(self.uuids.current);
        let peer = if has_sync_uuid {
            peer.with_sync_uuid_undone()
        } else {
            *peer
        };
        self.uuids.bitmap = peer.bitmap;
        self.uuids.history = peer.history;
        self.uuids.rotate_bitmap(self.uuids.current);
        self.set_current(peer.current, role);
        self.uuids.close_bitmap();
    }

    /// End of a resync without failed blocks on the source (section 3.5).
    pub fn finish_as_source(&mut self) {
        self.uuids.close_bitmap();
    }

    /// Takes over the peer's generation without a resync (section 3.11); clear the bitmap as well.
    pub fn skip_initial_sync(&mut self, peer: &Uuids, role: Role) {
        self.set_current(peer.current, role);
        self.uuids.bitmap = 0;
    }

    /// Whether a received P_UUIDS asks to skip the initial sync, and may (section 3.11).
    pub fn may_skip_initial_sync(&self, state: &State, protocol: u32, peer_flags: u64) -> bool {
        state.disk >= DiskState::Inconsistent
            && state.conn == ConnState::Connected
            && protocol >= 90
            && self.uuids.current == JUST_CREATED
            && peer_flags & UUID_FLAG_SKIP_INITIAL_SYNC != 0
    }

    /// Received P_UUIDS: what the application of a node without data sees is the peer's data (section 3.6).
    pub fn expose_peer(&mut self, state: &State, peer: &Uuids) {
        let watches = state.role == Role::Primary || state.conn >= ConnState::Connected;
        if state.disk < DiskState::Inconsistent && watches {
            self.exposed_by_peer |= masked(self.exposed) != masked(peer.current);
            self.exposed = peer.current;
            self.predecessor = None;
        }
    }

    /// The own disk became Consistent or better (section 2.8 #8).
    pub fn expose_own(&mut self) {
        self.exposed = self.uuids.current;
        self.exposed_by_peer = false;
        self.predecessor = None;
    }

    /// Whether a disk with this *current* was the own one when the application saw it last (S4 of section 2.5 compares exactly).
    pub fn has_shown(&self, current: u64) -> bool {
        self.exposed == current || self.is_predecessor(current)
    }

    fn is_predecessor(&self, current: u64) -> bool {
        self.predecessor
            .is_some_and(|before| masked(before) == masked(current))
    }

    /// An attach has to be refused (150): the disk does not carry what the application last saw (section 3.6 (1)).
    /// `metadata` are the slots of the disk to attach.
    pub fn refuses_attach(&self, state: &State, metadata: &Uuids) -> bool {
        self.exposed != 0
            && self.needs_the_peer(state)
            && masked(self.exposed) != masked(metadata.current)
            && !self.is_predecessor(metadata.current)
    }

    /// A disk that lacks what the application has written may not be attached: nobody here can bring it up to date.
    pub fn needs_the_peer(&self, state: &State) -> bool {
        let in_use = state.role == Role::Primary || state.peer == Role::Primary;
        state.pdsk != DiskState::UpToDate && in_use
    }

    /// A diskless Primary must drop a connection whose peer carries other data (section 3.6 (2)).
    pub fn refuses_peer_data(&self, state: &State, peer: &Uuids) -> bool {
        state.disk < DiskState::Inconsistent
            && state.role == Role::Primary
            && (state.conn < ConnState::Connected || state.pdsk == DiskState::Diskless)
            && masked(self.exposed) != masked(peer.current)
    }

    /// A promotion that succeeded starts a new generation (N3 of section 3.3). `state` is the state after it.
    pub fn promotion_starts_generation(&self, state: &State, forced: Forced) -> bool {
        let alone = state.conn < ConnState::Connected || state.pdsk <= DiskState::Failed;
        state.disk >= DiskState::Inconsistent
            && (forced == Forced::Yes || (alone && self.uuids.bitmap == 0))
    }
}

/// Whether a promotion used data that the rules would not have used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// It was forced, and would have failed otherwise.
    Yes,
    /// It was an ordinary one.
    No,
}

/// The two uses of `new-current-uuid` (section 3.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewCurrentCase {
    /// Truck based replication: the node is StandAlone.
    StandAlone,
    /// A fresh connected pair with `--clear-bitmap`.
    SkipInitialSync,
}

/// Whether `new-current-uuid` also clears the bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClearBitmap {
    /// With `--clear-bitmap`.
    Yes,
    /// Without it.
    No,
}

/// Whether `new-current-uuid` is allowed, and as what (section 3.10); else it is refused with 151 (no disk: 138, before).
pub fn new_current_case(
    state: &State,
    uuids: &Uuids,
    protocol: u32,
    clear: ClearBitmap,
) -> Option<NewCurrentCase> {
    let fresh = state.conn == ConnState::Connected
        && protocol >= 90
        && uuids.current == JUST_CREATED
        && clear == ClearBitmap::Yes;
    if fresh {
        return Some(NewCurrentCase::SkipInitialSync);
    }
    (state.conn == ConnState::StandAlone).then_some(NewCurrentCase::StandAlone)
}

fn with_role_bit(value: u64, role: Role) -> u64 {
    if role == Role::Primary {
        value | ROLE_BIT
    } else {
        masked(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u64 = 0x1111_2222_3333_4445;

    fn crashed() -> Generations {
        let uuids = Uuids::from_slots([FIRST, 0xcccc_0000_1234_0000, 0xaaaa_0000, 0xbbbb_0000]);
        Generations::attached(uuids, 0)
    }

    #[test]
    fn a_branch_of_a_branch_replaces_it_and_leaves_the_history_alone() {
        let mut node = crashed();
        for random in [1 << 60, 5 << 20, u64::MAX, 0, 3 << 40] {
            let before = node.uuids.current;
            node.branch(random, Role::Primary);
            let Uuids {
                current,
                bitmap,
                history,
            } = node.uuids;
            assert_ne!(masked(current), masked(before));
            assert_eq!(bitmap, crashed().uuids.bitmap);
            assert_eq!(history, [FIRST, 0xaaaa_0000]);
        }
    }

    #[test]
    fn a_branch_from_which_a_resync_has_started_stays_in_the_history() {
        let mut node = crashed();
        node.branch(1 << 60, Role::Secondary);
        let branch = node.uuids.current;
        let sync = node.start_as_source(7);
        let base = node.uuids.history[0];
        node.branch(2 << 60, Role::Secondary);
        assert_eq!(node.uuids.bitmap, sync);
        assert_eq!(node.uuids.history, [branch, base]);
    }
}
