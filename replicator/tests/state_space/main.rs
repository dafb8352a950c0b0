//! Role × disk × connection × peer's role × peer's disk: the full product of old and wanted states, judged by the engine and by a
//! second statement of docs/spec/state-machine.md sections 2.1 to 2.6.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod stated;

use stated::{Numbers, Ranges, asks_peer, judged};
use tandem_replicator::state::rules::*;
use tandem_replicator::state::sanitise::disk_ranges;
use tandem_replicator::state::word::*;
use tandem_replicator::state::*;

const SPEC: &str = include_str!("../../../docs/spec/state-machine.md");

fn rows_of(from: &str, to: &str) -> Vec<Vec<&'static str>> {
    let section = SPEC.split(from).nth(1).unwrap().split(to).next().unwrap();
    section
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

fn number_of<T: Copy + std::fmt::Display>(all: &[T], name: &str) -> usize {
    all.iter()
        .position(|value| value.to_string() == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

/// The table of S6, read from the specification.
fn ranges() -> Ranges {
    let mut ranges: [Option<[u32; 4]>; 24] = [None; 24];
    let range = |text: &str| {
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        [least, most].map(|name| DiskState::ALL[number_of(DiskState::ALL, name)].number())
    };
    for cells in rows_of("S6 ranges", "Visible results").iter().skip(1) {
        let ([disk_min, disk_max], [pdsk_min, pdsk_max]) = (range(cells[1]), range(cells[2]));
        let conns = match cells[0].split_once(" (not connected)") {
            Some(_) => (0..=9).collect(),
            None => {
                let names = cells[0].split(", ");
                let find = |name| ConnState::ALL[number_of(ConnState::ALL, name)].number();
                names.map(find).collect::<Vec<u32>>()
            }
        };
        for conn in conns {
            let before = ranges[conn as usize].replace([disk_min, disk_max, pdsk_min, pdsk_max]);
            assert_eq!(before, None, "{conn} is there twice");
        }
    }
    ranges.map(|range| range.expect("every connection state has a range"))
}

#[test]
fn disk_ranges_are_those_of_the_specification() {
    for (conn, range) in ConnState::ALL.iter().zip(ranges()) {
        assert_eq!(disk_ranges(*conn).map(DiskState::number), range, "{conn}");
    }
}

#[test]
fn rules_refuse_with_the_codes_of_the_specification() {
    let tables = [
        (HARD_RULES, "### 2.2", "### 2.3"),
        (VALIDITY_RULES, "### 2.3", "### 2.4"),
        (SOFT_RULES, "### 2.4", "### 2.5"),
    ];
    for (rules, from, to) in tables {
        let rows = rows_of(from, to);
        // Rule 0 stands below its table.
        for rule in rules.iter().filter(|rule| rule.number > 0) {
            let number = rule.number.to_string();
            let row = rows.iter().find(|cells| cells[0] == number).unwrap();
            let code = row.last().unwrap().replace('−', "-");
            assert_eq!(code, rule.code.number().to_string(), "{rule:?}");
        }
    }
}

/// Role × peer's role × connection × disk × peer's disk.
fn every_state() -> Vec<State> {
    let mut states = Vec::new();
    for role in [Role::Primary, Role::Secondary] {
        for &peer in Role::ALL {
            for &conn in ConnState::ALL {
                for &disk in DiskState::ALL {
                    for &pdsk in DiskState::ALL {
                        states.push(State {
                            role,
                            peer,
                            conn,
                            disk,
                            pdsk,
                            ..State::UNCONFIGURED
                        });
                    }
                }
            }
        }
    }
    assert_eq!(states.len(), 2 * 3 * 24 * 9 * 9);
    states
}

fn strict() -> Context {
    Context {
        net: Some(NetContext {
            two_primaries_allowed: false,
            verify_alg_present: true,
        }),
        ..Context::default()
    }
}

fn contexts() -> Vec<Context> {
    let attach = |disk, pdsk| Some(AttachResult { disk, pdsk });
    vec![
        Context {
            net: None,
            exposed_is_current: true,
            attach_result: attach(DiskState::UpToDate, DiskState::DUnknown),
            ..strict()
        },
        Context {
            fencing: Fencing::ResourceAndStonith,
            on_no_data: OnNoData::SuspendIo,
            ..strict()
        },
        Context {
            fencing: Fencing::ResourceOnly,
            device_open: true,
            other_volume_peer_primary: true,
            exposed_is_current: true,
            attach_result: attach(DiskState::Consistent, DiskState::Outdated),
            ..strict()
        },
        Context {
            state_sent: true,
            protocol: 87,
            ..strict()
        },
        Context {
            net: Some(NetContext {
                two_primaries_allowed: true,
                verify_alg_present: false,
            }),
            ..strict()
        },
    ]
}

/// States that can be stored: their own sanitised form.
fn stored(context: &Context) -> Vec<State> {
    let mut states = every_state();
    states.retain(|state| sanitise(state, *state, context) == *state);
    states
}

/// The engine's verdict is the second one's, and so is the question whether the peer has to agree.
fn check(old: &State, wanted: State, context: &Context, ranges: &Ranges) {
    let from = Numbers::of(old);
    for hardness in [Hardness::Soft, Hardness::Hard] {
        let verdict = evaluate(old, wanted, context, hardness);
        let to = Numbers::of(&wanted);
        let (result, state) = judged(&from, to, context, hardness, ranges);
        let got = (verdict.result.number(), Numbers::of(&verdict.state));
        assert_eq!(
            got,
            (result, state),
            "{hardness:?} {old:?}\n{wanted:?}\n{context:?}"
        );
        let asks = cluster_wide(old, &verdict.state).is_some();
        assert_eq!(asks, asks_peer(&from, &state), "{verdict:?}");
    }
}

#[test]
fn every_change_of_every_stored_state_is_judged_as_the_specification_says() {
    let (context, ranges) = (strict(), ranges());
    let (all, old) = (every_state(), stored(&strict()));
    assert!(old.len() > 900, "{}", old.len());
    for old in &old {
        for wanted in &all {
            check(old, *wanted, &context, &ranges);
        }
    }
}

fn fields_that_differ(a: &State, b: &State) -> usize {
    let differs = [
        a.role != b.role,
        a.peer != b.peer,
        a.conn != b.conn,
        a.disk != b.disk,
        a.pdsk != b.pdsk,
    ];
    differs.iter().filter(|differs| **differs).count()
}

#[test]
fn changes_of_up_to_three_fields_are_judged_so_under_all_options() {
    let ranges = ranges();
    let all = every_state();
    for context in contexts() {
        for old in stored(&context) {
            for wanted in all.iter().filter(|new| fields_that_differ(&old, new) <= 3) {
                check(&old, *wanted, &context, &ranges);
            }
        }
    }
}

#[test]
fn pauses_and_suspensions_are_judged_so_in_every_state() {
    let ranges = ranges();
    let flags = |state: State, number: u32| State {
        aftr_isp: number & 1 != 0,
        peer_isp: number & 2 != 0,
        user_isp: number & 4 != 0,
        susp_nod: number & 8 != 0,
        susp_fen: number & 16 != 0,
        ..state
    };
    for context in contexts().into_iter().take(2).chain([strict()]) {
        for base in every_state() {
            for before in 0..32 {
                let old = flags(base, before);
                if sanitise(&old, old, &context) != old {
                    continue;
                }
                for after in 0..32 {
                    check(&old, flags(old, after), &context, &ranges);
                }
                for conn in ConnState::ALL {
                    check(&old, State { conn: *conn, ..old }, &context, &ranges);
                }
            }
        }
    }
}

/// The same pair from the other node.
fn mirrored(state: &State) -> State {
    use ConnState as C;
    let conn = match state.conn {
        C::StartingSyncS => C::StartingSyncT,
        C::StartingSyncT => C::StartingSyncS,
        C::WFBitMapS => C::WFBitMapT,
        C::WFBitMapT | C::WFSyncUUID => C::WFBitMapS,
        C::SyncSource => C::SyncTarget,
        C::SyncTarget => C::SyncSource,
        C::VerifyS => C::VerifyT,
        C::VerifyT => C::VerifyS,
        C::PausedSyncS => C::PausedSyncT,
        C::PausedSyncT => C::PausedSyncS,
        C::Ahead => C::Behind,
        C::Behind => C::Ahead,
        conn => conn,
    };
    State {
        role: state.peer,
        peer: state.role,
        conn,
        disk: state.pdsk,
        pdsk: state.disk,
        ..*state
    }
}

/// Invariant 7 of section 12.1, with a peer that is leaving.
fn is_a_pair(here: ConnState, there: ConnState) -> bool {
    use ConnState as C;
    let pairs = [
        (C::Connected, C::Connected),
        (C::StartingSyncS, C::StartingSyncT),
        (C::WFBitMapS, C::WFBitMapT),
        (C::WFBitMapS, C::WFSyncUUID),
        (C::SyncSource, C::SyncTarget),
        (C::VerifyS, C::VerifyT),
        (C::PausedSyncS, C::PausedSyncT),
        (C::Ahead, C::Behind),
        (C::Disconnecting, C::TearDown),
    ];
    pairs.contains(&(here, there)) || pairs.contains(&(there, here))
}

#[test]
fn what_both_nodes_agree_to_leaves_a_pair_whatever_their_states_were() {
    use ConnState as C;
    let context = strict();
    let requests = [
        Request::role(Role::Primary),
        Request::conn(C::StartingSyncS),
        Request::conn(C::StartingSyncT),
        Request::conn(C::VerifyS),
        Request::conn(C::Disconnecting),
        Request::conn(C::Disconnecting).with_disk(DiskState::Outdated),
        Request::disk(DiskState::Failed),
    ];
    let mut agreed = 0;
    for here in stored(&context) {
        let there = mirrored(&here);
        let paired = here.conn >= C::Connected && here.peer != Role::Unknown;
        let stored = sanitise(&there, there, &context) == there;
        let primaries = here.role == Role::Primary && here.peer == Role::Primary;
        // pdsk is DUnknown without a connection only.
        if !paired || !stored || primaries {
            continue;
        }
        for request in &requests {
            let own = evaluate(&here, request.apply(here), &context, Hardness::Soft);
            if !own.is_allowed() || cluster_wide(&here, &own.state).is_none() {
                continue;
            }
            let (mask, value) = request.to_wire();
            let mut asked = Request::from_peer(mask, value).unwrap();
            if request.conn == Some(C::Disconnecting) {
                asked = asked.without_raising_disk(&there);
            }
            let theirs = evaluate(&there, asked.apply(there), &context, Hardness::Soft);
            if !theirs.is_allowed() {
                continue;
            }
            agreed += 1;
            let (a, b) = (own.state, theirs.state);
            let at = format!("{request:?}\n{here:?}\n{there:?}\n{a:?}\n{b:?}");
            assert!(is_a_pair(a.conn, b.conn), "{at}");
            assert!(a.role != Role::Primary || b.role != Role::Primary, "{at}");
            if a.conn.is_connected() {
                assert_eq!((a.role, b.role), (b.peer, a.peer), "{at}");
            }
            if a.conn == C::Connected {
                assert_eq!((a.disk, b.disk), (b.pdsk, a.pdsk), "{at}");
            }
        }
    }
    assert!(agreed > 100, "{agreed}");
}
