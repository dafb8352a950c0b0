//! Data generations: every comparison of appendix B.1, the mirror property, decisions of sections 4.4 and 5, and the life of
//! a resync with its interruptions. The vectors are read from the specification itself.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use proptest::prelude::*;
use tandem_replicator::generations::compare::{
    NO_SYNC, SPLIT_BRAIN, SPLIT_BRAIN_UNKNOWN, UNRELATED,
};
use tandem_replicator::generations::decide::{
    AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Question, RrConflict,
};
use tandem_replicator::generations::*;
use tandem_replicator::state::word::{ConnState, DiskState, Role, State};

const SPEC: &str = include_str!("../../docs/spec/state-machine.md");

/// The value of `c`, `c*`, `c+δ`, `4`: letters are distinct, with bit 0 clear, and none equals 4.
fn value(text: &str) -> u64 {
    if let Ok(number) = text.parse() {
        return number;
    }
    let bit = u64::from(text.ends_with('*'));
    let step = if text.ends_with("+δ") {
        SYNC_UUID_STEP
    } else {
        0
    };
    let letter = u64::from(*text.as_bytes().first().unwrap());
    0x0000_1234_5678_0000 + letter * 16 + step + bit
}

fn set(text: &str) -> Uuids {
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    let slots: Vec<u64> = inner.split(',').map(|part| value(part.trim())).collect();
    Uuids::from_slots(slots.try_into().unwrap())
}

fn mirrored(side: ResolveConflicts) -> ResolveConflicts {
    match side {
        ResolveConflicts::Here => ResolveConflicts::There,
        ResolveConflicts::There => ResolveConflicts::Here,
    }
}

fn role(primary: bool) -> Role {
    if primary {
        Role::Primary
    } else {
        Role::Secondary
    }
}

const LINK: Link = Link {
    protocol: 101,
    write_same: true,
    resolve_conflicts: ResolveConflicts::Here,
};

fn secondary(uuids: Uuids) -> Party {
    Party {
        uuids,
        crashed_primary: false,
        role: Role::Secondary,
    }
}

/// Checks one cell such as `-1 (51) peer set fixed`.
fn check(number: &str, cell: &str, got: &Comparison) {
    let (hg, rest) = cell.split_once(" (").unwrap();
    let (rule, fixed) = rest.split_once(')').unwrap();
    assert_eq!(
        got.hg,
        hg.parse::<i32>().unwrap(),
        "vector {number}: {cell}: {got:?}"
    );
    assert_eq!(
        got.rule,
        rule.parse().ok(),
        "vector {number}: {cell}: {got:?}"
    );
    let corrected = match got.correction {
        None => "",
        Some(Correction::Own(_)) => "own set fixed",
        Some(Correction::Peer(_)) => "peer set fixed",
    };
    assert_eq!(corrected, fixed.trim(), "vector {number}");
}

#[test]
fn every_comparison_of_the_specification_is_reproduced_on_both_nodes() {
    let section = SPEC
        .split("### B.1")
        .nth(1)
        .unwrap()
        .split("### B.2")
        .next()
        .unwrap();
    let mut vectors = 0;
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if cells[0].parse::<u32>().is_err() {
            continue;
        }
        vectors += 1;
        let notes = cells[4];
        let link = Link {
            protocol: notes
                .split("protocol ")
                .nth(1)
                .map_or(101, |rest| rest.trim_end_matches(')').parse().unwrap()),
            write_same: !notes.contains("no WRITE_SAME"),
            resolve_conflicts: ResolveConflicts::There,
        };
        let primaries = notes.split('(').next().unwrap();
        let party = |cell: &str, name: char| Party {
            uuids: set(cell),
            crashed_primary: cells[3].contains(name),
            role: role(primaries.contains(name)),
        };
        let (a, b) = (party(cells[1], 'A'), party(cells[2], 'B'));
        check(cells[0], cells[5], &compare(&a, &b, &link));
        let back = Link {
            resolve_conflicts: ResolveConflicts::Here,
            ..link
        };
        check(cells[0], cells[6], &compare(&b, &a, &back));
    }
    assert_eq!(vectors, 40);
}

#[test]
fn corrections_give_the_set_that_the_missed_packet_would_have_given() {
    // Vector 17: the source missed the end of the resync.
    let source = secondary(set("[n, c+δ, c, p]"));
    let target = secondary(set("[n, 0, c+δ, c]"));
    let seen = compare(&source, &target, &LINK);
    assert_eq!(seen.correction, Some(Correction::Own(target.uuids)));
    let seen = compare(&target, &source, &LINK);
    assert_eq!(seen.correction, Some(Correction::Peer(target.uuids)));
    // Vector 20: the target never stored the sync UUID; the source takes its rotation back (h2 stays).
    let target = secondary(set("[c, 0, p, q]"));
    let source = secondary(set("[n, c+δ, c, p]"));
    let undone = set("[n, c, p, p]");
    let seen = compare(&source, &target, &LINK);
    assert_eq!(seen.correction, Some(Correction::Own(undone)));
    let seen = compare(&target, &source, &LINK);
    assert_eq!(seen.correction, Some(Correction::Peer(undone)));
}

/// Sets that no run produces: each current generation descends from the other, or both are empty (invariant 15).
fn is_constructed(a: &Uuids, b: &Uuids) -> bool {
    let knows = |old: u64, set: &Uuids| {
        [set.bitmap, set.history[0], set.history[1]]
            .iter()
            .any(|slot| masked(*slot) == masked(old))
    };
    let empty = masked(a.current) == 0 && masked(b.current) == 0;
    let differ = masked(a.current) != masked(b.current);
    empty || (differ && knows(a.current, b) && knows(b.current, a))
}

fn is_mirrored(a: i32, b: i32) -> bool {
    match a {
        NO_SYNC | SPLIT_BRAIN | SPLIT_BRAIN_UNKNOWN | UNRELATED => a == b,
        -2..=2 => a == -b,
        _ => a == b,
    }
}

#[test]
fn for_all_relations_of_two_sets_both_nodes_reach_mirrored_results() {
    let x = 0x0000_1111_0000_0010;
    let values = [
        0,
        4,
        x,
        x + SYNC_UUID_STEP,
        0x0000_2222_0000_0020,
        0x0000_3333_0000_0031,
    ];
    let mut sets = Vec::new();
    for current in values {
        for bitmap in values {
            for newer in values {
                for older in [0, x, values[4]] {
                    sets.push(Uuids::from_slots([current, bitmap, newer, older]));
                }
            }
        }
    }
    let back = Link {
        resolve_conflicts: ResolveConflicts::There,
        ..LINK
    };
    let mut compared = 0_u32;
    for a in &sets {
        for b in &sets {
            if is_constructed(a, b) {
                continue;
            }
            compared += 1;
            let here = compare(&secondary(*a), &secondary(*b), &LINK);
            let there = compare(&secondary(*b), &secondary(*a), &back);
            assert!(
                is_mirrored(here.hg, there.hg),
                "{a:?} {b:?}: {here:?} {there:?}"
            );
            assert!(here.rule.is_some() && there.rule.is_some());
        }
    }
    assert!(compared > 100_000, "{compared}");
}

proptest! {
    #[test]
    fn roles_crashes_and_old_protocols_keep_the_results_mirrored(
        slots in prop::array::uniform8(0_usize..6),
        flags in any::<[bool; 4]>(),
        protocol in prop::sample::select(vec![86_u32, 90, 91, 95, 96, 100, 101]),
        write_same: bool,
        here: bool,
    ) {
        let values = [0, 4, 0x20, 0x20 + SYNC_UUID_STEP, 0x41, 0x40 + SYNC_UUID_STEP];
        let pick = |at: usize| {
            Uuids::from_slots([slots[at], slots[at + 1], slots[at + 2], slots[at + 3]].map(|i| values[i]))
        };
        let a = Party { uuids: pick(0), crashed_primary: flags[0], role: role(flags[1]) };
        let b = Party { uuids: pick(4), crashed_primary: flags[2], role: role(flags[3]) };
        prop_assume!(!is_constructed(&a.uuids, &b.uuids));
        let side = if here { ResolveConflicts::Here } else { ResolveConflicts::There };
        let link = Link { protocol, write_same, resolve_conflicts: side };
        let back = Link { resolve_conflicts: mirrored(side), ..link };
        let (one, other) = (compare(&a, &b, &link), compare(&b, &a, &back));
        prop_assert!(is_mirrored(one.hg, other.hg), "{:?} {:?}", one, other);
    }

    #[test]
    fn comparing_and_deciding_on_any_numbers_never_panics(
        slots in any::<[u64; 8]>(),
        changes in any::<[u64; 2]>(),
        flags in any::<[bool; 4]>(),
        numbers in any::<[u8; 4]>(),
    ) {
        let party = |at: usize| Party {
            uuids: Uuids::from_slots([slots[at], slots[at + 1], slots[at + 2], slots[at + 3]]),
            crashed_primary: flags[0],
            role: role(flags[1]),
        };
        let link = Link { protocol: u32::from(numbers[0]), write_same: flags[2], ..LINK };
        let mut question = question();
        question.comparison = compare(&party(0), &party(4), &link);
        question.own.changes = changes[0];
        question.peer.changes = changes[1];
        question.policies.after_sb_0pri = AfterSb0Pri::from_number(u32::from(numbers[1]));
        question.policies.after_sb_1pri = AfterSb1Pri::from_number(u32::from(numbers[2]));
        question.policies.always_asbp = flags[3];
        decide(&question);
        let mut node = Generations::attached(party(0).uuids, slots[7]);
        node.start_as_source(slots[6]);
        node.finish_as_target(&party(4).uuids, role(flags[1]));
        prop_assert_eq!(node.uuids.bitmap, 0);
    }
}

fn question() -> Question {
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
    q.peer.discard_my_data = true;
    assert_eq!(decide(&q).action, Action::Refuse(Reason::SplitBrain));
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

fn generations(text: &str) -> Generations {
    let uuids = set(text);
    Generations {
        uuids,
        exposed: uuids.current,
    }
}

fn hg(a: &Generations, b: &Generations) -> (i32, Option<u8>) {
    let result = compare(&secondary(a.uuids), &secondary(b.uuids), &LINK);
    (result.hg, result.rule)
}

#[test]
fn a_resync_can_be_interrupted_anywhere_and_goes_on_in_the_same_direction() {
    let mut source = generations("[c*, 0, p, q]");
    let mut target = generations("[c, 0, p, q]");
    assert_eq!(source.new_current(0x7777_0000, Role::Primary), None);
    assert_eq!(
        source.uuids.slots(),
        [0x7777_0001, value("c*"), value("p"), value("q")]
    );
    assert_eq!(hg(&source, &target), (1, Some(70)));
    let sync = source.start_as_source(0x5555_0000);
    assert_eq!(sync, value("c*") + SYNC_UUID_STEP);
    // The packet with the sync UUID is lost: rule 71 here, 51 there.
    assert_eq!(hg(&source, &target), (1, Some(71)));
    assert_eq!(hg(&target, &source), (-1, Some(51)));
    target.start_as_target(sync, Role::Secondary);
    assert_eq!(masked(target.uuids.current), masked(source.uuids.bitmap));
    assert_eq!(target.uuids.bitmap, 0);
    assert_eq!(hg(&target, &source), (-1, Some(50)));
    // Cut again: each resync has its own sync UUID.
    let announced = source.uuids;
    let again = source.start_as_source(0x5555_0000);
    assert_eq!(again, sync + SYNC_UUID_STEP);
    assert_eq!(hg(&target, &source), (-1, Some(51)));
    target.start_as_target(again, Role::Secondary);
    // The target finished, the source never heard of it: rule 34 here, 35 there.
    target.finish_as_target(&announced, Role::Secondary);
    assert_eq!(hg(&source, &target), (1, Some(34)));
    assert_eq!(hg(&target, &source), (-1, Some(35)));
    source.finish_as_source();
    assert_eq!(hg(&source, &target), (0, Some(40)));
    assert_eq!(
        source.uuids.slots().map(masked),
        target.uuids.slots().map(masked)
    );
    assert_eq!(source.uuids.current, 0x7777_0001);
    assert_eq!(source.uuids.bitmap, 0);
}

#[test]
fn a_resync_of_equal_generations_uses_a_random_sync_uuid() {
    let mut source = generations("[c, 0, p, q]");
    let mut target = generations("[c, 0, p, q]");
    let announced = source.uuids;
    let sync = source.start_as_source(0x5555_0001);
    assert_eq!(sync, 0x5555_0001);
    assert_eq!(
        source.uuids.slots(),
        [value("c"), sync, value("p"), value("q")]
    );
    // Lost: rules 36 and 37.
    assert_eq!(hg(&source, &target), (1, Some(36)));
    assert_eq!(hg(&target, &source), (-1, Some(37)));
    target.start_as_target(sync, Role::Secondary);
    assert_eq!(target.uuids.current, masked(sync));
    target.finish_as_target(&announced, Role::Secondary);
    source.finish_as_source();
    // [source's current, 0, sync UUID, source's old h1] (section 3.5).
    assert_eq!(source.uuids.slots(), [value("c"), 0, sync, value("p")]);
    assert_eq!(
        target.uuids.slots(),
        [value("c"), 0, masked(sync), value("p")]
    );
}

#[test]
fn the_first_sync_leaves_what_a_kernel_stored() {
    // The numbers are those of tests/golden/wire/01-initial-sync and its neighbours.
    let (current, sync) = (0x9C01_3372_6FBC_8A4D, 0x5035_1A0C_ADFD_1534);
    let mut source = Generations::attached(Uuids::FRESH, 0);
    let mut target = Generations::attached(Uuids::FRESH, 0);
    source.new_current(current, Role::Primary);
    assert_eq!(source.uuids.slots(), [current, 4, 0, 0]);
    assert_eq!(hg(&source, &target), (2, Some(30)));
    assert_eq!(hg(&target, &source), (-2, Some(20)));
    let announced = source.uuids;
    assert_eq!(source.start_as_source(sync), sync);
    target.start_as_target(sync, Role::Secondary);
    target.finish_as_target(&announced, Role::Secondary);
    source.finish_as_source();
    assert_eq!(source.uuids.slots(), [current, 0, sync, 4]);
    assert_eq!(target.uuids.slots(), [masked(current), 0, sync, 4]);
    assert_eq!(
        source.uuids.log(0, 2),
        "9C0133726FBC8A4D:0000000000000000:50351A0CADFD1534:0000000000000004 bits:0 flags:2"
    );
}

#[test]
fn a_forced_generation_names_the_bitmap_uuid_that_it_forgets() {
    let mut node = generations("[c, n, p, q]");
    assert_eq!(node.new_current(0x1000, Role::Primary), Some(value("n")));
    assert_eq!(
        node.uuids.slots(),
        [0x1001, value("c"), value("p"), value("q")]
    );
    assert_eq!(node.exposed, 0x1001);
}

#[test]
fn random_numbers_with_a_meaning_are_not_used() {
    for random in [0, 1, 4, 5] {
        assert!(masked(usable(random)) != 0 && masked(usable(random)) != 4);
    }
    assert_eq!(usable(6), 6);
}

#[test]
fn new_current_uuid_by_command_keeps_or_clears_the_bitmap_uuid() {
    let mut truck = generations("[c, n, p, q]");
    truck.new_current_by_command(0x1000, Role::Secondary, NewCurrentCase::StandAlone);
    assert_eq!(
        truck.uuids.slots(),
        [0x1000, value("c"), value("n"), value("p")]
    );
    let mut fresh = Generations::attached(Uuids::FRESH, 0);
    fresh.new_current_by_command(0x1000, Role::Secondary, NewCurrentCase::SkipInitialSync);
    assert_eq!(fresh.uuids.slots(), [0x1000, 0, 0, 0]);
    let mut peer = Generations::attached(Uuids::FRESH, 0);
    peer.skip_initial_sync(&fresh.uuids, Role::Secondary);
    assert_eq!(peer.uuids, fresh.uuids);
}

#[test]
fn the_initial_sync_is_skipped_only_on_a_fresh_connected_pair() {
    let connected = State {
        conn: ConnState::Connected,
        disk: DiskState::Inconsistent,
        ..State::UNCONFIGURED
    };
    let used = generations("[c, n, p, q]");
    let fresh = Generations::attached(Uuids::FRESH, 0);
    assert!(fresh.may_skip_initial_sync(&connected, 90, UUID_FLAG_SKIP_INITIAL_SYNC));
    assert!(!fresh.may_skip_initial_sync(&connected, 89, UUID_FLAG_SKIP_INITIAL_SYNC));
    assert!(!fresh.may_skip_initial_sync(&connected, 101, 7));
    assert!(!used.may_skip_initial_sync(&connected, 101, UUID_FLAG_SKIP_INITIAL_SYNC));
    let case = |state, uuids, clear| new_current_case(state, uuids, 101, clear);
    let skip = Some(NewCurrentCase::SkipInitialSync);
    assert_eq!(case(&connected, &fresh.uuids, ClearBitmap::Yes), skip);
    assert_eq!(case(&connected, &fresh.uuids, ClearBitmap::No), None);
    assert_eq!(case(&connected, &used.uuids, ClearBitmap::Yes), None);
    let alone = State::UNCONFIGURED;
    let truck = Some(NewCurrentCase::StandAlone);
    assert_eq!(case(&alone, &used.uuids, ClearBitmap::No), truck);
}

#[test]
fn the_application_of_a_diskless_node_never_sees_older_data() {
    let mut node = Generations::default();
    let diskless = State {
        role: Role::Primary,
        conn: ConnState::Connected,
        pdsk: DiskState::UpToDate,
        ..State::UNCONFIGURED
    };
    let (same, other) = (set("[c*, 0, p, q]"), set("[n, 0, c, p]"));
    node.expose_peer(&diskless, &set("[c, 0, p, q]"));
    assert_eq!(node.exposed, value("c"));
    // The role bit does not count; another generation does.
    let lost = State {
        conn: ConnState::WFConnection,
        pdsk: DiskState::DUnknown,
        ..diskless
    };
    assert!(!node.refuses_attach(&lost, &same));
    assert!(node.refuses_attach(&lost, &other));
    assert!(
        !node.refuses_attach(&diskless, &other),
        "the peer's data is read"
    );
    assert!(node.refuses_peer_data(&lost, &other));
    assert!(!node.refuses_peer_data(&lost, &same));
    assert!(
        !node.refuses_peer_data(&diskless, &other),
        "connected to a disk"
    );
}

#[test]
fn a_promotion_starts_a_generation_only_where_the_peer_misses_it() {
    let alone = State {
        conn: ConnState::WFConnection,
        role: Role::Primary,
        disk: DiskState::UpToDate,
        ..State::UNCONFIGURED
    };
    let clean = generations("[c, 0, p, q]");
    let split = generations("[c, n, p, q]");
    assert!(clean.promotion_starts_generation(&alone, Forced::No));
    assert!(!split.promotion_starts_generation(&alone, Forced::No));
    assert!(split.promotion_starts_generation(&alone, Forced::Yes));
    let together = State {
        conn: ConnState::Connected,
        pdsk: DiskState::UpToDate,
        ..alone
    };
    assert!(!clean.promotion_starts_generation(&together, Forced::No));
    let peer_diskless = State {
        pdsk: DiskState::Diskless,
        ..together
    };
    assert!(clean.promotion_starts_generation(&peer_diskless, Forced::No));
}
