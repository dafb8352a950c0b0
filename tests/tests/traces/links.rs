//! First syncs, lost links, and packets lost with them.

use tandem_replicator::state::word::DiskState;

use super::*;

#[test]
fn t1_first_initial_sync() {
    let mut lab = Lab::blank();
    lab.follow("T1");
    lab.boot(A);
    lab.boot(B);
    let fresh = "StandAlone Sec/Unk Inconsistent/DUnknown [4, 0, 0, 0] oos=8";
    lab.row("attach", fresh, fresh);
    lab.connect(A, false);
    lab.connect(B, false);
    let fresh = "Connected Sec/Sec Inconsistent/Inconsistent [4, 0, 0, 0] oos=8";
    lab.row("connect", fresh, fresh);
    assert_eq!(lab.command(A, primary(Force::No)), -2);
    lab.row("refused", fresh, fresh);
    lab.world.promote(A, Force::Yes);
    lab.row(
        "primary --force",
        "WFBitMapS Pri/Sec UpToDate/Inconsistent [A1*, 4, 0, 0] oos=8",
        "WFBitMapT Sec/Pri Inconsistent/UpToDate [4, 0, 0, 0] oos=8",
    );
    lab.row(
        "resync runs",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, S1, 4, 0] oos=8",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [S1, 0, 0, 0] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, S1, 4] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, S1, 4] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t2_skip_the_initial_sync() {
    let mut lab = Lab::blank();
    lab.follow("T2");
    lab.world.up(A);
    lab.world.up(B);
    let fresh = "Connected Sec/Sec Inconsistent/Inconsistent [4, 0, 0, 0] oos=8";
    lab.row("connect", fresh, fresh);
    lab.wait("nothing is under way", |world| world.is_idle());
    let command = Command::NewCurrentUuid {
        volume: VOLUME,
        clear_bitmap: true,
    };
    lab.ok(A, command);
    let done = "Connected Sec/Sec UpToDate/UpToDate [A1, 0, 0, 0] oos=0";
    lab.row("new-current-uuid", done, done);
    lab.handlers(&[], &[]);
    lab.wait("both are equal", World::compare_if_idle);
}

#[test]
fn t3_secondary_shut_down_for_an_hour() {
    let mut lab = Lab::start();
    lab.follow("T3");
    lab.ok(B, Command::Down { force: Force::No });
    lab.write(A, &[1, 3, 5]);
    lab.row(
        "B is gone, A writes",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=3",
        "StandAlone Sec/Unk Diskless/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.world.stop(B, false);
    lab.boot(B);
    lab.row(
        "B attached",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=3",
        "StandAlone Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.connect(B, false);
    lab.row(
        "connect",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos=3",
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=0",
    );
    from_a_with_c(&mut lab, 3);
}

#[test]
fn t4_network_cut_with_writes_on_the_primary() {
    let mut lab = Lab::start();
    lab.follow("T4");
    cut_with_writes(&mut lab, &[2, 6]);
    reconnect(&mut lab, 2);
    from_a_with_c(&mut lab, 2);
}

#[test]
fn t5_link_flap_without_any_write() {
    let mut lab = Lab::start();
    lab.follow("T5");
    cut_with_writes(&mut lab, &[]);
    reconnect(&mut lab, 0);
    from_a_with_c(&mut lab, 0);
}

#[test]
fn t6_link_flap_of_two_secondaries() {
    let mut lab = Lab::pair();
    lab.follow("T6");
    lab.cut();
    let apart = "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0";
    lab.row("link lost", apart, apart);
    lab.plug();
    let joined = "Connected Sec/Sec UpToDate/UpToDate [C, 0, H1, H2] oos=0";
    lab.row("reconnect", joined, joined);
    lab.handlers(&[], &[]);
}

#[test]
fn t20_link_lost_while_bitmaps_are_exchanged() {
    let mut lab = Lab::start();
    cut_with_writes(&mut lab, &[2, 6]);
    lab.follow("T20");
    reconnect(&mut lab, 2);
    lab.cut();
    lab.row(
        "link lost before P_SYNC_UUID",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=2",
        "WFConnection Sec/Unk Outdated/DUnknown [C, 0, H1, H2] oos=0",
    );
    assert_eq!(lab.command(B, primary(Force::No)), -2);
    reconnect(&mut lab, 2);
    lab.follow("T4");
    from_a_with_c(&mut lab, 2);
}

/// From now on nothing of A arrives at B, which waits for the sync UUID, until the link is given up.
fn lose_sync_uuid(lab: &mut Lab) {
    lab.wait("B waits for the sync UUID", |world| {
        world.nodes[B].state().unwrap().conn == ConnState::WFSyncUUID
    });
    lab.block([true, false]);
}

#[test]
fn t21_sync_uuid_is_lost() {
    let mut lab = Lab::start();
    cut_with_writes(&mut lab, &[2, 6]);
    lab.follow("T21");
    lab.plug();
    lose_sync_uuid(&mut lab);
    lab.row(
        "A became SyncSource",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=2",
        "WFSyncUUID Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=2",
    );
    lab.handlers(&FROM_A[..1], &[]);
    lab.cut();
    lab.row(
        "link lost",
        "WFConnection Pri/Unk UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=2",
        "WFConnection Sec/Unk Outdated/DUnknown [C, 0, H1, H2] oos=2",
    );
    lab.plug();
    lab.row(
        "reconnect: both sides undo",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H1] oos=2",
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=2",
    );
    from_a_with_c(&mut lab, 2);
}

#[test]
fn t22_sync_uuid_of_a_crash_recovery_is_lost() {
    let mut lab = crashed_primary("T7");
    lab.boot(A);
    lab.follow("T22");
    lab.connect(A, false);
    lose_sync_uuid(&mut lab);
    lab.row(
        "A became SyncSource",
        "SyncSource Sec/Sec UpToDate/Inconsistent [C, S1, H1, H2] oos=8",
        "WFSyncUUID Sec/Sec Outdated/UpToDate [C, 0, H1, H2] oos=8",
    );
    lab.cut();
    lab.row(
        "link lost",
        "WFConnection Sec/Unk UpToDate/Inconsistent [C, S1, H1, H2] oos=8",
        "WFConnection Sec/Unk Outdated/DUnknown [C, 0, H1, H2] oos=8",
    );
    lab.plug();
    lab.row(
        "reconnect",
        "WFBitMapS Sec/Sec UpToDate/Consistent [C, S1, H1, H2] oos=8",
        "WFBitMapT Sec/Sec Outdated/UpToDate [C, 0, H1, H2] oos=8",
    );
    lab.row(
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [C, S1+δ, S1, H1] oos=8",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [S1+δ, 0, H1, H2] oos=8",
    );
    let done = "Connected Sec/Sec UpToDate/UpToDate [C, 0, S1+δ, S1] oos=0";
    lab.finished(done, done);
}

/// Rows 1 and 2 of T23 and what T43 begins with: B has finished the resync, and A never hears of it.
/// The target has finished, and nothing of it reaches the source.
fn end_of_resync_is_lost() -> Lab {
    let mut lab = Lab::start();
    cut_with_writes(&mut lab, &[2, 6]);
    lab.plug();
    lab.follow("T23");
    // Bits of A go with the acknowledgements of B, of which some may be on their way.
    lab.row(
        "B finished",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=any",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, C+δ, C*] oos=0",
    );
    lab.block([false, true]);
    lab.handlers(
        &FROM_A[..1],
        &["before-resync-target", "after-resync-target"],
    );
    lab
}

#[test]
fn t23_source_missed_the_end_of_the_resync() {
    let as_seen = "both Secondary, as it was seen: a Primary starts a generation";
    let mut lab = end_of_resync_is_lost();
    lab.ok(A, SECONDARY);
    lab.cut();
    lab.row_but(
        as_seen,
        "link lost",
        "WFConnection Sec/Unk UpToDate/Inconsistent [A1, C+δ*, C*, H1] oos=any",
        "WFConnection Sec/Unk UpToDate/DUnknown [A1, 0, C+δ, C*] oos=0",
    );
    lab.plug();
    lab.row_but(
        as_seen,
        "reconnect: history corrected",
        "WFBitMapS Sec/Sec UpToDate/Consistent [A1, 0, C+δ*, C*] oos=any",
        "WFBitMapT Sec/Sec Outdated/UpToDate [A1, 0, C+δ, C*] oos=0",
    );
    lab.row_but(
        as_seen,
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [A1, S1, C+δ*, C*] oos=any",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [S1, 0, C+δ, C*] oos=any",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.row_but(
        as_seen,
        "resync finished",
        "Connected Sec/Sec UpToDate/UpToDate [A1, 0, S1, C+δ*] oos=0",
        "Connected Sec/Sec UpToDate/UpToDate [A1, 0, S1, C+δ*] oos=0",
    );
    lab.wait("both are equal", World::compare_if_idle);
    lab.handlers(&[], &["after-resync-target"]);
}

/// The hazard of T43: nobody is told that A's last write is given up, the person who demotes A included.
#[test]
fn t43_source_missed_the_end_of_the_resync_and_the_target_is_promoted() {
    let stricter = "A starts a generation beside the one that B may have";
    let mut lab = end_of_resync_is_lost();
    lab.cut();
    lab.write(A, &[1]);
    let a = "[A2*, C+δ*, A1*, C*] oos=any";
    lab.row_but(
        stricter,
        "A writes",
        &format!("WFConnection Pri/Unk UpToDate/Inconsistent {a}"),
        "WFConnection Sec/Unk UpToDate/DUnknown [A1, 0, C+δ, C*] oos=0",
    );
    lab.ok(B, primary(Force::No));
    lab.write(B, &[4]);
    let b = "[B1*, A1, C+δ, C*] oos=1";
    lab.row_but(
        stricter,
        "B is promoted and writes",
        &format!("WFConnection Pri/Unk UpToDate/Inconsistent {a}"),
        &format!("WFConnection Pri/Unk UpToDate/DUnknown {b}"),
    );
    lab.plug();
    lab.split();
    lab.row_but(
        stricter,
        "both see the split brain",
        &format!("StandAlone Pri/Unk UpToDate/Inconsistent {a}"),
        &format!("StandAlone Pri/Unk UpToDate/DUnknown {b}"),
    );
    lab.handlers(
        &["initial-split-brain", "split-brain"],
        &["initial-split-brain", "split-brain"],
    );
    lab.ok(A, SECONDARY);
    lab.world.discard(A);
    lab.connect(A, true);
    lab.connect(B, false);
    lab.wait("both are equal", World::compare_if_idle);
}

#[test]
fn t51_disk_of_the_peer_hangs() {
    let mut lab = Lab::start();
    lab.world.nodes[B].hold_data_writes = Some(0);
    let sent = lab.world.now;
    lab.world.request(A, 1, 8, 8);
    let wait = lab.world.run_for(41_000 * MS);
    assert_eq!(wait, Ok(()));
    assert_eq!(lab.world.clients.in_flight(A), 1, "no answer without B");
    lab.row(
        "B answers pings only",
        "Connected Pri/Sec UpToDate/UpToDate [C*, 0, H1, H2] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [C, 0, H1, H2] oos=0",
    );
    lab.wait("the write is answered", |world| {
        world.clients.in_flight(A) == 0
    });
    let took = (lab.world.now - sent) / MS;
    assert!((42_000..44_000).contains(&took), "{took} ms");
    assert_eq!(lab.world.clients.errors, [], "its own disk has it");
    let a = "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=1";
    lab.row(
        "B cleans up and cannot end",
        a,
        "NetworkFailure Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    let wait = lab.world.run_for(20_000 * MS);
    assert_eq!(wait, Ok(()));
    lab.row(
        "for as long as its disk hangs",
        a,
        "NetworkFailure Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.world.release_writes(B);
    // Row 4 as in T4 and T26, with one block.
    lab.row(
        "the disk of B answers at last",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos=1",
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=0",
    );
    from_a_with_c(&mut lab, 1);
}

/// As T43, but A forgets with its power that it was a source; promoted alone, it cannot tell from its disk whether B has finished.
#[test]
fn t43_source_missed_the_end_of_the_resync_and_restarts() {
    let mut lab = end_of_resync_is_lost();
    lab.cut();
    lab.power_off(A);
    lab.boot(A);
    lab.ok(A, primary(Force::No));
    lab.write(A, &[1]);
    lab.ok(B, primary(Force::No));
    lab.write(B, &[4]);
    lab.plug();
    lab.connect(A, false);
    lab.split();
    lab.handlers(
        &["initial-split-brain", "split-brain"],
        &["initial-split-brain", "split-brain"],
    );
}

/// The same, but A knows: its disk goes and comes back while it is connected, and the link breaks before the two are compared.
#[test]
fn t43_source_missed_the_end_of_the_resync_and_its_disk_is_negotiating_when_the_link_breaks() {
    let mut lab = Lab::start();
    cut_with_writes(&mut lab, &[2, 6]);
    lab.ok(A, SECONDARY);
    // What the process saw last counts (S4): one that has not been Primary has seen it as a Secondary.
    lab.world.stop(A, false);
    lab.boot(A);
    lab.connect(A, false);
    lab.plug();
    let conn = |world: &World, node: usize| world.nodes[node].state().map(|state| state.conn);
    lab.wait("B has finished, and A has not heard of it", |world| {
        let began = world.nodes[B].handlers.contains(&"after-resync-target");
        began
            && conn(world, A) == Some(ConnState::SyncSource)
            && conn(world, B) == Some(ConnState::Connected)
    });
    lab.block([false, true]);
    let force = Force::Yes;
    let volume = VOLUME;
    lab.ok(A, Command::Detach { volume, force });
    lab.block([false; 2]);
    lab.wait("A sees the disk of B", |world| {
        let state = world.nodes[A].state().unwrap();
        state.disk == DiskState::Diskless && state.pdsk == DiskState::UpToDate
    });
    lab.block([true; 2]);
    lab.world.command(A, Command::Attach { volume });
    lab.wait("the disk of A is negotiating", |world| {
        world.nodes[A].state().unwrap().disk == DiskState::Negotiating
    });
    lab.cut();
    lab.wait("the disk of A is attached", |world| {
        world.nodes[A].state().unwrap().disk == DiskState::UpToDate
    });
    let current = |lab: &mut Lab, node: usize| lab.uuids(node)[0] & !1;
    assert_eq!(current(&mut lab, A), current(&mut lab, B));
    lab.ok(A, primary(Force::No));
    lab.write(A, &[1]);
    assert_ne!(current(&mut lab, A), current(&mut lab, B));
    lab.ok(B, primary(Force::No));
    lab.write(B, &[4]);
    lab.plug();
    lab.split();
    lab.wait("both are told of the split brain", |world| {
        let told = |node: usize| world.nodes[node].handlers.contains(&"split-brain");
        told(A) && told(B)
    });
}
