//! What follows from a change of state (docs/spec/state-machine.md sections 2.8, 2.9, 2.10): decided here as values in
//! their order, carried out by the engine. Also the decisions that only read a state: sections 1.5, 3.3, 3.8, 7.3.

use alloc::vec::Vec;

use super::rules::Change;
use super::word::{ConnState, DiskState, Role, State};

/// What the effects depend on beside the two states. "Others" are the other volumes of the resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EffectContext {
    /// Agreed protocol version.
    pub protocol: u32,
    /// The bitmap UUID is zero.
    pub bitmap_uuid_is_zero: bool,
    /// The device grew while detached and the new area was not resynced yet (section 10.1).
    pub grew_while_detached: bool,
    /// Every other volume is Connected or above (true if there is none).
    pub others_connected: bool,
    /// The disk of every other volume is UpToDate (true if there is none).
    pub others_up_to_date: bool,
    /// Some other volume is still in WFReportParams.
    pub others_reporting: bool,
}

impl Default for EffectContext {
    /// A single volume with the newest protocol and no bitmap UUID.
    fn default() -> Self {
        EffectContext {
            protocol: 101,
            bitmap_uuid_is_zero: true,
            grew_while_detached: false,
            others_connected: true,
            others_up_to_date: true,
            others_reporting: false,
        }
    }
}

/// Effects that are atomic with the change (section 2.8), in its order. The log line ([`super::word::diff`]) comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Immediate {
    /// 2: close the current epoch of the transfer log.
    CloseEpoch,
    /// 3: clear state-sent and wake the requesters that wait.
    HandshakeDone,
    /// 4: remember the position that the verify reached as the next start.
    VerifyEnded,
    /// 5: a paused resync goes on; on the target the request generator starts at once.
    ResyncResumed,
    /// 5: a resync is paused: take the time.
    ResyncPaused,
    /// 6: a verify starts: reset counters; VerifyS starts its generator.
    VerifyStarted,
    /// 7: recompute the on-disk flags, superblock dirty.
    UpdateDiskFlags,
    /// 8: exposed-data UUID := current UUID.
    ExposeCurrent,
    /// 9: set consider-resync.
    ConsiderResync,
    /// 10: the receiver stops.
    StopReceiver,
    /// 10: the receiver cleans up and connects again.
    RestartReceiver,
    /// 11: the volume is connected: activity-log updates resume, connect-count + 1.
    Connected,
    /// 12: note the time of the attach, for disk-timeout.
    NoteAttachTime,
    /// 12: note the time of the connection, for ko-count.
    NoteConnectTime,
}

/// Effects that the worker carries out after the change (section 2.9), in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deferred {
    /// 1: tell user space.
    Notify,
    /// 2: clear crashed-primary, also in the stored flags of the peer.
    ClearCrashedPrimary,
    /// 3: handler `pri-on-incon-degr`.
    HandlerPriOnInconDegr,
    /// 4: the peer is back: send the transfer log again, clear susp_nod.
    ResendAndClearSuspNod,
    /// 5: the disk is back: submit frozen requests to it, clear susp_nod.
    RestartAndClearSuspNod,
    /// 6: the peer is back: forget new-current-pending on all volumes, send the transfer log again, clear susp_fen.
    ResendAndClearSuspFen,
    /// 7: generate, store and send the sync UUID.
    SendSyncUuid,
    /// 8: the peer's disk appeared: reset resync counters, send P_UUIDS and P_STATE.
    GreetPeerDisk,
    /// 9: send the bitmap, if the volume is still in WFBitMapS.
    SendBitmap,
    /// 10, 11: new current UUID, P_UUIDS to the peer if there is one.
    NewCurrentUuid,
    /// 10: I/O is suspended: only note that a new current UUID is due.
    NewCurrentPending,
    /// 12, 13, 27: write the changed pages of the bitmap.
    WriteBitmap,
    /// 14: the disk was attached while connected: send P_SIZES, P_UUIDS and P_STATE.
    OfferDisk,
    /// 15, 17, 18, 20, 21, 22, 25, 26: send P_STATE with this change.
    SendState,
    /// 16: pause the volumes that depend on this one.
    PauseDependents,
    /// 19: set all bits and write them with I/O held off, then go on: as target to WFSyncUUID, as source to its start.
    StartFullSync,
    /// 20: the disk failed: handler (before anything is sent), abort what is forced, then P_STATE, and Diskless when drained.
    DiskFailed,
    /// 21: release the disk.
    DiskReleased,
    /// 23: consume grew-while-detached and, if Connected, resync the grown area.
    ResyncGrownArea,
    /// 24, 28: look again at the volumes that depend on this one.
    RecheckDependents,
    /// 29: write the superblock if it is dirty.
    WriteSuperblock,
}

/// Effects of a change of the connection (section 2.10), after those of its volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionEffect {
    /// Start the receiver.
    StartReceiver,
    /// Forget net options and keys.
    ForgetNetOptions,
    /// The peer is fenced: volumes with new-current-pending create their UUID, the transfer log is handled as "connection
    /// lost", susp_fen := 0.
    ResolveFencing,
}

/// Everything that follows from one change of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Now, with the change.
    pub immediate: Vec<Immediate>,
    /// Afterwards, in this order, before the deferred effects of the next change of the volume.
    pub deferred: Vec<Deferred>,
}

/// What follows from a change that was allowed. Nothing if nothing changed.
pub fn derive(old: &State, new: &State, context: &EffectContext) -> Effects {
    if old == new {
        return Effects::default();
    }
    let change = Change {
        old: *old,
        new: *new,
    };
    let mut effects = Effects::default();
    for (effect, applies) in IMMEDIATE {
        if applies(&change, context) {
            effects.immediate.push(*effect);
        }
    }
    for (effect, applies) in DEFERRED {
        if applies(&change, context) {
            effects.deferred.push(*effect);
        }
    }
    effects
}

/// What follows from a change of the connection, or of the states of its volumes under a fencing freeze. `highest_pdsk` is
/// the highest peer disk of all volumes after the change.
pub fn derive_connection(
    old: ConnState,
    new: ConnState,
    susp_fen: bool,
    highest_pdsk: Option<DiskState>,
) -> Vec<ConnectionEffect> {
    let mut effects = Vec::new();
    if old == ConnState::StandAlone && new == ConnState::Unconnected {
        effects.push(ConnectionEffect::StartReceiver);
    }
    if old == ConnState::Disconnecting && new == ConnState::StandAlone {
        effects.push(ConnectionEffect::ForgetNetOptions);
    }
    if susp_fen && highest_pdsk.is_some_and(|pdsk| pdsk <= DiskState::Outdated) {
        effects.push(ConnectionEffect::ResolveFencing);
    }
    effects
}

type Applies = fn(&Change, &EffectContext) -> bool;

const IMMEDIATE: &[(Immediate, Applies)] = &[
    (Immediate::CloseEpoch, |c, _| {
        writes_are_replicated(&c.old) != writes_are_replicated(&c.new)
    }),
    (Immediate::HandshakeDone, |c, x| {
        leaves(c, ConnState::WFReportParams) && !x.others_reporting
    }),
    (Immediate::VerifyEnded, |c, _| {
        c.old.conn.is_verify() && c.new.conn <= ConnState::Connected
    }),
    (Immediate::ResyncResumed, |c, _| {
        use ConnState::{PausedSyncS, PausedSyncT, SyncSource, SyncTarget};
        matches!(
            (c.old.conn, c.new.conn),
            (PausedSyncS, SyncSource) | (PausedSyncT, SyncTarget)
        )
    }),
    (Immediate::ResyncPaused, |c, _| {
        use ConnState::{PausedSyncS, PausedSyncT, SyncSource, SyncTarget};
        matches!(
            (c.old.conn, c.new.conn),
            (SyncSource, PausedSyncS) | (SyncTarget, PausedSyncT)
        )
    }),
    (Immediate::VerifyStarted, |c, _| {
        c.old.conn == ConnState::Connected && c.new.conn.is_verify()
    }),
    (Immediate::UpdateDiskFlags, |c, _| {
        c.new.disk >= DiskState::Inconsistent
    }),
    (Immediate::ExposeCurrent, |c, _| {
        c.old.disk < DiskState::Consistent && c.new.disk >= DiskState::Consistent
    }),
    (Immediate::ConsiderResync, |c, _| {
        c.old.disk == DiskState::Inconsistent
            && c.old.pdsk == DiskState::Inconsistent
            && c.old.peer == Role::Secondary
            && c.new.peer == Role::Primary
    }),
    (Immediate::StopReceiver, |c, _| {
        c.old.conn != c.new.conn
            && matches!(c.new.conn, ConnState::Disconnecting | ConnState::StandAlone)
    }),
    (Immediate::RestartReceiver, |c, _| {
        c.old.conn > ConnState::WFConnection && c.new.conn.is_failure()
    }),
    (Immediate::Connected, |c, _| {
        c.old.conn < ConnState::Connected && c.new.conn >= ConnState::Connected
    }),
    (Immediate::NoteAttachTime, |c, _| {
        matches!(c.old.disk, DiskState::Attaching | DiskState::Negotiating)
            && c.new.disk > DiskState::Negotiating
    }),
    (Immediate::NoteConnectTime, |c, _| {
        becomes(c, ConnState::WFReportParams)
    }),
];

const DEFERRED: &[(Deferred, Applies)] = &[
    (Deferred::Notify, |_, _| true),
    (Deferred::ClearCrashedPrimary, |c, _| {
        c.new.is_up_to_date_pair() && !c.old.is_up_to_date_pair()
    }),
    (Deferred::HandlerPriOnInconDegr, |c, _| {
        c.new.role == Role::Primary && no_data(&c.new) && !no_data(&c.old)
    }),
    (Deferred::ResendAndClearSuspNod, |c, x| {
        peer_data_returns(c, x)
    }),
    (Deferred::RestartAndClearSuspNod, |c, x| {
        !peer_data_returns(c, x) && own_data_returns(c, x)
    }),
    (Deferred::ResendAndClearSuspFen, |c, x| {
        c.new.susp_fen && c.new.conn >= ConnState::Connected && x.others_connected
    }),
    (Deferred::SendSyncUuid, |c, x| {
        let source = |conn| matches!(conn, ConnState::SyncSource | ConnState::PausedSyncS);
        x.protocol >= 96 && !source(c.old.conn) && source(c.new.conn)
    }),
    // The second: a peer that was attaching when the link was made has to be answered, too, before any bitmap.
    (Deferred::GreetPeerDisk, |c, _| {
        let came = c.old.pdsk == DiskState::Diskless && c.new.pdsk > DiskState::Diskless;
        let offered = c.old.pdsk == DiskState::Attaching && c.new.pdsk >= DiskState::Negotiating;
        (came || offered) && c.new.pdsk != DiskState::DUnknown
    }),
    (Deferred::SendBitmap, |c, _| {
        becomes(c, ConnState::WFBitMapS)
    }),
    (Deferred::NewCurrentUuid, |c, x| {
        let alone = split_off(c, x) || primary_goes_on_alone(c, x);
        (alone && !c.new.is_suspended()) || diskless_peer_promoted(c, x)
    }),
    (Deferred::NewCurrentPending, |c, x| {
        (split_off(c, x) || primary_goes_on_alone(c, x)) && c.new.is_suspended()
    }),
    (Deferred::WriteBitmap, |c, _| {
        let peer_demoted = c.new.pdsk < DiskState::Inconsistent
            && c.old.peer == Role::Primary
            && c.new.peer == Role::Secondary;
        has_disk(&c.new) && (peer_demoted || demoted_alone(c))
    }),
    (Deferred::OfferDisk, |c, _| {
        c.new.conn >= ConnState::Connected
            && c.old.disk == DiskState::Attaching
            && c.new.disk == DiskState::Negotiating
    }),
    // 15, 17, 18: one packet carries the change whichever of them asks for it.
    (Deferred::SendState, |c, _| {
        let paused = c.old.aftr_isp != c.new.aftr_isp || c.old.user_isp != c.new.user_isp;
        let begins = c.old.conn == ConnState::WFReportParams;
        (c.new.conn >= ConnState::Connected && (paused || begins)) || becomes(c, ConnState::Ahead)
    }),
    (Deferred::PauseDependents, |c, _| {
        c.new.is_paused() && !c.old.is_paused()
    }),
    (Deferred::StartFullSync, |c, _| {
        becomes(c, ConnState::StartingSyncS) || becomes(c, ConnState::StartingSyncT)
    }),
    (Deferred::DiskFailed, |c, _| {
        disk_becomes(c, DiskState::Failed)
    }),
    (Deferred::DiskReleased, |c, _| {
        disk_becomes(c, DiskState::Diskless)
    }),
    // 20, 21, 22 (the handler of 20 runs before anything is sent).
    (Deferred::SendState, |c, _| {
        let degraded = c.old.disk == DiskState::UpToDate && c.new.disk == DiskState::Inconsistent;
        let lost = disk_becomes(c, DiskState::Failed) || disk_becomes(c, DiskState::Diskless);
        c.new.conn >= ConnState::Connected && (degraded || lost)
    }),
    (Deferred::ResyncGrownArea, |c, x| {
        x.grew_while_detached
            && c.new.disk > DiskState::Negotiating
            && c.new.pdsk > DiskState::Negotiating
    }),
    (Deferred::RecheckDependents, |c, _| {
        let ended = c.old.conn > ConnState::Connected && c.new.conn <= ConnState::Connected;
        let resumed = (c.old.peer_isp && !c.new.peer_isp) || (c.old.user_isp && !c.new.user_isp);
        let unused = c.new.conn == ConnState::StandAlone
            && c.new.disk == DiskState::Diskless
            && c.new.role == Role::Secondary
            && c.old.aftr_isp != c.new.aftr_isp;
        ended || resumed || unused
    }),
    // 25, 26. A kernel does not tell the end of a resync that had only begun to start: its peer then takes this disk for what it was.
    (Deferred::SendState, |c, x| {
        let stop_sector = x.protocol >= 97 && x.protocol != 100;
        c.new.conn == ConnState::Connected
            && ((c.old.disk < DiskState::UpToDate && c.old.conn >= ConnState::StartingSyncS)
                || (c.old.conn == ConnState::VerifyS && stop_sector))
    }),
    (Deferred::WriteBitmap, |c, _| {
        let ran = c.old.conn >= ConnState::StartingSyncS && c.old.conn <= ConnState::PausedSyncT;
        let over = c.new.conn == ConnState::Connected || c.new.conn >= ConnState::Ahead;
        ran && over && has_disk(&c.new)
    }),
    (Deferred::WriteSuperblock, |_, _| true),
];

fn becomes(change: &Change, conn: ConnState) -> bool {
    change.old.conn != conn && change.new.conn == conn
}

fn leaves(change: &Change, conn: ConnState) -> bool {
    change.old.conn == conn && change.new.conn != conn
}

fn disk_becomes(change: &Change, disk: DiskState) -> bool {
    change.old.disk != disk && change.new.disk == disk
}

fn has_disk(state: &State) -> bool {
    state.disk >= DiskState::Inconsistent
}

fn no_data(state: &State) -> bool {
    state.role == Role::Primary
        && state.disk < DiskState::UpToDate
        && state.pdsk < DiskState::UpToDate
}

fn demoted_alone(change: &Change) -> bool {
    change.old.role == Role::Primary
        && change.new.role == Role::Secondary
        && change.new.conn <= ConnState::Connected
}

/// 2.9 #4.
fn peer_data_returns(change: &Change, context: &EffectContext) -> bool {
    change.new.susp_nod
        && change.old.conn < ConnState::Connected
        && change.new.conn >= ConnState::Connected
        && context.others_connected
}

/// 2.9 #5.
fn own_data_returns(change: &Change, context: &EffectContext) -> bool {
    change.new.susp_nod
        && matches!(
            change.old.disk,
            DiskState::Attaching | DiskState::Negotiating
        )
        && change.new.disk == DiskState::UpToDate
        && context.others_up_to_date
}

/// N1 without its question about suspension (section 3.3): this node's data goes on without the peer's.
fn split_off(change: &Change, context: &EffectContext) -> bool {
    contact_lost(&change.old, &change.new)
        && change.new.disk >= DiskState::UpToDate
        && context.bitmap_uuid_is_zero
        && (change.new.role == Role::Primary || change.new.peer == Role::Primary)
}

/// N3b (section 3.3): from now on a Primary's writes reach its own disk alone, whether it got its disk back while its peer has none or is
/// away, or lost a peer whose disk was of no use yet. Invariant 11 wants a generation for them. (The kernel has none: it relies on the
/// crashed-primary flag, which does not help when the peer is promoted meanwhile.)
fn primary_goes_on_alone(change: &Change, context: &EffectContext) -> bool {
    change.old.role == Role::Primary
        && !is_primary_alone(&change.old)
        && is_primary_alone(&change.new)
        && context.bitmap_uuid_is_zero
}

/// A Primary whose disk is the only one that gets its writes. A peer's disk that is Negotiating is about to be compared with this one.
fn is_primary_alone(state: &State) -> bool {
    state.role == Role::Primary
        && state.disk == DiskState::UpToDate
        && (state.conn < ConnState::Connected || state.pdsk < DiskState::Negotiating)
}

/// N2 (section 3.3): a diskless peer is promoted, or is Primary when this disk is attached, so that only this disk gets its writes.
/// (The kernel starts no generation at an attach: the disk that the peer lost may have this one, and would pass for current.)
fn diskless_peer_promoted(change: &Change, context: &EffectContext) -> bool {
    let attached = change.old.disk < DiskState::UpToDate && change.old.conn.is_connected();
    change.new.pdsk < DiskState::Inconsistent
        && change.new.conn.is_connected()
        && (change.old.peer != Role::Primary || attached)
        && change.new.peer == Role::Primary
        && context.bitmap_uuid_is_zero
        && change.new.disk == DiskState::UpToDate
}

/// "Contact to peer data lost" (section 3.3): judged by the peer's disk alone.
pub fn contact_lost(old: &State, new: &State) -> bool {
    use DiskState as D;
    let had = matches!(old.pdsk, D::Inconsistent | D::Consistent | D::UpToDate);
    let gone = matches!(
        new.pdsk,
        D::Diskless | D::Attaching | D::Failed | D::Negotiating | D::Outdated | D::DUnknown
    );
    let settled =
        old.pdsk == D::DUnknown && matches!(new.pdsk, D::Diskless | D::Failed | D::Outdated);
    (had && gone) || settled
}

/// Where a write of this node goes beside the own disk (section 7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRoute {
    /// To the peer.
    Replicate,
    /// Bits are set here, and P_OUT_OF_SYNC is sent if one is new.
    OutOfSync,
    /// Nowhere.
    LocalOnly,
}

/// The route of a write in this state (section 7.3).
pub fn write_route(state: &State) -> WriteRoute {
    if writes_are_replicated(state) {
        WriteRoute::Replicate
    } else if matches!(state.conn, ConnState::Ahead | ConnState::WFBitMapS) {
        WriteRoute::OutOfSync
    } else {
        WriteRoute::LocalOnly
    }
}

/// Writes go to the peer (section 7.3).
pub fn writes_are_replicated(state: &State) -> bool {
    // A target that asked for a full sync may come to nothing of it, and keeps what counts for the same generation: it has all of it.
    let begins = state.conn == ConnState::StartingSyncS;
    state.pdsk == DiskState::UpToDate
        || (state.pdsk >= DiskState::Inconsistent
            && (begins || state.conn >= ConnState::WFBitMapT)
            && state.conn < ConnState::Ahead)
}

/// New requests of applications have to wait, as far as the state decides it (section 1.5; short internal suspensions,
/// bitmap operations and limits are the engine's to add).
pub fn application_io_waits(state: &State, protocol: u32) -> bool {
    state.is_suspended()
        || matches!(state.conn, ConnState::WFBitMapT | ConnState::WFSyncUUID)
        || (state.conn == ConnState::WFBitMapS && protocol < 96)
        || matches!(state.disk, DiskState::Attaching | DiskState::Negotiating)
}

/// Bits of the on-disk flags (section 3.8).
pub mod flag {
    /// The disk is better than Inconsistent.
    pub const CONSISTENT: u32 = 1 << 0;
    /// This node is Primary, or is the only disk of a Primary.
    pub const PRIMARY: u32 = 1 << 1;
    /// A connection was established.
    pub const CONNECTED: u32 = 1 << 2;
    /// All blocks are to be considered out of sync.
    pub const FULL_SYNC: u32 = 1 << 3;
    /// The disk is better than Outdated.
    pub const WAS_UP_TO_DATE: u32 = 1 << 4;
    /// The peer's disk is Inconsistent or Outdated.
    pub const PEER_OUTDATED: u32 = 1 << 5;
    /// This node was Primary when it went down.
    pub const CRASHED_PRIMARY: u32 = 1 << 6;
    /// The activity log was applied; only user space sets it.
    pub const AL_CLEAN: u32 = 1 << 7;
    /// The activity log is not written.
    pub const AL_DISABLED: u32 = 1 << 8;
}

/// Whether this node crashed as Primary and has not been UpToDate/UpToDate since (section 3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashedPrimary {
    /// It did.
    Yes,
    /// It did not, or it has been repaired.
    No,
}

/// The on-disk flags of a state (section 3.8); full-sync and AL_DISABLED are kept from `previous`, AL_CLEAN is cleared.
pub fn on_disk_flags(state: &State, crashed: CrashedPrimary, previous: u32) -> u32 {
    let only_disk_of_primary = state.pdsk < DiskState::Inconsistent && state.peer == Role::Primary;
    let bits = [
        (state.disk > DiskState::Inconsistent, flag::CONSISTENT),
        (
            state.role == Role::Primary || only_disk_of_primary,
            flag::PRIMARY,
        ),
        (state.conn > ConnState::WFReportParams, flag::CONNECTED),
        (state.disk > DiskState::Outdated, flag::WAS_UP_TO_DATE),
        (
            matches!(state.pdsk, DiskState::Inconsistent | DiskState::Outdated),
            flag::PEER_OUTDATED,
        ),
        (crashed == CrashedPrimary::Yes, flag::CRASHED_PRIMARY),
    ];
    let kept = previous & (flag::FULL_SYNC | flag::AL_DISABLED);
    bits.iter()
        .filter(|(set, _)| *set)
        .fold(kept, |flags, (_, bit)| flags | bit)
}

/// The states that an attach finds in the on-disk flags (section 3.9 step 6): own disk, and the peer's while not connected.
pub fn attach_states(flags: u32, fencing: super::rules::Fencing) -> super::rules::AttachResult {
    let has = |bit: u32| flags & bit != 0;
    let pdsk = if has(flag::PEER_OUTDATED) {
        DiskState::Outdated
    } else {
        DiskState::DUnknown
    };
    let disk = if !has(flag::CONSISTENT) {
        DiskState::Inconsistent
    } else if !has(flag::WAS_UP_TO_DATE) {
        DiskState::Outdated
    } else if !has(flag::PEER_OUTDATED) && fencing >= super::rules::Fencing::ResourceOnly {
        DiskState::Consistent
    } else {
        DiskState::UpToDate
    };
    super::rules::AttachResult { disk, pdsk }
}
