//! The judge of state changes: ordered tables of named rules (docs/spec/state-machine.md sections 2.1 to 2.4).
//!
//! The tables differ in how they decide. Hard rules: the first match wins, and rule 0 (no disk to fail) overrides
//! them all. Validity rules: the first match wins. Soft rules: all are looked at and the **last** match wins.

use alloc::vec::Vec;

use super::result::StateResult;
use super::sanitise::sanitise;
use super::word::{ConnState, DiskState, Request, Role, State};

/// One change: the stored state, and the sanitised state that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state before.
    pub old: State,
    /// The state after.
    pub new: State,
}

/// Fencing policy of a volume, by its wire number (appendix A).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fencing {
    /// A lost peer is ignored.
    #[default]
    DontCare = 0,
    /// A lost peer is marked Outdated.
    ResourceOnly = 1,
    /// And I/O is frozen until it is.
    ResourceAndStonith = 2,
}

/// What a Primary without access to up-to-date data does with I/O (`on-no-data-accessible`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnNoData {
    /// It fails.
    #[default]
    IoError,
    /// It waits.
    SuspendIo,
}

/// The net options that rules look at. They exist from `connect` until StandAlone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetContext {
    /// `allow-two-primaries`.
    pub two_primaries_allowed: bool,
    /// A `verify-alg` is configured.
    pub verify_alg_present: bool,
}

/// The states that an attach computed while connected, kept until the handshake decides (section 3.9 step 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachResult {
    /// Own disk.
    pub disk: DiskState,
    /// Peer's disk.
    pub pdsk: DiskState,
}

/// What rules need to know beside the two states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Net options, if there are any.
    pub net: Option<NetContext>,
    /// Agreed protocol version; of the last connection, or 101 before the first.
    pub protocol: u32,
    /// Somebody holds the device open.
    pub device_open: bool,
    /// Fencing policy of the volume (without a disk it counts as dont-care, whatever is said here).
    pub fencing: Fencing,
    /// `on-no-data-accessible`.
    pub on_no_data: OnNoData,
    /// The handshake packets of this connection were sent and some volume is still in WFReportParams (section 0.3).
    pub state_sent: bool,
    /// Another volume of the connection sees a Primary peer.
    pub other_volume_peer_primary: bool,
    /// The exposed-data UUID equals the current UUID of the metadata exactly, bit 0 included (S4).
    pub exposed_is_current: bool,
    /// What the attach computed, while the disk is Negotiating.
    pub attach_result: Option<AttachResult>,
}

impl Default for Context {
    /// No options, nothing open, defaults of appendix A.
    fn default() -> Self {
        Context {
            net: None,
            protocol: 101,
            device_open: false,
            fencing: Fencing::DontCare,
            on_no_data: OnNoData::IoError,
            state_sent: false,
            other_volume_peer_primary: false,
            exposed_is_current: false,
            attach_result: None,
        }
    }
}

impl Context {
    /// The fencing policy that counts: dont-care if the volume has no disk. The disk is that of the stored state.
    pub fn fencing_of(&self, change: &Change) -> Fencing {
        if change.old.disk == DiskState::Diskless {
            Fencing::DontCare
        } else {
            self.fencing
        }
    }
}

/// Whether a change may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardness {
    /// An external fact: only the hard rules can stop it.
    Hard,
    /// The administrator's or the peer's wish.
    Soft,
}

/// Which table a rule stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Section 2.2.
    Hard,
    /// Section 2.3.
    Validity,
    /// Section 2.4.
    Soft,
}

/// One rule: its place, its name, the code of its refusal, and its condition.
pub struct Rule {
    /// The table it belongs to.
    pub table: Table,
    /// Its number in the specification.
    pub number: u8,
    /// What it protects, in a few words.
    pub name: &'static str,
    /// What a refusal is called.
    pub code: StateResult,
    /// True if it refuses the change.
    pub refuses: fn(&Change, &Context) -> bool,
}

impl core::fmt::Debug for Rule {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?} {} ({})", self.table, self.number, self.name)
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Rule) -> bool {
        (self.table, self.number) == (other.table, other.number)
    }
}

/// The judgement of one change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The result code. A hard change that leaves `conn` alone gives "nothing to do" although it is made (section 2.2);
    /// look at [`Verdict::is_change`] instead.
    pub result: StateResult,
    /// The rule that refused it.
    pub rule: Option<&'static Rule>,
    /// The state to store: the sanitised state, or the old one if the change is refused.
    pub state: State,
    /// The sanitised state that was wanted, also if refused (for the `wanted = { .. }` line of the log).
    pub wanted: State,
    /// The state before.
    pub old: State,
}

impl Verdict {
    /// The change is allowed, or there was nothing to change.
    pub fn is_allowed(&self) -> bool {
        self.result.is_success()
    }

    /// The state to store differs from the old one.
    pub fn is_change(&self) -> bool {
        self.state != self.old
    }
}

/// Judges a change of one volume (section 2.1): sanitises `requested`, and looks at the tables.
///
/// Whether the peer has to agree first is for [`super::cluster_wide`]; when its consent arrives the change is judged
/// again.
pub fn evaluate(old: &State, requested: State, context: &Context, hardness: Hardness) -> Verdict {
    let wanted = sanitise(old, requested, context);
    let change = Change {
        old: *old,
        new: wanted,
    };
    let allowed = |result| Verdict {
        result,
        rule: None,
        state: wanted,
        wanted,
        old: *old,
    };
    let refused = |rule: &'static Rule| Verdict {
        result: rule.code,
        rule: Some(rule),
        state: *old,
        wanted,
        old: *old,
    };
    if wanted == *old {
        return allowed(StateResult::NothingToDo);
    }
    if let Some(rule) = hard_refusal(&change, context) {
        return refused(rule);
    }
    if hardness == Hardness::Hard {
        let unchanged = old.conn == wanted.conn;
        return allowed(if unchanged {
            StateResult::NothingToDo
        } else {
            StateResult::Success
        });
    }
    if let Some(rule) = invalidity(&change, context) {
        // A state that is already wrong in this way may be left towards another one that is.
        let before = invalidity(
            &Change {
                old: *old,
                new: *old,
            },
            context,
        )
        .map(|rule| rule.code);
        if before != Some(rule.code) {
            return refused(rule);
        }
    }
    match soft_refusal(&change, context) {
        Some(rule) => refused(rule),
        None => allowed(StateResult::Success),
    }
}

/// Judges one request for all volumes of a connection: the first volume that refuses refuses it for all, and is
/// returned with its place. Otherwise the verdicts, in the order of the volumes.
pub fn evaluate_connection(
    volumes: &[(State, Context)],
    request: &Request,
    hardness: Hardness,
) -> Result<Vec<Verdict>, (usize, Verdict)> {
    let mut verdicts = Vec::with_capacity(volumes.len());
    for (index, (old, context)) in volumes.iter().enumerate() {
        let verdict = evaluate(old, request.apply(*old), context, hardness);
        if !verdict.is_allowed() {
            return Err((index, verdict));
        }
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

/// The hard rule that refuses a change.
pub fn hard_refusal(change: &Change, context: &Context) -> Option<&'static Rule> {
    HARD_RULES
        .iter()
        .find(|rule| (rule.refuses)(change, context))
}

/// The validity rule that the new state breaks.
pub fn invalidity(change: &Change, context: &Context) -> Option<&'static Rule> {
    VALIDITY_RULES
        .iter()
        .find(|rule| (rule.refuses)(change, context))
}

/// The soft rule that refuses a change: the last one that matches.
pub fn soft_refusal(change: &Change, context: &Context) -> Option<&'static Rule> {
    SOFT_RULES
        .iter()
        .rev()
        .find(|rule| (rule.refuses)(change, context))
}

macro_rules! rules {
    ($table:ident; $($number:literal $name:literal $code:ident |$change:pat_param, $context:pat_param| $body:expr;)*) => {
        &[$(Rule {
            table: Table::$table,
            number: $number,
            name: $name,
            code: StateResult::$code,
            refuses: |$change, $context| $body,
        },)*]
    };
}

/// Section 2.2. Number 0 is the addition below that table, which overrides it and therefore comes first. Rules 1
/// (conn unchanged) and 7 (otherwise) allow: [`evaluate`] has them.
pub const HARD_RULES: &[Rule] = rules! { Hard;
    0 "only a disk can fail" IsDiskless |c, _| {
        c.new.disk == DiskState::Failed && c.old.disk == DiskState::Diskless
    };
    2 "StandAlone cannot be disconnected" AlreadyStandAlone |c, _| {
        moves(c) && c.old.conn == ConnState::StandAlone && c.new.conn == ConnState::Disconnecting
    };
    3 "StandAlone is left by connect only" NeedConnection |c, _| {
        moves(c) && c.old.conn == ConnState::StandAlone && c.new.conn != ConnState::Unconnected
    };
    4 "parameters are exchanged before a volume is connected" NeedConnection |c, _| {
        c.old.conn < ConnState::WFReportParams && c.new.conn >= ConnState::Connected && moves(c)
    };
    5 "a failed connection is cleaned up first" InTransientState |c, _| {
        moves(c)
            && c.old.conn.is_failure()
            && c.new.conn != ConnState::Unconnected
            && c.new.conn != ConnState::Disconnecting
    };
    6 "Disconnecting ends StandAlone" InTransientState |c, _| {
        moves(c) && c.old.conn == ConnState::Disconnecting && c.new.conn != ConnState::StandAlone
    };
};

/// Section 2.3. These look at the new state alone (the old one only says whether there is a disk to fence).
pub const VALIDITY_RULES: &[Rule] = rules! { Validity;
    1 "one Primary" TwoPrimaries |c, x| {
        one_primary_only(x) && c.new.role == Role::Primary && c.new.peer == Role::Primary
    };
    2 "one Primary in all volumes" OtherVolumePeerPrimary |c, x| {
        one_primary_only(x) && c.new.role == Role::Primary && x.other_volume_peer_primary
    };
    3 "an open device stays Primary" DeviceInUse |c, x| {
        c.new.role == Role::Secondary && x.device_open
    };
    4 "a Primary alone has UpToDate data" NoUpToDateDisk |c, _| {
        c.new.role == Role::Primary
            && c.new.conn < ConnState::Connected
            && c.new.disk < DiskState::UpToDate
    };
    5 "a Primary alone has fenced its peer" PrimaryNop |c, x| {
        x.fencing_of(c) >= Fencing::ResourceOnly
            && c.new.role == Role::Primary
            && c.new.conn < ConnState::Connected
            && c.new.pdsk >= DiskState::DUnknown
    };
    6 "a Primary has usable data somewhere" NoUpToDateDisk |c, _| {
        c.new.role == Role::Primary
            && c.new.disk <= DiskState::Inconsistent
            && c.new.pdsk <= DiskState::Inconsistent
    };
    7 "a resync needs the own disk" NoLocalDisk |c, _| {
        c.new.conn > ConnState::Connected && c.new.disk < DiskState::Inconsistent
    };
    8 "a resync needs the peer's disk" NoRemoteDisk |c, _| {
        c.new.conn > ConnState::Connected && c.new.pdsk < DiskState::Inconsistent
    };
    9 "a resync has a source" NoUpToDateDisk |c, _| {
        c.new.conn > ConnState::Connected
            && c.new.disk < DiskState::UpToDate
            && c.new.pdsk < DiskState::UpToDate
    };
    10 "a connected disk is not Outdated" ConnectedOutdates |c, _| {
        use ConnState::{Connected, PausedSyncS, SyncSource, WFBitMapS};
        matches!(c.new.conn, Connected | WFBitMapS | SyncSource | PausedSyncS)
            && c.new.disk == DiskState::Outdated
    };
    11 "a verify has an algorithm" NoVerifyAlg |c, x| {
        c.new.conn.is_verify() && !x.net.is_some_and(|net| net.verify_alg_present)
    };
    12 "a verify needs protocol 88" NotSupported |c, x| {
        c.new.conn.is_verify() && x.protocol < 88
    };
    13 "a Primary has UpToDate data somewhere" NoUpToDateDisk |c, _| {
        c.new.role == Role::Primary
            && c.new.disk < DiskState::UpToDate
            && c.new.pdsk < DiskState::UpToDate
    };
    14 "a full sync needs a peer" NeedConnection |c, _| {
        starts_full_sync(c) && c.new.pdsk == DiskState::DUnknown
    };
    15 "the disk of a connected peer is known" ConnectedOutdates |c, _| {
        c.new.conn >= ConnState::Connected && c.new.pdsk == DiskState::DUnknown
    };
};

/// Section 2.4. The last match wins.
pub const SOFT_RULES: &[Rule] = rules! { Soft;
    1 "one resync at a time" ResyncRunning |c, _| {
        starts_full_sync(c) && c.old.conn > ConnState::Connected
    };
    2 "StandAlone is disconnected already" AlreadyStandAlone |c, _| {
        c.new.conn == ConnState::Disconnecting && c.old.conn == ConnState::StandAlone
    };
    3 "a disk state needs a disk" IsDiskless |c, _| {
        c.new.disk > DiskState::Attaching && c.old.disk == DiskState::Diskless
    };
    4 "a connection needs a configuration" NoNetConfig |c, _| {
        c.new.conn == ConnState::WFConnection && c.old.conn < ConnState::Unconnected
    };
    5 "only usable data can be Outdated" LowerThanOutdated |c, _| {
        c.new.disk == DiskState::Outdated
            && c.old.disk < DiskState::Outdated
            && c.old.disk != DiskState::Attaching
    };
    6 "no disconnect between two attempts" InTransientState |c, _| {
        c.new.conn == ConnState::Disconnecting && c.old.conn == ConnState::Unconnected
    };
    7 "a handshake is not disturbed" InTransientState |c, x| {
        let begins = c.old.conn == ConnState::WFConnection
            && c.new.conn == ConnState::WFReportParams;
        let ends = c.old.conn == ConnState::WFReportParams && c.new.conn >= ConnState::Connected;
        x.state_sent && !begins && !ends
    };
    8 "a coming sync target waits for its start" InTransientState |c, _| {
        promotes(c)
            && c.new.pdsk == DiskState::UpToDate
            && c.new.disk != DiskState::UpToDate
            && c.new.disk != DiskState::Diskless
            && (c.new.conn <= ConnState::WFSyncUUID || moves(c))
    };
    9 "a verify needs a connection" NeedConnection |c, _| {
        c.new.conn.is_verify() && c.old.conn < ConnState::Connected
    };
    10 "no verify beside a resync or verify" ResyncRunning |c, _| {
        c.new.conn.is_verify() && moves(c) && c.old.conn > ConnState::Connected
    };
    11 "a full sync needs a connection" NeedConnection |c, _| {
        starts_full_sync(c) && c.old.conn < ConnState::Connected
    };
    12 "a resync needs a connection" NeedConnection |c, _| {
        matches!(c.new.conn, ConnState::SyncTarget | ConnState::SyncSource)
            && c.old.conn < ConnState::WFReportParams
    };
    13 "only a connected peer can be told to be Outdated" OutdateWithoutConnection |c, _| {
        c.new.conn == ConnState::Disconnecting
            && c.new.pdsk == DiskState::Outdated
            && c.old.conn < ConnState::Connected
            && c.old.pdsk > DiskState::Outdated
    };
};

fn moves(change: &Change) -> bool {
    change.old.conn != change.new.conn
}

fn promotes(change: &Change) -> bool {
    change.old.role != Role::Primary && change.new.role == Role::Primary
}

fn starts_full_sync(change: &Change) -> bool {
    matches!(
        change.new.conn,
        ConnState::StartingSyncS | ConnState::StartingSyncT
    )
}

fn one_primary_only(context: &Context) -> bool {
    context.net.is_some_and(|net| !net.two_primaries_allowed)
}
