//! From the comparison to an action (docs/spec/state-machine.md sections 4.4 and 5): disk states, split-brain policies,
//! discard-my-data, rr-conflict. The same order on both nodes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::compare::{
    COMMON_BITMAP, Comparison, NEEDS_FEATURE, NEEDS_PROTOCOL_91, ResolveConflicts, SPLIT_BRAIN,
    SPLIT_BRAIN_UNKNOWN, UNRELATED,
};
use crate::state::word::{DiskState, Role};

macro_rules! policy {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum $name {
            /// 0, and every number without a meaning here: give up the connection.
            #[default]
            Disconnect,
            $($(#[$vdoc])* $variant,)*
        }

        impl $name {
            /// The policy of a wire number; numbers without a meaning act as `disconnect` (section 5.4).
            pub const fn from_number(number: u32) -> $name {
                match number {
                    $($number => $name::$variant,)*
                    _ => $name::Disconnect,
                }
            }
        }
    };
}

policy! {
    /// after-sb-0pri (section 5.2).
    AfterSb0Pri {
        /// The node that was promoted later gives up its changes.
        DiscardYoungerPrimary = 1,
        /// The node that was Primary first gives up its changes.
        DiscardOlderPrimary = 2,
        /// A node without changes is the target.
        DiscardZeroChanges = 3,
        /// The node with fewer changes is the target.
        DiscardLeastChanges = 4,
        /// This node is the target.
        DiscardLocal = 5,
        /// The peer is the target.
        DiscardRemote = 6,
    }
}

policy! {
    /// after-sb-1pri (section 5.3).
    AfterSb1Pri {
        /// As after-sb-0pri if that makes the Secondary the target.
        Consensus = 7,
        /// The Secondary is the target.
        DiscardSecondary = 8,
        /// As after-sb-0pri; a Primary that loses demotes itself or calls its handler.
        CallPriLost = 9,
        /// As after-sb-0pri.
        ViolentlyAs0p = 10,
    }
}

policy! {
    /// after-sb-2pri (section 5.4).
    AfterSb2Pri {
        /// As after-sb-0pri; a Primary that loses demotes itself or calls its handler.
        CallPriLost = 9,
        /// As after-sb-0pri.
        ViolentlyAs0p = 10,
    }
}

policy! {
    /// rr-conflict (section 5.5): a Primary with good data would have to be the target.
    RrConflict {
        /// Call the handler, then give up the connection.
        CallPriLost = 9,
        /// Be the target.
        Violently = 10,
    }
}

/// The policies that decide what the comparison leaves open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// No Primary.
    pub after_sb_0pri: AfterSb0Pri,
    /// One Primary.
    pub after_sb_1pri: AfterSb1Pri,
    /// Two Primaries.
    pub after_sb_2pri: AfterSb2Pri,
    /// A Primary that would be target.
    pub rr_conflict: RrConflict,
    /// The policies also decide when the bitmaps may not describe the difference.
    pub always_asbp: bool,
}

impl Policies {
    /// The policies of the net options.
    pub fn from_options(net: &crate::options::NetOptions) -> Policies {
        Policies {
            after_sb_0pri: AfterSb0Pri::from_number(net.after_sb_0pri),
            after_sb_1pri: AfterSb1Pri::from_number(net.after_sb_1pri),
            after_sb_2pri: AfterSb2Pri::from_number(net.after_sb_2pri),
            rr_conflict: RrConflict::from_number(net.rr_conflict),
            always_asbp: net.always_asbp,
        }
    }
}

/// One side of the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its role.
    pub role: Role,
    /// Its disk: own disk, or what the attach computed while it is Negotiating; the peer's as in section 4.2.
    pub disk: DiskState,
    /// Bits set, **as exchanged in P_UUIDS**: the live number may differ on the two nodes.
    pub changes: u64,
    /// Its bitmap UUID; bit 0 says who was Primary already when the generations split.
    pub bitmap_uuid: u64,
    /// discard-my-data is armed (flag 1 of P_UUIDS).
    pub discard_my_data: bool,
}

impl Standing {
    fn split_bit(&self) -> bool {
        self.bitmap_uuid & super::ROLE_BIT != 0
    }

    fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }
}

/// Whether a soft request to become Secondary would be accepted now (section 5.3); during a connect it never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demotion {
    /// It would.
    Possible,
    /// It would be refused.
    Refused,
}

/// Everything that the decision looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The comparison.
    pub comparison: Comparison,
    /// This node.
    pub own: Standing,
    /// The peer.
    pub peer: Standing,
    /// The own disk as the state has it now, also while Negotiating.
    pub own_disk_now: DiskState,
    /// Bits set here now, for the log.
    pub own_bits_now: u64,
    /// Who yields when there is nothing else to tell the nodes apart.
    pub resolve_conflicts: ResolveConflicts,
    /// The policies.
    pub policies: Policies,
    /// Whether a Primary could demote itself.
    pub demotion: Demotion,
    /// The own `tentative` option.
    pub tentative: bool,
    /// The peer's P_PROTOCOL carried the dry-run bit.
    pub peer_dry_run: bool,
}

/// How much is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// What the bitmaps say.
    Bitmap,
    /// Everything: set all own bits and write the bitmap before going on; if that fails, refuse.
    Full,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// conn := Connected.
    Connected,
    /// conn := WFBitMapS.
    Source(Method),
    /// conn := WFBitMapT.
    Target(Method),
    /// See [`refusal_outcome`].
    Refuse(Reason),
}

/// Why a handshake is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The two nodes have no generation in common.
    #[error("the data of the two nodes is unrelated")]
    Unrelated,
    /// One of the nodes is too old.
    #[error("resync needs protocol 91 on both nodes")]
    ProtocolTooOld,
    /// One of the nodes is too old.
    #[error("resync after a crash beside a Primary needs the feature WRITE_SAME on both nodes")]
    FeatureMissing,
    /// No policy and no command decided a split brain.
    #[error("split brain is unresolved")]
    SplitBrain,
    /// A split brain in which both nodes were told to discard their own data.
    #[error("split brain is unresolved: both nodes were told to discard their own data")]
    BothDiscard,
    /// This node would be source without usable data.
    #[error("this node would be sync source but its data is not consistent")]
    SourceInconsistent,
    /// This node is Primary with good data and would be target.
    #[error("this node is Primary and would be sync target (rr-conflict)")]
    PrimaryWouldBeTarget,
    /// The disk that is attached lacks answered writes, and the peer does not offer to be its source.
    #[error(
        "it lacks writes that only the peer has, and the peer does not see that; give it new metadata and attach it again: everything is \
         copied then"
    )]
    LacksWrites,
    /// It was only a try.
    #[error("only a dry run was asked for")]
    DryRun,
}

/// Handlers, in the order in which the decision calls them. Their exit codes change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// A split brain was found; before any policy.
    InitialSplitBrain,
    /// A Primary lost a policy's decision and could not demote itself.
    PriLostAfterSb,
    /// A split brain stays unresolved.
    SplitBrain,
    /// A Primary with good data would be the target.
    PriLost,
}

impl Handler {
    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Handler::InitialSplitBrain => "initial-split-brain",
            Handler::PriLostAfterSb => "pri-lost-after-sb",
            Handler::SplitBrain => "split-brain",
            Handler::PriLost => "pri-lost",
        }
    }
}

/// The decision of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Handlers to run before, in this order.
    pub handlers: Vec<Handler>,
    /// This Primary gives up its role first (the request is known to be acceptable).
    pub demote: bool,
    /// Lines for the log, in their order.
    pub log: Vec<String>,
}

/// Decides what a handshake leads to (section 4.4 steps 1 to 11).
pub fn decide(question: &Question) -> Decision {
    let mut decision = Decision {
        action: Action::Connected,
        handlers: Vec::new(),
        demote: false,
        log: Vec::new(),
    };
    decision.action = match direction(question, &mut decision) {
        Ok(hg) => permitted(question, hg, &mut decision),
        Err(reason) => Action::Refuse(reason),
    };
    decision
}

/// Steps 1 to 6: hg between -2 and 2, or a refusal.
fn direction(q: &Question, d: &mut Decision) -> Result<i32, Reason> {
    let hg = q.comparison.hg;
    match hg {
        UNRELATED => {
            d.log.push(String::from("Unrelated data, aborting!"));
            return Err(Reason::Unrelated);
        }
        NEEDS_PROTOCOL_91 => {
            d.log.push(String::from(
                "Both nodes have to support at least protocol 91 to resolve this.",
            ));
            return Err(Reason::ProtocolTooOld);
        }
        NEEDS_FEATURE => {
            d.log.push(String::from(
                "Both nodes have to support at least protocol 101 with feature WRITE_SAME to resolve this.",
            ));
            return Err(Reason::FeatureMissing);
        }
        _ => {}
    }
    if let Some(hg) = by_disk_states(q) {
        let side = if hg > 0 { "source" } else { "target" };
        d.log
            .push(format!("Becoming sync {side} due to disk states."));
        return Ok(hg);
    }
    if hg != SPLIT_BRAIN && hg != SPLIT_BRAIN_UNKNOWN {
        return Ok(hg);
    }
    d.handlers.push(Handler::InitialSplitBrain);
    if (hg == SPLIT_BRAIN || q.policies.always_asbp)
        && let Some(decided) = by_policy(q, d)
    {
        let from = if decided > 0 { "this" } else { "peer" };
        let primaries = primaries(q);
        d.log.push(format!(
            "Split-Brain detected, {primaries} primaries, automatically solved. Sync from {from} node"
        ));
        return Ok(if hg == SPLIT_BRAIN_UNKNOWN {
            decided * 2
        } else {
            decided
        });
    }
    // Where this Primary lost and could not yield, the peer has already decided to be the source by the same policy. Were
    // a discard-my-data to count now, both could be source. 8.4 lets it count; refusing is what it does without the option.
    let lost = d.handlers.contains(&Handler::PriLostAfterSb);
    let distance = if q.comparison.rule == Some(COMMON_BITMAP) {
        2
    } else {
        1
    };
    match (q.own.discard_my_data, q.peer.discard_my_data) {
        _ if lost => Err(unresolved(d, Reason::SplitBrain)),
        (true, false) => {
            d.log.push(String::from(
                "Split-Brain detected, manually solved. Sync from peer node",
            ));
            Ok(-distance)
        }
        (false, true) => {
            d.log.push(String::from(
                "Split-Brain detected, manually solved. Sync from this node",
            ));
            Ok(distance)
        }
        (true, true) => Err(unresolved(d, Reason::BothDiscard)),
        (false, false) => Err(unresolved(d, Reason::SplitBrain)),
    }
}

/// Step 6.
fn unresolved(d: &mut Decision, reason: Reason) -> Reason {
    d.log.push(String::from(
        "Split-Brain detected but unresolved, dropping connection!",
    ));
    d.handlers.push(Handler::SplitBrain);
    reason
}

/// Step 2: exactly one side is Inconsistent, the other is better.
fn by_disk_states(q: &Question) -> Option<i32> {
    let bad = DiskState::Inconsistent;
    let sign = if q.own.disk == bad && q.peer.disk > bad {
        -1
    } else if q.peer.disk == bad && q.own.disk > bad {
        1
    } else {
        return None;
    };
    let full = q.comparison.hg == SPLIT_BRAIN_UNKNOWN || q.comparison.hg.abs() == 2;
    Some(if full { 2 * sign } else { sign })
}

/// Steps 7 to 11: what stands against the direction.
fn permitted(q: &Question, hg: i32, d: &mut Decision) -> Action {
    if hg > 0 && q.own.disk <= DiskState::Inconsistent {
        d.log.push(String::from(
            "I shall become SyncSource, but I am inconsistent!",
        ));
        return Action::Refuse(Reason::SourceInconsistent);
    }
    if hg < 0 && q.own.is_primary() && !d.demote && q.own_disk_now >= DiskState::Consistent {
        let violently = q.policies.rr_conflict == RrConflict::Violently;
        if q.policies.rr_conflict == RrConflict::CallPriLost {
            d.handlers.push(Handler::PriLost);
        }
        if !violently {
            d.log
                .push(String::from("I shall become SyncTarget, but I am primary!"));
            return Action::Refuse(Reason::PrimaryWouldBeTarget);
        }
        d.log.push(String::from(
            "Becoming SyncTarget, violating the stable-data assumption!",
        ));
    }
    let method = if hg.abs() >= 2 {
        Method::Full
    } else {
        Method::Bitmap
    };
    if q.tentative || q.peer_dry_run {
        d.log.push(dry_run_line(hg, method));
        return Action::Refuse(Reason::DryRun);
    }
    if method == Method::Full {
        d.log.push(String::from(
            "Writing the whole bitmap, full sync required after drbd_sync_handshake.",
        ));
    }
    match hg {
        0 => {
            if q.own_bits_now != 0 {
                d.log
                    .push(format!("No resync, but {} bits in bitmap!", q.own_bits_now));
            }
            Action::Connected
        }
        1.. => Action::Source(method),
        _ => Action::Target(method),
    }
}

fn dry_run_line(hg: i32, method: Method) -> String {
    let how = if method == Method::Full {
        "full"
    } else {
        "bit-map based"
    };
    match hg {
        0 => String::from("dry-run connect: No resync, would become Connected immediately."),
        1.. => format!("dry-run connect: Would become SyncSource, doing a {how} resync."),
        _ => format!("dry-run connect: Would become SyncTarget, doing a {how} resync."),
    }
}

fn primaries(q: &Question) -> u32 {
    u32::from(q.own.is_primary()) + u32::from(q.peer.is_primary())
}

/// Step 4: -1 target, 1 source, `None` undecided.
fn by_policy(q: &Question, d: &mut Decision) -> Option<i32> {
    let decided = after_sb_0pri(q);
    match primaries(q) {
        0 => decided,
        1 => match q.policies.after_sb_1pri {
            AfterSb1Pri::Disconnect => None,
            AfterSb1Pri::Consensus => {
                let secondary_is_target = if q.own.is_primary() { 1 } else { -1 };
                decided.filter(|hg| *hg == secondary_is_target)
            }
            AfterSb1Pri::DiscardSecondary => Some(if q.own.is_primary() { 1 } else { -1 }),
            AfterSb1Pri::CallPriLost => lost_primary(q, decided, d),
            AfterSb1Pri::ViolentlyAs0p => decided,
        },
        _ => match q.policies.after_sb_2pri {
            AfterSb2Pri::Disconnect => None,
            AfterSb2Pri::CallPriLost => lost_primary(q, decided, d),
            AfterSb2Pri::ViolentlyAs0p => decided,
        },
    }
}

/// call-pri-lost-after-sb: a Primary that lost demotes itself, or calls its handler and decides nothing.
fn lost_primary(q: &Question, decided: Option<i32>, d: &mut Decision) -> Option<i32> {
    if decided != Some(-1) || !q.own.is_primary() {
        return decided;
    }
    match q.demotion {
        Demotion::Possible => {
            d.demote = true;
            decided
        }
        Demotion::Refused => {
            d.handlers.push(Handler::PriLostAfterSb);
            None
        }
    }
}

/// Section 5.2.
fn after_sb_0pri(q: &Question) -> Option<i32> {
    match q.policies.after_sb_0pri {
        AfterSb0Pri::Disconnect => None,
        AfterSb0Pri::DiscardYoungerPrimary => match (q.own.split_bit(), q.peer.split_bit()) {
            (false, true) => Some(-1),
            (true, false) => Some(1),
            _ => zero_changes(q).or_else(|| Some(least_changes(q))),
        },
        AfterSb0Pri::DiscardOlderPrimary => match (q.own.split_bit(), q.peer.split_bit()) {
            (false, true) => Some(1),
            (true, false) => Some(-1),
            _ => zero_changes(q).or_else(|| Some(least_changes(q))),
        },
        AfterSb0Pri::DiscardZeroChanges => zero_changes(q),
        AfterSb0Pri::DiscardLeastChanges => Some(least_changes(q)),
        AfterSb0Pri::DiscardLocal => Some(-1),
        AfterSb0Pri::DiscardRemote => Some(1),
    }
}

fn zero_changes(q: &Question) -> Option<i32> {
    match (q.own.changes, q.peer.changes) {
        (0, 0) => Some(yield_to_flag(q)),
        (0, _) => Some(-1),
        (_, 0) => Some(1),
        _ => None,
    }
}

fn least_changes(q: &Question) -> i32 {
    match q.own.changes.cmp(&q.peer.changes) {
        core::cmp::Ordering::Less => -1,
        core::cmp::Ordering::Greater => 1,
        core::cmp::Ordering::Equal => yield_to_flag(q),
    }
}

fn yield_to_flag(q: &Question) -> i32 {
    match q.resolve_conflicts {
        ResolveConflicts::Here => -1,
        ResolveConflicts::There => 1,
    }
}

/// What a refused handshake does (section 4.4, "Refuse").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalOutcome {
    /// The disk that was being attached fails and goes; the connection stays.
    FailOwnDisk,
    /// The peer's disk that is being attached is treated as Diskless; the connection stays.
    PeerDiskless,
    /// The connection breaks as ProtocolError and is tried again: the peer only wanted to know.
    ProtocolError,
    /// Disconnecting (hard), then StandAlone.
    StandAlone,
}

/// What a refused handshake does. `peer_disk` is the one that the peer reported.
pub fn refusal_outcome(
    own_disk_now: DiskState,
    peer_disk: DiskState,
    peer_dry_run: bool,
) -> RefusalOutcome {
    if own_disk_now == DiskState::Negotiating {
        RefusalOutcome::FailOwnDisk
    } else if peer_disk == DiskState::Negotiating {
        RefusalOutcome::PeerDiskless
    } else if peer_dry_run {
        RefusalOutcome::ProtocolError
    } else {
        RefusalOutcome::StandAlone
    }
}

/// The peer's disk as the handshake sees it (section 4.2): a disk that is being attached counts as what it would become.
pub fn peer_disk_seen(reported: DiskState, uuid_flags: u64) -> DiskState {
    match reported {
        DiskState::Negotiating if uuid_flags & super::UUID_FLAG_INCONSISTENT != 0 => {
            DiskState::Inconsistent
        }
        DiskState::Negotiating => DiskState::Consistent,
        other => other,
    }
}
