//! Requests that do not start or end on a sector: merged under the lock of the sectors that they touch.

use bytes::Bytes;
use proptest::prelude::*;
use tandem_replicator::state::word::{ConnState, DiskState};
use tandem_replicator::{
    Command, DiskOperation, DiskOptions, Effect, Force, Fua, NetOptions, Operation, RequestError,
    RequestId, Unmap,
};

use crate::harness::{VOLUME, World};

const A: usize = 0;
const B: usize = 1;

fn ready() -> World {
    World::ready(&NetOptions::default())
}

fn ok(world: &mut World, operation: Operation) {
    let id = world.request(A, operation);
    world.run_until("a request is answered", |world| {
        world.reply(A, id).is_some()
    });
    assert_eq!(world.reply(A, id), Some(&Ok(Bytes::new())));
}

fn both_hold(world: &World, offset: usize, expected: &[u8]) {
    for node in [A, B] {
        let disk = &world.nodes[node].disk.current;
        let found = &disk[offset..offset + expected.len()];
        assert!(found == expected, "node {node} at {offset}");
    }
}

fn reads_data(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Disk {
            operation: DiskOperation::Read { .. },
            ..
        }
    )
}

#[test]
fn a_write_whose_edges_are_lost_while_io_is_suspended_goes_on_when_that_ends() {
    let mut world = ready();
    world.write_ok(A, 0, 4096, 1);
    world.ok(
        A,
        Command::Detach {
            volume: VOLUME,
            force: Force::No,
        },
    );
    world.hold(B, reads_data);
    let id = world.request(
        A,
        Operation::Write {
            offset: 100,
            data: Bytes::from_static(&[2; 10]),
            fua: Fua::No,
        },
    );
    assert_eq!(world.held(B), 1, "the old bytes are read on the peer");
    world.ok(A, Command::SuspendIo { volume: VOLUME });
    world.cut_network();
    world.run_until("the peer is lost", |world| {
        world.state(A).conn < ConnState::Connected
    });
    assert_eq!(world.reply(A, id), None);
    world.join();
    world.release(B);
    world.run_until("the peer is back", |world| {
        world.state(A).conn == ConnState::Connected
    });
    assert_eq!(world.reply(A, id), None);
    world.ok(A, Command::ResumeIo { volume: VOLUME });
    world.run_until("the write is answered", |world| {
        world.reply(A, id).is_some()
    });
    assert_eq!(world.reply(A, id), Some(&Ok(Bytes::new())));
    let disk = &world.nodes[B].disk.current;
    assert_eq!(disk[99..111], [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
}

#[test]
fn a_write_of_a_part_of_a_sector_keeps_the_rest_on_both_disks() {
    let mut world = ready();
    let mut model = vec![1; 8192];
    world.write_ok(A, 0, 8192, 1);
    for (fill, offset, length) in [
        (2, 100, 1),
        (3, 511, 2),
        (4, 1024, 100),
        (5, 1900, 148),
        (6, 2049, 1535),
        (7, 4000, 3000),
    ] {
        world.write_ok(A, offset as u64, length, fill);
        model[offset..offset + length].fill(fill);
        both_hold(&world, 0, &model);
    }
    assert_eq!(world.read_ok(A, 99, 3)[..], [1, 2, 1]);
    assert_eq!(world.read_ok(A, 3999, 3002)[..], model[3999..7001]);
}

#[test]
fn overlapping_writes_of_parts_of_one_sector_lose_nothing() {
    let mut world = ready();
    world.write_ok(A, 0, 1024, 1);
    // All are under way before the first has read the sector that it merges with.
    world.hold(A, reads_data);
    let ids: Vec<RequestId> = (0..16u8)
        .map(|n| world.write(A, u64::from(n) * 50, 50, 10 + n))
        .collect();
    assert_eq!(world.held(A), 1, "one at a time holds the sector");
    world.release(A);
    world.run_until("all are answered", |world| {
        ids.iter().all(|id| world.reply(A, *id).is_some())
    });
    let mut model = vec![1; 1024];
    for n in 0..16 {
        model[n * 50..(n + 1) * 50].fill(10 + n as u8);
    }
    both_hold(&world, 0, &model);
}

#[test]
fn a_whole_sector_waits_for_the_part_that_came_before_it() {
    let mut world = ready();
    world.hold(A, reads_data);
    let part = world.write(A, 10, 10, 1);
    let whole = world.write(A, 0, 512, 2);
    assert!(world.reply(A, whole).is_none());
    world.release(A);
    world.run_until("both are answered", |world| {
        world.reply(A, part).is_some() && world.reply(A, whole).is_some()
    });
    both_hold(&world, 0, &[2; 512]);
}

#[test]
fn a_discard_gives_back_whole_sectors_only_and_zeroes_reach_every_byte() {
    let mut world = ready();
    let mut model = vec![9; 8192];
    world.write_ok(A, 0, 8192, 9);
    let discard = |offset, length| Operation::Discard {
        offset,
        length,
        fua: Fua::No,
    };
    ok(&mut world, discard(100, 300));
    both_hold(&world, 0, &model);
    ok(&mut world, discard(1000, 1100));
    model[1024..2048].fill(0);
    both_hold(&world, 0, &model);
    for (offset, length) in [(3000, 10), (3580, 8), (4000, 2000)] {
        let zeroes = Operation::WriteZeroes {
            offset,
            length,
            fua: Fua::Yes,
            unmap: Unmap::Allowed,
        };
        ok(&mut world, zeroes);
        model[offset as usize..(offset + u64::from(length)) as usize].fill(0);
        both_hold(&world, 0, &model);
    }
}

#[test]
fn a_diskless_primary_merges_with_what_its_peer_holds() {
    let mut world = ready();
    world.write_ok(A, 0, 4096, 1);
    world.ok(
        A,
        Command::Detach {
            volume: VOLUME,
            force: Force::No,
        },
    );
    assert_eq!(world.state(A).disk, DiskState::Diskless);
    world.write_ok(A, 700, 5, 2);
    let disk = &world.nodes[B].disk.current;
    assert_eq!(disk[699..706], [1, 2, 2, 2, 2, 2, 1]);
}

#[test]
fn an_edge_that_the_disk_cannot_read_comes_from_the_peer() {
    let mut world = ready();
    world.write_ok(A, 0, 4096, 1);
    world.fail(A, reads_data);
    world.write_ok(A, 700, 5, 2);
    let disk = &world.nodes[B].disk.current;
    assert_eq!(disk[699..706], [1, 2, 2, 2, 2, 2, 1]);
}

#[test]
fn an_edge_that_nobody_can_read_fails_the_write_and_changes_nothing() {
    let mut world = ready();
    world.write_ok(A, 0, 4096, 1);
    world.fail(A, reads_data);
    world.fail(B, reads_data);
    let id = world.write(A, 700, 5, 2);
    world.run_until("it is answered", |world| world.reply(A, id).is_some());
    assert_eq!(world.reply(A, id), Some(&Err(RequestError::Io)));
    for node in [A, B] {
        assert_eq!(world.nodes[node].disk.current[..4096], [1; 4096]);
    }
}

#[test]
fn disks_with_large_sectors_get_whole_ones_here_and_there() {
    for large in [A, B] {
        let mut world = World::pair();
        world.nodes[large].logical_block = 4096;
        world.make_ready(&NetOptions::default());
        world.write_ok(A, 0, 16384, 1);
        let before = [A, B].map(|node| world.nodes[node].history.len());
        world.write_ok(A, 4608, 512, 2);
        world.write_ok(A, 100, 9000, 3);
        for node in [A, B] {
            for effect in &world.nodes[node].history[before[node]..] {
                let Effect::Disk {
                    operation: DiskOperation::Write { offset, data, .. },
                    ..
                } = effect
                else {
                    continue;
                };
                assert_eq!((offset % 4096, data.len() % 4096), (0, 0), "node {node}");
            }
        }
        let mut model = vec![1; 16384];
        model[4608..5120].fill(2);
        model[100..9100].fill(3);
        both_hold(&world, 0, &model);
    }
}

#[test]
fn a_last_sector_that_the_device_cuts_short_keeps_what_a_write_leaves_out() {
    let start = 1 << 20;
    for cut in (512..4096).step_by(512) {
        let mut world = World::pair();
        world.nodes[B].logical_block = 4096;
        for node in [A, B] {
            let options = DiskOptions {
                size: start + cut as u64,
                ..DiskOptions::default()
            };
            world.ok(
                node,
                Command::DiskOptions {
                    volume: VOLUME,
                    options,
                },
            );
        }
        world.make_ready(&NetOptions::default());
        assert_eq!(world.nodes[A].served, Some(start + cut as u64));
        let mut model = vec![1; 4096 + cut];
        world.write_ok(A, start - 4096, model.len(), 1);
        // Its beginning, its end, its middle, and what reaches into it.
        for (fill, offset, length) in [
            (2, 4096, 100),
            (3, 4096 + cut - 7, 7),
            (4, 4096 + 200, 10),
            (5, 4000, 200),
        ] {
            world.write_ok(A, start - 4096 + offset as u64, length, fill);
            model[offset..offset + length].fill(fill);
            both_hold(&world, start as usize - 4096, &model);
        }
    }
}

/// What one client asks for: kind, first byte, length, fill.
fn requests() -> impl Strategy<Value = Vec<(u8, u64, u32, u8)>> {
    let one = (0..5u8, 0..12_000u64, 1..5000u32, 1..=255u8);
    proptest::collection::vec(one, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_requests_one_after_another_are_byte_for_byte_a_plain_file(list in requests()) {
        let mut world = World::small(&NetOptions::default(), 8 << 20);
        let mut model = vec![0; 20_000];
        for (kind, offset, length, fill) in list {
            let range = offset as usize..offset as usize + length as usize;
            match kind {
                0 => {
                    let read = world.read_ok(A, offset, length);
                    prop_assert_eq!(&read[..], &model[range]);
                    continue;
                }
                1 => ok(&mut world, Operation::WriteZeroes {
                    offset,
                    length,
                    fua: Fua::No,
                    unmap: Unmap::No,
                }),
                _ => world.write_ok(A, offset, length as usize, fill),
            }
            model[range].fill(if kind == 1 { 0 } else { fill });
        }
        both_hold(&world, 0, &model);
    }

    #[test]
    fn disjoint_parts_written_all_at_once_are_all_there(
        mut cuts in proptest::collection::btree_set(1..6000u64, 1..20),
        slow in any::<bool>(),
    ) {
        let mut world = World::small(&NetOptions::default(), 8 << 20);
        cuts.insert(0);
        let cuts: Vec<u64> = cuts.into_iter().collect();
        if slow {
            world.hold(A, reads_data);
        }
        let mut model = vec![0; 8192];
        let mut ids = Vec::new();
        for (n, pair) in cuts.windows(2).enumerate() {
            let fill = 1 + n as u8;
            model[pair[0] as usize..pair[1] as usize].fill(fill);
            ids.push(world.write(A, pair[0], (pair[1] - pair[0]) as usize, fill));
        }
        world.release(A);
        world.run_until("all are answered", |world| {
            ids.iter().all(|id| world.reply(A, *id).is_some())
        });
        both_hold(&world, 0, &model);
    }
}
