//! Histories that once went wrong: what the simulator found, each as the shortest story that shows it, or as its seed.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod seeds;

use seeds::SEEDS;
use tandem_metadata::Uuids;
use tandem_replicator::state::word::{ConnState, DiskState};
use tandem_replicator::{Command, Force, Protocol};
use tandem_tests::sim::lab::{A, B, Lab, primary, settings};
use tandem_tests::sim::node::{IoFault, Keep, VOLUME};
use tandem_tests::sim::stamp::Content;
use tandem_tests::sim::{Spec, run};

#[test]
fn histories_that_went_wrong_once_go_right() {
    for (protocol, seed, story) in SEEDS {
        let outcome = run(Spec::new(*seed, *protocol));
        if let Err(why) = outcome {
            panic!("{why}\nonce: {story}");
        }
    }
}

fn detach(force: Force) -> Command {
    Command::Detach {
        volume: VOLUME,
        force,
    }
}

const ATTACH: Command = Command::Attach { volume: VOLUME };

/// The disk does not carry what the application has seen (3.6).
const DATA_NOT_CURRENT: i32 = 150;

#[test]
fn a_state_under_way_does_not_undo_a_skipped_initial_sync() {
    let mut lab = Lab::blank();
    lab.world.up(A);
    lab.world.up(B);
    lab.wait("both are connected", |world| {
        world.nodes.iter().all(|node| node.is_connected())
    });
    // The P_STATE that each sends when it is connected is still under way.
    lab.ok(
        A,
        Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap: true,
        },
    );
    let wait = lab.world.run_for(1_000_000_000);
    assert_eq!(wait, Ok(()));
    let done = "Connected Sec/Sec UpToDate/UpToDate [A1, 0, 0, 0] oos=0";
    lab.row("both have heard of it", done, done);
}

#[test]
fn a_primary_whose_disk_was_detached_does_not_attach_data_older_than_its_peers() {
    let mut lab = Lab::start();
    lab.ok(A, detach(Force::No));
    lab.write(A, &[1]);
    lab.power_off(B);
    lab.wait("A notices", |world| !world.nodes[A].is_connected());
    assert_eq!(lab.command(A, ATTACH), DATA_NOT_CURRENT);
}

#[test]
fn a_primary_promoted_without_a_disk_does_not_attach_data_older_than_its_peers() {
    let mut lab = Lab::start();
    lab.world.stop(A, false);
    lab.wait("B notices", |world| !world.nodes[B].is_connected());
    lab.ok(B, primary(Force::No));
    lab.write(B, &[1]);
    lab.world.start(A);
    lab.connect(A, false);
    lab.wait("A sees the data of B", |world| {
        world.nodes[A].is_connected() && world.nodes[B].is_connected()
    });
    lab.ok(B, Command::Secondary { volume: VOLUME });
    lab.ok(A, primary(Force::No));
    lab.write(A, &[2]);
    lab.cut();
    assert_eq!(lab.command(A, ATTACH), DATA_NOT_CURRENT);
}

#[test]
fn a_resync_target_whose_source_loses_its_disk_is_not_up_to_date() {
    let mut lab = Lab::start();
    lab.world.settings.handler_delay = 5_000_000_000;
    lab.ok(B, Command::Invalidate { volume: VOLUME });
    lab.wait("A is about to be the source", |world| {
        world.nodes[A].state().unwrap().conn == ConnState::StartingSyncS
    });
    lab.write(A, &[3]);
    assert_eq!(lab.command(A, detach(Force::No)), -2);
    lab.ok(A, detach(Force::Yes));
    let wait = lab.world.run_for(1_000_000_000);
    assert_eq!(wait, Ok(()));
    let b = lab.world.nodes[B].state().unwrap();
    assert_eq!(b.disk, DiskState::Inconsistent);
    let a = lab.world.nodes[A].state().unwrap();
    assert_eq!(a.pdsk, DiskState::Inconsistent);
}

#[test]
fn a_primary_that_is_attached_alone_starts_a_generation() {
    let mut lab = Lab::start();
    lab.cut();
    lab.plug();
    lab.wait("in sync again", |world| world.is_in_sync());
    // The peer hears nothing of the lost disk.
    lab.block([true; 2]);
    lab.ok(A, detach(Force::Yes));
    lab.wait("both notice the cut", |world| {
        world.nodes.iter().all(|node| !node.is_connected())
    });
    let [before, bitmap, ..] = lab.uuids(A);
    assert_eq!(bitmap, 0);
    lab.ok(A, ATTACH);
    let [after, bitmap, ..] = lab.uuids(A);
    assert_ne!(before & !1, after & !1);
    assert_eq!(before & !1, bitmap & !1);
}

#[test]
fn a_write_of_a_primary_without_a_disk_survives_the_power_failure_of_its_peer() {
    let mut lab = Lab::start();
    lab.ok(A, detach(Force::No));
    lab.write(A, &[1]);
    let written = lab.world.nodes[B].data.content(8).clone();
    lab.power_off(B);
    assert_eq!(*lab.world.nodes[B].data.content(8), written);
}

#[test]
fn an_attach_makes_durable_what_a_killed_process_had_left_in_the_cache() {
    let mut lab = Lab::start();
    lab.cut();
    lab.write(A, &[1]);
    let written = lab.world.nodes[A].data.content(8).clone();
    lab.world.stop(A, false);
    lab.boot(A);
    lab.power_off(A);
    assert_eq!(*lab.world.nodes[A].data.content(8), written);
}

#[test]
fn a_secondary_that_loses_its_primary_makes_durable_what_it_received() {
    let mut lab = Lab::start();
    lab.write(A, &[1]);
    let written = lab.world.nodes[B].data.content(8).clone();
    lab.power_off(A);
    lab.wait("B notices", |world| !world.nodes[B].is_connected());
    let wait = lab.world.run_for(100_000_000);
    assert_eq!(wait, Ok(()));
    lab.power_off(B);
    assert_eq!(*lab.world.nodes[B].data.content(8), written);
}

#[test]
fn a_primary_without_a_disk_refuses_data_that_its_promoted_peer_changed() {
    let mut lab = Lab::start();
    lab.ok(A, detach(Force::No));
    lab.write(A, &[1]);
    lab.cut();
    let [shown, base, ..] = lab.uuids(B);
    lab.ok(B, primary(Force::No));
    let [current, bitmap, newer, _] = lab.uuids(B);
    assert_ne!(current & !1, shown & !1);
    assert_eq!([bitmap, newer & !1], [base, shown & !1]);
    lab.write(B, &[2]);
    lab.ok(B, Command::Secondary { volume: VOLUME });
    lab.plug();
    lab.wait("A refuses", |world| {
        world.nodes[A].state().unwrap().conn == ConnState::StandAlone
    });
    // Demoted, it takes what is there, and its own disk misses only what was written since it had it.
    lab.ok(A, Command::Secondary { volume: VOLUME });
    lab.connect(A, false);
    lab.ok(A, ATTACH);
    lab.wait("both are in sync", |world| world.is_in_sync());
    lab.wait("both are equal", tandem_tests::sim::World::compare_if_idle);
}

/// A lacks what B has written alone, and is Primary: its application reads from B, and the resync has not begun.
fn primary_is_a_paused_target() -> Lab {
    let mut lab = Lab::start();
    lab.ok(A, Command::Secondary { volume: VOLUME });
    lab.cut();
    lab.ok(B, primary(Force::No));
    lab.write(B, &[3]);
    lab.ok(B, Command::Secondary { volume: VOLUME });
    lab.ok(B, Command::PauseSync { volume: VOLUME });
    lab.plug();
    lab.wait("A is the target", |world| {
        world.nodes[A].state().unwrap().conn == ConnState::PausedSyncT
    });
    lab.ok(A, primary(Force::No));
    lab
}

#[test]
fn a_primary_that_wrote_without_its_disk_does_not_use_it_alone_even_if_no_generation_was_started() {
    let mut lab = primary_is_a_paused_target();
    let [shown, base, ..] = lab.uuids(B);
    lab.ok(A, detach(Force::No));
    let [current, bitmap, ..] = lab.uuids(B);
    assert_eq!([current, bitmap], [shown, base]);
    lab.write(A, &[1]);
    lab.cut();
    assert_eq!(lab.command(A, ATTACH), DATA_NOT_CURRENT);
    lab.plug();
    lab.wait("both are connected", |world| {
        world.nodes.iter().all(|node| node.is_connected())
    });
    lab.ok(B, Command::ResumeSync { volume: VOLUME });
    lab.ok(A, ATTACH);
    lab.wait("both are in sync", |world| world.is_in_sync());
    lab.wait("both are equal", tandem_tests::sim::World::compare_if_idle);
}

#[test]
fn a_disk_that_lacks_what_was_written_meanwhile_is_not_used_when_the_link_breaks_during_its_attach()
{
    let mut lab = primary_is_a_paused_target();
    lab.ok(A, detach(Force::No));
    lab.write(A, &[1]);
    // What B would say to the attach stays under way.
    lab.block([false, true]);
    lab.world.command(A, ATTACH);
    lab.wait("A asks B about its disk", |world| {
        world.nodes[A].state().unwrap().disk == DiskState::Negotiating
    });
    lab.cut();
    lab.wait("the disk is let go", |world| {
        world.nodes[A].state().unwrap().disk == DiskState::Diskless
    });
}

#[test]
fn a_disk_whose_peer_is_lost_while_it_is_being_read_is_not_used_without_what_the_peer_alone_has() {
    let mut lab = Lab::start();
    lab.ok(A, detach(Force::No));
    lab.write(A, &[1]);
    lab.world.nodes[A].hang = Some((IoFault::Meta, u32::MAX));
    lab.world.command(A, ATTACH);
    lab.wait("the superblock is being read", |world| {
        !world.nodes[A].held.is_empty()
    });
    lab.world.let_go(A);
    assert_eq!(lab.world.run_for(0), Ok(()));
    lab.world.nodes[A].hang = Some((IoFault::Meta, u32::MAX));
    // It was found good enough for a node that is connected; the rest of the metadata takes its time.
    lab.wait("the bitmap is being read", |world| {
        let state = world.nodes[A].state().unwrap();
        state.disk == DiskState::Attaching && !world.nodes[A].held.is_empty()
    });
    lab.cut();
    lab.world.let_go(A);
    lab.wait("the disk is let go", |world| {
        world.nodes[A].open_commands.is_empty()
    });
    let state = lab.world.nodes[A].state().unwrap();
    assert_eq!(state.disk, DiskState::Diskless);
}

#[test]
fn a_superblock_that_is_due_while_the_metadata_device_hangs_does_not_keep_the_engine_busy() {
    let mut lab = Lab::start();
    lab.world.nodes[A].hang = Some((IoFault::Meta, u32::MAX));
    lab.block([true; 2]);
    // The engine's timers are counted: one that is due again at once fails the world.
    let wait = lab.world.run_for(60_000_000_000);
    assert_eq!(wait, Ok(()));
    assert!(
        !lab.world.nodes[A].held.is_empty(),
        "a write of metadata hangs"
    );
    lab.world.let_go(A);
    lab.plug();
    lab.wait("both are in sync", |world| world.is_in_sync());
}

#[test]
fn a_peer_write_that_ends_after_the_link_is_lost_is_made_durable_too() {
    let mut settings = settings();
    settings.net_options.protocol = Protocol::B;
    let mut lab = Lab::pair_of(settings);
    lab.ok(A, primary(Force::No));
    lab.world.nodes[B].hold_data_writes = Some(0);
    // Answered when the peer has it in memory.
    lab.write(A, &[1]);
    lab.power_off(A);
    lab.wait("B notices", |world| !world.nodes[B].is_connected());
    let wait = lab.world.run_for(100_000_000);
    assert_eq!(wait, Ok(()));
    lab.world.release_writes(B);
    let wait = lab.world.run_for(2_000_000_000);
    assert_eq!(wait, Ok(()));
    let written = lab.world.nodes[B].data.content(8).clone();
    assert_ne!(written, Content::Zero, "the write has ended");
    // Nothing is kept that was not flushed.
    lab.world.stop_keeping(B, Some(Keep::These(0)));
    assert_eq!(*lab.world.nodes[B].data.content(8), written);
}

#[test]
fn a_disk_that_is_found_to_be_old_takes_no_write_before_it_says_so() {
    let mut lab = Lab::start();
    lab.write(A, &[1]);
    let old = lab.world.nodes[A].data.content(8).clone();
    lab.ok(A, detach(Force::No));
    lab.write(A, &[3]);
    // One write is under way to B, another one waits for it.
    lab.world.nodes[B].hold_data_writes = Some(0);
    lab.world.request(A, 1, 8, 8);
    lab.world.request(A, 1, 8, 8);
    lab.world.command(A, ATTACH);
    lab.wait("the disk of A is old", |world| {
        world.nodes[A].state().unwrap().disk == DiskState::Inconsistent
    });
    lab.world.nodes[A].hang = Some((IoFault::Meta, 1));
    lab.world.release_writes(B);
    lab.wait("its superblock hangs", |world| {
        !world.nodes[A].held.is_empty()
    });
    let wait = lab.world.run_for(1_000_000_000);
    assert_eq!(wait, Ok(()));
    assert_eq!(*lab.world.nodes[A].data.content(8), old);
    lab.world.stop(A, false);
    lab.boot(A);
    assert_eq!(*lab.world.nodes[A].data.content(8), old);
    lab.connect(A, false);
    lab.wait("both are in sync", |world| world.is_in_sync());
    lab.wait("both are equal", tandem_tests::sim::World::compare_if_idle);
}

/// A write of A, answered, is in the memory of B, whose disk does not write it.
fn received_and_not_written(protocol: Protocol) -> Lab {
    let mut settings = settings();
    settings.net_options.protocol = protocol;
    let mut lab = Lab::pair_of(settings);
    lab.ok(A, primary(Force::No));
    lab.world.nodes[B].hold_data_writes = Some(0);
    lab.write(A, &[1]);
    lab.wait("B has received it", |world| {
        !world.nodes[B].sectors_in_flight().is_empty()
    });
    lab
}

/// In transient state: to be typed again later.
const NOT_NOW: i32 = -18;

#[test]
fn a_promotion_waits_for_the_writes_that_came_from_the_former_primary() {
    let mut lab = received_and_not_written(Protocol::B);
    let written = lab.world.nodes[A].data.content(8).clone();
    lab.power_off(A);
    lab.wait("B notices", |world| !world.nodes[B].is_connected());
    let promotion = lab.world.command(B, primary(Force::No));
    let wait = lab.world.run_for(5_000_000_000);
    assert_eq!(wait, Ok(()));
    assert!(!lab.world.nodes[B].is_primary());
    lab.world.release_writes(B);
    lab.wait("B is Primary", |world| world.nodes[B].is_primary());
    lab.wait("the promotion is answered", |world| {
        world.nodes[B].answers.contains_key(&promotion)
    });
    assert!(lab.world.nodes[B].answers[&promotion].number > 0);
    assert_eq!(*lab.world.nodes[B].data.content(8), written);
    lab.write(B, &[2]);
}

#[test]
fn a_promotion_that_waits_for_a_disk_that_hangs_ends_and_says_why() {
    let mut lab = received_and_not_written(Protocol::B);
    lab.power_off(A);
    lab.wait("B notices", |world| !world.nodes[B].is_connected());
    let promotion = lab.world.command(B, primary(Force::No));
    lab.wait("the promotion is answered", |world| {
        world.nodes[B].answers.contains_key(&promotion)
    });
    let answer = &lab.world.nodes[B].answers[&promotion];
    assert_eq!(answer.number, NOT_NOW);
    assert!(answer.info[0].starts_with("1 write received from the former Primary"));
    assert!(answer.hint.is_some());
    assert!(!lab.world.nodes[B].is_primary());
    lab.world.release_writes(B);
    lab.ok(B, primary(Force::No));
}

#[test]
fn the_disk_of_a_primary_is_let_go_when_the_peer_has_what_was_answered() {
    let mut lab = received_and_not_written(Protocol::A);
    let written = lab.world.nodes[A].data.content(8).clone();
    let detached = lab.world.command(A, detach(Force::No));
    let wait = lab.world.run_for(5_000_000_000);
    assert_eq!(wait, Ok(()));
    assert!(lab.world.nodes[A].is_up_to_date());
    lab.world.release_writes(B);
    lab.wait("the detach is answered", |world| {
        world.nodes[A].answers.contains_key(&detached)
    });
    assert!(lab.world.nodes[A].answers[&detached].number > 0);
    lab.power_off(B);
    assert_eq!(*lab.world.nodes[B].data.content(8), written);
}

#[test]
fn the_disk_of_a_primary_stays_when_the_peer_does_not_confirm_what_was_answered() {
    let mut lab = received_and_not_written(Protocol::A);
    assert_eq!(lab.command(A, detach(Force::No)), NOT_NOW);
    assert!(lab.world.nodes[A].is_up_to_date());
    // Clients were held meanwhile, and go on.
    lab.write(A, &[2]);
    lab.world.release_writes(B);
    lab.ok(A, detach(Force::No));
}

#[test]
fn a_secondary_that_is_detached_right_after_a_write_stays_connected() {
    let mut lab = Lab::start();
    lab.write(A, &[1]);
    // The epoch of this write is still open: its barrier meets a disk that is on its way out.
    lab.ok(B, detach(Force::No));
    let wait = lab.world.run_for(5_000_000_000);
    assert_eq!(wait, Ok(()));
    for node in [A, B] {
        let comparisons = lab.world.nodes[node].comparisons.len();
        assert_eq!(comparisons, 1, "one connection only");
    }
    lab.row(
        "detached",
        "Connected Pri/Sec UpToDate/Diskless [A1*, C*, H1, H2] oos=0",
        "Connected Sec/Pri Diskless/UpToDate [C, 0, H1, H2] oos=0",
    );
    lab.ok(B, ATTACH);
    lab.wait("both are equal", tandem_tests::sim::World::compare_if_idle);
}

#[test]
fn a_restarted_peer_of_a_primary_without_a_disk_starts_a_generation_when_it_is_promoted_alone() {
    let mut lab = Lab::start();
    lab.ok(A, detach(Force::No));
    lab.write(A, &[1]);
    let [shown, base, ..] = lab.uuids(B);
    lab.cut();
    lab.power_off(B);
    lab.boot(B);
    lab.ok(B, primary(Force::No));
    let [current, bitmap, newer, _] = lab.uuids(B);
    assert_ne!(current & !1, shown & !1);
    assert_eq!([bitmap, newer & !1], [base, shown & !1]);
    lab.write(B, &[2]);
    lab.ok(B, Command::Secondary { volume: VOLUME });
    lab.plug();
    lab.connect(B, false);
    lab.wait("A refuses", |world| {
        world.nodes[A].state().unwrap().conn == ConnState::StandAlone
    });
}

#[test]
fn a_disk_whose_data_is_unrelated_to_the_peers_is_refused_in_words_and_synced_with_new_metadata() {
    let mut lab = Lab::start();
    lab.ok(B, detach(Force::No));
    let stranger = Uuids {
        current: 0x5e5e_0000_0000_0000,
        bitmap: 0,
        history: [0; 2],
    };
    lab.world.nodes[B].set_generation(stranger).unwrap();
    lab.ok(B, ATTACH);
    lab.wait("B lets its disk go", |world| {
        let status = world.nodes[B].status.as_ref();
        let error = status.and_then(|status| status.disk_error.as_ref());
        error.is_some_and(|error| error.contains("unrelated") && error.contains("create-md"))
    });
    lab.row(
        "refused",
        "Connected Pri/Sec UpToDate/Diskless [A1*, C*, H1, H2] oos=0",
        "Connected Sec/Pri Diskless/UpToDate [S1, 0, 0, 0] oos=0",
    );
    lab.world.nodes[B].create_metadata().unwrap();
    lab.ok(B, ATTACH);
    lab.wait("both are equal", tandem_tests::sim::World::compare_if_idle);
}
