//! The state rules: every request of appendix B.2, table coverage, and whole small spaces in which nothing may panic and the
//! invariants of section 12.1 hold. The vectors are read from the specification itself.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;

use tandem_replicator::state::effects::*;
use tandem_replicator::state::rules::*;
use tandem_replicator::state::word::*;
use tandem_replicator::state::*;

const SPEC: &str = include_str!("../../docs/spec/state-machine.md");

fn net(two_primaries_allowed: bool) -> Option<NetContext> {
    Some(NetContext {
        two_primaries_allowed,
        verify_alg_present: true,
    })
}

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

fn context(request: &str) -> Context {
    let fencing = if request.contains("fencing=resource-only") {
        Fencing::ResourceOnly
    } else if request.contains("fencing=resource-and-stonith") {
        Fencing::ResourceAndStonith
    } else {
        Fencing::DontCare
    };
    let suspends = request.contains("on-no-data=suspend-io");
    Context {
        net: net(request.contains("two primaries allowed")),
        device_open: request.contains("device open"),
        state_sent: request.contains("handshake in progress"),
        on_no_data: if suspends {
            OnNoData::SuspendIo
        } else {
            OnNoData::IoError
        },
        fencing,
        ..Context::default()
    }
}

/// The words of the second column of B.2.
fn request(text: &str) -> (Request, Hardness) {
    use ConnState as C;
    use DiskState as D;
    if let Some(rest) = text.strip_prefix("handshake: ") {
        let words: Vec<&str> = rest
            .split([' ', ','])
            .filter(|word| !word.is_empty())
            .collect();
        let request = Request {
            conn: Some(named(C::ALL, words[0])),
            peer: Some(role_named(words[2])),
            pdsk: Some(named(D::ALL, words[3])),
            ..Request::default()
        };
        return (request, Hardness::Soft);
    }
    let (name, _) = text.split_once([' ', ',']).unwrap_or((text, ""));
    let mut request = match name {
        "promote" => Request::role(Role::Primary),
        "demote" => Request::role(Role::Secondary),
        "link" | "second" => return (Request::conn(C::NetworkFailure), Hardness::Hard),
        "disk" if text.contains("pass_on") => {
            return (Request::disk(D::Inconsistent), Hardness::Hard);
        }
        "disk" => return (Request::disk(D::Failed), Hardness::Hard),
        "disconnect" => Request::conn(C::Disconnecting),
        "connect" => Request::conn(C::Unconnected),
        "detach" => Request::disk(D::Failed),
        "outdate" => Request::disk(D::Outdated),
        // On a StandAlone node these change a disk state instead, which is named below.
        "invalidate" | "invalidate-remote" if text.contains('=') => Request::default(),
        "invalidate" => Request::conn(C::StartingSyncT),
        "invalidate-remote" => Request::conn(C::StartingSyncS),
        "verify" => Request::conn(C::VerifyS),
        "pause-sync" => Request {
            user_isp: Some(true),
            ..Request::default()
        },
        "fence" => Request::default(),
        other => panic!("unknown request {other}"),
    };
    for word in text.split([' ', ',', '(', ')']) {
        match word.split_once('=') {
            Some(("disk", name)) => request.disk = Some(named(D::ALL, name)),
            Some(("pdsk", name)) => request.pdsk = Some(named(D::ALL, name)),
            _ => {}
        }
    }
    (request, Hardness::Soft)
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
fn every_request_of_the_specification_gets_its_result_and_its_new_state() {
    let rows = rows_of("### B.2", "### B.3");
    assert_eq!(rows.len(), 83, "the heading and 82 vectors");
    for cells in &rows[1..] {
        let old = state(cells[0]);
        let (request, hardness) = request(cells[1]);
        let verdict = evaluate(&old, request.apply(old), &context(cells[1]), hardness);
        let expected: i32 = cells[2].split(' ').next().unwrap().parse().unwrap();
        assert_eq!(verdict.result.number(), expected, "{cells:?}\n{verdict:?}");
        if cells[3] == "—" {
            assert_eq!(verdict.state, old, "{cells:?}");
            continue;
        }
        let mut wanted = state(cells[3]);
        wanted.user_isp = cells[1] == "pause-sync";
        assert_eq!(verdict.state, wanted, "{cells:?}\n{verdict:?}");
        let asks = hardness == Hardness::Soft && cluster_wide(&old, &verdict.state).is_some();
        assert_eq!(asks, cells[2].ends_with("cw"), "{cells:?}");
    }
}

fn every_state() -> Vec<State> {
    let mut states = Vec::new();
    for &conn in ConnState::ALL {
        for &disk in DiskState::ALL {
            for &pdsk in DiskState::ALL {
                for role in [Role::Primary, Role::Secondary] {
                    for &peer in Role::ALL {
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
    states
}

fn every_request() -> Vec<Request> {
    use ConnState::{Connected, Disconnecting, TearDown, WFBitMapT};
    let mut requests: Vec<Request> = Role::ALL.iter().map(|role| Request::role(*role)).collect();
    requests.extend(ConnState::ALL.iter().map(|conn| Request::conn(*conn)));
    requests.extend(DiskState::ALL.iter().map(|disk| Request::disk(*disk)));
    requests.extend(DiskState::ALL.iter().map(|disk| Request::pdsk(*disk)));
    for conn in [Disconnecting, Connected, WFBitMapT, TearDown] {
        for disk in DiskState::ALL {
            requests.push(Request::conn(conn).with_pdsk(*disk));
            requests.push(Request::conn(conn).with_disk(*disk));
        }
    }
    requests.push(Request::role(Role::Primary).with_disk(DiskState::UpToDate));
    requests.push(Request {
        user_isp: Some(true),
        ..Request::default()
    });
    requests.push(Request {
        aftr_isp: Some(true),
        ..Request::default()
    });
    requests.push(Request {
        peer_isp: Some(true),
        ..Request::default()
    });
    requests.push(Request {
        peer: Some(Role::Primary),
        ..Request::default()
    });
    requests
}

fn contexts() -> Vec<Context> {
    let strict = Context {
        net: net(false),
        ..Context::default()
    };
    let attach = AttachResult {
        disk: DiskState::Consistent,
        pdsk: DiskState::Outdated,
    };
    let no_verify = NetContext {
        two_primaries_allowed: true,
        verify_alg_present: false,
    };
    vec![
        strict,
        Context {
            fencing: Fencing::ResourceAndStonith,
            on_no_data: OnNoData::SuspendIo,
            ..strict
        },
        Context {
            fencing: Fencing::ResourceOnly,
            device_open: true,
            other_volume_peer_primary: true,
            attach_result: Some(attach),
            exposed_is_current: true,
            ..strict
        },
        Context {
            protocol: 87,
            state_sent: true,
            ..strict
        },
        Context {
            net: Some(no_verify),
            ..strict
        },
        Context {
            net: None,
            ..strict
        },
    ]
}

#[test]
fn sanitising_twice_changes_nothing() {
    for context in contexts() {
        for base in every_state() {
            for pauses in 0..8_u8 {
                let new = State {
                    aftr_isp: pauses & 1 != 0,
                    peer_isp: pauses & 2 != 0,
                    user_isp: pauses & 4 != 0,
                    ..base
                };
                let old = State::UNCONFIGURED;
                let once = sanitise(&old, new, &context);
                assert_eq!(sanitise(&old, once, &context), once, "{new:?} {context:?}");
                assert_eq!(sanitise(&once, once, &context), once, "{new:?} {context:?}");
            }
        }
    }
}

#[test]
fn the_whole_small_space_is_judged_without_panic_and_keeps_the_invariants() {
    let requests = every_request();
    let effect_context = EffectContext::default();
    for context in contexts() {
        for old in every_state() {
            // Only states that can be stored.
            if sanitise(&old, old, &context) != old {
                continue;
            }
            for request in &requests {
                for hardness in [Hardness::Soft, Hardness::Hard] {
                    let verdict = evaluate(&old, request.apply(old), &context, hardness);
                    check_verdict(&verdict, hardness, &context);
                    check_effects(&verdict, &derive(&old, &verdict.state, &effect_context));
                }
            }
        }
    }
}

fn check_verdict(verdict: &Verdict, hardness: Hardness, context: &Context) {
    use ConnState as C;
    use DiskState as D;
    let (old, new) = (verdict.old, verdict.state);
    assert_eq!(verdict.rule.is_some(), !verdict.is_allowed(), "{verdict:?}");
    if !verdict.is_allowed() {
        assert_eq!(old, new);
        return;
    }
    assert_eq!(new, verdict.wanted);
    // Invariant 3.
    if new.conn < C::Connected {
        assert!(new.peer == Role::Unknown && !new.peer_isp);
        assert!(
            matches!(new.pdsk, D::Inconsistent | D::Outdated | D::DUnknown),
            "{verdict:?}"
        );
    }
    // Invariant 4.
    match new.conn {
        C::SyncSource | C::PausedSyncS | C::WFBitMapS | C::Ahead => {
            assert_eq!(new.disk, D::UpToDate);
        }
        C::SyncTarget => assert_eq!(new.disk, D::Inconsistent),
        C::WFBitMapT | C::WFSyncUUID | C::PausedSyncT | C::Behind => {
            assert!(matches!(new.disk, D::Inconsistent | D::Outdated));
        }
        C::VerifyS | C::VerifyT => assert!(new.is_up_to_date_pair()),
        _ => {}
    }
    // Invariants 5 and 6.
    let forbidden = context.net.is_some_and(|net| !net.two_primaries_allowed);
    let two = |state: &State| state.role == Role::Primary && state.peer == Role::Primary;
    if hardness == Hardness::Soft && forbidden && two(&new) {
        assert!(two(&old), "{verdict:?}");
    }
    if old.conn == C::StandAlone && new.conn != old.conn {
        assert_eq!(new.conn, C::Unconnected);
    }
}

fn check_effects(verdict: &Verdict, effects: &Effects) {
    if !verdict.is_change() {
        assert!(effects.immediate.is_empty() && effects.deferred.is_empty());
        return;
    }
    let has = |effect| effects.deferred.contains(&effect);
    assert_eq!(effects.deferred.first(), Some(&Deferred::Notify));
    assert_eq!(effects.deferred.last(), Some(&Deferred::WriteSuperblock));
    assert!(!(has(Deferred::NewCurrentUuid) && has(Deferred::NewCurrentPending)));
    // Section 12.2: the sync UUID, a new generation, and the handler of a failed disk come before their P_STATE.
    let first = |effect| effects.deferred.iter().position(|one| *one == effect);
    let state = effects
        .deferred
        .iter()
        .rposition(|one| *one == Deferred::SendState);
    for before in [
        Deferred::SendSyncUuid,
        Deferred::NewCurrentUuid,
        Deferred::DiskFailed,
    ] {
        if let (Some(before), Some(state)) = (first(before), state) {
            assert!(before < state, "{verdict:?} {effects:?}");
        }
    }
}

/// The rules that decide somewhere in the space of raw (not sanitised) changes: each has its purpose.
#[test]
fn every_rule_of_every_table_decides_somewhere() {
    let mut decided: BTreeSet<(Table, u8)> = BTreeSet::new();
    let requests = every_request();
    for context in contexts() {
        for old in every_state() {
            for request in &requests {
                let change = Change {
                    old,
                    new: request.apply(old),
                };
                let rules = [
                    hard_refusal(&change, &context),
                    invalidity(&change, &context),
                    soft_refusal(&change, &context),
                ];
                decided.extend(rules.iter().flatten().map(|rule| (rule.table, rule.number)));
            }
        }
    }
    for rule in HARD_RULES.iter().chain(VALIDITY_RULES).chain(SOFT_RULES) {
        assert!(
            decided.contains(&(rule.table, rule.number)),
            "{rule:?} never decides"
        );
    }
}

#[test]
fn tables_are_numbered_as_in_the_specification() {
    let numbers = |table: &[Rule]| table.iter().map(|rule| rule.number).collect::<Vec<_>>();
    assert_eq!(numbers(HARD_RULES), [0, 2, 3, 4, 5, 6]);
    assert_eq!(numbers(VALIDITY_RULES), (1..=15).collect::<Vec<_>>());
    assert_eq!(numbers(SOFT_RULES), (1..=13).collect::<Vec<_>>());
    let rules = HARD_RULES.iter().chain(VALIDITY_RULES).chain(SOFT_RULES);
    let names: BTreeSet<&str> = rules.map(|rule| rule.name).collect();
    assert_eq!(names.len(), 6 + 15 + 13, "names are distinct");
}

#[test]
fn a_connection_wide_request_is_refused_by_the_first_volume_for_all() {
    let good = state("Connected Pri/Sec UpToDate/UpToDate");
    let diskless = state("Connected Pri/Sec Diskless/UpToDate");
    let x = Context {
        net: net(false),
        ..Context::default()
    };
    let disconnect = Request::conn(ConnState::Disconnecting);
    let judge =
        |volumes: &[(State, Context)]| evaluate_connection(volumes, &disconnect, Hardness::Soft);
    let (volume, verdict) = judge(&[(good, x), (diskless, x)]).unwrap_err();
    assert_eq!((volume, verdict.result), (1, StateResult::NoUpToDateDisk));
    let made = judge(&[(good, x), (good, x)]).unwrap();
    assert_eq!(made.len(), 2);
    assert!(
        made.iter()
            .all(|verdict| verdict.state.conn == ConnState::Disconnecting)
    );
}

#[test]
fn an_attach_whose_handshake_is_lost_falls_back_to_what_it_had_computed() {
    let old = state("Connected Sec/Sec Negotiating/UpToDate");
    let lost = Request::conn(ConnState::NetworkFailure).apply(old);
    let result = AttachResult {
        disk: DiskState::UpToDate,
        pdsk: DiskState::Outdated,
    };
    let known = Context {
        exposed_is_current: true,
        attach_result: Some(result),
        ..Context::default()
    };
    let state = evaluate(&old, lost, &known, Hardness::Hard).state;
    assert_eq!(
        (state.disk, state.pdsk),
        (DiskState::UpToDate, DiskState::Outdated)
    );
    let other = Context {
        exposed_is_current: false,
        ..known
    };
    let state = evaluate(&old, lost, &other, Hardness::Hard).state;
    assert_eq!(
        (state.disk, state.pdsk),
        (DiskState::Diskless, DiskState::DUnknown)
    );
}

fn effects_of(old: &str, new: &str, context: &EffectContext) -> Effects {
    derive(&state(old), &state(new), context)
}

#[test]
fn a_lost_peer_starts_a_generation_on_a_primary_only_and_only_once() {
    use Deferred::{NewCurrentPending, NewCurrentUuid};
    let alone = EffectContext::default();
    let split = EffectContext {
        bitmap_uuid_is_zero: false,
        ..alone
    };
    let up = "Connected Pri/Sec UpToDate/UpToDate";
    let lost = "NetworkFailure Pri/Unk UpToDate/DUnknown";
    let frozen = "NetworkFailure Pri/Unk UpToDate/DUnknown +susp_fen";
    let peer_up = "Connected Sec/Pri UpToDate/UpToDate";
    let rows = [
        (up, lost, &alone, Some(NewCurrentUuid)),
        (up, lost, &split, None),
        (up, frozen, &alone, Some(NewCurrentPending)),
        (
            peer_up,
            "NetworkFailure Sec/Unk UpToDate/DUnknown",
            &alone,
            None,
        ),
        // A resync that is cut is no lost contact: the peer's disk stays Inconsistent.
        (
            "SyncSource Pri/Sec UpToDate/Inconsistent",
            "NetworkFailure Pri/Unk UpToDate/Inconsistent",
            &split,
            None,
        ),
        // It was cut before it had a bitmap UUID.
        (
            "WFBitMapS Pri/Sec UpToDate/Inconsistent",
            "NetworkFailure Pri/Unk UpToDate/Inconsistent",
            &alone,
            Some(NewCurrentUuid),
        ),
        // A disk that comes back while the peer has none.
        (
            "Connected Pri/Sec Negotiating/Diskless",
            "Connected Pri/Sec UpToDate/Diskless",
            &alone,
            Some(NewCurrentUuid),
        ),
        // The only disk that is left to a Primary.
        (
            peer_up,
            "Connected Sec/Pri UpToDate/Failed",
            &alone,
            Some(NewCurrentUuid),
        ),
        // N2: a diskless peer is promoted.
        (
            "Connected Sec/Sec UpToDate/Diskless",
            "Connected Sec/Pri UpToDate/Diskless",
            &alone,
            Some(NewCurrentUuid),
        ),
        // Fenced afterwards: DUnknown to Outdated.
        (
            lost,
            "WFConnection Pri/Unk UpToDate/Outdated",
            &alone,
            Some(NewCurrentUuid),
        ),
    ];
    for (old, new, context, expected) in rows {
        let effects = effects_of(old, new, context);
        let found: Vec<Deferred> = effects
            .deferred
            .into_iter()
            .filter(|effect| matches!(effect, NewCurrentUuid | NewCurrentPending))
            .collect();
        assert_eq!(
            found,
            expected.into_iter().collect::<Vec<_>>(),
            "{old} -> {new}"
        );
    }
}

#[test]
fn a_new_connection_is_announced_and_a_source_sends_its_bitmap() {
    use Deferred::{Notify, SendBitmap, SendState, SendSyncUuid, WriteSuperblock};
    let effects = effects_of(
        "WFReportParams Pri/Unk UpToDate/DUnknown",
        "WFBitMapS Pri/Sec UpToDate/Consistent",
        &EffectContext::default(),
    );
    assert_eq!(
        effects.deferred,
        [Notify, SendBitmap, SendState, WriteSuperblock]
    );
    assert_eq!(
        effects.immediate,
        [
            Immediate::HandshakeDone,
            Immediate::UpdateDiskFlags,
            Immediate::Connected
        ]
    );
    let effects = effects_of(
        "WFBitMapS Pri/Sec UpToDate/Consistent",
        "SyncSource Pri/Sec UpToDate/Inconsistent",
        &EffectContext::default(),
    );
    assert_eq!(effects.deferred, [Notify, SendSyncUuid, WriteSuperblock]);
    assert_eq!(
        effects.immediate,
        [Immediate::CloseEpoch, Immediate::UpdateDiskFlags]
    );
}

#[test]
fn the_end_of_a_resync_is_told_by_the_target() {
    use Deferred as D;
    let effects = effects_of(
        "SyncTarget Sec/Pri Inconsistent/UpToDate",
        "Connected Sec/Pri UpToDate/UpToDate",
        &EffectContext::default(),
    );
    assert_eq!(
        effects.deferred,
        [
            D::Notify,
            D::ClearCrashedPrimary,
            D::RecheckDependents,
            D::SendState,
            D::WriteBitmap,
            D::WriteSuperblock
        ]
    );
    assert!(effects.immediate.contains(&Immediate::ExposeCurrent));
}

#[test]
fn frozen_io_goes_on_when_its_cause_is_gone() {
    let context = EffectContext::default();
    let half = EffectContext {
        others_connected: false,
        ..context
    };
    let away = "WFReportParams Pri/Unk Diskless/DUnknown +susp_nod";
    let back = "Connected Pri/Sec Diskless/UpToDate +susp_nod";
    let resend = Deferred::ResendAndClearSuspNod;
    assert!(effects_of(away, back, &context).deferred.contains(&resend));
    assert!(!effects_of(away, back, &half).deferred.contains(&resend));
    let disk = effects_of(
        "WFConnection Pri/Unk Attaching/DUnknown +susp_nod",
        "WFConnection Pri/Unk UpToDate/DUnknown +susp_nod",
        &context,
    );
    assert!(disk.deferred.contains(&Deferred::RestartAndClearSuspNod));
    let fenced = |pdsk| {
        let conn = ConnState::WFConnection;
        derive_connection(conn, conn, true, Some(pdsk))
    };
    assert_eq!(
        fenced(DiskState::Outdated),
        [ConnectionEffect::ResolveFencing]
    );
    assert!(fenced(DiskState::DUnknown).is_empty());
    let (alone, ending) = (ConnState::StandAlone, ConnState::Disconnecting);
    assert_eq!(
        derive_connection(alone, ConnState::Unconnected, false, None),
        [ConnectionEffect::StartReceiver]
    );
    assert_eq!(
        derive_connection(ending, alone, false, None),
        [ConnectionEffect::ForgetNetOptions]
    );
}

#[test]
fn writes_take_the_route_of_their_state() {
    let rows = [
        ("Connected Pri/Sec UpToDate/UpToDate", WriteRoute::Replicate),
        (
            "Connected Pri/Sec UpToDate/Inconsistent",
            WriteRoute::LocalOnly,
        ),
        (
            "StartingSyncS Pri/Sec UpToDate/Consistent",
            WriteRoute::Replicate,
        ),
        (
            "WFBitMapS Pri/Sec UpToDate/Consistent",
            WriteRoute::OutOfSync,
        ),
        (
            "SyncSource Pri/Sec UpToDate/Inconsistent",
            WriteRoute::Replicate,
        ),
        (
            "PausedSyncS Pri/Sec UpToDate/Inconsistent",
            WriteRoute::Replicate,
        ),
        (
            "SyncTarget Pri/Sec Inconsistent/UpToDate",
            WriteRoute::Replicate,
        ),
        ("Ahead Pri/Sec UpToDate/Consistent", WriteRoute::OutOfSync),
        (
            "WFConnection Pri/Unk UpToDate/DUnknown",
            WriteRoute::LocalOnly,
        ),
    ];
    for (text, route) in rows {
        assert_eq!(write_route(&state(text)), route, "{text}");
    }
}

#[test]
fn application_io_waits_only_where_the_specification_says_so() {
    let waits = |text: &str, protocol| application_io_waits(&state(text), protocol);
    assert!(waits(
        "NetworkFailure Pri/Unk UpToDate/DUnknown +susp_fen",
        101
    ));
    assert!(waits("WFBitMapT Pri/Sec Outdated/UpToDate", 101));
    assert!(waits("WFSyncUUID Pri/Sec Outdated/UpToDate", 101));
    assert!(waits("WFBitMapS Pri/Sec UpToDate/Consistent", 95));
    assert!(!waits("WFBitMapS Pri/Sec UpToDate/Consistent", 96));
    assert!(waits("Connected Pri/Sec Negotiating/UpToDate", 101));
    assert!(!waits("NetworkFailure Pri/Unk UpToDate/DUnknown", 101));
    assert!(!waits("StartingSyncT Pri/Sec Outdated/UpToDate", 101));
}

#[test]
fn an_attach_finds_the_disk_that_the_flags_on_disk_describe() {
    let primary = state("Connected Pri/Sec UpToDate/UpToDate");
    let flags = on_disk_flags(
        &primary,
        CrashedPrimary::No,
        flag::AL_CLEAN | flag::AL_DISABLED,
    );
    let set = flag::CONSISTENT | flag::PRIMARY | flag::CONNECTED | flag::WAS_UP_TO_DATE;
    assert_eq!(flags, set | flag::AL_DISABLED);
    let only_disk = state("Connected Sec/Pri UpToDate/Diskless");
    let flags = on_disk_flags(&only_disk, CrashedPrimary::Yes, flag::FULL_SYNC);
    assert_eq!(flags, set | flag::CRASHED_PRIMARY | flag::FULL_SYNC);
    use DiskState as D;
    for (disk, pdsk, fencing, found) in [
        (D::UpToDate, D::DUnknown, Fencing::DontCare, D::UpToDate),
        (
            D::UpToDate,
            D::DUnknown,
            Fencing::ResourceOnly,
            D::Consistent,
        ),
        (
            D::Consistent,
            D::DUnknown,
            Fencing::ResourceAndStonith,
            D::Consistent,
        ),
        (
            D::UpToDate,
            D::Outdated,
            Fencing::ResourceAndStonith,
            D::UpToDate,
        ),
        (D::Outdated, D::DUnknown, Fencing::DontCare, D::Outdated),
        (
            D::Inconsistent,
            D::Inconsistent,
            Fencing::DontCare,
            D::Inconsistent,
        ),
    ] {
        let stored = State {
            disk,
            pdsk,
            ..State::UNCONFIGURED
        };
        let attached = attach_states(on_disk_flags(&stored, CrashedPrimary::No, 0), fencing);
        let peer = if pdsk == D::DUnknown {
            D::DUnknown
        } else {
            D::Outdated
        };
        assert_eq!(
            attached,
            AttachResult {
                disk: found,
                pdsk: peer
            }
        );
    }
}
