//! What a person does.

use std::collections::BTreeSet;
use std::sync::Arc;

use tandem_replicator::{NewArea, PeerRoom};
use tandem_tests::sim::stamp::Content;
use tandem_tests::sim::world::Rotten;

use super::*;

#[test]
fn t40_clean_switchover() {
    let mut lab = Lab::start();
    lab.follow("T40");
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
fn t35_connected_secondary_is_invalidated() {
    let mut lab = Lab::start();
    lab.follow("T35");
    lab.write(A, &[3]);
    lab.world.command(B, Command::Invalidate { volume: VOLUME });
    lab.row(
        "invalidate",
        "StartingSyncS Pri/Sec UpToDate/Consistent [C*, 0, H1, H2] oos=any",
        "StartingSyncT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=any",
    );
    lab.row(
        "resync runs",
        "SyncSource Pri/Sec UpToDate/Inconsistent [C*, S1, H1, H2] oos=8",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [S1, 0, H1, H2] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [C*, 0, S1, H1] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [C, 0, S1, H1] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t36_secondary_is_invalidated_alone() {
    let mut lab = Lab::start();
    lab.follow("T36");
    lab.ok(B, Command::Disconnect { force: Force::No });
    lab.ok(B, Command::Invalidate { volume: VOLUME });
    lab.row(
        "invalidate",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "StandAlone Sec/Unk Inconsistent/DUnknown [C, 0, H1, H2] oos=8",
    );
    lab.connect(B, false);
    lab.row(
        "connect",
        "WFBitMapS Pri/Sec UpToDate/Inconsistent [A1*, C*, H1, H2] oos=0",
        "WFBitMapT Sec/Pri Inconsistent/UpToDate [C, 0, H1, H2] oos=8",
    );
    lab.follow("T3");
    from_a_with_c(&mut lab, 8);
}

#[test]
fn t37_truck_based_replication() {
    let new_current = |clear_bitmap| Command::NewCurrentUuid {
        volume: VOLUME,
        clear_bitmap,
    };
    let mut lab = Lab::start();
    lab.follow("T37");
    lab.ok(A, Command::Disconnect { force: Force::No });
    lab.write(A, &[0, 1]);
    let b = "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0";
    let a = |uuids: &str| format!("StandAlone Pri/Unk UpToDate/DUnknown {uuids}");
    lab.row("A is alone", &a("[A1*, C*, H1, H2] oos=2"), b);
    lab.ok(A, new_current(true));
    lab.row("bitmap cleared", &a("[A2*, A1*, C*, H1] oos=0"), b);
    let image = (
        lab.world.nodes[A].data.clone(),
        lab.world.nodes[A].meta.clone(),
    );
    lab.write(A, &[5]);
    lab.ok(A, new_current(false));
    let at_a = a("[A3*, A2*, A1*, C*] oos=1");
    lab.row("A writes", &at_a, b);
    lab.world.stop(B, false);
    (lab.world.nodes[B].data, lab.world.nodes[B].meta) = image;
    // A is alone, nobody answers: B waits. Its image is that of a Primary in use, whose log of activity is applied.
    lab.boot(B);
    lab.connect(B, false);
    lab.row_but(
        "the log of activity was in the image",
        "B runs on the image",
        &at_a,
        "WFConnection Sec/Unk UpToDate/DUnknown [A2, A1*, C*, H1] oos=8",
    );
    lab.connect(A, false);
    lab.row_but(
        "the log of activity was in the image",
        "connect",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A3*, A2*, A1*, C*] oos=1",
        "WFBitMapT Sec/Pri Outdated/UpToDate [A2, A1*, C*, H1] oos=8",
    );
    lab.row(
        "resync runs",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A3*, A2+δ*, A2*, A1*] oos=8",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [A2+δ, 0, C*, H1] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [A3*, 0, A2+δ*, A2*] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A3, 0, A2+δ, A2*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t38_online_verify_found_differences() {
    let mut settings = settings();
    settings.net_options.verify_alg = "crc32c".to_owned();
    let mut lab = Lab::pair_of(settings);
    lab.ok(A, primary(Force::No));
    lab.follow("T38");
    let garbage = Content::Raw(Arc::new([0x6e; 512]));
    let places = BTreeSet::from([3 * 8 + 5]);
    for sector in &places {
        let data = &mut lab.world.nodes[B].data;
        data.set(*sector, garbage.clone(), true);
    }
    let node = B;
    lab.world.pair_mut(node).rotten = Some(Rotten {
        node,
        garbage,
        places,
        alone: true,
    });
    let verify = Command::Verify {
        volume: VOLUME,
        start: None,
        stop: None,
    };
    lab.ok(A, verify);
    lab.row(
        "verify done",
        "Connected Pri/Sec UpToDate/UpToDate [C*, 0, H1, H2] oos=1",
        "Connected Sec/Pri UpToDate/UpToDate [C, 0, H1, H2] oos=1",
    );
    lab.handlers(&["out-of-sync"], &["out-of-sync"]);
    assert_eq!(lab.world.verified, [true; 2]);
    lab.cut();
    lab.row(
        "disconnect",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=1",
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=1",
    );
    lab.plug();
    lab.row(
        "connect",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos=1",
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=1",
    );
    from_a_with_c(&mut lab, 1);
}

/// Both backing devices have grown by half, and node A is told.
fn grown(area: NewArea) -> Lab {
    let mut lab = Lab::start();
    lab.follow("T50");
    for node in [A, B] {
        lab.world.nodes[node].data.grow(BLOCKS / 2 * 4096);
    }
    let resize = Command::Resize {
        volume: VOLUME,
        size: 0,
        room: PeerRoom::Asked,
        area,
    };
    lab.world.command(A, resize);
    lab
}

fn both_have_twelve_blocks(lab: &mut Lab) {
    lab.wait("both devices have grown", |world| {
        let bytes = |node: usize| {
            let status = world.nodes[node].status.as_ref();
            status.map(|status| status.bytes)
        };
        [A, B].map(bytes) == [Some(12 * 4096); 2]
    });
}

#[test]
fn t50_online_growth() {
    let mut lab = grown(NewArea::Resync);
    lab.row(
        "B has grown",
        "Connected Pri/Sec UpToDate/UpToDate [C*, 0, H1, H2] oos=0",
        "WFSyncUUID Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=4",
    );
    lab.row(
        "A has grown",
        "SyncSource Pri/Sec UpToDate/Inconsistent [C*, S1, H1, H2] oos=4",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [S1, 0, H1, H2] oos=4",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [C*, 0, S1, H1] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [C, 0, S1, H1] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
    both_have_twelve_blocks(&mut lab);
}

#[test]
fn t50_without_a_resync_if_the_new_area_is_clean() {
    let mut lab = grown(NewArea::AssumeClean);
    both_have_twelve_blocks(&mut lab);
    lab.row(
        "both have grown",
        "Connected Pri/Sec UpToDate/UpToDate [C*, 0, H1, H2] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [C, 0, H1, H2] oos=0",
    );
    lab.handlers(&[], &[]);
}
