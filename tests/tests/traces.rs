//! Worked traces of `docs/spec/state-machine.md` section 11, row by row: states, data generations, set bits and handlers of two
//! nodes of 8 blocks in the simulator, without random faults.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use tandem_metadata::{Flags, Uuids};
use tandem_replicator::state::word::ConnState;
use tandem_replicator::{Command, Force};
use tandem_tests::sim::World;
use tandem_tests::sim::lab::{A, B, DELTA, Lab, primary};
use tandem_tests::sim::node::VOLUME;

/// The log holds whole extents of 4 MiB: here all of the device.
const ALL: &str = "oos=8";
const SECONDARY: Command = Command::Secondary { volume: VOLUME };
const FROM_A: [&str; 2] = ["before-resync-source", "before-resync-target"];

#[test]
fn t1_first_initial_sync() {
    let mut lab = Lab::blank();
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
    lab.ok(B, Command::Down { force: Force::No });
    lab.row(
        "down",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "StandAlone Sec/Unk Diskless/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.world.stop(B, false);
    lab.write(A, &[1, 3, 5]);
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

/// Bitmaps exchanged and resync finished, as in T3, T4, T5 and T12.
fn from_a_with_c(lab: &mut Lab, bits: u64) {
    lab.row(
        "resync runs",
        &format!("SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos={bits}"),
        &format!("SyncTarget Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos={bits}"),
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, C+δ*, C*] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, C+δ, C*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

fn cut_with_writes(blocks: &[u64]) -> Lab {
    let mut lab = Lab::start();
    lab.cut();
    lab.row(
        "link lost",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.write(A, blocks);
    let bits = blocks.len();
    lab.row(
        "A writes",
        &format!("WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos={bits}"),
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab
}

fn reconnect(lab: &mut Lab, bits: usize) {
    lab.plug();
    lab.row(
        "reconnect",
        &format!("WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos={bits}"),
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=0",
    );
}

#[test]
fn t4_network_cut_with_writes_on_the_primary() {
    let mut lab = cut_with_writes(&[2, 6]);
    reconnect(&mut lab, 2);
    from_a_with_c(&mut lab, 2);
}

#[test]
fn t5_link_flap_without_any_write() {
    let mut lab = cut_with_writes(&[]);
    reconnect(&mut lab, 0);
    from_a_with_c(&mut lab, 0);
}

#[test]
fn t6_link_flap_of_two_secondaries() {
    let mut lab = Lab::pair();
    lab.cut();
    let apart = "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0";
    lab.row("link lost", apart, apart);
    lab.plug();
    let joined = "Connected Sec/Sec UpToDate/UpToDate [C, 0, H1, H2] oos=0";
    lab.row("reconnect", joined, joined);
    lab.handlers(&[], &[]);
}

/// A Primary with a hot activity log loses power; B waits; A is attached again.
fn crashed_primary() -> Lab {
    let mut lab = Lab::start();
    lab.write(A, &[0, 1, 2, 3]);
    lab.power_off(A);
    lab.row(
        "A loses power",
        "(down) [C*, 0, H1, H2] oos=0",
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab
}

fn boots_with_hot_log(lab: &mut Lab, b: &str) {
    lab.boot(A);
    let a = format!("StandAlone Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] {ALL}");
    lab.row("A boots", &a, b);
}

fn crash_recovery_connects(lab: &mut Lab) {
    lab.row(
        "connect",
        "WFBitMapS Sec/Sec UpToDate/Consistent [C, 0, H1, H2] oos=8",
        "WFBitMapT Sec/Sec Outdated/UpToDate [C, 0, H1, H2] oos=0",
    );
}

fn crash_recovery_runs(lab: &mut Lab) {
    lab.row(
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [C, S1, H1, H2] oos=8",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [S1, 0, H1, H2] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    let done = "Connected Sec/Sec UpToDate/UpToDate [C, 0, S1, H1] oos=0";
    lab.finished(done, done);
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t7_primary_crashes_with_hot_activity_log_and_comes_back() {
    let mut lab = crashed_primary();
    boots_with_hot_log(
        &mut lab,
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.connect(A, false);
    crash_recovery_connects(&mut lab);
    crash_recovery_runs(&mut lab);
}

#[test]
fn t8_primary_crashes_secondary_is_promoted_old_primary_returns() {
    let mut lab = crashed_primary();
    lab.ok(B, primary(Force::No));
    lab.write(B, &[5]);
    let b = "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=1";
    lab.row("B promoted", "(down) [C*, 0, H1, H2] oos=0", b);
    boots_with_hot_log(&mut lab, b);
    lab.connect(A, false);
    lab.row(
        "connect",
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=8",
        "WFBitMapS Pri/Sec UpToDate/Consistent [B1*, C, H1, H2] oos=1",
    );
    lab.row(
        "resync runs",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=8",
        "SyncSource Pri/Sec UpToDate/Inconsistent [B1*, C+δ, C, H1] oos=8",
    );
    lab.handlers(&FROM_A[1..], &FROM_A[..1]);
    lab.finished(
        "Connected Sec/Pri UpToDate/UpToDate [B1, 0, C+δ, C] oos=0",
        "Connected Pri/Sec UpToDate/UpToDate [B1*, 0, C+δ, C] oos=0",
    );
    lab.handlers(&["after-resync-target"], &[]);
}

#[test]
fn t9_power_loss_on_both() {
    let mut lab = Lab::start();
    lab.write(A, &[4, 5]);
    lab.power_off(A);
    lab.power_off(B);
    lab.boot(B);
    boots_with_hot_log(
        &mut lab,
        "StandAlone Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.connect(B, false);
    lab.connect(A, false);
    crash_recovery_connects(&mut lab);
    crash_recovery_runs(&mut lab);
}

#[test]
fn t12_split_brain_and_its_manual_recovery() {
    let mut lab = Lab::start();
    lab.cut();
    lab.write(A, &[0, 2]);
    lab.ok(B, primary(Force::No));
    lab.write(B, &[6]);
    lab.row(
        "both write",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=2",
        "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=1",
    );
    lab.plug();
    lab.split();
    lab.row(
        "link returns",
        "StandAlone Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=2",
        "StandAlone Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=1",
    );
    lab.handlers(
        &["initial-split-brain", "split-brain"],
        &["initial-split-brain", "split-brain"],
    );
    lab.ok(B, SECONDARY);
    lab.world.oracle.discard(B);
    lab.connect(B, true);
    lab.connect(A, false);
    lab.row(
        "handshake",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos=2",
        "WFBitMapT Sec/Pri Outdated/UpToDate [B1, C, H1, H2] oos=1",
    );
    lab.handlers(&["initial-split-brain"], &["initial-split-brain"]);
    from_a_with_c(&mut lab, 3);
}

/// Half of four blocks are synced.
fn half_synced() -> Lab {
    let mut lab = cut_with_writes(&[0, 2, 4, 6]);
    lab.plug();
    // A target clears bits only when it has flushed the blocks, so it still has more.
    lab.row(
        "half of 4 blocks synced",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=2",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=any",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab
}

#[test]
fn t17_target_crashes_during_resync() {
    let mut lab = half_synced();
    lab.power_off(B);
    lab.wait("A notices", |world| !world.nodes[A].is_connected());
    lab.write(A, &[1]);
    let a = "WFConnection Pri/Unk UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=3";
    lab.row("B loses power", a, "(down) [C+δ, 0, H1, H2] oos=any");
    lab.boot(B);
    assert_eq!(lab.command(B, primary(Force::No)), -2);
    // The bits of B are those that it had on disk.
    let b = "StandAlone Sec/Unk Inconsistent/DUnknown [C+δ, 0, H1, H2] oos=any";
    lab.row("B boots", a, b);
    lab.connect(B, false);
    lab.row(
        "connect",
        "WFBitMapS Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=3",
        "WFBitMapT Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=any",
    );
    lab.row(
        "resync runs",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+2δ*, C+δ*, C*] oos=any",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [C+2δ, 0, H1, H2] oos=any",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, C+2δ*, C+δ*] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, C+2δ, C+δ*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

/// Rows 1 and 2 of T18.
fn source_crashes() -> Lab {
    let mut lab = half_synced();
    lab.power_off(A);
    lab.wait("B notices", |world| !world.nodes[B].is_connected());
    assert_eq!(lab.command(B, primary(Force::No)), -2);
    lab.row(
        "A loses power",
        "(down) [A1*, C+δ*, C*, H1] oos=0",
        "WFConnection Sec/Unk Inconsistent/DUnknown [C+δ, 0, H1, H2] oos=any",
    );
    lab
}

#[test]
fn t18_sync_source_crashes_during_resync() {
    let mut lab = source_crashes();
    lab.boot(A);
    lab.row(
        "A boots",
        "StandAlone Sec/Unk UpToDate/Outdated [A1, C+δ*, C*, H1] oos=8",
        "WFConnection Sec/Unk Inconsistent/DUnknown [C+δ, 0, H1, H2] oos=any",
    );
    lab.connect(A, false);
    lab.row(
        "connect",
        "WFBitMapS Sec/Sec UpToDate/Inconsistent [A1, C+δ*, C*, H1] oos=8",
        "WFBitMapT Sec/Sec Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=any",
    );
    lab.row(
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [A1, C+2δ*, C+δ*, C*] oos=8",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [C+2δ, 0, H1, H2] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Sec/Sec UpToDate/UpToDate [A1, 0, C+2δ*, C+δ*] oos=0",
        "Connected Sec/Sec UpToDate/UpToDate [A1, 0, C+2δ, C+δ*] oos=0",
    );
}

#[test]
fn t19_target_of_a_crashed_source_is_forced_then_the_source_returns() {
    let mut lab = source_crashes();
    lab.ok(B, primary(Force::Yes));
    lab.row(
        "primary --force",
        "(down) [A1*, C+δ*, C*, H1] oos=0",
        "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C+δ, H1, H2] oos=any",
    );
    lab.boot(A);
    lab.connect(A, false);
    lab.split();
    lab.row(
        "A boots and connects",
        "StandAlone Sec/Unk UpToDate/Outdated [A1, C+δ*, C*, H1] oos=8",
        "StandAlone Pri/Unk UpToDate/DUnknown [B1*, C+δ, H1, H2] oos=any",
    );
    lab.handlers(
        &["initial-split-brain", "split-brain"],
        &["initial-split-brain", "split-brain"],
    );
}

#[test]
fn t20_link_lost_while_bitmaps_are_exchanged() {
    let mut lab = cut_with_writes(&[2, 6]);
    reconnect(&mut lab, 2);
    lab.cut();
    lab.row(
        "link lost before P_SYNC_UUID",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=2",
        "WFConnection Sec/Unk Outdated/DUnknown [C, 0, H1, H2] oos=0",
    );
    assert_eq!(lab.command(B, primary(Force::No)), -2);
    reconnect(&mut lab, 2);
    from_a_with_c(&mut lab, 2);
}

/// From now on nothing of A arrives at B, which waits for the sync UUID, until the link is given up.
fn lose_sync_uuid(lab: &mut Lab) {
    lab.wait("B waits for the sync UUID", |world| {
        world.nodes[B].state().unwrap().conn == ConnState::WFSyncUUID
    });
    lab.world.block([true, false]);
}

#[test]
fn t21_sync_uuid_is_lost() {
    let mut lab = cut_with_writes(&[2, 6]);
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
    let mut lab = crashed_primary();
    lab.boot(A);
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

#[test]
fn t23_source_missed_the_end_of_the_resync() {
    let mut lab = Lab::blank();
    let (a1, c, h1) = (
        0xa1a1_0000_0000_0000_u64,
        0xc000_0000_0000_0000_u64,
        0x1111_0000_0000_0000,
    );
    for (name, value) in [("A1", a1), ("C", c), ("H1", h1)] {
        lab.names.insert(name.to_owned(), value);
    }
    // Rows 1 and 2: what the two disks hold when the link is lost after B finished.
    let on_a = Uuids {
        current: a1,
        bitmap: (c + DELTA) | 1,
        history: [c | 1, h1],
    };
    let on_b = Uuids {
        current: a1,
        bitmap: 0,
        history: [c + DELTA, c | 1],
    };
    lab.world.nodes[A].set_generation(on_a).unwrap();
    lab.world.nodes[B].set_generation(on_b).unwrap();
    let flags = Flags::CONSISTENT
        .with(Flags::WAS_UP_TO_DATE)
        .with(Flags::PEER_OUT_DATED)
        .with(Flags::AL_CLEAN);
    lab.world.nodes[A]
        .edit_superblock(|block| block.flags = flags)
        .unwrap();
    let bitmap = lab.world.nodes[A].layout().unwrap().bitmap_offset().0;
    let mut page = vec![0; 4096];
    page[0] = 1 << 3;
    lab.world.nodes[A].meta_disk().write(bitmap, &page, true);
    lab.boot(A);
    lab.boot(B);
    lab.ok(A, primary(Force::No));
    lab.row(
        "link lost",
        "StandAlone Pri/Unk UpToDate/Outdated [A1*, C+δ*, C*, H1] oos=1",
        "StandAlone Sec/Unk UpToDate/DUnknown [A1, 0, C+δ, C*] oos=0",
    );
    lab.connect(A, false);
    lab.connect(B, false);
    lab.row(
        "reconnect: history corrected",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, 0, C+δ*, C*] oos=1",
        "WFBitMapT Sec/Pri Outdated/UpToDate [A1, 0, C+δ, C*] oos=0",
    );
    lab.row(
        "resync runs",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, S1, C+δ*, C*] oos=1",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [S1, 0, C+δ, C*] oos=1",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.row(
        "resync finished",
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, S1, C+δ*] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, S1, C+δ*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t40_clean_switchover() {
    let mut lab = Lab::start();
    lab.ok(A, SECONDARY);
    let both = "Connected Sec/Sec UpToDate/UpToDate [C, 0, H1, H2] oos=0";
    lab.row("secondary", both, both);
    lab.ok(B, primary(Force::No));
    lab.row(
        "primary",
        "Connected Sec/Pri UpToDate/UpToDate [C, 0, H1, H2] oos=0",
        "Connected Pri/Sec UpToDate/UpToDate [C*, 0, H1, H2] oos=0",
    );
    lab.cut();
    lab.row(
        "link lost",
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
        "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C*, H1, H2] oos=0",
    );
    lab.handlers(&[], &[]);
}

#[test]
fn t41_degraded_primary_crashes_and_reboots_alone() {
    let mut lab = Lab::start();
    lab.power_off(B);
    lab.wait("A notices", |world| !world.nodes[A].is_connected());
    lab.row(
        "B died",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "(down) [C, 0, H1, H2] oos=0",
    );
    // The new generation is still on its way to the disk.
    let wait = lab.world.run_for(100_000_000);
    assert_eq!(wait, Ok(()));
    lab.power_off(A);
    lab.boot(A);
    lab.row(
        "A boots",
        "StandAlone Sec/Unk UpToDate/DUnknown [A1, C*, H1, H2] oos=0",
        "(down) [C, 0, H1, H2] oos=0",
    );
    lab.ok(A, primary(Force::No));
    lab.row(
        "primary",
        "StandAlone Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "(down) [C, 0, H1, H2] oos=0",
    );
}
