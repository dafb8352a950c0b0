//! All relations that two sets of generations can have: each of the eight slots is zero, just created, equal to any of the others or
//! to none, each sync UUID is or is not one step after what it replaced; with roles, crashes and agreed protocols.

use std::collections::BTreeMap;

use tandem_replicator::generations::compare::{
    NEEDS_FEATURE, NEEDS_PROTOCOL_91, NO_SYNC, SPLIT_BRAIN, SPLIT_BRAIN_UNKNOWN, UNRELATED,
};
use tandem_replicator::generations::*;
use tandem_replicator::state::word::Role;

use crate::{LINK, mirrored, role, secondary};

/// Which of the slots S.cur, S.bm, S.h1, S.h2, P.cur, P.bm, P.h1, P.h2 are equal: 0 is zero, 1 is "just created", above that the
/// classes of other values in the order of their first slot.
type Pattern = [u8; 8];

/// Ways to divide eight slots into classes beside the two distinguished values (the 2-Bell number of 8).
const PATTERNS: usize = 94_828;

fn patterns() -> Vec<Pattern> {
    fn extend(pattern: &mut Pattern, at: usize, classes: u8, all: &mut Vec<Pattern>) {
        if at == pattern.len() {
            all.push(*pattern);
            return;
        }
        for class in 0..=classes {
            pattern[at] = class;
            extend(pattern, at + 1, classes.max(class + 1), all);
        }
    }
    let mut all = Vec::new();
    extend(&mut [0; 8], 0, 2, &mut all);
    all
}

/// Values for the classes, so that the bitmap UUID of a side is one step after its history 1 exactly where `steps` says so. `None`:
/// that contradicts the pattern.
fn values(pattern: &Pattern, steps: [bool; 2]) -> Option<[Uuids; 2]> {
    let class = |slot: usize| usize::from(pattern[slot]);
    let mut known: [Option<u64>; 10] = [None; 10];
    known[0] = Some(0);
    known[1] = Some(JUST_CREATED);
    let edges: Vec<(usize, usize)> = (0..2)
        .filter(|side| steps[*side])
        .map(|side| (class(4 * side + 2), class(4 * side + 1)))
        .collect();
    // The edge that hangs on a known value first.
    for _ in 0..=edges.len() {
        for (from, to) in &edges {
            match (known[*from], known[*to]) {
                (Some(value), None) => known[*to] = Some(value.wrapping_add(SYNC_UUID_STEP)),
                (None, Some(value)) => known[*from] = Some(value.wrapping_sub(SYNC_UUID_STEP)),
                _ => {}
            }
        }
        let open = edges
            .iter()
            .find(|(from, to)| known[*from].or(known[*to]).is_none());
        if let Some((from, _)) = open {
            known[*from] = Some(0x1000 * (*from as u64 + 1));
        }
    }
    let value = |class: usize| known[class].unwrap_or(0x1000 * (class as u64 + 1));
    let classes = 2.max(1 + usize::from(*pattern.iter().max()?));
    let distinct = (0..classes).all(|a| (0..a).all(|b| value(a) != value(b)));
    let side = |at: usize| {
        let slots = [at, at + 1, at + 2, at + 3];
        Uuids::from_slots(slots.map(|slot| value(class(slot))))
    };
    let sets = [side(0), side(4)];
    let exact = (0..2).all(|at| is_step(&sets[at]) == steps[at]);
    (distinct && exact).then_some(sets)
}

fn is_step(set: &Uuids) -> bool {
    masked(set.history[0].wrapping_add(SYNC_UUID_STEP)) == masked(set.bitmap)
}

/// Every relation, once.
fn for_all_relations(mut each: impl FnMut([Uuids; 2])) {
    let patterns = patterns();
    assert_eq!(patterns.len(), PATTERNS);
    for pattern in &patterns {
        for steps in [[false; 2], [true, false], [false, true], [true; 2]] {
            if let Some(sets) = values(pattern, steps) {
                each(sets);
            }
        }
    }
}

/// Every combination of crashes, roles, who yields, and the feature.
fn flags() -> impl Iterator<Item = ([bool; 2], [bool; 2], Link)> {
    (0..64_u32).map(|number| {
        let bit = |at: u32| number >> at & 1 == 1;
        let resolve_conflicts = if bit(4) {
            ResolveConflicts::Here
        } else {
            ResolveConflicts::There
        };
        let link = Link {
            // The one counts where the generations are the same, the other where they are not.
            write_same: bit(5),
            tandem: bit(5),
            resolve_conflicts,
            ..LINK
        };
        ([bit(0), bit(1)], [bit(2), bit(3)], link)
    })
}

/// Every relation with every flag that can matter to it, and each side of the two changes of the protocol.
fn for_all_comparisons(mut each: impl FnMut(&Party, &Party, &Link)) {
    for_all_relations(|[own, peer]| {
        let same = masked(own.current) == masked(peer.current);
        for (crashed, primary, link) in flags() {
            let party = |set: Uuids, at: usize| Party {
                uuids: set,
                crashed_primary: crashed[at],
                role: role(primary[at]),
            };
            let (a, b) = (party(own, 0), party(peer, 1));
            let plain = crashed == [false; 2] && primary == [false; 2];
            let protocols: &[u32] = if same || plain {
                &[90, 91, 95, 96, 101]
            } else {
                &[101]
            };
            for protocol in protocols {
                let link = Link {
                    protocol: *protocol,
                    ..link
                };
                each(&a, &b, &link);
            }
        }
    });
}

/// The table of section 4.3, in its order and in its words.
fn stated(own: &Party, peer: &Party, link: &Link) -> (i32, Option<u8>) {
    let (s, p) = (&own.uuids, &peer.uuids);
    let [sc, sb, s1, s2] = s.slots().map(masked);
    let [pc, pb, p1, p2] = p.slots().map(masked);
    let same = sc == pc;
    let source_only = same && p.bitmap == 0 && s.bitmap != 0;
    let target_only = same && s.bitmap == 0 && p.bitmap != 0;
    let (crash_s, crash_p) = (own.crashed_primary, peer.crashed_primary);
    let crash = crash_s || crash_p;
    let primaries = (own.role == Role::Primary, peer.role == Role::Primary);
    let beside = match primaries {
        _ if !link.write_same => NEEDS_FEATURE,
        (true, true) => SPLIT_BRAIN_UNKNOWN,
        (true, false) => 1,
        _ => -1,
    };
    let yields = if link.resolve_conflicts == ResolveConflicts::Here {
        -1
    } else {
        1
    };
    let new = link.protocol >= 96;
    let lost_by_peer = if new { is_step(p) } else { s1 == p2 };
    let lost_by_self = if new { is_step(s) } else { s2 == p1 };
    let history = [s1, s2].iter().any(|old| [p1, p2].contains(old));
    let bitmap = [(sb, [p1, p2]), (pb, [s1, s2])]
        .iter()
        .any(|(bitmap, history)| ![0, 4].contains(bitmap) && history.contains(bitmap));
    let both_count = same && link.tandem && s.bitmap != 0 && p.bitmap != 0;
    let (peer_ended, self_ended) = (pb == s1 && p1 == s2, sb == p1 && s1 == p2);
    let rules = [
        (10, sc == 4 && pc == 4, 0),
        (20, [4, 0].contains(&sc) && pc != 4, -2),
        (30, sc != 4 && [4, 0].contains(&pc), 2),
        (34, source_only && sb == p1 && s1 == p2, 1),
        (36, source_only, 1),
        (35, target_only && s1 == pb && s2 == p1, -1),
        (37, target_only, -1),
        (38, both_count && peer_ended && !self_ended, 1),
        (39, both_count && self_ended && !peer_ended, -1),
        (40, same && !crash, 0),
        (41, same && crash && (primaries.0 || primaries.1), beside),
        (40, same && crash_s && !crash_p, 1),
        (40, same && crash_p && !crash_s, -1),
        (40, same, yields),
        (50, sc == pb, -1),
        (51, sc == p1 && lost_by_peer, -1),
        (60, sc == p1 || sc == p2, -2),
        (70, sb == pc, 1),
        (71, s1 == pc && lost_by_self, 1),
        (80, s1 == pc || s2 == pc, 2),
        (90, sb == pb && sb != 0, SPLIT_BRAIN),
        (100, history, SPLIT_BRAIN_UNKNOWN),
        (101, bitmap && link.tandem, SPLIT_BRAIN_UNKNOWN),
        (100, true, UNRELATED),
    ];
    let found = rules.into_iter().find(|(_, matches, _)| *matches);
    let (rule, _, hg) = found.expect("the last rule matches always");
    match rule {
        34..=37 if link.protocol < 91 => (NEEDS_PROTOCOL_91, None),
        51 | 71 if link.protocol < 91 => (NEEDS_PROTOCOL_91, Some(rule)),
        _ => (hg, Some(rule)),
    }
}

#[test]
fn every_relation_of_two_sets_is_decided_as_the_table_of_the_specification_says() {
    let mut decided: BTreeMap<(i32, Option<u8>), u64> = BTreeMap::new();
    for_all_comparisons(|own, peer, link| {
        let got = compare(own, peer, link);
        let expected = stated(own, peer, link);
        assert_eq!((got.hg, got.rule), expected, "{own:x?} {peer:x?} {link:?}");
        *decided.entry(expected).or_default() += 1;
    });
    // Each result of each rule is there: also the two that need another protocol or feature.
    assert_eq!(decided.len(), 29, "{decided:?}");
}

/// Sets that no run produces: each current generation descends from the other, or both are empty (invariant 15).
pub(crate) fn is_constructed(a: &Uuids, b: &Uuids) -> bool {
    let [one, other] = [a, b].map(|set| masked(set.current));
    let real = |current: u64| ![0, JUST_CREATED].contains(&current);
    let circle = one != other && knows(b, one) && knows(a, other);
    (one == 0 && other == 0) || (real(one) && real(other) && circle)
}

/// A set has this generation in one of its older slots.
fn knows(set: &Uuids, old: u64) -> bool {
    let [_, bitmap, newer, older] = set.slots().map(masked);
    [bitmap, newer, older].contains(&masked(old))
}

pub(crate) fn is_mirrored(a: i32, b: i32) -> bool {
    match a {
        NO_SYNC | SPLIT_BRAIN | SPLIT_BRAIN_UNKNOWN | UNRELATED => a == b,
        -2..=2 => a == -b,
        _ => a == b,
    }
}

#[test]
fn for_all_relations_both_nodes_reach_mirrored_results() {
    let (mut compared, mut exempt) = (0_u64, 0_u64);
    for_all_comparisons(|own, peer, link| {
        if is_constructed(&own.uuids, &peer.uuids) {
            exempt += 1;
            return;
        }
        compared += 1;
        let back = Link {
            resolve_conflicts: mirrored(link.resolve_conflicts),
            ..*link
        };
        let (here, there) = (compare(own, peer, link), compare(peer, own, &back));
        assert!(
            is_mirrored(here.hg, there.hg),
            "{own:x?} {peer:x?} {link:?}: {here:?} {there:?}"
        );
        // What one of them corrects is the same set on both nodes.
        let corrected = |seen: Comparison| match seen.correction {
            None => None,
            Some(Correction::Own(set)) => Some((true, set)),
            Some(Correction::Peer(set)) => Some((false, set)),
        };
        let mirrored = corrected(there).map(|(own, set)| (!own, set));
        assert_eq!(corrected(here), mirrored, "{own:x?} {peer:x?} {link:?}");
    });
    // Most are compared; those that are exempt are a circle, which the rules need not answer alike.
    assert!(compared > 5 * exempt && exempt > 0, "{compared} {exempt}");
}

/// What each result means, said without the rules (invariant 16 of section 12.1, 5.1).
#[test]
fn for_all_relations_the_result_means_what_it_says() {
    for_all_comparisons(|own, peer, link| {
        let got = compare(own, peer, link);
        let at = || format!("{own:x?} {peer:x?} {link:?}: {got:?}");
        let (source, target) = if got.hg > 0 {
            (&own.uuids, &peer.uuids)
        } else {
            (&peer.uuids, &own.uuids)
        };
        let [current, bitmap, newer, older] = source.slots().map(masked);
        let has = masked(target.current);
        let blank = |current: u64| [0, JUST_CREATED].contains(&masked(current));
        let apart = masked(own.uuids.current) != masked(peer.uuids.current);
        let descends =
            knows(&own.uuids, peer.uuids.current) || knows(&peer.uuids, own.uuids.current);
        match got.hg {
            NO_SYNC => assert!(!apart, "{}", at()),
            // The bitmap of the source (or of the node that crashed) covers what the target lacks.
            1 | -1 => assert!([current, bitmap, newer].contains(&has), "{}", at()),
            2 | -2 => assert!(blank(has) || [newer, older].contains(&has), "{}", at()),
            SPLIT_BRAIN => {
                let common = masked(own.uuids.bitmap);
                assert!(apart && !descends && common != 0, "{}", at());
                assert_eq!(common, masked(peer.uuids.bitmap), "{}", at());
            }
            SPLIT_BRAIN_UNKNOWN if apart => {
                let common = own.uuids.history.map(masked);
                let shared = peer.uuids.history.map(masked);
                assert!(!descends, "{}", at());
                let bitmaps = [(own, peer), (peer, own)].iter().any(|(one, other)| {
                    !blank(one.uuids.bitmap) && knows(&other.uuids, one.uuids.bitmap)
                });
                let old = common.iter().any(|old| shared.contains(old));
                assert!(old || bitmaps, "{}", at());
            }
            SPLIT_BRAIN_UNKNOWN => {
                let both = [own.role, peer.role] == [Role::Primary; 2];
                assert!(
                    both && (own.crashed_primary || peer.crashed_primary),
                    "{}",
                    at()
                );
            }
            UNRELATED => {
                let shared = own.uuids.history.map(masked);
                let none = peer.uuids.history.map(masked);
                assert!(apart && !descends, "{}", at());
                assert!(none.iter().all(|old| !shared.contains(old)), "{}", at());
                for (one, other) in [(own, peer), (peer, own)] {
                    let bitmap = one.uuids.bitmap;
                    let strange = blank(bitmap) || !knows(&other.uuids, bitmap);
                    assert!(strange || !link.tandem, "{}", at());
                }
            }
            NEEDS_PROTOCOL_91 => assert!(link.protocol < 91, "{}", at()),
            other => assert!(other == NEEDS_FEATURE && !link.write_same, "{}", at()),
        }
    });
}

/// The undone start of a resync is begun again in the same direction; the finished one leaves equal sets.
#[test]
fn for_all_relations_a_correction_leads_to_the_same_direction() {
    let mut corrections = 0_u64;
    for_all_relations(|[own, peer]| {
        let first = compare(&secondary(own), &secondary(peer), &LINK);
        let (a, b) = match first.correction {
            None => return,
            Some(Correction::Own(set)) => (set, peer),
            Some(Correction::Peer(set)) => (own, set),
        };
        corrections += 1;
        let second = compare(&secondary(a), &secondary(b), &LINK);
        let expected = match first.rule {
            Some(51) => (-1, Some(50)),
            // Rule 71 takes back what hid rule 70; where the target's own slots point here as well, an earlier rule decides.
            Some(71) => (1, Some(70)),
            // 38 and 39 close one of two bitmap UUIDs: what is left is the beginning of the other resync, or its end.
            Some(38) => (1, second.rule.filter(|rule| [34, 36].contains(rule))),
            Some(39) => (-1, second.rule.filter(|rule| [35, 37].contains(rule))),
            _ => (0, Some(40)),
        };
        assert_eq!((second.hg, second.rule), expected, "{own:x?} {peer:x?}");
    });
    assert!(corrections > 1000, "{corrections}");
}

#[test]
fn for_all_relations_role_bits_change_nothing() {
    let mut number = 0x9e37_79b9_7f4a_7c15_u64;
    for_all_relations(|sets| {
        number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let mut bits = number >> 40;
        // A slot that is zero stays so: whether a bitmap UUID is set looks at the full value.
        let with_bits = sets.map(|set| {
            Uuids::from_slots(set.slots().map(|uuid| {
                bits >>= 1;
                uuid | (u64::from(uuid != 0) & bits)
            }))
        });
        let [plain, marked] = [sets, with_bits].map(|[own, peer]| {
            let seen = compare(&secondary(own), &secondary(peer), &LINK);
            (seen.hg, seen.rule)
        });
        assert_eq!(plain, marked, "{sets:x?} {with_bits:x?}");
    });
}
