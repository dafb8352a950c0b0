//! Large devices: what a bitmap of half a gigabyte for each 16 TiB costs in time and memory.

use std::time::Duration;

use super::figures::Unit;
use super::resync::{RESYNC_LIMIT, UNLIMITED};
use super::{Bench, timed};
use crate::Failure;
use crate::contenders::Medium;
use crate::contenders::nodes::{Backing, Nodes, RESOURCE, Setup, Words};
use crate::load::{self, BLOCK_BYTES};
use crate::machine;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const SIZES: [(&str, u64); 4] = [
    ("1 GiB", GIB),
    ("1 TiB", TIB),
    ("16 TiB", 16 * TIB),
    ("64 TiB", 64 * TIB),
];

/// One dirty block in so many.
const DIRTY_SHARE: u64 = 100;

/// Most blocks that are made dirty: 512 MiB of data on each node.
const DIRTY_WRITES_MAX: u64 = 128 << 10;

/// Making them dirty ends after this time, however many there are then.
const DIRTY_TIME_MAX: Duration = Duration::from_secs(60);

/// Attaching and connecting may take this long: several gigabytes of bitmaps are read.
const LIMIT: Duration = Duration::from_secs(300);

/// Memory that is left to everything else.
const SPARE_MIB: u64 = 4096;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    bench.found.note(format!(
        "attach: 'adjust --skip-net' in a daemon just started; connect: 'connect' on both nodes until both are Connected with a clean \
         volume, or until the resync runs; promote: 'primary'. dirty: one block of 4 KiB in {DIRTY_SHARE}, spread evenly, written while \
         disconnected, but at most {DIRTY_WRITES_MAX} blocks and {} s of writing; the row 'dirty' says how many there were; \
         a page of the bitmap stands for 128 MiB of data; with more than a few bits it is kept in memory. \
         Options of all: {}",
        DIRTY_TIME_MAX.as_secs(),
        words().in_words()
    ));
    for round in 1..=bench.rounds {
        for (name, bytes) in SIZES {
            match one_size(name, bytes, round, bench) {
                Ok(()) => {}
                Err(Failure::Interrupted) => return Err(Failure::Interrupted),
                Err(failure) => bench.found.absent(format!("{name}: {failure}")),
            }
        }
    }
    Ok(())
}

fn words() -> Words {
    Words {
        net: String::new(),
        disk: UNLIMITED.to_owned(),
    }
}

fn one_size(name: &str, bytes: u64, round: u32, bench: &mut Bench<'_>) -> Result<(), Failure> {
    enough_memory(bytes, bench.site.medium, machine::memory_available_mib())?;
    bench.doing(&format!("round {round}, {name}"))?;
    let mut setup = Setup::plain(Backing::Sparse(bytes))?;
    setup.words = words();
    let program = bench.site.tandem.as_ref();
    let mut nodes = Nodes::make(setup, program, bench.directory()?)?;
    nodes.start_both(bench.stop)?;
    nodes.bring_up(bench.stop)?;
    nodes.shut_down()?;

    let clean = format!("{name}, clean");
    bench.doing(&format!("round {round}, {clean}"))?;
    boot(&mut nodes, &clean, bench)?;
    let connect = timed(|| {
        connect_both(&nodes)?;
        nodes.reached(RESOURCE, "UpToDate/UpToDate", LIMIT, bench.stop)
    })?;
    bench.found.add(&clean, "connect", Unit::Seconds, connect);
    promote_and_weigh(&nodes, &clean, bench)?;

    let dirty = format!("{name}, dirty");
    bench.doing(&format!("round {round}, {dirty}: scattered writes"))?;
    make_dirty(&nodes, &dirty, bench)?;
    nodes.shut_down()?;
    bench.doing(&format!("round {round}, {dirty}"))?;
    boot(&mut nodes, &dirty, bench)?;
    let connect = timed(|| {
        connect_both(&nodes)?;
        let what = "the resync";
        nodes.until(
            &nodes.nodes[1],
            RESOURCE,
            LIMIT,
            what,
            bench.stop,
            |volume| ["SyncTarget", "Connected"].contains(&volume.connection.as_str()),
        )
    })?;
    bench.found.add(&dirty, "connect", Unit::Seconds, connect);
    promote_and_weigh(&nodes, &dirty, bench)?;
    let resync = timed(|| nodes.reached(RESOURCE, "UpToDate/UpToDate", RESYNC_LIMIT, bench.stop))?;
    bench
        .found
        .add(&dirty, "rest of the resync", Unit::Seconds, resync);
    Ok(())
}

/// A bitmap in each daemon, and on tmpfs one in each file.
fn enough_memory(bytes: u64, medium: Medium, available_mib: u64) -> Result<(), Failure> {
    let bitmap_mib = (bytes / u64::from(BLOCK_BYTES) / 8) >> 20;
    let bitmaps = match medium {
        Medium::Tmpfs => 4,
        Medium::Disk => 2,
    };
    let wanted_mib = bitmaps * bitmap_mib + SPARE_MIB;
    if available_mib >= wanted_mib {
        return Ok(());
    }
    Err(Failure::Unexpected(format!(
        "{available_mib} MiB of memory are available, {wanted_mib} are wanted; next: repeat it when there is more"
    )))
}

/// Both daemons start and attach; what the first one takes counts.
fn boot(nodes: &mut Nodes, case: &str, bench: &mut Bench<'_>) -> Result<(), Failure> {
    nodes.start_both(bench.stop)?;
    let [alpha, bravo] = &nodes.nodes;
    let attach = timed(|| alpha.must(&["adjust", "--skip-net", RESOURCE]))?;
    bench.found.add(case, "attach", Unit::Seconds, attach);
    bravo.must(&["adjust", "--skip-net", RESOURCE])?;
    Ok(())
}

fn connect_both(nodes: &Nodes) -> Result<(), Failure> {
    for node in &nodes.nodes {
        node.must(&["connect", RESOURCE])?;
    }
    Ok(())
}

fn promote_and_weigh(nodes: &Nodes, case: &str, bench: &mut Bench<'_>) -> Result<(), Failure> {
    let promote = timed(|| nodes.nodes[0].must(&["primary", RESOURCE]))?;
    bench.found.add(case, "promote", Unit::Seconds, promote);
    for which in 0..2 {
        let server = nodes.server(which)?;
        if let Some(mib) = server.resident_mib() {
            let what = format!("memory of {}", server.role);
            bench.found.add(case, &what, Unit::Mib, mib);
        }
    }
    Ok(())
}

/// Scattered writes on the Primary alone; it is Secondary again afterwards.
fn make_dirty(nodes: &Nodes, case: &str, bench: &mut Bench<'_>) -> Result<(), Failure> {
    let alpha = &nodes.nodes[0];
    alpha.must(&["disconnect", RESOURCE])?;
    let endpoint = alpha.endpoint(RESOURCE);
    let offsets = scattered_offsets(endpoint.probe()?);
    let written = load::write_at(&endpoint, offsets, DIRTY_TIME_MAX, bench.stop)?;
    bench.found.add(case, "dirty", Unit::Blocks, written as f64);
    alpha.must(&["secondary", RESOURCE]).map(drop)
}

/// One block in [`DIRTY_SHARE`], or [`DIRTY_WRITES_MAX`] of them, evenly over the device.
fn scattered_offsets(device_bytes: u64) -> impl Iterator<Item = u64> + 'static {
    let block = u64::from(BLOCK_BYTES);
    let blocks = device_bytes / block;
    let count = (blocks / DIRTY_SHARE).clamp(1, DIRTY_WRITES_MAX);
    let stride = blocks / count * block;
    (0..count).map(move |number| number * stride)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_blocks_are_a_hundredth_or_the_bound_and_lie_on_the_device() {
        assert_eq!(scattered_offsets(GIB).count() as u64, GIB / 4096 / 100);
        for (name, bytes) in SIZES {
            let offsets: Vec<u64> = scattered_offsets(bytes).collect();
            assert!(offsets.len() as u64 <= DIRTY_WRITES_MAX, "{name}");
            assert!(offsets.iter().all(|offset| offset % 4096 == 0), "{name}");
            let last = offsets.last().copied().unwrap();
            assert!(last + 4096 <= bytes && last > bytes / 10 * 9, "{name}");
        }
        assert_eq!(scattered_offsets(64 * TIB).count() as u64, DIRTY_WRITES_MAX);
    }

    #[test]
    fn a_size_whose_bitmaps_do_not_fit_into_memory_is_refused() {
        // 2 GiB for each bitmap.
        assert!(enough_memory(64 * TIB, Medium::Tmpfs, 12_288).is_ok());
        let refused = enough_memory(64 * TIB, Medium::Tmpfs, 12_287).unwrap_err();
        assert!(
            refused.to_string().contains("12288 are wanted"),
            "{refused}"
        );
        assert!(enough_memory(64 * TIB, Medium::Disk, 8192).is_ok());
    }
}
