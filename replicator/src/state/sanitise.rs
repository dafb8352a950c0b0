//! What a requested state is forced to be (docs/spec/state-machine.md section 2.5): rules S1 to S10, in their order.

use super::rules::{Change, Context, Fencing, OnNoData};
use super::word::{ConnState, DiskState, Role, State};

/// One step of sanitising: its name in the specification, and what it does to the new state.
pub struct Step {
    /// `S1` to `S10`.
    pub name: &'static str,
    /// What it is for, in a few words.
    pub purpose: &'static str,
    /// The old state, the context, and the new state to change.
    pub apply: fn(&State, &Context, &mut State),
}

/// The steps in their order.
pub const STEPS: &[Step] = &[
    Step {
        name: "S1",
        purpose: "nothing is known of a peer that is away",
        apply: peer_is_away,
    },
    Step {
        name: "S2",
        purpose: "an unused volume depends on nothing",
        apply: unused_volume,
    },
    Step {
        name: "S3",
        purpose: "no resync or verify without both disks",
        apply: abort_without_disk,
    },
    Step {
        name: "S4",
        purpose: "an attach whose handshake was lost",
        apply: attach_without_peer,
    },
    Step {
        name: "S5",
        purpose: "connected disks are current",
        apply: connected_disks_are_current,
    },
    Step {
        name: "S6",
        purpose: "disk states within the range of the connection",
        apply: clamp_disks,
    },
    Step {
        name: "S7",
        purpose: "freeze until the peer is fenced",
        apply: freeze_for_fencing,
    },
    Step {
        name: "S8",
        purpose: "freeze without data",
        apply: freeze_without_data,
    },
    Step {
        name: "S9",
        purpose: "paused",
        apply: pause,
    },
    Step {
        name: "S10",
        purpose: "no longer paused",
        apply: resume,
    },
    // Twice, where a later step opens the condition of an earlier one: S4 leaves an unused volume, the end of a pause
    // narrows the range. No state that a run reaches is changed by this, but sanitising becomes idempotent for every
    // state word, also for those that only a test constructs.
    Step {
        name: "S2",
        purpose: "an unused volume depends on nothing",
        apply: unused_volume,
    },
    Step {
        name: "S6",
        purpose: "the range of the state after S9 and S10",
        apply: clamp_disks,
    },
];

/// The state that a request for `new` really asks for, coming from `old`.
pub fn sanitise(old: &State, new: State, context: &Context) -> State {
    let mut state = new;
    for step in STEPS {
        (step.apply)(old, context, &mut state);
    }
    state
}

/// The ranges of S6: own disk from, to; peer's disk from, to.
pub const fn disk_ranges(conn: ConnState) -> [DiskState; 4] {
    use ConnState as C;
    use DiskState::{Consistent, DUnknown, Diskless, Inconsistent, Outdated, UpToDate};
    match conn {
        C::StandAlone
        | C::Disconnecting
        | C::Unconnected
        | C::Timeout
        | C::BrokenPipe
        | C::NetworkFailure
        | C::ProtocolError
        | C::TearDown
        | C::WFConnection
        | C::WFReportParams => [Diskless, UpToDate, Inconsistent, DUnknown],
        C::Connected => [Diskless, UpToDate, Diskless, UpToDate],
        C::WFBitMapT | C::PausedSyncT | C::StartingSyncT | C::WFSyncUUID | C::Behind => {
            [Inconsistent, Outdated, UpToDate, UpToDate]
        }
        C::SyncTarget => [Inconsistent, Inconsistent, UpToDate, UpToDate],
        C::WFBitMapS | C::PausedSyncS | C::StartingSyncS | C::Ahead => {
            [UpToDate, UpToDate, Inconsistent, Consistent]
        }
        C::SyncSource => [UpToDate, UpToDate, Inconsistent, Inconsistent],
        C::VerifyS | C::VerifyT => [UpToDate, UpToDate, UpToDate, UpToDate],
    }
}

fn peer_is_away(_: &State, _: &Context, new: &mut State) {
    if new.conn >= ConnState::Connected {
        return;
    }
    new.peer_isp = false;
    new.peer = Role::Unknown;
    let kept = [
        DiskState::Inconsistent,
        DiskState::Outdated,
        DiskState::DUnknown,
    ];
    if !kept.contains(&new.pdsk) {
        new.pdsk = DiskState::DUnknown;
    }
}

fn unused_volume(_: &State, _: &Context, new: &mut State) {
    let unused = new.conn == ConnState::StandAlone
        && new.disk == DiskState::Diskless
        && new.role == Role::Secondary;
    if unused {
        new.aftr_isp = false;
    }
}

fn abort_without_disk(old: &State, _: &Context, new: &mut State) {
    let missing = new.disk <= DiskState::Failed || new.pdsk <= DiskState::Failed;
    if new.conn > ConnState::Connected && missing {
        new.conn = ConnState::Connected;
        keep_target_stale(old, new);
    }
}

/// A resync that lost its source before it began: its target lacks writes, and must not become current by S5 as it would in the
/// kernel. Both sides call it Inconsistent instead.
fn keep_target_stale(old: &State, new: &mut State) {
    use ConnState::{PausedSyncS, PausedSyncT, StartingSyncS, StartingSyncT};
    use ConnState::{WFBitMapS, WFBitMapT, WFSyncUUID};
    let target = matches!(
        old.conn,
        WFBitMapT | WFSyncUUID | StartingSyncT | PausedSyncT
    );
    let source = matches!(old.conn, WFBitMapS | StartingSyncS | PausedSyncS);
    if target && old.disk == DiskState::Outdated && new.disk == DiskState::Outdated {
        new.disk = DiskState::Inconsistent;
    }
    if source && old.pdsk == DiskState::Consistent && new.pdsk == DiskState::Consistent {
        new.pdsk = DiskState::Inconsistent;
    }
}

fn attach_without_peer(_: &State, context: &Context, new: &mut State) {
    if new.conn >= ConnState::Connected || new.disk != DiskState::Negotiating {
        return;
    }
    match context.attach_result {
        Some(result) if context.exposed_is_current => {
            new.disk = result.disk;
            new.pdsk = result.pdsk;
        }
        _ => {
            new.disk = DiskState::Diskless;
            new.pdsk = DiskState::DUnknown;
        }
    }
}

fn connected_disks_are_current(_: &State, _: &Context, new: &mut State) {
    if new.conn < ConnState::Connected || new.conn >= ConnState::Ahead {
        return;
    }
    let older = [DiskState::Consistent, DiskState::Outdated];
    if older.contains(&new.disk) {
        new.disk = DiskState::UpToDate;
    }
    if older.contains(&new.pdsk) {
        new.pdsk = DiskState::UpToDate;
    }
}

fn clamp_disks(_: &State, _: &Context, new: &mut State) {
    let [disk_min, disk_max, pdsk_min, pdsk_max] = disk_ranges(new.conn);
    new.disk = new.disk.clamp(disk_min, disk_max);
    new.pdsk = new.pdsk.clamp(pdsk_min, pdsk_max);
}

fn freeze_for_fencing(old: &State, context: &Context, new: &mut State) {
    let lost = |state: &State| {
        state.role == Role::Primary
            && state.conn < ConnState::Connected
            && state.pdsk > DiskState::Outdated
    };
    let change = Change {
        old: *old,
        new: *new,
    };
    if context.fencing_of(&change) == Fencing::ResourceAndStonith && lost(new) && !lost(old) {
        new.susp_fen = true;
    }
}

fn freeze_without_data(old: &State, context: &Context, new: &mut State) {
    let starved = |state: &State| {
        state.role == Role::Primary
            && state.disk < DiskState::UpToDate
            && state.pdsk < DiskState::UpToDate
    };
    if context.on_no_data == OnNoData::SuspendIo && starved(new) && !starved(old) {
        new.susp_nod = true;
    }
}

fn pause(_: &State, _: &Context, new: &mut State) {
    if !new.is_paused() {
        return;
    }
    match new.conn {
        ConnState::SyncSource => new.conn = ConnState::PausedSyncS,
        ConnState::SyncTarget => new.conn = ConnState::PausedSyncT,
        _ => {}
    }
}

fn resume(_: &State, _: &Context, new: &mut State) {
    if new.is_paused() {
        return;
    }
    match new.conn {
        ConnState::PausedSyncS => new.conn = ConnState::SyncSource,
        ConnState::PausedSyncT => new.conn = ConnState::SyncTarget,
        _ => {}
    }
}
