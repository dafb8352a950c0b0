//! From a comparison to an action: disk states, policies, discard-my-data.

use tandem_replicator::generations::compare::{SPLIT_BRAIN, SPLIT_BRAIN_UNKNOWN, UNRELATED};
use tandem_replicator::generations::decide::{
    AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Question, RrConflict,
};
use tandem_replicator::generations::*;
use tandem_replicator::state::word::{DiskState, Role};

use crate::{mirrored, role};

pub(crate) fn question() -> Question {
    let standing = Standing {
        role: Role::Secondary,
        disk: DiskState::UpToDate,
        changes: 0,
        bitmap_uuid: 0,
        discard_my_data: false,
    };
    Question {
        comparison: Comparison {
            hg: 0,
            rule: Some(40),
            correction: None,
        },
        own: standing,
        peer: standing,
        own_disk_now: DiskState::UpToDate,
        own_bits_now: 0,
        resolve_conflicts: ResolveConflicts::There,
        policies: Policies::default(),
        demotion: Demotion::Refused,
        tentative: false,
        peer_dry_run: false,
    }
}

fn with_hg(hg: i32) -> Question {
    Question {
        comparison: Comparison {
            hg,
            rule: Some(90),
            correction: None,
        },
        ..question()
    }
}

/// The question of the other node.
fn other_node(question: &Question) -> Question {
    let hg = question.comparison.hg;
    let hg = if hg.abs() <= 2 { -hg } else { hg };
    let after_sb_0pri = match question.policies.after_sb_0pri {
        AfterSb0Pri::DiscardLocal => AfterSb0Pri::DiscardRemote,
        AfterSb0Pri::DiscardRemote => AfterSb0Pri::DiscardLocal,
        same => same,
    };
    Question {
        comparison: Comparison {
            hg,
            ..question.comparison
        },
        own: question.peer,
        peer: question.own,
        own_disk_now: question.peer.disk,
        resolve_conflicts: mirrored(question.resolve_conflicts),
        policies: Policies {
            after_sb_0pri,
            ..question.policies
        },
        ..*question
    }
}

fn assert_compatible(question: &Question) {
    let (one, other) = (decide(question), decide(&other_node(question)));
    let compatible = match (one.action, other.action) {
        (Action::Source(a), Action::Target(b)) | (Action::Target(a), Action::Source(b)) => a == b,
        (Action::Connected, Action::Connected)
        | (Action::Refuse(_), _)
        | (_, Action::Refuse(_)) => true,
        _ => false,
    };
    assert!(compatible, "{question:?}\n{one:?}\n{other:?}");
}

/// One situation: every bit of the number is one circumstance.
fn situation(hg: i32, number: u32) -> Question {
    use DiskState::{Consistent, Inconsistent, Outdated, UpToDate};
    let disks = [Inconsistent, Outdated, Consistent, UpToDate];
    let bit = |n: u32| number >> n & 1 != 0;
    let mut q = with_hg(hg);
    q.policies.always_asbp = bit(0);
    if bit(1) {
        q.policies.rr_conflict = RrConflict::Violently;
    }
    q.own.role = role(bit(2));
    q.peer.role = role(bit(3));
    q.own.bitmap_uuid = u64::from(bit(4));
    q.peer.bitmap_uuid = u64::from(bit(5));
    q.own.changes = u64::from(bit(6));
    q.peer.changes = u64::from(bit(7)) * 2;
    q.own.disk = disks[(number >> 8 & 3) as usize];
    q.own_disk_now = q.own.disk;
    q.peer.disk = disks[(number >> 10 & 3) as usize];
    q.own.discard_my_data = bit(1) && bit(6);
    q
}

#[test]
fn for_all_policies_and_situations_there_is_never_more_than_one_source_or_one_target() {
    for hg in [-2, -1, 0, 1, 2, 100, -100, -1000] {
        for number in 0..(1_u32 << 12) {
            for zero in 0..=6 {
                for one in [0, 7, 8, 9, 10] {
                    let mut q = situation(hg, number);
                    q.policies.after_sb_0pri = AfterSb0Pri::from_number(zero);
                    q.policies.after_sb_1pri = AfterSb1Pri::from_number(one);
                    q.policies.after_sb_2pri = AfterSb2Pri::from_number(one);
                    assert_compatible(&q);
                }
            }
        }
    }
}

#[test]
fn unrelated_data_and_old_versions_are_refused_without_a_handler() {
    for (hg, reason) in [
        (UNRELATED, Reason::Unrelated),
        (-1091, Reason::ProtocolTooOld),
        (-66661, Reason::FeatureMissing),
    ] {
        let decision = decide(&with_hg(hg));
        assert_eq!(decision.action, Action::Refuse(reason));
        assert!(decision.handlers.is_empty());
        assert_eq!(decision.log.len(), 1);
    }
}

#[test]
fn an_inconsistent_disk_never_wins_against_a_better_one() {
    use Method::{Bitmap, Full};
    for (hg, method) in [
        (0, Bitmap),
        (1, Bitmap),
        (100, Bitmap),
        (2, Full),
        (-100, Full),
    ] {
        let mut q = with_hg(hg);
        q.own.disk = DiskState::Inconsistent;
        q.own_disk_now = DiskState::Inconsistent;
        let decision = decide(&q);
        assert_eq!(decision.action, Action::Target(method), "{hg}");
        assert!(
            decision.handlers.is_empty(),
            "the split brain is settled before its handler"
        );
        assert_eq!(decision.log[0], "Becoming sync target due to disk states.");
        assert_eq!(decide(&other_node(&q)).action, Action::Source(method));
    }
}

#[test]
fn two_inconsistent_disks_have_no_source() {
    let mut q = with_hg(1);
    q.own.disk = DiskState::Inconsistent;
    q.peer.disk = DiskState::Inconsistent;
    assert_eq!(
        decide(&q).action,
        Action::Refuse(Reason::SourceInconsistent)
    );
}

#[test]
fn an_undecided_split_brain_calls_both_handlers_and_is_refused() {
    for hg in [SPLIT_BRAIN, SPLIT_BRAIN_UNKNOWN] {
        let decision = decide(&with_hg(hg));
        assert_eq!(decision.action, Action::Refuse(Reason::SplitBrain));
        assert_eq!(
            decision.handlers,
            [Handler::InitialSplitBrain, Handler::SplitBrain]
        );
        assert_eq!(
            decision.log,
            ["Split-Brain detected but unresolved, dropping connection!"]
        );
    }
}

#[test]
fn discard_my_data_decides_only_a_split_brain_and_only_if_one_node_gives_it() {
    let mut q = with_hg(SPLIT_BRAIN);
    q.own.discard_my_data = true;
    let decision = decide(&q);
    assert_eq!(decision.action, Action::Target(Method::Bitmap));
    assert_eq!(
        decision.log,
        ["Split-Brain detected, manually solved. Sync from peer node"]
    );
    let decision = decide(&other_node(&q));
    assert_eq!(decision.action, Action::Source(Method::Bitmap));
    assert_eq!(
        decision.log,
        ["Split-Brain detected, manually solved. Sync from this node"]
    );
    // Rule 100 as well, and still only what the bitmaps say (a hazard that is inherited).
    q.comparison.hg = SPLIT_BRAIN_UNKNOWN;
    assert_eq!(decide(&q).action, Action::Target(Method::Bitmap));
    // Rule 101 is not the kernel's: everything is copied.
    q.comparison.rule = Some(101);
    assert_eq!(decide(&q).action, Action::Target(Method::Full));
    assert_eq!(decide(&other_node(&q)).action, Action::Source(Method::Full));
    q.peer.discard_my_data = true;
    assert_eq!(decide(&q).action, Action::Refuse(Reason::BothDiscard));
    // Without a split brain it chooses no direction.
    for (hg, action) in [(0, Action::Connected), (1, Action::Source(Method::Bitmap))] {
        let mut q = with_hg(hg);
        q.own.discard_my_data = true;
        assert_eq!(decide(&q).action, action);
    }
}

#[test]
fn after_sb_0pri_follows_its_table() {
    use AfterSb0Pri as P;
    // Policy, split bits (own, peer), changes (own, peer), flag here; expected direction, 0 for undecided.
    let rows = [
        (P::Disconnect, (true, false), (1, 2), false, 0),
        (P::DiscardYoungerPrimary, (false, true), (0, 0), false, -1),
        (P::DiscardYoungerPrimary, (true, false), (0, 0), false, 1),
        (P::DiscardYoungerPrimary, (true, true), (0, 2), false, -1),
        (P::DiscardYoungerPrimary, (true, true), (3, 0), false, 1),
        (P::DiscardYoungerPrimary, (false, false), (3, 2), false, 1),
        (P::DiscardYoungerPrimary, (false, false), (0, 0), true, -1),
        (P::DiscardOlderPrimary, (true, false), (9, 0), false, -1),
        (P::DiscardOlderPrimary, (false, true), (0, 9), false, 1),
        (P::DiscardOlderPrimary, (true, true), (2, 2), true, -1),
        (P::DiscardZeroChanges, (true, false), (1, 2), false, 0),
        (P::DiscardZeroChanges, (false, false), (0, 2), false, -1),
        (P::DiscardZeroChanges, (false, false), (2, 0), false, 1),
        (P::DiscardZeroChanges, (false, false), (0, 0), true, -1),
        (P::DiscardZeroChanges, (false, false), (0, 0), false, 1),
        (P::DiscardLeastChanges, (false, false), (1, 2), false, -1),
        (P::DiscardLeastChanges, (false, false), (2, 1), true, 1),
        (P::DiscardLeastChanges, (false, false), (2, 2), true, -1),
        (P::DiscardLocal, (false, false), (2, 2), true, -1),
        (P::DiscardRemote, (false, false), (2, 2), true, 1),
    ];
    let action = |expected, method| match expected {
        -1 => Action::Target(method),
        1 => Action::Source(method),
        _ => Action::Refuse(Reason::SplitBrain),
    };
    for (policy, bits, changes, here, expected) in rows {
        let mut q = with_hg(SPLIT_BRAIN);
        q.policies.after_sb_0pri = policy;
        q.own.bitmap_uuid = u64::from(bits.0);
        q.peer.bitmap_uuid = u64::from(bits.1);
        (q.own.changes, q.peer.changes) = changes;
        if here {
            q.resolve_conflicts = ResolveConflicts::Here;
        }
        let wanted = action(expected, Method::Bitmap);
        assert_eq!(
            decide(&q).action,
            wanted,
            "{policy:?} {bits:?} {changes:?} {here}"
        );
        // Rule 100: only with always-asbp, and then everything is copied.
        q.comparison.hg = SPLIT_BRAIN_UNKNOWN;
        assert_eq!(decide(&q).action, Action::Refuse(Reason::SplitBrain));
        q.policies.always_asbp = true;
        assert_eq!(decide(&q).action, action(expected, Method::Full));
    }
}

#[test]
fn after_sb_1pri_follows_its_table() {
    use AfterSb1Pri as P;
    // Policy, own role, what after-sb-0pri says here; expected direction, 0 for undecided.
    let rows = [
        (P::Disconnect, Role::Primary, AfterSb0Pri::DiscardRemote, 0),
        (P::Consensus, Role::Primary, AfterSb0Pri::DiscardRemote, 1),
        (P::Consensus, Role::Primary, AfterSb0Pri::DiscardLocal, 0),
        (P::Consensus, Role::Secondary, AfterSb0Pri::DiscardLocal, -1),
        (P::Consensus, Role::Secondary, AfterSb0Pri::DiscardRemote, 0),
        (
            P::DiscardSecondary,
            Role::Primary,
            AfterSb0Pri::Disconnect,
            1,
        ),
        (
            P::DiscardSecondary,
            Role::Secondary,
            AfterSb0Pri::Disconnect,
            -1,
        ),
        (P::CallPriLost, Role::Primary, AfterSb0Pri::DiscardRemote, 1),
        (P::CallPriLost, Role::Primary, AfterSb0Pri::DiscardLocal, 0),
        (
            P::CallPriLost,
            Role::Secondary,
            AfterSb0Pri::DiscardRemote,
            1,
        ),
        (
            P::ViolentlyAs0p,
            Role::Primary,
            AfterSb0Pri::DiscardLocal,
            -1,
        ),
        (
            P::ViolentlyAs0p,
            Role::Secondary,
            AfterSb0Pri::Disconnect,
            0,
        ),
    ];
    for (policy, own, zero, expected) in rows {
        let mut q = with_hg(SPLIT_BRAIN);
        q.own.role = own;
        q.peer.role = role(own == Role::Secondary);
        q.policies.after_sb_0pri = zero;
        q.policies.after_sb_1pri = policy;
        q.policies.rr_conflict = RrConflict::Violently;
        let wanted = match expected {
            -1 => Action::Target(Method::Bitmap),
            1 => Action::Source(Method::Bitmap),
            _ => Action::Refuse(Reason::SplitBrain),
        };
        assert_eq!(decide(&q).action, wanted, "{policy:?} {own:?} {zero:?}");
    }
}

#[test]
fn a_primary_that_loses_calls_its_handler_and_refuses_during_a_connect() {
    let mut q = with_hg(SPLIT_BRAIN);
    q.own.role = Role::Primary;
    q.policies.after_sb_0pri = AfterSb0Pri::DiscardLocal;
    q.policies.after_sb_1pri = AfterSb1Pri::CallPriLost;
    let decision = decide(&q);
    assert_eq!(decision.action, Action::Refuse(Reason::SplitBrain));
    let handlers = [
        Handler::InitialSplitBrain,
        Handler::PriLostAfterSb,
        Handler::SplitBrain,
    ];
    assert_eq!(decision.handlers, handlers);
    assert_eq!(
        decide(&other_node(&q)).action,
        Action::Source(Method::Bitmap)
    );
    q.demotion = Demotion::Possible;
    let decision = decide(&q);
    assert!(decision.demote);
    assert_eq!(decision.action, Action::Target(Method::Bitmap));
    assert_eq!(
        decision.log,
        ["Split-Brain detected, 1 primaries, automatically solved. Sync from peer node"]
    );
}

#[test]
fn violently_needs_rr_conflict_to_be_violent_too() {
    let mut q = with_hg(SPLIT_BRAIN);
    q.own.role = Role::Primary;
    q.peer.role = Role::Primary;
    q.policies.after_sb_0pri = AfterSb0Pri::DiscardLocal;
    q.policies.after_sb_2pri = AfterSb2Pri::ViolentlyAs0p;
    assert_eq!(
        decide(&q).action,
        Action::Refuse(Reason::PrimaryWouldBeTarget)
    );
    q.policies.rr_conflict = RrConflict::CallPriLost;
    let decision = decide(&q);
    assert_eq!(
        decision.action,
        Action::Refuse(Reason::PrimaryWouldBeTarget)
    );
    assert_eq!(
        decision.handlers,
        [Handler::InitialSplitBrain, Handler::PriLost]
    );
    q.policies.rr_conflict = RrConflict::Violently;
    assert_eq!(decide(&q).action, Action::Target(Method::Bitmap));
    // A Primary that attaches again may always be the target.
    q.policies.rr_conflict = RrConflict::Disconnect;
    q.own_disk_now = DiskState::Negotiating;
    assert_eq!(decide(&q).action, Action::Target(Method::Bitmap));
}

#[test]
fn a_dry_run_is_refused_after_its_line_in_the_log() {
    let mut q = with_hg(-2);
    q.tentative = true;
    let decision = decide(&q);
    assert_eq!(decision.action, Action::Refuse(Reason::DryRun));
    assert_eq!(
        decision.log,
        ["dry-run connect: Would become SyncTarget, doing a full resync."]
    );
    q.tentative = false;
    q.peer_dry_run = true;
    assert_eq!(decide(&q).action, Action::Refuse(Reason::DryRun));
    let (disk, late) = (DiskState::UpToDate, DiskState::Negotiating);
    assert_eq!(
        refusal_outcome(disk, disk, true),
        RefusalOutcome::ProtocolError
    );
    assert_eq!(
        refusal_outcome(disk, disk, false),
        RefusalOutcome::StandAlone
    );
    assert_eq!(
        refusal_outcome(late, disk, true),
        RefusalOutcome::FailOwnDisk
    );
    assert_eq!(
        refusal_outcome(disk, late, true),
        RefusalOutcome::PeerDiskless
    );
}

#[test]
fn set_bits_without_a_resync_are_logged() {
    let mut q = with_hg(0);
    q.own_bits_now = 192;
    let decision = decide(&q);
    assert_eq!(decision.action, Action::Connected);
    assert_eq!(decision.log, ["No resync, but 192 bits in bitmap!"]);
}
