//! Goal: disks may differ in size, go and come back, and move from one kind of node to the other.
//! Method: detach, attach, and the copy of a whole backing disk.

use crate::crash::quick_to_notice;
use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::wait;
use tandem_tests::kernel::couple::MOMENT;
use tandem_tests::kernel::{Couple, Health, Machine, Setup, noise};

fn of_different_sizes(tandem_bytes: u64, kernel_bytes: u64) {
    let couple = Couple::synced(
        Machine::shared(),
        Setup {
            tandem_bytes,
            kernel_bytes,
            ..Setup::default()
        },
    );
    couple.may_say(&["Considerable difference in lower level device sizes"]);
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    let bytes = couple.kernel.device_bytes();
    assert_eq!(client.bytes, bytes);
    assert!(
        bytes < tandem_bytes.min(kernel_bytes)
            && bytes > tandem_bytes.min(kernel_bytes) - (1 << 20)
    );
    client
        .write(bytes - 65_536, &noise(1, 65_536), Fua::No)
        .unwrap();
    client.disconnect().unwrap();
    couple.tandem.must(&["secondary", "r0"]);
    couple.kernel.must("primary");
    couple.kernel.write(bytes - 4096, &noise(2, 4096));
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn the_smaller_disk_of_the_kernel_decides_the_size() {
    of_different_sizes(12 << 20, 8 << 20);
}

#[test]
fn the_smaller_disk_of_tandem_decides_the_size() {
    of_different_sizes(8 << 20, 12 << 20);
}

#[test]
fn a_kernel_primary_without_its_disk_reads_and_writes_through_tandem() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 1 << 20));
    couple.kernel.must("detach");
    couple
        .kernel
        .wait_state("Connected", "Primary/Secondary", "Diskless/UpToDate");
    couple.tandem.wait_state("Connected", "UpToDate/Diskless");
    assert_eq!(couple.kernel.read(0, 1 << 20), noise(1, 1 << 20));
    couple.kernel.write(65_536, &noise(2, 65_536));
    assert_eq!(couple.kernel.read(65_536, 65_536), noise(2, 65_536));
    couple.kernel.must("attach");
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn a_tandem_primary_without_its_disk_reads_and_writes_through_the_kernel() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(0, &noise(1, 1 << 20), Fua::No).unwrap();
    couple.tandem.must(&["detach", "r0"]);
    couple
        .kernel
        .wait_state("Connected", "Secondary/Primary", "UpToDate/Diskless");
    couple.tandem.wait_state("Connected", "Diskless/UpToDate");
    assert_eq!(client.read(0, 1 << 20).unwrap(), noise(1, 1 << 20));
    client.write(65_536, &noise(2, 65_536), Fua::No).unwrap();
    client.flush().unwrap();
    assert_eq!(client.read(65_536, 65_536).unwrap(), noise(2, 65_536));
    couple.tandem.must(&["attach", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    client.disconnect().unwrap();
    couple.compare_disks();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

/// In sync, then some writes that only the kernel has; both down. Both disks carry generations, bits and log.
fn after_a_life(couple: &Couple<'_>) {
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 1 << 20));
    couple.tandem.must(&["disconnect", "r0"]);
    couple
        .kernel
        .wait_state("WFConnection", "Primary/Unknown", "UpToDate/DUnknown");
    couple.kernel.write(2 << 20, &noise(2, 65_536));
    couple.kernel.must("secondary");
    couple.tandem.must(&["down", "r0"]);
    couple.kernel.must("down");
}

/// Size, generations and bitmap, as `dump-md` of either kind of node tells them; its comments are left out, and its flags, which
/// the tools of DRBD 8.4 show as 0 (docs/spec/metadata.md, P10).
fn facts(dump: &str) -> Vec<String> {
    let lines = dump.lines().map(str::trim);
    let facts: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("flags "))
        .map(String::from)
        .collect();
    for fact in ["la-size-sect", "uuid {", "bm {"] {
        let said = facts.iter().any(|line| line.starts_with(fact));
        assert!(said, "no {fact} in\n{dump}");
    }
    facts
}

/// As the tools of the kernel's node tell it. They want the activity log applied first.
fn kernels_dump(couple: &Couple<'_>) -> Vec<String> {
    couple.kernel.must("apply-al");
    let mut facts = facts(&couple.kernel.must("dump-md"));
    facts.push(couple.kernel.must("get-gi").trim().to_owned());
    facts
}

/// As Tandem tells it.
fn tandems_dump(couple: &Couple<'_>) -> Vec<String> {
    couple.tandem.must(&["apply-al", "r0"]);
    let mut facts = facts(&couple.tandem.must(&["dump-md", "r0"]));
    facts.push(couple.tandem.must(&["get-gi", "r0"]).trim().to_owned());
    facts
}

#[test]
fn two_nodes_exchange_their_disks() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    let bytes = couple.setup.kernel_bytes;
    after_a_life(&couple);
    let kernels = couple.kernel.disk(0, bytes);
    let ours = std::fs::read(couple.tandem.disk(0)).unwrap();
    let dump_of_kernel = kernels_dump(&couple);
    let dump_of_tandem = tandems_dump(&couple);
    assert_ne!(dump_of_kernel, dump_of_tandem);
    std::fs::write(couple.tandem.disk(0), &kernels).unwrap();
    couple.kernel.shell("echo 3 >/proc/sys/vm/drop_caches");
    couple.kernel.fill(0, &ours);
    // Each reads what the former owner read.
    assert_eq!(tandems_dump(&couple), dump_of_kernel);
    assert_eq!(kernels_dump(&couple), dump_of_tandem);
    // The newer data came with the disk: now Tandem has them and the kernel gets them.
    couple.tandem.must(&["up", "r0"]);
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    couple.kernel.must("up");
    couple.wait_connected("UpToDate/UpToDate");
    assert!(
        couple
            .kernel
            .log()
            .contains("Began resync as SyncTarget (will sync 64 KB [16 bits set])"),
        "{}",
        couple.kernel.log()
    );
    couple.compare_disks();
    assert_eq!(couple.kernel.disk(2 << 20, 65_536), noise(2, 65_536));
    couple.finish();
}

/// What lies on both disks at a moment when nothing is under way, as after the death of both; then each kind of node gets
/// the other one's disk.
fn exchange_as_after_a_crash(couple: &Couple<'_>, demote: impl Fn(&Couple<'_>)) {
    let kernels = couple.kernel.disk(0, couple.setup.kernel_bytes);
    let ours = std::fs::read(couple.tandem.disk(0)).unwrap();
    demote(couple);
    couple.tandem.must(&["down", "r0"]);
    couple.kernel.must("down");
    let put = |for_tandem: &[u8], for_kernel: &[u8]| {
        std::fs::write(couple.tandem.disk(0), for_tandem).unwrap();
        couple.kernel.shell("echo 3 >/proc/sys/vm/drop_caches");
        couple.kernel.fill(0, for_kernel);
    };
    // As their owners would have found them, activity log applied.
    put(&ours, &kernels);
    let dump_of_tandem = tandems_dump(couple);
    let dump_of_kernel = kernels_dump(couple);
    put(&kernels, &ours);
    assert_eq!(tandems_dump(couple), dump_of_kernel);
    assert_eq!(kernels_dump(couple), dump_of_tandem);
    put(&kernels, &ours);
    couple.up();
    couple.wait_connected("UpToDate/UpToDate");
}

#[test]
fn the_disk_of_a_crashed_tandem_primary_is_recovered_by_the_kernel() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    for turn in 0..3u64 {
        client
            .write(turn << 21, &noise(turn + 1, 65_536), Fua::No)
            .unwrap();
    }
    client.flush().unwrap();
    client.disconnect().unwrap();
    exchange_as_after_a_crash(&couple, |couple| {
        couple.tandem.must(&["secondary", "r0"]);
    });
    assert!(
        couple
            .kernel
            .log()
            .contains("Began resync as SyncSource (will sync 8152 KB"),
        "the two hot extents are synced\n{}",
        couple.kernel.log()
    );
    couple.finish();
}

#[test]
fn the_disk_of_a_crashed_kernel_primary_is_recovered_by_tandem() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.kernel.must("primary");
    for turn in 0..3u64 {
        couple.kernel.write(turn << 21, &noise(turn + 1, 65_536));
    }
    exchange_as_after_a_crash(&couple, |couple| {
        couple.kernel.must("secondary");
    });
    assert!(
        couple
            .kernel
            .log()
            .contains("Began resync as SyncTarget (will sync 8152 KB"),
        "the two hot extents are synced\n{}",
        couple.kernel.log()
    );
    couple.finish();
}

/// Three writers fill two extents of the activity log each, again and again; one more writes block after block and tells this
/// host of each that was acknowledged. Returns the number of those, once the machine has died in the middle of it.
fn die_in_the_middle_of_writes(couple: &Couple<'_>, machine: &Machine) -> u64 {
    let device = couple.kernel.device();
    couple.kernel.shell(&format!(
        "cd /tmp; tr '\\0' '\\101' </dev/zero | head -c 4096 >a; \
         for n in 1 2; do head -c 8388608 /dev/urandom >r$n; done; \
         for start in 0 16 40; do (while :; do for n in 1 2; do \
         dd if=r$n of={device} bs=256k seek=$((start * 4)) oflag=direct conv=notrunc || exit; \
         done; done) >/dev/null 2>&1 & done; \
         (n=0; while :; do dd if=a of={device} bs=4096 seek=$(({FIRST} + n)) oflag=direct conv=notrunc || break; \
         n=$((n+1)); echo $n >>/share/acknowledged; done) >/dev/null 2>&1 &"
    ));
    let acknowledged = || {
        let file = machine.share().join("acknowledged");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().last()?.parse::<u64>().ok()
    };
    let many = || acknowledged().filter(|count| *count >= 20);
    wait::until("twenty writes", MOMENT * 6, many, || couple.kernel.log());
    let under_way = || {
        let line = format!("sed -n '/^ *{}: /{{n;p}}' /proc/drbd", couple.kernel.minor);
        let counters = couple.kernel.shell(&line);
        (!counters.contains(" ap:0 ")).then_some(())
    };
    wait::until("a write under way", MOMENT, under_way, String::new);
    machine.crash();
    acknowledged().unwrap()
}

/// The first block of those that are told of.
const FIRST: u64 = (56 << 20) / 4096;
/// Extents of the activity log that are written.
const EXTENTS: u64 = 7;

/// What is found when each kind of node attaches the disk: blocks out of sync in KiB, and what lies on it afterwards.
fn attached_by_the_kernel(couple: &Couple<'_>) -> (u64, Vec<String>) {
    couple.kernel.must("up");
    couple
        .kernel
        .wait_state("WFConnection", "Secondary/Unknown", "UpToDate/DUnknown");
    let kib = couple.kernel.out_of_sync_kib();
    couple.kernel.must("down");
    (kib, kernels_dump(couple))
}

fn attached_by_tandem(couple: &Couple<'_>) -> (u64, Vec<String>) {
    couple.tandem.must(&["up", "r0"]);
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    let kib = couple.tandem.counter(0, "oos");
    couple.tandem.must(&["down", "r0"]);
    (kib, tandems_dump(couple))
}

#[test]
fn the_disk_of_a_kernel_primary_that_died_in_the_middle_of_writes_is_recovered_by_tandem() {
    let machine = Machine::breakable();
    let setup = Setup {
        tandem_bytes: 64 << 20,
        kernel_bytes: 64 << 20,
        ..quick_to_notice()
    };
    let couple = Couple::equal_from_the_start(&machine, setup);
    couple.may_say(crate::crash::LOSS);
    couple.kernel.must("primary");
    let acknowledged = die_in_the_middle_of_writes(&couple, &machine);
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    couple.tandem.must(&["down", "r0"]);
    let image = couple.kernel.disk(0, couple.setup.kernel_bytes);
    let ours = std::fs::read(couple.tandem.disk(0)).unwrap();
    machine.boot_again();
    couple.after_boot();
    let put = |for_tandem: &[u8], for_kernel: &[u8]| {
        std::fs::write(couple.tandem.disk(0), for_tandem).unwrap();
        couple.kernel.shell("echo 3 >/proc/sys/vm/drop_caches");
        couple.kernel.fill(0, for_kernel);
    };
    // Looked at by the tools of either, then attached by either.
    put(&image, &image);
    assert_eq!(tandems_dump(&couple), kernels_dump(&couple));
    put(&image, &image);
    let by_kernel = attached_by_the_kernel(&couple);
    assert_eq!(attached_by_tandem(&couple), by_kernel);
    let hot = by_kernel.0;
    assert!((4096..=EXTENTS * 4096).contains(&hot), "{hot} KiB are hot");
    // Tandem goes on where the kernel died.
    put(&image, &ours);
    couple.up();
    couple.wait_connected("UpToDate/UpToDate");
    let amount = format!("Began resync as SyncTarget (will sync {hot} KB");
    let log = couple.kernel.log();
    assert!(log.contains(&amount), "{amount}\n{log}");
    let from = FIRST * 4096;
    let told = couple.kernel.disk(from, acknowledged * 4096);
    let lost = told.iter().position(|byte| *byte != b'A');
    assert_eq!(lost, None, "of {acknowledged} acknowledged writes");
    couple.finish();
}

#[test]
fn a_failing_disk_of_the_kernel_is_detached_and_tandem_goes_on() {
    let setup = Setup {
        kernel_disk: String::from("on-io-error detach;"),
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(0, &noise(1, 65_536), Fua::No).unwrap();
    couple.kernel.set_disk(Health::Failing);
    for turn in 0..20u64 {
        client
            .write(turn << 16, &noise(turn + 2, 32_768), Fua::No)
            .unwrap();
    }
    client.flush().unwrap();
    couple
        .kernel
        .wait_state("Connected", "Secondary/Primary", "Diskless/UpToDate");
    couple.tandem.wait_state("Connected", "UpToDate/Diskless");
    couple.may_say(&[
        "IO error",
        "IO ERROR",
        "IO failed",
        "Detaching...",
        "Sending NegAck",
        "error",
        "failed",
    ]);
    couple.kernel.set_disk(Health::Good);
    couple.kernel.must("attach");
    couple.wait_connected("UpToDate/UpToDate");
    client.disconnect().unwrap();
    couple.compare_disks();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}
