//! The state word: the wire's numbers, requests from both sides, the kernel's texts, and the results of section 2.7, which are
//! read from the specification itself.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use proptest::prelude::*;
use tandem_replicator::state::word::*;
use tandem_replicator::state::*;

const SPEC: &str = include_str!("../../docs/spec/state-machine.md");

fn named<T: Copy + std::fmt::Display>(all: &[T], name: &str) -> T {
    *all.iter()
        .find(|value| value.to_string() == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

fn role_named(text: &str) -> Role {
    match text {
        "Pri" | "Primary" => Role::Primary,
        "Sec" | "Secondary" => Role::Secondary,
        "Unk" => Role::Unknown,
        other => panic!("no role {other}"),
    }
}

/// `Connected Pri/Sec UpToDate/UpToDate +susp_fen`.
fn state(text: &str) -> State {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (role, peer) = words[1].split_once('/').unwrap();
    let (disk, pdsk) = words[2].split_once('/').unwrap();
    State {
        role: role_named(role),
        peer: role_named(peer),
        conn: named(ConnState::ALL, words[0]),
        disk: named(DiskState::ALL, disk),
        pdsk: named(DiskState::ALL, pdsk),
        susp_fen: text.contains("+susp_fen"),
        susp_nod: text.contains("+susp_nod"),
        ..State::UNCONFIGURED
    }
}

fn rows_of(from: &str, to: &str) -> Vec<Vec<&'static str>> {
    let section = SPEC.split(from).nth(1).unwrap().split(to).next().unwrap();
    section
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn requests_have_the_numbers_of_the_wire_document() {
    let primary = Request::role(Role::Primary);
    let disconnect = Request::conn(ConnState::Disconnecting);
    for (request, wire) in [
        (primary, (0x3, 0x1)),
        (primary.with_disk(DiskState::UpToDate), (0x1e03, 0x1001)),
        (Request::disk(DiskState::Failed), (0x1e00, 0x400)),
        (Request::conn(ConnState::StartingSyncT), (0x1f0, 0xc0)),
        (Request::conn(ConnState::StartingSyncS), (0x1f0, 0xb0)),
        (Request::conn(ConnState::VerifyS), (0x1f0, 0x120)),
        (disconnect, (0x1f0, 0x10)),
        (
            disconnect.with_pdsk(DiskState::Outdated),
            (0x1_e1f0, 0xa010),
        ),
        (disconnect.with_disk(DiskState::Outdated), (0x1ff0, 0xa10)),
    ] {
        assert_eq!(request.to_wire(), wire);
        assert_eq!(Request::from_wire(wire.0, wire.1), Ok(request));
    }
}

#[test]
fn a_request_of_the_peer_is_seen_from_the_other_side() {
    let torn = Request::conn(ConnState::TearDown);
    let seen = Request::from_peer(0x1_e1f0, 0xa010).unwrap();
    assert_eq!(seen, torn.with_disk(DiskState::Outdated));
    let inconsistent = state("Connected Sec/Pri Inconsistent/UpToDate");
    assert_eq!(seen.without_raising_disk(&inconsistent), torn);
    assert_eq!(
        seen.without_raising_disk(&state("Connected Sec/Pri UpToDate/UpToDate")),
        seen
    );
    let forced = Request {
        peer: Some(Role::Primary),
        ..Request::pdsk(DiskState::UpToDate)
    };
    assert_eq!(Request::from_peer(0x1e03, 0x1001), Ok(forced));
    let nonsense = WordError::RequestedConn(ConnState::StandAlone);
    assert_eq!(Request::from_peer(0x1f0, 0), Err(nonsense));
    assert_eq!(Request::from_peer(0x1f0, 31 << 4), Err(WordError::Conn(31)));
    assert_eq!(
        Request::from_peer(0x010, 0),
        Err(WordError::PartialMask(0x010))
    );
    assert_eq!(
        Request::from_peer(1 << 17, 0),
        Err(WordError::RequestedFlags(1 << 17))
    );
    assert_eq!(
        Request::from_peer(1 << 23, 0),
        Err(WordError::Reserved(1 << 23))
    );
}

proptest! {
    #[test]
    fn any_word_is_refused_or_packs_back_as_it_was(word: u32, mask: u32) {
        for word in [word, word & 0x7f_ffff, mask] {
            if let Ok(state) = State::unpack(word) {
                prop_assert_eq!(state.pack(), word);
                prop_assert_eq!(state.pack_volume() & (1 << 17 | 3 << 21), 0);
            }
        }
        for mask in [mask, mask & 0x1_ffff, 0x1_ffff] {
            if let Ok(request) = Request::from_wire(mask, word) {
                prop_assert_eq!(request.to_wire(), (mask, word & mask));
            }
            let _ = Request::from_peer(mask, word);
        }
    }

    #[test]
    fn every_state_survives_the_wire(
        conn in 0_usize..24, disk in 0_usize..9, pdsk in 0_usize..9, bits: [bool; 6],
    ) {
        let state = State {
            role: Role::Primary,
            peer: Role::Secondary,
            conn: ConnState::ALL[conn],
            disk: DiskState::ALL[disk],
            pdsk: DiskState::ALL[pdsk],
            susp: bits[0],
            susp_nod: bits[1],
            susp_fen: bits[2],
            aftr_isp: bits[3],
            peer_isp: bits[4],
            user_isp: bits[5],
        };
        prop_assert_eq!(State::unpack(state.pack()), Ok(state));
    }
}

#[test]
fn text_is_that_of_the_kernel() {
    let old = state("WFReportParams Sec/Unk UpToDate/DUnknown");
    let new = state("WFBitMapT Sec/Pri Outdated/UpToDate");
    assert_eq!(
        diff(&old, &new),
        "peer( Unknown -> Primary ) conn( WFReportParams -> WFBitMapT ) \
         disk( UpToDate -> Outdated ) pdsk( DUnknown -> UpToDate )"
    );
    assert_eq!(diff(&old, &old), "");
    let frozen = State {
        susp_fen: true,
        ..old
    };
    assert_eq!(diff(&old, &frozen), "susp( 0 -> 1 )");
    assert_eq!(old.proc_flags(ActivityLogUpdates::Running), "r-----");
    assert_eq!(old.proc_flags(ActivityLogUpdates::Suspended), "r----s");
    let paused = State {
        user_isp: true,
        peer_isp: true,
        ..frozen
    };
    assert_eq!(paused.proc_flags(ActivityLogUpdates::Running), "s-pu--");
    let dump = "{ cs:WFReportParams ro:Secondary/Unknown ds:UpToDate/DUnknown r----- }";
    assert_eq!(old.dump(), dump);
    assert_eq!(frozen.dump(), dump.replace("r-----", "s---F-"));
}

#[test]
fn results_have_the_numbers_names_texts_and_exit_codes_of_the_specification() {
    let mut results = 0;
    for cells in rows_of("### 2.7", "### 2.8") {
        if cells.len() != 5 || !cells[1].starts_with("SS_") {
            continue;
        }
        let number: i32 = cells[0].replace('−', "-").parse().unwrap();
        let result = StateResult::from_number(number).unwrap();
        assert_eq!(result.name(), cells[1]);
        assert_eq!(result.message(), cells[2].trim_start_matches("(none)"));
        assert_eq!(result.exit_code().to_string(), cells[3]);
        assert_eq!(result.is_success(), number > 0);
        results += 1;
    }
    assert_eq!(results, StateResult::ALL.len());
    assert_eq!(StateResult::from_number(-3), None);
    assert_eq!(
        StateResult::NoUpToDateDisk.to_string(),
        "State change failed: (-2) Need access to UpToDate data"
    );
}

#[test]
fn failures_have_the_texts_of_the_specification() {
    let mut failures = 0;
    for cells in rows_of("### 2.7", "### 2.8") {
        let (3, Ok(number)) = (cells.len(), cells[0].parse::<i32>()) else {
            continue;
        };
        let Some(failure) = Failure::from_number(number) else {
            continue;
        };
        let text = failure.message().replace('\n', " ");
        let expected = cells[1].split(" (line break").next().unwrap();
        assert_eq!(text, expected);
        failures += 1;
    }
    assert!(failures >= 15, "{failures}");
    assert_eq!(
        Failure::DiskConfigured.to_string(),
        "Failure: (124) Device is attached to a disk (use detach first)"
    );
    assert!(
        Failure::ALL
            .iter()
            .all(|failure| failure.number() > Failure::NO_ERROR)
    );
}
