//! Power is lost at every single I/O of a node's life: whatever differs from the peer is named by a bit afterwards, and what
//! was flushed is there.
//!
//! Method: the same script runs again and again; from its n-th I/O on nothing completes any more, then the power goes. A
//! volatile cache may keep nothing, everything, or any part of what was not flushed.

use tandem_replicator::{Command, Effect, Force, Fua, Operation};

use crate::harness::{VOLUME, World};

/// I/Os of the script, at most: it has to end before.
const STEPS_MAX: usize = 2000;

const ZEROES: [u8; 4096] = [0; 4096];

/// What a volatile cache makes of writes that were not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    Lost,
    Kept,
    EverySecond,
}

fn is_io(effect: &Effect) -> bool {
    matches!(effect, Effect::Disk { .. } | Effect::Meta { .. })
}

fn detach() -> Command {
    Command::Detach {
        volume: VOLUME,
        force: Force::No,
    }
}

/// A Primary without a peer; the peer is taken to have what was there when the bitmap was cleared.
fn prepared() -> World {
    let mut world = World::alone();
    world.ok(0, Command::Attach { volume: VOLUME });
    world.ok(
        0,
        Command::Primary {
            volume: VOLUME,
            force: Force::Yes,
        },
    );
    world.ok(
        0,
        Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap: true,
        },
    );
    world
}

/// Writes, a change of roles, a detach and an attach; more hot extents than one write touches.
fn script(world: &mut World) -> Vec<(u64, u8)> {
    let mut flushed = Vec::new();
    let mut fill = 1;
    let mut write = |world: &mut World, offset: u64, length: usize| {
        fill += 1;
        let id = world.write(0, offset, length, fill);
        (id, offset, fill)
    };
    let mut some = vec![write(world, 0, 4096), write(world, 9 << 20, 65536)];
    some.push(write(world, (12 << 20) - 4096, 8192));
    let flush = world.request(0, Operation::Flush);
    if world.reply(0, flush).is_some_and(Result::is_ok) {
        flushed.extend(some.iter().map(|(_, offset, fill)| (*offset, *fill)));
    }
    let data = bytes::Bytes::from(vec![99; 4096]);
    let offset = 40 << 20;
    let fua = Fua::Yes;
    let durable = world.request(0, Operation::Write { offset, data, fua });
    if world.reply(0, durable).is_some_and(Result::is_ok) {
        flushed.push((offset, 99));
    }
    world.command(0, Command::Secondary { volume: VOLUME });
    world.command(
        0,
        Command::Primary {
            volume: VOLUME,
            force: Force::No,
        },
    );
    write(world, 20 << 20, 4096);
    world.command(0, Command::Secondary { volume: VOLUME });
    world.command(0, detach());
    world.command(0, Command::Attach { volume: VOLUME });
    flushed
}

fn crash_at(step: usize, cache: Cache) -> bool {
    let mut world = prepared();
    let generation = world.nodes[0].disk.superblock().uuids.current;
    let mut seen = 0;
    world.hold(0, move |effect| {
        seen += usize::from(is_io(effect));
        is_io(effect) && seen > step
    });
    let flushed = script(&mut world);
    let cut = world.held(0) > 0;
    match cache {
        Cache::Lost => {}
        Cache::Kept => world.nodes[0].disk.keep_unflushed(|_| true),
        Cache::EverySecond => world.nodes[0].disk.keep_unflushed(|at| at % 2 == step % 2),
    }
    world.crash(0);
    let what = format!("after I/O {step}, cache {cache:?}");
    let answer = world.answer(0, Command::Attach { volume: VOLUME });
    assert_eq!(answer.exit, 0, "{what}: {answer:?}");
    let disk = &world.nodes[0].disk;
    for (offset, fill) in flushed {
        assert_eq!(
            disk.current[offset as usize], fill,
            "{what}: flushed data at {offset}"
        );
    }
    let bytes = world.nodes[0].resource.status().volumes[0].bytes as usize;
    let bitmap = disk.layout.bitmap_offset().0 as usize;
    for (block, data) in disk.current[..bytes].chunks(4096).enumerate() {
        let differs = *data != ZEROES[..data.len()];
        let set = disk.durable[bitmap + block / 8] & (1 << (block % 8)) != 0;
        assert!(
            set || !differs,
            "{what}: block {block} differs and has no bit"
        );
    }
    let uuids = world.uuids(0);
    assert_eq!(uuids[0] & !1, generation & !1, "{what}: the generation");
    cut
}

fn crash_everywhere(cache: Cache) {
    for step in 0..STEPS_MAX {
        if !crash_at(step, cache) {
            assert!(step > 20, "the script does too little: {step}");
            return;
        }
    }
    panic!("the script does not end");
}

#[test]
fn nothing_is_forgotten_when_the_cache_is_lost() {
    crash_everywhere(Cache::Lost);
}

#[test]
fn nothing_is_forgotten_when_the_cache_is_kept() {
    crash_everywhere(Cache::Kept);
}

#[test]
fn nothing_is_forgotten_when_half_of_the_cache_is_kept() {
    crash_everywhere(Cache::EverySecond);
}
