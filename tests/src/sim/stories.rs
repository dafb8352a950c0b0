//! The stories that [`super::crash`] cuts at every I/O: each brings a pair somewhere, then lets one durable sequence happen.

use tandem_replicator::state::word::ConnState;
use tandem_replicator::{Command, DiskOptions, Force, MetaKind, NewArea, PeerRoom, Protocol};

use super::Settings;
use super::crash::{ACT, Story};
use super::lab::{A, B, Lab, primary, settings};
use super::network::MS;
use super::node::{DiskPlan, IoFault, VOLUME};

fn small() -> Settings {
    let mut settings = settings();
    settings.disk_options.resync_rate = 400;
    settings
}

fn external() -> Settings {
    small()
}

fn internal() -> Settings {
    let mut settings = small();
    settings.disk = DiskPlan {
        bytes: (1 << 20) + (32 << 10),
        meta: MetaKind::Internal,
        discard: false,
    };
    settings
}

/// Disks that are half as large so far.
fn half() -> Settings {
    let mut settings = small();
    settings.disk.bytes /= 2;
    settings
}

/// Answered as soon as the local disk has it.
fn asynchronous() -> Settings {
    let mut settings = small();
    settings.net_options.protocol = Protocol::A;
    settings
}

/// More than one extent of the activity log.
fn wide() -> Settings {
    let mut settings = small();
    settings.disk.bytes = 3 * (4 << 20);
    settings.disk_options.resync_rate = 20_000;
    settings
}

/// More extents than the activity log has slots.
fn large() -> Settings {
    let mut settings = small();
    settings.disk.bytes = 72 * (4 << 20);
    settings.disk_options.al_extents = 67;
    settings.disk_options.resync_rate = 100_000;
    settings
}

fn start(settings: Settings) -> Lab {
    let mut lab = Lab::pair_of(settings);
    lab.ok(A, primary(Force::No));
    lab
}

/// A wrote and was answered; all of it has left the epochs and is on both disks.
fn busy(settings: Settings) -> Lab {
    let mut lab = start(settings);
    lab.write(A, &[0, 1]);
    lab
}

fn busy_and_idle(settings: Settings) -> Lab {
    let mut lab = busy(settings);
    wait(&mut lab, 500 * MS);
    lab
}

/// A writes without its peer.
fn degraded(settings: Settings) -> Lab {
    let mut lab = busy(settings);
    lab.cut();
    lab.write(A, &[2, 5]);
    lab
}

/// The peer lacks most blocks.
fn far_behind(settings: Settings) -> Lab {
    let mut lab = degraded(settings);
    lab.write(A, &[0, 1, 3, 4, 6, 7]);
    lab
}

fn crashed(settings: Settings) -> Lab {
    let mut lab = busy(settings);
    lab.power_off(A);
    lab
}

fn crashed_alone(settings: Settings) -> Lab {
    let mut lab = degraded(settings);
    lab.world.stop(A, false);
    lab
}

/// The power failed while the very first block of the activity log was written: it is neither old nor new.
fn torn_log(settings: Settings) -> Lab {
    let mut lab = start(settings);
    lab.power_off(A);
    let node = &mut lab.world.nodes[A];
    if let Ok(layout) = node.layout() {
        let offset = layout.activity_log_offset().0;
        node.meta_disk().write(offset, &[0xb5; 512], true);
    }
    lab
}

fn diskless(settings: Settings) -> Lab {
    let mut lab = busy_and_idle(settings);
    let force = Force::No;
    lab.ok(
        A,
        Command::Detach {
            volume: VOLUME,
            force,
        },
    );
    lab
}

/// The peer has what was written without a disk: an attach makes this Primary its sync target.
fn behind(settings: Settings) -> Lab {
    let mut lab = diskless(settings);
    lab.write(A, &[2, 3, 4, 5, 6]);
    lab
}

fn both_wrote(settings: Settings) -> Lab {
    let mut lab = degraded(settings);
    lab.ok(B, primary(Force::No));
    lab.write(B, &[6]);
    lab.plug();
    lab.split();
    lab.ok(B, Command::Secondary { volume: VOLUME });
    lab.world.discard(B);
    lab
}

fn fresh(settings: Settings) -> Lab {
    let mut lab = Lab::blank_of(settings);
    lab.world.up(A);
    lab.world.up(B);
    lab.wait("both are connected", |world| {
        world.nodes.iter().all(super::node::Node::is_connected)
    });
    lab
}

/// A is Primary by force and wrote; B has new metadata and is down.
fn alone_by_force(settings: Settings) -> Lab {
    let mut lab = Lab::blank_of(settings);
    lab.world.up(A);
    lab.wait("A has its disk", |world| {
        world.nodes[A].open_commands.is_empty()
    });
    lab.ok(A, primary(Force::Yes));
    lab.write(A, &[0, 1]);
    lab
}

/// Every slot of the activity log is taken, without the peer: the bits of all extents are in memory.
fn full_log(settings: Settings) -> Lab {
    let mut lab = start(settings);
    lab.cut();
    let blocks: Vec<u64> = (0..67).map(|extent| extent * 1024).collect();
    lab.write(A, &blocks);
    lab
}

fn wait(lab: &mut Lab, time: u64) {
    // What is wrong is found afterwards.
    let _ = lab.world.run_for(time);
}

fn ask(lab: &mut Lab, node: usize, command: Command) {
    lab.world.command(node, command);
}

/// Requests of a kind ([`super::clients::Habits::mix`]), where clients are served.
fn request(lab: &mut Lab, node: usize, kind: usize, blocks: &[u64]) {
    for block in blocks {
        let serves = lab.world.nodes[node].serves.unwrap_or(0);
        if lab.world.nodes[node].is_primary() && (block + 1) * 4096 <= serves {
            lab.world.request(node, kind, block * 8, 8);
        }
    }
}

fn read(lab: &mut Lab, node: usize, blocks: &[u64]) {
    request(lab, node, 0, blocks);
}

fn write(lab: &mut Lab, node: usize, blocks: &[u64]) {
    request(lab, node, 1, blocks);
}

/// With FUA.
fn write_durably(lab: &mut Lab, node: usize, blocks: &[u64]) {
    request(lab, node, 2, blocks);
}

fn flush(lab: &mut Lab, node: usize) {
    request(lab, node, 3, &[0]);
}

fn write_and_flush(lab: &mut Lab) {
    write(lab, A, &[1, 3]);
    wait(lab, 3 * MS);
    write(lab, A, &[1]);
    flush(lab, A);
    wait(lab, 20 * MS);
    write(lab, A, &[4]);
    wait(lab, ACT);
}

fn switch_over(lab: &mut Lab) {
    write(lab, A, &[3]);
    wait(lab, 5 * MS);
    ask(lab, A, Command::Secondary { volume: VOLUME });
    wait(lab, 500 * MS);
    if lab.world.nodes[B].is_running() && lab.world.nodes[B].is_connected() {
        ask(lab, B, primary(Force::No));
        wait(lab, MS);
        write(lab, B, &[4]);
    }
    wait(lab, ACT);
}

/// Each write is answered before the next one: no disk may have a later one without an earlier one.
fn write_one_by_one(lab: &mut Lab) {
    for block in [1, 3, 2, 1, 4] {
        write(lab, A, &[block]);
        for _ in 0..40 {
            if lab.world.clients.in_flight(A) > 0 {
                wait(lab, MS / 20);
            }
        }
    }
    wait(lab, ACT);
}

/// Clients that are served too early write while the superblock is on its way.
fn promote_slowly(lab: &mut Lab) {
    lab.world.nodes[A].hang = Some((IoFault::Meta, 1));
    ask(lab, A, primary(Force::No));
    for _ in 0..3 {
        write(lab, A, &[3]);
        wait(lab, 5 * MS);
    }
    lab.world.let_go(A);
    write_when_served(lab);
}

fn promote(lab: &mut Lab) {
    ask(lab, A, primary(Force::No));
    write_when_served(lab);
}

fn write_when_served(lab: &mut Lab) {
    let mut left = 3;
    for _ in 0..400 {
        wait(lab, MS / 20);
        let serves = lab.world.nodes[A].serves.is_some();
        if left > 0 && serves && lab.world.clients.in_flight(A) == 0 {
            left -= 1;
            write(lab, A, &[3]);
        }
    }
    wait(lab, ACT);
}

fn promote_alone(lab: &mut Lab) {
    lab.block([true; 2]);
    wait(lab, 10_000 * MS);
    promote(lab);
}

fn demote(lab: &mut Lab) {
    ask(lab, A, Command::Secondary { volume: VOLUME });
    wait(lab, ACT);
}

/// A write is on its way to the peer when the link is lost.
fn lose_link(lab: &mut Lab) {
    write(lab, A, &[2]);
    wait(lab, 20 * MS);
    lab.block([true; 2]);
    write(lab, A, &[3]);
    write_durably(lab, A, &[5]);
    wait(lab, 10_000 * MS);
    write(lab, A, &[4]);
    wait(lab, ACT);
}

/// The only good copy of what A writes while its disk is behind is on B.
fn catch_up_under_load(lab: &mut Lab) {
    ask(lab, A, Command::PauseSync { volume: VOLUME });
    ask(lab, A, Command::Attach { volume: VOLUME });
    for round in 0..6 {
        wait(lab, 7 * MS);
        write(lab, A, &[round]);
    }
    wait(lab, 2 * ACT);
    ask(lab, A, Command::ResumeSync { volume: VOLUME });
    wait(lab, ACT);
}

fn reconnect(lab: &mut Lab) {
    lab.plug();
    wait(lab, 4000 * MS);
    write(lab, A, &[5]);
    wait(lab, ACT);
}

fn reconnect_under_load(lab: &mut Lab) {
    lab.plug();
    for round in 0..40_u64 {
        wait(lab, 100 * MS);
        if lab.world.clients.in_flight(A) == 0 {
            write(lab, A, &[round % 7]);
        }
    }
    wait(lab, ACT);
}

fn discard_and_connect(lab: &mut Lab) {
    lab.world.connect(B, true);
    lab.world.connect(A, false);
    wait(lab, 2 * ACT);
}

fn attach(lab: &mut Lab) {
    lab.world.up(A);
    wait(lab, ACT);
}

fn detach(lab: &mut Lab, node: usize) {
    write(lab, A, &[3]);
    wait(lab, 5 * MS);
    let force = Force::No;
    ask(
        lab,
        node,
        Command::Detach {
            volume: VOLUME,
            force,
        },
    );
    wait(lab, 300 * MS);
    write(lab, A, &[4]);
    wait(lab, ACT);
}

/// Some of the bits that it cleared are in memory only.
fn detach_the_target(lab: &mut Lab) {
    lab.plug();
    let synced = |lab: &Lab| lab.world.nodes[B].state().map(|state| state.conn);
    for _ in 0..16_000 {
        wait(lab, MS / 2);
        if matches!(synced(lab), None | Some(ConnState::SyncTarget)) {
            break;
        }
    }
    wait(lab, 2 * MS);
    let force = Force::No;
    ask(
        lab,
        B,
        Command::Detach {
            volume: VOLUME,
            force,
        },
    );
    wait(lab, ACT);
}

fn invalidate(lab: &mut Lab) {
    lab.world.discard(B);
    ask(lab, B, Command::Invalidate { volume: VOLUME });
    wait(lab, 30 * MS);
    write(lab, A, &[4]);
    wait(lab, ACT);
}

fn new_generation(lab: &mut Lab) {
    let clear_bitmap = true;
    ask(
        lab,
        A,
        Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap,
        },
    );
    wait(lab, 300 * MS);
    ask(lab, A, primary(Force::No));
    wait(lab, 300 * MS);
    write(lab, A, &[4]);
    wait(lab, ACT);
}

fn join(lab: &mut Lab) {
    lab.world.up(B);
    wait(lab, 300 * MS);
    write(lab, A, &[2]);
    wait(lab, 2 * ACT);
}

/// A smaller activity log, then none, then one again, each under load.
fn change_options(lab: &mut Lab) {
    let old = lab.world.settings.disk_options.clone();
    let changes = [(67, true), (67, false), (127, true)];
    for (al_extents, al_updates) in changes {
        write(lab, A, &[2, 3]);
        let options = DiskOptions {
            al_extents,
            al_updates,
            ..old.clone()
        };
        let volume = VOLUME;
        ask(lab, A, Command::DiskOptions { volume, options });
        wait(lab, MS);
        write(lab, A, &[4]);
        wait(lab, 500 * MS);
    }
    wait(lab, ACT);
}

/// The disks become as large again, and the device with them, under load.
fn resize(lab: &mut Lab) {
    write(lab, A, &[0, 3]);
    for node in &mut lab.world.nodes {
        let bytes = node.data.bytes();
        node.data.grow(bytes);
    }
    ask(
        lab,
        A,
        Command::Resize {
            volume: VOLUME,
            size: 0,
            room: PeerRoom::Asked,
            area: NewArea::Resync,
        },
    );
    wait(lab, 10 * MS);
    write(lab, A, &[1, 2]);
    wait(lab, 500 * MS);
    write(lab, A, &[5, 7]);
    wait(lab, ACT);
}

fn evict(lab: &mut Lab) {
    write(lab, A, &[67 * 1024]);
    wait(lab, ACT);
}

/// The only good copy of what was answered is in the cache of B.
fn lose_disk_and_peer(lab: &mut Lab) {
    write(lab, A, &[2]);
    wait(lab, 3 * MS);
    let force = Force::Yes;
    ask(
        lab,
        A,
        Command::Detach {
            volume: VOLUME,
            force,
        },
    );
    wait(lab, 2 * ACT);
    if !lab.world.nodes[B].is_running() {
        lab.world.up(B);
        wait(lab, ACT);
    }
    flush(lab, A);
    wait(lab, 500 * MS);
}

/// Under protocol A: A answers writes, and makes them durable, that never reach B.
fn write_into_a_dead_link(lab: &mut Lab) {
    lab.block([true; 2]);
    write_durably(lab, A, &[3, 5]);
    wait(lab, 100 * MS);
}

/// Under protocol A a write is answered that B is slow with; then A loses its disk, and is to be demoted.
fn demote_without_a_disk(lab: &mut Lab) {
    lab.world.nodes[B].hang = Some((IoFault::DataWrite, 1));
    write(lab, A, &[2]);
    wait(lab, 20 * MS);
    let (volume, force) = (VOLUME, Force::Yes);
    ask(lab, A, Command::Detach { volume, force });
    wait(lab, 20 * MS);
    ask(lab, A, Command::Secondary { volume });
    wait(lab, 300 * MS);
    lab.world.let_go(B);
    wait(lab, 2 * ACT);
}

/// What A shows its application is on the disk of B only.
fn write_without_disk(lab: &mut Lab) {
    write(lab, A, &[2, 3]);
    wait(lab, 400 * MS);
    write(lab, A, &[2]);
    wait(lab, 4000 * MS);
    ask(lab, A, Command::Attach { volume: VOLUME });
    wait(lab, ACT);
    read(lab, A, &[2, 3]);
    wait(lab, 100 * MS);
}

/// The disk of A knows nothing of the second extent.
fn write_elsewhere_without_disk(lab: &mut Lab) {
    write(lab, A, &[1024, 1025]);
    wait(lab, 400 * MS);
    ask(lab, A, Command::Attach { volume: VOLUME });
    wait(lab, ACT);
}

macro_rules! stories {
    ($($name:literal: $victim:ident, $settings:ident, $set_up:ident, $act:expr;)+) => {
        &[$(Story {
            name: $name,
            victim: $victim,
            settings: $settings,
            set_up: $set_up,
            act: $act,
        }),+]
    };
}

/// All of them: every kind of durable sequence, on both sides.
pub const STORIES: &[Story] = stories! {
    "the first writes of a Primary": A, external, start, write_and_flush;
    "the first writes of a Primary, internal metadata": A, internal, start, write_and_flush;
    "the writes of a peer": B, external, start, write_and_flush;
    "the writes of a peer, protocol A": B, asynchronous, start, write_one_by_one;
    "an attach after a crash": A, external, crashed, attach;
    "an attach after a process was killed alone": A, external, crashed_alone, attach;
    "an attach after the activity log was torn": A, external, torn_log, attach;
    "a switchover, the old Primary": A, external, busy, switch_over;
    "a switchover, the new Primary": B, external, busy, switch_over;
    "a promotion": A, external, pair, promote;
    "a promotion, its superblock is slow": A, external, pair, promote_slowly;
    "a promotion alone": A, external, pair, promote_alone;
    "a demotion alone": A, external, degraded, demote;
    "a demotion alone, internal metadata": A, internal, degraded, demote;
    "a lost link, the Primary": A, external, start, lose_link;
    "a lost link, the Secondary": B, external, start, lose_link;
    "a resync, the source": A, external, degraded, reconnect;
    "a resync, the target": B, external, degraded, reconnect;
    "a resync under load, the source": A, external, degraded, reconnect_under_load;
    "a resync under load, the target": B, external, degraded, reconnect_under_load;
    "a decided split brain, the target": B, external, both_wrote, discard_and_connect;
    "a decided split brain, the source": A, external, both_wrote, discard_and_connect;
    "a detach of the Primary": A, external, busy, |lab| detach(lab, A);
    "a detach of the Secondary": B, external, busy, |lab| detach(lab, B);
    "a detach of the target of a resync": B, external, far_behind, detach_the_target;
    "writes without a disk, the peer": B, external, diskless, write_without_disk;
    "writes without a disk, the Primary": A, external, diskless, write_without_disk;
    "writes without a disk, elsewhere": B, wide, diskless, write_elsewhere_without_disk;
    "a Primary is the target of a resync, the source": B, external, behind, catch_up_under_load;
    "a Primary is the target of a resync, the target": A, external, behind, catch_up_under_load;
    "a disk and its peer are lost": B, external, start, lose_disk_and_peer;
    "the last writes of a Primary, protocol A": A, asynchronous, busy_and_idle, write_into_a_dead_link;
    "a demotion without a disk, protocol A, the peer": B, asynchronous, start,
        demote_without_a_disk;
    "an invalidate, the target": B, external, busy_and_idle, invalidate;
    "an invalidate, the source": A, external, busy_and_idle, invalidate;
    "a skipped initial sync": A, external, fresh, new_generation;
    "a skipped initial sync, the peer": B, external, fresh, new_generation;
    "a first full sync, the source": A, external, alone_by_force, join;
    "a first full sync, the target": B, external, alone_by_force, join;
    "other options of the disk": A, external, busy, change_options;
    "other options of the disk without the peer": A, external, degraded, change_options;
    "a resize, the Primary": A, half, start, resize;
    "a resize, the Secondary": B, half, start, resize;
    "an eviction from the activity log": A, large, full_log, evict;
};

fn pair(settings: Settings) -> Lab {
    Lab::pair_of(settings)
}
