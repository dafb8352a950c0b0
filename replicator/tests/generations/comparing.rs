//! The comparison of two sets of generations.

use proptest::prelude::*;
use tandem_replicator::generations::decide::{AfterSb0Pri, AfterSb1Pri};
use tandem_replicator::generations::*;

use crate::deciding::question;
use crate::relations::{is_constructed, is_mirrored};
use crate::{LINK, mirrored, role, secondary, set};

const SPEC: &str = include_str!("../../../docs/spec/state-machine.md");

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
            tandem: false,
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
        let link = Link { protocol, write_same, resolve_conflicts: side, tandem: write_same };
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
