//! What clients may ask of a volume at any time: what differs from the peer, whose data they read, what zeroes cost.

use proptest::prelude::*;
use tandem_replicator::{Command, Force, NetOptions, Protocol, SyncExtent};

use crate::harness::{VOLUME, World};
use crate::integrity::with_digest;

const BLOCK: u64 = 4096;

/// A Primary without its peer that wrote these blocks.
fn apart(blocks: impl IntoIterator<Item = u64>) -> World {
    let mut world = World::small(&NetOptions::default(), 8 << 20);
    world.cut_network();
    world.ok(0, Command::Disconnect { force: Force::No });
    for block in blocks {
        world.write_ok(0, block * BLOCK, BLOCK as usize, 7);
    }
    world
}

fn extents(world: &World, start: u64, end: u64, limit: usize) -> Vec<SyncExtent> {
    let engine = &world.nodes[0].resource;
    engine.sync_extents(VOLUME, start..end, limit)
}

#[test]
fn what_the_peer_misses_is_told_to_the_byte() {
    let world = apart([3, 4, 9]);
    let told: Vec<(u64, bool)> = extents(&world, 3 * BLOCK + 100, 10 * BLOCK + 1, 100)
        .into_iter()
        .map(|extent| (extent.length, extent.out_of_sync))
        .collect();
    let expected = [
        (2 * BLOCK - 100, true),
        (4 * BLOCK, false),
        (BLOCK, true),
        (1, false),
    ];
    assert_eq!(told, expected);
    assert_eq!(extents(&world, 3 * BLOCK + 100, 10 * BLOCK, 1).len(), 1);
    assert!(extents(&world, 0, u64::MAX, 0).is_empty());
    assert!(extents(&world, 5, 5, 9).is_empty());
}

#[test]
fn after_the_resync_nothing_differs_and_without_a_disk_everything_may() {
    let mut world = World::ready(&NetOptions::default());
    let all = |world: &World, out_of_sync| {
        let told = extents(world, 0, 1 << 20, 100);
        assert_eq!(
            told,
            [SyncExtent {
                length: 1 << 20,
                out_of_sync
            }]
        );
    };
    all(&world, false);
    assert!(world.nodes[0].resource.reads_locally(VOLUME));
    world.ok(
        0,
        Command::Detach {
            volume: VOLUME,
            force: Force::No,
        },
    );
    all(&world, true);
    assert!(!world.nodes[0].resource.reads_locally(VOLUME));
}

#[test]
fn zeroes_are_short_unless_the_peer_takes_data_only() {
    let world = World::ready(&NetOptions::default());
    assert!(world.nodes[0].resource.zeroes_are_short(VOLUME));
    // Nobody to send them to.
    let world = apart([]);
    assert!(world.nodes[0].resource.zeroes_are_short(VOLUME));
    // Two of our kind leave the digest of a packet without payload out.
    let world = World::ready(&with_digest(Protocol::C, "crc32c"));
    assert!(world.nodes[0].resource.zeroes_are_short(VOLUME));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn extents_say_what_the_bits_say(
        blocks in prop::collection::btree_set(0u64..200, 0..40),
        start in 0u64..200 * BLOCK,
        length in 1u64..200 * BLOCK,
        limit in 1usize..50,
    ) {
        let world = apart(blocks.iter().copied());
        let engine = &world.nodes[0].resource;
        let told = extents(&world, start, start + length, limit);
        prop_assert!(!told.is_empty() && told.len() <= limit);
        prop_assert!(told.windows(2).all(|pair| pair[0].out_of_sync != pair[1].out_of_sync));
        let mut at = start;
        for extent in &told {
            prop_assert!(extent.length > 0);
            for byte in [at, at + extent.length / 2, at + extent.length - 1] {
                prop_assert_eq!(engine.is_out_of_sync(VOLUME, byte), Some(extent.out_of_sync));
            }
            let first = at.div_ceil(BLOCK);
            for block in first..(at + extent.length).div_ceil(BLOCK) {
                let bit = engine.is_out_of_sync(VOLUME, block * BLOCK);
                prop_assert_eq!(bit, Some(extent.out_of_sync));
            }
            at += extent.length;
        }
        prop_assert!(at == start + length || told.len() == limit);
    }
}
